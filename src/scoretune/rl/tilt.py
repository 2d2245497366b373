"""The best that KL-regularised fine-tuning can do, exactly: exponential tilts of mixtures.

    max_p E_p[R] − κ KL(p ‖ p_pre)   is solved by   p* = p_pre e^{R/κ}/Z,   with optimum κ ln Z.

Lifted to the paths of the reverse SDE it is a control problem with the value function
V*(t, x) = κ ln E[e^{R(x0)/κ} | x_t = x] under the pretrained law, and the optimal action
s* = s_pre + ∇V*/κ is the score of the *diffused* p*, whenever the sampler starts from noise that
knows nothing of the data, α(T) ≈ 0 (arXiv 2409.08400 §3, arXiv 2502.01819). A Gaussian mixture with
a reward of degree two stays a Gaussian mixture all the way, so nothing here is approximate.

α and σ are numbers, or tensors [B] with one entry a sample; x is [B, D].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.shapes import check_rank, check_same_shape, check_shape

Level = float | Tensor


@dataclass(frozen=True)
class Mixture:
    """Σ_k w_k N(μ_k, τ_k² I): `log_weights` [*B, K], `means` [*B, K, D], `variances` [*B, K].

    Leading dimensions, if any, are a batch of mixtures; `log_weights` are normalised.
    """

    log_weights: Tensor
    means: Tensor
    variances: Tensor

    def __post_init__(self) -> None:
        check_rank(2, means=self.means)
        batch = self.means.shape[:-1]  # its mixtures may share their weights and variances
        for name, numbers in (("log_weights", self.log_weights), ("variances", self.variances)):
            check_shape(batch if numbers.dim() > 1 else batch[-1:], **{name: numbers})

    @staticmethod
    def of(weights: list[float], means: list[list[float]], variance: float) -> Mixture:
        """Components of one variance, float64; weights need not sum to 1."""
        probabilities = torch.tensor(weights, dtype=torch.float64)
        if not (bool((probabilities > 0).all()) and variance > 0):
            raise ValueError(f"need weights and variance > 0, got {weights} and {variance}")
        centres = torch.tensor(means, dtype=torch.float64)
        variances = torch.full_like(probabilities, variance)
        return Mixture(probabilities.log().log_softmax(0), centres, variances)

    @staticmethod
    def gaussian(mean: list[float], variance: float) -> Mixture:
        """The mixture of one component."""
        return Mixture.of([1.0], [mean], variance)

    @property
    def mean(self) -> Tensor:
        """E[x], [*B, D]."""
        return (self.log_weights.exp()[..., None] * self.means).sum(-2)

    @property
    def variance(self) -> Tensor:
        """E‖x − E x‖²/D, [*B]: the variance of a coordinate, on average."""
        apart = ((self.means - self.mean[..., None, :]) ** 2).mean(-1)
        return (self.log_weights.exp() * (self.variances + apart)).sum(-1)

    def to(self, like: Tensor) -> Mixture:
        """The same mixture on the device and in the dtype of `like`."""
        return Mixture(self.log_weights.to(like), self.means.to(like), self.variances.to(like))

    def diffused(self, alpha: Level, sigma: Level) -> Mixture:
        """The law of αx0 + σε."""
        check_levels(alpha, sigma)
        a, s = self._column(alpha), self._column(sigma)
        return Mixture(self.log_weights, a[..., None] * self.means, a**2 * self.variances + s**2)

    def log_density(self, x: Tensor) -> Tensor:
        """ln p(x), [B]."""
        return self._joint(x).logsumexp(-1)

    def score(self, x: Tensor) -> Tensor:
        """∇ ln p(x), [B, D]."""
        pull = self._joint(x).softmax(-1) / self.variances
        return (pull[..., None] * (self.means - x[..., None, :])).sum(-2)

    def posterior(self, x: Tensor, alpha: Level, sigma: Level) -> Mixture:
        """The law of x0 given αx0 + σε = x: a batch of mixtures, [B]."""
        check_levels(alpha, sigma, x)
        a, s = self._column(alpha), self._column(sigma)
        noisy = self.diffused(alpha, sigma)
        gain = a * self.variances / noisy.variances
        means = self.means + gain[..., None] * (x[..., None, :] - noisy.means)
        variances = self.variances * s**2 / noisy.variances
        return Mixture(noisy._joint(x).log_softmax(-1), means, variances)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Samples [count, D] of one mixture (no batch of them)."""
        which = torch.multinomial(
            self.log_weights.exp(), count, replacement=True, generator=generator
        )
        means = self.means[which]
        noise = torch.randn(
            means.shape, generator=generator, dtype=means.dtype, device=means.device
        )
        return means + self.variances[which].sqrt()[:, None] * noise

    def _joint(self, x: Tensor) -> Tensor:
        """ln w_k N(x; μ_k, τ_k²), [B, K]."""
        check_shape((*x.shape[:-1], self.means.shape[-1]), x=x)
        if self.means.dim() > 2:
            check_shape((*self.means.shape[:-2], self.means.shape[-1]), x=x)
        square = ((x[..., None, :] - self.means) ** 2).sum(-1)
        log_scale = torch.log(2 * math.pi * self.variances)
        return self.log_weights - square / (2 * self.variances) - x.shape[-1] / 2 * log_scale

    def _column(self, level: Level) -> Tensor:
        return torch.as_tensor(level, dtype=self.means.dtype, device=self.means.device)[..., None]


@dataclass(frozen=True)
class Quadratic:
    """R(x) = offset + ⟨slope, x⟩ − ½ curvature ‖x‖², [B] of x [B, D]; `slope` is [D]."""

    slope: Tensor
    curvature: float = 0.0
    offset: float = 0.0

    @staticmethod
    def linear(slope: list[float]) -> Quadratic:
        """R(x) = ⟨slope, x⟩, float64."""
        return Quadratic(torch.tensor(slope, dtype=torch.float64))

    @staticmethod
    def around(centre: list[float], curvature: float) -> Quadratic:
        """R(x) = −½ curvature ‖x − centre‖², float64."""
        at = torch.tensor(centre, dtype=torch.float64)
        return Quadratic(curvature * at, curvature, -curvature / 2 * float(at @ at))

    def __call__(self, x: Tensor) -> Tensor:
        check_shape((*x.shape[:-1], len(self.slope)), x=x)
        slope = self.slope.to(x)
        return self.offset + (x * slope).sum(-1) - self.curvature / 2 * (x**2).sum(-1)

    def mean(self, law: Mixture) -> Tensor:
        """E R(x), [*B]."""
        within = self(law.means) - self.curvature / 2 * law.means.shape[-1] * law.variances
        return (law.log_weights.exp() * within).sum(-1)


def tilted(law: Mixture, reward: Quadratic, kl_weight: float) -> tuple[Mixture, Tensor]:
    """The mixture ∝ p e^{R/κ}, and ln Z = ln E[e^{R/κ}] [*B].

    With a = slope/κ, b = curvature/κ and d = 1 + bτ², a component becomes N((μ + τ²a)/d, τ²/d) and
    its weight is multiplied by d^{−D/2} exp{[⟨a, μ⟩ + τ²‖a‖²/2 − b‖μ‖²/2]/d}.
    """
    if not kl_weight > 0:
        raise ValueError(f"the tilt e^(R/κ) needs a KL weight κ > 0, got {kl_weight}")
    a, b = reward.slope.to(law.means) / kl_weight, reward.curvature / kl_weight
    scale = 1 + b * law.variances
    if not bool((scale > 0).all()):
        raise ValueError("the tilt has no finite mass: the reward curves up faster than ln p falls")
    means = (law.means + law.variances[..., None] * a) / scale[..., None]
    inside = (law.means * a).sum(-1) + law.variances * (a @ a) / 2
    inside = (inside - b / 2 * (law.means**2).sum(-1)) / scale
    factors = reward.offset / kl_weight + inside - law.means.shape[-1] / 2 * torch.log(scale)
    weights = law.log_weights + factors
    return (
        Mixture(weights.log_softmax(-1), means, law.variances / scale),
        weights.logsumexp(-1),
    )


def optimum(law: Mixture, reward: Quadratic, kl_weight: float) -> Tensor:
    """κ ln Z: the largest E_p[R] − κ KL(p ‖ law), attained by the tilt."""
    return kl_weight * tilted(law, reward, kl_weight)[1]


def tilt_kl(law: Mixture, reward: Quadratic, kl_weight: float) -> Tensor:
    """KL(p* ‖ law) = E*[R]/κ − ln Z: also the path KL of the optimal control."""
    best, log_z = tilted(law, reward, kl_weight)
    return reward.mean(best) / kl_weight - log_z


def optimal_value(
    law: Mixture, reward: Quadratic, kl_weight: float, x: Tensor, alpha: Level, sigma: Level
) -> Tensor:
    """V*(x) = κ ln E[e^{R(x0)/κ} | αx0 + σε = x], [B]; the reward itself at σ = 0."""
    return optimum(law.posterior(x, alpha, sigma), reward, kl_weight)


def optimal_score(
    law: Mixture, reward: Quadratic, kl_weight: float, x: Tensor, alpha: Level, sigma: Level
) -> Tensor:
    """s* = s_pre + ∇V*/κ at x, [B, D]: the score of the diffused tilt."""
    return tilted(law, reward, kl_weight)[0].diffused(alpha, sigma).score(x)


def check_levels(alpha: Level, sigma: Level, x: Tensor | None = None) -> None:
    """Refuse α and σ that are neither numbers nor, both, one for each sample of x [..., D]."""
    tensors = {
        name: level
        for name, level in (("alpha", alpha), ("sigma", sigma))
        if isinstance(level, Tensor) and level.dim()
    }
    if tensors:
        check_same_shape(**tensors)
        check_shape(next(iter(tensors.values())).shape if x is None else x.shape[:-1], **tensors)


def gauss_hermite(nodes: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Points and weights [nodes] with Σ w f(z) = E f(z), z ~ N(0, 1) (Golub and Welsch 1969)."""
    off = torch.arange(1, nodes, dtype=torch.float64).sqrt()
    points, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return points.to(like), (vectors[0] ** 2).to(like)
