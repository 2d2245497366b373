"""Where paths begin that a reward's gradient is carried back through: the source of `direct`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.conditions import Condition
from scoretune.core.profiling import part
from scoretune.core.records import Round, Starts
from scoretune.diffusion.noise import randint, randn
from scoretune.diffusion.paths import jittered
from scoretune.training.sources.base import deal_out
from scoretune.training.sources.on_policy import OnPolicy


@dataclass
class Differentiable:
    """Takes `paths`' prompts and noise, and the steps without a gradient: all but the `last`.

    With `random`, of each path a number from 1 to `last`. The numbers drawn are those of `paths`
    with `credit.adjoint`, so the two learn from the same paths.
    """

    paths: OnPolicy
    last: int
    random: bool = False

    def __call__(self, update: int) -> Round:
        paths, policy = self.paths, self.paths.policy
        generator = paths.generator(update)
        texts = paths.local_prompts()
        condition = policy.encode(texts)
        weights = next(policy.backbone.network.parameters())
        exact = torch.promote_types(weights.dtype, torch.float32)
        x = paths.noise(texts, generator).to(policy.device, exact)
        times, batch = paths.times, len(x)
        nodes = times[:, None].expand(-1, batch)
        if paths.jitter:
            nodes = jittered(
                policy.backbone.process, times, batch, generator, end=paths.integral_end
            )
        nodes = nodes.to(x.device)
        steps, device = len(times) - 1, generator.device
        noises = [randn(x.shape, generator, device=device, dtype=exact) for _ in range(steps)]
        drawn = torch.stack(noises, 1).to(x.device)
        first = torch.full((batch,), steps - min(self.last, steps))
        if self.random:
            first = steps - randint(1, min(self.last, steps) + 1, batch, generator)
        with part("rollout"):
            begun = self._begun(x, nodes, condition, drawn, first)
        starts = Starts(begun, first.to(x.device), drawn, nodes.T, condition, tuple(texts))
        deal = distributed.deal(torch.zeros(batch, dtype=torch.long), torch.arange(batch), batch)
        batches, counts = deal_out(starts, paths.sizes, generator, deal)
        return Round(batches, {}, accumulate=0, counts=counts, epochs=paths.sizes.epochs)

    def state(self) -> dict[str, Any]:
        return self.paths.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.paths.restore(state)

    @torch.no_grad()
    def _begun(
        self, x: Tensor, nodes: Tensor, condition: Condition, noise: Tensor, first: Tensor
    ) -> Tensor:
        """The states [B, *S] at each path's first step with a gradient."""
        policy, x = self.paths.policy, x.clone()
        for k in range(int(first.max())):
            rows = (first > k).nonzero()[:, 0].to(x.device)
            t, t_next = nodes[k, rows], nodes[k + 1, rows]
            estimate = policy.estimate(x[rows], t, condition.take(rows))
            x[rows] = policy.move(x[rows], estimate, t, t_next).draw_with(noise[rows, k])
        return x
