"""Pictures as files by the sha256 of what is in them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.files import whole
from scoretune.data import images

MAGIC = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


class Filed(NamedTuple):
    """A picture that is on the disk."""

    sha256: str
    ending: str
    width: int
    height: int


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures, each at `ab/abcdef….png`."""

    folder: Path

    def file(self, sha256: str, ending: str) -> Path:
        """Where a picture is."""
        return self.folder / sha256[:2] / (sha256 + ending)

    def relative(self, filed: Filed) -> str:
        """A picture's file within the folder."""
        return self.file(filed.sha256, filed.ending).relative_to(self.folder).as_posix()

    def add(self, picture: Tensor | bytes) -> Filed:
        """Put a picture there, [3, H, W] in [0, 1] or the bytes of a PNG, JPEG or WEBP, which stay
        as they are. Raises UserError for what is no picture or too large."""
        payload = picture if isinstance(picture, bytes) else as_png(picture)
        try:
            height, width, _ = images.look(payload)
        except ValueError as error:
            raise UserError(f"this is no picture that a store takes: {error}") from error
        ending = next(name for start, name in MAGIC.items() if payload.startswith(start))
        filed = Filed(hashlib.sha256(payload).hexdigest(), ending, width, height)
        path = self.file(filed.sha256, ending)
        if not path.is_file():
            self._write(path, payload)
        return filed

    def _write(self, path: Path, payload: bytes) -> None:
        """Whole or not at all, and on the disk before the database says that it is there."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as aside, aside.open("wb") as file:
                file.write(payload)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"cannot write the picture {str(path)!r} ({error.strerror}): make room, or check "
                "the permissions; nothing was lost"
            ) from error


def as_png(image: Tensor) -> bytes:
    """A picture [3, H, W] in [0, 1] as a PNG of eight bits; equal pixels give equal bytes."""
    from PIL import Image

    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"a picture is [3, H, W], and this is {list(image.shape)}")
    array = (image.detach().cpu().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    stream = BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
