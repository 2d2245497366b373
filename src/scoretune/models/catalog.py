"""The model that a configuration names, whatever its family."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from scoretune.core import checkpoints, model_folder, reading
from scoretune.core.config import NEW_NETWORKS, Model
from scoretune.core.errors import UserError, user_errors
from scoretune.core.resolve import is_function
from scoretune.data.scenes import world
from scoretune.diffusion.processes import process_named
from scoretune.models import (
    dit,
    families,
    folders,
    latent_consistency,
    score_network,
    unconditional,
    user_module,
)
from scoretune.models.base import PRECISIONS, Pipelined
from scoretune.models.folders import load_pipeline
from scoretune.models.lora import ATTENTION, add_adapter, load_lora, merge_adapter, restore_adapter
from scoretune.models.networks import Perceptron
from scoretune.models.pipelines import Family, Loader
from scoretune.models.quantized import quantization_of
from scoretune.models.recycled import inner, recycle
from scoretune.policy import Backbone, Distilled, Policy, deployment_of

_FAMILIES: tuple[Family[Any], ...] = (
    *families.FAMILIES.values(),
    latent_consistency.FAMILY,
    dit.FAMILY,
    unconditional.FAMILY,
)
FAMILIES: dict[str, Family[Any]] = {kind: each for each in _FAMILIES for kind in each.kinds}
"""The family of each class of pipelines."""


# --------------------------------------------------------------------------- what a source is


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a fine-tuning run, and the model that it began with."""

    folder: Path
    model: Model


@dataclass(frozen=True)
class Resolved:
    """What a `model.source` is, and where.

    `runs` are the fine-tunings that it is made of, oldest first; the rest is of the model below.
    """

    source: str
    kind: Literal["pipeline", "score network", "function"]
    where: str
    """A folder or hub id; or the function."""
    runs: tuple[FinishedRun, ...] = ()

    @property
    def shipped(self) -> bool:
        """Whether it is a model that ships with scoretune, or a fine-tuned one."""
        return self.source in world.SHIPPED

    @property
    def world(self) -> Path:
        """The folder where a model of scenes has the reader and the judge of its world."""
        return world.shipped() if self.shipped else Path(self.where)

    def settings(self, model: Model) -> Model:
        """`model`, whose source this is, as settings of the model below all runs: what they said
        of it holds, where `model` says nothing."""
        for run in reversed(self.runs):
            below = run.model
            model = model.model_copy(
                update={
                    "source": below.source,
                    "revision": below.revision,
                    "shape": below.shape,
                    "prediction": below.prediction,
                    "size": model.size or below.size,
                    "frames": model.frames or below.frames,
                    "without": (*below.without, *model.without),
                    "process": model.process or below.process,
                }
            )
        return model


def resolve(source: str) -> Resolved:
    """What a shipped name, folder, run folder, function or hub id is, without reading weights.

    Raises UserError for the folder of a run that has no weights yet.
    """
    folder = Path(source)
    home = model_folder.home(folder)
    if home is not None:
        return Resolved(source, "score network", str(home))
    if is_function(source):
        return Resolved(source, "function", source)
    if source in world.SHIPPED:
        return Resolved(source, "pipeline", str(world.shipped(source)))
    if source == world.EDITOR:
        return Resolved(source, "pipeline", str(world.shipped_editor()))
    if (folder / "run.json").is_file() and not (folder / "model_index.json").exists():
        run = FinishedRun(folder, _recorded(folder))
        below = resolve(run.model.source)
        return Resolved(below.source, below.kind, below.where, (*below.runs, run))
    return Resolved(source, "pipeline", source)


def _recorded(folder: Path) -> Model:
    """The model that a run began with."""
    try:
        record = reading.read_json(folder / "run.json")
        model = Model.model_validate(record["config"]["model"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the run.json of {str(folder)!r} cannot be read: give a run of this version, or a "
            "model that was exported from it"
        ) from error
    if model.source in NEW_NETWORKS:  # it would be in the run's model/
        raise _no_weights(folder)
    return model


def _no_weights(folder: Path) -> UserError:
    return UserError(
        f"the run {str(folder)!r} has no weights yet: let it train until it saves some, by "
        f"scoretune train --resume {folder}"
    )


# ------------------------------------------------------------------------------------ loading


def load_backbone(model: Model, *, loader: Loader = load_pipeline) -> Backbone:
    """The model that settings name, on the CPU, under the process that they name.

    Of a run's folder, the model that it began with and in its weights what the run learned.
    `loader` makes a pipeline: another makes one without weights.
    """
    source = resolve(model.source)
    settings = source.settings(model)
    if settings.quantize is not None and (source.runs or source.kind != "pipeline"):
        raise UserError(
            f"model.quantize={settings.quantize} is of a diffusers pipeline's folder or hub id: "
            + (
                "export what the run learned first, by scoretune export RUN --merge --to FOLDER"
                if source.runs
                else "leave it out"
            )
        )
    backbone = _loaded(settings, source, loader)
    for run in source.runs:
        apply_run(backbone.network, run)
    if settings.process is None:
        return backbone
    with user_errors(f"model.process={settings.process}"):
        process = process_named(settings.process)
        return backbone if process == backbone.process else recycle(backbone, process)


def _loaded(model: Model, source: Resolved, loader: Loader) -> Backbone:
    dtype = PRECISIONS[model.precision]
    if source.kind == "score network":
        learned = score_network.load(Path(source.where))
        learned.network.to(dtype)
        return learned
    if source.kind == "function":
        return user_module.load(model)
    quantize = quantization_of(model)
    if quantize is not None:
        loader = partial(loader, quantize=quantize)
    pipelined: Pipelined = family_of(source.where, model.revision).load(
        source.where,
        revision=model.revision,
        dtype=dtype,
        size=model.size,
        frames=model.frames,
        without=model.without,
        loader=loader,
    )
    pipelined.shipped = source.shipped
    return pipelined


def family_of(where: str, revision: str | None = None) -> Family[Any]:
    """The family of the pipeline in a folder or hub id, without reading weights. Raises UserError
    for what is no pipeline, or of none."""
    index = folders.described(where, revision)
    kind = index["_class_name"]
    if kind not in FAMILIES:
        near = difflib.get_close_matches(str(kind), FAMILIES, n=1, cutoff=0)[0]
        raise UserError(
            f"{where!r} holds a {kind}, which is no family of this version (the nearest is "
            f"{near}): add a Row to scoretune/models/families.py, or give a network of your own "
            "as module:function"
        )
    _check_denoiser(where, kind, index)
    return FAMILIES[kind]


def apply_run(network: nn.Module, run: FinishedRun) -> None:
    """Put what a run learned into the weights of the network that it began with; frozen then.

    A LoRA is merged in float32; all weights are replaced where the run trained all. They are those
    of its newest checkpoint, else the LoRA that it exported. Raises UserError where there are none.
    """
    newest = checkpoints.latest(run.folder / "checkpoints")
    if newest is not None:
        state = checkpoints.load(newest)["policy"]
        if run.model.rank:
            layers = {name.partition(".lora_")[0] for name in state}
            add_adapter(network, run.model.rank, tuple(sorted(layers)))
        else:
            network.requires_grad_(True)
        restore_adapter(network, state)
    elif run.model.rank and (run.folder / "lora").is_dir():
        load_lora(network, run.folder)
    else:
        raise _no_weights(run.folder)
    if run.model.rank:
        merge_adapter(network)
    network.requires_grad_(False).eval()


def _check_denoiser(where: str, kind: str, index: dict[str, Any]) -> None:
    """Refuse a pipeline whose network is of another family, and say which that is."""
    _, network = index.get("unet") or index.get("transformer") or (None, None)
    if index.get("transformer_2") not in (None, [None, None]):
        raise UserError(
            f"{where!r} has two networks, each for a part of the time (as Wan 2.2 14B), and this "
            "version fine-tunes one: give a model of one network, as Wan 2.1 or Wan 2.2 TI2V 5B"
        )
    if network in FAMILIES[kind].networks or network is None:
        return
    fitting = [name for name, family in FAMILIES.items() if network in family.networks]
    named = " or a ".join(fitting[:2]) + (" or another" if len(fitting) > 2 else "")
    fits = f"is that of a {named}" if fitting else "is of no family of this version"
    raise UserError(
        f"{where!r} says that it holds a {kind}, but its network, a {network}, {fits}: give "
        "model_index.json the right _class_name, or another folder"
    )


def lora_targets(model: Model, backbone: Backbone) -> tuple[str, ...]:
    """The layers that a LoRA adapts: those that are set, else attention, else those there are."""
    if model.targets != ATTENTION:
        return model.targets
    if isinstance(backbone.network, Perceptron):
        return ("mix",)
    base = inner(backbone)
    if isinstance(base, Pipelined):
        return base.targets
    return user_module.adaptable(backbone.network)


def guidance_of(policy: Policy) -> float:
    """The scale of guidance, whoever applies it: the policy, or a network that is told it."""
    base = inner(policy.backbone)
    return base.scale if isinstance(base, Distilled) else policy.guidance


def remarks(policy: Policy, guidance: float | None, prompts: Iterable[str] = ()) -> tuple[str, ...]:
    """What people should know of how a model was loaded and is used, a line each; `guidance` is
    what the settings say, None for nothing. Of `prompts` the longest is read once, for what is cut
    off it."""
    base = inner(policy.backbone)
    notes = (*base.notes, *base.cut(prompts)) if isinstance(base, Pipelined) else ()
    own = deployment_of(base)
    unguided = guidance is None and policy.guidance == 1.0 and not isinstance(base, Distilled)
    if own is None or not unguided or not own.guidance or own.guidance <= 1:
        return notes
    return (
        *notes,
        f"guidance is 1, and a {own.name} draws with {own.guidance:g} unless told otherwise: set "
        f"model.guidance={own.guidance:g}, or 1 to be silent",
    )


def move(backbone: Backbone, device: torch.device, *, network: bool = True) -> None:
    """Put all of a model on a device, or all but its network, which may be too large for one."""
    base = inner(backbone)
    if isinstance(base, Pipelined) and network:
        base.pipeline.to(device)
    elif isinstance(base, Pipelined):
        for name, part in base.pipeline.components.items():
            if isinstance(part, nn.Module) and name != base.part:
                part.to(device)
    elif network:
        base.network.to(device)
