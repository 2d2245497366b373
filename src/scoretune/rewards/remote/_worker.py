"""The other end of `isolated`: one function of the user's, called on pictures that come by pipe.

This file is run by a foreign interpreter, which may know neither scoretune nor torch. It imports
the standard library alone, and NumPy or Pillow where the function wants its pictures in them; it
keeps to Python 3.8. Arguments: `module:function`, and how pictures are given (pil, numpy or raw).

A frame is two big-endian 64-bit lengths, a JSON object of the first, and bytes of the second. The
first frame is `{"ready": {...}}` or `{"broken": "..."}`; then every `{"shape": [B, H, W],
"prompts": [...], "metadata": [...]}` with its raw pixels is answered by `{"scores": [...]}` or
`{"error": "..."}`, until the input ends.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import struct
import sys
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO

LENGTHS = struct.Struct(">QQ")


class Prompt(str):
    """A prompt, and what belongs to it beside its text."""

    metadata: dict[str, Any]


def main() -> None:
    """Answer until the input ends."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # From here on what the user's code prints goes to stderr, and what it reads is nothing.
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    path, kind = sys.argv[1:]
    try:
        function, description = load(path)
    except BaseException as error:  # SystemExit too: the user's import may do anything
        send(sink, {"broken": last_line(error)})
        return
    send(sink, {"ready": description})
    while True:
        frame = receive(source)
        if frame is None:
            return
        try:
            answer: dict[str, Any] = {"scores": score(function, kind, *frame)}
        except Exception as error:
            answer = {"error": last_line(error)}
        send(sink, answer)


def load(path: str) -> tuple[Callable[..., Any], dict[str, str]]:
    """The function `module:function`, and what it is: its interpreter, version and file."""
    sys.path[0] = os.getcwd()
    module_name, _, name = path.partition(":")
    module = importlib.import_module(module_name)
    function = module
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{path!r} is a {type(function).__name__}, not a function")
    description = {"interpreter": ".".join(map(str, sys.version_info[:3]))}
    description["version"] = str(getattr(module, "__version__", ""))
    file = getattr(module, "__file__", None)
    if file and os.path.exists(file):
        with open(file, "rb") as source:
            description["sha256"] = hashlib.sha256(source.read()).hexdigest()
    return function, description


def score(
    function: Callable[..., Any], kind: str, request: dict[str, Any], pixels: bytes
) -> list[float]:
    """What the function returns, as plain numbers: lists, arrays and tensors have a length."""
    prompts = [Prompt(text) for text in request["prompts"]]
    for place, metadata in enumerate(request["metadata"]):
        prompts[place].metadata = metadata
    values = function(pictures(kind, request["shape"], pixels), prompts)
    return [float(value) for value in values]


def pictures(kind: str, shape: list[int], pixels: bytes) -> Any:
    """Pillow images, one array [B, H, W, 3] of uint8, or triples (width, height, rgb bytes)."""
    count, height, width = shape
    if kind == "numpy":
        import numpy

        return numpy.frombuffer(pixels, numpy.uint8).reshape(count, height, width, 3).copy()
    size = height * width * 3
    parts = [pixels[place * size : (place + 1) * size] for place in range(count)]
    if kind == "raw":
        return [(width, height, part) for part in parts]
    from PIL import Image

    return [Image.frombytes("RGB", (width, height), part) for part in parts]


def receive(source: BinaryIO) -> tuple[dict[str, Any], bytes] | None:
    """The next frame, or None where the input ends."""
    head = source.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    first, second = LENGTHS.unpack(head)
    return json.loads(source.read(first).decode()), source.read(second)


def send(sink: BinaryIO, message: dict[str, Any]) -> None:
    """Write a frame without bytes."""
    body = json.dumps(message).encode()
    sink.write(LENGTHS.pack(len(body), 0) + body)
    sink.flush()


def last_line(error: BaseException) -> str:
    """The last line of the error's traceback."""
    lines = "".join(traceback.format_exception_only(type(error), error)).split("\n")
    return [line for line in lines if line.strip()][-1].strip()


if __name__ == "__main__":
    main()
