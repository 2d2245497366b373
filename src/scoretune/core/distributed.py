"""Several processes that make one run: who owns what, and how their parts become one.

A run's numbers are those of the whole: so many prompts, so many states a minibatch, whatever the
number of processes. Each of them owns an equal, contiguous share of every update's prompts, with
all samples of each. What they find is added up before it is used, so the run ends with the weights
that one process would have found, up to the order of sums.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed

from scoretune.core import processes
from scoretune.core.errors import UserError


@dataclass(frozen=True)
class Team:
    """This process is number `rank` of `size`."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and speaks to people."""
        return self.rank == 0

    def rows(self, whole: int) -> slice:
        """This process's equal share of `whole` rows."""
        each = whole // self.size
        return slice(self.rank * each, (self.rank + 1) * each)


def team() -> Team:
    """Of how many processes this is which; one of one unless `start` found others."""
    if distributed.is_available() and distributed.is_initialized():
        return Team(distributed.get_rank(), distributed.get_world_size())
    return Team()


def start(requested: int | None = None) -> Team:
    """Join the other processes, if a launcher started some: torchrun, or accelerate launch.

    Raises UserError when their number is not the `requested` one, here or of the
    launcher: on CPU `accelerate launch --num_processes 2` starts one, and says nothing.
    """
    processes.end_with_parent()
    running = _number("WORLD_SIZE", 1)
    wanted = requested or _launched()
    if wanted is not None and wanted != running:
        raise UserError(
            f"{wanted} processes were asked for, and there {'is' if running == 1 else 'are'} "
            f"{running}: start them by scoretune train … --processes {wanted}, or by torchrun "
            f"--standalone --nproc_per_node {wanted} -m scoretune -- train …"
        )
    if running > 1 and not distributed.is_initialized():
        _check_environment(running)
        if torch.cuda.is_available():
            _take_device(_number("LOCAL_RANK", 0))
        distributed.init_process_group()  # gloo for the CPU, and nccl where there is CUDA
    return team()


def _take_device(rank: int) -> None:
    """Compute on the device of this rank. Raises UserError where there are fewer of them."""
    devices = torch.cuda.device_count()
    if rank >= devices:
        raise UserError(
            f"there are more processes on this machine than its {devices} GPUs, of which each "
            f"takes one: start {devices}"
        )
    torch.cuda.set_device(rank)


def _check_environment(running: int) -> None:
    """Refuse a half of what a launcher says of the processes."""
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise UserError(
            f"WORLD_SIZE={running} is set and {', '.join(missing)} not: unset WORLD_SIZE, or start "
            f"the processes by scoretune train … --processes {running}"
        )
    _number("MASTER_PORT", 0)
    if _number("RANK", 0) >= running:
        raise UserError(
            f"RANK={os.environ['RANK']} is not below WORLD_SIZE={running}: leave both to the "
            "launcher"
        )


def _number(name: str, default: int) -> int:
    """A count from the environment. Raises UserError where it is none."""
    text = os.environ.get(name, "") or str(default)
    if not text.isdecimal() or (name == "WORLD_SIZE" and not int(text)):
        raise UserError(
            f"the environment variable {name} is {text!r} and should be a number: unset it, or "
            "leave it to torchrun"
        )
    return int(text)


def lost(error: BaseException) -> bool:
    """Whether an error says that another of the processes is gone."""
    gone = isinstance(error, distributed.DistBackendError | distributed.DistNetworkError)
    return gone or (isinstance(error, RuntimeError) and "gloo" in str(error))


def needed(requested: int | None) -> bool:
    """Whether more processes were asked for, and nobody has started any."""
    return (requested or 1) > 1 and "WORLD_SIZE" not in os.environ and _launched() is None


def stop() -> None:
    """Leave the other processes in good order."""
    if team().size > 1:
        distributed.destroy_process_group()


def device() -> torch.device:
    """Where this process computes."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _launched() -> int | None:
    """How many processes an `accelerate launch` above this process was told to start."""
    if "ACCELERATE_MIXED_PRECISION" not in os.environ:
        return None
    import psutil

    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return None
    for place, word in enumerate(words[:-1]):
        name, _, value = word.partition("=")
        if name in ("--num_processes", "--num-processes"):
            return int(value or words[place + 1])
    return None


# ---------------------------------------------------------------------------- parts to a whole


def gather(x: Tensor) -> Tensor:
    """The rows of all processes [ΣB, …] in the order of their ranks; shares may differ in size."""
    together = team()
    if together.size == 1:
        return x
    counts = _equal_rows(torch.tensor([len(x)], device=x.device), together.size).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    rows = _equal_rows(padded, together.size).unflatten(0, (together.size, -1))
    return torch.cat([part[:count] for part, count in zip(rows, counts, strict=True)])


def gather_texts(texts: Sequence[str]) -> list[str]:
    """The texts of all processes in the order of their ranks."""
    if team().size == 1:
        return list(texts)
    letters = gather(torch.tensor(list((json.dumps(list(texts)) + "\n").encode())))
    lines = bytes(letters.tolist()).decode().splitlines()
    return [text for line in lines for text in json.loads(line)]


def total(numbers: Mapping[str, float]) -> dict[str, float]:
    """Every number added up over the processes; 0 where a process does not have it."""
    return _reduced(numbers, 0.0, distributed.ReduceOp.SUM)


def least(numbers: Mapping[str, float]) -> dict[str, float]:
    """The smallest that any process has of every number."""
    return _reduced(numbers, math.inf, distributed.ReduceOp.MIN)


def _reduced(numbers: Mapping[str, float], absent: float, how: Any) -> dict[str, float]:
    if team().size == 1:
        return dict(numbers)
    names = list(dict.fromkeys(gather_texts(list(numbers))))
    values = torch.tensor([numbers.get(name, absent) for name in names], dtype=torch.float64)
    values = values.to(device())
    distributed.all_reduce(values, how)
    return dict(zip(names, values.tolist(), strict=True))


@dataclass(frozen=True)
class Deal:
    """Rows that several processes deal out among each other: `places` [M] of this one's rows among
    the `whole` of all."""

    places: Tensor
    whole: int

    def chunks(self, order: Tensor, size: int) -> list[tuple[Tensor, int]]:
        """An order [whole] of all rows cut into chunks: this process's rows of each, by their
        numbers here, and how many there are in all."""
        numbers = torch.full((self.whole,), -1)
        numbers[self.places] = torch.arange(len(self.places))
        mine = [numbers[chunk] for chunk in order.cpu().split(size)]
        return [(part[part >= 0], len(part)) for part in mine]

    def normal(self, like: Tensor) -> Tensor:
        """Standard normal noise like x [M, …], drawn for all rows by every process."""
        if self.whole == len(like):
            return torch.randn_like(like)
        shape = (self.whole, *like.shape[1:])
        drawn = torch.randn(shape, device=like.device, dtype=like.dtype)
        return drawn[self.places.to(like.device)]


def deal(rows: Tensor, b: Tensor, samples: int) -> Deal:
    """How things [M] are dealt that stand in `rows` and belong to the samples b of this process.

    One process would have them in the order of their rows and, within a row, of their samples; each
    process has `samples`.
    """
    together = team()
    if together.size == 1:
        return Deal(torch.arange(len(rows)), len(rows))
    keys = rows.cpu() * (samples * together.size) + together.rank * samples + b.cpu()
    everyone = gather(keys).sort().values
    return Deal(torch.searchsorted(everyone, keys), len(everyone))


def count(number: int) -> int:
    """A number of things added up over the processes."""
    return round(total({"": float(number)})[""])


def most(number: int) -> int:
    """The largest number that any process has."""
    if team().size == 1:
        return number
    highest = torch.tensor(number, device=device())
    distributed.all_reduce(highest, distributed.ReduceOp.MAX)
    return int(highest)


def add_up(parameters: Iterable[Tensor]) -> None:
    """Add up the gradients of all processes; a process without one counts as zero."""
    if team().size == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def wait() -> None:
    """Until all processes are here."""
    if team().size > 1:
        distributed.barrier()


def agreed(text: str) -> str:
    """What the main process says, in all of them."""
    return gather_texts([text])[0]


def _equal_rows(x: Tensor, size: int) -> Tensor:
    rows = x.new_empty(size * len(x), *x.shape[1:])
    # Newer versions of torch have it under another name, and warn of the old one.
    names = vars(distributed)
    (names.get("all_gather_single") or names["all_gather_into_tensor"])(rows, x.contiguous())
    return rows
