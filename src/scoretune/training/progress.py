"""How far a run has come: the one checkpoint of all that changes, and its logs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scoretune.core import checkpoints, distributed, files, fsdp
from scoretune.core.errors import UserError, first_line
from scoretune.core.records import Stateful
from scoretune.models.lora import adapter_state, restore_adapter
from scoretune.policy import Policy
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Clock
from scoretune.training.objectives.method import Method

SHOWN = 3
"""How many settings that differ a refusal names."""


@dataclass
class Learner:
    """A policy and what it learns by."""

    policy: Policy
    method: Method
    optimiser: torch.optim.Optimizer
    engine: TorchEngine


@dataclass
class Progress:
    """A run in its folder, of so many `updates`; what else changes is saved by name in `others`,
    None where a run has no such thing. The last `keep` checkpoints stay. `settings` are those that
    decide its numbers, by their paths: a checkpoint that was made with others is refused, unless
    `accept_changes`."""

    folder: Path
    learner: Learner
    others: Mapping[str, Stateful | None]
    updates: int
    keep: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    accept_changes: bool = False
    clock: Clock = field(default_factory=Clock)

    def log(self, name: str) -> Path:
        """Where JSON lines are written: of updates as `metrics`, of `evaluations`, of the matrices
        of `evaluation.gap` as `gap`, and of a guard's `alarms`."""
        return self.folder / f"{name}.jsonl"

    def calls(self) -> int:
        """Network evaluations of all processes."""
        return distributed.count(self.learner.policy.calls)

    def rewarded(self) -> int:
        """Reward evaluations of all processes, each of a state that was decoded for it."""
        return distributed.count(self.learner.policy.decoded)

    def save(self, update: int) -> None:
        """Write a checkpoint."""
        checkpoints.save(self.folder / "checkpoints", update, self.state(update), self.keep)

    def state(self, update: int) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if it had not been stopped."""
        return {
            "update": update,
            "settings": {path: _plain(value) for path, value in self.settings.items()},
            "seconds": self.clock.seconds(),
            "network_evaluations": self.calls(),
            "reward_evaluations": self.rewarded(),
            "policy": adapter_state(self.learner.policy.backbone.network),
            "optimiser": fsdp.full_state(self.learner.optimiser.state_dict()),
            "source": self.learner.method.source.state(),
            **{name: other.state() if other else None for name, other in self.others.items()},
            "random": checkpoints.random_state(),
        }

    def restore(self) -> int:
        """Continue from the newest checkpoint: the number of updates already done.

        Raises UserError for one that was made with other settings, and for one that does not fit.
        """
        newest = checkpoints.latest(self.folder / "checkpoints")
        if newest is None:
            return 0
        state = checkpoints.load(newest)
        with _fitting(newest):
            done = int(state["update"])
            self._compare(newest, state.get("settings") or {}, done)
            restore_adapter(self.learner.policy.backbone.network, state["policy"])
            fsdp.restore(self.learner.optimiser, state["optimiser"])
            self.learner.method.source.restore(state["source"])
            for name, other in self.others.items():
                if other and state.get(name) is not None:  # older checkpoints know no guard
                    other.restore(state[name])
            checkpoints.restore_random_state(state["random"])
            self.clock.before = state["seconds"]
            # The sum over the processes goes on from what all of them had done.
            main = distributed.team().main
            self.learner.policy.calls = state["network_evaluations"] if main else 0
            # Older checkpoints did not count rewards.
            self.learner.policy.decoded = state.get("reward_evaluations", 0) if main else 0
        return done

    def _compare(self, newest: Path, before: Mapping[str, Any], done: int) -> None:
        """Refuse fewer updates than are done, and settings other than before that are in both: a
        setting that is only in one is of another version. More updates are no difference."""
        if not self.settings:
            return
        if self.updates < done:
            raise UserError(
                f"updates={self.updates} is less than the {done} that are done in "
                f"{str(self.folder)!r}: set updates to {done} or more, or start another run"
            )
        changed = [
            f"{path} {before[path]} -> {_plain(value)}"
            for path, value in self.settings.items()
            if path in before and before[path] != _plain(value)
            if path != "updates" or value < before[path]
        ]
        if changed and not self.accept_changes:
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            shown = ", ".join(t if len(t) < 46 else f"{t[:44]}…" for t in changed[:SHOWN])
            raise UserError(
                f"{newest.name} was made with other settings than run.json has now: {shown}{more}; "
                "put them back, or go on with the new ones by --accept-changes"
            )

    def forget_after(self, first: int, *, ended: bool = False) -> None:
        """Drop the lines of updates that will be done again.

        What a stopped run wrote before its first checkpoint, or at its end, is measured again; but
        not the evaluation at which a guard `ended` it, after which its weights may have changed.
        """
        files.forget_after(self.log("metrics"), first)
        last = first if ended else min(first, self.updates - 1) if first else -1
        for name in ("alarms", "evaluations", "gap"):
            files.forget_after(self.log(name), last)


def _plain(value: Any) -> Any:
    """As a checkpoint gives it back."""
    return list(value) if isinstance(value, tuple) else value


@contextmanager
def _fitting(newest: Path) -> Iterator[None]:
    """Within this context a checkpoint that has not what is looked for is the user's to mend."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise UserError(
            f"checkpoint {newest} does not fit what run.json sets up ({type(error).__name__}: "
            f"{first_line(error)[:80]}): is it of another run, or run.json changed?"
        ) from error
