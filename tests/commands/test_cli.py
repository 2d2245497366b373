"""The command line and the names people build on: quick to load, frozen, and one JSON object last.

`SCORETUNE_FREEZE=1 python -m pytest tests/commands/test_cli.py -k frozen` writes the frozen lists
anew; look at their difference before you commit it, for it is what users will notice.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

import scoretune
from scoretune.cli import app
from scoretune.commands.plan import plan as planning
from scoretune.diffusion.solvers.runge_kutta import rk45

HERE = Path(__file__).parents[1]
HEAVY = {
    "accelerate",
    "diffusers",
    "matplotlib",
    "pyarrow",
    "peft",
    "PIL",
    "safetensors",
    "sqlalchemy",
    "scipy",
    "sklearn",
    "tokenizers",
    "transformers",
}


@cache
def loaded_after(*statements: str) -> list[frozenset[str]]:
    """Top-level modules in one fresh interpreter after each of some statements."""
    report = "import sys; print('\\nloaded', *{m.partition('.')[0] for m in sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(Path(scoretune.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(f"{each}\n{report}" for each in statements)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("loaded ")]
    assert len(lines) == len(statements)
    return [frozenset(names) for _, *names in lines]


def test_python_m_is_the_command():
    environment = {**os.environ, "PYTHONPATH": str(Path(scoretune.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-m", "scoretune", "show", "ddpq"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 2
    assert "did you mean 'ddpo'" in done.stderr


def calling(*arguments: str) -> str:
    """A statement that runs the command line and survives its exit."""
    return (
        f"import sys; sys.argv = {['scoretune', *arguments]!r}\n"
        "from scoretune.cli import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code, done.code\n"
    )


# ---------------------------------------------------------------------------- what loads when


def test_import_scoretune_loads_nothing_heavy():
    (loaded,) = loaded_after("import scoretune")
    assert not loaded & (HEAVY | {"torch", "pydantic"})


WITH_TORCH = (
    "from scoretune import evaluate",
    "import torch",
    "from scoretune.diffusion import grids, kernels, solvers; import scoretune.rl",
    "import scoretune; scoretune.Policy, scoretune.load, scoretune.train",
    "assert all(getattr(evaluate, name).__doc__ for name in evaluate.__all__)",
)
"""One interpreter shows what each of them adds."""


def test_the_mathematics_costs_little_more_than_torch():
    _, torch, mathematics, *_ = loaded_after(*WITH_TORCH)
    extra = mathematics - torch
    assert "torch" in torch
    assert not extra & HEAVY
    assert "scoretune" in mathematics


def test_help_loads_neither_torch_nor_diffusers():
    (loaded,) = loaded_after(calling("--help"))
    assert not loaded & (HEAVY | {"torch", "pydantic"})


@pytest.mark.parametrize("arguments", [("show", "ddpo"), ("train", "--help")])
def test_settings_are_shown_without_torch(arguments):
    (loaded,) = loaded_after(calling(*arguments))
    assert not loaded & (HEAVY | {"torch"})


PIPELINES = {"diffusers", "transformers", "peft", "accelerate", "sklearn", "matplotlib"}


def test_the_policy_costs_no_pipeline():
    *_, loaded, _ = loaded_after(*WITH_TORCH)
    assert not loaded & PIPELINES


def test_the_names_of_evaluate_cost_no_more_than_torch():
    bare, *_, loaded = loaded_after(*WITH_TORCH)
    assert "torch" not in bare, "a bare import"
    assert not loaded & {*PIPELINES, "scipy"}


# ---------------------------------------------------------------------------- frozen


def frozen(name: str, lines: list[str]) -> None:
    path = HERE / name
    if "SCORETUNE_FREEZE" in os.environ:
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    known = path.read_text(encoding="utf-8").splitlines()
    missing, new = sorted(set(known) - set(lines)), sorted(set(lines) - set(known))
    assert not missing, f"people rely on these ({name}): {missing}"
    assert not new, f"meant for good? then write {name} anew, see {__file__}: {new}"
    assert known == lines


def commands(command, path: str = "scoretune") -> Iterator[str]:
    """Each command with its arguments and options, one a line, below it what it groups."""
    for parameter in sorted(command.params, key=lambda p: (p.param_type_name, p.name)):
        if parameter.name == "help":
            continue
        needed = "" if parameter.required else ", optional"
        if parameter.param_type_name == "argument":
            yield f"{path} {parameter.name.upper()}{needed}"
        else:
            kind = "" if parameter.is_flag else " VALUE"
            yield f"{path} {'/'.join(parameter.opts)}{kind}{needed}"
    below = getattr(command, "commands", {})
    if not below:
        yield path
    for name in sorted(below):
        yield from commands(below[name], f"{path} {name}")


def test_the_frozen_commands_and_options():
    frozen("frozen_cli.txt", sorted(commands(typer.main.get_command(app))))


MODULES = [
    "diffusion.processes",
    "diffusion.estimates",
    "diffusion.kernels",
    "diffusion.solvers",
    "diffusion.grids",
    "rl",
    "preference",
    "compressed",
    "recipes",
]


def public_names(module: str) -> list[str]:
    """What a module offers: its `__all__`, or the functions and classes that it defines."""
    found = importlib.import_module(f"scoretune.{module}")
    named = getattr(found, "__all__", None)
    if named is None:
        named = [
            name
            for name, value in vars(found).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == found.__name__
        ]
    return [f"scoretune.{module}.{name}" for name in named]


def test_the_frozen_names():
    names = [f"scoretune.{name}" for name in scoretune.__all__]
    for module in MODULES:
        names += public_names(module)
    frozen("frozen_names.txt", sorted(names))


def test_a_name_that_moved_says_where_it_is():
    for attribute in ("metrics", "loras", "scorers"):
        with pytest.raises(ImportError, match=rf"^scoretune\.{attribute} is now scoretune\.\w"):
            getattr(scoretune, attribute)
    with pytest.raises(ImportError, match=r"scoretune\.conversions is now scoretune\.convert"):
        exec("from scoretune import conversions")
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        scoretune.nothing  # noqa: B018


@pytest.mark.parametrize("name", scoretune.__all__)
def test_every_public_name_is_there(name):
    assert getattr(scoretune, name) is not None
    assert name in dir(scoretune)


def test_what_the_public_names_mean():
    from scoretune.policy import Policy
    from scoretune.training.loop import train

    assert scoretune.Policy is Policy
    assert scoretune.train is train
    assert scoretune.recipes.ddpo().recipe == "ddpo"
    assert callable(scoretune.load)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = scoretune.nothing


# ---------------------------------------------------------------------------- verbs


def test_help_names_every_command(command):
    outcome = command("--help")
    assert outcome.code == 0
    for name in ("demo", "train", "show", "sample", "evaluate"):
        assert name in outcome.out


def test_the_version(command):
    assert command("--version").out == f"scoretune {scoretune.__version__}\n"


def test_show_prints_the_settings(command):
    shown = json.loads(command("show", "ddpo", "sampling.steps=7", 'model.targets=["to_q"]').out)
    assert shown["sampling"]["steps"] == 7
    assert shown["model"]["targets"] == ["to_q"]
    assert shown["objective"]["kind"] == "policy_gradient"


@pytest.mark.parametrize("recipe", sorted(scoretune.recipes.RECIPES))
def test_every_recipe_shows_settings_that_make_it_again(command, recipe):
    from scoretune.training.overrides import validated

    shown = json.loads(command("show", recipe).out)
    assert validated(shown).recipe == recipe


def test_a_file_of_settings_is_shown_planned_and_trained(command, tmp_path, small):
    mine = tmp_path / "mine.yaml"
    changes = [*small, "updates=1", "reward=brightness"]
    mine.write_text(command("show", "ddpo", *changes, "--yaml").out, encoding="utf-8")
    shown = command("show", "ddpo", *changes, "seed=4").out
    assert command("show", mine, "seed=4").out == shown
    planned = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "planned", lambda run, processes: planned.append(run) or {})
        assert json.loads(command("plan", mine, "--json").out) == {}
    assert planned[0].model_dump(mode="json") == json.loads(command("show", mine).out)
    run = tmp_path / "run"
    assert command("train", mine, "seed=4", "--run", run).code == 0
    assert json.loads((run / "run.json").read_text())["config"] == json.loads(shown)
    assert command("show", run / "run.json").out == shown


@pytest.fixture
def small_demo(monkeypatch, small):
    """Makes `demo` run in a second, and otherwise as it does."""
    from scoretune import recipes
    from scoretune.training import overrides

    whole = recipes.demo()
    monkeypatch.setattr(recipes, "demo", lambda: overrides.changed(whole, [*small, "updates=1"]))


def test_demo_prints_one_json_object_last(command, tmp_path, small_demo):
    outcome = command("demo", "--json", "--seed", 3, "--run", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out.splitlines()[-1])
    for name in ("reader", "judge"):
        for when in ("base", "final"):
            score = result[name][when]
            assert 0 <= score["overall"] <= 1
            assert sorted(score["tasks"]) == sorted(
                ["single", "colour", "two", "counting", "position", "attribution"]
            )
    assert sorted(result["reward"]) == ["deterministic", "stochastic"]
    assert result["chain_kl"] >= 0
    assert result["network_evaluations"] > 0
    assert result["seconds"] > 0
    assert result["run"] == str(tmp_path / "run")
    assert len(outcome.out.splitlines()) == 1  # all else goes to stderr

    folder = tmp_path / "run"
    recorded = json.loads((folder / "run.json").read_text())
    assert recorded["seed"] == recorded["config"]["seed"] == 3
    assert recorded["command"].startswith("scoretune demo --json --seed 3")
    assert json.loads((folder / "result.json").read_text()) == result
    names = {path.name for path in folder.iterdir()}
    assert names >= {"report.html", "metrics.jsonl", "evaluations.jsonl", "lora", "checkpoints"}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "NaN" not in (folder / "metrics.jsonl").read_text()


def test_demo_tells_people(command, tmp_path, small_demo):
    outcome = command("demo", "--run", tmp_path / "run")
    assert outcome.code == 0
    assert "judge accuracy on held-out prompts" in outcome.err
    assert "report.html" in outcome.err


@pytest.fixture(scope="module")
def run(tmp_path_factory, small) -> Path:
    from scoretune import recipes
    from scoretune.commands.display import Live
    from scoretune.training import overrides, run_folder
    from scoretune.training.run import launch

    chosen = overrides.changed(recipes.named("ddpo"), [*small, "updates=1"])
    folder = tmp_path_factory.mktemp("runs") / "done"
    run_folder.record(chosen, folder, threads=1)
    launch(chosen, folder, Live(chosen, folder))
    return folder


def test_evaluate_measures_a_run(command, run):
    outcome = command("evaluate", run, "--json")
    assert outcome.code == 0, outcome.err
    measured = json.loads(outcome.out.splitlines()[-1])
    last = json.loads((run / "evaluations.jsonl").read_text().splitlines()[-1])
    for name in ("reader", "judge", "reward"):
        assert measured[name] == last[name]


def test_evaluate_measures_other_prompts(command, run, tmp_path):
    (tmp_path / "mine.csv").write_text("prompt,task\na red seven,single\ntwo fives,counting\n")
    outcome = command("evaluate", run, "--prompts", tmp_path / "mine.csv", "--json")
    measured = json.loads(outcome.out)
    assert sorted(measured["judge"]["tasks"]) == ["counting", "single"]


def test_sample_draws_the_prompts_of_a_file(command, run, tmp_path):
    (tmp_path / "mine.txt").write_text("a red seven\ntwo fives\n")
    outcome = command(
        *("sample", run, "--prompts", tmp_path / "mine.txt"),
        *("--out", tmp_path / "a.png", "--steps", 2),
    )
    assert outcome.out.splitlines()[:2] == ["1. a red seven", "2. two fives"]
    outcome = command("sample", run, "a red seven", "--prompts", tmp_path / "mine.txt")
    assert outcome.code == 2 and "leave one out" in outcome.err


def test_sample_draws_pictures(command, run, tmp_path):
    from PIL import Image

    out = tmp_path / "pictures.png"
    outcome = command("sample", run, "a red seven", "two fives", "--out", out, "--steps", 2)
    assert outcome.code == 0, outcome.err
    assert str(out) in outcome.out
    with Image.open(out) as picture:
        assert picture.size[0] == 2 * picture.size[1]


def test_load_gives_the_trained_policy(run):
    from scoretune.core import checkpoints

    policy = scoretune.load(run)
    saved = checkpoints.load(checkpoints.latest(run / "checkpoints"))["policy"]
    own = dict(policy.backbone.network.named_parameters())
    assert saved
    assert all(bool((own[name] == tensor).all()) for name, tensor in saved.items())
    assert len(scoretune.load("scenes").parameters()) > len(saved)


def test_doctor(command, monkeypatch):
    from scoretune.commands.doctor import doctor
    from scoretune.commands.doctor.laws.base import Law

    bad = Law("a wrong sum", 4.0, lambda device: 3.0, 0.1, "arithmetic")
    monkeypatch.setattr(doctor, "installation_laws", lambda: (bad,))
    found = command("doctor", "--json")
    assert found.code == 1
    assert json.loads(found.out)[0]["passed"] is False
    found = command("doctor", "--device", "gpu")
    assert found.code == 2
    assert found.err.count("\n") == 1


@pytest.mark.parametrize("solver", ["rk45", "gddim", "dpmpp_2m_sde", "predictor_corrector"])
def test_pictures_through_any_solver(command, tmp_path, small, solver, monkeypatch):
    tolerances = inspect.unwrap(rk45).__kwdefaults__
    monkeypatch.setitem(tolerances, "rtol", 0.01)  # it takes as many steps as that needs
    out, model = tmp_path / "a.png", small[-1].removeprefix("model.source=")
    found = command("sample", model, "a red seven", "--solver", solver, "--steps", 2, "--out", out)
    assert found.code == 0, found.err
    assert out.exists()


def test_an_unknown_solver_is_one_line(command, tmp_path):
    found = command(
        "sample", "scenes", "a red seven", "--solver", "ddmi", "--out", tmp_path / "a.png"
    )
    assert found.code == 2
    assert "unknown solver 'ddmi': did you mean 'ddim'?" in found.err
