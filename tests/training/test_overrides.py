"""A change of what a run never reads is refused by name; any other is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel, model_validator

from scoretune import recipes
from scoretune.core import config
from scoretune.core.config import Checked, Run, Strict
from scoretune.core.errors import UserError
from scoretune.training.overrides import changed, fitted, unread, validated
from slow_cases import quick_ones

BASES = {
    **{name: [] for name in recipes.RECIPES},
    "supervised unet": ["model.source=unet"],
    "consistency mlp": ["model.source=mlp"],
    "ddpo running": ["objective.baseline=running"],
    "mix_grpo frozen": ["sampling.window.order=frozen"],
    "score_as_action explicit": ["objective.form=explicit"],
    "score_as_action ratio": ["objective.form=ratio"],
    "score_as_action rate": ["objective.form=rate", "sampling.solver=heun"],
}


def settings(section: Strict, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Each setting of a tree with its type and its value."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Strict):
            yield from settings(value, f"{path}{name}.")
        elif path + name not in ("objective.kind", "recipe"):
            yield path + name, field.annotation, value


def others(annotation: Any, value: Any) -> list[Any]:
    """Values that a setting may have besides its own, the first of which is tried first."""
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    if get_origin(annotation) is Literal:
        return [word for word in kinds if word != value]
    if type(None) in get_args(annotation):
        return [other for kind in kinds for other in others(kind, value)]
    if annotation is bool:
        return [not value]
    if get_origin(annotation) is tuple or get_origin(annotation) is Annotated:
        return [[2], ["a"], [0.5]]
    if annotation is str:
        return ["VE()" if value is None else f"{value}-2"]
    return [(value or 0) + 1, (value or 0) + 4] if annotation is int else [(value or 0) / 2 + 0.25]


QUICK = ("ddpo", "score_as_action", "mix_grpo frozen", "online_dpo", "dpo", "supervised unet")


@pytest.mark.parametrize("name", quick_ones(BASES, *QUICK))
def test_every_setting_is_refused_where_it_is_never_read_and_only_there(name):
    run = changed(recipes.named(name.split()[0]), BASES[name])
    tried = 0
    for path, annotation, value in settings(run):
        for other in others(annotation, value):
            new = with_setting(run, path, other)
            if new is None or path == "model.source":
                continue
            text = other if isinstance(other, str) else str(other).replace("'", '"')
            text = {"True": "true", "False": "false"}.get(text, text)
            use = unread(new).get(path, Checked())
            if not isinstance(use, Checked):  # else read, or refused by another check
                with pytest.raises(UserError, match=f"{path}=.* is of no use here: it is for "):
                    changed(run, [f"{path}={text}"])
            else:
                assert changed(run, [f"{path}={text}"]) == new
            tried += 1
    assert tried > 80


def with_setting(run: Run, path: str, value: Any) -> Run | None:
    """The run with another value of one setting, if it may have that."""
    tree = run.model_dump()
    *above, last = path.split(".")
    node = tree
    for part in above:
        node = node[part]
    node[last] = value
    try:
        return validated(tree)
    except UserError:
        return None


@pytest.mark.parametrize(
    ("recipe", "changes", "name"),
    [
        ("score_as_action", ["objective.form=rate", "objective.clip=0.1"], "objective.clip"),
        ("score_as_action", ["objective.exploration=0.1"], "objective.exploration"),
        ("score_as_action", ["sampling.solver=heun", "sampling.eta=0.5"], "sampling.eta"),
        ("score_as_action", ["sampling.shared_noise=true"], "sampling.shared_noise"),
        ("draft", ["sizes.share=0.5"], "sizes.share"),
        ("refl", ["objective.random=true"], "objective.random"),
        ("ddpo", ["objective.buffer=8"], "objective.buffer"),
        ("ddpo", ["objective.min_count=3"], "objective.min_count"),
        ("dpok", ["objective.shared_scale=false"], "objective.shared_scale"),
        ("ddpo", ["objective.critic.width=8"], "objective.critic.width"),
        ("dpok", ["objective.critic.estimate=policy"], "objective.critic.estimate"),
        ("ddpo", ["objective.combine=advantages"], "objective.combine"),
        ("ddpo", ["sampling.eta_end=0"], "sampling.eta_end"),
        ("flow_grpo", ["sampling.shift=2"], "sampling.shift"),
        ("ddpo", ["sampling.window.every=2"], "sampling.window.every"),
        ("ddpo", ['sampling.window={"every": 2}'], "sampling.window.every"),
        ("ddpo", ["evaluation.gap.etas=[0]"], "evaluation.gap.etas"),
        ("ddpo", ["guard.patience=2", "guard.action=off"], "guard.patience"),
        ("ddpo", ["objective.surrogate=score_function"], "objective.surrogate"),
        ("reinforce", ["sizes.accumulate=1"], "sizes.accumulate"),
        ("reinforce", ["objective.clip=0.1"], "objective.clip"),
        ("ddpo", ["model.rank=0", 'model.targets=["to_q"]'], "model.targets"),
        ("ddpo", ["prompts=mine.txt", "prompts_per_task=5"], "prompts_per_task"),
        ("ddpo", ["data=folder"], "data"),
        ("ddpo", ["tracking.project=mine"], "tracking.project"),
        ("supervised", ["sampling.jitter=true"], "sampling.jitter"),
        ("supervised", ["sampling.window.size=2"], "sampling.window.size"),
        ("supervised", ["model.source=unet", "sampling.steps=7"], "sampling.steps"),
        ("draft", ["sampling.window.every=2"], "sampling.window.every"),
        ("supervised", ["sizes.batch=8", "sizes.group=2"], "sizes.group"),
        ("supervised", ["model.source=unet", "reward=jpeg"], "reward"),
        ("supervised", ["model.source=unet", "guard.action=stop"], "guard.action"),
        ("consistency", ["model.source=unet", "objective.decay=0.9"], "objective.decay"),
    ],
)
def test_settings_that_people_set_in_vain(recipe, changes, name):
    with pytest.raises(UserError, match=rf"^{name}=.* is of no use here: it is for .*; leave it"):
        changed(recipes.named(recipe), changes)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("score_as_action", ["objective.clip=0.1"]),  # form=auto may come to a ratio
        ("ddpo", ["objective.surrogate=score_function", "sizes.accumulate=0"]),
        ("ddpo", ["objective.buffer=32"]),  # as the recipe has it
        ("mix_grpo", ["sampling.window.size=0", "sizes.group=4"]),  # leaves the recipe's `every`
        ("supervised", ["model.source=unet", "model.rank=0"]),  # as such a network has it
        ("dance_grpo", ["sizes.group=1"]),
    ],
)
def test_settings_that_a_run_reads_or_that_nobody_set(recipe, changes):
    assert isinstance(changed(recipes.named(recipe), changes), Run)


def test_every_setting_says_what_it_is():
    for section in Strict.__subclasses__():
        for name, field in section.model_fields.items():
            nested = isinstance(field.default, Strict) or name in ("kind", "objective")
            assert nested or field.description, f"{section.__name__}.{name}"
    assert config.Run.__doc__


def test_an_error_of_a_whole_tree_is_one_line_too():
    class Pair(BaseModel):
        low: int
        high: int

        @model_validator(mode="after")
        def ordered(self) -> Pair:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    with pytest.raises(UserError, match="low is above high"):
        fitted(Pair, {"low": 2, "high": 1})
