"""What a person gets who types `make`: ranges in pyproject, exact pins here, no torchvision."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import scoretune

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_torchvision_is_not_installed() -> None:
    # Its operators are linked to CUDA: beside a CPU build of torch it breaks transformers' CLIP.
    assert importlib.util.find_spec("torchvision") is None


def test_constraints_are_exact_pins() -> None:
    exact = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*")
    assert [pin for pin in PINS if not exact.fullmatch(pin)] == []
    unwanted = re.compile(r"nvidia|cuda|triton|torchvision|torchaudio", re.IGNORECASE)
    assert [pin for pin in PINS if unwanted.match(pin)] == []


def test_dependencies_are_ranges_and_pinned() -> None:
    a_range = re.compile(r"[a-z0-9-]+>=[0-9.]+(,<[0-9.]+)?")
    assert [wanted for wanted in DECLARED if not a_range.fullmatch(wanted)] == []
    names = {canonical(re.split(r"[<>=]", wanted)[0]) for wanted in DECLARED}
    assert names - {canonical(pin.split("==")[0]) for pin in PINS} == set()


def test_the_two_versions_agree() -> None:
    assert scoretune.__version__ == PROJECT["version"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """A command whose `make` knows nothing of the one that runs this suite."""
    inherited = re.compile(r"MAKE|MFLAGS|TESTS$|ARGS$")
    clean = {name: value for name, value in os.environ.items() if not inherited.match(name)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    """The Makefile and `.ci/run` with an environment of tools of which `ruff` and pytest fail."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    for name, code in {"ruff": 1, "mypy": 0, "lint-imports": 0, "python": 1}.items():
        (tools / name).write_text(f"#!/bin/sh\necho {name} $*\nexit {code}\n")
        (tools / name).chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt", ".venv/.installed"):
        (tmp_path / name).touch()
    return tmp_path


def test_ci_runs_everything_and_names_what_failed(workshop: Path) -> None:
    outcome = run(str(workshop / ".ci" / "run"))
    lines = outcome.stdout.splitlines()
    assert outcome.returncode != 0
    assert lines[-2:] == ["passed: types imports", "FAILED: format lint tests"]
    assert any(line.startswith("format: FAILED. Repair: .venv/bin/ruff format") for line in lines)
    assert "types: OK" in lines
    assert any(line.startswith("python -m pytest") and "worksteal" in line for line in lines)


def test_check_is_all_but_the_tests(workshop: Path) -> None:
    (workshop / ".venv" / "bin" / "ruff").write_text("#!/bin/sh\n")
    outcome = run("make", "-C", str(workshop), "--no-print-directory", "check")
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    assert outcome.stdout.splitlines()[-1] == "passed: format lint types imports"


def test_make_tells_its_targets(workshop: Path) -> None:
    told = run("make", "-C", str(workshop), "--no-print-directory", "help").stdout
    targets = {line.split()[1] for line in told.splitlines()}
    assert targets >= {"demo", "test", "check", "bench", "pretrain", "clean", "help"}
