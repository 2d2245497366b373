"""`scoretune runs`: what became of runs, however broken, and some of them side by side."""

from __future__ import annotations

import json
import re
import shutil
import threading
import urllib.error
import urllib.request
import webbrowser
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from scoretune import recipes
from scoretune.commands import display
from scoretune.commands.runs import index, verb
from scoretune.commands.runs.page import write_page
from scoretune.core.errors import UserError
from scoretune.evaluate.scores import Score, rounded
from scoretune.rewards.remote.server import RewardServer, Service
from scoretune.training import overrides, run_folder


@pytest.fixture(scope="module")
def real(finished_run) -> Path:
    return finished_run


def changed(folder: Path, **values: object) -> None:
    """Other values at the top of a run's description."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def assigned(folder: Path, *assignments: str) -> None:
    """Other settings of a run that is there."""
    config = overrides.changed(run_folder.recorded(folder), assignments).model_dump()
    changed(folder, config=config)


@pytest.fixture
def several(real, tmp_path) -> Path:
    """A finished run, one that was killed, one that never began, and one that is broken."""
    for name, started in [("done", "2026-01-02"), ("killed", "2026-01-04"), ("new", "2026-01-03")]:
        shutil.copytree(real, tmp_path / "runs" / name)
        changed(tmp_path / "runs" / name, started=started)
    killed, new, broken = (tmp_path / "runs" / name for name in ("killed", "new", "deep/broken"))
    (killed / "result.json").unlink()
    lines = (killed / "metrics.jsonl").read_text().splitlines()
    (killed / "metrics.jsonl").write_text(lines[0] + "\n" + lines[1][:9])
    for path in new.iterdir():
        if path.name != "run.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    broken.mkdir(parents=True)
    (broken / "run.json").write_bytes(b"\xff{")
    (tmp_path / "runs" / "notes.txt").write_text("none of them")
    return tmp_path / "runs"


def test_every_run_is_listed_newest_first_with_what_became_of_it(several, real):
    listed = index.listed(several)
    assert [Path(one.run).name for one in listed] == ["killed", "new", "done", "broken"]
    assert [one.state for one in listed] == ["stopped at 1", "stopped at 0", "finished", "damaged"]
    assert [(one.done, one.updates) for one in listed] == [(1, 2), (0, 2), (2, 2), (0, None)]
    done, result = listed[2], json.loads((real / "result.json").read_text())
    assert done.recipe == "ddpo"
    assert done.model == "scenes"
    base, final = result["reward_base"]["deterministic"], result["reward"]["deterministic"]
    assert done.reward == (base, final)
    judge = result["judge"]
    assert done.judge == (judge["base"]["overall"], judge["final"]["overall"])
    assert done.seconds == result["seconds"]
    assert listed[1].reward == (None, None)
    assert listed[1].judge is None


def test_a_run_that_its_guard_ended_says_so(several):
    path = several / "done" / "result.json"
    result = json.loads(path.read_text())
    result["guard"]["ended"] = 1
    path.write_text(json.dumps(result))
    assert index.summary(several / "done").state == "ended by its guard at 1"


BROKEN = [
    b"",
    b"[]",
    b"null",
    b"7",
    b'{"config": 3}',
    b"{" * 9,
    b"\x00\xff",
    b'{"update": {}}\n[]\n',
]


@pytest.mark.parametrize("content", BROKEN)
@pytest.mark.parametrize(
    "name", ["run.json", "result.json", "metrics.jsonl", "evaluations.jsonl", "alarms.jsonl"]
)
def test_nothing_in_a_folder_breaks_the_list(real, tmp_path, name, content):
    home = tmp_path / "one"
    home.mkdir()
    for file in real.iterdir():
        if file.is_file():
            shutil.copy(file, home)
    (home / name).write_bytes(content)
    (one,) = index.listed(tmp_path)
    assert one.state in {"finished", "damaged", "stopped at 2"}
    if name == "run.json":
        assert one.state == "damaged"
    index.compare([home, real])


def test_a_cut_checkpoint_is_damage(several):
    newest = max((several / "killed" / "checkpoints").glob("step-*"))
    (newest / "manifest.json").unlink()
    assert index.summary(several / "killed").state == "damaged"


def test_only_what_differs_is_compared(several, real):
    other = several / "killed"
    assigned(other, "optimiser.learning_rate=0.25", "model.rank=3")
    compared = index.compare([several / "done", other])
    rate = run_folder.recorded(real).optimiser.learning_rate
    assert compared.settings == {
        "model.rank": ("2", "3"),
        "optimiser.learning_rate": (str(rate), "0.25"),
    }
    assert compared.names == ("done", "killed")
    result = json.loads((real / "result.json").read_text())
    gain = result["gain"]["judge"]
    assert compared.results["gain of judge"] == (index.Interval(**gain), None)
    assert compared.results["state"] == ("finished", "stopped at 1")
    gap = result["gap"]["final"]
    expected = index.Interval(gap["mean"], gap["low"], gap["high"])
    assert compared.results["sampler gap"][0] == expected


def test_runs_of_one_name_are_told_apart_by_their_folders(real, tmp_path):
    for place in ("a", "b"):
        shutil.copytree(real, tmp_path / place / "run")
    compared = index.compare([tmp_path / "a" / "run", tmp_path / "b" / "run"])
    assert compared.names == ("a/run", "b/run")
    assert compared.settings == {}


def test_a_number_with_its_interval_reads_as_people_write_it():
    assert str(index.Interval(0.12345, -0.5, 0.75)) == "0.123 (-0.5 to 0.75)"
    assert str(index.Interval(123456.0)) == "123456"
    assert str(index.Interval(-0.0, -0.0004, 0.0)) == "0 (-0.0004 to 0)"


def test_the_reward_of_a_run_has_a_name(several):
    by_name = {Path(one.run).name: one for one in index.listed(several)}
    assert by_name["done"].reward_name == "reader"
    assert by_name["broken"].reward_name is None
    # A run on data has a reward in its settings, and no use for it.
    config = json.loads((several / "new" / "run.json").read_text())["config"]
    config["objective"]["kind"] = "matching"
    changed(several / "new", config=config)
    assert index.summary(several / "new").reward_name is None
    assert verb.shortened("x" * 24) == "x" * 24
    assert verb.shortened("0.5*clip + 0.5*aesthetic:v2") == "0.5*clip + 0.5*aestheti…"
    assert len(verb.shortened("x" * 25)) == 24


# ------------------------------------------------------------------------------ in the terminal


def test_small_rewards_keep_six_digits():
    assert [rounded(v) for v in (0.000123456789, 1234567.0, -0.0)] == [0.000123457, 1234570.0, 0.0]
    assert str(rounded(-0.0)) == "0.0"
    score = Score(0.00061234567, -0.0, 1e-7, {"a": 2 / 3})
    assert score.as_gain() == {"mean": 0.000612346, "low": 0.0, "high": 1e-7}
    ends = {"overall": 0.000612346, "low": 0.0, "high": 1e-7}
    assert score.as_dict() == ends | {"tasks": {"a": 0.666667}}
    assert str(score.as_gain()["low"]) == "0.0"


def test_the_result_file_has_more_than_four_decimals(real):
    result = json.loads((real / "result.json").read_text())
    numbers = [*result["reward"].values(), *result["reward_base"].values()]
    assert all(value == float(f"{value:.6g}") for value in numbers)
    assert any(value != round(value, 4) for value in numbers)


RESULT = {
    "reader": {"base": {"overall": 0.5}, "final": {"overall": 0.5}},
    "gain": {
        "reward": {"mean": 0.0006, "low": -0.0004, "high": 0.0016},
        "reader": {"mean": -0.0, "low": -0.0001, "high": 0.25},
    },
    "reward_base": {"deterministic": 0.1225, "stochastic": 0.2},
    "reward": {"deterministic": 0.1231, "stochastic": 0.25},
    "seconds": 3.2,
}


def test_a_run_ends_with_its_reward_before_and_after(tmp_path, capsys):
    live = display.Live(recipes.named("ddpo"), tmp_path / "a[b]")
    live.conclude(RESULT)
    assert capsys.readouterr().err.splitlines() == [
        "reader accuracy on held-out prompts: 50.0% -> 50.0% (gain +0.0%, 95 % interval +0.0% to "
        "+25.0%)",
        "held-out reward: 0.1225 -> 0.1231 (gain +0.0006, 95 % interval -0.0004 to +0.0016)",
        "under the training sampler: 0.25",
        f"3 s; look at {tmp_path / 'a[b]' / 'report.html'}",
    ]
    live.conclude(RESULT | {"gain": RESULT["gain"] | {"reward": None}})
    assert "held-out reward: 0.1225 -> 0.1231\n" in capsys.readouterr().err


def test_without_a_terminal_the_first_and_the_last_update_are_told(tmp_path, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("scoretune.commands.display.time.monotonic", lambda: now[0])
    run = overrides.changed(recipes.named("ddpo"), ["updates=50"])
    live = display.Live(run, tmp_path)
    for update in range(7, 51):  # a resumed run
        live.line(
            {"update": update, "reward": 0.6123, "chain_kl": 0.21, "explained_variance": None}
        )
        now[0] += 4.0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "update 7/50: reward 0.612, chain KL 0.21"
    places = [int(re.match(r"update (\d+)/50: ", line)[1]) for line in lines]
    assert places == [*range(7, 48, 4), 50]


def test_what_was_drawn_is_said_by_its_place(command, real, tmp_path):
    out = tmp_path / "one.png"
    drawn = command("sample", real, "a red seven", "--out", out, "--steps", 1)
    assert drawn.out == f"1. a red seven\n1 picture in {out}\n"
    drawn = command("sample", real, "a red seven", "two fives", "--out", out, "--steps", 1)
    assert drawn.out == f"1. a red seven\n2. two fives\n2 pictures in {out}\n"


def test_a_served_reward_tells_milliseconds(capsys):
    service = Service("grey", lambda images, prompts: images.mean((1, 2, 3)))
    server = RewardServer(service, "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(urllib.request.Request(server.url, data=b"none"), timeout=10)
    finally:
        server.stop()
        thread.join(timeout=10)
    taken = re.search(r" 400 .*, (\d+\.\d\d) ms$", capsys.readouterr().err.strip())
    assert taken and float(taken[1]) > 0


def test_the_command_lists_them(command, several):
    listed = command("runs", several)
    assert listed.code == 0, listed.err
    rows = [line for line in listed.out.splitlines() if "│" in line]
    assert [re.split(r"\s*│\s*", row)[1] for row in rows] == [
        "killed",
        "new",
        "done",
        "deep/broken",
    ]
    assert "finished" in rows[2]
    assert [re.split(r"\s*│\s*", row)[4] for row in rows] == ["reader"] * 3 + ["–"]
    summaries = json.loads(command("runs", several, "--json").out)
    assert [one["state"] for one in summaries] == [one.state for one in index.listed(several)]
    (several / "empty").mkdir()
    assert command("runs", several / "empty").out == f"no runs below {several / 'empty'}\n"


def test_the_command_compares_them_on_a_page(command, several, tmp_path):
    page = tmp_path / "pages" / "both.html"
    done = command("runs", "compare", several / "done", several / "killed", "--out", page)
    assert done.code == 0, done.err
    assert "all settings are the same" in done.out
    assert f"look at {page}" in done.out
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?:src|href)=[\"'](?!#)|url\((?!#)|<script|@import", text)
    charts = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    assert len(charts) == 7  # reward twice, judge, reader, two KLs, loss
    for chart in charts:
        ElementTree.fromstring(chart)
        assert "done" in chart
    assert "Judge accuracy" in text
    again = tmp_path / "again.html"
    command("runs", "compare", several / "done", several / "killed", "--out", again)
    assert again.read_bytes() == page.read_bytes()
    plain = command("runs", "compare", several / "done", several / "killed", "--json")
    assert json.loads(plain.out)["runs"] == ["done", "killed"]


def test_names_of_runs_are_escaped_on_their_page(several, tmp_path):
    hostile = several / "a&b<i>"
    shutil.copytree(several / "done", hostile)
    comparison = index.compare([several / "done", hostile])
    text = write_page(comparison, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<i>" not in text and "a&amp;b&lt;i&gt;</th>" in text
    assert text.count('class="swatch hue') == 2  # all settings are the same: one table
    drawn = re.findall(r'<svg class="chart".*?</svg>', text, re.DOTALL)
    assert all('class="hue1"' in one and 'class="hue2"' in one for one in drawn)


def test_the_command_opens_a_report(command, several, monkeypatch):
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda page: opened.append(page) or True)
    done = command("runs", "open", several / "done")
    assert done.out == f"{several / 'done' / 'report.html'}\n"
    assert opened == [(several / "done" / "report.html").as_uri()]
    refused = command("runs", "open", several / "new")
    assert refused.code == 2
    assert "a report is written when a run ends" in refused.err
    assert len(opened) == 1

    def none(page: str) -> bool:
        raise webbrowser.Error("no browser")

    for without in (none, lambda page: False):
        monkeypatch.setattr("webbrowser.open", without)
        done = command("runs", "open", several / "done")
        page = several / "done" / "report.html"
        assert (done.code, done.out) == (0, f"no browser opened: look at {page}\n")


def test_what_cannot_be_compared_or_listed_is_a_line(command, several):
    for words, message in [
        (("compare", several / "done"), "name two runs or more"),
        (("compare", several / "done", several), "is no run folder"),
        (("open",), "name one run"),
        ((several / "nothing",), "there is no folder"),
        ((several, several), "one folder at a time"),
        ((several, "--out", "x.html"), "--out is for scoretune runs compare"),
    ]:
        refused = command("runs", *words)
        assert refused.code == 2
        assert message in refused.err
        assert refused.err.count("\n") == 1
    compared = index.compare([several / "done", several / "killed"])
    with pytest.raises(UserError, match="cannot write"):
        write_page(compared, several / "notes.txt" / "page.html")
