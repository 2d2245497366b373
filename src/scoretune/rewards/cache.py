"""Scores that were given before: pictures as 8-bit pixels, and a memory of what each was worth."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoretune.core.errors import UserError

Pixels = NDArray[np.uint8]
"""Pictures [B, H, W, 3], red, green, blue, 0 to 255."""


def eight_bit(images: Tensor) -> Pixels:
    """What a screen shows of images [B, 3, H, W] in [0, 1]; beyond that range they are cut off.

    Raises UserError for a picture that holds NaN or infinity.
    """
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
    found = getattr(prompt, "metadata", None)
    return dict(found) if isinstance(found, Mapping) else {}


class Memory:
    """The scores of the `size` pictures and prompts that were asked for last; 0 remembers nothing.

    A picture is known by the SHA-256 of its 8-bit pixels, its shape, its prompt and what the prompt
    carries. Scores are plain numbers: a reward with a gradient must not be remembered.
    """

    def __init__(self, size: int) -> None:
        if size < 0:
            raise UserError(f"cache={size}: give how many scores to remember, 0 for none")
        self.size, self.hits, self.misses = size, 0, 0
        self._known: OrderedDict[bytes, float] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._known)

    def scores(
        self,
        pixels: Pixels,
        prompts: Sequence[str],
        ask: Callable[[Pixels, list[str]], Sequence[float]],
        batch: int,
    ) -> Tensor:
        """Scores [B] in float32: those known, and those that `ask` gives for `batch` at a time.

        Of equal pictures with equal prompts only one is asked for. What was answered before `ask`
        raises stays known.
        """
        keys = self._keys(pixels, prompts)
        scores = self._recalled(keys)
        self.hits += sum(key in scores for key in keys)
        places = {key: place for place, key in reversed(list(enumerate(keys))) if key not in scores}
        wanted = sorted(places.values())
        self.misses += len(wanted)
        for start in range(0, len(wanted), batch):
            chosen = wanted[start : start + batch]
            answers = ask(pixels[chosen], [prompts[place] for place in chosen])
            fresh = {keys[place]: answer for place, answer in zip(chosen, answers, strict=True)}
            scores.update(fresh)
            self._keep(fresh)
        return torch.tensor([scores[key] for key in keys], dtype=torch.float32)

    def _keys(self, pixels: Pixels, prompts: Sequence[str]) -> list[bytes]:
        pairs = list(zip(pixels, prompts, strict=True))
        if not self.size:
            return [b"%d" % place for place in range(len(pairs))]  # every picture is a new one
        return [_key(picture, prompt) for picture, prompt in pairs]

    def _recalled(self, keys: Sequence[bytes]) -> dict[bytes, float]:
        with self._lock:
            known = [key for key in keys if key in self._known]
            for key in known:
                self._known.move_to_end(key)
            return {key: self._known[key] for key in known}

    def _keep(self, scores: Mapping[bytes, float]) -> None:
        with self._lock:
            self._known.update(scores)
            while len(self._known) > self.size:
                self._known.popitem(last=False)


def _key(picture: Pixels, prompt: str) -> bytes:
    told = [list(picture.shape), str(prompt), metadata_of(prompt)]
    found = hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode())
    found.update(picture.tobytes())
    return found.digest()
