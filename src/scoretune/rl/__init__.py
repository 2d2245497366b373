"""Reinforcement learning as pure functions on tensors: surrogates, critics, advantage rates.

Time is continuous: every sum over steps carries its Δt (`dt`), so that a loss means the same on
any grid. κ is the KL weight, g² the squared noise of the sampler, V a value, q a rate, ρ the
discount.
"""

from scoretune.rl.bounded import (
    beta_entropy,
    beta_kl,
    beta_log_prob,
    squashed_entropy,
    squashed_log_prob,
    two_point_entropy,
    two_point_kl,
    two_point_log_prob,
)
from scoretune.rl.gaussian import gaussian_entropy, gaussian_kl, gaussian_log_prob
from scoretune.rl.martingale import (
    clstd,
    ctd0,
    ctd_lambda,
    drawn_returns,
    gae,
    martingale_loss,
    returns_to_go,
)
from scoretune.rl.occupation import exponential_times, occupation_weights
from scoretune.rl.rates import advantage_rate, td_advantage
from scoretune.rl.surrogates import (
    adapted_coefficient,
    clipped_surrogate,
    controlled_coefficient,
    kl_penalty,
    sqrt_kl_penalty,
)

__all__ = [
    "adapted_coefficient",
    "advantage_rate",
    "beta_entropy",
    "beta_kl",
    "beta_log_prob",
    "clipped_surrogate",
    "clstd",
    "controlled_coefficient",
    "ctd0",
    "ctd_lambda",
    "drawn_returns",
    "exponential_times",
    "gae",
    "gaussian_entropy",
    "gaussian_kl",
    "gaussian_log_prob",
    "kl_penalty",
    "martingale_loss",
    "occupation_weights",
    "returns_to_go",
    "sqrt_kl_penalty",
    "squashed_entropy",
    "squashed_log_prob",
    "td_advantage",
    "two_point_entropy",
    "two_point_kl",
    "two_point_log_prob",
]
