"""Who works through a stage's chunks: this process, or the workers of a Ray cluster.

Either gives the same results in the same order. With Ray each worker is an actor, which loads its
models once for all stages; chunks are cut as they are needed, so that no more than two a worker are
in memory. (Ray Data would want all of a stage's pictures in its object store first, and start its
actors anew for every stage.)
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any, Protocol, TypeVar

import torch

from scoretune.core.errors import UserError

Rows = TypeVar("Rows")


class Workers(Protocol):
    """Calls `task(cast, *arguments)` for each chunk, and gives the results in their order."""

    def __call__(
        self, cast: Any, task: Callable[..., Any], chunks: Iterable[tuple[Rows, tuple[Any, ...]]]
    ) -> Iterator[tuple[Rows, Any]]: ...


def one_by_one(
    cast: Any, task: Callable[..., Any], chunks: Iterable[tuple[Rows, tuple[Any, ...]]]
) -> Iterator[tuple[Rows, Any]]:
    """In this process."""
    for rows, arguments in chunks:
        yield rows, task(cast, *arguments)


class Cluster:
    """So many Ray actors, on the cluster of RAY_ADDRESS or on this machine; a GPU each where there
    are any. Raises UserError where Ray is not installed or the cluster does not answer."""

    def __init__(self, workers: int) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError as error:
            raise UserError(
                "--cluster needs Ray: pip install 'scoretune[cluster]', here and on every machine"
            ) from error
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        address = os.environ.get("RAY_ADDRESS")
        here: dict[str, Any] = {} if address else {"num_cpus": workers, "include_dashboard": False}
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **here)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
        gpus = 1 if ray.cluster_resources().get("GPU", 0) >= workers else 0
        self._ray, self._workers = ray, workers
        self._actor = ray.remote(num_gpus=gpus)(_Worker)
        self._pool: Any = None

    def __call__(
        self, cast: Any, task: Callable[..., Any], chunks: Iterable[tuple[Rows, tuple[Any, ...]]]
    ) -> Iterator[tuple[Rows, Any]]:
        """As `one_by_one`. What a task raises is raised here."""
        pool, waiting = self._started(cast), deque[Rows]()

        def submit(actor: Any, arguments: tuple[Any, ...]) -> Any:
            return actor.do.remote(task, arguments)

        def next_result() -> Any:
            try:
                return pool.get_next()
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except self._ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()[-1]
                raise UserError(
                    f"a worker of the cluster is lost ({why}): the same command goes on"
                ) from error

        for rows, arguments in chunks:
            pool.submit(submit, arguments)
            waiting.append(rows)
            if len(waiting) == 2 * self._workers:
                yield waiting.popleft(), next_result()
        while waiting:
            yield waiting.popleft(), next_result()

    def _started(self, cast: Any) -> Any:
        if self._pool is None:
            shared = self._ray.put(cast)
            actors = [self._actor.remote(shared) for _ in range(self._workers)]
            self._pool = import_module("ray.util").ActorPool(actors)
        return self._pool

    def close(self) -> None:
        """End the actors, and the cluster if it was started here."""
        self._ray.shutdown()


class _Worker:
    """One actor with models of its own."""

    def __init__(self, cast: Any) -> None:
        torch.set_num_threads(1)
        self._cast = cast

    def do(self, task: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return task(self._cast, *arguments)
