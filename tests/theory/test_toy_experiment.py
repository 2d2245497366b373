"""The experiment whose optimum is known: it is judged without sampling, and all credit learns."""

from __future__ import annotations

import pytest
import torch

from scoretune.commands.reproduce import score_as_action_toy as experiment
from scoretune.diffusion.kernels import EulerMaruyama, Memoryless
from scoretune.models import toy
from scoretune.policy import Policy


def policy() -> Policy:
    backbone = toy.Controlled(toy.Gaussian(experiment.PROCESS), toy.HatControl(1))
    return Policy(backbone, EulerMaruyama(Memoryless()))


def test_judging_is_exact(bed):
    # The pretrained policy is worth −1.25; a constant control θ = .6 what the family says.
    plain = experiment.exactly(policy(), 1000)
    assert plain["eta"] == pytest.approx(-1.25, abs=0.01) and plain["chain_kl"] == 0
    moved = policy()
    moved.backbone.control.table.data[:, 0] = 0.6 / 0.25**0.5
    numbers = experiment.exactly(moved, 1000)
    times = experiment.square(1000).double()
    steps, base = (
        bed.steps(EulerMaruyama(Memoryless()), p, times) for p in (bed.family(0.6), bed.exact())
    )
    laws = steps.laws()
    assert [numbers["mean"], numbers["variance"]] == pytest.approx(laws[-1].tolist(), abs=1e-4)
    assert numbers["chain_kl"] == pytest.approx(steps.kl(base, laws), rel=1e-3)
    assert numbers["chain_kl"] == pytest.approx(0.6**2 / (2 * 0.25), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("form", experiment.FORMS)
def test_every_form_of_credit_learns(form):
    numbers = experiment.on_the_line(form, 10, True, "gddim", seed=0, updates=4, batch=256)
    assert -1.2 < numbers["50"]["eta"] < -0.6733 + 0.02  # from −1.25, and never past the optimum


def test_noise_of_a_gradient_and_its_mean():
    # ∂η/∂θ at θ = 0 is −k(m₀ − μ) = 2. Slopes in continuous time are unbiased and the quietest.
    quiet, loud = (experiment.noise_of_gradient(f, 10, rounds=12) for f in ("rate", "whole"))
    assert quiet["mean"] == pytest.approx(2.0, abs=4 * quiet["std"] / (12 * 32) ** 0.5 + 0.06)
    assert loud["std"] > 2 * quiet["std"]


def test_cells_have_names_of_their_own():
    names = [cell.name for cell in experiment.cells(3, quick=False)]
    assert len(set(names)) == len(names)
    torch.testing.assert_close(experiment.square(10)[[0, -1]], torch.tensor([1.0, 1e-3]))
