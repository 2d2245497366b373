"""Numbers about a policy, with or without training.

* `sample(policy, prompts, times=…, seed=…)` draws through a solver, `act` through the policy's own
  kernel, and says its path KL to the pretrained policy;
* `verdicts(images, prompts, metrics)` scores pictures, `verdict_metrics(source)` are the networks
  that judge a model, `score(values, tasks)` a mean with its interval;
* `measure(policy, prompts, …)` is one evaluation of a run, `compare` two of them;
* the modules `metrics` (distances of distributions), `features` and `gap`.

The names are imported on first use, so `import scoretune.evaluate` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scoretune.evaluate import features, gap, metrics
    from scoretune.evaluate.samples import act, sample
    from scoretune.evaluate.scores import (
        Measurement,
        Score,
        Verdicts,
        compare,
        measure,
        score,
        verdict_metrics,
        verdicts,
    )

__all__ = [
    "Measurement",
    "Score",
    "Verdicts",
    "act",
    "compare",
    "features",
    "gap",
    "measure",
    "metrics",
    "sample",
    "score",
    "verdict_metrics",
    "verdicts",
]

_MODULES = ("features", "gap", "metrics")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'scoretune.evaluate' has no attribute {name!r}")
    if name in _MODULES:
        return importlib.import_module(f"scoretune.evaluate.{name}")
    home = "samples" if name in ("act", "sample") else "scores"
    return getattr(importlib.import_module(f"scoretune.evaluate.{home}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
