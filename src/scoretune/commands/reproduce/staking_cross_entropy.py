"""The cross-entropy method on trading under proof of stake: a search without any gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.commands.control.training import Stake, deployed_value
from scoretune.commands.reproduce.base import Numbers
from scoretune.commands.reproduce.staking_environments import (
    effort_of,
    environment_of,
    scoring,
)
from scoretune.control import BangBang
from scoretune.control.problems import StakeTrading
from scoretune.control.problems.staking import Price, RiskControl, StakeParity
from scoretune.control.sde import with_time

CANDIDATES, ELITE, MOST_GENERATIONS = 16, 4, 60
FOLLOWED = 20.0  # years for which the search plays a problem without end
SPREAD = {"A": 3.0, "B": 1.0, "C": 1.0}
"""Of the first rules, in standardised units."""


def search(environment: str, seed: int, iterations: int | None = None) -> Numbers:
    """The cross-entropy method on rules that are linear in what the policies see.

    Each generation draws CANDIDATES rules from a normal law, plays all on the same paths, and fits
    the law to the ELITE best. Over all generations it simulates as long as CPG does.
    """
    effort = effort_of(environment)
    problem = environment_of(environment, dt=effort.dt)
    centre, unit = _units(problem)
    until = problem.horizon or FOLLOWED
    paths = 1 if problem.noiseless else 24
    budget = effort.iterations * effort.trajectories * (effort.truncation or problem.horizon or 0.0)
    generations = iterations or min(round(budget / (CANDIDATES * paths * until)), MOST_GENERATIONS)
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(len(unit) + 1)
    spread = torch.full_like(mean, SPREAD[environment[0]])
    for _ in range(generations):
        rules = mean + spread * torch.randn(CANDIDATES, len(mean), generator=generator)
        returns = _returns(
            problem,
            _in_units(rules, centre, unit),
            dt=effort.dt,
            until=until,
            paths=paths,
            generator=generator,
        )
        elite = rules[returns.argsort(descending=True)[:ELITE]]
        mean, spread = elite.mean(0), (elite.var(0, unbiased=False) + 1e-4).sqrt()
    (rule,) = _in_units(mean[None], centre, unit)
    value = _value(problem, rule)
    return {"value": value, "score": scoring(problem)(value), "generations": generations}


def _value(problem: Stake, rule: Tensor) -> float:
    """Of the rule [k + 1], deployed."""
    if not isinstance(problem, StakeTrading):
        return problem.objective(rule[:-1].tolist(), float(rule[-1]))
    policy = BangBang(len(rule) - 1, cap=problem.trading.cap)
    with torch.no_grad():
        policy.surface.weight.copy_(rule[None, :-1])
        policy.surface.bias.copy_(rule[-1:])
    return deployed_value(problem, policy)[0]


def _in_units(rules: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
    """Slopes and the offset [C, k + 1] in what is seen, of those in standardised coordinates."""
    slopes = rules[:, :-1] / unit
    return torch.cat([slopes, rules[:, -1:] - slopes @ centre[:, None]], dim=1)


def _units(problem: Stake) -> tuple[Tensor, Tensor]:
    """About where observations are, and how far they go."""
    if isinstance(problem, StakeParity):
        return torch.zeros(1), torch.ones(1)
    if isinstance(problem, RiskControl):
        return torch.tensor([problem.target, problem.mean_price]), torch.tensor([2.0, 0.15])
    end, price = problem.horizon, problem.trading.price
    if not isinstance(price, Price) or not problem.volatile:
        return torch.tensor([0.0, end / 2]), torch.tensor([0.5, end / 4])
    width = price.volatility * math.sqrt(end / 2)
    centre = torch.tensor([0.0, math.log(price.start), end / 2])
    return centre, torch.tensor([0.5, width, end / 4])


def _returns(
    problem: Stake,
    rules: Tensor,
    *,
    dt: float,
    until: float,
    paths: int,
    generator: torch.Generator,
) -> Tensor:
    """The mean discounted return of every rule [C], all on the same starts and noise."""
    count = len(rules)
    x, total = problem.start(paths, generator).repeat(count, 1), torch.zeros(count * paths)
    slopes, offsets = rules.repeat_interleave(paths, dim=0).split([rules.shape[1] - 1, 1], dim=1)
    for k in range(round(until / dt)):
        seen = with_time(problem, problem.observe(x), torch.tensor(k * dt))
        action = (seen * slopes).sum(1, keepdim=True) + offsets
        if isinstance(problem, StakeTrading):
            action = torch.where(action >= 0, 1.0, -1.0) * problem.trading.cap
        total = total + math.exp(-problem.discount * k * dt) * dt * problem.reward(x, action)
        noise = torch.randn(paths, x.shape[1], generator=generator).repeat(count, 1)
        drift, diffusion = problem.drift(x, action), problem.diffusion(x, action)
        x = x + drift * dt + diffusion * noise * math.sqrt(dt)
    total = total + math.exp(-problem.discount * until) * problem.terminal(x)
    return total.view(count, paths).mean(1).nan_to_num(-math.inf)
