"""Continuous-time policy gradient and its proximal sibling (arXiv 2305.18901).

Both repeat: simulate with the acting policy, fit the critic to the paths, read the advantage rate
q̂ = (increment of the value martingale)/δt off it, and improve the policy at points of the
discounted occupation measure. They differ in the improvement: one gradient step, or several
steps on a surrogate that is held near the acting policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from scoretune.control.bounded import BangBang, BetaLinear, SquashedGaussian, saturation
from scoretune.control.critics import Critic, values
from scoretune.control.experience import Explorer, Points, discounted_return, prepare
from scoretune.control.laws import Gaussian, kl
from scoretune.control.policies import GaussianLinear, act
from scoretune.control.sde import ControlledSDE
from scoretune.control.trust import Clip, Schedule, Shrinking, SqrtKL, Trust, at, check_trust
from scoretune.core.errors import UserError
from scoretune.rl import adapted_coefficient, clipped_surrogate

Watch: TypeAlias = Callable[[int, dict[str, float]], None]
Improve: TypeAlias = Callable[[int, Points], dict[str, float]]

SOFT_FRACTION, PACE = 0.03, 100.0
MOST_KL = 0.5  # of one natural-gradient step: a bad batch must not throw a run off
SATURATED = 0.99  # of the occupation measure
FRESH_PATHS = 4096  # fresh paths for the final value where it has no closed form


@dataclass(frozen=True)
class Learned:
    """The result of a training.

    `value` is η of the final policy: exact where the problem knows it (`value_error` 0), else the
    mean over fresh paths with its standard error. `history` has one record an iteration: `value`
    (of the policy after the iteration if it is known exactly, else the return of the paths the
    iteration saw, sampled before it), `kl` from the old policy to the new, and the algorithm's
    numbers; for a bounded policy also `stuck_low` and `stuck_high`, the shares of the occupation
    measure at which it took that end of its range with certainty.
    """

    policy: nn.Module
    critic: Critic
    value: float
    value_error: float
    history: list[dict[str, float]]

    @property
    def saturated(self) -> str | None:
        """At which end, `low` or `high`, a bounded policy is stuck wherever it goes, if it is.

        No action differs there any more, so nothing is learned: the typical failure, unless that
        end is best throughout.
        """
        ends = {end: self.history[-1].get(f"stuck_{end}", 0.0) for end in ("low", "high")}
        return next((end for end, share in ends.items() if share >= SATURATED), None)


def cpg(
    problem: ControlledSDE,
    *,
    dt: float = 0.05,
    iterations: int = 200,
    seed: int = 0,
    policy: nn.Module | None = None,
    critic: Critic | nn.Module | None = None,
    trajectories: int = 256,
    truncation: float | None = None,
    clocks: int | None = None,
    step: Schedule | None = None,
    on_iteration: Watch | None = None,
) -> Learned:
    """Continuous policy gradient (CPG): ∇η = E∫e^{−ρt}[∇log π(a|X) q̂ + γ∇entropy]dt.

    `policy` maps what it sees to (mean, std) and is trained in place; by default a GaussianLinear
    from N(0, 1). `critic`: by default CLSTD with quadratic features; a module is fitted by the
    martingale loss; CTD0(module) is there too. `step` is the size of the natural-gradient step of a
    GaussianLinear (see `natural_step`) or Adam's learning rate for another module (3e-3).
    `truncation` T̄ is where paths of an infinite horizon are cut (4/ρ). `clocks` J draws J
    exponential clocks an iteration instead of weighing all grid points.
    """
    explorer = prepare(
        problem,
        policy=policy,
        critic=critic,
        dt=dt,
        trajectories=trajectories,
        truncation=truncation,
        clocks=clocks,
        seed=seed,
    )
    linear = isinstance(explorer.policy, GaussianLinear)
    schedule = (natural_step(explorer) if linear else 3e-3) if step is None else step
    # Adam keeps its moments from one iteration to the next; SGD in whitened coordinates is natural.
    kind = torch.optim.SGD if linear else torch.optim.Adam
    optimizer = kind(explorer.policy.parameters(), lr=1.0)

    def improve(k: int, points: Points) -> dict[str, float]:
        _whiten(explorer.policy, points)
        optimizer.zero_grad()
        _ascend(_first_order(explorer, points))
        length = _gradient_norm(explorer.policy)
        size = at(schedule, k, "step")
        if linear and length > 0:  # ½(size·length)² is the KL of the step
            size = min(size, math.sqrt(2 * MOST_KL) / length)
        optimizer.param_groups[0]["lr"] = size
        optimizer.step()
        return {"gradient_norm": length, "step": size}

    return _learn(explorer, iterations, improve, on_iteration)


def cppo(
    problem: ControlledSDE,
    *,
    dt: float = 0.05,
    iterations: int = 100,
    seed: int = 0,
    policy: nn.Module | None = None,
    critic: Critic | nn.Module | None = None,
    trajectories: int = 1000,
    truncation: float | None = None,
    clocks: int | None = 40_000,
    trust: Trust | None = None,
    inner_steps: int = 20,
    learning_rate: float = 5e-3,
    on_iteration: Watch | None = None,
) -> Learned:
    """Continuous PPO (CPPO): Adam on E[ratio·q̂ + γ·entropy] − C·distance, C adapted.

    `trust` says what holds a step back: SqrtKL() (the default), KL() or Clip(). Everything else is
    as in `cpg`, but points are `clocks` exponential clocks by default (None: all grid points,
    weighted) and a GaussianLinear's learning rate is in its whitened coordinates.
    """
    trust = SqrtKL() if trust is None else trust
    check_trust(trust)
    if inner_steps < 1 or not 0 < learning_rate < math.inf:
        raise UserError("inner_steps must be at least 1 and learning_rate finite and > 0")
    explorer = prepare(
        problem,
        policy=policy,
        critic=critic,
        dt=dt,
        trajectories=trajectories,
        truncation=truncation,
        clocks=clocks,
        seed=seed,
    )
    coefficient = 0.0 if isinstance(trust, Clip) else trust.coefficient

    def improve(k: int, points: Points) -> dict[str, float]:
        nonlocal coefficient
        _whiten(explorer.policy, points)
        optimizer = torch.optim.Adam(explorer.policy.parameters(), lr=learning_rate)
        for _ in range(inner_steps):
            optimizer.zero_grad()
            _ascend(_proximal(explorer, points, trust, coefficient))
            optimizer.step()
        if isinstance(trust, Clip):
            return {}
        with torch.no_grad():
            distance = float(_mean(points, trust.distance(_kl(explorer.policy, points))))
        used, radius = coefficient, at(trust.radius, k, "radius")
        coefficient = adapted_coefficient(coefficient, distance, radius, trust.tolerance)
        return {"coefficient": used, "distance": distance, "radius": radius}

    return _learn(explorer, iterations, improve, on_iteration)


def natural_step(explorer: Explorer) -> Shrinking:
    """CPG's default schedule: 3 % of a soft policy iteration at first, slowing with k/100.

    The natural-gradient step α with αγ·mass = τ (mass: ∫e^{−ρt}dt) moves, to first order, to
    π' ∝ π^{1−τ} e^{τq/γ}; τ has no units, and a reward in other units gives the same steps. Without
    temperature there is no such unit and α starts at 0.3.
    """
    scale = explorer.problem.temperature * explorer.mass
    return Shrinking(SOFT_FRACTION / scale if scale > 0 else 0.3, PACE)


def _first_order(explorer: Explorer, points: Points) -> Tensor:
    """A scalar whose gradient is the policy gradient."""
    law = act(explorer.policy, points.seen)
    gain = law.log_prob(points.action) * points.advantage
    return torch.sum(points.weight * (gain + explorer.problem.temperature * law.entropy()))


def _proximal(explorer: Explorer, points: Points, trust: Trust, coefficient: float) -> Tensor:
    """CPPO's objective: the surrogate of η minus what keeps the policy near the acting one."""
    law = act(explorer.policy, points.seen)
    log_prob = law.log_prob(points.action)
    bonus = explorer.problem.temperature * law.entropy()
    if isinstance(trust, Clip):
        gain = clipped_surrogate(log_prob, points.log_prob, points.advantage, trust.clip)
        return torch.sum(points.weight * (gain + bonus))
    gain = torch.exp(log_prob - points.log_prob) * points.advantage
    penalty = trust.penalty(kl(points.law, law), coefficient)
    return torch.sum(points.weight * (gain + bonus)) - _mean(points, penalty)


def _learn(
    explorer: Explorer, iterations: int, improve: Improve, on_iteration: Watch | None
) -> Learned:
    if iterations < 1:
        raise UserError(f"iterations must be at least 1, got {iterations}")
    history: list[dict[str, float]] = []
    for k in range(iterations):
        points = explorer.explore()
        numbers = improve(k, points)
        with torch.no_grad():
            moved = float(_mean(points, _kl(explorer.policy, points)))
        if not math.isfinite(moved):
            raise UserError(
                f"the policy is no longer finite after iteration {k}: take smaller steps"
            )
        exact = explorer.problem.exact_value(explorer.policy)
        record = {"value": points.returned if exact is None else exact, "kl": moved, **numbers}
        if not isinstance(points.law, Gaussian):
            record["stuck_low"], record["stuck_high"] = saturation(points.law, points.weight)
        history.append(record)
        if on_iteration is not None:
            on_iteration(k, record)
    return Learned(explorer.policy, explorer.critic, *_final_value(explorer), history)


def _final_value(explorer: Explorer) -> tuple[float, float]:
    """η of the final policy and its standard error."""
    exact = explorer.problem.exact_value(explorer.policy)
    if exact is not None:
        return exact, 0.0
    _, outcomes = explorer.outcomes(explorer.paths(FRESH_PATHS))
    with torch.no_grad():
        returns = discounted_return(outcomes, values(explorer.critic, outcomes)[:, -1])
    return float(returns.mean()), float(returns.std()) / math.sqrt(FRESH_PATHS)


def _whiten(policy: nn.Module, points: Points) -> None:
    if isinstance(policy, GaussianLinear):
        policy.whiten(points.seen, points.weight)
    elif isinstance(policy, SquashedGaussian | BetaLinear | BangBang):
        policy.surface.standardize(points.seen, points.weight)


def _kl(policy: nn.Module, points: Points) -> Tensor:
    """KL(acting ‖ policy) at the points, [J]."""
    return kl(points.law, act(policy, points.seen))


def _mean(points: Points, numbers: Tensor) -> Tensor:
    """The mean under the normalised occupation measure."""
    return torch.sum(points.weight * numbers) / points.weight.sum()


def _ascend(objective: Tensor) -> None:
    (-objective).backward()


def _gradient_norm(policy: nn.Module) -> float:
    squares = [(p.grad**2).sum() for p in policy.parameters() if p.grad is not None]
    return math.sqrt(sum(float(s) for s in squares))
