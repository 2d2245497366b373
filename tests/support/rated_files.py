"""Tables of ratings and rankings in the form of DSG's, TIFA's and ImageReward's, of a known law."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import numpy as np

from scoretune.commands.reproduce.published_ratings import DSG, METRICS, MODELS, RANKINGS, TIFA

WORTH = (-1.2, -0.6, 0.0, 0.6, 1.2)
"""Of the five models, in their order."""


def folder(where: Path, prompts: int = 40) -> Path:
    """Ratings 1 to 5 of worth, the picture's own quality and noise; the first metric is worth and
    quality, the others are noise. Rankings in a random order."""
    where.mkdir()
    rng = np.random.default_rng(0)
    quality = np.array(WORTH) + 0.5 * rng.normal(size=(prompts, len(WORTH)))

    def rating() -> list[list[int]]:
        noisy = 3 + quality + 0.5 * rng.normal(size=quality.shape)
        rounded: list[list[int]] = noisy.round().clip(1, 5).astype(int).tolist()
        return rounded

    people = [rating() for _ in range(5)]
    with gzip.open(where / DSG, "wt", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["source_id", "worker_id", "t2i_model", "answer"])
        for worker, rated in enumerate(people[:3]):
            for prompt, five in enumerate(rated):
                for model, answer in zip(MODELS, five, strict=True):
                    table.writerow([f"p{prompt}", worker, model, answer])
    rows = {
        f"p{prompt}_{model}": {"text_id": f"p{prompt}"}
        | {"human_scores": [rated[prompt][m] for rated in people[3:]]}
        | {name: float(rng.normal()) for name in METRICS}
        | {METRICS[0]: float(quality[prompt, m])}
        for prompt in range(prompts)
        for m, model in enumerate(MODELS.values())
    }
    with gzip.open(where / TIFA, "wt", encoding="utf-8") as file:
        json.dump(rows, file)
    rankings = [{"ranking": rng.integers(1, 6, size=4 + p % 3).tolist()} for p in range(prompts)]
    with gzip.open(where / RANKINGS, "wt", encoding="utf-8") as file:
        json.dump(rankings, file)
    return where
