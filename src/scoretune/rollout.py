"""Rolling a policy: what it does when it acts, and the samples it would be deployed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from scoretune.core.errors import UserError, unknown
from scoretune.core.records import Condition, Trajectory
from scoretune.diffusion import solvers
from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.kernels import noisy_steps, stochasticity
from scoretune.diffusion.noise import randn
from scoretune.diffusion.paths import jittered, kl_weights, log_snr_steps
from scoretune.diffusion.processes import Process
from scoretune.diffusion.windows import Window
from scoretune.policy import Policy

Solver = Callable[[Process, Callable[[Tensor, Tensor], Estimate], Tensor, Tensor], Tensor]
Look = Callable[[int, Tensor, Tensor], Estimate]
SOLVERS: dict[str, Solver] = {
    name: solver.function
    for name, solver in solvers.SOLVERS.items()
    if solver.deterministic and solver.calls is not None
}
"""Deterministic solvers that ask the network at the nodes of the grid, and there alone."""


def prior(policy: Policy, batch: int, generator: torch.Generator) -> Tensor:
    """Pure noise to start from, [B, *S], drawn on the generator's device."""
    shape = (batch, *policy.backbone.shape)
    noise = randn(shape, generator, device=generator.device)
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
    jitter: bool = False,
    solver: str | None = None,
    features: bool = False,
    home: torch.device | None = None,
) -> Trajectory:
    """Act from noise x [B, *S] along the grid `times` [N+1], remembering what learning needs.

    `jitter` draws the inner times of each sample anew, so that sums over the path are unbiased on
    any grid and every time is visited. The policy acts through its kernel, or follows an ODE
    `solver` by name; then there is no noise and there are no log-probabilities. With `reference`,
    also ask the pretrained policy at every state, which doubles the network's work. With
    `features`, keep those that the network offers a critic. The path waits at `home`, None for
    where the policy is. Raises ValueError where a kernel has no noise on any step.
    """
    x = x.to(condition.tokens.device)
    process = policy.backbone.process
    nodes = jittered(process, times, len(x), generator) if jitter else _same(times, len(x))
    nodes = nodes.to(x.device)
    heard: dict[int, Tensor] = {}

    def look(k: int, x: Tensor, t: Tensor) -> Estimate:
        if not features:
            return policy.estimate(x, t, condition)
        estimate, heard[k] = policy.estimate_with_features(x, t, condition)
        return estimate

    noisy = None
    if solver is None:
        states, data, log_probs, noisy = act_along(policy, look, nodes, generator, x, home)
        etas = stochasticity(policy.kernel, process, nodes[:-1].flatten(), nodes[1:].flatten())
        etas = etas.view_as(nodes[:-1])
    else:
        states, data = follow(solver_named(solver), process, look, nodes, x, home)
        log_probs, etas = None, torch.zeros_like(nodes[:-1])
    steps = log_snr_steps(process, times.to(x.device), nodes)
    weights = kl_weights(process, nodes[:-1], etas, steps, nodes[1:])
    pretrained = pretrained_data(policy, condition, states, nodes) if reference else None
    kls = None
    if pretrained is not None:
        kls = weights.to(data) * ((data - pretrained) ** 2).flatten(2).sum(2)
    path = Trajectory(
        states=states,
        data=data,
        times=nodes,
        condition=condition,
        log_snr_steps=steps,
        etas=etas,
        kl_weights=weights,
        log_probs=log_probs,
        reference_data=pretrained,
        kls=kls,
        features=torch.stack([heard[k] for k in range(len(data))]) if features else None,
        noisy=noisy,
    )
    return path if home is None else path.to(home)


def act_along(
    policy: Policy,
    look: Look,
    nodes: Tensor,
    generator: torch.Generator,
    x: Tensor,
    home: torch.device | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Through the policy's own kernel along nodes [N+1, B]: states [N+1, …], estimates and
    log-probabilities [N, …], and which steps have noise [N].

    A step without noise, as the last one to data without any, has the log-probability 0.
    """
    noisy = noisy_steps(policy.kernel, policy.backbone.process, nodes)
    # The numbers of all steps at once: a step then costs little more than its noise.
    steps = policy.kernel.weights(policy.backbone.process, nodes[:-1], nodes[1:]).each()
    states, data, log_probs = [x.to(home)], [], []
    for k, weights in enumerate(steps):
        estimate = look(k, x, nodes[k])
        transition = weights.over(x).transition(x, estimate)
        x = transition.draw(generator)
        states.append(x.to(home))
        data.append(estimate.data.to(home))
        log_probs.append(transition.log_prob(x) if noisy[k] else x.new_zeros(len(x)))
    return torch.stack(states), torch.stack(data), torch.stack(log_probs), noisy


def follow(
    solver: Solver,
    process: Process,
    look: Look,
    nodes: Tensor,
    x: Tensor,
    home: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """Through a deterministic solver, listening to what it asks: states [N+1, …], estimates [N, …].

    A solver of higher order asks more than once about a time; its last question is about the state
    that it went on from.
    """
    asked: dict[int, tuple[Tensor, Tensor]] = {}
    place = -1

    def listen(x: Tensor, t: Tensor) -> Estimate:
        nonlocal place
        if place < 0 or not torch.equal(t, nodes[place]):
            place += 1
        estimate = look(place, x, t)
        asked[place] = (x.to(home), estimate.data.to(home))
        return estimate

    final = solver(process, listen, x, nodes)
    kept = [asked[k] for k in range(len(nodes) - 1)]
    states = torch.stack([x for x, _ in kept] + [final.to(home)])
    return states, torch.stack([data for _, data in kept])


def pretrained_data(policy: Policy, condition: Condition, states: Tensor, nodes: Tensor) -> Tensor:
    """What the pretrained policy says at states [N+1, …] at times [N+1, B], all but the last."""
    with policy.reference():
        said = [
            policy.estimate(x.to(nodes.device), t, condition).data.to(states.device)
            for x, t in zip(states[:-1], nodes[:-1], strict=True)
        ]
    return torch.stack(said)


def _same(times: Tensor, batch: int) -> Tensor:
    return times[:, None].expand(-1, batch)


def pairs(times: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of a grid [N+1] as pairs of times [B] on x's device."""
    return pairwise(_same(times, len(x)).to(x.device))


def solver_named(name: str) -> Solver:
    """The deterministic solver of that name. Raises UserError with the nearest name."""
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    return SOLVERS[name]


@torch.no_grad()
def deterministic(
    policy: Policy, condition: Condition, times: Tensor, x: Tensor, solver: str = "ddim"
) -> Tensor:
    """Samples [B, *S] through an ODE solver from noise x: how models are deployed."""
    x = x.to(condition.tokens.device)
    return solver_named(solver)(policy.backbone.process, policy.field(condition), x, times)


@torch.no_grad()
def sampled(
    policy: Policy,
    condition: Condition,
    times: Tensor,
    x: Tensor,
    solver: str,
    generator: torch.Generator,
) -> Tensor:
    """Samples [B, *S] through any solver of `diffusion.solvers`, with noise if it wants some.

    Raises UserError for an unknown one, and where it does not suit the process.
    """
    if solver not in solvers.SOLVERS:
        raise unknown("solver", solver, solvers.SOLVERS)
    found, x = solvers.SOLVERS[solver], x.to(condition.tokens.device)
    extra = {} if found.deterministic else {"generator": generator}
    try:
        return found.function(policy.backbone.process, policy.field(condition), x, times, **extra)
    except ValueError as error:
        raise UserError(f"solver {solver} does not suit this model: {error}") from error


# ---------------------------------------------------------------- noise in a window alone


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
