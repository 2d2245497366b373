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
    requests = [(prompt, seed) for prompt in prompts for seed in range(per_prompt)]
    drawn = _drawn(store, policy, requests, model=model, number=0, note=note)
    for prompt in dict.fromkeys(prompts):
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
    requests = [(prompt, number) for prompt in dict.fromkeys(prompts)]
    total, sides = len(policies) * len(requests), list[list[Sample]]()
    for place, (model, policy) in enumerate(policies):

        def further(done: int, _: int, before: int = place * len(requests)) -> None:
            note(before + done, total)

        sides.append(_drawn(store, policy, requests, model=model, number=number, note=further))
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
    requests: Sequence[tuple[str, int]],
    *,
    model: str,
    number: int,
    note: Note,
) -> list[Sample]:
    """The samples of prompts and seeds in a round, drawn where the store lacks them."""
    from scoretune.core.records import spans
    from scoretune.data.prompts import Prompts
    from scoretune.evaluate.samples import deployed_steps, deployed_times, sample

    steps = deployed_steps(policy.backbone)
    times = deployed_times(policy.backbone, steps)
    present = {one.key: one for one in store.samples(round=number)}
    made: list[Sample] = []
    note(0, len(requests))
    for span in spans(len(requests), BATCH):
        keys = [f"{model}/{number}/{seed}/{prompt}" for prompt, seed in requests[span]]
        if not all(key in present for key in keys):
            texts = tuple(prompt for prompt, _ in requests[span])
            noise = 1_000_003 * number + span.start
            prompts = Prompts(texts, ("all",) * len(texts))
            images = sample(policy, prompts, times=times, seed=noise)
            for (prompt, seed), key, image in zip(requests[span], keys, images, strict=True):
                present[key] = store.add_sample(
                    prompt=prompt,
                    picture=store.add_picture(image),
                    model=model,
                    seed=noise,
                    settings={"solver": "ddim", "steps": steps, "place": seed},
                    round=number,
                    key=key,
                )
        made += [present[key] for key in keys]
        note(len(made), len(requests))
    return made


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
