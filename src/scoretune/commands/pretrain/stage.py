"""One resumable stage of training from nothing: a loss over step numbers, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scoretune.core import checkpoints

Progress = Callable[[str, int, int, dict[str, float]], None]
"""Told the stage, the step, the number of steps, and the step's numbers."""


@dataclass
class Stage:
    """One resumable training stage: a named loss over step numbers."""

    name: str
    steps: int
    modules: dict[str, nn.Module]
    loss: Callable[[int], tuple[Tensor, dict[str, float]]]
    learning_rate: float
    seed: int
    average: nn.Module | None = None  # an exponential moving average of modules["denoiser"]

    def run(self, folder: Path, save_every: int, progress: Progress) -> None:
        """Train from the newest checkpoint, or from the start, to the last step."""
        parameters = [p for module in self.modules.values() for p in module.parameters()]
        optimiser = torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=(0.9, 0.99), weight_decay=0.01
        )
        home = folder / self.name
        first = self._resume(home, optimiser)
        for step in range(first, self.steps):
            warm, rest = min(1.0, (step + 1) / 100), 1 - step / self.steps
            for group in optimiser.param_groups:  # linear warm-up, then a cosine to a twentieth
                decay = 0.05 + 0.95 * 0.5 * (1 - np.cos(np.pi * rest))
                group["lr"] = self.learning_rate * warm * decay
            torch.manual_seed(self.seed * 1_000_003 + hash_seed(self.name, step))
            value, metrics = self.loss(step)
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            self._follow(step)
            progress(self.name, step + 1, self.steps, {"loss": float(value.detach()), **metrics})
            if (step + 1) % save_every == 0 or step + 1 == self.steps:
                checkpoints.save(home, step + 1, self._state(optimiser))
        for module in self.modules.values():
            module.eval().requires_grad_(False)

    def _follow(self, step: int) -> None:
        if self.average is None:
            return
        rate = min(0.999, (1 + step) / (10 + step))
        with torch.no_grad():
            pairs = zip(
                self.average.parameters(), self.modules["denoiser"].parameters(), strict=True
            )
            for slow, fast in pairs:
                slow.lerp_(fast, 1 - rate)

    def _state(self, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
        state: dict[str, Any] = {name: m.state_dict() for name, m in self.modules.items()}
        if self.average is not None:
            state["average"] = self.average.state_dict()
        return {"modules": state, "optimiser": optimiser.state_dict()}

    def _resume(self, home: Path, optimiser: torch.optim.Optimizer) -> int:
        newest = checkpoints.latest(home)
        if newest is None:
            return 0
        state = checkpoints.load(newest)
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        if self.average is not None:
            self.average.load_state_dict(state["modules"]["average"])
        optimiser.load_state_dict(state["optimiser"])
        return int(newest.name.removeprefix("step-"))


def hash_seed(name: str, step: int) -> int:
    """A seed that depends on the stage and the step alone, so that a resumed run repeats itself."""
    return int.from_bytes(name.encode()[:4], "big") * 100_003 + step
