"""What the training loop asks of the machine: gradients, and steps of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scoretune import ranks
from scoretune.batches import spans


@dataclass
class Machine:
    """Gradients of `at_once` states at a time (0: of a whole minibatch), added up over processes.

    Minibatches are brought to `device`, None for where they are.

    With a `scaler` losses are scaled before the backward pass, so that gradients in fp16 do not
    vanish, and steps whose gradients overflowed are left out (arXiv 1710.03740).
    """

    device: torch.device | None = None
    at_once: int = 0
    scaler: torch.amp.GradScaler | None = None

    def parts(self, batch: Any) -> Iterator[Any]:
        """A minibatch in parts that fit the memory; none of one that other processes have."""
        if self.at_once and len(batch) > self.at_once:
            for span in spans(len(batch), self.at_once):
                yield batch.take(span).to(self.device)
        elif len(batch):
            yield batch.to(self.device)

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float:
        """One step with the gradients of all processes, at most `clip_norm` long; their length."""
        ranks.add_up(parameters)
        if self.scaler is not None:
            self.scaler.unscale_(optimiser)
        norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
        if self.scaler is None:
            optimiser.step()
        else:
            self.scaler.step(optimiser)
            self.scaler.update()
            norm = norm if math.isfinite(norm) else 0.0  # it was left out
        optimiser.zero_grad(set_to_none=True)
        return norm

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Numbers added up over the processes."""
        return ranks.total(numbers)

    def state(self) -> dict[str, Any]:
        return {"scale": None if self.scaler is None else self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.scaler is not None and state["scale"] is not None:
            self.scaler.load_state_dict(state["scale"])
