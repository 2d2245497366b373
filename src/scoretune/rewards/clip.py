"""How well a picture fits its prompt, by a CLIP model: CLIP score, PickScore, HPS v2.

All three are the cosine between the normalised embeddings of picture and text, from a CLIPModel of
transformers. They differ in its weights, in the factor, and in how a picture is made square. All
have a gradient by the images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.rewards.base import Batched, Precision
from scoretune.rewards.networks import clip_preprocess, pretrained

VIT_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


@dataclass(frozen=True)
class Similarity(Batched):
    """What the three share: a CLIPModel, loaded at the first call, on the images' device.

    model: folder or hub id; processor: where its tokenizer and preprocessing are (empty: in the
    model's folder or repository); revision: of the model; batch: pictures at once; dtype: of the
    network.
    """

    model: str = "openai/clip-vit-large-patch14"
    processor: str = ""
    revision: str | None = None
    batch: int = 16
    dtype: Precision = "float32"

    def fingerprint(self) -> Mapping[str, str]:
        """The model's and the processor's folder or hub id, with hashes or commit."""
        identity = pretrained.identity(self.model, revision=self.revision)
        source, revision = self._processor
        if source != self.model:
            identity |= pretrained.identity(source, revision=revision, part="processor ")
        return identity

    def cosines(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """cos(image, text), [B], in float32."""
        network = self._network.to(images.device)
        pixels = self._preprocess(images).to(network.dtype)
        image_embeddings = network.get_image_features(pixel_values=pixels).pooler_output
        texts = list(dict.fromkeys(prompts))  # a group's samples share their prompt
        with torch.no_grad():
            longest = network.config.text_config.max_position_embeddings
            words = self._tokenizer(
                texts, padding=True, truncation=True, max_length=longest, return_tensors="pt"
            ).to(images.device)
            text_embeddings = network.get_text_features(**words).pooler_output
        text_embeddings = text_embeddings[[texts.index(prompt) for prompt in prompts]]
        return F.cosine_similarity(image_embeddings.float(), text_embeddings.float(), dim=-1)

    @property
    def _processor(self) -> tuple[str, str | None]:
        return (self.processor, None) if self.processor else (self.model, self.revision)

    @cached_property
    def _network(self) -> Any:
        return pretrained.network(
            "CLIPModel", self.model, revision=self.revision, dtype=getattr(torch, self.dtype)
        )

    @cached_property
    def _tokenizer(self) -> Any:
        source, revision = self._processor
        return pretrained.tokenizer(source, revision=revision)

    @cached_property
    def _preprocess(self) -> clip_preprocess.Preprocessing:
        source, revision = self._processor
        side = int(self._network.config.vision_config.image_size)
        config = pretrained.preprocessing(source, revision=revision)
        return clip_preprocess.from_config(config, source, side=side)


@dataclass(frozen=True)
class Clip(Similarity):
    """CLIP score: scale · cos(image, text), by default 100 times the cosine.

    The paper's own is `clip(scale=2.5, clipped=True)`, 2.5 · max(cos, 0) (arXiv 2104.08718 eq. 1).
    Not clipped by default: a maximum with 0 has no gradient where the cosine is negative.
    """

    scale: float = 100.0
    clipped: bool = False

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        cosines = self.cosines(images, prompts)
        return self.scale * (cosines.clamp(min=0) if self.clipped else cosines)


@dataclass(frozen=True)
class _OnVitH(Similarity):
    """Fine-tuned from LAION's ViT-H/14; a folder or repository without a tokenizer uses its."""

    @property
    def _processor(self) -> tuple[str, str | None]:
        if self.processor:
            return self.processor, None
        folder = Path(self.model).expanduser()
        files = ("tokenizer_config.json", "tokenizer.json")
        has_tokenizer = any((folder / name).exists() for name in files)
        return (self.model, None) if has_tokenizer else (VIT_H, None)


@dataclass(frozen=True)
class PickScore(_OnVitH):
    """PickScore: exp(logit_scale) · cos(image, text) (arXiv 2305.01569 section 4), about 20.

    Raw: Flow-GRPO divides it by 26, which is `0.0385*pickscore` in a sum.
    """

    model: str = "yuvalkirstain/PickScore_v1"

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        cosines = self.cosines(images, prompts)
        return cast(Tensor, self._network.logit_scale.exp().float() * cosines)


@dataclass(frozen=True)
class HpsV2(_OnVitH):
    """HPS v2 and v2.1: cos(image, text) (arXiv 2306.09341), about 0.28.

    `model` is a folder of a CLIPModel: the release is a pickle for another library, which
    `scoretune.convert.hpsv2` converts. A picture that is not square is padded with black.
    """

    model: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model or Path(self.model).suffix in hub.PICKLES:
            raise UserError(
                "hpsv2 needs model=FOLDER; make one of the released pickle, if you trust it: python"
                ' -c "import scoretune, torch; scoretune.convert.hpsv2(torch.load('
                f"{self.model or 'HPS_v2.1_compressed.pt'!r}, weights_only=True)['state_dict'], "
                "'FOLDER')\""
            )

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.cosines(images, prompts)

    @cached_property
    def _preprocess(self) -> clip_preprocess.Preprocessing:
        side = int(self._network.config.vision_config.image_size)
        return clip_preprocess.Preprocessing(side=side, fit="pad")
