"""What must also hold on a CUDA device; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from scoretune import recipes, settings
from scoretune.rollout import prior, rollout
from scoretune.run import build
from scoretune.train import train

pytestmark = pytest.mark.gpu
SMALL = ["sizes.prompts=4", "sizes.group=2", "sampling.steps=4", "evaluation.per_task=1"]


@pytest.mark.parametrize("recipe", sorted(set(recipes.RECIPES) - {"supervised", "consistency"}))
def test_an_update_moves_the_adapter_and_stays_finite(recipe):
    parts = build(settings.changed(recipes.named(recipe), SMALL))
    assert parts.policy.device.type == "cuda"
    before = [p.detach().clone() for p in parts.policy.parameters()]
    train(parts.source, parts.objective, parts.optimiser, parts.engine, updates=range(2))
    after = parts.policy.parameters()
    assert all(bool(torch.isfinite(p).all()) for p in after)
    assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_unchanged_policy_has_ratio_one(dtype):
    parts = build(settings.changed(recipes.named("ddpo"), SMALL))
    policy = parts.policy
    generator = torch.Generator().manual_seed(0)
    condition = policy.backbone.encode(["a red seven"] * 8)
    with torch.autocast("cuda", dtype, enabled=dtype == torch.bfloat16):
        path = rollout(
            policy, condition, parts.source.times, generator, prior(policy, 8, generator)
        )
        for k in range(len(path.data)):
            law = policy.transition(path.states[k], *path.times[k : k + 2], condition)
            difference = law.log_prob(path.states[k + 1]) - path.log_probs[k]
            assert float(difference.detach().abs().max()) < 1e-3


def test_every_law_holds_on_the_device():
    from scoretune.doctor import examine

    wrong = [verdict for verdict in examine("cuda") if not verdict.passed]
    assert not wrong
