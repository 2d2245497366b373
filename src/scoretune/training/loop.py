"""The only training loop: rounds of a source, steps of the optimiser on minibatches, hooks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch

from scoretune.core.records import Engine, Hook, Objective, Source


def train(
    source: Source,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    engine: Engine,
    *,
    updates: Iterable[int],
    clip_norm: float = 1.0,
    hooks: Sequence[Hook] = (),
) -> None:
    """Run the given updates; every hook is called after each with its number and its metrics."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for update in updates:
        batches = source(update)
        counts = batches.counts or [len(batch) for batch in batches.minibatches]
        together = batches.accumulate or len(counts)
        some = next((batch for batch in batches.minibatches if len(batch)), None)
        sums: dict[str, float] = {}
        norms = []
        for first in range(0, len(counts), together):
            whole = sum(counts[first : first + together])
            for batch in batches.minibatches[first : first + together]:
                for part, rows in engine.parts(batch, some):
                    share = rows / whole
                    loss = objective(part)
                    engine.backward(loss.value * share)
                    measured = {"loss": float(loss.value.detach()), **loss.metrics}
                    for name, value in measured.items():
                        sums[name] = sums.get(name, 0.0) + value * share
            norms.append(engine.step(optimiser, parameters, clip_norm))
        means = {name: value / len(norms) for name, value in engine.total(sums).items()}
        means["grad_norm"] = sum(norms) / len(norms)
        for hook in hooks:
            hook(update + 1, {**batches.metrics, **means})
