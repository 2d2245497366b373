"""MallowsPO from votes: how errors fall with their number, and prompts that differ in agreement.

After arXiv 2405.14953, its synthetic bandit; arms as in `arms`, all pairs with the same votes.
"""

from __future__ import annotations

from typing import Any

from scoretune.commands.reproduce.arms import RANKS, learned_rewards, same, shares
from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.preference import scale_of_phi

VOTES = (50, 500, 5000)
PHIS = (0.2, 0.5, 0.9)
LOSSES = ("Mallows-θ", "DPO", "Mallows-φ", "DPO on φ-data")
EXPECTED = {  # mean |r + rank| of ten seeds, for 50, 500 and 5,000 votes a pair
    (0.5, "Mallows-θ"): (0.149, 0.058, 0.018),
    (0.5, "DPO"): (0.77, 0.77, 0.77),
    (0.9, "Mallows-θ"): (0.575, 0.180, 0.060),
    (0.9, "DPO"): (1.56, 1.56, 1.56),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Every dispersion, number of votes and seed."""
    return [
        Cell(f"{phi}-{votes}-{seed}", recovered, {"phi": phi, "votes": votes, "seed": seed})
        for phi in (PHIS[1:] if quick else PHIS)
        for votes in (VOTES[:2] if quick else VOTES)
        for seed in range(seeds)
    ]


def recovered(phi: float, votes: int, seed: int) -> Numbers:
    """The mean error of each loss's rewards, and their range, from the same votes."""
    theta, kendall = (shares(phi, kind, votes, seed) for kind in ("theta", "phi"))
    rewards = {
        "Mallows-θ": learned_rewards(theta, "mallows_theta", scale_of_phi(same(phi))),
        "DPO": learned_rewards(theta, "dpo"),
        "Mallows-φ": learned_rewards(kendall, "mallows_phi", same(phi)),
        "DPO on φ-data": learned_rewards(kendall, "dpo"),
    }
    return {
        name: {"error": float((r + RANKS).abs().mean()), "range": float(-r[-1])}
        for name, r in rewards.items()
    }


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Errors by number of votes, then two prompts beside each other."""
    arms = by_arm(results)
    errors = {
        arm: {name: interval([run[name]["error"] for run in runs]) for name in LOSSES}
        for arm, runs in arms.items()
    }
    page.text(ABOUT.format(seeds=len(next(iter(arms.values())))))
    rows = []
    for arm, kept in errors.items():
        phi, _, votes = arm.partition("-")
        said = [EXPECTED.get((float(phi), name)) for name in LOSSES[:2]]
        place = VOTES.index(int(votes))
        expected = " / ".join("–" if s is None else f"{s[place]:g}" for s in said)
        rows.append([phi, votes, *(shown(kept[name]) for name in LOSSES), expected])
    columns = ["φ", "votes a pair", *LOSSES, "expected, Mallows-θ / DPO"]
    page.table(columns, rows)
    checks = [*_decades(errors), *_two_prompts(arms)]
    page.text(CHECKS)
    words = {True: "yes", False: "no", None: "–"}
    page.table(
        ["claim", "expected", "measured", "holds"],
        [[c["claim"], c["expected"], c["measured"], words[c["holds"]]] for c in checks],
    )
    page.figure("errors", _figure(arms), "error of learned rewards by number of votes")
    return {"errors": errors, "claims": checks}


def _decades(errors: dict[str, Any]) -> list[Numbers]:
    """Ten times the votes: Mallows' error falls, DPO's stays."""
    claims = []
    for phi in (0.5, 0.9):
        means = {
            name: [errors[f"{phi}-{v}"][name][0] for v in VOTES if f"{phi}-{v}" in errors]
            for name in ("Mallows-θ", "DPO")
        }
        falls = [a / b for a, b in zip(means["Mallows-θ"], means["Mallows-θ"][1:], strict=False)]
        claims.append(
            {
                "claim": f"φ = {phi}: ten times the votes divide the error of Mallows-θ by",
                "expected": "> 2.5",
                "measured": ", ".join(f"{fall:.2f}" for fall in falls),
                "holds": min(falls) > 2.5,
            }
        )
        spread = max(means["DPO"]) / min(means["DPO"]) - 1
        claims.append(
            {
                "claim": f"φ = {phi}: change of DPO's error over all numbers of votes",
                "expected": "< 5 %",
                "measured": f"{100 * spread:.1f} %",
                "holds": spread < 0.05,
            }
        )
    return claims


def _two_prompts(arms: dict[str, list[Numbers]]) -> list[Numbers]:
    """A prompt with φ = 0.2 beside one with φ = 0.9: the ratio of their ranges of rewards."""
    claims = []
    for votes in VOTES:
        if f"0.2-{votes}" not in arms:
            continue
        for name, expected, most in (("DPO", 15.3, 1.5), ("Mallows-θ", 1.0, 0.1)):
            ratios = [
                agreed[name]["range"] / disputed[name]["range"]
                for agreed, disputed in zip(arms[f"0.2-{votes}"], arms[f"0.9-{votes}"], strict=True)
            ]
            spread = interval(ratios)
            claims.append(
                {
                    "claim": f"{name}, {votes} votes: range at φ = 0.2 over that at φ = 0.9",
                    "expected": f"{expected} ± {most}" if votes == VOTES[-1] else "its limit",
                    "measured": shown(spread),
                    "holds": abs(spread[0] - expected) < most if votes == VOTES[-1] else None,
                }
            )
    return claims


def _figure(arms: dict[str, list[Numbers]]) -> Any:
    """A panel a dispersion: errors with 95 % intervals."""
    phis = list(dict.fromkeys(arm.partition("-")[0] for arm in arms))
    figure, panels = subplots(1, len(phis), size=(10, 3.6), sharey=True, squeeze=False)
    for axes, phi in zip(panels[0], phis, strict=True):
        votes = [v for v in VOTES if f"{phi}-{v}" in arms]
        seeds = range(len(arms[f"{phi}-{votes[0]}"]))
        for colour, name in zip(COLOURS, LOSSES, strict=False):
            curves = [[arms[f"{phi}-{v}"][seed][name]["error"] for v in votes] for seed in seeds]
            draw_band(axes, votes, curves, colour, name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_title(f"φ = {phi}")
        axes.set_xlabel("votes a pair")
    panels[0][0].set_ylabel("mean |reward + rank|")
    panels[0][-1].legend(frameon=False, fontsize=8)
    return figure


ABOUT = """
Five arms, ten pairs, each judged by so many raters who draw their votes from the law of the model;
the label of a pair is the share of them. Mean |reward + rank| of the policy that the loss learns,
with 95 % intervals over {seeds} seeds; the losses see the same votes. The first two columns are of
votes by Mallows-θ, the others of votes by Mallows-φ.
"""

CHECKS = """
What was expected of these numbers before they were measured here. The last rows are two prompts
with the same order of arms, one agreed on and one disputed: DPO takes agreement for size of reward.
"""
