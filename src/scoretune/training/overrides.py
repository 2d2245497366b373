"""Changes to a configuration: `a.b=c` from a command line, checked against the tree.

An unknown key is an error that names the nearest key, a value of the wrong kind one that names
its place, and a setting that the run never reads one that says what would read it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from scoretune.core import model_folder
from scoretune.core.config import (
    NEW_NETWORKS,
    Checked,
    Consistency,
    Guidance,
    Matching,
    Run,
    leaves,
)
from scoretune.core.config.families import DEFAULTS, OURS, Defaults
from scoretune.core.errors import UserError, unknown
from scoretune.core.resolve import is_function

Settings = TypeVar("Settings", bound=BaseModel)

FROM_DATA: dict[str, Any] = {
    "model.rank": 0,
    "optimiser.ema": 0.999,
    "evaluation.solver": "dpmpp_2m",  # 20 steps of DDIM lose a tenth of the data's spread
    "evaluation.every": 500,
    "checkpoints.every": 100,
}
"""What the recipes that learn from data do unless told otherwise with a network of one's own."""
ANY_PROCESS = {"objective.weight": "edm", "objective.times": "lognormal"}
"""Emphasis by ρ alone (arXiv 2206.00364 Table 1), hence the same under every process. The published
constants are for data of deviation ½ and ours have 1, so that it lies on half of the noise it did,
measured by the data."""
MAGNITUDES = (
    *("optimiser.learning_rate", "model.guidance", "objective.scale"),
    *("sampling.steps", "evaluation.steps"),
)
"""Settings of which ten times less or more than fits a family is worth a word."""
FROM_NOTHING = {"model.process": "VP()", "model.prediction": "v_prediction", "updates": 5000}


def of_data(run: Run) -> bool:
    """Whether a run trains a network of one's own on data: a new one, or one trained that way."""
    return (
        isinstance(run.objective, Matching | Consistency)
        and own_prediction(run.model.source) is not None
    )


def unread(run: Run) -> dict[str, str]:
    """Every setting that a run never reads, by its path, and with what it would."""
    return run.unread(run, of_data(run))


def own_prediction(source: str) -> str | None:
    """What a network of one's own predicts unless told otherwise; None for any other source."""
    if source in NEW_NETWORKS:
        return "v_prediction"
    home = model_folder.home(Path(source))
    return None if home is None else str(model_folder.described(home).get("prediction"))


def changed(run: Run, assignments: Iterable[str]) -> Run:
    """The run with `a.b=c` applied. Raises UserError for unknown keys, unfit values, and values of
    settings that the run then never reads.

    A model.source that is a network of one's own brings the defaults of training on data; the
    changes go over them in any order.
    """
    return assigned(run, [parsed(assignment) for assignment in assignments])


def assigned(run: Run, changes: Sequence[tuple[str, Any]]) -> Run:
    """`changed` by pairs of a path and a value."""
    _check_recipe(run, dict(changes).get("recipe", run.recipe))
    tree = run.model_dump()
    for path, value in following(run, dict(changes)):
        _assign(tree, path, value)
    before = dict(leaves(tree))
    for path, value in changes:
        _assign(tree, path, value)
    new = validated(tree)
    _refuse_inert(new, before, [path for path, _ in changes])
    return new


def _check_recipe(run: Run, recipe: Any) -> None:
    """Refuse another name of what stays the same method."""
    if recipe != run.recipe:
        raise UserError(
            f"recipe={recipe} would only rename {run.recipe}: name the recipe first, as in "
            f"scoretune train {recipe}"
        )


def _refuse_inert(run: Run, before: Mapping[str, Any], paths: Sequence[str]) -> None:
    """Refuse a change of what the run never reads: ignored, it would pass for tried."""
    inert = unread(run)
    for name, value in leaves(run.model_dump()):
        touched = any(name == path or name.startswith(f"{path}.") for path in paths)
        use = inert.get(name, Checked())
        if touched and not isinstance(use, Checked) and value != before.get(name, value):
            raise UserError(
                f"{name}={_text(value)} is of no use here: it is for {use}; leave it out, or "
                "change that"
            )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def following(run: Run, changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What follows from the change of the model's source."""
    if "model.source" not in changes:
        return []
    source, objective = str(changes["model.source"]), run.objective
    if is_function(source):
        return [("prompts", "none")]
    predicts = own_prediction(source)
    if predicts is None:
        return _of_family(run, changes)
    if of_data(run):
        return []
    if not isinstance(objective, Matching | Consistency):
        return [("prompts", "none")]
    defaults = dict(FROM_DATA)
    if source in NEW_NETWORKS:
        defaults |= FROM_NOTHING
    if isinstance(objective, Consistency):
        defaults["evaluation.steps"] = 1
    elif changes.get("model.prediction", predicts) in ("v_prediction", "velocity"):
        defaults |= ANY_PROCESS  # the other two have variance 1 at all times
    return list(defaults.items())


def family_of(run: Run, changes: Mapping[str, Any]) -> Defaults | None:
    """What fits the family of the pretrained model that these changes name, where it is known."""
    if "model.source" not in changes:
        return None
    revision = changes.get("model.revision", run.model.revision)
    kind = model_folder.pipeline_class(str(changes["model.source"]), revision)
    return None if kind is None else DEFAULTS.get(kind)


def _of_family(run: Run, changes: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Its settings, but for what the recipe says of a path and a round."""
    defaults = family_of(run, changes)
    if defaults is None:
        return []
    settings = _fitting(run, defaults, full=changes.get("model.rank", run.model.rank) == 0)
    plain = dict(leaves(run.model_dump()))
    kept = {path for path, value in OURS.items() if plain[path] != value}
    return [(path, value) for path, value in settings.items() if path not in kept]


def _fitting(run: Run, defaults: Defaults, *, full: bool) -> dict[str, Any]:
    """What fits a family, as settings of this recipe; `full`: every weight is trained."""
    settings = dict(defaults.settings(full))
    if isinstance(run.objective, Guidance):  # what samples are drawn with is what is learned
        settings["objective.scale"] = settings.pop("model.guidance") or run.objective.scale
    return settings


def unread_hub_id(source: str, revision: str | None = None) -> str:
    """A line on a hub id whose family nothing tells here; empty for all else."""
    if model_folder.is_hub_id(source) and not model_folder.is_described(source, revision):
        return (
            f"{source} is not in the cache and the hub did not answer: its family is not known, so "
            "that all settings are the recipe's, which are for a miniature"
        )
    return ""


def unusual(run: Run) -> list[str]:
    """A line for each setting that is an order of magnitude from what fits the model's family."""
    model = {"model.source": run.model.source, "model.revision": run.model.revision}
    defaults, values = family_of(run, model), dict(leaves(run.model_dump()))
    if defaults is None:
        unread_line = unread_hub_id(run.model.source, run.model.revision)
        return [unread_line] if unread_line else []
    return [
        f"{path}={values[path]:g} is {values[path] / fitting:.2g} times the {fitting:g} that fits "
        f"this family ({defaults.source})"
        for path, fitting in _fitting(run, defaults, full=run.model.rank == 0).items()
        if path in MAGNITUDES and fitting and values[path]
        if not 0.1 < values[path] / fitting < 10
    ]


def parsed(assignment: str) -> tuple[str, Any]:
    """The path and the value of `a.b=c`."""
    path, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"cannot read {assignment!r}: changes look like sampling.steps=20")
    return path, _literal(text)


def words(kind: type[BaseModel], assignments: Iterable[str]) -> dict[str, Any]:
    """The values of `a=b` words for a flat tree of settings. Raises UserError for unknown ones."""
    given = dict(parsed(assignment) for assignment in assignments)
    for name in given:
        if name not in kind.model_fields:
            raise unknown("key", name, kind.model_fields)
    return given


def validated(tree: dict[str, Any]) -> Run:
    """A Run from plain data, with one line on the first thing that does not fit."""
    return fitted(Run, tree)


def fitted(kind: type[Settings], tree: dict[str, Any]) -> Settings:
    """Settings from plain data, with one line on the first thing that does not fit."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(_path(first["loc"]))
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown key {where!r}: not a setting of this recipe") from None
        raise UserError(f"{where}: {first['msg']}, got {first['input']!r}") from None


def _path(place: Sequence[str | int]) -> list[str]:
    """Where an error is, without the objective's kind, which pydantic puts behind `objective`."""
    names = [str(part) for part in place]
    if names[:1] == ["objective"] and names[1:2] and names[1] in _KINDS:
        del names[1]
    return names


_KINDS = tuple(
    f"{kind.model_fields['kind'].default}"
    for kind in get_args(Run.model_fields["objective"].annotation)
)


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    node, parts = tree, path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            raise unknown("key", path, [name for name, _ in leaves(tree)])
        if depth == len(parts) - 1:
            node[part] = value
        else:
            node = node[part]


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
