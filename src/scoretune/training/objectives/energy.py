"""D(x)MI: the reward is learned, an energy that tells data from samples (arXiv 2407.00626,
2502.01819).

The loss is `base.ScoreAction` with the slopes of `credit.energy`.
"""

from __future__ import annotations

import torch

from scoretune.core import config
from scoretune.core.errors import UserError
from scoretune.data.images import read_pictures
from scoretune.training.credit.energy import EnergyCredit
from scoretune.training.credit.values import critic_for
from scoretune.training.objectives import method
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.objectives.method import Context, Costs, Method, Paths, Setup
from scoretune.training.sources.dataset import encoded
from scoretune.training.sources.step_choice import any_steps, trained_steps

follows_reward = False


def check(settings: config.Energy, context: Context) -> None:
    if context.processes > 1:
        raise UserError(
            f"recipe {context.recipe!r} fits an energy to all samples at once, in one process: "
            "start it without torchrun"
        )
    method.check_on_rewards(context)
    method.check_has_noise(context)


def build(settings: config.Energy, setup: Setup) -> Method:
    credit, kl_weight = _credit(settings, setup), settings.kl_weight
    choose = any_steps(setup.context.sizes.share)
    paths = method.on_policy(setup, credit, choose, reference=method.references(kl_weight))
    return Method(ScoreAction(setup.policy, kl_weight), paths)


def costs(settings: config.Energy, context: Context, paths: Paths) -> Costs:
    trained = trained_steps(context.sizes.share, paths.steps)
    return Costs(trained, references=trained if settings.kl_weight else 0)


def _credit(settings: config.Energy, setup: Setup) -> EnergyCredit:
    """Energy and value are networks like a critic's F, of the noisy state alone."""
    policy, backbone = setup.policy, setup.policy.backbone
    images, captions = read_pictures(setup.context.data, setup.seed)
    data, condition = encoded(policy, images, captions)
    shape, horizon = backbone.shape, backbone.process.horizon
    size, width = condition.summary.shape[-1], settings.width
    exact = torch.promote_types(next(backbone.network.parameters()).dtype, torch.float32)
    energy, value = (
        critic_for(shape, size, horizon, width=width, inputs="noisy").body.to(policy.device, exact)
        for _ in range(2)
    )
    parameters = [*energy.parameters(), *value.parameters()]
    return EnergyCredit(
        energy=energy,
        optimiser=torch.optim.Adam(parameters, lr=settings.learning_rate),
        policy=policy,
        data=data,
        seed=setup.seed,
        condition=condition,
        form="arrival" if settings.update == "dxmi" else "departure",
        value=value,
    )
