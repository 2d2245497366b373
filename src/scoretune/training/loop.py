"""The only training loop: rounds of a source, steps of the optimiser on minibatches, hooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch

from scoretune.core.records import Engine, Hook, Objective, Source
from scoretune.training.nonfinite import failure


def train(
    source: Source,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    engine: Engine,
    *,
    updates: Iterable[int],
    clip_norm: float = 1.0,
    nonfinite: Literal["stop", "skip"] = "stop",
    hooks: Sequence[Hook] = (),
) -> None:
    """Run the given updates; every hook is called after each with its number and its metrics.

    A step whose gradient is not finite is not taken: `stop` raises NonFinite, `skip` leaves it out
    of the metrics and counts it in `skipped_steps`. A loss that is not finite always ends the run.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for update in updates:
        batches = source(update)
        counts = batches.counts or [len(batch) for batch in batches.minibatches]
        together = batches.accumulate or len(counts)
        some = next((batch for batch in batches.minibatches if len(batch)), None)
        sums: dict[str, float] = {}
        norms = []
        skipped = 0
        for first in range(0, len(counts), together):
            whole, before = sum(counts[first : first + together]), dict(sums)
            for batch in batches.minibatches[first : first + together]:
                for part, rows in engine.parts(batch, some):
                    share = rows / whole
                    loss = objective(part)
                    engine.backward(loss.value * share)
                    measured = {"loss": float(loss.value.detach()), **loss.metrics}
                    for name, value in measured.items():
                        sums[name] = sums.get(name, 0.0) + value * share
            norm = engine.step(optimiser, parameters, clip_norm)
            if math.isfinite(norm):
                norms.append(norm)
                continue
            if nonfinite == "stop":
                raise failure(update + 1, "gradient", batches, optimiser)
            sums, skipped = before, skipped + 1
        means = {}
        if norms:
            means = {name: value / len(norms) for name, value in engine.total(sums).items()}
            means["grad_norm"] = sum(norms) / len(norms)
        if not math.isfinite(means.get("loss", 0.0)):
            raise failure(update + 1, "loss", batches, optimiser)
        if nonfinite == "skip":
            means["skipped_steps"] = float(skipped)
        for hook in hooks:
            hook(update + 1, {**batches.metrics, **means})
