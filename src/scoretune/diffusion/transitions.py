"""The Gaussian law of one step of a sampler, and the four numbers that make it linear.

Shapes: states [B, *S], numbers of a step [B] or, for all steps of a grid, [N, B] and [N, 1].
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from scoretune.diffusion.estimates import Estimate
from scoretune.diffusion.noise import randn
from scoretune.shapes import check_rank, check_same_shape


@dataclass(frozen=True)
class Transition:
    """The law N(mean, std²) of x_next: mean [B, *S], std broadcastable to it, usually [B, 1, …].

    Log-probabilities, divergences and entropies are **sums** over dimensions, [B], computed in
    float32 or wider.
    """

    mean: Tensor
    std: Tensor
    noisy: bool = False
    """Whether it is known that std is nowhere 0: else the device is asked, and waited for."""

    def __post_init__(self) -> None:
        shape, wanted = self.std.shape, self.mean.shape
        fits = len(shape) == len(wanted) and shape[:1] == wanted[:1]
        if not (fits and all(a in (1, b) for a, b in zip(shape, wanted, strict=True))):
            raise ValueError(
                f"std {list(shape)} must have the dimensions of mean {list(wanted)}, each of the "
                "same size or, after the first, of 1"
            )

    @property
    def deterministic(self) -> Tensor:
        """[B] bool: the sample's step has no noise, hence no log-probability."""
        return (self.std == 0).flatten(1).all(1)

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """x_next = mean + std·ξ; a CPU generator serves any device, for portable seeds."""
        return self.draw_with(fresh(self.mean, generator))

    def draw_with(self, noise: Tensor) -> Tensor:
        """x_next for a given standard normal ξ [B, *S]."""
        check_same_shape(mean=self.mean, noise=noise)
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, x: Tensor) -> Tensor:
        """log N(x; mean, std²) summed over dimensions, [B]. Differentiable in mean, std and x."""
        check_same_shape(mean=self.mean, x=x)
        mean, std = wide(self.mean), self.noisy_std("log-probability")
        away = wide(x) - mean
        if std.numel() == len(std):  # one number a sample: divide what is summed already
            std, flat = std.flatten(), away.flatten(1)
            constant = (torch.log(std) + math.log(2 * math.pi) / 2) * flat.shape[1]
            return (flat * flat).sum(1) / (-2 * std**2) - constant
        z = away / std
        return _sum(-(z**2) / 2 - torch.log(std) - math.log(2 * math.pi) / 2)

    def kl(self, other: "Transition") -> Tensor:
        """KL(self ‖ other) summed over dimensions, [B].

        ½[(m − m₂)²/s₂² + (s/s₂)² − 1] − ln(s/s₂); with equal stds just ‖m − m₂‖²/(2s²).
        """
        check_same_shape(mean=self.mean, other_mean=other.mean)
        std, other_std = self.noisy_std("KL"), other.noisy_std("KL")
        ratio = std / other_std
        shift = (wide(self.mean) - wide(other.mean)) / other_std
        return _sum((shift**2 + ratio**2 - 1) / 2 - torch.log(ratio))

    def entropy(self) -> Tensor:
        """½ln(2πe) + ln std, summed over dimensions, [B]."""
        std = self.noisy_std("entropy").expand(self.mean.shape)
        return _sum(torch.log(std) + (1 + math.log(2 * math.pi)) / 2)

    def noisy_std(self, what: str) -> Tensor:
        """The std in float32 or wider. Raises ValueError where it is 0: there is no `what`."""
        if not self.noisy and bool((self.std == 0).any()):
            raise ValueError(
                f"this step is deterministic (std 0) and has no {what}: "
                "use a noise scale above 0 at this time, or leave the step out"
            )
        return wide(self.std)


@dataclass(frozen=True)
class Weights:
    """A linear step, x_next = state·x + data·x̂ + noise·ε̂ + std·ξ: numbers of the shape of the
    times, one step's [B] or a whole grid's [N, B]."""

    state: Tensor
    data: Tensor
    noise: Tensor
    std: Tensor

    def over(self, x: Tensor) -> "Weights":
        """The same with dimensions of size 1 for those of x [B, *S], so that they multiply it."""
        return Weights(*(broadcast(numbers, x) for numbers in self._numbers))

    def each(self) -> list["Weights"]:
        """The numbers of a grid, step by step."""
        rows = (numbers.unbind() for numbers in self._numbers)
        return [Weights(*step) for step in zip(*rows, strict=True)]

    def mean(self, x: Tensor, estimate: Estimate) -> Tensor:
        """state·x + data·x̂ + noise·ε̂, [B, *S]; the weights must be `over` x already."""
        check_same_shape(x=x, data=estimate.data)
        towards = torch.addcmul(self.state * x, self.data, estimate.data)
        return torch.addcmul(towards, self.noise, estimate.noise)

    def transition(self, x: Tensor, estimate: Estimate) -> Transition:
        """The law of the next state; the weights must be `over` x already."""
        return Transition(self.mean(x, estimate), self.std)

    def noisy(self) -> list[bool]:
        """Whether each step of a grid has any noise."""
        return [bool(row) for row in (self.std != 0).flatten(1).any(1).tolist()]

    @property
    def _numbers(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.state, self.data, self.noise, self.std


def broadcast(numbers: Tensor, x: Tensor) -> Tensor:
    """Numbers [..., B] or [..., 1] with a dimension of 1 for each of *S more, so that they multiply
    x [B, *S], in x's wide dtype."""
    check_rank(1, x=x, numbers=numbers)
    if numbers.shape[-1] not in (1, len(x)):
        raise ValueError(
            f"numbers {list(numbers.shape)} must have as many columns as x {list(x.shape)} has "
            "samples, or one"
        )
    dtype = torch.promote_types(x.dtype, torch.float32)
    return numbers.to(device=x.device, dtype=dtype).reshape(*numbers.shape, *(1,) * (x.dim() - 1))


def fresh(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard normal noise like x, from the generator's device to x's."""
    device = x.device if generator is None else generator.device
    return randn(x.shape, generator, device=device, dtype=x.dtype).to(x.device)


def wide(x: Tensor) -> Tensor:
    """x in float32 or wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def squared_norm(x: Tensor) -> Tensor:
    """‖x‖² of each sample of x [B, *S], [B], in float32 or wider."""
    return _sum(wide(x) ** 2)


def _sum(per_dimension: Tensor) -> Tensor:
    return per_dimension.flatten(1).sum(1)
