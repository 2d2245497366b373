"""Score networks in a measured space: planned, trained, drawn from, resumed, tuned, refused."""

from __future__ import annotations

import json
import math
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

import scoretune
from data_runs import assert_same_run, configured, killed_child, launch, lines_of
from scoretune import recipes
from scoretune.commands.compress import training_command
from scoretune.compressed import BASES, OPERATORS, RULES
from scoretune.core.config import Compress
from scoretune.core.errors import UserError
from scoretune.data.datasets import read_data
from scoretune.models import score_network as scores
from scoretune.models.compression import Certificate
from scoretune.training import compressing, overrides, run_folder

SIDE = 12


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pictures of 12×12 with seven bright pixels in a row somewhere; a name without its ending."""
    rng, path = np.random.default_rng(0), tmp_path_factory.mktemp("data") / "dashes.npy"
    images = np.zeros((80, SIDE, SIDE), dtype=np.float32)
    for image in images:
        row, column = rng.integers(0, SIDE), rng.integers(0, SIDE - 7)
        image[row, column : column + 7] = rng.uniform(0.4, 1.0, 7)
    np.save(path, images)
    return path


def run_on(pictures: Path, *changes: str):
    own = ["updates=6", "evaluation.samples=16", "sizes.batch=16", "compress.ratio=auto"]
    return configured(f"data={pictures}", *own, *changes)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("compressed") / "run"
    launch(run_on(pictures), folder)
    return folder


def test_a_run_says_what_it_measured_and_draws_pictures(command, finished, tmp_path):
    result = json.loads((finished / "result.json").read_text())
    plan = result["compress"]
    assert plan["basis"] == "identity" and 6.5 < plan["sparsity"] <= 7
    assert plan["delta"] < plan["m"] < SIDE**2 / 2 and plan["predicted_error"] < 0.05
    assert result["decoder"]["decoded"] == 16
    policy = scoretune.load(finished)
    model = policy.backbone
    assert model.shape == (plan["m"],) and model.data_shape == (1, SIDE, SIDE)
    drawn = model.decode(torch.randn(3, *model.shape))
    assert drawn.shape == (3, 3, SIDE, SIDE)
    assert float(drawn.min()) >= 0 and float(drawn.max()) <= 1
    done = command("sample", finished, "--count", "5", "--out", tmp_path / "drawn.npz")
    assert done.code == 0, done.err
    assert np.load(tmp_path / "drawn.npz")["samples"].shape == (5, SIDE, SIDE, 1)
    again = command("evaluate", finished, "--json")
    assert again.code == 0, again.err
    last = json.loads(again.out.splitlines()[-1])
    assert last["sliced_wasserstein"] == result["data"]["sliced_wasserstein"]["final"]


def test_held_out_pictures_come_back_from_their_measurements(finished, pictures):
    model = scoretune.load(finished).backbone
    images = read_data(str(pictures)).states[:20]
    x0 = model.embed(images)
    assert float(x0.std()) == pytest.approx(1, abs=0.15)
    back = model.decode(x0)[:, :1]
    assert float((back - images).norm() / images.norm()) < 0.06
    error, _ = compressing.measured_error(model.compression, images)
    assert error < 0.06 and not model.compression.certificate.warnings()


def test_recovery_from_the_linear_guess_is_that_from_zero_and_sooner(finished, pictures, tmp_path):
    model = scoretune.load(finished).backbone
    y = model.compression.measure(read_data(str(pictures)).states)
    y = y + 0.1 * y.std() * torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    assert model.compression.linear is not None
    warm, cold = (
        replace(model.compression, linear=linear, precision=1e-3, iterations=5000)
        for linear in (model.compression.linear, None)
    )
    first, second = warm.recover(y), cold.recover(y)
    assert float((first - second).norm() / second.norm()) < 2e-3
    assert not warm.certificate.missed + cold.certificate.missed
    assert warm.certificate.iterations < 0.9 * cold.certificate.iterations
    model.compression = cold  # as models were saved that have no guess
    assert scores.load(scores.save(model, tmp_path / "model")).compression.linear is None


@pytest.fixture(scope="module")
def smooth(tmp_path_factory) -> Path:
    """Dense pictures of four smooth patterns: in no basis sparse, in four dimensions."""
    rng, path = np.random.default_rng(1), tmp_path_factory.mktemp("smooth") / "smooth.npy"
    side = np.linspace(0, np.pi, SIDE)
    wave = [np.cos(k * side)[:, None] * np.cos(j * side) for k, j in ((0, 1), (1, 0), (1, 1))]
    weights = rng.uniform(-0.15, 0.15, (120, 3, 1, 1))
    np.save(path, (0.5 + (weights * np.stack(wave)).sum(1)).astype(np.float32))
    return path


def test_a_linear_decoder_needs_few_measurements_of_what_is_not_sparse(command, smooth, tmp_path):
    refused = command(
        "compress", "check", smooth, "compress.ratio=0.1", "--out", tmp_path / "a.png"
    )
    assert refused.code == 1 and "or compress.decoder=linear (error" in refused.out
    linear = ["compress.decoder=linear", "compress.tolerance=0.03"]
    done = command("compress", "check", smooth, *linear, "--json", "--out", tmp_path / "b.png")
    assert done.code == 0, done.err
    report = json.loads(done.out.splitlines()[-1])
    by_m = {row["m"]: row["measured_error"] for row in report["recovery"]}
    assert report["plan"]["m"] < 20 and by_m[report["plan"]["m"]] < 0.035
    launch(run_on(smooth, *linear), tmp_path / "run")
    model = scoretune.load(tmp_path / "run").backbone
    assert model.compression.decoder == "linear" and model.compression.m == report["plan"]["m"]
    images = read_data(str(smooth)).states
    back = model.decode(model.embed(images))[:, :1]
    assert float((back - images).norm() / images.norm()) < 0.035
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert "decoder" not in result and result["compress"]["linear_error"] < 0.03
    y = torch.randn(2, *model.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model.compression.recover, y)


def test_a_unet_learns_from_measurements_in_a_square(pictures, tmp_path):
    changes = ["model.source=unet", "model.width=8", "model.depth=2", "updates=1"]
    changes += ["evaluation.samples=2", "evaluation.every=0", "compress.ratio=0.25"]
    launch(run_on(pictures, *changes, "compress.operator=hadamard"), tmp_path / "run")
    model = scoretune.load(tmp_path / "run").backbone
    assert model.shape[1] == model.shape[2] and model.content == "images"
    assert model.compression.m == model.shape[1] ** 2
    assert model.compression.operator == "hadamard" and model.compression.linear is None


def test_series_are_measured_in_a_basis_of_their_own(tmp_path):
    time = np.arange(64)
    rng = np.random.default_rng(0)
    waves = np.stack(
        [
            5 + np.cos(np.pi * (2 * time + 1) * rng.integers(1, 9) / 128) * rng.uniform(1, 2)
            for _ in range(60)
        ]
    )
    np.save(tmp_path / "waves.npy", waves[:, :, None])
    changes = ["dataset.kind=series", "updates=1", "evaluation.samples=8"]
    run = configured(f"data={tmp_path}/waves.npy", *changes, "compress.ratio=auto")
    result = launch(run, tmp_path / "run")
    assert result["compress"]["basis"] == "dct" and result["compress"]["sparsity"] < 3
    model = scoretune.load(tmp_path / "run").backbone
    states = read_data(f"{tmp_path}/waves.npy", run.dataset).states[:9]
    back = model.decode(model.embed(states))
    assert back.shape == states.shape
    spread = (states - states.mean()).norm()
    assert float((back - states).norm() / spread) < 0.1


@pytest.mark.slow  # quick in `test_from_data.py`: what a decoder adds is drawn once, and kept
def test_kills_change_nothing(pictures, tmp_path):
    changes = ["updates=12", "evaluation.every=5", "evaluation.samples=4", "checkpoints.every=3"]
    run = run_on(pictures, *changes)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    log, kills = folder / "metrics.jsonl", 0
    for goal in (2, 7):
        code = killed_child(run, folder, lambda goal=goal: len(lines_of(log)) >= goal)
        kills += code == -signal.SIGKILL
    assert kills
    launch(run, folder)
    assert_same_run(folder, undisturbed)


def test_a_reward_with_a_gradient_fine_tunes_it_through_the_decoder(
    finished, tmp_path, monkeypatch
):
    (tmp_path / "bright_reward.py").write_text(
        "def bright(x, prompts): return 100 * x.flatten(1).mean(1)\n"
    )
    monkeypatch.delitem(sys.modules, "bright_reward", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = [f"model.source={finished}", "reward=bright_reward:bright", "updates=2"]
    changes += ["sizes.prompts=1", "sizes.group=4", "sampling.steps=3", "model.rank=4"]
    changes += ["evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=0"]
    run = overrides.changed(recipes.named("score_as_action"), changes)
    launch(run, tmp_path / "run")
    tuned = scoretune.load(tmp_path / "run").backbone
    assert tuned.compression is not None
    ups = [p for name, p in tuned.network.named_parameters() if "lora_B" in name]
    assert ups and all(float(up.detach().abs().max()) > 0 for up in ups)  # they begin at 0
    x0 = tuned.embed(torch.rand(2, 1, SIDE, SIDE).round() * 0.5).requires_grad_(True)
    (slope,) = torch.autograd.grad(tuned.decode(x0).sum(), x0)
    assert bool(slope.isfinite().all()) and float(slope.abs().max()) > 0


def test_what_is_missing_of_the_operator_is_said(finished, tmp_path):
    model = scores.load(finished / "model")
    folder = scores.save(model, tmp_path / "model", {})
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"compression": None}, "config.json lacks the operator"),
        ({"compression": config["compression"] | {"seed": 5}}, "seed 5 draws another gaussian"),
        ({"compression": config["compression"] | {"m": 3}}, "draws another gaussian"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(UserError, match=said):
            scores.load(folder)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["compress.ratio=1.5"], "compress.ratio: Input should be less than or equal to 1"),
        (["compress.ratio=many"], "compress.ratio: Input should be a valid number"),
        (["compress.ratio=0.1"], "14 measurements are below the 24"),
        (["compress.basis=dct"], "not sparse in dct"),
        (["compress.basis=db4", "data=moons"], "does not exist for states of shape [2]"),
        (["compress.decoder=linear", "compress.basis=dct"], "compress.basis=dct is of no use here"),
        (["compress.decoder=linear"], "a linear decoder of"),
        (["compress.ratio=null", "compress.seed=1"], "compress.seed=1 is of no use here"),
    ],
)
def test_what_does_not_fit_is_one_line(command, tmp_path, pictures, changes, line):
    words = ["model.source=mlp", f"data={pictures}", "compress.ratio=auto", *changes]
    said = command("train", "supervised", *words, "--run", tmp_path / "r")
    assert said.code == 2 and "Traceback" not in said.err
    assert line in said.err.splitlines()[-1], said.err
    assert not (tmp_path / "r").exists()


def test_below_the_threshold_only_by_force(pictures):
    data, forced = read_data(str(pictures)), run_on(pictures, "compress.ratio=0.1").compress
    with pytest.raises(UserError, match=r"compress\.force=true \(predicted error \d+%\)"):
        compressing.plan(data, forced, square=False, source="x")
    forced = forced.model_copy(update={"force": True})
    plan = compressing.plan(data, forced, square=False, source="x")
    assert plan.m == 14 and plan.chosen.predicted_error(14) > 0.2


def test_compress_check(command, pictures, tmp_path):
    out = tmp_path / "seen.png"
    done = command("compress", "check", pictures, "--out", out, "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out.splitlines()[-1])
    assert report["bases"][0]["basis"] == "identity" and out.stat().st_size > 500
    by_m = {row["m"]: row for row in report["recovery"]}
    kept = by_m[report["plan"]["m"]]
    assert kept["measured_error"] < 0.06 and report["refusal"] is None
    below = min(by_m)
    assert by_m[below]["measured_error"] > 0.2 and by_m[below]["predicted_error"] > 0.2
    shown = command("compress", "check", pictures, "compress.basis=dct", "--out", out)
    assert shown.code == 1 and "not sparse in dct" in shown.out and "identity needs" in shown.out
    broken = np.load(pictures)
    broken[3, 2, 2] = np.nan
    np.save(tmp_path / "broken.npy", broken)
    said = command("compress", "check", tmp_path / "broken.npy")
    assert said.code == 2 and "not finite, first in entry 3" in said.err
    said = command("compress", "check", pictures, "--out", tmp_path / "seen")
    assert said.code == 2 and "choose --out name.png" in said.err


def test_the_check_says_how_to_train_as_it_looked():
    assert training_command("x.npy", []) == (
        "scoretune train supervised data=x.npy model.source=mlp compress.ratio=auto"
    )
    changes = ["compress.basis=haar", "model.source=unet", "model.process=VP()"]
    assert training_command("x.npy", changes) == (
        "scoretune train supervised data=x.npy model.source=unet compress.ratio=auto "
        "compress.basis=haar 'model.process=VP()'"
    )


def test_the_words_of_the_settings_are_the_names_of_the_library():
    for name, words in (
        ("basis", ("auto", *BASES)),
        ("operator", ("auto", *OPERATORS)),
        ("rule", RULES),
    ):
        assert get_args(Compress.model_fields[name].annotation) == words, name


def test_a_decoder_that_stopped_early_is_said():
    certificate = Certificate(0.02)
    certificate.add(torch.tensor([0.01, 0.02]), torch.tensor([10, 20]))
    assert not certificate.warnings()
    certificate.add(torch.tensor([0.5, math.nan]), torch.tensor([500, 500]))
    (line,) = certificate.warnings()
    assert "stopped early for 2 of 4 samples (worst violation of optimality 0.5" in line
    assert certificate.as_dict()["iterations"] == 257.5
    certificate.reset()
    assert certificate == Certificate(0.02)


def test_settings_travel(pictures, tmp_path):
    run = run_on(pictures, "compress.weight=0.02", "compress.seed=9")
    run_folder.record(run, tmp_path / "run", threads=1)
    assert run_folder.recorded(tmp_path / "run").compress == run.compress
