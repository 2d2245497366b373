"""Critics on Brownian motion, h = x²: V = x² + (1 − t) is known."""

import math
from itertools import combinations

import pytest
import torch

from scoretune.rl import (
    clstd,
    ctd0,
    ctd_lambda,
    drawn_returns,
    gae,
    martingale_loss,
    returns_to_go,
    td_advantage,
)

F64 = torch.float64


@pytest.fixture(scope="module")
def brownian():
    return brownian_paths(20)


def brownian_paths(n, count=20000):
    """Paths [K, N+1] from x = 0, times [N+1] and steps [N]."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, n, generator=generator, dtype=F64) / n**0.5
    paths = torch.cat([torch.zeros(count, 1, dtype=F64), noise.cumsum(1)], dim=1)
    return paths, torch.linspace(0, 1, n + 1, dtype=F64), torch.full((n,), 1 / n, dtype=F64)


def family(paths, t, weights):
    """x² + w0 (1−t) + w1 (1−t) x²; the truth is (1, 0)."""
    return paths**2 + weights[0] * (1 - t) + weights[1] * (1 - t) * paths**2


def test_martingale_loss_finds_the_value(brownian):
    paths, t, dt = brownian
    weights = torch.zeros(2, dtype=F64, requires_grad=True)
    target = returns_to_go(torch.zeros_like(paths[:, 1:]), paths[:, -1] ** 2, dt)

    def loss(w):
        return martingale_loss(family(paths, t, w)[:, :-1], target, dt)

    # Quadratic in the weights: one Newton step is the minimiser.
    gradient = torch.autograd.functional.jacobian(loss, weights)
    hessian = torch.autograd.functional.hessian(loss, weights)
    solved = -torch.linalg.solve(hessian, gradient)
    assert solved.tolist() == pytest.approx([1, 0], abs=0.06)


def test_returns_by_drawn_steps_golden():
    rewards, terminal = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([10.0])
    # Two of three were drawn: each other one stands for (3 − 1)/(2 − 1) = 2.
    own = drawn_returns(rewards, terminal, 2, 3, own=True)
    assert own.tolist() == [[10 + 1 + 2 * 3, 10 + 2 * 3, 10 + 3]]
    assert drawn_returns(rewards, terminal, 2, 3, own=False).tolist() == [[18, 16, 16]]
    with pytest.raises(ValueError, match="draw two"):
        drawn_returns(rewards, terminal, 1, 3, own=True)


@pytest.mark.parametrize("drawn", [2, 3, 5])
def test_returns_by_drawn_steps_are_unbiased(drawn):
    """Over all draws that hold step k: of k itself, and of what follows it."""
    rewards, terminal = (
        torch.tensor([0.3, -1.0, 2.0, 0.7, 4.0], dtype=F64),
        torch.tensor(1.5).to(F64),
    )
    exact = returns_to_go(rewards, terminal, torch.ones_like(rewards))
    subsets = [*combinations(range(5), drawn)]
    masks = torch.tensor([[float(j in subset) for j in range(5)] for subset in subsets]).to(F64)
    for own, ahead in ((True, 0), (False, 1)):
        found = drawn_returns(masks * rewards, terminal.expand(len(masks)), drawn, 5, own=own)
        for k in range(5 - ahead):
            mean = found[masks[:, k] > 0, k + ahead].mean()
            torch.testing.assert_close(mean, exact[k + ahead])


def test_ctd0_stands_still_at_the_value_only(brownian):
    paths, t, dt = brownian

    def pull(w):
        weights = torch.tensor(w, dtype=F64, requires_grad=True)
        loss = ctd0(family(paths, t, weights), torch.zeros_like(paths[:, 1:]), dt)
        return -torch.autograd.grad(loss, weights)[0]

    assert pull([1.0, 0.0]).abs().max() < 0.02
    assert pull([0.0, 0.0])[0] > 0.2  # too low a value is pulled up
    assert pull([1.0, -2.0]).abs().max() > 0.1  # where minimising Σδ² would end


def features(paths, t):
    """What the weights of `family` multiply, [K, N+1, 2]."""
    return torch.stack([(1 - t).expand_as(paths), (1 - t) * paths**2], dim=-1)


def test_clstd_finds_the_value(brownian):
    paths, t, dt = brownian
    solved = clstd(features(paths, t), torch.zeros_like(paths[:, 1:]), dt, fixed=paths**2)
    assert solved.tolist() == pytest.approx([1, 0], abs=0.03)


def test_clstd_solves_its_equations_and_is_where_ctd0_stands_still():
    generator = torch.Generator().manual_seed(1)
    phi = torch.randn(6, 9, 3, generator=generator, dtype=F64)
    fixed, rewards = (torch.randn(6, n, generator=generator, dtype=F64) for n in (9, 8))
    dt = torch.rand(8, generator=generator, dtype=F64)
    weights = clstd(phi, rewards, dt, 0.7, fixed=fixed).requires_grad_()
    ctd0(fixed + phi @ weights, rewards, dt, 0.7).backward()
    assert weights.grad.abs().max() < 1e-12
    tests = torch.randn(6, 8, 3, generator=generator, dtype=F64)
    weights = clstd(phi, rewards, dt, 0.7, fixed=fixed, tests=tests)
    increments = td_advantage(fixed + phi @ weights, rewards, dt, 0.7)
    assert torch.einsum("kni,kn->i", tests, increments).abs().max() < 1e-11


def test_clstd_takes_the_least_weights_where_features_coincide(brownian):
    paths, t, dt = brownian
    phi = features(paths, t)
    once = clstd(phi, torch.zeros_like(paths[:, 1:]), dt, fixed=paths**2)
    twice = clstd(phi.repeat(1, 1, 2), torch.zeros_like(paths[:, 1:]), dt, fixed=paths**2)
    torch.testing.assert_close(twice, once.repeat(2) / 2)


@pytest.mark.parametrize(("n", "bent"), [(10, -1.57), (50, -1.89), (200, -1.98)])
def test_squared_td_errors_are_the_wrong_thing_to_minimise(n, bent):
    """Σδ² prefers the smoothest V to the true one: θ₁ → −2, where ∫t(1−t)(1+θ₁(1−t))dt = 0.

    Its minimiser tends to (1, −2), and gets worse as the grid gets finer; CLSTD's is (1, 0).
    """
    paths, t, dt = brownian_paths(n, 200_000 // n)
    phi, zero = features(paths, t), torch.zeros_like(paths[:, 1:])
    slopes = (phi[:, 1:] - phi[:, :-1]).reshape(-1, 2)
    start = td_advantage(paths**2, zero, dt).reshape(-1, 1)
    squares = torch.linalg.lstsq(slopes, -start).solution[:, 0]
    assert squares.tolist() == pytest.approx([1, bent], abs=0.06)
    right = clstd(phi, zero, dt, fixed=paths**2)
    assert right.tolist() == pytest.approx([1, 0], abs=0.15)


def test_ctd_lambda_is_its_eligibility_trace():
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(3, generator=generator, dtype=F64, requires_grad=True)
    phi = torch.randn(4, 7, 3, generator=generator, dtype=F64)
    rewards = torch.randn(4, 6, generator=generator, dtype=F64)
    dt = torch.rand(6, generator=generator, dtype=F64)
    ctd_lambda(phi @ weights, rewards, dt, 0.4, decay=0.3).backward()
    increments = td_advantage(phi @ weights.detach(), rewards, dt, 0.4)
    trace, step = torch.zeros(4, 3, dtype=F64), torch.zeros(3, dtype=F64)
    for k in range(6):
        trace = trace * (0.3 ** dt[k - 1] if k else 1) + phi[:, k] * dt[k]
        step += (trace * increments[:, k, None]).mean(0)
    torch.testing.assert_close(-weights.grad, step)


def test_ctd_lambda_lies_between_ctd0_and_the_martingale_loss(brownian):
    paths, t, dt = brownian
    weights = torch.tensor([0.3, 0.4], dtype=F64, requires_grad=True)

    def pull(loss):
        return torch.autograd.grad(loss(family(paths, t, weights)), weights)[0]

    zero, end = torch.zeros(paths.shape[0], len(dt), dtype=F64), paths[:, -1] ** 2
    gradient = pull(lambda v: martingale_loss(v[:, :-1], returns_to_go(zero, end, dt), dt))
    torch.testing.assert_close(pull(lambda v: ctd_lambda(v, zero, dt, decay=1.0)), gradient)
    nearest = pull(lambda v: ctd0(v, zero, dt)) * dt[0]
    torch.testing.assert_close(pull(lambda v: ctd_lambda(v, zero, dt, decay=0.0)), nearest)
    truth = torch.tensor([1.0, 0.0], dtype=F64, requires_grad=True)
    loss = ctd_lambda(family(paths, t, truth), zero, dt, decay=0.5)
    assert torch.autograd.grad(loss, truth)[0].abs().max() < 0.02


@pytest.mark.parametrize("decay", [-0.1, 1.1, float("nan")])
def test_decay_is_a_share(decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        ctd_lambda(torch.zeros(2, 3), torch.zeros(2, 2), torch.ones(2), decay=decay)


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


def test_returns_are_discounted():
    dt = torch.tensor([0.5, 0.25], dtype=F64)
    rewards, end = torch.tensor([[2.0, 4.0]], dtype=F64), torch.tensor([10.0], dtype=F64)
    last = 4 * 0.25 + 10 * 2.718281828459045**-0.2
    solved = returns_to_go(rewards, end, dt, discount=0.8)
    assert solved[0].tolist() == pytest.approx([2 * 0.5 + last * 2.718281828459045**-0.4, last])
    nearly = returns_to_go(rewards, end, dt, discount=1e-12)
    torch.testing.assert_close(nearly, returns_to_go(rewards, end, dt))


def test_values_need_one_more_time():
    with pytest.raises(ValueError, match=r"values \[4\] need one more time than rewards \[4\]"):
        td_advantage(torch.zeros(4), torch.zeros(4), torch.ones(4))


# ------------------------------------------------------------------------------- GAE(λ)


def test_gae_golden():
    # Two steps, λ = ¼ over the whole path, the first of which takes half of its time: λ^½ = ½.
    values, rewards = torch.tensor([1.0, 3.0, 4.0]), torch.tensor([2.0, -4.0])
    dt = torch.tensor([0.5, 0.5])
    # δ = (3 − 1 + 1, 4 − 3 − 2) = (3, −1).
    assert gae(values, rewards, dt, decay=0.25).tolist() == [3 - 0.5, -1]
    # By another clock the first step takes a quarter of the path: λ^¼ = √½.
    clock = torch.tensor([2.0, 6.0])
    found = gae(values, rewards, dt, decay=0.25, clock=clock)
    assert found.tolist() == pytest.approx([3 - 0.25**0.25, -1])
    # With a discount ρ = ln 4 a half is kept of what is a step away: δ = (1.5 − 1 + 1, 2 − 3 − 2).
    found = gae(values, rewards, dt, math.log(4), decay=0.25)
    assert found.tolist() == pytest.approx([1.5 - 0.5 * 0.5 * 3, -3])


def test_gae_lies_between_the_increment_and_the_return(brownian):
    paths, t, dt = brownian
    values, zero = family(paths, t, [0.3, -0.4])[:50], torch.zeros(50, 20, dtype=F64)
    returns = returns_to_go(zero, values[:, -1], dt)
    torch.testing.assert_close(
        gae(values, zero, dt, decay=1.0), returns - values[:, :-1], rtol=0, atol=1e-12
    )
    assert torch.equal(gae(values, zero, dt, decay=0.0), td_advantage(values, zero, dt))
    rewards = torch.randn(50, 20, dtype=F64)
    returns = returns_to_go(rewards, values[:, -1], dt, 0.7)
    torch.testing.assert_close(
        gae(values, rewards, dt, 0.7, decay=1.0), returns - values[:, :-1], rtol=0, atol=1e-12
    )


def test_gae_means_the_same_on_any_grid():
    """A λ for the whole path: 10 steps give what 1,000 do, which a λ a step does not."""

    def first(steps: int, decay: float) -> float:
        t = torch.linspace(0, 1, steps + 1, dtype=F64) ** 1.5  # no equal steps
        values, rewards = torch.sin(3 * t), torch.cos(2 * t[:-1])
        return float(gae(values, rewards, t.diff(), decay=decay)[0])

    for decay in (0.01, 0.3, 0.9):
        limit = first(20_000, decay)
        errors = [abs(first(steps, decay) - limit) for steps in (10, 100, 1000)]
        assert errors[0] < 0.2 * abs(limit)
        assert errors[2] < 0.15 * errors[1] < 0.03 * errors[0]  # order 1
    assert abs(first(1000, 0.95**1000) - first(10, 0.95**10)) > 0.5  # λ a step


def test_gae_is_unbiased_by_any_decay_where_the_value_is_right(brownian):
    """V = x² + 1 − t is a martingale: the mean advantage is 0, and the smaller λ the less noisy."""
    paths, t, dt = brownian
    values, zero = family(paths, t, [1.0, 0.0]), torch.zeros(len(paths), 20, dtype=F64)
    deviations = []
    for decay in (0.0, 0.1, 1.0):
        advantage = gae(values, zero, dt, decay=decay)[:, 0]
        deviations.append(float(advantage.std()))
        assert abs(float(advantage.mean())) < 4 * deviations[-1] / len(paths) ** 0.5
    assert deviations == sorted(deviations)
    assert deviations[-1] > 4 * deviations[0]


@pytest.mark.parametrize("decay", [-0.1, 1.1, math.nan])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ValueError, match="decay must be between 0 and 1"):
        gae(torch.zeros(3), torch.zeros(2), torch.ones(2), decay=decay)
