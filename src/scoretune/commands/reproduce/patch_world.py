"""The smallest world of pictures that prompts ask for: a patch of a named colour on the dark.

Pictures are 3×8×8 with one square of 4×4. A prompt names a colour, and the reward is by how much
that channel exceeds the mean of the other two on the brightest patch. The model is a network of
about 50,000 weights on a DDPM table of 100 steps, trained on pictures that follow their prompts
loosely, so that there is something to prefer. Fine-tuning trains a copy of every weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.commands.reproduce.base import Cell, Numbers, kept_tensors
from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates, grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import Process, Tabulated
from scoretune.policy import Adapter, Policy
from scoretune.rollout import deterministic, prior
from scoretune.training.engine import TorchEngine
from scoretune.training.hooks import Decay
from scoretune.training.loop import train
from scoretune.training.objectives.matching import Matching
from scoretune.training.sources.dataset import Dataset

SIDE, PATCH, WIDTH = 8, 4, 40
PROMPTS = ("red", "green", "blue")
PICTURES, UPDATES, STEPS = 6000, 1500, 25
Reward = Callable[[Tensor, Sequence[str]], Tensor]


def pictures(count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
    """Pictures [count, 3, 8, 8] in [0, 1] and their prompts. The named channel of a square is
    uniform on [0.3, 1], the others on [0, 0.75]; the background on [0, 0.1]."""
    labels = torch.randint(3, (count,), generator=generator)
    colour = 0.75 * torch.rand(count, 3, generator=generator)
    named = 0.3 + 0.7 * torch.rand(count, generator=generator)
    colour.scatter_(1, labels[:, None], named[:, None])
    images = 0.1 * torch.rand(count, 3, SIDE, SIDE, generator=generator)
    corner = torch.randint(SIDE - PATCH + 1, (count, 2), generator=generator)
    for image, (row, column), shade in zip(images, corner.tolist(), colour, strict=True):
        image[:, row : row + PATCH, column : column + PATCH] = shade[:, None, None]
    return images, [PROMPTS[label] for label in labels.tolist()]


def brightest(images: Tensor) -> tuple[Tensor, Tensor]:
    """The mean colour [B, 3] of the brightest patch of 4×4, and which patch that is, [B] of 25."""
    means = F.avg_pool2d(images, PATCH, 1).flatten(2)
    which = means.sum(1).argmax(1)
    return means.gather(2, which[:, None, None].expand(-1, 3, 1)).squeeze(2), which


def reward(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """By how much the named channel exceeds the mean of the others, [B] in [−1, 1]."""
    colour, _ = brightest(images)
    named = torch.tensor([PROMPTS.index(prompt) for prompt in prompts], device=images.device)
    own = colour.gather(1, named[:, None]).squeeze(1)
    return own - (colour.sum(1) - own) / 2


# ---------------------------------------------------------------------------------- the model


class Patches(nn.Module):
    """Convolutions and one block of attention, told the time and the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.leave = nn.Conv2d(WIDTH, 3, 3, padding=1)
        self.time, self.label = nn.Linear(16, WIDTH), nn.Linear(3, WIDTH)
        self.before = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.after = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.mix, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.place = nn.Parameter(torch.zeros(SIDE * SIDE, WIDTH))

    def forward(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        waves = torch.pi * t[:, None] * 2 ** torch.arange(8, device=x.device)
        context = self.time(torch.cat([waves.sin(), waves.cos()], 1)) + self.label(tokens[:, 0])
        hidden = self.enter(x)
        hidden = hidden + self.before(F.silu(_normed(hidden) + context[:, :, None, None]))
        rows = F.layer_norm(hidden.flatten(2).mT, (WIDTH,)) + self.place
        query, key, value = self.mix(rows).chunk(3, dim=-1)
        rows = self.back(F.scaled_dot_product_attention(query, key, value))
        hidden = hidden + rows.mT.reshape(hidden.shape)
        hidden = hidden + self.after(F.silu(_normed(hidden) + context[:, :, None, None]))
        return cast(Tensor, self.leave(F.silu(_normed(hidden))))


def _normed(hidden: Tensor) -> Tensor:
    return F.group_norm(hidden, 4)


class Copied(Adapter):
    """A frozen network and a copy of it that is trained instead."""

    def __init__(self, frozen: nn.Module) -> None:
        super().__init__()
        self.trained = copy.deepcopy(frozen).requires_grad_(True)
        self.frozen = frozen.requires_grad_(False)

    def forward(self, *inputs: Tensor) -> Tensor:
        return cast(Tensor, (self.frozen if self.disable_adapters else self.trained)(*inputs))


class World:
    """The backbone: states are pictures in [−1, 1], and the network predicts their noise."""

    prediction = estimates.noise
    shape = (3, SIDE, SIDE)

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    @property
    def process(self) -> Process:
        return _table()

    def encode(self, prompts: Sequence[str]) -> Condition:
        rows = [[float(prompt == name) for name in PROMPTS] for prompt in prompts]
        return Condition(torch.tensor(rows)[:, None], torch.zeros(1, 3))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, self.network(x, t, tokens))

    def decode(self, x0: Tensor) -> Tensor:
        return (x0 / 2 + 0.5).clamp(0, 1)

    def embed(self, images: Tensor) -> Tensor:
        return images * 2 - 1


@cache
def _table() -> Tabulated:
    betas = torch.linspace(1e-3, 0.12, 100, dtype=torch.float64)
    return Tabulated(tuple((1 - betas).cumprod(0).tolist()))


def base(folder: Path, updates: int = UPDATES) -> World:
    """The pretrained model, trained once by whoever needs it first and kept below `folder`."""
    network = Patches()
    weights = kept_tensors(folder / f"patches-{updates}.safetensors", lambda: _pretrained(updates))
    network.load_state_dict(weights)
    return World(network.requires_grad_(False))


def _pretrained(updates: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    world = World(Patches())
    images, prompts = pictures(PICTURES, torch.Generator().manual_seed(0))
    source = Dataset(
        world.embed(images), world.encode(prompts), torch.ones(len(images)), 64, seed=0
    )
    optimiser = torch.optim.Adam(world.network.parameters(), 2e-3)
    train(
        source,
        Matching(Policy(world, GDDIM(1.0))),
        optimiser,
        TorchEngine(),
        updates=range(updates),
        hooks=[Decay(optimiser, 2e-3, updates)],
    )
    return {name: weight.detach().clone() for name, weight in world.network.state_dict().items()}


def cells_of(
    function: Callable[..., Numbers], labels: Iterable[str], seeds: int, scale: int
) -> list[Cell]:
    """A run of each arm and seed, shortened by `scale`, that finds the base model in its folder."""
    return [
        Cell(
            f"{label}-{seed}",
            function,
            {"label": label, "seed": seed, "scale": scale},
            keeps_files=True,
        )
        for label in labels
        for seed in range(seeds)
    ]


def trainable(world: World) -> Policy:
    """A policy that begins as the pretrained model, which stays its reference."""
    return Policy(World(Copied(copy.deepcopy(world.network))), GDDIM(1.0))


@torch.no_grad()
def drawn(policy: Policy, prompts: Sequence[str], generator: torch.Generator) -> Tensor:
    """Pictures through DDIM on 25 uniform steps."""
    times = grids.uniform(policy.backbone.process, STEPS)
    noise = prior(policy, len(prompts), generator)
    return policy.decode(deterministic(policy, policy.encode(prompts), times, noise))


def compared(policy: Policy, seed: int, per_prompt: int) -> tuple[Numbers, Numbers]:
    """The base model's reward; and the policy's, how often its picture is better from the same
    noise (ties count half), and how far pixels have moved."""
    prompts = [prompt for prompt in PROMPTS for _ in range(per_prompt)]

    def images() -> Tensor:
        return drawn(policy, prompts, torch.Generator().manual_seed(1_000 + seed))

    with policy.reference():
        base = images()
    tuned = images()
    old, new = (reward(each, prompts) for each in (base, tuned))
    shift = float((tuned - base).abs().mean())
    return {"base": float(old.mean())}, {
        "reward": float(new.mean()),
        "wins": wins(new, old),
        "shift": shift,
    }


def wins(new: Tensor, old: Tensor) -> float:
    """The share of scores [B] that exceed others; equal ones count half."""
    return float(((new > old).float() + (new == old).float() / 2).mean())
