"""What tests of models share: a run that is trained in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoretune.core.config import Run
from scoretune.training import run_folder
from scoretune.training.run import launch, ready


class Lines:
    """A watcher that keeps the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def note(self, text: str) -> None: ...
    def stage(self, text: str) -> None: ...

    def line(self, numbers: dict[str, Any]) -> None:
        self.lines.append(numbers)


@pytest.fixture
def launched() -> Callable[[Run, Path], list[dict[str, Any]]]:
    """Trains a run in a folder; the lines of its updates."""

    def train(run: Run, folder: Path) -> list[dict[str, Any]]:
        watcher = Lines()
        ready(run)
        run_folder.record(run, folder, threads=1)
        launch(run, folder, watcher)
        return watcher.lines

    return train
