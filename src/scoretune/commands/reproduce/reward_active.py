"""Which pair to ask about next: votes that active choice and chance need for the same reward.

The miniature's own pictures, four a prompt; a rater with the judge's eyes and known noise; a reward
that is a weighted sum of what can be measured without the judge, learned from the votes alone.
"""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce.base import (
    Cell,
    Numbers,
    Page,
    by_arm,
    interval,
    kept_tensors,
    shown,
)
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.commands.reproduce.voted_pairs import drawn, judge_of
from scoretune.core.records import spans
from scoretune.data.prompts import order, read_prompts
from scoretune.data.scenes.world import shipped
from scoretune.preference import fit_votes, next_pairs
from scoretune.rewards import reader
from scoretune.training.build import build_policy

PROMPTS, EACH = 240, 4
TAU = 0.2
"""The difference of the judge's score, which lies in [0, 1], that a rater barely sees."""
FIRST, BATCH, MOST = 10, 10, 300
MEMBERS, RIDGE = 32, 1.0
HELD_OUT = 0.3
SEEN = 0.01  # of the judge's score: pairs that differ by less say nothing of agreement


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Both ways to choose, on every seed's split and votes."""
    count, most = (8, 20) if quick else (PROMPTS, MOST)
    return [
        Cell(
            f"{how}-{seed}",
            ask,
            {"active": how == "active", "seed": seed, "count": count, "most": most},
            keeps_files=True,
        )
        for seed in range(seeds)
        for how in ("active", "random")
    ]


def ask(active: bool, seed: int, count: int, most: int, folder: Path) -> Numbers:
    """Agreement with the judge on held-out prompts after every batch of votes."""
    tensors = kept_tensors(folder / f"pool-{count}.safetensors", lambda: _pool(count))
    worth, features = tensors["scores"].double(), _features(tensors["images"], count)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(count, generator=generator).tolist()
    out = max(1, int(HELD_OUT * count))
    pairs, held = _pairs(shuffled[out:]), _pairs(shuffled[:out])
    design = features[pairs[:, 0]] - features[pairs[:, 1]]
    gaps = worth[held[:, 0]] - worth[held[:, 1]]
    clear = gaps.abs() > SEEN
    votes = torch.zeros(len(pairs), 3)
    asked = torch.zeros(len(pairs), dtype=torch.bool)
    curve: list[float] = []
    scores = torch.zeros(2, len(features), dtype=torch.float64)
    while int(asked.sum()) < most:
        random = not active or not bool(asked.any())
        which = next_pairs(
            torch.zeros_like(scores) if random else scores,
            pairs,
            BATCH,
            seen=asked,
            generator=generator,
        )
        chance = torch.sigmoid((worth[pairs[which, 0]] - worth[pairs[which, 1]]) / TAU)
        first = torch.rand(len(which), generator=generator, dtype=torch.float64) < chance
        votes[which, 0], votes[which, 2] = first.float(), (~first).float()
        asked[which] = True
        fit = fit_votes(design[asked], votes[asked], model="bradley_terry", ridge=RIDGE)
        scores = fit.draw(MEMBERS, generator) @ features.T
        learned = (features[held[:, 0]] - features[held[:, 1]]) @ fit.estimates
        curve.append(float(((learned > 0) == (gaps > 0))[clear].double().mean()))
    return {"agreement": curve, "held_out": int(clear.sum())}


def _pool(count: int) -> dict[str, Tensor]:
    """Pictures in bytes and the judge's score of each."""
    torch.manual_seed(0)
    policy = build_policy(recipes.ddpo(), torch.device("cpu"))
    texts = _texts(count)
    generator = torch.Generator().manual_seed(0)
    images = torch.cat([drawn(policy, texts[s], generator) for s in spans(len(texts), 100)])
    judge = judge_of()
    scores = torch.cat([judge(images[s], texts[s]) for s in spans(len(texts), 100)])
    return {"images": (images.clamp(0, 1) * 255).round().byte().contiguous(), "scores": scores}


def _texts(count: int) -> list[str]:
    prompts = read_prompts("scenes", 200)
    which = order(prompts, 0, 0)[:count]
    return [prompts.texts[i] for i in which for _ in range(EACH)]


@torch.no_grad()
def _features(pixels: Tensor, count: int) -> Tensor:
    """What the reward is a weighted sum of, [m, 9], each of mean 0 and deviation 1: the reader's
    score and verdict, how sure it is of digits and colours, how many cells it finds empty, and
    brightness, contrast, redness and blueness."""
    images, texts = pixels.float() / 255, _texts(count)
    network = reader.load(shipped(), "reader")
    digits, colours = reader.log_beliefs(network(images))
    columns = [
        reader.Reading(network)(images, texts),
        reader.Reading(network, soft=False)(images, texts),
        digits.exp().amax(-1).mean(-1),
        colours.exp().amax(-1).mean(-1),
        digits[..., -1].exp().sum(-1),
        images.mean((1, 2, 3)),
        images.std((1, 2, 3)),
        (images[:, 0] - images[:, 1]).mean((1, 2)),
        (images[:, 2] - images[:, 1]).mean((1, 2)),
    ]
    table = torch.stack(columns, 1).double()
    return (table - table.mean(0)) / table.std(0).clamp(min=1e-9)


def _pairs(prompts: list[int]) -> Tensor:
    """All pairs of the pictures of some prompts."""
    return torch.tensor(
        [[EACH * p + i, EACH * p + j] for p in prompts for i, j in combinations(range(EACH), 2)]
    )


# ------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Curves of agreement, and the votes that either way needs for what chance ends with."""
    arms = {name: [run["agreement"] for run in runs] for name, runs in by_arm(results).items()}
    length = len(arms["random"][0])
    counts = [FIRST + BATCH * i for i in range(length)]
    means = {
        name: [sum(column) / len(column) for column in zip(*curves, strict=True)]
        for name, curves in arms.items()
    }
    page.text(ABOUT.format(seeds=len(arms["random"]), tau=TAU, features=9))
    rows = []
    for i in sorted({0, 1, 2, 4, 9, 14, 19, length - 1} & set(range(length))):
        spreads = [interval([curve[i] for curve in curves]) for curves in arms.values()]
        rows.append([str(counts[i]), *(shown(spread, 1, scale=100) for spread in spreads)])
    page.table(["votes", *(f"{name}, % agreement" for name in arms)], rows)
    needed = _needed(means, counts)
    page.table(
        ["agreement on average", "votes, active", "votes, random", "ratio"],
        [[f"{100 * n['target']:.1f} %", n["active"], n["random"], n["ratio"]] for n in needed],
    )
    page.figure("active", _figure(arms, counts), "agreement with the judge by number of votes")
    return {"votes": counts, "agreement": arms, "needed": needed}


def _needed(means: dict[str, list[float]], counts: list[int]) -> list[Numbers]:
    """The votes after which either mean curve stays at or above some shares of the way from its
    first point to where chance ends."""
    start, end = means["random"][0], means["random"][-1]
    rows = []
    for share in (0.5, 0.8, 0.95):
        target = start + share * (end - start)
        votes = {name: _first_to_stay(curve, counts, target) for name, curve in means.items()}
        active, random = votes["active"], votes["random"]
        ratio = None if active is None or random is None else round(active / random, 2)
        rows.append({"target": target, **votes, "ratio": ratio})
    return rows


def _first_to_stay(curve: list[float], counts: list[int], target: float) -> int | None:
    below = [i for i, value in enumerate(curve) if value < target]
    place = below[-1] + 1 if below else 0
    return counts[place] if place < len(counts) else None


def _figure(arms: dict[str, list[list[float]]], counts: list[int]) -> Any:
    figure, axes = subplots(size=(6, 3.6))
    for colour, (name, curves) in zip(COLOURS, arms.items(), strict=False):
        draw_band(axes, counts, curves, colour, name)
    axes.set_xlabel("votes")
    axes.set_ylabel("agreement with the judge")
    axes.legend(frameon=False)
    return figure


ABOUT = """
240 prompts of the shipped miniature with four pictures each; 30 % of the prompts are held out. A
rater prefers one of two pictures with probability σ(gap/{tau}), the gap in the judge's score. The
reward is a weighted sum of {features} measurements, none of them the judge's, fitted to the votes
by maximum likelihood with a ridge of 1; {seeds} seeds draw the split and the votes, and the
pictures are the same. `active` asks in batches of ten for the pairs of which 32 draws from the
fit's own Gaussian law disagree most (`preference.next_pairs`), `random` for any. Agreement is the
share of held-out pairs that reward and judge order alike, with 95 % intervals over seeds.
"""
