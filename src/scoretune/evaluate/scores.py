"""Numbers about a policy: how often it does as told, through the sampler it is deployed with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.core import distributed, fsdp
from scoretune.core.records import Condition, spans
from scoretune.data.prompts import Prompts
from scoretune.policy import Policy, adapter_layers
from scoretune.rewards.base import Reward, checked
from scoretune.rollout import Acting, prior, rollout, sampled


@dataclass(frozen=True)
class Score:
    """A mean with its 95 % interval over prompts, and the mean of each task."""

    overall: float
    low: float
    high: float
    tasks: dict[str, float]

    def as_dict(self) -> dict[str, object]:
        """The score as plain data, rounded for people."""
        numbers = {"overall": self.overall, "low": self.low, "high": self.high}
        told: dict[str, object] = {name: rounded(value) for name, value in numbers.items()}
        return {**told, "tasks": {name: rounded(value) for name, value in self.tasks.items()}}

    def as_gain(self) -> dict[str, float]:
        """Mean and interval of a paired difference, rounded for people."""
        numbers = {"mean": self.overall, "low": self.low, "high": self.high}
        return {name: rounded(value) for name, value in numbers.items()}


def rounded(value: float) -> float:
    """Six significant digits, so that small rewards keep theirs; -0.0 becomes 0.0."""
    return float(f"{value:.6g}") + 0.0


def score(values: Tensor, tasks: tuple[str, ...]) -> Score:
    """Summarise one value a prompt [B]: mean ± 1.96 standard errors, and the mean by task."""
    mean = float(values.mean())
    error = 1.96 * float(values.std()) / len(values) ** 0.5 if len(values) > 1 else 0.0
    by_task = {
        task: float(values[torch.tensor([own == task for own in tasks])].mean())
        for task in dict.fromkeys(tasks)
    }
    return Score(mean, mean - error, mean + error, by_task)


Walk = Callable[[Condition, Tensor, torch.Generator], Tensor]
"""From prompts and pure noise x [B, *S] to the data end; the generator is for further noise."""


@torch.no_grad()
def pictures(policy: Policy, prompts: Prompts, seed: int, walk: Walk, *, batch: int = 64) -> Tensor:
    """Images [B, 3, H, W] at the end of a walk; of one seed all walks begin in the same noise.

    Several processes draw a part each, with further noise of its own, and all get all of them.
    """
    generator, team = torch.Generator().manual_seed(seed), distributed.team()
    noise = prior(policy, len(prompts), generator)
    if team.size > 1:
        generator.manual_seed(seed + 1_000_003 * (team.rank + 1))
    images = []
    own = _share(len(prompts))
    mine = list(range(own.start, own.stop))
    if fsdp.is_spread(policy.backbone.network):  # all must ask the network equally often
        mine += [len(prompts) - 1] * (distributed.most(len(mine)) - len(mine))
    for span in spans(len(mine), batch):
        place = mine[span]
        condition = policy.backbone.encode([prompts.texts[i] for i in place])
        images.append(policy.backbone.decode(walk(condition, noise[place], generator)))
    shape = policy.backbone.decode(noise[:1].to(policy.device))[:0] if not images else images[0][:0]
    return distributed.gather(torch.cat([shape, *images])[: own.stop - own.start])


def _share(whole: int) -> slice:
    """What this process draws or judges of `whole`: nearly equal parts, in order."""
    team = distributed.team()
    return slice(whole * team.rank // team.size, whole * (team.rank + 1) // team.size)


def sample(
    policy: Policy,
    prompts: Prompts,
    times: Tensor,
    seed: int,
    solver: str = "ddim",
    batch: int = 64,
) -> Tensor:
    """Images [B, 3, H, W] for the prompts from fixed noise, through a solver."""

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        return sampled(policy, condition, times, x, solver, generator)

    return pictures(policy, prompts, seed, walk, batch=batch)


def act(
    policy: Policy, prompts: Prompts, times: Tensor, seed: int, batch: int = 64
) -> tuple[Tensor, float | None]:
    """Images [B, 3, H, W] through the policy's own kernel from the same noise, and its path KL.

    The kernel acts on every step, also where a run has a window of stochastic steps. The path KL is
    measured on paths with jittered times, so it is the same on any grid. It is None where there is
    no adapter, hence no pretrained policy to compare with.
    """
    adapted = bool(adapter_layers(policy.backbone.network))
    kls: list[Tensor] = []

    def walk(condition: Condition, x: Tensor, generator: torch.Generator) -> Tensor:
        final = rollout(policy, condition, times, generator, x).final
        if adapted:
            kls.append(path_kl(policy, condition, times, generator, x))
        return final

    images = pictures(policy, prompts, seed, walk, batch=batch)
    if not adapted:
        return images, None
    own = _share(len(prompts))
    mine = torch.cat([images.new_zeros(0), *kls])[: own.stop - own.start]
    return images, float(distributed.gather(mine).mean())


def path_kl(
    policy: Policy, condition: Condition, times: Tensor, generator: torch.Generator, x: Tensor
) -> Tensor:
    """An unbiased estimate of each path's KL to the pretrained policy, [B], whatever the grid."""
    path = rollout(
        policy, condition, times, generator, x, acting=Acting(jitter=True), reference=True
    )
    assert path.kls is not None
    return path.kls.sum(0)


@torch.no_grad()
def verdicts(
    images: Tensor, prompts: Prompts, metrics: Mapping[str, Reward], batch: int = 64
) -> dict[str, Tensor]:
    """Every metric on every image: {name: [B]}; several processes judge a part each."""
    own = _share(len(prompts))
    mine, texts = images[own], prompts.texts[own]
    found = {}
    for name, metric in metrics.items():
        values = [checked(metric, name, mine[s], texts[s]) for s in spans(len(texts), batch)]
        found[name] = distributed.gather(torch.cat([mine.new_zeros(0), *values])).cpu()
    return found
