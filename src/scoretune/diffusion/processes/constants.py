"""What processes share: a linear β, and constants that must be finite and positive."""

import math
from dataclasses import astuple, dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LinearBeta:
    """β(t) = β_min + (β_max − β_min) t on [0, 1], and its integral B."""

    beta_min: float
    beta_max: float

    horizon = 1.0

    def __post_init__(self) -> None:
        low, high = self.beta_min, self.beta_max
        if not (math.isfinite(low) and math.isfinite(high) and 0 < low <= high):
            raise ValueError(f"need finite 0 < beta_min <= beta_max, got {low} and {high}")

    def beta(self, t: Tensor) -> Tensor:
        """β(t), any shape."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def log_decay(self, t: Tensor) -> Tensor:
        """B(t) = ∫₀ᵗ β."""
        return t * (self.beta_min + (self.beta_max - self.beta_min) * t / 2)

    @property
    def whole_decay(self) -> float:
        """B(1)."""
        return (self.beta_min + self.beta_max) / 2

    def time_of_decay(self, decay: Tensor) -> Tensor:
        """The t with B(t) = decay: the positive root, written without a cancellation."""
        slope = self.beta_max - self.beta_min
        return 2 * decay / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * decay))


def check_positive(process: object) -> None:
    """Refuse a process, a dataclass of numbers, with a constant that is not finite and > 0."""
    values = astuple(process)  # type: ignore[call-overload]
    if not all(math.isfinite(value) and value > 0 for value in values):
        name = type(process).__name__
        raise ValueError(f"{name} needs finite constants > 0, got {process}")
