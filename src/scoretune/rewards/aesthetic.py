"""How beautiful a picture is held to be: LAION's aesthetic predictors on a CLIP embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.rewards.base import Batched, Precision
from scoretune.rewards.networks import clip_preprocess, heads, pretrained


@dataclass(frozen=True)
class Aesthetic(Batched):
    """head(e / |e|) with e the CLIP image embedding: about 1 to 10, whatever the prompt.

    head: a .safetensors file, converted from a published .pth: `sac+logos+ava1-l14-linearMSE` (the
    reward of DDPO, arXiv 2305.13301) or a linear one. model: the CLIP it was trained on, folder or
    hub id. Has a gradient by the images.
    """

    head: str = ""
    model: str = "openai/clip-vit-large-patch14"
    revision: str | None = None
    batch: int = 16
    dtype: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.head:
            raise UserError(
                "aesthetic needs head=FILE.safetensors; LAION's sac+logos+ava1-l14-linearMSE.pth "
                'converts with: python -c "import torch, safetensors.torch as s; s.save_file('
                "torch.load('FILE.pth', weights_only=True), 'FILE.safetensors')\""
            )

    def fingerprint(self) -> Mapping[str, str]:
        """The model with its hashes or commit, and the sha256 of the head."""
        path = Path(self.head).expanduser()
        if not path.is_file():
            raise UserError(f"cannot read the head {self.head!r}: give a .safetensors file")
        identity = pretrained.identity(self.model, revision=self.revision)
        return identity | {"head": self.head, "sha256 of the head": hub.sha256(path)}

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        network, head = self._network.to(images.device), self._head.to(images.device)
        pixels = self._preprocess(images).to(network.dtype)
        embedding = network(pixel_values=pixels).image_embeds.float()
        return cast(Tensor, head(F.normalize(embedding, dim=-1)).squeeze(-1))

    @cached_property
    def _network(self) -> Any:
        head = self._head  # first: it is refused sooner than the model loads
        network: Any = pretrained.network(
            "CLIPVisionModelWithProjection",
            self.model,
            revision=self.revision,
            dtype=getattr(torch, self.dtype),
        )
        heads.check_width(head, self.head, network.config.projection_dim)
        return network

    @cached_property
    def _head(self) -> nn.Sequential:
        return heads.load(Path(self.head).expanduser())

    @cached_property
    def _preprocess(self) -> clip_preprocess.Preprocessing:
        side = int(self._network.config.image_size)
        config = pretrained.preprocessing(self.model, revision=self.revision)
        return clip_preprocess.from_config(config, self.model, side=side)
