"""What every loss of preferences makes of a diffusion model whose best law is known.

Data are N(1, ¼) in two dimensions, and pairs of them are labelled by the law of Bradley and Terry
with the reward 2x₁, with exact probabilities: the law that is best under a KL weight of β = 1 nat
is the tilt N((1.5, 1), ¼). A control linear in x̂0 can reach it. Likelihoods are in nats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.core import config
from scoretune.core.conditions import Condition
from scoretune.core.records import PairExamples
from scoretune.diffusion import grids
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.preference import PRESETS, Preset, pairwise_loss
from scoretune.rollout import deterministic, prior
from scoretune.training.objectives.preference_losses import DSPO, adaptive, loss_of, unsuited

MEAN, VARIANCE, SLOPE, DIMENSION = 1.0, 0.25, 2.0, 2
TILT = VARIANCE * SLOPE
"""How far the best law's mean lies from that of the data, at β = 1."""
UPDATES, BATCH, RATE = 400, 512, 0.03
NAMES = [*(name for name, preset in PRESETS.items() if unsuited(name, preset) is None), DSPO]
REHEARSED = ("dpo", "kto", "dspo")


def cells(seeds: int, quick: bool) -> list[Cell]:
    """A run of each preset and seed."""
    updates = 3 if quick else UPDATES
    return [
        Cell(f"{name}-{seed}", learned, {"name": name, "seed": seed, "updates": updates})
        for name in (REHEARSED if quick else NAMES)
        for seed in range(seeds)
    ]


def learned(name: str, seed: int, updates: int) -> Numbers:
    """How far learning moves the mean of the ODE's samples along the reward and across it, and by
    what it multiplies their deviation along it."""
    torch.manual_seed(seed)
    base = toy.Gaussian(VP(), MEAN, VARIANCE, DIMENSION)
    policy = Policy(toy.Controlled(base, toy.HatControl(DIMENSION)), kernel=None)  # type: ignore[arg-type]
    loss = loss_of(settings(name), policy)
    optimiser = torch.optim.Adam(policy.parameters(), lr=RATE)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 - k / updates)
    follows, before = adaptive(loss), drawn(policy)
    for update in range(updates):
        outcome = loss(pairs(name))
        optimiser.zero_grad()
        outcome.value.backward()
        optimiser.step()
        decay.step()
        if follows is not None:
            follows.adapt(update, {k: float(v) for k, v in outcome.metrics.items()})
    after = drawn(policy)
    moved = (after.mean(0) - before.mean(0)).tolist()
    spread = float(after[:, 0].std() / before[:, 0].std())
    return {"along": moved[0], "across": moved[1], "spread": spread}


def settings(name: str) -> config.Preference:
    """β is 1 nat; of presets that divide by the number of elements as much a sample."""
    if name == DSPO:
        return config.Preference(preset=DSPO, beta=0.5)
    beta = float(DIMENSION) if PRESETS[name].length_normalised else 1.0
    return config.Preference(preset=name, beta=beta, beta_unit="nats", times="importance")


def pairs(name: str) -> PairExamples:
    """Independent pairs of the data with exact probabilities, all prompts alike."""
    first, second = MEAN + VARIANCE**0.5 * torch.randn(2, BATCH, DIMENSION)
    preset, one = PRESETS.get(name), torch.ones(BATCH)
    return PairExamples(
        first=first,
        second=second,
        condition=Condition.none(BATCH),
        label=torch.sigmoid(SLOPE * (first - second)[:, 0]),
        weight=one,
        noise=torch.randn(BATCH, DIMENSION),
        share=torch.rand(BATCH),
        scale=one if preset is not None and preset.scaling else None,
        margin=0 * one if preset is not None and preset.offset else None,
    )


@torch.no_grad()
def drawn(policy: Policy, batch: int = 2000) -> Tensor:
    """Samples through DDIM on 30 uniform steps, from the same noise each time."""
    noise = prior(policy, batch, torch.Generator().manual_seed(9))
    times = grids.uniform(policy.backbone.process, 30)
    return deterministic(policy, Condition.none(batch), times, noise)


# ------------------------------------------------------------------------------ what is expected


def aim(name: str) -> float | None:
    """The slope of the margin that a loss is least for, as a share of the reward's: 1 is the tilt.

    Least squares of the minimiser z*(p) of the expected loss on the pairs' differences of reward,
    within ±20. None where a loss is none of the gap alone.
    """
    preset = PRESETS.get(name)
    if preset is None or preset.kind == "single" or preset.terms:
        return None
    if preset.reference_weight != 1 or preset.sft_weight or preset.chosen_floor:
        return None
    gaps = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    reward = SLOPE * (2 * VARIANCE) ** 0.5 * torch.randn(200, generator=generator).double()
    best = torch.stack([_minimiser(preset, gaps, float(p)) for p in torch.sigmoid(reward)])
    return float((best * reward).sum() / (reward * reward).sum())


def _minimiser(preset: Preset, gaps: Tensor, share: float) -> Tensor:
    one, none = torch.ones_like(gaps), torch.zeros_like(gaps)
    loss = pairwise_loss(
        *(gaps, none, none, none),
        preset=preset,
        beta=1.0,
        lengths=(one, one),
        scale=one * (torch.e**-0.5 if preset.scaling == "phi" else 1.0),
        margin=none,
        label=share * one,
    )
    return gaps[loss.argmin()]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Every preset's shift beside the tilt's, and what its own loss aims at."""
    rows, numbers = [], {}
    for name, runs in by_arm(results).items():
        share = interval([run["along"] / TILT for run in runs])
        across = interval([run["across"] for run in runs])
        spread = interval([run["spread"] for run in runs])
        goal = aim(name)
        said = "–" if goal is None else f"{goal:.2f}"
        rows.append([name, said, shown(share, 2), shown(across, 3, sign="+"), shown(spread)])
        numbers[name] = {"aim": goal, "share": share, "across": across, "spread": spread}
    page.text(
        "Data N(1, ¼) in two dimensions, reward 2x₁, exact labels of Bradley and Terry, β = 1 nat "
        f"(dspo: B = 0.5), times uniform in the log-SNR, {UPDATES} updates of {BATCH} pairs. The "
        f"tilt moves the mean by {TILT} along the reward and keeps the deviation. `aims at` "
        "is the slope of the margin for which a loss is least, pair by pair, over that of the "
        "reward: 1 is the tilt, and – is a loss that is none of the gap alone. What is learned "
        "differs from it, since the loss sees one time of a pair, not the integral: at each the "
        "control makes the margin right by itself. cdpo, robust and exo assume wrong labels, of "
        "which there are none here. dpop, with a floor of 50 times what the preferred "
        "side's likelihood fell by, moves nothing; that it takes the noise of one time for a fall "
        "is a guess. With a part α of the reference the margin is right at π_ref^α·e^{r/β}: for "
        "rainbow, α = ¼ and "
        "but for its own margin, 4 times the tilt's shift and twice the deviation; without any "
        "(slic, cpo, simpo) at no law at all, and training ends where its updates do."
    )
    page.table(
        [
            "preset",
            "aims at",
            "shift over the tilt's",
            "shift across",
            "deviation, times the data's",
        ],
        rows,
    )
    page.figure("shifts", _figure(numbers), "The shift of the mean over the tilt's, by preset")
    return numbers


def _figure(numbers: dict[str, Any]) -> Any:
    """A bar a preset, its interval, and a mark where its loss aims."""
    figure, axes = subplots(size=(7, 0.26 * len(numbers) + 1), grid="x")
    for place, row in enumerate(numbers.values()):
        mean, low, high = row["share"]
        axes.barh(place, mean, color=COLOURS[0], xerr=[[mean - low], [high - mean]])
        if row["aim"] is not None:
            axes.plot(row["aim"], place, "d", color=COLOURS[1])
    axes.axvline(1, color=COLOURS[-1], linewidth=1)
    axes.set_yticks(range(len(numbers)), list(numbers))
    axes.invert_yaxis()
    axes.set_xlabel("shift of the mean over the tilt's (diamonds: what the loss aims at)")
    return figure
