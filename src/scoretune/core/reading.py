"""Reading what a user hands over: regular files of a bounded size, as bytes, UTF-8 or JSON.

What is wrong is an OSError with its `strerror`, or a ValueError that says which cause was seen;
whoever reads adds the file's name and what to do about it.
"""

from __future__ import annotations

import codecs
import errno
import gzip
import json
import os
import re
import stat
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

MOST_BYTES = 2**28
"""Of a file that is read whole, packed and unpacked."""
KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def check_regular(path: Path) -> None:
    """Raise OSError for what is there and no regular file: a pipe or a device may never end."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"{kind}, and no regular file", str(path))


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file. Raises OSError, also for more than `most` bytes."""
    check_regular(path)
    with path.open("rb") as stream:
        payload = stream.read(most + 1)  # files of /proc have no size until they are read
    if len(payload) > most:
        raise OSError(errno.EFBIG, f"larger than {most >> 20} MiB", str(path))
    return payload


def unpacked(packed: bytes, most: int = MOST_BYTES) -> bytes:
    """What gzip packed. Raises OSError for no gzip, a part of one, or one that holds too much."""
    try:
        with gzip.GzipFile(fileobj=BytesIO(packed)) as stream:
            payload = stream.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise OSError(errno.EINVAL, "not a whole gzip file") from error
    if len(payload) > most:
        raise OSError(errno.EFBIG, f"it unpacks to more than {most >> 20} MiB")
    return payload


def decoded(payload: bytes) -> str:
    """The text of UTF-8, without a byte-order mark. Raises ValueError with the line."""
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for mark, name in MARKS.items():
            if payload.startswith(mark):
                raise ValueError(f"it is text in {name}: save it as UTF-8") from error
        if b"\0" in payload[:4096]:
            raise ValueError("not a text file") from error
        line = payload.count(b"\n", 0, error.start) + 1
        byte = payload[error.start]
        raise ValueError(
            f"line {line} holds the byte 0x{byte:02x}, which is not UTF-8: save it as UTF-8"
        ) from error


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """The text of a regular file in UTF-8. Raises OSError or ValueError."""
    return decoded(read_bytes(path, most))


def parsed_json(text: str) -> Any:
    """What JSON says. Raises ValueError, also for a tree too deep and for half a surrogate pair."""
    try:
        tree = json.loads(text)
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(tree, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half a surrogate pair, which is no character") from error
    return tree


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """What a JSON file says. Raises OSError or ValueError."""
    return parsed_json(read_text(path, most))


def memory() -> int:
    """Bytes of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
