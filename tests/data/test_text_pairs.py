"""Pairs and likes of texts in TRL's forms, and what is refused."""

from __future__ import annotations

import json

import pytest

from scoretune.core.errors import UserError
from scoretune.data.text_pairs import read_text_likes, read_text_pairs


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines and gives the file's path."""

    def to(*rows: object) -> str:
        path = tmp_path / "pairs.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return to


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


EXPLICIT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
MESSAGES = {
    "prompt": [user("The sky?")],
    "chosen": [answer("blue")],
    "rejected": [answer("green")],
}


def test_explicit_texts_and_messages_are_taken_as_they_are(write):
    assert read_text_pairs(write(EXPLICIT)).rows() == [EXPLICIT]
    pairs = read_text_pairs(write(MESSAGES))
    assert pairs.rows() == [MESSAGES] and pairs.conversational


def test_of_whole_dialogues_the_common_start_is_the_prompt(write):
    whole = {
        "chosen": [*MESSAGES["prompt"], *MESSAGES["chosen"]],
        "rejected": [*MESSAGES["prompt"], *MESSAGES["rejected"]],
    }
    for more in ({}, {"prompt": "The sky?"}, {"prompt": MESSAGES["prompt"]}):
        assert read_text_pairs(write({**whole, **more})).rows() == [MESSAGES]
    texts = {"chosen": "Human: sky? Bot: bluish", "rejected": "Human: sky? Bot: blue"}
    wanted = {"prompt": "Human: sky? Bot: ", "chosen": "bluish", "rejected": "blue"}
    assert read_text_pairs(write(texts)).rows() == [wanted]


def test_messages_may_be_written_the_other_way(write):
    row = {
        "conversations": [{"from": "human", "value": "The sky?"}],
        "chosen": {"from": "gpt", "value": "blue"},
        "rejected": {"from": "gpt", "value": "green"},
    }
    assert read_text_pairs(write(row)).rows() == [MESSAGES]
    texts = {"chosen": "blue", "rejected": "green"}
    assert read_text_pairs(write({"prompt": MESSAGES["prompt"], **texts})).rows() == [MESSAGES]
    answers = {"chosen": MESSAGES["chosen"], "rejected": MESSAGES["rejected"]}
    assert read_text_pairs(write({"prompt": "The sky?", **answers})).rows() == [MESSAGES]


def test_single_completions_have_labels_and_pairs_are_two_of_them(write):
    rows = [{"prompt": "a", "completion": k, "label": k == "b"} for k in "bc"]
    likes = read_text_likes(write(*rows))
    assert likes.completions == ("b", "c") and likes.liked.tolist() == [1, 0]
    whole = {"messages": [user("The sky?"), answer("blue")], "label": False}
    likes = read_text_likes(write(whole))
    assert likes.prompts == ((user("The sky?"),),) and likes.completions == ((answer("blue"),),)
    pairs = read_text_likes(write({**EXPLICIT, "label": 0.75}))
    assert pairs.liked.tolist() == [0.75, 0.25] and pairs.completions == (" blue.", " green.")


def test_raters_of_one_pair_are_one_label(write):
    swapped = {**EXPLICIT, "chosen": " green.", "rejected": " blue."}
    pairs = read_text_pairs(write(EXPLICIT, EXPLICIT, swapped, MESSAGES))
    assert pairs.labels.tolist() == pytest.approx([2 / 3, 1]) and pairs.votes.tolist() == [3, 1]
    assert len(read_text_pairs(write(EXPLICIT, swapped), raters="separate")) == 2
    with pytest.raises(UserError, match="no pair that can be learned from"):
        read_text_pairs(write(EXPLICIT, swapped), ties="drop")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**EXPLICIT, "chosen": "  "}, "line 1: 'chosen' is empty"),
        ({**EXPLICIT, "rejected": " blue."}, "line 1: chosen and rejected are identical"),
        ({**EXPLICIT, "rejected": None}, "line 1: 'rejected' must be a text or a list of mess"),
        ({**EXPLICIT, "label": 1.5}, "line 1: 'label' must lie in [0, 1]"),
        ({**EXPLICIT, "label": [[1]]}, "line 1: 'label' must be a finite number, and is [[1]]"),
        ({**EXPLICIT, "score_chosen": 1}, "no column score_rejected"),
        ({**MESSAGES, "chosen": [user("x")]}, "'chosen' ends with a message of 'user'"),
        ({**MESSAGES, "chosen": [{"role": 1}]}, "which is no message: write"),
        ({**MESSAGES, "chosen": "x"}, "one completion is a text and the other a list"),
        ({"prompt": "a", "chosne": "b", "rejected": "c"}, "did you mean 'chosne'? Name it 'cho"),
        ({"question": "a", "chosen": "b", "rejected": "c"}, "no column of prompts: name it 'prom"),
    ],
)
def test_a_row_that_cannot_be_learned_from_is_named(write, row, said):
    with pytest.raises(UserError) as error:
        read_text_pairs(write(row))
    assert said in str(error.value) and len(str(error.value)) <= 300
