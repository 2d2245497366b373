"""Pairs of the miniature's own pictures with the votes of simulated people, whose noise depends on
the prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce.base import Numbers
from scoretune.core.config import Ranking
from scoretune.core.files import write_whole
from scoretune.core.records import spans
from scoretune.data.images import pixels
from scoretune.data.prompts import order, read_prompts
from scoretune.data.scenes.world import shipped
from scoretune.data.store.picture_folder import as_png
from scoretune.diffusion.named import grid
from scoretune.policy import Policy
from scoretune.rewards import reader
from scoretune.rollout import prior, rollout
from scoretune.training.build import build_policy
from scoretune.training.sources.ranking import labels

PAIRS, RATERS = 2000, 3
AGREED, DISPUTED = 0.05, 1.0
"""The judge's score, which lies in [0, 1], that a rater barely sees, by the kind of prompt."""
BATCH = 50  # pairs that are drawn at once
SIDES = ("image_0", "image_1")
TIE = 0.01
"""Of the judge's score: below that two pictures are equally good."""


def vote(seed: int, count: int, folder: Path) -> Numbers:
    """Makes the pairs of a seed; how far votes agree with the judge, and what the pairs took."""
    where = labelled(folder, seed, count)
    numbers: Numbers = json.loads((where / "about.json").read_text(encoding="utf-8"))
    return numbers


def labelled(folder: Path, seed: int, count: int) -> Path:
    """A folder of `count` pairs of the base model's pictures with the raters' votes, kept below
    `folder`.

    Half of the prompts are disputed: a rater prefers one picture with probability σ(gap/τ), the gap
    in the judge's score, and τ is AGREED or DISPUTED.
    """
    where = folder / "pairs" / f"{seed}-{count}"
    if where.exists():
        return where
    part = where.with_name(f"{where.name}.{os.getpid()}")
    part.mkdir(parents=True)
    torch.manual_seed(seed)
    policy = build_policy(recipes.ddpo(), torch.device("cpu"))
    prompts = read_prompts("scenes", 200)
    places = [i for lap in range(-(-count // len(prompts))) for i in order(prompts, lap, seed)]
    disputed = set(order(prompts, 0, seed=0)[::2])
    generator = torch.Generator().manual_seed(seed)
    judge, rows = judge_of(), []
    agreeing: dict[float, list[float]] = {AGREED: [], DISPUTED: []}
    for span in spans(count, BATCH):
        which = places[:count][span]
        texts = [prompts.texts[i] for i in which]
        images = drawn(policy, [text for text in texts for _ in range(2)], generator)
        scores = judge(images, [text for text in texts for _ in range(2)]).view(-1, 2).double()
        for place, text in enumerate(texts):
            noise = DISPUTED if which[place] in disputed else AGREED
            gap = scores[place, 0] - scores[place, 1]
            ranking = Ranking(label="votes", temperature=noise, raters=RATERS)
            share, _ = labels(gap[None, None], ranking, generator)
            number, votes = span.start + place, round(float(share) * RATERS)
            files = [f"{number}-{side}.png" for side in range(2)]
            for side, file in enumerate(files):
                (part / file).write_bytes(as_png(images[2 * place + side]))
            rows.append(
                {"prompt": text, **dict(zip(SIDES, files, strict=True))}
                | {"votes_0": votes, "votes_1": RATERS - votes}
            )
            if abs(gap) > TIE:
                agreeing[noise].append(float(share if gap > 0 else 1 - share))
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (part / "pairs.jsonl").write_text(lines, encoding="utf-8")
    about = {
        "network_evaluations": policy.calls,
        "told apart": sum(map(len, agreeing.values())) / count,
        "agreed": _mean(agreeing[AGREED]),
        "disputed": _mean(agreeing[DISPUTED]),
    }
    (part / "about.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
    try:
        part.rename(where)
    except OSError:  # another process was quicker, with the same
        if not where.exists():
            raise
    return where


@torch.no_grad()
def judged(where: Path) -> Path:
    """A table of a folder's pairs by the judge's own labels, 1/2 where it does not tell two apart;
    it is kept beside the pairs."""
    table = where / "judged.jsonl"
    if table.exists():
        return table
    judge = judge_of()
    rows = [json.loads(line) for line in (where / "pairs.jsonl").read_text("utf-8").splitlines()]
    for span in spans(len(rows), BATCH):
        batch = rows[span]
        images = torch.stack([pixels(where / row[side]) for row in batch for side in SIDES])
        texts = [row["prompt"] for row in batch for _ in SIDES]
        scores = judge(images, texts).view(-1, 2).tolist()
        for row, (first, second) in zip(batch, scores, strict=True):
            apart = abs(first - second) > TIE
            row["label_0"] = float(first > second) if apart else 0.5
    columns = ("prompt", *SIDES, "label_0")
    lines = "".join(json.dumps({name: row[name] for name in columns}) + "\n" for row in rows)
    write_whole(table, lines)
    return table


@torch.no_grad()
def drawn(policy: Policy, texts: Sequence[str], generator: torch.Generator) -> Tensor:
    """Pictures by the policy's own kernel, as the recipes on rewards draw them."""
    times = grid(policy.backbone.process, recipes.ddpo().sampling)
    condition = policy.encode(texts)
    x = prior(policy, len(texts), generator)
    return policy.decode(rollout(policy, condition, times, generator, x).final)


def judge_of() -> reader.Reading:
    """The judge as a score on a log scale, in [0, 1]."""
    return reader.Reading(reader.load(shipped(), "judge"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)
