"""Models' answers: read defensively, asked for again where they cannot be read.

A model writes what it likes: words around its JSON, half of it, numbers as words, a web page.
Nothing of that raises; it is an answer without content, which is counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scoretune.training.feedback import wording
from scoretune.training.feedback.records import Answer, Critique, EditPlan, Shown

RETRIES = 2
LONGEST = 200_000
"""Characters of an answer that are looked at."""
AGAIN = (
    "\nYour last answer could not be read. Return the JSON object alone, nothing before or after."
)

Content = TypeVar("Content", bound=BaseModel)
Ask = Callable[[Sequence[int], Sequence[str]], Sequence[str]]
"""(indices of questions, their texts) -> the answers."""
Look = Callable[[Sequence[Shown], Sequence[str]], list[str]]
"""A model's answers to a question about each picture."""


def parsed(kind: type[Content], text: str) -> Content | None:
    """The first JSON object within a text that is what was asked for, None if there is none."""
    for candidate in _objects(text[:LONGEST]):
        try:
            return kind.model_validate(candidate)
        except (ValidationError, RecursionError):
            continue
    return None


def _objects(text: str) -> Iterator[Any]:
    """JSON objects in a text, those that begin first coming first; those within them do not."""
    decoder, place = json.JSONDecoder(), text.find("{")
    attempts = 0
    while place >= 0 and attempts < 100:
        attempts += 1
        end = place + 1
        try:
            value, end = decoder.raw_decode(text, place)
            yield value
        except (ValueError, RecursionError):
            pass
        place = text.find("{", end)


def answers(kind: type[Content], ask: Ask, questions: Sequence[str]) -> list[Answer[Content]]:
    """Ask every question, and those again whose answers cannot be read, `RETRIES` times."""
    latest: dict[int, Answer[Content]] = {}
    pending = list(range(len(questions)))
    for attempt in range(1, RETRIES + 2):
        if not pending:
            break
        texts = [questions[i] + (AGAIN if attempt > 1 else "") for i in pending]
        for index, text in zip(pending, ask(pending, texts), strict=True):
            latest[index] = Answer(parsed(kind, text), text[:LONGEST], attempt)
        pending = [i for i in pending if latest[i].content is None]
    return [latest[i] for i in range(len(questions))]


def critiques_by(look: Look, pictures: Sequence[Shown]) -> list[Answer[Critique]]:
    """What a model that answers in words says is wrong with pictures."""
    questions = [wording.for_critic(shown.prompt) for shown in pictures]
    return answers(Critique, _about(look, pictures), questions)


def plans_by(
    look: Look, pictures: Sequence[Shown], critiques: Sequence[Critique], most: int
) -> list[Answer[EditPlan]]:
    """The instructions, at most so many, that it writes for pictures with their critiques."""
    questions = [
        wording.for_writer(shown.prompt, critique, most)
        for shown, critique in zip(pictures, critiques, strict=True)
    ]
    return answers(EditPlan, _about(look, pictures), questions)


def _about(look: Look, pictures: Sequence[Shown]) -> Ask:
    return lambda rows, texts: look([pictures[i] for i in rows], texts)
