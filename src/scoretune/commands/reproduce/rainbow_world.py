"""What the parts about RainbowPO in the tiny language share: pairs of a seed, and learning on them.

On-policy pairs of the base model, its log-likelihoods and entropies of them, a run of AdamW on the
general loss (arXiv 2410.04203, R1 and R2), and what the model that comes out says.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scoretune.commands.reproduce.base import Numbers, kept_tensors
from scoretune.commands.reproduce.tiny_language import (
    TOPICS,
    Judged,
    Texts,
    TinyLM,
    base_model,
    judged,
    logps,
    mean_entropies,
    speak,
)
from scoretune.preference import (
    Preset,
    dispersion,
    pairwise_loss,
    phi_star,
    rejection_sample,
)

PAIRS, BATCH, RATE, UPDATES = 3000, 64, 5e-4, 200
DRAWN = 1000
"""Texts by which a model is measured."""
QUICK = {"pairs": 64, "updates": 2, "base updates": 4, "drawn": 40}
"""Of a rehearsal."""
CANDIDATES, TEMPERATURE = 5, 0.2
"""Of rejection sampling: completions of a prompt, and the temperature on their percentiles."""

Data = Literal["plain", "resampled", "longer"]
"""On-policy pairs; pairs drawn by rejection sampling; labels with a taste for length."""


@dataclass(frozen=True)
class World:
    """The base model of a seed, and pairs [n] with what it says of them."""

    base: TinyLM
    pairs: Judged
    reference: tuple[Tensor, Tensor]
    scale: Tensor


def world(seed: int, data: Data, folder: Path, quick: bool) -> World:
    """The world of a seed, from the files of `folder` where it was made before."""
    count = QUICK["pairs"] if quick else PAIRS
    model = TinyLM()
    made = kept_tensors(
        folder / f"base-{seed}.safetensors",
        lambda: dict(base_model(seed, QUICK["base updates"] if quick else 250).state_dict()),
    )
    model.load_state_dict(made)
    tensors = kept_tensors(
        folder / f"{data}-{seed}.safetensors", lambda: _drawn(model, seed, data, count)
    )
    pairs = Judged(
        Texts(tensors["topics"], tensors["chosen"]), Texts(tensors["topics"], tensors["rejected"])
    )
    entropy = (tensors["entropy_chosen"] + tensors["entropy_rejected"]) / 2
    scale = dispersion(entropy, phi_star(entropy))
    return World(model, pairs, (tensors["lp_chosen"], tensors["lp_rejected"]), scale)


def _drawn(model: TinyLM, seed: int, data: Data, count: int) -> dict[str, Tensor]:
    """Pairs of the model's own completions as tensors, with its terms of them."""
    generator = torch.Generator().manual_seed(1000 + seed)
    topics = torch.randint(TOPICS, (count,), generator=generator)
    if data == "resampled":
        first, second = _accepted(model, topics, generator)
    else:
        first, second = (speak(model, topics, generator) for _ in range(2))
    pairs = judged(first, second, 0.1 if data == "longer" else 0.0, generator)
    tensors = {"topics": topics}
    for side, texts in (("chosen", pairs.chosen), ("rejected", pairs.rejected)):
        with torch.no_grad():
            tensors[side], tensors[f"lp_{side}"] = texts.tokens, logps(model, texts)
        tensors[f"entropy_{side}"] = mean_entropies(model, texts)
    return tensors


def _accepted(model: TinyLM, topics: Tensor, generator: torch.Generator) -> tuple[Texts, Texts]:
    """Two of several completions of each topic, accepted by RSO on the percentiles of quality."""
    drawn = [speak(model, topics, generator) for _ in range(CANDIDATES)]
    tokens = torch.stack([texts.tokens for texts in drawn], 1)
    scores = torch.stack([texts.quality for texts in drawn], 1)
    kept = rejection_sample(scores, 2, TEMPERATURE, generator, percentile=True)
    sides = [tokens[torch.arange(len(topics)), kept[:, side]] for side in range(2)]
    return Texts(topics, sides[0]), Texts(topics, sides[1])


def learn(place: World, preset: Preset, beta: float, seed: int, quick: bool) -> TinyLM:
    """The base model after a run on the pairs."""
    model = TinyLM()
    model.load_state_dict(place.base.state_dict())
    generator = torch.Generator().manual_seed(2000 + seed)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, fused=True)
    chosen, rejected = place.pairs.chosen, place.pairs.rejected
    for _ in range(QUICK["updates"] if quick else UPDATES):
        rows = torch.randint(len(chosen.topics), (BATCH,), generator=generator)
        up, down = chosen.at(rows), rejected.at(rows)
        both = Texts(torch.cat([up.topics, down.topics]), torch.cat([up.tokens, down.tokens]))
        sides = logps(model, both).chunk(2)
        loss = pairwise_loss(
            *sides,
            *(terms[rows] for terms in place.reference),
            preset=preset,
            beta=beta,
            lengths=(up.lengths, down.lengths),
            scale=place.scale[rows] if preset.needs_scale else None,
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model


@torch.no_grad()
def measured(model: TinyLM, base: TinyLM, seed: int, quick: bool) -> Numbers:
    """Quality, share of wins over the base's texts, mean length and KL to the base, by draws."""
    generator = torch.Generator().manual_seed(3000 + seed)
    topics = torch.arange(TOPICS).repeat((QUICK["drawn"] if quick else DRAWN) // TOPICS)
    own, other = speak(model, topics, generator), speak(base, topics, generator)
    better = (own.quality - other.quality).sign()
    return {
        "quality": float(own.quality.mean()),
        "base": float(other.quality.mean()),
        "wins": float((better + 1).mean() / 2),
        "length": float(own.lengths.float().mean()),
        "kl": float((logps(model, own) - logps(base, own)).mean()),
    }


def file_name(arm: str) -> str:
    """Of the cells of an arm."""
    return "".join(c if c.isascii() and c.isalnum() else "_" for c in arm)
