"""Guidance distillation: say at once what two calls say under classifier-free guidance.

    minimise  KL( paths of the policy ‖ paths of the pretrained model under guidance )

Girsanov's ½∫g²‖s_θ − s_w‖²dt on the policy's own paths, with s_w the guided score: what arXiv
2210.03142 fits on noised data, fitted where the policy goes. A sample then costs one network
evaluation a step, not two, and what is fine-tuned next begins where guidance ends. No reward is
followed.
"""

from __future__ import annotations

from dataclasses import dataclass

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.core.records import Loss, Steps
from scoretune.models.recycled import inner
from scoretune.policy import Distilled, Policy
from scoretune.training.credit.guided import GuidedTeacher
from scoretune.training.objectives import method
from scoretune.training.objectives.base import reference_kl
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.step_choice import any_steps, trained_steps


@dataclass(frozen=True)
class GuidedPaths:
    """The KL of a path to that of the guided pretrained model, in nats, by its single steps."""

    policy: Policy

    def __call__(self, steps: Steps) -> Loss:
        estimate = self.policy.estimate(steps.x, steps.t, steps.condition)
        kl = steps.path_steps * reference_kl(estimate, steps).mean()
        return Loss(kl, {"guided_kl": kl.detach()})


follows_reward = False


def check(settings: config.Guidance, context: Context) -> None:
    method.check_on_rewards(context)


def build(settings: config.Guidance, setup: Setup) -> Method:
    policy = setup.policy
    if isinstance(inner(policy.backbone), Distilled):
        raise UserError(
            "guidance was distilled into this model already, its scale is an input: choose that by "
            "model.guidance"
        )
    if policy.encode(setup.prompts.texts[:1]).null is None:
        raise UserError(
            "this model has no empty prompt, from which guidance leads away: there is none to learn"
        )
    teacher = GuidedTeacher(policy, settings.scale)
    choose = any_steps(setup.context.sizes.share, first=method.FIRST_IN_TIME)
    return Method(GuidedPaths(policy), method.on_policy(setup, teacher, choose, in_chain=False))


def costs(settings: config.Guidance, context: Context, paths: Paths) -> Costs:
    trained = trained_steps(context.sizes.share, paths.steps - method.FIRST_IN_TIME)
    return Costs(trained, references=2 * trained)
