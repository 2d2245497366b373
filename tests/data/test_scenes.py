"""The shipped world: nothing held out leaks into training, and fulfilment means what it says."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch

from scoretune import recipes
from scoretune.core.errors import UserError
from scoretune.data.scenes import draw, world
from scoretune.data.scenes.world import CELLS, EMPTY, TASKS, Ask, Item, Layout
from scoretune.evaluate.scores import verdict_metrics
from scoretune.rewards.reader import (
    CanvasJudge,
    CellReader,
    Reading,
    fulfilment,
    is_fulfilled,
    layouts,
    load,
    log_beliefs,
)
from scoretune.training import overrides
from scoretune.training.build import held_out_prompts
from scoretune.training.run import ready

MEGABYTES = 8
LAID_OUT = 12  # layouts drawn for each training prompt


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Ask, Layout]]:
    rng = np.random.default_rng(0)
    asks = world.training_asks()
    return [(ask, world.lay_out(ask, rng)) for ask in asks for _ in range(LAID_OUT)]


def pairs_of(digits) -> set[tuple[int, int]]:
    """The pairs of different digits that meet in a layout."""
    there = sorted({d for d in digits if d != EMPTY})
    return set(itertools.combinations(there, 2))


# ---------------------------------------------------------------------------- held out


def test_every_task_holds_something_out_and_keeps_something():
    for asks in (world.training_asks(), world.held_out_asks()):
        assert {ask.task for ask in asks} == set(TASKS)
    trained, held = world.training_asks(), world.held_out_asks()
    assert not set(trained) & set(held)
    assert set(trained) | set(held) <= set(world.every_ask())
    assert len(held) == len(set(held))


def test_no_training_prompt_names_what_is_held_out():
    for ask in world.training_asks():
        digits = [item.digit for item in ask.items]
        colours = {(item.colour, item.digit) for item in ask.items}
        assert not colours & world.HELD_OUT_COLOURS
        assert not pairs_of(digits) & world.HELD_OUT_PAIRS
        if ask.task == "counting":
            assert (len(digits), digits[0]) not in world.HELD_OUT_COUNTS
        if ask.task == "single":
            assert digits[0] not in world.HELD_OUT_SINGLES


def test_no_layout_drawn_for_training_shows_what_is_held_out(drawn):
    for ask, layout in drawn:
        shown = {(c, d) for d, c in zip(layout.digits, layout.colours, strict=True) if d != EMPTY}
        assert not shown & world.HELD_OUT_COLOURS, (ask, layout)
        assert not pairs_of(layout.digits) & world.HELD_OUT_PAIRS, (ask, layout)
        for digit in set(layout.digits) - {EMPTY}:
            count = layout.digits.count(digit)
            assert (count, digit) not in world.HELD_OUT_COUNTS, (ask, layout)


def test_held_out_prompts_are_about_what_is_held_out():
    for ask in world.held_out_asks():
        digits = [item.digit for item in ask.items]
        colours = {(item.colour, item.digit) for item in ask.items}
        about = {
            "single": digits[0] in world.HELD_OUT_SINGLES,
            "colour": bool(colours & world.HELD_OUT_COLOURS),
            "counting": (len(digits), digits[0]) in world.HELD_OUT_COUNTS,
        }
        assert about.get(ask.task, bool(pairs_of(digits) & world.HELD_OUT_PAIRS)), ask


def test_training_still_shows_every_digit_in_every_other_colour(drawn):
    """The combinations are held out, not the digits or the colours."""
    shown = {
        (c, d)
        for _, layout in drawn
        for d, c in zip(layout.digits, layout.colours, strict=True)
        if d != EMPTY
    }
    assert shown == set(itertools.product(range(4), range(10))) - world.HELD_OUT_COLOURS
    pairs = [ask.items for ask in world.training_asks() if len(ask.items) == 2]
    asked = {item.digit for items in pairs for item in items}
    assert asked == set(range(10))


# ---------------------------------------------------------------------------- placements


def test_placements_golden():
    def cells(task, items, relation=None):
        return Ask(task, tuple(Item(d) for d in items), relation).placements()

    assert cells("single", [7]) == [(0,), (1,), (2,), (3,)]
    assert len(cells("two", [1, 2])) == 12
    assert cells("counting", [5, 5]) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert len(cells("counting", [5, 5, 5])) == 4
    lefts = {(0, 1), (0, 3), (2, 1), (2, 3)}  # cells: 0 1 over 2 3
    aboves = {(0, 2), (0, 3), (1, 2), (1, 3)}
    assert set(cells("position", [1, 2], 0)) == lefts
    assert set(cells("position", [1, 2], 1)) == {(b, a) for a, b in lefts}
    assert set(cells("position", [1, 2], 2)) == aboves
    assert set(cells("position", [1, 2], 3)) == {(b, a) for a, b in aboves}


def test_what_fulfils_golden():
    red_seven_and_blue_two = Layout((7, EMPTY, EMPTY, 2), (0, 3, 3, 2))
    by_text = world.asks_by_text()
    for text, verdict in {
        "a seven and a two": True,
        "a two and a seven": True,
        "a seven left of a two": True,
        "a seven above a two": True,
        "a seven right of a two": False,
        "a two below a seven": True,
        "a red seven and a blue two": True,
        "a blue two and a red seven": True,
        "a blue seven and a red two": False,
        "a seven": False,  # there is something else, too
        "two sevens": False,
    }.items():
        assert red_seven_and_blue_two.fulfils(by_text[text]) is verdict, text
    three_fives = Layout((5, 5, EMPTY, 5), (0, 1, 2, 3))
    assert three_fives.fulfils(by_text["three fives"])
    assert not three_fives.fulfils(by_text["two fives"])
    assert not Layout((EMPTY,) * 4, (0,) * 4).fulfils(by_text["a five"])


def test_what_is_laid_out_fulfils(drawn):
    assert all(layout.fulfils(ask) for ask, layout in drawn)


def test_held_out_layouts_fulfil_too():
    rng = np.random.default_rng(1)
    assert all(world.lay_out(ask, rng).fulfils(ask) for ask in world.held_out_asks())


def test_mirrored_relations():
    """Left of and right of, above and below are each other's converses, for any layout."""
    rng = np.random.default_rng(2)
    for _ in range(200):
        a, b = (int(d) for d in rng.choice(10, 2, replace=False))
        one, other = int(rng.integers(4)), None
        other = (1, 0, 3, 2)[one]
        layout = world.lay_out(Ask("two", (Item(a), Item(b))), rng)
        assert layout.fulfils(Ask("position", (Item(a), Item(b)), one)) == layout.fulfils(
            Ask("position", (Item(b), Item(a)), other)
        )


# ---------------------------------------------------------------------------- texts


def test_texts_are_unique_and_mean_themselves():
    asks = world.every_ask()
    by_text = world.asks_by_text()
    assert len(by_text) == len(asks)
    assert all(by_text[ask.text] == ask for ask in asks)


@pytest.mark.parametrize(
    "text",
    [
        "an eight",
        "a red eight",
        "two sixes",
        "three zeros",
        "a one and an eight",
        "an eight below a three",
        "a green zero and a yellow nine",
    ],
)
def test_english(text):
    assert text in world.asks_by_text()


def test_balanced_prompts():
    asks = world.balanced(world.held_out_asks(), 7, seed=0)
    assert [ask.task for ask in asks] == [task for task in TASKS for _ in range(7)]
    assert asks == world.balanced(world.held_out_asks(), 7, seed=0)
    assert asks != world.balanced(world.held_out_asks(), 7, seed=1)


# ---------------------------------------------------------------------------- the assets


def test_the_tokenizer_knows_every_word():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(world.shipped() / "tokenizer")
    texts = [*world.asks_by_text(), ""]
    rows = tokenizer(texts).input_ids
    assert tokenizer.unk_token_id not in set(itertools.chain.from_iterable(rows))
    assert max(map(len, rows)) <= tokenizer.model_max_length
    assert len({tuple(row) for row in rows}) == len(texts)


@pytest.mark.parametrize("name", world.SHIPPED)
def test_the_assets_are_small(name):
    files = [path for path in world.shipped(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES * 2**20
    suffixes = {path.suffix for path in files}
    assert suffixes <= {".safetensors", ".json", ".md", ".txt"}, "no pickles among the assets"
    assert json.loads((world.shipped(name) / "training.json").read_text())["denoiser_steps"] > 0


@pytest.mark.parametrize("name", world.SHIPPED)
def test_every_shipped_model_is_measured_alike(name):
    """On held-out scenes, by the one reader and the one judge."""
    run = overrides.changed(
        recipes.named("ddpo"), [f"model.source={name}", "evaluation.per_task=2"]
    )
    asks = world.balanced(world.held_out_asks(), 2, seed=0)
    assert held_out_prompts(run).texts == tuple(ask.text for ask in asks)
    metrics = verdict_metrics(name)
    assert list(metrics) == ["reader", "judge"]
    assert metrics["judge"].network is load(world.shipped(), "judge")


def test_a_shipped_model_that_is_misspelt():
    run = overrides.changed(recipes.named("ddpo"), ["model.source=scenes-flo"])
    with pytest.raises(UserError, match="did you mean 'scenes-flow'"):
        ready(run)


@pytest.mark.parametrize(("name", "kind"), [("reader", CellReader), ("judge", CanvasJudge)])
def test_reader_and_judge_load_and_are_frozen(name, kind):
    network = load(world.shipped(), name)
    assert isinstance(network, kind)
    assert not any(p.requires_grad for p in network.parameters())
    with torch.no_grad():
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, CELLS, 15)
        one = network(torch.zeros(1, 3, 32, 32))
        both = network(torch.cat([torch.zeros(1, 3, 32, 32), torch.ones(1, 3, 32, 32)]))
    torch.testing.assert_close(both[:1], one, rtol=1e-4, atol=1e-4)  # no statistics of the batch


def test_pictures_are_drawn_where_the_layout_says():
    rng = np.random.default_rng(0)
    layout = Layout((EMPTY, 8, EMPTY, EMPTY), (0, 1, 0, 0))  # a green eight, top right
    (picture,) = draw.draw([layout], "pictures", rng)
    assert picture.shape == (3, 32, 32)
    assert picture.min() >= 0
    assert picture.max() <= 1
    bright = np.argwhere(picture[1] > 0.5)
    assert len(bright) > 10
    assert (bright[:, 0] < 16).all()
    assert (bright[:, 1] >= 16).all()
    empty = np.tile(draw.BACKGROUND[:, None, None], (1, 16, 16))
    np.testing.assert_array_equal(picture[:, 16:, :16], empty)


def test_nobody_shares_handwriting():
    """The pictures, the reader and the judge each see a third of it."""
    parts = [draw.handwriting(name) for name in draw.PARTS]
    for digit in range(10):
        seen = [{hand.tobytes() for hand in part[digit]} for part in parts]
        assert all(len(hands) > 40 for hands in seen)
        for one, other in itertools.combinations(seen, 2):
            assert not one & other


# ---------------------------------------------------------------------------- fulfilment

EXAMPLES = [
    "a seven",
    "a red seven",
    "a three and an eight",
    "two fives",
    "three fives",
    "a one left of a nine",
    "a one right of a nine",
    "a one above a nine",
    "a one below a nine",
    "a red one and a blue four",
]


def by_enumeration(logits: torch.Tensor, ask: Ask) -> float:
    """The probability that a layout drawn from independent cells fulfils the prompt.

    Digits that nobody asks for are summed in one class, `other`; a layout that shows one of them
    is asked about like any other.
    """
    digit_logs, colour_logs = log_beliefs(logits.double())
    digits, colours = digit_logs.exp(), colour_logs.exp()
    named = sorted({item.digit for item in ask.items})
    other = next(d for d in range(10) if d not in named)
    kinds = [*named, EMPTY, other]
    chances = digits[:, kinds]
    chances[:, -1] = 1 - chances[:, :-1].sum(1)
    chances, colours = chances.tolist(), colours.tolist()
    total = 0.0
    for chosen in itertools.product(range(len(kinds)), repeat=CELLS):
        shown = tuple(kinds[k] for k in chosen)
        chance = np.prod([chances[cell][k] for cell, k in enumerate(chosen)])
        if all(item.colour is None for item in ask.items):
            total += chance * Layout(shown, (0,) * CELLS).fulfils(ask)
            continue
        for inks in itertools.product(range(4), repeat=CELLS):
            if Layout(shown, inks).fulfils(ask):
                total += chance * np.prod([colours[cell][c] for cell, c in enumerate(inks)])
    return float(total)


@pytest.mark.parametrize("text", EXAMPLES)
def test_fulfilment_is_the_sum_over_layouts(text):
    ask = world.asks_by_text()[text]
    logits = 2 * torch.randn(2, CELLS, 15, generator=torch.Generator().manual_seed(len(text)))
    found = fulfilment(logits, [ask, ask])
    expected = [by_enumeration(row, ask) for row in logits]
    assert found.tolist() == pytest.approx(expected, rel=1e-4)
    assert all(0 < value < 1 for value in found.tolist())


def test_the_examples_cover_every_task():
    assert {world.asks_by_text()[text].task for text in EXAMPLES} == set(TASKS)


def certain(layout: Layout, sure: float = 12.0) -> torch.Tensor:
    """Logits of a reader who sees this layout."""
    logits = torch.zeros(CELLS, 15)
    for cell in range(CELLS):
        logits[cell, layout.digits[cell]] = sure
        logits[cell, 11 + layout.colours[cell]] = sure
    return logits


def test_a_certain_reader_agrees_with_the_law(drawn):
    rng = np.random.default_rng(3)
    some = [drawn[i] for i in rng.integers(len(drawn), size=300)]
    others = [some[i][0] for i in rng.permutation(300)]
    logits = torch.stack([certain(layout) for _, layout in some])
    for asks in ([ask for ask, _ in some], others):
        truth = [layout.fulfils(ask) for ask, (_, layout) in zip(asks, some, strict=True)]
        assert is_fulfilled(logits, asks).bool().tolist() == truth
        assert (fulfilment(logits, asks) > 0.5).tolist() == truth
    assert layouts(logits)[0].digits == some[0][1].digits


def test_fulfilment_has_a_gradient():
    logits = torch.randn(1, CELLS, 15, requires_grad=True)
    fulfilment(logits, [world.asks_by_text()["a red seven"]]).sum().backward()
    assert float(logits.grad.abs().sum()) > 0


def test_a_reading_is_asked_by_text():
    class Seen(torch.nn.Module):
        def forward(self, pictures):
            return torch.stack([certain(Layout((7, EMPTY, EMPTY, EMPTY), (0,) * 4))] * 2)

    images = torch.rand(2, 3, 32, 32)
    prompts = ["a red seven", "a blue seven"]
    assert Reading(Seen(), soft=False)(images, prompts).tolist() == [1.0, 0.0]
    soft = Reading(Seen())(images, prompts)
    assert soft[0] > 0.9
    assert soft[1] < 0.1
