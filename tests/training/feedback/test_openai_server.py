"""Critic and writer behind a server of OpenAI's protocol, a real process on the loopback."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator

import pytest
import torch

from openai_like import PLAN, REVIEW, server
from scoretune.core.errors import UserError
from scoretune.training.feedback import roles
from scoretune.training.feedback.records import Critique, EditPlan, Shown

pytest.importorskip("openai")
PICTURES = [Shown(f"a hat, take {i}", torch.full((3, 8, 8), i / 10)) for i in range(6)]
HATS = Critique.model_validate(REVIEW)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with server() as address:
        yield address


def critic(url: str, model: str, more: str = ""):
    text = f"openai(base_url={url}/v1, model={model}{more})"
    return roles.named("critic", text, roles.CRITICS)


def test_critiques_and_plans_come_back_by_the_schema_that_was_sent(url):
    said = critic(url, "good", ", concurrent=4")(PICTURES)
    assert [answer.content for answer in said] == [HATS] * len(PICTURES)
    assert {answer.attempts for answer in said} == {1}
    writer = roles.named("writer", f"openai(base_url={url}/v1, model=good)", roles.WRITERS)
    (plan,) = writer(PICTURES[:1], [HATS])
    assert plan.content == EditPlan.model_validate(PLAN)
    seen = json.loads(urllib.request.urlopen(f"{url}/health").read())
    assert seen["most"] > 1  # at once
    first, last = seen["requests"][0], seen["requests"][-1]
    assert "a hat, take" in first["text"] and "the hat is green" in last["text"]
    assert first["form"]["json_schema"]["strict"] is True
    assert set(first["form"]["json_schema"]["schema"]["required"]) == set(Critique.model_fields)
    start, payload = first["url"]["url"].split(",")
    assert start == "data:image/png;base64"
    assert base64.b64decode(payload).startswith(b"\x89PNG")


def test_what_a_server_refuses_once_is_asked_again(url):
    said = critic(url, "busy", ", retries=2")(PICTURES[:3])
    assert [answer.content for answer in said] == [HATS] * 3


def test_words_in_place_of_json_are_asked_for_again(url):
    (answer,) = critic(url, "chatter")(PICTURES[:1])
    assert (answer.content, answer.attempts) == (HATS, 2)


def test_a_web_page_in_place_of_json_is_an_answer_without_content(url):
    (answer,) = critic(url, "web", ", retries=0")(PICTURES[:1])
    assert answer.content is None and answer.attempts == 3


def test_a_server_that_refuses_or_is_not_there_is_one_line(url):
    with pytest.raises(UserError, match="answers 404"):
        critic(url, "unknown", ", retries=0")(PICTURES[:2])
    with pytest.raises(UserError, match="does not answer"):
        critic("http://127.0.0.1:9", "good", ", retries=0")(PICTURES[:2])
