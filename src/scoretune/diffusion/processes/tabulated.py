"""A network's training table of ᾱ, read as a process in continuous time."""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor


def monotone_slopes(values: Tensor) -> Tensor:
    """Slopes [n+1] of the monotone cubic through `values` [n+1] at unit spacing.

    Interior: harmonic mean of the two secants, or 0 where they disagree in sign
    (Fritsch & Butland 1984). Ends: the one-sided three-point formula, limited to keep the shape.
    """
    secants = values.diff()
    left, right = secants[:-1], secants[1:]
    harmonic = 2 * left * right / (left + right)
    inner = torch.where(left * right > 0, harmonic, torch.zeros_like(left))
    first = _end_slope(secants[0], secants[1])
    last = _end_slope(secants[-1], secants[-2])
    return torch.cat([first.reshape(1), inner, last.reshape(1)])


def _end_slope(near: Tensor, far: Tensor) -> Tensor:
    slope = (3 * near - far) / 2
    if slope * near <= 0:
        return torch.zeros_like(slope)
    return 3 * near if near * far < 0 and slope.abs() > 3 * near.abs() else slope


@dataclass(frozen=True, repr=False)
class Tabulated:
    """A DDPM table ᾱ_0 > … > ᾱ_{n−1} as a variance-preserving process on [0, 1].

    Nodes t_i = (i+1)/n carry L_i = −ln ᾱ_i, and (0, 0) is added. B(t) is the monotone cubic
    through them, α = e^{−B/2}, σ = √(1 − e^{−B}), β = B'. At the nodes α² is the table itself, so
    a sampler on nodes is the discrete sampler. The terminal signal is not zero: α(1) = √ᾱ_{n−1}.

    `alphas_cumprod` is a tuple of floats, so that the process is hashable.
    """

    alphas_cumprod: tuple[float, ...]

    horizon = 1.0
    prior_std = 1.0

    def __post_init__(self) -> None:
        table = self.alphas_cumprod
        if not isinstance(table, tuple):
            raise ValueError("alphas_cumprod must be a tuple of floats: tuple(tensor.tolist())")
        if len(table) < 2:
            raise ValueError(f"alphas_cumprod needs at least 2 entries, got {len(table)}")
        if not all(math.isfinite(a) and 0 < a <= 1 for a in table):
            raise ValueError("alphas_cumprod must lie in (0, 1]: a zero terminal SNR has no B(1)")
        if any(later >= earlier for earlier, later in pairwise(table)):
            raise ValueError("alphas_cumprod must decrease strictly from data to noise")

    def __repr__(self) -> str:  # not a thousand floats in every log and error
        first, last = self.alphas_cumprod[0], self.alphas_cumprod[-1]
        return f"Tabulated({first:.6g}, …, {last:.6g}; n={self.n})"

    @classmethod
    def scaled_linear(
        cls, beta_start: float = 0.00085, beta_end: float = 0.012, n: int = 1000
    ) -> "Tabulated":
        """Stable Diffusion's table: √β_i linear in i."""
        return cls(_table(_ramp(math.sqrt(beta_start), math.sqrt(beta_end), n) ** 2))

    @classmethod
    def linear(cls, beta_start: float = 1e-4, beta_end: float = 0.02, n: int = 1000) -> "Tabulated":
        """DDPM's table: β_i linear in i."""
        return cls(_table(_ramp(beta_start, beta_end, n)))

    @property
    def n(self) -> int:
        """Number of training steps in the table."""
        return len(self.alphas_cumprod)

    def label(self, t: Tensor) -> Tensor:
        """What the network is conditioned on at time t: n·t − 1, in [0, n−1] at the nodes."""
        return t * self.n - 1

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self.log_decay(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        # expm1: near the data 1 − e^{−B} would lose every digit that B has.
        return torch.sqrt(-torch.expm1(-self.log_decay(t)))

    def sde(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(f, g²) = (−β/2, β)."""
        c, u = self._segment(t)
        beta = self.n * (c[..., 1] + u * (2 * c[..., 2] + 3 * u * c[..., 3]))
        return -beta / 2, beta

    def log_decay(self, t: Tensor) -> Tensor:
        """B(t) = ∫₀ᵗ β = −ln α², any shape."""
        c, u = self._segment(t)
        return c[..., 0] + u * (c[..., 1] + u * (c[..., 2] + u * c[..., 3]))

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # Nodes are equidistant, so the interval is an index, not a search.
        place = t * self.n
        index = place.detach().floor().clamp(0, self.n - 1)
        return self._on(t.device, t.dtype)[index.long()], place - index

    def _on(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        table = self._copies.get((device, dtype))
        if table is None:
            table = self._copies[(device, dtype)] = self._coefficients.to(device, dtype)
        return table

    @cached_property
    def _copies(self) -> dict[tuple[torch.device, torch.dtype], Tensor]:
        return {}

    @cached_property
    def _coefficients(self) -> Tensor:
        """Cubic coefficients [n, 4] in float64, one row an interval of unit length."""
        table = torch.tensor((1.0, *self.alphas_cumprod), dtype=torch.float64)
        values = -torch.log(table)
        slopes, secants = monotone_slopes(values), values.diff()
        start, end = slopes[:-1], slopes[1:]
        quadratic, cubic = 3 * secants - 2 * start - end, start + end - 2 * secants
        return torch.stack([values[:-1], start, quadratic, cubic], dim=-1)


def _ramp(start: float, end: float, n: int) -> Tensor:
    if not (n >= 2 and math.isfinite(start) and math.isfinite(end) and 0 < start <= end < 1):
        raise ValueError(f"need n >= 2 and 0 < beta_start <= beta_end < 1, got {n}, {start}, {end}")
    # float32, then a float32 running product: what diffusers computes, to the last bit.
    return torch.linspace(start, end, n, dtype=torch.float32)


def _table(betas: Tensor) -> tuple[float, ...]:
    return tuple(torch.cumprod(1 - betas, dim=0).tolist())
