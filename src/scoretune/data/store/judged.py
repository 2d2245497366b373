"""A store as a table of judgements, so that all that reads such a table learns from a store."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from scoretune.core.errors import UserError
from scoretune.data.store import open_store, split_moment
from scoretune.data.store.records import Sample

if TYPE_CHECKING:
    from scoretune.data.store.store import Store

LABELS = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
"""What a choice says of the first: that both are bad prefers neither. A skip says nothing."""
PAIRS = ("prompt", "image_0", "image_1", "image_0_uid", "image_1_uid", "label_0", "rater")
LIKES = ("prompt", "image", "liked", "rater")

Row = tuple[str, dict[str, Any]]
"""Where it stands, and its cells by the names of their columns."""


def judged_rows(where: str, kind: str) -> tuple[Store, tuple[str, ...], list[Row]]:
    """The open store, the columns and the rows of its judgements, one row a judgement.

    Where `kind` is "likes" and there are any, they are likes; else pairs: votes, what rankings say
    of every two of their samples, and labels of the pairs that have one. With a moment
    (`STORE@SECONDS`) only what was there then counts. Raises UserError where nothing was judged.
    """
    place, moment = split_moment(where)
    store = open_store(place)
    at = float("inf") if moment is None else moment
    samples = {sample.id: sample for sample in store.samples()}
    files = {filed.sha256: store.folder.relative(filed) for filed in store.pictures()}
    if kind == "likes" and (likes := list(_likes(store, samples, files, at))):
        return store, LIKES, likes
    pairs = list(_pairs(store, samples, files, at))
    if not pairs:
        raise UserError(
            f"the store {store.name!r} has no judged pair yet: vote on some with scoretune studio, "
            "or import some with scoretune feedback import"
        )
    return store, PAIRS, pairs


def _pairs(
    store: Store, samples: Mapping[int, Sample], files: Mapping[str, str], at: float
) -> Iterator[Row]:
    def row(where: str, first: int, second: int, label: float, rater: int | None) -> Row:
        a, b = samples[first], samples[second]
        sides = (files[a.picture], files[b.picture], a.picture, b.picture)
        who = "" if rater is None else str(rater)
        return where, dict(zip(PAIRS, (a.prompt, *sides, label, who), strict=True))

    pairs = {pair.id: pair for pair in store.pairs() if pair.created <= at}
    for pair in pairs.values():
        if pair.label is not None:
            yield row(f"pair {pair.id}", pair.first, pair.second, pair.label, None)
    for vote in store.votes(at=at):
        of = pairs[vote.pair]
        if of.label is None and vote.choice != "skip":
            said = LABELS[vote.choice]
            yield row(f"vote {vote.id}", of.first, of.second, said, vote.rater)
    for ranking in store.rankings():
        if ranking.created > at:
            continue
        placed = [(id, place) for place, ids in enumerate(ranking.order) for id in ids]
        for (a, above), (b, below) in itertools.combinations(placed, 2):
            if samples[a].picture != samples[b].picture:
                label = 0.5 if above == below else 1.0
                yield row(f"ranking {ranking.id}", a, b, label, ranking.rater)


def _likes(
    store: Store, samples: Mapping[int, Sample], files: Mapping[str, str], at: float
) -> Iterator[Row]:
    for like in store.likes():
        if like.created <= at:
            sample = samples[like.sample]
            cells = (sample.prompt, files[sample.picture], like.liked, str(like.rater))
            yield f"like {like.id}", dict(zip(LIKES, cells, strict=True))
