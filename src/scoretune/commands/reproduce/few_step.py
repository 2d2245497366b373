"""Few-step samplers of digits, fine-tuned against a learned energy: DxMI's update and CTRL's.

The CIFAR-10 experiment of arXiv 2502.01819 in miniature. Base, energy, value and sampler are the
same for every arm; only the slope that moves the sampler differs (`credit.energy`). Measured is
the Fréchet distance between features of samples and of real digits, by iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.digit_base import (
    FULL,
    QUICK,
    Budget,
    Measure,
    policy_of,
    prepared,
)
from scoretune.commands.reproduce.digits import DigitReader, handwriting
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.core.config import Sizes
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate.metrics import frechet_distance
from scoretune.policy import Policy
from scoretune.training.credit.energy import EnergyCredit, EnergyNetwork, Gate
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Decay
from scoretune.training.loop import train
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.sources.on_policy import OnPolicy
from scoretune.training.sources.step_choice import any_steps

STEPS = (4, 10)
ARMS = ("DxMI", "CTRL", "CTRL clipped")
FORMS: dict[str, dict[str, Any]] = {
    "DxMI": {"form": "arrival"},
    "CTRL": {"form": "departure"},
    "CTRL clipped": {"form": "departure", "gate": Gate()},
}
GRID = (3e-5, 1e-4, 3e-4)
TUNING_SEED = 1000  # of the grid below, and of no run in the tables
RATES: dict[str, dict[int, float]] = {  # what the grid found best, by number of steps
    "DxMI": {4: 1e-4, 10: 3e-5},
    "CTRL": {4: 1e-4, 10: 1e-4},
    "CTRL clipped": {4: 1e-4, 10: 3e-5},
}
VALUE_RATE = 1e-3
LAST = 3  # evaluations whose mean is a run's result: distances of single ones jump


def measure_base(quick: bool, folder: Path) -> Numbers:
    """The base through samplers of few and many steps, and what real digits score."""
    budget = QUICK if quick else FULL
    model, reader = prepared(folder, budget)
    measure, policy, held_out = Measure(reader, budget.samples), policy_of(model), handwriting()[1]
    counts = (*STEPS, 20) if quick else (*STEPS, 100, 500)
    read = reader(held_out.images).argmax(1) == held_out.digits
    return {
        "accuracy": float(read.float().mean()),
        "real": frechet_distance(measure.held_out, measure.training),
        "sampler": {str(n): measure(policy, n) for n in counts},
        "ddim": {str(n): measure(policy, n, "ddim") for n in STEPS},
        "heun": {str(n): measure(policy, n, "heun") for n in STEPS},
    }


# ----------------------------------------------------------------------------- the fine-tuning


def fine_tune(arm: str, steps: int, rate: float, seed: int, quick: bool, folder: Path) -> Numbers:
    """One fine-tuning of a sampler of `steps` steps, with the distances along the way."""
    budget = QUICK if quick else FULL
    model, reader = prepared(folder, budget)
    torch.manual_seed(seed)
    policy, times = policy_of(model), grids.uniform(model.process, steps)
    optimiser = torch.optim.Adam(policy.parameters(), rate)
    measure, judged = Measure(reader, budget.samples), policy_of(model)
    seen = [{"round": 0, **measure(judged, steps)}]
    energies: list[list[float]] = []

    def watch(update: int, metrics: Mapping[str, float]) -> None:
        energies.append([metrics["energy_data"], metrics["energy_samples"]])
        if update % (budget.rounds // budget.evaluations) == 0:
            seen.append({"round": update, **measure(judged, steps)})

    train(
        _source(policy, times, arm, reader, budget, seed),
        ScoreAction(policy, kl_weight=0.0),
        optimiser,
        TorchEngine(),
        updates=range(budget.rounds),
        hooks=[watch, Decay(optimiser, rate, budget.rounds)],
    )
    gap = [s - d for d, s in energies[-budget.rounds // 4 :]]
    return {"seen": seen, "network_evaluations": policy.calls, "energy_gap": sum(gap) / len(gap)}


def _source(
    policy: Policy, times: Tensor, arm: str, reader: DigitReader, budget: Budget, seed: int
) -> OnPolicy:
    """The sampler's own paths, all their steps in one batch, credited by the arm's slopes.

    The reward, how sure the reader is of a digit, is logged and not learned from.
    """
    energy = EnergyNetwork(policy.backbone.shape)
    credit = EnergyCredit(
        energy=energy,
        optimiser=torch.optim.Adam(energy.parameters(), VALUE_RATE),
        policy=policy,
        data=policy.backbone.embed(handwriting()[0].images),
        seed=seed,
        **FORMS[arm],
    )
    whole = budget.batch * (len(times) - 1)
    return OnPolicy(
        policy=policy,
        prompts=Prompts(("",), ("all",)),
        reward=lambda images, prompts: reader(images).softmax(1).amax(1),
        reward_name="sureness",
        credit=credit,
        times=times,
        sizes=Sizes(prompts=1, group=budget.batch, minibatch=whole),
        seed=seed,
        choose=any_steps(1.0),
    )


def cells(seeds: int, quick: bool) -> list[Cell]:
    """The base, the grid of learning rates on a seed of its own, then every arm and seed."""
    pairs = [(arm, steps) for steps in STEPS for arm in ARMS]
    made = [Cell("base", measure_base, {"quick": quick}, keeps_files=True)]
    if not quick:
        made += [_cell("grid", *pair, rate, TUNING_SEED, quick) for pair in pairs for rate in GRID]
    for seed in range(seeds):
        made += [_cell("run", a, n, RATES[a][n], seed, quick) for a, n in pairs]
    return made


def _cell(kind: str, arm: str, steps: int, rate: float, seed: int, quick: bool) -> Cell:
    which = f"{rate:g}" if kind == "grid" else str(seed)
    arguments = {"arm": arm, "steps": steps, "rate": rate, "seed": seed, "quick": quick}
    name = f"{kind}-{arm.replace(' ', '-')}-{steps}-{which}"
    return Cell(name, fine_tune, arguments, keeps_files=True)


# ------------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What was compared, the references, the grid of rates, the arms and their curves."""
    page.text(ABOUT)
    numbers: Numbers = {"base": results["base"], "grid": {}, "arms": {}}
    _references(results["base"], page)
    _grid(results, page, numbers["grid"])
    rows = []
    for steps in STEPS:
        baseline = [_level(run, "known") for run in _runs(results, ARMS[0], steps)]
        for arm in ARMS:
            runs = _runs(results, arm, steps)
            distances = [_level(run, "known") for run in runs]
            arm_numbers = {
                "rate": RATES[arm][steps],
                "known": interval(distances),
                "held_out": interval([_level(run, "held_out") for run in runs]),
                "over_dxmi": interval([x - y for x, y in zip(distances, baseline, strict=True)]),
                "network_evaluations": runs[0]["network_evaluations"],
                "energy_gap": interval([run["energy_gap"] for run in runs]),
            }
            numbers["arms"][f"{arm}, {steps} steps"] = arm_numbers
            spreads = [shown(arm_numbers[part], 1) for part in ("known", "held_out", "over_dxmi")]
            start = runs[0]["seen"][0]["known"]
            work = f"{arm_numbers['network_evaluations']:,}"
            rows.append([steps, arm, f"{arm_numbers['rate']:g}", f"{start:.1f}", *spreads, work])
    page.text(
        f"## Fine-tuned\n\nA run's result is the mean of its last {LAST} evaluations; mean and "
        "95 % interval over seeds. The difference to DxMI is paired by seed: below 0 is better."
    )
    columns = ["steps", "update", "rate", "base", "fine-tuned", "to held-out digits"]
    page.table([*columns, "minus DxMI", "network evaluations"], rows)
    page.figure("few_step", _draw(results), "Fréchet distance by iteration, 95 % over seeds")
    return numbers


ABOUT = f"""
The base is trained by denoising score matching on 1,200 of the 8×8 digits that scikit-learn
bundles; its sampler of few steps (ancestral, uniform times) is then fine-tuned against an energy
that is learned on the way. Same base, energy and value network (Adam {VALUE_RATE:g}), rounds,
samples and network evaluations for all; each update has its own learning rate.

* **DxMI** (arXiv 2407.00626): the value's gradient where a step arrives.
* **CTRL** (arXiv 2502.01819): the value's gradient where a step departs.
* **CTRL clipped**: the same as in its authors' code: only pixels that moved by less than 0.1.

Distances are Fréchet distances in the 32 penultimate features of a small reader of digits, of
{FULL.samples:,} samples to the 1,200 digits that base and energy learned from. Small is good.
"""


def _references(base: Numbers, page: Page) -> None:
    page.text(
        f"## What the numbers can be\n\nThe 597 held-out digits score {base['real']:.1f}; the "
        f"reader is right on {base['accuracy']:.1%} of them. The base, without fine-tuning:"
    )
    rows = [
        [name, steps, f"{distances['known']:.1f}", f"{distances['held_out']:.1f}"]
        for name in ("sampler", "ddim", "heun")
        for steps, distances in base[name].items()
    ]
    page.table(["through", "steps", "distance", "to held-out digits"], rows)


def _grid(results: dict[str, Numbers], page: Page, numbers: Numbers) -> None:
    """The grid's distances; nothing where it was not run."""
    if not any(name.startswith("grid") for name in results):
        return
    for steps in STEPS:
        for arm in ARMS:
            names = [_cell("grid", arm, steps, rate, TUNING_SEED, False).name for rate in GRID]
            half = FULL.evaluations // 2
            levels = [_level(results[name], "known", half) for name in names]
            numbers[f"{arm}, {steps} steps"] = levels
    page.text(
        "## Learning rates\n\nChosen for each update and number of steps on one seed that is not "
        "used below, by the mean distance over the second half of the run."
    )
    rows = [[name, *(f"{value:.1f}" for value in values)] for name, values in numbers.items()]
    page.table(["update", *(f"{rate:g}" for rate in GRID)], rows)


def _draw(results: dict[str, Numbers]) -> Any:
    figure, panels = subplots(1, len(STEPS), size=(9.0, 3.8))
    for axes, steps in zip(panels, STEPS, strict=True):
        for colour, arm in zip(COLOURS, ARMS, strict=False):
            seen = [run["seen"] for run in _runs(results, arm, steps)]
            rounds = [evaluation["round"] for evaluation in seen[0]]
            draw_band(axes, rounds, [[e["known"] for e in run] for run in seen], colour, arm)
        many = list(results["base"]["sampler"].values())[len(STEPS)]["known"]
        axes.axhline(many, color="#555555", linestyle="--", label="base, many steps")
        axes.axhline(
            results["base"]["real"], color="#999999", linestyle=":", label="held-out digits"
        )
        axes.set(title=f"{steps} steps", xlabel="iteration", ylabel="Fréchet distance")
        axes.set_yscale("log")
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure


def _runs(results: dict[str, Numbers], arm: str, steps: int) -> list[Numbers]:
    return by_arm(results)[f"run-{arm.replace(' ', '-')}-{steps}"]


def _level(run: Numbers, what: str, count: int = LAST) -> float:
    last = [evaluation[what] for evaluation in run["seen"][-count:]]
    return float(sum(last) / len(last))
