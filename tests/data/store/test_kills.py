"""Writers that are killed, that wait for each other, and stores that cannot be used.

The slow test votes 5,000 times as 50 raters from four processes, of which one is killed with -9
five times, and prints what came of it (`python -m pytest -s -m slow tests/data/store`).
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy

from judgement_tables import picture
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.data.store import database, open_store, schema

FORK = multiprocessing.get_context("fork")


def votes_of(where: str, raters: list[int], pairs: list[int], acknowledged: str) -> None:
    """Every rater votes on every pair; the key of a vote that was acknowledged is noted in a file.
    Begun again, it sends all that is not noted there, as a page does that had no answer."""
    store, said = open_store(where), Path(acknowledged)
    noted = set(said.read_text().split()) if said.exists() else set()
    with said.open("a", buffering=1) as log:
        for pair in pairs:
            for rater in raters:
                key = f"{rater}-{pair}"
                if key not in noted:
                    vote = {"pair": pair, "rater": rater, "choice": "first", "seconds": 1}
                    store.add_vote(key=key, **vote)
                    log.write(f"{key}\n")
    store.close()


def started(*arguments: object) -> multiprocessing.Process:
    process = FORK.Process(target=votes_of, args=arguments)
    process.start()
    return process


@pytest.mark.parametrize(
    ("raters_number", "votes", "writers", "kills"),
    [(6, 20, 2, 2), pytest.param(50, 100, 4, 5, marks=pytest.mark.slow)],
)
def test_no_vote_is_lost_or_double_when_writers_are_killed(
    place, store, tmp_path, raters_number, votes, writers, kills
):
    shas = [store.add_picture(picture(level)) for level in range(30)]
    with store.together():
        samples = [store.add_sample(prompt="a", picture=sha, key=sha).id for sha in shas]
        every = [(a, b) for a in samples for b in samples if a < b][:votes]
        pairs = [store.add_pair(*both).id for both in every]
        raters = [store.add_rater(f"rater {number}")[0].id for number in range(raters_number)]
    store.close()
    shares = [raters[start::writers] for start in range(writers)]
    logs = [str(tmp_path / f"acknowledged-{number}") for number in range(writers)]
    tasks = [(place, share, pairs, log) for share, log in zip(shares, logs, strict=True)]
    began, running, draw = time.monotonic(), [started(*task) for task in tasks], random.Random(0)
    for _ in range(kills):
        size = os.path.getsize(logs[0]) if os.path.exists(logs[0]) else 0
        while running[0].is_alive() and (
            not os.path.exists(logs[0]) or os.path.getsize(logs[0]) < size + draw.randint(20, 60)
        ):
            time.sleep(0.001)
        assert running[0].is_alive(), "it ended before it was killed"
        os.kill(running[0].pid, signal.SIGKILL)
        running[0].join()
        running[0] = started(*tasks[0])
    for process in running:
        process.join()
        assert process.exitcode == 0
    seconds = time.monotonic() - began
    acknowledged = [key for log in logs for key in Path(log).read_text().split()]
    stored = [vote.key for vote in store.votes()]
    wanted = {f"{rater}-{pair}" for rater in raters for pair in pairs}
    lost, double = len(set(acknowledged) - set(stored)), len(stored) - len(set(stored))
    print(
        f"{store.engine.dialect.name}: {len(stored):,} votes of {len(raters)} raters by {writers} "
        f"processes, {kills} kills: {lost} lost, {double} double; {len(stored) / seconds:.0f}/s"
    )
    assert (lost, double) == (0, 0) and set(stored) == wanted


# ------------------------------------------------------------------------ stores that are not


@pytest.fixture
def folder(empty: Path, tmp_path: Path) -> str:
    """An empty store in SQLite."""
    import shutil

    shutil.copytree(empty, tmp_path / "store")
    return str(tmp_path / "store")


def test_a_locked_store_is_said_to_be_locked(folder, monkeypatch):
    monkeypatch.setattr(database, "PATIENCE", 0.01)
    store = open_store(folder)
    other = sqlite3.connect(f"{folder}/store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"is locked by another process .*nothing was written"):
        store.add_rater("Ada")
    assert store.raters() == [], "readers wait for nobody"
    other.execute("ROLLBACK")
    other.close()
    assert store.add_rater("Ada")[0].id == 1


def test_a_full_disk_loses_nothing(folder, monkeypatch):
    store = open_store(folder)
    ada = store.add_rater("Ada")[0]

    @sqlalchemy.event.listens_for(store.engine, "begin")
    def small(connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=1")  # all that there are

    with pytest.raises(UserError, match="its disk is full: make room and try again"):
        store.add_rater("x" * 1_000_000)
    sqlalchemy.event.remove(store.engine, "begin", small)
    assert store.raters() == [ada]

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device\): make room"):
        store.add_picture(picture(1))
    assert store.pictures() == []


def test_a_store_of_a_newer_scoretune_is_left_alone(folder):
    with sqlite3.connect(f"{folder}/store.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(UserError, match=r"was written by a newer scoretune .*update scoretune"):
        open_store(folder)


def test_another_programs_database_is_no_store(tmp_path):
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("CREATE TABLE votes (id INTEGER)")
    connection.close()
    with pytest.raises(UserError, match="is no store: scoretune feedback"):
        open_store(str(tmp_path))


def test_a_server_that_is_not_there():
    with pytest.raises(UserError, match=r"does not answer .*start its server") as error:
        open_store("postgresql+psycopg://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(error.value)


# -------------------------------------------------------------------------------- migrations


def test_a_store_of_the_first_schema_opens_with_what_is_in_it(place, tmp_path, request):
    """Made by the first revision alone, and brought up to date when it is opened."""
    if "://" in place:
        place = request.getfixturevalue("postgres_database")
        engine = database.connect_url(place)
    else:
        (tmp_path / "old").mkdir()
        place = str(tmp_path / "old")
        engine = database.connect_folder(tmp_path / "old" / "store.db")
    with engine.execution_options(writes=True).begin() as connection:
        database.upgrade(connection, "0001")
        values = "'Ada', 'person', 'x', 0.5"
        statement = f"INSERT INTO raters (name, kind, token_hash, created) VALUES ({values})"
        connection.execute(sqlalchemy.text(statement))
        row = {"sha256": "a" * 64, "ending": "png", "width": 8, "height": 8, "created": 0.5}
        connection.execute(sqlalchemy.insert(schema.pictures).values(row))
        values = "'one', 'a red seven', :picture, 'model', '', '{}', 0, 0.5"
        names = "key, prompt, picture, source, model, settings, round, created"
        statement = f"INSERT INTO samples ({names}) VALUES ({values})"
        connection.execute(sqlalchemy.text(statement), {"picture": row["sha256"]})
    engine.dispose()
    pictures = {"pictures": str(tmp_path / "pictures")} if "://" in place else {}
    store = open_store(place, **pictures)
    assert [rater.name for rater in store.raters()] == ["Ada"]
    (old,) = store.samples()
    assert (old.key, old.prompt, old.metadata) == ("one", "a red seven", {})
    asked = Prompt("a blue two", {"text": "two"})
    assert store.add_sample(prompt=asked, picture=old.picture, key="new").metadata == asked.metadata
    with store.engine.connect() as connection:
        assert database.revision(connection) == schema.REVISION
    store.close()
    assert open_store(place).raters() == store.raters(), "a database remembers its pictures' folder"
    store.close()


def test_two_that_open_an_old_store_at_once_bring_it_up_to_date_once(tmp_path):
    engine = database.connect_folder(tmp_path / "store.db")
    with engine.execution_options(writes=True).begin() as connection:
        database.upgrade(connection, "0001")
    engine.dispose()
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(open_store, [str(tmp_path)] * 4))
    assert [store.samples() for store in stores] == [[]] * 4
    for store in stores:
        store.close()


def test_a_migration_that_is_cut_off_leaves_the_old_store(tmp_path, monkeypatch):
    engine = database.connect_folder(tmp_path / "store.db")
    with engine.execution_options(writes=True).begin() as connection:
        database.upgrade(connection, "0001")
    upgrade = database.upgrade

    def cut_off(connection, to="head"):
        upgrade(connection, to)
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "upgrade", cut_off)
    with pytest.raises(KeyboardInterrupt):
        open_store(str(tmp_path))
    with engine.connect() as connection:
        assert database.revision(connection) == "0001"
    engine.dispose()
    monkeypatch.undo()
    store = open_store(str(tmp_path))
    assert store.samples() == []
    store.close()


def test_the_migrations_make_the_schema_that_is_used(store):
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
