"""The learned studies of compressed sensing: latents, factors, portfolios and the reward."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
import torch

from scoretune.commands.reproduce import compressed_factors as factors
from scoretune.commands.reproduce import compressed_latents as latents
from scoretune.commands.reproduce.compressed_comparison import soonest
from scoretune.commands.reproduce.compressed_reward import lean
from scoretune.commands.reproduce.compressed_sets import States, digits, sets_in, states_of
from scoretune.compressed import Gaussian, decoder_flops, fista
from scoretune.core.errors import UserError


@pytest.fixture(scope="module")
def states() -> States:
    images = digits(260).view(-1, 1, 24, 24)
    return States(images[:200], images[200:], "identity", (0.0, 1.0), (64, 144, 196))


def relative(states: States, latent: latents.Latent) -> float:
    x = states.held_out.flatten(1)
    back, operations = latent.decode(latent.encode(states.held_out))
    assert back.shape == x.shape and operations >= 0
    return float((back - x).norm() / x.norm())


def test_latents_give_states_back(states):
    assert relative(states, latents.ambient(states)) == 0
    assert relative(states, latents.measured(states, 144, 1)) < 0.06  # the weight's shrinkage
    assert relative(states, latents.unrecovered(states, 144, 1)) < 0.15
    assert relative(states, latents.principal(states, 64)) < 1e-3  # there are 64 bright pixels
    narrow, wide = (relative(states, latents.principal(states, k)) for k in (4, 16))
    assert narrow > wide > 0.1
    short, trained = (
        relative(states, latents.variational(states, 16, width=64, updates=n, seed=0))
        for n in (1, 200)
    )
    assert trained < 0.7 < short


def test_recovery_begins_where_linear_algebra_ends(states):
    """The same answer as from zero, in fewer iterations."""
    latent, operator = latents.measured(states, 144, 1), Gaussian(144, states.dimension, 1)
    y = latent.encode(states.held_out)
    weight = latents.SPREAD * float(operator.forward(states.learned.flatten(1)).std())
    zero = fista(operator, y, weight, box=states.box, tolerance=latents.TOLERANCE)
    x, operations = latent.decode(y)
    assert float((x - zero.x).norm() / zero.x.norm()) < 0.02
    steps = float(zero.iterations.double().mean())
    assert operations < decoder_flops(144, states.dimension, steps) / 2


def test_the_least_seconds_to_a_distance():
    ways = [{"seconds": [s], "energy": [e]} for s, e in ((4, 0.1), (2, 0.15), (1, 0.3))]
    arm = {"samplers": dict(enumerate(ways))}
    assert [soonest(arm, limit) for limit in (0.05, 0.1, 0.2, 1)] == [None, 4, 2, 1]


def test_portfolios_know_their_laws():
    random = np.random.default_rng(0)
    root = random.standard_normal((6, 4))
    covariance = root.T @ root + np.eye(4)
    parity = factors.risk_parity(covariance)
    shares = factors.risk_contributions(parity, covariance)
    assert shares == pytest.approx(shares.mean(), rel=1e-9) and parity.sum() == pytest.approx(1)
    assert shares.sum() == pytest.approx((parity @ covariance @ parity) ** 0.5)
    diagonal = np.diag([1.0, 4.0])
    assert factors.risk_parity(diagonal) == pytest.approx([2 / 3, 1 / 3])
    assert factors.minimum_variance(diagonal) == pytest.approx([0.8, 0.2])
    hedged = np.array([[1.0, 1.5], [1.5, 4.0]])  # the second would be sold short
    assert factors.minimum_variance(hedged) == pytest.approx([1, 0])


def test_returns_and_regressions():
    assert factors.rolling(np.arange(8.0), 6) == pytest.approx([15, 21, 27])
    x = np.random.default_rng(0).standard_normal((50, 2))
    coefficients, r_squared = factors.regression(x, 1 + x @ [2.0, -3.0])
    assert coefficients == pytest.approx([1, 2, -3]) and r_squared == pytest.approx(1)
    seen = factors.statistics(np.arange(101.0))
    assert (seen["mean"], seen["q5"], seen["q25"]) == (50, 5, 25)


@pytest.fixture
def files(tmp_path):
    """Thirty months of ten stocks, and thirty of nine macro series with a gap, a constant one."""
    random = np.random.default_rng(0)
    months = [f"{2011 + k // 12}-{k % 12 + 1:02d}-01" for k in range(30)]
    names = [f"S{k}" for k in range(10)]
    rows = [",".join(["", *names])]
    rows += [",".join([m, *map(str, random.normal(0, 0.05, 10))]) for m in months]
    (tmp_path / factors.RETURNS).write_text("\n".join(rows) + "\n")
    macro = ["sasdate," + ",".join(f"M{k}" for k in range(9)), "Transform:" + ",5" * 9]
    for k, month in enumerate(months):
        year, number, _ = month.split("-")
        values = [*map(str, random.normal(0, 1, 8)), "7"]
        values[2] = "" if k == 4 else values[2]
        macro.append(f"{int(number)}/1/{year}," + ",".join(values))
    (tmp_path / factors.MACRO).write_bytes(gzip.compress("\n".join(macro).encode()))
    return tmp_path


def test_factors_of_two_files(files):
    read = factors.macro_factors(files)
    assert read.components.shape == (30, 6) and read.returns.shape == (30, 10)
    assert (np.diff(read.shares) <= 0).all() and read.shares.sum() < 1
    windows = factors.factor_windows(read.components)
    assert windows.shape == (30 * 20 - 119, 6, 120)
    first = torch.from_numpy(read.components[:6] / read.components.std(0))
    assert windows[0, :, ::20].T.numpy() == pytest.approx(first.numpy(), abs=1e-5)
    coefficients, _ = read.fit
    fitted = coefficients[0] + read.components[:6] @ coefficients[1:]
    assert factors.six_months(windows[:1], read) == pytest.approx([fitted.sum()], rel=1e-4)
    (files / factors.MACRO).write_bytes(b"not a gzip file")
    with pytest.raises(UserError, match="cannot be read"):
        factors.macro_factors(files)


def test_what_is_learned_from_is_what_the_folder_has(tmp_path):
    assert sets_in(None) == ["digits"]
    with pytest.raises(UserError, match="holds nothing to learn from: put one of mnist/"):
        sets_in(str(tmp_path))
    rain = tmp_path / "climate_images" / "mrms_rain_64.npz"
    rain.parent.mkdir()
    pictures = np.full((2, 64, 64), 51, np.uint8)
    np.savez(rain, train_images=pictures, test_images=pictures)
    assert sets_in(str(tmp_path)) == ["rain"]
    states = states_of("rain", str(tmp_path))
    assert states.shape == (1, 64, 64) and float(states.learned.max()) == pytest.approx(0.2)


def test_the_reward_is_a_shear():
    rows = torch.arange(9)[:, None].expand(9, 9)
    columns = torch.arange(9)[None].expand(9, 9)
    upright = (columns == 4).float()
    right = (columns == 8 - rows).float()  # the top stands to the right of the foot
    pictures = torch.stack([upright, right, right.flip(1), torch.zeros(9, 9)])[:, None]
    assert lean(pictures, ()).tolist() == pytest.approx([0, 10, -10, 0], abs=1e-4)
    soft = (0.2 + 0.3 * right)[None, None].requires_grad_(True)
    (slope,) = torch.autograd.grad(lean(soft, ()).sum(), soft)
    assert bool(slope.isfinite().all()) and float(slope[0, 0, 0, 8]) > 0 > float(slope[0, 0, 0, 0])
