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
from scoretune.evaluate.guard import guard
from scoretune.evaluate.guard.guard import Sentry
from scoretune.evaluate.measure import Measurement, Verdicts, compare, measure, preview_indices
from scoretune.evaluate.report import gallery
from scoretune.models import export, user_module
from scoretune.rewards.base import Reward
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
    watch: Sentry
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
        before = self._evaluate(0)
        if distributed.team().main:
            before.verdicts.save(self.folder / "base.json")
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
                updates=self.watch.while_calm(range(self.first, run.updates)),
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
        calls = self.progress.calls()
        if not distributed.team().main:
            return {}
        _show(final, self.folder / "previews", "after")
        if run.model.rank:
            export.lora(self.parts.policy, self.folder / "lora")
        elif is_function(run.model.source):
            user_module.save(self.parts.policy.backbone, self.folder)
        base = Verdicts.load(self.folder / "base.json")
        return self._finish(compare(base, final.verdicts) | watch.summary(), calls)

    def _note(self, update: int) -> None:
        self._evaluate(update)
        self.watcher.stage("training")

    def _evaluate(self, update: int) -> Measurement:
        found = self._measured(update)
        line = found.verdicts.line | self.watch.look(found, self.parts.policy)
        files.append_line(self.progress.evaluations, line)
        shown = preview_indices(found.prompts)
        pictures = found.images[shown] if found.images.dim() == 4 else None
        self.told.evaluated(line, pictures, [found.prompts.texts[i] for i in shown])
        if gap.due(self.run, update):
            self.watcher.stage("measuring the sampler gap")
            parts = self.parts
            matrix = gap.line(parts.policy, self.run, parts.held_out, parts.reward, update)
            files.append_line(self.progress.gaps, matrix)
        return found

    def _measured(self, update: int) -> Measurement:
        self.watcher.stage("evaluating on held-out prompts")
        parts, seconds = self.parts, self.progress.clock.seconds()
        return measure(parts.policy, self.run, parts.held_out, parts.reward, update, seconds)

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


def ready(run: Run) -> Reward | None:
    """Refuse what cannot work, before there is a run folder; the reward of a run that has one."""
    if of_data(run):
        fit_parts.build(run)  # data and network are small: all is tried
        return None
    return verify(run)[2]


def course(run: Run, folder: Path, watcher: Watcher, parts: Parts) -> Course:
    """A run from its newest checkpoint in `folder`, if there is one."""
    folder.mkdir(parents=True, exist_ok=True)
    watch = guard.sentry(run, folder, parts.held_out, watcher.line)
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
        measured.save_preview(folder, name)
    else:
        kind = {2: "points", 3: "series", 4: "images"}[images.dim()]
        gallery.show(images, kind, folder / f"{name}.png")
