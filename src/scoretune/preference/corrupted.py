"""Two ways to be worse at once: a false text, and a true one about a corrupted picture."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from scoretune.shapes import check_same_shape


def povid(
    chosen: Tensor, hallucinated: Tensor, noisy: Tensor, *, alpha: float, betas: tuple[float, float]
) -> Tensor:
    """−ln σ(α·lr_w − (β₁·lr_l + β₂·lr_noisy)), [B], of log-ratios to the reference (POVID,
    arXiv 2402.11411). β₂ = 0 and α = β₁ is DPO."""
    check_same_shape(chosen=chosen, hallucinated=hallucinated, noisy=noisy)
    return -logsigmoid(alpha * chosen - betas[0] * hallucinated - betas[1] * noisy)
