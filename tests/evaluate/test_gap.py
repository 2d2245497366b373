"""The reward gap: exact where it is known, paired, resumable, and one line for each mistake."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from scoretune import recipes
from scoretune.commands.gap import measure as gap_measure
from scoretune.core import config
from scoretune.core.config import Sampling
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.data.scenes import world
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VE, VP, Process, RectifiedFlow
from scoretune.diffusion.theory import gaussian
from scoretune.diffusion.theory.reward_gap import gap as exact_gap
from scoretune.evaluate import gap, samples
from scoretune.evaluate.gap import (
    BASE,
    ODE,
    STOCHASTIC,
    TUNED,
    Cell,
    Comparison,
    Matrix,
    Sampler,
    explanation,
    matrix_of,
)
from scoretune.evaluate.scores import evaluation_line, measure
from scoretune.models import export, lora, lora_files, toy
from scoretune.models.families import FAMILIES
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.policy import Policy
from scoretune.rewards.catalog import named_reward
from scoretune.training import overrides, run_folder
from scoretune.training.build import held_out_prompts
from scoretune.training.hooks import Silent
from scoretune.training.run import launch
from scoretune.training.run_folder import load
from slow_cases import slow

ETAS = (0.5, 1.0, 2.0)


def nothing(count: int) -> Prompts:
    return Prompts(("",) * count, ("all",) * count)


def near(centre: float):
    """r = −(x − c)² of one-dimensional samples."""
    return lambda images, prompts: -((images[:, 0] - centre) ** 2)


def comparison(
    count: int, *, centre: float = 1.0, grid: str = "karras", seed: int = 0
) -> Comparison:
    return Comparison(nothing(count), near(centre), "near", Sampling(grid=grid), seed)


def matrix(policy: Policy, plan: Matrix, on: Comparison) -> list[gap.Row]:
    found = {cell: gap.rewards_of(policy, cell, on) for cell in plan.cells}
    return gap.rows(plan, found, on, policy.backbone.process)


# ------------------------------------------------------------------------------ which cells


def test_the_ode_is_always_there_and_noise_needs_an_eta():
    plan = matrix_of((20, 5, 5), (1.5, 0, 0.5, 0.5), ("gddim", "heun"))
    names = [str(sampler) for sampler in plan.samplers]
    assert names == ["ddim", "heun", "gddim η=0.5", "gddim η=1.5"]
    assert plan.steps == (5, 20)
    assert len(plan.cells) == len(plan.shown) == 8
    assert matrix_of((5,), (0.0,)).samplers == (ODE,)


def test_the_fine_grid_is_drawn_but_has_no_row():
    plan = matrix_of((5, 10), (1,), fine=40, models=(BASE, TUNED))
    assert {cell.steps for cell in plan.cells} == {5, 10, 40}
    assert {cell.steps for cell in plan.shown} == {5, 10}
    assert plan.cells[0] == Cell(ODE, 5, BASE)
    assert len(matrix_of((5, 10), (1,), fine=10).cells) == 4  # of which one grid serves for both


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (((), (1,)), "list of steps is empty"),
        (((5,), ()), "list of eta is empty"),
        (((5,), (1,), ()), "list of solver is empty"),
        (((5, 0), (1,)), "0 steps are none"),
        (((5,), (1, -0.5)), "eta=-0.5 is no stochasticity"),
        (((5,), (math.nan,)), "eta=nan is no stochasticity"),
        (((5,), (math.inf,)), "eta=inf is no stochasticity"),
        (((5,), (1,), ("gdim",)), "did you mean 'gddim'"),
        (((5,), (1,), ("rk45",)), "'rk45' has no η or no number of steps"),
    ],
)
def test_what_makes_no_matrix(arguments, said):
    with pytest.raises(UserError, match=said):
        matrix_of(*arguments)


# ------------------------------------------------------------------------------ known answers

TABLE = {  # W2 on N(1, 0.25) under VP(0.1, 20) from the exact law at 1 to 1e-3, uniform times
    Sampler("euler"): {10: 3.109e-02, 40: 9.215e-03},
    Sampler("heun"): {10: 1.516e-02, 40: 1.118e-03},
    Sampler("edm_heun"): {10: 3.515e-02, 40: 2.250e-03},
    Sampler("ddim"): {10: 1.257e-01, 40: 3.410e-02},
    Sampler("dpmpp_2m"): {20: 1.117e-01, 40: 3.959e-02},
    Sampler("gddim", 0.5): {10: 1.389e-01, 40: 4.272e-02},
    Sampler("gddim", 1.2): {10: 1.782e-01, 40: 7.824e-02},
    Sampler("ddim_eta", 1.0): {10: 1.666e-01, 40: 6.618e-02},
    Sampler("euler_maruyama", 2.0): {20: 9.055e-02, 40: 3.648e-02},
    Sampler("exponential", 1.0): {10: 1.517e-01, 40: 3.375e-02},
}


@pytest.mark.parametrize("sampler", TABLE, ids=str)
def test_the_error_on_gaussian_data_is_the_known_one(sampler):
    for steps, expected in TABLE[sampler].items():
        times = grids.uniform(VP(), steps, dtype=torch.float64)
        assert gap.gaussian_w2(VP(), sampler, times) == pytest.approx(expected, rel=1e-3)


def test_every_sampler_has_an_error_or_a_memory():
    for name in STOCHASTIC:
        found = gap.gaussian_w2(VP(), Sampler(name, 1.0), grids.karras(VP(), 10))
        assert (found is None) == (name == "dpmpp_2m_sde")
    times = grids.uniform(RectifiedFlow(), 10)
    assert gap.gaussian_w2(RectifiedFlow(), ODE, times) > 0
    assert gap.gaussian_w2(RectifiedFlow(), Sampler("gddim", 1.0), times) > 0


def reached(process: Process, steps: int, eta: float) -> float:
    """E r of gDDIM's own steps on N(2/3, 1/3) with r = −(x − 1)², exactly."""
    times = comparison(1).times(process, steps)
    mean, variance = gaussian.after_steps(process, GDDIM(eta), times, mean=2 / 3, variance=1 / 3)
    return -((mean - 1) ** 2) - variance


@pytest.mark.parametrize("seed", [0, slow(1)])
def test_the_measured_gap_is_the_exact_one_of_n_steps(seed):
    process = VE(0.01, 5.0)
    policy = Policy(toy.Gaussian(process, 2 / 3, 1 / 3), GDDIM(1.0))
    found = matrix(policy, matrix_of((5, 20), (0.5, 2.0), fine=40), comparison(640, seed=seed))
    for row in found:
        at, fine = (
            [reached(process, steps, eta) for eta in (row["eta"], 0.0)]
            for steps in (row["steps"], 40)
        )
        exact = {"gap": at[0] - at[1], "bias": at[0] - fine[0], "gap_fine": fine[0] - fine[1]}
        for name, value in exact.items():
            error = (row[f"{name}_high"] - row[f"{name}_low"]) / 3.92
            assert row[name] == pytest.approx(value, abs=4 * error + 2e-6)


def test_the_exact_gap_of_many_steps_is_that_of_continuous_time():
    process = VE(0.01, 5.0)
    limit = exact_gap(process, mean=2 / 3, variance=1 / 3, centre=1.0, eta=1.0)
    apart = [reached(process, n, 1.0) - reached(process, n, 0.0) - limit for n in (500, 1000)]
    assert abs(apart[1]) < 0.01
    assert apart[1] == pytest.approx(apart[0] / 2, rel=0.1)


@pytest.mark.slow
def test_an_interval_holds_the_truth_as_often_as_it_says():
    process = VE(0.01, 5.0)
    policy = Policy(toy.Gaussian(process, 2 / 3, 1 / 3), GDDIM(1.0))
    truth, hits = reached(process, 4, 1.0) - reached(process, 4, 0.0), 0
    for seed in range(100):
        _, row = matrix(policy, matrix_of((4,), (1,)), comparison(128, seed=seed))
        hits += row["gap_low"] <= truth <= row["gap_high"]
    assert 88 <= hits <= 99  # 95 of 100 are meant


# ------------------------------------------------------------------------------ laws


def test_gap_and_bias_add_up():
    """gap_N = gap_fine + bias(η) − bias(0), to rounding."""
    policy = Policy(toy.Gaussian(VP()), GDDIM(1.0))
    plan = matrix_of((3, 7), ETAS, ("gddim", "dpmpp_2m"), fine=15)
    found = matrix(policy, plan, comparison(50))
    plain = {row["steps"]: row for row in found if Sampler(row["solver"], row["eta"]) == ODE}
    assert len(found) == 10
    for row in found:
        total = row["gap_fine"] + row["bias"] - plain[row["steps"]]["bias"]
        assert row["gap"] == pytest.approx(total, abs=3e-6)
        assert row["gap"] == pytest.approx(row["reward"] - plain[row["steps"]]["reward"], abs=2e-6)
        assert row["ci_low"] < row["reward"] < row["ci_high"]
    assert all(row["gap"] == row["gap_low"] == row["gap_high"] == 0 for row in plain.values())
    assert "gap(15 steps)" in explanation(plan)


def test_differences_are_paired():
    """Rewards that differ by nearly a constant have a narrow interval, however far they spread."""
    spread = torch.linspace(-10, 10, 40)
    wiggle = torch.tensor([0.1, -0.1]).repeat(20)
    plan = matrix_of((4,), (1,), fine=8)
    noisy, on = plan.samplers[1], comparison(40)
    found = {Cell(s, n): spread for s in plan.samplers for n in (4, 8)}
    found[Cell(noisy, 4)] = spread + 2 + wiggle
    _, row = gap.rows(plan, found, on, VP())
    half = 1.96 * 0.1 * math.sqrt(40 / 39) / math.sqrt(40)
    for name in ("gap", "bias"):
        assert row[name] == pytest.approx(2, abs=1e-6)
        assert row[f"{name}_high"] - 2 == pytest.approx(half, abs=2e-6)
        assert 2 - row[f"{name}_low"] == pytest.approx(half, abs=2e-6)
    assert row["ci_high"] - row["reward"] > 1
    assert (row["gap_fine"], row["gap_fine_low"], row["gap_fine_high"]) == (0, 0, 0)


def test_what_was_not_found_is_none_and_not_zero():
    plan = matrix_of((4,), (1, 2))
    spread = torch.linspace(0, 1, 40)
    found = {Cell(ODE, 4): spread, Cell(plan.samplers[2], 4): "cannot"}
    rows = gap.rows(plan, found, comparison(40), VP())
    assert [row["eta"] for row in rows] == [0.0, 2.0]
    assert rows[0]["bias"] is None
    assert rows[1]["reason"] == "cannot"
    assert {rows[1][name] for name in ("reward", "ci_low", "gap", "gap_high", "bias")} == {None}


def test_all_walks_begin_in_the_same_noise_and_cost_no_training():
    policy = Policy(toy.Gaussian(VP()), GDDIM(1.0), calls=7)
    begun = []

    def walk(condition, x, generator):
        begun.append(x)
        return x

    for _ in range(2):
        samples.pictures(policy, nothing(70), walk=walk, seed=3, batch=64)
    assert torch.equal(torch.cat(begun[:2]), torch.cat(begun[2:]))
    first, second = (
        gap.rewards_of(policy, Cell(s, 4), comparison(70)) for s in (ODE, Sampler("gddim", 1e-9))
    )
    torch.testing.assert_close(first, second)  # gDDIM without noise is DDIM
    assert policy.calls == 7


def test_more_noise_than_a_step_holds_is_a_row_with_a_reason():
    policy = Policy(toy.Gaussian(VP()), GDDIM(1.0))
    rows = matrix(policy, matrix_of((5,), (1.0, 1.5), ("ddim_eta",)), comparison(8, grid="uniform"))
    assert [row["reward"] is None for row in rows] == [False, False, True]
    assert "more noise than a step can hold" in rows[2]["reason"]
    assert rows[2]["gap"] is None
    assert rows[2]["gaussian_w2"] is None


def test_samples_that_run_away_are_no_reward():
    process = VP()
    policy = Policy(toy.Gaussian(process), GDDIM(1.0))
    cell = Cell(Sampler("euler_maruyama", 1e19), 4)
    assert gap.rewards_of(policy, cell, comparison(8)) == gap.UNSTABLE


# ------------------------------------------------------------------------------ of a run


def tiny_run(tiny: list[str], *changes: str) -> config.Run:
    return overrides.changed(recipes.named("ddpo"), [*tiny, *changes])


def trained(run: config.Run, folder: Path) -> dict:
    run_folder.record(run, folder, threads=1)
    return launch(run, folder, Silent())


def lines_of(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


FAST = ("sampling.grid=karras", "optimiser.learning_rate=0.05")
"""With a grid that is named the matrix has the training's; else it has the model's own."""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, small) -> Path:
    """A finished small run, with matrices."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    trained(tiny_run(small, *FAST, "evaluation.gap.steps=[2,3]"), folder)
    return folder


def test_an_evaluation_tells_gap_from_bias(tuned):
    """stochastic − deterministic = gap + bias, and the gap is that of the matrix."""
    for line, matrices in zip(
        lines_of(tuned / "evaluations.jsonl"), lines_of(tuned / "gap.jsonl"), strict=True
    ):
        told = line["reward"]
        apart = told["stochastic"] - told["deterministic"]
        assert line["gap"]["mean"] + line["bias"]["mean"] == pytest.approx(apart, abs=2e-4)
        assert line["gap"]["low"] <= line["gap"]["mean"] <= line["gap"]["high"]
        assert (line["gap"]["steps"], line["gap"]["eta"]) == (3, 1.0)
        (row,) = [r for r in matrices["rows"] if (r["steps"], r["eta"]) == (3, 1.0)]
        assert line["gap"]["mean"] == pytest.approx(row["gap"], abs=1e-4)
        assert line["gap"]["high"] == pytest.approx(row["gap_high"], abs=1e-4)
        assert matrices["update"] == line["update"]
        assert matrices["network_evaluations"] == line["network_evaluations"]
        assert len(matrices["rows"]) == 8
    result = json.loads((tuned / "result.json").read_text())
    assert result["gap"]["final"] == line["gap"]
    assert result["bias"]["base"] != {}


def test_the_same_grid_and_solver_leave_no_bias(tiny):
    run = tiny_run(tiny, "sampling.grid=uniform", "evaluation.steps=3", "model.rank=0")
    policy = load("scenes")
    measured = measure(
        policy,
        held_out_prompts(run),
        reward=named_reward("reader"),
        reward_name="reader",
        metrics={},
        evaluation=run.evaluation,
        sampling=run.sampling,
    )
    line = evaluation_line(
        measured, run.evaluation, run.sampling, update=0, seconds=0.0, network_evaluations=0
    )
    assert line["bias"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert policy.calls == 0


def test_matrices_leave_no_trace_in_the_training(tuned, small, tmp_path):
    result = trained(tiny_run(small, *FAST), tmp_path / "plain")
    assert not (tmp_path / "plain" / "gap.jsonl").exists()
    weights = [
        hashlib.sha256((f / "lora" / lora_files.NAME).read_bytes()).hexdigest()
        for f in (tuned, tmp_path / "plain")
    ]
    assert weights[0] == weights[1]
    spent = json.loads((tuned / "result.json").read_text())["network_evaluations"]
    assert result["network_evaluations"] == spent


def test_a_resumed_run_measures_the_end_once(tuned, small):
    before = lines_of(tuned / "gap.jsonl")
    again = [*before, {"update": 9, "rows": []}]
    (tuned / "gap.jsonl").write_text("".join(json.dumps(line) + "\n" for line in again) + '{"upd')
    trained(tiny_run(small, *FAST, "evaluation.gap.steps=[2,3]"), tuned)
    assert lines_of(tuned / "gap.jsonl") == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["evaluation.every=2"], [0, 2, 4, 6, 7]),
        (["evaluation.every=2", "evaluation.gap.every=2"], [0, 4, 7]),
        (["evaluation.every=0"], [0, 7]),
        (["evaluation.gap.steps=[]"], []),
    ],
)
def test_when_a_matrix_is_due(tiny, changes, expected):
    run = tiny_run(tiny, "updates=7", "evaluation.gap.steps=[2]", *changes)
    evaluated = [u for u in range(8) if u in (0, 7) or u % 2 == 0]
    assert [u for u in evaluated if gap.due(run.evaluation, run.updates, u)] == expected


@pytest.mark.parametrize("wrong", ["steps=[0]", "steps=[2.5]", "etas=[-1]", "etas=[]", "every=0"])
def test_settings_that_make_no_matrix(tiny, wrong):
    with pytest.raises(UserError, match=r"evaluation\.gap"):
        tiny_run(tiny, f"evaluation.gap.{wrong}")


# ------------------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def shipped() -> Policy:
    return load("scenes")


@pytest.fixture
def kept(monkeypatch, shipped) -> Policy:
    """The shipped model, loaded once."""
    monkeypatch.setattr(gap_measure.run_folder, "load", lambda *_: shipped)
    return shipped


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """No figure, which is not what such a test looks at."""
    monkeypatch.setattr(gap_measure, "save_figure", lambda result, folder: None)


def request(model: str, **changes) -> gap_measure.Request:
    settings = {"steps": (2,), "etas": (0.0,), "solvers": ("gddim",), "fine": 0}
    return gap_measure.Request(model=model, **(settings | changes))


SHORT = ["--steps", "2,3", "--eta", "0,1", "--per-task", 1, "--fine", 4]


def test_the_command_writes_rows_and_a_figure(command, kept, tmp_path, monkeypatch):
    done = command("gap", "scenes", "--reward", "reader", *SHORT, "--out", tmp_path, "--json")
    assert done.code == 0, done.err
    told = json.loads(done.out.splitlines()[-1])
    kept = json.loads((tmp_path / "rows.json").read_text())
    assert told == kept
    assert told["finished"] is True
    assert told["prompts"] == 6
    assert [(r["solver"], r["eta"], r["steps"]) for r in told["rows"]] == [
        ("ddim", 0.0, 2),
        ("ddim", 0.0, 3),
        ("gddim", 1.0, 2),
        ("gddim", 1.0, 3),
    ]
    assert {row["model"] for row in told["rows"]} == {BASE}
    assert all(math.isfinite(row["gaussian_w2"]) for row in told["rows"])
    for name in ("gap.svg", "gap.png"):
        assert (tmp_path / name).stat().st_size > 5000
    monkeypatch.setattr(gap_measure, "save_figure", lambda result, folder: None)  # as before
    table = command("gap", "scenes", "--reward", "reader", *SHORT, "--out", tmp_path)
    assert "gddim η=1" in table.out
    assert "gap(4 steps)" in " ".join(table.out.split())


def test_finished_cells_are_not_drawn_again(monkeypatch, kept, undrawn, tmp_path):
    asked = request("scenes", reward="reader", steps=(2, 3), etas=(0.0, 1.0), per_task=1)
    drawn, plain = [], gap.rewards_of

    def stopped(policy, cell, on):
        if len(drawn) == 3:
            raise KeyboardInterrupt
        drawn.append(cell)
        return plain(policy, cell, on)

    monkeypatch.setattr(gap, "rewards_of", stopped)
    with pytest.raises(KeyboardInterrupt):
        gap_measure.measure(asked, out=tmp_path)
    part = json.loads((tmp_path / "rows.json").read_text())
    assert part["finished"] is False
    assert len(part["rows"]) == 3
    with (tmp_path / "cells.jsonl").open("a") as file:
        file.write('{"key": "cut sho\n')
    monkeypatch.setattr(gap, "rewards_of", lambda *a: drawn.append(a[1]) or plain(*a))
    whole = gap_measure.measure(asked, out=tmp_path)
    assert len(drawn) == 4
    assert len(whole["rows"]) == 4
    assert whole["rows"][0] == part["rows"][0]
    again = gap_measure.measure(asked, out=tmp_path)
    assert again["rows"] == whole["rows"]
    assert len(drawn) == 4


def test_a_cell_of_other_settings_is_another_cell(monkeypatch, kept, undrawn, tmp_path):
    drawn, plain = [], gap.rewards_of
    monkeypatch.setattr(gap, "rewards_of", lambda *a: drawn.append(a[1]) or plain(*a))

    def count(**changes) -> int:
        before = len(drawn)
        settings = {"reward": "brightness", "per_task": 1} | changes
        gap_measure.measure(request("scenes", **settings), out=tmp_path)
        return len(drawn) - before

    assert count() == 1
    assert count() == 0
    assert count(fine=3) == 1  # what was known stays known
    assert count(seed=5) == 1
    assert count(per_task=2) == 1
    assert count(reward="compressibility") == 1
    first = next(kept.backbone.network.parameters())
    with torch.no_grad():
        first.add_(1e-3)
        try:
            assert count() == 1
        finally:
            first.sub_(1e-3)


def test_a_run_before_and_after(tuned, undrawn):
    asked = request(str(tuned), steps=(3,), etas=(0.0, 1.0), before=True)
    found = gap_measure.measure(asked)
    assert found["out"] == str(tuned / "gap")
    models = [row["model"] for row in found["rows"]]
    assert models == [BASE, BASE, TUNED, TUNED]
    ends = [lines_of(tuned / "gap.jsonl")[i]["rows"] for i in (0, -1)]
    for rows, when in zip((found["rows"][:2], found["rows"][2:]), ends, strict=True):
        there = {r["eta"]: r for r in when if r["steps"] == 3}
        for row in rows:
            assert row["reward"] == pytest.approx(there[row["eta"]]["reward"], abs=1e-5)
            assert row["gap"] == pytest.approx(there[row["eta"]]["gap"], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["scenes"], "say what is rewarded"),
        (["scenes", "--reward", "readr"], "did you mean 'reader'"),
        (["scenes", "--reward", "reader", "--solver", "gddin"], "did you mean 'gddim'"),
        (["scenes", "--reward", "reader", "--steps", "5,x"], "--steps '5,x' is no list"),
        (["scenes", "--reward", "reader", "--steps", ","], "list of steps is empty"),
        (["scenes", "--reward", "reader", "--steps", "0"], "0 steps are none"),
        (["scenes", "--reward", "reader", "--eta", "1,-1"], "eta=-1 is no stochasticity"),
        (["scenes", "--reward", "reader", "--eta", "nan"], "eta=nan"),
        (["scenes", "--reward", "reader", "--before"], "has no adapter"),
        (["scenes", "--reward", "reader", "--prompts", "nowhere.txt"], "cannot read the prompt"),
        (["scenes", "--reward", "reader", "--lora", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_are_one_line(command, kept, tmp_path, arguments, said):
    done = command("gap", *arguments, "--out", tmp_path)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


# ------------------------------------------------------------------------------ LoRA files


def adapted(rank: int = 4) -> Policy:
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    add_adapter(backbone.network, rank=rank)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(backbone.network).items():
        if "lora_B" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return Policy(backbone, GDDIM(1.0))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Policy, Path]:
    policy, folder = adapted(), tmp_path_factory.mktemp("lora")
    export.lora(policy, folder)
    return policy, folder


def says(policy: Policy) -> torch.Tensor:
    backbone = policy.backbone
    x = torch.randn(2, *backbone.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        condition = backbone.encode(["a six", "two ones"])
        return policy.estimate(x, torch.tensor([0.5, 0.9]), condition).data


def older(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights by the names that diffusers gave them before peft."""
    names = {".lora_A.weight": ".lora.down.weight", ".lora_B.weight": ".lora.up.weight"}
    return {n.replace(end, names[end]): t for n, t in tensors.items() for end in names if end in n}


@pytest.mark.parametrize(
    "shape", ["folder", slow("file"), "run folder", "older names", "no prefix"]
)
def test_a_lora_is_read_back(exported, tmp_path, shape):
    policy, folder = exported
    tensors = load_file(folder / lora_files.NAME)
    path = {"folder": folder, "file": folder / lora_files.NAME}.get(
        shape, tmp_path / "x.safetensors"
    )
    if shape == "run folder":
        export.lora(policy, tmp_path / "lora")
        path = tmp_path
    elif shape == "older names":
        save_file(older(tensors), path)
    elif shape == "no prefix":
        save_file({n.removeprefix("unet."): t for n, t in tensors.items()}, path)
    bare = load("scenes")
    before = says(bare)
    lora.load_lora(bare.backbone.network, path)
    assert bare.parameters() == []
    torch.testing.assert_close(says(bare), says(policy))
    with bare.reference():
        torch.testing.assert_close(says(bare), before)
    assert float((says(bare) - before).abs().max()) > 1e-3


def test_ranks_and_alphas_of_their_own(exported, tmp_path):
    """A layer of another rank, and alphas in tensors: W + (α/r) B A, whatever the names."""
    policy, folder = exported
    tensors = load_file(folder / lora_files.NAME)
    first = next(n for n in tensors if n.endswith(".lora_A.weight"))
    up = first.replace("lora_A", "lora_B")
    other = dict(tensors)
    other[first] = torch.cat([tensors[first], torch.zeros_like(tensors[first])])
    other[up] = torch.cat([tensors[up], torch.zeros_like(tensors[up])], 1)
    layer = first.removesuffix(".lora_A.weight")
    other[f"{layer}.alpha"] = torch.tensor(float(len(other[first])))
    save_file(other, tmp_path / "x.safetensors")
    bare = load("scenes")
    lora.load_lora(bare.backbone.network, tmp_path / "x.safetensors")
    torch.testing.assert_close(says(bare), says(policy))


def wrong_files(folder: Path, tensors: dict[str, torch.Tensor]) -> dict[str, tuple[Path, str]]:
    wide = {n: torch.zeros(len(t), 3 * t.shape[1]) for n, t in tensors.items()}
    strange = {n.replace(".attn1.", ".attn7."): t for n, t in tensors.items()}
    spoken = tensors | {"text_encoder.q.lora_A.weight": torch.zeros(2, 2)}
    for name, chosen in {"wide": wide, "strange": strange, "spoken": spoken}.items():
        save_file({n: t.contiguous() for n, t in chosen.items()}, folder / f"{name}.safetensors")
    save_file({}, folder / "none.safetensors")
    save_file({"unet.x": torch.zeros(1)}, folder / "more.safetensors")
    (folder / "cut.safetensors").write_bytes(b"\x20\x00")
    (folder / "weights.bin").write_bytes(b"\x80\x04")
    (folder / "old").mkdir()
    (folder / "old" / "weights.pt").write_bytes(b"\x80\x04")
    return {
        "wide": (folder / "wide.safetensors", "is not of this model"),
        "strange": (folder / "strange.safetensors", r"it adapts .*attn7"),
        "spoken": (folder / "spoken.safetensors", "text encoder"),
        "none": (folder / "none.safetensors", "adapts nothing"),
        "more": (folder / "more.safetensors", "holds unet.x, which is neither A nor B of a layer"),
        "cut": (folder / "cut.safetensors", "cannot be read as safetensors"),
        "pickle": (folder / "weights.bin", "is a pickle"),
        "pickles": (folder / "old", "is a pickle"),
        "missing": (folder / "nothing.safetensors", "does not exist"),
        "many": (folder, "holds no one"),
    }


def test_a_lora_that_does_not_fit_is_said_in_a_line(exported, tmp_path):
    tensors = load_file(exported[1] / lora_files.NAME)
    network = load("scenes").backbone.network  # which each of them leaves as it is
    for path, said in wrong_files(tmp_path, tensors).values():
        with pytest.raises(UserError, match=said) as caught:
            lora.load_lora(network, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="already has an adapter"):
        lora.load_lora(exported[0].backbone.network, exported[1])


def test_the_command_takes_a_lora(command, exported, undrawn, tmp_path):
    short = ["--steps", 2, "--eta", "0,1", "--per-task", 1, "--fine", 0]
    flags = ["--reward", "brightness", *short, "--before", "--json", "--out", tmp_path]
    done = command("gap", "scenes", "--lora", exported[1], *flags)
    assert done.code == 0, done.err
    rows = json.loads(done.out.splitlines()[-1])["rows"]
    assert [row["model"] for row in rows] == [BASE] * 2 + [TUNED] * 2
    assert rows[0]["reward"] != rows[2]["reward"]
    run = tmp_path / "run"
    run_folder.record(overrides.changed(recipes.named("ddpo"), []), run, threads=1)
    refused = command("gap", run, "--lora", exported[1])
    assert refused.code == 2
    assert "give scenes as the model" in refused.err
