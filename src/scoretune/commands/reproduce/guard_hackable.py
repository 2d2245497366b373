"""A reward that is easy to game, and a guard that ends the run where the judge turns.

The reward adds to the reader, who says whether the picture is as asked, what costs nothing to
raise: brightness, which is then bought with the pictures, soon or after a while of honest gains.
Each seed trains three times: to the end with warnings alone, stopped at the alarm, rolled back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.fine_tuning import QUICK, Runs, cell_of, level

REWARD = "reader + 10*brightness"
EVERY = 4
CHANGES = [
    f"reward={REWARD}",
    'model.targets=["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2"]',  # it can do more harm
    *("objective.kl_weight=0.0003", "updates=32", "sizes.prompts=16"),
    *(f"evaluation.every={EVERY}", "evaluation.per_task=10", "evaluation.steps=10"),
]
ACTIONS = ("warn", "stop", "rollback")


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run for each action and seed."""
    more = [*QUICK, "guard.chain_kl=1e-9"] if quick else []  # so that a rehearsal has an alarm
    return [
        cell_of(
            f"{action}-{seed}",
            "score_as_action",
            [*CHANGES, *more, f"seed={seed}", f"guard.action={action}"],
        )
        for seed in range(seeds)
        for action in ACTIONS
    ]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """When the judge turned, when the alarm came, and what the run ended with."""
    arms = by_arm(results)
    page.text(
        f"Reward: `{REWARD}`, followed by score as action through its gradient, with an adapter on "
        "convolutions too and hardly a penalty on the path KL. The judge is never optimised; it is "
        f"asked about the same 60 held-out prompts every {EVERY} updates. Its alarm counts from "
        "its best evaluation and allows for all of a run's evaluations together: of runs whose "
        "judge stands still at most 2.5 % ring."
    )
    rows = [_row(*runs) for runs in zip(*(arms[action] for action in ACTIONS), strict=True)]
    columns = ("seed", "judge at best", "at update", "alarm at", "of", "judge there", "stopped at")
    page.table(
        [*columns, "judge after rollback", "judge at the end, unguarded"],
        [[seed, *(_shown(value) for value in row.values())] for seed, row in enumerate(rows)],
    )
    page.text(_summary(rows))
    page.text(
        "With `guard.action=stop` the run ends at the alarm, after its last evaluation; with "
        "`rollback` it goes back to the weights of the judge's best evaluation, and ends with its "
        "numbers to the last digit."
    )
    page.figure("hackable", _drawn(arms["warn"]), "reward and judge, and the alarms")
    return {"seeds": rows}


def _row(warned: Numbers, stopped: Numbers, rolled: Numbers) -> Numbers:
    """One seed: where its judge was best, when the alarm came, and how each of its runs ended."""
    lines = warned["evaluations"]
    alarms = warned["result"]["guard"]["alarms"]
    alarm = alarms[0] if alarms else None
    # the turning point is the best evaluation before the alarm: afterwards nothing is at stake
    before = [line for line in lines if alarm is None or line["update"] <= alarm["update"]]
    best = max(before, key=lambda line: level(line, "judge"))
    there = next((ln for ln in lines if alarm and ln["update"] == alarm["update"]), None)
    return {
        "best": level(best, "judge"),
        "turn": best["update"],
        "alarm": alarm["update"] if alarm else None,
        "watch": " and ".join(a["watch"] for a in alarms if a["update"] == alarms[0]["update"]),
        "at_alarm": level(there, "judge") if there else None,
        "stopped": stopped["result"]["guard"]["ended"],
        "rolled_back": rolled["result"]["judge"]["final"]["overall"],
        "unguarded": level(lines[-1], "judge"),
    }


def _summary(rows: list[Numbers]) -> str:
    """In how many seeds the judge rose before it fell, and how soon after that the alarm came."""
    lags = [(row["alarm"] - row["turn"]) // EVERY for row in rows if row["alarm"] is not None]
    rose = sum(row["turn"] > 0 for row in rows)
    text = f"The judge rose before it fell in {rose} of {len(rows)} seeds, and fell from the start "
    text += f"in the others. An alarm came in {len(lags)} of {len(rows)}"
    return text + (f", at most {max(lags)} evaluations after its best." if lags else ".")


def _shown(value: Any) -> str:
    if value is None:
        return "—"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _drawn(runs: Runs) -> Any:
    """Unguarded runs: the judge of each seed with its alarm, and its reward beside it."""
    figure, (left, right) = subplots(1, 2, sharex=True, size=(9.2, 3.8))
    for seed, run in enumerate(runs):
        colour = COLOURS[seed % len(COLOURS)]
        lines = run["evaluations"]
        updates = [line["update"] for line in lines]
        _curve(left, updates, [level(line, "judge") for line in lines], colour, f"seed {seed}")
        _curve(right, updates, [level(line, "reward") for line in lines], colour, f"seed {seed}")
        for alarm in run["result"]["guard"]["alarms"][:1]:
            where = updates.index(alarm["update"])
            for axes, metric in ((left, "judge"), (right, "reward")):
                height = level(lines[where], metric)
                label = "alarm" if seed == 0 else None
                axes.plot(alarm["update"], height, "X", color=colour, ms=11, mec="k", label=label)
    for axes, name in ((left, "judge accuracy"), (right, "reward that is optimised")):
        axes.set(xlabel="update", ylabel=name)
    left.legend(frameon=False)
    return figure


def _curve(
    axes: Any, updates: Sequence[int], values: Sequence[float], colour: str, label: str
) -> None:
    axes.plot(updates, values, color=colour, linewidth=2, marker="o", markersize=4, label=label)
