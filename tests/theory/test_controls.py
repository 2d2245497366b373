"""Toy backbones: exact scores, and trainable controls on top of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.diffusion import processes
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import EDM, VP, RectifiedFlow
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rl import tilt

F64 = torch.float64
PAIR = tilt.Mixture.of([0.3, 0.7], [[-2.0, 0.0], [1.0, 1.0]], 0.16)
BASES = {
    "gaussian": lambda process: toy.Gaussian(process, dimension=2),
    "mixture": lambda process: toy.Mixture(process, PAIR),
}
CONTROLS = {"hats": toy.HatControl, "perceptron": toy.PerceptronControl}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES)
every_control = pytest.mark.parametrize("control", CONTROLS.values(), ids=CONTROLS)
every_process = pytest.mark.parametrize("process", [VP(), RectifiedFlow(), EDM()], ids=repr)


def places(process, count: int = 40) -> tuple[Tensor, Tensor]:
    """States and times of the whole path, float32."""
    t = torch.linspace(0.001, 1, count) * process.horizon
    return process.sigma(t)[:, None] * torch.randn(count, 2) + process.alpha(t)[:, None], t


def perturbed(control: torch.nn.Module) -> torch.nn.Module:
    for parameter in control.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return control


def estimate_at(backbone, x: Tensor, t: Tensor):
    return Policy(backbone, GDDIM(1.0)).estimate(x, t, Condition.none(len(x)))


@every_process
def test_the_mixture_says_what_its_law_says(process):
    x, t = places(process)
    backbone = toy.Mixture(process, PAIR)
    alpha, sigma = process.alpha(t).double(), process.sigma(t).double()
    noise = backbone.predict(x, t, torch.zeros(len(x), 0, 0))
    score = PAIR.diffused(alpha, sigma).score(x.double())
    torch.testing.assert_close(noise.double(), -sigma[:, None] * score, atol=1e-4, rtol=1e-4)
    exact = PAIR.posterior(x.double(), alpha, sigma).mean
    torch.testing.assert_close(backbone.network.data(x, t).double(), exact, atol=1e-4, rtol=1e-4)
    assert backbone.shape == (2,)
    assert not Policy(backbone, GDDIM(1.0)).parameters()  # nothing to train
    assert Policy(backbone, GDDIM(1.0)).device.type == "cpu"


@every_process
@every_base
@every_control
def test_a_control_starts_at_nothing_and_can_be_switched_off(process, base, control):
    x, t = places(process)
    backbone = toy.Controlled(base(process), control(2))
    exact = backbone.base.network.data(x, t)
    assert torch.equal(estimate_at(backbone, x, t).data, exact)
    perturbed(backbone.control)
    moved = estimate_at(backbone, x, t).data
    assert float((moved - exact).detach().abs().max()) > 0.05
    policy = Policy(backbone, GDDIM(1.0))
    with policy.reference():
        assert torch.equal(policy.estimate(x, t, Condition.none(len(x))).data, exact)
    assert torch.equal(policy.estimate(x, t, Condition.none(len(x))).data, moved)
    assert {id(p) for p in policy.parameters()} == {id(p) for p in backbone.control.parameters()}


@every_process
@every_control
def test_a_control_is_a_smooth_function_of_time(process, control):
    # Nothing per step: nearby times get nearby corrections, and none is large at any time.
    torch.manual_seed(1)
    backbone = toy.Controlled(toy.Mixture(process, PAIR), perturbed(control(2)))
    t = torch.linspace(1e-3, 1, 4001) * process.horizon
    x = (process.alpha(t) + process.sigma(t))[:, None] * torch.tensor([[0.7, -0.4]])
    with torch.no_grad():
        correction = estimate_at(backbone, x, t).data - backbone.base.network.data(x, t)
    assert bool(torch.isfinite(correction).all())
    assert float(correction.abs().max()) < 5
    assert float(correction.diff(dim=0).abs().max()) < 0.05
    assert float(correction[0].abs().max()) < 0.02  # at the data nothing is left to decide


def test_a_constant_control_moves_gaussian_data_by_itself():
    # c = θ in units of data is the policy s_pre + θh, the exact score of moved data.
    process, theta = VP(), 0.3
    backbone = toy.Controlled(toy.Gaussian(process), toy.HatControl(1))
    backbone.control.table.data[:, 0] = theta / 0.25**0.5
    family = toy.Gaussian(process)
    family.network.shift.data.fill_(theta)
    x, t = places(process)
    ours, theirs = (estimate_at(b, x[:, :1], t) for b in (backbone, family))
    torch.testing.assert_close(ours.data, theirs.data, atol=2e-4, rtol=1e-4)
    scores = [processes.score(process, e, t) for e in (ours, theirs)]
    torch.testing.assert_close(*scores, atol=2e-3, rtol=1e-3)


def test_hats_hold_the_optimal_control_of_the_quadratic_case():
    """−(x − 2)², κ = .5: c* = (μ − x̂0)/(1 + 4v), linear in x̂0 and smooth in the share v/S₀."""
    process, law = VP(), tilt.Mixture.gaussian([1.0], 0.25)
    t = torch.linspace(0.01, 1, 400, dtype=F64)
    alpha, sigma = process.alpha(t), process.sigma(t)
    x = torch.randn(400, 1, dtype=F64)
    base = toy.Gaussian(process)
    pretrained = law.posterior(x, alpha, sigma).mean
    best = tilt.tilted(law, tilt.Quadratic.around([2.0], 2.0), 0.5)[0]
    wanted = best.posterior(x, alpha, sigma).mean - pretrained
    control = toy.HatControl(1)
    backbone = toy.Controlled(base, control)

    def correction(table: Tensor) -> Tensor:
        control.table.data = table.view_as(control.table)
        with torch.no_grad():
            return backbone.network(x, t)[:, 0] - pretrained[:, 0]

    columns = torch.stack([correction(row) for row in torch.eye(18, dtype=F64)], 1)
    fit = torch.linalg.lstsq(columns, wanted).solution
    assert float((columns @ fit - wanted).abs().max()) < 0.01
