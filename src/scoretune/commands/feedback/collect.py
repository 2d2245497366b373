"""Samples of a model's prompts, drawn into a store.

Each sample has its own noise and its own key, so that whatever ends a collection it goes on where
it was, and nothing is there twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.data.prompts import check_storable
from scoretune.evaluate.samples import deployed_steps, drawn
from scoretune.models.catalog import remarks
from scoretune.models.recycled import inner
from scoretune.models.score_network import ScoreNetwork
from scoretune.policy import Policy
from scoretune.rollout import prior
from scoretune.training.run_folder import load, recorded

if TYPE_CHECKING:
    from scoretune.data.store.store import Store


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn: `steps` None for the model's own."""

    per_prompt: int = 4
    steps: int | None = None
    solver: str = "ddim"
    batch: int = 16
    seed: int = 0
    round: int = 0


@dataclass(frozen=True)
class Artist:
    """A model that draws, by its name and its weights' digest."""

    policy: Policy
    name: str
    weights: str
    steps: int
    how: Drawing
    remarks: tuple[str, ...] = ()

    def key(self, prompt: str, number: int) -> str:
        """What one sample of a prompt is known by: all that decides it."""
        how = self.how
        parts = (self.weights, self.policy.guidance, self.steps, how.solver, how.seed, how.round)
        text = "\n".join(map(str, (*parts, number, prompt)))
        return "collect:" + hashlib.sha256(text.encode()).hexdigest()

    def seed(self, prompt: str, number: int) -> int:
        """Of the noise in which one sample of a prompt begins."""
        text = f"{self.how.seed}\n{self.how.round}\n{number}\n{prompt}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")

    def draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Pictures [B, 3, H, W] in [0, 1] on the CPU, each from the noise of its seed."""
        policy, generators = self.policy, [torch.Generator().manual_seed(s) for s in seeds]
        noise = torch.cat([prior(policy, 1, generator) for generator in generators])
        first, how = generators[0], self.how
        images = drawn(policy, prompts, noise, first, steps=self.steps, solver=how.solver)
        if images.dim() != 4 or images.shape[1] != 3:
            raise UserError(f"{self.name!r} draws no pictures in colour: a store keeps such alone")
        return images


def artist(path: Path, how: Drawing) -> Artist:
    """The model of a run folder or a model folder. Raises UserError for one without prompts."""
    policy = load(path, distributed.device())
    network = inner(policy.backbone)
    if isinstance(network, ScoreNetwork) or not policy.backbone.encode([""]).summary.numel():
        raise UserError(f"{str(path)!r} knows no prompts: give a model that draws by them")
    guidance = recorded(path).model.guidance if (path / "run.json").exists() else None
    steps = how.steps or deployed_steps(policy.backbone)
    notes = remarks(policy, guidance)
    return Artist(policy, str(path), digest(policy), steps, how, notes)


def digest(policy: Policy) -> str:
    """Some of the weights of every layer, as one word: other weights have another."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(policy.backbone.network.state_dict().items()):
        some = tensor.detach().flatten()[:: max(1, tensor.numel() // SOME)]
        hashed.update(name.encode())
        hashed.update(some.to("cpu", torch.float32).numpy().tobytes())
    return hashed.hexdigest()[:16]


SOME = 256
"""Weights of a layer that are looked at."""


def collect(
    store: Store, artist: Artist, prompts: Sequence[str], watch: Callable[[int, int], None]
) -> dict[str, int | str]:
    """Draw what the store lacks of every prompt's samples. Says how many were drawn.

    Samples are drawn a batch at a time, the same batches however often it is stopped, so that the
    pictures are the same to the bit on one machine.
    """
    check_storable(prompts)
    work = [(prompt, number) for prompt in prompts for number in range(artist.how.per_prompt)]
    keys = [artist.key(*each) for each in work]
    there = {sample.key for sample in store.samples(source="model")}
    before = len(there.intersection(keys))
    done = 0
    for span in spans(len(work), artist.how.batch):
        if not there.issuperset(keys[span]):
            _add(store, artist, work[span], keys[span])
        done += len(keys[span])
        watch(done, len(work))
    counts = {"prompts": len(prompts), "drawn": len(work) - before, "there": before}
    return {"model": artist.name, "weights": artist.weights, **counts}


def _add(
    store: Store, artist: Artist, work: Sequence[tuple[str, int]], keys: Sequence[str]
) -> None:
    """Draw one batch, and put it into the store in one transaction."""
    seeds = [artist.seed(*each) for each in work]
    images = artist.draw([prompt for prompt, _ in work], seeds)
    settings = {"weights": artist.weights, "steps": artist.steps, "solver": artist.how.solver}
    settings |= {"guidance": artist.policy.guidance}
    with store.together():
        for (prompt, number), key, seed, image in zip(work, keys, seeds, images, strict=True):
            store.add_sample(
                prompt=prompt,
                picture=store.add_picture(image),
                model=artist.name,
                seed=seed,
                settings=settings | {"number": number},
                round=artist.how.round,
                key=key,
            )
