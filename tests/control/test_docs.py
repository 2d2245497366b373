"""The page for users runs."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

import scoretune.control

PAGE = Path(__file__).resolve().parents[2] / "docs" / "control.md"


@pytest.mark.slow
def test_the_example_on_the_page_finds_what_the_page_says(capsys):
    text = PAGE.read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    body = [line for line in example.splitlines() if line.strip()]
    assert len(body) <= 20
    namespace: dict[str, object] = {}
    exec(compile(example, str(PAGE), "exec"), namespace)
    policy = namespace["learned"].policy
    assert policy.slope == pytest.approx((1 - math.sqrt(5)) / 2, abs=0.05)
    assert policy.intercept == pytest.approx(-0.115, abs=0.05)
    assert policy.variance == pytest.approx(0.05, abs=0.01)
    assert len(capsys.readouterr().out.split()) == 3


def test_what_the_page_names_exists():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("cpg", "cppo", "CLSTD", "CTD0", "MartingaleLoss", "SqrtKL", "KL", "Clip"):
        assert f"`{name}" in text and name in scoretune.control.__all__
