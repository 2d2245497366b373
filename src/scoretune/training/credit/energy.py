"""An energy learned from data in the reward's place: maximum-entropy inverse RL of samplers.

DxMI (arXiv 2407.00626) fine-tunes a sampler of few steps against an energy that tells finished
samples from data, and a value V(x_k) = E[energy(x_N) | x_k] of the states before. Both are costs:
low is data. The value can be used in two ways:

* `arrival`, DxMI's: V(x_{k+1}) is descended through the sampled step x_{k+1} = μ_θ(x_k) + c ξ.
* `departure`, the continuous-time form (arXiv 2502.01819): ⟨∇V(x_k), x_{k+1} − x_k⟩ is descended,
  the drift's part of dV, which tends to the same as steps get shorter.

Both are slopes at x_{k+1}, hence by the kernel's response slopes of the estimate x̂0, and
`objectives.base.ScoreAction` does the rest. The sampler's noise is fixed: its entropy is a
constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from scoretune.core import fsdp
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError, unknown
from scoretune.core.records import Scores, Trajectory, spans
from scoretune.diffusion import estimates
from scoretune.diffusion.processes import expand
from scoretune.policy import Policy
from scoretune.training.credit.base import Credited, RewardFn, arrival_to_data
from scoretune.training.credit.values import head, phases

Form = Literal["arrival", "departure"]


def energy_loss(data: Tensor, samples: Tensor, strength: float = 1.0) -> Tensor:
    """E_data[e] − E_π[e] + γ (E_data[e²] + E_π[e²]), to be minimised; energies [B] of either.

    The minimiser is (p_π − p_data) / (2γ (p_π + p_data)): within ±1/(2γ), 0 where they agree.
    """
    return data.mean() - samples.mean() + strength * ((data**2).mean() + (samples**2).mean())


def time_cost(k: Tensor, steps: int) -> Tensor:
    """sigmoid(N/2 − k) − sigmoid(N/2 − 1 − k), what the step k of N costs: it lifts noisier states
    above cleaner ones for a value that is not told the time."""
    return torch.sigmoid(steps / 2 - k) - torch.sigmoid(steps / 2 - 1 - k)


def running_cost(x: Tensor, x_next: Tensor, velocity: Tensor) -> Tensor:
    """‖x_{k+1} − x_k‖² / (2 b_k D), [B]: D dimensions, `velocity` b_k the usual squared step."""
    return ((x_next - x) ** 2).flatten(1).mean(1) / (2 * velocity)


def running_slope(x: Tensor, x_next: Tensor, velocity: Tensor) -> Tensor:
    """The gradient of `running_cost` at x_{k+1}, [B, *S]; `velocity` a number or [B]."""
    return (x_next - x) / expand(velocity.expand(len(x)) * x[0].numel(), x)


def td_targets(arrival: Tensor, running: Tensor, time: Tensor, costs: Costs) -> Tensor:
    """V(x_{k+1}) + τ₂ running cost + time cost, [B]: what V(x_k) is fitted to."""
    return arrival + costs.running * running + costs.time * time


@dataclass(frozen=True)
class Costs:
    """Weights of the running cost (τ₂ of DxMI) and of the time cost."""

    running: float = 0.0
    time: float = 0.0


@dataclass(frozen=True)
class Gate:
    """What the code of arXiv 2502.01819 descends: clip(⟨∇V, clip(x' − x, ±step)⟩, ±bound), with x'
    first clamped to ±span. It moves only pixels whose step was short, and only some samples."""

    step: float = 0.1
    bound: float = 1.0
    span: float = 1.0


def ctrl_slope(slope: Tensor, x: Tensor, x_next: Tensor, gate: Gate) -> Tensor:
    """The gradient at x' = x_next [B, *S] of the gate's expression, for a slope ∇V(x) [B, *S]."""
    moved = x_next.clamp(-gate.span, gate.span) - x
    product = (slope * moved.clamp(-gate.step, gate.step)).flatten(1).sum(1)
    free = (x_next.abs() <= gate.span) & (moved.abs() <= gate.step)
    return slope * free * expand((product.abs() <= gate.bound).to(slope.dtype), slope)


class EnergyNetwork(nn.Module):
    """A perceptron on states [B, *S], 0 before training. Without the `clock` it is not told how
    much noise is left: one function of the state for all times, as in DxMI."""

    def __init__(self, shape: tuple[int, ...], width: int = 256, clock: bool = True) -> None:
        super().__init__()
        self.enter = nn.Linear(math.prod(shape), width)
        self.clock = nn.Linear(8, width, bias=False) if clock else None
        self.leave = nn.Sequential(
            nn.SiLU(), nn.Linear(width, width), nn.SiLU(), *head(width, width)
        )

    def forward(self, x: Tensor, noise_left: Tensor, tokens: Tensor) -> Tensor:
        """Energies [B] of states x [B, *S] at the part t/horizon [B] of the noise; no prompts."""
        hidden = self.enter(x.flatten(1))
        if self.clock is not None:
            hidden = hidden + self.clock(phases(noise_left.to(x.dtype)))
        return cast(Tensor, self.leave(hidden).squeeze(1))


@dataclass
class EnergyCredit:
    """Each step is worth the fall of a learned cost; the rewards of the path are not looked at.

    Every round fits `energy` to tell the path's samples from as many of `data` (clean states
    [n, *S], noised to where the path ends), then sweeps back through the path, one step of the
    optimiser each: V(x_k) to its `td_targets`. `value` is a network of its own for V before the
    end, or None: the energy's. Both are called with (x, part of the noise that is left, tokens), as
    are `values.ImageValue` and `PointValue`; where prompts matter, the data have a `condition`.
    Credit comes after the fit, as in DxMI: what has not seen these samples cannot tell them from
    data. The policy's `at_once` bounds the states that are looked at together; steps are the same.
    """

    energy: nn.Module
    optimiser: torch.optim.Optimizer
    policy: Policy
    data: Tensor
    seed: int
    condition: Condition | None = None
    form: Form = "arrival"
    value: nn.Module | None = None
    strength: float = 1.0
    costs: Costs = Costs()
    gate: Gate | None = None
    memory: float = 0.99  # of the usual squared steps b_k
    rounds: int = 0
    velocities: Tensor | None = None

    def __post_init__(self) -> None:
        if self.form not in get_args(Form):
            raise unknown("form of an energy's credit", self.form, get_args(Form))
        if self.gate is not None and self.form == "arrival":
            raise UserError("a gate belongs to form='departure': leave it out for 'arrival'")
        if len(self.data) == 0:
            raise UserError("an energy is learned from data, and there are none: give clean states")

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        if path.log_probs is None:
            raise UserError("an energy's slopes go through the kernel: leave the solver unset")
        self._remember_velocities(path)
        metrics = {**self._fit(path), "value_loss": self._sweep(path)}
        slope = -self.slope(path, k, b)
        self.rounds += 1
        data_slope = arrival_to_data(self.policy, path, k, b, slope)
        return Credited(data_slope=data_slope, metrics=metrics)

    def slope(self, path: Trajectory, k: Tensor, b: Tensor) -> Tensor:
        """The gradient of the cost at x_{k+1}, [M, *S], by the form, the gate and the costs."""
        x, x_next = path.states[k, b], path.states[k + 1, b]
        at = k + 1 if self.form == "arrival" else k
        slope = torch.empty_like(x)
        for s in self._spans(len(x)):
            with torch.enable_grad():
                place = path.states[at[s], b[s]].requires_grad_()
                cost = self._worth(path, place, at[s], b[s])
                slope[s] = torch.autograd.grad(cost.sum(), place)[0]
        if self.gate is not None:
            slope = ctrl_slope(slope, x, x_next, self.gate)
        if self.costs.running and self.velocities is not None:
            slope = slope + self.costs.running * running_slope(x, x_next, self.velocities[k])
        return slope

    def state(self) -> dict[str, Any]:
        return {
            "energy": self.energy.state_dict(),
            "value": None if self.value is None else self.value.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "rounds": self.rounds,
            "velocities": self.velocities,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.energy.load_state_dict(state["energy"])
        if self.value is not None:
            self.value.load_state_dict(state["value"])
        fsdp.restore(self.optimiser, state["optimiser"])
        self.rounds, velocities = state["rounds"], state["velocities"]
        self.velocities = None if velocities is None else velocities.to(self.policy.device)

    def _fit(self, path: Trajectory) -> dict[str, float]:
        """One step of the energy on the path's ends and as many data."""
        (data, tokens), end = self._some_data(path), self._noise_left(path.times[-1])
        worth: tuple[list[Tensor], list[Tensor]] = ([], [])

        def losses() -> Iterator[Tensor]:
            for s in self._spans(len(data)):
                of_data = self.energy(data[s], end[s], tokens[s])
                of_samples = self.energy(path.final[s], end[s], path.condition.summary[s])
                for each, of in zip(worth, (of_data, of_samples), strict=True):
                    each.append(of.detach())
                yield energy_loss(of_data, of_samples, self.strength) * (len(of_data) / len(data))

        loss = self._descend(losses())
        of_data, of_samples = (torch.cat(each).mean() for each in worth)
        numbers = torch.stack([of_data, of_samples, loss]).tolist()
        return dict(zip(("energy_data", "energy_samples", "energy_loss"), numbers, strict=True))

    def _some_data(self, path: Trajectory) -> tuple[Tensor, Tensor]:
        """Data with the little noise that finished samples have too, and their tokens."""
        generator = torch.Generator().manual_seed(self.seed * 999_983 + self.rounds)
        index = torch.randint(len(self.data), (len(path.final),), generator=generator)
        x0 = self.data[index.to(self.data.device)].to(path.final)
        noise = torch.randn(x0.shape, generator=generator).to(x0)
        tokens = path.condition.summary
        if self.condition is not None:
            tokens = self.condition.take(index.to(self.condition.device)).summary.to(tokens)
        return estimates.perturb(self.policy.backbone.process, path.times[-1], x0, noise), tokens

    def _sweep(self, path: Trajectory) -> float:
        """One step of the value for every step of the path, from its end to its start."""
        steps = len(path.data)
        losses = [self._descend(self._errors(path, k)) for k in reversed(range(steps))]
        values: list[float] = torch.stack(losses).tolist()
        return sum(values) / steps

    def _errors(self, path: Trajectory, k: int) -> Iterator[Tensor]:
        """The mean squared error of V at the states numbered k, in parts that fit the memory."""
        steps, samples = len(path.data), len(path.final)
        everyone = torch.arange(samples, device=path.final.device)
        network = self.energy if self.value is None else self.value
        for who in (everyone[s] for s in self._spans(samples)):
            here, x, x_next = torch.full_like(who, k), path.states[k, who], path.states[k + 1, who]
            with torch.no_grad():
                arrival = self._worth(path, x_next, here + 1, who)
                running = torch.zeros_like(arrival)
                if self.velocities is not None:
                    running = running_cost(x, x_next, self.velocities[k])
                goal = td_targets(arrival, running, time_cost(here, steps), self.costs)
            value = network(x, self._noise_left(path.times[k, who]), path.condition.summary[who])
            yield ((value - goal) ** 2).mean() * (len(who) / samples)

    def _worth(self, path: Trajectory, x: Tensor, at: Tensor, b: Tensor) -> Tensor:
        """The cost [M] of states x [M, *S] that are the `at`-th of their paths."""
        noise_left, tokens = self._noise_left(path.times[at, b]), path.condition.summary[b]
        energy = cast(Tensor, self.energy(x, noise_left, tokens))
        if self.value is None:
            return energy
        return torch.where(at == len(path.data), energy, self.value(x, noise_left, tokens))

    def _noise_left(self, t: Tensor) -> Tensor:
        dtype = next(self.energy.parameters()).dtype
        return (t / self.policy.backbone.process.horizon).to(dtype)

    def _spans(self, rows: int) -> Iterator[slice]:
        return spans(rows, self.policy.at_most(rows))

    def _descend(self, parts: Iterable[Tensor]) -> Tensor:
        """One step of the optimiser on a loss that comes in parts; the loss."""
        self.optimiser.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.policy.device)
        for part in parts:
            part.backward()
            total = total + part.detach()
        self.optimiser.step()
        return total

    def _remember_velocities(self, path: Trajectory) -> None:
        """b_k, a slowly moving mean of the squared steps, [N]; only where they are asked for."""
        if not self.costs.running:
            return
        now = (path.states.diff(dim=0) ** 2).flatten(1).mean(1)
        if self.velocities is None:
            self.velocities = now
        self.velocities = self.memory * self.velocities + (1 - self.memory) * now
