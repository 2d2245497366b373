"""What the miniature learns from a few hundred votes of one simulated rater, by the studio's own
ballots, store and words of training.

    python benchmarks/studio_learning.py --seed 11 --votes 300 --next votes
    python benchmarks/studio_learning.py --seed 11 --by reward

The rater sees with the judge's eyes: the first picture is better with probability σ(gap/τ) of the
judge's score, which lies in [0, 1]. Judge accuracy on held-out prompts is before and after
`scoretune train dpo data=STORE`, or by `reward` after `scoretune train reward data=STORE` and
`scoretune train score_as_action reward=` what that made, in its 28 updates.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from scoretune.commands.studio.ballots import Ballots
from scoretune.commands.studio.choosing import Choosing
from scoretune.commands.studio.keys import Keys
from scoretune.commands.studio.pages.rounds import MINIATURE
from scoretune.commands.studio.rounds import first_round
from scoretune.data.prompts import order, read_prompts
from scoretune.data.scenes.world import shipped
from scoretune.data.store import open_store
from scoretune.data.store.store import Store
from scoretune.rewards import reader
from scoretune.training.run_folder import load

PROMPTS, EACH = 100, 4
TAU = 0.2
"""The gap of the judge's score that the rater barely sees."""
SCORE_AS_ACTION = 28
"""Its updates, those of the demo."""
BATCH = 10
"""Votes after which the order of the pairs is made anew."""


def drawn(store: Store, seed: int) -> None:
    """Pictures of training prompts, paired each with each."""
    torch.manual_seed(seed)
    prompts = read_prompts("scenes")
    texts = [prompts.texts[place] for place in order(prompts, 0, seed)[:PROMPTS]]
    first_round(
        store,
        load(Path("scenes")),
        texts,
        model="scenes",
        per_prompt=EACH,
        note=lambda done, total: print(f"pictures {done}/{total}", file=sys.stderr, flush=True),
    )


def voted(store: Store, seed: int, votes: int, how: str) -> float:
    """So many votes, each through a ballot; the share that agrees with the judge."""
    judge = reader.Reading(reader.load(shipped(), "judge"))
    with torch.no_grad():
        worth = {
            one.id: float(judge(store.pixels(one.picture)[None], [one.prompt]))
            for one in store.samples()
        }
    rng, choosing = random.Random(seed), Choosing(store, how)
    ballots = Ballots(store, Keys(b"k" * 32, "t" * 20), lambda: choosing.current, rng)
    rater = store.add_rater("simulated", kind="simulated")[0].id
    right = 0
    for number in range(votes):
        if number % BATCH == 0:
            choosing.look()
        ballot = ballots.current(rater)
        if ballot is None:
            raise SystemExit(f"there are only {number} pairs to vote on")
        first, second = worth[ballot.pair.first], worth[ballot.pair.second]
        better = rng.random() < 1 / (1 + math.exp(-(first - second) / TAU))
        right += better == (first > second)
        ballots.vote(
            rater, ballot.text, "left" if better == (ballot.left == "first") else "right", 1
        )
    return right / votes


def train(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "scoretune", "train", *words], check=True, stdout=subprocess.DEVNULL
    )


def tuned(folder: Path, seed: int, by: str, updates: int) -> list[dict[str, float]]:
    """Judge accuracy on held-out prompts, with its interval, before and after the training that
    the studio starts, or after learning from a reward that learned from the votes."""
    data, run, reward = f"data={folder / 'store'}", folder / "run", folder / "reward"
    words = [f"seed={seed}", "evaluation.per_task=30", "guard.action=off", "--run", str(run)]
    if by == "dpo":
        every = (f"updates={updates}", f"evaluation.every={updates}")
        train("dpo", data, "model.source=scenes", *MINIATURE, *every, *words)
    else:
        train("reward", data, f"seed={seed}", "--run", str(reward))
        every = (f"updates={SCORE_AS_ACTION}", f"evaluation.every={SCORE_AS_ACTION}")
        train("score_as_action", "model.source=scenes", f"reward={reward}", *every, *words)
    lines = (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    judged = (json.loads(line)["judge"] for line in (lines[0], lines[-1]))
    return [{name: one[name] for name in ("overall", "low", "high")} for one in judged]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--next", dest="how", default="votes", help="random or votes")
    parser.add_argument("--by", choices=("dpo", "reward"), default="dpo")
    parser.add_argument("--updates", type=int, default=150, help="of dpo")
    parser.add_argument("--folder", type=Path, help="kept and gone on with; else forgotten")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        store = open_store(str(folder / "store"), create=True)
        drawn(store, given.seed)
        agreement = voted(store, given.seed, given.votes, given.how)
        before, after = tuned(folder, given.seed, given.by, given.updates)
    numbers = {"votes": given.votes, "next": given.how, "by": given.by}
    numbers["agree_with_judge"] = agreement
    gain = after["overall"] - before["overall"]
    print(json.dumps(numbers | {"before": before, "after": after, "gain": gain}))


if __name__ == "__main__":
    main()
