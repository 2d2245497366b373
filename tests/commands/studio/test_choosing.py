"""Which pair comes next: what the votes, or a reward, leave open; never the same twice."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor

from scoretune.commands.studio import ballots, choosing
from scoretune.commands.studio.ballots import Ballots
from scoretune.commands.studio.choosing import Choosing
from scoretune.commands.studio.keys import Keys
from scoretune.commands.studio.verb import Tools
from scoretune.core.errors import UserError
from scoretune.data.store.store import Store
from studios import Client, ballot_of, filled, served


def looked(choice: Choosing) -> list[int]:
    """The order as of now."""
    choice.look()
    return list(choice.order())


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Four prompts with three pictures each, paired each with each; the first pair is gold."""
    return filled(tmp_path)


def voted(store: Store, pair: int, choice: str, count: int = 1) -> None:
    for _ in range(count):
        rater = store.add_rater("r")[0].id
        store.add_vote(key=f"{rater}", pair=pair, rater=rater, choice=choice, seconds=1.0)


def test_pairs_that_the_votes_leave_open_come_first(store: Store):
    choice = Choosing(store, choosing.VOTES)
    pairs = [pair for pair in store.pairs() if pair.gold is None]
    assert sorted(looked(choice)) == [pair.id for pair in pairs]  # all of them, without a vote
    settled = [pair for pair in pairs if pair.prompt == pairs[-1].prompt]
    for pair in settled:
        voted(store, pair.id, "first", 12)
    order = looked(choice)
    assert not set(order[:3]) & {pair.id for pair in settled}  # one of each other prompt
    assert sorted(order) == [pair.id for pair in pairs]
    voted(store, pairs[3].id, "skip", 3)
    assert looked(choice) == order  # a skip says nothing


def test_only_prompts_with_new_votes_are_fitted_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    fits: list[int] = []
    real = choosing.possible_scores
    monkeypatch.setattr(
        choosing, "possible_scores", lambda *args: fits.append(args[2]) or real(*args)
    )
    choice = Choosing(store, choosing.VOTES)
    looked(choice)
    voted(store, store.pairs()[4].id, "second")
    looked(choice)
    assert fits == [3] * 5


def test_a_vote_in_the_place_of_one_that_was_undone_counts(store: Store):
    choice, pairs = Choosing(store, choosing.VOTES), store.pairs()
    rater = store.add_rater("r")[0].id
    store.add_vote(key="a", pair=pairs[1].id, rater=rater, choice="first", seconds=1.0)
    before = looked(choice)
    store.undo_vote("a", rater)
    store.add_vote(key="b", pair=pairs[-1].id, rater=rater, choice="first", seconds=1.0)
    assert looked(choice) != before


def test_pairs_on_which_a_reward_is_unsure_come_first(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    unsure = store.pairs()[5]

    class Members:
        """Three that agree on all samples but two."""

        def __init__(self, folder: str) -> None:
            assert folder == "runs/reward"

        def members(self, images: Tensor, prompts: list[str]) -> Tensor:
            by_picture = {one.picture: one.id for one in store.samples()}
            number = by_picture[store.add_picture(images[0])]
            sides = {unsure.first: [9.0, -9.0, 9.0], unsure.second: [-9.0, 9.0, -9.0]}
            return torch.tensor(sides.get(number, [9.0 * (-1) ** number] * 3))[:, None]

    monkeypatch.setattr("scoretune.rewards.reward_model.RewardModel", Members)
    choice = Choosing(store, "runs/reward")
    assert looked(choice)[0] == unsure.id
    voted(store, unsure.id, "tie")
    order = looked(choice)
    assert order[-1] == unsure.id and len(order) == len(store.pairs()) - 1
    choice.choose("runs/none")
    assert looked(choice) == [] and choice.problem  # and chance goes on


def test_a_rater_is_asked_by_the_order_and_never_the_same_twice(store: Store):
    pairs = store.pairs()
    order = [pair.id for pair in reversed(pairs)]
    own = Ballots(store, Keys(b"k" * 32, "t" * 20), lambda: order, random.Random(0))
    rater, shown, repeats = store.add_rater("ann")[0].id, [], 0
    while (ballot := own.current(rater)) is not None:
        left = [number for number in order if number not in shown]
        if not ballot.repeat and ballot.pair.gold is None:
            assert ballot.pair.id in left[: ballots.SPREAD]
        repeats += ballot.repeat
        shown += [] if ballot.repeat else [ballot.pair.id]
        own.vote(rater, ballot.text, "left", 1.0)
    assert Counter(shown) == dict.fromkeys(order, 1)
    assert max(Counter(vote.pair for vote in store.votes()).values()) <= 2
    assert len(store.votes()) == len(pairs) + repeats


def test_the_way_is_an_option_and_a_switch(store: Store, tmp_path: Path):
    none = served(store, tmp_path, tools=Tools(choice="runs/none"))
    with pytest.raises(UserError, match="--next runs/none is none"), none:
        pass
    with served(store, tmp_path, tools=Tools(choice="votes")) as studio:
        owner = Client(studio.address).enter(studio.keys.token)
        assert '<option value="votes" selected>' in owner.get("/raters").text
        page = owner.post("/raters/next", how="random").text
        assert '<option value="random" selected>' in page and "at random" in page
        assert owner.post("/raters/next", how="/etc/passwd").status == 422
        rater = Client(studio.address).enter(store.add_rater("ann")[1])
        assert rater.post("/raters/next", how="votes").status == 403
        assert ballot_of(rater.get("/vote").text)
