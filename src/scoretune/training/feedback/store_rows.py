"""What was said of a picture, and what an edit gains, as the store keeps it.

The pipeline and the studio write the same rows, so whatever reads one reads the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoretune.data.store import Sample
from scoretune.rewards.base import Reward, checked
from scoretune.training.feedback.filters import Verdict
from scoretune.training.feedback.records import Answer, Shown

if TYPE_CHECKING:
    from scoretune.data.store.store import Store


def shown(store: Store, sample: Sample) -> Shown:
    """A sample as the roles see it."""
    return Shown(sample.full_prompt, store.pixels(sample.picture))


def add_answer(store: Store, key: str, sample: int, who: str, answer: Answer[Any]) -> int:
    """Store what a critic or a writer said of a sample; the id of its row."""
    content = None if answer.content is None else answer.content.model_dump()
    return store.add_critique(
        key=key,
        sample=sample,
        critic=who,
        payload={"content": content, "attempts": answer.attempts},
        raw=answer.raw.replace("\x00", ""),
    )


@torch.no_grad()
def gains(
    reward: Reward, name: str, before: Tensor, after: Tensor, prompts: Sequence[str]
) -> list[float]:
    """How much more each edit is worth than its picture, by a reward of this name."""
    old = checked(reward, name, before, prompts)
    differences: list[float] = (checked(reward, name, after, prompts) - old).tolist()
    return differences


def verdict_row(
    verdict: Verdict, *, gain: float | None, second: float | None, distance: float
) -> dict[str, Any]:
    """A verdict with the numbers that it follows from, None for what was not measured."""
    return asdict(verdict) | {"gain": gain, "second": second, "distance": distance}
