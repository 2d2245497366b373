"""Networks that learn one number from votes: what they see of pictures and prompts, and heads.

A *view* turns pictures and prompts into features by networks that stay as they are; a *head* turns
features into a score and is what learns. Three kinds of views:

* `pixels`: the picture itself and the prompt's words; the head is a small convolutional network;
* `scenes`: what the shipped reader sees in each of the four cells, the prompt's words and what they
  ask for; the head begins at the reader's own opinion;
* a folder or hub id of a CLIP or SigLIP of transformers: both embeddings of length 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.rewards.networks import clip_preprocess, pretrained
from scoretune.rewards.networks.fulfilment import (
    FORM,
    forms_of,
    fulfilment_of_forms,
    on_log_scale,
)
from scoretune.rewards.networks.scene_readers import READS

PADDING, UNKNOWN, WHOLE = 0, 1, 2
"""Numbers of no word, of a word that training had not, and of the prompt as a whole."""
CELLS, GRID, LONGEST = 4, 4, 48
ENCODERS = {"clip": "CLIPModel", "siglip": "SiglipModel", "siglip2": "Siglip2Model"}
"""Classes of transformers by the `model_type` of their config.json."""


class View(Protocol):
    """Pictures [B, 3, H, W] in [0, 1] and prompts as features. Pictures keep their gradient."""

    def pictures(self, images: Tensor) -> Tensor: ...

    def prompts(self, texts: Sequence[str]) -> Tensor: ...


def words_of(text: str) -> list[str]:
    """The words and numbers of a prompt, in lower case."""
    return re.findall(r"\w+", text.lower())


@dataclass(frozen=True)
class Words:
    """Prompts as numbers of words [B, length]: WHOLE first, PADDING last."""

    vocabulary: tuple[str, ...]
    length: int

    @classmethod
    def of(cls, texts: Sequence[str]) -> Words:
        """Every word of these prompts."""
        split = [words_of(text) for text in texts]
        longest = max((len(words) for words in split), default=0)
        return cls(tuple(sorted({word for words in split for word in words})), 1 + longest)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        numbers = {word: WHOLE + 1 + place for place, word in enumerate(self.vocabulary)}
        rows = torch.full((len(texts), min(self.length, LONGEST)), PADDING)
        for row, text in zip(rows, texts, strict=True):
            known = [WHOLE, *(numbers.get(word, UNKNOWN) for word in words_of(text))][: len(row)]
            row[: len(known)] = torch.tensor(known)
        return rows

    @property
    def count(self) -> int:
        return WHOLE + 1 + len(self.vocabulary)


@dataclass(frozen=True)
class Pixels:
    """Pictures as they are, `side` pixels wide and high."""

    words: Words
    side: int

    def pictures(self, images: Tensor) -> Tensor:
        if images.shape[-2:] == (self.side, self.side):
            return images
        size = (self.side, self.side)
        return F.interpolate(images, size, mode="bilinear", antialias=True).clamp(0, 1)

    def prompts(self, texts: Sequence[str]) -> Tensor:
        return self.words(texts)


@dataclass(frozen=True)
class Scenes:
    """What a reader of the shipped world sees in every cell, [B, 4, 30]: probabilities of digits
    and colours, and their logits; a prompt's words and then its form. `reader` gives logits
    [B, 4, 15] of pictures of 32 x 32."""

    words: Words
    reader: nn.Module

    def pictures(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (32, 32):
            raise UserError(
                "features=scenes reads pictures of 32 x 32, and these are "
                f"{images.shape[-1]} x {images.shape[-2]}: take features=pixels, or a CLIP"
            )
        logits = self.reader.to(images.device)(images)
        parts = logits.split([len(world.DIGITS) + 1, len(world.COLOURS)], dim=-1)
        return torch.cat([*(part.softmax(-1) for part in parts), logits / 10], -1)

    def prompts(self, texts: Sequence[str]) -> Tensor:
        return torch.cat([self.words(texts), forms_of(texts)], 1)


@dataclass(frozen=True)
class Encoder:
    """The embeddings of a CLIP or SigLIP, [B, D] of length 1."""

    source: str
    revision: str | None = None

    def pictures(self, images: Tensor) -> Tensor:
        pixels = self._preprocess(images)
        states = self.network.to(images.device).get_image_features(pixel_values=pixels)
        return F.normalize(states.pooler_output.float(), dim=-1)

    @torch.no_grad()
    def prompts(self, texts: Sequence[str]) -> Tensor:
        network = self.network
        longest = network.config.text_config.max_position_embeddings
        padding = True if network.config.model_type == "clip" else "max_length"  # as trained
        words = self._tokenizer(
            list(texts), padding=padding, truncation=True, max_length=longest, return_tensors="pt"
        )
        states = network.get_text_features(**words.to(network.device))
        return F.normalize(states.pooler_output.float(), dim=-1)

    @cached_property
    def network(self) -> Any:
        kind = pretrained.model_type(self.source, revision=self.revision)
        if kind not in ENCODERS:
            raise UserError(
                f"features={self.source}: {kind or 'this'} is no model with embeddings of pictures "
                "and texts: give the folder or hub id of a CLIP or SigLIP"
            )
        return pretrained.network(
            ENCODERS[kind], self.source, revision=self.revision, dtype=torch.float32
        )

    @cached_property
    def _tokenizer(self) -> Any:
        return pretrained.tokenizer(self.source, revision=self.revision)

    @cached_property
    def _preprocess(self) -> clip_preprocess.Preprocessing:
        side = int(self.network.config.vision_config.image_size)
        config = pretrained.preprocessing(self.source, revision=self.revision)
        return clip_preprocess.from_config(config, self.source, side=side)


# ------------------------------------------------------------------------------------ heads


class EmbeddingHead(nn.Module):
    """Ten cosines, and what a layer makes of both embeddings and their product; at first the
    latter is 0, so that learning begins at the encoder's own opinion."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.cosine = nn.Parameter(torch.tensor(10.0))
        self.layers = nn.Sequential(nn.Linear(3 * dimension, width), nn.SiLU(), nn.Linear(width, 1))
        nn.init.zeros_(cast(nn.Linear, self.layers[2]).weight)
        nn.init.zeros_(cast(nn.Linear, self.layers[2]).bias)

    def forward(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """Embeddings [B, D] of pictures and of prompts -> [B]."""
        product = pictures * prompts
        states = torch.cat([pictures, prompts, product * pictures.shape[-1] ** 0.5], -1)
        learned: Tensor = self.layers(states)[:, 0]
        return self.cosine * product.sum(-1) + learned


class WordsHead(nn.Module):
    """Every word of the prompt, with its neighbours, looks for its places in the picture; what it
    finds is judged, and the verdicts of all words are summed."""

    def __init__(self, places: int, channels: int, words: int, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width, padding_idx=PADDING)
        self.near = nn.ModuleList(nn.Conv1d(width, width, 5, padding=2) for _ in range(2))
        self.look = nn.Linear(channels, 2 * width)
        self.place = nn.Parameter(0.1 * torch.randn(places, 2 * width))
        self.verdict = nn.Sequential(nn.Linear(3 * width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """Pictures [B, places, channels] and words [B, L] -> [B]."""
        words, there = self.words(prompts), (prompts != PADDING)[..., None]
        for layer in self.near:
            words = words + there * F.silu(layer(words.transpose(1, 2)).transpose(1, 2))
        keys, values = (self.look(pictures) + self.place).chunk(2, -1)
        attention = (words @ keys.transpose(1, 2) / keys.shape[-1] ** 0.5).softmax(-1)
        seen = attention @ values
        verdicts = self.verdict(torch.cat([words, seen, words * seen], -1))[..., 0]
        total: Tensor = (verdicts * there[..., 0]).sum(-1)
        return total


class ScenesHead(nn.Module):
    """The reader's own opinion, how probable it is on a log scale that the picture shows what was
    asked for, times a factor; and a `WordsHead`, which says 0 at first."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.opinion = nn.Parameter(torch.tensor(3.0))
        self.read = WordsHead(CELLS, 2 * READS, words, width)
        nn.init.zeros_(cast(nn.Linear, self.read.verdict[2]).weight)
        nn.init.zeros_(cast(nn.Linear, self.read.verdict[2]).bias)

    def forward(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """What the reader sees [B, 4, 30], and words and forms [B, L + FORM] -> [B]."""
        fulfilled = fulfilment_of_forms(10 * pictures[..., READS:], prompts[:, -FORM:])
        learned: Tensor = self.read(pictures, prompts[:, :-FORM])
        return self.opinion * on_log_scale(fulfilled) + learned


class PixelsHead(nn.Module):
    """A small convolutional network down to a grid of four by four places, and a `WordsHead`."""

    def __init__(self, side: int, words: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), nn.SiLU()]
        while side > 2 * GRID:
            layers += [
                nn.Conv2d(width, width, 3, stride=2, padding=1),
                nn.GroupNorm(4, width),
                nn.SiLU(),
            ]
            side = -(-side // 2)
        self.look = nn.Sequential(
            *layers, nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(GRID)
        )
        self.read = WordsHead(GRID * GRID, width, words, width)

    def forward(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        """Pictures [B, 3, side, side] in [0, 1] and words [B, L] -> [B]."""
        places = self.look(pictures * 2 - 1).flatten(2).transpose(1, 2)
        return cast(Tensor, self.read(places, prompts))


Kind = Literal["pixels", "scenes", "encoder"]


def kind_of(features: str) -> Kind:
    """The kind of the features of that name: what is no other is an encoder's folder or hub id."""
    kinds: dict[str, Kind] = {"pixels": "pixels", "scenes": "scenes"}
    return kinds.get(features, "encoder")


def head(view: View, width: int) -> nn.Module:
    """A fresh head for what a view gives."""
    if isinstance(view, Encoder):
        return EmbeddingHead(view.prompts(["a"]).shape[-1], width)
    if isinstance(view, Scenes):
        return ScenesHead(view.words.count, width)
    assert isinstance(view, Pixels)
    return PixelsHead(view.side, view.words.count, width)
