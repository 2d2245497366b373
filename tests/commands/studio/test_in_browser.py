"""The studio in a real browser: the whole of voting, by keyboard, whatever happens in between."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import scoretune
from forked import forked_command
from scoretune.commands.studio.editing import key_of
from scoretune.commands.studio.jobs import log_of
from scoretune.commands.studio.live import name_of
from scoretune.commands.studio.rounds import first_round
from scoretune.commands.studio.studio import Studio
from scoretune.commands.studio.verb import Tools
from scoretune.data.scenes import world
from scoretune.data.store import open_store
from scoretune.data.store.store import Store
from scoretune.training.run_folder import load
from studios import filled, run_folder, served

KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "ArrowUp": "both_bad"}


@pytest.fixture
def studio(tmp_path: Path) -> Iterator[Studio]:
    with served(filled(tmp_path), tmp_path, tools=Tools("scenes")) as made:
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


def test_a_studio_that_is_killed_loses_no_vote(browser: Any, tmp_path: Path):
    filled(tmp_path).close()
    words = ("studio", tmp_path, "--no-browser", "--port", 0, "--runs", tmp_path / "runs")
    with forked_command(*words) as process:
        line = process.stdout.readline()
        assert line.startswith("studio at http"), line + process.stderr.read()
        url = line.split()[2]
        port = int(url.split(":")[2].partition("/")[0])
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
        with served(open_store(str(tmp_path)), tmp_path, port=port):  # started again
            page.wait_for_function(
                "() => document.querySelector('#count').textContent.startsWith('3')"
            )
            page.wait_for_selector("#problem", state="hidden")
            press(page, "ArrowDown")
    votes = open_store(str(tmp_path)).votes()
    assert [vote.choice == "tie" for vote in votes] == [False, False, False, True]
    assert len({vote.pair for vote in votes}) == 4


@pytest.mark.slow
def test_the_loop_closes(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Thirty votes by keyboard on pictures of the shipped model, training, and new pairs."""
    store = open_store(str(tmp_path), create=True)
    prompts = [ask.text for ask in world.training_asks()[:12:4]]
    policy = load(Path("scenes"))
    first_round(store, policy, prompts, model="scenes", per_prompt=5, note=lambda done, total: None)
    monkeypatch.setenv("PYTHONPATH", str(Path(scoretune.__file__).parents[1]))
    with served(store, tmp_path) as studio:
        page = entered(browser, studio)
        for _ in range(30):
            press(page, "ArrowLeft")
        page.goto(f"{studio.address}/rounds")
        page.fill("#updates", "1")
        page.fill("#settings", "evaluation.per_task=1 evaluation.steps=2 sizes.batch=4")
        page.click("text=Train on these votes")
        page.wait_for_selector("text=3 new pairs", timeout=300_000)
        page.click("text=Vote on the new pairs")
        page.wait_for_selector("#ballot")
        assert "of 33" in page.inner_text("#count")
    new = {one.model for one in open_store(str(tmp_path)).samples(round=1)}
    assert new == {"scenes", str(tmp_path / "runs" / "round-1")}


def test_a_port_in_use_is_one_line(studio: Studio, command: Any, tmp_path: Path):
    port = studio.address.rpartition(":")[2]
    outcome = command("studio", tmp_path, "--no-browser", "--port", port)
    assert outcome.code == 2 and "choose another --port" in outcome.err
    assert outcome.err.count("\n") == 1


def said(store: Store, rater: int) -> None:
    """Two reasons: one that the editor carried out, one that is still to be done."""
    key = {"rater": rater, "sample": 1}
    store.add_reason(key="r", **key, tags=["wrong colour"], text="make it red", box=(0, 0, 1, 1))
    store.add_reason(key="s", **key, text="sharpen it")
    picture = store.add_picture(torch.rand(3, 8, 8))
    prompt = store.sample(1).prompt
    after = store.add_sample(prompt=prompt, picture=picture, source="edit", parent=1, key="e").id
    edit = {"sample": 1, "critique": None, "editor": "scenes", "seed": 1, "edited": after}
    verdict = {"outcome": "kept", "reason": "better", "gain": 0.5, "distance": 0.1}
    reason = store.reasons()[0]
    store.add_edit(key=key_of(reason), **edit, instructions=["make it red"], verdict=verdict)
    store.add_pair(1, after)


def pages(studio: Studio) -> list[str]:
    """Every page of a studio on which something has happened."""
    run = run_folder(studio.runs / "dpo-1")
    log_of(studio.runs / "round-1").write_text("update 2/2: loss 0.7\n")
    ids = [studio.store.add_rater(f"rater {n}")[0].id for n in range(3)]
    for pair in studio.store.pairs()[:6]:
        for rater in ids:
            choice = "first" if rater < ids[-1] else "second"
            studio.store.add_vote(
                key=f"{pair.id}/{rater}", pair=pair.id, rater=rater, choice=choice, seconds=1.0
            )
    said(studio.store, ids[0])
    reward = studio.runs / "round-2"
    reward.mkdir()
    log_of(reward).write_text("a reward is trained\n")
    (reward / "reward.json").write_text("{}")
    held = {"accuracy": 0.75, "low": 0.7, "high": 0.8}
    (reward / "result.json").write_text(json.dumps({"held_out": held}))
    fixed = ["vote", "rank", "like", "why/1", "raters", "runs", "rounds", "why/99"]
    return [*fixed, f"runs/{name_of(run)}"]


def test_every_page_is_for_everybody(browser: Any, axe: str, studio: Studio):
    """axe-core finds no violation, nothing is cut off, no script fails: wide and narrow, light and
    dark."""
    paths = pages(studio)
    contrast = {"runOnly": ["color-contrast", "target-size", "scrollable-region-focusable"]}
    for width, scheme, rules in ((1440, "light", {}), (360, "dark", contrast)):
        page = entered(
            browser, studio, viewport={"width": width, "height": 800}, color_scheme=scheme
        )
        for path in paths:
            page.goto(f"{studio.address}/{path}")
            if path.startswith("runs/"):
                page.wait_for_selector("#alarms .bad")
                page.wait_for_selector(".plotted canvas")
            page.evaluate(axe)
            found = page.evaluate("async some => (await axe.run(some)).violations", rules)
            assert not [(path, v["id"], v["nodes"][0]["html"]) for v in found]
            assert page.evaluate("() => document.documentElement.scrollWidth") <= width, path
        assert page.inner_text("#alarms").endswith("<b>the judge fell</b>")
        assert not page.errors


def test_ranking_liking_and_saying_why(browser: Any, studio: Studio):
    page = entered(browser, studio)
    page.goto(f"{studio.address}/rank")
    for place, rank in enumerate((2, 1, 2)):
        page.locator("fieldset.side").nth(place).locator(f"input[value='{rank}']").check()
    shown = [field.get_attribute("name")[4:] for field in page.query_selector_all("[value='1']")]
    page.click("text=Store this ranking")
    page.wait_for_function("() => document.querySelector('#count').textContent.startsWith('1')")
    (ranking,) = studio.store.rankings()
    first, second, third = (int(number) for number in shown)
    assert ranking.order == [[second], [first, third]]
    page.goto(f"{studio.address}/like")
    for n, key in enumerate(("ArrowRight", "ArrowLeft"), 1):
        page.keyboard.press(key)
        page.wait_for_function(
            f"() => document.querySelector('#count').textContent.startsWith('{n}')"
        )
    assert [like.liked for like in studio.store.likes()] == [True, False]
    page.goto(f"{studio.address}/why/1")
    frame = page.locator("#canvas").bounding_box()
    left, top = frame["x"], frame["y"]
    page.mouse.move(left + frame["width"] / 2, top + frame["height"] / 2)
    page.mouse.down()
    page.mouse.move(left + 2, top + frame["height"] / 4)
    page.mouse.up()
    page.check("text=wrong colour")
    page.fill("#text", "make the seven red")
    page.click("button:text-is('Store')")
    page.wait_for_selector("text=Said so far")
    (reason,) = studio.store.reasons()
    assert (reason.tags, reason.text) == (["wrong colour"], "make the seven red")
    assert reason.box == pytest.approx((0.0, 0.25, 0.5, 0.5), abs=0.02)
    assert not page.errors


def test_an_edit_is_uploaded_and_paired(browser: Any, studio: Studio, tmp_path: Path):
    page = entered(browser, studio)
    page.goto(f"{studio.address}/why/1")
    page.set_input_files("#picture", png(tmp_path / "edit.png", 8, 8))
    page.click("text=Upload")
    page.wait_for_selector("text=is stored, and paired")
    edited = studio.store.samples(source="upload")
    assert [one.parent for one in edited] == [1]
    assert any({pair.first, pair.second} == {1, edited[0].id} for pair in studio.store.pairs())
    page.set_input_files("#picture", png(tmp_path / "large.png", 16, 8))
    page.click("text=Upload")
    page.wait_for_selector("text=as large as its picture: 8 × 8")


def test_an_invitation_lets_a_rater_in(browser: Any, studio: Studio):
    page = entered(browser, studio)
    page.goto(f"{studio.address}/raters")
    page.fill("#name", "zoë <i>")
    page.click("text=Make a link")
    link = page.wait_for_selector("#invited code").inner_text()
    theirs = browser.new_context().new_page()
    theirs.goto(link)
    theirs.wait_for_selector("#ballot")
    assert theirs.inner_text(".who") == "zoë <i>"
    for path in ("raters", "runs", "rounds"):
        assert theirs.goto(f"{studio.address}/{path}").status == 403
    page.click("text=Make a link")
    page.wait_for_selector("text=There is a rater of this name")


def png(path: Path, width: int, height: int) -> Path:
    """A picture with a left half that differs from the right."""
    from PIL import Image

    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (0, 0, width // 2, height))
    picture.save(path)
    return path
