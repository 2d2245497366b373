"""What a reward model learns from: features of pictures and prompts, votes on pairs, rankings."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.data.pairs import PairTable
from scoretune.data.rankings import Ranking
from scoretune.data.scenes.world import asks_by_text
from scoretune.preference import TieModel
from scoretune.rewards.networks.vote_heads import Pixels, View, Words

TOGETHER = 16  # pairs whose pictures are in memory at once
LARGEST = 128  # pixels a side, of what a small network of one's own is for
FEW = 10  # prompts: with fewer, pairs are held out and not prompts

Note = Callable[[int, int], None]
"""Told how many pairs and rankings have been read, and of how many."""


@dataclass(frozen=True)
class Votes:
    """Pairs of m pictures: `pictures` [m, …] and `prompts` [p, …] are features; `pairs` [n, 2] says
    which pictures, `prompt_of` [n] which prompt, `counts` [n, 3] the votes for the first, for
    neither and for the second. The pairs from `ranked` on are those of rankings.

    `rankings` have the places of their pictures, their prompt and their ranks. `groups` [n] are
    what is held out together: a pair's prompt, or the pair where prompts are few.
    """

    pictures: Tensor
    prompts: Tensor
    pairs: Tensor
    prompt_of: Tensor
    counts: Tensor
    ranked: int
    rankings: tuple[tuple[tuple[int, ...], int, tuple[float, ...]], ...]
    groups: tuple[str, ...]

    def gaps(self, scores: Callable[[Tensor, Tensor], Tensor], places: Tensor) -> Tensor:
        """r₁ − r₂ of the pairs in these places, [k]."""
        prompts = self.prompts[self.prompt_of[places]]
        seen = self.seen(self.pictures[self.pairs[places].T.flatten()])
        first, second = scores(seen, torch.cat([prompts, prompts])).chunk(2)
        return first - second

    def seen(self, features: Tensor) -> Tensor:
        """Features as heads take them: pictures are kept in bytes."""
        return features.float() / 255 if features.dtype == torch.uint8 else features


def kind_of_features(table: PairTable | None, rankings: Sequence[Ranking]) -> str:
    """What features=auto is: `scenes` where every prompt is of the shipped world, whose pictures
    are 32 pixels wide and high, and else `pixels`. Raises UserError."""
    captions = [] if table is None else list(table.captions)
    captions += [ranking.caption for ranking in rankings]
    if not asks_by_text().keys() >= set(captions):
        return "pixels"
    return "scenes" if _first(table, rankings).shape[-2:] == (32, 32) else "pixels"


def _first(table: PairTable | None, rankings: Sequence[Ranking]) -> Tensor:
    return table.load([0])[0] if table is not None else rankings[0].load()


def side_of(table: PairTable | None, rankings: Sequence[Ranking], side: int) -> int:
    """Pixels a side of the pictures for a network of their own. Raises UserError."""
    if not side:
        side = max(_first(table, rankings).shape[-2:])
    if side > LARGEST:
        raise UserError(
            f"features=pixels is for small pictures, and these are {side} pixels wide: set side=64,"
            " or take the features of a CLIP, features=openai/clip-vit-large-patch14"
        )
    return side


def read(table: PairTable | None, rankings: Sequence[Ranking], view: View, note: Note) -> Votes:
    """Everything through the view, a few pictures at a time. Raises UserError, with the row."""
    captions = [] if table is None else list(table.captions)
    texts = list(dict.fromkeys([*captions, *(ranking.caption for ranking in rankings)]))
    total = len(captions) + len(rankings)
    size = view.side if isinstance(view, Pixels) else 0
    features: list[Tensor] = []
    if table is not None:
        for span in spans(len(table), TOGETHER):
            loaded = [table.load([i], size) for i in range(len(table))[span]]
            images = [image for first, second in loaded for image in (first[0], second[0])]
            features.append(_features(view, images))
            note(min(span.stop, len(table)), total)
    pairs = [(2 * i, 2 * i + 1) for i in range(len(captions))]
    prompt_of = [texts.index(caption) for caption in captions]
    counts = [] if table is None else table.counts().tolist()
    start, listed = 2 * len(captions), []
    for number, ranking in enumerate(rankings, 1):
        features.append(_features(view, list(ranking.load(size))))
        places = tuple(range(start, start + len(ranking.files)))
        prompt = texts.index(ranking.caption)
        listed.append((places, prompt, ranking.ranks))
        for (a, i), (b, j) in combinations(zip(ranking.ranks, places, strict=True), 2):
            pairs.append((i, j))
            prompt_of.append(prompt)
            counts.append([float(a < b), float(a == b), float(a > b)])
        start += len(places)
        note(len(captions) + number, total)
    by_prompt = len(texts) >= FEW
    return Votes(
        pictures=torch.cat(features),
        prompts=view.prompts(texts),
        pairs=torch.tensor(pairs),
        prompt_of=torch.tensor(prompt_of),
        counts=torch.tensor(counts),
        ranked=len(captions),
        rankings=tuple(listed),
        groups=tuple(texts[i] if by_prompt else str(n) for n, i in enumerate(prompt_of)),
    )


@torch.no_grad()
def _features(view: View, images: Sequence[Tensor]) -> Tensor:
    """Of pictures of any sizes, together where they are equal."""
    if len({image.shape for image in images}) == 1:
        seen = view.pictures(torch.stack(list(images)))
    else:
        seen = torch.cat([view.pictures(image[None]) for image in images])
    return (seen * 255).round().byte() if isinstance(view, Pixels) else seen.cpu()


def words_of(table: PairTable | None, rankings: Sequence[Ranking]) -> Words:
    """The words of all prompts."""
    captions = [] if table is None else list(table.captions)
    return Words.of([*captions, *(ranking.caption for ranking in rankings)])


# ------------------------------------------------------------------------------ the split


def places_of_groups(groups: Sequence[str], seed: int, purpose: str) -> dict[str, float]:
    """A number in [0, 1) for each group, which stays when others come: by its hash."""
    return {
        group: int.from_bytes(
            hashlib.blake2b(f"{seed} {purpose} {group}".encode(), digest_size=7).digest()
        )
        / 2**56
        for group in set(groups)
    }


def split(votes: Votes, held_out: float, folds: int, seed: int) -> Tensor:
    """Which fold every pair is in, [n], from 0; −1 for those that are held out.

    A prompt keeps its fold when votes on others come. Raises UserError where nothing is left.
    """
    places = places_of_groups(votes.groups, seed, "held out")
    if len(places) < 3:
        raise UserError(
            f"there are votes on {len(places)} pairs: a reward model needs three to learn from "
            "some and be measured on others"
        )
    order = sorted(places, key=lambda group: places[group])
    out = {group for group in order[:-2] if places[group] < held_out} or {order[0]}
    inside = places_of_groups(votes.groups, seed, "fold")
    return torch.tensor(
        [-1 if group in out else int(inside[group] * folds) for group in votes.groups]
    )


def kind_of_ties(ties: TieModel, counts: Tensor) -> TieModel:
    """The model of ties; Bradley–Terry where nobody voted for a tie, or everybody did."""
    some = 0 < float(counts[:, 1].sum()) < float(counts.sum())
    return ties if some else "bradley_terry"
