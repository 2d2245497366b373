"""A run, from its settings to its result: restore the newest checkpoint if there is one; measure;
train; measure again; export. Of several processes all compute, and the main one writes.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed, files, lock
from scoretune.core.config import Run
from scoretune.core.errors import UserError, first_line
from scoretune.core.finite import is_finite
from scoretune.core.records import Hook
from scoretune.core.resolve import is_function
from scoretune.core.user_code import contained
from scoretune.data.prompts import Prompts
from scoretune.evaluate import data_samples, gap
from scoretune.evaluate.gap import Comparison
from scoretune.evaluate.guard import guard
from scoretune.evaluate.guard.guard import Monitor
from scoretune.evaluate.report import data_page, gallery
from scoretune.evaluate.report.page import write_report
from scoretune.evaluate.samples import deployed_times, preview_indices, sample, save_preview
from scoretune.evaluate.scores import (
    Measurement,
    Verdicts,
    compare,
    evaluation_line,
    judging,
    measure,
)
from scoretune.evaluate.videos import middle
from scoretune.models import export, user_module
from scoretune.policy import Policy, deployment_of
from scoretune.rewards.base import NotFinite, Reward
from scoretune.training import build, card, from_data, loop, trackers
from scoretune.training.hooks import Every, Log, Stopping, Watcher, decay, learned
from scoretune.training.nonfinite import NonFinite, blame_model, blame_reward, check_weights
from scoretune.training.overrides import of_data
from scoretune.training.progress import Learner, Progress
from scoretune.training.run_folder import decisive
from scoretune.training.trackers import Trackers

Ready = build.Checked | from_data.Parts


def ready(run: Run) -> Ready:
    """Refuse what cannot work, before there is a run folder; what that has read and built."""
    if of_data(run):
        torch.manual_seed(run.seed)
        return from_data.build(run)  # data and network are small: all is made
    return build.check(run)


def launch(
    run: Run,
    folder: Path,
    watcher: Watcher,
    checked: Ready | None = None,
    *,
    begun: Callable[[], None] = lambda: None,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result.

    `checked` is what `ready` gave for this run, None to ask it here. `begun` is called once all is
    checked and built, before anything is written. No other process may be at work in the folder.
    With `accept_changes` the run goes on from a checkpoint that other settings made.
    """
    yours = f"code of yours (reward {run.reward!r}, model {run.model.source!r})"
    with lock.held(folder), contained(yours):
        training = _built(run, folder, watcher, checked)
        training.progress.accept_changes = accept_changes
        first = training.restore()
        begun()
        return training.train(first)


def _built(run: Run, folder: Path, watcher: Watcher, checked: Ready | None) -> Training:
    if of_data(run):
        watcher.stage("reading the data")
        data_parts = checked or ready(run)
        assert isinstance(data_parts, from_data.Parts)
        for text in data_parts.plan.lines() if data_parts.plan else ():
            watcher.note(text)
        progress = from_data.progress_of(run, folder, data_parts)
        progress.settings = decisive(run)
        return DataRun(run, folder, watcher, data_parts, progress)
    checked = checked or ready(run)
    assert isinstance(checked, build.Checked)
    torch.manual_seed(run.seed)
    watcher.stage("loading the model")
    parts = build.build(run, checked)
    for text in parts.notes:
        watcher.note(text)
    monitor = guard.monitor(
        run.guard,
        run.evaluation,
        judge=checked.judge,
        features=checked.features,
        updates=run.updates,
        folder=folder,
        held_out=parts.held_out,
        on_alarm=watcher.line,
    )
    kept = {"trust": parts.method.adaptive, "guard": monitor, "engine": parts.engine}
    progress = Progress(folder, parts, kept, run.updates, run.checkpoints.keep, decisive(run))
    return FineTuning(run, folder, watcher, parts, progress, monitor)


@dataclass
class Training(ABC):
    """A run in its folder: what it does before, between and after its updates."""

    run: Run
    folder: Path
    watcher: Watcher
    parts: Learner
    progress: Progress
    trackers: Trackers = field(init=False)
    done: int = field(init=False, default=0)
    """Updates."""

    @abstractmethod
    def begin(self) -> None:
        """Before the first update."""

    @abstractmethod
    def evaluate(self, update: int) -> Any:
        """Measure after an update."""

    @abstractmethod
    def finish(self) -> dict[str, Any]:
        """After the last update; the result, of several processes in the main one."""

    @property
    def ended(self) -> bool:
        """Whether a guard ended the run early."""
        return False

    def until_alarm(self, updates: Iterable[int]) -> Iterable[int]:
        """The updates, until something ends the run early."""
        return updates

    def between(self) -> list[Hook]:
        """What else follows each update, before it is evaluated."""
        return []

    @abstractmethod
    def read_base(self) -> Any:
        """What was measured before the first update: at the end it is compared with."""

    def explained(self, error: UserError) -> UserError:
        """Why a number is not finite, as far as can be looked up."""
        return error

    def restore(self) -> int:
        """Continue from the newest checkpoint, and from logs that can be read; the number of
        updates already done. Raises UserError before anything is trained or written."""
        first = self.progress.restore()
        base = self.folder / "base.json"
        if first and distributed.team().main:
            try:
                self.read_base()
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f"{str(base)!r}, what was measured before training, cannot be read "
                    f"({type(error).__name__}: {first_line(error)[:60]}): put a copy back, or "
                    "start the run anew"
                ) from error
        self.progress.forget_after(first, ended=self.ended)
        return first

    def train(self, first: int) -> dict[str, Any]:
        """Train to the end after the updates already done; the result."""
        self.done = first
        self.trackers = trackers.start(self.run.tracking, self.run.model_dump(), self.folder, first)
        try:
            self._learn(first)
            return self.finish()
        except (NonFinite, NotFinite) as error:
            raise self.explained(error) from error
        finally:
            self.trackers.finish()

    def _learn(self, first: int) -> None:
        run, method = self.run, self.parts.method
        if first == 0:
            self.begin()
            if method.warm_up:
                self.watcher.stage("fitting the critic")
            for lap in range(method.warm_up):  # to the base model, before it moves
                method.source(-1 - lap)
            self.watcher.stage("training")
        stopping = Stopping(self.progress.save, self.watcher.stage)
        with stopping.listening():
            loop.train(
                method.source,
                method.objective,
                self.parts.optimiser,
                self.parts.engine,
                updates=self.until_alarm(range(first, run.updates)),
                clip_norm=run.optimiser.clip_norm,
                region=method.region,
                hooks=[self._count, *self._hooks(first), stopping],
            )

    def _count(self, update: int, metrics: Mapping[str, float]) -> None:
        self.done = update

    def _hooks(self, first: int) -> list[Hook]:
        """What follows each update: log, decay, what adapts, evaluate, save."""
        run, progress, adaptive = self.run, self.progress, self.parts.method.adaptive

        def evaluate(update: int) -> None:
            check_weights(self.parts.policy, update)
            self.evaluate(update)
            self.watcher.stage("training")

        return [
            Log(
                progress.log("metrics"),
                progress.clock,
                progress.calls,
                progress.rewarded,
                self.watcher.line,
            ),
            *decay(run.optimiser, self.parts.optimiser, first=first, last=run.updates),
            self.trackers,
            *([learned(adaptive.adapt)] if adaptive else []),
            *self.between(),
            Every(run.evaluation.every, run.updates, evaluate),
            Every(run.checkpoints.every, run.updates, progress.save, at_last=True),
        ]

    def write_result(self, result: dict[str, Any], calls: int, **more: str) -> None:
        """Complete the result by what it cost and where it is, and write it."""
        seconds = round(self.progress.clock.seconds(), 1)
        result |= {"network_evaluations": calls, "seconds": seconds, **more}
        result["run"] = str(self.folder)
        files.write_json(self.folder / "result.json", result)


@dataclass
class FineTuning(Training):
    """The fine-tuning of a pretrained model."""

    parts: build.Parts
    monitor: Monitor

    def begin(self) -> None:
        """Measure the base model: a resumed run compares with it."""
        before, verdicts = self.evaluate(0)
        if distributed.team().main:
            verdicts.save(self.folder / "base.json")
            _show(before, self.folder / "previews", "before")

    def read_base(self) -> Verdicts:
        base = Verdicts.load(self.folder / "base.json")
        if not isinstance(base.line["reward"]["deterministic"], float):
            raise TypeError("its reward is no number")
        base.score("reward")
        return base

    def explained(self, error: UserError) -> UserError:
        if distributed.team().size > 1:  # drawing samples needs them all
            return error
        prompt = Prompts(self.parts.held_out.texts[:1], ("all",))
        policy, evaluation = self.parts.policy, self.run.evaluation
        times = deployed_times(policy.backbone, evaluation.steps, prompt.texts)

        def draw() -> Tensor:
            return sample(policy, prompt, times=times, seed=evaluation.seed)

        if isinstance(error, NonFinite) and error.explained:
            return error
        if isinstance(error, NonFinite) and is_finite(images := draw()):
            return blame_reward(error, self.parts.reward, self.run.reward, images, prompt.texts)
        return blame_model(policy, self.done, draw)

    @property
    def ended(self) -> bool:
        return self.monitor.ended is not None

    def between(self) -> list[Hook]:
        return [self.monitor.learned]

    def until_alarm(self, updates: Iterable[int]) -> Iterable[int]:
        return self.monitor.until_ended(updates)

    def evaluate(self, update: int) -> tuple[Measurement, Verdicts]:
        """Measure, ask the guard, and write a line of the log, and one of the gap if it is due."""
        measured, verdicts = self._measured(update)
        run, parts = self.run, self.parts
        line = verdicts.line | self.monitor.observe(measured, parts.policy, update)
        files.append_line(self.progress.log("evaluations"), line)
        shown = preview_indices(measured.prompts)
        pictures = middle(measured.images)[shown] if measured.images.dim() > 3 else None
        self.trackers.evaluated(line, pictures, [measured.prompts.texts[i] for i in shown])
        if gap.due(run.evaluation, run.updates, update):
            self.watcher.stage("measuring the sampler gap")
            seed = run.evaluation.seed
            comparison = Comparison(
                parts.held_out,
                parts.reward,
                run.reward,
                run.sampling,
                seed,
                deployment_of(parts.policy.backbone),
            )
            matrix = gap.line(parts.policy, run.evaluation.gap, comparison, update)
            files.append_line(self.progress.log("gap"), matrix)
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
        calls, rewarded = self.progress.calls(), self.progress.rewarded()
        if not distributed.team().main:
            return {}
        _show(measured, self.folder / "previews", "after")
        if run.model.rank:
            export.lora(policy, self.folder / "lora")
        elif is_function(run.model.source):
            user_module.save(policy.backbone, self.folder)
        result = compare(self.read_base(), verdicts) | monitor.summary()
        result["reward_evaluations"] = rewarded
        self.write_result(result, calls)
        if run.model.rank:
            card.write(self.folder)
        write_report(self.folder)
        return result

    def _measured(self, update: int) -> tuple[Measurement, Verdicts]:
        self.watcher.stage("evaluating on held-out prompts")
        parts, progress = self.parts, self.progress
        seconds = progress.clock.seconds()
        measured = measured_run(self.run, parts.policy, parts.held_out, parts.reward)
        line = evaluation_line(
            measured,
            self.run.evaluation,
            self.run.sampling,
            update=update,
            seconds=seconds,
            network_evaluations=progress.calls(),
        )
        return measured, Verdicts(measured.prompts.tasks, measured.values, line)


@dataclass
class DataRun(Training):
    """The training of a network of one's own on data, of which the averaged weights are measured,
    drawn from and saved."""

    parts: from_data.Parts

    def begin(self) -> None:
        """Show the data, and measure the untrained network."""
        data, previews = self.parts.data, self.folder / "previews"
        gallery.show(data.states, data.kind, previews / "data.png", names=data.names, label="data")
        line = self.evaluate(0, "before")
        files.write_json(self.folder / "base.json", line)

    def read_base(self) -> dict[str, Any]:
        base = json.loads((self.folder / "base.json").read_text(encoding="utf-8"))
        from_data.compared(base, base, {})
        return dict(base)

    def between(self) -> list[Hook]:
        return [self.parts.average]

    def evaluate(self, update: int, picture: str = "newest") -> dict[str, Any]:
        """Measure, draw and save the averaged weights; one line of the log."""
        self.watcher.stage("drawing samples")
        parts, data = self.parts, self.parts.data
        calls = parts.policy.calls
        with parts.average.in_place(), parts.policy.uncounted():
            numbers, samples = from_data.measured(self.run, parts)
            sampler = from_data.sampler_of(self.run)
            data_samples.save(parts.model, self.folder / "model", sampler, data.names)
        real = None if data.kind == "images" else data.states
        path = self.folder / "previews" / f"{picture}.png"
        gallery.show(samples, data.kind, path, names=data.names, real=real)
        seconds = round(self.progress.clock.seconds(), 2)
        line = {"update": update, "network_evaluations": calls, "seconds": seconds, **numbers}
        files.append_line(self.progress.log("evaluations"), line)
        self.trackers.evaluated(line)
        return line

    def finish(self) -> dict[str, Any]:
        """Measure the trained network and compare it with the untrained one."""
        base = self.read_base()
        final = self.evaluate(self.run.updates, "after")
        real = from_data.floor(self.parts, self.run.evaluation)
        result = from_data.compared(base, final, real)
        if self.parts.plan is not None:
            result["compress"] = self.parts.plan.as_dict()
        calls = self.parts.policy.calls
        self.write_result(result, calls, model=str(self.folder / "model"))
        data_page.write(self.folder)
        return result


def measured_run(run: Run, policy: Policy, prompts: Prompts, reward: Reward) -> Measurement:
    """A policy measured on prompts as the settings of a run have it."""
    return measure(
        policy,
        prompts,
        reward=reward,
        reward_name=run.reward,
        metrics=judging(run.model.source, prompts),
        evaluation=run.evaluation,
        sampling=run.sampling,
    )


def _show(measured: Measurement, folder: Path, name: str) -> None:
    """Pictures in a grid that the report cuts up; points and series drawn for themselves."""
    images = measured.images
    if images.dim() > 3:
        accepted = measured.values.get("judge")
        save_preview(images, measured.prompts, accepted=accepted, folder=folder, name=name)
    else:
        kind = {2: "points", 3: "series"}[images.dim()]
        gallery.show(images, kind, folder / f"{name}.png")
