"""Runs that are launched, killed, and compared to the bit; small networks of one's own on data."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scoretune import recipes
from scoretune.core import config
from scoretune.training import overrides, run_folder
from scoretune.training.hooks import Silent

SMALL = [
    "model.source=mlp",
    "model.width=16",
    "model.depth=1",
    "sizes.batch=32",
    "updates=6",
    "evaluation.every=4",
    "evaluation.samples=40",
    "evaluation.steps=3",
    "checkpoints.every=2",
]


def configured(*changes: str, recipe: str = "supervised") -> config.Run:
    return overrides.changed(recipes.named(recipe), [*SMALL, "data=moons", *changes])


def launch(run: config.Run, folder: Path, watcher: Any = None) -> dict[str, Any]:
    from scoretune.training.run import launch

    run_folder.record(run, folder, threads=1)
    return launch(run, folder, watcher or Silent())


def lines_of(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    whole = [text for text in path.read_text().splitlines(keepends=True) if text.endswith("\n")]
    return [json.loads(text) for text in whole]


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "weights.safetensors").read_bytes()).hexdigest()


def assert_same_run(folder: Path, undisturbed: Path) -> None:
    """Equal weights, equal numbers, equal pictures; only the clock may differ."""
    assert weights_of(folder) == weights_of(undisturbed)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        ours, theirs = (
            [{k: v for k, v in line.items() if k != "seconds"} for line in lines_of(f / name)]
            for f in (folder, undisturbed)
        )
        assert ours == theirs, name
    ours, theirs = (json.loads((f / "result.json").read_text()) for f in (folder, undisturbed))
    assert ours["data"] == theirs["data"]
    shots = [(f / "previews" / "after.png").read_bytes() for f in (folder, undisturbed)]
    assert shots[0] == shots[1]


def killed_child(run: config.Run, folder: Path, due: Callable[[], bool], delay: float = 0) -> int:
    """Launch in a forked child and SIGKILL it `delay` seconds after `due`; its exit code."""
    child = multiprocessing.get_context("fork").Process(target=launch, args=(run, folder))
    child.start()
    while child.is_alive() and not due():
        time.sleep(0.001)
    time.sleep(delay)
    if child.is_alive():
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    return child.exitcode or 0
