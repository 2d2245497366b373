"""What happens after an update: log, save, evaluate. Each is a callable (update, metrics)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scoretune import checkpoints


@dataclass
class Clock:
    """Seconds of work, continued across a resume."""

    before: float = 0.0
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        return self.before + time.monotonic() - self.started


@dataclass
class Log:
    """One JSON line an update; `on_line` shows it to whoever is watching."""

    path: Path
    clock: Clock
    calls: Callable[[], int]
    on_line: Callable[[dict[str, Any]], None]

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        line = {
            "update": update,
            "seconds": round(self.clock.seconds(), 3),
            "network_evaluations": self.calls(),
            **{name: round(value, 6) for name, value in metrics.items()},
        }
        append_line(self.path, line)
        self.on_line(line)


@dataclass
class Save:
    """A checkpoint every so many updates, and at the last."""

    folder: Path
    every: int
    keep: int
    last: int
    state: Callable[[int], dict[str, Any]]

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        if update % self.every == 0 or update == self.last:
            checkpoints.save(self.folder, update, self.state(update), self.keep)


@dataclass
class Decay:
    """Lowers the learning rate linearly to 0 at the last update, as a function of the update."""

    optimiser: torch.optim.Optimizer
    rate: float
    last: int

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * (1 - update / self.last)


@dataclass
class Every:
    """Calls `act(update)` every so many updates, not at the last (0: never)."""

    every: int
    last: int
    act: Callable[[int], None]

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        if self.every and update % self.every == 0 and update != self.last:
            self.act(update)


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one JSON line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget_after(path: Path, update: int) -> None:
    """Drop the lines of updates that a resumed run will do again, and any line cut short."""
    if not path.exists():
        return
    kept = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line["update"] <= update:
            kept.append(json.dumps(line) + "\n")
    aside = path.with_name(path.name + ".writing")  # a kill while writing must not cost the log
    aside.write_text("".join(kept), encoding="utf-8")
    os.replace(aside, path)
