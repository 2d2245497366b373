"""What models are asked, and in which form they are to answer."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

from scoretune.training.feedback.records import CATEGORIES, Critique

CRITIC = """You review a picture that was made for this caption: {caption}
Check whether every object of the caption is there, in the right number, with the right attributes \
and colours on the right object, in the right place relative to the others; then readable text, \
anatomy and artefacts, composition and light.
Answer with one JSON object and nothing else:
{{"alignment": 0 to 10, "aesthetics": 0 to 10, "issues": [{{"what": "one sentence", "where": \
"where in the picture", "category": one of {categories}, "severity": 0 to 1}}]}}
Mention only what can be seen. If nothing is wrong, "issues" is an empty list."""

WRITER = """A picture was made for this caption: {caption}
A reviewer says of it: {critique}
Write at most {most} instructions for a picture editor that mend the worst of it first. Each is \
one imperative sentence of fewer than twenty words, asks for one change, names the object and what \
it is to become, and leaves all else as it is. Leave out what an editor cannot do, such as \
composing the whole picture anew.
Answer with one JSON object and nothing else:
{{"instructions": ["..."], "edited_caption": "what the picture will show"}}"""

MENDS = {
    "wrong object": "show what the caption asks for, and nothing else: {caption}",
    "wrong colour": "give everything the colour that the caption says: {caption}",
    "wrong count": "show as many as the caption says: {caption}",
    "wrong place": "put everything where the caption says: {caption}",
    "not sharp": "make it sharp",
    "artefacts": "remove the artefacts",
}
"""What is to be done about each tag of a person."""


def for_tag(tag: str, caption: str) -> str:
    """What an editor is told to do about a tag; one of a person's own is what is to be mended."""
    return MENDS.get(tag, "mend this: {tag}").format(caption=caption, tag=tag)


def for_critic(caption: str) -> str:
    """What a critic is asked about a picture."""
    return CRITIC.format(caption=caption, categories=", ".join(CATEGORIES))


def for_writer(caption: str, critique: Critique, most: int) -> str:
    """What a writer is asked about a critique."""
    said = json.dumps(critique.model_dump(), ensure_ascii=False)
    return WRITER.format(caption=caption, critique=said, most=most)


def strict_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """A JSON schema as servers of structured output want it: every field required, no others, and
    without bounds of lengths, which few of them know."""
    closed: dict[str, Any] = _closed(kind.model_json_schema())
    return closed


UNKNOWN = ("default", "title", "minLength", "maxLength", "maxItems")


def _closed(part: Any) -> Any:
    if isinstance(part, list):
        return [_closed(item) for item in part]
    if not isinstance(part, dict):
        return part
    if "properties" not in part:
        return {key: _closed(value) for key, value in part.items() if key not in UNKNOWN}
    fields = {name: _closed(value) for name, value in part["properties"].items()}
    rest = {k: _closed(v) for k, v in part.items() if k not in (*UNKNOWN, "properties", "required")}
    return rest | {
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }
