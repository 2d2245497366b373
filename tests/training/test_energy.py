"""Credit by a learned energy: golden numbers, the gradients the papers' losses have, and a fit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from networks import Points
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Scores
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.energy import (
    Costs,
    EnergyCredit,
    EnergyNetwork,
    Gate,
    ctrl_slope,
    energy_loss,
    running_cost,
    running_slope,
    td_targets,
    time_cost,
)
from scoretune.training.credit.values import PointValue
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.sources.on_policy import OnPolicy, Sizes, transitions
from scoretune.training.sources.step_choice import any_steps

STEPS, BATCH, DIMENSION = 5, 16, 3
NONE = torch.zeros(0)  # tokens that nobody reads


def points() -> Policy:
    return Policy(Points(VP(), DIMENSION), GDDIM(1.0))


def path_of(policy: Policy, steps: int = STEPS, batch: int = BATCH, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    times, noise = grids.uniform(VP(), steps), prior(policy, batch, generator)
    return rollout(policy, Condition.none(batch), times, generator, noise)


def credit_of(policy: Policy, rate: float = 1e-3, seed: int = 0, **options) -> EnergyCredit:
    torch.manual_seed(seed)
    energy = EnergyNetwork(policy.backbone.shape, width=32)
    for parameter in energy.parameters():  # it starts at 0, which has no slopes
        torch.nn.init.normal_(parameter, std=0.3)
    options.setdefault("data", torch.randn(50, *policy.backbone.shape))
    optimiser = torch.optim.Adam(energy.parameters(), rate)
    return EnergyCredit(energy=energy, optimiser=optimiser, policy=policy, seed=seed, **options)


def every_step(path) -> tuple[Tensor, Tensor]:
    steps, batch = path.data.shape[:2]
    return torch.arange(steps).repeat_interleave(batch), torch.arange(batch).repeat(steps)


def credited(credit: EnergyCredit, path):
    scores = Scores(torch.zeros(path.states.shape[1]))
    return credit(path, scores, lambda x, who: x[:, 0], *every_step(path))


# ---------------------------------------------------------------------------- formulas


def test_energy_loss_golden():
    data, samples = torch.tensor([0.2, -0.4]), torch.tensor([0.1, 0.5])
    # −0.1 − 0.3 + (0.10 + 0.13), and with γ = 2 the bracket twice.
    torch.testing.assert_close(energy_loss(data, samples), torch.tensor(-0.17))
    torch.testing.assert_close(energy_loss(data, samples, 2.0), torch.tensor(0.06))


def test_the_best_energy_is_the_difference_of_densities():
    """Over four places: e = (p_π − p_data)/(2γ(p_π + p_data)) has no gradient and no rival."""
    data, samples, strength = torch.tensor([4, 3, 2, 0]), torch.tensor([1, 3, 4, 1]), 0.7
    p, q = data / data.sum(), samples / samples.sum()
    best = ((q - p) / (2 * strength * (q + p))).requires_grad_()

    def loss(energy: Tensor) -> Tensor:
        return energy_loss(
            energy.repeat_interleave(data), energy.repeat_interleave(samples), strength
        )

    found = loss(best)
    assert float(torch.autograd.grad(found, best)[0].abs().max()) < 1e-6
    assert float(best.detach().abs().max()) == pytest.approx(
        1 / (2 * strength)
    )  # where no data are
    # The least loss is minus the triangular discrimination: −Σ (q − p)²/(q + p) / 4γ.
    torch.testing.assert_close(found, -(((q - p) ** 2) / (q + p)).sum() / (4 * strength))
    for _ in range(20):
        assert loss(best + 0.1 * torch.randn(4)) > found


def test_time_cost_golden():
    found = time_cost(torch.arange(10), 10)
    torch.testing.assert_close(found[4:6], torch.full((2,), 0.2310586))
    torch.testing.assert_close(found.sum(), torch.tensor(0.9866143))  # it telescopes


def test_running_cost_golden_and_slope():
    x, x_next = torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]], requires_grad=True)
    cost = running_cost(x, x_next, torch.tensor([0.5]))
    torch.testing.assert_close(cost, torch.tensor([2.5]))  # (4 + 1)/2 over 2 · 0.5
    expected = torch.autograd.grad(cost.sum(), x_next)[0]
    torch.testing.assert_close(running_slope(x, x_next.detach(), torch.tensor(0.5)), expected)


def test_td_targets_golden():
    parts = [torch.tensor([value]) for value in (1.0, 2.5, 0.2)]
    torch.testing.assert_close(td_targets(*parts, Costs()), torch.tensor([1.0]))
    torch.testing.assert_close(td_targets(*parts, Costs(0.1, 2.0)), torch.tensor([1.65]))


def test_ctrl_slope_golden():
    slope = torch.tensor([[1.0, 2.0, 3.0], [40.0, 0.0, 0.0]])
    x = torch.zeros(2, 3)
    x_next = torch.tensor([[0.05, 0.2, -0.09], [0.05, 0.0, 0.0]])
    # The second pixel moved too far; the second sample's product is 2, above the bound.
    expected = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    assert torch.equal(ctrl_slope(slope, x, x_next, Gate()), expected)


@pytest.mark.parametrize("gate", [Gate(), Gate(step=1.0, bound=0.5, span=0.8)])
def test_ctrl_slope_is_the_gradient_of_the_published_loss(gate):
    x, slope = 0.5 * torch.randn(64, 1, 4, 4), torch.randn(64, 1, 4, 4)
    x_next = (x + 0.2 * torch.randn_like(x)).requires_grad_()
    moved = (x_next.clamp(-gate.span, gate.span) - x).clamp(-gate.step, gate.step)
    loss = (slope * moved).sum((1, 2, 3)).clamp(-gate.bound, gate.bound).sum()
    expected = torch.autograd.grad(loss, x_next)[0]
    assert 0 < int((expected != 0).sum()) < expected.numel()
    torch.testing.assert_close(ctrl_slope(slope, x, x_next.detach(), gate), expected)


# ---------------------------------------------------------------------------- gradients of papers


def gradients(policy: Policy, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, policy.parameters())
    return torch.cat([gradient.flatten() for gradient in found])


def ours(policy: Policy, credit: EnergyCredit, path) -> Tensor:
    k, b = every_step(path)
    steps = transitions(path, credited(credit, path), k, b, float(STEPS))
    return gradients(policy, ScoreAction(policy, kl_weight=0.0)(steps).value)


def resampled(policy: Policy, path):
    """For each step (k, x_k, x_{k+1}) with x_{k+1} = μ_θ(x_k) + c ξ differentiable in θ."""
    for k in range(STEPS):
        x, x_next = path.states[k], path.states[k + 1]
        step = policy.transition(x, path.times[k], path.times[k + 1], path.condition)
        noise = ((x_next - step.mean) / step.std).detach()
        yield k, x, step.draw_with(noise)


@pytest.mark.parametrize("costs", [Costs(), Costs(running=0.3, time=1.0)])
def test_arrival_slopes_have_the_gradient_of_dxmis_sampler_loss(costs):
    """Σ_k V(x_{k+1}) + τ₂ cost by autograd through the sampled steps; with a rate of 0, V stays."""
    policy = points()
    path, credit = path_of(policy), credit_of(policy, rate=0.0, costs=costs)
    found = ours(policy, credit, path)
    loss = torch.zeros(())
    for k, x, x_next in resampled(policy, path):
        loss = loss + credit.energy(x_next, path.times[k + 1], NONE).mean()
        if costs.running:
            loss = loss + costs.running * running_cost(x, x_next, credit.velocities[k]).mean()
    torch.testing.assert_close(found, gradients(policy, loss), rtol=1e-4, atol=1e-6)


def test_departure_slopes_have_the_gradient_of_ctrls_sampler_loss():
    policy, gate = points(), Gate(step=0.8, bound=1.0, span=1.5)
    path, credit = path_of(policy), credit_of(policy, rate=0.0, form="departure", gate=gate)
    found = ours(policy, credit, path)
    loss = torch.zeros(())
    for k, x, x_next in resampled(policy, path):
        place = x.clone().requires_grad_()
        slope = torch.autograd.grad(credit.energy(place, path.times[k], NONE).sum(), place)[0]
        moved = (x_next.clamp(-gate.span, gate.span) - x).clamp(-gate.step, gate.step)
        loss = loss + (slope * moved).sum(1).clamp(-gate.bound, gate.bound).mean()
    assert float(found.norm()) > 0
    torch.testing.assert_close(found, gradients(policy, loss), rtol=1e-4, atol=1e-6)


def test_the_two_forms_agree_as_steps_get_shorter():
    policy = points()
    differences = []
    for steps in (10, 1000):
        path = path_of(policy, steps)
        k, b = every_step(path)
        arrival, departure = (
            credit_of(policy, form=form).slope(path, k, b) for form in ("arrival", "departure")
        )
        differences.append(float((arrival - departure).norm() / arrival.norm()))
    assert differences[0] > 0.15
    assert differences[1] < differences[0] / 5


# ---------------------------------------------------------------------------- fits


def test_a_value_of_its_own_leaves_the_energy_to_the_data():
    """The sweep must not move the energy, not even by the momentum of earlier steps."""
    policy = points()
    alone, shared = (credit_of(policy, data=torch.randn(50, DIMENSION) + 2) for _ in range(2))
    torch.manual_seed(1)
    shared.value = EnergyNetwork((DIMENSION,), width=32)
    shared.optimiser.add_param_group({"params": list(shared.value.parameters())})
    alone.data = shared.data
    before = torch.nn.utils.parameters_to_vector(shared.value.parameters())
    for seed in range(3):
        path = path_of(policy, seed=seed)
        credited(shared, path)
        alone._fit(path)
        alone.rounds += 1
    expected = alone.energy.state_dict()
    for name, weight in shared.energy.state_dict().items():
        assert torch.equal(weight, expected[name])
    after = torch.nn.utils.parameters_to_vector(shared.value.parameters())
    assert not torch.equal(before, after)


def test_the_sweep_goes_backwards_with_fresh_targets():
    """Each V(x_k) takes one step to V(x_{k+1}) as of after *its* step, plus what k costs."""
    policy, costs = points(), Costs(time=1.0)
    path, credit = path_of(policy), credit_of(policy, costs=costs)
    twin = credit_of(policy, costs=costs, data=credit.data)
    credited(credit, path)
    twin._fit(path)
    for k in (4, 3, 2, 1, 0):
        with torch.no_grad():
            goal = twin.energy(path.states[k + 1], path.times[k + 1], NONE) + time_cost(
                torch.tensor(k), STEPS
            )
        loss = ((twin.energy(path.states[k], path.times[k], NONE) - goal) ** 2).mean()
        twin.optimiser.zero_grad()
        loss.backward()
        twin.optimiser.step()
    for name, weight in credit.energy.state_dict().items():
        torch.testing.assert_close(weight, twin.energy.state_dict()[name])


@pytest.mark.slow
@pytest.mark.parametrize("form", ["arrival", "departure"])
def test_a_sampler_finds_the_data(form):
    """Exact scores of N(1 + θ, ¼) and data N(1.5, ¼), never a reward: θ goes to ½."""
    backbone = toy.Gaussian(VP(), 1.0, 0.25)
    policy, times = Policy(backbone, GDDIM(1.0)), grids.uniform(VP(), 4)
    torch.manual_seed(0)
    energy = EnergyNetwork((1,), width=32)
    credit = EnergyCredit(
        energy=energy,
        optimiser=torch.optim.Adam(energy.parameters(), 3e-3),
        policy=policy,
        data=1.5 + 0.5 * torch.randn(2000, 1),
        seed=0,
        form=form,
    )
    source = OnPolicy(
        policy=policy,
        prompts=Prompts(("",), ("all",)),
        reward=lambda images, prompts: torch.zeros(len(images)),
        reward_name="none",
        credit=credit,
        times=times,
        sizes=Sizes(prompts=1, group=128, minibatch=512),
        seed=0,
        choose=any_steps(1.0),
    )
    optimiser = torch.optim.SGD(policy.parameters(), 0.1)
    seen = []
    train(
        source,
        ScoreAction(policy, kl_weight=0.0),
        optimiser,
        TorchEngine(),
        updates=range(150),
        hooks=[lambda update, metrics: seen.append(float(backbone.network.shift.detach()))],
    )
    assert sum(seen[-75:]) / 75 == pytest.approx(0.5, abs=0.1)


def test_a_restored_credit_goes_on_bit_for_bit():
    policy, costs = points(), Costs(running=0.1, time=0.5)
    whole = credit_of(policy, costs=costs)
    for seed in range(2):
        credited(whole, path_of(policy, seed=seed))
    torch.manual_seed(99)
    other = credit_of(policy, seed=0, costs=costs, data=whole.data)
    other.restore(copy.deepcopy(whole.state()))  # as through a file
    for seed in range(2, 4):
        first, second = (credited(c, path_of(policy, seed=seed)) for c in (whole, other))
        assert torch.equal(first.data_slope, second.data_slope)
        assert first.metrics == second.metrics
    assert not first.data_slope.requires_grad


def test_an_energy_without_clock_is_deaf_to_time():
    network, x = EnergyNetwork((DIMENSION,), clock=False), torch.randn(4, DIMENSION)
    torch.nn.init.normal_(network.leave[-1].weight)
    assert torch.equal(network(x, torch.zeros(4), NONE), network(x, torch.ones(4), NONE))


def test_an_energy_may_read_prompts():
    """Data are ±1 as the prompt says and samples anywhere: the energy learns whose are whose."""
    policy = Policy(Points(VP(), 1, prompt_size=2), GDDIM(1.0))
    sign = torch.tensor([1.0, -1.0]).repeat(50)
    condition = policy.backbone.encode([f"{s:g} 0" for s in sign.tolist()])
    torch.manual_seed(0)
    energy = PointValue(1, token_size=2)
    credit = EnergyCredit(
        energy=energy,
        optimiser=torch.optim.Adam(energy.parameters(), 1e-2),
        policy=policy,
        data=sign[:, None],
        seed=0,
        condition=condition,
    )
    times, generator = grids.uniform(VP(), 2), torch.Generator().manual_seed(0)
    path = rollout(policy, condition, times, generator, prior(policy, 100, generator))
    path = replace(path, states=torch.randn(3, 100, 1))  # a sampler that goes anywhere
    for _ in range(60):
        credit._fit(path)
        credit.rounds += 1
    with torch.no_grad():
        own, other = (energy(x[:, None], torch.zeros(100), condition.tokens) for x in (sign, -sign))
    assert float((own < other).float().mean()) == 1.0


# ---------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"form": "departing"}, "departure"),
        ({"gate": Gate()}, "leave it out"),
        ({"data": torch.zeros(0, DIMENSION)}, "give clean states"),
    ],
)
def test_mistakes_are_named(options, match):
    with pytest.raises(UserError, match=match):
        credit_of(points(), **options)


def test_slopes_need_the_kernels_own_path():
    policy = points()
    generator = torch.Generator().manual_seed(0)
    path = rollout(
        policy,
        Condition.none(4),
        grids.uniform(VP(), 3),
        generator,
        prior(policy, 4, generator),
        acting=Acting(solver="ddim"),
    )
    with pytest.raises(UserError, match="leave the solver unset"):
        credited(credit_of(policy), path)
