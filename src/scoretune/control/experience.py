"""One iteration's experience: paths, the critic fitted to them, and points with advantage rates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scoretune.control.critics import CLSTD, Critic, MartingaleLoss, Outcomes, values
from scoretune.control.laws import Law, part
from scoretune.control.policies import GaussianLinear, act
from scoretune.control.sde import ControlledSDE, check_problem, with_time
from scoretune.control.simulate import Paths, grid, simulate
from scoretune.core.errors import UserError
from scoretune.rl import (
    exponential_times,
    occupation_weights,
    returns_to_go,
    td_advantage,
)


@dataclass(frozen=True)
class Points:
    """J points of the discounted occupation measure, as the acting policy left them.

    `seen` [J, k], `action` [J, m]; `advantage` [J]: the rate q + γ·entropy, which is centred;
    `weight` [J]: Σ weight·φ estimates E∫e^{−ρt}φ dt; `law`: the acting policy's there;
    `log_prob` [J]; `returned`: the mean discounted return of the paths.
    """

    seen: Tensor
    action: Tensor
    advantage: Tensor
    weight: Tensor
    law: Law
    log_prob: Tensor
    returned: float


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """Who acts where: everything that one iteration's experience needs.

    With `clocks` None every grid point counts, weighted by e^{−ρt}δt; with J clocks, points are
    drawn at exponential times: the same in expectation, with more variance.
    """

    problem: ControlledSDE
    policy: nn.Module
    critic: Critic
    dt: float
    trajectories: int
    truncation: float | None
    clocks: int | None
    generator: torch.Generator

    @property
    def until(self) -> float:
        """T̄ where paths are cut: the horizon, or by default where e^{−ρt} has fallen to e^{−4}."""
        problem = self.problem
        if problem.horizon is not None:
            return problem.horizon
        return 4 / problem.discount if self.truncation is None else self.truncation

    @property
    def mass(self) -> float:
        """∫₀^T̄ e^{−ρt} dt."""
        rho = self.problem.discount
        return self.until if rho == 0 else -math.expm1(-rho * self.until) / rho

    def explore(self) -> Points:
        """Simulate, evaluate the policy, and give every visited point its advantage rate."""
        paths = self.paths(self.trajectories)
        law, outcomes = self.outcomes(paths)
        self.critic.fit(outcomes)
        with torch.no_grad():
            value = values(self.critic, outcomes)
            if not bool(torch.isfinite(value).all()):
                raise UserError("the critic's values are not finite: lower its learning rate")
            # A rate: per unit of time. Its standard deviation is of order 1/√δt.
            rate = td_advantage(value, outcomes.rates, outcomes.dt, outcomes.discount) / paths.dt
            index, weight = self._occupation(paths)
            action, law = paths.actions.flatten(0, 1)[index], part(law, index)
            return Points(
                seen=self.seen(paths).flatten(0, 1)[index],
                action=action,
                advantage=rate.flatten()[index],
                weight=weight,
                law=law,
                log_prob=law.log_prob(action),
                returned=float(discounted_return(outcomes, value[:, -1]).mean()),
            )

    def paths(self, count: int) -> Paths:
        """`count` fresh paths of the policy."""
        return simulate(
            self.problem,
            self.policy,
            dt=self.dt,
            count=count,
            generator=self.generator,
            until=self.until,
        )

    def seen(self, paths: Paths) -> Tensor:
        """What the policy saw, [K, N, k]."""
        states = paths.states[:, :-1]
        seen = self.problem.observe(states.flatten(0, 1)).unflatten(0, states.shape[:2])
        return with_time(self.problem, seen, paths.times[:-1])

    @torch.no_grad()
    def outcomes(self, paths: Paths) -> tuple[Law, Outcomes]:
        """The acting policy's laws at the [K·N] points, and what the critic learns from."""
        problem, horizon = self.problem, self.problem.horizon
        law = act(self.policy, self.seen(paths).flatten(0, 1))
        rates = paths.rewards
        if problem.temperature > 0:
            entropy = law.entropy().view_as(rates)
            rates = rates + problem.temperature * entropy
        fixed, gate = torch.zeros_like(paths.states[..., 0]), torch.ones_like(paths.times)
        if horizon is not None:
            fixed = problem.terminal(paths.states.flatten(0, 1)).view(fixed.shape)
            gate = 1 - paths.times / horizon
        inputs = with_time(problem, paths.states, paths.times)
        return law, Outcomes(inputs, rates, paths.dt, problem.discount, fixed, gate)

    def _occupation(self, paths: Paths) -> tuple[Tensor, Tensor]:
        """Indices of points in the flattened [K·N] grid and their weights, both [J]."""
        count, steps = paths.rewards.shape
        width = float(paths.dt[0])
        weights = occupation_weights(steps, width, self.problem.discount).to(paths.rewards)
        if self.clocks is None:
            return torch.arange(count * steps), weights.expand(count, steps).flatten() / count
        rings = exponential_times(
            self.clocks, self.problem.discount, generator=self.generator, limit=self.until
        )
        steps_of = (rings / width).long().clamp(max=steps - 1)
        path = torch.randint(count, (self.clocks,), generator=self.generator)
        weight = weights.sum() / self.clocks
        return path * steps + steps_of, weight.expand(self.clocks)


def discounted_return(outcomes: Outcomes, end: Tensor) -> Tensor:
    """Σ e^{−ρt} rate δt + e^{−ρT} end of every path, [K]."""
    return returns_to_go(outcomes.rates, end, outcomes.dt, outcomes.discount)[..., 0]


def prepare(
    problem: ControlledSDE,
    *,
    policy: nn.Module | None,
    critic: Critic | nn.Module | None,
    dt: float,
    trajectories: int,
    truncation: float | None,
    clocks: int | None,
    seed: int,
) -> Explorer:
    """The explorer of a user's arguments, with the defaults filled in and checked."""
    check_problem(problem)
    if policy is None:
        # Sized by a state of another generator, so that a custom policy sees the same draws.
        seen = problem.observe(problem.start(1, torch.Generator().manual_seed(0))).shape[-1]
        policy = GaussianLinear(seen + (problem.horizon is not None), problem.action_dim)
    if critic is None:
        critic = CLSTD(problem.features)
    elif isinstance(critic, nn.Module):
        critic = MartingaleLoss(critic)
    explorer = Explorer(
        problem=problem,
        policy=policy,
        critic=critic,
        dt=dt,
        trajectories=trajectories,
        truncation=truncation,
        clocks=clocks,
        generator=torch.Generator().manual_seed(seed),
    )
    _check_sizes(explorer)
    return explorer


def _check_sizes(explorer: Explorer) -> None:
    problem, truncation, clocks = explorer.problem, explorer.truncation, explorer.clocks
    if not any(p.requires_grad for p in explorer.policy.parameters()):
        raise UserError("the policy has no parameters to train")
    if truncation is not None and problem.horizon is not None:
        raise UserError("this problem has a horizon, so it takes no truncation")
    if truncation is not None and not 0 < truncation < math.inf:
        raise UserError(f"truncation must be finite and > 0, got {truncation}")
    if explorer.trajectories < 1:
        raise UserError(f"trajectories must be at least 1, got {explorer.trajectories}")
    if clocks is not None and clocks < 1:
        raise UserError(f"clocks must be at least 1 (or None), got {clocks}")
    grid(problem, explorer.dt, explorer.until)
