"""Pairs of the policy's own samples, ranked by the reward: the source of online DPO."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.config import Ranking
from scoretune.core.records import Minibatches, PairExamples, Round, spans
from scoretune.diffusion.noise import rand, randn
from scoretune.rewards.weighted import reward_metrics
from scoretune.training.sources.base import dealt_rows, mean_over_processes
from scoretune.training.sources.dataset import AT_ONCE
from scoretune.training.sources.on_policy import OnPolicy
from scoretune.training.sources.ranking import (
    RankedPairs,
    kept,
    ranked_pairs,
    ranking_metrics,
    reward_scales,
    rows_of,
    vote_scales,
)

Answer = Callable[[PairExamples], Tensor]
"""What the policy says of both noisy states of pairs, [B, 2, *S]."""


@dataclass
class Ranked:
    """Draws `paths`' samples, pairs those of a prompt by their rewards, and deals the pairs out.

    Where they are learned from is drawn here: each epoch has times and noise of its own.
    `dispersion` says by what a prompt has its contextual scale. With an `offset` the better side
    should be ahead by so much times the difference of the rewards (ODPO). Where the policy
    that drew the samples is what is compared with, `reference` says what it answers.
    """

    paths: OnPolicy
    ranking: Ranking
    dispersion: Literal["none", "votes", "samples"] = "none"
    offset: float = 0.0
    reference: Answer | None = None

    def __call__(self, update: int) -> Round:
        sizes = self.paths.sizes
        texts, path, scores, generator = self.paths.draw(update)
        pairs = ranked_pairs(scores.local, sizes.group, self.ranking, generator)
        examples = _examples(path.final, path.condition, pairs, sizes.epochs, generator)
        examples = self._scaled(examples, pairs, scores.local)
        metrics = reward_metrics(scores) | mean_over_processes(ranking_metrics(pairs))
        index = kept(pairs)
        rows, counts = self._dealt(pairs.take(index), len(texts), generator)
        every = torch.cat([index + epoch * len(pairs.first) for epoch in range(sizes.epochs)])
        examples = self._compared(examples.take(every.to(examples.first.device)))
        batches = Minibatches(examples, rows)
        return Round(batches, metrics, sizes.accumulate, counts, sizes.epochs)

    def _scaled(self, examples: PairExamples, pairs: RankedPairs, rewards: Tensor) -> PairExamples:
        """With the contextual scale and the margin of each pair."""
        sizes, like = self.paths.sizes, examples.label
        margin = self.offset * pairs.gap if self.offset else None
        scale = None
        if self.dispersion == "votes":
            scale = vote_scales(pairs, self.ranking.raters)[pairs.prompt]
        elif self.dispersion == "samples":
            scale = reward_scales(rewards, sizes.group, self.ranking.temperature)[pairs.prompt]
        scale, margin = (
            x if x is None else x.repeat(sizes.epochs).to(like) for x in (scale, margin)
        )
        return replace(examples, scale=scale, margin=margin)

    def _compared(self, examples: PairExamples) -> PairExamples:
        """With what the acting policy says of the noisy states, where that is the reference."""
        if self.reference is None:
            return examples
        policy = self.paths.policy
        parts = []
        for s in spans(len(examples), max(1, policy.at_most(AT_ONCE) // 2)):
            part = examples.take(s).to(policy.device)
            parts.append(self.reference(part).to(examples.first.device))
        return replace(examples, reference=torch.cat(parts) if parts else None)

    def _dealt(
        self, pairs: RankedPairs, samples: int, generator: torch.Generator
    ) -> tuple[list[Tensor], tuple[int, ...]]:
        """The rows of each minibatch; those of an epoch are so many further on as the epoch is."""
        sizes = self.paths.sizes
        deal = distributed.deal(pairs.row, pairs.prompt, samples)
        rows, counts = dealt_rows(sizes, generator, deal)
        each = len(rows) // sizes.epochs
        shifted = [part + (place // each) * len(pairs.first) for place, part in enumerate(rows)]
        return shifted, counts

    def state(self) -> dict[str, Any]:
        return self.paths.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.paths.restore(state)


def _examples(
    x0: Tensor, condition: Condition, pairs: RankedPairs, epochs: int, generator: torch.Generator
) -> PairExamples:
    """All pairs of samples x0 [B, *S], once an epoch, with what chance decides about each."""
    device, draws = x0.device, epochs * rows_of(pairs)
    prompts = len(pairs.first) * epochs // draws
    noise = [randn((prompts, *x0.shape[1:]), generator) for _ in range(draws)]
    uniform = [rand((prompts, 2), generator) for _ in range(draws)]
    share, coin = torch.cat(uniform).unbind(1)
    first, second = (side.repeat(epochs).to(device) for side in (pairs.first, pairs.second))
    return PairExamples(
        first=x0[first],
        second=x0[second],
        condition=condition.take(first.to(condition.device)),
        label=pairs.label.repeat(epochs).to(device),
        weight=pairs.weight.repeat(epochs).to(device),
        noise=torch.cat(noise).to(x0),
        share=share.to(device),
        coin=coin.to(device),
    )
