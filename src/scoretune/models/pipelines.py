"""Pipelines of diffusers, from a folder or the hub: what one holds, loading it unpickled, and the
families of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch import nn

from scoretune.core import hub, reading
from scoretune.core.errors import UserError
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Tabulated
from scoretune.models.base import Pipelined, latent_shape

P = TypeVar("P", bound=Pipelined)

LEAST_SIGNAL = 2**-24  # of a table that ends without any: a process needs some


def described(source: str, revision: str | None = None) -> dict[str, Any]:
    """`model_index.json` of a folder or hub id, by part. Raises UserError where there is none."""
    if hub.is_local(source):
        return _index_of(Path(source))
    import diffusers  # only now: importing it warns of torchvision

    hub.quieten()
    return hub.offline_first(
        source,
        "a diffusers pipeline with safetensors weights",
        lambda here: cast(
            "dict[str, Any]",
            diffusers.DiffusionPipeline.load_config(
                source, revision=revision, local_files_only=here
            ),
        ),
        setting="model.source",
    )


def load_pipeline(
    kind: str, source: str, *, revision: str | None, dtype: torch.dtype, without: Sequence[str] = ()
) -> Any:
    """The frozen pipeline of that class. Raises UserError for another class, and for pickles."""
    index = described(source, revision)
    if index.get("_class_name") != kind:
        raise UserError(
            f"{source!r} holds a {index.get('_class_name')}, not a {kind}: give a folder or hub id "
            "of one"
        )
    hub.refuse_pickles(
        Path(source),
        "if you trust it, convert it once: "
        f"p = {source!r}; DiffusionPipeline.from_pretrained(p).save_pretrained(p)",
        inside=True,
    )
    import diffusers

    hub.quieten()
    absent = {part for part, place in index.items() if place == [None, None]}
    pipeline = hub.offline_first(
        source,
        f"a {kind} with safetensors weights",
        lambda here: getattr(diffusers, kind).from_pretrained(
            source,
            revision=revision,
            use_safetensors=True,
            local_files_only=here,
            dtype=dtype,
            **dict.fromkeys(absent | set(without)),
        ),
        setting="model.source",
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if "vae" in pipeline.components:
        pipeline.vae.to(memory_format=torch.channels_last)  # a quarter off the decoder's time
    return pipeline


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
    build: Callable[[Any, str, int], P]
    unused: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()

    def load(
        self,
        source: str,
        *,
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        size: int = 0,
        without: Sequence[str] = (),
        loader: Loader = load_pipeline,
    ) -> P:
        """The model of a local folder or a hub id, of pictures of `size` pixels (0: its own).

        Weights must be safetensors; parts in `without` are left out. Raises UserError when the
        folder is missing, no such pipeline, holds pickled weights, or is not what `build` takes.
        """
        index = described(source, revision)
        for part in self.needed:
            if part in without or index.get(part) == [None, None]:
                raise UserError(
                    f"{source!r} cannot read prompts without its {part}: drop it from "
                    "model.without; hardware.cache_prompts=true lets go of it once they are read"
                )
        named = index.get("_class_name")
        pipeline = loader(
            named if named in self.kinds else self.kinds[0],
            source,
            revision=revision,
            dtype=dtype,
            without=(*self.unused, *without),
        )
        return self.build(pipeline, source, size)


def noise_table(source: str, scheduler: Any) -> tuple[Tabulated, Prediction]:
    """A scheduler's noise table and prediction. Raises UserError without one, as those of flows."""
    table = getattr(scheduler, "alphas_cumprod", None)
    kind = scheduler.config.get("prediction_type", "epsilon")
    if table is None:
        raise UserError(
            f"the scheduler of {source!r} is a {type(scheduler).__name__}, which has no noise "
            "table: give the pipeline the one its network was trained with, as DDIMScheduler"
        )
    try:
        prediction = prediction_named(kind)
    except ValueError as error:
        raise UserError(
            f"the scheduler of {source!r} has prediction_type {kind!r}: {error}"
        ) from None
    signal = table.double()
    smallest = float(signal[signal > 0].min())
    least = LEAST_SIGNAL if smallest > LEAST_SIGNAL else smallest / 2
    return Tabulated(tuple(torch.where(signal > 0, signal, least).tolist())), prediction


def by_noise_table(model: type[P], pipeline: Any, source: str, size: int) -> P:
    """A model of that class under its scheduler's noise table. Raises UserError without one."""
    process, prediction = noise_table(source, pipeline.scheduler)
    network = getattr(pipeline, model.part)
    return model(pipeline, process, prediction, latent_shape(pipeline, network.config, size))


def _index_of(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"model folder {str(folder)!r} does not exist: check the path")
    try:
        return cast("dict[str, Any]", reading.read_json(folder / "model_index.json"))
    except (OSError, ValueError):
        raise UserError(
            f"{str(folder)!r} is no diffusers pipeline (no readable model_index.json): "
            "save one with pipe.save_pretrained(folder)"
        ) from None
