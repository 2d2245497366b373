"""What must also hold on a CUDA device; skipped where there is none."""

from __future__ import annotations

import math
from importlib import import_module

import pytest
import torch

from scoretune import recipes
from scoretune.rollout import prior, rollout
from scoretune.training import overrides
from scoretune.training.build import build
from scoretune.training.loop import train

pytestmark = pytest.mark.gpu
SMALL = ["sizes.prompts=4", "sizes.group=2", "sampling.steps=4", "evaluation.per_task=1"]


@pytest.mark.parametrize(
    "recipe", [n for n, r in recipes.RECIPES.items() if not r().objective.on_data]
)
def test_an_update_moves_the_adapter_and_stays_finite(recipe):
    parts = build(overrides.changed(recipes.named(recipe), SMALL))
    assert parts.policy.device.type == "cuda"
    before = [p.detach().clone() for p in parts.policy.parameters()]
    train(
        parts.method.source, parts.method.objective, parts.optimiser, parts.engine, updates=range(2)
    )
    after = parts.policy.parameters()
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unchanged_policy_has_ratio_one(dtype):
    parts = build(overrides.changed(recipes.named("ddpo"), SMALL))
    policy = parts.policy
    policy.autocast = dtype if dtype == torch.bfloat16 else None  # its own, not one around it
    generator = torch.Generator().manual_seed(0)
    condition = policy.backbone.encode(["a red seven"] * 8)
    path = rollout(
        policy, condition, parts.method.source.times, generator, prior(policy, 8, generator)
    )
    for k in range(len(path.data)):
        law = policy.transition(path.states[k], *path.times[k : k + 2], condition)
        difference = law.log_prob(path.states[k + 1]) - path.log_probs[k]
        assert float(difference.detach().abs().max()) < 1e-3


def test_every_law_holds_on_the_device():
    from scoretune.commands.doctor.doctor import examine

    wrong = [verdict for verdict in examine("cuda") if not verdict.passed]
    assert not wrong


@pytest.mark.parametrize(
    "changes",
    [
        ["model.precision=bf16"],
        ["model.precision=fp16"],
        ["model.rank=0", "model.precision=bf16", "optimiser.learning_rate=1e-5"],
        ["hardware.checkpointing=true", "hardware.device_batch=4"],
        ["hardware.offload_paths=true", "hardware.decode_batch=2"],
        ["hardware.cache_prompts=true", "hardware.channels_last=true"],
        ["hardware.compile=true"],
        ["optimiser.kind=fused"],
    ],
    ids=" ".join,
)
def test_settings_of_the_machine(changes):
    parts = build(overrides.changed(recipes.named("ddpo"), [*SMALL, *changes]))
    seen: list[dict[str, float]] = []
    train(
        parts.method.source,
        parts.method.objective,
        parts.optimiser,
        parts.engine,
        updates=range(2),
        hooks=[lambda update, metrics: seen.append(dict(metrics))],
    )
    assert all(math.isfinite(value) for line in seen for value in line.values())
    assert seen[-1]["grad_norm"] > 0


@pytest.mark.parametrize(
    "family", ["stable_diffusion_xl", "stable_diffusion_3", "flux", "diffusion_transformer"]
)
def test_families_train_on_the_device(family, tmp_path):
    build_folder = import_module(f"scoretune.models.tiny.{family}").build
    folder, asked = build_folder(tmp_path / "model"), tmp_path / "prompts.txt"
    asked.write_text("0\n1\n" if family == "diffusion_transformer" else "red\nblue\n")
    recipe = "ddpo" if family in ("stable_diffusion_xl", "diffusion_transformer") else "flow_grpo"
    given = [f"model.source={folder}", f"prompts={asked}", "reward=brightness"]
    parts = build(overrides.changed(recipes.named(recipe), [*SMALL, *given]))
    before = [p.detach().clone() for p in parts.policy.parameters()]
    train(
        parts.method.source, parts.method.objective, parts.optimiser, parts.engine, updates=range(2)
    )
    after = parts.policy.parameters()
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
