"""Few-step samplers of digits, fine-tuned against a learned energy: DxMI's update and CTRL's.

The CIFAR-10 experiment of arXiv 2502.01819 in miniature. Base, energy, value and sampler are the
same for every arm; only the slope that moves the sampler differs (`credit.energy`). Measured is
the Fréchet distance between features of samples and of real digits, by iteration.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.backbones.digits import (
    DigitReader,
    Digits,
    Handwriting,
    handwriting,
    train_reader,
)
from scoretune.batches import Condition, Hook
from scoretune.config import Sizes
from scoretune.credit.energy import EnergyCredit, EnergyNetwork, Gate
from scoretune.data import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.hooks import Decay
from scoretune.objectives.matching import Matching
from scoretune.objectives.score_action import ScoreAction
from scoretune.policy import Policy
from scoretune.reproduce.base import Cell, Numbers, Page, interval
from scoretune.reproduce.fine_tuning import COLOURS
from scoretune.rollout import deterministic, prior, rollout
from scoretune.sources import Dataset, OnPolicy, any_steps
from scoretune.train import train

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


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    pretraining: int = 14_000
    rounds: int = 400
    evaluations: int = 10
    batch: int = 64
    samples: int = 2_000


FULL, QUICK = Budget(), Budget(pretraining=200, rounds=4, evaluations=2, batch=8, samples=100)


def frechet_distance(features: Tensor, others: Tensor, eps: float = 1e-6) -> float:
    """‖m − m'‖² + tr(C + C' − 2(CC')^½) of features [n, F] and [n', F] (arXiv 1706.08500)."""
    from scipy.linalg import sqrtm

    means, covariances = [], []
    for found in (features.double(), others.double()):
        means.append(found.mean(0))
        covariances.append(torch.cov(found.T) + eps * torch.eye(found.shape[1]))
    first, second = covariances
    root = torch.as_tensor(sqrtm((first @ second).numpy()).real)  # imaginary parts are rounding
    return float(((means[0] - means[1]) ** 2).sum() + torch.trace(first + second - 2 * root))


# ------------------------------------------------------------------------------------ the base


@dataclass
class Average:
    """A hook that keeps a moving average of a network's weights in `copy`."""

    network: nn.Module
    copy: nn.Module
    decay: float = 0.998

    @torch.no_grad()
    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        new = 1 - min(self.decay, (1 + update) / (10 + update))
        pairs = zip(self.copy.parameters(), self.network.parameters(), strict=True)
        for mean, weight in pairs:
            mean.lerp_(weight, new)


def pretrain(data: Handwriting, updates: int, progress: Hook | None = None) -> Digits:
    """A base by denoising score matching: Adam 1e-3 to 0 in batches of 128, weights averaged."""
    torch.manual_seed(0)
    model = Digits()
    x0, mean = model.embed(data.images), copy.deepcopy(model.network)
    source = Dataset(x0, Condition.none(len(x0)), torch.ones(len(x0)), 128, seed=0)
    optimiser = torch.optim.Adam(model.network.parameters(), 1e-3)
    hooks: list[Hook] = [Average(model.network, mean), Decay(optimiser, 1e-3, updates)]
    train(
        source,
        Matching(Policy(model, GDDIM(1.0))),
        optimiser,
        _accelerator(),
        updates=range(updates),
        hooks=hooks + ([progress] if progress else []),
    )
    model.network.load_state_dict(mean.state_dict())
    return model


def prepared(folder: Path, budget: Budget) -> tuple[Digits, DigitReader]:
    """Base and reader: trained by whoever comes first, and kept in `folder`.

    Two processes that both come first do the same work and write the same file.
    """
    from safetensors.torch import load_file, save_file

    file = folder / f"base-{budget.pretraining}.safetensors"
    model, reader = Digits(), DigitReader()
    both = nn.ModuleDict({"base": model.network, "reader": reader})
    if not file.exists():
        known = handwriting()[0]
        model.network.load_state_dict(pretrain(known, budget.pretraining).network.state_dict())
        reader.load_state_dict(train_reader(known).state_dict())
        aside = file.with_suffix(f".{os.getpid()}")
        save_file(both.state_dict(), aside)
        os.replace(aside, file)
    both.load_state_dict(load_file(file))
    return model, reader


@dataclass
class Measure:
    """Fréchet distances of a policy's samples to the digits it learned from, and to others."""

    reader: DigitReader
    samples: int

    def __post_init__(self) -> None:
        self.known, self.held_out = (self.reader.look(h.images) for h in handwriting())

    def __call__(self, policy: Policy, steps: int, solver: str | None = None) -> dict[str, float]:
        """Always from the same noise; through the policy's kernel, or an ODE solver."""
        generator = torch.Generator().manual_seed(12345)
        times = grids.uniform(policy.backbone.process, steps)
        noise, condition = prior(policy, self.samples, generator), Condition.none(self.samples)
        if solver is None:
            x0 = rollout(policy, condition, times, generator, noise).final
        else:
            x0 = deterministic(policy, condition, times, noise, solver)
        features = self.reader.look(policy.backbone.decode(x0))
        return {
            "known": frechet_distance(features, self.known),
            "held_out": frechet_distance(features, self.held_out),
        }


def measure_base(quick: bool, folder: Path) -> Numbers:
    """The base through samplers of few and many steps, and what real digits score."""
    budget = QUICK if quick else FULL
    model, reader = prepared(folder, budget)
    measure, policy, held_out = Measure(reader, budget.samples), _policy(model), handwriting()[1]
    counts = (*STEPS, 20) if quick else (*STEPS, 100, 500)
    read = reader(held_out.images).argmax(1) == held_out.digits
    return {
        "accuracy": float(read.float().mean()),
        "real": frechet_distance(measure.held_out, measure.known),
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
    policy, times = _policy(model), grids.uniform(model.process, steps)
    optimiser = torch.optim.Adam(policy.parameters(), rate)
    measure, judged = Measure(reader, budget.samples), _policy(model)
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
        _accelerator(),
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
            known = [_level(run, "known") for run in runs]
            found = {
                "rate": RATES[arm][steps],
                "known": interval(known),
                "held_out": interval([_level(run, "held_out") for run in runs]),
                "over_dxmi": interval([x - y for x, y in zip(known, baseline, strict=True)]),
                "network_evaluations": runs[0]["network_evaluations"],
                "energy_gap": interval([run["energy_gap"] for run in runs]),
            }
            numbers["arms"][f"{arm}, {steps} steps"] = found
            shown = [_shown(found[part]) for part in ("known", "held_out", "over_dxmi")]
            start = runs[0]["seen"][0]["known"]
            work = f"{found['network_evaluations']:,}"
            rows.append([steps, arm, f"{found['rate']:g}", f"{start:.1f}", *shown, work])
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
        [name, steps, f"{found['known']:.1f}", f"{found['held_out']:.1f}"]
        for name in ("sampler", "ddim", "heun")
        for steps, found in base[name].items()
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
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.8), layout="constrained")
    for axes, steps in zip(figure.subplots(1, len(STEPS)), STEPS, strict=True):
        for colour, arm in zip(COLOURS, ARMS, strict=False):
            seen = [run["seen"] for run in _runs(results, arm, steps)]
            rounds = [evaluation["round"] for evaluation in seen[0]]
            bands = [interval([e["known"] for e in now]) for now in zip(*seen, strict=True)]
            axes.plot(rounds, [b[0] for b in bands], color=colour, linewidth=2, label=arm)
            low, high = [b[1] for b in bands], [b[2] for b in bands]
            axes.fill_between(rounds, low, high, color=colour, alpha=0.18, linewidth=0)
        many = list(results["base"]["sampler"].values())[len(STEPS)]["known"]
        axes.axhline(many, color="#555555", linestyle="--", label="base, many steps")
        axes.axhline(
            results["base"]["real"], color="#999999", linestyle=":", label="held-out digits"
        )
        axes.set(title=f"{steps} steps", xlabel="iteration", ylabel="Fréchet distance")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(frameon=False, fontsize="small")
    return figure


def _runs(results: dict[str, Numbers], arm: str, steps: int) -> list[Numbers]:
    start = f"run-{arm.replace(' ', '-')}-{steps}-"
    return [numbers for name, numbers in results.items() if name.startswith(start)]


def _level(run: Numbers, what: str, count: int = LAST) -> float:
    last = [evaluation[what] for evaluation in run["seen"][-count:]]
    return float(sum(last) / len(last))


def _shown(triple: tuple[float, float, float]) -> str:
    return "{:.1f} [{:.1f}, {:.1f}]".format(*triple)


def _policy(model: Digits) -> Policy:
    return Policy(model, GDDIM(1.0))


def _accelerator() -> Any:
    from accelerate import Accelerator

    return Accelerator()
