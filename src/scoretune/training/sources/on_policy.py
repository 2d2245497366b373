"""Where batches come from: the policy's own samples, or a dataset."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.config import Sizes
from scoretune.core.distributed import Deal
from scoretune.core.records import Condition, Examples, Round, Scores, Starts, Steps, Trajectory
from scoretune.data.prompts import Prompts, order
from scoretune.diffusion.noise import Rows, rand, randint
from scoretune.diffusion.windows import Window
from scoretune.policy import Policy
from scoretune.rewards.base import Reward, checked
from scoretune.rewards.weighted import reward_metrics, scored
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.base import Credit, Credited


class Chosen(NamedTuple):
    """Which steps of the paths are learned from: the steps k [M] of the samples b [M], in rows
    [M] from left to right; a mean over them stands for `path_steps` of a path's steps."""

    k: Tensor
    b: Tensor
    path_steps: float
    rows: Tensor


Dealt = TypeVar("Dealt", Steps, Starts)
Chooser = Callable[[Trajectory, torch.Generator], Chosen]


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
    window: Callable[[int], Window] | None = None
    shared_noise: bool = False
    home: torch.device | None = None
    cursor: int = 0

    def __call__(self, update: int) -> Round:
        generator = self.generator(update)
        texts = self.own_prompts()
        condition = self.policy.backbone.encode(texts)
        path = self._roll(condition, update, generator)

        def judge(x0: Tensor, who: Tensor) -> Tensor:
            images = self.policy.backbone.decode(x0.to(self.policy.device))
            asked = [texts[i] for i in who.tolist()]
            return checked(self.reward, self.reward_name, images, asked)

        with torch.no_grad():
            images = self.policy.backbone.decode(path.final.to(self.policy.device))
            scores = gathered(scored(self.reward, self.reward_name, images, texts))
            scores = scores.to(path.states.device)
        chosen = self.choose(path, generator)
        credited = self.credit(path, scores, judge, chosen.k, chosen.b)
        steps = transitions(path, credited, chosen.k, chosen.b, chosen.path_steps)
        metrics = {**reward_metrics(scores), **_mean(credited.metrics)}
        if path.kls is not None:
            metrics["path_kl"] = float(distributed.gather(path.kls.sum(0)).mean())
        deal = distributed.deal(chosen.rows, chosen.b, len(texts))
        batches, counts = deal_out(steps, self.sizes.minibatch, generator, deal)
        return Round(batches, metrics, self.sizes.accumulate, counts)

    def generator(self, update: int) -> torch.Generator:
        """Of the update's random numbers: this process's rows of what is drawn for all."""
        found, team = Rows(), distributed.team()
        found.part, found.parts = team.rank, team.size
        return found.manual_seed(self.seed * 1_000_003 + update)

    def _roll(self, condition: Condition, update: int, generator: torch.Generator) -> Trajectory:
        acting = Acting(
            jitter=self.jitter,
            solver=self.solver,
            window=None if self.window is None else self.window(update),
            group=self.sizes.group if self.shared_noise else 1,
            features=self.features,
        )
        return rollout(
            self.policy,
            condition,
            self.times,
            generator,
            self.noise(len(condition), generator),
            acting=acting,
            reference=self.reference,
            home=self.home,
        )

    def state(self) -> dict[str, Any]:
        return {"cursor": self.cursor, "credit": self.credit.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]
        self.credit.restore(state["credit"])

    def noise(self, samples: int, generator: torch.Generator) -> Tensor:
        """What the paths begin with, [B, *S]; of one prompt perhaps the same."""
        group = self.sizes.group if self.shared_noise else 1
        return prior(self.policy, samples // group, generator).repeat_interleave(group, 0)

    def own_prompts(self) -> list[str]:
        """This process's part of the next prompts, with all samples of each."""
        texts = self._next_prompts()
        return texts[distributed.team().own(len(texts))]

    def _next_prompts(self) -> list[str]:
        """The next prompts of all processes, each `group` times; every pass in its own order."""
        laps: dict[int, list[int]] = {}
        chosen = []
        for place in range(self.cursor, self.cursor + self.sizes.prompts):
            lap, index = divmod(place, len(self.prompts))
            if lap not in laps:
                laps[lap] = order(self.prompts, lap, self.seed)
            chosen.append(self.prompts.texts[laps[lap][index]])
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
        team = distributed.team()
        # The objective draws times and noise; those of several processes must not be alike.
        torch.manual_seed(self.seed * 1_000_003 + update + 7_368_787 * team.rank)
        index = index[team.own(self.batch)]
        batch = Examples(self.x0[index], self.condition.take(index), self.weight[index])
        return Round([batch], {}, counts=(self.batch,))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def any_steps(share: float, noisy: bool = False) -> Chooser:
    """Chooses a random `share` of each path's steps; of those with noise, if `noisy`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        batch = path.data.shape[1]
        known = path.noisy_steps if noisy else torch.arange(len(path.data))
        kept = max(1, round(share * len(known)))
        order = known[rand((len(known), batch), generator, dim=1).argsort(0)[:kept]]
        everyone, rows = torch.arange(batch).repeat(kept), torch.arange(kept)
        return _chosen(path, order.flatten(), everyone, len(known), rows.repeat_interleave(batch))

    return choose


def last_steps(count: int, random: bool = False) -> Chooser:
    """Chooses the last `count` steps, or of each path a random number from 1 to `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        steps, batch = path.data.shape[:2]
        many = torch.full((batch,), min(count, steps))
        if random:
            many = randint(1, min(count, steps) + 1, batch, generator)
        wanted = torch.arange(steps)[:, None] >= steps - many
        k, b = wanted.nonzero(as_tuple=True)
        whole, samples = (
            float(distributed.gather(torch.tensor([n])).sum()) for n in (len(k), batch)
        )
        return _chosen(path, k, b, whole / samples, k)

    return choose


def one_of_last(count: int) -> Chooser:
    """Chooses one step of each path, uniform among the last `count`."""

    def choose(path: Trajectory, generator: torch.Generator) -> Chosen:
        steps, batch = path.data.shape[:2]
        back = randint(1, min(count, steps) + 1, batch, generator)
        return _chosen(path, steps - back, torch.arange(batch), 1.0, torch.zeros_like(back))

    return choose


def _chosen(path: Trajectory, k: Tensor, b: Tensor, path_steps: float, rows: Tensor) -> Chosen:
    device = path.states.device
    return Chosen(k.to(device), b.to(device), float(path_steps), rows)


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


def deal_out(
    batch: Dealt, minibatch: int, generator: torch.Generator, deal: Deal
) -> tuple[list[Dealt], tuple[int, ...]]:
    """Transitions or starts in random order, cut into minibatches, and the sizes of these.

    Where several processes deal them out: this one's part of every minibatch, and the sizes of the
    whole.
    """
    chunks = deal.chunks(torch.randperm(deal.whole, generator=generator), minibatch)
    batches = [batch.take(own.to(batch.x.device)) for own, _ in chunks]
    return batches, tuple(count for _, count in chunks)


def _mean(metrics: Mapping[str, float]) -> dict[str, float]:
    """The means of what equal shares of a round found."""
    return {
        name: value / distributed.team().size for name, value in distributed.total(metrics).items()
    }


def gathered(scores: Scores) -> Scores:
    """The scores of all processes, of which this one's are `mine`."""
    team = distributed.team()
    if team.size == 1:
        return scores
    return Scores(
        distributed.gather(scores.total),
        tuple(distributed.gather_texts(scores.prompts)),
        {name: distributed.gather(part) for name, part in scores.parts.items()},
        team.own(len(scores) * team.size),
    )
