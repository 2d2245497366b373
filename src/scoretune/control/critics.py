"""Critics fitted to the paths of the acting policy, by three martingale conditions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from scoretune.control.sde import quadratic
from scoretune.core.errors import UserError
from scoretune.rl import clstd, ctd0, martingale_loss, returns_to_go
from scoretune.shapes import check_rank, check_shape


@dataclass(frozen=True)
class Outcomes:
    """What a critic learns from. V = fixed + gate·critic(inputs).

    `inputs` [K, N+1, d] are states, with time where the horizon is finite; `rates` [K, N] are
    r + γ·entropy; `dt` [N]. With a finite horizon `fixed` [K, N+1] is the terminal reward h(x) and
    `gate` [N+1] falls from 1 to 0, so that V(T, ·) = h exactly; otherwise they are 0 and 1.
    """

    inputs: Tensor
    rates: Tensor
    dt: Tensor
    discount: float
    fixed: Tensor
    gate: Tensor

    def __post_init__(self) -> None:
        check_rank(2, 2, rates=self.rates)
        check_rank(3, 3, inputs=self.inputs)
        paths, steps = self.rates.shape
        check_shape((paths, steps + 1, self.inputs.shape[2]), inputs=self.inputs)
        check_shape((paths, steps + 1), fixed=self.fixed)
        check_shape((steps,), dt=self.dt)
        check_shape((steps + 1,), gate=self.gate)


class Critic(Protocol):
    """Fitted anew, or a little further, to the outcomes of every iteration."""

    def fit(self, outcomes: Outcomes) -> None: ...

    def __call__(self, inputs: Tensor) -> Tensor:
        """[..., d] -> [...]: the learned part of V."""


def values(critic: Critic, outcomes: Outcomes) -> Tensor:
    """V along the paths, [K, N+1]."""
    return outcomes.fixed + outcomes.gate * critic(outcomes.inputs)


class CLSTD:
    """V = features·w with w solving Σ ξ_k δ_k(w) = 0 on the paths of one iteration."""

    def __init__(self, features: Callable[[Tensor], Tensor] = quadratic) -> None:
        self.features = features
        self.weights: Tensor | None = None

    def fit(self, outcomes: Outcomes) -> None:
        features = self.features(outcomes.inputs) * outcomes.gate.unsqueeze(-1)
        self.weights = clstd(
            features, outcomes.rates, outcomes.dt, outcomes.discount, fixed=outcomes.fixed
        )

    def __call__(self, inputs: Tensor) -> Tensor:
        if self.weights is None:
            raise ValueError("this critic has not been fitted")
        return self.features(inputs) @ self.weights


class Quadratic(nn.Module):
    """w·(1, x_i, x_i x_j): the quadratic value as a network, for the incremental critics."""

    def __init__(self, dims: int = 1) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(1 + dims + dims * (dims + 1) // 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return quadratic(inputs) @ self.weights


class _Network:
    """A network's parameters on their way; each iteration goes on from the last."""

    def __init__(
        self, network: nn.Module, optimizer: torch.optim.Optimizer | None = None, sweeps: int = 20
    ) -> None:
        if sweeps < 1:
            raise UserError(f"a critic needs at least 1 sweep an iteration, got {sweeps}")
        self.network = network
        self.optimizer = optimizer or torch.optim.Adam(network.parameters(), lr=1e-2)
        self.sweeps = sweeps

    def __call__(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.network(inputs)
        if output.shape == (*inputs.shape[:-1], 1):
            return output.squeeze(-1)
        if output.shape != inputs.shape[:-1]:
            raise UserError(
                f"the critic must map {list(inputs.shape)} to one number each, "
                f"got {list(output.shape)}"
            )
        return output

    def descend(self, loss: Callable[[], Tensor]) -> None:
        for _ in range(self.sweeps):
            self.optimizer.zero_grad()
            loss().backward()
            self.optimizer.step()


class MartingaleLoss(_Network):
    """A network fitted to discounted returns: `sweeps` steps on the martingale loss.

    ½E∫(e^{−ρt}(G_t − V))²dt. Paths of an infinite horizon are cut; what comes after the cut counts
    as the network says before the fit.
    """

    def fit(self, outcomes: Outcomes) -> None:
        with torch.no_grad():
            end = values(self, outcomes)[..., -1]
        target = returns_to_go(outcomes.rates, end, outcomes.dt, outcomes.discount)
        starts = outcomes.dt.cumsum(0) - outcomes.dt
        width = outcomes.dt * torch.exp(-2 * outcomes.discount * starts)
        self.descend(lambda: martingale_loss(values(self, outcomes)[..., :-1], target, width))


class CTD0(_Network):
    """A network moved by CTD(0): `sweeps` semi-gradient steps on the batch."""

    def fit(self, outcomes: Outcomes) -> None:
        rates, dt, discount = outcomes.rates, outcomes.dt, outcomes.discount
        self.descend(lambda: ctd0(values(self, outcomes), rates, dt, discount))
