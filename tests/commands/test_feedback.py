"""`scoretune feedback`: what goes into a store, what comes out, and training on it."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

import judged
from judgement_tables import lines, parquet, picture
from scoretune.commands.feedback import collect as collecting
from scoretune.data.pairs import read_likes, read_pairs
from scoretune.data.store import open_store, pinned

PROMPTS = ["a green three", "a red seven", "a two to the left of a blue four"]


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return f"prompts={tmp_path / 'prompts.txt'}"


def levels(table) -> list[int]:
    first, _ = table.load(range(len(table)))
    return [round(255 * float(image.mean())) for image in first]


# ---------------------------------------------------------------------------------- collect


def drawn(store: str) -> dict[str, str]:
    """The sha256 of every sample's picture, by its key."""
    opened = open_store(store)
    return {sample.key: sample.picture for sample in opened.samples()}


def test_collect_draws_what_is_lacking(command, prompts, tmp_path):
    store = tmp_path / "store"
    how = ("scenes", prompts, "--store", store, "--steps", 2, "--json")
    done = command("feedback", "collect", *how, "--per-prompt", 1)
    assert json.loads(done.out)["drawn"] == 3 and json.loads(done.out)["there"] == 0
    before = drawn(str(store))
    more = json.loads(command("feedback", "collect", *how, "--per-prompt", 2).out)
    assert (more["drawn"], more["there"]) == (3, 3)
    after = drawn(str(store))
    assert before.items() <= after.items() and len(set(after.values())) == 6
    sample = open_store(str(store)).samples()[0]
    assert (sample.prompt, sample.model, sample.source) == (PROMPTS[0], "scenes", "model")
    assert sample.settings["steps"] == 2 and sample.settings["weights"] == more["weights"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("scenes",), "say of what: prompts=FILE"),
        (("scenes", "prompt=x"), "unknown setting of collect 'prompt'"),
        (("nowhere", "prompts=scenes"), "nowhere"),
    ],
)
def test_collect_refuses(command, tmp_path, words, message):
    done = command("feedback", "collect", *words, "--store", tmp_path / "s")
    assert done.code == 2 and message in done.err and not (tmp_path / "s").exists()


def test_a_killed_collection_goes_on_to_the_same_pictures(tmp_path):
    """Killed with -9 as soon as its first samples are there."""
    artist = collecting.artist(Path("scenes"), collecting.Drawing(per_prompt=3, steps=2, batch=2))
    killed, whole = str(tmp_path / "killed"), str(tmp_path / "whole")

    def collect(where: str) -> dict:
        return collecting.collect(open_store(where, create=True), artist, PROMPTS, lambda *_: None)

    open_store(killed, create=True).close()
    process = multiprocessing.get_context("fork").Process(target=collect, args=(killed,))
    process.start()
    while process.is_alive() and not drawn(killed):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    there = drawn(killed)
    assert 0 < len(there) < 9
    rest = collect(killed)
    assert rest["there"] == len(there) and rest["drawn"] == 9 - len(there)
    collect(whole)
    assert drawn(killed) == drawn(whole)


# -------------------------------------------------------------------------- import and export


@pytest.fixture
def voted(tmp_path: Path) -> str:
    """A folder of judged pairs: raters who agree, who do not, a tie, and no rater's name."""
    for level in range(10, 70, 10):
        (tmp_path / f"{level}.png").write_bytes(picture(level))
    sides = [(10, 20), (20, 10), (30, 40), (30, 40), (50, 60)]
    labels, raters = [1, 0, 0.5, 0, 1], ["x", "y", "x", "", ""]
    rows = [
        {"prompt": "a cat", "image_0": f"{a}.png", "image_1": f"{b}.png"}
        | {"label_0": label, "rater": rater}
        for (a, b), label, rater in zip(sides, labels, raters, strict=True)
    ]
    lines(tmp_path / "pairs.jsonl", rows)
    return str(tmp_path)


def test_import_keeps_every_vote_and_done_again_changes_nothing(command, voted, tmp_path):
    store = str(tmp_path / "store")
    first = json.loads(command("feedback", "import", voted, "--store", store, "--json").out)
    assert (first["pairs"], first["votes"], first["labels"]) == (3, 5, 0)
    again = json.loads(command("feedback", "import", voted, "--store", store, "--json").out)
    assert (again["pairs"], again["votes"]) == (3, 0)
    a, b = read_pairs(voted), read_pairs(store)
    assert a.labels.tolist() == b.labels.tolist() == [1, 0.25, 1]
    assert a.votes.tolist() == b.votes.tolist() and levels(a) == levels(b)
    kept = open_store(store)
    assert {rater.name for rater in kept.raters()} == {
        *("x (imported)", "y (imported)", "unnamed (imported)")
    }
    assert {pair.source for pair in kept.pairs()} == {"import"}
    assert not open_store(store).counts()["edits"]


@pytest.mark.parametrize("name", ["out", "out.parquet"])
def test_what_is_exported_is_imported_the_same(command, voted, tmp_path, name):
    store, out, other = (str(tmp_path / n) for n in ("store", name, "other"))
    command("feedback", "import", voted, "--store", store)
    done = command("feedback", "export", store, out, "--json")
    assert json.loads(done.out)["pairs"] == 5
    command("feedback", "import", out, "--store", other)
    a, b, c = (read_pairs(where) for where in (store, out, other))
    for table in (b, c):
        assert table.labels.tolist() == a.labels.tolist() and levels(table) == levels(a)
        assert table.votes.tolist() == a.votes.tolist()
    again = command("feedback", "export", store, out)
    assert again.code == 2 and "exists already" in again.err


def test_trl_rows_are_chosen_and_rejected(command, voted, tmp_path):
    store, out = str(tmp_path / "store"), tmp_path / "out.jsonl"
    command("feedback", "import", voted, "--store", store)
    done = json.loads(command("feedback", "export", store, out, "--json").out)
    assert (done["pairs"], done["ties"]) == (4, 1)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(set(row) == {"prompt", "chosen", "rejected"} for row in rows)
    assert (tmp_path / rows[0]["chosen"]).read_bytes() == picture(10)
    assert read_pairs(str(out)).labels.tolist() == [1, 1, 1]


def test_labels_between_and_pick_a_pics_columns(command, tmp_path):
    columns = {
        "caption": ["a cat", "a dog", "a cow"],
        "jpg_0": [picture(k, kind="JPEG") for k in (0, 2, 4)],
        "jpg_1": [picture(k, kind="JPEG") for k in (1, 3, 5)],
        "label_0": [0.75, 1.0, 0.0],
        "has_label": [True, True, False],
    }
    table, store = parquet(tmp_path / "p.parquet", columns), str(tmp_path / "store")
    done = json.loads(command("feedback", "import", table, "--store", store, "--json").out)
    assert (done["pairs"], done["votes"], done["labels"]) == (2, 1, 1)
    assert sorted(read_pairs(store).labels.tolist()) == [0.75, 1]


def test_likes_are_imported(command, tmp_path):
    (tmp_path / "10.png").write_bytes(picture(10))
    row = {"prompt": "a", "image": "10.png"}
    rows = [row | {"liked": 1, "rater": "x"}, row | {"liked": 0, "rater": "y"}]
    table, store = lines(tmp_path / "likes.jsonl", rows), str(tmp_path / "store")
    for new in (2, 0):
        done = command("feedback", "import", table, "--store", store, "--json")
        assert json.loads(done.out)["likes"] == new
    assert read_likes(store).liked.tolist() == [0.5]


def test_what_cannot_be_imported_leaves_no_store(command, tmp_path):
    rows = [{"prompt": "a", "chosen": "a.png"}]
    for source in (lines(tmp_path / "x.jsonl", rows), str(tmp_path / "none")):
        done = command("feedback", "import", source, "--store", tmp_path / "s")
        assert done.code == 2 and not (tmp_path / "s").exists()


# ---------------------------------------------------------------------------- stats and check


def test_stats_say_who_votes_how(command, voted, tmp_path):
    store = str(tmp_path / "store")
    command("feedback", "import", voted, "--store", store)
    kept = open_store(store)
    pair = kept.pairs()[0]
    ada = kept.add_rater("Ada <b>")[0].id
    gold = kept.add_pair(pair.first, pair.second, gold="first")
    kept.add_vote(key="k", pair=gold.id, rater=ada, choice="first", left="second", seconds=3)
    report = json.loads(command("feedback", "stats", store, "--json").out)
    assert report["votes"] == 6 and report["choices"] == {"first": 4, "second": 1, "tie": 1}
    assert report["pair_sources"] == {"import": 3, "human": 1} and report["left"]["of"] == 5
    (of_ada,) = [rater for rater in report["by_rater"] if rater["id"] == ada]
    assert (of_ada["votes"], of_ada["gold"], of_ada["seconds"]) == (1, 1, 3)
    shown = command("feedback", "stats", store).out
    assert "Ada <b> (person): 1 votes, median 3.0 s, 100% of 1 gold" in shown


def test_check_finds_what_was_deleted_changed_or_left_over(command, voted, tmp_path):
    store = str(tmp_path / "store")
    command("feedback", "import", voted, "--store", store)
    assert command("feedback", "check", store).code == 0
    kept = open_store(store)
    gone, changed, cut = [kept.picture(sample.picture) for sample in kept.samples()[:3]]
    gone.unlink()
    changed.write_bytes(picture(99))
    cut.write_bytes(cut.read_bytes()[:40])
    (gone.parent / "x.png.7.7.writing").write_bytes(b"")
    done = command("feedback", "check", store, "--json")
    report = json.loads(done.out)
    assert done.code == 1 and report["pictures"] == 6 and len(report["problems"]) == 3
    text = "\n".join(sorted(report["problems"]))
    for what in ("was deleted", "its sha256 is another", "cannot be read"):
        assert what in text
    assert report["unused"] == [f"{gone.parent.name}/x.png.7.7.writing"]


# ----------------------------------------------------------------------------------- training


def test_a_run_on_a_store_goes_on_with_the_votes_it_began_with(command, tmp_path, small):
    """Stopped after its first update; more votes arrive; it ends as if they had not."""
    source, store = judged.pairs_folder(tmp_path / "pairs"), str(tmp_path / "store")
    command("feedback", "import", source, "--store", store)
    changes = [change for change in small if not change.startswith("sizes.")]
    changes += ["sizes.batch=2", "model.rank=2", f"data={store}"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert command("train", "dpo", *changes, "--run", whole).code == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints" / "step-00000002")
    shutil.rmtree(stopped / "lora")
    (stopped / "result.json").unlink()
    kept = open_store(store)
    (rater, _), pairs = kept.add_rater("late"), kept.pairs()
    for pair in pairs:
        say = {"pair": pair.id, "rater": rater.id, "seconds": 1}
        assert kept.add_vote(key=f"late {pair.id}", choice="first", **say)
    recorded = json.loads((whole / "run.json").read_text())["config"]["data"]
    assert recorded != store and read_pairs(recorded).votes.sum() == 6
    again = ("train", "dpo", *changes, "--run", stopped)
    assert command(*again).code == 0, "the same command goes on, as of when it began"
    weights = sorted(path.relative_to(whole) for path in (whole / "lora").rglob("*.safetensors"))
    assert weights
    for name in weights:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()
    assert read_pairs(pinned(store)).votes.sum() == 10
