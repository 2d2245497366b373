"""Learning from preferences as pure functions: one general pairwise loss, and the methods as data.

A pair is two samples of one prompt, each with its log-likelihood under the policy and under a
frozen reference, in nats and summed over the sample (or an estimate of it, for diffusion models).
Labels are probabilities: 1 says that the first of a pair is preferred, 0.5 is a tie, and several
raters make a share.
"""

from scoretune.preference.losses import implicit_margin, kl_baseline, pairwise_loss, single_loss
from scoretune.preference.mallows import mallows_probability
from scoretune.preference.presets import PRESETS, Preset, Term, preset_named

__all__ = [
    "PRESETS",
    "Preset",
    "Term",
    "implicit_margin",
    "kl_baseline",
    "mallows_probability",
    "pairwise_loss",
    "preset_named",
    "single_loss",
]
