"""The public names of `scoretune.evaluate`: all there, and none of them loads what it need not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scoretune import evaluate

LAZY = """
import sys
from scoretune import evaluate
assert "torch" not in sys.modules, "a bare import"
for name in evaluate.__all__:
    assert getattr(evaluate, name).__doc__, name
heavy = {"diffusers", "transformers", "peft", "scipy", "sklearn", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_names_cost_no_more_than_torch():
    done = subprocess.run([sys.executable, "-c", LAZY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_another_name_is_none():
    assert set(evaluate.__all__) <= set(dir(evaluate))
    with pytest.raises(AttributeError, match="no attribute 'scare'"):
        evaluate.scare  # noqa: B018
