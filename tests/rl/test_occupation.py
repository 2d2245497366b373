"""The discounted occupation measure on an Ornstein–Uhlenbeck process, dX = −.7X dt + .5 dW."""

import math

import pytest
import torch

from scoretune.commands.doctor.laws.learning import LAWS
from scoretune.rl import exponential_times, occupation_weights

F64 = torch.float64
EXPECTED = {law.name: law.expected for law in LAWS}  # the golden numbers of the doctor
RATE, NOISE, START, DISCOUNT = 0.7, 0.5, 1.5, 1.0
STATIONARY = NOISE**2 / (2 * RATE)
# E∫₀^∞ e^{−ρt} X² dt
EXACT = START**2 / (DISCOUNT + 2 * RATE) + STATIONARY * (1 / DISCOUNT - 1 / (DISCOUNT + 2 * RATE))


def at(times, seed):
    """X at one time each, exactly, from X_0 = START."""
    mean = START * torch.exp(-RATE * times)
    std = torch.sqrt(STATIONARY * (1 - torch.exp(-2 * RATE * times)))
    noise = torch.randn(times.shape, generator=torch.Generator().manual_seed(seed), dtype=F64)
    return mean + std * noise


def paths(count, steps, dt, seed):
    """X_0 … X_{steps−1} on a grid, by exact transitions, [count, steps]."""
    generator = torch.Generator().manual_seed(seed)
    kept, std = math.exp(-RATE * dt), math.sqrt(STATIONARY * (1 - math.exp(-2 * RATE * dt)))
    x = torch.full((count,), START, dtype=F64)
    computed = []
    for _ in range(steps):
        computed.append(x)
        x = kept * x + std * torch.randn(count, generator=generator, dtype=F64)
    return torch.stack(computed, dim=1)


def check(samples, exact, bias=0.0):
    error = float(samples.std()) / len(samples) ** 0.5
    assert abs(float(samples.mean()) - exact) < 3 * error + bias
    return float(samples.mean()), error


def test_random_clocks_see_the_discounted_occupation():
    assert pytest.approx(EXPECTED["occupation time by weights"], abs=5e-8) == EXACT
    clocks = exponential_times(400_000, DISCOUNT, generator=torch.Generator().manual_seed(0))
    check(at(clocks.double(), 1) ** 2 / DISCOUNT, EXACT)


def test_weights_see_it_too_and_with_less_variance():
    dt, steps = 0.02, 500
    squares = paths(8_000, steps, dt, 2) ** 2
    sums = squares @ occupation_weights(steps, dt, DISCOUNT).double()
    # A left Riemann sum of a falling function is too high by about δ/2 times its first value.
    mean, error = check(sums, EXACT + dt / 2 * START**2, bias=math.exp(-10))
    clocks = exponential_times(8_000, DISCOUNT, generator=torch.Generator().manual_seed(3))
    once, noise = check(at(clocks.double(), 4) ** 2 / DISCOUNT, EXACT)
    assert noise > 1.5 * error
    assert abs(once - mean) < 3 * math.hypot(error, noise) + dt / 2 * START**2


def test_clocks_are_exponential():
    clocks = exponential_times(200_000, 2.5, generator=torch.Generator().manual_seed(5))
    assert float(clocks.mean()) == pytest.approx(1 / 2.5, rel=0.01)
    assert float((clocks > 1).float().mean()) == pytest.approx(math.exp(-2.5), rel=0.03)
    assert clocks.min() >= 0 and torch.isfinite(clocks).all()


@pytest.mark.parametrize("discount", [0.0, 1e-9, 0.5, 3.0])
def test_with_a_limit_late_clocks_ring_again(discount):
    limit = 1.5
    clocks = exponential_times(
        200_000, discount, generator=torch.Generator().manual_seed(6), limit=limit
    )
    assert float(clocks.min()) >= 0 and float(clocks.max()) <= limit
    share = 0.5 if discount < 1e-6 else math.expm1(-discount * 0.75) / math.expm1(-discount * 1.5)
    assert float((clocks < 0.75).float().mean()) == pytest.approx(share, abs=0.005)


def test_clocks_repeat_with_their_generator():
    first, second = (
        exponential_times(5, 1.0, generator=torch.Generator().manual_seed(7)) for _ in range(2)
    )
    assert torch.equal(first, second)


def test_weights_sum_to_the_mass():
    weights = occupation_weights(4000, 0.001, 0.5)
    assert float(weights.sum()) == pytest.approx((1 - math.exp(-2)) / 0.5, rel=1e-3)
    assert torch.equal(occupation_weights(3, 0.5, 0.0), torch.full((3,), 0.5))


def test_what_makes_no_sense_is_refused():
    for discount in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="discount must be finite and > 0"):
            exponential_times(3, discount)
    for limit in (0.0, -2.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="limit must be finite and > 0"):
            exponential_times(3, 1.0, limit=limit)
    for dt in (0.0, -0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="dt must be finite and > 0"):
            occupation_weights(3, dt, 1.0)
