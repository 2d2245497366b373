"""Learning from preferences as pure functions: one general pairwise loss, and the methods as data.

A pair is two samples of one prompt, each with its log-likelihood under the policy and under a
frozen reference, in nats and summed over the sample (or an estimate of it, for diffusion models).
Labels are probabilities: 1 says that the first of a pair is preferred, 0.5 is a tie, and several
raters make a share.
"""

from scoretune.preference.disagreement import (
    agreement_scale,
    dispersion,
    mean_entropy,
    pair_entropy,
    phi_of_scale,
    phi_star,
    preference_entropy,
    sample_spread,
    scale_of_phi,
    token_entropy,
    vote_agreement,
    vote_entropy,
)
from scoretune.preference.losses import implicit_margin, kl_baseline, pairwise_loss, single_loss
from scoretune.preference.mallows import mallows_probability
from scoretune.preference.pair_terms import (
    adaptive_scale,
    on_policy_weight,
    score_offset,
    typical_pairs,
)
from scoretune.preference.presets import PRESETS, Preset, Term, preset_named
from scoretune.preference.proximal import clamped_log_ratio
from scoretune.preference.psi_po import expected_psi, psi, regularised_optimum
from scoretune.preference.rejection import (
    best_and_worst,
    percentiles,
    rejection_sample,
    tournament,
)

__all__ = [
    "PRESETS",
    "Preset",
    "Term",
    "adaptive_scale",
    "agreement_scale",
    "best_and_worst",
    "clamped_log_ratio",
    "dispersion",
    "expected_psi",
    "implicit_margin",
    "kl_baseline",
    "mallows_probability",
    "mean_entropy",
    "on_policy_weight",
    "pair_entropy",
    "pairwise_loss",
    "percentiles",
    "phi_of_scale",
    "phi_star",
    "preference_entropy",
    "preset_named",
    "psi",
    "regularised_optimum",
    "rejection_sample",
    "sample_spread",
    "scale_of_phi",
    "score_offset",
    "single_loss",
    "token_entropy",
    "tournament",
    "typical_pairs",
    "vote_agreement",
    "vote_entropy",
]
