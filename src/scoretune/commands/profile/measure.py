"""One update of a run under torch's profiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity

from scoretune.commands.profile.frames import Record, recorded
from scoretune.core import profiling
from scoretune.core.config import Run
from scoretune.core.user_code import contained
from scoretune.training import build, from_data, loop
from scoretune.training.overrides import of_data
from scoretune.training.progress import Learner

ROUNDS = 3
"""Updates: one that warms up, one as it is, and one under the profiler."""


@dataclass(frozen=True)
class Profile:
    """An update: its processor seconds as it is, those under the profiler, and the record."""

    recipe: str
    cpu_seconds: float
    cpu_seconds_profiled: float
    device: str
    record: Record

    @property
    def seconds(self) -> float:
        """On the clock, under the profiler."""
        return self.record.root.seconds

    def share(self, name: str) -> float:
        """Of the update's time on the host."""
        return self.record.parts[name].seconds / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """What `--json` prints."""
        parts = {
            name: {"share": round(self.share(name), 4), **asdict(spent)}
            for name, spent in self.record.parts.items()
        }
        return {
            "recipe": self.recipe,
            "device": self.device,
            "cpu_seconds": self.cpu_seconds,
            "cpu_seconds_profiled": self.cpu_seconds_profiled,
            "seconds": self.seconds,
            "parts": parts,
            "synchronisations": sum(s.synchronisations for s in self.record.parts.values()),
            "peak_bytes": self.record.peak,
            "peak_part": self.record.peak_part,
        }


def measured(run: Run, note: Callable[[int], None] = lambda done: None) -> Profile:
    """The profile of the third update of a run, from its beginning; nothing is written."""
    torch.manual_seed(run.seed)
    with contained(f"code of yours (reward {run.reward!r}, model {run.model.source!r})"):
        learner: Learner = from_data.build(run) if of_data(run) else build.build(run)
        for lap in range(learner.method.warm_up):
            learner.method.source(-1 - lap)
        _update(learner, run, 0)
        note(1)
        plain = _timed(lambda: _update(learner, run, 1))
        note(2)
        activities = [ProfilerActivity.CPU]
        device = learner.policy.device
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities, profile_memory=True)
        with profiling.labelled(), profiler:
            seconds = _timed(lambda: _update(learner, run, 2))
    record = recorded(profiler)
    note(3)
    return Profile(run.recipe, plain, seconds, str(device), record)


def _update(learner: Learner, run: Run, number: int) -> None:
    with profiling.part("update"):
        loop.train(
            learner.method.source,
            learner.method.objective,
            learner.optimiser,
            learner.engine,
            updates=[number],
            clip_norm=run.optimiser.clip_norm,
            region=learner.method.region,
        )


def _timed(work: Callable[[], None]) -> float:
    """Processor seconds of this process, all threads together."""
    began = time.process_time()
    work()
    return time.process_time() - began
