"""Pairs from scored samples, as the optimal policy would have drawn them (RSO)."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.core import files
from scoretune.core.errors import UserError, user_errors
from scoretune.data import formats
from scoretune.data.pictures import is_picture
from scoretune.data.samples import Pool, read_pools
from scoretune.data.text_pairs import Text, plain
from scoretune.preference import best_and_worst, rejection_sample, tournament

PAIRINGS = ("extremes", "tournament")


@dataclass(frozen=True)
class Resampling:
    """How pairs are drawn: `candidates` of each pool are accepted (0: half of it, at least two) at
    a `temperature`, in units of the scores or of their `percentile` ranks in [0, 1]; the `pairing`
    sets the best against the worst of them, or lets them meet in a tournament."""

    temperature: float = 0.2
    candidates: int = 0
    percentile: bool = True
    pairing: str = "extremes"
    seed: int = 0

    def of(self, pool: Pool, generator: torch.Generator) -> tuple[Tensor, list[tuple[int, int]]]:
        """The accepted samples of a pool, and its pairs (winner, loser), by their places in it.

        Raises ValueError for a pool of too few."""
        scores = torch.tensor(pool.scores, dtype=torch.float64)
        k = self.candidates or max(2, len(scores) // 2)
        if k > len(scores):
            raise ValueError(
                f"{len(scores)} samples, and --candidates asks for {k}: lower it, or take the row "
                "out"
            )
        accepted = rejection_sample(
            scores, k, self.temperature, generator, percentile=self.percentile
        )
        if self.pairing == "tournament":
            return accepted, tournament(scores, accepted)
        return accepted, [best_and_worst(scores, accepted)]


@dataclass
class Resampled:
    """Pairs as rows of a table, and what became of the pools."""

    rows: list[dict[str, Any]]
    pools: int = 0
    equal: int = 0
    pool_score: float = 0.0
    accepted_score: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        gaps = [row["score_chosen"] - row["score_rejected"] for row in self.rows]
        return {
            "prompts": self.pools,
            "pairs": len(self.rows),
            "equal": self.equal,
            "mean_score_of_samples": self.pool_score / self.pools,
            "mean_score_of_accepted": self.accepted_score / self.pools,
            "mean_gap": sum(gaps) / len(gaps),
        }


def resample(source: str, how: Resampling, out: Path) -> Resampled:
    """The pairs of a table of scored samples; paths of pictures become relative to `out`.

    A pair of equal scores, or of equal samples, says nothing and is left out. Raises UserError for
    what cannot be read, and where no pair is left.
    """
    generator = torch.Generator().manual_seed(how.seed)
    result = Resampled([])
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    for pool in read_pools(source):
        with user_errors(f"{source!r}, {pool.place}"):
            accepted, pairs = how.of(pool, generator)
        scores = torch.tensor(pool.scores, dtype=torch.float64)
        result.pools += 1
        result.pool_score += float(scores.mean())
        result.accepted_score += float(scores[accepted].mean())
        for won, lost in pairs:
            if pool.scores[won] == pool.scores[lost] or pool.samples[won] == pool.samples[lost]:
                result.equal += 1
                continue
            result.rows.append(_row(pool, won, lost, folder, out.parent))
    if not result.rows:
        raise UserError(f"{source!r}: no two accepted samples differ in score: no pair is left")
    return result


def _row(pool: Pool, won: int, lost: int, folder: Path, to: Path) -> dict[str, Any]:
    def moved(sample: Text) -> Any:
        return os.path.relpath(folder / str(sample), to) if is_picture(sample) else plain(sample)

    return {
        "prompt": plain(pool.prompt),
        "chosen": moved(pool.samples[won]),
        "rejected": moved(pool.samples[lost]),
        "score_chosen": pool.scores[won],
        "score_rejected": pool.scores[lost],
    }


def check_out(out: Path) -> None:
    """Raise UserError for a file that cannot be written, before anything is read."""
    if out.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--out {str(out)!r} must end in .jsonl or .parquet")
    if out.exists():
        raise UserError(f"{str(out)!r} exists already: choose another --out")
    if not out.parent.is_dir():
        raise UserError(f"there is no folder {str(out.parent)!r}: make it, or choose another --out")
    if out.suffix == ".parquet":
        with formats.file_errors(str(out)):
            formats.parquet_library()


def write(rows: list[dict[str, Any]], out: Path) -> None:
    """The pairs as JSON lines, or as .parquet; whole or not at all."""
    if out.suffix == ".jsonl":
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        files.write_whole(out, "".join(lines))
        return
    import pyarrow

    with files.whole(out) as aside:
        formats.parquet_library().write_table(pyarrow.Table.from_pylist(rows), aside)
