"""Who deserves what: from rewards, and a critic's values, to advantages of single steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretune.batches import Trajectory
from scoretune.critic import Critic, explained_variance
from scoretune.diffusion.processes import expand
from scoretune.errors import UserError
from scoretune.policy import Policy
from scoretune.rl import returns_to_go, td_advantage


def standardise(advantage: Tensor, eps: float = 1e-6) -> Tensor:
    """Zero mean and unit deviation over the whole tensor; nothing to compare a lone one with."""
    if advantage.numel() < 2:
        return torch.zeros_like(advantage)
    return (advantage - advantage.mean()) / (advantage.std() + eps)


def group_advantage(rewards: Tensor, group: int, shared_scale: bool = True) -> Tensor:
    """Rewards [P·group], prompts contiguous, minus their prompt's mean, over a deviation.

    GRPO (arXiv 2402.03300) divides by each group's own deviation, which weighs prompts that are
    nearly solved or nearly hopeless most; `shared_scale` divides by the batch's instead.
    """
    grouped = rewards.view(-1, group)
    centred = grouped - grouped.mean(1, keepdim=True)
    scale = centred.std() if shared_scale else grouped.std(1, keepdim=True)
    return (centred / (scale + 1e-6)).flatten()


Judge = Callable[[Tensor, Tensor], Tensor]
"""The reward [M] of samples x0 [M, *S], finished or not, for the prompts numbered `who` [M]."""

Slopes = Callable[[Tensor, Tensor], Tensor]
"""∇V [M, *S] where the steps k [M] of the samples b [M] arrive."""


@dataclass(frozen=True)
class Credited:
    """Advantages [N, B] of a trajectory's steps, and the slopes of the value if asked for."""

    advantage: Tensor
    slopes: Slopes | None
    metrics: dict[str, float]


class Credit(Protocol):
    """Who deserves what: from a trajectory and its rewards [B] to advantages."""

    def __call__(self, trajectory: Trajectory, rewards: Tensor, judge: Judge) -> Credited: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class TerminalCredit:
    """Every step of a path is credited with how its reward compares to its prompt's others."""

    group: int
    shared_scale: bool = True
    bound: float = 5.0

    def __call__(self, trajectory: Trajectory, rewards: Tensor, judge: Judge) -> Credited:
        advantage = (
            group_advantage(rewards, self.group, self.shared_scale)
            if self.group > 1
            else standardise(rewards)
        ).clamp(-self.bound, self.bound)
        return Credited(advantage.expand(len(trajectory.log_probs), -1), None, {})

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class CriticCredit:
    """Each step is credited with the increment of a learned value: V_{k+1} − V_k + r_k Δ_k.

    The critic is fitted by the martingale loss (arXiv 2108.06655) to the return to go of the
    states that the training sampler visits. Advantages use the critic of *before* the fit, so
    that it has not seen the very outcomes it is compared with.
    """

    critic: Critic
    optimiser: torch.optim.Optimizer
    policy: Policy
    kl_weight: float
    passes: int = 2
    minibatch: int = 256
    slopes: bool = False
    standardised: bool = True

    def __call__(self, trajectory: Trajectory, rewards: Tensor, judge: Judge) -> Credited:
        running = self._running_cost(trajectory)
        with torch.no_grad():
            everyone = torch.arange(len(rewards))
            guesses = torch.stack([judge(data, everyone) for data in trajectory.data])
        returns = returns_to_go(
            running.T, rewards, torch.ones(len(running), device=rewards.device)
        ).T
        before = self._values(trajectory, guesses)
        values = torch.cat([before, rewards[None]])
        advantage = td_advantage(
            values.T, running.T, torch.ones(len(running), device=rewards.device)
        ).T
        loss = self._fit(trajectory, guesses, returns)
        if self.standardised:  # one scale for the whole round: Δt keeps its say between the steps
            advantage = advantage / (advantage.square().mean().sqrt() * len(running) ** 0.5 + 1e-6)
        metrics = {
            "explained_variance": explained_variance(before, returns),
            "critic_loss": loss,
        }
        return Credited(
            advantage, self._slopes(trajectory, judge) if self.slopes else None, metrics
        )

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _running_cost(self, trajectory: Trajectory) -> Tensor:
        """r_k Δ_k = −κ KL_k, in closed form: [N, B]."""
        if trajectory.kls is None:
            return torch.zeros_like(trajectory.log_probs)
        return -self.kl_weight * trajectory.kls

    @torch.no_grad()
    def _values(self, trajectory: Trajectory, guesses: Tensor) -> Tensor:
        rows = zip(trajectory.states, trajectory.data, trajectory.times, guesses, strict=False)
        tokens = trajectory.condition.tokens
        return torch.stack([self.critic(x, d, t.expand(len(x)), tokens, g) for x, d, t, g in rows])

    def _fit(self, trajectory: Trajectory, guesses: Tensor, returns: Tensor) -> float:
        """Fit by the martingale loss ½(G − V)²Δt over all pairs (step, sample); the last mean."""
        steps, batch = guesses.shape
        times = trajectory.times.to(returns.device)
        weights = -times.diff() * steps / (times[0] - times[-1])  # Δt, with mean 1
        total, seen = 0.0, 0
        for _ in range(self.passes):
            order = torch.randperm(steps * batch, device=returns.device)
            total, seen = 0.0, 0
            for chosen in order.split(self.minibatch):
                k, b = chosen // batch, chosen % batch
                tokens = trajectory.condition.tokens[b]
                value = self.critic(
                    trajectory.states[k, b], trajectory.data[k, b], times[k], tokens, guesses[k, b]
                )
                loss = (weights[k] * (returns[k, b] - value).square()).mean() / 2
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()
                total, seen = total + float(loss.detach()), seen + 1
        return total / max(seen, 1)

    def _slopes(self, trajectory: Trajectory, judge: Judge) -> Slopes:
        """∇_x V by automatic differentiation, through x̂0(x) too; at the end the reward's own.

        The network's Jacobian ∂x̂0/∂x is α/σ² times the posterior covariance: it turns the
        reward's gradient into directions that data vary in.
        """

        def slopes(k: Tensor, b: Tensor) -> Tensor:
            x = trajectory.states[k + 1, b].requires_grad_()
            t = trajectory.times.to(x.device)[k + 1]
            condition = trajectory.condition.take(b)
            last = k + 1 == len(trajectory.data)
            estimate = self.policy.estimate(x, t, condition)
            data = torch.where(expand(last, x).bool(), x, estimate.data)
            guess = judge(data, b)
            if not guess.requires_grad:
                raise UserError(
                    "slopes of the value need a reward with a gradient, and this one has none: set "
                    "objective.slope_weight=0"
                )
            value = torch.where(last, guess, self.critic(x, data, t, condition.tokens, guess))
            return torch.autograd.grad(value.sum(), x)[0]

        return slopes
