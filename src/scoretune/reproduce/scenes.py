"""The miniature Stable Diffusion: score as action against its rivals at equal network evaluations.

Two rewards: prompt following, which has a gradient and a judge that is never optimised, and how
well the picture compresses, which has neither. Same model, prompts, kernel and evaluation for all.
"""

from __future__ import annotations

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

FOLLOWING: dict[str, tuple[str, list[str]]] = {
    # About 65,000 network evaluations each: rollouts, references, slopes and learning all count.
    "score as action": ("score_as_action", []),
    "DDPO": ("ddpo", ["updates=34", "evaluation.every=8"]),
    "GRPO": ("grpo", ["updates=20", "evaluation.every=5"]),
    "DRaFT-3": ("draft", ["evaluation.every=68"]),
}
COMPRESSING: dict[str, tuple[str, list[str]]] = {
    # About 33,000 each. The reward is in kilobytes and hardly varies: κ has its unit.
    "score as action": (
        "score_as_action",
        [
            *("updates=36", "evaluation.every=9", "evaluation.per_task=10"),
            "objective.kl_weight=0.0003",
        ],
    ),
    "DDPO": ("ddpo", ["updates=17", "evaluation.every=4", "evaluation.per_task=10"]),
    "GRPO": ("grpo", ["updates=10", "evaluation.every=3", "evaluation.per_task=10"]),
}
QUICK = [
    *("updates=2", "sizes.prompts=2", "sizes.group=2", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=1"),
]


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One fine-tuning run for each reward, arm and seed."""
    return [
        Cell(
            f"{reward}-{recipe}-{seed}",
            fine_tune,
            {
                "recipe": recipe,
                "changes": [
                    *changes,
                    f"reward={reward}",
                    f"seed={seed}",
                    *(QUICK if quick else []),
                ],
                "name": f"{reward}-{recipe}-{seed}",
            },
            keeps_files=True,
        )
        for seed in range(seeds)
        for reward, arms in (("reader", FOLLOWING), ("compressibility", COMPRESSING))
        for recipe, changes in arms.values()
    ]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Tables and curves of both rewards."""
    following = by_arm(results, "reader", FOLLOWING)
    page.text(
        "## Prompt following\n\nReward: the reader. Measured: the judge, which is never "
        "optimised, on held-out prompts through DDIM with 20 steps. Intervals are 95 % over seeds."
    )
    numbers: Numbers = {"following": compared(following, "judge", page)}
    page.figure("following", draw_curves(following, "judge", "judge accuracy"), "judge accuracy")
    compressing = by_arm(results, "compressibility", COMPRESSING)
    page.text(
        "## Compressibility\n\nReward: minus the kilobytes of the picture as JPEG, which has no "
        "gradient: score as action takes its ratio form, and DRaFT cannot take part."
    )
    numbers["compressing"] = compared(compressing, "reward", page, scale=1, digits=3)
    page.figure("compressing", draw_curves(compressing, "reward", "−kilobytes"), "−kilobytes")
    return numbers


def by_arm(
    results: dict[str, Numbers], reward: str, arms: dict[str, tuple[str, list[str]]]
) -> dict[str, Runs]:
    """The runs of every arm, in the order of their seeds."""
    return {
        arm: [found for name, found in results.items() if name.startswith(f"{reward}-{recipe}-")]
        for arm, (recipe, _) in arms.items()
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
