"""The rounds of a studio: samples of a model to vote on; after training, the tuned model's against
the old one's, from the same noise.

As a program (`python -m scoretune.commands.studio.rounds`) it trains on a store's votes and draws
the next round: what the studio starts beside itself, so that it answers while a model learns.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scoretune.data.store import Sample, open_store

if TYPE_CHECKING:
    from scoretune.data.store.store import Store
    from scoretune.policy import Policy

BATCH = 16
"""Pictures that are drawn between two notes of progress."""

Note = Callable[[int, int], None]
Answer = Callable[[Sample, Sample], Literal["first", "second"] | None]


def first_round(
    store: Store,
    policy: Policy,
    prompts: Sequence[str],
    *,
    model: str,
    per_prompt: int,
    note: Note,
    gold: Answer | None = None,
) -> None:
    """Draw `per_prompt` samples of every prompt and pair them, each with each.

    What the store has already is not drawn again, so a round that was cut off goes on. `gold` says
    of two samples which is better, where that is beyond doubt.
    """
    several = list(dict.fromkeys(prompts))
    drawn = _drawn(store, policy, several, model=model, number=0, per_prompt=per_prompt, note=note)
    for prompt in several:
        same = [sample for sample in drawn if sample.prompt == prompt]
        for first, second in combinations(same, 2):
            answer = None if gold is None else gold(first, second)
            store.add_pair(first.id, second.id, gold=answer)


def next_round(
    store: Store,
    policies: Sequence[tuple[str, Policy]],
    prompts: Sequence[str],
    *,
    number: int,
    note: Note,
) -> int:
    """Draw one sample of each prompt from two models, the old and the tuned one, from one noise,
    and pair them; how many pairs are to be voted on."""
    several, sides = list(dict.fromkeys(prompts)), list[list[Sample]]()
    total = len(policies) * len(several)
    for place, (model, policy) in enumerate(policies):

        def further(done: int, _: int, before: int = place * len(several)) -> None:
            note(before + done, total)

        sides.append(
            _drawn(store, policy, several, model=model, number=number, per_prompt=1, note=further)
        )
    pairs = [(a, b) for a, b in zip(*sides, strict=True) if a.picture != b.picture]
    for old, new in pairs:
        store.add_pair(old.id, new.id)
    return len(pairs)


def latest(store: Store) -> int:
    """The number of the last round of a store."""
    return max((sample.round for sample in store.samples()), default=0)


def _drawn(
    store: Store,
    policy: Policy,
    prompts: Sequence[str],
    *,
    model: str,
    number: int,
    per_prompt: int,
    note: Note,
) -> list[Sample]:
    """The samples of prompts in a round, drawn where the store lacks them; two models begin with
    the same noise."""
    from scoretune.commands.feedback.collect import Artist, Drawing, collect, digest
    from scoretune.evaluate.samples import deployed_steps

    how = Drawing(per_prompt=per_prompt, batch=BATCH, round=number)
    artist = Artist(policy, model, digest(policy), deployed_steps(policy.backbone), how)
    collect(store, artist, prompts, note)
    present = {sample.key: sample for sample in store.samples(round=number)}
    return [present[artist.key(text, place)] for text in prompts for place in range(per_prompt)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train by `scoretune train`; then draw the next round of the tuned model and the old one,
    unless what was trained is a reward."""
    parser = argparse.ArgumentParser(prog="rounds")
    parser.add_argument("store")
    parser.add_argument("old")
    parser.add_argument("run", type=Path)
    parser.add_argument("words", nargs="+")
    given = parser.parse_args(arguments)
    code = subprocess.call(
        [sys.executable, "-m", "scoretune", "train", *given.words, "--run", str(given.run)]
    )
    if code or not (given.run / "result.json").exists():
        print("the training was stopped or failed: there is nothing new", flush=True)
        return code
    if given.words[0] == "reward":
        print("a reward is trained: it can choose the next pairs, and rank for online_dpo")
        return 0
    from scoretune.training.run_folder import load

    store = open_store(given.store)
    policies = [(str(model), load(model)) for model in (given.old, given.run)]

    def note(done: int, total: int) -> None:
        print(f"new pictures {done}/{total}", flush=True)

    prompts = store.prompts()
    count = next_round(store, policies, prompts, number=latest(store) + 1, note=note)
    print(f"{count} new pairs: the tuned model against the one before", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
