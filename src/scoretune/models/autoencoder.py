"""What a pipeline's autoencoder says of its latents, read here alone: how large they are, and how
they are scaled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from scoretune.core.errors import UserError


def factor(vae: Any) -> int:
    """How many pixels of a side are one latent."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))


def decoded(vae: Any, x0: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the latents that a network knows."""
    scale, shift = _standard(vae, x0)
    latents = (x0 / scale + shift).to(_dtype(vae))
    return cast(Tensor, (vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1))


def encoded(vae: Any, images: Tensor) -> Tensor:
    """The inverse: latents [B, C, h, w], the mode of an encoder that puts out a law."""
    code = vae.encode(images.to(_dtype(vae)) * 2 - 1)
    latents = code.latent_dist.mode() if "latent_dist" in code else code.latents
    scale, shift = _standard(vae, images)
    return cast(Tensor, (latents.float() - shift) * scale)


def _dtype(vae: Any) -> torch.dtype:
    """As `vae.dtype`, which walks through all modules for it."""
    weight: Tensor = next(vae.parameters())
    return weight.dtype


def _standard(vae: Any, like: Tensor) -> tuple[float | Tensor, float | Tensor]:
    """(s, m) of x0 = s·(z − m): a factor and a shift, or a deviation and a mean a channel.

    An autoencoder that has no word on one of them leaves it out of its config.
    """
    config = vae.config
    scale, shift = float(config.get("scaling_factor", 1.0)), config.get("shift_factor") or 0.0
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return scale, float(shift)
    mean, deviation = (
        torch.tensor(v, device=like.device).view(1, -1, 1, 1) for v in (mean, deviation)
    )
    return scale / deviation, mean


def latent_shape(source: str, pipeline: Any, part: str, size: int = 0) -> tuple[int, ...]:
    """[C, h, w] of the latents of square pictures of `size` pixels, or (0) of the model's own.

    The network's config says those, else the autoencoder's, else the pipeline. Raises UserError for
    a size that the autoencoder does not divide, and for a network that takes more than latents.
    """
    config, vae = getattr(pipeline, part).config, pipeline.vae
    channels, pixels = latent_channels(source, config, vae), factor(vae)
    patch = pixels * int(config.get("patch_size", 1) or 1)
    if size % patch:
        raise UserError(f"model.size={size} is no multiple of {patch}: set one, in pixels")
    if size:
        return (channels, *(size // pixels,) * 2)
    coded = tuple(side // pixels for side in pair(vae.config.get("sample_size")))
    sides = pair(config.get("sample_size")) or coded
    sides = sides or pair(vars(pipeline).get("default_sample_size"))
    if not sides:
        raise UserError(f"{source!r} does not say how large its pictures are: set model.size")
    return (channels, *sides)


def pair(sides: Any) -> tuple[int, ...]:
    """The sides (h, w) that a config gives as one number or two; () where it gives none."""
    if not sides:
        return ()
    height, width = (sides, sides) if isinstance(sides, int | float) else sides
    return (int(height), int(width))


def latent_channels(source: str, config: Any, vae: Any, patch: int = 1) -> int:
    """The channels of the latents, which must be all that the network takes, in patches of a side
    of `patch`. Raises UserError where it takes more."""
    taken, latents = int(config.in_channels) // patch**2, int(vae.config.latent_channels)
    if taken != latents:
        raise UserError(
            f"{source!r} has a network that takes {taken} channels where its autoencoder has "
            f"{latents}, as for inpainting: no family of this version takes a mask or a picture "
            "beside the noise; give the text-to-image model"
        )
    return latents
