"""The store: samples, what people and models say of them, and where all of it came from.

A store is a folder (`store.db`, an SQLite database, and `pictures/`), or a PostgreSQL database by
its URL with the pictures in a folder of its own. Every write is one transaction: what was
acknowledged survives a kill, and several processes may write at once.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scoretune.core.errors import UserError
from scoretune.data.store.records import (
    Like,
    Pair,
    Ranking,
    Rater,
    Reason,
    Sample,
    StoredCritique,
    StoredEdit,
    Vote,
)

if TYPE_CHECKING:
    from scoretune.data.store.store import Store

__all__ = [
    "Like",
    "Pair",
    "Ranking",
    "Rater",
    "Reason",
    "Sample",
    "StoredCritique",
    "StoredEdit",
    "Vote",
    "is_store",
    "open_store",
    "pinned",
]

FILE = "store.db"
MOMENT = re.compile(r"(.+)@([0-9]{9,11}\.[0-9]{6})", re.DOTALL)
"""Of what `pinned` writes."""


def is_store(where: str) -> bool:
    """Whether this names a store: a folder with a store.db, or a database by its URL; perhaps as it
    was at a moment."""
    place = split_moment(where)[0]
    return is_url(place) or (Path(place) / FILE).is_file()


def is_url(where: str) -> bool:
    """Whether this is the URL of a PostgreSQL database."""
    return where.startswith(("postgresql://", "postgresql+"))


def split_moment(where: str) -> tuple[str, float | None]:
    """`STORE@SECONDS` as the store and the seconds since 1970, None where there are none."""
    found = MOMENT.fullmatch(where)
    return (found[1], float(found[2])) if found else (where, None)


def pinned(where: str, before: str = "") -> str:
    """A store as it is now, `STORE@SECONDS`, so that a run which goes on reads what it began with;
    as it was `before`, where that is the same store. Anything else is as it is."""
    if not is_store(where) or split_moment(where)[1] is not None:
        return where
    if before and split_moment(before)[0] == where:
        return before
    return f"{where}@{time.time():.6f}"


def open_store(where: str, *, create: bool = False, pictures: str | None = None) -> Store:
    """The store of a folder or of a URL (`postgresql+psycopg://…`, with its folder of `pictures`,
    which a database that is a store already remembers).

    An older schema is migrated. Raises UserError for what is no store (unless it is to be created),
    for one of a newer scoretune, and for one that cannot be read or written.
    """
    try:
        from scoretune.data.store.store import Store
    except ModuleNotFoundError as error:
        raise UserError(
            f"a store of feedback needs {error.name}: pip install 'scoretune[studio]'"
        ) from error
    return Store.open(where, create=create, pictures=pictures)
