"""Adjoint matching (arXiv 2409.08861): regression onto lean adjoints under the pretrained policy.

The loss is `base.ScoreAction` with the slopes of `credit.adjoint`.
"""

from __future__ import annotations

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.objectives import method
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.step_choice import any_steps, trained_steps

follows_reward = True


def check(settings: config.Adjoint, context: Context) -> None:
    method.check_on_rewards(context)
    sampling = context.sampling
    if sampling.eta != 1 or sampling.noise != "constant" or sampling.solver is not None:
        raise UserError(
            "adjoint matching needs a memoryless kernel, under which the sample does not "
            "depend on the noise it began with: set sampling.eta=1 (it is "
            f"{sampling.eta:g}) and leave sampling.noise=constant and sampling.solver=null"
        )
    method.check_follows_gradient(context)
    method.check_shard(context, "sizes.share below 1", context.sizes.share < 1)


def build(settings: config.Adjoint, setup: Setup) -> Method:
    sizes, kl_weight = setup.context.sizes, settings.kl_weight
    credit = AdjointCredit(setup.policy, lean=True, at_once=setup.context.at_once)
    reference = method.references(kl_weight)
    choose = any_steps(sizes.share)
    paths = method.on_policy(setup, credit, choose, reference=reference, slopes=True)
    return Method(ScoreAction(setup.policy, kl_weight), paths)


def costs(settings: config.Adjoint, context: Context, paths: Paths) -> Costs:
    samples, steps = paths.samples, paths.steps
    trained = trained_steps(context.sizes.share, steps)
    # The way back ends at the earliest step that a sample learns from, which is asked for its KL.
    earliest = (steps - trained) / (trained + 1)
    return Costs(
        trained,
        references=1,
        credit_calls=samples * (steps - 1 - earliest),
        credit_graph="either",
        credit_batch=min(context.at_once, samples),
    )
