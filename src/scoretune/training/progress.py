"""How far a run has come: the one checkpoint of all that changes, and its logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scoretune.core import checkpoints, distributed, files, fsdp
from scoretune.core.records import Stateful
from scoretune.models.lora import adapter_state, restore_adapter
from scoretune.policy import Policy
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Clock
from scoretune.training.objectives.method import Method


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
    None where a run has no such thing. The last `keep` checkpoints stay."""

    folder: Path
    learner: Learner
    others: Mapping[str, Stateful | None]
    updates: int
    keep: int
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
        """Continue from the newest checkpoint: the number of updates already done."""
        newest = checkpoints.latest(self.folder / "checkpoints")
        if newest is None:
            return 0
        state = checkpoints.load(newest)
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
        return int(state["update"])

    def forget_after(self, first: int, *, ended: bool = False) -> None:
        """Drop the lines of updates that will be done again.

        What a stopped run wrote before its first checkpoint, or at its end, is measured again; but
        not the evaluation at which a guard `ended` it, after which its weights may have changed.
        """
        files.forget_after(self.log("metrics"), first)
        last = first if ended else min(first, self.updates - 1) if first else -1
        for name in ("alarms", "evaluations", "gap"):
            files.forget_after(self.log(name), last)
