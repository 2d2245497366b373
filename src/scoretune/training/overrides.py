"""Changes to a configuration: `a.b=c` from a command line, checked against the tree.

An unknown key is an error that names the nearest key, and a value of the wrong kind one that names
its place.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scoretune.core import model_folder
from scoretune.core.config import NEW_NETWORKS, Consistency, Matching, Run
from scoretune.core.errors import UserError, unknown
from scoretune.core.resolve import is_function

FROM_DATA: dict[str, Any] = {
    "model.rank": 0,
    "optimiser.ema": 0.999,
    "evaluation.solver": "dpmpp_2m",  # 20 steps of DDIM lose a tenth of the data's spread
    "evaluation.every": 500,
    "checkpoints.every": 100,
}
"""What the recipes that learn from data do unless told otherwise with a network of one's own."""
ANY_PROCESS = {"objective.weight": "edm", "objective.times": "lognormal"}
"""Emphasis by ρ alone (arXiv 2206.00364 Table 1), hence the same under every process."""
FROM_NOTHING = {"model.process": "VP()", "model.prediction": "v_prediction", "updates": 5000}


def of_data(run: Run) -> bool:
    """Whether a run trains a network of one's own on data: a new one, or one trained that way."""
    return (
        isinstance(run.objective, Matching | Consistency)
        and own_prediction(run.model.source) is not None
    )


def own_prediction(source: str) -> str | None:
    """What a network of one's own predicts unless told otherwise; None for any other source."""
    if source in NEW_NETWORKS:
        return "v_prediction"
    home = model_folder.home(Path(source))
    return None if home is None else str(model_folder.described(home).get("prediction"))


def changed(run: Run, assignments: Iterable[str]) -> Run:
    """The run with `a.b=c` applied. Raises UserError for unknown keys and unfit values.

    A model.source that is a network of one's own brings the defaults of training on data; the
    changes go over them in any order.
    """
    tree = run.model_dump()
    wanted = [_parsed(assignment) for assignment in assignments]
    for path, value in [*_defaults(run, dict(wanted)), *wanted]:
        _assign(tree, path, value)
    return validated(tree)


def _defaults(run: Run, wanted: dict[str, Any]) -> list[tuple[str, Any]]:
    """What follows from the change of the model's source."""
    if "model.source" not in wanted:
        return []
    source = str(wanted.get("model.source", run.model.source))
    chosen = run.objective
    if is_function(source):
        return [("prompts", "none")]
    predicts = own_prediction(source)
    if predicts is None or of_data(run):
        return []
    if not isinstance(chosen, Matching | Consistency):
        return [("prompts", "none")]
    found = dict(FROM_DATA)
    if source in NEW_NETWORKS:
        found |= FROM_NOTHING
    if isinstance(chosen, Consistency):
        found["evaluation.steps"] = 1
    elif wanted.get("model.prediction", predicts) in ("v_prediction", "velocity"):
        found |= ANY_PROCESS  # the other two have variance 1 at all times
    return list(found.items())


def _parsed(assignment: str) -> tuple[str, Any]:
    path, equals, text = assignment.partition("=")
    if not equals:
        raise UserError(f"cannot read {assignment!r}: changes look like sampling.steps=20")
    return path, _literal(text)


def validated(tree: dict[str, Any]) -> Run:
    """A Run from plain data, with one line on the first thing that does not fit."""
    try:
        return Run.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in _KINDS)
        if first["type"] == "extra_forbidden":
            raise UserError(f"unknown key {where!r}: not a setting of this recipe") from None
        raise UserError(f"{where}: {first['msg']}, got {first['input']!r}") from None


_KINDS = (
    "matching",
    "consistency",
    "policy_gradient",
    "score_action",
    "direct",
    "adjoint",
    "energy",
)


def _assign(tree: dict[str, Any], path: str, value: Any) -> None:
    node, parts = tree, path.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            raise unknown("key", path, _keys(tree))
        if depth == len(parts) - 1:
            node[part] = value
        else:
            node = node[part]


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in tree.items():
        inner = _keys(value, f"{prefix}{key}.") if isinstance(value, dict) else []
        found += inner or [prefix + key]
    return found


def _literal(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
