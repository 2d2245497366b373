"""What a store says as a table of judgements: what `train dpo data=STORE` learns from."""

from __future__ import annotations

import time

import pytest

from judgement_tables import picture
from scoretune.core.errors import UserError
from scoretune.data.pairs import read_likes, read_pairs
from scoretune.data.store import is_store, open_store, pinned, split_moment


@pytest.fixture
def three(store):
    """The ids of three samples of levels 10, 20, 30, and of three raters."""
    samples = [
        store.add_sample(prompt="a cat", picture=store.add_picture(picture(k)), key=f"{k}").id
        for k in (10, 20, 30)
    ]
    return store, samples, [store.add_rater(name)[0].id for name in "abc"]


def vote(store, pair: int, rater: int, choice: str, **more) -> str:
    key = f"{pair} {rater} {choice}"
    assert store.add_vote(key=key, pair=pair, rater=rater, choice=choice, seconds=1, **more)
    return key


def test_votes_are_soft_labels(three):
    store, (a, b, c), (x, y, z) = three
    first, second = store.add_pair(a, b).id, store.add_pair(c, b).id
    for pair, rater, choice in [
        *((first, x, "first"), (first, y, "first"), (first, z, "tie")),
        *((second, x, "second"), (second, y, "skip"), (second, z, "both_bad")),
    ]:
        vote(store, pair, rater, choice, left="second")
    table = read_pairs(store.where)
    assert table.labels.tolist() == pytest.approx([2.5 / 3, 0.25])
    assert table.votes.tolist() == [3, 2] and table.captions == ("a cat", "a cat")
    one, two = table.load([1, 0])
    assert [round(255 * float(side.mean())) for side in (one[0], two[0])] == [30, 20]
    apart = read_pairs(store.where, raters="separate", ties="drop")
    assert apart.labels.tolist() == [1, 1, 0]
    assert read_likes(store.where).liked.tolist() == pytest.approx([2.5 / 3, 0.5 / 3, 0.25, 0.75])


def test_undone_votes_do_not_count(three):
    store, (a, b, _), (x, y, _) = three
    pair = store.add_pair(a, b).id
    key = vote(store, pair, x, "first")
    vote(store, pair, y, "second")
    store.undo_vote(key, x)
    assert read_pairs(store.where).labels.tolist() == [0]


def test_edited_and_scored_pairs_have_their_own_label(three):
    store, (a, b, c), (x, *_) = three
    edited = store.add_pair(b, a, source="rpo-edit").id
    vote(store, edited, x, "second")
    store.add_pair(a, c, source="reward", label=0.75)
    store.add_pair(b, c, gold="first")
    assert read_pairs(store.where).labels.tolist() == [1, 0.75], "gold without a vote is no label"


def test_rankings_are_judgements_of_every_two(three):
    store, (a, b, c), (x, y, _) = three
    vote(store, store.add_pair(b, a).id, y, "first")
    order = [[a], [b, c]]
    store.add_ranking(key="r", rater=x, prompt="a cat", order=order, seconds=1)
    table = read_pairs(store.where)
    assert table.labels.tolist() == [0.5, 1, 0.5] and table.votes.tolist() == [2, 1, 1]


def test_likes_come_first_where_likes_are_wanted(three):
    store, (a, b, _), (x, y, _) = three
    for rater, liked in ((x, True), (y, False)):
        store.add_like(key=f"{rater}", rater=rater, sample=a, liked=liked, seconds=1)
    store.add_like(key="b", rater=x, sample=b, liked=True, seconds=1)
    likes = read_likes(store.where)
    assert likes.liked.tolist() == [0.5, 1] and likes.votes.tolist() == [2, 1]


def test_a_store_as_it_was_at_a_moment(three):
    store, (a, b, c), (x, y, _) = three
    pair = store.add_pair(a, b).id
    key = vote(store, pair, x, "first")
    then = pinned(store.where)
    time.sleep(0.002)
    vote(store, pair, y, "second")
    store.undo_vote(key, x)
    store.add_pair(a, c, source="reward")
    store.add_ranking(key="r", rater=y, prompt="a cat", order=[[c], [b]], seconds=1)
    assert read_pairs(then).labels.tolist() == [1]
    assert read_pairs(store.where).labels.tolist() == [1, 0, 1]
    assert is_store(then) and split_moment(then)[0] == store.where and pinned(then) == then
    assert pinned(store.where, then) == then and pinned("a folder", then) == "a folder"
    assert split_moment(pinned(store.where, "another@1796021799.942015"))[1] > 1.7e9


def test_a_store_without_judgements_or_pictures_says_so(three):
    store, (a, b, _), (x, *_) = three
    with pytest.raises(UserError, match="has no judged pair yet: vote on some with scoretune st"):
        read_pairs(store.where)
    vote(store, store.add_pair(a, b).id, x, "first")
    store.picture(store.sample(b).picture).unlink()
    with pytest.raises(UserError, match="vote 1: there is no picture image_1"):
        read_pairs(store.where)


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(UserError, match="is no store, it is not there: scoretune feedback"):
        open_store(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"is no store, it has no store\.db"):
        open_store(str(tmp_path))
    (tmp_path / "store.db").write_text("no database at all, whatever its name says" * 99)
    with pytest.raises(UserError, match=r"is none: its store\.db is no database"):
        open_store(str(tmp_path))
