"""What people said of real models' pictures, from published tables: ratings and rankings.

DSG's and TIFA's Likert ratings of five models' pictures of 160 prompts (arXiv 2310.18235,
2303.11897; TIFA's has automatic metrics beside them), and ImageReward's rankings of 466 prompts'
pictures (arXiv 2304.05977).
"""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DSG = "dsg_tifa160-likert-anns.csv.gz"
TIFA = "tifa_human_annotations_with_scores.json.gz"
RANKINGS = "imagereward_test_rankings.json.gz"
MODELS = {
    "mini-dalle": "mini_dalle",
    "sd1dot1": "stable_diffusion_v1_1",
    "sd1dot5": "stable_diffusion_v1_5",
    "sd2dot1": "stable_diffusion_v2_1",
    "vq-diffusion": "vq_diffusion",
}
"""The five models, as DSG and as TIFA call them."""
METRICS = (
    *("clipscore_vitb32", "tifa_vilt", "tifa_git-large", "tifa_ofa-large"),
    *("tifa_blip2-flant5xl", "tifa_mplug-large", "meteor", "bleu", "rouge", "spice"),
)
PAIRS = torch.combinations(torch.arange(len(MODELS)))
"""Of the models."""


@dataclass(frozen=True)
class Rated:
    """Ratings [n, 5] of the five models' pictures of a prompt by one person, and the prompts."""

    prompts: tuple[str, ...]
    ratings: Tensor

    def counts(self) -> Tensor:
        """Votes on each pair of models, [n, 10, 3]: for the first, for neither, for the second."""
        first, second = (self.ratings[:, column] for column in PAIRS.T)
        return torch.stack([first > second, first == second, first < second], -1).double()

    def of(self, prompts: Sequence[str]) -> Rated:
        """What was said of these prompts; of one that is named twice, twice."""
        rows = defaultdict(list)
        for row, prompt in enumerate(self.prompts):
            rows[prompt].append(row)
        places = [row for prompt in prompts for row in rows[prompt]]
        return Rated(tuple(self.prompts[i] for i in places), self.ratings[places])


def read_dsg(folder: Path) -> Rated:
    """DSG's: five workers a prompt, each on all five models; those who left one out are left
    out."""
    answers: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
    with gzip.open(folder / DSG, "rt", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            answers[row["source_id"], row["worker_id"]][row["t2i_model"]] = int(row["answer"])
    whole = {who: rated for who, rated in answers.items() if len(rated) == len(MODELS)}
    ratings = torch.tensor([[rated[model] for model in MODELS] for rated in whole.values()])
    return Rated(tuple(prompt for prompt, _ in whole), ratings)


def read_tifa(folder: Path) -> tuple[Rated, dict[str, Tensor]]:
    """TIFA's: two ratings a picture, of which the n-th ones are taken as one person's; and the
    metrics of the five models' pictures by prompt, [5, 10]."""
    with gzip.open(folder / TIFA, "rt", encoding="utf-8") as file:
        rows = json.load(file)
    prompts = list(dict.fromkeys(row["text_id"] for row in rows.values()))
    pictures = [[rows[f"{prompt}_{model}"] for model in MODELS.values()] for prompt in prompts]
    ratings = [[row["human_scores"][n] for row in five] for five in pictures for n in range(2)]
    metrics = {
        prompt: torch.tensor([[float(row[name]) for name in METRICS] for row in five])
        for prompt, five in zip(prompts, pictures, strict=True)
    }
    return Rated(tuple(p for p in prompts for _ in range(2)), torch.tensor(ratings)), metrics


def read_rankings(folder: Path) -> list[list[int]]:
    """ImageReward's: the ranks of a prompt's pictures, in the order of the file."""
    with gzip.open(folder / RANKINGS, "rt", encoding="utf-8") as file:
        return [row["ranking"] for row in json.load(file)]
