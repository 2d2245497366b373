"""What an update does: precise ratios, a trust region that measures where it went, epochs over the
same states, and metrics under the field's names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from scoretune.core.conditions import Condition
from scoretune.core.config import Sizes
from scoretune.core.records import Minibatches, Round, Steps
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import RectifiedFlow, Tabulated
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import prior, rollout
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.base import TrustRegion, step_ratio
from scoretune.training.objectives.policy_gradient import PolicyGradient
from scoretune.training.sources.on_policy import OnPolicy
from scoretune.training.sources.step_choice import any_steps

PROCESS = Tabulated.scaled_linear()
TIMES = grids.karras(PROCESS, 6)
LARGE = 262_144
"""Of a state of a latent model at 1024² pixels: 16 × 128 × 128."""


# ------------------------------------------------------------------------------------ ratios


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("process", [PROCESS, RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_a_log_ratio_is_exact_at_262144_dimensions(process, precision):
    """Within 1e-4 of float64 for the estimates that the network gave, whatever their precision;
    and exactly 0 for a policy that has not moved."""
    generator = torch.Generator().manual_seed(0)
    policy = Policy(toy.Gaussian(process, 0.0, 1.0, LARGE), GDDIM(0.8))
    t, t_next = torch.tensor([0.55, 0.2]), torch.tensor([0.4, 0.12])
    x, data, change, noise = (torch.randn(2, LARGE, generator=generator) for _ in range(4))
    data = data.to(precision).float()
    # So far that the ratio is of the size of a clip range.
    moved = (data + 3e-4 * change).to(precision).float()
    if precision is torch.bfloat16:
        moved = data.clone()
        moved[:, ::4096] = (data[:, ::4096] * 1.01).to(precision).float()

    def noise_of(data: Tensor) -> Estimate:
        alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
        return Estimate(data, (x - alpha * data) / sigma)

    acting = policy.move(x, noise_of(data), t, t_next)
    steps = Steps(
        x=x,
        t=t,
        t_next=t_next,
        condition=Condition.none(2),
        data=data,
        kl_weight=torch.ones(2),
        x_next=acting.draw_with(noise),
    )
    assert step_ratio(policy, noise_of(data), steps).tolist() == [0.0, 0.0]
    ours = step_ratio(policy, noise_of(moved), steps)
    t, t_next, x = t.double(), t_next.double(), x.double()
    data, moved = data.double(), moved.double()
    assert steps.x_next is not None
    laws = [policy.move(x, noise_of(each), t, t_next) for each in (moved, data)]
    exact = laws[0].log_prob(steps.x_next.double()) - laws[1].log_prob(steps.x_next.double())
    assert float(exact.abs().max()) > 1e-3
    assert float((ours.double() - exact).abs().max()) < 1e-4


# ------------------------------------------------------------------------------------ a toy


def policy_of(dimension: int = 4) -> Policy:
    base = toy.Gaussian(PROCESS, mean=-0.4, variance=0.6, dimension=dimension)
    return Policy(toy.Controlled(base, toy.HatControl(dimension)), GDDIM(1.0))


def paths_of(policy: Policy, *, minibatches: int = 4, epochs: int = 1, group: int = 64) -> OnPolicy:
    steps = len(TIMES) - 1
    sizes = Sizes(prompts=1, group=group, minibatch=group * steps // minibatches, epochs=epochs)
    return OnPolicy(
        policy=policy,
        prompts=Prompts(("",), ("",)),
        reward=lambda x, prompts: 2 * x.sum(1) - 0.3 * (x**2).sum(1),
        reward_name="quadratic",
        credit=GroupCredit(group),
        times=TIMES,
        sizes=sizes,
        seed=1,
        choose=any_steps(1.0),
    )


def learn(
    policy: Policy,
    paths: OnPolicy,
    *,
    updates: int,
    rate: float = 0.02,
    trust: TrustRegion | None = None,
    before: Callable[[int], None] | None = None,
) -> list[dict[str, float]]:
    """The metrics of the updates."""
    lines: list[dict[str, float]] = []
    hooks = [lambda update, metrics: lines.append(dict(metrics))]
    if trust is not None:
        hooks.append(trust.adapt)
    optimiser = torch.optim.Adam(policy.parameters(), lr=rate)
    train(
        paths,
        PolicyGradient(policy, trust=trust),
        optimiser,
        TorchEngine(),
        updates=range(updates),
        clip_norm=1e9,
        region=trust,
        hooks=hooks,
    )
    return lines


# ------------------------------------------------------------------------------------ trust region


def chain_kl_between(policy: Policy, old: Tensor, new: Tensor) -> float:
    """The KL of paths from the policy with weights `old` to that with `new`, by transitions."""
    (weights,) = policy.parameters()
    kept, nobody = weights.detach().clone(), Condition.none(2000)
    with torch.no_grad():
        weights.copy_(old)
        generator = torch.Generator().manual_seed(7)
        path = rollout(policy, nobody, TIMES, generator, prior(policy, 2000, generator))
        total = 0.0
        for k in range(len(TIMES) - 1):
            place = (path.states[k], path.times[k], path.times[k + 1], nobody)
            weights.copy_(old)
            before = policy.transition(*place)
            weights.copy_(new)
            total += float(before.kl(policy.transition(*place)).mean())
        weights.copy_(kept)
    return total


@pytest.mark.slow
@pytest.mark.parametrize("minibatches", [2, 10])
def test_a_trust_region_measures_the_update_and_keeps_to_its_radius(minibatches):
    torch.manual_seed(0)
    policy, radius = policy_of(), 0.05
    trust, paths = TrustRegion(policy, radius), paths_of(policy, minibatches=minibatches)
    (weights,), moved, measured = policy.parameters(), [], []
    for block in range(30):
        old = weights.detach().clone()
        paths.seed = block
        measured.append(learn(policy, paths, updates=1, trust=trust)[0]["update_kl"])
        if block >= 15:
            moved.append(chain_kl_between(policy, old, weights.detach().clone()))
    measured = measured[15:]
    true, told = sum(moved) / len(moved), sum(measured) / len(measured)
    assert told == pytest.approx(true, rel=0.2)
    if minibatches > 2:  # two steps of this rate stay within it by themselves
        assert true / radius == pytest.approx(1, rel=0.25)
    assert true < 1.25 * radius
    assert 1e-4 <= trust.coefficient <= 1e4


def test_an_update_may_end_early():
    torch.manual_seed(0)
    policy = policy_of()
    trust = TrustRegion(policy, 1e-3, early_stop=True)
    lines = learn(policy, paths_of(policy, minibatches=24), updates=2, trust=trust)
    assert all(line["optimiser_steps"] < 24 for line in lines)
    policy = policy_of()
    patient = TrustRegion(policy, 1e-3)
    lines = learn(policy, paths_of(policy, minibatches=24), updates=2, trust=patient)
    assert all(line["optimiser_steps"] == 24 for line in lines)


# ------------------------------------------------------------------------------------ epochs


def test_epochs_go_through_all_states_again_in_another_order():
    torch.manual_seed(0)
    policy = policy_of()
    paths = paths_of(policy, minibatches=3, epochs=2)
    batches = paths(0)
    groups = list(batches.groups())
    assert len(groups) == 6 and len(batches.minibatches) == 6
    first, second = (torch.cat([b.x for (b,), _ in groups[s]]) for s in (slice(3), slice(3, 6)))
    assert not torch.equal(first, second)
    torch.testing.assert_close(first.sort(0).values, second.sort(0).values)
    lines = learn(policy, paths_of(policy, minibatches=3, epochs=2), updates=1)
    assert lines[0]["optimiser_steps"] == 6


def test_a_step_of_all_minibatches_is_one_of_each_epoch():
    rows = [torch.arange(2) + 2 * (i % 3) for i in range(6)]
    states = torch.arange(6.0)[:, None]
    steps = Steps(
        x=states,
        t=states[:, 0],
        t_next=states[:, 0],
        condition=Condition.none(6),
        data=states,
        kl_weight=states[:, 0],
    )
    batches = Round(Minibatches(steps, rows), {}, 0, (2,) * 6, 2)
    assert [len(group) for group, _ in batches.groups()] == [3, 3]
    uneven = replace(batches, accumulate=2)
    assert [len(group) for group, _ in uneven.groups()] == [2, 1, 2, 1]
    assert [len(group) for group, _ in batches.groups(accumulate=1, epochs=1)] == [1, 1, 1]


# ------------------------------------------------------------------------------------ metrics


def test_metrics_have_the_fields_names():
    torch.manual_seed(0)
    policy = policy_of()
    first, last = learn(policy, paths_of(policy, minibatches=10, epochs=3), updates=2, rate=0.1)
    assert first["ratio_min"] < 1 < first["ratio_max"]
    assert 0 < first["clip_fraction"] < 1
    assert first["approx_kl"] > 0
    assert {"loss", "grad_norm", "reward"} <= set(last)
    assert "update_kl" not in last  # nobody asked how far the update went
    assert policy.decoded == 2 * 64  # every sample is decoded and rewarded once
