"""Compressed sensing as pure functions: measurements, bases, sparse recovery, and how many
measurements it needs.

A state x of d numbers that has s ≪ d coefficients in some basis is measured as y = Ax, m < d
numbers, and recovered by an ℓ1 penalty. Sources are in the docstrings; what is derived says so.
"""

from scoretune.compressed.bases import BASES, DCT, Basis, Identity, Wavelet
from scoretune.compressed.decoding import decode
from scoretune.compressed.dimension import (
    RULES,
    best_threshold,
    decoder_flops,
    fista_gap_bound,
    fista_steps,
    gaussian_norm,
    ista_gap_bound,
    lasso_error_bound,
    latent_dimension,
    noise_amplification,
    restricted_isometry,
    rip_measurements,
    sequential_steps,
    statistical_dimension,
)
from scoretune.compressed.message_passing import message_passing
from scoretune.compressed.operators import (
    OPERATORS,
    Dense,
    Gaussian,
    Operator,
    RandomisedHadamard,
    SubsampledDCT,
    fingerprint,
    in_basis,
)
from scoretune.compressed.planning import Survey, relative_error, survey
from scoretune.compressed.recovery import (
    Recovery,
    debiased,
    fista,
    ista,
    kkt_violation,
    objective,
    proximal,
)
from scoretune.compressed.sparsity import best_terms, sparsities, tail_norms

__all__ = [
    "BASES",
    "DCT",
    "OPERATORS",
    "RULES",
    "Basis",
    "Dense",
    "Gaussian",
    "Identity",
    "Operator",
    "RandomisedHadamard",
    "Recovery",
    "SubsampledDCT",
    "Survey",
    "Wavelet",
    "best_terms",
    "best_threshold",
    "debiased",
    "decode",
    "decoder_flops",
    "fingerprint",
    "fista",
    "fista_gap_bound",
    "fista_steps",
    "gaussian_norm",
    "in_basis",
    "ista",
    "ista_gap_bound",
    "kkt_violation",
    "lasso_error_bound",
    "latent_dimension",
    "message_passing",
    "noise_amplification",
    "objective",
    "proximal",
    "relative_error",
    "restricted_isometry",
    "rip_measurements",
    "sequential_steps",
    "sparsities",
    "statistical_dimension",
    "survey",
    "tail_norms",
]
