"""Preferences on diffusion and flow models: implicit likelihoods, units of β, losses, sources.

The reference of every identity is written out here, in float64, from the formulas of the papers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

import judged
from scoretune import recipes
from scoretune.core import config, distributed
from scoretune.core.conditions import Condition
from scoretune.core.distributed import Team
from scoretune.core.errors import UserError
from scoretune.core.records import LikedExamples, PairExamples
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.matching import bound
from scoretune.diffusion.processes import VE, VP, Process, RectifiedFlow, every_process
from scoretune.evaluate.guard import watches
from scoretune.models import toy
from scoretune.policy import Adapter, Policy
from scoretune.preference import PRESETS, pairwise_loss, phi_of_scale
from scoretune.training import build, overrides, run_folder
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Silent
from scoretune.training.objectives import preference_losses
from scoretune.training.objectives.implicit import Likelihood
from scoretune.training.objectives.preference_losses import (
    Baseline,
    Pairwise,
    ScoreMatched,
    Single,
)
from scoretune.training.run import launch
from scoretune.training.sources.pairs import Likes, Pairs, Unsure, vote_scales

PREDICTIONS = (estimates.noise, estimates.data, estimates.v, estimates.velocity)
PROCESSES = every_process()
SUITED = sorted(name for name in PRESETS if preference_losses.unsuited(name, PRESETS[name]) is None)
B = 40.0


class Nudged(Adapter):
    """A frozen network, and what training adds to its output."""

    def __init__(self, size: int = 2) -> None:
        super().__init__()
        self.base = toy.perceptron(size + 1, 8, size).requires_grad_(False)
        self.nudge = toy.perceptron(size + 1, 8, size)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        seen = torch.cat([x, t[:, None].to(x)], 1)
        out: Tensor = self.base(seen)
        return out if self.disable_adapters else out + self.nudge(seen)


@dataclass
class Nudge(toy.Vectors):
    """A backbone of points of any process and prediction, in float64."""

    process: Process
    prediction: Prediction = estimates.noise
    size: int = 2
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        self.network = Nudged(self.size).double()

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)


def policy_of(
    process: Process | None = None,
    prediction: Prediction = estimates.noise,
    *,
    moved: bool = True,
    size: int = 2,
) -> Policy:
    """A policy whose network differs from its reference's, or not yet."""
    policy = Policy(Nudge(process or VP(), prediction, size), kernel=None)  # type: ignore[arg-type]
    if not moved:
        nn.init.zeros_(policy.backbone.network.nudge[-1].weight)
        nn.init.zeros_(policy.backbone.network.nudge[-1].bias)
    return policy


def pairs_of(count: int = 12, size: int = 2, **given: Any) -> PairExamples:
    wide = torch.float64
    examples = PairExamples(
        first=torch.randn(count, size, dtype=wide),
        second=torch.randn(count, size, dtype=wide),
        condition=Condition.none(count),
        label=torch.ones(count, dtype=wide),
        weight=torch.ones(count, dtype=wide),
        noise=torch.randn(count, size, dtype=wide),
        share=torch.rand(count, dtype=wide),
    )
    return replace(examples, **given)


def mse(policy: Policy, x0: Tensor, examples: Any, *, reference: bool = False) -> Tensor:
    """The mean squared error of an element of the output, by its definition, [B]."""
    process, network = policy.backbone.process, policy.backbone.network
    t = 1e-3 + (process.horizon - 1e-3) * examples.share
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    a, b = policy.backbone.prediction.row(process, t)
    x = alpha * x0 + sigma * examples.noise
    network.disable_adapters = reference
    output = network(x, t)
    network.disable_adapters = False
    goal = a[:, None] * x0 + b[:, None] * examples.noise
    return ((output - goal) ** 2).mean(1)


def gradients(policy: Policy, value: Tensor) -> Tensor:
    found = torch.autograd.grad(value, policy.parameters(), retain_graph=True, allow_unused=True)
    return torch.cat([torch.zeros(1) if g is None else g.flatten() for g in found])


def loss_of(policy: Policy, name: str = "dpo", beta: float = B, **options: Any) -> Any:
    likelihood = Likelihood(policy=policy, **options)
    if name == "dspo":
        return ScoreMatched(likelihood, beta)
    made = Single if PRESETS[name].kind == "single" else Pairwise
    return made(likelihood, PRESETS[name], beta)


def given(name: str, examples: PairExamples) -> PairExamples:
    """The examples with what a preset asks for besides."""
    preset = PRESETS.get(name)
    if preset is not None and preset.scaling:
        examples = replace(examples, scale=torch.rand(len(examples), dtype=torch.float64) + 0.5)
    if preset is not None and preset.offset:
        examples = replace(examples, margin=torch.rand(len(examples), dtype=torch.float64))
    return examples


# ------------------------------------------------------------------------------ Diffusion-DPO


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("prediction", PREDICTIONS, ids=lambda p: p.name)
def test_the_loss_and_its_gradient_are_diffusion_dpos(process, prediction):
    """−ln σ(−(B/2)(d_w − d_l)), d = mse_θ − mse_ref (arXiv 2311.12908), on what is predicted."""
    policy, examples = policy_of(process, prediction), pairs_of()
    own = [mse(policy, x0, examples) for x0 in (examples.first, examples.second)]
    other = [
        mse(policy, x0, examples, reference=True).detach()
        for x0 in (examples.first, examples.second)
    ]
    inside = -B / 2 * ((own[0] - other[0]) - (own[1] - other[1]))
    expected = -logsigmoid(inside).mean()
    loss = loss_of(policy)(examples)
    torch.testing.assert_close(loss.value, expected, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(
        gradients(policy, loss.value), gradients(policy, expected), rtol=1e-8, atol=1e-12
    )
    for metric, known in (
        ("implicit_accuracy", (inside > 0).double()),
        ("error_chosen", own[0]),
        ("error_rejected", own[1]),
    ):
        assert float(loss.metrics[metric]) == pytest.approx(float(known.detach().mean()))


def test_at_the_reference_it_is_ln_2_and_its_gradient_a_quarter_b():
    policy, examples = policy_of(moved=False), pairs_of()
    loss = loss_of(policy)(examples)
    assert float(loss.value.detach()) == pytest.approx(math.log(2), abs=1e-15)
    apart = (mse(policy, examples.first, examples) - mse(policy, examples.second, examples)).mean()
    torch.testing.assert_close(
        gradients(policy, loss.value), B / 4 * gradients(policy, apart), rtol=1e-9, atol=1e-13
    )
    swapped = loss_of(policy)(replace(examples, label=1 - examples.label))
    torch.testing.assert_close(
        gradients(policy, swapped.value), -gradients(policy, loss.value), rtol=1e-9, atol=1e-13
    )
    tied = loss_of(policy)(replace(examples, label=examples.label / 2))
    assert float(gradients(policy, tied.value).abs().max()) < 1e-14
    assert float(loss.metrics["output_shift"]) == 0
    assert float(loss.metrics["implicit_accuracy"]) == 0.5


@pytest.mark.parametrize("name", [*SUITED, "dspo"])
def test_a_label_is_a_probability(name):
    """Sides exchanged with label, margin and all is the same; a soft label mixes both."""
    policy, examples = policy_of(), given(name, pairs_of())
    label = torch.rand(len(examples), dtype=torch.float64)
    objective = loss_of(policy, name)

    def at(label: Tensor) -> Tensor:
        return objective(replace(examples, label=label)).value

    exchanged = replace(
        examples,
        first=examples.second,
        second=examples.first,
        label=1 - label,
        margin=None if examples.margin is None else -examples.margin,
    )
    torch.testing.assert_close(objective(exchanged).value, at(label))
    one = torch.ones_like(label)
    torch.testing.assert_close(at(0.3 * one), 0.3 * at(one) + 0.7 * at(0 * one))


def test_shared_noise_is_worth_it():
    """The spread of the argument with one noise for both sides is below that with two (D1)."""
    policy = policy_of(size=32)
    x0 = torch.randn(2, 1, 32, dtype=torch.float64)
    many = pairs_of(400, 32, first=x0[0].expand(400, -1), second=x0[0].expand(400, -1) * 0.9)
    other = replace(many, noise=torch.randn_like(many.noise), share=torch.rand_like(many.share))
    likelihood = Likelihood(policy=policy)
    with torch.no_grad():
        shared = likelihood((many.first, many.second), many, reference=True)
        apart = likelihood((many.second,), other, reference=True)
    gain = shared.policy - shared.reference
    mixed = gain[0] - (apart.policy - apart.reference)[0]
    assert float((gain[0] - gain[1]).std()) < 0.5 * float(mixed.std())


# ------------------------------------------------------------------------------ units of β


def test_the_posterior_kls_of_the_discrete_chain():
    """KL(q‖p_θ) − KL(q‖p_ref) = w(‖ε − ε_θ‖² − ‖ε − ε_ref‖²), w = b²/(2v(1 − b)(1 − ᾱ))."""
    wide = torch.float64
    b = torch.linspace(1e-4, 0.02, 1000, dtype=wide)
    kept = torch.cumprod(1 - b, 0)
    for step in (1, 10, 500, 999):
        b_t, ab, before = b[step], kept[step], kept[step - 1]
        v = b_t * (1 - before) / (1 - ab)
        x0, eps, ours, theirs = torch.randn(4, 5, dtype=wide)
        x = ab.sqrt() * x0 + (1 - ab).sqrt() * eps

        def mean(noise: Tensor, x=x, b_t=b_t, ab=ab) -> Tensor:
            return (x - b_t / (1 - ab).sqrt() * noise) / (1 - b_t).sqrt()

        q = torch.distributions.Normal(mean(eps), v.sqrt())
        kl = [
            torch.distributions.kl_divergence(
                q, torch.distributions.Normal(mean(n), v.sqrt())
            ).sum()
            for n in (ours, theirs)
        ]
        weight = b_t**2 / (2 * v * (1 - b_t) * (1 - ab))
        expected = weight * (((eps - ours) ** 2).sum() - ((eps - theirs) ** 2).sum())
        torch.testing.assert_close(kl[0] - kl[1], expected, rtol=1e-10, atol=1e-12)
    # In log-SNR it is (e^{Δℓ} − 1)/2, which in continuous time is dℓ/2.
    v = b[1:] * (1 - kept[:-1]) / (1 - kept[1:])
    weights = b[1:] ** 2 / (2 * v * (1 - b[1:]) * (1 - kept[1:]))
    log_snr = torch.log(kept / (1 - kept))
    torch.testing.assert_close(weights, torch.expm1(-log_snr.diff()) / 2, rtol=1e-9, atol=0)


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=lambda p: type(p).__name__)
def test_a_beta_of_nats_means_the_same_under_any_law_of_times(process):
    """The mean of the implicit reward over times is the integral, whatever law draws them."""
    policy = policy_of(process, estimates.velocity)
    one = pairs_of(1)
    many = replace(
        one.take(torch.zeros(4000, dtype=torch.long)),
        share=(torch.arange(4000, dtype=torch.float64) + 0.5) / 4000,
        condition=Condition.none(4000),
    )
    means = []
    for times in (
        ("uniform", "importance") if process.alpha(torch.tensor(1.0)) > 0 else ("uniform",)
    ):
        likelihood = Likelihood(policy=policy, unit="nats", times=times, t_min=1e-2)
        with torch.no_grad():
            sides = likelihood((many.first,), many, reference=True)
        means.append(float((sides.policy - sides.reference).mean()))
    t = torch.logspace(-2, 0, 4001, dtype=torch.float64).clamp(max=process.horizon)
    fine = replace(many.take(slice(0, 1)).take(torch.zeros(4001, dtype=torch.long)))
    fine = replace(fine, share=(t - 1e-3) / (process.horizon - 1e-3))
    with torch.no_grad():
        apart = mse(policy, fine.first, fine) - mse(policy, fine.first, fine, reference=True)
    early = t.clamp(max=process.horizon * (1 - 1e-6))
    a, b = estimates.velocity.row(process, early)
    kappa = b - a * process.sigma(early) / process.alpha(early)
    log_snr = 2 * torch.log(process.alpha(early) / process.sigma(early))
    slope = torch.gradient(log_snr, spacing=(early,))[0].abs()
    integral = -torch.trapezoid(apart * slope / kappa**2, early)  # a mean of 2, and half of that
    for mean in means:
        assert mean == pytest.approx(float(integral), rel=5e-3)


def test_the_two_units_convert():
    """Of predicted noise with times uniform in the log-SNR they are one loss, B = β·D·W."""
    policy, examples = policy_of(), pairs_of()
    total = bound.total_weight(VP(), estimates.noise, 1e-3)
    ends = torch.tensor([1e-3, VP().horizon], dtype=torch.float64)
    span = 2 * torch.log(VP().sigma(ends) / VP().alpha(ends)).diff()
    assert total == pytest.approx(float(span), rel=1e-6)
    nats = bound.nats_from_mean(B, 2, total)
    assert bound.mean_from_nats(nats, 2, total) == pytest.approx(B)
    ours = loss_of(policy, beta=nats, unit="nats", times="importance")(examples)
    # The law "importance" has a factor, which is 1/weight: without it the constant weight is left.
    plain = loss_of(policy, times="importance")(examples)
    assert float(ours.value.detach()) != pytest.approx(float(plain.value.detach()), rel=1e-3)
    likelihood = Likelihood(policy=policy, unit="nats", times="importance")
    with torch.no_grad():
        sides = likelihood((examples.first, examples.second), examples, reference=True)
    torch.testing.assert_close(nats * sides.policy, -B / 2 * sides.error, rtol=1e-6, atol=1e-12)


def test_a_default_beta_is_the_same_in_either_unit():
    policy = policy_of()
    settings = config.Preference()
    assert preference_losses.beta_of(settings, policy) == 5000
    nats = preference_losses.beta_of(settings.model_copy(update={"beta_unit": "nats"}), policy)
    total = bound.total_weight(VP(), estimates.noise, settings.t_min)
    assert nats * 2 * total == pytest.approx(5000)
    assert preference_losses.beta_of(config.Preference(preset="simpo"), policy) == 100


# ------------------------------------------------------------------------------ every preset


@pytest.mark.parametrize("name", [n for n in SUITED if PRESETS[n].kind == "pair"])
@pytest.mark.parametrize("unit", ["mean", "nats"])
def test_a_preset_is_the_formula_that_texts_have(name, unit):
    """The same numbers through `pairwise_loss` as log-likelihoods of texts."""
    policy, examples = policy_of(), given(name, pairs_of())
    examples = replace(examples, label=torch.rand(len(examples), dtype=torch.float64))
    likelihood = Likelihood(policy=policy, unit=unit)
    sides = likelihood((examples.first, examples.second), examples, reference=True)
    lengths = torch.full((len(examples),), 1.0 if unit == "mean" else 2.0, dtype=torch.float64)
    preset, scale = PRESETS[name], examples.scale
    if preset.scaling == "phi":
        scale = phi_of_scale(examples.scale)
    references = sides.reference if preset.needs_reference else (None, None)
    expected = pairwise_loss(
        *sides.policy,
        *references,
        preset=name,
        beta=0.3,
        lengths=(lengths, lengths),
        margin=examples.margin,
        scale=scale,
        label=examples.label,
    )
    loss = Pairwise(likelihood, preset, 0.3)(examples)
    torch.testing.assert_close(loss.value, expected.mean())
    assert all(math.isfinite(float(value)) for value in loss.metrics.values())


@pytest.mark.parametrize("name", [*SUITED, "dspo"])
def test_a_batch_may_be_cut_up(name):
    """Parts that the device can hold give the gradient of the whole, and the states are counted."""
    policy, examples = policy_of(), given(name, pairs_of(11))
    objective = loss_of(policy, name)
    whole = gradients(policy, objective(examples).value)
    policy.calls = 0
    parts = list(TorchEngine(at_once=5).parts(examples))
    assert [len(part) for part, _ in parts] == [2, 2, 2, 2, 2, 1]  # two states a pair
    cut = sum(gradients(policy, objective(part).value * rows / 11) for part, rows in parts)
    torch.testing.assert_close(cut, whole, rtol=1e-9, atol=1e-12)
    compares = name == "dspo" or PRESETS[name].needs_reference
    assert policy.calls == 11 * (4 if compares else 2)


def test_without_a_reference_none_is_asked(monkeypatch):
    policy = policy_of()
    monkeypatch.setattr(policy, "reference", None)
    loss_of(policy, "simpo")(pairs_of())


def test_dspo_is_its_formula():
    """‖(ε̂ − ε) − B(1 − σ(a))(ε̂ − ε̂_ref)‖², and plain matching of the preferred side for B → 0."""
    policy, examples = policy_of(), pairs_of()
    t = 1e-3 + (1 - 1e-3) * examples.share
    alpha, sigma = VP().alpha(t)[:, None], VP().sigma(t)[:, None]
    x = alpha * examples.first + sigma * examples.noise
    network = policy.backbone.network
    output = network(x, t)
    network.disable_adapters = True
    before = network(x, t)
    network.disable_adapters = False
    apart = [
        mse(policy, x0, examples) - mse(policy, x0, examples, reference=True)
        for x0 in (examples.first, examples.second)
    ]
    pull = B * (1 - torch.sigmoid(-B / 2 * (apart[0] - apart[1])))
    residual = (output - examples.noise) - pull[:, None] * (output - before)
    loss = loss_of(policy, "dspo")(examples)
    torch.testing.assert_close(loss.value, residual.square().mean())
    fixed = (output - examples.noise) - pull.detach()[:, None] * (output - before)
    torch.testing.assert_close(
        gradients(policy, loss.value),
        gradients(policy, fixed.square().mean()),
        rtol=1e-9,
        atol=1e-12,
    )
    plain = loss_of(policy, "dspo", 1e-12)(examples).value
    torch.testing.assert_close(plain, mse(policy, examples.first, examples).mean())


def test_kto_is_diffusion_ktos():
    """mean 1 − σ(s·B(g − Q)), g = −½(mse_θ − mse_ref), of single likes (arXiv 2404.04465)."""
    policy, pairs = policy_of(), pairs_of()
    liked = torch.tensor([1.0, 0.0] * 6, dtype=torch.float64)
    examples = LikedExamples(
        pairs.first, pairs.condition, liked, pairs.weight, pairs.noise, pairs.share
    )
    gain = -(mse(policy, pairs.first, pairs) - mse(policy, pairs.first, pairs, reference=True)) / 2
    for level in (0.0, 0.01, -0.5):
        objective = replace(loss_of(policy, "kto"), baseline=Baseline(level))
        sign = 2 * liked - 1
        expected = 1 - torch.sigmoid(sign * B * (gain - max(level, 0.0)))
        torch.testing.assert_close(objective(examples).value, expected.mean())
    objective = loss_of(policy, "kto")
    both = objective(pairs).value  # both sides of pairs: a liked and a disliked one each
    likes = [
        replace(examples, x0=side, liked=torch.full_like(liked, number))
        for side, number in ((pairs.first, 1.0), (pairs.second, 0.0))
    ]
    torch.testing.assert_close(both, sum(objective(like).value for like in likes) / 2)


def test_what_kto_compares_with_follows_and_is_kept():
    baseline = Baseline()
    for update in range(60):
        baseline.adapt(update, {"log_ratio": 0.5})
    assert baseline.level == pytest.approx(0.5, rel=0.01)
    again = Baseline()
    again.restore(json.loads(json.dumps(baseline.state())))
    assert again == baseline


# ------------------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["objective.preset=ranbow"], "did you mean 'rainbow'"),
        (["objective.preset=orpo"], "density"),
        (["objective.preset=rdpo"], "all pictures have one"),
        (["objective.preset=fdpo"], "ratio of densities"),
        (["objective.preset=trdpo"], "--merge"),
        (["objective.preset=wpo"], "density"),
        (["objective.preset=beta_dpo"], "whole batch"),
        (["objective.preset=mallows_theta"], "objective.dispersion=votes"),
        (["objective.likes=true"], "kto"),
        (["hardware.device_batch=1"], "holds no pair"),
        (["hardware.cache_prompts=true"], "prompts of their own"),
        (["objective.beta_unit=nats", "objective.times=lognormal"], "emphasis"),
        (["objective.preset=dspo", "objective.alpha=0.5"], "objective.alpha is of no use"),
        (["objective.preset=kto", "objective.margin=1"], "objective.margin is of no use"),
        (["objective.preset=nca", "objective.margin=1"], "sees no gap"),
        (["objective.beta=0"], "objective.beta"),
        (["objective.label_smoothing=0.5"], "objective.label_smoothing"),
        (["objective.likes=true", "objective.preset=kto", "objective.ties=drop"], "of no use"),
        (["sizes.share=0.5"], "of no use"),
        (["objective.dropout=1"], "objective.dropout"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(changes, says):
    with pytest.raises(UserError, match=says) as refusal:
        build.check_settings(overrides.changed(recipes.named("dpo"), ["data=pairs", *changes]))
    assert len(str(refusal.value)) <= 300


def test_data_must_be_named():
    with pytest.raises(UserError, match="set data=FOLDER"):
        build.check_settings(recipes.named("dpo"))


@pytest.mark.parametrize("recipe", ["dpo", "ipo", "kto", "simpo", "mallows", "rainbow", "dspo"])
def test_recipes_suit_themselves(recipe, tmp_path):
    data = judged.pairs_folder(tmp_path / "pairs")
    run = overrides.changed(recipes.named(recipe), [f"data={data}"])
    build.check_settings(run)
    assert run.guard.action == "rollback"


def test_data_that_are_not_there_are_refused_before_a_model_is_loaded(tmp_path):
    run = overrides.changed(recipes.dpo(), [f"data={tmp_path / 'nowhere'}"])
    with pytest.raises(UserError, match="nowhere"):
        build.check_settings(run)


def test_full_fine_tuning_has_no_reference():
    policy = Policy(toy.Gaussian(VP()), kernel=None)
    with pytest.raises(UserError, match=r"model\.rank above 0"):
        preference_losses.loss_of(config.Preference(), policy)
    preference_losses.loss_of(config.Preference(preset="simpo"), policy)


def test_the_switches_reach_the_preset():
    settings = config.Preference(
        preset="rainbow", alpha=0.5, margin=0.2, sft_weight=0.3, label_smoothing=0.1,
        dispersion="votes",
    )  # fmt: skip
    preset = preference_losses.preset_of(settings)
    assert (preset.reference_weight, preset.mixing) == (0.5, True)
    assert (preset.home_advantage, preset.target_margin) == (0.0, 0.2)
    assert (preset.sft_weight, preset.label_smoothing) == (0.3, 0.1)
    # A home advantage of texts is a difference per token; its reward at their β carries over.
    own = preference_losses.preset_of(config.Preference(preset="rainbow"))
    assert (own.home_advantage, own.target_margin) == (0.0, 1.0)


# ------------------------------------------------------------------------------ sources


@dataclass
class Table:
    """Pairs of points as a table of pictures gives them."""

    captions: tuple[str, ...]
    labels: Tensor
    weights: Tensor
    votes: Tensor
    scores: Tensor | None = None
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.captions)

    def load(self, indices: Sequence[int], size: int = 0) -> tuple[Tensor, Tensor]:
        self.asked += indices
        rows = torch.tensor([float(i) for i in indices], dtype=torch.float64)
        return torch.stack([rows, rows], 1), -torch.stack([rows, rows], 1)

    def order(self, lap: int, seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(1000 * seed + lap)
        return torch.randperm(len(self), generator=generator).tolist()


def table(count: int = 10, **columns: Any) -> Table:
    plain = {
        "captions": tuple(f"p{i // 2}" for i in range(count)),
        "labels": torch.linspace(0, 1, count, dtype=torch.float64),
        "weights": torch.ones(count, dtype=torch.float64),
        "votes": torch.full((count,), 4.0),
    }
    return Table(**(plain | columns))


def test_every_lap_asks_for_every_pair_once():
    data = table(10)
    source = Pairs(data, policy_of(), 0, 4, 0)
    for update in range(5):
        source(update)
    assert sorted(data.asked[:10]) == sorted(data.asked[10:]) == list(range(10))
    assert data.asked[:10] != data.asked[10:]


def test_an_update_is_the_same_whenever_it_is_asked_for():
    """So a run that is resumed learns from what it would have learned from."""
    early = Pairs(table(), policy_of(), 0, 4, seed=3)
    for update in range(4):
        before = early(update)
    after = Pairs(table(), policy_of(), 0, 4, seed=3)(3)
    ours, theirs = before.minibatches[0], after.minibatches[0]
    for name, value in vars(ours).items():
        if isinstance(value, Tensor):
            assert torch.equal(value, getattr(theirs, name)), name
    other = Pairs(table(), policy_of(), 0, 4, seed=4)(3).minibatches[0]
    assert not torch.equal(ours.noise, other.noise)


def test_processes_share_an_update(monkeypatch):
    """Two of them have the pairs, the times and the noise that one has."""
    whole = Pairs(table(), policy_of(), 0, 4, seed=0)(2).minibatches[0]
    parts = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "team", lambda rank=rank: Team(rank, 2))
        round_ = Pairs(table(), policy_of(), 0, 4, seed=0)(2)
        assert round_.counts == (4,)
        parts.append(round_.minibatches[0])
    for name in ("first", "second", "label", "noise", "share", "coin"):
        both = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(both, getattr(whole, name)), name


def test_offsets_are_scores_apart():
    scores = torch.arange(20, dtype=torch.float64).view(10, 2) ** 2
    data = table(scores=scores)
    batch = Pairs(data, policy_of(), 0, 10, 0, offset=0.5)(0).minibatches[0]
    rows = batch.first[:, 0].long()
    assert torch.equal(batch.margin, 0.5 * (scores[rows, 0] - scores[rows, 1]))
    with pytest.raises(UserError, match="score_0"):
        Pairs(table(), policy_of(), 0, 4, 0, offset=1.0)


def test_likes_are_dealt_out():
    @dataclass
    class Likeable(Table):
        @property
        def liked(self) -> Tensor:
            return self.labels

        def load(self, indices: Sequence[int], size: int = 0) -> Tensor:  # type: ignore[override]
            return super().load(indices)[0]

    plain = vars(table(10))
    batch = Likes(Likeable(**plain), policy_of(), 0, 4, 0)(1).minibatches[0]
    assert len(batch) == 4
    assert torch.equal(batch.liked, plain["labels"][batch.x0[:, 0].long()])
    assert torch.isfinite(loss_of(policy_of(), "kto")(batch).value)


def test_raters_who_disagree_make_a_prompt_disputed():
    """By prompt; few votes prove little; and where all disagree alike there is nothing to tell."""
    votes = torch.tensor([10.0, 10.0, 10.0, 10.0, 1.0, 1.0])
    labels = torch.tensor([1.0, 0.0, 0.5, 0.5, 1.0, 1.0])
    scales = vote_scales(table(6, votes=votes, labels=labels))
    assert torch.equal(scales[::2], scales[1::2])  # two pairs a prompt
    agreed, disputed, few = scales[::2].tolist()
    assert disputed < 0.01 < few < 1 < agreed
    assert agreed / few == pytest.approx(math.log(21) / math.log(3), rel=1e-5)
    assert float(scales.mean()) == pytest.approx(1, rel=1e-3)
    with pytest.raises(UserError, match="one rater"):
        vote_scales(table(6, votes=torch.ones(6), labels=torch.ones(6)))


def test_a_model_tells_what_it_is_unsure_of(monkeypatch):
    """c is larger where the model predicts better, 1 on average, and each prompt is seen once."""
    data, policy = table(10), policy_of()
    unsure = Unsure(data, policy, 0, seed=0)
    scales = unsure(list(range(10)))
    assert torch.equal(scales[::2], scales[1::2])
    assert float(scales.mean()) == pytest.approx(1, rel=1e-4)
    assert sorted(data.asked) == [0, 2, 4, 6, 8]
    assert policy.calls == 0
    again = Unsure(table(10), policy, 0, seed=0)([3, 7])
    assert torch.equal(again, scales[[3, 7]])


# ------------------------------------------------------------------------------ the guard


def test_unlearning_what_is_preferred_is_a_divergence():
    assert watches.diverged(3.0, 3, 3.0) is None
    alarm = watches.diverged(9.7, 3, 3.0)
    assert (alarm.update, alarm.watch, alarm.value) == (3, "divergence", 9.7)
    assert "9.7 times the base model's" in alarm.text and "raise objective.beta" in alarm.text


@pytest.mark.parametrize("preset", ["dpo", "kto", "dspo", "simpo"])
def test_errors_on_the_preferred_are_compared_with_the_pretrained_models(preset):
    """By the label: 1 the first, 0 the second, 1/2 both alike. A loss without a reference does not
    say the pretrained model's, and neither does one whose reference is another policy."""
    policy = policy_of()
    examples = given(preset, pairs_of(8, label=torch.tensor([1.0, 0, 0.5, 1, 1, 0, 0, 0.5])))
    metrics = loss_of(policy, preset)(examples).metrics
    for name, reference in (("error_chosen", False), ("error_pretrained", True)):
        first, second = (
            mse(policy, x0, examples, reference=reference)
            for x0 in (examples.first, examples.second)
        )
        error = (examples.label * first + (1 - examples.label) * second).mean()
        if name in metrics:
            assert float(metrics[name]) == pytest.approx(float(error.detach()))
    assert ("error_pretrained" in metrics) == (preset != "simpo")
    if preset == "dpo":
        outputs = loss_of(policy).likelihood.outputs((examples.first, examples.second), examples)
        acting = replace(examples, reference=outputs)
        assert "error_pretrained" not in loss_of(policy)(acting).metrics


def test_a_run_that_runs_away_is_stopped_and_goes_back(tmp_path, monkeypatch):
    """Colours are trivially told apart: a small beta and a high rate lose the pictures."""
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("cat\nhorse\n")
    changes = ["model.source=small_model:noising", "prompts=prompts.txt", "model.rank=2"]
    changes += ["reward=small_model:bright", f"data={judged.pairs_folder(tmp_path / 'pairs', 4)}"]
    changes += ["sizes.batch=16", "updates=80", "objective.beta=10", "objective.ties=drop"]
    changes += ["optimiser.learning_rate=0.03", "optimiser.decay=none", "evaluation.every=10"]
    changes += ["guard.diversity=0", "guard.pattern=1e9", "evaluation.steps=3"]
    changes += ["guard.error_ratio=1.2"]  # the answers of this network are bounded
    run = overrides.changed(recipes.dpo(), changes)
    run_folder.record(run, tmp_path / "run", threads=1)
    result = launch(run, tmp_path / "run", Silent())
    seen = [json.loads(line) for line in (tmp_path / "run" / "evaluations.jsonl").open()]
    guard = result["guard"]
    (alarm,) = guard["alarms"]
    assert alarm["watch"] == "divergence"
    assert guard["ended"] < 80 and guard["kept"] < guard["ended"]
    assert seen[-1]["guard"]["error_ratio"] == pytest.approx(alarm["value"], abs=1e-3)
    assert alarm["value"] > 1.2
