"""Guidance distillation: its optimum and its KL where both are known, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, expand
from scoretune.models.toy import Vectors
from scoretune.policy import Adapter, Policy
from scoretune.training import build as building
from scoretune.training import overrides
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.method import Method

VARIANCE, SCALE = 0.25, 3.0
PROMPTS = Prompts(("0.5", "-1", "2"), ("all",) * 3)


class Told(Adapter):
    """The exact E[x0 | x] of N(m, VARIANCE), m what the prompt says, and a gain that is learned:

    x̂0 = E[x0 | x] + (σ²/v)·gain·m,   v = α² VARIANCE + σ²

    which is the same for N((1 + gain) m, VARIANCE). Guidance of scale w with the null prompt m = 0
    is that of N(w m, VARIANCE), so the optimum is gain = w − 1.
    """

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process, self.gain = process, nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        spread = alpha**2 * VARIANCE + sigma**2
        gain = 0.0 if self.disable_adapters else self.gain
        told = expand(sigma**2 / spread, x) * (1 + gain) * mean
        return told + expand(alpha * VARIANCE / spread, x) * x


@dataclass
class Prompted(Vectors):
    """A backbone whose prompts are numbers, and 0 is the empty one."""

    process: Process
    prediction: Prediction = field(default=estimates.data)
    shape: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        self.network = Told(self.process)

    def encode(self, prompts: Sequence[str]) -> Condition:
        means = torch.tensor([[[float(prompt)]] for prompt in prompts])
        return Condition(means, torch.zeros(1, 1, 1))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return self.network(x, t, tokens[:, 0])


@dataclass
class WithScale(Prompted):
    """A backbone that is told the scale of guidance."""

    scale: float = 3.5


class Promptless(Prompted):
    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts))


def reward(x: Tensor, prompts: Sequence[str]) -> Tensor:
    return -(x**2).sum(1)


def made(process: Process, *changes: str, kind: type[Prompted] = Prompted) -> tuple[Policy, Method]:
    run = overrides.changed(recipes.guidance_distillation(), changes)
    policy = Policy(kind(process), kernel(run.sampling))
    checked = building.Checked(PROMPTS, PROMPTS, reward, None)
    return policy, building.build_method(run, policy, checked)


def learned(policy: Policy, method: Method, updates: int) -> list[float]:
    """The KL to the guided model of every update."""
    kls: list[float] = []
    optimiser = torch.optim.Adam(policy.parameters(), 0.1)
    hooks = [lambda update, metrics: kls.append(metrics["guided_kl"])]
    train(
        method.source,
        method.objective,
        optimiser,
        TorchEngine(),
        updates=range(updates),
        hooks=hooks,
    )
    return kls


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=["vp", "flow"])
@pytest.mark.parametrize("steps", [10, 40])
def test_its_first_kl_is_that_of_the_two_laws(process, steps):
    """KL(N(m, v) ‖ N(w m, v)) = (w − 1)² m² / 2v, whatever the steps: an integral over the path."""
    _, method = made(
        process, "sizes.prompts=600", f"sampling.steps={steps}", "sizes.share=1", "sizes.epochs=1"
    )
    steps_of = method.source(0).minibatches
    kls = [float(method.objective(batch).value.detach()) for batch in steps_of]
    mean_square = sum(float(text) ** 2 for text in PROMPTS.texts) / 3
    exact = (SCALE - 1) ** 2 * mean_square / (2 * VARIANCE)
    mean = sum(kls) / len(kls)
    error = (sum((kl - mean) ** 2 for kl in kls) / len(kls) / (len(kls) - 1)) ** 0.5
    assert mean == pytest.approx(exact, abs=4 * error)
    assert error < 0.05 * exact


def test_it_comes_to_what_guidance_says():
    policy, method = made(VP(), f"objective.scale={SCALE}")
    kls = learned(policy, method, 20)
    assert policy.backbone.network.gain.item() == pytest.approx(SCALE - 1, abs=0.02)
    assert kls[-1] < 1e-3 * kls[0]
    x, t = torch.randn(4, 1), torch.full((4,), 0.5)
    condition = policy.encode(["0.5", "-1", "2", "0"])
    with policy.under(SCALE):
        guided = policy.pretrained(x, t, condition).data
    torch.testing.assert_close(policy.estimate(x, t, condition).data, guided, atol=0.02, rtol=0.02)


def test_the_teacher_costs_two_looks_a_state():
    policy, method = made(VP(), "sizes.prompts=4", "sizes.share=0.5")
    batches = method.source(0).minibatches
    states = sum(len(batch) for batch in batches)
    assert policy.calls == 4 * 10 + 2 * states
    assert policy.guidance == 1.0


def test_guidance_is_what_is_learned_and_no_setting_of_the_samples():
    run = recipes.guidance_distillation()
    with pytest.raises(UserError, match=r"this one learns that of objective\.scale"):
        overrides.changed(run, ["model.guidance=5"])
    with pytest.raises(UserError, match=r"objective\.scale"):
        overrides.changed(run, ["objective.scale=1"])


@pytest.mark.parametrize(
    ("kind", "why"), [(WithScale, "was distilled into this model"), (Promptless, "no empty prompt")]
)
def test_models_without_guidance_to_learn_are_refused(kind, why):
    with pytest.raises(UserError, match=why):
        made(VP(), kind=kind)


def test_noise_that_ends_is_refused():
    ramp = ["sampling.noise=ramp", "sampling.eta_end=0"]
    run = overrides.changed(recipes.guidance_distillation(), ramp)
    with pytest.raises(UserError, match=r"this recipe learns by it: raise eta_end to 0\.01"):
        building.check_settings(run)


def test_a_family_says_how_much_guidance_there_is_to_learn(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    run = overrides.changed(recipes.guidance_distillation(), [f"model.source={tmp_path}"])
    assert run.objective.scale == 5.0
    assert run.model.guidance == 1.0
    other = overrides.changed(run, ["objective.scale=7.5"])
    assert other.objective.scale == 7.5
    assert overrides.unusual(other) == []
    (line,) = overrides.unusual(overrides.changed(run, ["objective.scale=60"]))
    assert line.startswith("objective.scale=60 is 12 times the 5 that fits this family")
