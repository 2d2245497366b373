"""Networks of one's own from data: training that resumes to the bit, measuring and drawing."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import scoretune
from data_runs import (
    SMALL,
    assert_same_run,
    configured,
    killed_child,
    launch,
    lines_of,
    weights_of,
)
from networks import score_network
from scoretune import recipes
from scoretune.core import checkpoints, config
from scoretune.core.errors import UserError
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveOU,
    ContractiveSubVP,
    Cosine,
    GeometricVE,
    RectifiedFlow,
    SubVP,
    noise_ratio,
)
from scoretune.evaluate import data_samples
from scoretune.evaluate.data_samples import DataSampler
from scoretune.models import score_network as scores
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.training import from_data, overrides, run_folder
from scoretune.training.hooks import Average, Silent
from slow_cases import quick_ones, slow

TINY = {
    "mlp": [],
    "unet": ["model.source=unet", "model.width=8", "model.depth=2"],
    "dit": ["model.source=dit", "model.width=32"],
}


# ---------------------------------------------------------------------------- a whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("fit") / "run"
    launch(configured(), folder)
    return folder


def test_what_a_run_leaves(finished):
    assert [line["update"] for line in lines_of(finished / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]
    evaluations = lines_of(finished / "evaluations.jsonl")
    assert [line["update"] for line in evaluations] == [0, 4, 6]
    result = json.loads((finished / "result.json").read_text())
    for name in ("held_out_loss", "sliced_wasserstein", "frechet"):
        numbers = result["data"][name]
        assert numbers["base"] == evaluations[0][name] and numbers["final"] == evaluations[-1][name]
    assert 0 < result["data"]["frechet"]["real"] < result["data"]["frechet"]["base"]
    shots = {path.name for path in (finished / "previews").iterdir()}
    assert shots == {"data.png", "before.png", "after.png", "newest.png"}
    page = (finished / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and page.count("<svg") >= 3
    assert "supervised on moons" in page and "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mlp", ["data=digits"]),
        ("unet", ["data=digits"]),
        ("dit", ["data=digits"]),
        ("mlp", ["model.process=VE(sigma_max=80)", "model.prediction=epsilon", "data=digits"]),
        ("mlp", ["model.process=RectifiedFlow", "model.prediction=velocity", "data=digits"]),
        ("mlp", ["model.process=ContractiveSubVP()", "model.prediction=sample", "data=digits"]),
        ("mlp", ["model.process=EDM", "evaluation.solver=heun", "data=digits"]),
        ("mlp", ["evaluation.solver=ddim", "objective.times=importance", "data=digits"]),
        ("mlp", ["objective.loss=sliced", "optimiser.ema=0"]),
    ],
)
def test_every_network_and_process_runs(tmp_path, kind, changes):
    run = configured(*TINY[kind], *changes, "updates=2", "evaluation.samples=8", "sizes.batch=4")
    result = launch(run, tmp_path / "run")
    assert all(np.isfinite(v["final"]) for v in result["data"].values())
    policy = scoretune.load(tmp_path / "run")
    assert isinstance(policy.backbone, ScoreNetwork)
    assert repr(policy.backbone.process).startswith(
        next((c for c in changes if "process" in c), "=VP").split("=")[1].split("(")[0]
    )


@pytest.mark.slow
def test_it_learns_and_its_average_is_what_is_saved(tmp_path):
    """500 updates bring the moons nearer than noise of their mean and deviation is."""
    run = configured("updates=500", "model.width=64", "evaluation.every=0", "sizes.batch=128")
    run = overrides.changed(run, ["checkpoints.every=500", "optimiser.ema=0.98", "model.depth=3"])
    run = overrides.changed(run, ["evaluation.samples=1000", "evaluation.steps=12"])
    numbers = launch(run, tmp_path / "run")["data"]
    assert numbers["sliced_wasserstein"]["final"] < 0.6 * numbers["sliced_wasserstein"]["base"]
    assert numbers["held_out_loss"]["final"] < 0.95 * numbers["held_out_loss"]["base"]
    saved = checkpoints.load(checkpoints.latest(tmp_path / "run" / "checkpoints"))
    kept = scores.load(tmp_path / "run" / "model").network.state_dict()
    assert all(torch.equal(kept[name], mean) for name, mean in saved["average"].items())
    assert any(not torch.equal(kept[name], w) for name, w in saved["policy"].items())
    loaded = scoretune.load(tmp_path / "run").backbone.network.state_dict()
    assert all(torch.equal(kept[name], loaded[name]) for name in kept)


def test_the_average_forgets_its_beginning():
    layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(layer.weight)
    average = Average(layer, 0.9)
    wanted = 0.0
    for k in range(1, 30):
        layer.weight.data.fill_(float(k))
        average(k, {})
        new = 1 - min(0.9, (1 + k) / (10 + k))
        wanted += new * (k - wanted)
    assert average.mean["weight"].item() == pytest.approx(wanted, rel=1e-5)
    with average.in_place():
        assert layer.weight.item() == pytest.approx(wanted, rel=1e-5)
    assert layer.weight.item() == 29
    plain = Average(layer, 0.0)
    layer.weight.data.fill_(3.3)
    plain(1, {})
    assert torch.equal(plain.mean["weight"], layer.weight)


# ---------------------------------------------------------------------------- killed, resumed


@pytest.mark.parametrize("recipe", ["supervised", slow("consistency")])
def test_kills_change_nothing(tmp_path, recipe):
    changes = ["updates=30", "evaluation.every=12", "checkpoints.every=7", "optimiser.ema=0.9"]
    changes += ["data=digits", "sizes.batch=8", "evaluation.samples=8"]
    rule = ["objective.rule=ct"] if recipe == "consistency" else []  # it has a target network
    run = configured(*changes, *rule, recipe=recipe)
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    launch(run, undisturbed)
    log, kills = folder / "metrics.jsonl", 0
    for goal in (3, 12, 20):  # before the first checkpoint, and between two
        code = killed_child(run, folder, lambda goal=goal: len(lines_of(log)) >= goal)
        kills += code == -signal.SIGKILL
    assert kills >= 2
    launch(run, folder)
    assert_same_run(folder, undisturbed)


@pytest.mark.slow  # quick in `test_resume.py`
def test_ctrl_c_saves_and_the_run_goes_on_as_if_nothing_had_been(tmp_path):
    from scoretune.training.run import launch as go

    run = configured("updates=6", "checkpoints.every=100", "evaluation.samples=8")
    launch(run, tmp_path / "undisturbed")

    class Impatient(Silent):
        def line(self, numbers: dict[str, Any]) -> None:
            if numbers.get("update") == 2:
                os.kill(os.getpid(), signal.SIGINT)

    folder = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        go(run, folder, Impatient(), begun=lambda: run_folder.record(run, folder, 1))
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["step-00000002"]
    launch(run, folder)
    assert_same_run(folder, tmp_path / "undisturbed")


def test_too_few_examples_are_refused_before_anything(tmp_path):
    from scoretune.training import run as running

    table = tmp_path / "few.csv"
    for rows, changes, said in (
        (14, [], "few.csv' holds 14 examples, too few to learn from .* give 15 or more"),
        (15, ["dataset.held_out=0.01"], "15 examples .* 1 would be held out, and 2 are needed"),
        (16, ["dataset.held_out=0.99"], "16 examples .* 1 would be learned from, and 2"),
    ):
        table.write_text("x,y\n" + "".join(f"{k},{k * k % 7}\n" for k in range(rows)))
        with pytest.raises(UserError, match=said):
            running.ready(configured(f"data={table}", *changes))
    running.ready(configured(f"data={table}"))


def test_a_finished_run_resumed_changes_nothing_and_another_seed_does(tmp_path):
    short = ["data=digits", "updates=2", "evaluation.samples=8"]
    for name, seed in (("once", 0), ("twice", 0), ("twice", 0), ("other", 1)):
        launch(configured(*short, f"seed={seed}"), tmp_path / name)
    assert_same_run(tmp_path / "twice", tmp_path / "once")
    assert weights_of(tmp_path / "other") != weights_of(tmp_path / "once")


# ---------------------------------------------------------------------------- going further


def test_it_is_trained_further_on_other_data(tmp_path, finished):
    points = np.random.default_rng(0).normal(size=(60, 2))
    np.save(tmp_path / "other.npy", points)
    for place in (finished, finished / "model"):
        run = overrides.changed(
            recipes.named("supervised"),
            [f"model.source={place}", f"data={tmp_path}/other.npy", "updates=2"],
        )
        assert overrides.of_data(run) and run.model.rank == 0 and run.model.process is None
        run = overrides.changed(run, ["evaluation.samples=40", "sizes.batch=8"])
        numbers = launch(run, tmp_path / place.name)["data"]
        assert numbers["held_out_loss"]["base"] != numbers["held_out_loss"]["final"]
    ours, theirs = (scores.load(f / "model") for f in (tmp_path / "run", finished))
    assert torch.equal(ours.mean, theirs.mean)  # its own standard, not the new data's


def test_it_is_distilled(tmp_path, finished):
    run = overrides.changed(
        recipes.named("consistency"), [f"model.source={finished}", "data=moons", "updates=2"]
    )
    run = overrides.changed(run, ["evaluation.samples=40", "evaluation.steps=1", "sizes.batch=8"])
    result = launch(run, tmp_path / "run")
    assert result["sampler"] == "consistency, 1 step"
    sampler, names = data_samples.noted(tmp_path / "run" / "model")
    assert sampler.jumps and names == ["x", "y"]


@pytest.mark.parametrize(
    ("kind", "data", "rank"),
    [
        ("mlp", "moons", 4),
        pytest.param("unet", "digits", 4, marks=pytest.mark.slow),
        ("mlp", "digits", 0),
    ],
)
def test_a_reward_fine_tunes_it(tmp_path, monkeypatch, kind, data, rank):
    (tmp_path / "my_reward.py").write_text("def right(x, prompts): return x.flatten(1)[:, 0]\n")
    monkeypatch.delitem(sys.modules, "my_reward", raising=False)  # another test's
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = configured(*TINY[kind], f"data={data}", "updates=1", "evaluation.samples=4")
    launch(base, tmp_path / "base")
    changes = [f"model.source={tmp_path}/base", "reward=my_reward:right", "updates=2"]
    changes += ["sizes.prompts=1", "sizes.group=4", "sampling.steps=3", f"model.rank={rank}"]
    changes += ["evaluation.per_task=1", "evaluation.steps=2", "evaluation.every=0"]
    run = overrides.changed(recipes.named("ddpo"), changes)
    assert run.prompts == "none"  # the network knows none
    launch(run, tmp_path / "run")
    if kind == "unet":  # pictures, each of no prompt
        shown = json.loads((tmp_path / "run" / "previews" / "prompts.json").read_text())
        assert set(shown["prompts"]) == {""}
    assert (tmp_path / "run" / "previews" / "after.png").exists()
    tuned, plain = scoretune.load(tmp_path / "run"), scoretune.load(tmp_path / "base")
    x, t = torch.randn(2, *plain.backbone.shape), torch.tensor([0.3, 0.9])
    both = [p.estimate(x, t, p.backbone.encode(["", ""])).data for p in (tuned, plain)]
    assert not torch.equal(*both)
    assert (len(tuned.parameters()) < len(plain.parameters())) == bool(rank)


# ---------------------------------------------------------------------------- the commands


def test_train_resume_evaluate_and_sample_by_command(command, tmp_path, finished):
    folder = tmp_path / "run"
    done = command("train", "supervised", *SMALL, "data=moons", "--run", folder, "--json")
    assert done.code == 0, done.err
    assert weights_of(folder) == weights_of(finished)
    assert json.loads(done.out.splitlines()[-1])["model"] == str(folder / "model")
    again = command("train", "--resume", folder)
    assert again.code == 0 and "sliced Wasserstein distance: " in again.err
    found = json.loads(command("evaluate", folder, "--json").out)
    last = lines_of(folder / "evaluations.jsonl")[-1]
    assert {k: found[k] for k in last if k in found} == {k: last[k] for k in last if k in found}
    assert found["real"]["frechet"] > 0
    for place in (folder, folder / "model"):
        out = tmp_path / f"{place.name}.npz"
        told = command("sample", place, "--count", 5, "--out", out, "--seed", 3)
        assert told.out == f"5 samples (dpmpp_2m, 3 steps) in {out}\n", told.err
    first, second = (np.load(tmp_path / f"{n}.npz")["samples"] for n in ("run", "model"))
    assert first.shape == (5, 2) and np.array_equal(first, second)
    drawn = command("sample", folder, "--steps", 4, "--out", tmp_path / "x.png")
    assert drawn.out.startswith("64 samples (dpmpp_2m, 4 steps)")
    with Image.open(tmp_path / "x.png") as image:
        assert image.width > 300


def test_pictures_and_series_are_written(tmp_path):
    images = torch.rand(3, 1, 4, 6)
    from scoretune.evaluate.report import gallery

    gallery.write(images, "images", tmp_path / "x.npz")
    stored = np.load(tmp_path / "x.npz")["samples"]
    assert stored.dtype == np.uint8 and stored.shape == (3, 4, 6, 1)
    assert np.allclose(stored[..., 0] / 255, images[:, 0], atol=1 / 255)
    series = torch.rand(3, 2, 5)
    gallery.write(series, "series", tmp_path / "y.npz")
    assert np.array_equal(np.load(tmp_path / "y.npz")["samples"], series.transpose(1, 2))
    gallery.write(images, "images", tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        grow = image.width // 13  # two columns of 6 and a line
        assert image.size == (13 * grow, 9 * grow)
        shade = np.asarray(image.convert("L"))[grow // 2, grow // 2]
    assert abs(int(shade) - 255 * float(images[0, 0, 0, 0])) <= 1
    for states, kind in (
        (series, "series"),
        (torch.rand(9, 1), "points"),
        (torch.rand(9, 5), "points"),
    ):
        gallery.show(states, kind, tmp_path / "z.png", real=states + 1)
        assert (tmp_path / "z.png").stat().st_size > 2000


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["data=mooons"], "unknown data 'mooons': did you mean 'moons'?"),
        (["model.process=VPP()"], "unknown process 'VPP': did you mean 'VP'?"),
        (["model.process=VE(sigma_maks=3)"], "did you mean 'sigma_max'?"),
        (["model.source=unet"], "a unet needs images, and a state here has shape (2,): choose mlp"),
        (["model.rank=4"], "model.rank=4 does not suit a network of one's own"),
        (["model.guidance=2"], "model.guidance=2.0 does not suit"),
        (["objective.dropout=0.1"], "objective.dropout=0.1 does not suit"),
        (["objective.t_min=2"], "objective.t_min=2 is not below the horizon 1 of VP"),
        (["model.prediction=v"], "model.prediction: Input should be 'epsilon'"),
        (["objective.times=log"], "objective.times: Input should be 'uniform'"),
        (["dataset.windw=3"], "unknown key 'dataset.windw': did you mean 'dataset.window'?"),
        (["dataset.held_out=1.0"], "dataset.held_out: Input should be less than 1"),
        (
            ["model.process=RectifiedFlow", "objective.times=importance"],
            "objective.times=importance: importance needs a finite",
        ),
        (
            ["model.process=RectifiedFlow", "model.prediction=epsilon"],
            "choose v_prediction, velocity or sample",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(command, tmp_path, changes, line):
    told = command("train", "supervised", *SMALL, "data=moons", *changes, "--run", tmp_path / "r")
    assert told.code == 2 and "Traceback" not in told.err
    assert line in told.err.splitlines()[-1]
    assert not (tmp_path / "r").exists()  # mend it and run the same command again


def test_what_is_of_other_runs_is_refused(command, tmp_path, finished, monkeypatch):
    def told(*arguments: object) -> str:
        outcome = command(*arguments)
        assert outcome.code == 2 and "Traceback" not in outcome.err
        return outcome.err.splitlines()[-1]

    assert "unknown model source 'unnet': did you mean 'unet'?" in told(
        "train", "supervised", "model.source=unnet", "data=digits"
    )
    assert "a new mlp has learned nothing" in told("train", "ddpo", "model.source=mlp")
    assert "optimiser.ema is for networks" in told("train", "supervised", "optimiser.ema=0.9")
    assert "dataset is for networks" in told("train", "ddpo", "dataset.window=3")
    assert "sizes.batch is of recipes on data" in told("train", "ddpo", "sizes.batch=3")
    assert "are of new networks" in told("train", "ddpo", "model.width=16")
    assert "is for networks of one's own" in told("train", "consistency")
    own = f"model.source={finished}"
    assert "keeps what it is" in told("train", "supervised", own, "model.process=VE()")
    assert "nothing to distil" in told(
        "train", "consistency", "model.source=mlp", "objective.rule=distillation"
    )
    assert "holds images of shape (1, 8, 8)" in told(
        "train", "supervised", own, "data=digits", "--run", tmp_path / "r"
    )
    assert "knows no prompts" in told("sample", finished, "a cat", "--out", tmp_path / "x.png")
    assert "say what to draw" in told("sample", "scenes", "--out", tmp_path / "x.png")
    monkeypatch.setattr(data_samples, "draw", lambda *args: pytest.fail("it was drawn"))
    assert "name.png or name.npz" in told("sample", finished, "--out", tmp_path / "x.txt")


def test_other_recipes_are_what_they_were():
    plain = overrides.changed(recipes.named("supervised"), [])
    assert (plain.model.rank, plain.updates, plain.optimiser.ema) == (16, 1000, 0)
    assert plain.objective == config.Matching() and not overrides.of_data(plain)
    old = plain.model_dump()  # as a run.json from before these settings
    for key in ("process", "prediction", "width", "depth"):
        del old["model"][key]
    for key in ("weight", "times", "loss", "dropout"):
        del old["objective"][key]
    del old["dataset"], old["sizes"]["batch"], old["optimiser"]["ema"]
    assert overrides.validated(old) == plain


def test_the_source_brings_defaults_that_changes_override():
    def of(*changes: str) -> config.Run:
        return overrides.changed(recipes.named("supervised"), list(changes))

    run = of("updates=7", "optimiser.ema=0.5", "model.source=unet")
    assert (run.updates, run.optimiser.ema, run.model.rank) == (7, 0.5, 0)
    assert (run.model.process, run.model.prediction) == ("VP()", "v_prediction")
    assert (run.objective.weight, run.objective.times) == ("edm", "lognormal")
    plain = of("model.source=mlp", "model.prediction=epsilon")
    assert (plain.objective.weight, plain.objective.times) == ("own", "uniform")
    assert overrides.changed(run, ["seed=3"]).updates == 7  # not twice
    assert of("model.source=mlp", "dataset.columns=a, b").dataset.columns == ("a", "b")
    assert of("model.source=mlp", "dataset.columns=0").dataset.columns == ("0",)


# ---------------------------------------------------------------------------- drawing


PROCESSES = [VP(), VE(sigma_max=80), RectifiedFlow(), EDM(), OU(), Cosine(), SubVP()]
PROCESSES += [ContractiveOU(), ContractiveSubVP(), GeometricVE()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("steps", [1, 2, 20])
def test_times_of_any_process_run_from_the_horizon_to_the_data(process, steps):
    path = data_samples.times(process, steps, 1e-3)
    assert len(path) == steps + 1 and bool((path.diff() < 0).all())
    assert float(path[0]) == pytest.approx(process.horizon) and float(path[-1]) == 0
    if steps == 20 and bool(noise_ratio(process, path[:1]).isfinite()):
        roots = noise_ratio(process, path[:-1].double()).clamp(max=80) ** (1 / 7)
        assert torch.allclose(roots.diff(), roots.diff().mean().expand(19), rtol=0.02)
        last = float(noise_ratio(process, path[-2:-1].double()))
        least = float(noise_ratio(process, torch.tensor([1e-3], dtype=torch.float64)))
        assert last == pytest.approx(max(data_samples.CLEAN, least), rel=0.01)


@pytest.mark.parametrize(
    "process",
    quick_ones(PROCESSES, VP(), RectifiedFlow(), EDM(), ContractiveSubVP()),
    ids=lambda p: type(p).__name__,
)
def test_exact_estimates_draw_the_data(process):
    """A silent network of v is exact for data N(0, 1): any process must bring back their law."""
    model = score_network("mlp", (40,), process=process, width=16)
    model.mean, model.std = torch.linspace(-3, 3, 40), torch.full((40,), 0.5)
    policy = Policy(model, GDDIM(1.0))
    found = data_samples.draw(policy, 300, DataSampler(steps=20), seed=0)
    plain = (found - model.mean) / model.std
    assert plain.mean().item() == pytest.approx(0, abs=0.04)
    assert plain.std().item() == pytest.approx(1, abs=0.06)
    again = data_samples.draw(policy, 300, DataSampler(steps=20), seed=0, batch=70)
    assert torch.allclose(found, again, atol=1e-4)  # whatever the batch


def test_distances_are_in_the_datas_own_units():
    model = score_network("mlp", (2,), process=VP(), width=16)
    model.std = torch.tensor([10.0, 1.0])
    points = torch.randn(2000, 2) * model.std
    moved = data_samples.distances(points + torch.tensor([10.0, 0.0]), points, model)
    assert moved["frechet"] == pytest.approx(1, abs=1e-4)
    assert moved["sliced_wasserstein"] == pytest.approx(0.5**0.5, abs=0.03)
    images = score_network("unet", (1, 16, 16), process=VP(), width=8)
    a = torch.rand(300, 1, 16, 16)
    assert data_samples.distances(a, a, images)["frechet"] == pytest.approx(0, abs=1e-6)
    assert data_samples.distances(a * 0.5, a, images)["frechet"] > 0.1
    assert from_data.HELD_OUT_LEAST >= 512


def test_pictures_are_compared_in_any_features(command, tmp_path, monkeypatch):
    (tmp_path / "my_look.py").write_text("def look(images): return images.mean((2, 3))\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = configured(*TINY["unet"], "data=digits", "updates=1", "evaluation.samples=40")
    launch(run, tmp_path / "run")
    found = json.loads(
        command("evaluate", "run", "--features", "my_look:look", "--json").out.splitlines()[-1]
    )
    for name in ("frechet", "kernel"):
        spread = found["my_look:look"][name]
        assert spread["low"] < spread["value"] < spread["high"]
    told = command("evaluate", "run", "--features", "reder")
    assert told.code == 2
    assert "unknown features 'reder': did you mean 'reader'?" in told.err
