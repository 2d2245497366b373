"""A new store of each kind of database."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy

from scoretune.data.store import open_store, schema


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in a folder with nothing in it."""
    folder = tmp_path_factory.mktemp("empty")
    open_store(str(folder), create=True).close()
    return folder


@pytest.fixture(scope="session")
def emptied(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], str]:
    """Empties one store in PostgreSQL, which is quicker than to make another, and gives its URL."""
    pictures = str(tmp_path_factory.mktemp("pictures"))
    engine = open_store(postgres, create=True, pictures=pictures).engine
    names = ", ".join(set(schema.metadata.tables) - {"store"})

    def empty() -> str:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
        return postgres

    return empty


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a store with nothing in it is."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("emptied")())
    shutil.copytree(request.getfixturevalue("empty"), tmp_path / "store")
    return str(tmp_path / "store")


@pytest.fixture
def new(place: str) -> Iterator[Callable]:
    """Opens the store once more, as another process would."""
    stores = []

    def opened(**more):
        stores.append(open_store(place, **more))
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


@pytest.fixture
def store(new: Callable):
    return new()
