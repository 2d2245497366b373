"""Rolling a policy: the paths it learns from, and the samples it would be deployed with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from scoretune.core import profiling
from scoretune.core.conditions import Condition
from scoretune.core.errors import user_errors
from scoretune.core.records import Trajectory
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import noisy_steps, stochasticity
from scoretune.diffusion.noise import randn
from scoretune.diffusion.paths import (
    INTEGRAL_END,
    chain_weights,
    girsanov_weights,
    jittered,
    log_snr_steps,
)
from scoretune.diffusion.solvers import ODE_SOLVERS, Solver, solver_named
from scoretune.diffusion.windows import Window
from scoretune.policy import Policy

EstimateAt = Callable[[int, Tensor, Tensor], Estimate]
"""The policy's estimate at node k, states [B, *S] and times [B]."""


@dataclass(frozen=True, kw_only=True)
class Acting:
    """How a policy goes along a grid: by its kernel at every step, unless a field says otherwise.

    `jitter` draws the inner times of each sample anew, so that sums over the path are unbiased on
    any grid and every time is visited. With the name of an ODE `solver` there is no noise and there
    are no log-probabilities. With a `window` the kernel acts in the window alone and an ODE solver
    takes the steps before and after; of a `group` above 1 so many rows of noise are alike, and the
    steps before the window are solved once for them. `features` keeps those that the network offers
    a critic. Time integrals along the path end at `integral_end` (`diffusion.paths`). Raises
    ValueError for a window together with jitter, a solver or features.
    """

    jitter: bool = False
    solver: str | None = None
    window: Window | None = None
    group: int = 1
    features: bool = False
    integral_end: float = INTEGRAL_END

    def __post_init__(self) -> None:
        if self.window is not None and (self.jitter or self.solver or self.features):
            raise ValueError("a window goes with no jitter, no solver and no features")


BY_KERNEL = Acting()


@dataclass(frozen=True)
class Acted:
    """What a policy did along the nodes of a grid: states [N+1, B, *S], data estimates [N, B, *S].

    Where its kernel acted also log-probabilities [N, B], 0 at a step without noise, and which
    steps had noise, [N].
    """

    states: Tensor
    data: Tensor
    log_probs: Tensor | None = None
    noisy: Tensor | None = None
    features: Tensor | None = None


def prior(
    policy: Policy, batch: int, generator: torch.Generator, shape: Sequence[int] | None = None
) -> Tensor:
    """Pure noise to start from, [B, *S], drawn on the generator's device; of states of another
    `shape` than the model's own where that is given."""
    states = policy.backbone.shape if shape is None else shape
    noise = randn((batch, *states), generator, device=generator.device)
    return noise * policy.backbone.process.prior_std


@torch.no_grad()
def rollout(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    generator: torch.Generator,
    x: Tensor,
    *,
    acting: Acting = BY_KERNEL,
    reference: bool = False,
    in_chain: bool = True,
    home: torch.device | None = None,
) -> Trajectory:
    """Act from noise x [B, *S] along the grid `times` [N+1], remembering what learning needs.

    With `reference`, also call the pretrained policy at every state that is learned from, which
    doubles the network's work there. `in_chain`: what regularises is the KL of the chain, not that
    of continuous time. The path is kept at `home`, None for where the policy is.
    Raises UserError for an unknown solver.
    """
    process, window, device = policy.backbone.process, acting.window, condition.device
    if window is not None:
        times = times[[*range(window.stop), *window.nodes_after(len(times) - 1)]]
    nodes = times[:, None].expand(-1, len(x))
    if acting.jitter:
        nodes = jittered(process, times, len(x), generator, end=acting.integral_end)
    noisy = None if acting.solver else _noisy(policy, nodes, window)
    noise = _drawn(policy, x, 0 if noisy is None else len(noisy), generator)
    if home is None and x.dtype == noise.dtype:  # one copy to the device for all noise
        x, noise = torch.cat([x[None], noise]).to(device).split([1, len(noise)])
        x = x[0]
    x, columns = x.to(device), torch.cat([times[:, None], nodes], 1).to(device)
    times, nodes = columns[:, 0], columns[:, 1:]
    with profiling.part("rollout"):
        acted = act(policy, condition, nodes, Noise(noise, noisy), x, acting=acting, home=home)
        path = remember(policy, condition, times, nodes, acted, acting=acting, reference=reference)
    path = replace(path, in_chain=in_chain)
    return path if home is None else path.to(home)


@dataclass(frozen=True)
class Noise:
    """Standard normal noise [K, B, *S] of the K steps that a kernel takes, wherever it waits, and
    which of them have any, [K] on the CPU."""

    each: Tensor
    noisy: Tensor | None


def _noisy(policy: Policy, nodes: Tensor, window: Window | None) -> Tensor:
    """Which steps of a kernel have noise, [K], found where the nodes are: on the CPU."""
    within = nodes if window is None else nodes[window.start : window.stop + 1]
    return noisy_steps(policy.kernel, policy.backbone.process, within)


def _drawn(policy: Policy, x: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """The noise [K, B, *S] of all steps on the generator's device: step by step,
    so that the numbers are those of a walk that draws as it goes."""
    weights = next(policy.backbone.network.parameters()).dtype
    dtype = torch.promote_types(torch.promote_types(x.dtype, weights), torch.float32)
    device = generator.device
    each = [randn(x.shape, generator, device=device, dtype=dtype) for _ in range(steps)]
    return torch.stack(each) if each else torch.empty(0, *x.shape, dtype=dtype, device=device)


def act(
    policy: Policy,
    condition: Condition,
    nodes: Tensor,
    noise: Noise,
    x: Tensor,
    *,
    acting: Acting,
    home: torch.device | None = None,
) -> Acted:
    """Go from x [B, *S] along nodes [N+1, B], one column a sample."""
    if acting.window is not None:
        return _in_window(policy, condition, nodes, noise, x, acting=acting, home=home)
    features: dict[int, Tensor] = {}

    def estimate_at(k: int, x: Tensor, t: Tensor) -> Estimate:
        if not acting.features:
            return policy.estimate(x, t, condition)
        estimate, features[k] = policy.estimate_with_features(x, t, condition)
        return estimate

    if acting.solver is None:
        acted = act_along(policy, estimate_at, nodes, noise, x, home=home)
    else:
        acted = solve_along(policy, estimate_at, nodes, x, solver=acting.solver, home=home)
    if acting.features:
        kept = torch.stack([features[k] for k in range(len(acted.data))])
        acted = replace(acted, features=kept)
    return acted


def act_along(
    policy: Policy,
    estimate_at: EstimateAt,
    nodes: Tensor,
    noise: Noise,
    x: Tensor,
    *,
    home: torch.device | None = None,
) -> Acted:
    """Through the policy's kernel along nodes [N+1, B]."""
    noisy = cast(Tensor, noise.noisy)
    # The numbers of all steps at once: a step then costs little more than its noise.
    steps = policy.kernel.weights(policy.backbone.process, nodes[:-1], nodes[1:]).each()
    states, data, log_probs = [x.to(home)], [], []
    for k, weights in enumerate(steps):
        estimate = estimate_at(k, x, nodes[k])
        transition = replace(weights.over(x).transition(x, estimate), noisy=bool(noisy[k]))
        x = transition.draw_with(noise.each[k].to(transition.mean))
        states.append(x.to(home))
        data.append(estimate.data.to(home))
        log_probs.append(transition.log_prob(x) if noisy[k] else x.new_zeros(len(x)))
    return Acted(torch.stack(states), torch.stack(data), torch.stack(log_probs), noisy)


def solve_along(
    policy: Policy,
    estimate_at: EstimateAt,
    nodes: Tensor,
    x: Tensor,
    *,
    solver: str,
    home: torch.device | None = None,
) -> Acted:
    """By an ODE solver along nodes [N+1, B], recording the states that it goes on from and the
    estimates there; wherever else it calls the network is its own affair."""
    states: list[Tensor] = []
    data: list[Tensor] = []

    def field(x: Tensor, t: Tensor) -> Estimate:
        return estimate_at(len(states), x, t)

    def visit(k: int, x: Tensor, estimate: Estimate) -> None:
        states.append(x.to(home))
        data.append(estimate.data.to(home))

    process = policy.backbone.process
    final = _ode_solver(solver).function(process, field, x, nodes, visit=visit)
    return Acted(torch.stack([*states, final.to(home)]), torch.stack(data))


def _in_window(
    policy: Policy,
    condition: Condition,
    nodes: Tensor,
    noise: Noise,
    x: Tensor,
    *,
    acting: Acting,
    home: torch.device | None,
) -> Acted:
    """By an ODE solver to the window, once a group, then by the kernel, then by the ODE again."""
    window, group = cast(Window, acting.window), acting.group
    start, stop = window.start, window.stop

    def solved(nodes: Tensor, x: Tensor, condition: Condition) -> Acted:
        estimate_at = _estimate_at(policy, condition)
        return solve_along(policy, estimate_at, nodes, x, solver=window.solver, home=home)

    parts: list[Acted] = []
    if start:
        firsts = condition.take(slice(None, None, group))
        way = solved(nodes[: start + 1, ::group], x[::group], firsts)
        each = (part.repeat_interleave(group, 1) for part in (way.states, way.data))
        parts.append(Acted(*each))
        x = parts[0].states[-1].to(x.device)
    estimate_at = _estimate_at(policy, condition)
    inside = act_along(policy, estimate_at, nodes[start : stop + 1], noise, x, home=home)
    parts.append(inside)
    if len(nodes) > stop + 1:
        parts.append(solved(nodes[stop:], inside.states[-1].to(x.device), condition))
    data = torch.cat([part.data for part in parts])
    outside = torch.zeros_like(nodes[:-1])
    return Acted(
        torch.cat([parts[0].states[:1], *(part.states[1:] for part in parts)]),
        data,
        _set(outside, window, cast(Tensor, inside.log_probs).to(outside)),
        _set(torch.zeros(len(data), dtype=torch.bool), window, cast(Tensor, inside.noisy)),
    )


def _estimate_at(policy: Policy, condition: Condition) -> EstimateAt:
    return lambda k, x, t: policy.estimate(x, t, condition)


def remember(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    nodes: Tensor,
    acted: Acted,
    *,
    acting: Acting = BY_KERNEL,
    reference: bool = False,
) -> Trajectory:
    """What learning needs of a path along nodes [N+1, B] that stand for the grid `times` [N+1].

    Outside a window nothing is learned: KLs and noise scale are 0 there, and the estimates of the
    pretrained policy are the policy's. An ODE has no chain; its KL in continuous time is that of
    the reverse SDE with the same scores.
    """
    process, states, data = policy.backbone.process, acted.states, acted.data
    learned = Window(0, len(data)) if acting.window is None else acting.window
    part, within = slice(learned.start, learned.stop), nodes[learned.start : learned.stop + 1]
    nothing = torch.zeros_like(nodes[:-1])
    etas, chain = torch.zeros_like(within[:-1]), None
    if acted.log_probs is not None:
        etas = stochasticity(policy.kernel, process, within[:-1].flatten(), within[1:].flatten())
        etas = etas.view_as(within[:-1])
        chain = chain_weights(policy.kernel, process, within[:-1], within[1:])
    steps = log_snr_steps(process, times, nodes, end=acting.integral_end)[part]
    weights = girsanov_weights(process, within[:-1], etas, steps, within[1:])
    pretrained, moved_sq = None, None
    if reference:
        visited = states[learned.start : learned.stop + 1]
        pretrained = _set(data, learned, pretrained_data(policy, condition, visited, within))
        moved_sq = ((data - pretrained) ** 2).flatten(2).sum(2)
    return Trajectory(
        states=states,
        data=data,
        times=nodes,
        condition=condition,
        log_snr_steps=_set(nothing, learned, steps),
        etas=_set(nothing, learned, etas),
        girsanov_weights=_set(nothing, learned, weights),
        chain_weights=None if chain is None else _set(nothing, learned, chain),
        log_probs=acted.log_probs,
        reference_data=pretrained,
        moved_sq=moved_sq,
        features=acted.features,
        noisy=acted.noisy,
    )


def _set(values: Tensor, window: Window, inside: Tensor) -> Tensor:
    """The values [N, …] but `inside` at the window's steps, as a copy."""
    if len(inside) == len(values):
        return inside
    whole = values.clone()
    whole[window.start : window.stop] = inside
    return whole


def pretrained_data(policy: Policy, condition: Condition, states: Tensor, nodes: Tensor) -> Tensor:
    """The pretrained policy's estimates of the data at states [N+1, …] and times [N+1, B], at all
    but the last: [N, …]."""
    estimates = [
        policy.pretrained(x.to(nodes.device), t, condition).data.to(states.device)
        for x, t in zip(states[:-1], nodes[:-1], strict=True)
    ]
    return torch.stack(estimates)


def _ode_solver(name: str) -> Solver:
    with user_errors():
        return solver_named(name, ODE_SOLVERS)


@torch.no_grad()
def deterministic(
    policy: Policy, condition: Condition, times: Tensor, x: Tensor, solver: str = "ddim"
) -> Tensor:
    """Samples [B, *S] by an ODE solver from noise x. Raises UserError for an unknown one."""
    x = x.to(condition.device)
    return _ode_solver(solver).function(policy.backbone.process, policy.field(condition), x, times)


@torch.no_grad()
def sampled(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    x: Tensor,
    solver: str,
    generator: torch.Generator,
) -> Tensor:
    """Samples [B, *S] by any solver, with noise if it wants some. Raises UserError if it cannot."""
    with user_errors():
        sampler = solver_named(solver)
    x = x.to(condition.device)
    noise = {} if sampler.deterministic else {"generator": generator}
    with user_errors(f"solver {solver} does not suit this model"):
        return sampler.function(policy.backbone.process, policy.field(condition), x, times, **noise)
