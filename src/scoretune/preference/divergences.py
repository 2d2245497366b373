"""The score of one side: what of q = (lp − α·rp)/|y|^η the margin compares.

f-DPO (arXiv 2309.16240) replaces KL(π ‖ π_ref) by an f-divergence and compares f′(π/π_ref):

    reverse_kl   q                       (DPO)
    forward_kl   1 − e^{−q}
    js           ln 2 + ln σ(q)
    alpha        (e^{(a−1)q} − 1)/(a−1)  → q as a → 1

`alpha` without a reference and per token is also the reward of AlphaPO (arXiv 2501.03884), with
a = 1 − its α. `log_odds`, ln(p/(1 − p)) of p = e^q < 1, is ORPO's (arXiv 2403.07691 eq. 4).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from scoretune.preference.presets import Divergence

MOST = 80.0  # of an exponent, which keeps e^x within single precision


def side_score(q: Tensor, divergence: Divergence, parameter: float) -> Tensor:
    """The score of q, of its shape; `parameter` is the a of `alpha`. Exponents are kept to 80."""
    if divergence == "forward_kl":
        return -torch.expm1((-q).clamp(max=MOST))
    if divergence == "js":
        return math.log(2) + logsigmoid(q)
    if divergence == "alpha" and abs(parameter - 1) > 1e-6:
        return torch.expm1(((parameter - 1) * q).clamp(max=MOST)) / (parameter - 1)
    if divergence == "log_odds":
        if not bool((q < 0).all()):
            raise ValueError("the odds of ORPO need probabilities below 1: log-likelihoods below 0")
        return q - _log_one_minus_exp(q)
    return q


def _log_one_minus_exp(q: Tensor) -> Tensor:
    """ln(1 − e^q) of q < 0, by the form that keeps its digits on either side of −ln 2."""
    near = torch.log(-torch.expm1(q.clamp(min=-math.log(2))))
    far = torch.log1p(-torch.exp(q.clamp(max=-math.log(2))))
    return torch.where(q > -math.log(2), near, far)
