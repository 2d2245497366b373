"""Credit at both ends of every process: nothing that a rule reads is NaN, whatever is predicted."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle, product

import pytest
import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.core.records import Scores
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.grids import uniform
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP, Process, RectifiedFlow, every_process
from scoretune.models.toy import Vectors
from scoretune.policy import Policy
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.critic import CriticCredit, rule_named
from scoretune.training.credit.values import critic_for

PREDICTIONS = (estimates.noise, estimates.data, estimates.v, estimates.velocity)
ETAS = cycle((0.6, 0.0, 1.5, 1.0))


class Tanh(nn.Module):
    """A network that says ∞ of clean states, which none was trained on, and counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3))
        self.clean = 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.clean += int((t == 0).sum())
        return torch.tanh(self.weight * x) + torch.where(t == 0, torch.inf, 0.0)[:, None]


@dataclass
class Points(Vectors):
    process: Process
    prediction: Prediction
    network: Tanh = field(default_factory=Tanh)
    shape: tuple[int, ...] = (2,)


def credit(policy: Policy, form: str, exploration: float = 0.3) -> CriticCredit:
    critic = critic_for((2,), 0, policy.backbone.process.horizon, width=4)
    optimiser = torch.optim.Adam(critic.parameters(), lr=1e-2)
    rule = rule_named(form, exploration)
    return CriticCredit(critic, optimiser, policy, 0.1, rule, passes=1)


def reward(x: Tensor, who: Tensor) -> Tensor:
    return x[:, 0]


def test_credit_is_finite_at_both_ends(case):
    for process, prediction in product(every_process(), PREDICTIONS):
        for form in ("slope", "rate", "explicit"):  # the others take no gradient
            eta = next(ETAS)
            if form == "slope" and not eta:
                continue  # by the noise of steps that have some
            with case(process, prediction.name, form, eta):
                backbone = Points(process, prediction)
                policy = Policy(backbone, GDDIM(eta))
                acting = Acting() if eta else Acting(solver="ddim")
                generator = torch.Generator().manual_seed(0)
                start = prior(policy, 3, generator)
                times = uniform(process, 3, 0.0)
                path = rollout(policy, Condition.none(3), times, generator, start, acting=acting)
                k, b = torch.arange(3).repeat_interleave(3), torch.arange(3).repeat(3)
                rewards = Scores(path.final[:, 0])
                given = credit(policy, form)(path, rewards, reward, k, b)
                for part in (given.advantage, given.data_slope, given.action):
                    assert part is None or bool(torch.isfinite(part).all())
                assert backbone.network.clean == 0  # a finished sample is its own estimate


@pytest.mark.parametrize("process", [VP(), RectifiedFlow()], ids=["VP", "RectifiedFlow"])
def test_the_slope_of_a_finished_sample_is_the_rewards_own(process):
    policy = Policy(Points(process, estimates.data), GDDIM(1.0))
    generator = torch.Generator().manual_seed(0)
    times = uniform(process, 3, 0.0)
    path = rollout(policy, Condition.none(3), times, generator, prior(policy, 3, generator))
    last = torch.full((3,), 3), torch.arange(3)
    views = credit(policy, "slope").views(path, reward, *last, slopes=True)
    torch.testing.assert_close(views.slope, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    torch.testing.assert_close(views.value, path.final[:, 0])
