"""What pages and docstrings name is there: modules, what is in them, and files."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "scoretune"
PAGES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"),
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").glob("*.md"))),
)
ROOMS = sorted(path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file())
DOTTED = re.compile(rf"(?<![\w./-])(?:scoretune|{'|'.join(ROOMS)})(?:\.[A-Za-z_]\w*)+")
INSIDE = re.compile(rf"(?<![\w./-])(?:{'|'.join(ROOMS)})/[\w/]+(?:\.\w+)?")
ABOVE = re.compile(r"(?<![\w./-])(?:tests|src|benchmarks|docs)/[\w./-]*\w")
FILES = (".py", ".json", ".jsonl", ".md", ".html", ".safetensors")
EXAMPLES = {"NAME", "TOPIC"}
"""Stand for a name of one's own."""


def quoted(page: str) -> Iterator[str]:
    """Code in a page: spans between backticks, blocks, and links."""
    text = (ROOT / page).read_text(encoding="utf-8")
    yield from re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]+` →", "", text)  # an old name, before its new one
    yield from re.findall(r"`([^`]+)`", text)


def is_there(name: str) -> bool:
    """Whether a dotted name is a module of the package, or an attribute of what is before it."""
    parts = name.removeprefix("scoretune.").split(".")
    owner: object = importlib.import_module("scoretune")
    for i, part in enumerate(parts):
        module = SOURCE.joinpath(*parts[: i + 1])
        if (module / "__init__.py").is_file() or module.with_suffix(".py").is_file():
            owner = importlib.import_module(f"scoretune.{'.'.join(parts[: i + 1])}")
            continue
        absent = object()
        fields = getattr(owner, "__dataclass_fields__", {})
        owner = getattr(owner, part, fields.get(part, absent))
        if owner is absent:
            return False
    return True


def missing(code: list[str]) -> list[str]:
    """What is named in pieces of code or of docstrings, and is not there."""
    dotted = {name for text in code for name in DOTTED.findall(text)}
    inside = {name for text in code for name in INSIDE.findall(text)}
    above = {name for text in code for name in ABOVE.findall(text)}
    named = {name for name in inside if not EXAMPLES & set(re.split(r"[/.]", name))}
    return [
        *(name for name in sorted(dotted) if not name.endswith(FILES) and not is_there(name)),
        *(name for name in sorted(named) if not (SOURCE / name).exists()),
        *(name for name in sorted(above) if not (ROOT / name).exists()),
    ]


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    assert not missing(list(quoted(page)))


def calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """The verb and the options of every `scoretune VERB … --option …` in a piece of code."""
    for call in re.findall(r"(?:^|[ /])scoretune ([a-z][^\n#]*)", text.replace("\\\n", " ")):
        yield call.split()[0].rstrip("…,.:"), re.findall(r"--[a-z][\w-]*", call)


def test_commands_in_pages_are_there():
    lines = (ROOT / "tests" / "frozen_cli.txt").read_text(encoding="utf-8").splitlines()
    for page in PAGES:
        for verb, options in (call for text in quoted(page) for call in calls(text)):
            of_verb = [line for line in lines if f"{line} ".startswith(f"scoretune {verb} ")]
            assert of_verb, f"{page}: scoretune {verb}"
            there = {word for line in of_verb for word in re.split(r"[ ,/]", line)}
            assert set(options) <= there, f"{page}: scoretune {verb} {options}"


def test_settings_in_pages_are_there():
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    settings = set(re.findall(r"^\| `([\w.]+)` ", page, re.MULTILINE))
    sections = {name.rpartition(".")[0] for name in settings} - {""}
    heads = "|".join(name for name in sections if "." not in name)
    pattern = re.compile(rf"(?<![\w./-])(?:{heads})\.[a-z_.]+")
    known = settings | sections | {"objective.kind"}
    for page in PAGES:
        names = {name.rstrip(".") for text in quoted(page) for name in pattern.findall(text)}
        assert {name for name in names if not name.endswith(FILES)} <= known, page


def test_the_readme_tests_as_make_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (threads,) = re.findall(r"^ONE_THREAD := (.*)$", makefile, re.M)
    options, _ = re.findall(r"-m pytest (-q .*) \$\(TESTS\)", makefile)  # of test, of proofs
    options = options.replace("$(JOBS)", "2")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"\n{threads} .venv/bin/python -m pytest {options}\n" in readme


def test_what_a_docstring_names_is_there():
    unknown = {}
    for path in sorted(SOURCE.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        texts = [
            node.value.value
            for node in nodes
            if isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ]
        code = [part for text in texts for part in re.findall(r"`([^`]+)`", text)]
        if absent := missing([" ".join(part.split()) for part in code]):
            unknown[str(path.relative_to(SOURCE))] = absent
    assert not unknown


def test_what_is_not_there_is_missed():
    assert missing(["scoretune.losses"]) == ["scoretune.losses"]
    assert missing(["evaluate.scores.nothing", "rl.rates"]) == ["evaluate.scores.nothing"]
    assert missing(["diffusion/wings.py", "rewards/NAME.py"]) == ["diffusion/wings.py"]
    assert missing(["tests/test_nothing.py"]) == ["tests/test_nothing.py"]
