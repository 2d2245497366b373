"""Which edits are kept: monotone in the threshold, and nothing or everything changed is refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scoretune.core.errors import UserError
from scoretune.training.feedback.filters import Filter, distances

numbers = st.floats(-1, 1)


@given(st.lists(st.tuples(numbers, st.floats(0, 1), numbers)), st.floats(0, 1), st.floats(0, 1))
def test_a_higher_threshold_accepts_no_edit_that_a_lower_one_refuses(edits, one, other):
    low, high = sorted((one, other))
    for turn in (False, True):
        judged = [
            {
                (i, verdict.outcome)
                for i, (gain, distance, second) in enumerate(edits)
                if (verdict := judge(gain, distance, second=second)).outcome != "refused"
            }
            for judge in (
                Filter(threshold=low, reversed=turn),
                Filter(threshold=high, reversed=turn),
            )
        ]
        assert judged[1] <= judged[0]


@pytest.mark.parametrize(
    ("gain", "distance", "second", "outcome", "reason"),
    [
        (0.3, 0.1, None, "kept", "better"),
        (0.3, 0.1, 0.0, "kept", "better"),
        (0.3, 0.1, -0.1, "refused", "the second reward disagrees"),
        (0.3, 0.0, None, "refused", "nothing changed"),
        (0.3, 0.4, None, "refused", "everything changed"),
        (0.1, 0.1, None, "refused", "not better"),
        (-0.3, 0.1, None, "reversed", "worse"),
        (-0.3, 0.1, 0.1, "refused", "the second reward disagrees"),
    ],
)
def test_verdicts(gain, distance, second, outcome, reason):
    judge = Filter(threshold=0.2, least=0.01, most=0.4, reversed=True)
    verdict = judge(gain, distance, second=second)
    assert (verdict.outcome, verdict.reason) == (outcome, reason)


def test_a_worse_edit_is_left_out_unless_it_is_wanted():
    assert Filter()(-0.5, 0.1).outcome == "refused"
    assert Filter(reversed=True)(-0.5, 0.1).outcome == "reversed"


def test_a_problem_of_the_editor_is_the_reason():
    verdict = Filter()(0.5, 0.1, problem="the editor gave a black picture")
    assert (verdict.outcome, verdict.reason) == ("refused", "the editor gave a black picture")


@pytest.mark.parametrize("wrong", [{"threshold": -0.1}, {"least": 0.5, "most": 0.2}])
def test_bounds_that_make_no_sense(wrong):
    with pytest.raises(UserError):
        Filter(**wrong)


def test_the_distance_of_pictures():
    black, grey = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert distances(black, grey).tolist() == [0.5, 0.5]
    assert distances(black, black).tolist() == [0, 0]
