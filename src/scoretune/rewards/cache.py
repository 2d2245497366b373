"""Rewards whose scores are cached: pictures as 8-bit pixels, and what each was worth."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretune.core.errors import UserError

Pixels = NDArray[np.uint8]
"""Pictures [B, H, W, 3], red, green, blue, 0 to 255."""


class Cached(ABC):
    """What rewards without a gradient share: they score 8-bit pictures, and cache the scores.

    A subclass is a frozen dataclass with the fields `batch`, how many pictures are scored at once,
    and `cache`, how many scores are kept.
    """

    batch: int
    cache: int

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> [B]."""
        return self.score_cache.scores(eight_bit(images), prompts, self._score, self.batch)

    def __post_init__(self) -> None:
        if self.batch < 1 or self.cache < 0:
            raise UserError(
                f"batch={self.batch}, cache={self.cache}: batch must be 1 or more, cache 0 or more"
            )

    @cached_property
    def score_cache(self) -> ScoreCache:
        """The scores that were given before."""
        return ScoreCache(self.cache)

    @abstractmethod
    def _score(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        """One number a picture, at most `batch` of them."""


def eight_bit(images: Tensor) -> Pixels:
    """Images [B, 3, H, W] in [0, 1] in 8 bits, clipped. Raises UserError for NaN or infinity."""
    images = images.detach().float()
    broken = (~torch.isfinite(images)).flatten(1).any(1)
    if bool(broken.any()):
        raise UserError(
            f"picture {int(broken.nonzero()[0])} of {len(images)} holds NaN or infinity: the model "
            "has diverged; lower the learning rate"
        )
    pixels = (images.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    return cast(Pixels, pixels.contiguous().cpu().numpy())


def metadata_of(prompt: str) -> dict[str, Any]:
    """What a prompt carries beside its text; a plain `str` carries nothing."""
    metadata = getattr(prompt, "metadata", None)
    return dict(metadata) if isinstance(metadata, Mapping) else {}


class ScoreCache:
    """The scores of the `size` pictures and prompts that were scored last; 0 keeps nothing.

    A key is the SHA-256 of the 8-bit pixels, their shape, the prompt and what the prompt carries.
    Scores are plain numbers: a reward with a gradient must not be cached.
    """

    def __init__(self, size: int) -> None:
        self.size, self.hits, self.misses = size, 0, 0
        self._scores: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._scores)

    def scores(
        self,
        pixels: Pixels,
        prompts: Sequence[str],
        score: Callable[[Pixels, list[str]], Sequence[float]],
        batch: int,
    ) -> Tensor:
        """Scores [B] in float32: those kept, and those that `score` gives for `batch` at a time.

        Of equal pairs only one is scored. What was scored before `score` raises stays kept.
        """
        keys = self._keys(pixels, prompts)
        scores = self._recall(keys)
        self.hits += sum(key in scores for key in keys)
        places = {key: place for place, key in reversed(list(enumerate(keys))) if key not in scores}
        missing = sorted(places.values())
        self.misses += len(missing)
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            values = score(pixels[part], [prompts[place] for place in part])
            fresh = {keys[place]: value for place, value in zip(part, values, strict=True)}
            scores.update(fresh)
            self._keep(fresh)
        return torch.tensor([scores[key] for key in keys], dtype=torch.float32)

    def _keys(self, pixels: Pixels, prompts: Sequence[str]) -> list[bytes]:
        pairs = list(zip(pixels, prompts, strict=True))
        if not self.size:
            return [b"%d" % place for place in range(len(pairs))]  # every picture is a new one
        return [_key(picture, prompt) for picture, prompt in pairs]

    def _recall(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        with self._lock:
            kept = [key for key in keys if key in self._scores]
            for key in kept:
                self._scores.move_to_end(key)
            return {key: self._scores[key] for key in kept}

    def _keep(self, scores: Mapping[bytes, float]) -> None:
        with self._lock:
            self._scores.update(scores)
            while len(self._scores) > self.size:
                self._scores.popitem(last=False)


def _key(picture: Pixels, prompt: str) -> bytes:
    head = [list(picture.shape), str(prompt), metadata_of(prompt)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True, default=repr).encode())
    digest.update(picture.tobytes())
    return digest.digest()
