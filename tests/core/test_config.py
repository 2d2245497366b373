"""Every number among the settings is bounded, and what it counts is never made to count it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, get_args

import annotated_types
import pytest

from scoretune import recipes
from scoretune.commands.plan import counts, evaluations
from scoretune.core import config
from scoretune.core.config import Run, Strict
from scoretune.core.errors import LONGEST, UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion.processes import VP
from scoretune.training.overrides import changed, validated

RECIPES = ("supervised", "consistency", "dpok", "mix_grpo", "refl", "adjoint_matching", "dxmi")
BASES = (*RECIPES, "dpo", "score_as_action")  # between them they have every section
HELD_OUT = Prompts(("a", "b"), ("all", "all"))


def numeric(section: Strict, path: str = "") -> Iterator[tuple[str, str, type, Any]]:
    """Each setting that is a number: its section and path, its kind, its bounds."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Strict):
            yield from numeric(value, f"{path}{name}.")
            continue
        kinds = {field.annotation, *get_args(field.annotation)}
        if str in kinds:  # model.size, which a function of its own reads
            continue
        for kind in (int, float):
            if kind in kinds:
                yield type(section).__name__, path + name, kind, field.metadata


ALL = {
    (section, path): (base, kind, metadata)
    for base in BASES
    for section, path, kind, metadata in numeric(recipes.named(base))
}


def bound(metadata: list[Any]) -> float | None:
    upper = [m.le for m in metadata if isinstance(m, annotated_types.Le)]
    return upper[0] if upper else None


def test_the_walk_finds_the_numbers():
    assert len(ALL) > 70
    assert {("Sizes", "sizes.prompts"), ("Guard", "guard.chain_kl")} < set(ALL)


@pytest.mark.parametrize(("section", "path"), ALL)
def test_every_number_has_an_upper_bound_and_is_finite(section, path):
    base, _, metadata = ALL[section, path]
    limits = (annotated_types.Le, annotated_types.Lt)
    assert any(isinstance(one, limits) for one in metadata), f"{path} has no upper bound"
    lowest = (annotated_types.Ge, annotated_types.Gt)
    assert any(isinstance(one, lowest) for one in metadata), f"{path} has no lower bound"
    for huge in ("1e300", "1" + "0" * 18, "-1e300", "NaN", "Infinity", "true", "1" + "0" * 5000):
        with pytest.raises(UserError) as caught:
            changed(recipes.named(base), [f"{path}={huge}"])
        line = str(caught.value)
        assert line.startswith(path) and len(line) <= LONGEST and "\n" not in line


@pytest.mark.parametrize(("section", "path"), ALL)
def test_the_work_of_a_run_at_the_bound_is_counted_not_done(section, path):
    base, kind, metadata = ALL[section, path]
    most = bound(metadata)
    if most is None:
        return
    run = at(recipes.named(base), path, kind(most))
    facts = counts.Facts(VP(), 1, True, True)
    try:
        calls = counts.training(run, facts).total + counts.warm_up(run, facts).total
        calls += evaluations.evaluating(run, facts, HELD_OUT) + evaluations.drawn(run, HELD_OUT)
        calls += evaluations.encodings(run, facts, HELD_OUT, HELD_OUT)
    except UserError:
        return  # one line, as any of its kind
    assert math.isfinite(calls) and calls > 0


def at(run: Run, path: str, value: float) -> Run:
    """The run with another value, whether or not it reads it; of two that multiply one is 1."""
    tree = run.model_dump()
    tree["sizes"] |= {"group": 1} if path == "sizes.prompts" else {"prompts": 1}
    node = tree
    *above, last = path.split(".")
    for part in above:
        node = node[part]
    node[last] = value
    return validated(tree)


def test_samples_are_bounded_by_their_product():
    with pytest.raises(UserError, match="prompts × group is 1098907648000 samples"):
        changed(recipes.named("ddpo"), ["sizes.prompts=1048000", "sizes.group=1048576"])


@pytest.mark.parametrize("text", ["a\\u0000b", "a\\u001b[2J", "a\\ud83d", "x" * 5000])
@pytest.mark.parametrize("path", ["reward", "prompts", "model.source", "evaluation.prompts"])
def test_a_text_that_nothing_can_show_is_refused(path, text):
    with pytest.raises(UserError, match=f"^{path}: Input should be at most 4096 characters"):
        changed(recipes.named("ddpo"), [f'{path}="{text}"'])


def test_numbers_within_tuples_are_bounded_too():
    for change in ("evaluation.gap.steps=[1e12]", "evaluation.gap.etas=[1e300]", "model.shape=[0]"):
        with pytest.raises(UserError, match=change.partition("=")[0]):
            changed(recipes.named("ddpo"), [change])
    assert config.STEPS == 10_000
