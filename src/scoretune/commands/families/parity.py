"""Every family of models: its miniature, and the largest difference of what we and diffusers draw
with it from the same noise at the same times, with or without a LoRA."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from scoretune.diffusion import grids
from scoretune.diffusion.processes import Process, Tabulated
from scoretune.models import folders
from scoretune.models.base import Pipelined
from scoretune.models.catalog import guidance_of
from scoretune.models.lora import load_lora
from scoretune.models.observed import Observed, ObservedTold
from scoretune.models.recycled import inner
from scoretune.models.schedulers import times_along
from scoretune.models.tiny import (
    diffusion_transformer,
    flux,
    latent_consistency,
    own,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    transformers,
    unconditional,
    videos,
    words,
)
from scoretune.policy import Policy
from scoretune.rollout import deterministic, prior

STEPS = 5


@dataclass(frozen=True)
class Request:
    """What both draw: prompts, by the model in `folder`, with a LoRA or without."""

    policy: Policy
    folder: Path
    prompts: tuple[str, ...]
    lora: Path | None = None

    @property
    def guidance(self) -> float:
        """The scale, whoever applies it."""
        return guidance_of(self.policy)

    @property
    def noise(self) -> Tensor:
        """Where both begin, [B, *S]: what a pipeline draws first by `generator`."""
        return prior(self.policy, len(self.prompts), self.generator)

    @property
    def generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(1)


Parity = Callable[[Request], float]


@dataclass(frozen=True)
class Family:
    """A family of models: its miniature, what it is compared by, and what a run of it needs: it
    may edit pictures, whose sides are then given. What is measured is done `within` a context."""

    name: str
    build: Callable[[Path], Path]
    parity: Parity
    settings: tuple[str, ...] = ()
    prompts: tuple[str, ...] = words.PROMPTS
    edits: int = 0
    within: Callable[[], AbstractContextManager[None]] = nullcontext


@torch.no_grad()
def observed(request: Request) -> float:
    """Text to pictures of two shapes, or videos of two and of two lengths, by the pipeline's own
    call, with guidance and without: from the state that it shows its denoiser first, at the times
    that it took."""
    backbone, pipe = cast(Observed, inner(request.policy.backbone)), _pipeline(request)
    _first_order(pipe, backbone.process)
    channels, *frames, height, width = backbone.shape
    fewer = [count - 1 for count in frames]
    shapes = ((channels, *frames, height, width), (channels, *fewer, height, 2 * width))
    asked = itertools.product((1, request.guidance), shapes)
    return max(_observed(request, pipe, scale, shape) for scale, shape in asked)


def _observed(request: Request, pipe: Any, scale: float, shape: tuple[int, ...]) -> float:
    backbone, count = cast(Observed, inner(request.policy.backbone)), len(request.prompts)
    ours = replace(backbone, shape=shape, twin=None)
    policy = replace(request.policy, backbone=ours, guidance=float(scale))
    if isinstance(ours, ObservedTold):
        ours.scale, policy.guidance = scale, 1.0
    row, shown = backbone.row, list[Any]()
    network = getattr(pipe, backbone.part)
    signature = inspect.signature(network.forward)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        shown.append(signature.bind(*args, **kwargs).arguments[row.state])

    hook = network.register_forward_pre_hook(look, with_kwargs=True)
    arguments = {**ours.sides, **row.arguments(pipe), **row.guidance(scale, count * (scale > 1))}
    arguments |= ours.pictures(request.prompts)
    prompts = {"prompt": [*request.prompts], "num_inference_steps": STEPS, "output_type": "np"}
    theirs = _pictures(pipe(**prompts, **arguments, generator=request.generator))
    hook.remove()
    state = shown[0][:count]
    if row.edits is not None:
        state = state[:, : ours.packed_length]
    x = row.layout.unpack(state, torch.empty(count, *shape))
    times = times_along(ours.schedule, pipe.scheduler, STEPS)
    solver = "ddim" if isinstance(ours.process, Tabulated) else "euler"
    mine = deterministic(policy, ours.encode(request.prompts), times, x, solver)
    return _largest_difference(ours.decode(mine), theirs)


def _first_order(pipe: Any, process: Process) -> None:
    """The solver of first order, where the pipeline has another."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    if type(pipe.scheduler).__name__ == "CogVideoXDDIMScheduler":  # its table is no other's
        return
    if isinstance(process, Tabulated):
        _ddim(pipe)
    elif type(pipe.scheduler).__name__ != "FlowMatchEulerDiscreteScheduler":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)


@torch.no_grad()
def consistency(request: Request) -> float:
    """Text to pictures in one call of the network, which is all of it without fresh noise."""
    policy, pipe = request.policy, _pipeline(request)
    drawn = pipe(
        prompt=list(request.prompts),
        guidance_scale=request.guidance,
        num_inference_steps=1,
        output_type="np",
        latents=request.noise,
    )
    condition = policy.backbone.encode(request.prompts)
    data = policy.estimate(request.noise, torch.ones(len(request.prompts)), condition).data
    return _largest_difference(policy.backbone.decode(data), _pictures(drawn))


@torch.no_grad()
def labels(request: Request) -> float:
    """Classes to pictures, by a DiTPipeline."""
    classes = [int(prompt) for prompt in request.prompts]
    return _drawn_alone(request, {"class_labels": classes, "guidance_scale": request.guidance})


@torch.no_grad()
def pixels(request: Request) -> float:
    """Pictures without prompts, by a DDIMPipeline."""
    return _drawn_alone(request, {"batch_size": len(request.prompts)})


def _drawn_alone(request: Request, arguments: dict[str, Any]) -> float:
    """DDIM by a pipeline that draws the noise itself."""
    pipe, process = _pipeline(request), cast(Tabulated, request.policy.backbone.process)
    _ddim(pipe)
    arguments = {"num_inference_steps": STEPS, "output_type": "np", **arguments}
    times = grids.diffusers_times(process, STEPS, spacing="trailing")
    return _largest_difference(
        _ours(request, times, "ddim"), _pictures(pipe(generator=request.generator, **arguments))
    )


@torch.no_grad()
def module(request: Request) -> float:
    """The miniature that is no pipeline, stepped by diffusers' scheduler: states, not pictures."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    network, scheduler = own.denoiser(), FlowMatchEulerDiscreteScheduler()
    if request.lora is not None:
        load_lora(network, request.lora)
    scheduler.set_timesteps(STEPS)
    x = request.noise
    for step in scheduler.timesteps:
        velocity = network(x, (step / 1000).expand(len(x)))
        x = scheduler.step(velocity, step, x, return_dict=False)[0]
    condition = request.policy.backbone.encode(request.prompts)
    mine = deterministic(request.policy, condition, scheduler.sigmas, request.noise, "euler")
    return _largest_difference(mine, x)


def _pipeline(request: Request) -> Any:
    """The folder as diffusers loads it, with the LoRA on it if there is one."""
    kind = str(folders.described(str(request.folder))["_class_name"])
    pipe = folders.load_pipeline(kind, str(request.folder), revision=None, dtype=torch.float32)
    if request.lora is not None:
        loader = getattr(pipe, "load_lora_weights", None)
        if loader is None:
            part = cast(Pipelined, inner(request.policy.backbone)).part
            load_lora(getattr(pipe, part), request.lora)
        else:
            loader(request.lora)
    return pipe


def _ddim(pipe: Any) -> None:
    """DDIM on all of the pipeline's own table; clipped estimates would have no likelihood."""
    from diffusers import DDIMScheduler

    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        clip_sample=False,
        thresholding=False,
        set_alpha_to_one=False,
        timestep_spacing="trailing",
    )


def _ours(request: Request, times: Tensor, solver: str) -> Tensor:
    backbone = request.policy.backbone
    condition = backbone.encode(request.prompts)
    return backbone.decode(deterministic(request.policy, condition, times, request.noise, solver))


def _pictures(output: Any) -> Tensor:
    """[B, 3, H, W], or videos [B, T, 3, H, W]."""
    return torch.from_numpy(output[0]).movedim(-1, -3)


def _largest_difference(mine: Tensor, theirs: Tensor) -> float:
    return float((mine - theirs).abs().max())


GUIDED = ("model.guidance=2",)
FAMILIES: tuple[Family, ...] = (
    Family("stable-diffusion", stable_diffusion.build, observed, GUIDED),
    Family(
        "stable-diffusion-v",
        partial(stable_diffusion.build, prediction="v_prediction"),
        observed,
        GUIDED,
    ),
    Family("stable-diffusion-xl", stable_diffusion_xl.build, observed, GUIDED),
    Family("stable-diffusion-3", stable_diffusion_3.build, observed, GUIDED),
    Family("flux", flux.build, observed, ("model.guidance=3.5",)),
    Family("instruct-pix2pix", stable_diffusion.build_editor, observed, GUIDED, edits=32),
    Family("flux-kontext", flux.build_editor, observed, ("model.guidance=2.5",), edits=32),
    Family(
        "qwen-image-edit",
        partial(transformers.build, "qwen-image-edit"),
        observed,
        GUIDED,
        edits=32,
        within=transformers.small_sources,
    ),
    *(
        Family(name, partial(transformers.build, name), observed, GUIDED)
        for name in transformers.MADE
        if name != "qwen-image-edit"
    ),
    *(Family(name, partial(videos.build, name), observed, GUIDED) for name in videos.MADE),
    Family(
        "latent-consistency",
        latent_consistency.build,
        consistency,
        ("model.guidance=8", "sampling.kernel=renoise", "sampling.noise=cps"),
    ),
    Family("unconditional", unconditional.build, pixels),
    Family(
        "diffusion-transformer",
        diffusion_transformer.build,
        labels,
        GUIDED,
        ("1", "207", "0", "980"),
    ),
    Family("own", lambda folder: folder, module, own.SETTINGS),
)
