"""Pages and texts from jinja2 templates; in HTML every value is escaped."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from scoretune.core import files
from scoretune.evaluate.report import format

if TYPE_CHECKING:
    from jinja2 import Environment

HOME = "scoretune.evaluate.report"  # its templates are there for every package
FILTERS = ("plain", "signed", "level", "shift", "points", "percent", "grouped", "duration")


@cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(name) for name in dict.fromkeys((package, HOME))]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(format, name) for name in FILTERS}
    environment.globals |= {"thin": format.THIN}
    return environment


def text(template: str, values: Mapping[str, Any], package: str = HOME) -> str:
    """A template of `package`, or of this one, filled in. A value that it lacks is an error."""
    return _environment(package).get_template(template).render(values)


def fragment(template: str, values: Mapping[str, Any]) -> Markup:
    """A part of a page: HTML that pages insert without escaping it again."""
    return Markup(text(template, values))


def write(path: Path, content: str) -> Path:
    """Write a text whole; what UTF-8 cannot say (half a surrogate pair) becomes `?`."""
    files.write_whole(path, content.encode("utf-8", "replace").decode("utf-8") + "\n")
    return path
