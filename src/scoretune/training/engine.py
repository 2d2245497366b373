"""What the training loop asks of the machine: gradients, and steps of the optimiser."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed, fsdp
from scoretune.core.records import spans


@dataclass
class Machine:
    """Gradients of `at_once` states at a time (0: of a whole minibatch), added up over processes.

    Minibatches are brought to `device`, None for where they are.

    With a `scaler` losses are scaled before the backward pass, so that gradients in fp16 do not
    vanish, and steps whose gradients overflowed are left out (arXiv 1710.03740).

    Where the weights are `spread` over the processes, these must ask the network equally often: one
    that has fewer parts of a minibatch than another passes some row once more, which counts for 0.
    """

    device: torch.device | None = None
    at_once: int = 0
    scaler: torch.amp.GradScaler | None = None
    spread: bool = False

    def parts(self, batch: Any, some: Any = None) -> Iterator[tuple[Any, int]]:
        """A minibatch in parts that fit the memory, and how many of its rows each stands for.

        There are none of a minibatch that other processes have, unless the weights are spread: then
        the first row of `some`, a batch that is not empty, stands for 0 rows.
        """
        cuts = list(spans(len(batch), self.at_once or max(len(batch), 1)))
        most = (
            distributed.most(len(cuts)) if self.spread else len(cuts)
        )  # all ask before they compute
        for cut in cuts:
            part = batch if len(cuts) == 1 else batch.take(cut)
            yield part.to(self.device), len(part)
        for _ in range(most - len(cuts)):
            yield some.take(slice(0, 1)).to(self.device), 0

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float:
        """One step with the gradients of all processes, at most `clip_norm` long; their length."""
        distributed.add_up(p for p in parameters if not fsdp.is_slice(p))  # slices are added up
        if self.scaler is not None:
            self.scaler.unscale_(optimiser)
        norm = fsdp.clip(parameters, clip_norm)
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
        return distributed.total(numbers)

    def state(self) -> dict[str, Any]:
        return {"scale": None if self.scaler is None else self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.scaler is not None and state["scale"] is not None:
            self.scaler.load_state_dict(state["scale"])
