"""The only training loop: rounds of a source, steps of the optimiser on minibatches, hooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scoretune.core import profiling
from scoretune.core.records import Engine, Hook, Loss, Objective, Region, Round, Source
from scoretune.training.nonfinite import failure

MEASURED = 64
"""States on which an update is measured after its last step."""


def train(
    source: Source,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    engine: Engine,
    *,
    updates: Iterable[int],
    clip_norm: float = 1.0,
    region: Region | None = None,
    hooks: Sequence[Hook] = (),
) -> None:
    """Run the given updates; every hook is called after each with its number and its metrics.

    A trust `region` may end an update early, and is told how far each has moved: `update_kl`. A
    gradient that is not finite makes no step: NonFinite is raised, or, with an engine that `skips`,
    it is left out of the metrics and counted in `skipped_steps`. Nor may a loss be anything else.
    """
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for update in updates:
        with profiling.part("data"):
            batches = source(update)
        some = next((batch for batch in batches.minibatches if len(batch)), None)
        numbers, norms, skipped = Numbers(), list[float](), 0
        for group, counts in batches.groups():
            whole, in_group = sum(counts), Numbers()
            for batch in group:
                for part, rows in engine.parts(batch, some):
                    share = rows / whole
                    with profiling.part("learning"):
                        loss = objective(part)
                        engine.backward(loss.value * share)
                    in_group.add(loss, share)
            if region is not None and region.early_stop:
                approx_kl = engine.total({"approx_kl": in_group.means()["approx_kl"]})["approx_kl"]
                if region.left(approx_kl):
                    optimiser.zero_grad(set_to_none=True)
                    break
            with profiling.part("learning"):
                norm = engine.step(optimiser, parameters, clip_norm)
            if math.isfinite(norm):
                numbers.extend(in_group)
                norms.append(norm)
            elif engine.skips:
                skipped += 1
            else:
                raise failure(update + 1, "gradient", batches, optimiser)
        means = _means(numbers, norms, engine)
        if not math.isfinite(means.get("loss", 0.0)):
            raise failure(update + 1, "loss", batches, optimiser)
        if engine.skips:
            means["skipped_steps"] = skipped
        if region is not None:
            with profiling.part("learning"):
                means["update_kl"] = moved(region, batches, engine, some)
        for hook in hooks:
            hook(update + 1, {**batches.metrics, **means})


def _means(numbers: Numbers, norms: Sequence[float], engine: Engine) -> dict[str, float]:
    """The metrics of an update, over the steps that were taken."""
    means: dict[str, float] = {"optimiser_steps": len(norms)}
    if norms:
        totals = engine.total(numbers.means())
        means |= {name: value / len(norms) for name, value in totals.items()}
        means |= engine.extremes(numbers.extremes())
        means["grad_norm"] = sum(norms) / len(norms)
    return means


@dataclass
class Numbers:
    """Losses and metrics of the parts of minibatches, read from the device once, at the end."""

    names: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    _floats: list[float] = field(default_factory=list)

    def add(self, loss: Loss, share: float) -> None:
        """Those of a part that makes up so much of the states that a step is made of."""
        for name, value in {"loss": loss.value.detach(), **loss.metrics}.items():
            self.names.append(name)
            self.values.append(torch.as_tensor(value, device=loss.value.device).to(loss.value))
            self.shares.append(share)

    def extend(self, more: Numbers) -> None:
        self.names += more.names
        self.values += more.values
        self.shares += more.shares

    def means(self) -> dict[str, float]:
        """Sums of values times shares, of all but extremes."""
        sums: dict[str, float] = {}
        for name, value, share in zip(self.names, self._read(), self.shares, strict=True):
            if not _is_extreme(name):
                sums[name] = sums.get(name, 0.0) + value * share
        return sums

    def extremes(self) -> dict[str, float]:
        """The smallest of what is called *_min, and the largest of *_max."""
        ends: dict[str, float] = {}
        for name, value, share in zip(self.names, self._read(), self.shares, strict=True):
            if _is_extreme(name) and share:
                pick = min if name.endswith("_min") else max
                ends[name] = pick(ends.get(name, value), value)
        return ends

    def _read(self) -> list[float]:
        new = self.values[len(self._floats) :]
        if new:
            self._floats += torch.stack(new).tolist()
        return self._floats


def _is_extreme(name: str) -> bool:
    return name.endswith(("_min", "_max"))


@torch.no_grad()
def moved(region: Region, batches: Round, engine: Engine, some: object) -> float:
    """The KL of a path from the policy that acted to the one after the update, on some of the
    states that were learned from."""
    kls, weights, states = list[Tensor](), list[int](), 0
    for (batch,), (count,) in batches.groups(accumulate=1, epochs=1):
        for part, rows in engine.parts(batch, some):
            kls.append(region.moved(part))
            weights.append(rows)
        states += count
        if states >= MEASURED:
            break
    values = torch.stack(kls).tolist() if kls else []
    kl = sum((value * rows for value, rows in zip(values, weights, strict=True)), 0.0)
    return engine.total({"kl": kl})["kl"] / states
