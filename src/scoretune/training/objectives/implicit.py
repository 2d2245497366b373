"""The implicit log-likelihood of clean states, by what a network says of one noisy state of each.

    ℓ_θ(x0) = −½·w·‖target − output_θ‖²,   x_t = α x0 + σ ε

in one of two units (`diffusion.matching.bound`): in nats w makes it an unbiased estimate of the
bound of ln p_θ(x0), so that a β means the same whatever the times are drawn by; or w is one over
the number of elements at all times, and β is Diffusion-DPO's B (arXiv 2311.12908).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

from scoretune.core.conditions import Tokens, joined
from scoretune.core.records import LikedExamples, PairExamples
from scoretune.diffusion import estimates
from scoretune.diffusion.matching import bound, weightings
from scoretune.diffusion.matching.weightings import TimesName
from scoretune.diffusion.transitions import wide
from scoretune.policy import Policy
from scoretune.training.objectives.base import with_dropped_prompts

Unit: TypeAlias = Literal["mean", "nats"]
Drawn: TypeAlias = PairExamples | LikedExamples
"""Examples with what chance decided about them."""


@dataclass(frozen=True)
class Sides:
    """What networks say of K clean states each of B examples: log-likelihoods `policy` and
    `reference` [K, B], the mean squared `error` [K, B] of an element of the output, and how the
    outputs miss their target, `miss` [K, B, *S], and differ from the reference's, `change`.
    `pretrained_error` is the pretrained model's, where that is the reference. Without a reference
    what needs one is None."""

    policy: Tensor
    error: Tensor
    miss: Tensor
    reference: Tensor | None = None
    change: Tensor | None = None
    pretrained_error: Tensor | None = None


class Noised(NamedTuple):
    """Noisy states x [K·B, *S], all of the first side before the next, their `times` [K·B] and
    `tokens`, what the network should say of them, and the `weight` [B] on the mean squared error of
    an element."""

    x: Tensor
    times: Tensor
    tokens: Tokens
    target: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class Likelihood:
    """ℓ of clean states, each seen at the time and with the noise of its example.

    Times are drawn on [t_min, horizon] by the law `times`, and its factor is part of w. `dropout`
    is the share of prompts that are replaced by the empty one, for both sides alike.
    """

    policy: Policy
    unit: Unit = "mean"
    times: TimesName = "uniform"
    t_min: float = 1e-3
    dropout: float = 0.0

    def __call__(self, states: Sequence[Tensor], drawn: Drawn, *, reference: bool) -> Sides:
        """`states`: K clean states [B, *S] of each example."""
        count, noised = len(states), self._noised(states, drawn)
        before = None
        if reference and drawn.reference is not None:
            before = torch.cat(drawn.reference.unbind(1))
        elif reference:
            before = self._reference(noised)
        output = self._output(noised)

        miss, weight = _by_side(output - noised.target, count), noised.weight
        error = miss.square().flatten(2).mean(2)
        if before is None:
            return Sides(-weight / 2 * error, error, miss)
        other = _by_side(before - noised.target, count).square().flatten(2).mean(2)
        change = _by_side(output - before, count)
        return Sides(
            *(-weight / 2 * error, error, miss, -weight / 2 * other, change),
            pretrained_error=other if drawn.reference is None else None,
        )

    @torch.no_grad()
    def outputs(self, states: Sequence[Tensor], drawn: Drawn) -> Tensor:
        """What the policy says now of the same noisy states, [B, K, *S]: the `reference` of what it
        learns next."""
        return _by_side(self._output(self._noised(states, drawn)), len(states)).transpose(0, 1)

    def _noised(self, states: Sequence[Tensor], drawn: Drawn) -> Noised:
        count, backbone = len(states), self.policy.backbone
        t, weight = self._times(drawn.share, math.prod(drawn.noise.shape[1:]))
        tokens = with_dropped_prompts(drawn.condition, drawn.coin, self.dropout)
        times, tokens = t.repeat(count), joined([tokens] * count)
        x0, noise = torch.cat(list(states)), torch.cat([drawn.noise] * count)
        return Noised(
            estimates.perturb(backbone.process, times, x0, noise),
            times,
            tokens,
            estimates.target(backbone.process, backbone.prediction, times, x0, noise),
            weight,
        )

    def _times(self, share: Tensor, elements: int) -> tuple[Tensor, Tensor]:
        """The times [B], and the weight [B] on the mean squared error of an element of so many."""
        backbone = self.policy.backbone
        t, factor = weightings.TIMES[self.times](backbone.process, share, self.t_min)
        if self.unit == "mean":
            return t, factor
        weight = bound.weight_of_nats(backbone.process, backbone.prediction, t, self.t_min)
        return t, factor * weight * elements

    @torch.no_grad()
    def _reference(self, noised: Noised) -> Tensor:
        with self.policy.reference():
            return self._output(noised)

    def _output(self, noised: Noised) -> Tensor:
        self.policy.calls += len(noised.x)
        return wide(self.policy.predict(noised.x, noised.times, noised.tokens))


def _by_side(rows: Tensor, count: int) -> Tensor:
    """[K·B, …] as [K, B, …]."""
    return rows.reshape(count, -1, *rows.shape[1:])
