"""A setting that is accepted does something: with another value the run learns another thing.

Every setting of learning × every recipe on rewards: one is changed to another valid value, two
tiny updates are trained, and the weights and the metrics must differ, or the value be refused. One
recipe is walked always, the others among the slow tests.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import annotated_types
import pytest
import torch

import judged
from scoretune import recipes
from scoretune.core.config import Run, Strict
from scoretune.core.errors import UserError
from scoretune.training import build, loop
from scoretune.training.hooks import decay
from scoretune.training.overrides import changed

TINY = [
    "updates=2",
    "sizes.prompts=2",
    "sizes.group=2",
    "sizes.minibatch=3",
    "sampling.steps=5",
    "reward=small_model:bright",
    "model.rank=2",
    "guard.action=off",
]
MOVING = ["sampling.window.every=1"]
VOTED = ["objective.ranking.label=votes", "objective.ranking.raters=2"]  # so that there are ties
MANY = ["sizes.prompts=3", "sizes.group=3", "objective.ranking.pairing=all"]
BASES: dict[str, list[str]] = {
    **{name: [] for name in recipes.RECIPES if name not in ("supervised", "consistency")},
    "mix_grpo": MOVING,
    "mix_grpo_flash": MOVING,
    "ddpo running": [
        "updates=4",
        "objective.baseline=running",
        "objective.min_count=2",
        "objective.buffer=4",
    ],
    "online_dpo": [*VOTED, *MANY],
    "online_dpo acting": [
        *(*VOTED, *MANY, "objective.reference=acting", "objective.preset=rainbow"),
        *("objective.dispersion=samples", "objective.ranking.temperature=0.01"),
    ],
    "d3po": [*VOTED, *MANY, "objective.clip=0.1"],
    "spo": [*VOTED, "objective.threshold=0.01", "objective.ranking.temperature=0.003"],
    "score_as_action explicit": ["objective.form=explicit"],
    "score_as_action ratio": ["objective.form=ratio"],
    "score_as_action slope": ["objective.form=slope"],
    "dpo model": ["objective.dispersion=model", "objective.dropout=0.4"],
    "dpo nats": ["objective.beta_unit=nats"],
    "kto likes": ["objective.likes=true"],
    "score_as_action heun": [
        *("objective.form=rate", "sampling.solver=heun"),
        "objective.trust_region=1e-4",  # so that an early stop happens
    ],
}
ALWAYS = ("ddpo",)
LEARNING = ("objective.", "sampling.", "sizes.", "optimiser.", "seed", "model.rank", "model.guid")
EVALUATED = ("sampling.", "model.guid")
"""What recipes on data read where they are evaluated alone."""
SAME = {  # what `auto` comes to with this model and reward
    ("sampling.grid", "auto"): ("karras", "uniform"),
    ("objective.critic.body", "auto"): ("small",),
    ("objective.graph", "auto"): ("kept",),
    ("objective.form", "auto"): ("rate",),
    ("objective.form", "rate"): ("auto",),
}
ONLY_MACHINE = ("optimiser.kind", "objective.graph")
"""How it is computed, not what: `fused` is the same up to rounding."""
LATER = ("sampling.window.decay", "sampling.window.every", "sampling.window.order")
"""What moves a window moves it after more updates than these; `diffusion.windows` has its tests."""


@pytest.fixture(autouse=True)
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("cat\nhorse\nowls\nox\n")
    judged.pairs_folder(tmp_path / "pairs", side=4)


def settings(section: Strict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Strict):
            yield from settings(value, f"{path}{name}.")
        elif path + name != "objective.kind":
            yield path + name, field, value


def others(field: Any, value: Any) -> list[Any]:
    """Valid values besides the present one: all words, or numbers of several sizes."""
    kinds = (field.annotation, *get_args(field.annotation))
    for kind in kinds:
        if get_origin(kind) is Literal:
            return [word for word in get_args(kind) if word != value]
        if kind is bool:
            return [not value]
        if kind in (int, float):
            low = next((getattr(m, "ge", getattr(m, "gt", 0)) for m in field.metadata), 0)
            limits = [m.le for m in field.metadata if isinstance(m, annotated_types.Le)]
            some = [1, 2, 3, 4, 8, low] if kind is int else [0.5, 1e-3, 1e-6, 2.0, 0.3, low]
            return [n for n in dict.fromkeys(some) if (n != value and low <= n <= min([1, *limits]))
                    or (n != value and limits and low <= n <= limits[0])]  # fmt: skip
    return []


def learned(run: Run) -> str:
    """The weights and the metrics after a run's updates."""
    torch.manual_seed(run.seed)
    parts = build.build(run, build.check(run))
    method, log = parts.method, []
    for lap in range(method.warm_up):
        method.source(-1 - lap)
    hooks = [
        lambda update, metrics: log.append(dict(metrics)),
        *decay(run.optimiser, parts.optimiser, first=0, last=run.updates),
        *([method.adaptive.adapt] if method.adaptive else []),
    ]
    loop.train(
        method.source,
        method.objective,
        parts.optimiser,
        parts.engine,
        updates=range(run.updates),
        clip_norm=run.optimiser.clip_norm,
        region=method.region,
        hooks=hooks,
    )
    weights = [parameter.detach().flatten().tolist() for parameter in parts.policy.parameters()]
    return json.dumps([weights, log], sort_keys=True)


def of(name: str) -> Run:
    recipe = recipes.named(name.split()[0])
    source = "flow" if recipe.model.source == "scenes-flow" else "noising"
    first = [f"model.source=small_model:{source}", "prompts=prompts.txt", *TINY]
    if recipe.recipe in judged.RECIPES:
        of_paths = ("sizes.", "sampling.")
        first = [change for change in first if not change.startswith(of_paths)]
        first += ["sizes.batch=3", "data=pairs"]
    return changed(recipe, [*first, *BASES[name]])


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in ALWAYS else [pytest.mark.slow]) for n in BASES],
)
def test_every_setting_that_is_accepted_changes_what_is_learned(name, case):
    run = of(name)
    base, tried = learned(run), 0
    assert learned(run) == base
    for path, field, value in settings(run):
        if not path.startswith(LEARNING) or path in ONLY_MACHINE + LATER:
            continue
        if run.objective.on_data and path.startswith(EVALUATED):
            continue
        same, differs = [], False
        kinds = (field.annotation, *get_args(field.annotation))
        words = any(get_origin(kind) is Literal for kind in kinds)
        for other in others(field, value):
            if other in SAME.get((path, value), ()):
                continue
            try:
                outcome = learned(changed(run, [f"{path}={json.dumps(other)}"]))
            except UserError:
                continue  # refused
            tried += 1
            if outcome == base:
                same.append(other)
            else:
                differs = True
            if differs and not words:
                break
        with case(path, value, same):
            assert not same or (differs and not words), "accepted, and nothing changes"
    assert tried > 15


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("ddpo", ["sampling.kernel=euler_maruyama", "sampling.eta=3"], "away from plain data"),
        (
            "grpo",
            ["sampling.noise=ramp", "sampling.eta_end=0"],
            "sampling.eta_end=0 leaves the last steps without noise",
        ),
        ("score_as_action", ["objective.clip=0.1"], "objective.clip=0.1 is of no use here: the"),
        (
            "score_as_action",
            ["objective.critic.gae_lambda=0.5"],
            "gae_lambda=0.5 is of no use here: the reward has a gradient",
        ),
        (
            "score_as_action",
            ["objective.critic.estimate=policy", "reward=small_model:without_gradient"],
            "estimate=policy is of no use here: the reward has no gradient",
        ),
        ("ddpo", ["objective.combine=advantages"], "objective.combine=.* is of no use here"),
        (
            "flow_grpo_fast",
            ["sizes.share=0.5"],
            "sizes.share=0.5 is of no use here: it is for more",
        ),
        ("ddpo", ["model.precision=bf16"], "leave out model.prediction, model.shape and model.pre"),
    ],
)
def test_what_would_do_something_else_is_refused(recipe, changes, said):
    with pytest.raises(UserError, match=said):
        learned(changed(of(recipe), ["sampling.steps=10", *changes]))


def test_a_sampler_that_is_only_coarse_is_not():
    assert learned(changed(of("draft"), ["objective.kl_weight=0.5"]))  # at every step before it
    assert learned(changed(of("ddpo"), ["sampling.kernel=euler_maruyama"]))
    assert learned(changed(of("grpo"), ["sampling.noise=ramp", "sampling.eta_end=0.1"]))
