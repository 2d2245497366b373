"""Ctrl-C while training: the first waits for the end of the update, the second does not."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from scoretune.core import distributed


@dataclass
class Stopping:
    """A hook that saves and stops the run after the update in which somebody asked for it.

    Of several processes all stop after the same update: a terminal tells each of them.
    """

    save: Callable[[int], None]
    say: Callable[[str], None]
    asked: bool = False

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        if distributed.count(int(self.asked)):
            self.save(update)
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context Ctrl-C asks; outside of the main thread nobody can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _heard(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        self.say("stopping after this update; Ctrl-C again stops at once")
