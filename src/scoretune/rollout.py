"""Rolling a policy: what it does when it acts, and the samples it would be deployed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from scoretune.batches import Condition, Trajectory
from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.processes import Process
from scoretune.errors import unknown
from scoretune.policy import Policy

Solver = Callable[[Process, Callable[[Tensor, Tensor], Estimate], Tensor, Tensor], Tensor]
SOLVERS: dict[str, Solver] = {
    "ddim": solvers.ddim,
    "heun": solvers.heun,
    "dpmpp_2m": solvers.dpmpp_2m,
}


def prior(policy: Policy, batch: int, generator: torch.Generator) -> Tensor:
    """Pure noise to start from, [B, *S], drawn on the generator's device."""
    shape = (batch, *policy.backbone.shape)
    noise = torch.randn(shape, generator=generator, device=generator.device)
    return noise * policy.backbone.process.prior_std


@torch.no_grad()
def rollout(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    generator: torch.Generator,
    x: Tensor,
    *,
    reference: bool = False,
) -> Trajectory:
    """Act from noise x [B, *S] along `times` [N+1], remembering everything learning needs.

    With `reference`, also ask the pretrained policy at every state where it would have gone; that
    doubles the network's work. Raises ValueError where the kernel has no noise, for such a step
    has no log-probability.
    """
    x = x.to(condition.tokens.device)
    states, data, log_probs, means, kls = [x], [], [], [], []
    for t, t_next in pairs(times, x):
        estimate = policy.estimate(x, t, condition)
        transition = policy.move(x, estimate, t, t_next)
        if reference:
            with policy.reference():
                pretrained = policy.transition(x, t, t_next, condition)
            means.append(pretrained.mean)
            kls.append(transition.kl(pretrained))
        x = transition.draw(generator)
        states.append(x)
        data.append(estimate.data)
        log_probs.append(transition.log_prob(x))
    return Trajectory(
        torch.stack(states),
        torch.stack(data),
        torch.stack(log_probs),
        times,
        condition,
        torch.stack(means) if reference else None,
        torch.stack(kls) if reference else None,
    )


def pairs(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of a grid as pairs of times [B] on x's device."""
    rows = times.to(x.device).unsqueeze(1).expand(-1, len(x))
    return pairwise(rows)


@torch.no_grad()
def deterministic(
    policy: Policy, condition: Condition, times: Tensor, x: Tensor, solver: str = "ddim"
) -> Tensor:
    """Samples [B, *S] through an ODE solver from noise x: how models are deployed."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    x = x.to(condition.tokens.device)
    return SOLVERS[solver](policy.backbone.process, policy.field(condition), x, times)
