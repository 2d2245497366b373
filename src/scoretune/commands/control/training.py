"""Problems by name, learned from their samples alone, and how near they come to the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from torch import nn

from scoretune.commands.control import staking
from scoretune.commands.control.settings import shared_settings
from scoretune.control import BangBang, BetaLinear, GaussianLinear, SquashedGaussian, cpg, cppo
from scoretune.control.learning import Learned, Watch
from scoretune.control.problems import LQ, PairTrading, StakeTrading
from scoretune.control.problems.staking import RiskControl, StakeParity, played
from scoretune.control.trust import Clip
from scoretune.core.errors import unknown

Stake: TypeAlias = StakeParity | RiskControl | StakeTrading
Problem: TypeAlias = LQ | PairTrading | Stake
Method = Literal["cpg", "cppo"]
BoundedName = Literal["bang_bang", "squashed_gaussian", "beta"]
BOUNDED: dict[BoundedName, Callable[..., nn.Module]] = {
    "bang_bang": BangBang,
    "squashed_gaussian": SquashedGaussian,
    "beta": BetaLinear,
}
PATHS, PRICES_SEED = 20_000, 1_000_003  # drawn prices on which learned trading is judged
NEAR = 0.01  # of the best value: learned


@dataclass(frozen=True)
class Effort:
    """How hard a problem is learned: the time step, iterations, paths in each and where they are
    cut; `rate` is CPG's step or CPPO's learning rate."""

    dt: float = 0.1
    iterations: int = 60
    trajectories: int = 64
    truncation: float | None = None
    rate: float | None = None


EFFORTS: dict[type[Problem], Effort] = {
    LQ: Effort(iterations=120, trajectories=256),
    PairTrading: Effort(iterations=150, trajectories=256),
    StakeParity: Effort(dt=0.05, iterations=25, trajectories=200, truncation=8),
    RiskControl: Effort(iterations=25, trajectories=200, truncation=12),
    StakeTrading: Effort(iterations=40, trajectories=100),
}
RATES: dict[Method, float] = {"cpg": 0.1, "cppo": 0.02}
"""Of bounded policies; these and EFFORTS come from single runs on seeds 11 and 12."""


def learner(
    *,
    method: Method = "cpg",
    seed: int = 0,
    dt: float | None = None,
    iterations: int | None = None,
    trajectories: int | None = None,
    rate: float | None = None,
) -> dict[str, Any]:
    """How to learn; None is as in EFFORTS and RATES."""
    settings = {"dt": dt, "iterations": iterations, "trajectories": trajectories, "rate": rate}
    changes = {name: value for name, value in settings.items() if value is not None}
    return {"method": method, "seed": seed, "changes": changes}


def trader(*, policy: BoundedName = "bang_bang", temperature: float = 0.0) -> dict[str, Any]:
    """Which bounded policy trades, and the weight of its entropy."""
    return {"policy": policy, "temperature": temperature}


@dataclass(frozen=True)
class Training:
    """A problem, the policy that learns it, in place, and how."""

    problem: Problem
    policy: nn.Module
    method: Method = "cpg"
    seed: int = 0
    effort: Effort = Effort()

    def run(self, watch: Watch | None = None) -> Learned:
        """CPG, or CPPO with clipped ratios for bounded policies and the √KL penalty for others."""
        effort, bounded = self.effort, isinstance(self.problem, StakeTrading)
        common: dict[str, Any] = {
            "dt": effort.dt,
            "iterations": effort.iterations,
            "trajectories": effort.trajectories,
            "truncation": effort.truncation,
            "seed": self.seed,
            "policy": self.policy,
            "on_iteration": watch,
        }
        rate = RATES[self.method] if bounded and effort.rate is None else effort.rate
        if self.method == "cpg":
            return cpg(self.problem, **common, step=rate)
        if bounded:
            common |= {"trust": Clip(), "inner_steps": 10, "clocks": None}
        return cppo(self.problem, **common, learning_rate=5e-3 if rate is None else rate)

    def deployed(self, learned: Learned) -> tuple[float, float]:
        """What the policy earns once it no longer explores, and the standard error.

        LQ and pair trading keep exploring, and have a bonus for it.
        """
        if isinstance(self.problem, LQ | PairTrading):
            return learned.value, learned.value_error
        return deployed_value(self.problem, self.policy)

    @property
    def best(self) -> float:
        """The value of the optimum, in continuous time."""
        return best_value(self.problem)


def deployed_value(
    problem: Stake, policy: nn.Module, *, paths: int = PATHS, seed: int = PRICES_SEED
) -> tuple[float, float]:
    """What a policy earns that does not explore, and the standard error.

    On `paths` drawn prices where the price is volatile, else exactly.
    """
    if isinstance(problem, StakeTrading):
        count = paths if problem.volatile else 1
        values = played(problem, policy, paths=count, seed=seed)
        return float(values.mean()), float(values.std()) / math.sqrt(count)
    assert isinstance(policy, GaussianLinear)
    slope, intercept, _ = policy.coefficients()
    return problem.objective(slope, intercept), 0.0


def best_value(problem: Problem) -> float:
    """Of the optimum, in continuous time."""
    if isinstance(problem, StakeParity | RiskControl):
        return problem.best
    if isinstance(problem, StakeTrading):
        return problem.optimum().value
    return problem.optimum().objective


def first_policy(problem: Problem, policy: BoundedName = "bang_bang") -> nn.Module:
    """Where learning starts: a policy that knows nothing of the problem but the trading cap."""
    if isinstance(problem, StakeTrading):
        return BOUNDED[policy](2 + problem.volatile, cap=problem.trading.cap)
    if isinstance(problem, StakeParity):
        return GaussianLinear(slope=-0.2, variance=0.25)  # near doing nothing
    if isinstance(problem, RiskControl):
        return GaussianLinear(2, variance=0.25)
    return GaussianLinear()


def training(name: str, words: Sequence[str]) -> Training:
    """Of the problem called `name`. Raises UserError for what is wrong with it or the words."""
    if name == "staking":
        *of_trading, of_trader, of_learner = shared_settings(
            name, words, *staking.TAKERS, trader, learner
        )
        exploration, learning = trader(**of_trader), learner(**of_learner)
        effort = replace(EFFORTS[StakeTrading], **learning["changes"])
        environment = StakeTrading(
            trading=staking.built(*of_trading),
            step=effort.dt,
            temperature=exploration["temperature"],
        )
        policy = first_policy(environment, exploration["policy"])
        return Training(environment, policy, learning["method"], learning["seed"], effort)
    problems: dict[str, Callable[..., Problem]] = {
        "lq": LQ,
        "pair_trading": PairTrading,
        "parity": StakeParity,
        "risk_control": RiskControl,
    }
    if name not in problems:
        raise unknown("problem", name, ["staking", *problems])
    of_problem, of_learner = shared_settings(name, words, problems[name], learner)
    problem, learning = problems[name](**of_problem), learner(**of_learner)
    effort = replace(EFFORTS[type(problem)], **learning["changes"])
    return Training(problem, first_policy(problem), learning["method"], learning["seed"], effort)


def as_dict(job: Training, learned: Learned) -> dict[str, Any]:
    """Plain data."""
    value, error = job.deployed(learned)
    best = job.best
    return {
        "value": value,
        "error": error,
        "best": best,
        "gap": (best - value) / abs(best),
        "learned": (best - value) <= NEAR * abs(best) + 2 * error,
        "saturated": learned.saturated,
        "policy": rule(job.policy),
        "iterations": len(learned.history),
    }


def rule(policy: nn.Module) -> str:
    """The policy as a formula in what it sees."""
    if isinstance(policy, GaussianLinear):
        row, offset, std = policy.coefficients()
        return f"{_linear(row, offset)}, ± {std:.3g} while it explores"
    assert isinstance(policy, BangBang | BetaLinear | SquashedGaussian)
    slope, offsets = policy.surface.slope.tolist(), policy.surface.intercept.tolist()
    if isinstance(policy, BetaLinear):
        buys, sells = (_linear(s, o) for s, o in zip(slope, offsets, strict=True))
        return f"Beta: towards buying by {buys}, towards selling by {sells}"
    inside = _linear(slope[0], offsets[0])
    if isinstance(policy, BangBang):
        return f"buy where {inside} > 0, else sell"
    return f"{policy.cap:g}·tanh({inside})"


def _linear(slope: Sequence[float], offset: float) -> str:
    """`0.4 − 1.2·s₁ + …`; s are what the policy sees, in its order."""
    terms = [f"{'+' if a >= 0 else '−'} {abs(a):.3g}·s{n}" for n, a in enumerate(slope, 1)]
    return " ".join([f"{offset:.3g}".replace("-", "−"), *terms])


def written(job: Training, learned: Learned) -> str:
    """The value beside the best one, the policy, and saturation where there is any."""
    numbers = as_dict(job, learned)
    error = f" ± {numbers['error']:.2g}" if numbers["error"] else ""
    lines = [
        f"learned     {numbers['value']:.6g}{error}, by {job.method} in "
        f"{numbers['iterations']} iterations of {job.effort.trajectories} paths",
        f"best        {numbers['best']:.6g}",
        f"gap         {100 * numbers['gap']:.3g} % of it",
        f"policy      {numbers['policy']}",
    ]
    if isinstance(job.problem, StakeTrading):
        seen = "s1 the share's way from its start in units of the longest, "
        seen += "s2 ln of the price, s3 the year" if job.problem.volatile else "s2 the year"
        lines.append(f"where       {seen}")
    if learned.saturated is not None:
        act = "buys" if learned.saturated == "high" else "sells"
        lines.append(
            f"saturated   it {act} at the cap wherever it goes, and learns no more: right if that "
            "is best throughout, else take a smaller rate= or a temperature="
        )
    return "\n".join(lines)
