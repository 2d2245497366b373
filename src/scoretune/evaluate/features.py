"""Features of pictures (or points), between which distances of two sets are measured."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core.errors import UserError, unknown
from scoretune.core.resolve import imported
from scoretune.data.scenes import world
from scoretune.rewards import reader

Look = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Features:
    """Images [B, C, H, W] in [0, 1] -> features [B, F] in float32, a batch at a time; of videos
    [B, T, C, H, W] the mean over the features of their frames."""

    name: str
    look: Look
    batch: int = 64

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        if images.dim() == 5:
            return self(images.flatten(0, 1)).view(*images.shape[:2], -1).mean(1)
        return torch.cat([self._checked(part) for part in images.split(self.batch)])

    def _checked(self, images: Tensor) -> Tensor:
        try:
            output = self.look(images)
        except UserError:
            raise
        except Exception as error:  # a network that was made for pictures of another size, or bugs
            raise UserError(
                f"features {self.name!r} failed with {type(error).__name__}: {error}; they are "
                f"asked about images {tuple(images.shape)} in [0, 1]"
            ) from error
        if not isinstance(output, Tensor) or output.dim() == 0 or len(output) != len(images):
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"features {self.name!r} returned {shape} for {len(images)} images: return one row "
                f"an image, shape ({len(images)}, F)"
            )
        rows = output.flatten(1).float() if output.dim() > 1 else output[:, None].float()
        if not bool(torch.isfinite(rows).all()):
            raise UserError(f"features {self.name!r} are not finite numbers")
        return rows


def named_features(name: str) -> Features:
    """The features of that name, or a user's own: `module:name` or `path/to/file.py:name`.

    `pixels`: the numbers themselves. `reader`, `judge`: what the two networks of the shipped world
    make of a picture just before they answer, of which only the reader's may have been optimised.
    `inception`: the 2048 numbers of FID. A user's own is a function or an nn.Module that maps
    images to rows. Raises UserError with the nearest name.
    """
    if ":" in name:
        return Features(name, _users_own(name.removeprefix("python:")))
    if name not in FEATURES:
        raise unknown("features", name, [*FEATURES, "module:name"])
    return Features(name, FEATURES[name]())


def _last_inputs(network: nn.Module, last: nn.Module, images: Tensor) -> Tensor:
    """The input of `last`, a layer of `network`, when the network looks at images."""
    inputs: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        network.to(images.device)(images)
    finally:
        hook.remove()
    return inputs[0]


def _reader() -> Look:
    """The reader's 96 numbers for each of the four cells, [B, 384]."""
    network = cast(reader.CellReader, reader.load(world.shipped(), "reader"))
    return lambda images: _last_inputs(network, network.look[-1], images).reshape(len(images), -1)


def _judge() -> Look:
    """The judge's 80 channels averaged over each of the four cells, [B, 320]."""
    network = cast(reader.CanvasJudge, reader.load(world.shipped(), "judge"))
    pool = nn.AdaptiveAvgPool2d(2)
    return lambda images: pool(_last_inputs(network, network.answer, images)).flatten(1)


def _inception() -> Look:
    """FID's network, from torch-fidelity, [B, 2048]; only tensors are read of its pickle."""
    try:
        source = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    except ImportError as error:
        raise UserError(
            f"features 'inception' need another package ({error}): pip install torch-fidelity "
            "torchvision, or choose reader"
        ) from error
    with _tensors_only():
        network: Any = source.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])

    def look(images: Tensor) -> Tensor:
        colour = images.expand(-1, 3, -1, -1)
        levels = (colour * 255).round().clamp(0, 255).to(torch.uint8)
        return cast(Tensor, network.to(images.device)(levels)[0])

    return look


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Within, torch reads no code from pickles, whoever calls it and whatever they ask for."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


FEATURES: dict[str, Callable[[], Look]] = {
    "pixels": lambda: lambda images: images.flatten(1),
    "reader": _reader,
    "judge": _judge,
    "inception": _inception,
}


def _users_own(path: str) -> Look:
    """A user's function or nn.Module, from an importable module or a Python file."""
    look = imported("features", path)
    if isinstance(look, type):
        raise UserError(f"features {path!r} are a class: name a function or an nn.Module instance")
    if not isinstance(look, nn.Module):
        return cast(Look, look)
    network = look.eval().requires_grad_(False)
    return lambda images: cast(Tensor, network.to(images.device)(images))
