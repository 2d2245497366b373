"""Where numbers and pictures go besides metrics.jsonl: TensorBoard, Weights & Biases, Trackio.

All go through accelerate's tracker classes. One that fails is named once and left out from then on;
the run goes on, and what it writes into its own folder never depends on them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Tracking, leaves
from scoretune.core.errors import UserError, first_line, unknown

REMEDIES = {
    "tensorboard": "pip install tensorboard",
    "wandb": "pip install 'scoretune[track]'",
    "trackio": "pip install 'scoretune[track]'",
}
"""What to do about a tracker that is not installed."""
SENT = "tracking.json"  # in the run folder: under which name it is tracked, and how far


def check(tracking: Tracking) -> None:
    """Refuse a tracker that is unknown or not installed, before there is a run folder."""
    for name in tracking.trackers:
        if name not in REMEDIES:
            raise unknown("tracker", name, REMEDIES)
        if not _installed(name):
            raise UserError(
                f"the tracker {name} is not installed: {REMEDIES[name]}, or leave it out of "
                "tracking.trackers"
            )


def start(
    tracking: Tracking,
    settings: Mapping[str, Any],
    folder: Path,
    first: int,
    *,
    say: Callable[[str], None] | None = None,
) -> Trackers:
    """The trackers that a run names, given its settings; none but on the main process.

    `first` is the number of updates already done: a resumed run goes on in the same place. `say`
    hears of a tracker that fails (default: a line on stderr).
    """
    names = tracking.trackers if distributed.team().main else ()
    trackers = Trackers(say or _tell, _Sent.of(folder), folder / SENT, first)
    for name in names:
        trackers.attempt(name, _start, name, tracking.project, settings, trackers)
    return trackers


def flattened(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Leaves by their path; lists as text, and None as "null", which trackers have no kind for."""
    plain = {path: "null" if value is None else value for path, value in leaves(tree)}
    return {n: v if isinstance(v, bool | int | float | str) else str(v) for n, v in plain.items()}


@dataclass
class _Sent:
    """What a run folder remembers of its trackers: a name of its own, and what they were sent."""

    name: str
    updates: int = -1
    evaluations: int = -1

    @staticmethod
    def of(folder: Path) -> _Sent:
        try:
            record = json.loads((folder / SENT).read_text(encoding="utf-8"))
            return _Sent(str(record["name"]), int(record["updates"]), int(record["evaluations"]))
        except (OSError, ValueError, KeyError, TypeError):
            return _Sent(uuid4().hex[:8])

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self)) + "\n", encoding="utf-8")


@dataclass
class Trackers:
    """What is called after every update, at every evaluation, and at the end of a run."""

    say: Callable[[str], None]
    sent: _Sent
    path: Path
    first: int
    running: dict[str, Any] = field(default_factory=dict)

    def __call__(self, update: int, metrics: Mapping[str, float]) -> None:
        """A hook: the numbers of an update as `train/NAME`."""
        values = {f"train/{name}": float(value) for name, value in metrics.items()}
        self._log(update, values, sent_before=update <= self.sent.updates)
        self._note(updates=max(update, self.sent.updates))

    def evaluated(
        self, line: Mapping[str, Any], images: Tensor | None = None, captions: Sequence[str] = ()
    ) -> None:
        """The numbers of an evaluation's line, whatever is nested in it, as `evaluation/PATH`.

        `images` [B, 3, H, W] in [0, 1] are of the same prompts and noise at every evaluation.
        """
        update, values = int(line["update"]), {}
        for path, value in leaves(line, "/"):
            if isinstance(value, int | float) and path != "update":
                values[f"evaluation/{path}"] = float(value)
        sent_before = update <= self.sent.evaluations
        self._log(update, values, sent_before=sent_before)
        if images is not None:
            shown = images.detach().float().cpu().clamp(0, 1).numpy()
            for name, tracker in self._listening(update, sent_before):
                self.attempt(name, _show, name, tracker, update, shown, captions)
        self._note(evaluations=max(update, self.sent.evaluations))

    def finish(self) -> None:
        """Let every tracker write what it still holds."""
        for name in list(self.running):
            self.attempt(name, self.running[name].finish)

    def attempt(self, name: str, act: Callable[..., object], *arguments: object) -> None:
        """Do something with a tracker; one that fails is named, and left out from then on."""
        try:
            act(*arguments)
        except Exception as error:  # a guest's failure, of whatever kind, is not the run's
            self.running.pop(name, None)
            why = first_line(error)
            self.say(f"the tracker {name} failed ({why}): the run goes on without it")

    def _log(self, update: int, values: Mapping[str, float], *, sent_before: bool) -> None:
        for name, tracker in self._listening(update, sent_before):
            self.attempt(name, partial(tracker.log, dict(values), step=update))

    def _listening(self, update: int, sent_before: bool) -> list[tuple[str, Any]]:
        """Who is to hear of an update: nobody twice.

        TensorBoard forgets what was done after the checkpoint that a run goes on from.
        """
        return [
            (name, tracker)
            for name, tracker in self.running.items()
            if not sent_before or (name == "tensorboard" and not 0 < self.first >= update)
        ]

    def _note(self, **changes: int) -> None:
        vars(self.sent).update(changes)
        if self.running:
            with suppress(OSError):  # a full disk is the checkpoints' to report
                self.sent.save(self.path)


def _start(name: str, project: str, settings: Mapping[str, Any], trackers: Trackers) -> None:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # accelerate's trackers ask it who the main process is
    folder, sent = trackers.path.parent, trackers.sent
    config = flattened(settings)
    if name == "tensorboard":
        # Events from this step on are of updates that will be done again: readers drop them.
        again = trackers.first + 1 if trackers.first else 0
        tracker = LOGGER_TYPE_TO_CLASS[name](name, folder, purge_step=again)
        tracker.start()
        if not trackers.first:
            tracker.tracker.add_hparams(config, {}, run_name=".")
    else:
        title = f"{folder.resolve().name}-{sent.name}"
        named = {"name": title, "resume": "allow", "config": config}
        if name == "wandb":
            named |= {"id": sent.name, "dir": str(folder)}
        tracker = LOGGER_TYPE_TO_CLASS[name](project, **named)
        tracker.start()
    trackers.running[name] = tracker


def _show(name: str, tracker: Any, update: int, shown: Any, captions: Sequence[str]) -> None:
    """`shown`: an array [B, 3, H, W] in [0, 1]."""
    if name == "tensorboard":
        tracker.log_images({"evaluation/pictures": shown}, step=update)
        return
    make = getattr(sys.modules[name], "Image", None)
    if make is None:  # early versions of Trackio have numbers only
        return
    bytes_ = (shown * 255).round().astype("uint8").transpose(0, 2, 3, 1)
    made = [make(each, caption=text) for each, text in zip(bytes_, captions, strict=True)]
    if name == "wandb":
        tracker.log({"evaluation/pictures": made}, step=update)
    else:
        tracker.log({f"evaluation/picture {i}": each for i, each in enumerate(made)}, step=update)


def _installed(name: str) -> bool:
    """Whether a package is there; a mere folder of that name, as wandb leaves behind, is none."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None


def _tell(text: str) -> None:
    print(f"scoretune: {text}", file=sys.stderr)
