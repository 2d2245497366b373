"""Credit by a learned value V(t, x; c), in whatever terms the objective's form needs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.distributed import Deal
from scoretune.core.records import Scores, Trajectory, spans
from scoretune.diffusion.paths import kl_factor
from scoretune.diffusion.processes import expand
from scoretune.policy import Policy
from scoretune.rl import advantage_rate, martingale_loss, returns_to_go
from scoretune.training.credit.base import Credited, Judge, arrival_to_data, require_gradient
from scoretune.training.credit.values import Critic, explained_variance, none

Form = Literal["outcome", "ratio", "slope", "rate", "explicit"]
Jacobian = Literal["pretrained", "policy"]


@dataclass(frozen=True)
class Views:
    """States as the critic sees them, M of each, and what it says of them."""

    x: Tensor
    data: Tensor
    t: Tensor
    tokens: Tensor
    guess: Tensor
    value: Tensor
    features: Tensor | None = None
    slope: Tensor | None = None


@dataclass
class CriticCredit:
    """Each step is credited by a learned value V (`critic.Critic`); κ is `kl_weight`.

    `outcome`: A = G_k − V_k, the return less what was expected. `ratio`: the increment of the
    value, A = V_{k+1} − V_k + r_k Δ_k. `slope`: ∇V where the step arrives, times the kernel's
    response.
    `rate`: ∇V at the visited state, times what it stands for of continuous time, so that any solver
    may have led there. `explicit`: an action is tried, the noise estimate plus `exploration` times
    standard noise, and its closed-form advantage rate is the credit.

    The critic is fitted by the martingale loss (arXiv 2108.06655) to the return to go of the
    states that the training sampler visits. Credit uses the critic of *before* the fit, so that
    it has not seen the very outcomes it is compared with.
    """

    critic: Critic
    optimiser: torch.optim.Optimizer
    policy: Policy
    kl_weight: float
    form: Form
    passes: int = 2
    minibatch: int = 64
    exploration: float = 0.0
    shares_features: bool = False
    jacobian: Jacobian = "pretrained"

    def __call__(
        self, path: Trajectory, scores: Scores, judge: Judge, k: Tensor, b: Tensor
    ) -> Credited:
        cost = torch.zeros_like(path.times[:-1])
        if path.kls is not None:
            cost = -self.kl_weight * path.kls
        final = scores.own
        returns = returns_to_go(cost.T, final, torch.ones_like(cost[:, 0])).T
        returns = torch.cat([returns, final[None]])
        advantage, slope, action = None, None, None
        at, who = (k + 1, b) if self.form == "slope" else (k, b)
        if self.form == "ratio":  # increments need both ends: look at each state once
            at, who = (torch.ones_like(cost) > 0).nonzero(as_tuple=True)
        seen = self._view(path, judge, at, who, self.form in ("slope", "rate", "explicit"))
        if self.form == "outcome":
            advantage = returns[k, b] - seen.value
        elif self.form == "ratio":
            values = torch.cat([seen.value.view_as(cost), final[None]])
            advantage = (values.diff(dim=0) + cost)[k, b]
        elif self.form == "slope":
            slope = arrival_to_data(self.policy, path, k, b, _there(seen.slope))
        elif self.form == "rate":
            slope = self._rate(path, k, b, _there(seen.slope))
        else:
            action, advantage = self._try(path, k, b, _there(seen.slope))
        early = at < len(cost)  # at the end the value is the reward: nothing to explain
        known, earned = (
            distributed.gather(seen.value[early]),
            distributed.gather(returns[at, who][early]),
        )
        metrics = {
            "explained_variance": explained_variance(known, earned),
            "critic_loss": self._fit(
                seen, returns[at, who], self._weight(path, at, who), _dealt(path, who)
            ),
        }
        return Credited(advantage, slope, action, metrics)

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        self.optimiser.load_state_dict(state["optimiser"])

    def _rate(self, path: Trajectory, k: Tensor, b: Tensor, slope: Tensor) -> Tensor:
        """(1+η²)/2 g² ∇V·∂s/∂x̂0 dt = (1+η²)/2 α ∇V dℓ: the drift's part in dV, per unit of x̂0."""
        alpha = self.policy.backbone.process.alpha(path.times[k, b])
        along = (1 + path.etas[k, b] ** 2) / 2 * alpha * path.log_snr_steps[k, b]
        return expand(along, slope) * slope

    def _try(self, path: Trajectory, k: Tensor, b: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """A noise estimate to try [M, *S] and its advantage q Δ [M] (`rl.advantage_rate`).

        In log-SNR time g² dt is σ² dℓ; a score is −1/σ times a noise estimate.
        """
        process, t, eta = self.policy.backbone.process, path.times[k, b], path.etas[k, b]
        alpha, sigma = expand(process.alpha(t), slope), expand(process.sigma(t), slope)
        x, data = path.states[k, b], path.data[k, b]
        noise = (x - alpha * data) / sigma
        action = noise + self.exploration * _dealt(path, b).normal(noise)
        known = data if path.reference_data is None else path.reference_data[k, b]
        rate = advantage_rate(
            expand((1 + eta**2) / 2, slope) * slope,
            -action / sigma,
            -noise / sigma,
            -(x - alpha * known) / sigma**2,
            process.sigma(t) ** 2,
            self.kl_weight * kl_factor(eta),
            self.exploration**2 * noise[0].numel() / process.sigma(t) ** 2,
        )
        return action, rate * path.log_snr_steps[k, b]

    def _weight(self, path: Trajectory, at: Tensor, b: Tensor) -> Tensor:
        """Δt of the martingale loss with mean 1; 0 at the end, where V needs no learning."""
        steps = -path.times.diff(dim=0)
        return torch.cat([steps / steps.mean(), torch.zeros_like(steps[:1])])[at, b]

    def _view(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor, slopes: bool) -> Views:
        """Values of the states numbered `at` of the samples b, in parts that fit the memory."""
        look = self._look_with_slope if slopes else self._look
        parts = [look(path, judge, at[s], b[s]) for s in spans(len(at), self.minibatch)]
        joined: dict[str, Any] = {}
        for name in (f.name for f in fields(Views)):
            said = [getattr(part, name) for part in parts]
            joined[name] = None if said[0] is None else torch.cat(said)
        return Views(**joined)

    @torch.no_grad()
    def _look(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor) -> Views:
        data = torch.cat([path.data, path.final[None]])[at, b]
        features = None
        if path.features is not None:
            features = torch.cat([path.features, torch.zeros_like(path.features[:1])])[at, b]
        return self._valued(path, judge, at, b, path.states[at, b], data, features)

    def _look_with_slope(self, path: Trajectory, judge: Judge, at: Tensor, b: Tensor) -> Views:
        """∇_x V by automatic differentiation, through x̂0(x) too; at the end the reward's own.

        The value is that of the policy's x̂0. Its Jacobian ∂x̂0/∂x is the pretrained model's, unless
        `jacobian` is "policy": of a true score it is α/σ² times the posterior covariance, which
        turns the reward's gradient into directions that data vary in and never against it. A
        trained control is no score: its Jacobian makes ∇V exact as V is learned, but may turn the
        gradient round on the way, and learning then runs away from its optimum.
        """
        x = path.states[at, b].requires_grad_()
        t, condition, features = path.times[at, b], path.condition.take(b), None
        frozen = self.jacobian == "pretrained" and self.policy.has_reference
        with self.policy.reference() if frozen else nullcontext():
            if self.shares_features:
                estimate, features = self.policy.estimate_with_features(x, t, condition)
            else:
                estimate = self.policy.estimate(x, t, condition)
        known = torch.cat([path.data, path.final[None]])[at, b]
        moving = torch.where(expand(at == len(path.data), x).bool(), x, estimate.data)
        data = known + (moving - moving.detach())
        view = self._valued(path, judge, at, b, x, data, features)
        if self.critic.skip is not none:  # else the slope is F's alone, whatever the reward
            require_gradient(view.guess)
        slope = torch.autograd.grad(view.value.sum(), x)[0]
        still = {
            f.name: part.detach()
            for f in fields(view)
            if (part := getattr(view, f.name)) is not None
        }
        return Views(**still, slope=slope)

    def _valued(
        self,
        path: Trajectory,
        judge: Judge,
        at: Tensor,
        b: Tensor,
        x: Tensor,
        data: Tensor,
        features: Tensor | None,
    ) -> Views:
        t, tokens = path.times[at, b], path.condition.tokens[b]
        ended = at == len(path.data)
        heard = self.critic.skip is not none or bool(ended.any())
        guess = judge(data, b) if heard else torch.zeros_like(t)
        value = self.critic(x, data, t, tokens, guess, features)
        value = torch.where(ended, guess, value)
        return Views(x, data, t, tokens, guess, value, features)

    def _fit(self, seen: Views, returns: Tensor, weight: Tensor, deal: Deal) -> float:
        """Fit by the martingale loss ½(G − V)²Δt; the mean loss of the last pass."""
        losses: list[float] = []
        for _ in range(self.passes):
            losses = []
            order = torch.randperm(deal.whole, device=returns.device)
            for part, count in deal.chunks(order, self.minibatch):
                self.optimiser.zero_grad(set_to_none=True)
                if len(part):  # else the other processes have all of this minibatch
                    loss = self._loss(seen, returns, weight, part.to(returns.device))
                    loss = loss * (len(part) / count)
                    loss.backward()
                    losses.append(float(loss.detach()))
                distributed.add_up(self.critic.parameters())
                self.optimiser.step()
        minibatches = -(-deal.whole // self.minibatch)
        return distributed.total({"loss": sum(losses)})["loss"] / minibatches

    def _loss(self, seen: Views, returns: Tensor, weight: Tensor, part: Tensor) -> Tensor:
        features = None if seen.features is None else seen.features[part]
        value = self.critic(
            seen.x[part],
            seen.data[part],
            seen.t[part],
            seen.tokens[part],
            seen.guess[part],
            features,
        )
        return martingale_loss(value[:, None], returns[part, None], weight[part, None])


def _dealt(path: Trajectory, who: Tensor) -> Deal:
    """How states are dealt among the processes of which every row has all samples."""
    samples = path.states.shape[1]
    return distributed.deal(torch.arange(len(who)) // samples, who, samples)


def _there(slope: Tensor | None) -> Tensor:
    assert slope is not None
    return slope
