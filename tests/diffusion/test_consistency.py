"""Consistency models: closed forms on Gaussian data, and the objective that trains them.

For data N(m, s²) the exact function is f* = m + √((s² + ρ_min²)/(s² + ρ²)) (x̄ − m).
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from networks import Points
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Examples
from scoretune.diffusion import estimates, grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.matching import consistency
from scoretune.diffusion.processes import (
    EDM,
    OU,
    VE,
    VP,
    ContractiveSubVP,
    Cosine,
    Process,
    RectifiedFlow,
    SubVP,
    Tabulated,
    expand,
    noise_ratio,
)
from scoretune.diffusion.solvers import heun
from scoretune.models import toy
from scoretune.models.lora import adapter_state
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.training.objectives.consistency import Consistency, Distillation, Training

M, S_SQ, EPS = 0.7, 0.25, 0.002
PROCESSES: list[Process] = [
    EDM(),
    VP(),
    SubVP(),
    VE(),
    OU(),
    Cosine(),
    Tabulated.scaled_linear(),
    ContractiveSubVP(),
    RectifiedFlow(),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def start(process: Process) -> float:
    """A t_min with a ρ that all of them have."""
    return float(grids.time_of_ratio(process, torch.tensor(0.04)))


def exact(process: Process, x: Tensor, t: Tensor, t_min: float = EPS) -> Tensor:
    return consistency.exact_gaussian(process, x, t, t_min=t_min, mean=M, variance=S_SQ)


# ---------------------------------------------------------------------- the function


def coefficients(ratio: Tensor, least: Tensor, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of f = c_skip x̄ + c_out F, shape of `ratio` (arXiv 2303.01469 app. C).

    c_skip = σ_d²/((ρ−ρ_min)² + σ_d²), c_out = σ_d(ρ−ρ_min)/√(ρ² + σ_d²): f(x̄, ρ_min) = x̄.
    """
    skip = sigma_data**2 / ((ratio - least) ** 2 + sigma_data**2)
    return skip, sigma_data * (ratio - least) / torch.sqrt(ratio**2 + sigma_data**2)


def test_coefficients_of_edm():
    ratio = torch.tensor([EPS, 0.5, 80.0], dtype=torch.float64)
    skip, out = coefficients(ratio, torch.tensor(EPS, dtype=torch.float64))
    torch.testing.assert_close(skip, 0.25 / ((ratio - EPS) ** 2 + 0.25))
    torch.testing.assert_close(out, 0.5 * (ratio - EPS) / torch.sqrt(ratio**2 + 0.25))
    assert float(skip[0]) == 1 and float(out[0]) == 0


@every_process
@pytest.mark.parametrize("sigma_data", [0.5, 1.3])
def test_any_networks_estimate_makes_edms_function(process, sigma_data):
    # Written as c_skip x̄ + c_out F with F read from the denoiser by EDM's preconditioning.
    t_min = start(process)
    t = process.horizon * torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    x, data = torch.randn(2, 3, 4, dtype=torch.float64)
    estimate = Estimate(data, (x - expand(process.alpha(t), x) * data) / process.sigma(t)[:, None])
    rho = noise_ratio(process, t)[:, None]
    least = noise_ratio(process, torch.tensor(t_min, dtype=torch.float64))
    bar, root = x / process.alpha(t)[:, None], torch.sqrt(rho**2 + sigma_data**2)
    network = (data - sigma_data**2 / root**2 * bar) / (rho * sigma_data / root)
    skip, out = coefficients(rho, least, sigma_data)
    computed = consistency.from_estimate(
        process, estimate, x, t, t_min=t_min, sigma_data=sigma_data
    )
    torch.testing.assert_close(computed, skip * bar + out * network)
    # The boundary: at t_min a state is its own answer, whatever the network says.
    there = torch.full((3,), t_min, dtype=torch.float64)
    computed = consistency.from_estimate(
        process, estimate, x, there, t_min=t_min, sigma_data=sigma_data
    )
    torch.testing.assert_close(computed, x / process.alpha(there)[:, None])


def test_without_signal_the_function_is_the_denoiser():
    x, data = torch.randn(2, 5, 3)
    estimate = Estimate(data, x)
    t = torch.ones(5)
    computed = consistency.from_estimate(
        RectifiedFlow(), estimate, x, t, t_min=1e-3, sigma_data=0.5
    )
    torch.testing.assert_close(computed, data, rtol=0, atol=0)


def test_half_precision_states_and_gradients():
    x = torch.randn(4, 3).bfloat16()
    data = torch.randn(4, 3, requires_grad=True)
    t = torch.full((4,), 0.5)
    computed = consistency.from_estimate(VP(), Estimate(data, x), x, t, t_min=1e-3, sigma_data=0.5)
    assert computed.dtype == torch.float32
    (slope,) = torch.autograd.grad(computed.sum(), data)
    rho = noise_ratio(VP(), torch.tensor([0.5, 1e-3]))
    torch.testing.assert_close(slope, (1 - rho[1] / rho[0]).expand(4, 3))


# ------------------------------------------------------------------------ closed forms


@every_process
def test_the_exact_function_is_constant_along_the_flow(process, gaussian):
    # The exact flow map is x_s = α_s m + √(v_s/v_t)(x_t − α_t m); the spec of f* by states.
    t_min, data = start(process), gaussian(M, S_SQ)
    times = process.horizon * torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    laws = [data.law(process, float(t)) for t in times]
    paths = torch.stack(
        [mean + math.sqrt(v) * torch.linspace(-2, 2, 5).double() for mean, v in laws]
    )
    ends = exact(process, paths, times, t_min)
    torch.testing.assert_close(ends, ends[:1].expand(3, 5))
    mean, v = data.law(process, t_min)
    alpha = process.alpha(torch.tensor(t_min, dtype=torch.float64))
    torch.testing.assert_close(
        alpha * ends[0], mean + math.sqrt(v) * torch.linspace(-2, 2, 5).double()
    )
    solved = consistency.grid(process, 400, t_min)
    x = torch.tensor([[0.3], [-1.2]], dtype=torch.float64)
    there = heun(process, data.field(process), x, solved) / alpha
    torch.testing.assert_close(
        there, exact(process, x, solved[0].expand(2), t_min), rtol=2e-3, atol=2e-3
    )


def test_one_step_from_edms_prior():
    jump = lambda x, t: exact(EDM(), x, t)  # noqa: E731
    ends = torch.tensor([[0.0], [80.0]], dtype=torch.float64)
    mean, top = consistency.one_step(jump, ends, 80.0)[:, 0].tolist()
    assert mean == pytest.approx(0.695625, abs=1e-6)
    assert top - mean == pytest.approx(0.499994, abs=1e-6)
    x = 80 * torch.randn(200_000, 1)
    drawn = consistency.one_step(jump, x, 80.0)
    assert drawn.dtype == torch.float32
    assert float(drawn.mean()) == pytest.approx(0.695625, abs=5e-3)
    assert float(drawn.std()) == pytest.approx(0.499994, abs=4e-3)


@pytest.mark.parametrize(
    ("points", "residual"),
    [(10, 0.0701), (18, 0.00997), (40, 8.14e-4), (80, 9.82e-5), (160, 1.19e-5)],
)
def test_heun_leaves_little_between_neighbours(points, residual, gaussian):
    # At x = m + √u, the largest |f*(x_t) − f*(x̂_t')| over the grid: third order a step.
    times = consistency.grid(EDM(), points, EPS)
    t, t_next = times[:-1], times[1:]
    x = (M + torch.sqrt(S_SQ + t**2))[:, None]
    field = gaussian(M, S_SQ).field(EDM())
    ahead = consistency.ode_step(EDM(), field, x, t, t_next, solver="heun")
    gap = (exact(EDM(), x, t) - exact(EDM(), ahead, t_next)).abs().max()
    assert float(gap) == pytest.approx(residual, rel=5e-3)
    if points > 18:
        worse = consistency.ode_step(EDM(), field, x, t, t_next, solver="euler")
        assert float((exact(EDM(), x, t) - exact(EDM(), worse, t_next)).abs().max()) > 4 * gap


@every_process
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_steps_are_those_of_edm_in_x_over_alpha(process, solver, gaussian):
    # One path on the same ρ whatever the process.
    data, ratios = gaussian(M, S_SQ), torch.tensor([2.0, 1.1], dtype=torch.float64)
    t, t_next = grids.time_of_ratio(process, ratios)[:, None].expand(2, 3)
    bar = torch.tensor([[-1.0], [0.5], [4.0]], dtype=torch.float64)
    x = process.alpha(t)[:, None] * bar
    ours = consistency.ode_step(process, data.field(process), x, t, t_next, solver=solver)
    rho = ratios[:, None].expand(2, 3)
    theirs = consistency.ode_step(EDM(), data.field(EDM()), bar, rho[0], rho[1], solver=solver)
    torch.testing.assert_close(ours / process.alpha(t_next)[:, None], theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("t", "t_next", "gap"),
    [(2.0, 1.0, 0.0461), (1.0, 0.5, 0.0368), (0.5, 0.25, 0.0199), (80.0, 40.0, 0.0500)],
)
def test_training_pairs_are_not_those_of_distillation(t, t_next, gap):
    # W2² between the joint laws of (x_t', x_t): the same noise twice, or the ODE (2402.07487 §6).
    z = torch.eye(2, dtype=torch.float64)  # columns: a unit of x0, a unit of ε
    at, after = (torch.full((2,), time, dtype=torch.float64) for time in (t, t_next))
    s = math.sqrt(S_SQ)
    noisy = estimates.perturb(EDM(), at, s * z[:, :1], z[:, 1:])[:, 0]
    trained = torch.stack([estimates.perturb(EDM(), after, s * z[:, :1], z[:, 1:])[:, 0], noisy])
    moved = exact(EDM(), M + noisy[:, None], at, t_min=t_next)[:, 0] - M
    distilled = torch.stack([moved, noisy])
    # Of N(0, AAᵀ) and N(0, BBᵀ): |A|² + |B|² − 2 |AᵀB|_*; roots of AAᵀ, nearly singular, lose 1e-4.
    computed = trained.square().sum() + distilled.square().sum()
    computed = computed - 2 * torch.linalg.svdvals(trained.T @ distilled).sum()
    assert float(computed) == pytest.approx(gap, abs=6e-5)


# -------------------------------------------------------------- grids and schedules


@every_process
def test_grid_is_karras_from_the_last_finite_ratio(process):
    t_min = start(process)
    times = consistency.grid(process, 12, t_min)
    ratios = noise_ratio(process, times)
    assert len(times) == 12 and float(times[-1]) == pytest.approx(t_min)
    steps = (ratios ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-6, atol=1e-9)
    last = float(noise_ratio(process, torch.tensor(process.horizon)))
    assert float(ratios[0]) == pytest.approx(min(last, 80))
    if last <= 80:
        assert float(times[0]) == pytest.approx(process.horizon)
    for points, end in ((1, t_min), (5, 0.0), (5, process.horizon)):
        with pytest.raises(ValueError):
            consistency.grid(process, points, end)


def test_schedules_of_the_papers():
    # CT: 2 … 150 and μ = μ₀^{s₀/N}; iCT: 10 doubles seven times to 1280, and one more each.
    first, last = consistency.ct_points(0, 1000), consistency.ct_points(1000, 1000)
    assert (first, last) == (2, 151)
    computed = [consistency.ct_points(k, 1000) for k in range(1001)]
    assert computed == sorted(computed)
    assert computed[250] == math.ceil(math.sqrt(0.25 * (151**2 - 4) + 4) - 1) + 1
    assert consistency.ct_decay(2) == pytest.approx(0.9)
    assert consistency.ct_decay(40) == pytest.approx(0.9**0.05)
    stages = [consistency.ict_points(k, 800) for k in range(0, 800, 100)]
    assert stages == [11, 21, 41, 81, 161, 321, 641, 1281]
    assert consistency.ict_points(99, 800) == 11
    assert consistency.ict_points(10**6, 800) == 1281


def test_pairs_follow_the_lognormal_law():
    # A fine grid: the mean and deviation of ln ρ under the probabilities are the law's own.
    times = consistency.grid(EDM(1e4), 4000, 1e-5)
    likely = consistency.lognormal_pairs(times)
    assert float(likely.sum()) == pytest.approx(1)
    place = torch.log(times[:-1] * times[1:]) / 2
    mean = float((likely * place).sum())
    assert mean == pytest.approx(-1.1, abs=0.01)
    assert math.sqrt(float((likely * (place - mean) ** 2).sum())) == pytest.approx(2, abs=0.01)


def test_pseudo_huber_is_a_square_near_zero_and_a_norm_far_away():
    d = torch.randn(4, 3, 5, dtype=torch.float64)
    norm = (d**2).flatten(1).sum(1).sqrt()
    c = 0.00054 * math.sqrt(15)
    torch.testing.assert_close(consistency.pseudo_huber(d), torch.sqrt(norm**2 + c**2) - c)
    torch.testing.assert_close(consistency.pseudo_huber(1e6 * d), 1e6 * norm - c)
    torch.testing.assert_close(
        consistency.pseudo_huber(1e-6 * d, 0.5), 1e-12 * norm**2, rtol=1e-6, atol=0
    )
    zero = torch.zeros(1, 3, requires_grad=True)
    (slope,) = torch.autograd.grad(consistency.pseudo_huber(zero).sum(), zero)
    assert slope.tolist() == [[0.0, 0.0, 0.0]]


# ----------------------------------------------------------------------------- sampling


def test_more_steps_keep_the_law_and_forget_the_prior():
    # The law stays Gaussian: x̄ → x̄ + √(ρ²−ρ_min²)z → f*. Here in closed form and by sampling.
    times, n = torch.tensor([80.0, 3.0, 0.8]), 400_000
    mean, var = 0.0, 80.0**2
    for t in times.tolist():
        if t < 80:
            var += t**2 - EPS**2
        slope_sq = (S_SQ + EPS**2) / (S_SQ + t**2)
        mean, var = M + math.sqrt(slope_sq) * (mean - M), slope_sq * var
    jump = lambda x, t: exact(EDM(), x, t)  # noqa: E731
    x = 80 * torch.randn(n, 1, generator=torch.Generator().manual_seed(1))
    drawn = consistency.multistep(EDM(), jump, x, times, t_min=EPS)
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * 0.5 / math.sqrt(n))
    assert float(drawn.std()) == pytest.approx(math.sqrt(var), abs=4 * 0.36 / math.sqrt(n))
    assert abs(mean - M) < 0.1 * abs(0.695625 - M)  # noise between the steps mends the prior


@every_process
def test_multistep_is_the_same_for_every_process(process):
    ratios, t_min = torch.tensor([2.0, 0.7], dtype=torch.float64), start(process)
    times = grids.time_of_ratio(process, ratios)
    bar = torch.randn(6, 2, dtype=torch.float64)

    def sample(process: Process, times: Tensor, t_min: float) -> Tensor:
        return consistency.multistep(
            process,
            lambda x, t: exact(process, x, t, t_min),
            float(process.alpha(times[:1])) * bar,
            times,
            t_min=t_min,
            generator=torch.Generator().manual_seed(3),
        )

    torch.testing.assert_close(
        sample(process, times, t_min), sample(EDM(), ratios, 0.04), rtol=1e-6, atol=1e-6
    )


# ------------------------------------------------------------------------- the objective


class AffineNetwork(nn.Module):
    """EDM's F = p_n x/√(t² + σ_d²) + q_n at each time of a grid, from the exact denoiser."""

    def __init__(self, times: Tensor) -> None:
        super().__init__()
        self.register_buffer("times", times.flip(0).float())
        root = torch.sqrt(self.times**2 + 0.25)
        keep = S_SQ / (S_SQ + self.times**2)
        self.slope = nn.Parameter((keep - 0.25 / root**2) * root**2 / (0.5 * self.times))
        self.offset = nn.Parameter(M * (1 - keep) * root / (0.5 * self.times))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        n = torch.searchsorted(self.times, 0.999 * t)
        root = torch.sqrt(t**2 + 0.25)
        inner = self.slope[n] / root * x[:, 0] + self.offset[n]
        return (0.25 / root**2 * x[:, 0] + 0.5 * t / root * inner)[:, None]


class Affine(toy.Vectors):
    """A denoiser that is affine in x at each time of its grid."""

    process, prediction, shape = EDM(), estimates.data, (1,)

    def __init__(self, points: int) -> None:
        self.network = AffineNetwork(consistency.grid(self.process, points, EPS))


def examples(count: int) -> Examples:
    return Examples(
        M + math.sqrt(S_SQ) * torch.randn(count, 1), Condition.none(count), torch.ones(count)
    )


def learn(objective: Consistency, updates: int, rate: float, batch: int = 1024) -> None:
    optimiser = torch.optim.Adam(objective.policy.parameters(), rate)
    for update in range(updates):
        optimiser.param_groups[0]["lr"] = rate * (1 - update / updates)
        optimiser.zero_grad()
        objective(examples(batch)).value.backward()
        optimiser.step()
        objective.adapt(update + 1, {})


def slopes(objective: Consistency, times: Tensor) -> tuple[Tensor, Tensor]:
    """f at x = 0 and its slope in x, at each time."""
    process, count = objective.policy.backbone.process, len(times)
    jump = consistency.function(
        process, objective.policy.field(Condition.none(count)), t_min=objective.t_min
    )
    with torch.no_grad():
        low, high = jump(torch.zeros(count, 1), times), jump(torch.ones(count, 1), times)
    return low[:, 0], (high - low)[:, 0]


@pytest.mark.slow
def test_distillation_recovers_the_slope_of_the_exact_function():
    points = 48
    objective = Consistency(Policy(Affine(points), GDDIM(1.0)), Distillation(points), t_min=EPS)
    times = consistency.grid(EDM(), points, EPS).float()
    wanted = torch.sqrt((S_SQ + EPS**2) / (S_SQ + times**2))
    before = slopes(objective, times)[1]
    assert float((before / wanted - 1).abs().max()) > 0.5  # a denoiser is not one yet
    # Where its fixed point lies is known: the product of the teacher's steps.
    ends = torch.tensor([[0.0], [1.0]]).expand(2, points - 1).reshape(-1, 1)
    teacher = objective.policy.field(Condition.none(len(ends)))
    t, t_next = times[:-1].repeat(2), times[1:].repeat(2)
    with torch.no_grad():
        low, high = consistency.ode_step(EDM(), teacher, ends, t, t_next, solver="heun").chunk(2)
    product = (high - low)[:, 0].flip(0).cumprod(0).flip(0)
    learn(objective, 1200, 0.05)
    low, slope = slopes(objective, times)
    torch.testing.assert_close(slope[:-1], product, rtol=2e-3, atol=0)
    torch.testing.assert_close(slope, wanted, rtol=0.01, atol=0)
    torch.testing.assert_close(low, M * (1 - wanted), rtol=0, atol=0.01)


def test_the_teacher_does_not_move_and_the_target_follows():
    objective = Consistency(Policy(Affine(10), GDDIM(1.0)), Distillation(10, decay=0.9), t_min=EPS)
    before = {k: p.clone() for k, p in adapter_state(objective.policy.backbone.network).items()}
    with torch.no_grad():
        objective.policy.backbone.network.slope.add_(1.0)
    objective.adapt(1, {})
    torch.testing.assert_close(objective.state()["target"]["slope"], before["slope"] + 0.1)
    torch.testing.assert_close(objective._teacher["slope"], before["slope"])
    moved = objective.policy.backbone.network.slope.detach().clone()
    objective(examples(8)).value.backward()
    torch.testing.assert_close(objective.policy.backbone.network.slope.detach(), moved)
    assert float(objective.policy.backbone.network.slope.grad.abs().sum()) > 0
    # Per sample: the student, the target, and the teacher twice for Heun.
    assert objective.policy.calls == 4 * 8


def test_half_precision_weights_have_a_target_that_can_move():
    policy = Policy(Affine(8), GDDIM(1.0))
    for parameter in policy.parameters():
        parameter.data = parameter.data.bfloat16()
    objective = Consistency(policy, Distillation(8, decay=0.999), t_min=EPS)
    before = objective.state()["target"]["slope"].clone()
    with torch.no_grad():
        policy.backbone.network.slope.add_(1.0)
    objective.adapt(1, {})
    moved = objective.state()["target"]["slope"]
    assert moved.dtype == torch.float32
    torch.testing.assert_close(moved - before, torch.full((8,), 1e-3), rtol=0.05, atol=1e-5)
    objective(examples(16)).value.backward()
    assert policy.backbone.network.slope.dtype == torch.bfloat16
    assert bool(torch.isfinite(policy.backbone.network.slope.grad).all())


def test_only_the_teacher_is_guided():
    # Guidance asks twice: 2 · 2 for Heun's teacher, once the target, once the student.
    backbone = Points(VP(), 1, prompt_size=2)
    policy = Policy(backbone, GDDIM(1.0), guidance=3.0)
    objective = Consistency(policy, Distillation(8))
    batch = Examples(torch.randn(10, 1), backbone.encode(["0 1"] * 10), torch.ones(10))
    value = objective(batch).value
    assert policy.calls == 6 * 10
    double = Examples(batch.x0, batch.condition, 2 * batch.weight)
    torch.manual_seed(1)
    value = objective(batch).value
    torch.manual_seed(1)
    torch.testing.assert_close(objective(double).value, 2 * value)
    policy.guidance = 1.0
    torch.manual_seed(1)
    assert not torch.equal(objective(batch).value, value)  # the teacher's path was another


@pytest.mark.slow
def test_an_adapter_is_distilled_from_its_own_base():
    # No copy of the base: the reference teaches, and the state holds the adapter alone.
    base = toy.Mixture(VP(), tilt.Mixture.of([0.5, 0.5], [[-1.0], [1.0]], 0.3))
    backbone = toy.Controlled(base, toy.PerceptronControl(1))
    objective = Consistency(Policy(backbone, GDDIM(1.0)), Distillation(16, decay=0.5))
    assert objective._teacher is None
    assert set(objective.state()["target"]) == set(adapter_state(backbone.network))
    x, t = 2 * torch.randn(200, 1), torch.full((200,), 0.5)
    teacher = Policy(base, GDDIM(1.0)).field(Condition.none(200))
    path = torch.linspace(0.5, 1e-3, 200)
    end = heun(VP(), teacher, x, path) / VP().alpha(path[-1])

    def error() -> float:
        field = objective.policy.field(Condition.none(200))
        with torch.no_grad():
            answer = consistency.function(VP(), field, t_min=1e-3)(x, t)
        return float((answer - end).abs().mean())

    before = error()
    learn(objective, 400, 1e-2, 256)
    assert error() < 0.5 * before
    t_next = t - 0.2
    with torch.no_grad():
        taught = objective._taught(x, t, t_next, Condition.none(200))
    wanted = consistency.ode_step(VP(), teacher, x, t, t_next, solver="heun")
    torch.testing.assert_close(taught, wanted)


def test_the_exact_function_has_no_loss_but_the_solvers():
    # D is chosen so that f = f*: what is left is the squared Heun residual, 8.14e-4 at most a
    # deviation. Training pairs differ from the flow's, so their loss stays.
    class Exact(toy.Vectors):
        process, prediction, shape = VP(), estimates.data, (1,)
        network = nn.Linear(1, 1)

        def predict(self, x, t, tokens):
            zero = Estimate(torch.zeros_like(x), torch.zeros_like(x))
            one = Estimate(torch.ones_like(x), torch.zeros_like(x))
            where = {"t_min": 1e-3, "sigma_data": 0.5}
            rest = consistency.from_estimate(self.process, zero, x, t, **where)
            gain = consistency.from_estimate(self.process, one, x, t, **where) - rest
            return (exact(self.process, x, t, 1e-3) - rest) / gain.clamp(min=1e-9)

    objective = Consistency(Policy(Exact(), GDDIM(1.0)), Distillation(40))
    teacher = Policy(toy.Gaussian(VP(), M, S_SQ), GDDIM(1.0))
    objective._taught = lambda x, t, t_next, c: consistency.ode_step(
        VP(), teacher.field(c), x, t, t_next, solver="heun"
    )
    with torch.no_grad():
        assert float(objective(examples(4000)).value) < (8.14e-4) ** 2
        trained = Consistency(Policy(Exact(), GDDIM(1.0)), Training(100, "ct"))
        trained.update = 50
        assert float(trained(examples(4000)).value) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["ict", "ct"])
def test_training_needs_no_teacher(rule):
    objective = Consistency(Policy(Affine(11), GDDIM(1.0)), Training(400, rule, last=10), t_min=EPS)
    assert objective._teacher is None and bool(objective.state()["target"]) == (rule == "ct")
    objective.update = 399
    assert objective._times().shape == (11,)
    times = consistency.grid(EDM(), 11, EPS)[:-1].float()
    wanted = torch.sqrt((S_SQ + EPS**2) / (S_SQ + times**2))
    first = (slopes(objective, times)[1] / wanted - 1).abs().max()
    optimiser = torch.optim.Adam(objective.policy.parameters(), 0.05)
    for _ in range(500):
        optimiser.zero_grad()
        objective(examples(512)).value.backward()
        optimiser.step()
        objective.adapt(399, {})
    computed = (slopes(objective, times)[1] / wanted - 1).abs().max()
    assert float(computed) < 0.5 * float(first)


@pytest.mark.parametrize("plan", [Distillation(8), Training(40, "ct"), Training(40)])
def test_a_restored_objective_goes_on_as_if_nothing_had_happened(plan):
    def fresh() -> Consistency:
        return Consistency(Policy(Affine(8), GDDIM(1.0)), plan, t_min=EPS)

    def follow(objective: Consistency, updates: range) -> list[float]:
        optimiser = torch.optim.SGD(objective.policy.parameters(), 1e-2)
        losses = []
        for update in updates:
            torch.manual_seed(update)
            loss = objective(examples(64)).value
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            objective.adapt(update + 1, {})
            losses.append(float(loss.detach()))
        return losses

    whole, broken, resumed = fresh(), fresh(), fresh()
    wanted = follow(whole, range(12))
    assert follow(broken, range(6)) == wanted[:6]
    with torch.no_grad():
        for parameter, saved in zip(
            resumed.policy.parameters(), broken.policy.parameters(), strict=True
        ):
            parameter.copy_(saved)
    resumed.restore(broken.state())
    assert follow(resumed, range(6, 12)) == wanted[6:]


def test_mistakes_are_named():
    policy = Policy(Affine(8), GDDIM(1.0))
    with pytest.raises(UserError, match="another target"):
        Consistency(policy, Distillation(), EPS).restore({"update": 1, "target": {}})
    with pytest.raises(ValueError, match="at least 2 times"):
        Consistency(policy, Distillation(1), EPS)
    with pytest.raises(ValueError, match="t_min must lie"):
        Consistency(policy, Distillation(), t_min=0.0)
