"""Which steps of the paths are learned from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.records import Trajectory
from scoretune.diffusion.noise import rand, randint


class Choice(NamedTuple):
    """Which steps of the paths are learned from: the steps k [M] of the samples b [M], in rows
    [M] from left to right, all on the CPU; a mean over them stands for `path_steps` of a path's
    steps. `noisy`: if any step has noise, all of these have."""

    k: Tensor
    b: Tensor
    path_steps: float
    rows: Tensor
    noisy: bool = False


def trained_steps(share: float, candidates: int) -> int:
    """Of so many steps of a path, how many a random share of them is."""
    return max(1, round(share * candidates))


def random_rows(count: int, columns: int, share: float, generator: torch.Generator) -> Tensor:
    """For each column a random share of the rows 0 … count − 1, [kept, columns], on the CPU."""
    order = rand((count, columns), generator, dim=1).argsort(0)
    return order[: trained_steps(share, count)]


Chooser = Callable[[Trajectory, torch.Generator], Choice]


def any_steps(share: float, noisy: bool = False, first: int = 0) -> Chooser:
    """Chooses a random `share` of each path's steps from the `first` on; of those with noise, if
    `noisy`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Choice:
        batch = path.data.shape[1]
        candidates = path.noisy_steps if noisy else torch.arange(first, len(path.data))
        order = candidates[random_rows(len(candidates), batch, share, generator)]
        kept = len(order)
        samples = torch.arange(batch).repeat(kept)
        rows = torch.arange(kept).repeat_interleave(batch)
        return _choice(path, order.flatten(), samples, len(candidates), rows)

    return choose


def last_steps(count: int, random: bool = False) -> Chooser:
    """Chooses the last `count` steps, or of each path a random number from 1 to `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Choice:
        steps, batch = path.data.shape[:2]
        many = torch.full((batch,), min(count, steps))
        if random:
            many = randint(1, min(count, steps) + 1, batch, generator)
        wanted = torch.arange(steps)[:, None] >= steps - many
        k, b = wanted.nonzero(as_tuple=True)
        return _choice(path, k, b, distributed.count(len(k)) / distributed.count(batch), k)

    return choose


def one_of_last(count: int) -> Chooser:
    """Chooses one step of each path, uniform among the last `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Choice:
        steps, batch = path.data.shape[:2]
        back = randint(1, min(count, steps) + 1, batch, generator)
        return _choice(path, steps - back, torch.arange(batch), 1.0, torch.zeros_like(back))

    return choose


def _choice(path: Trajectory, k: Tensor, b: Tensor, path_steps: float, rows: Tensor) -> Choice:
    noisy = path.noisy is None or bool(path.noisy.cpu()[k].all())
    return Choice(k, b, float(path_steps), rows, noisy)
