"""Pipelines of diffusers, from a folder or the hub: what one holds, and loading it unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from scoretune.core import hub
from scoretune.core.errors import UserError


def described(source: str, revision: str | None = None) -> dict[str, Any]:
    """The index of a pipeline's parts, `model_index.json`, of a folder or a hub id.

    Raises UserError where there is none.
    """
    if hub.is_local(source):
        return _index_of(Path(source))
    _quieten()
    from diffusers import DiffusionPipeline

    try:
        found = hub.offline_first(
            lambda here: DiffusionPipeline.load_config(
                source, revision=revision, local_files_only=here
            ),
            local=False,
        )
    except Exception as error:  # a missing hub, id, revision or index: each has its own kind
        raise _cannot_load(source, "diffusers pipeline", error) from error
    return cast("dict[str, Any]", found)


Loader = Callable[..., Any]
"""What `load` is: (kind, source, *, revision, dtype, without) -> pipeline."""
_loader: ContextVar[Loader | None] = ContextVar("loader", default=None)


@contextmanager
def made_by(loader: Loader) -> Iterator[None]:
    """Within this context another loader makes every pipeline, as one without weights."""
    token = _loader.set(loader)
    try:
        yield
    finally:
        _loader.reset(token)


def load(
    kind: str,
    source: str,
    *,
    revision: str | None,
    dtype: torch.dtype,
    without: Sequence[str] = (),
) -> Any:
    """The frozen pipeline of that class; parts in `without`, and those it lacks, are None.

    Raises UserError when it is of another class, cannot be read or holds pickled weights.
    """
    loader = _loader.get()
    if loader is not None:
        return loader(kind, source, revision=revision, dtype=dtype, without=without)
    index = described(source, revision)
    if index.get("_class_name") != kind:
        raise UserError(
            f"{source!r} holds a {index.get('_class_name')}, not a {kind}: give a folder or hub id "
            "of one"
        )
    _refuse_pickles(Path(source))
    _quieten()
    import diffusers  # only now: importing it warns of torchvision

    absent = {part for part, place in index.items() if place == [None, None]}
    try:
        pipeline = hub.offline_first(
            lambda here: getattr(diffusers, kind).from_pretrained(
                source,
                revision=revision,
                use_safetensors=True,
                local_files_only=here,
                dtype=dtype,
                **dict.fromkeys(absent | set(without)),
            ),
            local=hub.is_local(source),
        )
    except Exception as error:  # diffusers raises many kinds for a broken folder or a missing hub
        raise _cannot_load(source, kind, error) from error
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if "vae" in pipeline.components:
        pipeline.vae.to(memory_format=torch.channels_last)  # a quarter off the decoder's time
    return pipeline


def _index_of(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise UserError(f"model folder {str(folder)!r} does not exist: check the path")
    try:
        return cast("dict[str, Any]", json.loads((folder / "model_index.json").read_text()))
    except (OSError, ValueError):
        raise UserError(
            f"{str(folder)!r} is no diffusers pipeline (no readable model_index.json): "
            "save one with pipe.save_pretrained(folder)"
        ) from None


def _refuse_pickles(folder: Path) -> None:
    pickled = [p for p in folder.rglob("*") if p.suffix in {".bin", ".ckpt", ".pt", ".pth"}]
    safe = {p.parent for p in folder.rglob("*.safetensors")}
    for file in pickled:
        if file.parent not in safe:
            raise UserError(
                f"{str(file)!r} is a pickle, which can run code when read; if you trust it, "
                f"convert it once: pipe = DiffusionPipeline.from_pretrained({str(folder)!r}); "
                f"pipe.save_pretrained({str(folder)!r})"
            )


def _cannot_load(source: str, kind: str, error: Exception) -> UserError:
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    fix = f"give a folder or hub id of a {kind} with safetensors weights"
    if isinstance(error, hub.NotAsked):
        fix = hub.fetched(source, "model.source")
    return UserError(f"cannot load the model {source!r} ({first_line}): {fix}")


def _quieten() -> None:
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    diffusers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
