"""Reward and guidance: what each gives the miniature, alone and one after the other.

Guidance makes samples better and twice as dear. Distilled into the model it costs nothing at
sampling; the reward's fine-tuning may come before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.commands.reproduce.fine_tuning import QUICK, fine_tune, judged
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.policy import Policy
from scoretune.training.run_folder import load

SCALES = (1.0, 1.5, 2.0, 3.0)


class Model(NamedTuple):
    """A fine-tuned model: its recipe, and the one of these that it begins with ("": the base)."""

    label: str
    recipe: str
    begins_with: str = ""


MODELS = {
    "distilled": Model("guidance, distilled", "guidance_distillation"),
    "tuned": Model("score as action", "score_as_action"),
    "both": Model("score as action, then guidance, distilled", "guidance_distillation", "tuned"),
}
BASE = "base"


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A cell a seed: three runs, and the samples of their models and of the base."""
    return [
        Cell(f"guidance-{s}", look, {"seed": s, "quick": quick}, keeps_files=True)
        for s in range(seeds)
    ]


def look(seed: int, quick: bool, folder: Path) -> Numbers:
    """The judge's accuracy on held-out prompts by guidance, and what the runs cost."""
    prompts = read_prompts("scenes-held-out", 1 if quick else 30)
    steps = 2 if quick else 20
    numbers: Numbers = {}
    for name, model in MODELS.items():
        changes = [
            f"seed={seed}",
            "guard.action=off",
            *(QUICK if quick else ["evaluation.every=0"]),
        ]
        if model.begins_with:
            changes.append(f"model.source={folder / 'runs' / f'{model.begins_with}-{seed}'}")
        run = fine_tune(model.recipe, changes, f"{name}-{seed}", folder)
        policy = load(folder / "runs" / f"{name}-{seed}")
        result = run["result"]
        numbers[name] = {
            "judge": _by_guidance(policy, prompts, steps),
            "network_evaluations": result["network_evaluations"],
            "seconds": result["seconds"],
        }
        if BASE not in numbers:
            with policy.reference():
                numbers[BASE] = {"judge": _by_guidance(policy, prompts, steps)}
    return numbers


def _by_guidance(policy: Policy, prompts: Prompts, steps: int) -> list[float]:
    levels = []
    for scale in SCALES:
        with policy.under(scale):
            levels.append(judged(policy, prompts, "ddim", steps))
    return levels


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table by guidance, its curves, and how far each is from the base with its best."""
    runs = list(results.values())
    page.text(
        "Judge accuracy on held-out prompts, DDIM with 20 steps, by the guidance that samples are "
        "drawn with: above 1 a sample costs two network evaluations a step, not one. Intervals and "
        "bands are 95 % over training seeds. The cost is of training; of the last row, both runs'."
    )
    rows, means = [], Numbers()
    for name in (BASE, *MODELS):
        columns = list(zip(*(run[name]["judge"] for run in runs), strict=True))
        levels = [interval(column) for column in columns]
        spent = _spent(runs, name)
        means[name] = {"judge": dict(zip(map(str, SCALES), levels, strict=True)), **spent}
        label = MODELS[name].label if name in MODELS else BASE
        work = f"{spent['network_evaluations']:,}" if spent else "–"
        seconds = f"{spent['seconds'][0]:.0f}–{spent['seconds'][1]:.0f}" if spent else "–"
        rows.append([label, *(shown(level, 2) for level in levels), work, seconds])
    scales = [f"guidance {scale:g}" for scale in SCALES]
    page.table(["", *scales, "network evaluations", "seconds"], rows)
    means |= _ahead(runs, page)
    page.figure("guidance", _draw(runs), "judge accuracy by guidance")
    return means


def _spent(runs: list[Numbers], name: str) -> Numbers:
    """What training a model took, the runs before it too: network evaluations, and the fewest and
    the most seconds of any seed."""
    if name not in MODELS:
        return {}
    parts = [name, *([MODELS[name].begins_with] if MODELS[name].begins_with else [])]
    seconds = [sum(run[part]["seconds"] for part in parts) for run in runs]
    work = sum(runs[0][part]["network_evaluations"] for part in parts)
    return {"network_evaluations": work, "seconds": [min(seconds), max(seconds)]}


def _ahead(runs: list[Numbers], page: Page) -> Numbers:
    """Without guidance, and with the best, less the base under its best guidance, by seed."""
    numbers: Numbers = {}
    best = {name: _best(runs, name) for name in (BASE, *MODELS)}
    for what, places in (("without guidance", dict.fromkeys(MODELS, 0)), ("at best", best)):
        for name in MODELS:
            numbers[f"{name} {what}"] = interval(
                [run[name]["judge"][places[name]] - run[BASE]["judge"][best[BASE]] for run in runs]
            )
        said = ", ".join(
            f"{MODELS[name].label} {shown(numbers[f'{name} {what}'], 1, scale=100, sign='+')}"
            for name in MODELS
        )
        page.text(
            f"{'Each with its best guidance' if places is best else 'Without guidance'}, less the "
            f"base with its best ({SCALES[best[BASE]]:g}), in points of a hundred: {said}."
        )
    return numbers


def _best(runs: list[Numbers], name: str) -> int:
    """The place of the scale with the highest mean over seeds."""
    return max(range(len(SCALES)), key=lambda place: sum(run[name]["judge"][place] for run in runs))


def _draw(runs: list[Numbers]) -> object:
    figure, axes = subplots(size=(5.8, 3.8))
    for colour, name in zip(COLOURS, (BASE, *MODELS), strict=False):
        label = MODELS[name].label if name in MODELS else BASE
        draw_band(axes, list(SCALES), [run[name]["judge"] for run in runs], colour, label)
    axes.set(xlabel="guidance", ylabel="judge accuracy, held-out prompts")
    axes.legend(frameon=False)
    return figure
