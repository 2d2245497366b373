"""The tables of a store as of the newest revision; `migrations` has how they came to be so."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

REVISION = "0002"
"""Of the newest migration."""

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _to(table: str, name: str, *, optional: bool = False) -> Column[int]:
    """A column that holds the id of a row of another table, and an index of it."""
    return Column(name, Integer, ForeignKey(f"{table}.id"), nullable=optional, index=True)


def _table(name: str, *columns: Column[Any] | UniqueConstraint) -> Table:
    """A table whose rows are numbered and dated, in seconds since 1970."""
    number = Column("id", Integer, primary_key=True)
    return Table(name, metadata, number, *columns, Column("created", Float(53), nullable=False))


def _key() -> Column[str]:
    return Column("key", Text, nullable=False, unique=True)


store = Table(
    "store",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)
pictures = Table(
    "pictures",
    metadata,
    Column("sha256", String(64), primary_key=True),
    Column("ending", String(8), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("created", Float(53), nullable=False),
)
samples = _table(
    "samples",
    _key(),
    Column("prompt", Text, nullable=False),
    Column("picture", String(64), ForeignKey("pictures.sha256"), nullable=False, index=True),
    Column("source", String(16), nullable=False),
    Column("model", Text, nullable=False),
    Column("seed", BigInteger),
    Column("settings", JSON, nullable=False),
    _to("samples", "parent", optional=True),
    Column("round", Integer, nullable=False),
    Column("metadata", JSON, nullable=False, server_default=text("'{}'")),
)
pairs = _table(
    "pairs",
    Column("prompt", Text, nullable=False),
    _to("samples", "first"),
    _to("samples", "second"),
    Column("low", Integer, nullable=False),  # the smaller of the two ids, and the larger
    Column("high", Integer, nullable=False),
    Column("source", String(16), nullable=False),
    Column("gold", String(16)),
    Column("label", Float(53)),
    UniqueConstraint("low", "high", "source"),
)
for _of in (samples, pairs):  # a hash, since prompts may be longer than an ordered index takes
    Index(None, _of.c.prompt, postgresql_using="hash")
raters = _table(
    "raters",
    Column("name", Text, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("token_hash", String(64), nullable=False, unique=True),
)
votes = _table(
    "votes",
    _key(),
    _to("pairs", "pair"),
    _to("raters", "rater"),
    Column("choice", String(16), nullable=False),
    Column("left", String(16), nullable=False),
    Column("seconds", Float(53), nullable=False),
    Column("repeat", Boolean, nullable=False),
    Column("undone", Float(53)),
)
Index(
    "uq_votes_once",
    votes.c.pair,
    votes.c.rater,
    unique=True,
    sqlite_where=text("NOT repeat AND undone IS NULL"),
    postgresql_where=text("NOT repeat AND undone IS NULL"),
)
rankings = _table(
    "rankings",
    _key(),
    _to("raters", "rater"),
    Column("prompt", Text, nullable=False),
    Column("order", JSON, nullable=False),
    Column("seconds", Float(53), nullable=False),
)
likes = _table(
    "likes",
    _key(),
    _to("raters", "rater"),
    _to("samples", "sample"),
    Column("liked", Boolean, nullable=False),
    Column("seconds", Float(53), nullable=False),
)
reasons = _table(
    "reasons",
    _key(),
    _to("raters", "rater"),
    _to("samples", "sample"),
    Column("tags", JSON, nullable=False),
    Column("text", Text, nullable=False),
    Column("box", JSON(none_as_null=True)),
)
critiques = _table(
    "critiques",
    _key(),
    _to("samples", "sample"),
    Column("critic", Text, nullable=False),
    Column("payload", JSON, nullable=False),
    Column("raw", Text, nullable=False),
)
edits = _table(
    "edits",
    _key(),
    _to("samples", "sample"),
    _to("critiques", "critique", optional=True),
    Column("editor", Text, nullable=False),
    Column("instructions", JSON, nullable=False),
    Column("seed", BigInteger),
    _to("samples", "edited", optional=True),
    Column("verdict", JSON, nullable=False),
)
