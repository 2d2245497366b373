"""Judged pictures: pairs of one prompt, and single likes, encoded as they are asked for.

The pictures of an update are read, encoded and dropped; nothing of the set stays in memory but its
captions and labels. Update k takes the rows after those of update k − 1, in an order that the table
shuffles anew each lap, and what else is random follows from (seed, k): so a run that is resumed,
and one of several processes, learns from the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError
from scoretune.core.records import LikedExamples, PairExamples, Round, Stateless, spans
from scoretune.data.pairs import LikeTable, PairTable
from scoretune.diffusion import estimates, noise
from scoretune.diffusion.matching import weightings
from scoretune.policy import Policy
from scoretune.preference import (
    agreement_scale,
    dispersion,
    phi_star,
    score_offset,
    vote_agreement,
)
from scoretune.training.sources.base import update_generator
from scoretune.training.sources.dataset import AT_ONCE

Scale = Callable[[Sequence[int]], Tensor]
"""c(x) of some pairs of a table, [k]."""
CPU = torch.device("cpu")


@dataclass
class Pairs(Stateless):
    """Pairs of a table, `batch` an update, their pictures scaled to `size` (0: as they are).

    `scale` gives each its contextual scale. With an `offset` the first side should be ahead by so
    much times the difference of their scores (ODPO).
    """

    table: PairTable
    policy: Policy
    size: int
    batch: int
    seed: int
    scale: Scale | None = None
    offset: float = 0.0
    _order: Laps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = Laps(self.table, self.seed)
        if self.offset and self.table.scores is None:
            raise UserError(
                "objective.preset=odpo asks for a margin by how far the scores of a pair lie "
                "apart, and the data have none: add columns score_0 and score_1"
            )

    def __call__(self, update: int) -> Round:
        rows = self._order.mine(update, self.batch)
        (first, second), condition = encoded_rows(self.table, rows, self.policy, self.size, 2)
        generator = update_generator(self.seed, update)
        scores, margin = self.table.scores, None
        if self.offset and scores is not None:
            margin = score_offset(scores[rows, 0], scores[rows, 1], self.offset)
        batch = PairExamples(
            first=first,
            second=second,
            condition=condition,
            label=self.table.labels[rows],
            weight=self.table.weights[rows],
            noise=noise.randn(first.shape, generator),
            share=noise.rand((len(rows),), generator),
            scale=None if self.scale is None else self.scale(rows),
            margin=margin,
            coin=noise.rand((len(rows),), generator),
        )
        return Round([batch], {}, counts=(self.batch,))


@dataclass
class Likes(Stateless):
    """Single pictures of a table, `batch` an update, with the probability that each is liked."""

    table: LikeTable
    policy: Policy
    size: int
    batch: int
    seed: int
    _order: Laps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._order = Laps(self.table, self.seed)

    def __call__(self, update: int) -> Round:
        rows = self._order.mine(update, self.batch)
        (x0,), condition = encoded_rows(self.table, rows, self.policy, self.size, 1)
        generator = update_generator(self.seed, update)
        batch = LikedExamples(
            x0=x0,
            condition=condition,
            liked=self.table.liked[rows],
            weight=self.table.weights[rows],
            noise=noise.randn(x0.shape, generator),
            share=noise.rand((len(rows),), generator),
            coin=noise.rand((len(rows),), generator),
        )
        return Round([batch], {}, counts=(self.batch,))


# ------------------------------------------------------------------------------ what they share


@dataclass
class Laps:
    """The rows of a table lap after lap, each in an order of its own."""

    table: PairTable | LikeTable
    seed: int
    _lap: tuple[int, list[int]] = (-1, [])

    def mine(self, update: int, batch: int) -> list[int]:
        """This process's share of the rows of an update."""
        part = distributed.team().rows(batch)
        return list(self._rows(update * batch + part.start, update * batch + part.stop))

    def _rows(self, start: int, stop: int) -> Iterator[int]:
        for place in range(start, stop):
            lap, within = divmod(place, len(self.table))
            if self._lap[0] != lap:
                self._lap = lap, self.table.order(lap, self.seed)
            yield self._lap[1][within]


def encoded_rows(
    table: PairTable | LikeTable, rows: Sequence[int], policy: Policy, size: int, count: int
) -> tuple[list[Tensor], Condition]:
    """The pictures of rows as clean states [B, *S], those of each of `count` sides, and their
    captions: read and encoded a few at a time, and then in the computer's memory."""
    sides: list[list[Tensor]] = [[] for _ in range(count)]
    conditions = []
    for s in spans(len(rows), max(1, policy.at_most(AT_ONCE) // count)):
        loaded = table.load(rows[s], size)
        pictures = loaded if isinstance(loaded, tuple) else (loaded,)
        for picture, states in zip(pictures, sides, strict=True):
            states.append(policy.embed(picture.to(policy.device)).to(CPU))
        conditions.append(policy.encode([table.captions[row] for row in rows[s]]).to(CPU))
    return [torch.cat(states) for states in sides], Condition.joined(conditions)


# ------------------------------------------------------------------- how disputed a prompt is


def dispersion_of(
    kind: Literal["none", "votes", "model"],
    table: PairTable,
    policy: Policy,
    size: int,
    seed: int,
) -> Scale | None:
    """c(x) of pairs, of mean 1, by what `kind` says; see `vote_scales` and `Unsure`."""
    if kind == "none":
        return None
    if kind == "model":
        return Unsure(table, policy, size, seed)
    scales = vote_scales(table)
    return lambda rows: scales[list(rows)]


def vote_scales(table: PairTable) -> Tensor:
    """c(x) of each pair, [n] of mean 1, by its raters: how far they agree, the log odds of their
    votes, a mean over the prompt's pairs. Raises UserError where all prompts are alike in that."""
    first = table.votes * table.labels
    agreed = vote_agreement(first, table.votes - first)
    prompts = {text: number for number, text in enumerate(dict.fromkeys(table.captions))}
    which = torch.tensor([prompts[text] for text in table.captions])
    total = agreed.new_zeros(len(prompts)).index_add_(0, which, agreed)
    means = (total / torch.bincount(which))[which]
    if float(means.max() - means.min()) < 1e-6:
        raise UserError(
            "objective.dispersion=votes tells prompts apart by how far raters disagree, and in "
            "these data all do alike (has every pair one rater?): set objective.dispersion=model"
        )
    return agreement_scale(means, float(means.mean())).float()


@dataclass
class Unsure:
    """How unsure the pretrained model is of a prompt's pictures: the mean squared error of ε̂ on
    the prompt's first pair, over a few times and both sides.

    1 is the error of a model that knows nothing, so that this is what the entropy of the next token
    over its maximum is in texts (arXiv 2410.04203): by the bound of `matching.bound` the error is
    what a picture's log-likelihood is made of. φ* is of `SAMPLED` prompts from all over the table.
    A prompt is looked at once.
    """

    table: PairTable
    policy: Policy
    size: int
    seed: int
    _first: dict[str, int] = field(init=False, repr=False)
    _entropies: dict[str, float] = field(init=False, default_factory=dict, repr=False)
    _phi_star: float = field(init=False)

    def __post_init__(self) -> None:
        self._first = {text: i for i, text in reversed(list(enumerate(self.table.captions)))}
        prompts = sorted(self._first, key=self._first.__getitem__)
        step = max(1, len(prompts) // SAMPLED)
        some = torch.tensor([self._entropy(text) for text in prompts[::step]])
        if float(some.max() - some.min()) < 1e-6:
            raise UserError(
                "objective.dispersion=model tells prompts apart by how unsure the model is of "
                "their pictures, and it is so of all alike: leave it out, or set it to votes"
            )
        self._phi_star = phi_star(some)

    def __call__(self, rows: Sequence[int]) -> Tensor:
        entropies = torch.tensor([self._entropy(self.table.captions[row]) for row in rows])
        return dispersion(entropies, self._phi_star)

    def _entropy(self, prompt: str) -> float:
        if prompt not in self._entropies:
            self._entropies[prompt] = self._measured(prompt)
        return self._entropies[prompt]

    @torch.no_grad()
    def _measured(self, prompt: str) -> float:
        row, policy = self._first[prompt], self.policy
        process, prediction = policy.backbone.process, policy.backbone.prediction
        device, generator = policy.device, torch.Generator().manual_seed(self.seed + row)
        sides = [policy.embed(s.to(device)) for s in self.table.load([row], self.size)]
        x0 = torch.cat(sides).repeat(TIMES, *[1] * (sides[0].dim() - 1))
        place = (torch.arange(TIMES) + 0.5) / TIMES
        t = (process.horizon * place).repeat_interleave(2).to(device)
        eps = torch.randn((TIMES, *x0.shape[1:]), generator=generator).repeat_interleave(2, 0)
        eps = eps.to(device)
        tokens = policy.encode([prompt]).of_one(len(x0)).tokens
        x = estimates.perturb(process, t, x0, eps)
        goal = estimates.target(process, prediction, t, x0, eps)
        with policy.reference(), policy.uncounted():
            output = policy.predict(x, t, tokens).float()
        error = (output - goal).square().flatten(1).mean(1)
        error = error / weightings.conversion(process, prediction, t) ** 2
        return float(error.clamp(max=1).mean())


SAMPLED, TIMES = 64, 4
"""Prompts that φ* is a mean over, and times at which the model is asked about each picture."""
