"""Distances against closed forms; intervals that cover what is known; features by name."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

from scoretune.core.errors import UserError
from scoretune.data.scenes import draw, world
from scoretune.evaluate import metrics
from scoretune.evaluate.features import FEATURES, Features, named_features

F64 = torch.float64
ZERO = torch.zeros(2, dtype=F64)
FIRST = torch.diag(torch.tensor([1.0, 4.0], dtype=F64))
SECOND = torch.diag(torch.tensor([2.0, 0.5], dtype=F64))
TURN = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]], dtype=F64)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, size: int, seed: int) -> torch.Tensor:
    return torch.randn(count, size, generator=seeded(seed), dtype=F64)


# ---------------------------------------------------------------------------- Gaussians


def test_gaussian_golden_numbers():
    assert metrics.wasserstein_gaussian(ZERO, FIRST, ZERO, SECOND) ** 2 == pytest.approx(
        1.8431, abs=5e-5
    )
    sliced = metrics.sliced_wasserstein_gaussian(ZERO, FIRST, ZERO, SECOND)
    assert sliced**2 == pytest.approx(0.558191, abs=5e-7)
    assert metrics.mmd_gaussian(0, 1, 0.5, 0.64) == pytest.approx(0.065625, abs=5e-7)


def test_sliced_wasserstein_of_gaussians_is_an_integral():
    from scipy.integrate import quad

    def square(angle):
        c, s = math.cos(angle) ** 2, math.sin(angle) ** 2
        return (math.sqrt(c + 4 * s) - math.sqrt(2 * c + s / 2)) ** 2 / math.pi

    exact = quad(square, 0, math.pi)[0]
    assert metrics.sliced_wasserstein_gaussian(ZERO, FIRST, ZERO, SECOND) ** 2 == pytest.approx(
        exact, rel=1e-9
    )


def test_wasserstein_of_gaussians_knows_its_laws():
    mean = torch.tensor([1.0, -2.0], dtype=F64)
    distance = metrics.wasserstein_gaussian
    assert distance(mean, FIRST, mean, FIRST) == pytest.approx(0, abs=1e-7)
    assert distance(mean, FIRST, ZERO, FIRST) == pytest.approx(math.sqrt(5))
    turned = [TURN @ s @ TURN.T for s in (FIRST, SECOND)]  # does not commute with the other one
    assert distance(ZERO, turned[0], ZERO, turned[1]) == pytest.approx(math.sqrt(1.8431), abs=2e-5)
    assert distance(ZERO, turned[0], ZERO, SECOND) == pytest.approx(
        distance(ZERO, SECOND, ZERO, turned[0]), rel=1e-12
    )
    flat = torch.diag(torch.tensor([1.0, 0.0], dtype=F64))  # a singular one too
    assert distance(ZERO, flat, ZERO, FIRST) == pytest.approx(2)
    sliced = metrics.sliced_wasserstein_gaussian(mean, FIRST, ZERO, FIRST)
    assert sliced == pytest.approx(math.sqrt(5 / 2))  # E(θ·Δm)² = |Δm|²/d
    assert metrics.mmd_gaussian(3, 2, 3, 2) == pytest.approx(0, abs=1e-15)


def test_random_directions_see_what_equidistant_ones_see():
    wide = [torch.block_diag(s, torch.eye(1, dtype=F64)) for s in (FIRST, SECOND)]
    zero = torch.zeros(3, dtype=F64)
    mean = torch.tensor([1.0, 0.0, 1.0], dtype=F64)
    found = [
        metrics.sliced_wasserstein_gaussian(mean, wide[0], zero, wide[1], generator=seeded(k))
        for k in (0, 1)
    ]
    assert found[0] == pytest.approx(found[1], rel=0.01)
    assert found[0] != found[1]


# ---------------------------------------------------------------------------- samples


def test_frechet_distance_golden():
    """Of N(0, C) to N(m, 4C): ‖m‖² + tr(C + 4C − 2·2C) = ‖m‖² + tr C, without commuting axes."""
    features = normal(500, 3, 0) @ normal(3, 3, 1)
    centre = features.mean(0)
    others = centre + torch.tensor([1.0, -2.0, 0.5]) + 2 * (features - centre)
    expected = 5.25 + float(torch.trace(torch.cov(features.T)))
    assert metrics.frechet_distance(features, others) == pytest.approx(expected, rel=1e-4)
    assert metrics.frechet_distance(others, features) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_is_wasserstein_of_the_fitted_gaussians():
    x, y = normal(300, 4, 0) @ normal(4, 4, 1), 1 + normal(200, 4, 2)
    fitted = [(part.mean(0), torch.cov(part.T)) for part in (x, y)]
    exact = metrics.wasserstein_gaussian(*fitted[0], *fitted[1]) ** 2
    assert metrics.frechet_distance(x, y) == pytest.approx(exact, rel=1e-4)


def test_frechet_distance_of_few_is_a_number():
    """Fewer samples than features: the covariances have no inverse, yet it is 0 to itself."""
    features = torch.randn(5, 32)
    assert metrics.frechet_distance(features, features) == pytest.approx(0, abs=1e-3)


def test_kernel_distance_by_hand():
    """Two points each in one dimension: kernels (xy + 1)³ that one can add up."""
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [-1.0]])
    within = 27.0 + 1.0  # (1·2+1)³ and (0·−1+1)³
    across = (1 + 1 + 0 - 1) / 4  # (1·0+1)³, (2·0+1)³, (1·−1+1)³, (2·−1+1)³
    assert metrics.kernel_distance(x, y) == pytest.approx(within - 2 * across)


def test_unbiased_distances_are_zero_on_average_and_biased_ones_are_not():
    found = {"kid": [], "unbiased": [], "biased": []}
    for k in range(200):
        x, y = normal(30, 2, 2 * k), normal(20, 2, 2 * k + 1)
        found["kid"].append(metrics.kernel_distance(x, y))
        found["unbiased"].append(metrics.mmd(x, y, bandwidth=1.0))
        found["biased"].append(metrics.mmd(x, y, bandwidth=1.0, unbiased=False))
    means = {name: torch.tensor(values).mean() for name, values in found.items()}
    errors = {name: torch.tensor(v).std() / math.sqrt(200) for name, v in found.items()}
    for name in ("kid", "unbiased"):
        assert abs(means[name]) < 3.5 * errors[name], name
        assert min(found[name]) < 0
    assert min(found["biased"]) > 0
    # E k(X, X) = 1 instead of E k(X, X'): too high by (1 − E k)(1/n + 1/m), E k = 1/3 here.
    assert float(means["biased"]) == pytest.approx(2 / 3 * (1 / 30 + 1 / 20), rel=0.1)


def test_mmd_of_samples_is_that_of_their_laws():
    values = [
        metrics.mmd(normal(400, 1, 2 * k), 0.5 + 0.8 * normal(300, 1, 2 * k + 1), bandwidth=1.0)
        for k in range(40)
    ]
    mean, error = np.mean(values), np.std(values) / math.sqrt(40)
    assert abs(mean - 0.065625) < 3.5 * error
    assert error < 0.004


def test_mmd_takes_the_median_distance():
    x, y = normal(50, 3, 0), 1 + normal(70, 3, 1)
    scale = float(torch.pdist(torch.cat([x, y])).median())
    assert metrics.median_distance(x, y) == pytest.approx(scale)
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(x, y, bandwidth=scale))
    assert metrics.mmd(x, y) == pytest.approx(metrics.mmd(10 * x, 10 * y))  # no unit of length
    with pytest.raises(ValueError, match="bandwidth > 0"):
        metrics.mmd(torch.zeros(3, 2), torch.zeros(3, 2))


def test_blocks_of_the_gram_matrix_change_nothing(monkeypatch):
    x, y = normal(40, 3, 0), 1 + normal(30, 3, 1)
    whole = [metrics.kernel_distance(x, y), metrics.mmd(x, y)]
    monkeypatch.setattr(metrics, "BLOCK", 7)
    assert [metrics.kernel_distance(x, y), metrics.mmd(x, y)] == pytest.approx(whole, rel=1e-12)


def test_wasserstein_1d_golden():
    x = torch.tensor([3.0, 1.0, 2.0])
    assert metrics.wasserstein_1d(x, x + 2) == pytest.approx(2)
    assert metrics.wasserstein_1d(x, x + 2, order=1) == pytest.approx(2)
    # One point against two: the half of the mass that moves by 0 and that which moves by 2.
    assert metrics.wasserstein_1d(torch.tensor([0.0]), torch.tensor([0.0, 2.0])) == pytest.approx(
        math.sqrt(2)
    )
    # Quantiles of {0, 1} and {0, 1, 2} differ on (1/3, 1/2] and (2/3, 1], by 1 each time.
    uneven = metrics.wasserstein_1d(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0, 2.0]))
    assert uneven == pytest.approx(math.sqrt(1 / 6 + 1 / 3))


def test_wasserstein_1d_agrees_with_scipy():
    from scipy.stats import wasserstein_distance

    for n, m in ((50, 50), (37, 91), (100, 12)):
        x, y = normal(n, 1, n)[:, 0], 0.3 + 2 * normal(m, 1, m)[:, 0]
        expected = wasserstein_distance(x.numpy(), y.numpy())
        assert metrics.wasserstein_1d(x, y, order=1) == pytest.approx(expected, rel=1e-10)


def test_repeating_every_point_changes_no_distance():
    x, y = normal(20, 3, 0), 1 + normal(20, 3, 1)
    once, twice = metrics.sliced_wasserstein(x, y), metrics.sliced_wasserstein(x.repeat(3, 1), y)
    assert twice == pytest.approx(once, rel=1e-12)


def test_sliced_wasserstein_of_samples_is_that_of_their_laws():
    x = normal(3_000, 2, 0) @ FIRST.sqrt()
    y = normal(2_000, 2, 1) @ SECOND.sqrt()
    assert metrics.sliced_wasserstein(x, y, 300) ** 2 == pytest.approx(0.5582, rel=0.1)
    shifted = metrics.sliced_wasserstein(x, x + torch.tensor([3.0, 4.0]), 1000)
    assert shifted == pytest.approx(5 / math.sqrt(2), rel=0.03)
    once = metrics.sliced_wasserstein(x, y)
    torch.manual_seed(1)  # by default its directions are its own
    assert metrics.sliced_wasserstein(x, y) == once
    assert metrics.sliced_wasserstein(x, y, 5, seeded(1)) != metrics.sliced_wasserstein(
        x, y, 5, seeded(2)
    )


def test_nonsense_is_refused():
    with pytest.raises(ValueError, match="the same F"):
        metrics.sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="at least 2 points"):
        metrics.kernel_distance(torch.zeros(1, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="at least 1 projection"):
        metrics.sliced_wasserstein(torch.zeros(3, 2), torch.zeros(3, 2), 0)
    with pytest.raises(ValueError, match="0 < level < 1"):
        metrics.with_interval(metrics.mmd, torch.zeros(9, 2), torch.zeros(9, 2), level=95)


# ---------------------------------------------------------------------------- intervals


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shift", "scale", "least"), [(0.5, 1.5, 0.87), (0.0, 1.0, 0.93)], ids=["apart", "equal"]
)
def test_intervals_of_frechet_distances_cover_the_truth(shift, scale, least):
    """For N(0, I) and N(shift, scale² I) in 8 dimensions the truth is 8(shift² + (1−scale)²).

    The plug-in value is far too high and its own bootstrap would be centred on it.
    """
    truth = 8 * (shift**2 + (1 - scale) ** 2)
    covered, values, plain = [], [], []
    for k in range(60):
        x, y = normal(150, 8, 2 * k), shift + scale * normal(200, 8, 2 * k + 1)
        value, low, high = metrics.with_interval(
            metrics.frechet_distance, x, y, resamples=40, generator=seeded(k)
        )
        assert low < value < high
        covered.append(low <= truth <= high)
        values.append(value)
        plain.append(metrics.frechet_distance(x, y))
    assert np.mean(covered) >= least
    spread = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values) - truth) < 4 * spread
    assert np.mean(plain) - truth > 4 * spread  # what the correction removes


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_of_an_unbiased_distance_have_their_level(level):
    truth = metrics.mmd_gaussian(0, 1, 0.5, 0.64)

    def metric(x, y):
        return metrics.mmd(x, y, bandwidth=1.0)

    covered = []
    for k in range(150):
        x, y = normal(100, 1, 2 * k), 0.5 + 0.8 * normal(100, 1, 2 * k + 1)
        _, low, high = metrics.with_interval(
            metric, x, y, resamples=30, level=level, generator=seeded(k)
        )
        covered.append(low <= truth <= high)
    assert np.mean(covered) == pytest.approx(level, abs=0.12)


@pytest.mark.slow
def test_intervals_repeat_and_narrow():
    x, y = normal(500, 2, 0), 1 + normal(500, 2, 1)
    first, second = (metrics.with_interval(metrics.sliced_wasserstein, x, y) for _ in range(2))
    assert first == second
    few = metrics.with_interval(metrics.sliced_wasserstein, x[:40], y[:40])
    assert few[2] - few[1] > 2 * (first[2] - first[1])


# ---------------------------------------------------------------------------- features


@pytest.fixture(scope="module")
def pictures() -> torch.Tensor:
    asks = world.held_out_asks()[:6]
    rng = np.random.default_rng(0)
    layouts = [world.lay_out(ask, rng) for ask in asks]
    return torch.from_numpy(draw.draw(layouts, "judge", rng))


@pytest.mark.parametrize(("name", "size"), [("pixels", 3072), ("reader", 384), ("judge", 320)])
def test_named_features(pictures, name, size):
    look = named_features(name)
    rows = look(pictures)
    assert rows.shape == (6, size) and rows.dtype == torch.float32 and not rows.requires_grad
    torch.testing.assert_close(Features(name, look.look, batch=4)(pictures), rows)
    assert not torch.allclose(rows[0], rows[1])


def test_features_are_what_the_answer_is_made_of(pictures):
    from scoretune.rewards import reader

    network = reader.load(world.shipped(), "reader")
    rows = named_features("reader")(pictures).reshape(6, 4, -1)
    torch.testing.assert_close(network.look[-1](rows), network(pictures))
    assert not network.look[-1]._forward_pre_hooks


def test_points_have_features_too():
    points = torch.randn(5, 2)
    assert torch.equal(named_features("pixels")(points), points)


def test_a_users_own_features(tmp_path, monkeypatch, pictures):
    (tmp_path / "my_features.py").write_text(
        "import torch\n"
        "def brightness(images):\n    return images.mean((1, 2, 3))\n"
        "network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Flatten())\n"
        "def wrong(images):\n    return images.mean()\n"
        "def bad(images):\n    return images * float('nan')\n"
        "class Net(torch.nn.Module):\n    pass\n"
        "number = 3\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in (
        "my_features:brightness",
        "python:my_features:brightness",
        f"{tmp_path}/my_features.py:brightness",
    ):
        rows = named_features(name)(pictures)
        torch.testing.assert_close(rows, pictures.mean((1, 2, 3))[:, None])
    assert torch.equal(
        named_features("my_features:network")(pictures), pictures.flatten(1)
    )  # eval mode
    for name, message in {
        "my_features:wrong": "return one row an image",
        "my_features:bad": "not finite",
    }.items():
        with pytest.raises(UserError, match=message):
            named_features(name)(pictures)
    for name, message in {
        "my_features:number": "is a int, not a function",
        "my_features:Net": "a class: name a function",
        "my_features:none": "my_features has no 'none'",
        "nowhere.py:look": "cannot import the features .*file.py:function",
    }.items():
        with pytest.raises(UserError, match=message):
            named_features(name)


def test_features_that_are_not_there():
    with pytest.raises(UserError, match="did you mean 'pixels'"):
        named_features("pixel")
    assert set(FEATURES) == {"pixels", "reader", "judge", "inception"}
    with pytest.raises(UserError, match="'reader' failed with"):
        named_features("reader")(torch.rand(2, 3, 8, 8))


def test_inception_needs_another_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="pip install torch-fidelity") as caught:
        named_features("inception")
    assert "\n" not in str(caught.value)


def test_inception_is_asked_as_fid_asks_it(monkeypatch, pictures):
    """A stand-in for the package: bytes go in, the first of a tuple comes out, no code is read."""
    import os

    seen = []

    class Extractor(nn.Module):
        def __init__(self, name, features):
            super().__init__()
            seen.append((features, os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")))

        def forward(self, x):
            assert x.dtype == torch.uint8 and x.shape[1] == 3
            return (x.float().mean((2, 3)),)

    package, module = ModuleType("torch_fidelity"), ModuleType("torch_fidelity.inception")
    module.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    rows = named_features("inception")(pictures)
    assert seen == [(["2048"], "1")]
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    torch.testing.assert_close(rows, pictures.mean((2, 3)) * 255, rtol=0, atol=0.5)
    grey = named_features("inception")(pictures[:, :1])
    assert grey.shape == (6, 3)


def test_energy_distance_knows_its_laws():
    x, y = normal(600, 3, 0), normal(500, 3, 1)
    assert metrics.energy_distance(x, y) == pytest.approx(0, abs=0.02)  # unbiased: either sign
    shifted = metrics.energy_distance(x, y + torch.tensor([2.0, 0, 0], dtype=F64))
    assert shifted > 0.5
    assert metrics.energy_distance(2 * x, 2 * y) == pytest.approx(
        2 * metrics.energy_distance(x, y), abs=1e-9
    )
    points = torch.tensor([[0.0], [1.0]], dtype=F64)
    assert metrics.energy_distance(points, points + 3) == pytest.approx(2 * 3 - 1 - 1)
