"""DPM-Solver++ of second order, with one network call a step: the ODE and its SDE of any η."""

import torch
from torch import Tensor

from scoretune.diffusion import transitions
from scoretune.diffusion.estimates import Estimate, Field
from scoretune.diffusion.processes import Process
from scoretune.diffusion.scales import check_level, ratio_quotient
from scoretune.diffusion.solvers.base import Visit, node_times, on_grid, where_finite
from scoretune.diffusion.transitions import Weights, broadcast
from scoretune.shapes import check_batch, check_same_shape

FEW_STEPS = 15
"""Below this many steps DPM-Solver++ makes its last step of first order (arXiv 2211.01095)."""


def dpmpp_2m(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    lower_order_final: bool = True,
    visit: Visit | None = None,
) -> Tensor:
    """DPM-Solver++(2M), midpoint (arXiv 2211.01095 Alg. 2): order 2, one call a step.

    First order: the first step, a last step to σ = 0, and (`lower_order_final`) the last of fewer
    than 15 steps. These are diffusers' rules.
    """
    return dpmpp_2m_sde(
        process, field, x, times, eta=0.0, lower_order_final=lower_order_final, visit=visit
    )


def dpmpp_2m_sde(
    process: Process,
    field: Field,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 1.0,
    lower_order_final: bool = True,
    generator: torch.Generator | None = None,
    visit: Visit | None = None,
) -> Tensor:
    """SDE-DPM-Solver++(2M) for constant η (arXiv 2211.01095 has 0 and 1): order 2 in law.

    x' = (σ'/σ)e^{−η²h} x + α'(1 − e^{−(1+η²)h}) D + σ'√(1 − e^{−2η²h}) ξ with
    D = x̂ + (x̂ − x̂_prev)·h/(2h_prev) and e^{−h} = ρ'/ρ. First order where `dpmpp_2m` is; a last
    step to σ = 0 is x̂ itself, without noise.
    """
    check_level("dpmpp_2m_sde eta", eta)
    nodes, x = on_grid(process, x, times), transitions.wide(x)
    steps = first_order(process, nodes[:-1], nodes[1:], eta).over(x)
    leans = _leans(process, nodes, lower_order_final)
    leaning = [bool(row) for row in (leans != 0).any(1).tolist()]
    noisy, leans, previous = steps.noisy(), broadcast(leans, x), x
    for k, (step, t) in enumerate(zip(steps.each(), node_times(nodes[:-1], x), strict=True)):
        estimate = field(x, t)
        if visit is not None:
            visit(k, x, estimate)
        x = step.mean(x, estimate)
        if leaning[k]:
            x = _lean(x, step, leans[k], estimate.data, previous)
        if noisy[k]:
            x = torch.addcmul(x, step.std, transitions.fresh(x, generator))
        previous = estimate.data
    return x


def dpmpp_2m_step(
    process: Process,
    x: Tensor,
    estimate: Estimate,
    t: Tensor,
    t_next: Tensor,
    previous: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """One step of DPM-Solver++(2M) for times [B].

    `previous` is the data estimate of the last step and its time; None makes the step first order.
    """
    check_batch(x, t=t, t_next=t_next)
    step = first_order(process, t, t_next, 0.0).over(x)
    ahead = step.mean(x, estimate)
    if previous is None:
        return ahead
    data, before = previous
    check_batch(x, before=before)
    check_same_shape(x=x, previous=data)
    lean = broadcast(_lean_of(process, before, t, t_next), x)
    return _lean(ahead, step, lean, estimate.data, data)


def first_order(process: Process, t: Tensor, t_next: Tensor, eta: float) -> Weights:
    """gDDIM(η) in x and x̂: ((σ'/σ)e^{−η²h}, α'(1 − e^{−(1+η²)h}), 0, σ'√(1 − e^{−2η²h}))."""
    log_kept = torch.log(ratio_quotient(process, t, t_next))  # −h
    # η = 0 at ρ = ∞ is 0·∞ = 0: the ODE keeps the noise.
    log_drop = eta**2 * log_kept if eta else torch.zeros_like(log_kept)
    sigma = process.sigma(t_next)
    state = sigma / process.sigma(t) * torch.exp(log_drop)
    data = -process.alpha(t_next) * torch.expm1(log_kept + log_drop)
    std = sigma * torch.sqrt(-torch.expm1(2 * log_drop))
    return Weights(state, data, torch.zeros_like(data), std)


def _lean(ahead: Tensor, step: Weights, lean: Tensor, data: Tensor, previous: Tensor) -> Tensor:
    """The second-order term: what the step does with x̂, times lean·(x̂ − x̂_prev)."""
    return torch.addcmul(ahead, step.data * lean, data - previous)


def _lean_of(process: Process, before: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
    """h/(2h_prev) for the step t -> t_next after before -> t; 0 where either is infinite."""
    h, h_prev = (torch.log(ratio_quotient(process, *pair)) for pair in ((t, t_next), (before, t)))
    return where_finite(h / h_prev / 2)


def _leans(process: Process, nodes: Tensor, lower_order_final: bool) -> Tensor:
    """h/(2h_prev) of every step of a grid, like nodes[1:]; 0 makes a step first order."""
    later = _lean_of(process, nodes[:-2], nodes[1:-1], nodes[2:])
    leans = torch.cat([torch.zeros_like(nodes[:1]), later])
    if lower_order_final and len(leans) < FEW_STEPS:
        leans[-1] = 0
    return leans
