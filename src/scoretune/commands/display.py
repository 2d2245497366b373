"""What the terminal shows while something long is going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from scoretune.core.config import Run
from scoretune.evaluate.report.format import plain, signed

EVERY = 15.0
"""Seconds between plain lines, where the output is no terminal."""
SOON = 1.0
"""Seconds within which nobody needs a bar."""
SHOWN = {
    "reward": "reward {:.3g}",
    "chain_kl": "chain KL {:.2f}",
    "explained_variance": "critic EV {:.2f}",
    "matching": "loss {:.4f}",
    "consistency": "loss {:.4f}",
    "implicit_accuracy": "implicit accuracy {:.0%}",
    "implicit_margin": "margin {:.3g}",
}


class Live:
    """A progress bar of updates with the numbers that matter; a plain line at intervals when the
    output is no terminal."""

    def __init__(self, run: Run, folder: Path, *, quiet: bool = False) -> None:
        self.run, self.folder = run, folder
        self.console = Console(stderr=True, quiet=quiet)
        self.progress = _bar(self.console)
        self.task = self.progress.add_task(run.recipe, total=run.updates, numbers="starting")
        self.spoke = time.monotonic()
        self.began = False

    def stopped(self) -> None:
        """Say how a run that was stopped goes on."""
        if not (self.folder / "run.json").exists():
            self._print("scoretune: stopped before it began: nothing was written")
            return
        self._print(f"scoretune: stopped; go on with: scoretune train --resume {self.folder}")

    def note(self, text: str) -> None:
        """A line that stays in sight, above the bar."""
        self._print(f"note: {text}")

    def stage(self, text: str) -> None:
        self.progress.update(self.task, numbers=text)
        self._speak(text)

    def line(self, numbers: dict[str, Any]) -> None:
        if "alarm" in numbers:  # stays in sight, above the bar
            self._print(f"guard: at update {numbers['update']} {numbers['alarm']}")
            return
        update, total = numbers["update"], self.run.updates
        shown = [(form, numbers.get(name)) for name, form in SHOWN.items()]
        # What is added makes 0.0 of -0.0.
        text = ", ".join(form.format(value + 0.0) for form, value in shown if value is not None)
        self.progress.update(self.task, completed=update, numbers=text)
        due = time.monotonic() - self.spoke >= EVERY
        if due or not self.began or update == total:
            self._speak(f"update {update}/{total}: {text}")
        self.began = True

    def conclude(self, result: dict[str, Any]) -> None:
        """The result in a few lines, and where to look."""
        for name in ("reader", "judge"):
            if name in result:
                base, final = result[name]["base"], result[name]["final"]
                gain = [round(result["gain"][name][k], 3) + 0.0 for k in ("mean", "low", "high")]
                self._print(
                    f"{name} accuracy on held-out prompts: {base['overall']:.1%} -> "
                    f"{final['overall']:.1%} (gain {gain[0]:+.1%}, 95 % interval "
                    f"{gain[1]:+.1%} to {gain[2]:+.1%})"
                )
        for line in guarded(result.get("guard", {})):
            self._print(line)
        for line in rewarded(result):
            self._print(line)
        self._print(f"{result['seconds']:.0f} s; look at {self.folder / 'report.html'}")

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _speak(self, text: str) -> None:
        if not self.console.is_terminal:
            self._print(text)
            self.spoke = time.monotonic()


def rewarded(result: dict[str, Any]) -> list[str]:
    """The held-out reward before and after, with the gain's interval where it is known; then the
    reward with the noise of training."""
    base, final = (result[name]["deterministic"] for name in ("reward_base", "reward"))
    text = f"held-out reward: {plain(base, 4)} -> {plain(final, 4)}"
    gain = result["gain"].get("reward")
    if gain is not None:
        mean, low, high = (signed(gain[name]) for name in ("mean", "low", "high"))
        text += f" (gain {mean}, 95 % interval {low} to {high})"
    return [text, f"under the training sampler: {plain(result['reward']['stochastic'], 4)}"]


def guarded(guard: dict[str, Any]) -> list[str]:
    """The alarms of a guard, a line each, and what it did; nothing where nothing rang."""
    lines = [f"guard: at update {a['update']} {a['text']}" for a in guard.get("alarms", [])]
    if guard.get("ended") is None:
        return lines
    done = f"guard: the run was ended at update {guard['ended']}"
    if guard["action"] == "rollback":
        done += f" and went back to the weights of update {guard['kept']}"
    return [*lines, done]


class Bars:
    """One bar for each stage of the pre-training."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = _bar(self.console)
        self.tasks: dict[str, Any] = {}
        self.means: dict[str, float] = {}
        self.spoke = 0.0

    def show(self, stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        """Called after every step with the stage's name and its numbers."""
        if stage not in self.tasks:
            self.tasks[stage] = self.progress.add_task(stage, total=total, numbers="")
            self.means = {}
        for name, value in numbers.items():  # losses jump about: show their running means
            self.means[name] = 0.98 * self.means.get(name, value) + 0.02 * value
        text = ", ".join(f"{name} {value:.4f}" for name, value in self.means.items())
        self.progress.update(self.tasks[stage], completed=done, numbers=text)
        due = time.monotonic() - self.spoke > 30 or done == total
        if not self.console.is_terminal and due:
            self.console.print(f"{stage} {done}/{total}: {text}")
            self.spoke = time.monotonic()


class CellBars:
    """One bar for each part of an experiment."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.progress = _bar(self.console)

    def watcher(self, part: str) -> Callable[[str, int, int], None]:
        """To be told each finished cell of a part: its name, how many are done, and of how many."""
        task = self.progress.add_task(part, total=None, numbers="")

        def note(cell: str, done: int, total: int) -> None:
            self.progress.update(task, completed=done, total=total, numbers=cell)
            if not self.console.is_terminal:
                self.console.print(f"{part} {done}/{total}: {cell}")

        return note


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of things that are done one by one, and of how many; a line at intervals when the
    output is no terminal. What ends soon shows nothing."""
    console = Console(stderr=True)
    progress = _bar(console)
    task = progress.add_task(what, total=None, numbers="", visible=False)
    began = spoke = time.monotonic()

    def note(done: int, total: int) -> None:
        nonlocal spoke
        now = time.monotonic()
        if now - began > SOON:
            progress.update(task, completed=done, total=total, visible=True)
        if not console.is_terminal and now - spoke > EVERY:
            console.print(f"{what} {done:,}/{total:,}")
            spoke = now

    with progress:
        yield note


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
