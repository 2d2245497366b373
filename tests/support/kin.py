"""Recipes that go the way of another one: quick tests of every recipe leave them to slow ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

KIN = {
    *("alignprop", "dance_grpo", "ddpo_sf", "flow_cps", "flow_grpo", "grpo", "mix_grpo"),
    *("mix_grpo_flash", "reinforce", "ipo", "simpo", "mallows", "dspo"),
}
"""Each has the source, the credit and the objective of another recipe, and other settings."""


def slow_kin(names: Iterable[str], more: Iterable[str] = ()) -> list[Any]:
    """Parameters of a test: the names of kin, and those of `more`, are slow ones."""
    kin = KIN.union(more)
    return [pytest.param(name, marks=[pytest.mark.slow] if name in kin else []) for name in names]
