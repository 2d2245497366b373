"""The only training loop. It has never heard of a reward.

Ask the source for the next round, take an optimiser step for each of its minibatches, tell the
hooks. Where batches come from, what the loss means and what is logged are other people's business.
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
        for batch in batches.minibatches:
            loss = objective(batch)
            accelerator.backward(loss.value)
            norm = accelerator.clip_grad_norm_(parameters, clip_norm)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            measured = {"loss": float(loss.value.detach()), "grad_norm": float(norm)}
            for name, value in {**measured, **loss.metrics}.items():
                sums[name] = sums.get(name, 0.0) + value
        means = {name: value / len(batches.minibatches) for name, value in sums.items()}
        for hook in hooks:
            hook(update + 1, {**batches.metrics, **means})
