"""Published experiments: every part rehearses from one command, and what is finished is kept."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import judged
import llama2c_files
import rated_files
from scoretune import recipes
from scoretune.commands.reproduce import (
    EXPERIMENTS,
    few_step,
    gap_toy,
    gap_training,
    gap_window,
    guard_hackable,
    guard_honest,
    preference_scenes,
    prompt_following,
    rainbow_switches,
    scenes_jpeg,
)
from scoretune.commands.reproduce.base import Cell, Page, interval, run_cells, spent
from scoretune.commands.reproduce.fine_tuning import best, fine_tune, gain, points, reached
from scoretune.commands.reproduce.gap_training import FLOW
from scoretune.commands.reproduce.prompt_following import SHIPPED
from scoretune.commands.sample import draw
from scoretune.training import overrides
from scoretune.training.build import check_settings
from scoretune.training.run import ready
from scoretune.training.run_folder import recorded

PARTS = [(experiment, part) for experiment, parts in EXPERIMENTS.items() for part in parts]


QUICK = {("mallows", "exact"), ("preference-toy", "tilt"), ("reward-gap", "closed-forms")}
"""Rehearsed in the quick tests too."""


@pytest.mark.parametrize(
    ("experiment", "part"),
    [pytest.param(*both, marks=[] if both in QUICK else [pytest.mark.slow]) for both in PARTS],
)
def test_every_part_rehearses(experiment, part, command, tmp_path, small):
    options = ["--part", part, "--seeds", 1, "--quick", "--out", tmp_path, "--json"]
    if (experiment, part) == ("rainbow", "stories"):
        options += ["--model", llama2c_files.model(tmp_path), "--data", tmp_path]
    elif (experiment, part) == ("reward-model", "people"):
        options += ["--data", rated_files.folder(tmp_path / "rated")]
    elif EXPERIMENTS[experiment][part].wants_model:
        options += ["--model", small[-1].removeprefix("model.source=")]
    done = command("reproduce", experiment, *options)
    assert done.code == 0, done.err
    numbers = json.loads(done.out.splitlines()[-1])[part]
    page = (tmp_path / part / "README.md").read_text(encoding="utf-8")
    assert f"scoretune reproduce {experiment} --part {part} --seeds 1 --quick" in page
    assert "\n|---|" in page
    figures = re.findall(r"!\[.+\]\((.+)\)", page)
    assert figures
    assert all((tmp_path / part / figure).stat().st_size > 1000 for figure in figures)
    kept = json.loads((tmp_path / part / "result.json").read_text(encoding="utf-8"))
    assert numbers.items() <= kept.items()
    assert str(Path.cwd()) not in page
    if (experiment, part) in NUMBERS:
        NUMBERS[experiment, part](numbers, page, figures)


def closed_forms(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert figures == ["rates.svg", "steps.svg"]
    slopes = numbers["slopes"]
    assert [slopes["ve"], slopes["ve_pair"]] == pytest.approx([-1, -1], abs=0.01)
    assert [slopes["vp"], slopes["vp_pair"]] == pytest.approx([-0.5, -0.5], abs=2e-3)
    assert numbers["mixture"]["rate"] == pytest.approx(0.60195, abs=1e-5)
    assert numbers["mixture"]["best"] == pytest.approx(-1.24)
    assert numbers["steps"]["gaps"]["gDDIM, η = 1"][1] == pytest.approx(0.0856, abs=6e-5)
    assert "| 10 | -0.470431 | -0.445922 | 0.013346 | 0.024509 | 0.025566 |" in page
    formulas = ("e^{B/2}", "e^{−B/2}", "e^{r/κ}", "Φ^{−1}")
    assert "{" not in functools.reduce(lambda text, name: text.replace(name, ""), formulas, page)
    for name, row in numbers["checks"].items():  # 4000 samples of each
        assert abs(row["deviations"]) < 3.5, name


def gap_while_learning(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert set(numbers["arms"]) == {f"{e:g}-{n}" for e in gap_toy.ETAS for n in gap_toy.COUNTS}
    assert figures == ["gap.svg"]
    assert "{" not in page


def few_steps(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert "CTRL clipped" in page
    for steps in few_step.STEPS:  # equal work for all
        arms = [numbers["arms"][f"{arm}, {steps} steps"] for arm in few_step.ARMS]
        assert {arm["network_evaluations"] for arm in arms} == {2 * 4 * 8 * steps}
        assert arms[0]["over_dxmi"] == [0.0, 0.0, 0.0]
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| 4 | ")]
    assert len({row[3] for row in rows}) == 1 < len(rows)  # one base, through the same noise


def control(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert "| CPG | 0.1 | 1 |" in page
    assert "η* = 0.4516" in page
    assert "η* = 1.0884" in page
    assert figures == ["curves.svg", "parameters.svg"]
    assert len(numbers["arms"]) == 4 + 3
    arm = numbers["arms"][0]
    assert (arm["problem"], arm["method"], arm["dt"], arm["seeds"]) == ("LQ", "CPG", 0.1, 1)
    assert arm["gap"]["interval"][0] <= arm["gap"]["mean"] <= arm["gap"]["interval"][1]


def mallows_exact(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert len(numbers["claims"]) > 15
    assert all(claim["holds"] for claim in numbers["claims"])


def mallows_dispersion(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    assert all(claim["holds"] for claim in numbers["claims"])
    ratios = {name: spread[0] for name, spread in numbers["ratios"].items()}
    assert ratios["the true φ"] < ratios["log odds of the votes"] < ratios["none (DPO)"]


def people(numbers: dict[str, Any], page: str, figures: list[str]) -> None:
    """Of ratings made by a known law of worth, and metrics of which one is the worth."""
    for table in ("DSG", "TIFA"):
        own = numbers["models"][table]
        assert own["library"] < 1e-6
        for law in own["laws"].values():
            assert law["scores"] == sorted(law["scores"])  # as `rated_files` has it
        assert numbers["agreement"]["the fitted reward"][table][0] > 0.7
    assert abs(numbers["rankings"]["place"]) < 4 * numbers["rankings"]["place_error"]


NUMBERS: dict[tuple[str, str], Callable[[dict[str, Any], str, list[str]], None]] = {
    ("mallows", "exact"): mallows_exact,
    ("mallows", "dispersion"): mallows_dispersion,
    ("reward-gap", "closed-forms"): closed_forms,
    ("reward-gap", "toy"): gap_while_learning,
    ("score-as-action", "few-step"): few_steps,
    ("continuous-rl", "control"): control,
    ("reward-model", "people"): people,
}
"""What more is known of a part's numbers; here, so that no part is rehearsed twice."""


# ---------------------------------------------------------------------------- arms

ARMED = {
    "gap flow": gap_training.FLOW,
    "gap scenes": gap_training.SCENES,
    "gap window": gap_window,
    "guard hackable": guard_hackable,
    "guard honest": guard_honest,
    "scenes": prompt_following.SHIPPED,
    "scenes jpeg": scenes_jpeg,
}


@pytest.mark.parametrize("part", ARMED.values(), ids=ARMED)
def test_every_arm_is_a_run_that_can_be_made(part):
    """A rehearsal runs one arm: the settings of all are checked here."""
    for cell in part.cells(1, False):
        if cell.function is fine_tune:
            run = overrides.changed(
                recipes.named(cell.arguments["recipe"]), cell.arguments["changes"]
            )
            ready(run)
            assert f"seed={run.seed}" in cell.arguments["changes"]


def test_every_arm_on_preferences_is_a_run_that_can_be_made(tmp_path):
    """Those that are reported and those of the tuning, which has other seeds."""
    folder = judged.pairs_folder(tmp_path / "pairs")
    seeds: dict[str, set[int]] = {}
    for part in (preference_scenes, preference_scenes.TUNING):
        for cell in part.cells(3, False):
            if cell.function is not preference_scenes.learned:
                continue
            changes = [*cell.arguments["changes"], f"data={folder}"]
            if not cell.arguments["pairs"]:
                changes.pop()
            run = overrides.changed(recipes.named(cell.arguments["recipe"]), changes)
            check_settings(run)
            seeds.setdefault(str(part), set()).add(run.seed)
    reported, tuned = seeds.values()
    assert not reported & tuned


def test_a_rehearsal_runs_the_arm_that_others_are_compared_with():
    for part in (FLOW, gap_training.SCENES, gap_window, SHIPPED, scenes_jpeg):
        (cell,) = part.cells(1, True)
        assert cell.name in {whole.name for whole in part.cells(1, False)}


def test_a_page_compares_every_arm(tmp_path):
    """By the numbers of one run in the place of all."""
    judge = [{"overall": 0.5}, {"overall": 0.7}]
    lines = [
        {"update": k, "network_evaluations": 10 * k, "judge": overall, "reader": overall}
        | {"reward": {"deterministic": 0.1 * k}}
        for k, overall in enumerate(judge)
    ]
    gaps = [
        {"update": k, "rows": [{"eta": eta, "gap": 0.1, "gap_low": 0.0, "gap_high": 0.2}]}
        for k, eta in enumerate((1.0, 1.0))
    ]
    result = {"network_evaluations": 20, "chain_kl": 1.0, "seconds": 2.0}
    result["reward_evaluations"] = 30
    run = {"result": result, "evaluations": lines, "gaps": gaps}
    for part, count in ((FLOW, 4), (gap_window, 2), (SHIPPED, 5), (scenes_jpeg, 3)):
        cells = part.cells(2, False)
        page = Page(tmp_path, "A title", "a command")
        numbers = part.present({cell.name: run for cell in cells}, page)
        json.dumps(numbers, allow_nan=False)
        head = next(k for k, line in enumerate(page.lines) if line.startswith("|---|"))
        assert page.lines.index("", head) - head - 1 == count
    assert numbers["GRPO"]["reached DDPO's best at"] == [10, 10]
    compared = FLOW.present({c.name: run for c in FLOW.cells(1, False)}, page)["compared"]
    assert set(compared) == {"η = 0.5", "η = 1.2", "η = 1.5"}


# ---------------------------------------------------------------------------- cells


def count(folder: Path, name: str, fail: bool = False) -> dict[str, int]:
    """A cell that notes in a file how often it was done."""
    if fail:
        raise ValueError(name)
    with (folder / name).open("a", encoding="utf-8") as file:
        file.write("x")
    return {"done": len((folder / name).read_text(encoding="utf-8"))}


def cell(name: str, **arguments: object) -> Cell:
    return Cell(name, count, {"name": name, **arguments}, keeps_files=True)


def test_finished_cells_are_not_repeated(tmp_path):
    with pytest.raises(ValueError, match="b"):
        run_cells([cell("a"), cell("b", fail=True)], tmp_path)
    assert run_cells([cell("a"), cell("b")], tmp_path) == {"a": {"done": 1}, "b": {"done": 1}}


def test_a_cell_with_other_arguments_is_done_again(tmp_path):
    run_cells([cell("a")], tmp_path)
    assert run_cells([cell("a", fail=False)], tmp_path) == {"a": {"done": 2}}


def test_a_torn_file_is_no_result(tmp_path):
    run_cells([cell("a")], tmp_path)
    (tmp_path / "cells" / "a.json").write_text('{"arguments": {', encoding="utf-8")
    assert run_cells([cell("a")], tmp_path) == {"a": {"done": 2}}


def test_many_processes_find_what_one_finds(tmp_path):
    seen: list[tuple[int, int]] = []
    cells = [cell(name) for name in "abc"]
    found = run_cells(cells, tmp_path, jobs=2, watch=lambda name, n, of: seen.append((n, of)))
    assert found == {name: {"done": 1} for name in "abc"}
    assert list(found) == ["a", "b", "c"]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_the_work_of_a_stopped_experiment_adds_up(tmp_path):
    run_cells([cell("a")], tmp_path)
    kept = tmp_path / "cells" / "a.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"seconds": 7.0}))
    run_cells([cell("a"), cell("b")], tmp_path)
    assert 7 <= spent([cell("a"), cell("b")], tmp_path) < 8


def test_the_same_numbers_make_the_same_page(tmp_path):
    from matplotlib.figure import Figure

    texts = []
    for name in ("one", "two"):
        page = Page(tmp_path / name, "Title", "command")
        figure = Figure()
        figure.add_subplot().plot([0, 1], [1, 0])
        page.figure("curve", figure, "a line")
        page.write({"numbers": [1]}, 0.0)
        texts.append((tmp_path / name / "curve.svg").read_bytes())
    assert texts[0] == texts[1]


# ---------------------------------------------------------------------------- numbers


def run_of(*levels: float) -> dict[str, object]:
    lines = [{"network_evaluations": 10 * k, "judge": {"overall": v}} for k, v in enumerate(levels)]
    return {"evaluations": lines}


def test_a_beta_is_looked_for_by_the_distance_that_it_leads_to():
    """A KL of 4/β nats is 8 at β = ½: what was tried is widened, then a line of logarithms hits."""
    for start in (0.01, 0.4, 30.0):
        trials = {start: 4 / start}
        for _ in range(9):
            beta = rainbow_switches.next_beta(trials)
            trials[beta] = 4 / beta
            if abs(beta - 0.5) < 1e-9:
                break
        assert beta == pytest.approx(0.5)
        assert len(trials) < 7


def test_intervals_golden():
    # Student's t with two degrees of freedom: 4.303 · 0.1 / √3.
    assert interval([0.1, 0.2, 0.3]) == pytest.approx((0.2, -0.0484138, 0.4484138))
    assert interval([0.5]) == (0.5, 0.5, 0.5)


def test_a_run_goes_on_only_if_it_is_the_same(small, tmp_path):
    changes = [*small, "reward=compressibility", "sizes.group=2"]
    first = fine_tune("ddpo", changes, "one", tmp_path)
    again = fine_tune("ddpo", changes, "one", tmp_path)
    assert again["evaluations"][0] == first["evaluations"][0]
    assert again["result"]["network_evaluations"] == first["result"]["network_evaluations"]
    other = fine_tune("ddpo", [*changes, "sampling.steps=2"], "one", tmp_path)
    fresh = fine_tune("ddpo", [*changes, "sampling.steps=2"], "two", tmp_path)
    for run in (other, fresh):
        assert [line["network_evaluations"] for line in run["evaluations"]] == [
            0,
            12,
        ]  # (2 + 1) · 2 an update
    assert other["evaluations"][-1]["reward"] == fresh["evaluations"][-1]["reward"]
    described = json.loads((tmp_path / "runs" / "one" / "run.json").read_text(encoding="utf-8"))
    _, verb, recipe, *words = shlex.split(described["command"])  # what repeats it
    assert (verb, recipe, words[-2:]) == ("train", "ddpo", ["--threads", "1"])
    assert overrides.changed(recipes.named(recipe), words[:-2]) == recorded(
        tmp_path / "runs" / "one"
    )
    run, picture = tmp_path / "runs" / "one", tmp_path / "a.png"
    assert draw(run, ["a red seven"], picture, steps=2, seed=0, count=1)


def test_gains_and_when_a_level_is_reached():
    runs = [run_of(0.4, 0.5, 0.7), run_of(0.4, 0.7, 0.6)]
    assert gain(runs, "judge")[0] == pytest.approx(0.25)
    assert best(runs, "judge") == pytest.approx(0.65)
    assert reached(runs, "judge", 0.7) == [20, 10]
    assert reached(runs, "judge", 0.71) == [None, None]
    assert points((0.205, 0.167, 0.242)) == "+20.5 [+16.7, +24.2]"


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["score-as-acton"], "did you mean 'score-as-action'"),
        (["score-as-action", "--part", "toys"], "did you mean 'toy'"),
        (["score-as-action", "--part", "hard"], "needs --model FOLDER/model"),
    ],
)
def test_a_mistake_is_one_line(arguments, said, command, tmp_path):
    done = command("reproduce", *arguments, "--out", tmp_path / "out")
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
