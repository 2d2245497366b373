"""Trading under proof of stake, learned: bounded actions, quadratic costs, and a search beside.

Environments A (trading, best bang-bang), B (stake parity) and C (risk control) have known optima,
which no learner is told. Beside CPG and CPPO the cross-entropy method looks for the same rules
without any gradient, on as many simulated steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretune.commands.control.training import (
    BOUNDED,
    EFFORTS,
    PATHS,
    PRICES_SEED,
    RATES,
    BoundedName,
    Method,
    Problem,
    Training,
    first_policy,
)
from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    by_arm,
    claim_row,
    interval,
    shown,
)
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.control import CLSTD, BangBang, GaussianLinear
from scoretune.control.policies import act
from scoretune.control.problems import StakeTrading
from scoretune.control.problems.staking import (
    Leg,
    Price,
    RiskControl,
    StakeParity,
    Staking,
    Valuation,
    played,
)
from scoretune.control.sde import with_time

TRADING: dict[str, Staking] = {
    "A1": Staking(price=Price(start=0.8)),
    "A3": Staking(price=Valuation(level=200)),
    "A4": Staking(price=Price(start=2.8, growth=-0.3)),
    "A5": Staking(price=Price(start=0.9, growth=0.06)),
    "A-GBM": Staking(price=Price(start=1.6, volatility=0.4)),
}
ABOUT = {
    "A1": "P = 0.8: always buy",
    "A3": "P_β = 200: buy, then sell",
    "A4": "P = 2.8e^{−0.3t}: sell, then buy",
    "A5": "P = 0.9e^{0.06t}: buy, then sell",
    "A-GBM": "a GBM price, watched",
    "B": "stake parity",
    "C1": "risk control",
}
HASTY = 7.0
"""How many times the tuned rate, to see learning saturate."""
HASTY_ARMS: tuple[tuple[Method, float], ...] = (("cppo", 0.0), ("cpg", 0.0), ("cpg", 0.1))
CANDIDATES, ELITE, MOST_GENERATIONS = 16, 4, 60
FOLLOWED = 20.0  # years for which the search plays a problem without end
SPREAD = {"A": 3.0, "B": 1.0, "C": 1.0}
"""Of the cross-entropy method's first rules, in standardised units; tuned on seeds 11 to 13."""
CORNERS = [(x, p) for x in (1.0, 9.0) for p in (0.4, 1.4)]  # of the region of P-7


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Every environment × policy × method × seed, hasty ones, finer steps, and the search."""
    short = {"iterations": 3} if quick else {}
    arms: dict[str, Numbers] = {}
    for method in RATES:
        for name in BOUNDED:
            arms[f"A3-{name}-{method}"] = {"environment": "A3", "policy": name, "method": method}
        for environment in ("B", "C1"):
            arms[f"{environment}-{method}"] = {"environment": environment, "method": method}
    for name in BOUNDED:
        arms[f"A-GBM-{name}-cpg"] = {"environment": "A-GBM", "policy": name}
    for environment in ("A1", "A4", "A5"):
        arms[f"{environment}-bang_bang-cpg"] = {"environment": environment, "policy": "bang_bang"}
    for method, temperature in HASTY_ARMS:
        arms[f"hasty-{method}-{temperature:g}"] = {
            "environment": "A3",
            "policy": "squashed_gaussian",
            "method": method,
            "haste": HASTY,
            "temperature": temperature,
        }
    arms["B-coarse"] = {"environment": "B", "dt": 0.1}
    learning = [
        Cell(f"{arm}-{seed}", learn, arguments | short | {"seed": seed})
        for arm, arguments in arms.items()
        for seed in range(seeds)
    ]
    searching = [
        Cell(f"search {environment}-{seed}", search, {"environment": environment, "seed": seed})
        for environment in ("A3", "A-GBM", "B", "C1")
        for seed in range(seeds)
    ]  # fmt: skip
    return learning + searching


def problem_of(environment: str, *, dt: float, temperature: float = 0.0) -> Problem:
    """The environment of the specification."""
    if environment == "B":
        return StakeParity()
    if environment == "C1":
        return RiskControl()
    return StakeTrading(trading=TRADING[environment], step=dt, temperature=temperature)


def _kind(environment: str) -> type[Problem]:
    kinds: dict[str, type[Problem]] = {"B": StakeParity, "C1": RiskControl}
    return kinds.get(environment, StakeTrading)


# ------------------------------------------------------------------ learning


def learn(
    environment: str,
    seed: int,
    *,
    policy: BoundedName = "bang_bang",
    method: Method = "cpg",
    haste: float = 1.0,
    temperature: float = 0.0,
    dt: float | None = None,
    iterations: int | None = None,
) -> Numbers:
    """One run: the deployed value, its score, saturation, and what P-7 asks of the environment."""
    effort = EFFORTS[_kind(environment)]
    effort = replace(
        effort,
        dt=dt or effort.dt,
        iterations=iterations or effort.iterations,
        rate=None if haste == 1 else haste * RATES[method],
    )
    problem = problem_of(environment, dt=effort.dt, temperature=temperature)
    acting = first_policy(problem, policy)
    job = Training(problem, acting, method, seed, effort)
    low, best = _scale(problem)
    track: list[float] = []

    def note(k: int, _: dict[str, float]) -> None:
        track.append(round((_now(job) - low) / (best - low), 4))

    learned = job.run(note)
    value, error = job.deployed(learned)
    numbers = {
        "value": value,
        "error": error,
        "best": best,
        "score": (value - low) / (best - low),
        "saturated": learned.saturated,
        "stuck": [learned.history[-1].get(f"stuck_{end}") for end in ("low", "high")],
        "track": track,
    }
    if isinstance(problem, StakeTrading):
        return numbers | {"switch": None if problem.volatile else switch_of(problem, acting)}
    assert isinstance(acting, GaussianLinear)
    assert isinstance(learned.critic, CLSTD) and learned.critic.weights is not None
    return numbers | _linear_numbers(acting, learned.critic.weights.tolist())


def _now(job: Training) -> float:
    """The deployed value while learning, on few paths where prices are drawn."""
    problem, policy = job.problem, job.policy
    if isinstance(problem, StakeTrading):
        return float(played(problem, policy, paths=200 if problem.volatile else 1, seed=1).mean())
    assert isinstance(problem, StakeParity | RiskControl) and isinstance(policy, GaussianLinear)
    return problem.objective(_row(policy), float(policy.intercept))


def _row(policy: GaussianLinear) -> list[float]:
    row: list[float] = torch.as_tensor(policy.slope).flatten().tolist()
    return row


def _linear_numbers(policy: GaussianLinear, critic: list[float]) -> Numbers:
    return {
        "slope": _row(policy),
        "intercept": float(policy.intercept),
        "std": math.sqrt(float(policy.variance)),
        "critic": critic,
    }


def _scale(problem: Problem) -> tuple[float, float]:
    """The values that score 0, for about what the first policy does, and 1, for the optimum."""
    if isinstance(problem, StakeTrading):
        return problem.trading.value([Leg(0.0, 0.0)]), problem.optimum().value
    assert isinstance(problem, StakeParity | RiskControl)
    row = [-0.2] if isinstance(problem, StakeParity) else [0.0, 0.0]
    return problem.objective(row, 0.0), problem.best


def switch_of(problem: StakeTrading, policy: torch.nn.Module) -> float | None:
    """When the deployed trade first changes its sign along its own path; None if it never does."""
    x, before = problem.start(1, torch.Generator().manual_seed(0)), 0.0
    for k in range(round(problem.horizon / problem.step)):
        t = k * problem.step
        with torch.no_grad():
            action = act(policy, with_time(problem, problem.observe(x), torch.tensor(t))).mode
        if before * float(action) < 0:
            return round(t, 6)
        before = float(action) or before
        x = x + problem.drift(x, action) * problem.step
    return None


# ------------------------------------------------------------------ the search beside it


def search(environment: str, seed: int, iterations: int | None = None) -> Numbers:
    """The cross-entropy method on rules that are linear in what the policies see.

    Each generation draws CANDIDATES rules from a normal law, plays all on the same paths, and fits
    the law to the ELITE best. Over all generations it simulates as long as CPG does.
    """
    effort = EFFORTS[_kind(environment)]
    problem = problem_of(environment, dt=effort.dt)
    centre, unit = _units(problem)
    trading = isinstance(problem, StakeTrading)
    learned_for = effort.truncation or float(problem.horizon or 0)
    played_for = float(problem.horizon or 0) if trading else FOLLOWED
    paths = 1 if problem.noiseless else 24
    budget = effort.iterations * effort.trajectories * learned_for
    generations = iterations or min(
        round(budget / (CANDIDATES * paths * played_for)), MOST_GENERATIONS
    )
    generator = torch.Generator().manual_seed(seed)
    mean = torch.zeros(len(unit) + 1)
    spread = torch.full_like(mean, SPREAD[environment[0]])
    for _ in range(generations):
        rules = mean + spread * torch.randn(CANDIDATES, len(mean), generator=generator)
        in_units = _in_units(rules, centre, unit)
        returns = _returns(problem, in_units, effort.dt, played_for, paths, generator)
        elite = rules[returns.argsort(descending=True)[:ELITE]]
        mean, spread = elite.mean(0), (elite.var(0, unbiased=False) + 1e-4).sqrt()
    (rule,) = _in_units(mean[None], centre, unit)
    if isinstance(problem, StakeTrading):
        policy = BangBang(len(unit), cap=problem.trading.cap)
        with torch.no_grad():
            policy.surface.weight.copy_(rule[None, :-1])
            policy.surface.bias.copy_(rule[-1:])
        count = PATHS if problem.volatile else 1
        value = float(played(problem, policy, paths=count, seed=PRICES_SEED).mean())
    else:
        assert isinstance(problem, StakeParity | RiskControl)
        value = problem.objective(rule[:-1].tolist(), float(rule[-1]))
    low, best = _scale(problem)
    return {"value": value, "score": (value - low) / (best - low), "generations": generations}


def _in_units(rules: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
    """Slopes and the offset [C, k + 1] in what is seen, of those in standardised coordinates."""
    slopes = rules[:, :-1] / unit
    return torch.cat([slopes, rules[:, -1:] - slopes @ centre[:, None]], dim=1)


def _units(problem: Problem) -> tuple[Tensor, Tensor]:
    """About where observations are, and how far they go."""
    if isinstance(problem, StakeParity):
        return torch.zeros(1), torch.ones(1)
    if isinstance(problem, RiskControl):
        return torch.tensor([problem.target, problem.mean_price]), torch.tensor([2.0, 0.15])
    assert isinstance(problem, StakeTrading)
    end, price = problem.horizon, problem.trading.price
    if not isinstance(price, Price) or not problem.volatile:
        return torch.tensor([0.0, end / 2]), torch.tensor([0.5, end / 4])
    width = price.volatility * math.sqrt(end / 2)
    centre = torch.tensor([0.0, math.log(price.start), end / 2])
    return centre, torch.tensor([0.5, width, end / 4])


def _returns(
    problem: Problem,
    rules: Tensor,
    dt: float,
    until: float,
    paths: int,
    generator: torch.Generator,
) -> Tensor:
    """The mean discounted return of every rule [C], all on the same starts and noise."""
    count = len(rules)
    x, total = problem.start(paths, generator).repeat(count, 1), torch.zeros(count * paths)
    each = rules.repeat_interleave(paths, dim=0)
    for k in range(round(until / dt)):
        seen = with_time(problem, problem.observe(x), torch.tensor(k * dt))
        action = (seen * each[:, :-1]).sum(1, keepdim=True) + each[:, -1:]
        if isinstance(problem, StakeTrading):
            action = torch.where(action >= 0, 1.0, -1.0) * problem.trading.cap
        total = total + math.exp(-problem.discount * k * dt) * dt * problem.reward(x, action)
        noise = torch.randn(paths, x.shape[1], generator=generator).repeat(count, 1)
        drift, diffusion = problem.drift(x, action), problem.diffusion(x, action)
        x = x + drift * dt + diffusion * noise * math.sqrt(dt)
    total = total + math.exp(-problem.discount * until) * problem.terminal(x)
    return total.view(count, paths).mean(1).nan_to_num(-math.inf)


# ------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What P-7 expects beside what came out, every arm's score, curves, and what saturates."""
    arms = by_arm(results)
    page.text(
        "No learner knows a coefficient: all see states, actions and reward rates. Bounded "
        "actions (A): 50 steps over five years, |ν| at most 2; policies are linear in the share, "
        "the year and, where it is drawn, ln P. Quadratic costs (B, C1): Gaussian policies, linear "
        "in the state. Values are those of the deployed policy, which no longer explores: played "
        f"on the grid for A ({PATHS:,} drawn prices where it is volatile, the same for all), in "
        "closed form for B and C1. The score is 0 for holding (A), for ν = −0.2z (B), for ν = 0 "
        "(C1), and 1 for the optimum of continuous time. Settings were tuned on seeds 11 to 13; "
        "here are others."
    )
    rows = _expectations(arms)
    page.claims(rows)
    page.text("## Every arm")
    page.table(
        ["environment", "arm", "value", "optimum", "score [95 %]", "within 1 %", "stuck"],
        [_row_of(arm, runs) for arm, runs in arms.items()],
    )
    page.text(
        "`search` is the cross-entropy method on the same rules: "
        f"{CANDIDATES} candidates a generation, {ELITE} kept, and as much simulated time as CPG "
        "has. `stuck` counts seeds that end saturated: the same end of the range, with certainty, "
        "everywhere."
    )
    page.text("## Saturation")
    page.text(_saturation(arms))
    page.figure("curves", _curves(arms), "score while learning, mean over seeds and 95 % interval")
    return {"claims": rows, "arms": {arm: _summary(runs) for arm, runs in arms.items()}}


def _summary(runs: Sequence[Numbers]) -> Numbers:
    return {
        "scores": [round(r["score"], 4) for r in runs],
        "values": [round(r["value"], 5) for r in runs],
        "stuck": sum(r.get("saturated") is not None for r in runs),
        "switches": [r.get("switch") for r in runs],
    }


def _row_of(arm: str, runs: Sequence[Numbers]) -> list[str]:
    search_of = arm.removeprefix("search ")
    environment = search_of if arm.startswith("search ") else _environment(arm)
    label = "search" if arm.startswith("search ") else arm.removeprefix(f"{environment}-")
    best = _best(environment)
    near = sum(best - r["value"] <= 0.01 * abs(best) for r in runs)
    stuck = sum(r.get("saturated") is not None for r in runs)
    return [
        f"{environment}: {ABOUT[environment]}",
        label.replace("_", " ").replace("-", ", "),
        f"{sum(r['value'] for r in runs) / len(runs):.4f}",
        f"{best:.4f}",
        shown(interval([r["score"] for r in runs])),
        f"{near} of {len(runs)}",
        str(stuck) if "saturated" in runs[0] else "",
    ]


def _environment(arm: str) -> str:
    """Of an arm that learns."""
    if arm.startswith("hasty"):
        return "A3"
    return next(name for name in sorted(ABOUT, key=len, reverse=True) if arm.startswith(name))


def _best(environment: str) -> float:
    problem = problem_of(environment, dt=0.1)
    if isinstance(problem, StakeTrading):
        return problem.optimum().value
    assert isinstance(problem, StakeParity | RiskControl)
    return problem.best


def _expectations(arms: dict[str, list[Numbers]]) -> list[Numbers]:
    """P-7, and within 1 % of the optimum in four of five seeds."""
    rows = []
    for environment in ("B", "C1"):
        for method in RATES:
            runs, best = arms[f"{environment}-{method}"], _best(environment)
            gaps = [(best - r["value"]) / abs(best) for r in runs]
            near = sum(gap <= 0.01 for gap in gaps)
            rows.append(
                claim_row(
                    f"{environment}, {method}: value within 1 % of the optimum",
                    "in at least 4 of 5 seeds",
                    f"{near} of {len(runs)}; gaps {_percent(gaps)}",
                    near >= 0.8 * len(runs),
                )
            )
    rows += [*_parity_rows(arms), *_risk_rows(arms)]
    for name in BOUNDED:
        for method in RATES:
            runs = arms[f"A3-{name}-{method}"]
            scores = [r["score"] for r in runs]
            switches = [r["switch"] for r in runs if r["switch"] is not None]
            inside = len(switches) == len(runs) and all(1.9 <= s <= 3.0 for s in switches)
            rows.append(
                claim_row(
                    f"A3, {name.replace('_', ' ')}, {method}: score and switch",
                    "at least 0.93; 1.9 to 3.0 (best: 2.553)",
                    f"{min(scores):.3f} to {max(scores):.3f}; "
                    + (f"{min(switches):.1f} to {max(switches):.1f}" if switches else "never"),
                    min(scores) >= 0.93 and inside,
                )
            )
    return rows


def _parity_rows(arms: dict[str, list[Numbers]]) -> list[Numbers]:
    runs, coarse = arms["B-cpg"], arms["B-coarse"]
    gains = [-r["slope"][0] for r in runs]
    best = StakeParity().gain
    curves = [r["critic"][2] for r in runs]
    apart = abs(median(gains) - median(-r["slope"][0] for r in coarse))
    near = sum(abs(k - best) <= 0.15 for k in gains)
    return [
        claim_row(
            "B, cpg: the gain",
            f"{best:.3f} ± 0.15 in at least 4 of 5 seeds (1.318 is best at δt = 0.05)",
            f"{near} of {len(runs)}; {min(gains):.3f} to {max(gains):.3f}",
            near >= 0.8 * len(runs),
        ),
        claim_row(
            "B, cpg: the critic's curvature",
            "−0.6825 ± 15 %",
            f"{min(curves):.3f} to {max(curves):.3f}, median {median(curves):.3f}",
            abs(median(curves) + 0.6825) <= 0.15 * 0.6825,
        ),
        claim_row(
            "B: the gain at δt = 0.1 and at half of it",
            "apart by at most 0.1",
            f"by {apart:.3f} (medians)",
            apart <= 0.1,
        ),
    ]


def _risk_rows(arms: dict[str, list[Numbers]]) -> list[Numbers]:
    problem, rows = RiskControl(), []
    for method in RATES:
        runs = arms[f"C1-{method}"]
        off = [
            max(
                abs(r["slope"][0] * x + r["slope"][1] * p + r["intercept"] - problem.rate(x, p))
                for x, p in CORNERS
            )
            for r in runs
        ]
        critics = [_critic_at(r["critic"], 8.0, 1.2) for r in runs]
        expected = [problem.blurred(8.0, 1.2, std=r["std"]) for r in runs]
        wrong = [abs(c / e - 1) for c, e in zip(critics, expected, strict=True)]
        rows += [
            claim_row(
                f"C1, {method}: the rate for |x − 5| ≤ 4, |p − 0.9| ≤ 0.5",
                "within 0.1 of 1.954 − 0.270x − 0.810p",
                f"largest difference {min(off):.3f} to {max(off):.3f}, median {median(off):.3f}",
                median(off) <= 0.1,
            ),
            claim_row(
                f"C1, {method}: the critic at (8, 1.2)",
                "within 2 % of 6.1186 − std²/(2β)",
                f"off by {_percent(wrong)}",
                median(wrong) <= 0.02,
            ),
        ]
    return rows


def _critic_at(w: Sequence[float], x: float, p: float) -> float:
    return float(np.dot(w, [1, x, p, x * x, x * p, p * p]))


def _percent(numbers: Sequence[float]) -> str:
    return ", ".join(f"{100 * n:.2f}" for n in sorted(numbers)) + " %"


def _saturation(arms: dict[str, list[Numbers]]) -> str:
    """What makes seeds saturate, and what helps."""
    learning = {a: r for a, r in arms.items() if "saturated" in r[0] and not a.startswith("hasty")}
    lost = {
        arm: sum(r["saturated"] is not None for r in runs)
        for arm, runs in learning.items()
        if not arm.startswith("A1")
    }
    stuck = ", ".join(f"{arm} ({n})" for arm, n in lost.items() if n) or "none"
    lines = [
        f"Arms of A that end saturated at their tuned rates, with the number of seeds: {stuck}. "
        "(In A1 it is best always to buy, so there the end is right.)",
        f"The squashed Gaussian at {HASTY:g} times the tuned rate:",
    ]
    for method, temperature in HASTY_ARMS:
        runs = arms[f"hasty-{method}-{temperature:g}"]
        count = sum(r["saturated"] is not None for r in runs)
        scores = ", ".join(f"{r['score']:.3f}" for r in runs)
        lines.append(
            f"{method}, temperature {temperature:g}: {count} of {len(runs)} seeds saturate, scores "
            f"{scores}."
        )
    lines.append(
        "`Learned.saturated` says at which end, and `scoretune control train` prints a line."
    )
    return " ".join(lines)


def _curves(arms: dict[str, list[Numbers]]) -> Any:
    panels_of = {"A3": "A3", "A-GBM": "A-GBM", "B and C1": "B|C1"}
    figure, panels = subplots(1, 3, size=(10.5, 3.6), sharey=True)
    for axes, (title, wanted) in zip(panels, panels_of.items(), strict=True):
        names = [a for a in arms if a.startswith(tuple(f"{w}-" for w in wanted.split("|")))]
        for n, arm in enumerate(name for name in names if not name.endswith("coarse")):
            tracks = [r["track"] for r in arms[arm]]
            label = arm.removeprefix(f"{title}-").replace("_", " ").replace("-", ", ")
            draw_band(axes, range(1, len(tracks[0]) + 1), tracks, COLOURS[n % 6], label)
        axes.axhline(1, color="black", linestyle="--", linewidth=1)
        axes.set(title=title, xlabel="iteration", ylim=(-0.1, 1.05))
        axes.legend(fontsize="x-small", frameon=False, loc="lower right")
    panels[0].set_ylabel("score")
    return figure
