"""What import-linter (`lint-imports`, in pyproject.toml) cannot say of the house: where heavy
libraries are imported, and what is not used at all."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from scoretune.commands.reproduce import EXPERIMENTS

HEAVY = {
    *("diffusers", "transformers", "peft", "trl", "fastapi", "openai", "uvicorn"),
    *("sklearn", "scipy", "matplotlib", "pyarrow"),
}
SOURCE = Path(__file__).resolve().parents[1] / "src" / "scoretune"
SHARED = {  # of each catalogue: what its entries may import, and what gathers them
    "rewards": {"cache", "frames", "weighted"},
    "models": {
        *("autoencoder", "class_labels", "compression", "export", "folders", "lora", "networks"),
        *("lora_files", "observed", "packing", "pipelines", "recycled", "schedulers", "videos"),
        *("editing", "offload", "quantized", "sizes", "slope_decoder", "truncation"),
    },
    "training/objectives": {"implicit", "method", "preference_losses"},
    "training/credit": {"values"},
}


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the package, parsed."""
    return {
        str(path.relative_to(SOURCE)): ast.parse(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCE.rglob("*.py"))
    }


def imported(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of what is imported, `from a import b` as `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(node: ast.AST) -> Iterator[ast.AST]:
    """What runs when the module is imported: no function bodies, nothing for type checkers only."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            for other in child.orelse:
                yield from (other, *at_import(other))
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from at_import(child)


def test_heavy_libraries_are_imported_in_the_function_that_needs_them() -> None:
    eager = {
        module: found
        for module, tree in trees().items()
        if (found := {name.partition(".")[0] for name in imported(at_import(tree))} & HEAVY)
    }
    assert not eager


def test_what_the_house_does_without() -> None:
    for module, tree in trees().items():
        nodes = list(ast.walk(tree))
        tops = {name.partition(".")[0] for name in imported(iter(nodes))}
        assert not tops & {"torchvision", "pickle", "dill", "joblib"}, module
        calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
        assert not calls & {"hasattr", "torch.load", "torch.save"}, module
        assert Path(module).stem not in {"utils", "util", "helpers", "common", "misc"}


def test_the_package_itself_imports_nothing() -> None:
    code = "import sys, scoretune; sys.exit(any(m.startswith('scoretune.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def independent(catalogue: str) -> list[str]:
    """What pyproject.toml lists below a folder in its contracts of independence."""
    settings = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
    prefix = f"scoretune.{catalogue.replace('/', '.')}."
    return [
        module.removeprefix(prefix)
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "independence"
        for module in contract["modules"]
        if module.startswith(prefix)
    ]


@pytest.mark.parametrize("catalogue", SHARED)
def test_the_contract_of_independence_names_every_entry(catalogue: str) -> None:
    modules = {path.stem for path in (SOURCE / catalogue).glob("*.py")}
    listed = set(independent(catalogue))
    assert listed == modules - {"__init__", "base", "catalog"} - SHARED[catalogue]


def test_the_contract_of_independence_names_every_part_of_every_experiment() -> None:
    parts = {p.place.partition(":")[0] for named in EXPERIMENTS.values() for p in named.values()}
    assert sorted(independent("commands/reproduce")) == sorted(parts)
