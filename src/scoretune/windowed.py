"""Rolling a policy with noise on a few steps only: MixGRPO and Flow-GRPO-Fast.

Outside the window an ODE solver takes the steps, nothing is learned and nothing costs a gradient.
Where the samples of a prompt begin with one noise, they share the road to the window too, which is
then travelled once a prompt (arXiv 2507.21802, 2505.05470).
"""

from __future__ import annotations

import torch
from torch import Tensor

from scoretune.batches import Condition, Trajectory
from scoretune.diffusion.kernels import stochasticity
from scoretune.diffusion.paths import kl_weights, log_snr_steps
from scoretune.policy import Policy
from scoretune.rollout import Look, act_along, follow, pretrained_data, solver_named
from scoretune.windows import Window


@torch.no_grad()
def windowed(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    generator: torch.Generator,
    x: Tensor,
    *,
    window: Window,
    group: int = 1,
    reference: bool = False,
) -> Trajectory:
    """Act from noise x [B, *S] along `times` [N+1], through the kernel inside the window alone.

    With a `group` above 1 every so many rows of x are alike. The trajectory has all states; those
    outside the window carry no log-probability and no path KL. With `reference` the pretrained
    policy is asked too, at the window's states.
    """
    x = x.to(condition.tokens.device)
    start, stop = window.start, window.stop
    times = times[[*range(stop), *window.nodes_after(len(times) - 1)]].to(x.device)
    nodes = times[:, None].expand(-1, len(x))
    states, data = _lead(policy, condition, nodes[: start + 1], x, window, group)
    inside, said, log_probs, noisy = act_along(
        policy, _look(policy, condition), nodes[start : stop + 1], generator, states[-1]
    )
    states, data = torch.cat([states, inside[1:]]), torch.cat([data, said])
    if len(nodes) > stop + 1:
        solve = solver_named(window.solver)
        look = _look(policy, condition)
        tail, said = follow(solve, policy.backbone.process, look, nodes[stop:], inside[-1])
        states, data = torch.cat([states, tail[1:]]), torch.cat([data, said])
    return _remembered(
        policy, condition, times, states, data, (log_probs, noisy), window, reference
    )


def _lead(
    policy: Policy, condition: Condition, nodes: Tensor, x: Tensor, window: Window, group: int
) -> tuple[Tensor, Tensor]:
    """The road to the window, once for each group: states [start+1, …], estimates [start, …]."""
    if len(nodes) == 1:
        return x[None], x.new_empty(0, *x.shape)
    firsts = condition.take(slice(None, None, group))
    states, data = follow(
        solver_named(window.solver),
        policy.backbone.process,
        _look(policy, firsts),
        nodes[:, ::group],
        x[::group],
    )
    return states.repeat_interleave(group, 1), data.repeat_interleave(group, 1)


def _look(policy: Policy, condition: Condition) -> Look:
    return lambda k, x, t: policy.estimate(x, t, condition)


def _remembered(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    states: Tensor,
    data: Tensor,
    acted: tuple[Tensor, Tensor],
    window: Window,
    reference: bool,
) -> Trajectory:
    process, inside = policy.backbone.process, slice(window.start, window.stop)
    nodes = times[:, None].expand(-1, states.shape[1])
    within = nodes[window.start : window.stop + 1]
    etas, steps = torch.zeros_like(nodes[:-1]), torch.zeros_like(nodes[:-1])
    scale = stochasticity(policy.kernel, process, within[:-1].flatten(), within[1:].flatten())
    etas[inside] = scale.view_as(within[:-1])
    steps[inside] = log_snr_steps(process, times, nodes)[inside]
    log_probs, noisy = torch.zeros_like(nodes[:-1]), torch.zeros(len(data), dtype=torch.bool)
    log_probs[inside], noisy[inside] = acted[0].to(log_probs), acted[1]
    weights = torch.zeros_like(steps)
    weights[inside] = kl_weights(process, within[:-1], etas[inside], steps[inside], within[1:])
    known, kls = None, None
    if reference:
        known = data.clone()
        reached = states[window.start : window.stop + 1]
        known[inside] = pretrained_data(policy, condition, reached, within)
        kls = weights * ((data - known) ** 2).flatten(2).sum(2)
    return Trajectory(
        states=states,
        data=data,
        times=nodes,
        condition=condition,
        log_snr_steps=steps,
        etas=etas,
        kl_weights=weights,
        log_probs=log_probs,
        reference_data=known,
        kls=kls,
        noisy=noisy,
    )
