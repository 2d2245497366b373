"""Critic and writer of the shipped world: what the shipped reader sees against what was asked for.

It perceives, and knows nothing of how a picture came about; where it reads wrongly, so does the
critique.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from scoretune.core.errors import UserError, unknown
from scoretune.data.scenes import world
from scoretune.data.scenes.edits import corrections, edits_by_complaint
from scoretune.rewards import reader
from scoretune.training.feedback.records import Answer, Category, Critique, EditPlan, Issue, Shown

CATEGORY: dict[str, Category] = {
    "recolour": "attribute",
    "add": "object",
    "remove": "count",
    "replace": "object",
    "move": "relation",
}


@dataclass(frozen=True)
class SceneCritic:
    """Lists which edits would make the scene that the reader sees follow the prompt.

    An issue's severity is how sure the reader is of what it sees, the least certain cell's
    probability.
    """

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Shown]) -> list[Answer[Critique]]:
        asks = [_ask(shown.prompt) for shown in pictures]
        images = torch.stack([shown.pixels for shown in pictures])
        if images.shape[1:] != (3, 32, 32):
            height, width = images.shape[2:]
            raise UserError(f"critic=reader reads scenes of 32x32 pixels, not {width}x{height}")
        logits = reader.load(world.shipped(), "reader").to(images.device)(images)
        fulfilled = reader.fulfilment(logits, asks)
        sure = reader.log_beliefs(logits)[0].amax(-1).amin(-1).exp()
        return [
            _critique(layout, ask, float(p), float(belief))
            for layout, ask, p, belief in zip(
                reader.layouts(logits), asks, fulfilled, sure, strict=True
            )
        ]


def _critique(
    layout: world.Layout, ask: world.Ask, fulfilled: float, sure: float
) -> Answer[Critique]:
    issues = [
        Issue(what=edit.complaint, category=CATEGORY[edit.kind], severity=min(1.0, sure))
        for edit in corrections(layout, ask)
    ]
    critique = Critique(alignment=10 * min(1.0, fulfilled), issues=issues)
    return Answer(critique, critique.model_dump_json())


@dataclass(frozen=True)
class SceneWriter:
    """Turns complaints in the words of `data.scenes.edits` into instructions; skips any others."""

    most: int = 3

    def __call__(
        self, pictures: Sequence[Shown], critiques: Sequence[Critique]
    ) -> list[Answer[EditPlan]]:
        edits = edits_by_complaint()
        plans = []
        for critique in critiques:
            mends = [edits[issue.what] for issue in critique.issues if issue.what in edits]
            plan = EditPlan(instructions=[edit.instruction for edit in mends[: self.most]])
            plans.append(Answer(plan, plan.model_dump_json()))
        return plans


def _ask(prompt: str) -> world.Ask:
    asks = world.asks_by_text()
    if prompt not in asks:
        raise unknown("scene prompt (critic=reader knows scenes of digits only)", prompt, asks)
    return asks[prompt]
