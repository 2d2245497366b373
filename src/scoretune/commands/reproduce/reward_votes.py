"""`train reward` on the miniature's own pictures: how much it learns from how many votes, and
whether its scores are on the scale of the votes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, draw_band, subplots
from scoretune.commands.reproduce.voted_pairs import RATERS, TIE, judge_of, labelled
from scoretune.core.records import spans
from scoretune.data.pairs import PairTable, read_pairs
from scoretune.data.prompts import order, read_prompts
from scoretune.data.scenes.world import shipped
from scoretune.preference import expected_calibration_error, fit_scale
from scoretune.rewards import reader
from scoretune.rewards.reward_model import RewardModel
from scoretune.training.reward_model import settings as settings_of
from scoretune.training.reward_model.run import train_reward

PAIRS, OUTSIDE, MEASURED = 2000, 0.2, 250
"""Pairs of a seed, the share of the prompts whose pairs nobody trains on, and how many of these are
measured."""
SIZES = (300, 1000)
TAU, CLOSE = 0.2, 600
"""The noise of the raters of the scale, in the judge's or reader's score, and their pairs."""


def cells(seeds: int, quick: bool) -> list[Cell]:
    """For every seed: votes of the mixed raters on two numbers of pairs, then of those of one noise
    who see by the reader or by the judge."""
    arms = [("mixed", size) for size in SIZES] + [("reader", CLOSE), ("judge", CLOSE)]
    if quick:
        arms = [("mixed", 10), ("judge", 15)]
    return [
        Cell(
            f"{eyes}-{count}-{seed}",
            learned,
            {"eyes": eyes, "count": count, "seed": seed, "pairs": 24 if quick else PAIRS}
            | {"changes": ["updates=2", "members=2"] if quick else []},
            keeps_files=True,
        )
        for seed in range(seeds)
        for eyes, count in arms
    ]


def learned(
    eyes: str, count: int, seed: int, pairs: int, changes: list[str], folder: Path
) -> Numbers:
    """A reward model from the votes on `count` pairs, measured on prompts without votes."""
    where = labelled(folder.parent, seed, pairs)
    table = read_pairs(str(where))
    prompts = read_prompts("scenes", 200)
    places = order(prompts, 0, seed + 1000)
    unseen = {prompts.texts[i] for i in places[: int(OUTSIDE * len(places))]}
    inside = [i for i, text in enumerate(table.captions) if text not in unseen][:count]
    outside = [i for i, text in enumerate(table.captions) if text in unseen][:MEASURED]
    votes = _votes(where, inside, table, eyes, seed)
    file = folder / "votes" / f"{eyes}-{count}-{seed}.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in votes), encoding="utf-8")
    settings = settings_of.read([f"data={file}", f"seed={seed}", *changes])
    run = folder / "runs" / file.stem
    result = train_reward(settings, run, lambda *_: None)
    numbers = _outside(RewardModel(str(run)), table, outside, eyes)
    numbers |= {name: result[name] for name in ("features", "seconds")} | result["held_out"]
    return numbers


def _votes(
    where: Path, places: list[int], table: PairTable, eyes: str, seed: int
) -> list[dict[str, Any]]:
    """Rows of the pairs in these places, with their mixed raters' votes or fresh ones by
    σ(gap/TAU)."""
    rows = [json.loads(line) for line in (where / "pairs.jsonl").read_text("utf-8").splitlines()]
    rows = [rows[i] for i in places]
    for row in rows:
        row |= {side: str((where / row[side]).resolve()) for side in ("image_0", "image_1")}
    if eyes == "mixed":
        return rows
    chance = torch.sigmoid(_Pairs.of(table, places).gaps(eyes) / TAU)
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(len(rows), RATERS, generator=generator, dtype=torch.float64)
    first = (uniform < chance[:, None]).sum(1).tolist()
    return [row | {"votes_0": n, "votes_1": RATERS - n} for row, n in zip(rows, first, strict=True)]


@dataclass(frozen=True)
class _Pairs:
    """Some pairs: their pictures [n, 2, 3, H, W] and prompts."""

    images: Tensor
    texts: list[str]

    @classmethod
    def of(cls, table: PairTable, places: list[int]) -> _Pairs:
        return cls(torch.stack(table.load(places), 1), [table.captions[i] for i in places])

    @torch.no_grad()
    def scores(self, reward: Any) -> Tensor:
        """[..., n, 2] of a reward of pictures and prompts [...]."""
        images = self.images.flatten(0, 1)
        texts = [text for text in self.texts for _ in range(2)]
        chunks = [reward(images[s], texts[s]) for s in spans(len(texts), 200)]
        scores: Tensor = torch.cat(chunks, -1).double().unflatten(-1, (-1, 2))
        return scores

    def gaps(self, eyes: str) -> Tensor:
        """The first's score less the second's, by the judge or by the reader, [n]."""
        by_reader = eyes == "reader"
        score = reader.Reading(reader.load(shipped(), "reader")) if by_reader else judge_of()
        scores = self.scores(score)
        return scores[:, 0] - scores[:, 1]


def _outside(reward: RewardModel, table: PairTable, places: list[int], eyes: str) -> Numbers:
    """On pairs of other prompts: agreement with votes and with the judge; and for raters of one
    noise the recovered scale, the error of the probabilities, and whether the ensemble knows where
    it errs."""
    pairs = _Pairs.of(table, places)
    scores = pairs.scores(reward.members)
    members = scores[..., 0] - scores[..., 1]
    gaps, judge = members.mean(0), pairs.gaps("judge")
    clear = judge.abs() > TIE
    sides = table.counts()[torch.tensor(places)][:, [0, 2]].double()
    numbers: Numbers = {
        "pairs_outside": len(places),
        "clear": int(clear.sum()),
        "judge_agrees": _share((gaps > 0) == (judge > 0), clear),
        "votes_agree": _with_votes(gaps, sides),
        "judge_with_votes": _with_votes(judge, sides),
    }
    if eyes == "mixed":
        return numbers
    truth = pairs.gaps(eyes) / TAU
    error, doubt = (gaps - truth).abs(), members.std(0)
    right, sure = (gaps > 0) == (truth > 0), gaps.abs() / doubt.clamp(min=1e-9)
    apart = truth.abs() > TIE / TAU
    median = sure[apart].median()
    law = torch.sigmoid(truth)
    shares = torch.stack([law, torch.zeros_like(law), 1 - law], 1)
    return numbers | {
        "scale": float((gaps * truth).sum() / truth.square().sum()),
        "true_factor": float(fit_scale(gaps, shares, model="bradley_terry").estimates),
        "calibration_outside": expected_calibration_error(torch.sigmoid(gaps), law),
        "probability_error": float((torch.sigmoid(gaps) - law).abs().mean()),
        "doubt_and_error": _rank_correlation(doubt, error),
        "right_where_sure": _share(right, apart & (sure > median)),
        "right_where_unsure": _share(right, apart & (sure <= median)),
    }


def _with_votes(gaps: Tensor, sides: Tensor) -> float:
    """The share of votes that are for the side of the larger score."""
    right = torch.where(gaps > 0, sides[:, 0], sides[:, 1])
    return float(right.sum() / sides.sum())


def _share(right: Tensor, of: Tensor) -> float:
    return float(right[of].double().mean()) if bool(of.any()) else 0.0


def _rank_correlation(first: Tensor, second: Tensor) -> float:
    """Spearman's; of distinct numbers."""
    ranks = torch.stack([part.argsort().argsort().double() for part in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1].nan_to_num())


# ------------------------------------------------------------------------------ the page


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """What is learned from how many pairs; the scale of raters of known noise."""
    arms = by_arm(results)
    page.text(ABOUT.format(pairs=PAIRS, outside=f"{OUTSIDE:.0%}", raters=RATERS, tau=TAU))
    numbers: Numbers = {
        arm: {name: interval([float(run[name]) for run in runs]) for name in _common(runs)}
        for arm, runs in arms.items()
    }
    mixed = {arm: numbers[arm] for arm in arms if arm.startswith("mixed")}
    page.table(
        ["pairs", *LEARNED.values()],
        [
            [arm.rpartition("-")[2], *(shown(spreads[name], 1, scale=100) for name in LEARNED)]
            for arm, spreads in mixed.items()
        ],
    )
    page.text(SCALE.format(tau=TAU, raters=RATERS))
    scale = {arm: spreads for arm, spreads in numbers.items() if arm not in mixed}
    page.table(
        ["", *(f"raters with the {arm.partition('-')[0]}'s eyes" for arm in scale)],
        [
            [text, *(shown(spreads[name]) for spreads in scale.values())]
            for name, text in SCALES.items()
        ],
    )
    page.figure("learning", _figure(arms), "agreement with the judge by number of pairs")
    return {"arms": numbers}


def _common(runs: list[Numbers]) -> list[str]:
    """The numbers that all runs have."""
    return [name for name in runs[0] if all(isinstance(run.get(name), int | float) for run in runs)]


def _figure(arms: dict[str, list[Numbers]]) -> Any:
    figure, axes = subplots(size=(5, 3.4))
    mixed = {arm: runs for arm, runs in arms.items() if arm.startswith("mixed")}
    sizes = [int(arm.rpartition("-")[2]) for arm in mixed]
    for colour, name in zip(COLOURS, ("judge_agrees", "votes_agree"), strict=False):
        curves = [[run[name] for run in of_seed] for of_seed in zip(*mixed.values(), strict=True)]
        draw_band(axes, sizes, curves, colour, LEARNED[name])
    axes.set_xlabel("pairs with votes")
    axes.legend(frameon=False)
    return figure


LEARNED = {
    "judge_agrees": "% of pairs that it orders as the judge does",
    "votes_agree": "% of votes that it agrees with",
    "judge_with_votes": "% of votes that the judge agrees with",
    "raters": "% of votes that another rater of the pair agrees with",
}
SCALES = {
    "scale": "learned gap over true gap, by least squares",
    "true_factor": "factor by which the true probabilities would have the scores",
    "factor": "factor by which held-out votes would have them",
    "calibration_outside": "expected calibration error, true probabilities",
    "probability_error": "mean error of a probability",
    "judge_agrees": "share of pairs that it orders as the judge does",
    "doubt_and_error": "rank correlation of the members' deviation and the error",
    "right_where_sure": "right where the members agree most (half of the pairs)",
    "right_where_unsure": "right where they agree least",
}
ABOUT = """
`scoretune train reward data=PAIRS` with the settings that it has by itself (features=auto, which
takes what the shipped reader sees), on pairs of the shipped miniature's pictures. A seed has
{pairs} pairs and {raters} votes on each, with the judge's score and noise: half of the prompts are
disputed. The pairs of {outside} of the prompts are never trained on, and all shares are of these.
Below, pairs that the judge holds equal (more than half) are left out where the reward is compared
with it; in shares of votes they count, and nobody could say more of them than a coin. Intervals are
95 % over seeds.
"""
SCALE = """
Raters of one noise: each of {raters} prefers the first with probability σ(gap/{tau}), the gap in
the reader's or the judge's score. The true gap is that gap over {tau}. A learned gap over the
true one of 1 is the right scale. Raters with the judge's eyes see what the features do not: what
of their scale the votes cannot show through these features is missing from it. Whether the
probabilities are true nevertheless is said by the factor by which the true ones would have the
scores, and less surely, since votes are few, by that of held-out votes.
"""
