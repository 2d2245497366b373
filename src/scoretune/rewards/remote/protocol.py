"""What a reward server and its client exchange: version 1 of the protocol.

A client sends `POST` to the server's address with a `ScoreRequest`

    {"version": 1, "prompts": ["a cat", ...], "metadata": [{}, ...], "images": ["iVBORw0...", ...]}

where the three lists are equally long, every image is a PNG in base64, all of one size, and
`metadata` (which may be missing) holds what belongs to a prompt beside its text. The answer is a
`ScoreResponse`

    {"version": 1, "scores": [0.25, ...]}

with one finite number an image; higher is better. A refusal is `{"error": "one line"}` with a
status of 400 or above; 429 and 5xx mean that the same request may be sent again, no sooner than
the header `Retry-After` says. `GET` of the address with `/health` behind it gives a `Health`

    {"version": 1, "ready": true, "reward": "brightness", "fingerprint": {...}}

A message without a version is taken as version 1, and fields that are not named here are ignored.
With a token, both are sent with the header `Authorization: Bearer TOKEN`.
"""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from scoretune.core.errors import UserError, one_line
from scoretune.data.images import decoded
from scoretune.data.prompts import Prompt
from scoretune.rewards.cache import Pixels, metadata_of

SIDE = 8192
"""The longest side of a picture, in pixels, that is decoded."""
PIXELS = 2**26
"""Of all pictures of a request together, at most."""


SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Message(BaseModel):
    """What every message has: the version of the protocol."""

    model_config = ConfigDict(strict=True)
    version: Literal[1] = 1


class ScoreRequest(Message):
    """Pictures and their prompts, to be scored."""

    prompts: list[str]
    metadata: list[dict[str, Any]] | None = None
    images: list[str]


class ScoreResponse(Message):
    """One number a picture."""

    scores: list[FiniteFloat]


class Health(Message):
    """Whether a server is ready and, for callers that it trusts, what exactly scores there."""

    ready: bool
    reward: str | None = None
    fingerprint: dict[str, Any] | None = None


class ProtocolError(ValueError):
    """A message that breaks the protocol; its text is one line that says where."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class Cut(ProtocolError):
    """A message that ends before its JSON does, as when a connection breaks."""


@dataclass(frozen=True)
class Batch:
    """Pictures [B, H, W, 3] in 8 bits, and their B prompts."""

    pixels: Pixels
    prompts: tuple[Prompt, ...]


def encode_request(pixels: Pixels, prompts: Sequence[str]) -> bytes:
    """The body of a request. Raises UserError for metadata that JSON cannot hold."""
    request = ScoreRequest(
        prompts=[str(prompt) for prompt in prompts],
        metadata=[{str(k): v for k, v in metadata_of(prompt).items()} for prompt in prompts],
        images=[_png(picture) for picture in pixels],
    )
    try:
        return json.dumps(request.model_dump(), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"the metadata of a prompt cannot be sent as JSON ({error}): keep to text, finite "
            "numbers, lists and objects"
        ) from error


def decode_request(body: bytes) -> Batch:
    """The pictures and prompts of a request. Raises ProtocolError, which names what is wrong."""
    request = _parsed(ScoreRequest, body)
    prompts, images = request.prompts, request.images
    metadata = [{} for _ in prompts] if request.metadata is None else request.metadata
    if not len(prompts) == len(images) == len(metadata):
        raise ProtocolError(
            f"{len(prompts)} prompts, {len(images)} images and {len(metadata)} metadata: "
            "send one of each"
        )
    if not images:
        raise ProtocolError("no images: send at least one")
    pixels = sum(_pixels_of(text, place) for place, text in enumerate(images))
    if pixels > PIXELS:
        raise ProtocolError(f"the images have {pixels:,} pixels, {PIXELS:,} at most: send fewer")
    pictures = [_picture(text, place) for place, text in enumerate(images)]
    for place, picture in enumerate(pictures):
        if picture.shape != pictures[0].shape:
            raise ProtocolError(
                f"image {place} is {_size(picture)} and image 0 is {_size(pictures[0])}: send "
                "images of one size"
            )
    texts = zip(prompts, metadata, strict=True)
    return Batch(np.stack(pictures), tuple(Prompt(text, extra) for text, extra in texts))


def decode_response(body: bytes, count: int) -> list[float]:
    """The `count` scores of an answer. Raises ProtocolError."""
    scores = _parsed(ScoreResponse, body).scores
    if len(scores) != count:
        raise ProtocolError(f"it gave {len(scores)} scores for {count} images")
    return scores


M = TypeVar("M", bound=Message)


def _parsed(kind: type[M], body: bytes) -> M:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        if "EOF while parsing" in first["msg"]:
            raise Cut(f"JSON that breaks off after {len(body)} bytes")
        start = _short(body[:200].decode("utf-8", "replace"))
        what = "HTML" if start.lstrip("'").lstrip().startswith("<") else "something"
        raise ProtocolError(f"{what} instead of JSON: {start}")
    place = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in first["loc"])
    value = "" if first["type"] == "missing" else f" is {_short(str(first['input']))}"
    reason = first["msg"][:1].lower() + first["msg"][1:]
    raise ProtocolError(f"{place.lstrip('.') or 'the message'}{value}: {reason}")


def _png(picture: Pixels) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)  # fast, and little larger
    return base64.b64encode(buffer.getvalue()).decode()


def _pixels_of(text: str, place: int) -> int:
    """How many a PNG's header promises, before anything is decoded."""
    try:
        header = base64.b64decode(text[:32], validate=True)
        width, height = struct.unpack(">II", header[16:24])
    except (ValueError, struct.error) as error:
        raise _no_picture(place, error) from error
    if not header.startswith(SIGNATURE):
        raise _no_picture(place, ValueError())
    if max(width, height) > SIDE:
        raise ProtocolError(f"image {place} is {width}x{height} pixels: at most {SIDE} a side")
    return int(width * height)


def _picture(text: str, place: int) -> Pixels:
    """A picture in 8 bits, as `data.images` reads one."""
    try:
        unit = decoded(io.BytesIO(base64.b64decode(text, validate=True)), ("PNG",), most=PIXELS)
    except Exception as error:  # a broken picture raises many kinds: binascii, struct, zlib, PIL
        raise _no_picture(place, error) from error
    pixels = np.rint(unit * 255).astype(np.uint8)
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3))


def _no_picture(place: int, error: Exception) -> ProtocolError:
    return ProtocolError(f"image {place} is not a PNG in base64 ({type(error).__name__})")


def _size(picture: Pixels) -> str:
    return f"{picture.shape[1]}x{picture.shape[0]}"


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line[:60] + ("..." if len(line) > 60 else ""))
