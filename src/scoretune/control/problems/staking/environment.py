"""Trading as something to learn: a state, an action |ν| ≤ cap, and rewards, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from scoretune.control.policies import act
from scoretune.control.problems.staking.optimum import Optimum, Staking
from scoretune.control.problems.staking.problem import Array, Price
from scoretune.control.sde import ControlledSDE, with_time
from scoretune.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class StakeTrading(ControlledSDE):
    """A `Staking` problem as a controlled diffusion of (t, y), and ln P if the price is volatile.

    y = X/N is the share; the action is the trading rate ν, cut where the share would leave [0, 1],
    so that no infeasible value can be earned. `step` is the time step that it will be simulated
    with: drift and reward are means over such a step, with the price and the supply of its middle,
    so that shares are exact and rewards are of second order in the step.
    """

    trading: Staking = field(default_factory=Staking)
    step: float = 0.1
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.step <= self.trading.horizon:
            raise UserError(
                f"stake trading: step must be > 0 and at most the horizon "
                f"{self.trading.horizon:g}, got {self.step}"
            )
        if not 0 <= self.temperature < math.inf:
            raise UserError(f"stake trading: temperature must be >= 0, got {self.temperature}")

    @property
    def discount(self) -> float:  # type: ignore[override]
        """β."""
        return self.trading.discount

    @property
    def horizon(self) -> float:  # type: ignore[override]
        """T."""
        return self.trading.horizon

    @property
    def volatile(self) -> bool:
        """Whether the price is part of the state."""
        return self.trading.price.volatility > 0

    @property
    def noiseless(self) -> bool:  # type: ignore[override]
        """Whether nothing but exploration is random."""
        return not self.volatile

    @property
    def state_dim(self) -> int:  # type: ignore[override]
        """2, or 3 with a volatile price."""
        return 2 + self.volatile

    def optimum(self) -> Optimum:
        """The best strategy and its value, in continuous time."""
        return self.trading.optimum()

    def start(self, count: int, generator: torch.Generator) -> Tensor:
        state = [0.0, self.trading.share]
        if isinstance(self.trading.price, Price) and self.volatile:
            state.append(math.log(self.trading.price.start))
        return torch.tensor(state).repeat(count, 1)

    def observe(self, x: Tensor) -> Tensor:
        """The share's way from the start, in units of the largest one, and ln P if it is random."""
        way = (x[:, 1:2] - self.trading.share) / self.trading.reach
        return torch.cat([way, x[:, 2:]], dim=1)

    def drift(self, x: Tensor, a: Tensor) -> Tensor:
        moved = self._moved(x, a) / self.step
        columns = [torch.ones_like(moved), moved]
        price = self.trading.price
        if self.volatile:
            columns.append(torch.full_like(moved, price.growth - price.volatility**2 / 2))
        return torch.stack(columns, dim=1)

    def diffusion(self, x: Tensor, a: Tensor) -> Tensor:
        """The price's alone."""
        return torch.tensor([0.0, 0.0, self.trading.price.volatility])[: x.shape[1]].expand_as(x)

    def reward(self, x: Tensor, a: Tensor) -> Tensor:
        trading, moved = self.trading, self._moved(x, a).double()
        middle = x[:, 0].double().numpy() + self.step / 2
        volume = torch.from_numpy(np.asarray(trading.supply.at(middle)))
        if self.volatile:
            prices = torch.exp(x[:, 2].double() + trading.price.growth * self.step / 2)
        else:
            prices = torch.from_numpy(np.asarray(trading.prices(middle)))
        rate = moved / self._clock(x)
        stakes = volume * (x[:, 1].double() + moved / 2)
        earned = trading.running.weight * stakes.clamp(min=0) ** trading.running.power
        faded = math.exp(-self.discount * self.step / 2)  # from the middle to the step's start
        return (faded * (earned - prices * rate)).to(x)

    def terminal(self, x: Tensor) -> Tensor:
        volume = float(self.trading.supply.at(np.array(self.horizon)))
        final = self.trading.terminal
        return final.weight * (volume * x[:, 1]).clamp(min=0) ** final.power

    def features(self, inputs: Tensor) -> Tensor:
        """Polynomials of the time, of the share and, where it is random, of ln P."""
        trading = self.trading
        t = inputs[..., 0] / trading.horizon
        y = (inputs[..., 1] - trading.share) / trading.reach
        columns = [torch.ones_like(t), t, t**2, t**3, y, y * t, y * t**2, y**2, y**2 * t]
        if isinstance(trading.price, Price) and self.volatile:
            width = trading.price.volatility * math.sqrt(trading.horizon)
            z = (inputs[..., 2] - math.log(trading.price.start)) / width
            columns += [z, z**2, z**3, z**4, z * t, z**2 * t, z**3 * t, z * t**2, z**2 * t**2]
            columns += [y * z, y * z * t]
        return torch.stack(columns, dim=-1)

    def _clock(self, x: Tensor) -> Tensor:
        """∫ds/N over the step from each state's time on, [B], in double precision."""
        start = x[:, 0].double().numpy()
        clock = self.trading.supply.clock
        return torch.from_numpy(np.asarray(clock(start + self.step) - clock(start)))

    def _moved(self, x: Tensor, a: Tensor) -> Tensor:
        """How far the share goes in the step: ν·∫ds/N, within the cap and [0, 1]."""
        rate = a[:, 0].double().clamp(-self.trading.cap, self.trading.cap)
        share = x[:, 1].double()
        moved = rate * self._clock(x)
        return torch.maximum(torch.minimum(moved, 1 - share), -share).to(x)


@torch.no_grad()
def played(problem: StakeTrading, policy: nn.Module, *, paths: int = 1, seed: int = 0) -> Array:
    """What the policy earns without exploring, on drawn prices, discounted, [paths].

    Each step takes the mode of the policy's law. The same seed draws the same prices for every
    policy. One path says all where the price is not volatile.
    """
    if paths < 1:
        raise UserError(f"paths must be at least 1, got {paths}")
    generator = torch.Generator().manual_seed(seed)
    steps = max(1, round(problem.horizon / problem.step))
    if not math.isclose(steps * problem.step, problem.horizon, rel_tol=1e-9):
        raise UserError(
            f"stake trading: the horizon {problem.horizon:g} must be a multiple of the step "
            f"{problem.step:g}"
        )
    x, total = problem.start(paths, generator), np.zeros(paths)
    spread = problem.trading.price.volatility * math.sqrt(problem.step)
    for k in range(steps):
        t = torch.tensor(k * problem.step)
        a = act(policy, with_time(problem, problem.observe(x), t)).mode
        fade = math.exp(-problem.discount * k * problem.step)
        total += fade * problem.reward(x, a).double().numpy() * problem.step
        x = x + problem.drift(x, a) * problem.step
        if problem.volatile:
            x[:, 2] += spread * torch.randn(paths, generator=generator)
    end = math.exp(-problem.discount * problem.horizon)
    return np.asarray(total + end * problem.terminal(x).double().numpy())
