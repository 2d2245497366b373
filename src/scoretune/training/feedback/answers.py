"""Models' answers: read defensively, asked for again where they cannot be read.

A model writes what it likes: words around its JSON, half of it, numbers as words, a web page.
Nothing of that raises; it is an answer without content, which is counted and left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scoretune.training.feedback.records import Answer

RETRIES = 2
LONGEST = 200_000
"""Characters of an answer that are looked at."""
AGAIN = (
    "\nYour last answer could not be read. Return the JSON object alone, nothing before or after."
)

Content = TypeVar("Content", bound=BaseModel)
Ask = Callable[[Sequence[int], Sequence[str]], Sequence[str]]
"""(indices of questions, their texts) -> the answers."""


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


def answers(
    kind: type[Content], ask: Ask, questions: Sequence[str], *, retries: int = RETRIES
) -> list[Answer[Content]]:
    """Ask every question, and those again whose answers cannot be read, `retries` times."""
    told: dict[int, Answer[Content]] = {}
    pending = list(range(len(questions)))
    for attempt in range(1, retries + 2):
        if not pending:
            break
        texts = [questions[i] + (AGAIN if attempt > 1 else "") for i in pending]
        for index, text in zip(pending, ask(pending, texts), strict=True):
            told[index] = Answer(parsed(kind, text), text[:LONGEST], attempt)
        pending = [i for i in pending if told[i].content is None]
    return [told[i] for i in range(len(questions))]
