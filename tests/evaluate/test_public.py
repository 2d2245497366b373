"""The public names of `scoretune.evaluate`; what they load, `commands/test_cli.py` looks at."""

from __future__ import annotations

import pytest

from scoretune import evaluate


def test_another_name_is_none():
    assert set(evaluate.__all__) <= set(dir(evaluate))
    with pytest.raises(AttributeError, match="no attribute 'scare'"):
        evaluate.scare  # noqa: B018
