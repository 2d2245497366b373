"""Several rewards as one: `reader + 0.5*compressibility - 0.1*my_module:function`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.batches import Scores
from scoretune.errors import UserError
from scoretune.rewards.base import Reward, checked

_NUMBER = r"[+-]?\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_EXAMPLE = "write a sum like 'reader + 0.5*compressibility - 0.1*my_module:function'"


@dataclass(frozen=True)
class Part:
    """One reward of a sum."""

    name: str
    weight: float
    reward: Reward


@dataclass(frozen=True)
class Weighted:
    """Σ wᵢ rᵢ(images, prompts), [B]: a reward made of others.

    It has a gradient where all of its parts have one. With one that has none the sum is cut off
    from the images: the gradient of the rest is the gradient of something else.
    """

    parts: tuple[Part, ...]

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        values = list(self.each(images, prompts).values())
        total = torch.stack(values).sum(0)
        return total if all(value.requires_grad for value in values) else total.detach()

    def each(self, images: Tensor, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The weighted parts wᵢ rᵢ by name, [B] each."""
        return {
            part.name: part.weight * checked(part.reward, part.name, images, prompts)
            for part in self.parts
        }

    @property
    def weights(self) -> dict[str, float]:
        """The weights by name."""
        return {part.name: part.weight for part in self.parts}


def scored(reward: Reward, name: str, images: Tensor, prompts: Sequence[str]) -> Scores:
    """What the samples are worth, and what each part of a sum adds to that."""
    if not isinstance(reward, Weighted):
        return Scores(checked(reward, name, images, prompts), tuple(prompts))
    parts = reward.each(images, prompts)
    return Scores(torch.stack(list(parts.values())).sum(0), tuple(prompts), parts)


def terms(text: str, known: Collection[str]) -> list[tuple[float, str]]:
    """The weights and names of a sum; of a single name, whatever it is, 1 and that name.

    A hyphen glued into the folder or module of `module:function` belongs to it, unless it follows
    one of the `known` names, which have none. UserError for what cannot be read.
    """
    if not re.search(r"[-+*\s]", text):
        return [(1.0, text)]
    found: list[tuple[float, str]] = []
    place, term = 0, _term(known)
    text = text.strip()
    while place < len(text):
        match = term.match(text, place)
        if match is None or not (match["sign"] or place == 0):
            raise UserError(f"cannot read the reward {text!r} from {text[place:]!r} on: {_EXAMPLE}")
        weight = float(re.sub(r"\s", "", match["weight"] or "1"))
        weight = -weight if match["sign"] == "-" else weight
        _check(weight, match["name"], [name for _, name in found])
        found.append((weight, match["name"]))
        place = match.end()
    return found or [(1.0, text)]


def _term(known: Collection[str]) -> re.Pattern[str]:
    """`± weight * name`, of which only the name must be there."""
    minus = "".join(rf"(?!{re.escape(name)}-)" for name in known)
    module = rf"{minus}[A-Za-z_./\\~](?:[\w./\\]|-(?=[\w./\\]))*:"
    name = rf"(?:{module})?[A-Za-z_]\w*"
    return re.compile(
        rf"\s*(?P<sign>[+-])?\s*(?:(?P<weight>{_NUMBER})\s*\*)?\s*(?P<name>{name})\s*(?=[-+]|$)"
    )


def _check(weight: float, name: str, before: list[str]) -> None:
    if weight == 0 or not math.isfinite(weight):
        raise UserError(
            f"reward {name!r} has the weight {weight + 0.0:g}: leave it out, or change it"
        )
    if name in before:
        raise UserError(f"reward {name!r} is there twice: give it one weight, the sum of the two")
