"""What a pipeline's autoencoder says of its latents, read here alone: how large they are, of how
many frames, and how they are scaled. Latents are [B, C, h, w], those of videos [B, C, T, h, w]."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core.errors import UserError


def factor(vae: Any) -> int:
    """How many pixels of a side are one place of the latents, as a network sees them."""
    config = vae.config
    named = config.get("scale_factor_spatial") or vars(vae).get("spatial_compression_ratio")
    if named:
        return int(named)
    blocks = config.get("block_out_channels") or config.get("encoder_block_out_channels")
    halved = len(blocks) - 1 if blocks else len(config.temperal_downsample)
    return int(2 ** (halved + _patched(vae)))


def _patched(vae: Any) -> bool:
    """Whether networks know the latents in patches of 2×2, standardised by running statistics."""
    return "batch_norm_eps" in vae.config


def channels(vae: Any) -> int:
    """Of the latents as a network sees them; 0 where a config has no word on them, as that of
    sound."""
    named = vae.config.get("z_dim") or vae.config.get("latent_channels") or 0
    return int(named) * (4 if _patched(vae) else 1)


def time_factor(vae: Any) -> int:
    """How many frames behind the first are one frame of the latents of a video; 1 of pictures."""
    config = vae.config
    ratio = config.get("scale_factor_temporal") or vars(vae).get("temporal_compression_ratio")
    return int(ratio or config.get("temporal_compression_ratio") or 1)


def in_frames(vae: Any) -> bool:
    """Whether it is an autoencoder of videos, to which a picture is a single frame."""
    return "z_dim" in vae.config


def decoded(vae: Any, x0: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [0, 1] of the latents that a network knows; of those of videos,
    videos [B, T, 3, H, W]."""
    scale, shift = _standard(vae, x0)
    latents = (x0 / scale + shift).to(_dtype(vae))
    if _patched(vae):
        latents = F.pixel_shuffle(latents, 2)
    if x0.dim() == 5:
        images = vae.decode(latents, *_finished(vae, latents)).sample.transpose(1, 2)
    elif in_frames(vae):
        images = vae.decode(latents[:, :, None]).sample[:, :, 0]
    else:
        images = vae.decode(latents).sample
    return cast(Tensor, (images.float() / 2 + 0.5).clamp(0, 1))


def _finished(vae: Any, latents: Tensor) -> tuple[Tensor, ...]:
    """The time 0 [B] of a decoder that also takes noise away, as its pipeline tells it unless told
    otherwise."""
    denoises = vae.config.get("timestep_conditioning")
    return (latents.new_zeros(len(latents)),) if denoises else ()


def encoded(vae: Any, images: Tensor) -> Tensor:
    """The inverse: latents, the mode of an encoder that puts out a law."""
    pixels, videos = images.to(_dtype(vae)) * 2 - 1, images.dim() == 5
    if videos:
        pixels = pixels.transpose(1, 2)
    code = vae.encode(pixels[:, :, None] if in_frames(vae) and not videos else pixels)
    if "latent_dist" in code:
        latents = code.latent_dist.mode()
    else:
        latents = code.get("latent", code.get("latents"))
    latents = latents[:, :, 0] if in_frames(vae) and not videos else latents
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
        std = torch.sqrt(bn.running_var + config.batch_norm_eps)
        return 1 / std.view(1, -1, 1, 1), bn.running_mean.view(1, -1, 1, 1)
    scale, shift = float(config.get("scaling_factor", 1.0)), config.get("shift_factor") or 0.0
    known: dict[str, Any] = {**config, **dict(vae.named_buffers(recurse=False))}
    mean, deviation = known.get("latents_mean"), known.get("latents_std")
    if mean is None or deviation is None:
        return scale, float(shift)
    mean, deviation = (
        torch.as_tensor(v, device=like.device).view(1, -1, *[1] * (like.dim() - 2))
        for v in (mean, deviation)
    )
    return scale / deviation, mean


def denoiser_of(pipeline: Any) -> str:
    """What diffusers calls the network that is asked again and again."""
    return "unet" if "unet" in pipeline.components else "transformer"


def multiple(pipeline: Any, packed: int = 1) -> int:
    """What divides the sides of pictures: the autoencoder's factor times the network's patches, or
    those that latents are `packed` in."""
    patches = getattr(pipeline, denoiser_of(pipeline)).config.get("patch_size", 1) or 1
    patch = int(patches if isinstance(patches, int) else patches[-1])  # of videos a time, two sides
    return factor(pipeline.vae) * (packed if packed > 1 else patch)


def latent_shape(
    source: str,
    pipeline: Any,
    size: int | str = 0,
    *,
    packed: int = 1,
    side: int | str = 0,
    pictures: int = 1,
) -> tuple[int, ...]:
    """[C, h, w] of the latents of pictures of `size` pixels, or (0) of the model's own.

    The network's config says those, else (of a UNet first) the autoencoder's or the pipeline, else
    `side` pixels, or width x height. The network takes the latents of so many `pictures` at once,
    in its channels.
    Raises UserError for a size that the autoencoder and the network's patches, or those that
    latents are `packed` in, do not divide, and for a network that takes more than latents.
    """
    config, vae = getattr(pipeline, denoiser_of(pipeline)).config, pipeline.vae
    channels, pixels = latent_channels(source, config, vae, packed, pictures), factor(vae)
    check_multiple(size, multiple(pipeline, packed))
    if size:
        return (channels, *(edge // pixels for edge in pair(size)))
    coded = tuple(edge // pixels for edge in pair(vae.config.get("sample_size")))
    usual = pair(vars(pipeline).get("default_sample_size"))
    usual = tuple(edge // (2 if _patched(vae) else 1) for edge in usual)
    named = pair(config.get("_sample_size")) or pair(config.get("sample_size"))
    named = named or pair((config.get("sample_height"), config.get("sample_width")))
    unet = denoiser_of(pipeline) == "unet"
    sides = named or ((coded or usual) if unet else (usual or coded))
    sides = sides or tuple(edge // pixels for edge in pair(side))
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
    if not sides or sides == (None, None):
        return ()
    if isinstance(sides, str):
        sides = sides.split("x")[::-1]
    height, width = (sides, sides) if isinstance(sides, int | float) else sides
    return (int(height), int(width))


def latent_channels(source: str, config: Any, vae: Any, patch: int = 1, pictures: int = 1) -> int:
    """The channels of the latents, which must be all that the network takes, of so many pictures
    in patches of a side of `patch`. Raises UserError where it takes more."""
    taken = int(config.in_channels) // (patch**2 * pictures)
    latents = channels(vae)
    if taken != latents:
        raise UserError(
            f"{source!r} has a network that takes {taken} channels where its autoencoder has "
            f"{latents}, as for inpainting: no family of this version takes a mask or a picture "
            "beside the noise; give the text-to-image model"
        )
    return latents
