"""A backbone under another process: any prediction, the shipped Stable Diffusion, training."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.grids import uniform
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import (
    VE,
    VP,
    ContractiveSubVP,
    Process,
    RectifiedFlow,
    noise_ratio,
    time_of_ratio,
)
from scoretune.models.recycled import Recycled, recycle
from scoretune.models.toy import Gaussian, Vectors
from scoretune.policy import Policy, WithFeatures
from scoretune.rollout import deterministic, rollout
from scoretune.training import overrides
from scoretune.training.build import build_policy

PREDICTIONS = [estimates.noise, estimates.data, estimates.v, estimates.velocity]


@dataclass
class Exact(Vectors):
    """The exact estimate of N(1, ¼), said in any prediction."""

    process: Process
    prediction: Prediction
    shape: tuple[int, ...] = (3,)
    network: nn.Module = field(default_factory=lambda: nn.Linear(1, 1))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        inner = Gaussian(self.process, 1.0, 0.25, 3)
        eps = inner.predict(x, t, tokens)
        seen = estimates.read(self.process, estimates.noise, t, x, eps)
        return estimates.target(self.process, self.prediction, t, seen.data, seen.noise)


@pytest.mark.parametrize("base", [VP(), RectifiedFlow(), VE()], ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
def test_the_estimate_is_exact_whatever_the_network_predicts(base, prediction):
    target = ContractiveSubVP()
    policy = Policy(recycle(Exact(base, prediction), target), GDDIM(1.0))
    t = torch.linspace(0.05, 1, 16)
    x = target.alpha(t)[:, None] * (1 + torch.randn(16, 3)) + target.sigma(t)[:, None]
    found = policy.estimate(x, t, Condition.none(16))
    exact = Policy(Gaussian(target, 1.0, 0.25, 3), GDDIM(1.0)).estimate(x, t, Condition.none(16))
    torch.testing.assert_close(found.data, exact.data, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.noise, exact.noise, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def shipped() -> Policy:
    run = overrides.changed(recipes.named("ddpo"), ["model.rank=4"])
    return build_policy(run, torch.device("cpu"))


def test_stable_diffusion_under_ve_draws_the_same_pictures(shipped):
    # DDIM lives in x/α and σ/α: on the same noise ratios the process cannot be seen.
    base = shipped.backbone.process
    target = VE(0.01, 14.0)
    times = uniform(base, 8, t_end=0.02)[1:]
    own = time_of_ratio(target, noise_ratio(base, times)).float()
    other = Policy(recycle(shipped.backbone, target), shipped.kernel)
    condition = shipped.backbone.encode(["a red seven", "two fives"])
    noise = torch.randn(2, *shipped.backbone.shape)
    mine = deterministic(shipped, condition, times, base.alpha(times[0]) * noise, "ddim")
    theirs = deterministic(other, condition, own, target.alpha(own[0]) * noise, "ddim")
    scale = base.alpha(times[-1]) / target.alpha(own[-1])
    torch.testing.assert_close(mine / scale, theirs, rtol=1e-3, atol=2e-3)


def test_features_and_reference_come_along(shipped):
    other = recycle(shipped.backbone, ContractiveSubVP())
    assert isinstance(other, WithFeatures)
    assert not isinstance(recycle(Gaussian(VP()), ContractiveSubVP()), WithFeatures)
    policy = Policy(other, GDDIM(1.0))
    condition = shipped.backbone.encode(["a red seven"])
    x, t = torch.randn(1, *other.shape), torch.tensor([0.5])
    estimate, features = policy.estimate_with_features(x, t, condition)
    assert features.shape == (1, policy.feature_size)
    torch.testing.assert_close(estimate.noise, policy.estimate(x, t, condition).noise)
    assert policy.has_reference


def test_ratios_of_an_unchanged_policy_are_one_under_another_process(shipped):
    policy = Policy(recycle(shipped.backbone, ContractiveSubVP()), GDDIM(1.0))
    condition = shipped.backbone.encode(["a red seven", "two fives"])
    times = uniform(policy.backbone.process, 4, t_end=0.05)
    noise = torch.randn(2, *policy.backbone.shape) * policy.backbone.process.prior_std
    path = rollout(policy, condition, times, torch.Generator().manual_seed(0), noise)
    again = policy.transition(path.states[1], path.times[1], path.times[2], condition)
    assert path.log_probs is not None
    assert torch.equal(again.log_prob(path.states[2]), path.log_probs[1])


def test_a_configuration_names_the_process():
    run = overrides.changed(recipes.named("ddpo"), ["model.process=VE(sigma_max=14)"])
    policy = build_policy(run, torch.device("cpu"))
    assert isinstance(policy.backbone, Recycled)
    assert policy.backbone.process == VE(sigma_max=14.0)


@pytest.mark.parametrize(
    ("process", "message"),
    [
        ("VE", "knows noise up to σ/α = 14.6"),
        ("VEE", "unknown process 'VEE': did you mean 'VE'?"),
    ],
)
def test_a_process_that_does_not_fit_is_one_line(command, tmp_path, small, process, message):
    done = command("train", "ddpo", f"model.process={process}", *small, "--run", tmp_path / "r")
    assert done.code == 2
    line = done.err.removeprefix("loading the model\n")
    assert message in line
    assert line.count("\n") == 1


def test_training_under_another_process_runs(command, tmp_path, small):
    changes = ["model.process=ContractiveSubVP", *small, "updates=1", "guard.action=off"]
    done = command("train", "score_as_action", *changes, "--run", tmp_path / "r", "--json")
    assert done.code == 0, done.err
    assert (tmp_path / "r" / "lora" / "pytorch_lora_weights.safetensors").exists()
