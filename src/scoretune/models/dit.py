"""DiT (arXiv 2212.09748): any diffusers DiTPipeline, from a folder or the hub.

A prompt is a class: one of the pipeline's names, or a number. The empty prompt is the class behind
the last, which training put in place of a dropped label; guidance is away from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor

from scoretune.diffusion.processes import Tabulated
from scoretune.models import pipelines
from scoretune.models.base import Pipelined, latent_shape, scheduled
from scoretune.models.class_labels import Labels

KIND = "DiTPipeline"


@dataclass
class DiffusionTransformer(Pipelined):
    """A DiTPipeline as a continuous-time model; everything but the transformer is frozen."""

    part: ClassVar[str] = "transformer"
    encoders: ClassVar[tuple[str, ...]] = ()

    @property
    def labels(self) -> Labels:
        """The classes, and their names where the pipeline's `id2label` has any."""
        count = int(self.pipeline.transformer.config.num_embeds_ada_norm)
        return Labels(count, self.pipeline.labels)

    def told(self, prompts: Sequence[str]) -> Tensor:
        """One-hot classes [B, 1, K + 1], the empty prompt being the last of them."""
        told = self.labels.one_hot(prompts, empty=True)
        return told.to(next(self.network.parameters()).device)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Of a network that also predicts its variance, the first half of the channels."""
        transformer = self.pipeline.transformer
        output = transformer(
            x.to(transformer.dtype),
            timestep=cast(Tabulated, self.process).label(t),
            class_labels=tokens[:, 0].argmax(1),
        )
        return cast(Tensor, output.sample)[:, : x.shape[1]]

    @property
    def feature_size(self) -> int:
        """The width of the transformer."""
        return int(self.pipeline.transformer.inner_dim)

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the last block's tokens [B, n, F] averaged over the picture."""
        last = self.pipeline.transformer.transformer_blocks[-1]
        output, hidden = self.predict_and_watch(last, x, t, tokens)
        return output, cast(Tensor, hidden).float().mean(1)


def load(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    size: int = 0,
    without: Sequence[str] = (),
) -> DiffusionTransformer:
    """Load a pipeline from a local folder or a hub id. Weights must be safetensors.

    Raises UserError when the folder is missing, no such pipeline, or holds pickled weights.
    """
    pipeline = pipelines.load(KIND, source, revision=revision, dtype=dtype, without=without)
    process, prediction = scheduled(source, pipeline.scheduler)
    return DiffusionTransformer(
        pipeline=pipeline,
        process=process,
        prediction=prediction,
        shape=latent_shape(pipeline, pipeline.transformer.config, size),
    )
