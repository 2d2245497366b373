"""A run, from its settings to its result: restore the newest checkpoint if there is one; measure;
train; measure again; export. Of several processes all compute, and the main one writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from scoretune.core import distributed, files
from scoretune.core.config import Run
from scoretune.core.records import Hook
from scoretune.core.resolve import is_function
from scoretune.evaluate import gap
from scoretune.evaluate.gap import Comparison
from scoretune.evaluate.guard import guard
from scoretune.evaluate.guard.guard import Monitor
from scoretune.evaluate.report import gallery
from scoretune.evaluate.report.page import write_report
from scoretune.evaluate.samples import preview_indices, save_preview
from scoretune.evaluate.scores import (
    Measurement,
    Verdicts,
    compare,
    evaluation_line,
    measure,
    verdict_metrics,
)
from scoretune.models import export, user_module
from scoretune.training import build, card, from_data, trackers
from scoretune.training.engine import TorchEngine
from scoretune.training.from_data import DataRun
from scoretune.training.hooks import Every, Log, Save, Stopping, Watcher, decay
from scoretune.training.loop import train
from scoretune.training.objectives.method import Method
from scoretune.training.overrides import of_data
from scoretune.training.progress import Progress
from scoretune.training.trackers import Trackers

Ready = build.Checked | from_data.Parts


def ready(run: Run) -> Ready:
    """Refuse what cannot work, before there is a run folder; what that has read and built."""
    if of_data(run):
        torch.manual_seed(run.seed)
        return from_data.build(run)  # data and network are small: all is made
    return build.check(run)


def launch(
    run: Run, folder: Path, watcher: Watcher, checked: Ready | None = None
) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result.

    `checked` is what `ready` gave for this run, None to ask it here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if of_data(run):
        watcher.stage("reading the data")
        data_parts = checked if isinstance(checked, from_data.Parts) else ready(run)
        assert isinstance(data_parts, from_data.Parts)
        return _train(_data_run(run, folder, watcher, data_parts))
    checked = checked or ready(run)
    assert isinstance(checked, build.Checked)
    torch.manual_seed(run.seed)
    watcher.stage("loading the model")
    return _train(_fine_tuning(run, folder, watcher, build.build(run, checked)))


class Subject(Protocol):
    """What a run does before, between and after its updates."""

    def begin(self) -> None:
        """Before the first update."""
        ...

    def evaluate(self, update: int) -> Any:
        """Measure after an update."""
        ...

    def until_alarm(self, updates: Iterable[int]) -> Iterable[int]:
        """The updates, until something ends the run early."""
        ...

    def finish(self) -> dict[str, Any]:
        """After the last update; the result."""
        ...


@dataclass
class _Job:
    """A run in its folder, `first` updates of which are done."""

    run: Run
    watcher: Watcher
    subject: Subject
    method: Method
    optimiser: torch.optim.Optimizer
    engine: TorchEngine
    progress: Progress
    trackers: Trackers
    first: int
    between: Sequence[Hook] = field(default_factory=tuple)


def _train(job: _Job) -> dict[str, Any]:
    """Train to the end; the result, of several processes in the main one."""
    run, method = job.run, job.method

    def evaluate(update: int) -> None:
        job.subject.evaluate(update)
        job.watcher.stage("training")

    try:
        if job.first == 0:
            job.subject.begin()
            if method.warm_up:
                job.watcher.stage("fitting the critic")
            for lap in range(method.warm_up):  # to the base model, before it moves
                method.source(-1 - lap)
            job.watcher.stage("training")
        stopping = Stopping(job.progress.save, job.watcher.stage)
        with stopping.listening():
            train(
                method.source,
                method.objective,
                job.optimiser,
                job.engine,
                updates=job.subject.until_alarm(range(job.first, run.updates)),
                clip_norm=run.optimiser.clip_norm,
                hooks=[*_hooks(job, evaluate), stopping],
            )
        return job.subject.finish()
    finally:
        job.trackers.finish()


def _hooks(job: _Job, evaluate: Callable[[int], None]) -> list[Hook]:
    """What follows each update: log, decay, what adapts, evaluate, save."""
    run, progress, adaptive = job.run, job.progress, job.method.adaptive
    return [
        Log(progress.metrics, progress.clock, progress.calls, job.watcher.line),
        *decay(run.optimiser, job.optimiser, first=job.first, last=run.updates),
        job.trackers,
        *([adaptive.adapt] if adaptive else []),
        *job.between,
        Every(run.evaluation.every, run.updates, evaluate),
        Save(progress.save, run.checkpoints.every, run.updates),
    ]


def _data_run(run: Run, folder: Path, watcher: Watcher, parts: from_data.Parts) -> _Job:
    progress = from_data.progress_of(run, folder, parts)
    first = progress.restore()
    progress.forget_after(first)
    tracking = trackers.start(run.tracking, run.model_dump(), folder, first)
    return _Job(
        run=run,
        watcher=watcher,
        subject=DataRun(run, folder, parts, watcher, progress, tracking),
        method=parts.method,
        optimiser=parts.optimiser,
        engine=parts.engine,
        progress=progress,
        trackers=tracking,
        first=first,
        between=[parts.average],
    )


def _fine_tuning(run: Run, folder: Path, watcher: Watcher, parts: build.Parts) -> _Job:
    monitor = guard.monitor(
        run.guard,
        run.evaluation,
        reward=run.reward,
        source=run.model.source,
        updates=run.updates,
        folder=folder,
        held_out=parts.held_out,
        on_alarm=watcher.line,
    )
    kept = {"trust": parts.method.adaptive, "guard": monitor, "engine": parts.engine}
    progress = Progress(
        folder=folder,
        policy=parts.policy,
        optimiser=parts.optimiser,
        source=parts.method.source,
        others=kept,
        updates=run.updates,
        keep=run.checkpoints.keep,
    )
    first = progress.restore()
    progress.forget_after(first, ended=monitor.ended is not None)
    tracking = trackers.start(run.tracking, run.model_dump(), folder, first)
    return _Job(
        run=run,
        watcher=watcher,
        subject=FineTuning(run, folder, parts, watcher, progress, tracking, monitor),
        method=parts.method,
        optimiser=parts.optimiser,
        engine=parts.engine,
        progress=progress,
        trackers=tracking,
        first=first,
    )


@dataclass
class FineTuning:
    """What a fine-tuning does before, between and after its updates."""

    run: Run
    folder: Path
    parts: build.Parts
    watcher: Watcher
    progress: Progress
    trackers: Trackers
    monitor: Monitor

    def begin(self) -> None:
        """Measure the base model: a resumed run compares with it."""
        before, verdicts = self.evaluate(0)
        if distributed.team().main:
            verdicts.save(self.folder / "base.json")
            _show(before, self.folder / "previews", "before")

    def until_alarm(self, updates: Iterable[int]) -> Iterable[int]:
        return self.monitor.until_ended(updates)

    def evaluate(self, update: int) -> tuple[Measurement, Verdicts]:
        """Measure, ask the guard, and write a line of the log, and one of the gap if it is due."""
        measured, verdicts = self._measured(update)
        run, parts = self.run, self.parts
        line = verdicts.line | self.monitor.observe(measured, parts.policy, update)
        files.append_line(self.progress.evaluations, line)
        shown = preview_indices(measured.prompts)
        pictures = measured.images[shown] if measured.images.dim() == 4 else None
        self.trackers.evaluated(line, pictures, [measured.prompts.texts[i] for i in shown])
        if gap.due(run.evaluation, run.updates, update):
            self.watcher.stage("measuring the sampler gap")
            seed = run.evaluation.seed
            comparison = Comparison(parts.held_out, parts.reward, run.reward, run.sampling, seed)
            matrix = gap.line(parts.policy, run.evaluation.gap, comparison, update)
            files.append_line(self.progress.gaps, matrix)
        return measured, verdicts

    def finish(self) -> dict[str, Any]:
        """Measure, or settle what the guard ended; export, compare, and write the page."""
        run, monitor, policy = self.run, self.monitor, self.parts.policy
        final = self.evaluate(run.updates) if monitor.ended is None else None
        if monitor.ended is not None:  # perhaps by that very evaluation
            weights_of = monitor.settle(policy)
            self.progress.save(monitor.ended)
            final = self._measured(weights_of)
        assert final is not None
        measured, verdicts = final
        calls = self.progress.calls()
        if not distributed.team().main:
            return {}
        _show(measured, self.folder / "previews", "after")
        if run.model.rank:
            export.lora(policy, self.folder / "lora")
        elif is_function(run.model.source):
            user_module.save(policy.backbone, self.folder)
        base = Verdicts.load(self.folder / "base.json")
        result = compare(base, verdicts) | monitor.summary()
        result |= {
            "network_evaluations": calls,
            "seconds": round(self.progress.clock.seconds(), 1),
            "run": str(self.folder),
        }
        files.write_json(self.folder / "result.json", result)
        if run.model.rank:
            card.write(self.folder)
        write_report(self.folder)
        return result

    def _measured(self, update: int) -> tuple[Measurement, Verdicts]:
        self.watcher.stage("evaluating on held-out prompts")
        run, parts, seconds = self.run, self.parts, self.progress.clock.seconds()
        measured = measure(
            parts.policy,
            parts.held_out,
            reward=parts.reward,
            reward_name=run.reward,
            metrics=verdict_metrics(run.model.source),
            evaluation=run.evaluation,
            sampling=run.sampling,
        )
        line = evaluation_line(
            measured,
            run.evaluation,
            run.sampling,
            update=update,
            seconds=seconds,
            network_evaluations=self.progress.calls(),
        )
        return measured, Verdicts(measured.prompts.tasks, measured.values, line)


def _show(measured: Measurement, folder: Path, name: str) -> None:
    """Pictures in a grid that the report cuts up; points and series drawn for themselves."""
    images = measured.images
    if images.dim() == 4 and images.shape[2] == images.shape[3]:
        accepted = measured.values.get("judge")
        save_preview(images, measured.prompts, accepted=accepted, folder=folder, name=name)
    else:
        kind = {2: "points", 3: "series", 4: "images"}[images.dim()]
        gallery.show(images, kind, folder / f"{name}.png")
