"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder `step-00000042` with `state.safetensors` (every tensor, and the shape of
the tree as JSON in its header) and `manifest.json` (the hash of the former). It is written aside,
flushed to the disk and renamed, so a folder of that name is complete or absent. Nothing is
pickled: a checkpoint can be handed to a stranger.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.errors import UserError
from scoretune.core.finite import nonfinite

Tree = Any  # nested dicts and lists of tensors, numbers, strings and None

_STEP = re.compile(r"step-(\d{8,})")


class CheckpointError(UserError):
    """A checkpoint that cannot be written or trusted."""


def save(folder: Path, step: int, state: Tree, keep: int = 2) -> Path:
    """Write `state` as the checkpoint of `step`, atomically; keep the newest `keep` of them. Of
    several processes the main one writes, and the others wait for it.

    Raises CheckpointError when the disk refuses, or a tensor holds NaN or infinity; earlier
    checkpoints stay untouched then.
    """
    final = folder / f"step-{step:08d}"
    if distributed.team().main:
        _write(folder, final, step, state, keep)
    distributed.wait()
    return final


def _write(folder: Path, final: Path, step: int, state: Tree, keep: int) -> None:
    from safetensors.torch import save as to_bytes

    aside, replaced = folder / f".writing-{step:08d}", folder / f".replaced-{step:08d}"
    tensors: dict[str, Tensor] = {}
    skeleton = json.dumps(_pack(state, tensors))
    _refuse_nonfinite(folder, step, dict(zip(_paths(state), tensors.values(), strict=True)))
    try:
        for leftover in (aside, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        aside.mkdir(parents=True)
        payload = to_bytes(tensors, {"tree": skeleton})
        _write_durably(aside / "state.safetensors", payload)
        manifest = {"step": step, "sha256": hashlib.sha256(payload).hexdigest()}
        _write_durably(aside / "manifest.json", json.dumps(manifest).encode())
        if final.exists():
            os.rename(final, replaced)
        os.rename(aside, final)
        _flush_folder(folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        if replaced.exists() and not final.exists():
            os.rename(replaced, final)
        raise CheckpointError(
            f"cannot write a checkpoint to {folder}: {error.strerror or error}; "
            "free some space or choose another run folder (earlier checkpoints are intact)"
        ) from error
    for old in [replaced, *(path for _, path in _all(folder)[:-keep])]:
        shutil.rmtree(old, ignore_errors=True)


def _refuse_nonfinite(folder: Path, step: int, tensors: Mapping[str, Tensor]) -> None:
    bad = nonfinite(tensors)
    if bad:
        raise CheckpointError(
            f"update {step} is not saved to {folder}, where earlier checkpoints are intact: "
            f"{len(bad)} of {len(tensors)} tensors hold NaN or infinity, {bad[0]} first; lower "
            "optimiser.learning_rate"
        )


def load(path: Path) -> Tree:
    """Read one checkpoint folder. Raises CheckpointError when it is incomplete or altered, or may
    not be read."""
    from safetensors import SafetensorError, safe_open

    try:
        manifest = json.loads((path / "manifest.json").read_text())
        payload = (path / "state.safetensors").read_bytes()
        if hashlib.sha256(payload).hexdigest() != manifest["sha256"]:
            raise ValueError("its contents do not match the recorded hash")
        with safe_open(path / "state.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return _unpack(json.loads(file.metadata()["tree"]), tensors)
    except PermissionError as error:
        raise CheckpointError(
            f"checkpoint {path} may not be read ({error}): change its permissions, or be its owner"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"checkpoint {path} is damaged ({error}); delete that folder to go on from the one "
            "before it"
        ) from error


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below `folder`, or None."""
    saved = _all(folder)
    return saved[-1][1] if saved else None


def newest(run: Path) -> Path:
    """The newest checkpoint of a run folder. Raises UserError where there is none."""
    checkpoint = latest(run / "checkpoints")
    if checkpoint is None:
        raise UserError(f"run {str(run)!r} has no checkpoint yet: let it train a little longer")
    return checkpoint


def random_state() -> Tree:
    """The state of the generators of torch (and CUDA), numpy and Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    words = torch.from_numpy(np.asarray(keys, np.int64))
    version, state, gauss = random.getstate()
    # Of the device in use: every process has its own, and all their streams are alike.
    cuda = [torch.cuda.get_rng_state()] if torch.cuda.is_available() else []
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [str(kind), words, position, has_gauss, cached],
        "python": [version, list(state), gauss],
    }


def restore_random_state(state: Tree) -> None:
    """The inverse of `random_state`."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"][0])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _all(folder: Path) -> list[tuple[int, Path]]:
    if not folder.is_dir():
        return []
    matches = ((_STEP.fullmatch(child.name), child) for child in folder.iterdir())
    return sorted((int(match[1]), child) for match, child in matches if match)


def _pack(tree: Tree, tensors: dict[str, Tensor]) -> Tree:
    """Replace each tensor by a reference and collect it; dict keys keep their type."""
    if isinstance(tree, Tensor):
        name = str(len(tensors))
        tensors[name] = tree.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if isinstance(tree, dict):
        return {"dict": [[key, _pack(value, tensors)] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {"list": [_pack(value, tensors) for value in tree]}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    raise TypeError(f"a checkpoint cannot hold a {type(tree).__name__}")


def _paths(tree: Tree, path: str = "") -> Iterator[str]:
    """The paths of the tensors of a tree, in the order in which `_pack` collects them."""
    if isinstance(tree, Tensor):
        yield path
    elif isinstance(tree, dict | list | tuple):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from _paths(value, f"{path}.{key}" if path else str(key))


def _unpack(node: Tree, tensors: dict[str, Tensor]) -> Tree:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(value, tensors) for key, value in content}
    if kind == "list":
        return [_unpack(value, tensors) for value in content]
    return content


def _write_durably(path: Path, payload: bytes) -> None:
    with path.open("wb") as file:
        file.write(payload)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
