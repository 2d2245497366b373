"""Weights spread over two processes: half of them in each, and the run of one process."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from scoretune import recipes
from scoretune.core import checkpoints, distributed, fsdp
from scoretune.core.config import Run
from scoretune.core.distributed import Team
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate import scores
from scoretune.models.lora import adapter_state, restore_adapter
from scoretune.policy import Policy
from scoretune.training import build, engine, overrides
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Every, Log
from scoretune.training.loop import train
from scoretune.training.progress import Progress

# Twice the usual precision: Adam's first steps turn a gradient's sign, and hence its rounding, into
# whole steps.
SMALL = [
    *("model.precision=fp64", "updates=2", "sizes.prompts=2", "sizes.group=2", "sizes.minibatch=5"),
    *("sampling.steps=3", "checkpoints.every=1", "checkpoints.keep=9", "guard.action=off"),
    *("evaluation.per_task=1", "evaluation.steps=1", "evaluation.every=0"),
]
LORA = ["model.rank=2"]
FULL = ["model.rank=0", "optimiser.learning_rate=1e-4"]  # every weight moves


def ddpo(*changes: str) -> Run:
    return overrides.changed(recipes.ddpo(), [*SMALL, *changes])


def follow(run: Run, folder: Path, until: int = 2) -> Policy:
    """Do a run up to an update, from its newest checkpoint on; its policy."""
    from scoretune.training.build import build

    torch.manual_seed(run.seed)
    folder.mkdir(exist_ok=True)
    parts = build(run)
    kept = {"engine": parts.engine}
    progress = Progress(folder, parts, kept, run.updates, run.checkpoints.keep)
    first = progress.restore()
    log = progress.log("metrics")
    train(
        parts.method.source,
        parts.method.objective,
        parts.optimiser,
        parts.engine,
        updates=range(first, until),
        clip_norm=run.optimiser.clip_norm,
        hooks=[
            Log(log, progress.clock, progress.calls, progress.rewarded, lambda line: None),
            Every(run.checkpoints.every, run.updates, progress.save, at_last=True),
        ],
    )
    return parts.policy


def drawn(policy: Policy) -> torch.Tensor:
    """Pictures of three prompts, which two processes cannot share equally."""
    prompts = Prompts(("a red three", "a blue five", "a green one"), ("all",) * 3)
    times = grids.uniform(policy.backbone.process, 2)
    pictures = scores.sample(policy, prompts, times=times, seed=5)
    _, kls = scores.act(policy, prompts, times=times, seed=5)
    assert kls["chain_kl"] > 0 and kls["girsanov_kl"] > 0
    return pictures


def sliced(network: nn.Module) -> dict[str, float]:
    """Which share of its weights this process has, and what it has whole."""
    every = dict(network.named_parameters())
    shards = [p for p in every.values() if fsdp.is_sharded_tensor(p)]
    lora = sum(p.numel() for p in every.values() if not fsdp.is_sharded_tensor(p))
    here = lora + sum(p.to_local().numel() for p in shards)
    return {"share": here / sum(p.numel() for p in every.values()), "whole": lora}


def learned(folder: Path, update: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint that were trained, and what Adam remembers of them."""
    state = checkpoints.load(folder / "checkpoints" / f"step-{update:08d}")
    moments = state["optimiser"]["state"]
    adam = {f"{i}.{name}": moments[i][name] for i in moments for name in ("exp_avg", "exp_avg_sq")}
    return {**state["policy"], **adam}


def apart(one: Path, other: Path, update: int = 2) -> float:
    a, b = learned(one, update), learned(other, update)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def stopped(run: Path, where: Path) -> Path:
    """A copy of a run as it was after its first update."""
    shutil.copytree(run, where)
    shutil.rmtree(where / "checkpoints" / "step-00000002")
    return where


def in_two(folder: Path) -> None:
    """What each of two processes does in the tests below."""
    torch.set_num_threads(1)
    distributed.start(2)
    shard, found = "hardware.shard=true", {}
    policy = follow(ddpo(shard, *LORA, "hardware.device_batch=2"), folder / "two_lora")
    found["lora"] = sliced(policy.backbone.network)
    found["pictures"] = drawn(policy).tolist()
    policy = follow(ddpo(shard, *FULL), folder / "two_full", until=1)
    found["full"] = sliced(policy.backbone.network)
    follow(ddpo(shard, *FULL), folder / "one_then_two")
    (folder / f"found_{distributed.team().rank}.json").write_text(json.dumps(found))
    distributed.stop()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same runs in this process and, spread, in two others; two stopped and taken over."""
    folder: Path = tmp_path_factory.mktemp("runs")
    save_file({"pictures": drawn(follow(ddpo(*LORA), folder / "one_lora"))}, folder / "pictures")
    follow(ddpo(*FULL), folder / "one_full")
    stopped(folder / "one_full", folder / "one_then_two")
    source = Path(__file__).resolve().parents[2] / "src"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node=2", __file__, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    shutil.copytree(folder / "two_full", folder / "two_then_one")
    follow(ddpo(*FULL), folder / "two_then_one")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "update"), [("lora", 2), ("full", 1)])
def test_spread_weights_end_where_those_of_one_process_do(
    runs: Path, name: str, update: int
) -> None:
    one, two = runs / f"one_{name}", runs / f"two_{name}"
    assert apart(one, two, update) < 1e-6  # about 1e-12
    first, last = learned(one, 1), learned(one, 2)
    assert max(float((first[n] - last[n]).abs().max()) for n in first) > 1e-5
    lines = [(run / "metrics.jsonl").read_text().splitlines()[update - 1] for run in (one, two)]
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert norms[0] == pytest.approx(norms[1], abs=2e-6) and norms[0] > 1e-3


@pytest.mark.slow
def test_spread_weights_draw_what_those_of_one_process_do(runs: Path) -> None:
    alone = load_file(runs / "pictures")["pictures"]
    for rank in (0, 1):
        found = json.loads((runs / f"found_{rank}.json").read_text())["pictures"]
        torch.testing.assert_close(torch.tensor(found), alone, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_checkpoint_of_spread_weights_goes_on_in_one_process(runs: Path) -> None:
    assert apart(runs / "one_full", runs / "two_then_one") < 1e-6


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_spread(runs: Path) -> None:
    assert apart(runs / "one_full", runs / "one_then_two") < 1e-6


@pytest.mark.slow
def test_each_process_has_half_of_the_frozen_weights_and_all_of_a_lora(runs: Path) -> None:
    for rank in (0, 1):
        found = json.loads((runs / f"found_{rank}.json").read_text())
        assert found["full"]["share"] == pytest.approx(0.5, abs=1e-3)  # 3 rows cannot be halved
        assert found["full"]["whole"] == 0
        lora = checkpoints.load(runs / "one_lora" / "checkpoints" / "step-00000002")["policy"]
        assert found["lora"]["whole"] == sum(weight.numel() for weight in lora.values())
        assert found["lora"]["share"] == pytest.approx(0.5, abs=0.01)


# ------------------------------------------------------------------------- one step, quickly


def spread_step(folder: Path) -> None:
    """A step of SGD on a network of which each process has half."""
    distributed.start(2)
    network = Blocks()
    fsdp.shard(network, torch.device("cpu"))
    share = sliced(network)["share"]
    network(torch.ones(1, 4) + distributed.team().rank).sum().backward()
    norm = fsdp.clip([*network.parameters()], 0.1)
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    weights = fsdp.full_state(dict(network.named_parameters()))
    if distributed.team().main:
        save_file(weights, folder / "weights")
        (folder / "numbers.json").write_text(json.dumps([share, norm]))
    distributed.stop()


class Blocks(nn.Module):
    """Two blocks, as diffusers calls them, and a layer that is in none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.transformer_blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.last = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.transformer_blocks:
            x = block(x).tanh()
        return self.last(x)


def test_a_step_of_weights_that_are_spread_is_that_of_one_process(tmp_path: Path) -> None:
    from two_processes import run_in_two  # this file is also a script, without tests/support

    run_in_two(spread_step, tmp_path)
    network = Blocks()
    network(torch.tensor([[1.0], [2.0]]).expand(2, 4)).sum().backward()
    norm = fsdp.clip([*network.parameters()], 0.1)
    torch.optim.SGD(network.parameters(), lr=1.0).step()
    assert json.loads((tmp_path / "numbers.json").read_text()) == pytest.approx([0.5, norm])
    weights = load_file(tmp_path / "weights")
    torch.testing.assert_close(weights, dict(network.state_dict()))


# ------------------------------------------------------------------ without other processes


def linear(*gradients: float) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(1)) for _ in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = torch.tensor([gradient])
    return found


def test_whole_weights_are_treated_as_ever() -> None:
    parameters = linear(3.0, 4.0)
    assert not any(map(fsdp.is_sharded_tensor, parameters))
    assert fsdp.clip(parameters, 1.0) == pytest.approx(5)
    assert [float(p.grad) for p in parameters] == pytest.approx([0.6, 0.8], abs=1e-5)
    tree = {"a": [parameters[0], 1, None]}
    assert fsdp.full_state(tree)["a"][0] is parameters[0]
    network = nn.Linear(2, 1)
    state = {name: p + 1 for name, p in adapter_state(network).items()}
    restore_adapter(network, state)
    assert torch.equal(network.weight.detach(), state["weight"].detach())


def test_inner_blocks_come_first_and_blocks_that_are_reached_into_stay() -> None:
    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer_blocks = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))

    class Net(Transformer):
        def __init__(self) -> None:
            super().__init__()
            self.down_blocks = nn.ModuleList([Transformer()])
            self.mid_block = nn.Linear(1, 1)
            self.other = nn.ModuleList([nn.Linear(1, 1)])

    net = Net()
    names = {id(module): name for name, module in net.named_modules()}
    found = [names[id(module)] for module in fsdp._blocks(net)]
    inner = [f"down_blocks.0.transformer_blocks.{k}" for k in (1, 0)]
    last = ["transformer_blocks.1", "transformer_blocks.0"]
    assert found == ["mid_block", *inner, "down_blocks.0", *last]
    Transformer.__name__ = "DiTTransformer2DModel"
    assert len(list(fsdp._blocks(Transformer()))) == 1


def test_a_process_with_fewer_parts_passes_rows_that_count_for_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from scoretune.training.build import build

    norms, passes = [], []
    for extra in (0, 2):
        monkeypatch.setattr(distributed, "most", lambda number, extra=extra: number + extra)
        torch.manual_seed(0)
        parts = build(ddpo(*LORA, "hardware.device_batch=3", "sizes.accumulate=0"))
        engine, seen = TorchEngine(at_once=3, sharded=True), []
        train(
            parts.method.source,
            lambda batch, parts=parts, seen=seen: (
                seen.append(len(batch)) or parts.method.objective(batch)
            ),
            torch.optim.SGD(parts.policy.parameters(), lr=0.0),
            engine,
            updates=[0],
            clip_norm=1e9,
            hooks=[lambda update, metrics: norms.append((metrics["grad_norm"], metrics["loss"]))],
        )
        passes.append(seen)
    assert norms[0] == pytest.approx(norms[1], rel=1e-12) and norms[0][0] > 0
    assert passes == [[3, 2, 3], [3, 2, 1, 1, 3, 1, 1]]


def test_a_minibatch_of_which_a_process_has_nothing() -> None:
    class Rows(list[int]):
        states_a_row = 1

        def take(self, part: slice) -> Rows:
            return Rows(self[part])

        def to(self, device: object) -> Rows:
            return self

    assert list(TorchEngine(at_once=2).parts(Rows(), Rows([7, 8]))) == []
    assert list(TorchEngine(at_once=2).parts(Rows([1, 2, 3]))) == [([1, 2], 2), ([3], 1)]


def test_one_process_changes_nothing() -> None:
    assert not engine.shards(ddpo("hardware.shard=true").hardware)


def test_two_processes_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "team", lambda: Team(0, 2))
    assert engine.shards(ddpo("hardware.shard=true").hardware) and not engine.shards(
        ddpo().hardware
    )


@pytest.mark.parametrize(
    ("recipe", "changes", "what"),
    [
        ("ddpo", ["hardware.compile=true"], "hardware.compile"),
        ("ddpo", ["hardware.channels_last=true"], "hardware.channels_last"),
        ("alignprop", [], "objective.random"),
        ("adjoint_matching", ["sizes.share=0.5"], "sizes.share below 1"),
        ("supervised", ["objective.loss=implicit"], "objective.loss other than denoising"),
        ("ddpo", ["model.rank=0", "model.precision=fp16"], "model.precision=fp16"),
        ("ddpo", ["model.rank=0", "optimiser.kind=8bit"], "optimiser.kind=8bit"),
        ("ddpo", ["model.rank=0", "model.source=mine:network"], "a network of your own"),
    ],
)
def test_what_cannot_be_spread_is_refused(recipe: str, changes: list[str], what: str) -> None:
    run = overrides.changed(recipes.named(recipe), changes)
    build.check_settings(run)
    with pytest.raises(UserError, match=f"hardware.shard.* does not go with {what}: leave"):
        build.check_settings(overrides.changed(run, ["hardware.shard=true"]))


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("ddpo", ["optimiser.kind=8bit", "model.precision=fp16"]),
        ("score_as_action", []),
        ("draft", []),
        ("adjoint_matching", ["sizes.share=1.0"]),
        ("supervised", ["model.rank=0"]),
    ],
)
def test_what_asks_the_network_equally_often_is_taken(recipe: str, changes: list[str]) -> None:
    run = overrides.changed(recipes.named(recipe), ["hardware.shard=true", *changes])
    assert build.check_settings(run) is None


def test_a_single_number_that_is_trained_cannot_be_taken_apart() -> None:
    network = nn.Linear(2, 2)
    network.gain = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(UserError, match="cannot take the weight gain of a Linear apart"):
        fsdp.shard(network, torch.device("cpu"))
    network.weight.requires_grad_(False)
    assert fsdp._kept(network) == {network.gain, network.bias}


def test_lengths_that_are_no_numbers() -> None:
    parameters = linear(math.nan, 1.0)
    assert math.isnan(fsdp.clip(parameters, 1.0))


if __name__ == "__main__":
    in_two(Path(sys.argv[1]))
