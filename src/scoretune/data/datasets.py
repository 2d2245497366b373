"""Data to learn a score from: pictures, points and time series, from files or from scikit-learn.

`read_data` gives every source the same form, states [n, *S] in the data's own units (pictures in
[0, 1]): images [n, C, H, W], points [n, d], series [n, columns, window]. Tables (`data.formats`)
are points, one a row, unless a window cuts them into series. What cannot be learned from is refused
in one line.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

import torch
from torch import Tensor

from scoretune.core.config import Dataset
from scoretune.core.errors import UserError, first_line, unknown
from scoretune.core.reading import check_regular, memory
from scoretune.data import formats
from scoretune.data.formats import Table, read_table
from scoretune.data.images import read_folder, read_pictures, scaled

Kind = Literal["images", "points", "series"]
ARRAYS = (".npz", ".npy")
AS_THEY_ARE = Dataset()


@dataclass(frozen=True)
class Data:
    """States [n, *S] in the data's own units, and the columns' `names`; up to `overlap` windows
    after one share its rows."""

    states: Tensor
    kind: Kind
    names: tuple[str, ...] = ()
    overlap: int = 0

    def __len__(self) -> int:
        return len(self.states)

    @property
    def mean(self) -> Tensor:
        """Of each channel or column, in a shape that broadcasts to a state."""
        return self.states.mean(self._all_but_channels, keepdim=True)[0]

    @property
    def std(self) -> Tensor:
        """Of each channel or column, in a shape that broadcasts to a state."""
        return self.states.std(self._all_but_channels, keepdim=True)[0]

    @property
    def _all_but_channels(self) -> list[int]:
        return [d for d in range(self.states.dim()) if d != 1]

    def split(self, held_out: float, seed: int) -> tuple[Data, Data]:
        """What is learned from and what is held out: at random, or the end of a series, where the
        windows of the two share no rows."""
        count = min(max(1, round(held_out * len(self))), len(self) - 1)
        if self.kind == "series" and self.overlap:
            kept = len(self) - count - self.overlap
            if kept < 1:
                raise UserError(
                    f"{len(self)} windows are too few to hold out {count} that share no rows with "
                    "the others: lower dataset.window or dataset.held_out"
                )
            return self._take(slice(0, kept)), self._take(slice(len(self) - count, None))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self._take(order[count:]), self._take(order[:count])

    def _take(self, index: Tensor | slice) -> Data:
        return replace(self, states=self.states[index])


def read_data(source: str, reading: Dataset = AS_THEY_ARE) -> Data:
    """The data of a name in BUNDLED, a folder or a file. Raises UserError for what is unfit."""
    path = Path(source)
    _check_reading(source, reading)
    if source in BUNDLED:
        data = _resized(BUNDLED[source](), reading.size)
    elif source.startswith(formats.LIBRARY):
        data = _tabular(read_table(source, reading.columns), reading, source)
    elif path.is_dir():
        data = _folder(path, reading.size)
    elif not path.exists():
        if path.suffix or len(path.parts) > 1:
            raise UserError(f"data {source!r} does not exist: check the path")
        near = unknown("data", source, BUNDLED)
        raise UserError(f"{near} (or give a folder of pictures, or a file)")
    elif source.endswith(ARRAYS):
        data = _array(path, reading)
    elif _is_table(source):
        data = _tabular(read_table(source, reading.columns), reading, source)
    else:
        raise UserError(
            f"cannot read {source!r}: give a folder of pictures, or a file that ends in "
            f"{', '.join((*ARRAYS, *formats.READERS))}"
        )
    if reading.kind not in ("auto", data.kind):
        raise UserError(f"{source!r} holds {data.kind}: leave out dataset.kind={reading.kind}")
    return _checked(data, source)


# ------------------------------------------------------------------------------ bundled data


def _digits() -> Data:
    from sklearn.datasets import load_digits

    images = torch.tensor(load_digits().images, dtype=torch.float32)
    return Data(images[:, None] / 16, "images")  # ink is 0 … 16


def _swiss_roll() -> Data:
    from sklearn.datasets import make_swiss_roll

    points, _ = make_swiss_roll(10_000, noise=0.3, random_state=0)
    return Data(torch.tensor(points[:, [0, 2]], dtype=torch.float32), "points", ("x", "y"))


def _moons() -> Data:
    from sklearn.datasets import make_moons

    points, _ = make_moons(10_000, noise=0.05, random_state=0)
    return Data(torch.tensor(points, dtype=torch.float32), "points", ("x", "y"))


BUNDLED: dict[str, Callable[[], Data]] = {
    "digits": _digits,
    "swiss-roll": _swiss_roll,
    "moons": _moons,
    "scenes": lambda: Data(read_pictures("scenes", 0)[0], "images"),
}


# ------------------------------------------------------------------------------ pictures


def _folder(folder: Path, size: int) -> Data:
    images = [scaled(image, size) for image in read_folder(folder).values()]
    if len({image.shape[1:] for image in images}) > 1:
        raise UserError(
            f"the pictures in {str(folder)!r} differ in size: make them equal, or set dataset.size"
        )
    if len({image.shape[0] for image in images}) > 1:
        images = [image.expand(3, -1, -1) for image in images]
    return Data(torch.stack(images), "images")


def _resized(data: Data, size: int) -> Data:
    if data.kind != "images":
        return data
    return replace(data, states=scaled(data.states, size))


# -------------------------------------------------------------------------------- arrays


def _array(path: Path, reading: Dataset) -> Data:
    values = torch.from_numpy(_loaded(path, reading.key))
    plain, what = values.float(), f"{path.name} of shape {tuple(values.shape)}"
    kind = reading.kind
    if kind == "auto":
        images = values.dim() in (3, 4) and not reading.window
        kind = "images" if images else "series" if reading.window else "points"
    if kind == "images" and values.dim() in (3, 4):
        images_ = _channels_first(plain, reading.channels, what)
        return _resized(Data(_unit(images_, values.dtype, what), "images"), reading.size)
    if kind in ("points", "series") and values.dim() in (1, 2):
        table = plain if plain.dim() == 2 else plain[:, None]
        names = tuple(str(i) for i in range(table.shape[1]))
        return _tabular(Table(table, names).only(reading.columns), reading, str(path))
    if kind == "series" and values.dim() == 3 and not reading.window:
        names = tuple(str(i) for i in range(values.shape[2]))
        return Data(plain.transpose(1, 2).contiguous(), "series", names)
    raise UserError(
        f"{what} is not {kind}: images are [n, H, W] or [n, H, W, C], points [n, d], series "
        "[n, window, columns], or [rows, columns] with dataset.window"
    )


def _loaded(path: Path, key: str | None) -> Any:
    """The array of a file as numbers; nothing is ever unpickled."""
    import zipfile

    import numpy as np

    try:
        check_regular(path)
        if path.suffix == ".npz":
            with zipfile.ZipFile(path) as members:
                for member in members.infolist():
                    with members.open(member) as stream:
                        _check_header(stream, member.file_size)
        else:
            with path.open("rb") as stream:
                _check_header(stream, path.stat().st_size)
        array = np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            names = list(array.files)
            if key is not None and key not in names:
                raise unknown(f"array of {path.name}", key, names)
            if key is None and len(names) != 1:
                raise UserError(
                    f"{path.name} holds {len(names)} arrays ({', '.join(names)}): choose one with "
                    "dataset.key"
                )
            array = array[key or names[0]]
        elif key is not None:
            raise UserError(f"{path.name} holds one array: leave out dataset.key")
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"cannot read {str(path)!r} ({first_line(error)}): give an array of plain numbers that "
            "numpy.save or numpy.savez wrote"
        ) from error
    if array.dtype.kind not in "biuf":
        raise UserError(f"{path.name} holds {array.dtype}, not numbers")
    # torch knows no unsigned integers beyond bytes, and copies what a file maps read-only
    return np.array(array, dtype=None if array.dtype in (np.uint8, np.bool_) else np.float32)


def _check_header(stream: IO[bytes], size: int) -> None:
    """Raise ValueError for an array whose header promises more than a file of `size` bytes holds,
    or more than the memory does: numpy would ask for it all before it reads."""
    from numpy.lib import format as npy

    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    version = npy.read_magic(stream)
    if version not in read:
        return  # of names of fields that are not Latin, and no plain numbers
    shape, _, dtype = read[version](stream)
    promised, room = math.prod(shape) * dtype.itemsize, memory()
    if promised > size or min(shape, default=0) < 0:
        raise ValueError(f"its header says shape {shape}, {promised:,} bytes, and it has {size:,}")
    if promised > room:
        raise ValueError(f"its {promised >> 30} GiB exceed this machine's {room >> 30} GiB")


def _channels_first(images: Tensor, channels: str, what: str) -> Tensor:
    if images.dim() == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if channels == "auto" and first == last:
        raise UserError(
            f"where are the colours of {what}? Set dataset.channels=first or last (one channel or "
            "three)"
        )
    images = images.permute(0, 3, 1, 2) if channels == "last" or last > first else images
    if images.shape[1] not in (1, 3):
        raise UserError(f"{what} has {images.shape[1]} channels: give one or three")
    return images.contiguous()


def _unit(images: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """In [0, 1]: bytes are divided by 255, and [−1, 1] is moved."""
    if dtype == torch.uint8:
        return images / 255
    low, high = (float(end) for end in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        return images  # said with its place, later
    if low >= 0:
        if high <= 1:
            return images
        if high <= 255:
            return images / 255
    if low >= -1 and high <= 1:
        return (images + 1) / 2
    raise UserError(
        f"the pixels of {what} lie in [{low:g}, {high:g}]: bring them to [0, 1], [−1, 1] or 0 … 255"
    )


# -------------------------------------------------------------------------------- tables


def _is_table(source: str) -> bool:
    return formats.ending(Path(source)) in formats.READERS


def _tabular(table: Table, reading: Dataset, source: str) -> Data:
    if reading.kind == "series" and not reading.window:
        raise UserError(
            f"say how many rows of {source!r} make a series: dataset.window, for instance 24"
        )
    if not reading.window:
        return Data(table.values, "points", table.names)
    rows = len(table.values)
    if rows < reading.window + 1:
        raise UserError(
            f"{source!r} has {rows} rows, too few for windows of {reading.window}: lower "
            "dataset.window"
        )
    windows = table.values.unfold(0, reading.window, reading.stride).contiguous()
    overlap = -(-reading.window // reading.stride) - 1
    return Data(windows, "series", table.names, overlap)


# -------------------------------------------------------------------------------- checks


def _check_reading(source: str, reading: Dataset) -> None:
    pictures = source in BUNDLED or Path(source).is_dir()
    if pictures and (reading.key or reading.columns or reading.window or reading.kind == "series"):
        raise UserError(
            f"{source!r} has no arrays, columns or rows: leave out dataset.key, dataset.columns "
            "and dataset.window"
        )
    if _is_table(source) and (reading.key or reading.size):
        raise UserError(f"{source!r} is a table: leave out dataset.key and dataset.size")
    if reading.stride > 1 and not reading.window:
        raise UserError("dataset.stride is the distance of windows: set dataset.window too")


def _checked(data: Data, source: str) -> Data:
    if len(data) < 2:
        raise UserError(f"{source!r} holds {len(data)} of what is learned from: give at least 2")
    if not data.states.numel():
        raise UserError(f"the states of {source!r} are empty: shape {tuple(data.states.shape)}")
    finite = data.states.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        where = int((~finite).nonzero()[0])
        raise UserError(
            f"{source!r} has a number that is not finite, first in entry {where} (from 0): mend or "
            "drop it"
        )
    spread = data.std.flatten()
    if not bool((spread > 0).all()):
        which = int((spread <= 0).nonzero()[0])
        name = f"column {data.names[which]!r}" if data.names else f"channel {which}"
        raise UserError(f"{name} of {source!r} is the same everywhere: leave it out")
    return data
