"""Every method, from its recipe on: it learns in two dimensions, and runs on the shipped model.

Data are two blobs at (∓1, 0), the reward is −‖x − (1, ½)‖², and what counts is the mean reward of
samples of the deterministic solver before and after: −2.2 to begin with, 0 at best.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import judged
from scoretune import recipes
from scoretune.core.conditions import Condition
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.images import read_pictures
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.diffusion.named import kernel
from scoretune.diffusion.processes import VP, Process, RectifiedFlow
from scoretune.models import toy
from scoretune.models.lora import adapter_state
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.rollout import deterministic, prior
from scoretune.training import build as building
from scoretune.training import overrides
from scoretune.training.build import build
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.critic import CriticCredit, rule_named
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives import energy, matching, preference
from scoretune.training.objectives.method import Method
from scoretune.training.sources.differentiable import Differentiable
from slow_cases import quick_ones, slow

GOAL = torch.tensor([1.0, 0.5])
LAW = tilt.Mixture.of([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.1)
FROM_DATA = {  # changes for a small network, updates, goal
    "supervised": (["optimiser.learning_rate=0.003", "sizes.prompts=256"], 60, 0.8),
    "dxmi": (["optimiser.learning_rate=3e-4", "objective.learning_rate=0.01"], 60, 0.4),
}
KIN = {
    *("alignprop", "dance_grpo", "ddpo_sf", "flow_cps", "flow_grpo", "grpo", "mix_grpo"),
    *("mix_grpo_flash", "reinforce", "ipo", "simpo", "mallows", "dspo"),
}
"""Each has the source, the credit and the objective of another recipe, and other settings."""
FLOWS = {name for name, make in recipes.RECIPES.items() if make().model.source == "scenes-flow"}
JUDGED = {  # beta, and how far the reward must rise in 40 updates
    "dpo": (2, 1.2),
    "ipo": (2, 0.4),
    "kto": (2, 0.8),
    "simpo": (2, 1.2),
    "mallows": (2, 1.2),
    "rainbow": (2, 1.2),
    "dspo": (0.5, 0.6),
}
NO_REWARD = {"consistency", "guidance_distillation"}
REWARDED = sorted(set(recipes.RECIPES) - set(FROM_DATA) - set(JUDGED) - NO_REWARD)


@dataclass
class Featured(toy.Controlled):
    """Lets a critic see the state, as if it were made of features."""

    feature_size: int = 3

    def predict_with_features(self, x: Tensor, t: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.predict(x, t, tokens), torch.cat([x, t[:, None]], 1)


def distance(x: Tensor, prompts: Sequence[str]) -> Tensor:
    return -((x - GOAL) ** 2).sum(1)


def deaf(x: Tensor, prompts: Sequence[str]) -> Tensor:
    """The same reward, without a gradient."""
    return distance(x.detach(), prompts)


def score(policy: Policy, batch: int = 1000) -> tuple[float, float]:
    """The mean reward through the deterministic solver, and its standard error."""
    noise = prior(policy, batch, torch.Generator().manual_seed(9))
    times = grids.uniform(policy.backbone.process, 30)
    x0 = deterministic(policy, Condition.none(batch), times, noise)
    rewards = distance(x0, [])
    return float(rewards.mean()), float(rewards.std()) / batch**0.5


def made(run: Run, policy: Policy, reward: Any) -> Method:
    """The method of a run on a policy that is there."""
    prompts = Prompts(("go",), ("all",))
    return building.build_method(run, policy, building.Checked(prompts, prompts, reward, None))


def learn(
    recipe: str, *changes: str, updates: int, reward: Any = distance, seed: int = 0
) -> tuple[float, float, list[dict[str, float]], Policy]:
    """How far the mean reward rises, in units and in standard errors; and each update's numbers."""
    run = overrides.changed(recipes.named(recipe), [f"seed={seed}", *changes])
    differentiable = reward is distance
    building.check_settings(run, differentiable)
    torch.manual_seed(seed)
    control = toy.PerceptronControl(2, width=32)
    process: Process = RectifiedFlow() if recipe in FLOWS else VP()
    policy = Policy(Featured(toy.Mixture(process, LAW), control), kernel(run.sampling))
    method = made(run, policy, reward)
    source, trust = method.source, method.adaptive
    before, seen = score(policy), []
    if isinstance(getattr(source, "credit", None), CriticCredit):
        source(-1)  # as a run does, fit the critic first
    train(
        source,
        method.objective,
        torch.optim.Adam(policy.parameters(), lr=run.optimiser.learning_rate),
        TorchEngine(),
        updates=range(updates),
        region=method.region,
        hooks=[
            lambda update, metrics: seen.append(dict(metrics)),
            *([trust.adapt] if trust else []),
        ],
    )
    after = score(policy)
    assert all(math.isfinite(value) for line in seen for value in line.values())
    rise = after[0] - before[0]
    return rise, rise / math.hypot(after[1], before[1]), seen, policy


# ---------------------------------------------------------------------------- learning

# Updates, and how far the reward must rise from −2.2; a recipe of one optimiser step an update
# learns less in as many.
GOALS = {
    "reinforce": (15, 0.4),
    "ddpo": (8, 1.5),
    "ddpo_sf": (15, 0.4),
    "dpok": (8, 1.5),
    "grpo": (8, 1.5),
    "flow_grpo": (8, 1.0),
    "flow_grpo_fast": (8, 0.5),
    "flow_cps": (8, 1.0),
    "dance_grpo": (8, 0.5),
    "mix_grpo": (8, 0.5),
    "mix_grpo_flash": (8, 0.5),
    "draft": (40, 0.3),
    "alignprop": (40, 0.4),
    "refl": (40, 0.4),
    "adjoint_matching": (15, 0.5),
    "score_as_action": (8, 1.5),
    "online_dpo": (20, 0.4),
    "d3po": (8, 0.8),
    "spo": (8, 1.0),
}


def test_every_reward_recipe_has_a_goal():
    assert sorted(GOALS) == REWARDED


QUICK = ("ddpo", "score_as_action", "refl", "d3po", "spo")
"""One of each way of learning, in the quick tests too."""


@pytest.mark.parametrize(
    "recipe",
    [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in REWARDED],
)
def test_a_recipe_learns(recipe):
    updates, goal = GOALS[recipe]
    rise, errors, _, _ = learn(recipe, updates=updates)
    assert rise > goal
    assert errors > 5


@pytest.mark.slow
@pytest.mark.parametrize("recipe", FROM_DATA)
def test_a_recipe_learns_from_data(recipe, monkeypatch):
    """Never told the reward: data lie around its best place."""
    data = GOAL + 0.3 * torch.randn(500, 2)
    for module in (energy, matching):
        monkeypatch.setattr(module, "read_pictures", lambda *_: (data, ["go"] * len(data)))
    changes, updates, goal = FROM_DATA[recipe]
    rise, errors, _, _ = learn(recipe, *changes, updates=updates)
    assert rise > goal
    assert errors > 5


@dataclass
class Judged:
    """Pairs of points, of which the one with the larger reward is more likely preferred."""

    first: Tensor
    second: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        self.weights, self.scores = torch.ones(len(self)), None
        self.captions = ("go",) * len(self)

    def __len__(self) -> int:
        return len(self.labels)

    def load(self, rows: Sequence[int], size: int) -> tuple[Tensor, Tensor]:
        return self.first[rows], self.second[rows]

    def order(self, lap: int, seed: int) -> list[int]:
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(lap)).tolist()


def pairs_of_points(count: int = 2000) -> Judged:
    """Labels by the law of Bradley and Terry, of samples of the pretrained model."""
    generator = torch.Generator().manual_seed(3)
    first, second = LAW.draw(2 * count, generator).float().chunk(2)
    odds = distance(first, []) - distance(second, [])
    labels = (torch.rand(count, generator=generator) < torch.sigmoid(odds)).float()
    return Judged(first, second, labels)


@pytest.mark.parametrize("recipe", quick_ones(JUDGED, "dpo", "kto", "mallows", "dspo"))
def test_a_recipe_learns_from_pairs(recipe, monkeypatch):
    """Never told the reward, only which of two samples has more of it."""
    pairs = pairs_of_points()
    monkeypatch.setattr(preference, "check_table", lambda *_, **__: None)
    monkeypatch.setattr(preference, "read_pairs", lambda *_, **__: pairs)
    scale = torch.ones(len(pairs))
    monkeypatch.setattr(preference, "dispersion_of", lambda *_: lambda rows: scale[rows])
    beta, goal = JUDGED[recipe]
    changes = ["data=pairs", "optimiser.learning_rate=0.003", "sizes.batch=256"]
    rise, errors, _, _ = learn(recipe, *changes, f"objective.beta={beta}", updates=40)
    assert rise > goal
    assert errors > 5


FORMS = {
    "slope": ["objective.form=slope"],
    "rate": ["objective.form=rate"],
    "rate-fixed": ["objective.form=rate", "sampling.jitter=false"],
    "explicit": ["objective.form=explicit"],
    "ratio": ["objective.form=ratio"],
    "rate-heun": ["objective.form=rate", "sampling.solver=heun"],
    "rate-dpmpp": ["objective.form=rate", "sampling.solver=dpmpp_2m"],
    "rate-ddim": ["objective.form=rate", "sampling.solver=ddim"],
    "explicit-ddim": ["objective.form=explicit", "sampling.solver=ddim"],
    "auto-heun": ["sampling.solver=heun"],
    "trust-region": ["objective.form=slope", "objective.trust_region=0.02"],
    "ratio-trust-region": ["objective.form=ratio", "objective.trust_region=0.02"],
    "small": ["objective.critic.body=small"],
    "small-heun": ["objective.critic.body=small", "sampling.solver=heun"],
    "denoised": ["objective.critic.inputs=denoised", "objective.critic.skip=cos"],
    "less-noise": ["sampling.eta=0.7", "objective.form=slope"],
    "renoise": ["sampling.kernel=renoise", "sampling.eta=0.8"],
    "euler": ["sampling.kernel=euler_maruyama", "sampling.steps=20", "objective.form=ratio"],
}


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_score_as_action_learns_in_every_form(form):
    """Within six updates."""
    rise, errors, _, _ = learn("score_as_action", *FORMS[form], updates=6)
    assert rise > 0.6
    assert errors > 5


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("score_as_action", []),
        slow("score_as_action", ["objective.form=ratio"]),
        slow("ddpo", []),  # which asks for no gradient in any case
        slow("dpok", ["objective.trust_region=0.02"]),
        slow("grpo", ["sampling.jitter=true"]),
        slow("online_dpo", ["objective.reference=acting"]),
    ],
)
def test_a_reward_without_gradient_is_learned_too(recipe, changes):
    rise, errors, _, _ = learn(recipe, *changes, updates=8, reward=deaf)
    assert rise > 0.8
    assert errors > 5


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["null", "ddim"])
def test_a_rate_by_the_critic_alone(solver):
    """With critic.skip=none the slope is the network's own, and no reward is differentiated."""
    changes = ["objective.form=rate", "objective.critic.skip=none", f"sampling.solver={solver}"]
    changes += ["objective.critic.passes=10", "objective.critic.learning_rate=0.01"]
    rise, errors, _, _ = learn("score_as_action", *changes, updates=10, reward=deaf)
    assert rise > 0.3
    assert errors > 5


# ---------------------------------------------------------------------------- staying there

# As many optimiser steps at the rate that score as action takes.
ALIKE = ["sizes.prompts=32", "sizes.accumulate=1", "optimiser.learning_rate=0.003"]
ALONE = ["objective.critic.skip=none", "objective.critic.learning_rate=0.01"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        pytest.param("alignprop", ALIKE, id="alignprop"),
        pytest.param("adjoint_matching", ALIKE, id="adjoint_matching"),
        pytest.param("score_as_action", ["objective.form=ratio"], id="ratio"),
        pytest.param(
            "score_as_action",
            ["objective.form=rate", *ALONE, "objective.critic.passes=10"],
            id="rate-critic-alone",
        ),
        pytest.param("score_as_action", ["objective.form=rate"], id="rate"),
        pytest.param("score_as_action", ["objective.form=slope"], id="slope"),
    ],
)
def test_what_was_learned_is_kept(recipe, changes):
    """Thirty updates, long after the reward is as high as it gets."""
    rise, _, _, _ = learn(recipe, *changes, updates=30)
    assert rise > 1.3


# ---------------------------------------------------------------------------- what it is made of


def made_of(recipe: str, *changes: str) -> Any:
    """(objective, source, trust) on a Gaussian."""
    run = overrides.changed(recipes.named(recipe), changes)
    base = toy.Gaussian(VP(), dimension=2)
    policy = Policy(Featured(base, toy.HatControl(2)), kernel(run.sampling))
    method = made(run, policy, distance)
    return method.objective, method.source, method.adaptive


def test_the_parts_of_each_method():
    for recipe in ("reinforce", "ddpo", "ddpo_sf", "grpo"):
        objective, source, trust = made_of(recipe)
        assert isinstance(source.credit, GroupCredit)
        assert (objective.clip is None) == (recipe in ("reinforce", "ddpo_sf"))
        assert source.reference == ("chosen" if recipe == "grpo" else "none")
        assert trust is None
    assert made_of("dpok")[1].credit.rule == rule_named("outcome")
    for form in ("slope", "rate", "explicit", "ratio"):
        assert made_of("score_as_action", f"objective.form={form}")[1].credit.rule == rule_named(
            form, 0.3
        )
    assert made_of("score_as_action")[1].credit.rule == rule_named("rate")
    assert made_of("score_as_action", "sampling.solver=ddim")[1].credit.rule == rule_named("rate")
    assert isinstance(made_of("refl")[1].credit, RewardSlope)
    for recipe in ("draft", "alignprop"):
        source = made_of(recipe)[1]
        assert isinstance(source, Differentiable)
        assert (source.last, source.random) == ((3, False) if recipe == "draft" else (10, True))
    for recipe in ("draft", "alignprop", "adjoint_matching"):
        changes = [] if recipe == "adjoint_matching" else ["objective.graph=steps"]
        credit = made_of(recipe, *changes)[1].credit
        assert isinstance(credit, AdjointCredit)
        assert credit.lean == (recipe == "adjoint_matching")


def test_sampling_settings_reach_the_source():
    changes = ["sampling.solver=heun", "sampling.jitter=true", "objective.critic.body=backbone"]
    source = made_of("score_as_action", *changes)[1]
    # A slope's look at the pretrained network has features of its own.
    assert (source.solver, source.jitter, source.features) == ("heun", True, False)
    ratios = made_of("score_as_action", "objective.form=ratio", changes[-1])[1]
    assert (ratios.solver, ratios.features) == (None, True)
    changes = ["sampling.jitter=false", "objective.critic.body=small"]
    plain = made_of("score_as_action", *changes)[1]
    assert (plain.solver, plain.jitter, plain.features) == (None, False, False)


@pytest.mark.parametrize(
    ("recipe", "steps", "accumulate"),
    [
        ("draft", recipes.draft().objective.last, 0),
        ("refl", 1, 0),
        ("adjoint_matching", 10, 0),
        ("ddpo", 5, 1),
        ("reinforce", 10, 0),
    ],
)
def test_how_many_states_are_learned_from(recipe, steps, accumulate):
    """So many of each path's ten, and whether they make one step of the optimiser or several."""
    sizes = recipes.named(recipe).sizes
    changes = ["objective.graph=steps"] if recipe == "draft" else []
    batches = made_of(recipe, *changes)[1](0)
    states = sizes.prompts * sizes.group * steps
    assert sum(len(batch) for batch in batches.minibatches) == states
    assert batches.accumulate == accumulate


def test_alignprop_learns_from_a_random_number_of_steps():
    one_graph = made_of("alignprop")[1](0).minibatches
    first = torch.cat([batch.first for batch in one_graph])
    assert sum(len(batch) for batch in one_graph) == recipes.named("alignprop").sizes.prompts
    assert len(set(first.tolist())) > 2 and int(first.min()) >= 0 and int(first.max()) <= 9
    source = made_of("alignprop", "objective.graph=steps")[1]
    paths = recipes.named("alignprop").sizes.prompts
    rounds = [source(update) for update in range(3)]
    counts = [sum(len(batch) for batch in r.minibatches) for r in rounds]
    assert len(set(counts)) > 1
    assert all(paths < count < 10 * paths for count in counts)
    assert rounds[0].minibatches[0].path_steps == pytest.approx(counts[0] / paths)


# ---------------------------------------------------------------------------- trust regions


@pytest.mark.slow
def test_a_trust_region_holds_updates_back():
    changes = ["objective.form=slope"]
    free = learn("score_as_action", *changes, updates=8)[2]
    bound = learn("score_as_action", *changes, "objective.trust_region=0.001", updates=8)[2]
    moved = [sum(line["approx_kl"] for line in seen[2:]) for seen in (free, bound)]
    assert moved[1] < 0.6 * moved[0]


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("adjoint_matching", ["sampling.eta=0.5"], r"set sampling\.eta=1 \(it is 0\.5\)"),
        ("adjoint_matching", ["sampling.solver=ddim"], r"and sampling\.solver=null"),
        ("draft", ["sampling.eta=0", "objective.kl_weight=0.1"], r"set objective\.kl_weight=0"),
        ("score_as_action", ["sampling.eta=0"], r"sampling\.eta=0 has no noise"),
        ("ddpo", ["sampling.eta=0"], r"sampling\.eta=0 has no noise"),
        ("adjoint_matching", ["reward=compressibility"], "'compressibility' has no gradient"),
        ("draft", ["reward=compressibility"], "recipe 'draft' follows one"),
        ("alignprop", ["reward=compressibility"], "has no gradient"),
        ("refl", ["reward=incompressibility"], "'incompressibility' has no gradient"),
        *(
            ("score_as_action", ["reward=compressibility", f"objective.form={form}"], r"form=ratio")
            for form in ("slope", "rate", "explicit")
        ),
        (
            "score_as_action",
            ["reward=compressibility", "objective.form=slope", "objective.critic.skip=none"],
            "has no gradient",
        ),
        *(
            (recipe, ["sampling.solver=heun"], r"sampling\.solver=heun has no noise")
            for recipe in ("ddpo", "ddpo_sf", "dpok", "grpo", "reinforce", "draft", "refl")
        ),
        *(
            (
                "score_as_action",
                ["sampling.solver=ddim", f"objective.form={form}"],
                "use score_as_action with objective.form=rate or explicit",
            )
            for form in ("slope", "ratio")
        ),
        (
            "score_as_action",
            ["sampling.solver=ddim", "reward=compressibility"],
            "no likelihood ratios",
        ),
    ],
)
def test_settings_that_do_not_fit_are_refused_before_anything_is_loaded(
    recipe, changes, said, monkeypatch
):
    def loaded(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("scoretune.training.build.build_policy", loaded)
    with pytest.raises(UserError, match=said) as refused:
        build(overrides.changed(recipes.named(recipe), changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("recipe", "changes", "differentiable"),
    [
        ("supervised", [], False),
        ("score_as_action", [], False),
        ("score_as_action", ["sampling.solver=ddim"], True),
        ("score_as_action", ["objective.form=explicit", "sampling.solver=ddim"], True),
        ("score_as_action", ["objective.form=rate", "objective.critic.skip=none"], False),
        ("score_as_action", ["objective.form=explicit", "objective.critic.skip=none"], False),
        ("adjoint_matching", ["sampling.kernel=euler_maruyama"], True),
        ("draft", ["sampling.eta=0.5"], True),
        ("draft", ["sampling.eta=0"], True),
        ("alignprop", ["sampling.eta=0", "sampling.kernel=renoise"], True),
        ("refl", ["sampling.eta=0"], True),
        *((recipe, [], False) for recipe in ("reinforce", "ddpo", "ddpo_sf", "dpok", "grpo")),
    ],
)
def test_settings_that_fit(recipe, changes, differentiable):
    run = overrides.changed(recipes.named(recipe), changes)
    assert building.check_settings(run, differentiable) is None


def test_features_that_a_network_has_not_are_missed_early():
    run = overrides.changed(recipes.named("score_as_action"), ["objective.critic.body=backbone"])
    policy = Policy(toy.Controlled(toy.Gaussian(VP()), toy.HatControl(1)), kernel(run.sampling))
    with pytest.raises(UserError, match=r"set objective\.critic\.body=small"):
        made(run, policy, distance)


# ---------------------------------------------------------------------------- the shipped model


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        *(
            slow(name, []) if name in {*KIN, "rainbow", "d3po", "score_as_action"} else (name, [])
            for name in recipes.RECIPES
            if name not in ("consistency", "spo")
        ),
        ("spo", ["objective.threshold=0", "objective.skip=0"]),
        slow("score_as_action", ["objective.form=rate", "sampling.solver=dpmpp_2m"]),
        slow("score_as_action", ["objective.form=explicit", "sampling.jitter=true"]),
        ("score_as_action", ["objective.critic.body=backbone", "objective.trust_region=0.01"]),
    ],
)
def test_two_updates_of_a_pipeline(recipe, changes, small, tiny, monkeypatch, tmp_path):
    """Of the small one, but for flows and for what tells prompts apart by their pictures."""
    tiny = tiny if recipe in {*FLOWS, "mallows", "rainbow"} else small
    for module in (energy, matching):
        monkeypatch.setattr(module, "read_pictures", partial(read_pictures, count=60))
    sizes = [*tiny, "sizes.group=2"]
    if recipe in judged.RECIPES:
        sizes = [change for change in tiny if not change.startswith("sizes.")]
        sizes += ["sizes.batch=2", f"data={judged.pairs_folder(tmp_path)}"]
    parts = build(overrides.changed(recipes.named(recipe), [*sizes, *changes]))
    network = parts.policy.backbone.network
    before = {name: tensor.clone() for name, tensor in adapter_state(network).items()}
    seen = []
    train(
        parts.method.source,
        parts.method.objective,
        parts.optimiser,
        parts.engine,
        updates=range(2),
        hooks=[lambda update, metrics: seen.append(metrics)],
    )
    after = adapter_state(network)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in after.values())
    assert len(seen) == 2
    assert all(math.isfinite(value) for line in seen for value in line.values())
    assert any(line["grad_norm"] > 0 for line in seen)  # two equal rewards teach nothing
