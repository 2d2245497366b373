"""Pairs of pictures of one prompt and which of the two people prefer; and likes of single pictures.

A table (`data.tables.opened`: a folder, a file or `datasets:ID`) has one row a judgement, and its
columns say what they are by their names, whatever their capitals:

* the prompt: `prompt`, `prompts`, `caption` or `text`;
* the two pictures: `chosen` and `rejected`; or `image_0` and `image_1`, `jpg_0` and `jpg_1`;
* the label, a number in [0, 1], true or false: `label_0` or `label`, the probability that the first
  of the two is preferred (needed unless the pictures are called chosen and rejected);
* or votes: `votes_0`, `votes_1` and perhaps `ties` (`votes_chosen`, `votes_rejected`);
* perhaps `weight`, `rater` (or `user_id` …), `score_0` and `score_1`, `image_0_uid` and
  `image_1_uid`, and Pick-a-Pic's `has_label`.

Likes have `image` and `liked` instead; a table of pairs is read as two likes a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.data import judgements
from scoretune.data.images import scaled
from scoretune.data.judged_pictures import (
    check_sizes,
    has_pairs,
    like_columns,
    pair_columns,
    read_judged,
)
from scoretune.data.judgements import Identical, Merged, Raters, Ties, is_tie
from scoretune.data.pictures import Pictures
from scoretune.data.tables import opened


@dataclass(frozen=True)
class PairTable:
    """Pairs of pictures: n `captions`, `labels` [n], the probability that the first is preferred,
    relative `weights` [n] of mean 1, `votes` [n], how many raters stand behind each, and `scores`
    [n, 2] of the two sides where the table has them. `ties` [n] says how many of the votes are for
    neither side, where that is known. The pictures are read when they are asked for.
    """

    captions: tuple[str, ...]
    labels: Tensor
    weights: Tensor
    votes: Tensor
    scores: Tensor | None
    rows: tuple[int, ...]
    pictures: Pictures
    ties: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def counts(self) -> Tensor:
        """Votes for the first, for neither and for the second, [n, 3]: of a label alone, shares."""
        ties = torch.zeros_like(self.labels) if self.ties is None else self.ties
        total = self.votes.to(self.labels)
        first = (self.labels * total - ties / 2).clamp(min=0)
        return torch.stack([first, ties, (total - ties - first).clamp(min=0)], 1)

    def load(self, indices: Sequence[int], size: int = 0) -> tuple[Tensor, Tensor]:
        """The first and the second pictures of some pairs, [k, 3, H, W] each, in [0, 1].

        With a `size` the shorter side is scaled to it and the rest of the longer cut off; without,
        all must be equal. Raises UserError, with the row, for a picture that cannot be read, for
        two that are the same, and for a pair of two shapes (a cut would show other parts of them).
        """
        pairs = [self._pair(int(i), size) for i in indices]
        _check_equal([image for pair in pairs for image in pair], self.pictures.source)
        first, second = (torch.stack(side) for side in zip(*pairs, strict=True))
        return first, second

    def _pair(self, index: int, size: int) -> tuple[Tensor, Tensor]:
        row = self.rows[index]
        first, second = self.pictures.read(row)
        where = f"{self.pictures.source!r}, {self.pictures.places[row]}"
        check_sizes(where, first.shape, second.shape, scaled=size > 0)
        if not is_tie(float(self.labels[index])) and first.equal(second):
            raise Identical(f"{where}: the two pictures")
        return scaled(first, size), scaled(second, size)

    def order(self, lap: int, seed: int) -> list[int]:
        """The pairs of one pass, shuffled so that what lies together in a file is read together."""
        return _order(self.pictures, self.rows, lap, seed)

    def likes(self) -> LikeTable:
        """Both sides of every pair as likes: the first with the label, the second with the rest."""
        return LikeTable(
            captions=tuple(caption for caption in self.captions for _ in range(2)),
            liked=torch.stack([self.labels, 1 - self.labels], dim=1).flatten(),
            weights=self.weights.repeat_interleave(2),
            votes=self.votes.repeat_interleave(2),
            rows=tuple((row, side) for row in self.rows for side in range(2)),
            pictures=self.pictures,
        )


@dataclass(frozen=True)
class LikeTable:
    """Single pictures: n `captions`, `liked` [n], the probability that it is, relative `weights`
    [n] of mean 1 and `votes` [n]. `rows` says in which row and column each picture is."""

    captions: tuple[str, ...]
    liked: Tensor
    weights: Tensor
    votes: Tensor
    rows: tuple[tuple[int, int], ...]
    pictures: Pictures

    def __len__(self) -> int:
        return len(self.captions)

    def load(self, indices: Sequence[int], size: int = 0) -> Tensor:
        """Some pictures, [k, 3, H, W] in [0, 1], scaled as those of pairs are."""
        images = []
        for index in indices:
            row, side = self.rows[int(index)]
            images.append(scaled(self.pictures.read(row)[side], size))
        _check_equal(images, self.pictures.source)
        return torch.stack(images)

    def order(self, lap: int, seed: int) -> list[int]:
        """The pictures of one pass, as `PairTable.order`."""
        return _order(self.pictures, [row for row, _ in self.rows], lap, seed)


def read_pairs(where: str, *, ties: Ties = "keep", raters: Raters = "soft") -> PairTable:
    """The pairs of a table. Rows of one pair become one, their labels' mean, where raters are
    "soft"; a pair with label 1/2 is left out where ties are "drop".

    Raises UserError, in one line with the row, for what cannot be learned from.
    """
    table = opened(where, "pairs")
    read = read_judged(table, pair_columns(table), raters)
    pairs = [pair for pair in read.merged if ties == "keep" or not is_tie(pair.label)]
    if not pairs:
        raise UserError(f"{where!r} has no pair that can be learned from: all are ties or unjudged")
    scores = [pair.scores for pair in pairs if pair.scores is not None]
    return PairTable(
        captions=tuple(read.rows[pair.rows[0]].caption for pair in pairs),
        labels=torch.tensor([pair.label for pair in pairs]),
        weights=judgements.relative([pair.weight for pair in pairs]),
        votes=torch.tensor([pair.votes for pair in pairs]),
        scores=torch.tensor(scores) if len(scores) == len(pairs) else None,
        rows=tuple(read.rows[pair.rows[0]].row for pair in pairs),
        pictures=read.pictures,
        ties=_ties(pairs),
    )


def _ties(pairs: Sequence[Merged]) -> Tensor | None:
    """How many votes of each pair are for neither side; None where that is not known of all."""
    if any(pair.counts is None for pair in pairs):
        return None
    return torch.tensor([float(pair.counts[2]) for pair in pairs if pair.counts is not None])


def check_table(where: str, *, likes: bool) -> None:
    """Refuse, before a model is loaded, a table that is not there or lacks columns: UserError."""
    table = opened(where, "likes" if likes else "pairs")
    if likes and not has_pairs(table):
        like_columns(table)
    else:
        pair_columns(table)


def read_likes(where: str, *, raters: Raters = "soft") -> LikeTable:
    """The likes of a table, or both sides of its pairs. Raises UserError as `read_pairs` does."""
    table = opened(where, "likes")
    if has_pairs(table):
        return read_pairs(where, raters=raters).likes()
    read = read_judged(table, like_columns(table), raters)
    if not read.merged:
        raise UserError(f"{where!r} has no judged picture: nothing can be learned from it")
    return LikeTable(
        captions=tuple(read.rows[like.rows[0]].caption for like in read.merged),
        liked=torch.tensor([like.label for like in read.merged]),
        weights=judgements.relative([like.weight for like in read.merged]),
        votes=torch.tensor([like.votes for like in read.merged]),
        rows=tuple((read.rows[like.rows[0]].row, 0) for like in read.merged),
        pictures=read.pictures,
    )


def _check_equal(images: Sequence[Tensor], source: str) -> None:
    sizes = {tuple(image.shape[1:]) for image in images}
    if len(sizes) > 1:
        (a, b), (c, d) = sorted(sizes)[:2]
        raise UserError(
            f"the pictures of {source!r} differ in size ({b}x{a} and {d}x{c}): make them equal, or "
            "say to which size they are scaled"
        )


def _order(pictures: Pictures, rows: Sequence[int], lap: int, seed: int) -> list[int]:
    """A random order of things by their rows, in which each block of rows is read once: blocks are
    shuffled, and the things of as many as are kept at once."""
    generator = torch.Generator().manual_seed(seed * 7919 + lap)
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(pictures.block(row), []).append(index)
    blocks, together = list(groups.values()), pictures.together
    shuffled = [blocks[i] for i in torch.randperm(len(blocks), generator=generator)]
    order: list[int] = []
    for start in range(0, len(shuffled), together):
        mixed = [i for block in shuffled[start : start + together] for i in block]
        order += [mixed[i] for i in torch.randperm(len(mixed), generator=generator)]
    return order
