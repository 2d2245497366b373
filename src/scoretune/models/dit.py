"""DiT (arXiv 2212.09748): any diffusers DiTPipeline, from a folder or the hub.

A prompt is a class: one of the pipeline's names, or a number. The empty prompt is the class behind
the last, which training put in place of a dropped label; guidance is away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, cast

from torch import Tensor

from scoretune.models.base import Pipelined
from scoretune.models.class_labels import Labels
from scoretune.models.pipelines import Family, by_schedule


@dataclass
class DiffusionTransformer(Pipelined):
    """A DiTPipeline as a continuous-time model; everything but the transformer is frozen."""

    any_size: ClassVar[bool] = False

    @property
    def labels(self) -> Labels:
        """The classes, and their names where the pipeline's `id2label` has any."""
        count = int(self.pipeline.transformer.config.num_embeds_ada_norm)
        return Labels(count, self.pipeline.labels)

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """One-hot classes [B, 1, K + 1], the empty prompt being the last of them."""
        return self.labels.one_hot(prompts, empty=True).to(self.device)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Of a network that also predicts its variance, the first half of the channels."""
        (shown, label), transformer = self.told(x, t), self.pipeline.transformer
        output = transformer(
            shown.to(self.dtype),
            timestep=label,
            class_labels=tokens[:, 0].argmax(1),
        )
        return cast(Tensor, output.sample)[:, : x.shape[1]]


FAMILY = Family(
    kinds=("DiTPipeline",),
    networks=("DiTTransformer2DModel", "Transformer2DModel"),
    build=partial(by_schedule, DiffusionTransformer),
)
load = FAMILY.load
