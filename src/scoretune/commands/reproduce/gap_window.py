"""MixGRPO's window against the whole path: equal batches, updates and steps of the optimiser.

The window slides from the noise to the data once.
"""

from __future__ import annotations

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval
from scoretune.commands.reproduce.fine_tuning import (
    Arm,
    Arms,
    ahead,
    cells_of,
    draw_curves,
    final,
    gain,
    labelled,
    points,
)
from scoretune.commands.reproduce.mix_grpo import ACTING, BATCH, WINDOW

COMMON = [*ACTING, "sampling.eta=1", *BATCH, "updates=14", "evaluation.every=7"]
PART = [*WINDOW, *COMMON, "sampling.window.every=1"]  # 4 minibatches; the whole path has 30
WHOLE = "whole path"
ARMS: Arms = {
    WHOLE: Arm(
        "whole",
        "mix_grpo",
        [*COMMON, "sampling.steps=16", "sampling.window.size=0", "sizes.accumulate=8"],
    ),
    "window of 2": Arm("progressive", "mix_grpo", PART),
}


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One run for each arm and seed."""
    return cells_of(ARMS, "reader", seeds, quick, reference=WHOLE)


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What a window costs and saves."""
    arms = labelled(results, "reader", ARMS)
    page.text(
        "Equal prompts, groups, updates and optimiser's steps (four an update). Network "
        "evaluations count rollouts and learning; a gradient costs about two more each, so the "
        "time saved is larger. Measured: the judge through DDIM. Intervals are 95 % over training "
        "seeds."
    )
    numbers: Numbers = {}
    rows = []
    for arm, runs in arms.items():
        work = interval([run["result"]["network_evaluations"] for run in runs])[0]
        row: Numbers = {
            "gain": gain(runs, "judge"),
            "final": final(runs, "judge"),
            "against the whole path": ahead(runs, arms[WHOLE], "judge"),
            "network_evaluations": work,
        }
        numbers[arm] = row
        rows.append(
            [
                arm,
                points(row["gain"]),
                f"{row['final'][0]:.3f}",
                "—" if arm == WHOLE else points(row["against the whole path"]),
                f"{work:,.0f}",
            ]
        )
    page.table(
        ["", "judge's gain, points", "final", "less the whole path", "network evaluations"], rows
    )
    page.figure("judge", draw_curves(arms, "judge", "judge accuracy"), "judge accuracy")
    return numbers
