"""What must hold on a CUDA device, on tiny models: every recipe, family, precision and resume.

Skipped where there is no device; tests/test_pretended.py runs it on a pretended one.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image

import judged
from scoretune import recipes
from scoretune.core import distributed
from scoretune.core.config import Run
from scoretune.evaluate.scores import measure
from scoretune.models.tiny import stable_diffusion
from scoretune.training import build, overrides
from scoretune.training.loop import train
from scoretune.training.progress import Progress

pytestmark = pytest.mark.gpu
SIZES = ["sizes.prompts=1", "sizes.group=2", "sampling.steps=2", "guard.action=off", "updates=2"]
ON_DATA = ("supervised", "dxmi")
VARIANTS = {
    **{recipe: [recipe] for recipe in sorted(set(recipes.RECIPES) - {"consistency"})},
    "spo": ["spo", "objective.threshold=0", "objective.skip=0"],
    "slope": ["score_as_action", "objective.form=slope"],
    "explicit": ["score_as_action", "objective.form=explicit"],
    "ratio": ["score_as_action", "objective.form=ratio", "model.precision=bf16"],
    "heun": ["score_as_action", "sampling.solver=heun", "sampling.jitter=false"],
    "draft, KL": ["draft", "objective.kl_weight=0.1", "objective.last=2"],
    "bf16": ["score_as_action", "model.precision=bf16", "hardware.checkpointing=true"],
    "fp16": ["ddpo", "model.precision=fp16", "model.guidance=2", "hardware.device_batch=1"],
    "whole, bf16": ["supervised", "model.rank=0", "model.precision=bf16"],
    "sliced": ["supervised", "objective.loss=sliced", "hardware.checkpointing=true"],
    "likes": ["kto", "objective.likes=true", "model.precision=bf16", "hardware.device_batch=1"],
    "offloaded": ["ddpo", "hardware.offload=true", "model.guidance=2"],
    "offloaded, read once": ["dpok", "hardware.offload=true", "hardware.cache_prompts=true"],
    "offloaded, slopes": ["draft", "hardware.offload=true"],
    "moved": ["ddpo", "hardware.offload_paths=true", "hardware.decode_batch=1"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("device")
    stable_diffusion.build(home / "sd")
    for number in range(3):
        Image.new("RGB", (32, 32), (60 * number, 40, 200)).save(home / f"{number}.png")
        (home / f"{number}.txt").write_text("a cow")
    (home / "prompts.txt").write_text("a cat\na dog\n")
    judged.pairs_folder(home / "pairs")
    return home


def run_of(home: Path, recipe: str, *changes: str, source: str = "sd") -> Run:
    first = [f"model.source={home / source}"]
    if recipe in ON_DATA:
        first.append(f"data={home}")
    if recipe in judged.RECIPES:
        first.append(f"data={home / 'pairs'}")
    if recipe == "supervised" or recipe in judged.RECIPES:
        return overrides.changed(recipes.named(recipe), [*first, "sizes.batch=2", *changes])
    first += [f"prompts={home / 'prompts.txt'}", "reward=brightness", *SIZES]
    return overrides.changed(recipes.named(recipe), [*first, *changes])


def learn(parts: build.Parts, *updates: int) -> dict[str, float]:
    """The metrics of the last of some updates."""
    lines: list[dict[str, float]] = []
    train(
        parts.method.source,
        parts.method.objective,
        parts.optimiser,
        parts.engine,
        updates=updates,
        hooks=[lambda update, metrics: lines.append(dict(metrics))],
    )
    return lines[-1]


def weights(parts: build.Parts) -> torch.Tensor:
    return torch.cat([p.detach().flatten().cpu() for p in parts.policy.parameters()])


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update(home, variant):
    recipe, *changes = VARIANTS[variant]
    parts = build.build(run_of(home, recipe, *changes))
    assert parts.policy.device.type == "cuda"
    before = weights(parts)
    learn(parts, 0)
    after = weights(parts)
    assert bool(torch.isfinite(after).all()) and not torch.equal(before, after)


def test_offloaded_parts_are_on_the_device_while_they_are_used(tmp_path):
    import_module("scoretune.models.tiny.flux").build(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    policy = build.build(run_of(tmp_path, "grpo", "hardware.offload=true")).policy
    parts, seen = policy.backbone.pipeline.components, {}  # type: ignore[attr-defined]
    for name, module in {"reads": parts["text_encoder"], "draws": parts["vae"].decoder}.items():

        def look(module, args, output, name=name):
            seen[name] = next(module.parameters()).device.type

        module.register_forward_hook(look)
    condition = policy.encode(["a cat"])
    image = policy.decode(torch.zeros(1, *policy.backbone.shape, device=policy.device))
    assert condition.device.type == image.device.type == "cuda"
    assert seen == {"reads": "cuda", "draws": "cuda"}
    x, t = torch.zeros(1, *policy.backbone.shape, device="cuda"), torch.ones(1, device="cuda") / 2
    policy.backbone.predict(x, t, condition.tokens)
    modules = {n: p.device.type for n, p in parts.items() if isinstance(p, torch.nn.Module)}
    assert modules.pop(policy.backbone.part) == "cuda"  # type: ignore[attr-defined]
    assert set(modules.values()) == {"cpu"}


@pytest.mark.parametrize(
    "family", ["stable_diffusion_xl", "stable_diffusion_3", "flux", "diffusion_transformer"]
)
def test_a_family(family, tmp_path):
    import_module(f"scoretune.models.tiny.{family}").build(tmp_path / "sd")
    (tmp_path / "prompts.txt").write_text("0\n1\n" if "transformer" in family else "red\nblue\n")
    flow = family in ("stable_diffusion_3", "flux")
    parts = build.build(run_of(tmp_path, "flow_grpo" if flow else "ddpo"))
    before = weights(parts)
    assert learn(parts, 0)["grad_norm"] > 0 and not torch.equal(before, weights(parts))


def test_recomputed_activations_give_the_same_weights(home):
    found = []
    for changes in ([], ["hardware.checkpointing=true"]):
        torch.manual_seed(0)
        parts = build.build(run_of(home, "score_as_action", "objective.form=slope", *changes))
        torch.manual_seed(1)
        learn(parts, 0)
        found.append(weights(parts))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_goes_on_from_a_checkpoint_of_another_device(home, first, tmp_path, monkeypatch):
    second = {"cpu": "cuda", "cuda": "cpu"}[first]
    done = []
    for number, kind in enumerate((first, second)):
        monkeypatch.setattr(distributed, "device", lambda kind=kind: torch.device(kind))
        torch.manual_seed(0)
        run = run_of(home, "score_as_action", "objective.form=slope")
        parts = build.build(run)
        assert parts.policy.device.type == kind
        others = {"adaptive": parts.method.adaptive, "engine": parts.engine}
        progress = Progress(tmp_path, parts, others, run.updates, keep=2)
        assert progress.restore() == number
        learn(parts, number)
        progress.save(number + 1)
        done.append(weights(parts))
    assert not torch.equal(*done) and bool(torch.isfinite(done[1]).all())


def test_an_evaluation(home):
    run = run_of(home, "ddpo", "evaluation.steps=2")
    parts = build.build(run)
    measured = measure(
        parts.policy,
        parts.held_out,
        reward=parts.reward,
        reward_name=run.reward,
        metrics={},
        evaluation=run.evaluation,
        sampling=run.sampling,
    )
    assert bool(torch.isfinite(measured.images).all())
    assert len(measured.values["reward"]) == len(parts.held_out)


def hot_update(folder: Path):
    """A function that makes an update: 8 calls of the network on two states each to roll, and 4 on
    four each to learn."""
    stable_diffusion.build(folder / "sd")
    (folder / "prompts.txt").write_text("a cat\na dog\n")
    changes = ["sampling.steps=8", "sizes.minibatch=4", "sizes.accumulate=0", "sizes.share=1"]
    parts = build.build(run_of(folder, "ddpo", *changes))

    def update(number: int) -> int:
        """The states that the network saw."""
        before = parts.policy.calls
        learn(parts, number)
        return parts.policy.calls - before

    return update
