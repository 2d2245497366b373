"""Laws of actions in [−c, c]^m: log-probability, divergence and entropy, summed over dimensions.

`squashed`: a = c·tanh u with u ~ N(m, s²). `beta`: a = c(2B − 1) with B ~ Beta(α, β). `two_point`:
a is c with probability 1/(1 + e^{−l}) and −c otherwise. Parameters, actions and the cap c are
[..., m], results [...]. Divergences do not depend on c, since a ↦ a/c is one to one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from scoretune.rl.gaussian import gaussian_entropy, gaussian_log_prob
from scoretune.shapes import check_same_shape

EDGE = 1e-6
"""Actions are kept within (1 − EDGE)·c, where atanh and log are finite in single precision."""
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)


def within(action: Tensor, cap: Tensor) -> Tensor:
    """a/c, kept in [−1 + EDGE, 1 − EDGE], [..., m]."""
    check_same_shape(action=action, cap=cap)
    return (action / cap).clamp(-1 + EDGE, 1 - EDGE)


def squashed_log_prob(action: Tensor, mean: Tensor, std: Tensor, cap: Tensor) -> Tensor:
    """log N(u; m, s²) − Σ_d ln(c(1 − tanh²u)), u = atanh(a/c)."""
    check_same_shape(action=action, mean=mean, std=std, cap=cap)
    u = torch.atanh(within(action, cap))
    return gaussian_log_prob(u, mean, std) - (torch.log(cap) + _log_slope(u)).sum(-1)


def squashed_entropy(mean: Tensor, std: Tensor, cap: Tensor) -> Tensor:
    """The Gaussian's entropy + E Σ_d ln(c(1 − tanh²u)), the mean by 24 Gauss–Hermite nodes."""
    check_same_shape(mean=mean, std=std, cap=cap)
    nodes, weights = mean.new_tensor(_NODES), mean.new_tensor(_WEIGHTS / _WEIGHTS.sum())
    slope = _log_slope(mean.unsqueeze(-1) + std.unsqueeze(-1) * nodes) @ weights
    return gaussian_entropy(std) + (torch.log(cap) + slope).sum(-1)


def _log_slope(u: Tensor) -> Tensor:
    """ln(1 − tanh²u) = 2(ln 2 − u − ln(1 + e^{−2u})), finite for every u."""
    return 2 * (math.log(2) - u - functional.softplus(-2 * u))


def beta_log_prob(action: Tensor, alpha: Tensor, beta: Tensor, cap: Tensor) -> Tensor:
    """Σ_d (α − 1)ln b + (β − 1)ln(1 − b) − ln B(α, β) − ln 2c, b = (a/c + 1)/2."""
    check_same_shape(action=action, alpha=alpha, beta=beta, cap=cap)
    b = (within(action, cap) + 1) / 2
    density = (alpha - 1) * torch.log(b) + (beta - 1) * torch.log1p(-b)
    return (density - _log_beta(alpha, beta) - torch.log(2 * cap)).sum(-1)


def beta_entropy(alpha: Tensor, beta: Tensor, cap: Tensor) -> Tensor:
    """Σ_d ln B(α, β) − (α − 1)ψ(α) − (β − 1)ψ(β) + (α + β − 2)ψ(α + β) + ln 2c."""
    check_same_shape(alpha=alpha, beta=beta, cap=cap)
    digamma = torch.digamma
    moved = (alpha + beta - 2) * digamma(alpha + beta)
    moved = moved - (alpha - 1) * digamma(alpha) - (beta - 1) * digamma(beta)
    return (_log_beta(alpha, beta) + moved + torch.log(2 * cap)).sum(-1)


def beta_kl(alpha: Tensor, beta: Tensor, other_alpha: Tensor, other_beta: Tensor) -> Tensor:
    """KL(Beta(α, β) ‖ Beta(α₂, β₂)) = Σ_d ln(B₂/B) + (α − α₂)ψ(α) + (β − β₂)ψ(β) + (…)ψ(α + β)."""
    check_same_shape(alpha=alpha, beta=beta, other_alpha=other_alpha, other_beta=other_beta)
    more, less = alpha - other_alpha, beta - other_beta
    ratio = _log_beta(other_alpha, other_beta) - _log_beta(alpha, beta)
    moved = more * torch.digamma(alpha) + less * torch.digamma(beta)
    return (ratio + moved - (more + less) * torch.digamma(alpha + beta)).sum(-1)


def _log_beta(alpha: Tensor, beta: Tensor) -> Tensor:
    """ln B(α, β)."""
    return torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)


def two_point_log_prob(action: Tensor, logit: Tensor) -> Tensor:
    """Σ_d −ln(1 + e^{−l·sign a})."""
    check_same_shape(action=action, logit=logit)
    return functional.logsigmoid(torch.sign(action) * logit).sum(-1)


def two_point_entropy(logit: Tensor) -> Tensor:
    """Σ_d −p ln p − (1 − p) ln(1 − p), p = 1/(1 + e^{−l}); at most ln 2 a dimension."""
    p = torch.sigmoid(logit)
    return -(p * functional.logsigmoid(logit) + (1 - p) * functional.logsigmoid(-logit)).sum(-1)


def two_point_kl(logit: Tensor, other_logit: Tensor) -> Tensor:
    """Σ_d p ln(p/p₂) + (1 − p) ln((1 − p)/(1 − p₂))."""
    check_same_shape(logit=logit, other_logit=other_logit)
    p = torch.sigmoid(logit)
    up = functional.logsigmoid(logit) - functional.logsigmoid(other_logit)
    down = functional.logsigmoid(-logit) - functional.logsigmoid(-other_logit)
    return (p * up + (1 - p) * down).sum(-1)
