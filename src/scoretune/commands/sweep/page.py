"""The page of a sweep: what matters, every run as a line across the settings, and the best ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState

from scoretune.commands.sweep import study as studies
from scoretune.commands.sweep.ranges import Choice, Range, words_of
from scoretune.commands.sweep.runs import words_of_run
from scoretune.commands.sweep.study import Plan
from scoretune.evaluate.report import render
from scoretune.evaluate.report.format import plain
from scoretune.training import settings_file

WIDTH, HEIGHT, TOP, BOTTOM, SIDE = 1000.0, 340.0, 46.0, 40.0, 90.0
SHOWN = 12
"""Runs in the table."""


class Axis(NamedTuple):
    """An upright line of the drawing, with what its ends stand for."""

    name: str
    x: float
    low: str
    high: str


def write(study: optuna.Study, plan: Plan, folder: Path) -> Path:
    """Write `sweep.html`, and `best.yaml` with the best settings, where a run came to its end."""
    best = studies.ranked(study)
    trials = study.get_trials(deepcopy=False)
    counts = {
        name: sum(trial.state == state for trial in trials)
        for name, state in (
            ("finished", TrialState.COMPLETE),
            ("given up", TrialState.PRUNED),
            ("failed", TrialState.FAIL),
            ("running", TrialState.RUNNING),
            ("waiting", TrialState.WAITING),
        )
    }
    if best:
        chosen = settings_file.named(plan.recipe, words_of_run(plan, best[0].params))
        (folder / "best.yaml").write_text(settings_file.written(chosen), encoding="utf-8")
    values = {
        "title": f"sweep of {plan.recipe}",
        "plan": plan,
        "counts": {name: count for name, count in counts.items() if count},
        "best": [_row(trial, plan) for trial in best[:SHOWN]],
        "words": words_of(best[0].params) if best else [],
        "paths": [dimension.path for dimension in plan.space],
        "importance": [
            (name, share, round(100 * share)) for name, share in _importance(study, plan)
        ],
        "drawing": _drawing(best, plan),
        "failures": sorted({str(t.user_attrs["error"]) for t in trials if "error" in t.user_attrs}),
    }
    return render.write(
        folder / "sweep.html", render.text("sweep.html", values, "scoretune.commands.sweep")
    )


def _importance(study: optuna.Study, plan: Plan) -> list[tuple[str, float]]:
    return list(studies.importance(study, plan.space).items())


def _row(trial: FrozenTrial, plan: Plan) -> dict[str, Any]:
    levels = trial.user_attrs.get("levels", [])
    spread = f"{plain(min(levels))} to {plain(max(levels))}" if len(levels) > 1 else ""
    values = [_text(trial.params[dimension.path]) for dimension in plan.space]
    return {"number": trial.number, "value": trial.value, "spread": spread, "values": values}


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, float) else str(value)


def _drawing(best: Sequence[FrozenTrial], plan: Plan) -> dict[str, Any] | None:
    """Parallel coordinates: an axis a setting, the result last; the best third of the lines in
    front of the others. None for fewer than two runs."""
    levels = [float(trial.value or 0.0) for trial in best]
    if len(levels) < 2:
        return None
    high, low = levels[0], levels[-1]
    gap = (WIDTH - 2 * SIDE) / len(plan.space)
    axes = [_axis(dimension, SIDE + i * gap) for i, dimension in enumerate(plan.space)]
    axes.append(Axis(plan.by, WIDTH - SIDE, plain(low), plain(high)))
    lines = []
    for rank, (trial, value) in enumerate(zip(best, levels, strict=True)):
        places = [dimension.place(trial.params[dimension.path]) for dimension in plan.space]
        places.append((value - low) / (high - low) if high > low else 0.5)
        points = " ".join(
            f"{axis.x:.1f},{_down(place):.1f}" for axis, place in zip(axes, places, strict=True)
        )
        style = "first" if rank == 0 else "front" if 3 * rank < len(best) else "back"
        tip = f"run {trial.number}: {plan.by} {plain(value)}, {', '.join(words_of(trial.params))}"
        lines.append({"points": points, "style": style, "tip": tip})
    size = {"width": WIDTH, "height": HEIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM}
    return {**size, "axes": axes, "lines": lines[::-1]}


def _axis(dimension: Range | Choice, x: float) -> Axis:
    ends = dimension.ends[0], dimension.ends[-1]
    name = dimension.path.removeprefix("objective.").removeprefix("optimiser.")
    return Axis(name, x, *(_text(end) for end in ends))


def _down(place: float) -> float:
    return HEIGHT - BOTTOM - place * (HEIGHT - TOP - BOTTOM)
