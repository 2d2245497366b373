"""Learning where the optimum is known: data, rewards, and a form of credit for every method.

Data N(1, ¼) on the line and a mixture of four on the plane; κ = ½.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.core.config import Sizes
from scoretune.core.records import Objective, Scores, Stateless, Trajectory
from scoretune.data.prompts import Prompts
from scoretune.diffusion.processes import VP
from scoretune.policy import Policy
from scoretune.rl import tilt
from scoretune.training.credit.adjoint import AdjointCredit
from scoretune.training.credit.base import Credit, Credited, RewardFn
from scoretune.training.credit.critic import CriticCredit, Form, rule_named
from scoretune.training.credit.values import Critic, critic_for
from scoretune.training.engine import TorchEngine
from scoretune.training.loop import train
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.objectives.policy_gradient import PolicyGradient
from scoretune.training.sources.on_policy import OnPolicy
from scoretune.training.sources.step_choice import any_steps

PROCESS, KAPPA = VP(), 0.5
LINE = tilt.Mixture.gaussian([1.0], 0.25)
PLANE = tilt.Mixture.of([1.0] * 4, [[x, y] for x in (-1.5, 1.5) for y in (-1.5, 1.5)], 0.1)
IN_TIME = ("rate", "rate_policy", "explicit")
REWARDS = {1: tilt.Quadratic.around([2.0], 2.0), 2: tilt.Quadratic.linear([0.3, 0.15])}


@dataclass
class Centred(Stateless):
    """Every step of a path deserves its reward less the batch's mean; κ keeps its meaning."""

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        return Credited(advantage=(scores.total - scores.total.mean())[b])


class ExactValue(nn.Module):
    """The pretrained policy's own value, by its posterior, as a critic's F. Its one parameter, for
    an optimiser to have something, does nothing."""

    def __init__(self, law: tilt.Mixture, reward: tilt.Quadratic) -> None:
        super().__init__()
        self.law, self.reward, self.idle = law, reward, nn.Parameter(torch.zeros(()))

    def forward(self, seen: Tensor, share: Tensor, tokens: Tensor) -> Tensor:
        t = share * PROCESS.horizon
        posterior = self.law.to(seen).posterior(seen, PROCESS.alpha(t), PROCESS.sigma(t))
        return self.reward.mean(posterior) + 0 * self.idle


def exact_critic(law: tilt.Mixture, reward: tilt.Quadratic) -> Critic:
    """V = F of the noisy state alone, and F the value."""
    return Critic(ExactValue(law, reward), PROCESS.horizon, skip="none", inputs="noisy")


def square(count: int) -> Tensor:
    """Times (uniform)², short near the data, [count + 1]."""
    return torch.linspace(1, 1e-3**0.5, count + 1) ** 2


def method(
    form: str, policy: Policy, batch: int, critic: Critic | None = None
) -> tuple[Objective, Credit]:
    """The objective and the credit rule of a form; `critic` replaces the learned one."""
    credit: Credit = Centred()
    if form == "whole":
        return PolicyGradient(policy, kl_weight=KAPPA), credit
    objective = ScoreAction(policy, KAPPA, exploration=0.3)
    if form == "adjoint":
        return objective, AdjointCredit(policy, lean=True, at_once=batch)
    learned = critic or critic_for(policy.backbone.shape, 0, PROCESS.horizon)
    return objective, CriticCredit(
        learned,
        torch.optim.Adam(learned.parameters(), lr=0.0 if critic else 0.003),
        policy,
        KAPPA,
        rule_named(cast(Form, form.removesuffix("_policy")), 0.3),
        minibatch=batch,
        at_once=batch,
        estimate="policy" if form.endswith("_policy") else "pretrained",
    )


def source(
    policy: Policy,
    credit: Credit,
    form: str,
    *,
    steps: int,
    jitter: bool,
    batch: int,
    parts: int,
    seed: int,
) -> OnPolicy:
    """On-policy paths of `steps` steps, `parts` minibatches a round; forms of continuous time have
    the KL of it, the others that of the chain."""
    reward = REWARDS[policy.backbone.shape[0]]
    return OnPolicy(
        policy=policy,
        prompts=Prompts(("",), ("",)),
        reward=lambda x, prompts: reward(x),
        reward_name="quadratic",
        credit=credit,
        times=square(steps),
        sizes=Sizes(prompts=1, group=batch, minibatch=batch * steps // parts),
        seed=seed,
        choose=any_steps(1.0),
        reference="visited",
        in_chain=form not in IN_TIME,
        jitter=jitter,
    )


def learn(
    policy: Policy,
    form: str,
    steps: int,
    jitter: bool,
    *,
    seed: int,
    updates: int,
    batch: int,
    rate: float,
) -> None:
    """Fine-tune by Adam with rate/(1 + update/20), after three rounds for the critic alone."""
    objective, credit = method(form, policy, batch * steps // 5)
    paths = source(
        policy, credit, form, steps=steps, jitter=jitter, batch=batch, parts=4, seed=seed
    )
    for lap in range(3 if isinstance(credit, CriticCredit) else 0):
        paths(updates + lap)
    optimiser = torch.optim.Adam(policy.parameters(), lr=rate)
    decay = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda k: 1 / (1 + k / 20))
    train(
        paths,
        objective,
        optimiser,
        TorchEngine(),
        updates=range(updates),
        clip_norm=100.0,
        hooks=[lambda update, metrics: decay.step()],
    )
