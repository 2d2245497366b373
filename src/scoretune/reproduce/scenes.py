"""The miniature Stable Diffusion: score as action against its rivals at equal network evaluations.

Prompt following: the reward has a gradient, and a judge that is never optimised tells whether the
pictures are right. Same model, prompts, kernel and evaluation for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from scoretune.reproduce.base import Cell, Numbers, Page
from scoretune.reproduce.fine_tuning import (
    Runs,
    best,
    draw_curves,
    final,
    fine_tune,
    gain,
    points,
    reached,
)


class Arm(NamedTuple):
    """A recipe with changes, and what its cells are called."""

    name: str
    recipe: str
    changes: Sequence[str] = ()


Arms = dict[str, Arm]

FOLLOWING: Arms = {
    # About 65,000 network evaluations each: rollouts, references, slopes and learning all count.
    "score as action": Arm("score_as_action", "score_as_action"),
    "score as action, ratios": Arm(
        "ratio", "score_as_action", ["objective.form=ratio", "updates=71", "evaluation.every=18"]
    ),
    "DDPO": Arm("ddpo", "ddpo", ["updates=34", "evaluation.every=8"]),
    "GRPO": Arm("grpo", "grpo", ["updates=20", "evaluation.every=5"]),
    "DRaFT-3": Arm("draft", "draft", ["evaluation.every=68"]),
}
QUICK = [
    *("updates=2", "sizes.prompts=2", "sizes.group=2", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=1"),
]


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One fine-tuning run for each arm and seed."""
    return runs(FOLLOWING, "reader", seeds, quick)


def runs(arms: Arms, reward: str, seeds: int, quick: bool, more: Sequence[str] = ()) -> list[Cell]:
    """The cells of some arms."""
    extra = [*more, *(QUICK if quick else [])]
    return [
        Cell(
            f"{reward}-{arm.name}-{seed}",
            fine_tune,
            {
                "recipe": arm.recipe,
                "changes": [*arm.changes, f"reward={reward}", f"seed={seed}", *extra],
                "name": f"{reward}-{arm.name}-{seed}",
            },
            keeps_files=True,
        )
        for seed in range(seeds)
        for arm in arms.values()
    ]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table and the curves."""
    following = by_arm(results, "reader", FOLLOWING)
    page.text(
        "Reward: the reader. Measured: the judge, which is never optimised, on held-out prompts "
        "through DDIM with 20 steps. Score as action and DRaFT follow the reward's gradient; with "
        "ratios, as DDPO and GRPO, only its values. Intervals and bands are 95 % over training "
        "seeds."
    )
    numbers = compared(following, "judge", page)
    page.figure("following", draw_curves(following, "judge", "judge accuracy"), "judge accuracy")
    return numbers


def by_arm(results: dict[str, Numbers], reward: str, arms: Arms) -> dict[str, Runs]:
    """The runs of every arm, in the order of their seeds."""
    return {
        label: [
            found for name, found in results.items() if name.startswith(f"{reward}-{arm.name}-")
        ]
        for label, arm in arms.items()
    }


def compared(
    arms: dict[str, Runs], metric: str, page: Page, *, scale: float = 100, digits: int = 1
) -> Numbers:
    """A table of the arms, and how soon each reached the best that DDPO found."""
    wanted = best(arms["DDPO"], metric)
    numbers: Numbers = {"DDPO's best": round(wanted, 4)}
    rows = []
    for arm, runs in arms.items():
        when = reached(runs, metric, wanted)
        work = runs[0]["result"]["network_evaluations"]
        kls = [run["result"]["path_kl"] for run in runs]
        seconds = [run["result"]["seconds"] for run in runs]
        numbers[arm] = {
            "gain": gain(runs, metric),
            "final": final(runs, metric),
            "network_evaluations": work,
            "reached DDPO's best at": when,
            "path_kl": kls,
            "seconds": seconds,
        }
        arrived = sorted(w for w in when if w is not None)
        soon = f"{arrived[len(arrived) // 2]:,}" if len(arrived) > len(runs) / 2 else "—"
        rows.append(
            [
                arm,
                points(gain(runs, metric), digits, scale),
                f"{final(runs, metric)[0]:.3f}",
                f"{work:,}",
                f"{soon} ({len(arrived)} of {len(runs)})",
                f"{min(kls):.1f}–{max(kls):.1f}",
                f"{min(seconds):.0f}–{max(seconds):.0f}",
            ]
        )
    page.table(
        [
            *("", "gain", "final", "network evaluations"),
            *(f"reached DDPO's best ({wanted:.3f}) at", "path KL", "seconds"),
        ],
        rows,
    )
    return numbers
