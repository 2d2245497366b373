"""Settings in a file that people keep: YAML or JSON that names a recipe and holds changes to it.

A run's own `run.json` is read too, as the settings of that run.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from scoretune import recipes
from scoretune.core import reading
from scoretune.core.config import Run, Strict, leaves
from scoretune.core.errors import UserError
from scoretune.training.overrides import (
    assigned,
    changed,
    family_of,
    following,
    parsed,
    unread,
    validated,
)

ENDINGS = (".yaml", ".yml", ".json")
WIDTH = 100


def named(text: str, changes: Sequence[str] = ()) -> Run:
    """The settings of a recipe by its name, or of a settings file, with `a.b=c` applied.

    Raises UserError, in one line, for a file that is missing or no YAML, and as `changed` does.
    """
    if not text.lower().endswith(ENDINGS):
        return changed(recipes.named(text), changes)
    run, settings = _begun(text)
    with _saying_where(text):
        return assigned(run, [*settings, *map(parsed, changes)])


@contextmanager
def _saying_where(text: str) -> Iterator[None]:
    """Within this context an error names the file."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{text}: {error}") from error


def _begun(text: str) -> tuple[Run, list[tuple[str, Any]]]:
    """The run that a recipe, a file or a `run.json` begins with, and what the file changes."""
    if not text.lower().endswith(ENDINGS):
        return recipes.named(text), []
    tree = _read(Path(text))
    with _saying_where(text):
        if isinstance(tree.get("config"), dict):
            return validated(tree["config"]), []
        recipe = tree.pop("recipe", None)
        if not isinstance(recipe, str):
            raise UserError("names no recipe: begin it with the line `recipe: ddpo`")
        run = recipes.named(recipe)
        return run, list(_settings(tree, run.model_dump()))


def origins(text: str, changes: Sequence[str] = ()) -> dict[str, str]:
    """Where the value of every setting comes from, by its path: the default, the recipe, the
    model's family and who published it, the file, the command line."""
    run, from_file = _begun(text)
    given = dict(map(parsed, changes))
    defaults = validated({"recipe": run.recipe, "objective": {"kind": run.objective.kind}})
    plain = dict(leaves(defaults.model_dump()))
    found = {
        path: "default" if value == plain.get(path) else "recipe"
        for path, value in leaves(run.model_dump())
    }
    everything = dict(from_file) | given
    fitting = family_of(run, everything)
    whose = f"family ({fitting.source})" if fitting else "model.source"
    found |= {path: whose for path, _ in following(run, everything)}
    found |= {path: "file" for path, _ in from_file}
    return found | dict.fromkeys(given, "command line")


def _settings(tree: Mapping[str, Any], defaults: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """What a file sets, by its path; a section of which nothing is left changes nothing."""
    for key, value in tree.items():
        default = defaults.get(key) if isinstance(defaults, dict) else None
        if isinstance(value, dict):
            yield from _settings(value, default, f"{path}{key}.")
        elif not (value is None and isinstance(default, dict)):
            yield f"{path}{key}", value


# --------------------------------------------------------------------------------- reading


class _Loader(yaml.SafeLoader):
    """YAML 1.2's words for plain values: `off` is a text and 1e-3 a number. No key occurs twice."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  # as the base class has it

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a few of them can stand for billions of values
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem="aliases are not read", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                problem = f"{key.value!r} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


for _kind, _pattern, _firsts in (
    ("null", r"(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"(true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)$", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", list("-+.0123456789")),
    ("float", r"([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", list("-+.")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), _firsts)


def _read(path: Path) -> dict[str, Any]:
    try:
        text = reading.read_text(path, most=2**20)
        is_json = path.suffix.lower() == ".json"
        tree = reading.parsed_json(text) if is_json else yaml.load(text, _Loader)  # a safe one
    except OSError as error:
        raise UserError(
            f"cannot read the settings file {str(path)!r} ({error.strerror}): check the path"
        ) from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", error)
        problem = "it is nested too deep" if isinstance(error, RecursionError) else problem
        place = f"line {mark.line + 1}: " if mark else ""
        raise UserError(
            f"cannot read the settings file {str(path)!r} ({place}{problem}): write a setting a "
            "line, as `updates: 20`, those of a section indented below its name"
        ) from error
    if not isinstance(tree, dict):
        raise UserError(
            f"{str(path)!r} holds no settings: begin it with the line `recipe: ddpo`, or write one "
            f"by: scoretune show ddpo --yaml > {path.with_suffix('.yaml')}"
        )
    return {str(key): value for key, value in tree.items()}


# --------------------------------------------------------------------------------- writing


def written(run: Run) -> str:
    """The settings that matter to this run as YAML, each with its description.

    What the run never reads is left out, so `named` of the text gives the same settings.
    """
    about = (getattr(recipes.RECIPES.get(run.recipe), "__doc__", None) or "").partition("\n")[0]
    lines = [f"# {about}"] if about else []
    lines += ["# scoretune train THIS_FILE [a.b=c …]", f"recipe: {run.recipe}"]
    return "\n".join([*lines, *_section(run, set(unread(run)), "", 0)]) + "\n"


def _section(section: Strict, inert: set[str], path: str, depth: int) -> Iterator[str]:
    indent, inner = "  " * depth, []
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Strict):
            inner.append((name, value))
        elif path + name not in inert | {"recipe", "objective.kind"}:
            yield from _setting(f"{indent}{name}: {scalar(value)}", described(field), indent)
    for name, value in inner:
        lines = list(_section(value, inert, f"{path}{name}.", depth + 1))
        if lines:
            about = (type(value).__doc__ or "").splitlines()[0]
            yield from (["", f"# {about}"] if not depth else [f"{indent}# {about}"])
            yield f"{indent}{name}:"
            yield from lines


def _setting(line: str, about: str, indent: str) -> Iterator[str]:
    """A line with its comment behind it, or above it where that is too long."""
    if len(line) + len(about) + 4 <= WIDTH:
        yield f"{line}  # {about}" if about else line
        return
    yield from (f"{indent}# {part}" for part in textwrap.wrap(about, WIDTH - len(indent) - 2))
    yield line


def scalar(value: Any) -> str:
    """The value of a setting as YAML, on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def described(field: FieldInfo) -> str:
    """What a setting is, and what may be chosen."""
    options = choices(field.annotation)
    listed = f"one of {', '.join(options)}" if options else ""
    return "; ".join(part for part in (field.description, listed) if part)


def choices(annotation: Any) -> list[str]:
    """The words of a Literal, null among them where None may stand."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    parts = [choices(part) for part in get_args(annotation) if part is not type(None)]
    words = parts[0] if len(parts) == 1 else []
    if get_origin(annotation) is tuple:
        return []
    return [*words, "null"] if words and type(None) in get_args(annotation) else words
