"""The policy's own samples: rolled, scored, credited, and dealt out as transitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.config import Sizes
from scoretune.core.profiling import part
from scoretune.core.records import Minibatches, Round, Scores, Steps, Trajectory, spans
from scoretune.data.prompts import Prompts, order
from scoretune.diffusion.paths import INTEGRAL_END
from scoretune.diffusion.windows import Window
from scoretune.models.sizes import shape_of
from scoretune.policy import Policy
from scoretune.rewards.base import Reward, checked
from scoretune.rewards.weighted import reward_metrics, scored
from scoretune.rollout import Acting, prior, rollout
from scoretune.training.credit.base import Credit, Credited, require_gradient
from scoretune.training.sources.base import (
    dealt_rows,
    gathered,
    mean_over_processes,
    together,
    update_generator,
)
from scoretune.training.sources.step_choice import Chooser

References = Literal["none", "chosen", "visited"]
"""Where the pretrained policy is asked: nowhere, at the states that are learned from (by credit, if
that asks there anyway), or at all."""


class Drawn(NamedTuple):
    """An update's prompts, one text a sample, their paths, this process's rewards beside all
    others', and the generator of what is still to be drawn."""

    texts: list[str]
    path: Trajectory
    scores: Scores
    generator: torch.Generator


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
    reference: References = "none"
    in_chain: bool = True
    jitter: bool = False
    solver: str | None = None
    features: bool = False
    window: Callable[[int], Window] | None = None
    shared_noise: bool = False
    integral_end: float = INTEGRAL_END
    home: torch.device | None = None
    slopes_at_once: int = 0
    """Where credit follows the reward's gradient back from finished samples: how many of them are
    scored with one graph, once and for both."""
    cursor: int = 0
    waiting: list[int] = field(default_factory=list)
    """The numbers of prompts whose turn came before enough of their size for an update had come."""

    def __call__(self, update: int) -> Round:
        texts, path, scores, generator = self.draw(update)

        def reward_fn(x0: Tensor, who: Tensor) -> Tensor:
            images = self.policy.decode(x0.to(self.policy.device))
            prompts = [texts[i] for i in who.tolist()]
            return checked(self.reward, self.reward_name, images, prompts)

        choice = self.choose(path, generator)
        deal = distributed.deal(choice.rows, choice.b, len(texts))
        rows, counts = dealt_rows(self.sizes, generator, deal)
        k, b, *rows = together([choice.k, choice.b, *rows], path.states.device)
        with part("credit"):
            credited = self.credit(path, scores, reward_fn, k, b)
        steps = transitions(path, credited, k, b, choice.path_steps)
        steps = replace(steps, noisy=choice.noisy)
        if self.reference == "chosen" and steps.reference_data is None:
            steps = replace(steps, reference_data=self.pretrained(steps))
        metrics = {**reward_metrics(scores), **mean_over_processes(credited.metrics)}
        metrics |= path_kls(path)
        batches = Minibatches(steps, rows)
        return Round(batches, metrics, self.sizes.accumulate, counts, self.sizes.epochs)

    def draw(self, update: int) -> Drawn:
        """The paths of the next prompts, and what they are worth."""
        generator = self.generator(update)
        texts = self.local_prompts()
        x = self.noise(texts, generator)
        path = self.roll(self.policy.encode(texts), update, generator, x)
        if not self.slopes_at_once:
            return Drawn(texts, path, self.scores(path.final, texts), generator)
        scores, slope = self.scores_and_slopes(path.final, texts)
        return Drawn(texts, replace(path, final_slope=slope), scores, generator)

    @torch.no_grad()
    def scores(self, x0: Tensor, texts: Sequence[str]) -> Scores:
        """The rewards of this process's finished samples, beside those of all others."""
        images = self.policy.decode(x0.to(self.policy.device))
        at_once = self.policy.at_once
        scores = scored(self.reward, self.reward_name, images, texts, at_once=at_once)
        return gathered(scores).to(x0.device)

    def scores_and_slopes(self, x0: Tensor, texts: Sequence[str]) -> tuple[Scores, Tensor]:
        """`scores`, and the gradient [B, *S] of each sample's reward."""
        each, slope = list[Scores](), torch.zeros_like(x0)
        for s in spans(len(x0), self.slopes_at_once):
            with torch.enable_grad():
                leaf = x0[s].detach().to(self.policy.device).requires_grad_()
                images = self.policy.decode(leaf)
                scores = scored(self.reward, self.reward_name, images, texts[s])
                for value in scores.parts.values() or [scores.total]:
                    require_gradient(value)
                slope[s] = torch.autograd.grad(scores.total.sum(), leaf)[0].to(x0)
            each.append(scores)
        parts = {
            name: torch.cat([scores.parts[name].detach() for scores in each])
            for name in each[0].parts
        }
        total = torch.cat([scores.total.detach() for scores in each])
        return gathered(Scores(total, tuple(texts), parts)).to(x0.device), slope

    def pretrained(self, steps: Steps) -> Tensor:
        """The pretrained policy's estimates at the states that are learned from."""
        device = self.policy.device
        place = steps.x.to(device), steps.t.to(device), steps.condition.to(device)
        return self.policy.pretrained(*place).data.to(steps.x.device)

    def generator(self, update: int) -> torch.Generator:
        """Of the update's random numbers: this process's rows of what is drawn for all."""
        return update_generator(self.seed, update)

    def roll(
        self, condition: Condition, update: int, generator: torch.Generator, x: Tensor
    ) -> Trajectory:
        """Paths from noise x [B, *S]."""
        acting = Acting(
            jitter=self.jitter,
            solver=self.solver,
            window=None if self.window is None else self.window(update),
            group=self.sizes.group if self.shared_noise else 1,
            features=self.features,
            integral_end=self.integral_end,
        )
        return rollout(
            self.policy,
            condition,
            self.times,
            generator,
            x,
            acting=acting,
            reference=self.reference == "visited",
            in_chain=self.in_chain,
            home=self.home,
        )

    def state(self) -> dict[str, Any]:
        credit = self.credit.state()
        return {"cursor": self.cursor, "waiting": list(self.waiting), "credit": credit}

    def restore(self, state: dict[str, Any]) -> None:
        self.cursor = state["cursor"]
        waiting = state.get("waiting", [])  # older checkpoints know one size alone
        self.waiting = [place for place in waiting if place < len(self.prompts)]
        self.credit.restore(state["credit"])

    def noise(self, texts: Sequence[str], generator: torch.Generator) -> Tensor:
        """What the paths begin with, [B, *S]; of one prompt perhaps the same."""
        group = self.sizes.group if self.shared_noise else 1
        shape = shape_of(self.policy.backbone, texts)
        noise = prior(self.policy, len(texts) // group, generator, shape)
        return noise.repeat_interleave(group, 0)

    def local_prompts(self) -> list[str]:
        """This process's part of the next prompts, with all samples of each."""
        texts = self._next_prompts()
        return texts[distributed.team().rows(len(texts))]

    def _next_prompts(self) -> list[str]:
        """The next prompts of all processes, each `group` times, of one size; every pass in its own
        order.

        Prompts come in that order, and the first size of which enough for an update have come is
        next. The others wait, so that every prompt is asked for as often as it comes: of one size
        all are the next in order, and none waits.
        """
        ready = dict[tuple[int, ...], list[int]]()
        for place in self._arrivals():
            shape = self._shape(place)
            ready.setdefault(shape, []).append(place)
            if len(ready[shape]) == self.sizes.prompts:
                break
        places = ready.pop(shape)
        self.waiting = [place for others in ready.values() for place in others] + self.waiting
        return [self.prompts.texts[p] for p in places for _ in range(self.sizes.group)]

    def _arrivals(self) -> Iterator[int]:
        """The numbers of prompts as they come, without end: those that wait, of which a resumed run
        of fewer prompts an update may have enough already, then pass after pass."""
        while self.waiting:
            yield self.waiting.pop(0)
        while True:
            lap, index = divmod(self.cursor, len(self.prompts))
            for place in order(self.prompts, lap, self.seed)[index:]:
                self.cursor += 1
                yield place

    def _shape(self, place: int) -> tuple[int, ...]:
        """Of the states of a prompt by its number."""
        return shape_of(self.policy.backbone, [self.prompts.texts[place]])


def transitions(
    path: Trajectory, credited: Credited, k: Tensor, b: Tensor, path_steps: float
) -> Steps:
    """The steps k [M] of the samples b [M] as one flat batch."""
    pretrained = credited.reference_data
    if pretrained is None and path.reference_data is not None:
        pretrained = path.reference_data[k, b]
    return Steps(
        x=path.states[k, b],
        t=path.times[k, b],
        t_next=path.times[k + 1, b],
        condition=path.condition.take(b),
        data=path.data[k, b],
        kl_weight=path.kl_weights[k, b],
        x_next=path.states[k + 1, b] if path.chain_weights is not None else None,
        advantage=credited.advantage,
        data_slope=credited.data_slope,
        action=credited.action,
        reference_data=pretrained,
        path_steps=path_steps,
    )


def path_kls(path: Trajectory) -> dict[str, float]:
    """The KLs of paths to those of the pretrained policy, where it was asked at every state."""
    kls = {"chain_kl": path.chain_kl, "girsanov_kl": path.girsanov_kl}
    means = {n: distributed.gather(kl).mean() for n, kl in kls.items() if kl is not None}
    return dict(zip(means, torch.stack([*means.values()]).tolist(), strict=True)) if means else {}
