"""What a person gets who types `make`: ranges in pyproject, exact pins here, no torchvision."""

from __future__ import annotations

import importlib.util
import os
import re
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


@pytest.mark.parametrize("pin", PINS)
def test_a_constraint_is_an_exact_pin(pin: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin), f"not name==version: {pin}"
    assert not re.match(r"nvidia|cuda|triton|torchvision|torchaudio", pin.lower())


@pytest.mark.parametrize("dependency", DECLARED)
def test_a_dependency_is_a_range_and_pinned(dependency: str) -> None:
    assert re.fullmatch(r"[a-z0-9-]+>=[0-9.]+(,<[0-9.]+)?", dependency)
    name = re.split(r"[<>=]", dependency)[0]
    assert canonical(name) in {canonical(pin.split("==")[0]) for pin in PINS}


def test_the_two_versions_agree() -> None:
    assert scoretune.__version__ == PROJECT["version"]


def test_ci_runs_what_people_run() -> None:
    script = ROOT / ".ci" / "run"
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash")
    assert "set -euo pipefail" in text
    assert re.search(r"^(exec )?make test$", text, re.MULTILINE)
    assert os.access(script, os.X_OK)


@pytest.mark.parametrize("target", ["demo", "test", "check", "bench", "pretrain", "clean", "help"])
def test_make_has_the_target(target: str) -> None:
    assert re.search(rf"^{target}:.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
