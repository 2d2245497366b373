"""Preferences about single steps of the sampler: D3PO (arXiv 2311.13231) and SPO (2406.04314).

    minimise  f(β (lr_w − lr_l)),   lr = log π_θ(x_next | x) − log π_ref(x_next | x)

with any loss of `preference.PRESETS` in the place of DPO's f. Log-likelihoods are sums over
dimensions, and the published code takes means over D of them: its β is D·β here, or the same β with
`temperature` D, which makes its clip the same too. Beyond a `clip` ε a step is no longer pushed: lr
is held within [ln(1 − ε), ln(1 + ε)], where it has no gradient outside.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scoretune.core import config
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError, user_errors
from scoretune.core.records import Loss, StepPairs, Steps
from scoretune.diffusion.estimates import Estimate
from scoretune.policy import Policy
from scoretune.preference import (
    Preset,
    clamped_log_ratio,
    implicit_margin,
    pairwise_loss,
    preset_named,
)
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.objectives import method
from scoretune.training.objectives.base import acted_transition, moved_kl, step_ratio
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.ranking import pairs_a_sample
from scoretune.training.sources.step_choice import any_steps, trained_steps
from scoretune.training.sources.step_pairs import Candidates, PathSteps


@dataclass(frozen=True)
class StepPreferenceLoss:
    """The loss of a preset on the log-ratios of two steps to their reference."""

    policy: Policy
    preset: Preset
    beta: float
    clip: float | None = None
    temperature: float = 1.0

    def __call__(self, pairs: StepPairs) -> Loss:
        first, second = pairs.first, pairs.second
        estimates = self._estimates(pairs)
        sides = [
            self._likelihood(estimate, steps)
            for estimate, steps in zip(estimates, (first, second), strict=True)
        ]
        chosen, rejected = (side for side, _ in sides)
        nothing = torch.zeros_like(chosen)
        size = torch.full_like(chosen, first.x[0].numel())
        given = (chosen, rejected, nothing, nothing)
        options: dict[str, Any] = {"preset": self.preset, "beta": self.beta, "scale": pairs.scale}
        loss = pairwise_loss(
            *given, **options, lengths=(size, size), label=pairs.label.to(chosen),
            weight=pairs.weight.to(chosen),
        )  # fmt: skip
        margin = implicit_margin(*given, **options, lengths=(size, size)).detach()
        ratios = torch.stack([ratio for _, ratio in sides]).detach()
        return Loss(loss.mean(), self._metrics(pairs, estimates[0], margin, ratios))

    def _estimates(self, pairs: StepPairs) -> tuple[Estimate, Estimate]:
        """The policy's estimates at the states of both sides, by one call of the network."""
        first, second = pairs.first, pairs.second
        if pairs.one_state:
            estimate = self.policy.estimate(first.x, first.t, first.condition)
            return estimate, estimate
        condition = Condition.joined([first.condition, second.condition])
        both = self.policy.estimate(
            torch.cat([first.x, second.x]), torch.cat([first.t, second.t]), condition
        )
        data, noise = both.data.chunk(2), both.noise.chunk(2)
        return Estimate(data[0], noise[0]), Estimate(data[1], noise[1])

    def _likelihood(self, estimate: Estimate, steps: Steps) -> tuple[Tensor, Tensor]:
        """lr + (1 − α) log π_ref of a side, whose own reference is then 0, and lr, [M] each.

        u = log π_θ − α log π_ref of the general loss, without the difference of two large numbers
        where α = 1.
        """
        ratio = step_ratio(self.policy, estimate, steps) / self.temperature
        value = ratio if self.clip is None else clamped_log_ratio(ratio, self.clip)
        alpha = self.preset.reference_weight
        if alpha != 1:
            assert steps.x_next is not None
            likelihood = (
                acted_transition(self.policy, steps).log_prob(steps.x_next) / self.temperature
            )
            value = value + (1 - alpha) * likelihood
        return value, ratio

    def _metrics(
        self, pairs: StepPairs, estimate: Estimate, margin: Tensor, ratios: Tensor
    ) -> dict[str, Tensor]:
        agrees = (margin > 0) == (pairs.label > 0.5)
        kl = moved_kl(replace(estimate, data=estimate.data.detach()), pairs.first)
        metrics = {
            "implicit_accuracy": agrees.float().mean(),
            "implicit_margin": margin.mean(),
            "reference_kl": pairs.first.path_steps * kl.mean(),
        }
        if self.clip is not None:
            beyond = clamped_log_ratio(ratios, self.clip) != ratios
            metrics["clip_fraction"] = beyond.float().mean()
        return metrics


# ------------------------------------------------------------------------------------- the method

follows_reward = False


def check(settings: config.StepPreference, context: Context) -> None:
    method.check_on_rewards(context)
    method.check_has_noise(context)
    preset = _preset(settings)
    if preset.kind != "pair" or preset.needs_scale or preset.offset or preset.weighted:
        raise UserError(
            f"objective.preset={settings.preset} wants more than a pair of steps has: set dpo, "
            "ipo, simpo or another of plain pairs, or use online_dpo"
        )
    if context.hardware.device_batch == 1 and not settings.candidates:
        raise UserError("hardware.device_batch=1 holds no pair, which is two states: set 2 or more")
    if settings.candidates == 1:
        raise UserError("objective.candidates=1 leaves nothing to compare: set 0, or 2 and more")
    if not settings.candidates and context.sizes.group < 2:
        raise UserError(
            "sizes.group=1 leaves nothing to compare a sample with: set sizes.group=2 or more, or "
            "objective.candidates"
        )
    if settings.candidates and settings.skip >= context.sampling.steps:
        raise UserError(
            f"objective.skip={settings.skip} leaves none of the {context.sampling.steps} steps: "
            "lower it, or raise sampling.steps"
        )


def build(settings: config.StepPreference, setup: Setup) -> Method:
    objective = StepPreferenceLoss(
        setup.policy, _preset(settings), settings.beta, settings.clip, settings.temperature
    )
    # These sources rank samples themselves, and choose the steps of pairs.
    paths = method.on_policy(setup, GroupCredit(setup.context.sizes.group), any_steps(1.0))
    pretrained = settings.reference == "pretrained"
    if pretrained and not setup.policy.has_reference:
        raise UserError(
            "objective.reference=pretrained needs an adapter, since training every weight "
            "overwrites the pretrained model: set model.rank above 0, or objective.reference=acting"
        )
    if not settings.candidates:
        return Method(objective, PathSteps(paths, settings.ranking, pretrained))
    source = Candidates(
        paths,
        settings.ranking,
        settings.candidates,
        settings.threshold,
        skip=settings.skip,
        pretrained=pretrained,
    )
    return Method(objective, source)


def costs(settings: config.StepPreference, context: Context, paths: Paths) -> Costs:
    """With a threshold, or ties that are dropped, the most there can be."""
    sizes, pretrained = context.sizes, settings.reference == "pretrained"
    if settings.candidates:
        branching = paths.steps - settings.skip
        trained = float(trained_steps(sizes.share, branching))
        more = paths.samples * (settings.candidates - 1) * (branching - 1)
        kept = paths.noisy == paths.steps  # one of the last candidates is the sample
        return Costs(
            trained,
            references=trained * pretrained,
            credit_calls=more,
            decodes=paths.samples * (settings.candidates * branching - kept),
            ratios=True,
        )
    each = pairs_a_sample(sizes.group, settings.ranking)
    trained = each * trained_steps(sizes.share, paths.noisy)
    return Costs(trained, calls=2, references=2 * trained * pretrained, ratios=True, at_once=2)


def _preset(settings: config.StepPreference) -> Preset:
    with user_errors():
        return preset_named(settings.preset)
