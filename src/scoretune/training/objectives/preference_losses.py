"""The losses of `scoretune.preference` on what noisy states say of pairs and of likes, by settings.

A diffusion or flow model has no log-likelihood at hand, so that each side of a pair enters the
losses by what one noisy state says of it (`implicit.Likelihood`), time and noise being the same for
both (Diffusion-DPO, arXiv 2311.12908). A loss that is convex in the margin is an upper bound, by
Jensen, of the one with the integral over time inside.

Both sides go through the network in one batch; where a loss compares with the pretrained model that
is asked in the same way, without a gradient, by the same policy with its adapter off. Keeping its
answers would need a noise that never changes, which a model soon knows by heart, so that they are
computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from scoretune.core import config
from scoretune.core.errors import UserError, unknown, user_errors
from scoretune.core.records import LikedExamples, Loss, PairExamples
from scoretune.diffusion.matching import bound, weightings
from scoretune.policy import Policy
from scoretune.preference import (
    PRESETS,
    Preset,
    implicit_margin,
    pairwise_loss,
    phi_of_scale,
    single_loss,
)
from scoretune.training.objectives.implicit import Likelihood, Sides

DSPO = "dspo"
"""A preset of pictures alone: its loss is no function of likelihoods."""
ANCHORED, UNANCHORED, OF_DSPO = 5000.0, 100.0, 0.01
"""B: Diffusion-DPO's (arXiv 2311.12908); that of losses which compare with less than the whole
reference, where the difference of two pictures' errors is itself the margin, not how far training
moved it, and 5000 would saturate most pairs before the first update; and DSPO's."""
TEXT_BETA = 10.0
"""β of RainbowPO's home advantage, a difference per token: as rewards it carries over."""
MEMORY = 0.9
"""Of the mean log-ratio that KTO compares with, an update."""


# ------------------------------------------------------------------------------------- of pairs


@dataclass(frozen=True)
class Pairwise:
    """A preset's loss of pairs; `beta` is of the likelihood's unit."""

    likelihood: Likelihood
    preset: Preset
    beta: float

    def __call__(self, pairs: PairExamples) -> Loss:
        sides = self.likelihood(
            (pairs.first, pairs.second), pairs, reference=self.preset.needs_reference
        )
        values = sides.policy if sides.reference is None else (*sides.policy, *sides.reference)
        scale = self._scale(pairs.scale)
        each = pairwise_loss(
            *values,
            preset=self.preset,
            beta=self.beta,
            lengths=self._lengths(pairs),
            margin=pairs.margin,
            scale=scale,
            label=pairs.label,
        )
        bare = replace(
            self.preset, home_advantage=0.0, target_margin=0.0, offset=False, chosen_floor=0.0
        )
        with torch.no_grad():
            gap = implicit_margin(
                *values,
                preset=bare,
                beta=self.beta,
                lengths=self._lengths(pairs),
                scale=scale,
            )
        return Loss((pairs.weight * each).mean(), pair_metrics(sides, gap, pairs.label))

    def _lengths(self, pairs: PairExamples) -> tuple[Tensor, Tensor]:
        """Elements of both sides: 1 where the likelihood is of an element already."""
        count = 1.0 if self.likelihood.unit == "mean" else math.prod(pairs.first.shape[1:])
        length = torch.full_like(pairs.label, count)
        return length, length

    def _scale(self, scale: Tensor | None) -> Tensor | None:
        """c(x), or the φ(x) of which it is −2 ln φ, as the preset wants it."""
        return phi_of_scale(scale) if scale is not None and self.preset.scaling == "phi" else scale


@dataclass(frozen=True)
class ScoreMatched:
    """DSPO: the preferred side is matched, and the more the less the policy prefers it already.

        ‖(ε̂_θ − ε) − B(1 − σ(a))·(ε̂_θ − ε̂_ref)‖²,   a = −(B/2)(d_w − d_l)

    (Zhu et al., ICLR 2025, as its code has it: a mean over elements.) The weight B(1 − σ(a)) is
    part of the target, so that no gradient goes through it; the published code lets one through.
    """

    likelihood: Likelihood
    beta: float

    def __call__(self, pairs: PairExamples) -> Loss:
        sides = self.likelihood((pairs.first, pairs.second), pairs, reference=True)
        assert sides.reference is not None and sides.change is not None
        with torch.no_grad():
            gap = implicit_margin(*sides.policy, *sides.reference, preset="dpo", beta=self.beta)
        first, second = (
            dspo(sides.miss[side], sides.change[side], self.beta * torch.sigmoid(-sign * gap))
            for side, sign in ((0, 1), (1, -1))
        )
        each = pairs.label * first + (1 - pairs.label) * second
        return Loss((pairs.weight * each).mean(), pair_metrics(sides, gap, pairs.label))


def dspo(miss: Tensor, change: Tensor, pull: Tensor) -> Tensor:
    """mean ‖miss − pull·change‖² over elements, [B]; miss and change [B, *S], pull [B]."""
    return (miss.flatten(1) - pull[:, None] * change.flatten(1)).square().mean(1)


def agreement(reward: Tensor, label: Tensor) -> dict[str, Tensor]:
    """How far implicit rewards agree with labels, the probabilities that they are positive: means
    of any shape, without gradient.

    `implicit_accuracy`: whether the sign is the preferred one, ½ of `tied` labels;
    `implicit_margin`: the reward, weighted by how sure the label is.
    """
    sure = 2 * label - 1
    return {
        "implicit_accuracy": ((reward * sure).sign().mean() + 1) / 2,
        "tied": (sure == 0).float().mean(),
        "implicit_margin": (reward * sure).mean(),
    }


def pair_metrics(sides: Sides, gap: Tensor, label: Tensor) -> dict[str, Tensor]:
    """Numbers worth logging, means over pairs: how far the `gap` of implicit rewards agrees with
    the label, the error on the other side, and what `of_preferred` says."""
    preferred = torch.stack([label, 1 - label])
    with torch.no_grad():
        return {
            **agreement(gap, label),
            "error_rejected": _share((1 - preferred) * sides.error, 1 - preferred),
            **of_preferred(sides, preferred),
        }


@torch.no_grad()
def of_preferred(sides: Sides, preferred: Tensor) -> dict[str, Tensor]:
    """The mean error on samples, by how far each is `preferred` [K, B], `error_chosen`; the
    pretrained model's on the same, `error_pretrained`; and `output_shift`, the mean squared change
    of an element of the output since the reference."""
    numbers = {"error_chosen": _share(preferred * sides.error, preferred)}
    if sides.pretrained_error is not None:
        numbers["error_pretrained"] = _share(preferred * sides.pretrained_error, preferred)
    if sides.change is not None:
        numbers["output_shift"] = sides.change.square().mean()
    return numbers


def _share(part: Tensor, weight: Tensor) -> Tensor:
    return part.sum() / weight.sum().clamp_min(torch.finfo(weight.dtype).tiny)


# ------------------------------------------------------------------------------------- of likes


@dataclass
class Baseline:
    """The mean log-ratio of the policy to its reference over the last updates, which is what KTO
    compares with: a moving average, so that it is the same however a batch is cut up."""

    level: float = 0.0

    def adapt(self, update: int, metrics: Mapping[str, float]) -> None:
        self.level = MEMORY * self.level + (1 - MEMORY) * metrics["log_ratio"]

    def state(self) -> dict[str, Any]:
        return {"level": self.level}

    def restore(self, state: dict[str, Any]) -> None:
        self.level = state["level"]


@dataclass(frozen=True)
class Single:
    """A preset's loss of single samples, liked or not; of pairs both sides are taken so."""

    likelihood: Likelihood
    preset: Preset
    beta: float
    baseline: Baseline = field(default_factory=Baseline)

    def __call__(self, examples: PairExamples | LikedExamples) -> Loss:
        if isinstance(examples, PairExamples):
            states: tuple[Tensor, ...] = (examples.first, examples.second)
            liked = torch.stack([examples.label, 1 - examples.label])
        else:
            states, liked = (examples.x0,), examples.liked[None]
        sides = self.likelihood(states, examples, reference=True)
        assert sides.reference is not None
        log_ratio = sides.policy - sides.reference
        level = torch.full_like(liked, max(self.baseline.level, 0.0))
        each = single_loss(
            sides.policy.flatten(),
            sides.reference.flatten(),
            liked.flatten(),
            preset=self.preset,
            beta=self.beta,
            baseline=level.flatten(),
        ).unflatten(0, liked.shape)
        with torch.no_grad():
            metrics = {
                **agreement(self.beta * (log_ratio - level), liked),
                "log_ratio": log_ratio.mean(),
                **of_preferred(sides, liked),
            }
        return Loss((examples.weight * each.mean(0)).mean(), metrics)


# -------------------------------------------------------------------------- as settings name them


def compares(settings: config.Preference) -> bool:
    """Whether a loss reads what the reference says."""
    return settings.preset == DSPO or preset_of(settings).needs_reference


def loss_of(settings: config.Preference, policy: Policy) -> Pairwise | ScoreMatched | Single:
    """The loss that settings name, of a policy. Raises UserError where it needs a reference that
    the policy has not, and for times that its process has not."""
    if compares(settings) and not policy.has_reference:
        raise UserError(
            f"preset {settings.preset!r} compares with the pretrained model, which training every "
            "weight overwrites: set model.rank above 0, or a preset without a reference (simpo)"
        )
    likelihood = Likelihood(
        policy=policy,
        unit=settings.beta_unit,
        times=settings.times,
        t_min=settings.t_min,
        dropout=settings.dropout,
    )
    with user_errors(f"objective.times={settings.times}"):
        weightings.TIMES[settings.times](
            policy.backbone.process, torch.tensor([0.2, 0.8]), settings.t_min
        )
    beta = beta_of(settings, policy)
    if settings.preset == DSPO:
        return ScoreMatched(likelihood, beta)
    preset = preset_of(settings)
    if preset.kind == "single":
        return Single(likelihood, preset, beta)
    return Pairwise(likelihood, preset, beta)


def preset_of(settings: config.Preference) -> Preset:
    """The preset that settings name, with their changes."""
    preset = PRESETS[settings.preset]
    changes: dict[str, Any] = {}
    if preset.home_advantage:
        changes = {"home_advantage": 0.0, "target_margin": TEXT_BETA * preset.home_advantage}
    if settings.margin is not None and not preset.offset:
        changes = {"home_advantage": 0.0, "target_margin": settings.margin}
    if settings.alpha is not None:
        changes |= {"reference_weight": settings.alpha, "mixing": True}
    if settings.sft_weight is not None:
        changes["sft_weight"] = settings.sft_weight
    if settings.label_smoothing is not None:
        changes["label_smoothing"] = settings.label_smoothing
    return replace(preset, **changes)


def beta_of(settings: config.Preference, policy: Policy) -> float:
    """β in its unit: the one that is set, else that of the preset for pictures, brought into the
    unit so that the errors weigh as much in total."""
    if settings.beta is not None:
        return settings.beta
    if settings.preset == DSPO:
        return OF_DSPO
    beta = ANCHORED if preset_of(settings).reference_weight == 1 else UNANCHORED
    if settings.beta_unit == "mean":
        return beta
    backbone = policy.backbone
    total = bound.total_weight(backbone.process, backbone.prediction, settings.t_min)
    elements = math.prod(backbone.shape)
    per_element = elements if not preset_of(settings).length_normalised else 1
    return bound.nats_from_mean(beta, per_element, total)


def offset_of(settings: config.Preference) -> float:
    """By what multiple of the difference of their scores one side should be ahead; 0: not so."""
    if settings.preset == DSPO or not PRESETS[settings.preset].offset:
        return 0.0
    return 1.0 if settings.margin is None else settings.margin


def adaptive(objective: Pairwise | ScoreMatched | Single) -> Baseline | None:
    """What changes between two updates besides the weights, if a loss has such a thing."""
    if isinstance(objective, Single) and objective.preset.baseline:
        return objective.baseline
    return None


# --------------------------------------------------------------------------------- what is refused


def check_times(settings: config.Preference) -> None:
    """Refuse a law of times under which a beta would be in no nats."""
    if settings.beta_unit == "nats" and settings.times not in ("uniform", "importance"):
        raise UserError(
            f"objective.times={settings.times} is an emphasis, with which a beta is in no nats: "
            "set objective.times=uniform or importance, or objective.beta_unit=mean"
        )


def unsuited(name: str, preset: Preset) -> str | None:
    """Why a preset of texts says nothing of pictures; None where it does."""
    if preset.divergence == "log_odds":
        return "it needs the odds of a probability, and a picture has a density, which has none"
    if preset.divergence != "reverse_kl":
        return (
            "it needs the ratio of densities itself, and a noisy state tells its logarithm, whose "
            "exponential is biased"
        )
    if preset.weighted:
        return "it weighs pairs by their probability, and a picture has a density"
    if preset.length_penalty:
        return "it weighs lengths, and all pictures have one"
    if preset.scaling == "batch":
        return "it adapts beta to the margins of a whole batch, of which a device sees a part"
    if preset.reference_update:
        return (
            "its reference moves: merge what was learned (scoretune export --merge) and train dpo "
            "from there"
        )
    return None


def check_preset(settings: config.Preference) -> None:
    """Refuse a preset that says nothing of pictures, and settings that it never reads."""
    name = settings.preset
    if name not in (DSPO, *PRESETS):
        raise unknown("preset", name, [DSPO, *PRESETS])
    reason = None if name == DSPO else unsuited(name, PRESETS[name])
    if reason is not None:
        raise UserError(f"objective.preset={name} is for texts: {reason}")
    single = name != DSPO and PRESETS[name].kind == "single"
    if settings.likes and not single:
        raise UserError(
            f"objective.likes is for kto and apo_zero_single, and preset {name!r} compares two "
            "samples: leave it out"
        )
    if name == DSPO or single:
        changed = [n for n in SWITCHES if getattr(settings, n) not in (None, "none")]
        if changed:
            raise UserError(f"objective.{changed[0]} is of no use in preset {name!r}: leave it out")
        if name == DSPO and settings.beta_unit == "nats":
            raise UserError("objective.beta_unit=nats is of no use in preset 'dspo': leave it out")
        return
    preset = PRESETS[name]
    if preset.link is None and settings.margin is not None:
        raise UserError(f"objective.margin is of no use in preset {name!r}, which sees no gap")
    if preset.scaling is not None and settings.dispersion == "none":
        other = "samples" if isinstance(settings, config.RankedPreference) else "model"
        raise UserError(
            f"preset {name!r} scales every prompt by how disputed it is: set "
            f"objective.dispersion=votes (several raters a pair), or {other}"
        )


SWITCHES = ("alpha", "margin", "sft_weight", "label_smoothing", "dispersion")
"""Settings of the general loss of pairs."""
