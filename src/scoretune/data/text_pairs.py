"""Pairs of completions of one prompt and which of the two people prefer; and likes of single ones.

A table (`data.tables.opened`) has one row a judgement, in any of TRL's forms:

* explicit: `prompt`, `chosen`, `rejected`, three texts or three lists of messages;
* implicit: `chosen` and `rejected` hold the whole dialogue, whose common start is the prompt (also
  where a column `prompt` repeats its question as a text);
* unpaired: `prompt`, `completion`, `label`; or `messages`, of which the last is the completion.

A message is {"role", "content"} or {"from", "value"}. The prompt may be called `conversations`.
Labels, votes, weights and raters are those of `data.judgements`, with chosen as the first.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data import judgements
from scoretune.data.formats import brief, missing_column, named_column
from scoretune.data.judgements import (
    Columns,
    EmptyText,
    Identical,
    Judgement,
    Merged,
    Raters,
    Ties,
    is_tie,
)
from scoretune.data.prompts import PROMPT_KEYS
from scoretune.data.tables import Opened, opened

Messages: TypeAlias = tuple[Mapping[str, str], ...]
Text: TypeAlias = str | Messages
"""A text, or messages of a conversation."""
PROMPTS = (*PROMPT_KEYS, "conversations")
COMPLETIONS = ("completion", "response")
DIALOGUES = ("messages", "conversations")
ROLES = {"human": "user", "gpt": "assistant"}
"""What some data sets call them."""


@dataclass(frozen=True)
class TextPairs:
    """n `prompts` with their `chosen` and `rejected` completions, `labels` [n], the probability
    that the chosen is preferred, relative `weights` [n] of mean 1, `votes` [n], how many raters
    stand behind each, and `scores` [n, 2] where the table has them."""

    prompts: tuple[Text, ...]
    chosen: tuple[Text, ...]
    rejected: tuple[Text, ...]
    labels: Tensor
    weights: Tensor
    votes: Tensor
    scores: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def conversational(self) -> bool:
        """Whether they are lists of messages."""
        return not isinstance(self.chosen[0], str)

    def rows(self) -> list[dict[str, Any]]:
        """The pairs in TRL's explicit form."""
        return [
            {"prompt": plain(prompt), "chosen": plain(chosen), "rejected": plain(rejected)}
            for prompt, chosen, rejected in zip(
                self.prompts, self.chosen, self.rejected, strict=True
            )
        ]

    def likes(self) -> TextLikes:
        """Both sides of every pair: the chosen with the label, the rejected with the rest."""
        both = zip(self.chosen, self.rejected, strict=True)
        return TextLikes(
            prompts=tuple(prompt for prompt in self.prompts for _ in range(2)),
            completions=tuple(text for pair in both for text in pair),
            liked=torch.stack([self.labels, 1 - self.labels], dim=1).flatten(),
            weights=self.weights.repeat_interleave(2),
            votes=self.votes.repeat_interleave(2),
        )


@dataclass(frozen=True)
class TextLikes:
    """n `prompts` with one of the `completions` each, `liked` [n], the probability that it is,
    relative `weights` [n] of mean 1 and `votes` [n]."""

    prompts: tuple[Text, ...]
    completions: tuple[Text, ...]
    liked: Tensor
    weights: Tensor
    votes: Tensor

    def __len__(self) -> int:
        return len(self.prompts)


def read_text_pairs(where: str, *, ties: Ties = "keep", raters: Raters = "soft") -> TextPairs:
    """The pairs of a table. Rows of one pair become one, their labels' mean, where raters are
    "soft"; a pair with label 1/2 is left out where ties are "drop".

    Raises UserError, in one line with the row, for what cannot be learned from.
    """
    table = opened(where, "pairs")
    rows, merged = _read(table, text_columns(table), raters)
    pairs = [pair for pair in merged if ties == "keep" or not is_tie(pair.label)]
    if not pairs:
        raise UserError(f"{where!r} has no pair that can be learned from: all are ties or unjudged")
    firsts = [rows[pair.rows[0]] for pair in pairs]
    scores = [pair.scores for pair in pairs if pair.scores is not None]
    return TextPairs(
        prompts=tuple(row.prompt for row in firsts),
        chosen=tuple(row.completions[0] for row in firsts),
        rejected=tuple(row.completions[1] for row in firsts),
        labels=torch.tensor([pair.label for pair in pairs]),
        weights=judgements.relative([pair.weight for pair in pairs]),
        votes=torch.tensor([pair.votes for pair in pairs]),
        scores=torch.tensor(scores) if len(scores) == len(pairs) else None,
    )


def read_text_likes(where: str, *, raters: Raters = "soft") -> TextLikes:
    """The likes of a table, or both sides of its pairs. Raises UserError as `read_text_pairs`."""
    table = opened(where, "likes")
    if has_text_pairs(table):
        return read_text_pairs(where, raters=raters).likes()
    rows, likes = _read(table, completion_columns(table), raters)
    firsts = [rows[like.rows[0]] for like in likes]
    if not likes:
        raise UserError(f"{where!r} has no judged completion: nothing can be learned from it")
    return TextLikes(
        prompts=tuple(row.prompt for row in firsts),
        completions=tuple(row.completions[0] for row in firsts),
        liked=torch.tensor([like.label for like in likes]),
        weights=judgements.relative([like.weight for like in likes]),
        votes=torch.tensor([like.votes for like in likes]),
    )


# --------------------------------------------------------------------------------- columns


class TextRow(NamedTuple):
    """A judged row: the prompt and the two completions of it, or the one."""

    prompt: Text
    completions: tuple[Text, ...]
    judgement: Judgement

    def key(self) -> tuple[Hashable, ...]:
        """What two rows of the same texts have in common."""
        return tuple(json.dumps(plain(text)) for text in (self.prompt, *self.completions))


@dataclass(frozen=True)
class TextColumns:
    """By which columns a table's prompts, completions and judgements are known."""

    prompt: Any
    completions: tuple[Any, ...]
    judged: Columns

    def read(self, table: Opened, place: str, row: Any) -> TextRow | None:
        """A row, None where it says that nobody judged it. Raises UserError."""
        where = f"{table.source!r}, {place}"
        if not isinstance(row, Mapping):
            raise UserError(f"{where}: {brief(row)} is no row of a table: write an object")
        judgement = self.judged.read(where, row)
        if judgement is None:
            return None
        texts = [text_of(where, str(name), row.get(name)) for name in self.completions]
        if len({isinstance(text, str) for text in texts}) > 1:
            raise UserError(f"{where}: one completion is a text and the other a list of messages")
        prompt = None
        if self.prompt is not None:
            prompt = text_of(where, str(self.prompt), row.get(self.prompt), empty=True)
        prompt, *texts = _split(where, prompt, texts)
        for name, text in zip(self.completions, texts, strict=True):
            _check_completion(where, str(name), text)
        if len(texts) > 1 and texts[0] == texts[1] and not is_tie(judgement.label):
            raise Identical(f"{where}: chosen and rejected")
        return TextRow(prompt, tuple(texts), judgement)


def has_text_pairs(table: Opened) -> bool:
    """Whether a table has a column that only pairs have."""
    return named_column(table.names, ("chosen", "rejected")) is not None


def text_columns(table: Opened) -> TextColumns:
    """The columns of a table of pairs. Raises UserError, which names what is missing."""
    sides = tuple(named_column(table.names, (name,)) for name in ("chosen", "rejected"))
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if side is None:
            raise missing_column(table.source, [name], table.names)
    judged = judgements.columns_of(table.source, table.names, ("chosen", "rejected"))
    return TextColumns(named_column(table.names, PROMPTS), sides, judged)


def completion_columns(table: Opened) -> TextColumns:
    """The columns of a table of single completions. Raises UserError, naming what is missing."""
    text = named_column(table.names, COMPLETIONS)
    prompt = named_column(table.names, PROMPTS)
    dialogue = named_column(table.names, DIALOGUES)
    liked = named_column(table.names, ("label", "liked"))
    if text is None and dialogue is None:
        raise missing_column(table.source, ["completion", "messages"], table.names)
    if text is not None and prompt is None:
        raise missing_column(table.source, PROMPT_KEYS, table.names)
    if liked is None:
        raise missing_column(table.source, ["label", "liked"], table.names)
    judged = judgements.of_one(table.names, liked)
    if text is None:
        return TextColumns(None, (dialogue,), judged)
    return TextColumns(prompt, (text,), judged)


def _read(
    table: Opened, columns: TextColumns, raters: Raters
) -> tuple[list[TextRow], list[Merged]]:
    """The judged rows of a table, and which of them are of the same texts."""
    read = (columns.read(table, place, row) for place, row in table.rows())
    rows = [row for row in read if row is not None]
    keys = [row.key() if raters == "soft" else () for row in rows]
    return rows, judgements.merged(keys, [row.judgement for row in rows], raters)


# ----------------------------------------------------------------------------------- texts


def length(text: Text) -> int:
    """Characters of a text, or of all its messages."""
    if isinstance(text, str):
        return len(text)
    return sum(len(message["content"]) for message in text)


def plain(text: Text) -> str | list[dict[str, str]]:
    """A text, or its messages as lists of dictionaries."""
    return text if isinstance(text, str) else [dict(message) for message in text]


def text_of(where: str, name: str, cell: Any, *, empty: bool = False) -> Text:
    """A cell as a text, or as messages; one message may stand alone. Raises UserError."""
    if isinstance(cell, str):
        if not cell.strip() and not empty:
            raise EmptyText(f"{where}: {name!r}")
        return cell
    messages = [cell] if isinstance(cell, Mapping) else cell
    if not isinstance(messages, list):
        raise UserError(
            f"{where}: {name!r} must be a text or a list of messages, and is {brief(cell)}"
        )
    if not messages and not empty:
        raise EmptyText(f"{where}: {name!r}")
    return tuple(_message(where, name, message) for message in messages)


def _message(where: str, name: str, message: Any) -> Mapping[str, str]:
    for role, content in (("role", "content"), ("from", "value")):
        if isinstance(message, Mapping) and role in message:
            speaker, text = message[role], message.get(content)
            if isinstance(speaker, str) and isinstance(text, str):
                return {"role": ROLES.get(speaker, speaker), "content": text}
    raise UserError(
        f"{where}: {name!r} holds {brief(message)}, which is no message: write "
        '{"role": "user", "content": "a text"}'
    )


def _split(where: str, prompt: Text | None, texts: Sequence[Text]) -> list[Text]:
    """The prompt and the completions after it, where those hold the whole dialogue."""
    if prompt is not None and not isinstance(prompt, str):
        texts = [_as_messages("assistant", text) for text in texts]
    first = texts[0]
    if prompt is not None and isinstance(prompt, str) == isinstance(first, str):
        at = len(prompt)
        if prompt and not isinstance(prompt, str) and all(t[:at] == prompt for t in texts):
            return [prompt, *(text[at:] for text in texts)]
        return [prompt, *texts]
    at = _common(first, texts[1]) if len(texts) > 1 else len(first) - 1
    if at:
        return [first[:at], *(text[at:] for text in texts)]
    if prompt is not None:
        return [_as_messages("user", prompt), *texts]
    raise UserError(
        f"{where}: the dialogues have no common start, and there is no column of prompts: name it "
        "'prompt'"
    )


def _as_messages(role: str, text: Text) -> Messages:
    return ({"role": role, "content": text},) if isinstance(text, str) else text


def _common(first: Text, second: Text) -> int:
    """How much of two dialogues is the prompt: their common start, without a part of a word, and
    without a last message where both end there."""
    shortest = min(len(first), len(second))
    at = next((i for i in range(shortest) if first[i] != second[i]), shortest)
    if isinstance(first, str):
        while at and not first[at - 1].isspace():
            at -= 1
        return at
    return min(at, shortest - 1)


def _check_completion(where: str, name: str, text: Text) -> None:
    last = text if isinstance(text, str) else text[-1]["content"] if text else ""
    if not last.strip():
        raise EmptyText(f"{where}: the completion of {name!r}")
    if not isinstance(text, str) and text[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: {name!r} ends with a message of {text[-1]['role']!r}: a completion ends "
            "with one of 'assistant'"
        )
