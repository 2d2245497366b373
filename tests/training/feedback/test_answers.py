"""What models answer: whatever it is, it is read, asked for again, or left out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoretune.training.feedback.answers import answers, parsed
from scoretune.training.feedback.records import Critique, EditPlan
from scoretune.training.feedback.wording import for_critic, for_writer, strict_schema

GOOD = {
    "alignment": 7,
    "aesthetics": 4.5,
    "issues": [
        {"what": "the hat is green", "where": "top", "category": "Attribute", "severity": 1}
    ],
}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"Sure! Here it is:\n```json\n{json.dumps(GOOD, indent=2)}\n```\nAnything else?",
        "{'not': json} {" + f"\n{json.dumps(GOOD)}",
        f'{{"alignment": 70}} {json.dumps(GOOD)}',
    ],
)
def test_a_critique_is_found_in_what_surrounds_it(text):
    critique = parsed(Critique, text)
    assert critique is not None
    assert (critique.alignment, critique.aesthetics) == (7, 4.5)
    assert critique.issues[0].category == "attribute"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<html><body>502 Bad Gateway</body></html>",
        "I am sorry, but I cannot do that.",
        '{"alignment": 11, "issues": []}',
        '{"alignment": NaN}',
        '{"alignment": 5, "issues": [{"what": ""}]}',
        '{"alignment": 5, "issues": "none"}',
        '{"alignment": ' + "[" * 100_000,
        '{"a":' * 50_000,
        json.dumps(GOOD)[:-2],
        "[]",
        "null",
        "\ud800{",
    ],
)
def test_what_is_no_critique_is_none(text):
    assert parsed(Critique, text) is None


words = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from([*Critique.model_fields, *EditPlan.model_fields, "what"]) | st.text(),
            inner,
        )
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(words, st.text(), st.integers(0, 200))
def test_nothing_that_a_model_writes_raises(value, around, cut):
    text = around + json.dumps(value)[cut:] + around
    for kind in (Critique, EditPlan):
        content = parsed(kind, text)
        assert content is None or isinstance(content, kind)


def test_what_cannot_be_read_is_asked_for_twice_again_then_left_out():
    asked: list[list[int]] = []

    def ask(rows, texts):
        asked.append(list(rows))
        assert all("could not be read" in text for text in texts) == (len(asked) > 1)
        return [json.dumps(GOOD) if row < len(asked) else "hm" for row in rows]

    said = answers(Critique, ask, ["a", "b", "c", "d"])
    assert asked == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]
    assert [answer.attempts for answer in said] == [1, 2, 3, 3]
    assert [answer.content is None for answer in said] == [False, False, False, True]
    assert said[3].raw == "hm"


def test_a_word_for_a_category_that_nobody_knows_is_other():
    text = json.dumps({"alignment": 1, "issues": [{"what": "x", "category": "vibes"}]})
    critique = parsed(Critique, text)
    assert critique is not None and critique.issues[0].category == "other"


def test_what_is_asked_names_the_caption_and_the_review():
    critique = Critique.model_validate(GOOD)
    assert "a {braced} caption" in for_critic("a {braced} caption")
    assert "the hat is green" in for_writer("a hat", critique, 3)


def test_the_schema_is_closed_and_asks_for_every_field():
    schema = strict_schema(Critique)
    issue = schema["$defs"]["Issue"]
    for part, kind in ((schema, Critique), (issue, Critique.model_fields["issues"])):
        assert part["additionalProperties"] is False, kind
        assert set(part["required"]) == set(part["properties"])
    assert "default" not in json.dumps(schema)
