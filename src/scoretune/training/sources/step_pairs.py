"""Pairs of single steps of the sampler: of whole paths that are ranked at their ends (D3PO), and of
candidates for each next state (SPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.config import Ranking
from scoretune.core.profiling import part
from scoretune.core.records import Minibatches, Round, Scores, StepPairs, Steps
from scoretune.diffusion.kernels import noisy_steps
from scoretune.diffusion.noise import randint, randn
from scoretune.diffusion.paths import chain_weights, jittered
from scoretune.rewards.weighted import reward_metrics, scored
from scoretune.training.credit.base import Credited
from scoretune.training.sources.base import dealt_rows, gathered, mean_over_processes
from scoretune.training.sources.on_policy import OnPolicy, transitions
from scoretune.training.sources.ranking import (
    RankedPairs,
    kept,
    labels,
    ranked_pairs,
    ranking_metrics,
    rows_of,
)
from scoretune.training.sources.step_choice import random_rows


@dataclass
class PathSteps:
    """Ranks `paths`' samples of a prompt at their ends, and pairs their steps of the same number:
    of every pair a random share. Likelihoods are compared with the `pretrained` policy's, else with
    the one's that acted."""

    paths: OnPolicy
    ranking: Ranking
    pretrained: bool = True

    def __call__(self, update: int) -> Round:
        paths, sizes = self.paths, self.paths.sizes
        texts, path, scores, generator = paths.draw(update)
        pairs = ranked_pairs(scores.local, sizes.group, self.ranking, generator)
        steps = path.noisy_steps
        each_row, prompts = rows_of(pairs), len(texts) // sizes.group
        columns = [
            random_rows(len(steps), prompts, sizes.share, generator) for _ in range(each_row)
        ]
        chosen = torch.cat(columns, 1)
        places = torch.arange(len(chosen)).repeat_interleave(len(pairs.first))
        several = pairs.take(torch.arange(len(pairs.first)).repeat(len(chosen)))
        # Of each prompt a row of its own for each step of each pair.
        each = several._replace(row=places * each_row + several.row)
        index = kept(each)
        k, each = steps[chosen.flatten()][index], each.take(index)
        sides = [
            transitions(path, Credited(), k.to(place), b.to(place), len(steps))
            for b in (each.first, each.second)
            for place in [path.states.device]
        ]
        metrics = reward_metrics(scores) | mean_over_processes(ranking_metrics(pairs))
        return _round(paths, each, sides, metrics, generator, pretrained=self.pretrained)

    def state(self) -> dict[str, Any]:
        return self.paths.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.paths.restore(state)


class Branches(NamedTuple):
    """Paths at whose steps there were several candidates for the next state: `states` and the
    policy's estimates `data` [N, B, *S], `candidates` [N, B, K, *S] and what each is worth,
    `rewards` [N, B, K]; the numbers `steps` [N] of those steps; where the paths ended, and what
    that is worth, None where the last step had one candidate, which nobody has scored."""

    states: Tensor
    data: Tensor
    candidates: Tensor
    rewards: Tensor
    steps: Tensor
    final: Tensor
    scores: Scores | None


@dataclass
class Candidates:
    """At every noisy step after the first `skip` draws `count` next states from the same state,
    scores what the policy expects of each, and goes on from a random one (arXiv 2406.04314).

    The best and the worst are a pair where the softmax of the rewards, at the ranking's
    temperature, sets them apart by more than `threshold`. What the policy expects of the candidate
    it goes on from is its next step's estimate, which costs no second call.
    """

    paths: OnPolicy
    ranking: Ranking
    count: int
    threshold: float
    skip: int = 0
    pretrained: bool = True

    def __call__(self, update: int) -> Round:
        paths, sizes = self.paths, self.paths.sizes
        generator, texts = paths.generator(update), paths.local_prompts()
        condition = paths.policy.encode(texts)
        x = paths.noise(texts, generator)
        process = paths.policy.backbone.process
        nodes = paths.times[:, None].expand(-1, len(x))
        if paths.jitter:
            nodes = jittered(process, paths.times, len(x), generator, end=paths.integral_end)
        with part("rollout"):
            branches = self.branch(condition, nodes, x, texts, generator)
        if branches.scores is None:
            scores = paths.scores(branches.final, texts)
        else:
            scores = gathered(branches.scores).to(branches.final.device)
        rewards = branches.rewards
        best, worst = rewards.argmax(2), rewards.argmin(2)
        odds = (rewards.double() / self.ranking.temperature).softmax(2)
        high, low = (odds.gather(2, side[..., None])[..., 0] for side in (best, worst))
        chosen = random_rows(len(branches.steps), len(x), sizes.share, generator)
        places, b = chosen.flatten(), torch.arange(len(x)).repeat(len(chosen))
        gap = (rewards.amax(2) - rewards.amin(2)).double()[places, b]
        label, weight = labels(gap.view(-1, len(x)), self.ranking, generator)
        label, weight = label.flatten(), weight.flatten()
        apart = (high - low > self.threshold)[places, b]
        pairs = RankedPairs(
            places, b, gap, label, weight * apart, b, torch.arange(len(places)) // len(x)
        )
        metrics = reward_metrics(scores) | mean_over_processes(ranking_metrics(pairs))
        pairs = pairs.take(kept(pairs))
        nodes = nodes.to(branches.states.device)
        sides = [self._steps(branches, condition, nodes, pairs, side) for side in (best, worst)]
        return _round(
            paths, pairs, sides, metrics, generator, pretrained=self.pretrained, one_state=True
        )

    @torch.no_grad()
    def branch(
        self,
        condition: Condition,
        nodes: Tensor,
        x: Tensor,
        texts: Sequence[str],
        generator: torch.Generator,
    ) -> Branches:
        """Paths along nodes [N+1, B] from noise x [B, *S], both on the CPU."""
        policy = self.paths.policy
        noisy = noisy_steps(policy.kernel, policy.backbone.process, nodes)
        device, nodes, last = policy.device, nodes.to(policy.device), len(nodes) - 2
        x = x.to(device)
        estimate = policy.estimate(x, nodes[0], condition)
        states, data, candidates, rewards, steps = [], [], [], [], []
        ended: Scores | None = None
        for k in range(last + 1):
            count = self.count if k >= self.skip and noisy[k] else 1
            transition = policy.move(x, estimate, nodes[k], nodes[k + 1])
            noise = [randn(x.shape, generator, dtype=x.dtype) for _ in range(count)]
            drawn = torch.stack([transition.draw_with(one.to(x)) for one in noise], 1)
            who = torch.arange(len(x)).repeat_interleave(count)
            flat, expected = drawn.flatten(0, 1), drawn.flatten(0, 1)
            if k < last:
                after = policy.estimate(
                    flat, nodes[k + 1, who.to(device)], condition.take(who.to(device))
                )
                expected = after.data
            if count > 1:
                states.append(x)
                data.append(estimate.data)
                candidates.append(drawn)
                asked = [texts[i] for i in who.tolist()]
                ended = self._scores(expected, asked)
                rewards.append(ended.total.view(len(x), count))
                steps.append(k)
            pick = randint(0, count, len(x), generator).to(device)
            row = torch.arange(len(x), device=device) * count + pick
            x = flat[row]
            if k < last:
                estimate, ended = replace(after, data=after.data[row], noise=after.noise[row]), None
        return Branches(
            states=torch.stack(states),
            data=torch.stack(data),
            candidates=torch.stack(candidates),
            rewards=torch.stack(rewards).cpu(),
            steps=torch.tensor(steps),
            final=x,
            scores=None if ended is None else _taken(ended, row, texts),
        )

    def _scores(self, x0: Tensor, texts: Sequence[str]) -> Scores:
        paths = self.paths
        images, at_once = paths.policy.decode(x0), paths.policy.at_once
        return scored(paths.reward, paths.reward_name, images, texts, at_once=at_once)

    def _steps(
        self,
        branches: Branches,
        condition: Condition,
        nodes: Tensor,
        pairs: RankedPairs,
        side: Tensor,
    ) -> Steps:
        """The steps that the pairs are of, each to the candidate `side` [N, B]."""
        policy, device = self.paths.policy, branches.states.device
        to = side[pairs.first, pairs.second].to(device)
        n, b = pairs.first.to(device), pairs.second.to(device)
        k = branches.steps.to(device)[n]
        t, t_next = nodes[k, b], nodes[k + 1, b]
        weights = chain_weights(policy.kernel, policy.backbone.process, t[None], t_next[None])
        return Steps(
            x=branches.states[n, b],
            t=t,
            t_next=t_next,
            condition=condition.take(b),
            data=branches.data[n, b],
            kl_weight=weights[0],
            x_next=branches.candidates[n, b, to],
            path_steps=float(len(branches.steps)),
            noisy=True,
        )

    def state(self) -> dict[str, Any]:
        return self.paths.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.paths.restore(state)


def _taken(scores: Scores, rows: Tensor, texts: Sequence[str]) -> Scores:
    """The scores of some rows, which are of these prompts."""
    parts = {name: part[rows.to(part.device)] for name, part in scores.parts.items()}
    return Scores(scores.total[rows.to(scores.total.device)], tuple(texts), parts)


def _round(
    paths: OnPolicy,
    pairs: RankedPairs,
    sides: Sequence[Steps],
    metrics: dict[str, float],
    generator: torch.Generator,
    *,
    pretrained: bool,
    one_state: bool = False,
) -> Round:
    """The steps of both sides dealt out in pairs, with the estimates of the reference."""
    first, second = sides
    if pretrained:
        first = replace(first, data=paths.pretrained(first))
        data = first.data if one_state else paths.pretrained(second)
        second = replace(second, data=data)
    label, weight = pairs.label.to(first.x.device), pairs.weight.to(first.x.device)
    whole = StepPairs(label, weight, first, second, one_state=one_state)
    sizes = paths.sizes
    samples = sizes.prompts * sizes.group // distributed.team().size
    deal = distributed.deal(pairs.row, pairs.prompt, samples)
    rows, counts = dealt_rows(paths.sizes, generator, deal)
    return Round(
        Minibatches(whole, rows), metrics, paths.sizes.accumulate, counts, paths.sizes.epochs
    )
