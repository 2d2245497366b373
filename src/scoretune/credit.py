"""Who deserves what: from rewards, and a critic's values, to advantages of single steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from scoretune.batches import Trajectory, spans
from scoretune.critic import Critic, explained_variance
from scoretune.diffusion.processes import expand
from scoretune.errors import UserError
from scoretune.policy import Policy
from scoretune.rl import martingale_loss, returns_to_go


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


@dataclass(frozen=True)
class Credited:
    """Advantages [M] of the chosen steps, and the value's slopes [M, *S] where they arrive."""

    advantage: Tensor
    slope: Tensor | None
    metrics: dict[str, float]


class Credit(Protocol):
    """Who deserves what: the steps k [M] of the samples b [M] of a path with rewards [B]."""

    def __call__(
        self, path: Trajectory, rewards: Tensor, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...


@dataclass
class TerminalCredit:
    """Every step of a path is credited with how its reward compares to its prompt's others."""

    group: int
    shared_scale: bool = True
    bound: float = 5.0

    def __call__(
        self, path: Trajectory, rewards: Tensor, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        compared = (
            group_advantage(rewards, self.group, self.shared_scale)
            if self.group > 1
            else standardise(rewards)
        )
        return Credited(compared.clamp(-self.bound, self.bound)[b], None, {})

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


@dataclass(frozen=True)
class Views:
    """States as the critic sees them, M of each, and what it says of them."""

    x: Tensor
    data: Tensor
    t: Tensor
    tokens: Tensor
    guess: Tensor
    value: Tensor
    slope: Tensor | None = None


@dataclass
class CriticCredit:
    """Each step is credited by a learned value V (`critic.Critic`), in one or both of two ways.

    `increments`: the advantage V(t_{k+1}, x_{k+1}) − V(t_k, x_k) + r_k Δ_k, for likelihood ratios.
    `slopes`: ∇_x V(t_{k+1}, x_{k+1}), for the reparametrised gradient.

    The critic is fitted by the martingale loss (arXiv 2108.06655) to the return to go of the
    states that the training sampler visits. Credit uses the critic of *before* the fit, so that
    it has not seen the very outcomes it is compared with.
    """

    critic: Critic
    optimiser: torch.optim.Optimizer
    policy: Policy
    kl_weight: float
    passes: int = 2
    minibatch: int = 64
    increments: bool = True
    slopes: bool = False

    def __call__(
        self, path: Trajectory, rewards: Tensor, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        running = self._running_cost(path)
        returns = returns_to_go(running.T, rewards, torch.ones_like(running[:, 0])).T
        returns = torch.cat([returns, rewards[None]])
        arrivals = self._view(path, judge, k + 1, b, self.slopes)
        advantage, seen, at = torch.zeros_like(rewards[b]), arrivals, k + 1
        if self.increments:
            seen, at = self._view(path, judge, k, b, False), k
            advantage = arrivals.value - seen.value + running[k, b]
        early = at < len(running)  # at the end the value is the reward: nothing to explain
        metrics = {
            "explained_variance": explained_variance(seen.value[early], returns[at, b][early]),
            "critic_loss": self._fit(seen, returns[at, b], self._weight(path, at)),
        }
        return Credited(advantage, arrivals.slope, metrics)

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _running_cost(self, path: Trajectory) -> Tensor:
        """r_k Δ_k = −κ KL_k, in closed form: [N, B]."""
        if path.kls is None:
            return torch.zeros_like(path.log_probs)
        return -self.kl_weight * path.kls

    def _weight(self, path: Trajectory, at: Tensor) -> Tensor:
        """Δt of the martingale loss with mean 1; 0 at the end, where V needs no learning."""
        steps = -path.times.to(at.device).diff()
        return torch.cat([steps / steps.mean(), steps.new_zeros(1)])[at]

    def _view(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor, slopes: bool) -> Views:
        """Values of the states numbered `at` of the samples b, in parts that fit the memory."""
        look = self._look_with_slope if slopes else self._look
        parts = [look(path, judge, at[s], b[s]) for s in spans(len(at), self.minibatch)]
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(Views) if slopes or f.name != "slope"):
            joined[name] = torch.cat([getattr(part, name) for part in parts])
        return Views(**joined)

    @torch.no_grad()
    def _look(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor) -> Views:
        data = torch.cat([path.data, path.final[None]])[at, b]
        return self._valued(path, judge, at, b, path.states[at, b], data)

    def _look_with_slope(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor) -> Views:
        """∇_x V by automatic differentiation, through x̂0(x) too; at the end the reward's own.

        The network's Jacobian ∂x̂0/∂x is α/σ² times the posterior covariance: it turns the
        reward's gradient into directions that data vary in.
        """
        x = path.states[at, b].requires_grad_()
        t = path.times.to(x.device)[at]
        estimate = self.policy.estimate(x, t, path.condition.take(b))
        data = torch.where(expand(at == len(path.data), x).bool(), x, estimate.data)
        view = self._valued(path, judge, at, b, x, data)
        if not view.guess.requires_grad:
            raise UserError(
                "slopes of the value need a reward with a gradient, and this one has none: set "
                "objective.slope_weight=0"
            )
        slope = torch.autograd.grad(view.value.sum(), x)[0]
        data, guess, value = view.data.detach(), view.guess.detach(), view.value.detach()
        return Views(x.detach(), data, t, view.tokens, guess, value, slope)

    def _valued(
        self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor, x: Tensor, data: Tensor
    ) -> Views:
        t, tokens = path.times.to(x.device)[at], path.condition.tokens[b]
        guess = judge(data, b)
        value = torch.where(at == len(path.data), guess, self.critic(x, data, t, tokens, guess))
        return Views(x, data, t, tokens, guess, value)

    def _fit(self, seen: Views, returns: Tensor, weight: Tensor) -> float:
        """Fit by the martingale loss ½(G − V)²Δt; the mean loss of the last pass."""
        losses: list[float] = []
        for _ in range(self.passes):
            losses = []
            for part in torch.randperm(len(returns), device=returns.device).split(self.minibatch):
                value = self.critic(
                    seen.x[part], seen.data[part], seen.t[part], seen.tokens[part], seen.guess[part]
                )
                loss = martingale_loss(value[:, None], returns[part, None], weight[part, None])
                self.optimiser.zero_grad(set_to_none=True)
                loss.backward()
                self.optimiser.step()
                losses.append(float(loss.detach()))
        return sum(losses) / len(losses)
