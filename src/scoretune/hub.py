"""The hub of models: whether it answers, and a quiet client while it is asked."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

SECONDS = 5.0  # for a name server, a proxy and the hub together


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


def out_of_reach(source: str, setting: str) -> str:
    """What to say of a hub id that is not on this machine, while the hub cannot be asked."""
    return (
        "it is not in the cache of this machine, and the hub does not answer or HF_HUB_OFFLINE is "
        f"set: get it where there is a network by: hf download {source}; or give {setting}=FOLDER"
    )
