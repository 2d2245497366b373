"""docs/settings.md from the tree of settings.

python -m scoretune.commands.settings_page > docs/settings.md
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic.fields import FieldInfo

from scoretune import recipes
from scoretune.core.config import Run, Strict
from scoretune.training.overrides import changed, unread
from scoretune.training.settings_file import choices, scalar

TOP = """\
# Settings

Every setting of a run, as `scoretune train RECIPE a.b=c` takes it. Written by
`python -m scoretune.commands.settings_page > docs/settings.md` from the tree in
`scoretune.core.config`; a test holds it up to date. `scoretune show RECIPE --yaml > mine.yaml`
writes those that matter to one recipe into a file, `scoretune train mine.yaml` reads it.

*Read by* says which of the recipes that have a setting read it as they stand; where it says *with*,
they do once what follows is set. A change of a setting that a run would never read is refused.
*score networks* are `supervised` and `consistency` with `model.source=unet`, `dit`, `mlp` or the
folder of such a run.
"""
NETWORKS = "score networks"
HEAD = "| setting | type | default | what it is | read by |\n|---|---|---|---|---|"


def page() -> str:
    """The whole page."""
    runs: dict[str, list[Run]] = {name: [recipe()] for name, recipe in recipes.RECIPES.items()}
    del runs["consistency"]  # it is for score networks alone
    networks = (recipes.supervised(), recipes.consistency())
    runs[NETWORKS] = [changed(run, ["model.source=unet"]) for run in networks]
    inert = {name: [(run, unread(run)) for run in every] for name, every in runs.items()}
    return "\n".join(dict.fromkeys([TOP, *_section(Run, "", inert)])) + "\n"


Inert = dict[str, list[tuple[Run, dict[str, str]]]]
"""Of each recipe its runs, and the settings that they never read."""


def _section(kind: type[Strict], path: str, inert: Inert) -> Iterator[str]:
    sections, rows = [], []
    for name, field in kind.model_fields.items():
        inner = [part for part in _parts(field.annotation) if issubclass(part, Strict)]
        if inner:
            sections += [(part, f"{path}{name}.") for part in inner]
        elif name != "recipe" and len(choices(field.annotation)) != 1:  # a tag is no choice
            rows.append(_row(kind, f"{path}{name}", field, inert))
    heading = f"`{path.rstrip('.')}`" if path else "The run"
    if "kind" in kind.model_fields and issubclass(kind, _objectives()):
        heading += f" of kind {kind.model_fields['kind'].default}"
    lines = [f"## {heading}", "", " ".join((kind.__doc__ or "").split()), "", HEAD, *rows, ""]
    yield "\n".join(lines)
    for part, below in sections:
        yield from _section(part, below, inert)


def _row(kind: type[Strict], path: str, field: FieldInfo, inert: Inert) -> str:
    cells = (
        f"`{path}`",
        _type(field),
        f"`{scalar(field.default)}`",
        field.description or "",
        _readers(kind, path, inert),
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _readers(kind: type[Strict], path: str, inert: Inert) -> str:
    """Which recipes read a setting, of those whose settings have it."""
    having = {
        name: [unread for run, unread in every if _has(run, kind, path)]
        for name, every in inert.items()
    }
    having = {name: every for name, every in having.items() if every}
    reading = [name for name, every in having.items() if any(path not in one for one in every)]
    if not reading:
        section = path.rpartition(".")[0]
        nearest = min(
            (one for every in having.values() for one in every),
            key=lambda one: sum(name.startswith(section) for name in one),
        )
        return f"with {nearest[path]}"
    if reading == list(having):
        return "all" if len(reading) > 1 else reading[0]
    missing = [name for name in having if name not in reading]
    if len(missing) < len(reading):
        return f"all but {', '.join(missing)}"
    return ", ".join(reading)


def _has(run: Run, kind: type[Strict], path: str) -> bool:
    section: Any = run
    for part in path.split(".")[:-1]:
        section = getattr(section, part, None)
    return type(section) is kind


def _objectives() -> tuple[type[Strict], ...]:
    return get_args(Run.model_fields["objective"].annotation)


def _parts(annotation: Any) -> list[Any]:
    return [part for part in (get_args(annotation) or (annotation,)) if isinstance(part, type)]


def _type(field: FieldInfo) -> str:
    """The words that may be chosen, or the kind of value and its limits."""
    words = choices(field.annotation)
    if words:
        return ", ".join(f"`{word}`" for word in words)
    names = {bool: "true or false", int: "whole number", float: "number", str: "text"}
    kinds = [field.annotation, *get_args(field.annotation)]
    if get_origin(field.annotation) is tuple:
        name = "list"
    else:
        name = next(names[kind] for kind in kinds if kind in names)
    if type(None) in kinds:
        name += " or null"
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "multiple_of": "multiple of"}
    limits = [
        f"{sign} {getattr(rule, word)}"
        for rule in field.metadata
        for word, sign in signs.items()
        if getattr(rule, word, None) is not None
    ]
    return ", ".join([name, *limits])


if __name__ == "__main__":
    print(page(), end="")
