"""What happens after an update: log, save, evaluate. Each is a callable (update, metrics)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from scoretune.core import distributed, files
from scoretune.core.config import Optimiser
from scoretune.core.records import Hook
from scoretune.models.lora import exchanged


class Watcher(Protocol):
    """A progress display: gets what to know of the run, the stage at hand, and each update's
    numbers."""

    def note(self, text: str) -> None: ...
    def stage(self, text: str) -> None: ...
    def line(self, numbers: dict[str, Any]) -> None: ...


class Silent:
    """A watcher that shows nothing."""

    def note(self, text: str) -> None: ...
    def stage(self, text: str) -> None: ...
    def line(self, numbers: dict[str, Any]) -> None: ...


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
    rewarded: Callable[[], int]
    on_line: Callable[[dict[str, Any]], None]
    calls_before: int = field(init=False)

    def __post_init__(self) -> None:
        self.calls_before = self.calls()

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        calls, before = self.calls(), self.calls_before
        self.calls_before = calls
        line = {
            "update": update,
            "seconds": round(self.clock.seconds(), 3),
            "network_evaluations": calls,
            "nfe": calls - before,
            "reward_evaluations": self.rewarded(),
            **{name: round(value, 6) for name, value in metrics.items()},
        }
        files.append_line(self.path, line)
        self.on_line(line)


@dataclass
class Decay:
    """Lowers the learning rate linearly to 0 at the last update, as a function of the update."""

    optimiser: torch.optim.Optimizer
    rate: float
    last: int

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * (1 - update / self.last)


def decay(
    settings: Optimiser, optimiser: torch.optim.Optimizer, *, first: int, last: int
) -> list[Hook]:
    """The decay that settings name, to 0 at the update `last`, already at update `first`."""
    if settings.decay == "none":
        return []
    hook = Decay(optimiser, settings.learning_rate, last)
    hook(first, {})
    return [hook]


@dataclass
class Average:
    """A moving average of the trained weights: m ← m + (1 − d)(w − m) after update k.

    d = min(decay, (1 + k)/(10 + k)): the beginning is forgotten early (arXiv 2006.11239 trains so,
    with 0.9999). A decay of 0 leaves the weights themselves.
    """

    network: nn.Module
    decay: float
    mean: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.mean = {name: p.detach().clone() for name, p in self._trained().items()}

    @torch.no_grad()
    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        new = 1 - min(self.decay, (1 + update) / (10 + update))
        for name, weight in self._trained().items():
            self.mean[name].lerp_(weight, new)

    def in_place(self) -> AbstractContextManager[None]:
        """Within this context the network has the averaged weights."""
        return exchanged(self.network, self.mean)

    def state(self) -> dict[str, Tensor]:
        return self.mean

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, mean in self.mean.items():
            mean.copy_(state[name])

    def _trained(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.network.named_parameters() if p.requires_grad}


def learned(hook: Hook) -> Hook:
    """The hook after updates that took a step; not where every one was left out."""
    return lambda update, metrics: hook(update, metrics) if "loss" in metrics else None


@dataclass
class Every:
    """Calls `act(update)` every so many updates (0: never), and at the last if `at_last`, not
    otherwise."""

    every: int
    last: int
    act: Callable[[int], None]
    at_last: bool = False

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        due = self.every and update % self.every == 0
        if self.at_last if update == self.last else due:
            self.act(update)


@dataclass
class Stopping:
    """A hook that saves and stops the run after the update in which somebody asked for it.

    Of several processes all stop after the same update: a terminal tells each of them.
    """

    save: Callable[[int], None]
    say: Callable[[str], None]
    requested: bool = False

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        if distributed.count(int(self.requested)):
            self.save(update)
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within this context Ctrl-C waits for the update to end; the second does not wait."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, number: int, frame: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        self.say("stopping after this update; Ctrl-C again stops at once")
