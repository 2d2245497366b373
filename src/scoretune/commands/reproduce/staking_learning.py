"""Trading under proof of stake, learned: bounded actions, quadratic costs, and a search beside.

Environments A (trading, best bang-bang), B (stake parity) and C (risk control) have known optima,
which no learner is told. Beside CPG and CPPO the cross-entropy method looks for the same rules
without any gradient, on as many simulated steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from scoretune.commands.control.training import (
    BOUNDED,
    PATHS,
    RATES,
    BoundedName,
    Method,
    Training,
    best_value,
    deployed_value,
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
from scoretune.commands.reproduce.staking_cross_entropy import CANDIDATES, ELITE, search
from scoretune.commands.reproduce.staking_environments import (
    ABOUT,
    effort_of,
    environment_of,
    optimal_value,
    scoring,
)
from scoretune.control import CLSTD, GaussianLinear
from scoretune.control.policies import act
from scoretune.control.problems import StakeTrading
from scoretune.control.problems.staking import RiskControl, StakeParity
from scoretune.control.sde import with_time

HASTY = 7.0
"""How many times the tuned rate, to see learning saturate."""
HASTY_ARMS: tuple[tuple[Method, float], ...] = (("cppo", 0.0), ("cpg", 0.0), ("cpg", 0.1))
CAPTION = "score while learning, mean over seeds and 95 % interval; A-GBM on 200 drawn prices alone"
CORNERS = [(x, p) for x in (1.0, 9.0) for p in (0.4, 1.4)]  # where the rate is compared


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
        Cell(f"search {name}-{seed}", search, {"environment": name, "seed": seed} | short)
        for name in ("A3", "A-GBM", "B", "C1")
        for seed in range(seeds)
    ]
    return learning + searching


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
    """One run: the deployed value, its score, saturation, and what the page compares."""
    effort = effort_of(environment)
    effort = replace(
        effort,
        dt=dt or effort.dt,
        iterations=iterations or effort.iterations,
        rate=None if haste == 1 else haste * RATES[method],
    )
    problem = environment_of(environment, dt=effort.dt, temperature=temperature)
    trained = first_policy(problem, policy)
    score, track = scoring(problem), list[float]()

    def follow(k: int, _: dict[str, float]) -> None:
        value, _error = deployed_value(problem, trained, paths=200, seed=1)
        track.append(round(score(value), 4))

    learned = Training(problem, trained, method, seed, effort).run(follow)
    value, error = deployed_value(problem, trained)
    numbers = {
        "value": value,
        "error": error,
        "best": best_value(problem),
        "score": score(value),
        "saturated": learned.saturated,
        "stuck": [learned.history[-1].get(f"stuck_{end}") for end in ("low", "high")],
        "track": track,
    }
    if isinstance(problem, StakeTrading):
        return numbers | {"switch": None if problem.volatile else switch_of(problem, trained)}
    assert isinstance(trained, GaussianLinear)
    assert isinstance(learned.critic, CLSTD) and learned.critic.weights is not None
    slope, intercept, std = trained.coefficients()
    critic = learned.critic.weights.tolist()
    return numbers | {"slope": slope, "intercept": intercept, "std": std, "critic": critic}


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


# ------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What was expected beside what came out, every arm's score, curves, and what saturates."""
    arms = by_arm(results)
    page.text(
        "No learner knows a coefficient: all see states, actions and reward rates. Bounded "
        "actions (A): 50 steps over five years, ν from −2 to 2; policies are linear in the share, "
        "the year and, where it is drawn, ln P. Quadratic costs (B, C1): Gaussian policies, linear "
        "in the state. Values are those of the deployed policy, which no longer explores: played "
        f"on the grid for A ({PATHS:,} drawn prices where it is volatile, the same for all), in "
        "closed form for B and C1. The score is 0 for holding (A), for ν = −0.2z (B), for ν = 0 "
        "(C1), and 1 for the optimum of continuous time. Settings come from single "
        "runs on seeds 11 and 12; those of the search were not tuned."
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
    page.figure(
        "curves",
        _curves(arms),
        CAPTION,
    )
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
    best = optimal_value(environment)
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


def _expectations(arms: dict[str, list[Numbers]]) -> list[Numbers]:
    """Within 1 % of the optimum in four of five seeds, and the coefficients of the optimum."""
    rows = []
    for environment in ("B", "C1"):
        for method in RATES:
            runs, best = arms[f"{environment}-{method}"], optimal_value(environment)
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
                f"C1, {method}: the rate for x from 1 to 9, p from 0.4 to 1.4",
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
