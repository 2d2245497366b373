"""A picture is what its own header says: its depth, its rotation, its colours."""

from __future__ import annotations

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from scoretune.core.errors import UserError
from scoretune.data import images
from scoretune.data.images import decoded, read_folder, read_pictures

GREY, RGB, GREY_ALPHA, RGBA = 0, 2, 4, 6


def png(pixels: np.ndarray, bits: int, colour: int) -> io.BytesIO:
    """A PNG by its specification, of 8 or 16 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(f">u{bits // 8}").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return io.BytesIO(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize(("colour", "channels"), [(GREY, 1), (RGB, 3), (GREY_ALPHA, 2), (RGBA, 4)])
@pytest.mark.parametrize("bits", [8, 16])
def test_every_depth_keeps_its_scale(bits, colour, channels):
    pixels = np.random.default_rng(3).integers(0, 2**bits, (5, 7, channels))
    if channels % 2 == 0:
        pixels[..., -1] = 2**bits - 1  # nothing is transparent
    wanted = pixels[..., : 3 if channels > 2 else 1] / (2**bits - 1)
    ours = decoded(png(pixels, bits, colour))
    assert ours.dtype == np.float32 and abs(ours - wanted).max() < 1 / 250


def test_sixteen_bits_of_grey_are_not_rounded_to_eight():
    pixels = np.array([[[0], [1], [32768], [65535]]])
    assert decoded(png(pixels, 16, GREY))[0, :, 0] == pytest.approx([0, 1 / 65535, 0.5000076, 1])


def saved(image: Image.Image, kind: str = "PNG", **settings) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **settings)
    stream.seek(0)
    return stream


def test_a_rotation_by_the_camera_is_applied():
    upright = np.zeros((16, 32), np.uint8)
    upright[:, :16] = 255  # white at the left
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    stream = saved(Image.fromarray(np.rot90(upright)), "JPEG", exif=exif, quality=100)
    assert decoded(stream)[..., 0] == pytest.approx(upright / 255, abs=0.05)


def test_palettes_cmyk_and_transparency_become_colours():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    wanted = np.broadcast_to(np.float32([1, 0, 0]), (2, 2, 3))
    assert np.array_equal(decoded(saved(red.convert("P"))), wanted)
    assert decoded(saved(red.convert("CMYK"), "JPEG")) == pytest.approx(wanted, abs=0.02)
    half = Image.new("RGBA", (2, 2), (255, 0, 0, 51))  # a fifth of red on white
    assert decoded(saved(half))[0, 0] == pytest.approx([1, 0.8, 0.8], abs=1e-6)
    nothing = Image.new("LA", (2, 2), (0, 0))
    assert decoded(saved(nothing)).tolist() == np.ones((2, 2, 1)).tolist()
    bit = Image.new("1", (2, 2), 1)
    assert decoded(saved(bit)).tolist() == np.ones((2, 2, 1)).tolist()


def test_a_picture_is_refused_by_its_header_before_it_is_decoded():
    small = saved(Image.new("L", (300, 200)))
    assert decoded(small, most=60_000).shape == (200, 300, 1)
    with pytest.raises(ValueError, match="300x200 pixels: at most 59,999"):
        decoded(small, most=59_999)
    huge = png(np.zeros((1, 1, 1)), 8, GREY).getvalue()
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, GREY, 0, 0, 0)
    bomb = huge[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + huge[33:]
    with pytest.raises(ValueError, match=r"limit|pixels"):
        decoded(io.BytesIO(bomb))
    with pytest.raises(ValueError, match="it is no PNG or JPEG"):
        decoded(saved(Image.new("L", (2, 2)), "GIF"))


def test_what_is_wrong_in_a_folder_is_one_line(tmp_path, monkeypatch):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt': line 1 holds the byte 0xe9, which is not UTF-8"):
        read_pictures(str(tmp_path), 0)
    os.mkfifo(tmp_path / "b.png")
    with pytest.raises(UserError, match=r"b\.png': a named pipe, and no regular file"):
        read_folder(tmp_path)
    (tmp_path / "b.png").unlink()
    monkeypatch.setattr(images.reading, "memory", lambda: 60)
    with pytest.raises(UserError, match="more numbers than this machine's memory"):
        read_folder(tmp_path)
