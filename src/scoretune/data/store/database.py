"""The database of a store: how it is opened and brought to the newest schema, and what is said
where it refuses."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy
from sqlalchemy import Connection, Engine, event, exc

from scoretune.core.errors import UserError, first_line
from scoretune.data.store import schema

PATIENCE = 30.0
"""Seconds that a writer waits for others."""
LOCK = 7_246_151
"""Of PostgreSQL, held while the schema is brought up to date."""


def connect_folder(file: Path) -> Engine:
    """SQLite in a file, with a write-ahead log: readers wait for nobody, writers for each other."""
    engine = sqlalchemy.create_engine(
        sqlalchemy.URL.create("sqlite", database=str(file)), connect_args={"timeout": PATIENCE}
    )

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where `begun` says
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA synchronous=FULL")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def connect_url(url: str) -> Engine:
    """A PostgreSQL database. Raises UserError for another's URL."""
    try:
        address = sqlalchemy.make_url(url)
    except exc.ArgumentError as error:
        raise UserError(f"{url!r} is no URL of a database: {first_line(error)}") from error
    if address.drivername == "postgresql":
        address = address.set(drivername="postgresql+psycopg")
    try:
        return sqlalchemy.create_engine(address, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise UserError(
            f"a store in PostgreSQL needs {error.name}: pip install 'scoretune[postgres]'"
        ) from error
    except exc.NoSuchModuleError as error:
        raise UserError(f"{address.drivername!r} is no driver: write postgresql+psycopg") from error


@contextmanager
def database_errors(name: str) -> Iterator[None]:
    """Within this context what a database says of itself is a UserError about the store `name`."""
    try:
        yield
    except exc.DatabaseError as error:
        if isinstance(error, exc.IntegrityError):
            raise
        raise UserError(_complaint(name, error)) from error


def _complaint(name: str, error: exc.DBAPIError) -> str:
    cause = error.orig
    code = cause.sqlite_errorname if isinstance(cause, sqlite3.Error) else ""
    for start, text in _SQLITE.items():
        if code.startswith(start):
            return f"the store {name!r} {text}"
    if not code and error.connection_invalidated | isinstance(error, exc.OperationalError):
        return (
            f"the store {name!r} does not answer ({first_line(cause)}): start its server, and "
            "check the URL"
        )
    return f"the store {name!r} refuses: {first_line(cause)}"


_SQLITE = {
    "SQLITE_BUSY": f"is locked by another process for more than {PATIENCE:.0f} seconds: end that "
    "one, or wait; nothing was written",
    "SQLITE_FULL": "cannot be written, its disk is full: make room and try again; nothing was lost",
    "SQLITE_IOERR": "cannot be written, its disk fails or is full: make room and try again",
    "SQLITE_READONLY": "cannot be written: check the permissions of the folder",
    "SQLITE_CANTOPEN": "cannot be opened: check the permissions of the folder",
    "SQLITE_NOTADB": "is none: its store.db is no database of SQLite",
    "SQLITE_CORRUPT": "is damaged: sqlite3 store.db .recover saves what can be read",
}
"""What codes of SQLite mean, by how they begin."""


# ------------------------------------------------------------------------------------ schema


def revision(connection: Connection) -> str | None:
    """By which migration the schema was written, None where there is none."""
    if not sqlalchemy.inspect(connection).has_table("alembic_version"):
        return None
    text = sqlalchemy.text("SELECT version_num FROM alembic_version")
    return connection.execute(text).scalar()


def bring_up_to_date(engine: Engine, name: str, *, create: bool) -> None:
    """Make the tables, or migrate those of an older scoretune. Raises UserError for those of a
    newer one, and for no tables unless they are to be made."""
    with engine.connect() as connection:
        old = revision(connection)
    if old == schema.REVISION:
        return
    if old is None and not create:
        raise UserError(f"{name!r} is no store: scoretune feedback collect or import makes one")
    if old is not None:
        _check_revision(name, old)
    elif engine.dialect.name == "sqlite":
        _write_ahead(engine)
    with engine.execution_options(writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(sqlalchemy.text(f"SELECT pg_advisory_xact_lock({LOCK})"))
        upgrade(connection)  # of two processes the second finds nothing to do


def _check_revision(name: str, old: str) -> None:
    from alembic.util import CommandError

    try:
        _scripts().get_revision(old)
    except CommandError as error:
        raise UserError(
            f"the store {name!r} was written by a newer scoretune (its schema is {old!r}, and this "
            f"one knows those up to {schema.REVISION!r}): update scoretune"
        ) from error


def upgrade(connection: Connection, to: str = "head") -> None:
    """Run the migrations that a database lacks, up to one of them."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    scripts = _scripts()
    with EnvironmentContext(
        Config(), scripts, fn=lambda old, _: scripts._upgrade_revs(to, old)
    ) as environment:
        environment.configure(connection=connection, target_metadata=schema.metadata)
        environment.run_migrations()


def _scripts() -> Any:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(__file__).parent / "migrations"))


def _write_ahead(engine: Engine) -> None:
    """Write-ahead logging, which the file remembers. Others may be at the same: try again."""
    end = time.monotonic() + PATIENCE
    while True:
        connection = engine.raw_connection()
        try:
            connection.cursor().execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if time.monotonic() > end or error.sqlite_errorname != "SQLITE_BUSY":
                raise exc.OperationalError("PRAGMA journal_mode=WAL", None, error) from error
            time.sleep(0.02)
        finally:
            connection.close()
