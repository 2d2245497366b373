"""The report of a run: says what happened, survives what is missing, loads nothing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from scoretune.evaluate.report import data_page, page
from scoretune.evaluate.report.charts import Axes, Point, Series, chart, thinned
from scoretune.evaluate.report.format import (
    THIN,
    duration,
    grouped,
    level,
    percent,
    plain,
    points,
    settings,
    shift,
)
from scoretune.evaluate.report.page import write_report
from scoretune.evaluate.report.record import read_record
from scoretune.evaluate.report.sections import settings as settings_section

pytest.importorskip("PIL")

TASKS = {"single": 0.6, "counting": 0.3}
HOSTILE = "<script>alert('x')</script>\"&${title} $tone"


def accuracy(overall: float) -> dict[str, Any]:
    tasks = {name: share + overall - 0.45 for name, share in TASKS.items()}
    return {"overall": overall, "low": overall - 0.05, "high": overall + 0.05, "tasks": tasks}


def evaluation(update: int, judge: float | None, reader: float, reward: float) -> dict[str, Any]:
    row = {
        "update": update,
        "network_evaluations": 1000 * update,
        "seconds": 2.0 * update,
        "sampler": "deterministic",
        "reader": accuracy(reader),
        "reward": {"stochastic": reward + 0.05, "deterministic": reward},
    }
    return row if judge is None else row | {"judge": accuracy(judge)}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_previews(folder: Path, prompts: list[str], side: int = 8, columns: int = 2) -> None:
    from PIL import Image

    folder.mkdir()
    for name, colour in (("before", "red"), ("after", "blue")):
        rows = -(-len(prompts) // columns)
        Image.new("RGB", (columns * side, rows * side), colour).save(folder / f"{name}.png")
    right = [True] * len(prompts)
    described = {"prompts": prompts, "columns": columns, "side": side}
    verdicts = {"before_right": [False, *right[1:]], "after_right": right}
    (folder / "prompts.json").write_text(json.dumps(described | verdicts), encoding="utf-8")


def make_run(run: Path, judge: tuple[float, float] | None = (0.46, 0.71), **about: Any) -> Path:
    """A finished run; `judge` is its accuracy before and after, None for a model without one."""
    described = {
        "recipe": "score_as_action",
        "command": "scoretune demo --seed 0",
        "seed": 0,
        "threads": 1,
        "machine": "a laptop",
        "versions": {"scoretune": "0.1.0"},
        "config": {"objective": {"clip": 0.2}},
        "started": "2025-11-21T07:41:00+00:00",
    }
    (run / "run.json").write_text(json.dumps(described | about), encoding="utf-8")
    metrics: list[dict[str, Any]] = [
        {"update": u, "seconds": 2.0 * u, "network_evaluations": 1000 * u, "reward": 0.4 + 0.01 * u}
        | {"chain_kl": 0.1 * u, "explained_variance": None if u == 3 else -2 + 0.1 * u}
        for u in range(1, 21)
    ]
    write_lines(run / "metrics.jsonl", metrics)
    start, end = judge or (None, None)
    rows = [evaluation(0, start, 0.45, 0.43), evaluation(20, end, 0.75, 0.63)]
    if judge is None:
        for row in rows:
            del row["reader"]
    write_lines(run / "evaluations.jsonl", rows)
    result: dict[str, Any] = {"chain_kl": 2.0, "network_evaluations": 91000, "seconds": 212}
    if judge is not None:
        gain = judge[1] - judge[0]
        bounds = {"mean": gain, "low": gain - 0.07, "high": gain + 0.07}
        result |= {"judge": {"base": rows[0]["judge"], "final": rows[1]["judge"]}}
        result |= {"gain": {"judge": bounds}, "reward": rows[1]["reward"]}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    write_previews(run / "previews", ["a red seven", "two ones", "a six"])
    return run


def words(page: str) -> str:
    """The text a visitor reads, with plain spaces."""
    text = re.sub(r"<(style|script).*?</\1>", " ", page, flags=re.DOTALL)
    text = re.sub(r"\s+([,.;:)])", r"\1", re.sub(r"<[^>]*>", " ", text))
    return " ".join(text.replace("\u202f", " ").split())


def report(run: Path) -> str:
    page = write_report(run)
    assert page == run / "report.html"
    return page.read_text(encoding="utf-8")


def test_full_run_leads_with_the_gain(tmp_path: Path) -> None:
    page = report(make_run(tmp_path))
    text = words(page)
    assert "Judge accuracy on held-out prompts rose from 46 % to 71 %" in text
    assert "(+25 points, 95 % interval 18 to 32) in 212 s and 91 000 network evaluations" in text
    assert "The gain carries over." in text
    assert "so far" not in text
    assert "What this run lacks" not in text
    assert page.count("data:image/png;base64,") == 6
    assert "calls 2 pictures right before and 3 after (1 put right, 0 spoilt)." in text
    assert page.count('<svg class="chart') == 6  # accuracy, two of tasks, gap, path KL, critic
    assert "objective.clip" in text
    assert "21 November 2025, 07:41 UTC" in text


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = report(make_run(tmp_path))
    assert not re.search(r"https?://|url\(|@import|<link|<iframe", page)
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert sources
    assert all(source.startswith("data:image/png;base64,") for source in sources)


class Nesting(HTMLParser):
    """Fails on an element that is closed out of order or never closed."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("judge", [(0.46, 0.71), None])
def test_page_is_well_formed(tmp_path: Path, judge: tuple[float, float] | None) -> None:
    page = report(make_run(tmp_path, judge, command=HOSTILE))
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []
    assert "<!-- " not in page


def test_fallen_judge_says_so(tmp_path: Path) -> None:
    text = words(report(make_run(tmp_path, judge=(0.46, 0.36))))
    assert "Judge accuracy on held-out prompts fell from 46 % to 36 % (\u221210 points" in text
    assert "The judge fell by 10 points." in text
    assert "gained 30 points: that is what reward hacking looks like." in text


def test_what_no_reward_taught_is_not_called_hacking(tmp_path: Path) -> None:
    """A run on preferences has no reward that the reader could give."""
    run = make_run(tmp_path, judge=(0.46, 0.36))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: row[name] for name in row if name != "reward"} for row in rows]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    text = words(report(run))
    assert "The judge fell by 10 points." in text
    assert "The reader gained 30 points." in text
    assert "hacking looks like" not in text


def test_small_fall_is_not_rounded_away(tmp_path: Path) -> None:
    text = words(report(make_run(tmp_path, judge=(0.462, 0.458))))
    assert "fell from 46.2 % to 45.8 % (\u22120.4 points" in text
    assert "it may be chance" in text


def test_judge_far_behind_the_reader_is_called_hacking(tmp_path: Path) -> None:
    page = report(make_run(tmp_path, judge=(0.46, 0.58)))
    box = words(page[page.index('<section class="headline bad">') : page.index("</section>")])
    assert "Sign of reward hacking." in box
    assert "gained 30 points; the judge gained 12 points, less than half" in box


def test_without_judge_speaks_of_reward(tmp_path: Path) -> None:
    page = report(make_run(tmp_path, judge=None))
    text = words(page[: page.index("The words used here")])
    assert "Reward under the deterministic sampler rose from 0.43 to 0.63 (+0.2)" in text
    assert "No independent judge" in text
    assert "Judge accuracy" not in text
    assert "In the eyes of" not in text


def test_several_rewards_are_drawn_one_by_one(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert "Reward by reward" not in report(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row |= {"reward/reader": 0.01 * row["update"], "reward/a<b:c": -2.0 - 0.1 * row["update"]}
    write_lines(run / "metrics.jsonl", rows)
    page = report(run)
    assert "Reward by reward" in words(page)
    assert "<h3>reader</h3>" in page
    assert "<h3>a&lt;b:c</h3>" in page
    assert "a<b" not in page
    assert "mean, times its weight against network evaluations: reader" in page
    (run / "metrics.jsonl").write_text(json.dumps(rows[0] | {"reward/reader": "much"}) + "\n")
    assert "<h3>reader</h3>" in report(run)  # a name without a number is no reason to fail


def rewarded(run: Path, gain: tuple[float, float, float], stochastic: float = 0.9) -> Path:
    """A run without a judge whose result knows the gain in reward and its interval."""
    run.mkdir()
    make_run(run, judge=None)
    mean, low, high = gain
    rows = [evaluation(0, None, 0, 0.1225), evaluation(20, None, 0, 0.1225 + mean)]
    for row in rows:
        del row["reader"]
    rows[1]["reward"]["stochastic"] = stochastic
    write_lines(run / "evaluations.jsonl", rows)
    bounds = {"mean": mean, "low": low, "high": high}
    result = {"gain": {"reward": bounds}, "reward": rows[1]["reward"], "chain_kl": 2.0}
    (run / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return run


def test_a_gain_that_may_be_chance_is_not_made_much_of(tmp_path: Path) -> None:
    text = words(report(rewarded(tmp_path / "a", (0.0006, -0.0004, 0.0016))))
    assert "rose from 0.122 to 0.123 (+0.0006, 95 % interval \u22120.0004 to +0.0016)" in text
    assert "Not a clear change." in text
    assert "Less than half of the gain survives" not in text
    text = words(report(rewarded(tmp_path / "b", (0.0006, 0.0004, 0.0008))))
    assert "Less than half of the gain survives without the noise." in text
    assert "Not a clear change." not in text


def test_a_path_kl_of_evaluations_alone_is_drawn(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_lines(
        run / "metrics.jsonl", [{k: v for k, v in r.items() if k != "chain_kl"} for r in rows]
    )
    assert "Distance from the base model" not in report(run)  # rather than that there is none
    measured = [evaluation(u, 0.5, 0.5, 0.5) | {"chain_kl": kl} for u, kl in ((0, 0.0), (20, 2.0))]
    write_lines(run / "evaluations.jsonl", measured)
    page = report(run)
    assert "<title>chain: 2 at 20 update</title>" in page
    assert "<dt>Chain KL</dt><dd>2<small>" in page


def test_without_a_critic_there_is_no_card_of_it(tmp_path: Path) -> None:
    run, title = make_run(tmp_path), "Does the critic know what is coming?"
    assert title in report(run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        del row["explained_variance"]
    write_lines(run / "metrics.jsonl", rows)
    page = report(run)
    assert title not in page
    assert "Distance from the base model" in page
    (run / "metrics.jsonl").unlink()
    page = report(run)
    assert "Inside the training" not in page
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []


def test_numbers_for_people_have_three_digits_and_no_minus_before_zero() -> None:
    texts = [plain(v) for v in (0.12251, 22.349, 999.7, 123456.4, -0.0, 0.00061234, 1e-5)]
    assert texts == ["0.123", "22.3", "1000", "123456", "0", "0.000612", "1e-05"]
    assert [shift(v) for v in (0.0006, -0.0004, 0.0, -0.0)] == ["+0.0006", "\u22120.0004", "0", "0"]
    assert level(-0.25) == "\u22120.25"
    assert (points(-0.0004, 3), points(-0.4)) == ("+0.000", "+0")
    assert (percent(-0.001), grouped(-0.3)) == ("0\u202f%", "0")


def test_durations_are_in_the_unit_that_suits_them() -> None:
    seconds = (0.034, 3.21, 212.4, 599, 2100, 9000)
    assert [duration(v) for v in seconds] == [
        "0.034 s",
        "3.2 s",
        "212 s",
        "599 s",
        "35 min",
        "2.5 h",
    ]
    assert duration(212, THIN) == "212\u202fs"


def test_a_configuration_is_rows_of_leaves() -> None:
    config = {"a": {"b": 1, "c": {}}, "d": "text", "e": [None, True]}
    assert settings(config) == {"a.b": "1", "a.c": "{}", "d": "text", "e": "[null, true]"}
    assert settings([1, 2]) == settings(None) == {}


def test_a_section_is_a_module_and_a_template_of_its_name(tmp_path: Path) -> None:
    sections = [*page.SECTIONS, *data_page.SECTIONS]
    names = {section.__name__.rpartition(".")[2] for section in sections}
    folder = files("scoretune.evaluate.report")
    modules = {path.name.removesuffix(".py") for path in folder.joinpath("sections").iterdir()}
    templates = {path.name for path in folder.joinpath("templates").iterdir()}
    assert names == {name for name in modules if not name.startswith("__")} - {"headline"}
    assert {f"{name}.html" for name in names} <= templates
    record = read_record(tmp_path)
    for section in page.SECTIONS:  # of an empty folder
        assert section.context(record) is None or section is settings_section


def test_the_page_of_a_run_on_data_escapes_and_names_what_is_missing(tmp_path: Path) -> None:
    about = {"recipe": HOSTILE, "command": HOSTILE, "config": {"data": HOSTILE}}
    (tmp_path / "run.json").write_text(json.dumps(about))
    ends = {"base": 1.594, "final": 1.585, "real": 0.5}
    (tmp_path / "result.json").write_text(json.dumps({"data": {HOSTILE: ends}}))
    html = data_page.write(tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in html
    assert "1.594 → 1.585 (data that were learned from: 0.5)" in words(html)
    assert "metrics.jsonl is missing." in words(html)
    nesting = Nesting()
    nesting.feed(html)
    assert nesting.open == []


def test_half_a_surrogate_pair_is_no_reason_to_fail(tmp_path: Path) -> None:
    assert "?" in report(make_run(tmp_path, machine="\ud800"))


def test_empty_folder_names_what_is_missing(tmp_path: Path) -> None:
    text = words(report(tmp_path))
    assert "has not recorded a change yet" in text
    for name in ("run.json", "metrics.jsonl", "evaluations.jsonl", "result.json"):
        assert f"{name} is missing." in text


def test_interrupted_run_is_reported_so_far(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run / "result.json").unlink()
    (run / "previews" / "after.png").write_bytes(b"\x89PNG broken")
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        metrics.write('{"update": 21, "rew')
    text = words(report(run))
    assert "rose from 46 % to 71 % (+25 points) in 40 s and 20 000 network evaluations, so" in text
    assert "A gain without an interval." in text
    assert "metrics.jsonl: unreadable lines left out: 1." in text
    assert "previews/after.png is missing or unreadable." in text


def test_only_the_base_model_evaluated(tmp_path: Path) -> None:
    write_lines(tmp_path / "evaluations.jsonl", [evaluation(0, 0.46, 0.45, 0.43)])
    text = words(report(tmp_path))
    assert "only one evaluation" in text
    assert "No comparison yet." in text


def test_wrong_types_do_not_crash(tmp_path: Path) -> None:
    make_run(tmp_path, config=[1, 2], versions="?", started=None)
    (tmp_path / "result.json").write_text('{"judge": "x", "reward": 3, "gain": []}')
    (tmp_path / "evaluations.jsonl").write_text('{"update": 1, "judge": 3, "reader": null}\n7\n')
    (tmp_path / "previews" / "prompts.json").write_text('{"prompts": 3}')
    assert "unreadable lines left out: 1." in words(report(tmp_path))


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    keys = ("recipe", "command", "machine", "started", "seed")
    about: dict[str, Any] = dict.fromkeys(keys, HOSTILE)
    run = make_run(tmp_path, **about, versions={HOSTILE: HOSTILE}, config={HOSTILE: HOSTILE})
    (run / "previews" / "prompts.json").write_text(
        json.dumps({"prompts": [HOSTILE], "columns": 2, "side": 8})
    )
    row = evaluation(0, 0.4, 0.4, 0.4)
    row["judge"]["tasks"] = {HOSTILE: 0.5}
    later = evaluation(9, 0.5, 0.5, 0.5)
    later["judge"]["tasks"] = {HOSTILE: 0.6}
    write_lines(run / "evaluations.jsonl", [row, later])
    (run / "result.json").unlink()
    page = report(run)
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;") >= 8
    assert "${title} $tone" in page  # a template sign in a file is text, not a slot


# ------------------------------------------------------------------------------ the sampler gap


def cell(steps: int, eta: float, gap: float | None, solver: str = "gddim") -> dict[str, Any]:
    """A row of a matrix."""
    row: dict[str, Any] = {"solver": solver, "eta": eta, "steps": steps, "model": "fine-tuned"}
    if gap is None:
        return row | {"reward": None, "gap": None, "reason": "no such step"}
    ends = {"gap_low": gap - 0.05, "gap_high": gap + 0.05, "ci_low": 0.3, "ci_high": 0.5}
    return row | {"reward": 0.4 + gap, "gap": gap, "reason": None} | ends


def with_gaps(run: Path, solver: str = "gddim") -> Path:
    """A finished run whose evaluations know the gap, with a matrix at both ends."""
    make_run(run)
    rows = [evaluation(0, 0.46, 0.45, 0.43), evaluation(20, 0.71, 0.75, 0.63)]
    for row, gap in zip(rows, (0.081, 0.012), strict=True):
        row["gap"] = {"mean": gap, "low": gap - 0.03, "high": gap + 0.03, "steps": 10, "eta": 1.0}
        row["bias"] = {"mean": -0.024, "low": -0.04, "high": -0.01}
    write_lines(run / "evaluations.jsonl", rows)
    matrices = [
        [cell(5, 0, 0, "ddim"), cell(10, 0, 0, "ddim"), cell(5, 1, high, solver)]
        + [cell(10, 1, high / 2, solver), cell(5, 2, None, solver), cell(10, 2, -high, solver)]
        for high in (0.2, 0.14)
    ]
    lines = [{"update": u, "rows": m} for u, m in zip((0, 20), matrices, strict=True)]
    write_lines(run / "gap.jsonl", lines)
    return run


def test_gap_and_bias_are_told_apart(tmp_path: Path) -> None:
    page = report(with_gaps(tmp_path))
    text = words(page)
    assert "The gap is +0.012 (95 % interval \u22120.018 to +0.042) in 10 steps at η = 1" in text
    assert "before training it was +0.081" in text
    assert "earns \u22120.024 (95 % interval \u22120.04 to \u22120.01)" in text
    assert "reward against update: bias of the step count, gap: stochastic less ODE" in page
    assert page.count('<svg class="chart') == 7  # that of each η is one more than without a matrix
    assert "went from" not in text  # the mixture of both, which older runs show


def test_the_matrix_is_a_table_with_heads(tmp_path: Path) -> None:
    page = report(with_gaps(tmp_path))
    table = page[page.index('<table class="heat">') : page.index("</table>")]
    assert table.count('scope="col"') == 3
    assert table.count('scope="row"') == 3
    assert "After update 20." in words(page)
    text = words(table)
    assert "ddim (ODE) 0.4 ±0.1 0.4 ±0.1" in text
    assert "gddim η = 1 +0.14 ±0.05 +0.07 ±0.05" in text
    assert "gddim η = 2 \u2013 no such step \u22120.14 ±0.05" in text
    assert re.findall(r'class="(up|down)" style="--share:(\d+)%"', table) == [
        ("up", "50"),
        ("up", "25"),
        ("down", "50"),
    ]
    assert "The gap in 10 steps while training" in words(page)


def test_a_run_from_before_shows_both_rewards(tmp_path: Path) -> None:
    text = words(report(make_run(tmp_path)))
    assert "The sampler gap" in text
    assert "The gap, stochastic minus deterministic, went from +0.05 to +0.05." in text
    assert "How noisy" not in text


@pytest.mark.parametrize(
    "line",
    ['{"update": 1, "rows": 3}', '{"update": 1, "rows": [3, {}, {"steps": 5, "eta": "x"}]}', "7"],
)
def test_a_broken_matrix_is_left_out(tmp_path: Path, line: str) -> None:
    (make_run(tmp_path) / "gap.jsonl").write_text(line + "\n")
    assert "How noisy" not in words(report(tmp_path))


def test_names_in_a_matrix_are_escaped(tmp_path: Path) -> None:
    page = report(with_gaps(tmp_path, HOSTILE))
    assert "<script>alert" not in page
    nesting = Nesting()
    nesting.feed(page)
    assert nesting.open == []


def test_long_runs_are_thinned_by_averaging() -> None:
    points = [Point(float(i), float(i % 2)) for i in range(1000)]
    few = thinned(points, most=100)
    assert len(few) == 100
    assert all(point.y == 0.5 for point in few)


@pytest.mark.parametrize("y", [0.0, 1.0, -4.0, 1e-9, 1e9])
def test_flat_and_single_points_can_be_drawn(y: float) -> None:
    for line in ((Point(0.0, y),), (Point(0.0, y), Point(1.0, y))):
        drawn = chart([Series("reward", "plain", line)], Axes("update", "reward"))
        assert "nan" not in drawn
        assert "inf" not in drawn
