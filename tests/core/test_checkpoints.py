"""Checkpoints survive a full disk, a kill and a curious hand, and hold no pickle."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import json
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from scoretune.core import checkpoints
from scoretune.core.checkpoints import CheckpointError, latest, load, save
from scoretune.core.errors import UserError


def state_of(number: int) -> dict[str, object]:
    return {
        "update": number,
        "policy": {"a.weight": torch.full((3, 2), float(number)), "b": torch.zeros(0)},
        "nested": [{"x": [torch.arange(4), None, "text", True, 0.1]}, [], {}],
    }


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return (
            isinstance(other, torch.Tensor)
            and one.dtype == other.dtype
            and torch.equal(one.nan_to_num(), other.nan_to_num())
        )
    if isinstance(one, dict):
        return (
            isinstance(other, dict)
            and list(one) == list(other)
            and all(same(value, other[key]) for key, value in one.items())
        )
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


# ---------------------------------------------------------------------------- round trips


def test_a_tree_comes_back(tmp_path):
    tree = {
        "tensors": {
            "half": torch.randn(2, 3).half(),
            "bfloat": torch.randn(5).bfloat16(),
            "double": torch.randn(1, dtype=torch.float64),
            "scalar": torch.tensor(3),
            "bool": torch.tensor([True, False]),
            "empty": torch.zeros(0, 4),
            "strided": torch.arange(12).view(3, 4).t(),
            "bytes": torch.arange(5, dtype=torch.uint8),
        },
        7: "a number as key",
        "numbers": [1, -2, 0.1, 1e300, True, None, "ünïcode"],
        "deep": {"er": {"est": [[[torch.ones(1)]]]}},
    }
    path = save(tmp_path, 3, tree)
    assert path.name == "step-00000003"
    assert same(load(path), tree)


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    back = load(save(tmp_path, 1, {"whole": whole, "part": whole[2:4], "again": whole}))
    assert torch.equal(back["part"], whole[2:4])
    assert torch.equal(back["again"], whole)


def test_an_optimiser_comes_back(tmp_path):
    def optimiser_of(weight):
        return torch.optim.AdamW([weight], lr=0.1)

    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = optimiser_of(weight)
    weight.sum().backward()
    optimiser.step()
    back = load(save(tmp_path, 1, optimiser.state_dict()))
    twin = torch.nn.Parameter(weight.detach().clone())
    other = optimiser_of(twin)
    other.load_state_dict(back)
    for w, o in ((weight, optimiser), (twin, other)):
        w.grad = torch.tensor([1.0, -2.0, 3.0])
        o.step()
    assert torch.equal(weight, twin)


def test_random_numbers_go_on(tmp_path):
    def draw():
        return torch.randn(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss()

    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    draw()
    np.random.standard_normal()  # leaves one cached
    path = save(tmp_path, 1, checkpoints.random_state())
    expected = draw()
    draw()
    checkpoints.restore_random_state(load(path))
    assert draw() == expected


def test_what_it_cannot_hold(tmp_path):
    with pytest.raises(TypeError, match="cannot hold a set"):
        save(tmp_path, 1, {"a": {1, 2}})
    assert latest(tmp_path) is None


def test_no_pickle(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    path = save(tmp_path, 1, state_of(1))
    assert same(load(path), state_of(1))
    assert sorted(p.name for p in path.iterdir()) == ["manifest.json", "state.safetensors"]
    payload = (path / "state.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", payload[:8])
    assert set(json.loads(payload[8 : 8 + length])) >= {"__metadata__", "0"}


# ---------------------------------------------------------------------------- which are there


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in (5, 10, 15, 20):
        save(tmp_path, step, state_of(step), keep=keep)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == [f"step-{s:08d}" for s in (5, 10, 15, 20)[-keep:]]
    assert latest(tmp_path).name == "step-00000020"


def test_nothing_there(tmp_path):
    assert latest(tmp_path / "nowhere") is None
    (tmp_path / "step-abc").mkdir()
    (tmp_path / ".writing-00000009").mkdir()
    assert latest(tmp_path) is None


def test_a_half_written_checkpoint_is_not_seen(tmp_path):
    save(tmp_path, 1, state_of(1))
    aside = tmp_path / ".writing-00000002"
    aside.mkdir()
    (aside / "state.safetensors").write_bytes(b"half")
    assert latest(tmp_path).name == "step-00000001"
    assert same(load(save(tmp_path, 2, state_of(2))), state_of(2))
    assert not aside.exists()


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 1, state_of(1))
    save(tmp_path, 1, state_of(9))
    assert same(load(latest(tmp_path)), state_of(9))
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


# ---------------------------------------------------------------------------- the disk refuses

CALLS = {
    "mkdir": (os, "mkdir"),
    "rename": (os, "rename"),
    "fsync": (os, "fsync"),
    "open a folder": (os, "open"),
    "open a file": (io, "open"),
}


def failing(original: Callable, at: int, error: BaseException, calls: list[int]) -> Callable:
    """`original`, but its call number `at` raises."""

    def call(*arguments, **named):
        calls.append(1)
        if len(calls) == at + 1:
            raise error
        return original(*arguments, **named)

    return call


def refuse(monkeypatch, call: str, at: int, error: BaseException) -> list[int]:
    module, name = CALLS[call]
    calls: list[int] = []
    broken = failing(getattr(module, name), at, error, calls)
    monkeypatch.setattr(module, name, broken)
    if module is io:
        monkeypatch.setattr(builtins, name, broken)
    return calls


@pytest.mark.parametrize("step", [2, 1], ids=["a new step", "the same step again"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=repr
)
def test_the_last_good_checkpoint_survives(tmp_path, call, step, error):
    save(tmp_path, 1, state_of(1))
    for at in range(12):
        with pytest.MonkeyPatch.context() as patch:
            calls = refuse(patch, call, at, error)
            with contextlib.suppress(CheckpointError, KeyboardInterrupt):
                save(tmp_path, step, state_of(1 if step == 1 else 2), keep=9)
        if isinstance(error, KeyboardInterrupt) and step == 1 and not latest(tmp_path):
            # Stopped between the two renames: the old one lies beside, complete.
            os.rename(tmp_path / ".replaced-00000001", tmp_path / "step-00000001")
        assert same(load(tmp_path / "step-00000001"), state_of(1))
        newest = latest(tmp_path)
        assert same(load(newest), state_of(int(newest.name[-1])))
        shutil.rmtree(tmp_path / "step-00000002", ignore_errors=True)
        if len(calls) <= at:  # every call has had its turn
            break
    assert 1 <= at < 11
    assert same(load(save(tmp_path, 3, state_of(3))), state_of(3))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".writing-00000003")]


def test_a_full_disk_in_one_line(tmp_path, monkeypatch):
    refuse(monkeypatch, "fsync", 0, OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(CheckpointError) as caught:
        save(tmp_path, 1, state_of(1))
    text = str(caught.value)
    assert str(tmp_path) in text
    assert "No space left on device; free some space" in text
    assert "\n" not in text


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to"):
        save(tmp_path / "file", 1, state_of(1))


def test_it_is_a_users_error():
    assert issubclass(CheckpointError, UserError)


# ---------------------------------------------------------------------------- damage


def damaged(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    assert "delete that folder to go on from the one before it" in text
    return text


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_cut_short(tmp_path, name, share):
    path = save(tmp_path, 1, state_of(1))
    payload = (path / name).read_bytes()
    (path / name).write_bytes(payload[: int(share * len(payload))])
    damaged(path)


@pytest.mark.parametrize("place", [0, 9, 100, -1])
def test_one_byte_altered(tmp_path, place):
    path = save(tmp_path, 1, state_of(1))
    payload = bytearray((path / "state.safetensors").read_bytes())
    payload[place] ^= 1
    (path / "state.safetensors").write_bytes(payload)
    assert "do not match the recorded hash" in damaged(path)


@pytest.mark.parametrize("name", ["state.safetensors", "manifest.json"])
def test_a_missing_file(tmp_path, name):
    path = save(tmp_path, 1, state_of(1))
    (path / name).unlink()
    assert name in damaged(path)


def test_one_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    path = save(tmp_path, 1, state_of(1))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(CheckpointError, match=r"may not be read .*change its") as caught:
        load(path)
    assert "damaged" not in str(caught.value) and "delete" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"sha256": 3}', "\x00\xff"])
def test_a_manifest_that_is_none(tmp_path, text):
    path = save(tmp_path, 1, state_of(1))
    (path / "manifest.json").write_text(text)
    damaged(path)


def test_a_foreign_file_with_a_fitting_hash(tmp_path):
    import hashlib

    from safetensors.torch import save as to_bytes

    path = save(tmp_path, 1, state_of(1))
    for payload in (b"no safetensors at all", to_bytes({"0": torch.ones(1)})):
        (path / "state.safetensors").write_bytes(payload)
        digest = hashlib.sha256(payload).hexdigest()
        (path / "manifest.json").write_text(json.dumps({"step": 1, "sha256": digest}))
        damaged(path)


def test_the_one_before_is_still_good(tmp_path):
    save(tmp_path, 1, state_of(1))
    path = save(tmp_path, 2, state_of(2))
    (path / "manifest.json").unlink()
    damaged(latest(tmp_path))
    (path / "state.safetensors").unlink()
    path.rmdir()
    assert same(load(latest(tmp_path)), state_of(1))
