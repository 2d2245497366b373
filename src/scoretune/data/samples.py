"""Several scored samples of each prompt, from which pairs are made (best of n).

A row has a prompt, a list of samples (texts, messages, or paths of pictures relative to the file)
and the list of their scores: `samples` and `scores`, or `all_generated_responses` and
`all_rm_scores`, as SimPO's data sets call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from scoretune.core.errors import UserError
from scoretune.data.formats import brief, missing_column, named_column
from scoretune.data.judgements import number
from scoretune.data.pictures import is_picture, picture_file
from scoretune.data.tables import opened
from scoretune.data.text_pairs import PROMPTS, Text, text_of

SAMPLES = ("samples", "images", "responses", "all_generated_responses")
SCORES = ("scores", "rewards", "all_rm_scores")


class Pool(NamedTuple):
    """The samples of one prompt and the score of each; `place` is where the row stands."""

    place: str
    prompt: Text
    samples: tuple[Text, ...]
    scores: tuple[float, ...]


def read_pools(where: str) -> Iterator[Pool]:
    """The scored samples of a table, row by row. Raises UserError, in one line with the row."""
    table = opened(where, "samples")
    columns = []
    for names in (PROMPTS, SAMPLES, SCORES):
        column = named_column(table.names, names)
        if column is None:
            raise missing_column(where, names, table.names)
        columns.append(column)
    prompts, samples, scores = columns
    for place, row in table.rows():
        at = f"{where!r}, {place}"
        if not isinstance(row, Mapping):
            raise UserError(f"{at}: {brief(row)} is no row of a table: write an object")
        prompt = text_of(at, str(prompts), row.get(prompts), empty=True)
        drawn = tuple(
            text_of(at, str(samples), cell) for cell in _list(at, str(samples), row.get(samples))
        )
        rated = tuple(
            number(at, str(scores), cell) for cell in _list(at, str(scores), row.get(scores))
        )
        if len(drawn) != len(rated):
            raise UserError(
                f"{at}: {len(drawn)} samples and {len(rated)} scores: give one score a sample"
            )
        if len(drawn) < 2:
            raise UserError(f"{at}: a pair needs two samples, and there is {len(drawn)}")
        for text in drawn:
            if is_picture(text):
                picture_file(at, str(samples), text, table.folder)
        yield Pool(place, prompt, drawn, rated)


def _list(where: str, name: str, cell: Any) -> list[Any]:
    if not isinstance(cell, list):
        raise UserError(f"{where}: {name!r} must be a list, and is {brief(cell)}")
    return cell
