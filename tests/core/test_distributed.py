"""Several processes that make one run: the same numbers as one process, whatever is shared."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from scoretune import recipes
from scoretune.cli import main
from scoretune.core import distributed
from scoretune.core.distributed import Deal, Team
from scoretune.core.errors import UserError
from scoretune.diffusion.noise import Rows, rand, randint, randn
from scoretune.training import build, overrides
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Silent
from scoretune.training.loop import train
from two_processes import run_in_two

# Twice the usual precision: Adam's first steps turn a gradient's sign, and hence its rounding, into
# whole steps, so that in fp32 a batch that is only cut differently ends elsewhere too.
EXACT = ["model.precision=fp64", "model.rank=2"]
SIZES = [
    *("updates=2", "sizes.prompts=2", "sizes.group=3", "sizes.minibatch=5", "sampling.steps=3"),
    *("evaluation.per_task=1", "evaluation.steps=1", "evaluation.every=0"),
    *("checkpoints.every=1", "checkpoints.keep=9"),
]


# ------------------------------------------------------------------------- who owns what


def rows(part: int, parts: int, seed: int = 3) -> Rows:
    found = Rows()
    found.part, found.parts = part, parts
    return found.manual_seed(seed)


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_what_a_sample_draws_does_not_depend_on_the_number_of_processes(parts):
    whole, each = torch.Generator().manual_seed(3), 6 // parts
    everyone = [rows(part, parts) for part in range(parts)]
    for draw, dim in (
        (lambda n, g: randn((n, 2, 2), g), 0),
        (lambda n, g: rand((4, n), g, dim=1), 1),
        (lambda n, g: randint(1, 9, n, g), 0),
        (lambda n, g: torch.randperm(7, generator=g)[None].expand(n, -1), 0),
    ):
        alone = draw(6, whole)
        together = torch.cat([draw(each, generator) for generator in everyone], dim)
        assert torch.equal(alone, together)


def test_shares_are_equal_and_contiguous():
    assert [Team(k, 3).rows(12) for k in range(3)] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    assert Team(0, 1).rows(7) == slice(0, 7)


def test_a_deal_gives_every_process_its_rows_of_each_chunk():
    order = torch.tensor([5, 0, 3, 1, 4, 2])
    first = Deal(torch.tensor([0, 1, 4]), 6).chunks(order, 4)  # the 1st, 2nd and 5th of all
    second = Deal(torch.tensor([2, 3, 5]), 6).chunks(order, 4)
    assert [(own.tolist(), count) for own, count in first] == [([0, 1], 4), ([2], 2)]
    assert [(own.tolist(), count) for own, count in second] == [([2, 1], 4), ([0], 2)]


def test_one_process_is_dealt_everything_in_its_own_order():
    deal = distributed.deal(torch.zeros(4), torch.arange(4), 4)
    assert torch.equal(deal.places, torch.arange(4)) and deal.whole == 4
    order = torch.tensor([2, 0, 3, 1])
    assert torch.equal(torch.cat([own for own, _ in deal.chunks(order, 3)]), order)


def test_noise_that_is_dealt_is_the_noise_of_one_process():
    like = torch.zeros(6, 2)
    torch.manual_seed(1)
    alone = torch.randn_like(like)
    places = torch.tensor([4, 1])
    torch.manual_seed(1)
    assert torch.equal(Deal(places, 6).normal(like[:2]), alone[places])


def test_without_other_processes_nothing_is_gathered():
    x = torch.arange(3.0)
    assert distributed.team() == Team() and distributed.gather(x) is x
    assert distributed.total({"a": 1.5}) == {"a": 1.5} and distributed.count(7) == 7
    assert distributed.agreed("here") == "here" and distributed.gather_texts(["é", "b"]) == [
        "é",
        "b",
    ]


# ------------------------------------------------------------------------------ refusals


def test_another_number_than_was_asked_for(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UserError, match="4 processes were asked for, and there is 1: start them"):
        distributed.start(4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="3 processes were asked for, and there are 2"):
        distributed.start(3)


def test_prompts_that_cannot_be_shared(monkeypatch):
    monkeypatch.setattr(distributed, "team", lambda: Team(0, 2))
    with pytest.raises(UserError, match=r"sizes.prompts=3 cannot be shared equally by 2 processes"):
        build.check_settings(overrides.changed(recipes.ddpo(), ["sizes.prompts=3"]))
    build.check_settings(overrides.changed(recipes.ddpo(), ["sizes.prompts=6"]))
    with pytest.raises(UserError, match="fits an energy to all samples at once, in one process"):
        build.check_settings(recipes.dxmi())


@pytest.mark.slow
def test_accelerate_launch_that_starts_one_process_is_refused(tmp_path):
    """On a CPU it ignores `--num_processes 2`, and says nothing."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launcher, "-m", "scoretune", "train", "ddpo", "--run", str(tmp_path / "run")],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert done.returncode != 0
    assert "scoretune: 2 processes were asked for, and there is 1: start them by" in done.stderr
    assert not (tmp_path / "run").exists()


# ------------------------------------------------------------- the same weights, and resumed


def _environment() -> dict[str, str]:
    source = str(Path(__file__).resolve().parents[2] / "src")
    return {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1"}


def _command(words: tuple[str, ...]) -> None:
    sys.argv = ["scoretune", *words, "--processes", "2"]
    main()


def run_two(*words: str) -> None:
    """`scoretune WORDS` in two processes."""
    run_in_two(_command, words)


@pytest.mark.slow
def test_two_processes_that_the_command_starts_say_one_line(tmp_path, monkeypatch, capfd):
    """They have met by then; the command itself runs in this process."""
    for name, value in _environment().items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    words = ["train", "ddpo", "sizes.prompts=3", "--run", str(run), "--processes", "2"]
    monkeypatch.setattr(sys, "argv", ["scoretune", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    (line,) = [line for line in said.splitlines() if line.startswith("scoretune: ")]
    assert line.startswith("scoretune: sizes.prompts=3 cannot be shared equally by 2 processes")
    assert "Traceback" not in said and not run.exists()


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "lora" / "pytorch_lora_weights.safetensors")


def apart(one: Path, other: Path) -> float:
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys() and max(float(w.abs().max()) for w in a.values()) > 1e-3
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def interrupted(run: Path, where: Path, after: int) -> Path:
    """A copy of a run as it was after some updates."""
    shutil.copytree(run, where)
    for checkpoint in (where / "checkpoints").glob("step-*"):
        if int(checkpoint.name.removeprefix("step-")) > after:
            shutil.rmtree(checkpoint)
    shutil.rmtree(where / "lora")
    (where / "result.json").unlink()
    return where


@pytest.fixture(scope="module")
def runs(tmp_path_factory, small) -> tuple[Path, Path]:
    """Score as action, critic and reward gradient included, in one process and in two."""
    folder = tmp_path_factory.mktemp("runs")
    one, two = folder / "one", folder / "two"
    from scoretune.training.run import launch
    from scoretune.training.run_folder import record

    changes = [*small[-2:], *SIZES, *EXACT]
    run = overrides.changed(recipes.score_as_action(), changes)
    record(run, one, 1)
    launch(run, one, Silent())
    run_two("train", "score_as_action", *changes, "--run", str(two))
    return one, two


def test_two_processes_end_with_the_weights_of_one(runs):
    one, two = runs
    assert apart(one, two) < 1e-6  # about 1e-12


@pytest.mark.slow
def test_two_processes_write_what_one_does(runs):
    first, second = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in runs
    )
    assert len(first) == len(second) == 2
    for ours, theirs in zip(first, second, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours.keys() - {"seconds"}:
            assert ours[name] == pytest.approx(theirs[name], abs=2e-6), name
    evaluations = [(run / "evaluations.jsonl").read_text().splitlines() for run in runs]
    judged = [[json.loads(line)["judge"]["overall"] for line in lines] for lines in evaluations]
    assert judged[0] == judged[1] and len(judged[0]) == 2
    assert {p.name for p in runs[0].iterdir()} == {p.name for p in runs[1].iterdir()}


@pytest.mark.slow
def test_a_run_of_two_goes_on_in_one(runs, tmp_path, command):
    one, two = runs
    stopped = interrupted(two, tmp_path / "run", after=1)
    assert command("train", "--resume", stopped).code == 0
    assert apart(one, stopped) < 1e-6


@pytest.mark.slow
def test_a_run_of_one_goes_on_in_two(runs, tmp_path):  # spread, tests/core/test_fsdp.py has it
    one, _ = runs
    stopped = interrupted(one, tmp_path / "run", after=1)
    run_two("train", "--resume", str(stopped))
    assert apart(one, stopped) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("online_dpo", ["objective.ranking.label=votes", "sizes.epochs=2"]),
        ("online_dpo", ["objective.ranking.pairing=all", "objective.dropout=0.3"]),
        ("online_dpo", ["objective.preset=rainbow", "objective.dispersion=samples"]),
        ("d3po", ["objective.ranking.pairing=all", "objective.ranking.label=votes"]),
        ("spo", ["objective.threshold=0", "objective.skip=0"]),
    ],
)
def test_samples_are_ranked_alike_in_two_processes(recipe, changes, tmp_path):
    from scoretune.training.run import launch
    from scoretune.training.run_folder import record

    one, two, group = tmp_path / "one", tmp_path / "two", "sizes.group=3"
    run = overrides.changed(recipes.named(recipe), [*SIZES, *EXACT, group, *changes])
    record(run, one, 1)
    launch(run, one, Silent())
    run_two("train", recipe, *SIZES, *EXACT, group, *changes, "--run", str(two))
    assert apart(one, two) < 1e-6


@pytest.mark.slow
def test_prompts_of_two_sizes_are_shared_alike_in_two_processes(tmp_path, small):
    from scoretune.training.run import launch
    from scoretune.training.run_folder import record

    one, two, prompts = tmp_path / "one", tmp_path / "two", tmp_path / "prompts.csv"
    rows = [f"{word},{width},32" for word, width in zip("abcdef", (32, 48) * 3, strict=True)]
    prompts.write_text("\n".join(["prompt,width,height", *rows]) + "\n")
    changes = [*small[-2:], *SIZES, *EXACT, f"prompts={prompts}", "evaluation.per_task=6"]
    run = overrides.changed(recipes.ddpo(), changes)
    record(run, one, 1)
    launch(run, one, Silent())
    run_two("train", "ddpo", *changes, "--run", str(two))
    assert apart(one, two) < 1e-6
    rewards = [
        [
            json.loads(line)["reward"]["deterministic"]
            for line in (each / "evaluations.jsonl").open()
        ]
        for each in (one, two)
    ]
    assert rewards[0] == pytest.approx(rewards[1], abs=2e-6)


# -------------------------------------------------------------------- one device's memory


def test_a_minibatch_in_parts_has_the_same_gradient(small):
    changes = [*SIZES, *EXACT, *small[-2:], "sizes.accumulate=0", "updates=1", "sizes.minibatch=7"]
    run = overrides.changed(recipes.ddpo(), changes)
    found = []
    for at_once in (0, 4, 5):
        from scoretune.training.build import build

        torch.manual_seed(0)
        parts = build(overrides.changed(run, [f"hardware.device_batch={at_once}"]))
        seen: dict[str, float] = {}
        train(
            parts.method.source,
            parts.method.objective,
            torch.optim.SGD(parts.policy.parameters(), lr=0.0),
            parts.engine,
            updates=[0],
            clip_norm=1e9,
            hooks=[lambda update, metrics, seen=seen: seen.update(metrics)],
        )
        found.append(seen["grad_norm"])
    assert found[0] > 0
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-9)


def test_steps_whose_gradients_overflow_are_left_out():
    weight = torch.nn.Parameter(torch.ones(2))
    optimiser = torch.optim.SGD([weight], lr=1.0)
    machine = TorchEngine(scaler=torch.amp.GradScaler("cpu", init_scale=8.0))
    machine.backward((weight * torch.tensor([1.0, float("inf")])).sum())
    assert machine.step(optimiser, [weight], 1.0) == 0
    assert torch.equal(weight.detach(), torch.ones(2))
    assert machine.scaler.get_scale() == 4
    machine.backward((weight * torch.tensor([3.0, 4.0])).sum())
    assert machine.step(optimiser, [weight], 100.0) == pytest.approx(5)
    assert weight.tolist() == [-2, -3]
    other = TorchEngine(scaler=torch.amp.GradScaler("cpu", init_scale=64.0))
    other.restore(machine.state())
    assert other.scaler.get_scale() == 4


def test_more_processes_than_devices_are_refused_in_a_line(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    distributed._take_device(1)
    assert taken == [1]
    with pytest.raises(UserError, match=r"than its 2 GPUs.*start 2"):
        distributed._take_device(2)
