"""How far people would disagree about a prompt, and the weight c(x) that follows from it.

MallowsPO (arXiv 2405.14953; RainbowPO's contextual scaling, arXiv 2410.04203) estimates a prompt's
dispersion φ(x) from an entropy H̄(x) in (0, 1] that is 1 where anything goes:

    c(x) = −ln φ̂(x) = −φ*·ln H̄(x),

with φ* = 1/mean(−ln H̄) over the data set, so that c is 1 on average.

Little entropy is agreement, and agreement pushes harder. The entropy is the model's own over its
tokens (the papers'), that of several raters' votes, or the spread of the model's samples.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from scoretune.shapes import check_rank, check_same_shape, check_shape

EDGE = 1e-6  # entropies are kept within (EDGE, 1 − EDGE), which keeps c finite and above 0


def dispersion(entropy: Tensor, phi_star: float) -> Tensor:
    """c(x) = −φ*·ln H̄(x) > 0, of the shape of `entropy`."""
    if not phi_star > 0:
        raise ValueError(f"phi_star must be > 0, got {phi_star}")
    return -phi_star * torch.log(_checked(entropy))


def phi_star(entropies: Tensor) -> float:
    """1/mean(−ln H̄): with it c is 1 on average over these prompts, and β keeps its meaning.

    Refuses entropies that are all the same: c would be 1 everywhere.
    """
    kept = _checked(entropies)
    if not bool((kept != kept.flatten()[0]).any()):
        raise ValueError(
            f"every entropy is {float(kept.flatten()[0]):.3g}: a dispersion that is the same for "
            "all prompts weighs nothing; use a preset without scaling, or give other entropies"
        )
    return 1 / float(-torch.log(kept.double()).mean())


def scale_of_phi(phi: Tensor) -> Tensor:
    """−2 ln φ: the scale at which the θ-model with dispersion φ is fitted exactly."""
    return -2 * torch.log(phi)


def phi_of_scale(scale: Tensor) -> Tensor:
    """e^{−c/2}: the φ whose θ-model has the scale c, e^{−1/2} where c is 1."""
    return torch.exp(-scale / 2)


# ---------------------------------------------------------------------------- entropies in (0, 1]


def mean_entropy(token_entropies: Tensor, mask: Tensor, vocabulary: int) -> Tensor:
    """The mean over the tokens that are scored of H(π(·|x, y_<t)) over ln V, [B].

    `token_entropies` [B, T] in nats, `mask` [B, T] is 1 on those tokens. A completion without
    tokens has entropy 1, which no weight hangs on.
    """
    check_same_shape(token_entropies=token_entropies, mask=mask)
    count = mask.sum(1)
    total = torch.where(mask > 0, token_entropies, 0).sum(1)
    per_token = total / count.clamp(min=1) / math.log(vocabulary)
    return torch.where(count > 0, per_token, torch.ones_like(per_token))


def token_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """The mean entropy of a completion's tokens over ln V, [B].

    `logits` [B, T, V] predict the tokens of the completion, `mask` [B, T] is 1 on them. The mean
    is over tokens: a sum would exceed ln V, and c would change its sign.
    """
    check_rank(3, 3, logits=logits)
    check_shape(logits.shape[:2], mask=mask)
    if not bool((mask.sum(1) > 0).all()):
        raise ValueError("a completion without tokens has no entropy")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    log_probs = precise.log_softmax(-1)
    return mean_entropy(-(log_probs.exp() * log_probs).sum(-1), mask, logits.shape[-1])


def pair_entropy(first: Tensor, second: Tensor) -> Tensor:
    """(H̄(y1) + H̄(y2))/2, the entropy of a prompt by its two completions."""
    check_same_shape(first=first, second=second)
    return (first + second) / 2


def preference_entropy(probabilities: Tensor) -> Tensor:
    """The entropy of the mean of K opinions about each pair, over ln 2: of [K, B], [B].

    Opinions are probabilities that the first is preferred: of K judges, of reward models
    (σ of the gap of their scores), or of the policy in K draws of its noise (σ of its margin).
    """
    check_rank(2, 2, probabilities=probabilities)
    share = probabilities.mean(0)
    if not bool(((share >= 0) & (share <= 1)).all()):
        raise ValueError("opinions must be probabilities, in [0, 1]")
    entropy: Tensor = torch.special.entr(share) + torch.special.entr(1 - share)
    return entropy / math.log(2)


def vote_entropy(first: Tensor, second: Tensor, prior: float = 0.5) -> Tensor:
    """The entropy of raters' votes over ln 2, [B], from counts for either side.

    `prior` votes are added to both sides (Jeffreys' half), so that one vote is no proof of
    agreement: pairs with few raters stay in the middle.
    """
    check_same_shape(first=first, second=second)
    if not bool(((first >= 0) & (second >= 0)).all()):
        raise ValueError("votes are counts, 0 or more")
    share = (first + prior) / (first + second + 2 * prior)
    return preference_entropy(share[None])


def vote_agreement(first: Tensor, second: Tensor, prior: float = 0.5) -> Tensor:
    """|ln(votes for one/votes for the other)|, [B], from counts for either side.

    By Mallows-θ its mean over the pairs of a prompt is −2 ln φ times their mean distance in ranks,
    so that, divided by its mean over prompts, it is c(x) where raters decide; no entropy is
    proportional to that. `prior` votes are added to both sides.
    """
    check_same_shape(first=first, second=second)
    if not bool(((first >= 0) & (second >= 0)).all()):
        raise ValueError("votes are counts, 0 or more")
    return torch.log((first + prior) / (second + prior)).abs()


def agreement_scale(agreement: Tensor, mean: float) -> Tensor:
    """c(x) of prompts by how far their raters agree (`vote_agreement`), of mean 1 where `mean` > 0
    is that of all; of raters who are split evenly it is 10⁻³: such pairs teach next to nothing."""
    if not mean > 0:
        raise ValueError(f"the mean agreement must be > 0, got {mean}")
    return (agreement / mean).clamp(min=1e-3)


def sample_spread(samples: Tensor) -> Tensor:
    """How far K samples of each prompt differ, against all samples: of [K, B, *S], [B] in (0, 1].

    The mean variance of an element over a prompt's samples, divided by that over every sample. Of
    Gaussians of those variances its logarithm is 2(h − h_all)/D, h the differential entropies.
    """
    check_rank(3, samples=samples)
    if samples.shape[0] < 2:
        raise ValueError("a spread needs two or more samples of each prompt")
    flat = samples.flatten(2)
    every = flat.flatten(0, 1).var(0, correction=0).mean()
    return (flat.var(0, correction=0).mean(-1) / every).clamp(max=1)


def _checked(entropy: Tensor) -> Tensor:
    entropy = torch.as_tensor(entropy)
    if not bool(((entropy >= 0) & (entropy <= 1 + 1e-4)).all()):
        raise ValueError(
            "a normalised entropy lies in [0, 1]: the mean over tokens, divided by ln V; got "
            f"{float(entropy.min()):.3g} to {float(entropy.max()):.3g}"
        )
    return entropy.clamp(EDGE, 1 - EDGE)
