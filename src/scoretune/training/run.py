"""The course of a fine-tuning run, once its parts are built.

Restore the newest checkpoint if there is one; measure the base model; train; measure again; export.
Of several processes all compute, and the main one writes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoretune.core import distributed, files
from scoretune.core.config import PolicyGradient, Run, ScoreAction
from scoretune.core.records import Hook
from scoretune.core.resolve import is_function
from scoretune.evaluate import gap
from scoretune.evaluate.gap import Setup
from scoretune.evaluate.guard import guard
from scoretune.evaluate.guard.guard import Monitor
from scoretune.evaluate.report import gallery
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
from scoretune.training import card, fit_parts, from_data, trackers
from scoretune.training.build import Parts, build, verify
from scoretune.training.hooks import Watcher
from scoretune.training.loop import train
from scoretune.training.overrides import of_data
from scoretune.training.progress import Progress
from scoretune.training.stopping import Stopping
from scoretune.training.trackers import Trackers


@dataclass
class Course:
    """A run in its folder, `first` updates of which are done."""

    run: Run
    folder: Path
    watcher: Watcher
    parts: Parts
    progress: Progress
    watch: Monitor
    told: Trackers
    first: int

    def follow(self) -> dict[str, Any]:
        """Train to the end; the result, of several processes in the main one."""
        try:
            if self.first == 0:
                self._begin()
            self._learn()
            return self._end()
        finally:
            self.told.finish()

    def _begin(self) -> None:
        before, verdicts = self._evaluate(0)
        if distributed.team().main:
            verdicts.save(self.folder / "base.json")
            _show(before, self.folder / "previews", "before")
        self._warm_up()
        self.watcher.stage("training")

    def _learn(self) -> None:
        parts, run = self.parts, self.run
        trust = [parts.trust.adapt] if parts.trust else []
        stopping = Stopping(self.progress.save, self.watcher.stage)
        between: list[Hook] = [self.told, *trust]
        hooks = self.progress.hooks(self.first, self.watcher.line, self._note, between)
        with stopping.listening():
            train(
                parts.source,
                parts.objective,
                parts.optimiser,
                parts.engine,
                updates=self.watch.until_ended(range(self.first, run.updates)),
                clip_norm=run.optimiser.clip_norm,
                hooks=[*hooks, stopping],
            )

    def _end(self) -> dict[str, Any]:
        run, watch = self.run, self.watch
        final = self._evaluate(run.updates) if watch.ended is None else None
        if watch.ended is not None:  # perhaps by that very evaluation
            weights_of = watch.settle(self.parts.policy)
            self.progress.save(watch.ended)
            final = self._measured(weights_of)
        assert final is not None
        measured, verdicts = final
        calls = self.progress.calls()
        if not distributed.team().main:
            return {}
        _show(measured, self.folder / "previews", "after")
        if run.model.rank:
            export.lora(self.parts.policy, self.folder / "lora")
        elif is_function(run.model.source):
            user_module.save(self.parts.policy.backbone, self.folder)
        base = Verdicts.load(self.folder / "base.json")
        return self._finish(compare(base, verdicts) | watch.summary(), calls)

    def _note(self, update: int) -> None:
        self._evaluate(update)
        self.watcher.stage("training")

    def _evaluate(self, update: int) -> tuple[Measurement, Verdicts]:
        measured, verdicts = self._measured(update)
        line = verdicts.line | self.watch.observe(measured, self.parts.policy, update)
        files.append_line(self.progress.evaluations, line)
        shown = preview_indices(measured.prompts)
        pictures = measured.images[shown] if measured.images.dim() == 4 else None
        self.told.evaluated(line, pictures, [measured.prompts.texts[i] for i in shown])
        run, parts = self.run, self.parts
        if gap.due(run.evaluation, run.updates, update):
            self.watcher.stage("measuring the sampler gap")
            seed = run.evaluation.seed
            setup = Setup(parts.held_out, parts.reward, run.reward, run.sampling, seed)
            matrix = gap.line(parts.policy, run.evaluation.gap, setup, update)
            files.append_line(self.progress.gaps, matrix)
        return measured, verdicts

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

    def _warm_up(self) -> None:
        """Rounds that fit the critic, if there is one, to the base model before it moves."""
        chosen = self.run.objective
        if isinstance(chosen, ScoreAction) or (
            isinstance(chosen, PolicyGradient) and chosen.baseline == "critic"
        ):
            self.watcher.stage("fitting the critic")
            for lap in range(chosen.critic.warmup):
                self.parts.source(-1 - lap)

    def _finish(self, result: dict[str, Any], calls: int) -> dict[str, Any]:
        from scoretune.evaluate.report.page import write_report

        result |= {
            "network_evaluations": calls,
            "seconds": round(self.progress.clock.seconds(), 1),
            "run": str(self.folder),
        }
        (self.folder / "result.json").write_text(json.dumps(result, indent=2) + "\n")
        if self.run.model.rank:
            card.write(self.folder)
        write_report(self.folder)
        return result


def launch(run: Run, folder: Path, watcher: Watcher) -> dict[str, Any]:
    """Train as configured in `folder`, from its newest checkpoint if it has one; the result."""
    if of_data(run):
        return from_data.launch(run, folder, watcher)
    torch.manual_seed(run.seed)
    watcher.stage("loading the model")
    return course(run, folder, watcher, build(run)).follow()


def ready(run: Run) -> None:
    """Refuse what cannot work, before there is a run folder."""
    if of_data(run):
        fit_parts.build(run)  # data and network are small: all is tried
    else:
        verify(run)


def course(run: Run, folder: Path, watcher: Watcher, parts: Parts) -> Course:
    """A run from its newest checkpoint in `folder`, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    watch = guard.monitor(
        run.guard,
        run.evaluation,
        reward=run.reward,
        source=run.model.source,
        updates=run.updates,
        folder=folder,
        held_out=parts.held_out,
        on_alarm=watcher.line,
    )
    kept = {"trust": parts.trust, "guard": watch, "engine": parts.engine}
    progress = Progress(run, folder, parts.policy, parts.optimiser, parts.source, kept)
    first = progress.restore()
    progress.forget_after(first, ended=watch.ended is not None)
    told = trackers.start(run, folder, first)
    return Course(run, folder, watcher, parts, progress, watch, told, first)


def _show(measured: Measurement, folder: Path, name: str) -> None:
    """Pictures in a grid that the report cuts up; points and series drawn for themselves."""
    images = measured.images
    if images.dim() == 4 and images.shape[2] == images.shape[3]:
        accepted = measured.values.get("judge")
        save_preview(images, measured.prompts, accepted=accepted, folder=folder, name=name)
    else:
        kind = {2: "points", 3: "series", 4: "images"}[images.dim()]
        gallery.show(images, kind, folder / f"{name}.png")
