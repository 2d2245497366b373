"""Paths of a controlled diffusion, many at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.control.laws import Gaussian
from scoretune.control.policies import act
from scoretune.control.sde import ControlledSDE, check_problem, with_time
from scoretune.core.errors import UserError


@dataclass(frozen=True)
class Paths:
    """K paths of N steps: times [N+1], states [K, N+1, n], actions [K, N, m], rewards [K, N].

    Rewards are rates, at the starts of the steps.
    """

    times: Tensor
    states: Tensor
    actions: Tensor
    rewards: Tensor

    @property
    def dt(self) -> Tensor:
        """The lengths of the steps, [N]."""
        return self.times.diff()


def grid(problem: ControlledSDE, dt: float, until: float | None = None) -> Tensor:
    """0, δ, …, T, [N+1]: T is the horizon, or `until`; δ is `dt`, shortened if T is no multiple."""
    if not 0 < dt < math.inf:
        raise UserError(f"dt must be finite and > 0, got {dt}")
    end = problem.horizon if problem.horizon is not None else until
    if end is None:
        raise UserError("this problem has no horizon: say `until` what time to simulate")
    if not dt <= end < math.inf:
        raise UserError(f"dt = {dt} must be at most the simulated time {end}, which must be finite")
    steps = math.ceil(end / dt - 1e-9)
    return torch.linspace(0, end, steps + 1, dtype=torch.float64)


@torch.no_grad()
def simulate(
    problem: ControlledSDE,
    policy: nn.Module,
    *,
    dt: float,
    count: int,
    generator: torch.Generator,
    until: float | None = None,
) -> Paths:
    """Euler–Maruyama, a fresh action a ~ policy(·|x) in every step; every draw is `generator`'s.

    Up to the horizon of the problem, or up to `until` where it is infinite. Strong order ½; in law
    an error of O(dt), part of which is the action being frozen over a step.
    """
    check_problem(problem)
    times = grid(problem, dt, until)
    x = _start(problem, count, generator)
    steps = times.diff().tolist()
    states, actions, noisy = [x], list[Tensor](), False
    for t, step in zip(times[:-1], steps, strict=True):
        a = _draw(policy, with_time(problem, problem.observe(x), t), problem.action_dim, generator)
        drift, diffusion = problem.drift(x, a), problem.diffusion(x, a)
        if not actions:
            _check_step(problem, x, drift, diffusion)
        noisy = noisy or bool(diffusion.any())
        x = x + drift * step + _shock(diffusion, generator) * math.sqrt(step)
        states.append(x)
        actions.append(a)
    path = torch.stack(states, dim=1), torch.stack(actions, dim=1)
    _check_paths(problem, path[0], times, noisy)
    return Paths(times.to(x), *path, _rewards(problem, path[0][:, :-1], path[1]))


def _start(problem: ControlledSDE, count: int, generator: torch.Generator) -> Tensor:
    if count < 1:
        raise UserError(f"at least one path is needed, got {count}")
    x = problem.start(count, generator)
    if x.shape != (count, problem.state_dim):
        raise UserError(
            f"{type(problem).__name__}.start must return [{count}, {problem.state_dim}] "
            f"(count, state_dim), got {list(x.shape)}"
        )
    return x.to(torch.get_default_dtype())  # the dtype that networks have


def _draw(policy: nn.Module, seen: Tensor, actions: int, generator: torch.Generator) -> Tensor:
    law = act(policy, seen)
    if law[0].shape[-1] != actions:
        raise UserError(f"the policy gives {law[0].shape[-1]} actions, the problem takes {actions}")
    if isinstance(law, Gaussian) and not bool((law.std > 0).all()):
        raise UserError("the policy's std must be > 0 everywhere: learning needs exploration")
    return law.draw(generator)


def _shock(diffusion: Tensor, generator: torch.Generator) -> Tensor:
    shape = (diffusion.shape[0], diffusion.shape[-1])
    noise = torch.randn(shape, generator=generator, dtype=diffusion.dtype)
    if diffusion.ndim == 2:
        return diffusion * noise
    return (diffusion @ noise.unsqueeze(-1)).squeeze(-1)


def _rewards(problem: ControlledSDE, states: Tensor, actions: Tensor) -> Tensor:
    """Reward rates of all steps in one call, [K, N]."""
    x, a = states.flatten(0, 1), actions.flatten(0, 1)
    rewards = problem.reward(x, a)
    if rewards.shape != x.shape[:1]:
        raise UserError(
            f"{type(problem).__name__}.reward must return [B], got {list(rewards.shape)} "
            f"for states {list(x.shape)}"
        )
    wrong = ~torch.isfinite(rewards)
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise UserError(
            f"{type(problem).__name__}.reward is {float(rewards[at])} at state "
            f"{_digits(x[at])}, action {_digits(a[at])}: it must be finite wherever paths go"
        )
    return rewards.view(states.shape[:2])


def _check_step(problem: ControlledSDE, x: Tensor, drift: Tensor, diffusion: Tensor) -> None:
    name = type(problem).__name__
    if drift.shape != x.shape:
        raise UserError(f"{name}.drift must return {list(x.shape)}, got {list(drift.shape)}")
    if diffusion.shape[:2] != x.shape or diffusion.ndim > 3:
        raise UserError(
            f"{name}.diffusion must return {list(x.shape)} or {[*x.shape, 'W']}, "
            f"got {list(diffusion.shape)}"
        )


def _check_paths(problem: ControlledSDE, states: Tensor, times: Tensor, noisy: bool) -> None:
    name = type(problem).__name__
    broken = ~torch.isfinite(states).all(-1)
    if bool(broken.any()):
        path, k = (int(i) for i in broken.nonzero()[broken.nonzero()[:, 1].argmin()])
        before = f", from {_digits(states[path, k - 1])}" if k else ""
        raise UserError(
            f"a path of {name} stops being finite at t = {float(times[k]):.4g}{before}: "
            "take a smaller dt or smaller steps of learning"
        )
    if not (noisy or problem.noiseless):
        raise UserError(
            f"{name}.diffusion is 0 at every state that the policy visits: without noise the "
            "martingale conditions of the critic say nothing; give it some noise, or "
            "say noiseless = True where exploration alone is meant to move it"
        )


def _digits(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values.tolist()) + ")"
