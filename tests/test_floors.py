"""The house, held by a machine: a module imports only from lower floors.

Read the table from the ground up. Inside a room the modules of one floor may import each other. In
a catalogue the entries import `base` and never each other; its `__init__` may list them.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

FLOORS = {
    0: "errors ranks hub",
    1: "diffusion.* rl.* batches checkpoints metrics tables prompt_* gallery networks "
    "pretrained clip_pixels heads "
    "artefacts watches windows pipelines calls imports labels scenes scenes.world scenes.draw "
    "asking foreign remembering seeing sharding wire",
    2: "backbones.* rewards.* miniatures.* critic data train conversions control control.*",
    3: "policy scorers features datasets",
    4: "engine reward_service rollout windowed loras credit.*",
    5: "objectives.* sources evaluate config settings draws gap_plan",
    6: "differentiable hardware hooks run_parts measure export report* display runs scenes.* "
    "methods gap_figure trackers stopping",
    7: "fit_parts data_page progress models gap guard merging run_index card_results",
    8: "fit card run_curves planning planning.*",
    9: "course run recipes",
    10: "plan samples family_parity laws.*",
    11: "reproduce.* doctor families gap_page benchmarks.*",
    12: "verbs.*",
    13: "cli",
    14: "__main__",
}
ROOMS = {"miniatures", "planning", "diffusion", "rl", "scenes", "control", "laws", "reproduce"}
CATALOGUES = {"backbones", "rewards", "credit", "objectives"}
SIDEWAYS = {
    ("ranks", "errors"),
    ("seeing", "pretrained"),
    ("run", "course"),
    ("methods", "differentiable"),
    ("report", "report_figures"),
    ("report", "report_record"),
    ("report", "report_cards"),
    ("report", "report_gap"),
    ("report", "report_guard"),
    ("report_gap", "report_figures"),
    ("report_gap", "report_record"),
    ("report_guard", "report_figures"),
    ("report_guard", "report_record"),
    ("report_cards", "report_figures"),
    ("measure", "run_parts"),
    ("windowed", "rollout"),
    ("sources", "config"),
    ("settings", "config"),
    ("prompt_files", "prompt_tables"),
    ("methods", "run_parts"),
    ("card_results", "run_index"),
}
ONLY = {"train": {"batches", "errors"}}  # the loop has never heard of a reward

HEAVY = {
    *("diffusers", "transformers", "peft", "trl", "fastapi"),
    *("sklearn", "scipy", "matplotlib", "pyarrow"),
}
SOURCE = Path(__file__).resolve().parents[1] / "src" / "scoretune"


def name_of(path: Path) -> str:
    """The module's name below `scoretune`; the package itself is the empty name."""
    return ".".join(p for p in path.relative_to(SOURCE).with_suffix("").parts if p != "__init__")


MODULES = {name_of(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
everywhere = pytest.mark.parametrize("module", [name or "__init__" for name in MODULES])


def tree_of(module: str) -> ast.Module:
    return TREES["" if module == "__init__" else module]


def floor(module: str) -> int:
    for number, patterns in FLOORS.items():
        if any(fnmatch(m, p) for m in (module, f"{module}.") for p in patterns.split()):
            return number
    raise AssertionError(f"scoretune.{module} is on no floor: add it to FLOORS in {__file__}")


def imported(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Absolute names of what is imported, `from a import b` as `a.b`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"scoretune.{module} line {node.lineno}: relative import"
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


def inside(names: Iterator[str]) -> Iterator[str]:
    """Names of modules of this package: `scoretune.rl.ctd0` is a name in `rl`."""
    for name in names:
        package, _, rest = name.partition(".")
        if package == "scoretune":
            yield rest if rest in MODULES else rest.rpartition(".")[0]


def allowed(module: str, target: str) -> bool:
    if module in ONLY:
        return target in ONLY[module]
    if floor(target) < floor(module) or (module, target) in SIDEWAYS:
        return True
    folder, other = module.partition(".")[0], target.partition(".")[0]
    if folder != other or floor(target) > floor(module):
        return False
    if folder in CATALOGUES:
        return module == folder or (target == f"{folder}.base" and module != target)
    return folder in ROOMS


@everywhere
def test_arrows_point_down(module: str) -> None:
    if module == "__init__":
        eager = set(inside(imported(module, at_import(tree_of(module)))))
        assert not eager, f"scoretune/__init__.py must import these lazily: {eager}"
        return
    here = floor(module)
    names = set(imported(module, ast.walk(tree_of(module)))) - {"scoretune.__version__"}
    nowhere = [name for name in sorted(names) if list(inside(iter([name]))) == [""]]
    assert not nowhere, f"not modules, or names of scoretune/__init__: {nowhere}"
    targets = set(inside(iter(names)))
    arrows = [f"{floor(t)} {t}" for t in sorted(targets) if not allowed(module, t)]
    assert not arrows, f"{module}, floor {here}, must not import: {arrows}"


@everywhere
def test_heavy_libraries_are_imported_in_the_verb(module: str) -> None:
    eager = {name.partition(".")[0] for name in imported(module, at_import(tree_of(module)))}
    assert not eager & HEAVY, f"import inside the function that needs it: {eager & HEAVY}"


@everywhere
def test_what_the_house_does_without(module: str) -> None:
    nodes = list(ast.walk(tree_of(module)))
    tops = {name.partition(".")[0] for name in imported(module, iter(nodes))}
    assert not tops & {"torchvision", "pickle", "dill", "joblib"}
    calls = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    assert not calls & {"hasattr", "torch.load", "torch.save"}
    assert module.rpartition(".")[2] not in {"utils", "util", "helpers", "common", "misc"}


@pytest.mark.parametrize(
    ("module", "target", "verdict"),
    [
        ("policy", "backbones.base", True),
        ("backbones.base", "policy", False),
        ("diffusion.kernels", "diffusion.scales", True),
        ("diffusion.kernels", "rl.rates", False),
        ("rewards.reader", "rewards.base", True),
        ("rewards.reader", "rewards.judge", False),
        ("rewards", "rewards.reader", True),
        ("scenes.world", "scenes.pretrain", False),
        ("measure", "run_parts", True),
        ("run_parts", "measure", False),
        ("run", "recipes", False),
        ("train", "rl", False),
        ("train", "batches", True),
    ],
)
def test_the_rules_say_what_we_mean(module: str, target: str, verdict: bool) -> None:
    assert allowed(module, target) is verdict
