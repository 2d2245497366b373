"""Credit by a learned value V(t, x; c): one fitted critic, and five rules that read it.

The critic is fitted by the martingale loss (arXiv 2108.06655) to the return to go of the states
that the training sampler visits. Credit uses the critic of *before* the fit, so that it has not
seen the very outcomes it is compared with.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scoretune.core import distributed, fsdp
from scoretune.core.conditions import Condition
from scoretune.core.config import Critic as CriticSettings
from scoretune.core.distributed import Deal
from scoretune.core.records import Rows, Scores, Trajectory, spans
from scoretune.diffusion.paths import kl_factor
from scoretune.diffusion.processes import expand
from scoretune.diffusion.transitions import squared_norm
from scoretune.policy import Policy
from scoretune.rl import advantage_rate, drawn_returns, gae, martingale_loss, returns_to_go
from scoretune.training.credit.base import Credited, RewardFn, arrival_to_data, require_gradient
from scoretune.training.credit.values import Critic, critic_for, explained_variance, none

Form = Literal["outcome", "ratio", "slope", "rate", "explicit"]
WhoseEstimate = Literal["pretrained", "policy"]


@dataclass(frozen=True)
class Views(Rows):
    """States as the critic sees them, M of each, and the values that it gives them."""

    x: Tensor
    data: Tensor
    t: Tensor
    tokens: Tensor
    guess: Tensor
    value: Tensor
    features: Tensor | None = None
    slope: Tensor | None = None


@dataclass(frozen=True)
class Visited:
    """The steps k [M] of the samples b [M] of a path, to be credited; of the path the running
    reward of each step [N, B], and the return to go [N+1, B]."""

    path: Trajectory
    reward_fn: RewardFn
    k: Tensor
    b: Tensor
    running: Tensor
    to_go: Tensor


@dataclass(frozen=True)
class Read:
    """What a rule made of the critic: the steps' worth, and the states it looked at, numbered `at`
    of the samples `who`, which the critic is fitted on next: where the visited steps begin, unless
    these are `arrivals`; and `reference_data` [M, *S], what the pretrained policy says at the
    visited steps."""

    at: Tensor
    who: Tensor
    views: Views
    advantage: Tensor | None = None
    slope: Tensor | None = None
    action: Tensor | None = None
    reference_data: Tensor | None = None
    arrivals: bool = False


class Rule(Protocol):
    """What a critic says the visited steps are worth."""

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read: ...


@dataclass
class CriticCredit:
    """Each step is credited by a learned value V (`values.Critic`), read by a `rule`.

    κ is `kl_weight`, and steps from the `first` on may be visited; with `shares_features` the
    critic reads the features of the policy's own network. `estimate` says whose x̂0 the value is a
    function of where slopes are asked for. It looks at `at_once` states at a time; a step of its
    own fit is on `minibatch` of them, in parts that fit the memory.
    """

    critic: Critic
    optimiser: torch.optim.Optimizer
    policy: Policy
    kl_weight: float
    rule: Rule
    first: int = 0
    passes: int = 2
    minibatch: int = 64
    at_once: int = 64
    shares_features: bool = False
    estimate: WhoseEstimate = "pretrained"

    def __call__(
        self, path: Trajectory, scores: Scores, reward_fn: RewardFn, k: Tensor, b: Tensor
    ) -> Credited:
        visited = Visited(path, reward_fn, k, b, *self.returns(path, scores))
        read = self.rule(self, visited)
        to_go, kls = visited.to_go, dict[str, float]()
        if path.moved_sq is None and read.reference_data is not None:
            to_go, kls = self._returns_by_some(visited, read, read.reference_data, scores)
        metrics = {**self._fit(path, read, to_go), **kls}
        return Credited(read.advantage, read.slope, read.action, read.reference_data, metrics)

    def state(self) -> dict[str, Any]:
        return {"critic": self.critic.state_dict(), "optimiser": self.optimiser.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        self.critic.load_state_dict(state["critic"])
        fsdp.restore(self.optimiser, state["optimiser"])

    def returns(self, path: Trajectory, scores: Scores) -> tuple[Tensor, Tensor]:
        """The running reward of each step [N, B], which is −κ times the path KL, and the return to
        go [N+1, B]: the final reward and the running ones from each state on."""
        running = torch.zeros_like(path.times[:-1])
        if path.kls is not None:
            running = -self.kl_weight * path.kls
        final = scores.local
        to_go = returns_to_go(running.T, final, torch.ones_like(running[:, 0])).T
        return running, torch.cat([to_go, final[None]])

    def _returns_by_some(
        self, visited: Visited, read: Read, pretrained: Tensor, scores: Scores
    ) -> tuple[Tensor, dict[str, float]]:
        """The return to go [N+1, B] at the states that were read, and the mean KL of a path, by the
        visited steps alone: unbiased estimates, since these were drawn at random."""
        path, k, b = visited.path, visited.k, visited.b
        kls = torch.zeros_like(path.times[:-1], dtype=pretrained.dtype)
        weight = path.kl_weights[k, b].to(pretrained)
        kls[k, b] = weight * squared_norm(path.data[k, b] - pretrained)
        samples, candidates = path.states.shape[1], len(path.data) - self.first
        drawn = len(k) // samples
        running, final = -self.kl_weight * kls.T, scores.local
        to_go = drawn_returns(running, final, drawn, candidates, own=not read.arrivals).T
        name = "chain_kl" if path.in_chain else "girsanov_kl"
        mean = float(kls.sum()) / samples * candidates / drawn
        return torch.cat([to_go, final[None]]), {name: mean}

    def pretrained(self, visited: Visited, at: Tensor, views: Views) -> Tensor | None:
        """What the pretrained policy says at the visited steps, [M, *S], None where no KL needs it.
        It is asked where the views of the same samples, of the states numbered `at`, do not say."""
        path, k, b = visited.path, visited.k, visited.b
        if path.reference_data is not None:
            return path.reference_data[k, b]
        if not self.kl_weight or not self.policy.has_reference:
            return None
        data = torch.empty_like(views.data)
        place = torch.full_like(path.times, -1, dtype=torch.long)
        if self.reads_pretrained:
            place[at, b] = torch.arange(len(at), device=at.device)
        seen = place[k, b]
        data[seen >= 0] = views.data[seen[seen >= 0]]
        unseen = (seen < 0).nonzero()[:, 0]
        if len(unseen):
            j, who = k[unseen], b[unseen]
            x, t, condition = path.states[j, who], path.times[j, who], path.condition.take(who)
            data[unseen] = self.policy.pretrained(x, t, condition).data.to(data)
        return data

    @property
    def reads_pretrained(self) -> bool:
        """Whether slopes are of a value of the pretrained policy's x̂0."""
        return self.estimate == "pretrained" and self.policy.has_reference

    def views(
        self, path: Trajectory, reward_fn: RewardFn, at: Tensor, b: Tensor, *, slopes: bool = False
    ) -> Views:
        """Values of the states numbered `at` of the samples b, in parts that fit the memory."""
        parts = [
            self._view(path, reward_fn, at[s], b[s], slopes) for s in spans(len(at), self.at_once)
        ]
        given = [name for name, value in vars(parts[0]).items() if value is not None]
        return Views(**{n: torch.cat([getattr(part, n) for part in parts]) for n in given})

    def _view(
        self, path: Trajectory, reward_fn: RewardFn, at: Tensor, b: Tensor, slopes: bool
    ) -> Views:
        """The value; with slopes also ∇_x V by automatic differentiation, through x̂0(x), at the end
        the reward's own."""
        x, t, tokens = path.states[at, b], path.times[at, b], path.condition.summary[b]
        features, ended = None, at == len(path.data)
        if slopes:
            x.requires_grad_()
            data, features = self._through(x, t, path.condition.take(b), ended)
        else:
            data = torch.cat([path.data, path.final[None]])[at, b]
        if not slopes and path.features is not None:
            features = torch.cat([path.features, torch.zeros_like(path.features[:1])])[at, b]
        with torch.set_grad_enabled(slopes):
            needs_reward = self.critic.skip is not none or bool(ended.any())
            guess = reward_fn(data, b) if needs_reward else torch.zeros_like(t)
            value = self.critic(x, data, t, tokens, guess, features)
            value = torch.where(ended, guess, value)
        slope = None
        if slopes:
            if self.critic.skip is not none:  # else the slope is F's alone, whatever the reward
                require_gradient(guess)
            slope = torch.autograd.grad(value.sum(), x)[0]
        view = Views(x, data, t, tokens, guess, value, features, slope)
        return Views(**{n: p.detach() for n, p in vars(view).items() if p is not None})

    def _through(
        self, x: Tensor, t: Tensor, condition: Condition, ended: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """x̂0 as a function of the state x, value and Jacobian, and the features of that estimate.

        The critic reads the pretrained model's x̂0, unless `estimate` is "policy". Either way V is
        one function of x and this its true gradient, so that a policy at rest is at an optimum; a
        value at the policy's estimate with the Jacobian of the pretrained one would be no gradient
        of anything, and comes to rest elsewhere. The Jacobian of a true score is α/σ² times the
        posterior covariance: it turns the reward's gradient into directions that data vary in and
        never against it. A trained control is no score, and its Jacobian may turn the gradient
        round on the way: learning by the policy's estimate can run away, and wants a trust region.
        """
        features = x.new_zeros(len(x), self.policy.feature_size) if self.shares_features else None
        rows, data = (~ended).nonzero()[:, 0], x  # a finished sample is its own x̂0
        with self.policy.reference() if self.reads_pretrained else nullcontext():
            if len(rows) and features is not None:
                estimate, read = self.policy.estimate_with_features(
                    x[rows], t[rows], condition.take(rows)
                )
                features = features.index_copy(0, rows, read.to(features))
                data = x.index_copy(0, rows, estimate.data.to(x))
            elif len(rows):
                estimate = self.policy.estimate(x[rows], t[rows], condition.take(rows))
                data = x.index_copy(0, rows, estimate.data.to(x))
        return data, features

    def _fit(self, path: Trajectory, read: Read, returns: Tensor) -> dict[str, float]:
        """Fit by the martingale loss ½(G − V)²Δt; what the critic explained before the fit, and the
        mean loss of the last pass."""
        at, who, views = read.at, read.who, read.views
        early = at < len(returns) - 1  # at the end the value is the reward: nothing to explain
        values = distributed.gather(views.value[early])
        explained = explained_variance(values, distributed.gather(returns[at, who][early]))
        goal, weight, deal = returns[at, who], _time_weight(path, at, who), deal_of(path, who)
        losses: list[Tensor] = []
        for _ in range(self.passes):
            losses = []
            chunks = deal.chunks(torch.randperm(deal.whole), self.minibatch)
            parts = torch.cat([part for part, _ in chunks]).to(goal.device)
            parts = parts.split([len(part) for part, _ in chunks])
            for part, (_, count) in zip(parts, chunks, strict=True):
                self.optimiser.zero_grad(set_to_none=True)
                # There are none where the other processes have all of this minibatch.
                for few in spans(len(part), self.policy.at_most(self.minibatch)):
                    loss = self._loss(views, goal, weight, part[few])
                    loss = loss * (len(part[few]) / count)
                    loss.backward()
                    losses.append(loss.detach())
                distributed.add_up(self.critic.parameters())
                self.optimiser.step()
        minibatches = -(-deal.whole // self.minibatch)
        last: list[float] = torch.stack(losses).tolist() if losses else []
        loss_mean = distributed.total({"loss": sum(last)})["loss"] / minibatches
        return {"explained_variance": explained, "value_loss": loss_mean}

    def _loss(self, views: Views, returns: Tensor, weight: Tensor, part: Tensor) -> Tensor:
        some = views.take(part)
        value = self.critic(some.x, some.data, some.t, some.tokens, some.guess, some.features)
        return martingale_loss(value[:, None], returns[part, None], weight[part, None])


# ------------------------------------------------------------------------------------ rules


@dataclass(frozen=True)
class Outcome:
    """A = G_k − V_k: the return less what was expected."""

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read:
        k, b = visited.k, visited.b
        views = critic.views(visited.path, visited.reward_fn, k, b)
        return Read(k, b, views, advantage=visited.to_go[k, b] - views.value)


@dataclass(frozen=True)
class Increment:
    """A = V_{k+1} − V_k + r_k Δ_k: what the step did to the value, and with a `decay` λ above 0
    what came of it later (`rl.gae`). Looks at every state once."""

    decay: float = 0.0

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read:
        running = visited.running
        at, who = (torch.ones_like(running) > 0).nonzero(as_tuple=True)
        views = critic.views(visited.path, visited.reward_fn, at, who)
        values = torch.cat([views.value.view_as(running), visited.to_go[-1:]])
        clock, whole = -visited.path.times.diff(dim=0).T, torch.ones_like(running.T)
        traced = gae(values.T, running.T, whole, decay=self.decay, clock=clock).T
        advantage = traced[visited.k, visited.b]
        return Read(at, who, views, advantage=advantage)


@dataclass(frozen=True)
class ArrivalSlope:
    """∇V where the step arrives, times the kernel's response."""

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read:
        path, k, b = visited.path, visited.k, visited.b
        views = critic.views(path, visited.reward_fn, k + 1, b, slopes=True)
        slope = arrival_to_data(critic.policy, path, k, b, slope_in(views))
        pretrained = critic.pretrained(visited, k + 1, views)
        return Read(k + 1, b, views, slope=slope, reference_data=pretrained, arrivals=True)


@dataclass(frozen=True)
class SlopeRate:
    """∇V at the visited state, times what it stands for of continuous time, so that any solver may
    have led there: (1+η²)/2 g² ∇V·∂s/∂x̂0 dt = (1+η²)/2 α ∇V dℓ, the drift's part in dV, per unit
    of x̂0."""

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read:
        path, k, b = visited.path, visited.k, visited.b
        views = critic.views(path, visited.reward_fn, k, b, slopes=True)
        slope, alpha = slope_in(views), critic.policy.backbone.process.alpha(path.times[k, b])
        along = (1 + path.etas[k, b] ** 2) / 2 * alpha * path.log_snr_steps[k, b]
        pretrained = critic.pretrained(visited, k, views)
        return Read(k, b, views, slope=expand(along, slope) * slope, reference_data=pretrained)


@dataclass(frozen=True)
class Explored:
    """An action is tried, the noise estimate plus `exploration` times standard noise [M, *S], and
    its closed-form advantage q Δ [M] is the credit (`rl.advantage_rate`).

    In log-SNR time g² dt is σ² dℓ; a score is −1/σ times a noise estimate.
    """

    exploration: float

    def __call__(self, critic: CriticCredit, visited: Visited) -> Read:
        path, k, b = visited.path, visited.k, visited.b
        views = critic.views(path, visited.reward_fn, k, b, slopes=True)
        slope = slope_in(views)
        process, t, eta = critic.policy.backbone.process, path.times[k, b], path.etas[k, b]
        alpha, sigma = expand(process.alpha(t), slope), expand(process.sigma(t), slope)
        x, data = path.states[k, b], path.data[k, b]
        noise = (x - alpha * data) / sigma
        action = noise + self.exploration * deal_of(path, b).normal(noise)
        reference_data = critic.pretrained(visited, k, views)
        pretrained = data if reference_data is None else reference_data
        rate = advantage_rate(
            expand((1 + eta**2) / 2, slope) * slope,
            -action / sigma,
            -noise / sigma,
            -(x - alpha * pretrained) / sigma**2,
            process.sigma(t) ** 2,
            critic.kl_weight * kl_factor(eta),
            self.exploration**2 * noise[0].numel() / process.sigma(t) ** 2,
        )
        advantage = rate * path.log_snr_steps[k, b]
        return Read(k, b, views, advantage, action=action, reference_data=reference_data)


def traced(decay: float) -> Rule:
    """The rule of generalised advantages: increments at λ = 0, outcomes at λ = 1."""
    return Outcome() if decay == 1 else Increment(decay)


def rule_named(form: Form, exploration: float = 0.0) -> Rule:
    """The rule of a form of score as action; `exploration` is the deviation of tried actions."""
    rules: dict[Form, Rule] = {
        "outcome": Outcome(),
        "ratio": Increment(),
        "slope": ArrivalSlope(),
        "rate": SlopeRate(),
        "explicit": Explored(exploration),
    }
    return rules[form]


def fitted_critic(
    settings: CriticSettings,
    policy: Policy,
    rule: Rule,
    kl_weight: float,
    *,
    first: int = 0,
    at_once: int = 64,
) -> CriticCredit:
    """The critic that settings name: a head on the policy's features if it has any and the settings
    do not ask for another, else a small network of its own. It looks at `at_once` states a time."""
    backbone = policy.backbone
    suits = policy.has_features and settings.inputs == "both"
    shares = settings.body == "backbone" or (settings.body == "auto" and suits)
    exact = torch.promote_types(next(backbone.network.parameters()).dtype, torch.float32)
    critic = critic_for(
        backbone.shape,
        backbone.encode([""]).summary.shape[-1],
        backbone.process.horizon,
        width=settings.width,
        skip=settings.skip,
        inputs=settings.inputs,
        features=policy.feature_size if shares else 0,
    ).to(policy.device, exact)
    return CriticCredit(
        critic=critic,
        optimiser=torch.optim.Adam(critic.parameters(), lr=settings.learning_rate),
        policy=policy,
        kl_weight=kl_weight,
        rule=rule,
        first=first,
        passes=settings.passes,
        at_once=at_once,
        shares_features=shares,
        estimate=settings.estimate,
    )


def slope_in(views: Views) -> Tensor:
    """∇_x V of views that were made with slopes."""
    assert views.slope is not None
    return views.slope


def deal_of(path: Trajectory, who: Tensor) -> Deal:
    """How states are dealt among the processes, of which every row has all samples."""
    samples = path.states.shape[1]
    return distributed.deal(torch.arange(len(who)) // samples, who, samples)


def _time_weight(path: Trajectory, at: Tensor, b: Tensor) -> Tensor:
    """Δt of the martingale loss with mean 1; 0 at the end, where V needs no learning."""
    steps = -path.times.diff(dim=0)
    return torch.cat([steps / steps.mean(), torch.zeros_like(steps[:1])])[at, b]
