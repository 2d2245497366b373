"""Families of diffusers' pipelines: a kind of pipelines that one class of models stands for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from scoretune.core.errors import UserError
from scoretune.models.autoencoder import latent_shape
from scoretune.models.base import Pipelined
from scoretune.models.folders import (
    check_processor,
    described,
    left_out,
    load_pipeline,
    mend_tokenizers,
)
from scoretune.models.schedulers import schedule_of
from scoretune.models.videos import with_frames

P = TypeVar("P", bound=Pipelined)

Loader = Callable[..., Any]
"""What makes a pipeline, as `load_pipeline` does."""


@dataclass(frozen=True)
class Family(Generic[P]):
    """A kind of diffusers pipelines that one class of models stands for.

    `kinds` are their names in `model_index.json`, `networks` those of the network that denoises;
    `build(pipeline, source, size)` makes the model. Parts that are `unused` are never loaded, those
    that are `needed` cannot be left out.
    """

    kinds: tuple[str, ...]
    networks: tuple[str, ...]
    build: Callable[[Any, str, int | str], P]
    unused: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def load(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        size: int | str = 0,
        frames: int = 0,
        without: Sequence[str] = (),
        loader: Loader = load_pipeline,
    ) -> P:
        """The model of a local folder or a hub id, of pictures of `size` pixels or videos of so
        many `frames` (0: its own).

        Weights must be safetensors; parts in `without` are left out. Raises UserError when the
        folder is missing, no such pipeline, holds pickled weights, or is not what `build` takes.
        """
        index = described(source, revision)
        check_processor(source, index)
        for part in self.needed:
            if part in without or index.get(part) == [None, None]:
                raise UserError(
                    f"{source!r} cannot read prompts without its {part}: drop it from "
                    "model.without; hardware.cache_prompts=true lets go of it once they are read"
                )
        named = index["_class_name"]
        pipeline = loader(
            named if named in self.kinds else self.kinds[0],
            source,
            revision=revision,
            dtype=dtype,
            without=(*self.unused, *without),
        )
        mended = mend_tokenizers(source, pipeline)
        model = self.build(pipeline, source, size)
        if frames:
            model = with_frames(model, frames)
        model.notes = (*left_out(index, self.unused), *mended)
        return model


def by_schedule(model: type[P], pipeline: Any, source: str, size: int | str) -> P:
    """A model of that class under the process of its scheduler."""
    return model(
        pipeline,
        schedule_of(source, pipeline.scheduler),
        latent_shape(source, pipeline, size),
    )
