"""What the families share: a diffusers pipeline as a continuous-time model."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition, Tokens, joined
from scoretune.core.errors import UserError
from scoretune.data.picture_size import Size
from scoretune.data.prompts import size_of
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process, expand
from scoretune.models import autoencoder
from scoretune.models.lora import ATTENTION
from scoretune.models.offload import Offloaded
from scoretune.models.schedulers import Schedule, scheduled_times
from scoretune.models.slope_decoder import substituted
from scoretune.models.truncation import watched
from scoretune.policy import Deployment

PRECISIONS = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
"""`model.precision` as dtypes."""
DECODED = 2**22
"""Pixels that are decoded at once: an autoencoder takes some kilobytes of memory for each."""


@dataclass
class Pipelined(ABC):
    """A diffusers pipeline as a continuous-time model: pictures go through its autoencoder, and
    everything but one `part` of it is frozen.
    """

    pipeline: Any
    schedule: Schedule
    shape: tuple[int, ...]
    decode_batch: int = field(default=0, kw_only=True)
    """Pictures decoded at once; 0: about four megapixels of them."""
    prompt_cache: dict[str, Tokens] | None = field(default=None, kw_only=True, repr=False)
    """The tokens of prompts, one row each, that were encoded before the encoders were let go."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What loading left out or filled in, a line each, for people to read once."""
    slope_decoder: nn.Module | None = field(default=None, kw_only=True, repr=False)
    """An autoencoder whose decoder gradients go through, in place of the pipeline's own."""
    offloaded: Offloaded | None = field(default=None, kw_only=True, repr=False)
    """Parts that wait in the computer's memory until they are used."""
    shipped: bool = field(default=False, kw_only=True)
    """Whether the model ships with scoretune, whose pictures are of uniform steps."""
    others: dict[tuple[int, ...], Any] = field(default_factory=dict, kw_only=True, repr=False)
    """The same model in the other sizes that prompts have asked for, by the shapes of states."""
    any_size: ClassVar[bool] = True
    """Whether it draws in sizes that it was not built for."""

    @property
    def part(self) -> str:
        """What diffusers calls the part that is fine-tuned."""
        return autoencoder.denoiser_of(self.pipeline)

    @property
    def targets(self) -> tuple[str, ...]:
        """The layers that a LoRA adapts unless `model.targets` says otherwise: attention."""
        return ATTENTION

    @property
    def encoders(self) -> tuple[str, ...]:
        """What diffusers calls the parts that read prompts."""
        return tuple(name for name in self.pipeline.components if name.startswith("text_encoder"))

    @property
    def edited_sides(self) -> dict[str, int] | None:
        """Height and width of the pictures that it edits; None of a model that edits none."""
        return None

    @property
    def picture_first(self) -> bool:
        """Whether a block of the network puts out the picture before the caption."""
        return False

    @property
    def process(self) -> Process:
        return self.schedule.process

    @property
    def prediction(self) -> Prediction:
        return self.schedule.prediction

    @property
    def deployment(self) -> Deployment | None:
        """How the pipeline itself samples, from its scheduler and its call's own defaults."""
        if self.shipped:
            return None
        steps, guidance = (
            default_argument(self.pipeline, name)
            for name in ("num_inference_steps", "guidance_scale")
        )
        return Deployment(type(self.pipeline).__name__, int(steps), guidance, self.deployed_times)

    def deployed_times(self, steps: int) -> Tensor:
        """The times [N+1] along which the pipeline itself would step, on the CPU."""
        return scheduled_times(
            self.schedule, self.pipeline.scheduler, steps, **self.timestep_arguments(steps)
        )

    def timestep_arguments(self, steps: int) -> dict[str, Any]:
        """What the pipeline gives its scheduler's `set_timesteps` besides the number of steps."""
        return {}

    def told(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """What the network is shown and told of states x [B, *S] at t [B]."""
        scale = self.schedule.scale
        return (x if scale is None else expand(scale(t), x) * x), self.schedule.label(t)

    @property
    def network(self) -> nn.Module:
        return cast(nn.Module, getattr(self.pipeline, self.part))

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in: of its first weight that is no whole number, as those
        packed in four bits are, and not kept in float32 whatever the others are. diffusers' own
        word for it walks through all modules."""
        wide = getattr(type(self.network), "_keep_in_fp32_modules", None) or ()
        return next(
            weight.dtype
            for name, weight in self.network.named_parameters()
            if weight.is_floating_point() and not any(part in name for part in wide)
        )

    @abstractmethod
    def text_states(self, prompts: Sequence[str]) -> Any:
        """All that the network takes of prompts."""

    def null(self, empty: Tensor) -> Tensor:
        """The states [L, D] that guidance is away from, given those of the empty prompt."""
        return empty

    # ------------------------------------------------------------------------------ of any size

    @property
    def multiple(self) -> int:
        """What divides the sides of its pictures, in pixels."""
        return autoencoder.multiple(self.pipeline)

    def shape_of(self, size: Size | None) -> tuple[int, ...]:
        """Of the states of pictures of that size; None is its own. Raises UserError for a size that
        it cannot draw."""
        if size is None:
            return self.shape
        kind, sides = type(self.pipeline).__name__, (size.height, size.width)
        if not self.any_size:
            raise UserError(
                f"{size.where}: it asks for {size}, and a {kind} draws one size alone: take the "
                "columns width and height out"
            )
        multiple = self.multiple
        if any(side % multiple for side in sides):
            low, high = (
                "x".join(str(max(1, round_(side / multiple)) * multiple) for side in sides[::-1])
                for round_ in (math.floor, math.ceil)
            )
            raise UserError(
                f"{size.where}: it asks for {size}, and the sides of a {kind} here are multiples "
                f"of {multiple}: the nearest that work are {low} and {high}"
            )
        return (*self.shape[:-2], *(side // self.factor for side in sides))

    def in_size_of(self, prompts: Sequence[str]) -> Self:
        """The model in the one size that prompts ask for, by the same weights; itself where that is
        its own. Raises UserError for a size that it cannot draw, ValueError for several."""
        shapes = {self.shape_of(size) for size in set(map(size_of, prompts))} or {self.shape}
        if len(shapes) > 1:
            raise ValueError(f"prompts of one batch ask for pictures of {len(shapes)} shapes")
        (shape,) = shapes
        if shape == self.shape:
            return self
        if shape not in self.others:
            self.others[shape] = self.reshaped(shape)
        other: Self = self.others[shape]
        return other

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        """The same weights for states of another shape, with nothing encoded yet; once encoders
        were let go, nothing that can be."""
        cache: dict[str, Tokens] | None = None if self.prompt_cache is None else {}
        return replace(self, shape=shape, prompt_cache=cache, others={})

    # ------------------------------------------------------------------------------ conditions

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """What the network is told of prompts, which ask for one size."""
        return self.in_size_of(prompts).condition(prompts)

    def condition(self, prompts: Sequence[str]) -> Condition:
        """Text states of prompts in its own size; those of the empty prompt serve guidance."""
        texts = [*prompts, ""]
        states = self.text_states(texts) if self.prompt_cache is None else self._cached(texts)
        return Condition(states[:-1], self.null(states[-1]))

    @torch.no_grad()
    def cache_prompts(self, prompts: Sequence[str], batch: int = 32) -> None:
        """Encode these prompts and the empty one for good, in every size that they ask for, and let
        go of the encoders."""
        by_shape: dict[tuple[int, ...], list[str]] = {self.shape: []}
        for prompt in prompts:
            by_shape.setdefault(self.shape_of(size_of(prompt)), []).append(prompt)
        models = [(self.in_size_of(some), some) for some in by_shape.values()]
        for model, some in models:
            model.keep(some, batch)
        if self.offloaded is not None:
            self.offloaded.release(*self.encoders)
        for name in self.encoders:
            setattr(self.pipeline, name, None)

    def keep(self, prompts: Sequence[str], batch: int) -> None:
        """Encode these prompts of its own size, and the empty one, for good."""
        texts = list(dict.fromkeys([*prompts, ""]))
        cache: dict[str, Tokens] = {}
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            states = self.text_states(part).to(torch.device("cpu"))
            cache |= {text: states[i : i + 1] for i, text in enumerate(part)}
        self.prompt_cache = cache

    @torch.no_grad()
    def cut(self, prompts: Iterable[str]) -> tuple[str, ...]:
        """A line for each encoder that does not read the longest of these prompts to its end."""
        longest = max(prompts, key=lambda text: len(text.encode()), default="")
        if not self.encoders or self.prompt_cache is not None:
            return ()
        with watched(self.pipeline) as cuts:
            self.text_states([longest])
        return tuple(
            f"{tokens} tokens of the longest prompt are cut: the {name.replace('_', ' ')} of a "
            f"{type(self.pipeline).__name__} reads {length} ({longest[:40]!r}…)"
            for name, (tokens, length) in cuts.items()
        )

    def offload(self, device: torch.device) -> None:
        """Put the denoiser on a device, and have all else wait in the computer's memory, from where
        each comes to be used; the autoencoder stays once a gradient has passed through it."""
        parts = self.pipeline.components.items()
        modules = {name: part for name, part in parts if isinstance(part, nn.Module)}
        network = modules.pop(self.part)
        self.offloaded = Offloaded(network, modules, device)

    def _cached(self, prompts: Sequence[str]) -> Any:
        cache = self.prompt_cache or {}
        missing = [prompt for prompt in prompts if prompt not in cache]
        if missing:
            raise UserError(
                f"the prompt {missing[0]!r} was not encoded before the text encoders were let go: "
                "set hardware.cache_prompts=false"
            )
        return joined([cache[prompt] for prompt in prompts]).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, tokens: Any) -> Tensor: ...

    @property
    def feature_size(self) -> int:
        """The channels of a UNet's bottleneck, or the width of a transformer."""
        config: Any = self.network.config
        heads = config.get("num_attention_heads"), config.get("attention_head_dim")
        width = config.get("hidden_size") or config.get("dim")
        if "down_blocks" in dict(self.network.named_children()):
            return int(config.block_out_channels[-1])
        return int(width or heads[0] * heads[1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Any) -> tuple[Tensor, Tensor]:
        """`predict`, and the output of the lowest or last block, averaged over the picture."""
        outputs: list[Any] = []
        block = deepest(self.network)
        hook = block.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            prediction = self.predict(x, t, tokens)
        finally:
            hook.remove()
        hidden = outputs[0]
        if isinstance(hidden, tuple):  # behind the caption's, or before it or what skips
            first = self.picture_first or not isinstance(hidden[-1], Tensor)
            hidden = hidden[0] if first else hidden[-1]
        states: Tensor = hidden
        return prediction, states.float().mean((2, 3) if states.dim() == 4 else 1)

    @property
    def followed_decoder(self) -> nn.Module | None:
        """The autoencoder whose decoder gradients of pictures go back through."""
        own: nn.Module | None = self.pipeline.components.get("vae")
        return own if self.slope_decoder is None else self.slope_decoder

    @property
    def factor(self) -> int:
        """How many pixels of a side are one place of a state."""
        return autoencoder.factor(self.pipeline.vae)

    @property
    def frames(self) -> int:
        """Of a video; 0 of a model of pictures."""
        if len(self.shape) < 4:
            return 0
        return (self.shape[1] - 1) * autoencoder.time_factor(self.pipeline.vae) + 1

    def decoded_at_once(self, shape: Sequence[int]) -> int:
        """How many states of a shape go through the autoencoder together."""
        pixels = math.prod(shape[-2:]) * self.factor**2 * max(1, self.frames)
        return self.decode_batch or max(1, DECODED // pixels)

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1], of states of videos videos [B, T, 3, H, W];
        differentiable, as gradient-based rewards need."""
        followed = x0.requires_grad and torch.is_grad_enabled()
        if followed and self.slope_decoder is not None:
            with torch.no_grad():
                exact = self._decoded(self.pipeline.vae, x0)
            return substituted(exact, self._decoded(self.slope_decoder, x0))
        if followed and self.offloaded is not None:
            self.offloaded.release("vae")  # its graph may wait
        return self._decoded(self.pipeline.vae, x0)

    def _decoded(self, vae: nn.Module, x0: Tensor) -> Tensor:
        parts = x0.split(self.decoded_at_once(x0.shape))
        return torch.cat([autoencoder.decoded(vae, part) for part in parts])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Latents [B, C, H/f, W/f] of images in [0, 1], the mode of the encoder's law; of videos
        [B, T, 3, H, W] latents [B, C, T', H/f, W/f]. Raises UserError for pictures where the model
        draws videos."""
        if self.frames and images.dim() == 4:
            raise UserError(
                f"a {type(self.pipeline).__name__} draws videos, and the data are pictures: give a "
                "text-to-image model, or learn from a reward"
            )
        vae, pixels = self.pipeline.vae, math.prod(images.shape[-2:]) * max(1, self.frames)
        parts = images.split(self.decode_batch or max(1, DECODED // pixels))
        return torch.cat([autoencoder.encoded(vae, part) for part in parts])


@dataclass
class Told(Pipelined):
    """A pipeline whose network guidance was distilled into: the scale is an input."""

    scale: float = field(default=0.0, kw_only=True)
    """Of guidance; 0 becomes what the pipeline's call takes unless told otherwise."""

    def __post_init__(self) -> None:
        self.scale = self.scale or float(default_argument(self.pipeline, "guidance_scale"))


def default_argument(pipeline: Any, name: str) -> Any:
    """What a pipeline's call takes for an argument that is not given; None where it has none."""
    arguments = inspect.signature(type(pipeline).__call__).parameters
    return arguments[name].default if name in arguments else None


BLOCKS = ("single_transformer_blocks", "transformer_blocks", "layers", "blocks")
"""What diffusers' transformers call the last of their blocks."""


def deepest(network: nn.Module) -> nn.Module:
    """The lowest block of a UNet, or the block that a transformer's output is read from."""
    parts: dict[str, Any] = dict(network.named_children())
    if "down_blocks" in parts:
        lowest = parts.get("mid_block")
        return cast(nn.Module, parts["down_blocks"][-1] if lowest is None else lowest)
    return cast(nn.Module, next(parts[name][-1] for name in BLOCKS if len(parts.get(name, ()))))


JOINT_ATTENTION = (*ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
"""Where picture and caption attend jointly, each with projections of its own."""


def check_readable(network: str, process: Process, prediction: Prediction) -> None:
    """Refuse a prediction that does not tell x0 at the noisiest time, where sampling begins.

    The determinant αb − σa of `estimates.read`, over the length of (a, b) and (α, σ), tells it.
    """
    t = torch.tensor([process.horizon, (process.horizon + grids.default_end(process)) / 2])
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b = prediction.row(process, t)
    relative = (alpha * b - sigma * a) / (torch.hypot(a, b) * torch.hypot(alpha, sigma))
    if not bool((relative.abs() > 1e-7).all()):
        raise UserError(
            f"{network} cannot be read at the noisiest time of {process}, where no signal is left: "
            "choose v_prediction, velocity or sample"
        )
