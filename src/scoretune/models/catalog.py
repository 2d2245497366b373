"""The model that a configuration names, whatever its family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from scoretune.core import model_folder
from scoretune.core.config import Model
from scoretune.core.errors import UserError, user_errors
from scoretune.core.resolve import is_function
from scoretune.data.scenes import world
from scoretune.diffusion.processes import process_named
from scoretune.models import (
    dit,
    flux,
    latent_consistency,
    pipelines,
    score_network,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from scoretune.models.base import Pipelined
from scoretune.models.lora import ATTENTION
from scoretune.models.networks import Perceptron
from scoretune.models.recycled import inner, recycle
from scoretune.models.user_module import adaptable
from scoretune.models.user_module import load as load_own
from scoretune.policy import Backbone

FAMILIES: dict[str, Callable[..., Backbone]] = {
    stable_diffusion.KIND: stable_diffusion.load,
    stable_diffusion_3.KIND: stable_diffusion_3.load,
    stable_diffusion_xl.KIND: stable_diffusion_xl.load,
    latent_consistency.KIND: latent_consistency.load,
    flux.KIND: flux.load,
    dit.KIND: dit.load,
    **dict.fromkeys(unconditional.KINDS, unconditional.load),
}
"""What loads each class of pipeline."""
DENOISERS = {
    stable_diffusion.KIND: ("UNet2DConditionModel",),
    stable_diffusion_3.KIND: ("SD3Transformer2DModel",),
    stable_diffusion_xl.KIND: ("UNet2DConditionModel",),
    latent_consistency.KIND: ("UNet2DConditionModel",),
    flux.KIND: ("FluxTransformer2DModel",),
    dit.KIND: ("DiTTransformer2DModel", "Transformer2DModel"),
    **dict.fromkeys(unconditional.KINDS, ("UNet2DModel",)),
}
"""What the network of each is called."""
PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


def move(backbone: Backbone, device: torch.device, *, network: bool = True) -> None:
    """Put all of a model on a device, or all but its network, which may be too large for one."""
    own = inner(backbone)
    if isinstance(own, Pipelined) and network:
        own.pipeline.to(device)
    elif isinstance(own, Pipelined):
        for name, part in own.pipeline.components.items():
            if isinstance(part, nn.Module) and name != own.part:
                part.to(device)
    elif network:
        own.network.to(device)


def load_backbone(model: Model) -> Backbone:
    """The model that settings name, on the CPU, under the process that they name."""
    return _under(model, _loaded(model))


def _loaded(model: Model) -> Backbone:
    dtype = PRECISIONS[model.precision]
    home = model_folder.home(Path(model.source))
    if home is not None:
        own = score_network.load(home)
        own.network.to(dtype)
        return own
    if is_function(model.source):
        return users_own(model)
    shipped = model.source in world.SHIPPED
    where = str(world.shipped(model.source)) if shipped else model.source
    index = pipelines.described(where, model.revision)
    kind = index.get("_class_name")
    if kind not in FAMILIES:
        raise UserError(
            f"{where!r} holds a {kind}, which is no family of this version: it fine-tunes "
            f"{', '.join(FAMILIES)}, and networks of your own (model.source=module:function)"
        )
    _check_denoiser(where, kind, index)
    return FAMILIES[kind](
        where, revision=model.revision, dtype=dtype, size=model.size, without=model.without
    )


def _check_denoiser(where: str, kind: str, index: dict[str, Any]) -> None:
    """Refuse a pipeline whose network is of another family, and say which that is."""
    named = index.get("unet") or index.get("transformer") or (None, None)
    network = named[1]
    if network in DENOISERS[kind] or network is None:
        return
    fitting = [family for family, known in DENOISERS.items() if network in known]
    fits = (
        f"is that of a {' or a '.join(fitting)}" if fitting else "is of no family of this version"
    )
    raise UserError(
        f"{where!r} says that it holds a {kind}, but its network, a {network}, {fits}: give "
        "model_index.json the right _class_name, or another folder"
    )


def users_own(model: Model) -> Backbone:
    """What a user's function returns; of a bare module the settings say what it is."""
    return load_own(
        model.source,
        process=model.process,
        prediction=model.prediction,
        shape=model.shape,
        dtype=PRECISIONS[model.precision],
    )


def lora_targets(model: Model, backbone: Backbone) -> tuple[str, ...]:
    """What a LoRA adapts: attention unless told otherwise, which a perceptron has none of."""
    if model.targets != ATTENTION:
        return model.targets
    if isinstance(backbone.network, Perceptron):
        return ("mix",)
    return backbone.targets if isinstance(backbone, Pipelined) else adaptable(backbone.network)


def _under(model: Model, backbone: Backbone) -> Backbone:
    """The backbone under the process that `model.process` names, if it names one."""
    if model.process is None:
        return backbone
    with user_errors(f"model.process={model.process}"):
        process = process_named(model.process)
        return backbone if process == backbone.process else recycle(backbone, process)
