"""What a store keeps, gives back and refuses; on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
import threading
from datetime import date
from types import SimpleNamespace

import pytest
import torch

from judgement_tables import bomb, picture
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.data.store import is_store


def sample(store, level: int = 0, prompt: str = "a cat", **more):
    sha, key = store.add_picture(picture(level)), f"{prompt[:99]} {level}"
    return store.add_sample(prompt=prompt, picture=sha, key=key, **more)


@pytest.fixture
def voting(store):
    """A store with a pair and two raters."""
    pair = store.add_pair(sample(store, 10).id, sample(store, 20).id)
    (ada, _), (ben, _) = store.add_rater("Ada"), store.add_rater("Ben", "simulated")
    return SimpleNamespace(store=store, pair=pair.id, ada=ada.id, ben=ben.id)


def vote(voting, key: str, rater: int, choice: str = "first", **more) -> bool:
    what = {"pair": voting.pair, "choice": choice, "seconds": 1} | more
    return voting.store.add_vote(key=key, rater=rater, **what)


# ------------------------------------------------------------------------------- pictures


def test_a_picture_is_a_file_by_its_sha256_and_comes_back(store):
    image = torch.rand(3, 5, 7)
    sha = store.add_picture(image)
    assert store.add_picture(image) == sha, "equal pixels are one picture"
    path = store.picture(sha)
    assert path.name == f"{sha}.png" and path.parent.name == sha[:2]
    assert torch.equal(store.pixels(sha), (image * 255).round() / 255)
    payload = picture(30)
    kept = store.picture(store.add_picture(payload))
    assert kept.read_bytes() == payload, "bytes stay as they are"
    assert {filed.sha256 for filed in store.pictures()} == {sha, kept.stem}


@pytest.mark.parametrize("payload", [b"", b"<svg/>", bomb()], ids=["empty", "svg", "bomb"])
def test_what_is_no_picture_is_refused(store, payload):
    with pytest.raises(UserError, match="no picture that a store takes"):
        store.add_picture(payload)
    assert not store.pictures()


def test_pictures_that_are_unknown_or_were_deleted(store):
    for wrong in ("0" * 64, "../../etc/passwd", "' OR 1=1 --"):
        with pytest.raises(KeyError):
            store.picture(wrong)
    sha = store.add_picture(picture(30))
    store.picture(sha).unlink()
    with pytest.raises(UserError, match="was deleted: put it back"):
        store.pixels(sha)
    assert store.add_picture(picture(30)) == sha and store.pixels(sha).shape[0] == 3


# ------------------------------------------------------------------------ samples and pairs


def test_samples_come_back_with_where_they_came_from(store):
    first = sample(store, 10, model="scenes", seed=2**40, settings={"steps": 20, "eta": 0.5})
    edited = sample(store, 20, source="edit", parent=first.id, round=1)
    assert store.sample(first.id) == first and first.settings == {"steps": 20, "eta": 0.5}
    assert first.seed == 2**40 and edited.parent == first.id
    other = sample(store, 10, "a dog")
    assert store.samples() == [first, edited, other] and store.prompts() == ["a cat", "a dog"]
    assert store.samples(prompt="a cat", source="edit", round=1) == [edited]
    assert sample(store, 10, model="other") == first, "a second write by one key changes nothing"
    for wrong in (0, -1, 99, 10**30):
        with pytest.raises(KeyError):
            store.sample(wrong)
    with pytest.raises(KeyError, match="no picture"):
        store.add_sample(prompt="a", picture="0" * 64, key="k")
    with pytest.raises(KeyError, match="no parent 99"):
        sample(store, 30, parent=99)
    with pytest.raises(UserError, match="unknown the source of a sample 'drawn'"):
        sample(store, 30, source="drawn")


def test_samples_keep_what_the_prompt_file_says_beside_the_text(store):
    row = {"text": "open", "score": math.nan, "tags": ["a", 1]}
    asked = Prompt('a sign "open"', row)
    kept = sample(store, 10, asked)
    assert kept.prompt == str(asked) and kept.metadata == row | {"score": None}
    assert kept.full_prompt == asked and kept.full_prompt.metadata == kept.metadata
    assert sample(store, 20, "plain").metadata == {}
    assert [prompt.metadata for prompt in store.prompts()] == [kept.metadata, {}]
    day = Prompt("a day", {"made": date(2026, 12, 1)})
    with pytest.raises(UserError, match=r"cannot keep the column 'made' .*write it as text"):
        sample(store, 30, day)


def test_texts_are_kept_to_the_letter(store):
    for number, prompt in enumerate(
        ["'; DROP TABLE votes; --", "<script>", "Ωμέγα 🦊 \r\n\t", "x" * 100_000, ""]
    ):
        assert sample(store, number, prompt).prompt == prompt
    for wrong in ("a\0b", "\ud83d"):
        with pytest.raises(UserError, match=r"NUL character|half a character"):
            sample(store, 1, wrong)
    with pytest.raises(UserError, match="a key has 1 to 300 characters"):
        store.add_sample(prompt="a", picture=store.add_picture(picture(1)), key="")


def test_a_pair_is_two_samples_of_one_prompt_and_once_for_each_source(store):
    a, b, dog = sample(store, 10), sample(store, 20), sample(store, 10, "a dog")
    pair = store.add_pair(a.id, b.id, gold="second")
    assert (pair.prompt, pair.first, pair.second, pair.gold) == ("a cat", a.id, b.id, "second")
    assert pair.label is None and store.pair(pair.id) == pair
    assert store.add_pair(b.id, a.id) == pair, "either way around"
    edited = store.add_pair(b.id, a.id, source="rpo-edit")
    assert edited.label == 1 and store.pairs() == [pair, edited]
    assert store.pairs(source="rpo-edit") == [edited] and store.pairs(prompt="a dog") == []
    with pytest.raises(UserError, match="show one picture"):
        store.add_pair(a.id, a.id)
    with pytest.raises(UserError, match="have two prompts"):
        store.add_pair(a.id, dog.id)
    with pytest.raises(UserError, match="a probability"):
        store.add_pair(a.id, b.id, source="import", label=1.5)
    with pytest.raises(KeyError):
        store.add_pair(a.id, 99)


# ------------------------------------------------------------------------------------ votes


def test_a_vote_is_stored_once_by_its_key(voting):
    assert vote(voting, "k", voting.ada, "tie", left="second", seconds=2.5)
    assert not vote(voting, "k", voting.ada, "first")
    (stored,) = voting.store.votes()
    assert (stored.choice, stored.left, stored.seconds, stored.key) == ("tie", "second", 2.5, "k")
    assert not stored.repeat and stored.created > 1.6e9
    assert vote(voting, "other", voting.ben) and len(voting.store.votes(rater=voting.ben)) == 1
    assert len(voting.store.votes(pair=voting.pair)) == 2 and not voting.store.votes(pair=99)


def test_a_rater_votes_once_on_a_pair_unless_as_a_repeat(voting):
    assert vote(voting, "k", voting.ada)
    with pytest.raises(UserError, match="'Ada' has voted on pair 1 already: undo"):
        vote(voting, "k2", voting.ada)
    assert vote(voting, "k2", voting.ada, repeat=True)
    with pytest.raises(UserError, match="the key 'k' was used for the vote of rater 1 on pair 1"):
        vote(voting, "k", voting.ben)
    assert len(voting.store.votes()) == 2


def test_undone_votes_do_not_count_and_their_keys_stay_used(voting):
    vote(voting, "k", voting.ada)
    assert not voting.store.undo_vote("k", voting.ben), "another rater's"
    assert voting.store.undo_vote("k", voting.ada) and not voting.store.undo_vote("k", voting.ada)
    assert voting.store.votes() == [] and not vote(voting, "k", voting.ada)
    assert vote(voting, "k2", voting.ada), "undone, it may be given again"
    assert (voting.store.counts()["votes"], voting.store.counts()["undone"]) == (1, 1)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"choice": "left"}, UserError),
        ({"left": "both"}, UserError),
        ({"seconds": float("nan")}, UserError),
        ({"seconds": -1}, UserError),
        ({"pair": 99}, KeyError),
        ({"rater": 99}, KeyError),
    ],
)
def test_votes_that_say_nothing_are_refused(voting, wrong, error):
    with pytest.raises(error):
        vote(voting, "k", **({"rater": voting.ada} | wrong))
    assert not voting.store.votes()


def test_a_rater_is_known_by_a_token_that_the_store_does_not_have(store):
    rater, token = store.add_rater("Ada")
    assert store.rater_by_token(token) == rater == store.rater(rater.id)
    assert store.rater_by_token("") is None and store.rater_by_token(rater.token_hash) is None
    other, second = store.add_rater("Ada")
    assert other.id != rater.id and second != token and store.raters() == [rater, other]
    with pytest.raises(UserError, match="needs a name"):
        store.add_rater(" ")


def test_rankings_likes_and_reasons(voting):
    store, ids = voting.store, [s.id for s in voting.store.samples()]
    third = sample(store, 30)
    say = {"rater": voting.ada, "seconds": 3}
    order = [[third.id], ids]
    for new in (True, False):
        assert store.add_ranking(key="r", prompt="a cat", order=order, **say) == new
        assert store.add_like(key="l", sample=third.id, liked=True, **say) == new
        box = (0, 0.25, 0.5, 1)
        reason = {"rater": voting.ada, "sample": third.id, "tags": ["hands"], "text": "six"}
        assert store.add_reason(key="w", box=box, **reason) == new
    assert store.rankings(prompt="a cat")[0].order == order
    assert store.likes(sample=third.id)[0].liked is True
    assert store.reasons()[0].tags == ["hands"] and tuple(store.reasons()[0].box) == box
    assert store.add_reason(key="no box", **reason) and store.reasons()[1].box is None
    for wrong in ([[1]], [[1], [1]], [[1, 2], []]):
        with pytest.raises(UserError, match="two samples or more, each once"):
            store.add_ranking(key="x", prompt="a cat", order=wrong, **say)
    with pytest.raises(UserError, match="not of the prompt"):
        store.add_ranking(key="x", prompt="a dog", order=order, **say)
    with pytest.raises(UserError, match="the box"):
        store.add_reason(key="x", box=(0.5, 0, 0.5, 1), **reason)


def test_critiques_and_edits(store):
    first, edited = sample(store, 10), sample(store, 20, source="edit")
    critique = store.add_critique(
        key="c", sample=first.id, critic="vlm", payload={"issues": [{"text": "é"}]}, raw="{…}"
    )
    edit = {"sample": first.id, "critique": critique, "editor": "pix", "instructions": ["go"]}
    number = store.add_edit(key="e", seed=7, edited=edited.id, verdict={"gain": 0.5}, **edit)
    assert store.add_edit(key="e", seed=8, edited=None, verdict={}, **edit) == number
    (stored,) = store.edits(sample=first.id)
    assert (stored.id, stored.seed, stored.edited, stored.verdict) == (
        *(number, 7, edited.id),
        {"gain": 0.5},
    )
    assert store.critiques()[0].payload == {"issues": [{"text": "é"}]}
    assert store.critiques(sample=edited.id) == []


# ----------------------------------------------------------------------------- transactions


def test_writes_together_are_all_there_or_none(voting):
    def twice() -> None:
        with voting.store.together():
            vote(voting, "k", voting.ada)
            sample(voting.store, 70)
            vote(voting, "k2", voting.ada)

    with pytest.raises(UserError):
        twice()
    assert not voting.store.votes() and len(voting.store.samples()) == 2
    with voting.store.together():
        vote(voting, "k", voting.ada)
        with pytest.raises(UserError):
            vote(voting, "k2", voting.ada)
        assert len(voting.store.votes()) == 1, "what was written is read"
        vote(voting, "k3", voting.ben)
    assert len(voting.store.votes()) == 2, "what was refused undoes nothing else"


def test_threads_that_say_the_same_say_it_once(voting):
    stored = []

    def votes() -> None:
        for number in range(10):
            stored.append(vote(voting, f"k{number}", voting.ada, repeat=True))

    threads = [threading.Thread(target=votes) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stored) == 60 and sum(stored) == 10 == len(voting.store.votes())


def test_another_process_sees_it(voting, new):
    vote(voting, "k", voting.ada)
    assert new().votes() == voting.store.votes() and is_store(new().where)
