"""Distances between two samples, and between two Gaussians in closed form.

Points are [n, F] and [n', F]. `frechet_distance`, `kernel_distance`, `mmd` and `energy_distance`
are squares, as the field reports them, Wasserstein distances roots. All is in float64, and without
a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], float]

BLOCK = 2048
"""Rows of a Gram matrix that are held at once."""


def frechet_distance(features: Tensor, others: Tensor, eps: float = 1e-6) -> float:
    """‖m − m'‖² + tr(C + C' − 2(CC')^½) of features [n, F] and [n', F] (arXiv 1706.08500).

    FID when the features are Inception's. `eps` on the diagonal keeps the root real. The plug-in
    value is too high by about c/n with c growing like F²: see `with_interval`.
    """
    from scipy.linalg import sqrtm

    means, covariances = [], []
    for rows in (features.detach().cpu().double(), others.detach().cpu().double()):
        means.append(rows.mean(0))
        covariances.append(torch.cov(rows.T) + eps * torch.eye(rows.shape[1]))
    first, second = covariances
    root = torch.as_tensor(sqrtm((first @ second).numpy()).real)  # imaginary parts are rounding
    return float(((means[0] - means[1]) ** 2).sum() + torch.trace(first + second - 2 * root))


def kernel_distance(features: Tensor, others: Tensor) -> float:
    """KID: the unbiased MMD² with the kernel (⟨x, y⟩/F + 1)³ (arXiv 1801.01401). May be < 0."""
    _check(features, others, least=2)
    size = features.shape[1]
    return _mmd_sq(lambda x, y: (x @ y.T / size + 1) ** 3, features, others, unbiased=True)


def mmd(x: Tensor, y: Tensor, *, bandwidth: float | None = None, unbiased: bool = True) -> float:
    """MMD² with the Gaussian kernel e^{−‖x−y‖²/(2ℓ²)} (Gretton et al., JMLR 13, 2012, eq. 3, 5).

    `bandwidth` ℓ is the median distance of the pooled sample unless given. Unbiased: pairs of a
    point with itself are left out, and the value may be < 0; biased: it is >= 0, and too high by
    O(1/n).
    """
    _check(x, y, least=2)
    scale = median_distance(x, y) if bandwidth is None else bandwidth
    if not scale > 0:
        raise ValueError(f"mmd needs a bandwidth > 0, got {scale}: are all points the same?")

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return torch.exp(-(torch.cdist(x, y) ** 2) / (2 * scale**2))

    return _mmd_sq(kernel, x, y, unbiased=unbiased)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2E‖X − Y‖ − E‖X − X'‖ − E‖Y − Y'‖ >= 0, and 0 for one law alone (Székely and Rizzo 2013).

    Unbiased: pairs of a point with itself are left out, so that the value may be < 0.
    """
    _check(x, y, least=2)
    return -_mmd_sq(torch.cdist, x, y, unbiased=True)


def median_distance(x: Tensor, y: Tensor, most: int = 1000) -> float:
    """The median of the distances within the pooled sample, of at most about `most` points."""
    pooled = torch.cat([part[:: math.ceil(2 * len(part) / most)].double() for part in (x, y)])
    return float(torch.pdist(pooled).median())


def wasserstein_1d(x: Tensor, y: Tensor, order: float = 2.0) -> float:
    """W_p of two samples of numbers [n] and [n'], exactly: (∫₀¹ |F⁻¹(u) − G⁻¹(u)|^p du)^{1/p}."""
    _check(x[:, None], y[:, None])
    first, second = (part.double().sort().values[None] for part in (x, y))
    return math.pow(float(_transport(first, second, order)), 1 / order)


def sliced_wasserstein(
    x: Tensor, y: Tensor, projections: int = 200, generator: torch.Generator | None = None
) -> float:
    """SW2: the root of the mean of W2² along random directions (arXiv 1902.00434 eq. 9), which
    without a generator are always the same."""
    _check(x, y)
    lines = directions(x.shape[1], projections, generator).to(x.device)
    first, second = ((lines @ part.double().T).sort().values for part in (x, y))
    return float(_transport(first, second, 2.0).mean().sqrt())


def wasserstein_gaussian(
    mean: Tensor, covariance: Tensor, other_mean: Tensor, other_covariance: Tensor
) -> float:
    """W2 of two Gaussians: W2² = ‖m−m'‖² + tr(S + S' − 2(S^½ S' S^½)^½) (Gelbrich 1990)."""
    root = _root(covariance.double())
    cross = _root(root @ other_covariance.double() @ root)
    shift = ((mean.double() - other_mean.double()) ** 2).sum()
    square = shift + torch.trace(covariance.double() + other_covariance.double() - 2 * cross)
    return math.sqrt(max(float(square), 0.0))


def sliced_wasserstein_gaussian(
    mean: Tensor,
    covariance: Tensor,
    other_mean: Tensor,
    other_covariance: Tensor,
    *,
    projections: int = 20_000,
    generator: torch.Generator | None = None,
) -> float:
    """SW2 of two Gaussians: SW2² = E_θ[(θ·Δm)² + (√(θᵀSθ) − √(θᵀS'θ))²].

    In the plane the directions are equidistant, which is exact to rounding; elsewhere random.
    """
    size = len(mean)
    if size == 2:
        angles = torch.arange(projections, dtype=torch.float64) * math.pi / projections
        lines = torch.stack([angles.cos(), angles.sin()], 1)
    else:
        lines = directions(size, projections, generator)
    lines = lines.to(mean.device)
    shift = lines @ (mean - other_mean).double()
    spreads = [((lines @ s.double()) * lines).sum(1).sqrt() for s in (covariance, other_covariance)]
    return float((shift**2 + (spreads[0] - spreads[1]) ** 2).mean().sqrt())


def mmd_gaussian(
    mean: float, variance: float, other_mean: float, other_variance: float, bandwidth: float = 1.0
) -> float:
    """MMD² of N(a, s²) and N(b, q²) under e^{−|x−y|²/(2ℓ²)}, in one dimension.

    E k(X, Y) = ℓ/√(ℓ²+s²+q²) · e^{−(a−b)²/(2(ℓ²+s²+q²))}.
    """

    def kernel(shift: float, spread: float) -> float:
        width = bandwidth**2 + spread
        return bandwidth / math.sqrt(width) * math.exp(-(shift**2) / (2 * width))

    across = kernel(mean - other_mean, variance + other_variance)
    return kernel(0, 2 * variance) + kernel(0, 2 * other_variance) - 2 * across


def with_interval(
    metric: Metric,
    x: Tensor,
    y: Tensor,
    *,
    resamples: int = 100,
    level: float = 0.95,
    generator: torch.Generator | None = None,
) -> tuple[float, float, float]:
    """(value, low, high) of a distance between what x [n, F] and y [n', F] were drawn from.

    Plug-in distances are too high by about c/n (arXiv 1911.07023), and a bootstrap with replacement
    adds that bias once more. So the metric is also computed on `resamples` random halves of both
    samples. Halves have twice the bias, hence `value` = 2·metric(all) − mean(halves); their spread
    is that of the whole (delete-half jackknife, Shao and Wu 1989), hence value ± z·std(halves).

    Neither end is cut at 0. Needs a few times more points in a half than there are features.
    """
    _check(x, y, least=4)
    if not (resamples >= 2 and 0 < level < 1):
        raise ValueError(f"need resamples >= 2 and 0 < level < 1, got {resamples} and {level}")
    generator = generator or torch.Generator().manual_seed(0)

    def half(points: Tensor) -> Tensor:
        order = torch.randperm(len(points), generator=generator, device=generator.device)
        return points[order[: len(points) // 2].to(points.device)]

    halves = torch.tensor([metric(half(x), half(y)) for _ in range(resamples)], dtype=torch.float64)
    value = 2 * metric(x, y) - float(halves.mean())
    z = float(torch.special.ndtri(torch.tensor((1 + level) / 2, dtype=torch.float64)))
    spread = z * float(halves.std())
    return value, value - spread, value + spread


def directions(size: int, count: int, generator: torch.Generator | None = None) -> Tensor:
    """`count` unit vectors, uniform on the sphere of R^size: [count, size], float64."""
    if count < 1:
        raise ValueError(f"need at least 1 projection, got {count}")
    generator = generator or torch.Generator().manual_seed(0)
    drawn = torch.randn(
        count, size, generator=generator, device=generator.device, dtype=torch.float64
    )
    return torch.nn.functional.normalize(drawn, dim=1)


def _transport(x: Tensor, y: Tensor, order: float) -> Tensor:
    """∫₀¹ |F⁻¹ − G⁻¹|^p du of sorted rows [K, n] and [K, n'], [K].

    Both quantile functions are constant between the levels i/n and j/n'; in units of 1/(nn') these
    are integers, so no level is lost to rounding.
    """
    n, m = x.shape[1], y.shape[1]
    first, second = (torch.arange(1, size + 1, device=x.device) for size in (n, m))
    levels = torch.cat([first * m, second * n]).unique()
    starts = torch.cat([levels.new_zeros(1), levels[:-1]])
    widths = (levels - starts).double() / (n * m)
    moved = torch.pow((x[:, starts // m] - y[:, starts // n]).abs(), order)
    return torch.mv(moved, widths)


def _mmd_sq(
    kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, *, unbiased: bool
) -> float:
    """mean k(x, x') + mean k(y, y') − 2 mean k(x, y), without the diagonals if `unbiased`."""

    def within(points: Tensor) -> Tensor:
        n = len(points)
        total, diagonal = _gram_sums(kernel, points, points)
        return (total - diagonal) / (n * (n - 1)) if unbiased else total / n**2

    x, y = x.double(), y.double()
    across = _gram_sums(kernel, x, y)[0] / (len(x) * len(y))
    return float(within(x) + within(y) - 2 * across)


def _gram_sums(
    kernel: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor]:
    """The sum of all entries k(x_i, y_j), and of those with i = j, a block of rows at a time."""
    total = diagonal = x.new_zeros(())
    for start in range(0, len(x), BLOCK):
        gram = kernel(x[start : start + BLOCK], y)
        total = total + gram.sum()
        diagonal = diagonal + gram.diagonal(start).sum()
    return total, diagonal


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric matrix that is >= 0 up to rounding."""
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    root: Tensor = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _check(x: Tensor, y: Tensor, least: int = 1) -> None:
    if x.dim() != 2 or y.dim() != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"need two samples [n, F] of the same F, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"need at least {least} points of each, got {len(x)} and {len(y)}")
