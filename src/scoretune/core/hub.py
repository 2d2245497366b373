"""The hub of models: asked last, quietly, and only when it answers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeVar

T = TypeVar("T")

SECONDS = 5.0  # for a name server, a proxy and the hub together


def is_local(source: str) -> bool:
    """Whether a source is meant as a path, and not as a hub id."""
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~"))


def reachable(seconds: float = SECONDS) -> bool:
    """Whether the hub gives any answer within so many seconds, asked once and by the way that
    downloads take. Never under HF_HUB_OFFLINE."""
    from huggingface_hub import constants, get_session

    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception:  # no network, no such host, no way through a proxy: each has its own kind
            return

    if constants.HF_HUB_OFFLINE:
        return False
    # In a thread: looking up a name knows no time limit.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context the hub's client does not tell of every attempt."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


class NotAsked(Exception):
    """What is wanted is not on this machine, and the hub does not answer."""


def offline_first(load: Callable[[bool], T], *, local: bool) -> T:
    """`load(True)` from files of this machine; without them `load(False)` from the hub, unless the
    source is `local`. Raises what `load` raises, and NotAsked with its words where the hub is out
    of reach."""
    with quiet():
        try:
            return load(True)
        except Exception as error:  # not in the cache, or broken: each has its own kind
            if local:
                raise
            if not reachable():
                raise NotAsked(str(error)) from error
        return load(False)


def fetched(source: str, setting: str) -> str:
    """How to do without the hub: what to say of an id that was NotAsked for."""
    return (
        f"the hub was not asked, being out of reach or HF_HUB_OFFLINE set; get it where there is a "
        f"network by: hf download {source}; or set {setting}=FOLDER"
    )
