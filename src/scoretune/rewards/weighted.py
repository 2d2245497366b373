"""Several rewards as one: `reader + 0.5*clip(batch=4) - 0.1*my_module:function`.

A term is a name, a name with settings in brackets, a `module:function`, or an `http://…`, which
ends at the next space.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core import calls
from scoretune.core.errors import UserError
from scoretune.core.records import Scores
from scoretune.rewards.base import Reward, checked

_NUMBER = r"[+-]?\s*(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_ADDRESS = r"https?://\S+"
_MINUS_MAY_FOLLOW = ("reader", "compressibility", "incompressibility", "brightness")
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


def reward_metrics(scores: Scores) -> dict[str, float]:
    """The mean reward with its 95 % interval over the samples, and what each part adds to it."""
    rewards = scores.total.detach()
    spread = float(rewards.std()) if len(rewards) > 1 else 0.0
    mean, error = float(rewards.mean()), 1.96 * spread / len(rewards) ** 0.5
    parts = {f"reward/{name}": float(part.detach().mean()) for name, part in scores.parts.items()}
    return {"reward": mean, "reward_low": mean - error, "reward_high": mean + error, **parts}


def terms(text: str, known: Collection[str]) -> list[tuple[float, str]]:
    """The weights and terms of a sum; of a single term, whatever it is, 1 and that term.

    A hyphen glued into the folder or module of `module:function` belongs to it, unless it follows
    one of the first four `known` names, which have none: `clip-taste:of` is a module, and may be
    older than the reward. UserError for what cannot be read.
    """
    if not re.search(r"[-+*\s]", text):
        return [(1.0, text)]
    found: list[tuple[float, str]] = []
    place, term = 0, _term([name for name in _MINUS_MAY_FOLLOW if name in known])
    text = text.strip()
    while place < len(text):
        match = term.match(text, place)
        end = _end(text, match) if match else -1
        if match is None or end < 0 or not (match["sign"] or place == 0):
            rest = text[place:].lstrip()
            raise UserError(f"cannot read the reward {text!r} from {rest!r} on: {_EXAMPLE}")
        weight = float(re.sub(r"\s", "", match["weight"] or "1"))
        weight = -weight if match["sign"] == "-" else weight
        name = text[match.start("name") : end]
        _check(weight, name, [name for _, name in found])
        found.append((weight, name))
        place = end
    return found or [(1.0, text)]


def _end(text: str, match: re.Match[str]) -> int:
    """Where a term ends, with its brackets if it has any; −1 if it does not end well."""
    end = match.end("name")
    if match["plain"] and text[end : end + 1] == "(":
        end = calls.end_of_brackets(text, end)
    return end if end >= 0 and re.match(r"\s*([-+]|$)", text[end:]) else -1


def _term(ending: Collection[str]) -> re.Pattern[str]:
    """`± weight * name`, of which only the name must be there."""
    minus = "".join(rf"(?!{re.escape(name)}-)" for name in ending)
    module = rf"{minus}[A-Za-z_./\\~](?:[\w./\\]|-(?=[\w./\\]))*:[A-Za-z_]\w*"
    name = rf"{_ADDRESS}|{module}|(?P<plain>[A-Za-z_]\w*)"
    return re.compile(rf"\s*(?P<sign>[+-])?\s*(?:(?P<weight>{_NUMBER})\s*\*)?\s*(?P<name>{name})")


def _check(weight: float, name: str, before: list[str]) -> None:
    if weight == 0 or not math.isfinite(weight):
        raise UserError(
            f"reward {name!r} has the weight {weight + 0.0:g}: leave it out, or change it"
        )
    if name in before:
        raise UserError(f"reward {name!r} is there twice: give it one weight, the sum of the two")
