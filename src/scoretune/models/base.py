"""What the families share: a diffusers pipeline as a continuous-time model."""

from __future__ import annotations

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
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process, Tabulated

DECODED = 2**22
"""Pixels that are decoded at once: an autoencoder takes some kilobytes of memory for each."""


@dataclass
class Pipelined(ABC):
    """A diffusers pipeline as a continuous-time model: pictures go through its autoencoder, and
    everything but one `part` of it is frozen.
    """

    pipeline: Any
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]
    part: ClassVar[str]
    """What diffusers calls the part that is fine-tuned."""
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    """The layers that a LoRA adapts unless told otherwise: attention."""
    encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    """What diffusers calls the parts that read prompts."""
    decode_batch: int = field(default=0, kw_only=True)
    """Pictures decoded at once; 0: about four megapixels of them."""
    known: dict[str, Tensor] | None = field(default=None, kw_only=True, repr=False)
    """What the network is told for prompts that were encoded before, each [L, D]."""

    @property
    def network(self) -> nn.Module:
        return cast(nn.Module, getattr(self.pipeline, self.part))

    @abstractmethod
    def told(self, prompts: Sequence[str]) -> Tensor:
        """What the network is told for prompts, [B, L, D]: their states, all that it needs."""

    def null(self, empty: Tensor) -> Tensor:
        """What guidance is away from, [L, D], given what the empty prompt is, [L, D]."""
        return empty

    @torch.no_grad()
    def encode(self, prompts: Sequence[str]) -> Condition:
        """Prompts as the network is told them; the empty prompt's states serve guidance."""
        if self.known is None:
            tokens = self.told([*prompts, ""])
        else:
            tokens = self._recalled([*prompts, ""], self.known)
        return Condition(tokens[:-1], self.null(tokens[-1]))

    @torch.no_grad()
    def remember(self, prompts: Sequence[str], batch: int = 32) -> None:
        """Encode these prompts once and for all, and let go of the encoders.

        Only these can be encoded afterwards, and the empty one.
        """
        wanted = list(dict.fromkeys([*prompts, ""]))
        self.known = {}
        for start in range(0, len(wanted), batch):
            texts = wanted[start : start + batch]
            self.known |= zip(texts, self.told(texts).cpu(), strict=True)
        for name in self.encoders:
            setattr(self.pipeline, name, None)

    def _recalled(self, prompts: Sequence[str], known: dict[str, Tensor]) -> Tensor:
        new = [prompt for prompt in prompts if prompt not in known]
        if new:
            raise UserError(
                f"the prompt {new[0]!r} was not encoded before the text encoders were let go: set "
                "hardware.cache_prompts=false"
            )
        device = next(self.network.parameters()).device
        return torch.stack([known[prompt] for prompt in prompts]).to(device)

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor: ...

    def predict_and_watch(
        self, module: nn.Module, x: Tensor, t: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Any]:
        """`predict`, and what a module inside the network put out on the way."""
        seen: list[Any] = []
        hook = module.register_forward_hook(lambda module, given, found: seen.append(found))
        try:
            output = self.predict(x, t, tokens)
        finally:
            hook.remove()
        return output, seen[0]

    def decode(self, x0: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [0, 1]; differentiable, as gradient-based rewards need."""
        return torch.cat([self._pixels(part) for part in x0.split(self._decoded_at_once(x0))])

    def _decoded_at_once(self, x0: Tensor) -> int:
        factor = 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)
        pixels = math.prod(x0.shape[2:]) * factor**2
        return self.decode_batch or max(1, DECODED // pixels)

    def _pixels(self, x0: Tensor) -> Tensor:
        vae, shift = self.pipeline.vae, self.pipeline.vae.config.shift_factor or 0.0
        latents = x0.to(vae.dtype) / vae.config.scaling_factor + shift
        return cast(Tensor, (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1))

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Latents [B, C, H/f, W/f] of images in [0, 1], the mode of the encoder's law."""
        vae, shift = self.pipeline.vae, self.pipeline.vae.config.shift_factor or 0.0
        parts = [
            vae.encode(part.to(vae.dtype) * 2 - 1).latent_dist.mode() for part in images.split(64)
        ]
        return (torch.cat(parts).float() - shift) * float(vae.config.scaling_factor)


class Conditional(Pipelined):
    """A pipeline around a UNet2DConditionModel."""

    part: ClassVar[str] = "unet"

    @property
    def feature_size(self) -> int:
        """The channels of the UNet's bottleneck."""
        return int(self.pipeline.unet.config.block_out_channels[-1])

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """`predict`, and the mid-block's output [B, F, h, w] averaged over the picture."""
        output, hidden = self.predict_and_watch(self.pipeline.unet.mid_block, x, t, tokens)
        return output, cast(Tensor, hidden).float().mean((2, 3))

    def told_of_guidance(self, scale: float, x: Tensor) -> Tensor:
        """What a UNet that guidance was distilled into is told of it, [B, G]: sines of scale − 1
        (arXiv 2210.03142)."""
        unet = self.pipeline.unet
        told = self.pipeline.get_guidance_scale_embedding(
            torch.tensor([scale - 1.0]), unet.config.time_cond_proj_dim
        )
        return cast(Tensor, told.to(x.device, unet.dtype).expand(len(x), -1))


def latent_shape(pipeline: Any, config: Any, size: int = 0) -> tuple[int, ...]:
    """[C, h, w] of the latents of square pictures, of `size` pixels or (0) as the network's config
    has them. Raises UserError for a size that the autoencoder does not divide.
    """
    if not size:
        return (config.in_channels, *(config.sample_size,) * 2)
    factor = 2 ** (len(pipeline.vae.config.block_out_channels) - 1)
    patch = factor * int(config.get("patch_size", 1) or 1)
    if size % patch:
        raise UserError(f"model.size={size} is no multiple of {patch}: set one, in pixels")
    return (config.in_channels, *(size // factor,) * 2)


def packed(states: Tensor, pooled: Tensor) -> Tensor:
    """Text states [B, L, D] and a pooled state [B, P] as one condition, [B, L + ⌈P/D⌉, D].

    A condition has tokens only, so the pooled state comes last, as one more row of them or as many
    as it fills, zeros behind it.
    """
    rows, width = _rows(pooled.shape[-1], states.shape[-1]), states.shape[-1]
    padded = F.pad(pooled.to(states), (0, rows * width - pooled.shape[-1]))
    return torch.cat([states, padded.unflatten(1, (rows, width))], 1)


def unpacked(tokens: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The inverse of `packed`: states [B, L, D] and the pooled state [B, P = size]."""
    rows = _rows(size, tokens.shape[-1])
    return tokens[:, :-rows], tokens[:, -rows:].flatten(1)[:, :size]


def _rows(size: int, width: int) -> int:
    return -(-size // width)


LEAST_SIGNAL = 2**-24  # of a table that ends without any: a process needs some


def scheduled(source: str, scheduler: Any) -> tuple[Tabulated, Prediction]:
    """The noise table and the prediction that the scheduler of the model `source` is made for.

    Raises UserError where there is no table, as with the schedulers of flows, and for a prediction
    that is not known.
    """
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
    found = table.double()
    smallest = float(found[found > 0].min())
    least = LEAST_SIGNAL if smallest > LEAST_SIGNAL else smallest / 2
    return Tabulated(tuple(torch.where(found > 0, found, least).tolist())), prediction
