"""The only training loop. It has never heard of a reward.

Ask the source for the next round, take an optimiser step for each of its minibatches (or for every
few of them), tell the hooks. Where batches come from, what the loss means and what is logged are
other people's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from scoretune.batches import Hook, Objective, Source


def train(
    source: Source,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    accelerator: Any,
    *,
    updates: Iterable[int],
    clip_norm: float = 1.0,
    hooks: Sequence[Hook] = (),
) -> None:
    """Run the given updates; every hook is called after each with its number and its metrics."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for update in updates:
        batches = source(update)
        sums: dict[str, float] = {}
        steps = 0
        whole = len(batches.minibatches)
        for first in range(0, whole, batches.accumulate or whole):
            together = batches.minibatches[first : first + (batches.accumulate or whole)]
            total = sum(len(batch) for batch in together)
            for batch in together:
                share = len(batch) / total
                loss = objective(batch)
                accelerator.backward(loss.value * share)
                measured = {"loss": float(loss.value.detach()), **loss.metrics}
                for name, value in measured.items():
                    sums[name] = sums.get(name, 0.0) + value * share
            norm = accelerator.clip_grad_norm_(parameters, clip_norm)
            sums["grad_norm"] = sums.get("grad_norm", 0.0) + float(norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            steps += 1
        means = {name: value / steps for name, value in sums.items()}
        for hook in hooks:
            hook(update + 1, {**batches.metrics, **means})
