"""Online DPO and its kin: `preference_losses` on the policy's own ranked samples.

Of a prompt's samples the better is preferred to the worse (arXiv 2402.04792), and the reference is
the pretrained policy or the one that drew them: round after round, iterated DPO (2312.16682).
"""

from __future__ import annotations

from torch import Tensor

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.core.records import PairExamples
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.objectives import method, preference_losses
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.ranked import Ranked
from scoretune.training.sources.ranking import pairs_a_sample
from scoretune.training.sources.step_choice import any_steps

follows_reward = False


def check(settings: config.RankedPreference, context: Context) -> None:
    method.check_on_rewards(context)
    preference_losses.check_preset(settings)
    preference_losses.check_times(settings)
    if context.sizes.group < 2:
        raise UserError(
            "sizes.group=1 leaves nothing to compare a sample with: set sizes.group=2 or more"
        )
    if context.hardware.device_batch == 1:
        raise UserError("hardware.device_batch=1 holds no pair, which is two states: set 2 or more")
    if settings.reference == "acting" and not preference_losses.compares(settings):
        raise UserError(
            f"objective.reference=acting is of no use in preset {settings.preset!r}, which "
            "compares with no reference: leave it out"
        )
    if settings.dispersion == "votes" and settings.ranking.label != "votes":
        raise UserError(
            "objective.dispersion=votes counts raters: set objective.ranking.label=votes, or "
            "objective.dispersion=samples"
        )


def build(settings: config.RankedPreference, setup: Setup) -> Method:
    objective = preference_losses.loss_of(settings, setup.policy)
    method.check_first_time(settings.t_min, setup.policy.backbone.process)
    # The source ranks samples itself, and has no steps to choose.
    paths = method.on_policy(setup, GroupCredit(setup.context.sizes.group), any_steps(1.0))
    likelihood = objective.likelihood

    def answer(pairs: PairExamples) -> Tensor:
        return likelihood.outputs((pairs.first, pairs.second), pairs)

    source = Ranked(
        paths,
        settings.ranking,
        dispersion=settings.dispersion,
        offset=preference_losses.offset_of(settings),
        reference=answer if settings.reference == "acting" else None,
    )
    return Method(objective, source, preference_losses.adaptive(objective))


def costs(settings: config.RankedPreference, context: Context, paths: Paths) -> Costs:
    """With ties that are dropped, the most there can be."""
    each = pairs_a_sample(context.sizes.group, settings.ranking)
    compares = preference_losses.compares(settings)
    return Costs(
        each,
        calls=2,
        references=2 * each * context.sizes.epochs * compares,
        ratios=True,
        at_once=2,
    )
