"""The model that a configuration names, whatever its family, behind its training kernel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from scoretune import pipelines
from scoretune.backbones import (
    diffusion_transformer,
    flux,
    latent_consistency,
    scores,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    unconditional,
)
from scoretune.backbones.base import Backbone, Distilled, Pipelined
from scoretune.backbones.own import adaptable
from scoretune.backbones.own import load as load_own
from scoretune.backbones.recycled import inner, recycle
from scoretune.config import Model, Run
from scoretune.diffusion.processes import process_named
from scoretune.errors import UserError
from scoretune.hardware import furnish
from scoretune.imports import is_function
from scoretune.networks import Perceptron
from scoretune.policy import ATTENTION, Policy, add_adapter
from scoretune.run_parts import kernel
from scoretune.scenes import world

FAMILIES: dict[str, Callable[..., Backbone]] = {
    stable_diffusion.KIND: stable_diffusion.load,
    stable_diffusion_3.KIND: stable_diffusion_3.load,
    stable_diffusion_xl.KIND: stable_diffusion_xl.load,
    latent_consistency.KIND: latent_consistency.load,
    flux.KIND: flux.load,
    diffusion_transformer.KIND: diffusion_transformer.load,
    **dict.fromkeys(unconditional.KINDS, unconditional.load),
}
"""What loads each class of pipeline."""
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def build_policy(run: Run, device: torch.device) -> Policy:
    """The model of a configuration behind its training kernel, with a fresh adapter."""
    backbone = _backbone(run.model)
    move(backbone, device)
    if run.model.rank:
        add_adapter(backbone.network, run.model.rank, _targets(run.model, backbone))
    else:
        backbone.network.requires_grad_(True)
    guidance = run.model.guidance
    if isinstance(backbone, Distilled):  # it is told the scale: asking twice would guide twice
        backbone.scale, guidance = guidance, 1.0
    policy = Policy(_under(run, backbone), kernel(run.sampling), guidance)
    furnish(policy, run)
    return policy


def move(backbone: Backbone, device: torch.device) -> None:
    """Put all of a model on a device."""
    own = inner(backbone)
    if isinstance(own, Pipelined):
        own.pipeline.to(device)
    else:
        own.network.to(device)


def _backbone(model: Model) -> Backbone:
    dtype = PRECISIONS[model.precision]
    home = scores.home(Path(model.source))
    if home is not None:
        own = scores.load(home)
        own.network.to(dtype)
        return own
    if is_function(model.source):
        return users_own(model)
    shipped = model.source in world.SHIPPED
    where = str(world.shipped(model.source)) if shipped else model.source
    kind = pipelines.described(where, model.revision).get("_class_name")
    if kind not in FAMILIES:
        raise UserError(
            f"{where!r} holds a {kind}, which is no family of this version: it fine-tunes "
            f"{', '.join(FAMILIES)}, and networks of your own (model.source=module:function)"
        )
    return FAMILIES[kind](
        where, revision=model.revision, dtype=dtype, size=model.size, without=model.without
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


def _targets(model: Model, backbone: Backbone) -> tuple[str, ...]:
    """What a LoRA adapts: attention unless told otherwise, which a perceptron has none of."""
    if model.targets != ATTENTION:
        return model.targets
    if isinstance(backbone.network, Perceptron):
        return ("mix",)
    return backbone.targets if isinstance(backbone, Pipelined) else adaptable(backbone.network)


def _under(run: Run, backbone: Backbone) -> Backbone:
    """The backbone under the process that `model.process` names, if it names one."""
    if run.model.process is None or process_named(run.model.process) == backbone.process:
        return backbone
    try:
        return recycle(backbone, process_named(run.model.process))
    except ValueError as error:
        raise UserError(f"model.process={run.model.process}: {error}") from error
