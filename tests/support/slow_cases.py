"""Parameters that repeat what another one shows: the quick tests leave them to the slow ones."""

from __future__ import annotations

from typing import Any

import pytest


def slow(*values: Any, id: str | None = None) -> Any:
    """A parameter of a test, among the slow tests."""
    return pytest.param(*values, marks=pytest.mark.slow, id=id)


def quick_ones(table: Any, *quick: Any) -> list[Any]:
    """The table's entries as parameters, slow but for those named."""
    return [each if each in quick else slow(each) for each in table]
