"""Every prediction of every process reads back what it was made from."""

import pytest
import torch

from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import perturb, prediction_named, read, target
from scoretune.diffusion.processes import VP, RectifiedFlow

PREDICTIONS = [estimates.noise, estimates.data, estimates.v, estimates.velocity]


@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
def test_read_inverts_target(process, prediction):
    t = process.horizon * torch.tensor([0.03, 0.2, 0.5, 0.9], dtype=torch.float64)
    x0, eps = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64)
    x = perturb(process, t, x0, eps)
    estimate = read(process, prediction, t, x, target(process, prediction, t, x0, eps))
    torch.testing.assert_close(estimate.data, x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(estimate.noise, eps, rtol=1e-9, atol=1e-9)


def test_velocity_of_rectified_flow():
    t = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
    x0, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    torch.testing.assert_close(
        target(RectifiedFlow(), estimates.velocity, t, x0, eps), eps - x0, rtol=0, atol=0
    )
    x = perturb(RectifiedFlow(), t, x0, eps)
    estimate = read(RectifiedFlow(), estimates.velocity, t, x, eps - x0)
    torch.testing.assert_close(estimate.data, x0)  # both ends included, nothing divides by 1 − t
    torch.testing.assert_close(estimate.noise, eps)


def test_v_and_velocity_of_vp_point_the_same_way():
    # u = φ'v with α = cos φ.
    process, t = VP(), torch.tensor([0.2, 0.7], dtype=torch.float64)
    x0, eps = torch.randn(2, 2, 6, dtype=torch.float64)
    v = target(process, estimates.v, t, x0, eps)
    u = target(process, estimates.velocity, t, x0, eps)
    torch.testing.assert_close(torch.cosine_similarity(u, v, dim=1), torch.ones(2).double())


def test_half_precision_outputs_are_read_in_float32():
    t = torch.tensor([0.5])
    x = torch.randn(1, 4).bfloat16()
    assert read(VP(), estimates.noise, t, x, x).data.dtype == torch.float32


def test_names_are_those_of_diffusers():
    names = ["epsilon", "sample", "v_prediction", "velocity"]
    assert [prediction_named(name) for name in names] == PREDICTIONS
    with pytest.raises(
        ValueError, match=r"unknown prediction 'x' ?: choose one of epsilon, sample"
    ):
        prediction_named("x")
