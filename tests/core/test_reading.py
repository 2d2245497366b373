"""What a user hands over is read only where it is a regular file of a bounded size."""

from __future__ import annotations

import gzip
import os
import stat
import sys
from pathlib import Path

import pytest
import torch

from scoretune.core import files, reading


@pytest.fixture
def pipe(tmp_path) -> Path:
    os.mkfifo(tmp_path / "pipe.safetensors")
    return tmp_path / "pipe.safetensors"


@pytest.mark.parametrize("read", [reading.read_bytes, reading.read_text, reading.read_json])
def test_only_regular_files_are_opened(read, pipe, tmp_path):
    with pytest.raises(OSError, match="a named pipe, and no regular file"):
        read(pipe)
    with pytest.raises(OSError, match="a device, and no regular file"):
        read(Path("/dev/zero"))
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    (tmp_path / "link").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="a device"):
        read(tmp_path / "link")


def test_weights_in_a_pipe_are_not_waited_for(pipe):
    with pytest.raises(files.UserError, match="a named pipe, and no regular file"):
        files.load_tensors(pipe, "give another")


def test_no_more_is_read_than_the_limit(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"1" * 100)
    assert reading.read_bytes(path, most=100) == b"1" * 100
    with pytest.raises(OSError, match="larger than 0 MiB"):
        reading.read_bytes(path, most=99)


def test_a_gzip_is_unpacked_no_further_than_the_limit():
    packed = gzip.compress(b"0" * 5000) + gzip.compress(b"1" * 5000)  # of two members
    assert reading.unpacked(packed, most=10_000) == b"0" * 5000 + b"1" * 5000
    with pytest.raises(OSError, match="it unpacks to more than 0 MiB"):
        reading.unpacked(packed, most=9_999)
    for broken in (packed[:-9], b"nonsense", packed[:20]):
        with pytest.raises(OSError, match="not a whole gzip file"):
            reading.unpacked(broken)


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (b"a\nb\nc\xe9", "line 3 holds the byte 0xe9, which is not UTF-8"),
        ("é".encode("utf-16"), "text in UTF-16"),
        ("é".encode("utf-32"), "text in UTF-32"),
        (b"\x89PNG\r\n\x1a\n\0\0", "not a text file"),
    ],
)
def test_what_is_not_utf_8_is_said_with_its_place(payload, said):
    with pytest.raises(ValueError, match=said):
        reading.decoded(payload)


def test_a_byte_order_mark_is_no_part_of_a_text():
    assert reading.decoded("é".encode("utf-8-sig")) == "é"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 10**5, "nested too deep"),
        (r'["\ud83d"]', "half a surrogate pair"),
        (r'{"\uDE00": 1}', "half a surrogate pair"),
        ("[1", "Expecting"),
    ],
)
def test_json_that_cannot_be_used_is_a_value_error(text, said):
    with pytest.raises(ValueError, match=said):
        reading.parsed_json(text)


def test_a_whole_surrogate_pair_is_a_character():
    assert reading.parsed_json(r'["\ud83d\ude00"]') == ["😀"]


@pytest.mark.skipif(sys.platform == "win32", reason="no umask")
def test_tensors_are_written_as_the_umask_has_it(tmp_path):
    before = os.umask(0o027)
    try:
        files.save_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640
