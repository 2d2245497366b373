"""The words of `scoretune rpo`: the pipeline's, the recipe's, and what is neither."""

from __future__ import annotations

import pytest

from scoretune.core.errors import UserError
from scoretune.training.feedback.settings import split


def test_the_pipelines_words_and_the_recipes():
    settings, others = split(["pictures=8", "objective.beta=5000", "reversed=true", "agree="])
    assert (settings.pictures, settings.reversed, settings.agree) == (8, True, "")
    assert others == ["objective.beta=5000"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("reversed=maybe", "reversed"),  # not taken for false
        ("threshold=much", "threshold"),
        ("pictures=0", "pictures"),
        ("least=NaN", "least"),
        ("critic", "cannot read 'critic'"),
    ],
)
def test_what_does_not_fit_is_named(word, message):
    with pytest.raises(UserError, match=message):
        split([word])
