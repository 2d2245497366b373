"""Critics on Brownian motion, h = x²: V = x² + (1 − t) is known."""

import pytest
import torch

from scoretune.rl import ctd0, martingale_loss, returns_to_go, td_advantage

F64 = torch.float64


@pytest.fixture(scope="module")
def brownian():
    """Paths [K, N+1] from x = 0, times [N+1] and steps [N]."""
    generator = torch.Generator().manual_seed(0)
    n = 20
    noise = torch.randn(20000, n, generator=generator, dtype=F64) / n**0.5
    paths = torch.cat([torch.zeros(20000, 1, dtype=F64), noise.cumsum(1)], dim=1)
    return paths, torch.linspace(0, 1, n + 1, dtype=F64), torch.full((n,), 1 / n, dtype=F64)


def family(paths, t, weights):
    """x² + w0 (1−t) + w1 (1−t) x²; the truth is (1, 0)."""
    return paths**2 + weights[0] * (1 - t) + weights[1] * (1 - t) * paths**2


def test_martingale_loss_finds_the_value(brownian):
    paths, t, dt = brownian
    weights = torch.zeros(2, dtype=F64, requires_grad=True)
    target = returns_to_go(torch.zeros_like(dt), paths[:, -1] ** 2, dt)

    def loss(w):
        return martingale_loss(family(paths, t, w)[:, :-1], target, dt)

    # Quadratic in the weights: one Newton step is the minimiser.
    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    found = -torch.linalg.solve(hessian, gradient)
    assert found.tolist() == pytest.approx([1, 0], abs=0.06)


def test_ctd0_stands_still_at_the_value_only(brownian):
    paths, t, dt = brownian

    def pull(w):
        weights = torch.tensor(w, dtype=F64, requires_grad=True)
        loss = ctd0(family(paths, t, weights), torch.zeros_like(dt), dt)
        return -torch.autograd.grad(loss, weights)[0]

    assert pull([1.0, 0.0]).abs().max() < 0.02
    assert pull([0.0, 0.0])[0] > 0.2  # too low a value is pulled up
    assert pull([1.0, -2.0]).abs().max() > 0.1  # where minimising Σδ² would end


def test_ctd0_is_the_semi_gradient():
    values = torch.randn(3, 6, dtype=F64, requires_grad=True)
    rewards, dt = torch.randn(3, 5, dtype=F64), torch.rand(5, dtype=F64)
    ctd0(values, rewards, dt, discount=0.7).backward()
    expected = td_advantage(values.detach(), rewards, dt, 0.7)
    torch.testing.assert_close(-3 * values.grad[:, :-1], expected)
    assert torch.equal(values.grad[:, -1], torch.zeros(3, dtype=F64))


def test_martingale_loss_is_half_the_integral_of_the_square():
    loss = martingale_loss(torch.zeros(2, 4), 3 * torch.ones(2, 4), torch.full((4,), 0.25))
    assert float(loss) == 4.5


def test_returns_to_go_sum_rates():
    dt = torch.tensor([0.5, 0.25])
    returns = returns_to_go(torch.tensor([[2.0, 4.0]]), torch.tensor([10.0]), dt)
    assert returns.tolist() == [[12.0, 11.0]]
    values = torch.cat([returns, torch.tensor([[10.0]])], dim=1)
    assert torch.equal(td_advantage(values, torch.tensor([[2.0, 4.0]]), dt), torch.zeros(1, 2))


def test_values_need_one_more_time():
    with pytest.raises(ValueError, match="values need one more time than rewards, got 4 and 4"):
        td_advantage(torch.zeros(4), torch.zeros(4), torch.ones(4))
