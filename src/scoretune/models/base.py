"""What the families share: a diffusers pipeline as a continuous-time model."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.core.records import Condition
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import Process, expand
from scoretune.models import autoencoder
from scoretune.models.schedulers import Schedule, scheduled_times
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
    part: ClassVar[str]
    """What diffusers calls the part that is fine-tuned."""
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """The layers that a LoRA adapts unless `model.targets` says otherwise: attention."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """What diffusers calls the parts that read prompts."""
    decode_batch: int = field(default=0, kw_only=True)
    """Pictures decoded at once; 0: about four megapixels of them."""
    prompt_cache: dict[str, Tensor] | None = field(default=None, kw_only=True, repr=False)
    """Text states [L, D] of prompts that were encoded before the encoders were let go."""
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    """What loading left out or filled in, a line each, for people to read once."""
    shipped: bool = field(default=False, kw_only=True)
    """Whether the model ships with scoretune, whose pictures are of uniform steps."""

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
        """As the network's own, which walks through all modules for it at every call."""
        return next(self.network.parameters()).dtype

    @abstractmethod
    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """All that the network takes of prompts, [B, L, D]."""

    def null(self, empty: Tensor) -> Tensor:
        """The states [L, D] that guidance is away from, given those of the empty prompt."""
        return empty

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Text states of prompts; those of the empty prompt serve guidance."""
        texts = [*prompts, ""]
        states = self.text_states(texts) if self.prompt_cache is None else self._cached(texts)
        return Condition(states[:-1], self.null(states[-1]))

    @torch.no_grad()
    def cache_prompts(self, prompts: Sequence[str], batch: int = 32) -> None:
        """Encode these prompts and the empty one for good, and let go of the encoders."""
        texts = list(dict.fromkeys([*prompts, ""]))
        cache: dict[str, Tensor] = {}
        for start in range(0, len(texts), batch):
            part = texts[start : start + batch]
            cache |= zip(part, self.text_states(part).cpu(), strict=True)
        self.prompt_cache = cache
        for name in self.encoders:
            setattr(self.pipeline, name, None)

    def _cached(self, prompts: Sequence[str]) -> Tensor:
        cache = self.prompt_cache or {}
        missing = [prompt for prompt in prompts if prompt not in cache]
        if missing:
            raise UserError(
                f"the prompt {missing[0]!r} was not encoded before the text encoders were let go: "
                "set hardware.cache_prompts=false"
            )
        return torch.stack([cache[prompt] for prompt in prompts]).to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor: ...

    def predict_and_record(
        self, module: nn.Module, x: Tensor, t: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Any]:
        """`predict`, and what a module inside the network put out on the way."""
        outputs: list[Any] = []
        hook = module.register_forward_hook(lambda module, args, output: outputs.append(output))
        try:
            prediction = self.predict(x, t, tokens)
        finally:
            hook.remove()
        return prediction, outputs[0]

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]; differentiable, as gradient-based rewards need."""
        pixels = math.prod(x0.shape[2:]) * autoencoder.factor(self.pipeline.vae) ** 2
        parts = x0.split(self.decode_batch or max(1, DECODED // pixels))
        return torch.cat([autoencoder.decoded(self.pipeline.vae, part) for part in parts])

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Latents [B, C, H/f, W/f] of images in [0, 1], the mode of the encoder's law."""
        vae, pixels = self.pipeline.vae, math.prod(images.shape[2:])
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


class UNet(Pipelined):
    """A pipeline around a UNet."""

    part: ClassVar[str] = "unet"

    @property
    def feature_size(self) -> int:
        """The channels of the UNet's bottleneck."""
        return int(self.pipeline.unet.config.block_out_channels[-1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the lowest block's output [B, F, h, w] averaged over the picture."""
        unet = self.pipeline.unet
        lowest = unet.down_blocks[-1] if unet.mid_block is None else unet.mid_block
        output, hidden = self.predict_and_record(lowest, x, t, tokens)
        states: Tensor = hidden[0] if isinstance(hidden, tuple) else hidden
        return output, states.float().mean((2, 3))

    def timestep_cond(self, x: Tensor) -> Tensor | None:
        """The embedded scale of guidance, [B, G]; None where none was distilled into the UNet."""
        return None

    def guidance_embedding(self, scale: float, x: Tensor) -> Tensor:
        """Sines of scale − 1, [B, G]: the input of a UNet that guidance was distilled into
        (arXiv 2210.03142)."""
        unet = self.pipeline.unet
        sines = self.pipeline.get_guidance_scale_embedding(
            torch.tensor([scale - 1.0]), unet.config.time_cond_proj_dim
        )
        return cast(Tensor, sines.to(x.device, unet.dtype).expand(len(x), -1))


@dataclass
class GuidedUNet(Told, UNet):
    """A pipeline around a UNet that is told the scale of guidance, embedded as w = scale − 1."""

    def timestep_cond(self, x: Tensor) -> Tensor | None:
        return self.guidance_embedding(self.scale, x)


JOINT_ATTENTION = (
    *("to_q", "to_k", "to_v", "to_out.0"),
    *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
)
"""Where picture and caption attend jointly, each with projections of its own."""


class Transformer(Pipelined):
    """A pipeline around a transformer."""

    part: ClassVar[str] = "transformer"

    @property
    def feature_size(self) -> int:
        """The width of the transformer."""
        return int(self.pipeline.transformer.inner_dim)

    @property
    def last_block(self) -> nn.Module:
        """The block whose output the prediction is read from."""
        return cast(nn.Module, self.pipeline.transformer.transformer_blocks[-1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the last block's tokens [B, n, F] averaged over the picture."""
        output, hidden = self.predict_and_record(self.last_block, x, t, tokens)
        states: Tensor = hidden[-1] if isinstance(hidden, tuple) else hidden  # behind the caption's
        return output, states.float().mean(1)


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


def packed(states: Tensor, pooled: Tensor) -> Tensor:
    """Text states [B, L, D] and, in rows behind them, a pooled state [B, P]: [B, L + ⌈P/D⌉, D]."""
    rows, width = _rows(pooled.shape[-1], states.shape[-1]), states.shape[-1]
    padded = F.pad(pooled.to(states), (0, rows * width - pooled.shape[-1]))
    return torch.cat([states, padded.unflatten(1, (rows, width))], 1)


def unpacked(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The inverse of `packed`: states [B, L, D] and the pooled state [B, P = size]."""
    rows = _rows(size, tokens.shape[-1])
    return tokens[:, :-rows], tokens[:, -rows:].flatten(1)[:, :size]


def _rows(size: int, width: int) -> int:
    return -(-size // width)
