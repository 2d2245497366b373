"""The studio in a real browser: the whole of voting, by keyboard, whatever happens in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import scoretune
from scoretune.commands.studio.studio import Studio
from scoretune.data.store import open_store
from studios import filled, served

KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "ArrowUp": "both_bad"}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with served(filled(tmp_path), tmp_path) as made:
        yield made


def entered(browser: Any, studio: Studio, token: str | None = None, **options: Any) -> Any:
    """A page of a new window in which somebody has come in."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(15_000)
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(f"{studio.address}/enter?token={token or studio.keys.token}")
    page.wait_for_selector("#ballot")
    return page


def ballot(page: Any) -> str:
    field = page.query_selector("input[name=ballot]")
    return "" if field is None else str(field.get_attribute("value"))


def press(page: Any, key: str) -> None:
    """Press a key and wait until the next ballot is there."""
    before = ballot(page)
    page.keyboard.press(key)
    page.wait_for_function(
        "old => (document.querySelector('input[name=ballot]') || {value: ''}).value !== old",
        arg=before,
    )


def test_every_pair_is_voted_on_by_keyboard(browser: Any, studio: Studio):
    page = entered(browser, studio)
    pairs, seen = {pair.id: pair for pair in studio.store.pairs()}, {}
    for n in range(len(pairs)):
        key = list(KEYS)[n % 4]
        sources = [
            image.get_attribute("src").rpartition("/")[2]
            for image in page.query_selector_all(".picture img")
        ]
        seen[ballot(page)] = (KEYS[key], sources, page.inner_text("h2.prompt"))
        press(page, key)
    assert "seen every pair" in page.inner_text("#ballot")
    votes = {vote.key: vote for vote in studio.store.votes()}
    assert votes.keys() == seen.keys()
    for key, (choice, sources, prompt) in seen.items():
        vote = votes[key]
        pair = pairs[vote.pair]
        sides = {side: studio.store.sample(getattr(pair, side)) for side in ("first", "second")}
        right = "second" if vote.left == "first" else "first"
        assert [sides[vote.left].picture, sides[right].picture] == sources
        assert prompt == pair.prompt
        assert vote.choice == {"left": vote.left, "right": right}.get(choice, choice)
        assert 0 < vote.seconds < 60
    assert {vote.left for vote in votes.values()} == {"first", "second"}
    assert len({vote.pair for vote in votes.values()}) == len(pairs)
    press(page, "u")
    assert len(studio.store.votes()) == len(pairs) - 1
    assert not page.errors


def test_skip_undo_and_zoom(browser: Any, studio: Studio):
    page = entered(browser, studio)
    first = ballot(page)
    press(page, "Space")
    assert studio.store.votes()[0].choice == "skip"
    press(page, "u")
    assert not studio.store.votes() and ballot(page).split(".")[0] == first.split(".")[0]
    assert ballot(page) != first
    page.keyboard.press("z")
    assert page.query_selector("#zoom[open]") is not None
    assert len(page.query_selector_all("#zoom img")) == 2
    page.keyboard.press("Escape")
    assert page.query_selector("#zoom[open]") is None
    page.click("[data-zoom]")
    page.keyboard.press("z")
    assert page.query_selector("#zoom[open]") is None
    page.click("button[value=right]")
    page.wait_for_function("() => document.querySelector('#count').textContent.startsWith('1 of')")
    assert len(studio.store.votes()) == 1


def test_a_reload_in_the_middle_shows_the_same_pair(browser: Any, studio: Studio):
    page = entered(browser, studio)
    press(page, "ArrowLeft")
    before, count = ballot(page), page.inner_text("#count")
    page.reload()
    assert ballot(page) == before and page.inner_text("#count").split(",")[0] in count
    press(page, "ArrowRight")
    assert len(studio.store.votes()) == 2


def test_two_raters_at_once_and_one_twice(browser: Any, studio: Studio):
    raters = [studio.store.add_rater(name) for name in ("ann", "bob")]
    pages = [entered(browser, studio, token) for _, token in raters]
    pages.append(entered(browser, studio, raters[0][1]))  # ann opens a second window
    assert ballot(pages[2]) == ballot(pages[0]) != ballot(pages[1])
    for page in pages:
        press(page, "ArrowLeft")
    assert "counts once" in pages[2].inner_text(".note")
    for _ in range(3):
        for page in pages[:2]:
            press(page, "ArrowRight")
    counts = [len(studio.store.votes(rater=rater.id)) for rater, _ in raters]
    assert counts == [4, 4]
    assert pages[0].inner_text(".who") == "ann"
    assert pages[0].query_selector("a[href='/runs']") is None


def test_texts_do_not_run(browser: Any, tmp_path: Path):
    evil = "<script>document.title='stolen'</script><img src=x onerror=\"document.title='stolen'\">"
    with served(filled(tmp_path, prompts=(evil,)), tmp_path) as studio:
        page = entered(browser, studio, studio.store.add_rater(evil)[1])
        press(page, "ArrowLeft")
        assert page.inner_text("h2.prompt") == evil and page.inner_text(".who") == evil
        assert page.title() == "Vote · scoretune studio"
        refused = page.evaluate(
            """() => {
                const script = document.createElement("script");
                script.textContent = "document.title = 'stolen'";
                document.body.append(script);
                return document.title;
            }"""
        )
        assert refused == "Vote · scoretune studio"  # the policy, should a text ever get that far


def start(folder: Path, port: int) -> tuple[subprocess.Popen[str], str]:
    """`scoretune studio` on a store, and the URL that it prints."""
    source = str(Path(scoretune.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "scoretune", "studio", str(folder), "--no-browser"]
        + ["--port", str(port), "--runs", str(folder / "runs")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": source},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("studio at http"), line
    return process, line.split()[2]


def test_a_studio_that_is_killed_loses_no_vote(browser: Any, tmp_path: Path):
    filled(tmp_path)
    process, url = start(tmp_path, 0)
    port = int(url.split(":")[2].partition("/")[0])
    try:
        page = browser.new_context().new_page()
        page.goto(url)
        page.wait_for_selector("#ballot")
        for _ in range(2):
            press(page, "ArrowLeft")
        process.send_signal(signal.SIGKILL)
        process.wait()
        page.keyboard.press("ArrowRight")
        page.wait_for_selector("#problem:not([hidden])")
        assert "not stored yet" in page.inner_text("#problem")
        process, _ = start(tmp_path, port)
        page.wait_for_function("() => document.querySelector('#count').textContent.startsWith('3')")
        assert not page.is_visible("#problem")
        press(page, "ArrowDown")
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20)
    votes = open_store(str(tmp_path)).votes()
    assert [vote.choice == "tie" for vote in votes] == [False, False, False, True]
    assert len({vote.pair for vote in votes}) == 4


def test_a_port_in_use_is_one_line(studio: Studio, command: Any, tmp_path: Path):
    port = studio.address.rpartition(":")[2]
    outcome = command("studio", tmp_path, "--no-browser", "--port", port)
    assert outcome.code == 2 and "choose another --port" in outcome.err
    assert outcome.err.count("\n") == 1


PAGES = ("vote",)


@pytest.mark.parametrize("path", PAGES)
def test_pages_are_for_everybody(browser: Any, axe: str, studio: Studio, path: str):
    for width, scheme in ((1440, "light"), (360, "dark")):
        page = entered(
            browser, studio, viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        page.goto(f"{studio.address}/{path}")
        page.evaluate(axe)
        found = page.evaluate("async () => (await axe.run()).violations")
        assert not [(v["id"], [n["html"] for n in v["nodes"]][:3]) for v in found]
        wide = page.evaluate("() => document.documentElement.scrollWidth")
        assert wide <= width
        assert not page.errors
