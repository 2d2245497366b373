"""A disk that is full, a store that is locked or too new, a picture that is gone, two studios on
one store: one clear line each, and nothing is lost."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoretune.commands.studio.studio import Studio
from scoretune.data.store import database, open_store
from studios import Answer, Client, ballot_of, filled, served


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studio]:
    monkeypatch.setattr(database, "PATIENCE", 0.05)
    with served(filled(tmp_path), tmp_path) as made:
        yield made


@pytest.fixture
def ann(studio: Studio) -> Client:
    return Client(studio.address).enter(studio.store.add_rater("ann")[1])


def is_one_line(answer: Answer, *words: str) -> bool:
    text = answer.text
    return len(text.splitlines()) == 1 and len(text) <= 300 and all(w in text for w in words)


def voted(client: Client, page: str) -> Answer:
    return client.post("/vote", ballot=ballot_of(page), choice="left")


def test_a_picture_that_was_deleted_is_a_line_and_voting_goes_on(studio: Studio, ann: Client):
    sample = studio.store.samples()[0]
    os.unlink(studio.store.picture(sample.picture))
    answer = ann.get(f"/pictures/{sample.picture}", hx_request="true")
    assert answer.status == 409 and is_one_line(answer, "was deleted", "put it back")
    assert "was deleted" in ann.get(f"/pictures/{sample.picture}").text  # as a page
    assert voted(ann, ann.get("/vote").text).status == 200
    assert ann.get("/why/1").status == 200


def test_a_disk_that_is_full_loses_no_vote(studio: Studio, ann: Client):
    page, before = ann.get("/vote").text, studio.store.counts()
    raw = studio.store.engine.raw_connection()  # the only one, idle in the pool
    (pages,) = raw.cursor().execute("PRAGMA page_count").fetchone()
    raw.cursor().execute(f"PRAGMA max_page_count={pages}")
    raw.close()
    statuses = []
    while len(statuses) < 500:  # until the last page is full
        answer = voted(ann, page)
        statuses.append(answer.status)
        if answer.status != 200:
            break
        page = answer.text if ballot_of(answer.text) else ann.post("/vote/undo").text
    assert answer.status == 409 and is_one_line(answer, "disk is full", "nothing was lost")
    stored = studio.store.counts()["votes"] + studio.store.counts()["undone"]
    assert stored == len(statuses) - 1 and before["votes"] == 0
    studio.store.engine.dispose()  # there is room again
    assert ballot_of(ann.get("/vote").text) == ballot_of(page)  # the same ballot waits
    assert voted(ann, page).status == 200


def test_a_picture_for_which_there_is_no_room_is_a_line(
    studio: Studio, ann: Client, monkeypatch: pytest.MonkeyPatch
):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    from io import BytesIO

    from PIL import Image

    picture = BytesIO()
    Image.linear_gradient("L").resize((8, 8)).convert("RGB").save(picture, "PNG")
    head = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="a.png"\r\n\r\n'
    body, kind = head + picture.getvalue() + b"\r\n--x--\r\n", "multipart/form-data; boundary=x"
    with monkeypatch.context() as patch:
        patch.setattr("scoretune.data.store.picture_folder.os.fsync", full)
        answer = ann.ask("POST", "/why/1/upload", body, content_type=kind)
    assert answer.status == 409 and is_one_line(answer, "No space left", "make room")
    assert not studio.store.samples(source="upload")
    assert ann.ask("POST", "/why/1/upload", body, content_type=kind).status == 200
    assert len(studio.store.samples(source="upload")) == 1


def test_a_locked_store_is_a_line_and_the_vote_may_be_sent_again(
    studio: Studio, ann: Client, tmp_path: Path
):
    page = ann.get("/vote").text
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        answer = voted(ann, page)
        assert answer.status == 409 and is_one_line(answer, "is locked by another process")
        assert ann.get("/vote").status == 200  # what only reads goes on
    finally:
        other.close()
    assert voted(ann, page).status == 200 and len(studio.store.votes()) == 1


def test_a_store_of_a_newer_version_is_one_line(tmp_path: Path, command: Any):
    filled(tmp_path).close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    outcome = command("studio", tmp_path, "--no-browser", "--port", "0")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "newer scoretune" in outcome.err and "update" in outcome.err


def test_two_studios_on_one_store_count_a_vote_once(studio: Studio, tmp_path: Path):
    rater, token = studio.store.add_rater("bob")
    with served(open_store(str(tmp_path)), tmp_path) as other:
        here, there = Client(studio.address).enter(token), Client(other.address).enter(token)
        assert here.cookie.partition("=")[0] != there.cookie.partition("=")[0]  # one for each
        ballot = studio.ballots.current(rater.id)
        assert ballot is not None
        assert "counts once" not in here.post("/vote", ballot=ballot.text, choice="left").text
        for text in (ballot.text, other.ballots.made(rater.id, ballot.pair).text):
            assert "counts once" in there.post("/vote", ballot=text, choice="right").text
        assert "counts once" in here.post("/vote", ballot=ballot.text, choice="right").text
        page = there.get("/vote").text
        for _ in range(40):
            page = there.post("/vote", ballot=ballot_of(page), choice="tie").text
            if not ballot_of(page):
                break
    votes = [vote for vote in studio.store.votes(rater=rater.id) if not vote.repeat]
    assert sorted(vote.pair for vote in votes) == [pair.id for pair in studio.store.pairs()]
    assert votes[0].choice == ballot.left  # the first answer counts
