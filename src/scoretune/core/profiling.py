"""What the time of an update is spent on, by name: read by a profiler, free where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Literal, get_args

from torch.profiler import record_function

Part = Literal[
    "network", "decode", "reward", "credit", "rollout", "prompts", "data", "learning", "update"
]
PARTS: tuple[Part, ...] = get_args(Part)
"""The denoiser; the autoencoder's decoder; the reward; what steps are worth, critics included; the
steps of the sampler; reading prompts; choosing and dealing out what is learned from; losses,
gradients and the optimiser; and all of it."""
PREFIX = "scoretune."

_labelled: ContextVar[bool] = ContextVar("labelled", default=False)


def part(name: Part) -> AbstractContextManager[object]:
    """Within this context time is spent on `name`, but for what other parts within it take."""
    return record_function(PREFIX + name) if _labelled.get() else nullcontext()


@contextmanager
def labelled() -> Iterator[None]:
    """Within this context parts have names in the records of torch's profiler."""
    token = _labelled.set(True)
    try:
        yield
    finally:
        _labelled.reset(token)
