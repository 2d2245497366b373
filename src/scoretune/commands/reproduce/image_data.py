"""Pictures to learn from: scikit-learn's digits, or MNIST and CIFAR-10 out of a user's folder.

Nothing is downloaded. `FOLDER/mnist` holds the four idx files, gzipped; `FOLDER/cifar10` the
binary version's `data_batch_*.bin` and `test_batch.bin`, or `FOLDER/cifar10_jpeg` a
`cifar10_jpeg.npz` of JPEG scans with one common header.
"""

from __future__ import annotations

import gzip
import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import kept_tensors
from scoretune.commands.reproduce.digits import handwriting
from scoretune.core.errors import UserError

MNIST = "{}-images-idx3-ubyte.gz", "{}-labels-idx1-ubyte.gz"


@dataclass(frozen=True)
class Pictures:
    """`centred` [n, C, H, W] is [−1, 1] less the mean picture `mean` [C, H, W]; `held_out` too."""

    kind: str
    centred: Tensor
    labels: Tensor
    held_out: Tensor
    held_out_labels: Tensor
    mean: Tensor

    def shown(self, centred: Tensor) -> Tensor:
        """Back in [−1, 1], clipped."""
        return (centred + self.mean).clamp(-1, 1)


def kinds_in(data: str | None) -> list[str]:
    """What can be learned from: always the digits, and what the folder holds."""
    if data is None:
        return ["digits"]
    folder = Path(data)
    kinds = [kind for kind, places in PLACES.items() if any((folder / p).exists() for p in places)]
    if not kinds:
        wanted = " or ".join(place for places in PLACES.values() for place in places)
        raise UserError(f"{folder} holds no pictures: expected {wanted} in it")
    return ["digits", *kinds]


def compressed(kind: str, data: str | None) -> bool:
    """Whether pictures are lossy copies of the originals."""
    return kind == "cifar10" and not (Path(str(data)) / "cifar10").exists()


PLACES = {
    "mnist": (f"mnist/{MNIST[0].format('train')}",),
    "cifar10": ("cifar10/data_batch_1.bin", "cifar10_jpeg/cifar10_jpeg.npz"),
}


def pictures_of(kind: str, data: str | None, folder: Path) -> Pictures:
    """The pictures of a kind; what takes long to decode is kept in `folder`."""
    if kind == "digits":
        first, other = handwriting()
        parts = [
            (first.images[:, :1] * 255, first.digits),
            (other.images[:, :1] * 255, other.digits),
        ]
    else:
        parts = _kept(kind, Path(str(data)), folder)
    (images, labels), (held_out, held_out_labels) = parts
    scaled, others = (p.float() / 127.5 - 1 for p in (images, held_out))
    mean = scaled.mean(0)
    return Pictures(
        kind, scaled.sub_(mean), labels.long(), others.sub_(mean), held_out_labels.long(), mean
    )


Part = tuple[Tensor, Tensor]


def _kept(kind: str, data: Path, folder: Path) -> list[Part]:
    def read() -> dict[str, Tensor]:
        first, other = (_mixed(part) for part in (_mnist if kind == "mnist" else _cifar10)(data))
        tensors = {"images": first[0], "labels": first[1]}
        return tensors | {"held_out": other[0], "held_out_labels": other[1]}

    kept = kept_tensors(folder / f"{kind}.safetensors", read)
    return [(kept["images"], kept["labels"]), (kept["held_out"], kept["held_out_labels"])]


def _mixed(part: Part) -> Part:
    """In a fixed random order: some files are sorted by label."""
    order = torch.randperm(len(part[1]), generator=torch.Generator().manual_seed(0))
    return part[0][order], part[1][order]


def _mnist(data: Path) -> tuple[Part, Part]:
    train, test = (
        tuple(idx(data / "mnist" / name.format(part)) for name in MNIST)
        for part in ("train", "t10k")
    )
    return (train[0][:, None], train[1]), (test[0][:, None], test[1])


def idx(path: Path) -> Tensor:
    """A gzipped idx file of bytes: two zeros, 8, the number of axes, their lengths, the bytes."""
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise UserError(f"{path} is missing or is no gzip file: {error}") from None
    axes = raw[3]
    shape = [int.from_bytes(raw[4 + 4 * k : 8 + 4 * k], "big") for k in range(axes)]
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * axes).view(shape)


def _cifar10(data: Path) -> tuple[Part, Part]:
    if (data / "cifar10").exists():
        files = sorted((data / "cifar10").glob("data_batch_*.bin"))
        train = [_records(file) for file in files]
        joined = torch.cat([x for x, _ in train]), torch.cat([y for _, y in train])
        return joined, _records(data / "cifar10" / "test_batch.bin")
    return _jpegs(data / "cifar10_jpeg" / "cifar10_jpeg.npz")


def _records(path: Path) -> Part:
    """The binary version of CIFAR-10: a byte of label and 3·32·32 bytes of pixels, repeated."""
    try:
        raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8).view(-1, 3073)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} is not of the binary version of CIFAR-10: {error}") from None
    return raw[:, 1:].reshape(-1, 3, 32, 32), raw[:, 0]


def _jpegs(path: Path) -> tuple[Part, Part]:
    """JPEG files that share a header: header + scans[offsets[i]:offsets[i+1]] is the i-th."""
    import numpy as np
    from PIL import Image

    with np.load(path) as bundle:
        header, scans = bundle["header"].tobytes(), bundle["scans"].tobytes()
        offsets, label, is_test = bundle["offsets"], bundle["label"], bundle["is_test"]
    images = np.empty((len(label), 32, 32, 3), np.uint8)
    for i in range(len(label)):
        scan = scans[int(offsets[i]) : int(offsets[i + 1])]
        images[i] = np.asarray(Image.open(io.BytesIO(header + scan)).convert("RGB"))
    pixels, test = torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(is_test).bool()
    labels = torch.from_numpy(label.astype("int64"))
    return (pixels[~test], labels[~test]), (pixels[test], labels[test])
