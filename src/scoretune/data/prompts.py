"""Prompts, with what their files say beside them, or those of the shipped world of scenes."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretune.core.errors import UserError, unknown
from scoretune.data import formats
from scoretune.data.picture_size import Size, size_in
from scoretune.data.scenes import world
from scoretune.data.source_pictures import SourcePicture, source_picture

GOLDEN = (5**0.5 - 1) / 2
PROMPT_KEYS = ("prompt", "prompts", "caption", "text")
"""What the column of prompts may be called, the first that there is; capitals do not matter."""
TASK_KEYS = ("task", "category", "tag")
IMAGE_KEYS = ("image",)
"""What the column of pictures is called that prompts edit: paths from the folder of the file."""
LONGEST = 20_000
"""Characters of a prompt; text encoders read a few hundred."""
WANTED = (
    "a text file with one prompt a line, a .csv, .tsv, .json, .jsonl or .parquet file, or 'scenes'"
)


class Prompt(str):
    """A text with `metadata`, the row of its file by columns, and perhaps the `picture` it edits
    and the `size` that it asks for.

    Equal and hashed as the text, but for two prompts of different pictures or sizes, which are not
    equal.
    """

    metadata: Mapping[str, Any]
    picture: SourcePicture | None
    size: Size | None

    def __new__(
        cls,
        text: str,
        metadata: Mapping[str, Any] | None = None,
        picture: SourcePicture | None = None,
        size: Size | None = None,
    ) -> Prompt:
        prompt = super().__new__(cls, text)
        prompt.metadata = dict(metadata or {})
        prompt.picture = picture
        prompt.size = size
        return prompt

    @property
    def image(self) -> Tensor | None:
        """The picture to edit, [3, H, W] in [0, 1]; None where there is none."""
        return None if self.picture is None else self.picture.pixels

    @property
    def identity(self) -> str:
        """The text, with what tells its picture and size from others: of equal prompts the same."""
        mark = "" if self.picture is None else f" [{self.picture.sha256}]"
        size = "" if self.size is None else f" [{self.size}]"
        return f"{str.__str__(self)}{mark}{size}"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Prompt) and (self.picture, self.size) != (other.picture, other.size):
            return False
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def picture_of(prompt: str) -> SourcePicture | None:
    """The picture that a prompt edits; a plain `str` has none."""
    return prompt.picture if isinstance(prompt, Prompt) else None


def size_of(prompt: str) -> Size | None:
    """The size that a prompt asks for; a plain `str` asks for none."""
    return prompt.size if isinstance(prompt, Prompt) else None


def check_one_size(prompts: Iterable[str], why: str) -> None:
    """Refuse prompts that ask for a size, for the reason `why`. Raises UserError."""
    for size in map(size_of, prompts):
        if size is not None:
            raise UserError(
                f"{size.where}: it asks for {size}, and {why}: take the columns width and height "
                "out, and all are drawn in the model's own size"
            )


def check_storable(prompts: Sequence[str]) -> None:
    """Raise UserError for prompts whose samples a store cannot compare: with pictures to edit, or
    of several sizes."""
    if any(picture_of(prompt) is not None for prompt in prompts):
        raise UserError(
            "a store compares samples of one text, and these prompts have pictures to edit: take "
            "the column image out"
        )
    check_one_size(prompts, "a store has pictures of one size")


def identity(prompt: str) -> str:
    """`Prompt.identity`; of a plain `str` itself."""
    return prompt.identity if isinstance(prompt, Prompt) else prompt


@dataclass(frozen=True)
class Prompts:
    """Prompt texts with their `metadata`, the task of each, and how often it is asked for."""

    texts: tuple[str, ...]
    tasks: tuple[str, ...]
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        texts = (text if isinstance(text, Prompt) else Prompt(text) for text in self.texts)
        object.__setattr__(self, "texts", tuple(texts))
        object.__setattr__(self, "weights", tuple(self.weights) or (1.0,) * len(self.texts))
        if not len(self.texts) == len(self.tasks) == len(self.weights):
            raise ValueError("prompts need a task each, and a weight each or none at all")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise ValueError("weights of prompts must be numbers above 0")

    def __len__(self) -> int:
        return len(self.texts)

    def few(self, per_task: int) -> Prompts:
        """At most so many of each task, spread evenly over it; all for 0."""
        places: dict[str, list[int]] = {}
        for place, task in enumerate(self.tasks):
            places.setdefault(task, []).append(place)
        kept = sorted(
            same[j * len(same) // count]
            for same in places.values()
            for count in [min(per_task or len(same), len(same))]
            for j in range(count)
        )
        return self.take(kept)

    def take(self, places: Sequence[int]) -> Prompts:
        """Those of these numbers."""
        return Prompts(
            tuple(self.texts[i] for i in places),
            tuple(self.tasks[i] for i in places),
            tuple(self.weights[i] for i in places),
        )


def order(prompts: Prompts, lap: int, seed: int) -> list[int]:
    """The order of one pass over the prompts: as many numbers as there are prompts, shuffled.

    With equal weights each occurs once. Else a prompt occurs n w / sum(w) times, rounded up or down
    (systematic resampling). From lap to lap the rounding moves by the golden ratio, so that counts
    over many laps stay near their expectation too: by the logarithm of the laps, not by their root.
    """
    count = len(prompts)
    shuffle = torch.Generator().manual_seed(seed * 7919 + lap)
    mixed = torch.randperm(count, generator=shuffle)
    if len(set(prompts.weights)) == 1:
        return [int(i) for i in mixed]
    offset = (random.Random(seed).random() + lap * GOLDEN) % 1
    ends = torch.tensor(prompts.weights, dtype=torch.float64).cumsum(0)
    places = (torch.arange(count, dtype=torch.float64) + offset) * (ends[-1] / count)
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=count - 1)
    return [int(i) for i in drawn[mixed]]


def in_laps(prompts: Prompts, count: int, seed: int) -> list[str]:
    """The first `count` texts as training goes through the prompts, lap after lap."""
    laps = range(-(-count // len(prompts)))
    places = [place for lap in laps for place in order(prompts, lap, seed)]
    return [prompts.texts[place] for place in places[:count]]


def read_prompts(source: str, per_task: int = 0) -> Prompts:
    """Prompts from what `read_rows` reads, `scenes`, `scenes-held-out`, or `none`.

    `per_task` above 0 balances the scenes: that many of each task, repeating short lists; of `none`
    it is how many there are. Raises UserError for a missing, unreadable or empty file.
    """
    if source in ("scenes", "scenes-held-out"):
        asks = world.training_asks() if source == "scenes" else world.held_out_asks()
        if per_task:
            asks = world.balanced(asks, per_task, seed=0)
        return Prompts(tuple(a.text for a in asks), tuple(a.task for a in asks))
    if source == "none":
        count = per_task or 64
        return Prompts(("",) * count, ("all",) * count)
    return Prompts(*zip(*read_rows(source), strict=True))


# ----------------------------------------------------------------------------------- files


class Row(NamedTuple):
    """A prompt, the task it belongs to, and how often it is asked for relative to others."""

    prompt: Prompt
    task: str = "all"
    weight: float = 1.0


def read_rows(source: str) -> list[Row]:
    """The prompts of a file, of `pairs:FILE:FILE`, or of `datasets:ID[:SPLIT[:COLUMN]]`.

    A file is .csv, .tsv, .json, .jsonl or .parquet, and may name its column as `FILE:COLUMN`; any
    other is text with one prompt a line; each may be gzipped (.gz). A column `image` has the paths,
    from the file's folder, of pictures that prompts edit, columns `width` and `height` the size
    of what is drawn, in pixels. Raises UserError, in one line, for what cannot be read or has no
    prompts.
    """
    kind, _, rest = source.partition(":")
    if kind == "datasets" and rest:
        placed, column = formats.of_datasets(rest)
        rows = list(_of_items(source, placed, column, Path()))
    elif kind == "pairs" and rest:
        rows = _pairs(rest)
    else:
        file, column = formats.column_of(source)
        placed = formats.rows(file, WANTED, "prompt file")
        rows = list(_of_items(file, placed, column, Path(file).parent))
    if not rows:
        raise UserError(f"prompt file {source!r} is empty: write one prompt a line")
    return rows


def _pairs(rest: str) -> list[Row]:
    """Every line of one file with every line of another, as in DDPO (arXiv 2305.13301): `cat` and
    `riding a bike` make `a cat riding a bike`, of the task `riding a bike`."""
    first, _, second = rest.partition(":")
    nouns, actions = ([row.prompt for row in read_rows(file)] for file in (first, second))
    count, most = len(nouns) * len(actions), formats.MOST_ROWS
    if count > most:
        raise UserError(f"pairs:{rest} makes {count:,} prompts: at most {most:,}")
    rows = []
    for noun, action in itertools.product(nouns, actions):
        article = "an" if noun[:1].lower() in "aeiou" else "a"
        metadata = {"noun": noun, "action": action}
        rows.append(Row(Prompt(f"{article} {noun} {action}", metadata), action))
    return rows


# ------------------------------------------------------------------------- rows of objects


def _of_items(
    source: str, placed: Iterable[formats.Row], column: str | None, folder: Path
) -> Iterator[Row]:
    """Rows from texts or objects; the first object says which column holds the prompts. Paths of
    pictures are from `folder`."""
    key = ""
    for place, item in placed:
        where = f"{source!r}, {place}"
        if isinstance(item, str):
            yield Row(Prompt(_text(where, item)))
            continue
        if not isinstance(item, Mapping):
            raise UserError(
                f"{where}: {formats.brief(item)} is no prompt: write a text, or an object such as "
                '{"prompt": "a cat"}'
            )
        if column and not key and column not in item:
            raise unknown(f"column of {source!r}", column, map(str, item))
        key = key or column or _prompt_key(source, item)
        text = item.get(key)
        if not isinstance(text, str):
            raise UserError(f"{where}: {key!r} must be a text, and is {formats.brief(text)}")
        picture, size = _picture(where, item, folder), size_in(where, item)
        prompt = Prompt(_text(where, text), item, picture, size)
        yield Row(prompt, _task(item), _weight(where, item))


def _text(where: str, text: str) -> str:
    """A prompt without the spaces around it. Raises UserError for one that is empty or endless."""
    if not text.strip():
        raise UserError(f"{where}: the prompt is empty: write one, or take the row out")
    return prompt_text(where, text)


def prompt_text(where: str, text: Any) -> str:
    """A cell as a prompt, perhaps an empty one. Raises UserError for anything else."""
    if not isinstance(text, str):
        raise UserError(f"{where} must be a text, and is {formats.brief(text)}")
    prompt: str = text.strip()
    if len(prompt) > LONGEST:
        raise UserError(f"{where}: {len(prompt):,} characters are no prompt: at most {LONGEST:,}")
    if "\0" in prompt:
        raise UserError(f"{where}: the prompt holds the character NUL: take it out")
    return prompt


def _prompt_key(source: str, item: Mapping[str, Any]) -> str:
    key = formats.named_column(item, PROMPT_KEYS)
    if key is None:
        raise formats.missing_column(source, PROMPT_KEYS, item)
    return str(key)


def _picture(where: str, item: Mapping[str, Any], folder: Path) -> SourcePicture | None:
    key = formats.named_column(item, IMAGE_KEYS)
    return None if key is None else source_picture(where, str(key), item[key], folder)


def _task(item: Mapping[str, Any]) -> str:
    key = formats.named_column(item, TASK_KEYS)
    return "all" if key is None or item[key] in (None, "") else str(item[key])


def _weight(where: str, item: Mapping[str, Any]) -> float:
    key = formats.named_column(item, ("weight",))
    if key is None:
        return 1.0
    try:
        value = float(item[key])
    except (TypeError, ValueError):
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(
            f"{where}: the weight must be a number above 0, and is {formats.brief(item[key])}: "
            "leave out rows that are not wanted"
        )
    return value
