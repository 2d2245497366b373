"""What a reward server and its client say to each other: version 1 of the protocol.

A client asks by `POST` at the server's own address, with the body

    {"version": 1, "prompts": ["a cat", ...], "metadata": [{}, ...], "images": ["iVBORw0...", ...]}

where the three lists are equally long, every image is a PNG in base64, all of one size, and
`metadata` (which may be missing) holds what belongs to a prompt beside its text. The answer is

    {"version": 1, "scores": [0.25, ...]}

with one finite number an image; higher is better. A refusal is `{"error": "one line"}` with a
status of 400 or above; 429 and 5xx mean that the same question may be asked again, no sooner than
the header `Retry-After` says. `GET` of the address with `/health` behind it answers

    {"version": 1, "ready": true, "reward": "brightness", "fingerprint": {...}}

A message without a version is taken as version 1. With a token, both are asked with the header
`Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from scoretune.core.errors import UserError

VERSION = 1
SIDE = 8192
"""The longest side of a picture, in pixels, that is decoded."""


class Malformed(ValueError):
    """A message that is not what the protocol says; its text is one line that says where."""


class Told(str):
    """A prompt and what belongs to it: a `str` with `metadata`."""

    metadata: Mapping[str, Any]

    def __new__(cls, text: str, metadata: Mapping[str, Any]) -> Told:
        made = super().__new__(cls, text)
        made.metadata = dict(metadata)
        return made


@dataclass(frozen=True)
class Question:
    """Pictures [B, H, W, 3] in 8 bits, and their B prompts."""

    pixels: np.ndarray[Any, np.dtype[np.uint8]]
    prompts: tuple[Told, ...]


def written(question: Question) -> bytes:
    """The body of a request. Raises UserError for metadata that JSON cannot hold."""
    metadata = [dict(prompt.metadata) for prompt in question.prompts]
    try:
        json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the metadata of a prompt cannot be sent as JSON ({error}): keep to text, finite "
            "numbers, lists and objects"
        ) from error
    message = {
        "version": VERSION,
        "prompts": [str(prompt) for prompt in question.prompts],
        "metadata": metadata,
        "images": [_png(picture) for picture in question.pixels],
    }
    return json.dumps(message).encode()


def read(body: bytes) -> Question:
    """The question in a request. Raises Malformed, naming the prompt or image that is wrong."""
    message = _message(body)
    prompts = _list(message, "prompts", str, "text")
    images = _list(message, "images", str, "base64 text")
    metadata = message.get("metadata")
    if metadata is None:
        metadata = [{} for _ in prompts]
    else:
        metadata = _list(message, "metadata", dict, "an object")
    if not len(prompts) == len(images) == len(metadata):
        raise Malformed(
            f"{len(prompts)} prompts, {len(images)} images and {len(metadata)} metadata: "
            "send one of each"
        )
    if not images:
        raise Malformed("no images: send at least one")
    pictures = [_picture(text, place) for place, text in enumerate(images)]
    for place, picture in enumerate(pictures):
        if picture.shape != pictures[0].shape:
            raise Malformed(
                f"image {place} is {_size(picture)} and image 0 is {_size(pictures[0])}: send "
                "images of one size"
            )
    told = [Told(text, data) for text, data in zip(prompts, metadata, strict=True)]
    return Question(np.stack(pictures), tuple(told))


def answered(scores: Sequence[float]) -> bytes:
    """The body of an answer."""
    return json.dumps({"version": VERSION, "scores": list(scores)}).encode()


def read_answer(body: bytes, count: int) -> list[float]:
    """The `count` scores in an answer. Raises Malformed."""
    scores = _message(body).get("scores")
    if not isinstance(scores, list):
        raise Malformed("its answer has no list 'scores'")
    if len(scores) != count:
        raise Malformed(f"it gave {len(scores)} scores for {count} images")
    return [_finite(score, place) for place, score in enumerate(scores)]


def _finite(score: object, place: int) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float):
        raise Malformed(f"score {place} is {_short(json.dumps(score))}, not a number")
    try:
        value = float(score)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise Malformed(f"score {place} is {value}, not a finite number")
    return value


def _message(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        start = _short(body[:200].decode("utf-8", "replace"))
        kind = "HTML" if start.lstrip("'").lstrip().startswith("<") else "something"
        raise Malformed(f"{kind} instead of JSON: {start}") from None
    if not isinstance(message, dict):
        raise Malformed(f"a JSON {type(message).__name__} instead of an object")
    if message.get("version", VERSION) != VERSION:
        raise Malformed(
            f"version {_short(str(message['version']))} of the protocol, where this side speaks "
            f"version {VERSION}"
        )
    return message


def _list(message: Mapping[str, Any], key: str, kind: type, name: str) -> list[Any]:
    found = message.get(key)
    if not isinstance(found, list):
        raise Malformed(f"no list {key!r}")
    for place, entry in enumerate(found):
        if not isinstance(entry, kind):
            raise Malformed(f"entry {place} of {key!r} is not {name}")
    return found


def _png(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)  # fast, and little larger
    return base64.b64encode(buffer.getvalue()).decode()


def _picture(text: str, place: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(base64.b64decode(text, validate=True)), formats=["PNG"]) as file:
            if max(file.size) <= SIDE:
                return np.asarray(file.convert("RGB"))
            size = f"{file.width}x{file.height}"
    except Exception as error:  # a broken picture raises many kinds: binascii, struct, zlib, PIL
        raise Malformed(f"image {place} is not a PNG in base64 ({type(error).__name__})") from error
    raise Malformed(f"image {place} is {size} pixels: at most {SIDE} a side")


def _size(picture: np.ndarray[Any, np.dtype[np.uint8]]) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line[:60] + ("..." if len(line) > 60 else ""))
