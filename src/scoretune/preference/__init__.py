"""Learning from preferences as pure functions: one general pairwise loss, and the methods as data.

A pair is two samples of one prompt, each with its log-likelihood under the policy and under a
frozen reference, in nats and summed over the sample (or an estimate of it, for diffusion models).
Labels are probabilities: 1 says that the first of a pair is preferred, 0.5 is a tie, and several
raters make a share.
"""

from scoretune.preference.active_choice import next_pairs, pair_information
from scoretune.preference.calibration import (
    Reliability,
    expected_calibration_error,
    reliability,
)
from scoretune.preference.comparisons import VoteFit, fit_scale, fit_scores, fit_votes
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
from scoretune.preference.ties import TieModel, outcome_log_probs, vote_loss

__all__ = [
    "PRESETS",
    "Preset",
    "Reliability",
    "Term",
    "TieModel",
    "VoteFit",
    "adaptive_scale",
    "agreement_scale",
    "best_and_worst",
    "clamped_log_ratio",
    "dispersion",
    "expected_calibration_error",
    "expected_psi",
    "fit_scale",
    "fit_scores",
    "fit_votes",
    "implicit_margin",
    "kl_baseline",
    "mallows_probability",
    "mean_entropy",
    "next_pairs",
    "on_policy_weight",
    "outcome_log_probs",
    "pair_entropy",
    "pair_information",
    "pairwise_loss",
    "percentiles",
    "phi_of_scale",
    "phi_star",
    "preference_entropy",
    "preset_named",
    "psi",
    "regularised_optimum",
    "rejection_sample",
    "reliability",
    "sample_spread",
    "scale_of_phi",
    "score_offset",
    "single_loss",
    "token_entropy",
    "tournament",
    "typical_pairs",
    "vote_agreement",
    "vote_entropy",
    "vote_loss",
]
