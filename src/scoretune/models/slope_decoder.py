"""A small decoder that a reward's gradient goes back through, in place of the model's own.

    picture: D(x0), value: reward(D(x0)), gradient: Jₛ(x0)ᵀ ∇reward at D(x0)

D is the model's decoder, Jₛ the Jacobian of a small one that draws nearly the same, such as the
`AutoencoderTiny`s that people distil from Stable Diffusion's, SDXL's, SD3's and FLUX.1's. Pictures
and rewards stay exact; only the way back is another's, whose graph takes a fraction of the memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.core.reading import read_json
from scoretune.models import autoencoder
from scoretune.models.folders import channels_last

SETTING = "model.slope_decoder"


def substituted(exact: Tensor, similar: Tensor) -> Tensor:
    """`exact` [B, …] in value, with the gradient of `similar` [B, …], which is finite."""
    return exact.detach() + (similar - similar.detach())


def load(source: str, vae: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The frozen autoencoder of a folder or hub id, on the CPU. Raises UserError for what is no
    autoencoder of the latents of `vae`, and for pickles."""

    def read(here: bool) -> Any:
        made = _class_of(source, here=here)
        return made.from_pretrained(
            hub.place(source), use_safetensors=True, local_files_only=here, dtype=dtype
        )

    small = hub.offline_first(
        source, "an autoencoder with safetensors weights", read, setting=SETTING
    )
    check(source, small, vae)
    channels_last(small)
    return cast(nn.Module, small.requires_grad_(False).eval())


def without_weights(source: str, vae: nn.Module, dtype: torch.dtype) -> nn.Module:
    """As `load`, of shapes alone, on the meta device: no weights are read or downloaded."""

    def read(here: bool) -> tuple[Any, Any]:
        made = _class_of(source, here=here)
        return made, made.load_config(hub.place(source), local_files_only=here)

    made, config = hub.offline_first(source, "an autoencoder", read, setting=SETTING)
    with torch.device("meta"):
        small = made.from_config(config)
    check(source, small, vae)
    return cast(nn.Module, small.to(dtype).requires_grad_(False).eval())


def _class_of(source: str, *, here: bool) -> Any:
    """The class of diffusers that a folder's or hub id's config names."""
    import diffusers

    if hub.is_local(source):
        path = Path(source).expanduser()
        if not (path / "config.json").is_file():
            raise UserError(
                f"{SETTING}={source}: there is no config.json, hence no autoencoder: give the "
                "folder of one, such as a pipeline's vae/, or a hub id"
            )
        hub.refuse_pickles(path, "save it by diffusers' save_pretrained")
        config: Any = read_json(path / "config.json")
    else:
        config = diffusers.AutoencoderTiny.load_config(source, local_files_only=here)
    named = str(config.get("_class_name"))
    made = getattr(diffusers, named, None) if named.startswith("Autoencoder") else None
    if made is None:
        raise UserError(f"{SETTING}={source} is a {named}, not an autoencoder of diffusers")
    return made


def check(source: str, small: Any, vae: Any) -> None:
    """Refuse a decoder of other latents than the model's, and one of pictures for videos."""
    measures = [("latent channels", autoencoder.channels), ("pixels a latent", autoencoder.factor)]
    pictures = autoencoder.time_factor(vae) == 1
    if not (pictures and autoencoder.in_frames(small)):
        measures.append(("frames a latent", autoencoder.time_factor))
    for what, of in measures:
        theirs, ours = of(small), of(vae)
        if theirs != ours:
            raise UserError(
                f"{SETTING}={source} has {theirs} {what}, and the model's autoencoder {ours}: "
                "give one that was made for the same latents"
            )
