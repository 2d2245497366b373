"""Does the gain carry over? The fine-tuned miniature under guidance and solvers it never saw."""

from __future__ import annotations

from pathlib import Path

from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval
from scoretune.commands.reproduce.drawing import subplots
from scoretune.commands.reproduce.fine_tuning import QUICK, fine_tune, judged
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.policy import Policy
from scoretune.training.run_folder import load

GUIDANCE = (1.0, 1.5, 2.0, 3.0)
SOLVERS = (
    *(("ddim", steps) for steps in (10, 20, 50)),
    ("heun", 20),
    *(("dpmpp_2m", steps) for steps in (10, 20)),
)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A cell a seed: the recipe's run, then its samples."""
    return [
        Cell(f"samplers-{s}", look, {"seed": s, "quick": quick}, keeps_files=True)
        for s in range(seeds)
    ]


def look(seed: int, quick: bool, folder: Path) -> Numbers:
    """Judge accuracy of base and fine-tuned model, on prompts seen in training and held out."""
    name, changes = f"tuned-{seed}", [f"seed={seed}", *(QUICK if quick else [])]
    fine_tune("score_as_action", changes, name, folder)
    policy = load(folder / "runs" / name)
    held_out, seen = (read_prompts(p, 1 if quick else 30) for p in ("scenes-held-out", "scenes"))
    less = 10 if quick else 1
    accuracies: Numbers = {"guidance": {}, "solvers": {}}
    accuracies["training prompts"] = both(policy, seen, "ddim", 20 // less)
    for guidance in GUIDANCE:
        with policy.under(guidance):
            accuracies["guidance"][str(guidance)] = both(policy, held_out, "ddim", 20 // less)
    for solver, steps in SOLVERS:
        accuracy = both(policy, held_out, solver, steps // less)
        accuracies["solvers"][f"{solver}, {steps} steps"] = accuracy
    return accuracies


def both(policy: Policy, prompts: Prompts, solver: str, steps: int) -> list[float]:
    """The judge's accuracy of the base and of the policy, from the same noise."""
    with policy.reference():
        base = judged(policy, prompts, solver, steps)
    return [base, judged(policy, prompts, solver, steps)]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Two tables and the curve over guidance."""
    runs = list(results.values())
    page.text(
        "`score_as_action` on the miniature, fine-tuned without guidance and judged on held-out "
        "prompts: mean accuracy over seeds, base → fine-tuned. On the prompts of the fine-tuning: "
        f"{_arrow([run['training prompts'] for run in runs])}."
    )
    means: Numbers = {"training prompts": _means([run["training prompts"] for run in runs])}
    for part, label in (
        ("guidance", "guidance (DDIM, 20 steps)"),
        ("solvers", "solver, no guidance"),
    ):
        names = list(runs[0][part])
        page.table(
            [label, *names], [["judge", *(_arrow([r[part][n] for r in runs]) for n in names)]]
        )
        means[part] = {n: _means([r[part][n] for r in runs]) for n in names}
    page.figure("guidance", _draw(means["guidance"]), "judge accuracy by guidance")
    return means


def _means(pairs: list[list[float]]) -> list[float]:
    return [interval(values)[0] for values in zip(*pairs, strict=True)]


def _arrow(pairs: list[list[float]]) -> str:
    return " → ".join(f"{mean:.2f}" for mean in _means(pairs))


def _draw(guidance: Numbers) -> object:
    figure, axes = subplots(size=(5.4, 3.4))
    axes.set(xlabel="guidance", ylabel="judge accuracy, held-out prompts")
    scales = [float(name) for name in guidance]
    for label, values in zip(
        ("base", "fine-tuned"), zip(*guidance.values(), strict=True), strict=True
    ):
        axes.plot(scales, values, marker="o", label=label)
    axes.legend(frameon=False)
    return figure
