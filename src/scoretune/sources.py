"""Where batches come from: the policy's own samples, or a dataset."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.batches import Condition, Examples, Round, Steps, Trajectory
from scoretune.config import Sizes
from scoretune.credit.base import Credit, Credited
from scoretune.data import Prompts
from scoretune.policy import Policy
from scoretune.rewards.base import Reward, checked
from scoretune.rollout import prior, rollout

Chosen = tuple[Tensor, Tensor, float]
Chooser = Callable[[Trajectory, torch.Generator], Chosen]
"""Which steps of a path are learned from: their numbers k [M], their samples b [M], and how many of
a path's steps a mean over them stands for."""


@dataclass
class OnPolicy:
    """Rolls the policy on fresh prompts, scores, credits, and yields shuffled transitions.

    What is sampled in update k follows from (seed, k); with the generators that a checkpoint holds
    (the critic's fit shuffles by torch's own), a resumed run repeats itself.
    """

    policy: Policy
    prompts: Prompts
    reward: Reward
    reward_name: str
    credit: Credit
    times: Tensor
    sizes: Sizes
    seed: int
    choose: Chooser
    reference: bool = False
    jitter: bool = False
    solver: str | None = None
    features: bool = False
    cursor: int = 0

    def __call__(self, update: int) -> Round:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        texts = self._next_prompts()
        condition = self.policy.backbone.encode(texts)
        noise = prior(self.policy, len(texts), generator)
        path = rollout(
            self.policy,
            condition,
            self.times,
            generator,
            noise,
            reference=self.reference,
            jitter=self.jitter,
            solver=self.solver,
            features=self.features,
        )

        def judge(x0: Tensor, who: Tensor) -> Tensor:
            images = self.policy.backbone.decode(x0)
            asked = [texts[i] for i in who.tolist()]
            return checked(self.reward, self.reward_name, images, asked)

        with torch.no_grad():
            rewards = judge(path.final, torch.arange(len(texts)))
        k, b, path_steps = self.choose(path, generator)
        credited = self.credit(path, rewards, judge, k, b)
        steps = transitions(path, credited, k, b, path_steps)
        metrics = {**reward_metrics(rewards), **credited.metrics}
        if path.kls is not None:
            metrics["path_kl"] = float(path.kls.sum(0).mean())
        batches = shuffled(steps, self.sizes.minibatch, generator)
        return Round(batches, metrics, self.sizes.accumulate)

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "credit": self.credit.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]
        self.credit.restore(state["credit"])

    def _next_prompts(self) -> list[str]:
        """The next prompts, each repeated `group` times; every pass has an order of its own."""
        chosen = []
        for place in range(self.cursor, self.cursor + self.sizes.prompts):
            lap, index = divmod(place, len(self.prompts))
            shuffle = torch.Generator().manual_seed(self.seed * 7919 + lap)
            order = torch.randperm(len(self.prompts), generator=shuffle)
            chosen.append(self.prompts.texts[int(order[index])])
        self.cursor += self.sizes.prompts
        return [text for text in chosen for _ in range(self.sizes.group)]


@dataclass
class Dataset:
    """Draws weighted examples of clean states with their conditions."""

    x0: Tensor
    condition: Condition
    weight: Tensor
    batch: int
    seed: int

    def __call__(self, update: int) -> Round:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        index = torch.randint(len(self.x0), (self.batch,), generator=generator)
        torch.manual_seed(self.seed * 1_000_003 + update)  # the objective draws times and noise
        batch = Examples(self.x0[index], self.condition.take(index), self.weight[index])
        return Round([batch], {})

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def any_steps(share: float) -> Chooser:
    """Chooses a random `share` of each path's steps."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        steps, batch = path.data.shape[:2]
        kept = max(1, round(share * steps))
        order = torch.rand(steps, batch, generator=generator).argsort(0)[:kept]
        device = path.states.device
        everyone = torch.arange(batch, device=device).repeat(kept)
        return order.flatten().to(device), everyone, float(steps)

    return choose


def last_steps(count: int, random: bool = False) -> Chooser:
    """Chooses the last `count` steps, or of each path a random number from 1 to `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        steps, batch = path.data.shape[:2]
        many = torch.full((batch,), min(count, steps))
        if random:
            many = torch.randint(1, min(count, steps) + 1, (batch,), generator=generator)
        wanted = torch.arange(steps)[:, None] >= steps - many
        k, b = wanted.nonzero(as_tuple=True)
        device = path.states.device
        return k.to(device), b.to(device), len(k) / batch

    return choose


def one_of_last(count: int) -> Chooser:
    """Chooses one step of each path, uniform among the last `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        steps, batch = path.data.shape[:2]
        back = torch.randint(1, min(count, steps) + 1, (batch,), generator=generator)
        device = path.states.device
        return (steps - back).to(device), torch.arange(batch, device=device), 1.0

    return choose


def transitions(
    path: Trajectory, credited: Credited, k: Tensor, b: Tensor, path_steps: float
) -> Steps:
    """The steps k [M] of the samples b [M] as one flat batch."""
    pretrained, log_probs = path.reference_data, path.log_probs
    return Steps(
        x=path.states[k, b],
        t=path.times[k, b],
        t_next=path.times[k + 1, b],
        condition=path.condition.take(b),
        data=path.data[k, b],
        kl_weight=path.kl_weights[k, b],
        x_next=path.states[k + 1, b],
        log_prob=None if log_probs is None else log_probs[k, b],
        advantage=credited.advantage,
        data_slope=credited.data_slope,
        action=credited.action,
        reference_data=None if pretrained is None else pretrained[k, b],
        path_steps=path_steps,
    )


def shuffled(steps: Steps, minibatch: int, generator: torch.Generator) -> list[Steps]:
    """The transitions in random order, cut into minibatches."""
    order = torch.randperm(len(steps), generator=generator).to(steps.x.device)
    return [steps.take(chosen) for chosen in order.split(minibatch)]


def reward_metrics(rewards: Tensor) -> dict[str, float]:
    """The mean reward with its 95 % interval over the samples."""
    spread = float(rewards.std()) if len(rewards) > 1 else 0.0
    mean, error = float(rewards.mean()), 1.96 * spread / len(rewards) ** 0.5
    return {"reward": mean, "reward_low": mean - error, "reward_high": mean + error}
