"""What a pipeline's autoencoder says of its latents, read here alone: how large they are, and how
they are scaled."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError


def factor(vae: Any) -> int:
    """How many pixels of a side are one place of the latents, as a network sees them."""
    config = vae.config
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    halved = len(blocks) - 1 if blocks else len(config.temperal_downsample)
    return int(2 ** (halved + _patched(vae)))


def _patched(vae: Any) -> bool:
    """Whether networks know the latents in patches of 2×2, standardised by running statistics."""
    return "batch_norm_eps" in vae.config


def _in_frames(vae: Any) -> bool:
    """Whether it is an autoencoder of videos, to which a picture is a single frame."""
    return "z_dim" in vae.config


def decoded(vae: Any, x0: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the latents that a network knows."""
    scale, shift = _standard(vae, x0)
    latents = (x0 / scale + shift).to(_dtype(vae))
    if _patched(vae):
        latents = F.pixel_shuffle(latents, 2)
    if _in_frames(vae):
        images = vae.decode(latents[:, :, None]).sample[:, :, 0]
    else:
        images = vae.decode(latents).sample
    return cast(Tensor, (images.float() / 2 + 0.5).clamp(0, 1))


def encoded(vae: Any, images: Tensor) -> Tensor:
    """The inverse: latents [B, C, h, w], the mode of an encoder that puts out a law."""
    pixels = images.to(_dtype(vae)) * 2 - 1
    code = vae.encode(pixels[:, :, None] if _in_frames(vae) else pixels)
    if "latent_dist" in code:
        latents = code.latent_dist.mode()
    else:
        latents = code.get("latent", code.get("latents"))
    latents = latents[:, :, 0] if _in_frames(vae) else latents
    latents = F.pixel_unshuffle(latents, 2) if _patched(vae) else latents
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
    if _patched(vae):
        bn = vae.bn.to(like.device)
        deviation = torch.sqrt(bn.running_var + config.batch_norm_eps)
        return 1 / deviation.view(1, -1, 1, 1), bn.running_mean.view(1, -1, 1, 1)
    scale, shift = float(config.get("scaling_factor", 1.0)), config.get("shift_factor") or 0.0
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is None or deviation is None:
        return scale, float(shift)
    mean, deviation = (
        torch.tensor(v, device=like.device).view(1, -1, 1, 1) for v in (mean, deviation)
    )
    return scale / deviation, mean


def denoiser_of(pipeline: Any) -> str:
    """What diffusers calls the network that is asked again and again."""
    return "unet" if "unet" in pipeline.components else "transformer"


def latent_shape(
    source: str,
    pipeline: Any,
    size: int | str = 0,
    *,
    packed: int = 1,
    side: int = 0,
    pictures: int = 1,
) -> tuple[int, ...]:
    """[C, h, w] of the latents of pictures of `size` pixels, or (0) of the model's own.

    The network's config says those, else (of a UNet first) the autoencoder's or the pipeline, else
    `side` pixels. The network takes the latents of so many `pictures` at once, in its channels.
    Raises UserError for a size that the autoencoder and the network's patches, or those that
    latents are `packed` in, do not divide, and for a network that takes more than latents.
    """
    config, vae = getattr(pipeline, denoiser_of(pipeline)).config, pipeline.vae
    channels, pixels = latent_channels(source, config, vae, packed, pictures), factor(vae)
    patch = packed if packed > 1 else int(config.get("patch_size", 1) or 1)
    check_multiple(size, pixels * patch)
    if size:
        return (channels, *(edge // pixels for edge in pair(size)))
    coded = tuple(edge // pixels for edge in pair(vae.config.get("sample_size")))
    usual = pair(vars(pipeline).get("default_sample_size"))
    usual = tuple(edge // (2 if _patched(vae) else 1) for edge in usual)
    named = pair(config.get("_sample_size")) or pair(config.get("sample_size"))
    unet = denoiser_of(pipeline) == "unet"
    sides = named or ((coded or usual) if unet else (usual or coded)) or pair(side // pixels)
    if not sides:
        raise UserError(f"{source!r} does not say how large its pictures are: set model.size")
    return (channels, *sides)


def check_multiple(size: int | str, multiple: int) -> None:
    """Refuse sides that are none."""
    if any(side % multiple for side in pair(size)):
        raise UserError(f"model.size={size} is no multiple of {multiple}: set one, in pixels")


def pair(sides: Any) -> tuple[int, ...]:
    """The sides (h, w) that a config gives as one number or two, or as "width x height"; () where
    it gives none."""
    if not sides:
        return ()
    if isinstance(sides, str):
        sides = sides.split("x")[::-1]
    height, width = (sides, sides) if isinstance(sides, int | float) else sides
    return (int(height), int(width))


def latent_channels(source: str, config: Any, vae: Any, patch: int = 1, pictures: int = 1) -> int:
    """The channels of the latents, which must be all that the network takes, of so many pictures
    in patches of a side of `patch`. Raises UserError where it takes more."""
    taken = int(config.in_channels) // (patch**2 * pictures)
    latents = int(vae.config.get("z_dim") or vae.config.latent_channels) * (
        4 if _patched(vae) else 1
    )
    if taken != latents:
        raise UserError(
            f"{source!r} has a network that takes {taken} channels where its autoencoder has "
            f"{latents}, as for inpainting: no family of this version takes a mask or a picture "
            "beside the noise; give the text-to-image model"
        )
    return latents
