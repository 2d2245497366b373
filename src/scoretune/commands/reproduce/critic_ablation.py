"""Which value network explains most: skip families, inputs, and a head on the network's features.

Critics V(t, x; c) = c_skip·reward(x̂0) + c_out·F are fitted by the martingale loss to rollouts of
the base model and judged on rollouts that they have not seen (arXiv 2502.01819's ablation). What is
explained is the share of the variance of the reward still to come.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import subplots
from scoretune.core.config import Critic as Settings
from scoretune.core.config import Sampling
from scoretune.data.prompts import Prompts, read_prompts
from scoretune.diffusion.named import grid
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.catalog import named_reward
from scoretune.rl import martingale_loss
from scoretune.rollout import Acting, prior, rollout
from scoretune.training import overrides
from scoretune.training.build import build_policy
from scoretune.training.credit.values import Critic, critic_for, explained_variance

VARIANTS: dict[str, Settings] = {
    "cos/sin, both": Settings(body="small"),
    "cos/sin, noisy": Settings(body="small", inputs="noisy"),
    "cos/sin, denoised": Settings(body="small", inputs="denoised"),
    "linear, both": Settings(body="small", skip="linear"),
    "cos/1−cos, both": Settings(body="small", skip="cos"),
    "no skip, both": Settings(body="small", skip="none"),
    "cos/sin, backbone's features": Settings(body="backbone"),
    "no skip, backbone's features": Settings(skip="none", body="backbone"),
}
SKIP_ALONE = "reward(x̂0) alone, cos"


@dataclass(frozen=True)
class Seen:
    """States of rollouts, M of each, with the reward that each path ended with."""

    x: Tensor
    data: Tensor
    t: Tensor
    tokens: Tensor
    guess: Tensor
    features: Tensor
    returns: Tensor

    def part(self, index: Tensor) -> tuple[Tensor, ...]:
        """The inputs of a critic, of some of the states."""
        inputs = (self.x, self.data, self.t, self.tokens, self.guess, self.features)
        return tuple(part[index] for part in inputs)


def cells(seeds: int, quick: bool) -> list[Cell]:
    """One cell a seed: rollouts, and every variant fitted to them."""
    size = {"rounds": 2, "paths": 4, "passes": 1} if quick else {}
    return [Cell(f"critics-{seed}", ablate, {"seed": seed, **size}) for seed in range(seeds)]


def ablate(seed: int, rounds: int = 24, paths: int = 32, passes: int = 6) -> Numbers:
    """Explained variance on unseen rollouts of every variant; the last quarter is unseen."""
    torch.manual_seed(seed)
    run = overrides.changed(recipes.score_as_action(), ["sampling.jitter=true", f"seed={seed}"])
    policy = build_policy(run, torch.device("cpu"))
    prompts, reward = read_prompts("scenes", 200), named_reward("reader")
    rolled = [
        look(policy, prompts, reward, run.sampling, seed=seed * 1000 + k, paths=paths)
        for k in range(rounds)
    ]
    training, unseen = joined(rolled[: -(rounds // 4 or 1)]), joined(rolled[-(rounds // 4 or 1) :])
    horizon = policy.backbone.process.horizon
    explained: Numbers = {}
    alone = torch.cos(unseen.t / horizon * torch.pi / 2) * unseen.guess
    explained[SKIP_ALONE] = explained_variance(alone, unseen.returns)
    for name, settings in VARIANTS.items():
        torch.manual_seed(seed)
        critic = critic_for(
            policy.backbone.shape,
            unseen.tokens.shape[-1],
            horizon,
            width=settings.width,
            skip=settings.skip,
            inputs=settings.inputs,
            features=policy.feature_size if settings.body == "backbone" else 0,
        )
        fit(critic, training, passes, settings.learning_rate)
        with torch.no_grad():
            value = critic(*unseen.part(torch.arange(len(unseen.t))))
        explained[name] = explained_variance(value, unseen.returns)
    return explained


@torch.no_grad()
def look(
    policy: Policy, prompts: Prompts, reward: Reward, sampling: Sampling, *, seed: int, paths: int
) -> Seen:
    """One round of rollouts, as a critic sees it."""
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randperm(len(prompts), generator=generator)[:paths].tolist()
    texts = [prompts.texts[i] for i in indices]
    condition = policy.backbone.encode(texts)
    noise = prior(policy, paths, generator)
    times = grid(policy.backbone.process, sampling)
    path = rollout(
        policy, condition, times, generator, noise, acting=Acting(jitter=True, features=True)
    )
    assert path.features is not None
    steps = len(path.data)
    returns = reward(policy.backbone.decode(path.final), texts)
    guess = torch.cat([reward(policy.backbone.decode(data), texts) for data in path.data])
    return Seen(
        x=path.states[:-1].flatten(0, 1),
        data=path.data.flatten(0, 1),
        t=path.times[:-1].flatten(),
        tokens=condition.summary.repeat(steps, 1, 1),
        guess=guess,
        features=path.features.flatten(0, 1),
        returns=returns.repeat(steps),
    )


def joined(parts: list[Seen]) -> Seen:
    """All rounds as one."""
    return Seen(*(torch.cat([getattr(p, name) for p in parts]) for name in Seen.__annotations__))


def fit(critic: Critic, seen: Seen, passes: int, rate: float) -> None:
    """The martingale loss, in shuffled minibatches of 64."""
    optimiser = torch.optim.Adam(critic.parameters(), lr=rate)
    one = torch.ones(64, 1)
    for _ in range(passes):
        for part in torch.randperm(len(seen.t)).split(64):
            value = critic(*seen.part(part))
            loss = martingale_loss(value[:, None], seen.returns[part, None], one[: len(part)])
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A table and a bar chart of explained variances."""
    runs = list(results.values())
    spreads = {name: interval([run[name] for run in runs]) for name in runs[0]}
    page.text(
        "The share of the variance of the reward to come that each critic explains, on unseen "
        "rollouts of the base model (10 jittered steps, the reader). 95 % intervals over seeds."
    )
    page.table(
        ["value network", "explained variance"],
        [[name, shown(spread)] for name, spread in spreads.items()],
    )
    figure, axes = subplots(size=(6.8, 3.4), grid="x")
    names = list(spreads)[::-1]
    means = [spreads[name][0] for name in names]
    errors = [spreads[name][2] - spreads[name][0] for name in names]
    axes.barh(names, means, xerr=errors, color="#0b6e99")
    axes.set_xlabel("explained variance")
    page.figure("critics", figure, "explained variance of value networks")
    return {"explained_variance": {name: list(map(float, f)) for name, f in spreads.items()}}
