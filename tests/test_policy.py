"""The waist: acting and judging are one function; the reference is the network without adapter."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import Steps
from scoretune.data.scenes import world
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import (
    GDDIM,
    Constant,
    EulerMaruyama,
    Kernel,
    Memoryless,
    Posterior,
    Renoise,
    Still,
)
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.models.families import FAMILIES
from scoretune.models.lora import adapter_state, add_adapter, restore_adapter
from scoretune.models.observed import Observed
from scoretune.policy import Policy
from scoretune.rollout import deterministic, prior, rollout
from scoretune.training import overrides
from scoretune.training.build import build_policy
from scoretune.training.objectives.policy_gradient import PolicyGradient
from slow_cases import slow

NOISY: list[Kernel] = [
    GDDIM(0.5),
    GDDIM(1.0),
    GDDIM(2.0),
    Renoise(Posterior(1.0)),
    EulerMaruyama(Constant(1.0)),
    EulerMaruyama(Memoryless()),
]
PROMPTS = ["a red seven", "two fives", "a three left of a nine", "an eight and a four"]


def stirred(network: torch.nn.Module, size: float = 0.05) -> None:
    """Give a fresh adapter, which does nothing yet, something to do."""
    generator = torch.Generator().manual_seed(5)
    for name, tensor in adapter_state(network).items():
        if "lora_B" in name:
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator))


@pytest.fixture(scope="module")
def shipped() -> Observed:
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    add_adapter(backbone.network, rank=4)
    stirred(backbone.network)
    return backbone


@pytest.fixture
def policy_of(shipped):
    def make(model: str, kernel: Kernel, guidance: float = 1.0) -> Policy:
        backbone = shipped if model == "shipped" else toy.Gaussian(VP(), dimension=3)
        return Policy(backbone, kernel, guidance)

    return make


def acted(policy: Policy, batch: int, steps: int = 6, seed: int = 0):
    condition = policy.backbone.encode([PROMPTS[k % len(PROMPTS)] for k in range(batch)])
    generator = torch.Generator().manual_seed(seed)
    times = grids.uniform(policy.backbone.process, steps)
    return rollout(policy, condition, times, generator, prior(policy, batch, generator))


def judged(policy: Policy, path, rows: slice) -> Tensor:
    """Log-probabilities [N, b] of some samples' steps, as training computes them: with gradient."""
    log_probs = []
    for k in range(len(path.log_probs)):
        x, x_next = path.states[k, rows], path.states[k + 1, rows]
        t, t_next = (path.times[k + j, rows] for j in (0, 1))
        transition = policy.transition(x, t, t_next, path.condition.take(rows))
        log_probs.append(transition.log_prob(x_next).detach())
    return torch.stack(log_probs)


# ---------------------------------------------------------------------------- ratio one


TWO = (GDDIM(1.0), EulerMaruyama(Memoryless()))
"""Kernels under which the shipped network, too, is looked at in every run; the others slowly."""
every_model = pytest.mark.parametrize(
    ("model", "kernel"),
    [
        *(("toy", kernel) for kernel in NOISY),
        *(("shipped", kernel) if kernel in TWO else slow("shipped", kernel) for kernel in NOISY),
    ],
    ids=str,
)


@every_model
@pytest.mark.parametrize("batch", [1, 32])
def test_an_unchanged_policy_has_ratio_exactly_one(policy_of, model, kernel, batch):
    policy = policy_of(model, kernel)
    path = acted(policy, batch, steps=4)
    assert torch.isfinite(path.log_probs).all()
    assert float((judged(policy, path, slice(None)) - path.log_probs).abs().max()) == 0.0


@every_model
def test_the_ratio_does_not_depend_on_the_batch_size(policy_of, model, kernel):
    policy = policy_of(model, kernel)
    path = acted(policy, 32, steps=4)
    # Convolutions of another batch size differ in the seventh digit, and the last step divides
    # that by its std of .03: in float32 its 256 summed terms cannot agree to 1e-4.
    bound = torch.tensor([1e-4, 1e-4, 1e-4, 5e-4])[:, None]
    for b in (0, 13, 31):
        log_ratio = judged(policy, path, slice(b, b + 1)) - path.log_probs[:, b : b + 1]
        assert bool((log_ratio.abs() <= bound).all()), log_ratio


def test_guidance_keeps_the_ratio(policy_of):
    policy = policy_of("shipped", GDDIM(1.0), guidance=3.0)
    path = acted(policy, 8, steps=3)
    assert float((judged(policy, path, slice(None)) - path.log_probs).abs().max()) == 0.0


def test_a_changed_policy_has_another_ratio(policy_of):
    policy = policy_of("toy", GDDIM(1.0))
    path = acted(policy, 4)
    with torch.no_grad():
        policy.backbone.network.shift += 0.3
    assert float((judged(policy, path, slice(None)) - path.log_probs).abs().min()) > 1e-4


def test_the_objective_sees_ratio_one(policy_of):
    policy = policy_of("shipped", GDDIM(1.0))
    path = acted(policy, 4, steps=2)
    steps = Steps(
        x=path.states[0],
        x_next=path.states[1],
        t=path.times[0],
        t_next=path.times[1],
        condition=path.condition,
        data=path.data[0],
        kl_weight=path.kl_weights[0],
        advantage=torch.ones(4),
    )
    loss = PolicyGradient(policy)(steps)
    metrics = {name: float(value) for name, value in loss.metrics.items()}
    assert metrics == {"clip_fraction": 0, "ratio_min": 1, "ratio_max": 1, "approx_kl": 0}
    assert float(loss.value.detach()) == -1.0


def test_a_step_without_noise_has_no_log_probability(policy_of):
    policy = policy_of("toy", Renoise(Still()))
    path = acted(policy, 2)
    assert len(path.noisy_steps) == 0 and not bool(path.log_probs.any())
    with pytest.raises(ValueError, match="deterministic"):
        judged(policy, path, slice(0, 2))


# ---------------------------------------------------------------------------- guidance


@torch.no_grad()
def test_guidance_is_two_forwards_in_one(policy_of):
    condition = policy_of("shipped", NOISY[0]).backbone.encode(PROMPTS)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 0.6)
    guided = policy_of("shipped", NOISY[0], 3.0).estimate(x, t, condition)
    plain = policy_of("shipped", NOISY[0])
    bound = plain.estimate(x, t, condition)
    free = plain.estimate(x, t, plain.backbone.encode([""] * 4))
    torch.testing.assert_close(guided.noise, free.noise + 3 * (bound.noise - free.noise))
    assert float((guided.noise - bound.noise).abs().max()) > 1e-3  # the prompt says something


def test_guidance_without_an_empty_prompt(policy_of):
    policy = policy_of("toy", NOISY[0], 2.0)
    with pytest.raises(UserError, match="guidance needs an empty prompt"):
        policy.estimate(torch.zeros(1, 3), torch.ones(1), Condition.none(1))


@pytest.mark.parametrize(("guidance", "per_state"), [(1.0, 1), (3.0, 2), (0.0, 2)])
def test_calls_count_network_evaluations(policy_of, shipped, monkeypatch, guidance, per_state):
    seen = []
    monkeypatch.setattr(shipped.network, "forward", spying(shipped.network.forward, seen))
    policy = policy_of("shipped", GDDIM(1.0), guidance)
    acted(policy, 3, steps=2)
    assert policy.calls == sum(seen) == 2 * 3 * per_state


def test_calls_count_the_reference_too(policy_of):
    policy = policy_of("shipped", GDDIM(1.0))
    condition = policy.backbone.encode(PROMPTS)
    generator = torch.Generator().manual_seed(0)
    times = grids.uniform(policy.backbone.process, 2)
    rollout(policy, condition, times, generator, torch.randn(4, 4, 8, 8), reference=True)
    assert policy.calls == 2 * 4 * 2


def spying(forward, seen: list[int]):
    @functools.wraps(forward)
    def spy(**named):
        seen.append(len(named["sample"]))
        return forward(**named)

    return spy


# ---------------------------------------------------------------------------- the reference


@torch.no_grad()
def test_the_reference_is_the_network_without_adapter(policy_of):
    policy = policy_of("shipped", GDDIM(1.0))
    bare = Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), GDDIM(1.0))
    condition = bare.backbone.encode(PROMPTS)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 0.6)
    pretrained = bare.estimate(x, t, condition).noise
    adapted = policy.estimate(x, t, condition).noise
    with policy.reference():
        inside = policy.estimate(x, t, condition).noise
    assert torch.equal(inside, pretrained)
    assert float((adapted - pretrained).abs().max()) > 1e-3
    assert torch.equal(policy.estimate(x, t, condition).noise, adapted)


@torch.no_grad()
def test_an_exception_restores_the_adapter(policy_of):
    policy = policy_of("shipped", GDDIM(1.0))
    condition = policy.backbone.encode(PROMPTS)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 0.6)
    before = policy.estimate(x, t, condition).noise
    trained = {id(p) for p in policy.parameters()}
    with pytest.raises(ZeroDivisionError), policy.reference():
        _ = 1 / 0
    assert torch.equal(policy.estimate(x, t, condition).noise, before)
    assert trained
    assert {id(p) for p in policy.parameters()} == trained


def test_no_adapter_no_reference(policy_of):
    bare = Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), GDDIM(1.0))
    for policy in (bare, policy_of("toy", GDDIM(1.0))):
        with pytest.raises(UserError, match="needs an adapter"), policy.reference():
            pass


def test_a_fresh_adapter_changes_nothing_and_is_all_that_trains():
    policy = Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), GDDIM(1.0))
    condition = policy.backbone.encode(PROMPTS)
    x, t = torch.randn(4, 4, 8, 8), torch.full((4,), 0.6)
    before = policy.estimate(x, t, condition).noise
    add_adapter(policy.backbone.network, rank=4)
    assert torch.equal(policy.estimate(x, t, condition).noise, before)
    names = adapter_state(policy.backbone.network)
    assert names
    assert all("lora_" in name for name in names)
    assert sum(t.numel() for t in names.values()) == sum(p.numel() for p in policy.parameters())


def test_restoring_needs_the_same_layers():
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    add_adapter(backbone.network, rank=2)
    state = {name: t.clone() + 1 for name, t in adapter_state(backbone.network).items()}
    restore_adapter(backbone.network, state)
    assert all(torch.equal(t, state[n]) for n, t in adapter_state(backbone.network).items())
    state.popitem()
    with pytest.raises(UserError, match=r"same model\.rank"):
        restore_adapter(backbone.network, state)


def test_targets_that_do_not_exist():
    backbone = FAMILIES["StableDiffusionPipeline"].load(str(world.shipped()))
    with pytest.raises(UserError, match=r"set model\.targets"):
        add_adapter(backbone.network, 4, ("nowhere",))


# ---------------------------------------------------------------------------- rollouts


def test_a_rollout_with_reference_measures_the_kl(policy_of):
    policy = policy_of("shipped", GDDIM(1.0))
    condition = policy.backbone.encode(PROMPTS)
    times = grids.uniform(policy.backbone.process, 3)
    noise = torch.randn(4, 4, 8, 8)
    paths = [
        rollout(policy, condition, times, torch.Generator().manual_seed(3), noise, reference=ref)
        for ref in (False, True)
    ]
    assert torch.equal(paths[0].states, paths[1].states)  # looking on changes nothing
    path = paths[1]
    bare = Policy(FAMILIES["StableDiffusionPipeline"].load(str(world.shipped())), GDDIM(1.0))
    process = policy.backbone.process
    for k in range(3):
        t = times[k].expand(4)
        with torch.no_grad():
            ours = policy.estimate(path.states[k], t, condition).data
            theirs = bare.estimate(path.states[k], t, condition).data
        assert torch.equal(path.data[k], ours)
        assert torch.equal(path.reference_data[k], theirs)
        gap = (process.alpha(t) / process.sigma(t))[:, None, None, None] * (ours - theirs)
        share = path.log_snr_steps[k] * gap.square().sum((1, 2, 3)) / 2
        torch.testing.assert_close(path.girsanov_weights[k] * path.moved_sq[k], share)
        place = (path.states[k], t, times[k + 1].expand(4), condition)
        with torch.no_grad():
            step = policy.transition(*place).kl(bare.transition(*place))
        torch.testing.assert_close(path.kls[k], step, rtol=1e-4, atol=1e-6)
    # Pure noise stands for nothing of a path in time; the chain's first step counts.
    assert bool((path.girsanov_weights[0] == 0).all())
    assert bool((path.kls > 0).all())


@pytest.mark.parametrize("solver", ["ddim", "heun", "dpmpp_2m"])
def test_solvers_find_the_gaussian(policy_of, solver):
    policy = policy_of("toy", GDDIM(1.0))
    x = prior(policy, 2000, torch.Generator().manual_seed(0))
    x0 = deterministic(policy, Condition.none(2000), grids.karras(VP(), 60), x, solver)
    assert float(x0.mean()) == pytest.approx(1.0, abs=0.03)
    assert float(x0.var()) == pytest.approx(0.25, abs=0.03)


def test_an_unknown_solver_is_named(policy_of):
    with pytest.raises(UserError, match="did you mean 'heun'"):
        deterministic(
            policy_of("toy", NOISY[0]), Condition.none(1), torch.ones(2), torch.zeros(1, 3), "heum"
        )


@pytest.mark.slow  # of every family in `models/test_families.py`
def test_half_precision_acts_and_judges_alike():
    """bf16 weights: log-probabilities are float32, and the ratio to itself is still exactly 1."""
    run = overrides.changed(recipes.named("ddpo"), ["model.precision=bf16", "model.rank=4"])
    policy = build_policy(run, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    condition = policy.backbone.encode(["a red seven"] * 4)
    times = grids.karras(policy.backbone.process, 3)
    path = rollout(policy, condition, times, generator, prior(policy, 4, generator))
    assert path.log_probs.dtype == torch.float32
    for k in range(3):
        t, t_next = times[k].expand(4), times[k + 1].expand(4)
        law = policy.transition(path.states[k], t, t_next, condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])
