"""What people say of a picture, carried out by an editor, shown beside it and paired."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from scoretune.commands.studio.studio import Studio
from scoretune.commands.studio.verb import Tools, _tools
from scoretune.core.errors import UserError
from scoretune.data.store import open_store
from scoretune.data.store.store import Store
from scoretune.training.feedback import roles
from scoretune.training.feedback.records import Edited
from studios import Client, ballot_of, filled, scene, served

BOX = "0.05,0.05,0.45,0.45"
"""Of the upper left cell."""


def miniature(folder: Path) -> Store:
    """A store with pictures that are to show a red seven; the first shows a blue one."""
    store = open_store(str(folder), create=True)
    pictures = [scene("blue seven"), scene("red seven"), scene("", "red seven")]
    ids = [
        store.add_sample(prompt="a red seven", picture=store.add_picture(p), key=str(n)).id
        for n, p in enumerate(pictures)
    ]
    store.add_pair(ids[0], ids[1])
    return store


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with served(miniature(tmp_path), tmp_path, tools=Tools("scenes", "reader")) as made:
        yield made


def say(client: Client, number: int = 1, **fields: object) -> str:
    """Say why a picture is not good; the page that answers."""
    ticket = re.search(r'name="ticket" value="([^"]+)"', client.get(f"/why/{number}").text)
    assert ticket is not None
    answer = client.post(f"/why/{number}", ticket=ticket[1], **fields)
    assert answer.status == 200, answer
    return settled(client, number, answer.text)


def settled(client: Client, number: int, page: str) -> str:
    """The page once the editor is no longer at work on it."""
    while "at work" in page:
        time.sleep(0.05)
        page = client.get(f"/why/{number}/said").text
    return page


def test_what_is_said_becomes_an_edit_and_a_pair(studio: Studio):
    store = studio.store
    rater = store.add_rater("ann")
    ann = Client(studio.address).enter(rater[1])
    page = say(ann, tags="wrong colour", text="make it red", box=BOX)
    (reason,), (critique,), (edit,) = store.reasons(), store.critiques(), store.edits()
    assert (critique.sample, critique.critic, critique.raw) == (
        1,
        f"rater {rater[0].id}",
        reason.text,
    )
    assert [issue["category"] for issue in critique.payload["content"]["issues"]] == [
        "attribute"
    ] * 2
    assert (edit.critique, edit.editor, edit.instructions) == (
        critique.id,
        "scenes",
        ["make the seven red"],
    )
    assert edit.verdict["outcome"] == "kept" and edit.verdict["gain"] > 0.3
    after = store.sample(edit.edited or 0)
    assert (after.source, after.parent, after.prompt) == ("edit", 1, "a red seven")
    assert f"/pictures/{after.picture}" in page and "vote on them" in page
    assert f"{edit.verdict['gain']:+.2f}" in page
    pair = store.pairs()[-1]
    assert (pair.first, pair.second, pair.source, pair.label) == (1, after.id, "human", None)
    own = ann.get("/vote").text  # what one asked for comes next
    assert ballot_of(own).split(".")[0] == str(pair.id)
    assert ann.post("/vote", ballot=ballot_of(own), choice="left").status == 200
    assert [vote.pair for vote in store.votes()] == [pair.id]


def test_saying_it_twice_is_one_edit(studio: Studio):
    owner = Client(studio.address).enter(studio.keys.token)
    ticket = re.search(r'name="ticket" value="([^"]+)"', owner.get("/why/1").text)
    assert ticket is not None
    for _ in range(2):
        page = owner.post("/why/1", ticket=ticket[1], text="make the seven red").text
        settled(owner, 1, page)
    assert len(studio.store.edits()) == len(studio.store.reasons()) == 1
    assert say(owner, text="make the seven red").count("vote on them") == 2  # said anew


def test_what_the_editor_cannot_do_is_said(studio: Studio):
    owner = Client(studio.address).enter(studio.keys.token)
    assert "knows sentences such as" in say(owner, text="<b>more pathos</b>")
    assert "nothing changed" in say(owner, 2, text="make the two red")  # there is none
    assert len(studio.store.pairs()) == 1 and len(studio.store.reasons()) == 2
    assert owner.post("/why/1/edit", reason=99).status == 404


def test_without_an_editor_one_line_says_so(tmp_path: Path):
    with served(filled(tmp_path), tmp_path) as studio:
        owner = Client(studio.address).enter(studio.keys.token)
        assert "no editor is here" in owner.get("/why/1").text
        assert "Let the editor" not in say(owner, text="make it red")
        assert owner.post("/why/1/edit", reason=1).status == 404
        assert len(studio.store.reasons()) == 1 and not studio.store.edits()


class Moody:
    """An editor that breaks, gives another size, takes its time, and in the end does it."""

    def __init__(self) -> None:
        self.calls, self.free = 0, threading.Event()

    def __call__(self, pictures: Sequence[Any], plans: Any, seeds: Any) -> list[Edited]:
        self.calls += 1
        if self.calls == 1:
            raise RuntimeError("out of <memory>\nat line 3")
        if self.calls == 2:
            return [Edited(torch.zeros(3, 4, 4))]
        self.free.wait(20)
        return [Edited(0.8 * pictures[0].pixels)]


def test_an_editor_that_fails_or_is_slow_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moody = Moody()
    monkeypatch.setitem(roles.EDITORS, "moody", lambda: moody)
    monkeypatch.setattr("scoretune.commands.studio.editing.PATIENCE", 0.2)
    store = filled(tmp_path, prompts=("a cat",))
    with served(store, tmp_path, tools=Tools("moody")) as studio:
        owner = Client(studio.address).enter(studio.keys.token)
        page = say(owner, text="make it red")
        assert "could not do it: out of &lt;memory&gt; at line 3" in page
        page = owner.post("/why/1/edit", reason=1).text
        assert "another size" in settled(owner, 1, page)
        page = owner.post("/why/1/edit", reason=1).text
        assert "at work" in page and 'hx-trigger="every 1s"' in page
        assert owner.get("/vote").status == 200  # everything else goes on
        owner.post("/why/1/edit", reason=1)  # it is not begun twice
        moody.free.set()
        page = settled(owner, 1, "at work")
        assert "vote on them" in page and moody.calls == 3
        (edit,) = studio.store.edits()
        assert edit.verdict["reason"] == "not measured" and edit.instructions == ["make it red"]


def test_the_editor_is_the_miniatures_own_for_its_prompts(tmp_path: Path):
    scenes, other = miniature(tmp_path / "a"), filled(tmp_path / "b", prompts=("a cat",))
    assert _tools(scenes, Tools()) == ("scenes", "reader", "random", "scenes")
    assert _tools(other, Tools(choice="votes")) == ("", "", "votes", "")
    assert _tools(scenes, Tools("none", features="pixels")) == ("", "reader", "random", "pixels")
    none = served(other, tmp_path / "b", tools=Tools("kontxt"))
    with pytest.raises(UserError, match="unknown editor 'kontxt'"), none:
        pass
