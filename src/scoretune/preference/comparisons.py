"""Scores of things from votes on pairs of them, by maximum likelihood, with standard errors.

The negative log-likelihood of the votes, −Σ n·ln P(outcome | r_i − r_j) + ½λ|r|², is least where
Newton's method ends; the inverse of its Hessian there is the covariance of the estimate (Bradley
and Terry, Biometrika 39, 1952; Davidson, JASA 65, 1970; MacKay's Laplace approximation with λ).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.preference.ties import TieModel, vote_loss
from scoretune.shapes import check_shape

TOLERANCE, STEPS = 1e-10, 100


@dataclass(frozen=True)
class VoteFit:
    """Estimates [P], their `covariance` [P, P], and the tie parameter with its standard error;
    `loss` is the negative log-likelihood of all votes."""

    estimates: Tensor
    covariance: Tensor
    loss: float
    tie: float | None = None
    tie_error: float | None = None

    @property
    def errors(self) -> Tensor:
        """Standard errors [P]."""
        errors: Tensor = self.covariance.diagonal().sqrt()
        return errors

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """So many vectors of estimates from their Gaussian law, [count, P]: an ensemble.

        By the symmetric root, which does not depend on the basis that is taken for equal variances.
        """
        values, vectors = torch.linalg.eigh(self.covariance)
        root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.T
        noise = torch.randn(count, len(self.estimates), generator=generator, dtype=torch.float64)
        drawn: Tensor = self.estimates + noise @ root
        return drawn


def fit_scores(
    pairs: Tensor, counts: Tensor, items: int, *, model: TieModel = "davidson", ridge: float = 1e-2
) -> VoteFit:
    """Scores of `items` things from votes on `pairs` [n, 2] of them, `counts` [n, 3] for the first,
    for a tie and for the second.

    Only differences of scores are known from votes, and the `ridge` λ > 0 makes their mean 0. It is
    a Gaussian prior of variance 1/λ, and a thing that won every vote is finite by it.
    """
    check_shape((len(counts), 2), pairs=pairs)
    if pairs.numel() and not 0 <= int(pairs.min()) <= int(pairs.max()) < items:
        raise ValueError(f"pairs must name things from 0 to {items - 1}")
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}: votes say nothing of the mean score")
    design = torch.zeros(len(pairs), items, dtype=torch.float64)
    places = torch.arange(len(pairs))
    design[places, pairs[:, 0]] += 1
    design[places, pairs[:, 1]] -= 1
    return fit_votes(design, counts, model=model, ridge=ridge)


def fit_scale(gaps: Tensor, counts: Tensor, *, model: TieModel = "davidson") -> VoteFit:
    """The one factor a by which gaps [n] explain votes best, P(outcome | a·gap).

    It is 1 for scores on the scale of the votes, and 1/τ where raters see a gap through logistic
    noise of scale τ.
    """
    return fit_votes(gaps[:, None], counts, model=model)


def fit_votes(
    design: Tensor, counts: Tensor, *, model: TieModel = "davidson", ridge: float = 0.0
) -> VoteFit:
    """Weights β [P] of the gaps Xβ, `design` X [n, P], from votes `counts` [n, 3].

    Raises ValueError where the votes do not determine them, as when all of them agree with the
    order of the gaps and there is no ridge.
    """
    check_shape((len(design), 3), counts=counts)
    design, counts = design.double(), counts.double()
    with_ties = model != "bradley_terry"
    if with_ties and not 0 < float(counts[:, 1].sum()) < float(counts.sum()):
        raise ValueError(
            f"{model}'s tie parameter wants ties and choices among the votes: take bradley_terry"
        )
    parameters = torch.zeros(design.shape[1] + with_ties, dtype=torch.float64)
    problem = _Votes(design, counts, model, ridge)
    value, slope, curvature = problem.expanded(parameters)
    for _ in range(STEPS):
        step = -torch.linalg.lstsq(_convex(curvature), slope[:, None]).solution[:, 0]
        decrement = float(-(step @ slope))
        if decrement < TOLERANCE * (1 + abs(value)):
            return problem.result(parameters + step)  # exact by now: the error squares
        size = min(1.0, 5.0 / float(step.abs().max()))
        while problem.value(parameters + size * step) > value - 0.25 * size * decrement:
            size /= 2
            if size < 1e-10:
                raise ValueError("the fit of the votes does not settle: give a ridge")
        parameters = parameters + size * step
        value, slope, curvature = problem.expanded(parameters)
    raise ValueError("these votes determine no finite scale: all agree; give more, or a ridge")


@dataclass(frozen=True)
class _Votes:
    """The negative log-posterior of β and, with ties, of the logarithm of the tie parameter."""

    design: Tensor
    counts: Tensor
    model: TieModel
    ridge: float

    def value(self, parameters: Tensor) -> float:
        weights, log_tie = self._split(parameters)
        loss = vote_loss(self.design @ weights, self.counts, self.model, log_tie.exp())
        return float(loss.sum() + self._prior(weights))

    def expanded(self, parameters: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient and Hessian, by automatic differentiation of each row's two numbers."""
        weights, log_tie = self._split(parameters)
        with torch.enable_grad():
            gap = (self.design @ weights).requires_grad_()
            log_ties = log_tie.expand_as(gap).clone().requires_grad_()
            loss = vote_loss(gap, self.counts, self.model, log_ties.exp()).sum()
            used = [gap] if self.model == "bradley_terry" else [gap, log_ties]
            slopes = torch.autograd.grad(loss, used, create_graph=True)
            second = [torch.autograd.grad(s.sum(), used, retain_graph=True) for s in slopes]
        columns = [self.design] + [torch.ones(len(gap), 1, dtype=torch.float64)] * (len(used) - 1)
        slope = torch.cat([c.T @ s.detach() for c, s in zip(columns, slopes, strict=True)])
        rows = [
            torch.cat([a.T @ (h[:, None] * b) for b, h in zip(columns, line, strict=True)], 1)
            for a, line in zip(columns, second, strict=True)
        ]
        curvature, size = torch.cat(rows), len(weights)
        slope[:size] += self.ridge * weights
        curvature[:size, :size] += self.ridge * torch.eye(size, dtype=torch.float64)
        return float(loss.detach() + self._prior(weights)), slope, curvature

    def result(self, parameters: Tensor) -> VoteFit:
        value, _, curvature = self.expanded(parameters)
        weights, log_tie = self._split(parameters)
        if not bool(torch.linalg.eigvalsh(curvature)[0] > 1e-9):
            raise ValueError("these votes do not determine every score: give a ridge")
        covariance, size = torch.linalg.inv(curvature), len(weights)
        value -= float(self._prior(weights))
        if self.model == "bradley_terry":
            return VoteFit(weights, covariance, value)
        tie = math.exp(float(log_tie))
        error = tie * float(covariance[size, size]) ** 0.5  # by the delta method
        return VoteFit(weights, covariance[:size, :size], value, tie, error)

    def _split(self, parameters: Tensor) -> tuple[Tensor, Tensor]:
        if self.model == "bradley_terry":
            return parameters, torch.zeros((), dtype=torch.float64)
        return parameters[:-1], parameters[-1]

    def _prior(self, weights: Tensor) -> Tensor:
        return 0.5 * self.ridge * weights @ weights


def _convex(curvature: Tensor) -> Tensor:
    """The Hessian, lifted where it is not positive (far from the minimum, in the tie parameter)."""
    least = float(torch.linalg.eigvalsh(curvature)[0])
    size = torch.eye(len(curvature), dtype=curvature.dtype)
    return curvature + max(0.0, 1e-9 - 2 * least) * size
