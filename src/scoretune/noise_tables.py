"""How a diffusers scheduler noises data: its table of ᾱ."""

from __future__ import annotations

from typing import Any

import torch

from scoretune.errors import UserError

LEAST_SIGNAL = 2**-24  # of a table that ends without any: a process needs some


def noise_table(source: str, scheduler: Any) -> tuple[float, ...]:
    """ᾱ_0 > … > ᾱ_{n−1} > 0 of the scheduler of the model `source`.

    Raises UserError where there is none, as with the schedulers of flows.
    """
    table = getattr(scheduler, "alphas_cumprod", None)
    if table is None:
        raise UserError(
            f"the scheduler of {source!r} is a {type(scheduler).__name__}, which has no noise "
            "table: give the pipeline the one its network was trained with, as DDIMScheduler"
        )
    found = table.double()
    return tuple(torch.where(found > 0, found, LEAST_SIGNAL).tolist())
