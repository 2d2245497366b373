"""The store as one object: what may be written to it, and what it gives back."""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args

from sqlalchemy import Connection, Engine, Table, exc, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from torch import Tensor

from scoretune.core.errors import UserError, first_line, unknown
from scoretune.data import images
from scoretune.data.prompts import Prompt
from scoretune.data.store import FILE, database, is_store, is_url, schema
from scoretune.data.store.picture_folder import Filed, PictureFolder
from scoretune.data.store.records import (
    Choice,
    Like,
    Pair,
    PairSource,
    Ranking,
    Rater,
    RaterKind,
    Reason,
    Sample,
    SampleSource,
    Side,
    StoredCritique,
    StoredEdit,
    Vote,
)

Record = TypeVar(
    "Record", Sample, Pair, Rater, Vote, Ranking, Like, Reason, StoredCritique, StoredEdit
)
LARGEST_ID = 2**31 - 1
LONGEST_KEY = 300
ORDERED = ("reward", "rpo-edit")
"""Sources of pairs whose first sample is the preferred one, unless their label says otherwise."""


@dataclass(frozen=True)
class Store:
    """Samples, pairs, votes and the rest, in a database `engine` and a folder of pictures.

    Every method that writes is one transaction, or part of that of `together`. A `key` names a
    write: of two writes by one key the second finds the first and changes nothing.
    """

    where: str
    name: str
    engine: Engine = field(repr=False)
    folder: PictureFolder = field(repr=False)
    _open: threading.local = field(default_factory=threading.local, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @staticmethod
    def open(where: str, *, create: bool = False, pictures: str | None = None) -> Store:
        """See `scoretune.data.store.open_store`."""
        if is_url(where):
            return _of_url(where, create=create, pictures=pictures)
        path = Path(where)
        if pictures is not None:
            raise UserError(f"the store {where!r} has its pictures below it: leave pictures= out")
        if not is_store(where) and not create:
            what = "has no store.db" if path.is_dir() else "is not there"
            raise UserError(
                f"{where!r} is no store, it {what}: scoretune feedback collect or import makes one"
            )
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the store {where!r}: {error.strerror}") from error
        engine = database.connect_folder(path / FILE)
        with database.database_errors(where):
            database.bring_up_to_date(engine, where, create=create)
        return Store(where, where, engine, PictureFolder(path / "pictures"))

    # ------------------------------------------------------------------------------ pictures

    def add_picture(self, pixels: Tensor | bytes) -> str:
        """Keep a picture, [3, H, W] in [0, 1] or the bytes of a PNG, JPEG or WEBP; its sha256.

        Raises UserError for bytes that are no picture or of too many pixels, and for a full disk.
        """
        filed = self.folder.add(pixels)
        values = {**filed._asdict(), "created": time.time()}
        with self._writing() as connection:
            connection.execute(
                self._insert(schema.pictures).values(values).on_conflict_do_nothing()
            )
        return filed.sha256

    def picture(self, sha256: str) -> Path:
        """The file of a picture. Raises KeyError for one that the store does not have, UserError
        for one whose file was deleted."""
        table = schema.pictures
        with self._reading() as connection:
            ending = connection.execute(
                select(table.c.ending).where(table.c.sha256 == sha256)
            ).scalar()
        if ending is None:
            raise KeyError(sha256)
        path = self.folder.file(sha256, ending)
        if not path.is_file():
            raise UserError(
                f"the picture {str(path)!r} of the store {self.name!r} was deleted: put it back; "
                "scoretune feedback check lists all that is missing"
            )
        return path

    def pixels(self, sha256: str) -> Tensor:
        """A picture, [3, H, W] in [0, 1]. Raises as `picture`, and UserError for a broken file."""
        path = self.picture(sha256)
        try:
            return images.pixels(path).expand(3, -1, -1)
        except ValueError as error:
            raise UserError(f"cannot read the picture {str(path)!r}: {error}") from error

    def pictures(self) -> list[Filed]:
        """All that the store says it has, whether the files are there or not."""
        table = schema.pictures
        columns = [table.c[name] for name in Filed._fields]
        with self._reading() as connection:
            return [Filed(*row) for row in connection.execute(select(*columns))]

    # ------------------------------------------------------------------------------- samples

    def add_sample(
        self,
        *,
        prompt: str,
        picture: str,
        source: SampleSource = "model",
        model: str = "",
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
        parent: int | None = None,
        round: int = 0,
        key: str,
    ) -> Sample:
        """A picture of a prompt, which may be a `Prompt` with metadata, and how it was made. Raises
        KeyError for a picture or a parent that the store does not have, UserError for metadata that
        JSON cannot hold."""
        _check_word("the source of a sample", source, SampleSource)
        values = {
            "prompt": str(prompt),
            "metadata": _metadata(prompt),
            "picture": picture,
            "source": source,
            "model": model,
            "seed": seed,
            "settings": dict(settings or {}),
            "parent": parent,
            "round": round,
        }
        return self.sample(self._add(schema.samples, key, values)[0])

    def sample(self, id: int) -> Sample:
        """Raises KeyError where there is none."""
        return self._one(Sample, schema.samples, id)

    def samples(
        self, *, prompt: str | None = None, source: str | None = None, round: int | None = None
    ) -> list[Sample]:
        """In the order in which they came."""
        return self._all(Sample, schema.samples, prompt=prompt, source=source, round=round)

    def prompts(self) -> list[Prompt]:
        """Of all samples, in the order in which they came; each as its first sample has it."""
        table = schema.samples
        first = select(func.min(table.c.id)).group_by(table.c.prompt)
        return [one.full_prompt for one in self._all(Sample, table, table.c.id.in_(first))]

    # --------------------------------------------------------------------------------- pairs

    def add_pair(
        self,
        first: int,
        second: int,
        *,
        source: PairSource = "human",
        gold: Choice | None = None,
        label: float | None = None,
    ) -> Pair:
        """Two samples of one prompt; the same two of the same source, either way around, are the
        pair that is there already.

        A `label` is the probability that the first is preferred; that of `reward` and `rpo-edit` is
        1 unless it is given. Raises KeyError for an unknown sample, UserError for two that are no
        pair.
        """
        _check_word("the source of a pair", source, PairSource)
        if gold is not None:
            _check_word("the gold answer of a pair", gold, Choice)
        if label is not None and not 0 <= label <= 1:
            raise UserError(f"the label of a pair is a probability, and {label} is not in [0, 1]")
        a, b = self.sample(first), self.sample(second)
        if a.picture == b.picture or a.prompt != b.prompt:
            what = "have two prompts" if a.prompt != b.prompt else "show one picture"
            raise UserError(f"the samples {first} and {second} {what}: pair two of one prompt")
        if label is None and source in ORDERED:
            label = 1.0
        pair = {"low": min(first, second), "high": max(first, second), "source": source}
        values = {"prompt": a.prompt, "first": first, "second": second, "gold": gold}
        return self.pair(self._insert_once(schema.pairs, pair, values | {"label": label})[0])

    def pair(self, id: int) -> Pair:
        """Raises KeyError where there is none."""
        return self._one(Pair, schema.pairs, id)

    def pairs(
        self, *, prompt: str | None = None, source: str | None = None, after: int = 0
    ) -> list[Pair]:
        """In the order in which they came; those with an id above `after`."""
        later = schema.pairs.c.id > after
        return self._all(Pair, schema.pairs, later, prompt=prompt, source=source)

    # -------------------------------------------------------------------------------- raters

    def add_rater(self, name: str, kind: RaterKind = "person") -> tuple[Rater, str]:
        """A rater, and the token that proves it, which nobody can read from the store."""
        _check_word("the kind of a rater", kind, RaterKind)
        if not name.strip():
            raise UserError("a rater needs a name: give one")
        token = secrets.token_urlsafe(32)
        values = {"name": name, "kind": kind}
        proof = {"token_hash": hashlib.sha256(token.encode()).hexdigest()}
        return self.rater(self._insert_once(schema.raters, proof, values)[0]), token

    def rater(self, id: int) -> Rater:
        """Raises KeyError where there is none."""
        return self._one(Rater, schema.raters, id)

    def raters(self) -> list[Rater]:
        """In the order in which they came."""
        return self._all(Rater, schema.raters)

    def rater_by_token(self, token: str) -> Rater | None:
        """Whose token this is, None where it is nobody's."""
        digest = hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
        raters = self._all(Rater, schema.raters, token_hash=digest)
        return raters[0] if raters else None

    # --------------------------------------------------------------------------------- votes

    def add_vote(
        self,
        *,
        key: str,
        pair: int,
        rater: int,
        choice: Choice,
        left: Side = "first",
        seconds: float,
        repeat: bool = False,
    ) -> bool:
        """Whether the vote is stored now; False where its key was there already.

        Raises KeyError for an unknown pair or rater; UserError for a second vote of a rater on a
        pair that is no `repeat`, and for a key that was another rater's or of another pair.
        """
        _check_word("the choice", choice, Choice)
        _check_word("the left side", left, Side)
        values = {"choice": choice, "left": left, "seconds": _seconds(seconds), "repeat": repeat}
        try:
            number, new = self._add(schema.votes, key, {"pair": pair, "rater": rater} | values)
        except exc.IntegrityError as error:
            name = self.rater(rater).name
            raise UserError(
                f"{name!r} has voted on pair {pair} already: undo that vote first, or send this "
                "one as a repeat"
            ) from error
        if not new:
            self._check_same(number, key, pair, rater)
        return new

    def undo_vote(self, key: str, rater: int) -> bool:
        """Take a rater's vote back; False where there is none, or it was taken back before. Its key
        stays used."""
        table = schema.votes
        mine = (table.c.key == key, table.c.rater == rater, table.c.undone.is_(None))
        with self._writing() as connection:
            undone = connection.execute(update(table).where(*mine).values(undone=time.time()))
            return bool(undone.rowcount)

    def votes(
        self, *, pair: int | None = None, rater: int | None = None, at: float = math.inf
    ) -> list[Vote]:
        """Those that are not undone, in the order in which they came; as of a moment `at`."""
        table = schema.votes
        if at == math.inf:
            return self._all(Vote, table, table.c.undone.is_(None), pair=pair, rater=rater)
        counts = or_(table.c.undone.is_(None), table.c.undone > at)
        return self._all(Vote, table, counts, table.c.created <= at, pair=pair, rater=rater)

    def _check_same(self, number: int, key: str, pair: int, rater: int) -> None:
        old = self._one(Vote, schema.votes, number)
        if (old.pair, old.rater) != (pair, rater):
            raise UserError(
                f"the key {key!r} was used for the vote of rater {old.rater} on pair {old.pair}: "
                "make a new key for every vote"
            )

    # ------------------------------------------------------------ other things that people say

    def add_ranking(
        self, *, key: str, rater: int, prompt: str, order: Sequence[Sequence[int]], seconds: float
    ) -> bool:
        """Samples of a prompt, best first, those of one place in one list. As `add_vote`."""
        ids = [id for place in order for id in place]
        for id in ids:
            if self.sample(id).prompt != prompt:
                raise UserError(f"sample {id} is not of the prompt {prompt!r}: rank those of one")
        if len(ids) < 2 or len(set(ids)) < len(ids) or not all(order):
            raise UserError("a ranking is of two samples or more, each once: repair its order")
        places = [list(place) for place in order]
        values = {"rater": rater, "prompt": prompt, "order": places, "seconds": _seconds(seconds)}
        return self._add(schema.rankings, key, values)[1]

    def rankings(self, *, prompt: str | None = None, rater: int | None = None) -> list[Ranking]:
        """In the order in which they came."""
        return self._all(Ranking, schema.rankings, prompt=prompt, rater=rater)

    def add_like(self, *, key: str, rater: int, sample: int, liked: bool, seconds: float) -> bool:
        """Whether a rater likes a sample. Returns as `add_vote`."""
        values = {"sample": sample, "liked": liked, "seconds": _seconds(seconds)}
        return self._add(schema.likes, key, values | {"rater": rater})[1]

    def likes(self, *, sample: int | None = None, rater: int | None = None) -> list[Like]:
        """In the order in which they came."""
        return self._all(Like, schema.likes, sample=sample, rater=rater)

    def add_reason(
        self,
        *,
        key: str,
        rater: int,
        sample: int,
        tags: Sequence[str] = (),
        text: str = "",
        box: tuple[float, float, float, float] | None = None,
    ) -> bool:
        """Why a rater thinks so of a sample. Returns as `add_vote`."""
        if box is not None and not (0 <= box[0] < box[2] <= 1 and 0 <= box[1] < box[3] <= 1):
            raise UserError(
                f"the box {list(box)} is none: write left, top, right, bottom in [0, 1]"
            )
        values = {"tags": list(tags), "text": text, "box": None if box is None else list(box)}
        return self._add(schema.reasons, key, {"rater": rater, "sample": sample} | values)[1]

    def reasons(self, *, sample: int | None = None, rater: int | None = None) -> list[Reason]:
        """In the order in which they came."""
        return self._all(Reason, schema.reasons, sample=sample, rater=rater)

    # ------------------------------------------------------------------- critiques and edits

    def add_critique(
        self, *, key: str, sample: int, critic: str, payload: Mapping[str, Any], raw: str
    ) -> int:
        """What a critic said of a sample; its id."""
        values = {"sample": sample, "critic": critic, "payload": dict(payload), "raw": raw}
        return self._add(schema.critiques, key, values)[0]

    def critiques(self, *, sample: int | None = None) -> list[StoredCritique]:
        """In the order in which they came."""
        return self._all(StoredCritique, schema.critiques, sample=sample)

    def add_edit(
        self,
        *,
        key: str,
        sample: int,
        critique: int | None,
        editor: str,
        instructions: Sequence[str],
        seed: int | None,
        edited: int | None,
        verdict: Mapping[str, Any],
    ) -> int:
        """A sample edited by instructions; its id."""
        values: dict[str, Any] = {"sample": sample, "critique": critique, "editor": editor}
        values |= {"instructions": list(instructions), "seed": seed, "edited": edited}
        return self._add(schema.edits, key, values | {"verdict": dict(verdict)})[0]

    def edits(self, *, sample: int | None = None) -> list[StoredEdit]:
        """In the order in which they came."""
        return self._all(StoredEdit, schema.edits, sample=sample)

    # ------------------------------------------------------------------------------ the rest

    def counts(self) -> dict[str, int]:
        """How many rows each table has; undone votes apart."""
        tables = {t.name: t for t in schema.metadata.sorted_tables if "created" in t.c}
        with self._reading() as connection:
            size = {
                name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for name, table in sorted(tables.items())
            }
            undone = select(func.count()).where(schema.votes.c.undone.is_not(None))
            lost = int(connection.execute(undone).scalar_one())
        return size | {"votes": size["votes"] - lost, "undone": lost}

    @contextmanager
    def together(self) -> Iterator[None]:
        """All writes within this context are one transaction: many at once, or none of them."""
        with self._writing():
            yield

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """A transaction that ends with the context, or the one that `together` has begun."""
        began = getattr(self._open, "connection", None)
        if began is not None:
            with began.begin_nested():
                yield began
            return
        # SQLite has one writer, and others ask again and again: threads of one process queue
        alone = self._turn if self.engine.dialect.name == "sqlite" else nullcontext()
        with (
            alone,
            database.database_errors(self.name),
            self.engine.execution_options(writes=True).begin() as connection,
        ):
            self._open.connection = connection
            try:
                yield connection
            finally:
                self._open.connection = None

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        began = getattr(self._open, "connection", None)
        if began is not None:
            yield began
            return
        with database.database_errors(self.name), self.engine.connect() as connection:
            yield connection

    def _insert(self, table: Table) -> Any:
        dialect = self.engine.dialect.name
        return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)

    def _add(self, table: Table, key: str, values: dict[str, Any]) -> tuple[int, bool]:
        """A row by its key: its id, and whether it is new."""
        if not 0 < len(key) <= LONGEST_KEY:
            raise UserError(
                f"a key has 1 to {LONGEST_KEY} characters, and this has {len(key)}: name every "
                "write, with a new uuid for example"
            )
        return self._insert_once(table, {"key": key}, values)

    def _insert_once(
        self, table: Table, unique: dict[str, Any], values: dict[str, Any]
    ) -> tuple[int, bool]:
        """The id of the row that has these `unique` values, and whether it is made now."""
        for name, value in (unique | values).items():
            if isinstance(value, str):
                _check_text(name, value)
        there = select(table.c.id).where(*(table.c[name] == unique[name] for name in unique))
        try:
            with self._writing() as connection:
                row = {**unique, **values, "created": time.time()}
                once = self._insert(table).values(row)
                once = once.on_conflict_do_nothing(index_elements=list(unique))
                new = connection.execute(once.returning(table.c.id)).scalar()
                if new is not None:
                    return int(new), True
                return int(connection.execute(there).scalar_one()), False
        except exc.IntegrityError:
            with self._reading() as connection:
                old = connection.execute(there).scalar()
            if old is not None:  # another process was quicker
                return int(old), False
            self._check_references(table, values)
            raise

    def _check_references(self, table: Table, values: dict[str, Any]) -> None:
        """Raise KeyError for the first value that is to be a row of another table and is none."""
        with self._reading() as connection:
            for key in table.foreign_keys:
                value = values[key.parent.name]
                if value is None:
                    continue
                there = select(func.count()).where(key.column == value)
                if not connection.execute(there).scalar():
                    raise KeyError(f"no {key.parent.name} {value!r} in the store {self.name!r}")

    def _one(self, record: type[Record], table: Table, id: int) -> Record:
        rows = self._all(record, table, id=id) if 0 < id <= LARGEST_ID else []
        if not rows:
            raise KeyError(f"no row {id} of {table.name} in the store {self.name!r}")
        return rows[0]

    def _all(self, record: type[Record], table: Table, *where: Any, **equal: Any) -> list[Record]:
        columns = [table.c[part.name] for part in fields(record)]
        same = [table.c[name] == value for name, value in equal.items() if value is not None]
        with self._reading() as connection:
            rows = connection.execute(select(*columns).where(*where, *same).order_by(table.c.id))
            return [record(**row._mapping) for row in rows]


def _of_url(url: str, *, create: bool, pictures: str | None) -> Store:
    """A store in PostgreSQL, which remembers the folder of its pictures."""
    engine = database.connect_url(url)
    name = engine.url.render_as_string(hide_password=True)
    table = schema.store
    with database.database_errors(name):
        database.bring_up_to_date(engine, name, create=create)
        with engine.begin() as connection:
            row = select(table.c.value).where(table.c.name == "pictures")
            old = connection.execute(row).scalar()
            if old is None and pictures is not None:
                values = {"name": "pictures", "value": str(Path(pictures).resolve())}
                connection.execute(insert(table).values(values))
    folder = pictures or old
    if folder is None:
        raise UserError(f"the store {name!r} needs a folder for its pictures: say which one")
    return Store(url, name, engine, PictureFolder(Path(folder)))


def _metadata(prompt: str) -> dict[str, Any]:
    """What a prompt has beside its text, as JSON: what is no finite number is null. Raises
    UserError for a column that JSON cannot hold."""
    given: Mapping[str, Any] = prompt.metadata if isinstance(prompt, Prompt) else {}
    kept = {}
    for name, value in given.items():
        missing = isinstance(value, float) and not math.isfinite(value)
        kept[str(name)] = None if missing else value
        try:
            json.dumps(kept[str(name)], allow_nan=False)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"a store cannot keep the column {str(name)!r} of the prompt {str(prompt)[:60]!r} "
                f"({first_line(error)}): write it as text, a finite number, or a list of them"
            ) from error
    return kept


def _check_word(what: str, word: str, words: Any) -> None:
    if word not in get_args(words):
        raise unknown(what, str(word), get_args(words))


def _check_text(name: str, text: str) -> None:
    """Raise UserError for what no database keeps as it is."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name} {text!r} is no text, it has half a character: repair it"
        ) from error
    if "\0" in text:
        raise UserError(f"{name} {text!r} has a NUL character: take it out")


def _seconds(seconds: float) -> float:
    if not (math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"a rater takes a finite number of seconds, and {seconds} is none")
    return float(seconds)
