"""The base of the few-step experiment: a model of digits, a reader of them, and the distance.

Both are trained once by whoever needs them first, and kept beside the experiment's cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scoretune.commands.reproduce.base import kept_tensors
from scoretune.commands.reproduce.digits import (
    DigitReader,
    Digits,
    Handwriting,
    handwriting,
    train_reader,
)
from scoretune.core.conditions import Condition
from scoretune.core.records import Hook
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.evaluate.metrics import frechet_distance
from scoretune.policy import Policy
from scoretune.rollout import deterministic, prior, rollout
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Average, Decay
from scoretune.training.loop import train
from scoretune.training.objectives.matching import Matching
from scoretune.training.sources.dataset import Dataset


@dataclass(frozen=True)
class Budget:
    """How much of everything."""

    pretraining: int = 14_000
    rounds: int = 400
    evaluations: int = 10
    batch: int = 64
    samples: int = 2_000
    reading: int = 1_500


FULL, QUICK = (
    Budget(),
    Budget(pretraining=8, rounds=4, evaluations=2, batch=8, samples=100, reading=30),
)


def pretrain(data: Handwriting, updates: int, progress: Hook | None = None) -> Digits:
    """A base by denoising score matching: Adam 1e-3 to 0 in batches of 128, weights averaged."""
    torch.manual_seed(0)
    model = Digits()
    x0 = model.embed(data.images)
    source = Dataset(x0, Condition.none(len(x0)), torch.ones(len(x0)), 128, seed=0)
    optimiser = torch.optim.Adam(model.network.parameters(), 1e-3)
    average = Average(model.network, 0.998)
    hooks: list[Hook] = [average, Decay(optimiser, 1e-3, updates)]
    train(
        source,
        Matching(policy_of(model)),
        optimiser,
        TorchEngine(),
        updates=range(updates),
        hooks=hooks + ([progress] if progress else []),
    )
    model.network.load_state_dict(average.mean)
    return model


def prepared(folder: Path, budget: Budget) -> tuple[Digits, DigitReader]:
    """Base and reader: trained by whoever comes first, and kept in `folder`."""

    def trained() -> dict[str, Tensor]:
        training = handwriting()[0]
        base = pretrain(training, budget.pretraining).network
        reader = train_reader(training, budget.reading)
        return nn.ModuleDict({"base": base, "reader": reader}).state_dict()

    model, reader = Digits(), DigitReader()
    both = nn.ModuleDict({"base": model.network, "reader": reader})
    both.load_state_dict(kept_tensors(folder / f"base-{budget.pretraining}.safetensors", trained))
    return model, reader


@dataclass
class Measure:
    """Fréchet distances of a policy's samples to the digits it learned from, and to others."""

    reader: DigitReader
    samples: int

    def __post_init__(self) -> None:
        self.training, self.held_out = (self.reader.look(h.images) for h in handwriting())

    def __call__(self, policy: Policy, steps: int, solver: str | None = None) -> dict[str, float]:
        """Always from the same noise; through the policy's kernel, or an ODE solver."""
        generator = torch.Generator().manual_seed(12345)
        times = grids.uniform(policy.backbone.process, steps)
        noise, condition = prior(policy, self.samples, generator), Condition.none(self.samples)
        if solver is None:
            x0 = rollout(policy, condition, times, generator, noise).final
        else:
            x0 = deterministic(policy, condition, times, noise, solver)
        features = self.reader.look(policy.backbone.decode(x0))
        return {
            "known": frechet_distance(features, self.training),
            "held_out": frechet_distance(features, self.held_out),
        }


def policy_of(model: Digits) -> Policy:
    """The base's ancestral sampler."""
    return Policy(model, GDDIM(1.0))
