"""Whether active choice of pairs saves votes, with a rater of known noise and the same reward.

The miniature's own pictures; a rater with the judge's eyes and known noise; a reward that is a
weighted sum of what the reader sees of the prompt's parts, learned from the votes alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
from scoretune.commands.reproduce.voted_pairs import TIE, judge_of, labelled
from scoretune.core.records import spans
from scoretune.data.pairs import read_pairs
from scoretune.data.scenes.world import COLOURS as INKS
from scoretune.data.scenes.world import EMPTY, RELATIONS, Ask, asks_by_text, shipped
from scoretune.preference import fit_votes, next_pairs
from scoretune.rewards import reader

PAIRS, OFFERED = 2000, 1000
"""Pairs that are made, and the first of them, which are used here."""
TAU = 0.2
"""The difference of the judge's score, which lies in [0, 1], that a rater barely sees."""
BATCH, MOST, REPEATS = 10, 300, 2
MEMBERS, RIDGE = 32, 1.0
HELD_OUT = 0.2
SHARE = 0.95
"""Of the agreement that random choice reaches with all votes: what every way has to reach."""
ARMS = ("random", "information", "variance", "closest")


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Every way to choose, on every seed's pairs, split and votes."""
    pairs, most, repeats = (24, 20, 1) if quick else (PAIRS, MOST, REPEATS)
    return [
        Cell(
            f"{arm}-{seed}",
            ask,
            {"arm": arm, "seed": seed, "pairs": pairs, "most": most, "repeats": repeats},
            keeps_files=True,
        )
        for seed in range(seeds)
        for arm in ARMS
    ]


def ask(arm: str, seed: int, pairs: int, most: int, repeats: int, folder: Path) -> Numbers:
    """Agreement with the judge on held-out prompts after every batch of votes, the mean over
    `repeats` splits and draws of the votes."""
    pool = kept_tensors(
        folder / f"pool-{seed}-{pairs}.safetensors",
        lambda: _pool(labelled(folder.parent, seed, pairs), min(pairs, OFFERED)),
    )
    curves = [_curve(arm, pool, most, seed * repeats + repeat) for repeat in range(repeats)]
    return {"agreement": torch.tensor(curves).mean(0).tolist()}


def _curve(arm: str, pool: dict[str, Tensor], most: int, seed: int) -> list[float]:
    """Agreement on one split by the prompts, after every batch of one draw of the votes."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.rand(int(pool["prompt"].max()) + 1, generator=generator) < HELD_OUT
    held_out = prompts[pool["prompt"]]
    design, gaps = pool["features"].double(), pool["gaps"].double()
    test, train = design[held_out], design[~held_out]
    clear = gaps[held_out].abs() > TIE
    votes = _votes(gaps[~held_out], generator)
    asked = torch.zeros(len(train), dtype=torch.bool)
    members = torch.zeros(MEMBERS, len(train), dtype=torch.float64)
    curve: list[float] = []
    while int(asked.sum()) < min(most, len(train)):
        asked[CHOICES[arm](members, asked, generator)] = True
        fit = fit_votes(train[asked], votes[asked], model="bradley_terry", ridge=RIDGE)
        members = fit.draw(MEMBERS, generator) @ train.T
        agrees = (test @ fit.estimates > 0) == (gaps[held_out] > 0)
        curve.append(float(agrees[clear].double().mean()))
    return curve


def _votes(gaps: Tensor, generator: torch.Generator) -> Tensor:
    """One vote on each pair, [n, 3], for the first with probability σ(gap/TAU)."""
    uniform = torch.rand(len(gaps), generator=generator, dtype=torch.float64)
    first = uniform < torch.sigmoid(gaps / TAU)
    return torch.stack([first, torch.zeros_like(first), ~first], 1).float()


Choice = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""(the members' gaps [K, n], which pairs were asked about [n], a generator) -> places of the
next."""


def _by_information(members: Tensor, asked: Tensor, generator: torch.Generator) -> Tensor:
    """As `next_pairs` chooses, of pairs without a common thing."""
    count = len(asked)
    scores = torch.cat([members, torch.zeros_like(members)], 1)
    pairs = torch.stack([torch.arange(count), count + torch.arange(count)], 1)
    return next_pairs(scores, pairs, BATCH, seen=asked, generator=generator)


def _largest(value: Callable[[Tensor], Tensor]) -> Choice:
    def choose(members: Tensor, asked: Tensor, generator: torch.Generator) -> Tensor:
        shuffled = torch.randperm(len(asked), generator=generator)
        free = shuffled[~asked[shuffled]]
        return free[value(members[:, free]).argsort(descending=True, stable=True)[:BATCH]]

    return choose


CHOICES: dict[str, Choice] = {
    "random": _largest(lambda members: torch.zeros(members.shape[1])),
    "information": _by_information,
    "variance": _largest(lambda members: members.var(0)),
    "closest": _largest(lambda members: -(torch.sigmoid(members).mean(0) - 0.5).abs()),
}


def _pool(where: Path, count: int) -> dict[str, Tensor]:
    """Of each of the first pairs its prompt's number, the judge's gap, and the gap of the features
    [32], which have mean 0 and deviation 1 over all pictures."""
    table = read_pairs(str(where))
    captions = table.captions[:count]
    images = torch.stack(table.load(range(count)), 1).flatten(0, 1)
    texts = [text for text in captions for _ in range(2)]
    number_of = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    judge = judge_of()
    with torch.no_grad():
        chunks = [(images[s], texts[s]) for s in spans(len(texts), 200)]
        scores = torch.cat([judge(*chunk) for chunk in chunks])
        features = torch.cat([_features(*chunk) for chunk in chunks])
    features = (features - features.mean(0)) / features.std(0).clamp(min=1e-9)
    return {
        "prompt": torch.tensor([number_of[text] for text in captions]),
        "gaps": scores[::2] - scores[1::2],
        "features": features[::2] - features[1::2],
    }


def _features(images: Tensor, texts: list[str]) -> Tensor:
    """What the reader sees, by the prompt's parts, [B, 32]: of every digit how much there is where
    it is asked for (10) and where it is not (10); of every colour how much of the digits that are
    asked for in it (4); of every relation how far it holds (4); how many digits are too many or
    missing, how sure the reader is, brightness and contrast."""
    digits, inks = (p.exp() for p in reader.log_beliefs(reader.load(shipped(), "reader")(images)))
    asks = [asks_by_text()[text] for text in texts]
    wanted = torch.tensor([[sum(i.digit == d for i in a.items) for d in range(10)] for a in asks])
    amounts = digits[..., :EMPTY].sum(1)
    as_wanted = torch.minimum(amounts, wanted.float())
    parts = torch.stack([_parts(ask, digits[b], inks[b]) for b, ask in enumerate(asks)])
    overall = torch.stack(
        [
            (amounts.sum(1) - wanted.sum(1)).abs(),
            digits.amax(-1).mean(-1),
            images.mean((1, 2, 3)),
            images.std((1, 2, 3)),
        ],
        1,
    )
    return torch.cat([as_wanted, amounts * (wanted == 0), parts, overall], 1)


def _parts(ask: Ask, digits: Tensor, inks: Tensor) -> Tensor:
    """Colours and relations that a prompt asks for, [8], by probabilities [4, 11] and [4, 4]."""
    parts = torch.zeros(len(INKS) + len(RELATIONS))
    for item in ask.items:
        if item.colour is not None:
            parts[item.colour] += (digits[:, item.digit] * inks[:, item.colour]).sum()
    if ask.relation is not None:
        first, second = (digits[:, item.digit] for item in ask.items)
        for one, other in ask.placements():
            parts[len(INKS) + ask.relation] += first[one] * second[other]
    return parts


# ------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Curves of agreement, and the votes that every way needs."""
    arms = {name: [run["agreement"] for run in runs] for name, runs in by_arm(results).items()}
    length = len(arms["random"][0])
    counts = [BATCH * (i + 1) for i in range(length)]
    page.text(ABOUT.format(seeds=len(arms["random"]), pairs=OFFERED, tau=TAU, repeats=REPEATS))
    rows = []
    for i in sorted({0, 1, 2, 4, 9, 14, 19, length - 1} & set(range(length))):
        spreads = [interval([curve[i] for curve in curves]) for curves in arms.values()]
        rows.append([str(counts[i]), *(shown(spread, 1, scale=100) for spread in spreads)])
    page.table(["votes", *(f"{name}, % agreement" for name in arms)], rows)
    targets = [SHARE * curve[-1] for curve in arms["random"]]
    needed = {name: _needed(curves, targets, counts) for name, curves in arms.items()}
    ratios = {name: _ratio(votes, needed["random"]) for name, votes in needed.items()}
    page.text(
        f"Votes until a curve is at {SHARE:.0%} of random choice's last agreement for good, seed "
        f"by seed (a target of {shown(interval(targets), 1, scale=100)} %), and their ratio to "
        "those of random choice: the geometric mean, with its interval."
    )
    page.table(
        ["choice", "votes", "ratio"],
        [
            [name, shown(interval(votes), 0), shown(ratios[name], 2)]
            for name, votes in needed.items()
        ],
    )
    page.figure("active", _figure(arms, counts), "agreement with the judge by number of votes")
    return {"votes": counts, "agreement": arms, "needed": needed, "ratios": ratios}


def _needed(curves: list[list[float]], targets: list[float], counts: list[int]) -> list[int]:
    """The votes from which on each curve stays at or above its target; all, where it never does."""
    votes = []
    for curve, target in zip(curves, targets, strict=True):
        below = [i for i, value in enumerate(curve) if value < target]
        votes.append(counts[min(below[-1] + 1, len(counts) - 1)] if below else counts[0])
    return votes


def _ratio(votes: list[int], others: list[int]) -> tuple[float, ...]:
    """The geometric mean of ratios, and its 95 % interval."""
    logs = [math.log(a / b) for a, b in zip(votes, others, strict=True)]
    return tuple(map(math.exp, interval(logs)))


def _figure(arms: dict[str, list[list[float]]], counts: list[int]) -> Any:
    figure, axes = subplots(size=(6, 3.6))
    for colour, (name, curves) in zip(COLOURS, arms.items(), strict=False):
        draw_band(axes, counts, curves, colour, name)
    axes.set_xlabel("votes")
    axes.set_ylabel("agreement with the judge")
    axes.legend(frameon=False)
    return figure


ABOUT = """
{pairs:,} pairs of the shipped miniature's pictures a seed, {seeds} seeds; a fifth of the prompts is
held out. A rater prefers one of two pictures with probability σ(gap/{tau}), the gap in the judge's
score, and is asked once about a pair. The reward is a weighted sum of 32 features, the parts of
what the reader sees (digits, colours and relations that were asked for or not), without its score
and without anything of the judge's; after every ten votes it is fitted anew to all of them by
maximum likelihood with a ridge of 1. All ways have the same pairs, answers and fits: `random` asks
about any pair, `information` about those whose answer says most about which of 32 draws from the
fit's own Gaussian law is right (`preference.next_pairs`), `variance` where the draws' gaps vary
most, `closest` where the probability is closest to one half. Agreement is the share of held-out
pairs that reward and judge order alike, of those that the judge tells apart, the mean of {repeats}
splits and draws of the answers; intervals are 95 % over seeds.
"""
