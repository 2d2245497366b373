"""A store of the shipped miniature's pictures, to vote on at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scoretune.commands.studio.rounds import Note, first_round
from scoretune.data.store import Sample

if TYPE_CHECKING:
    from scoretune.data.store.store import Store

MODEL = "scenes"
PER_TASK = 2
PER_PROMPT = 3
GOLD = 6
"""Pairs with an agreed answer, at most."""
SURE = 0.5
"""How far the judge's two scores in [0, 1] must be apart for that."""


def fill(store: Store, note: Note) -> None:
    """Draw a few pictures of a few prompts with the shipped model, and pair them.

    Where the judge, the network that is never optimised, is sure of a pair, it is marked as gold.
    """
    import torch

    from scoretune.data.prompts import read_prompts
    from scoretune.data.scenes.world import shipped
    from scoretune.rewards import reader
    from scoretune.training.run_folder import load

    prompts = read_prompts("scenes").few(PER_TASK).texts
    judge = reader.Reading(reader.load(shipped(), "judge"))
    marked: set[str] = {pair.prompt for pair in store.pairs() if pair.gold is not None}

    def gold(first: Sample, second: Sample) -> Literal["first", "second"] | None:
        if len(marked) >= GOLD or first.prompt in marked:
            return None
        pixels = torch.stack([store.pixels(one.picture) for one in (first, second)])
        with torch.no_grad():
            one, other = judge(pixels, [first.prompt] * 2).tolist()
        if abs(one - other) < SURE:
            return None
        marked.add(first.prompt)
        return "first" if one > other else "second"

    torch.manual_seed(0)
    policy = load(Path(MODEL))
    first_round(store, policy, prompts, model=MODEL, per_prompt=PER_PROMPT, note=note, gold=gold)
