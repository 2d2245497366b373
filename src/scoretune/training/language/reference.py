"""What the reference model says of every pair, worked out once and kept on disk.

Two numbers a side: the log-likelihood of the completion, rp(y) in nats, and the mean entropy of its
tokens over log V, in (0, 1]. Both depend on the reference, on the tokens and on where they are cut,
so a file is named after a digest of all three and holds it: any other file is made anew.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core.files import save_tensors
from scoretune.preference import dispersion, pair_entropy, phi_star

FORMAT = "1"
"""Of the files: to be raised when the meaning of a number in them changes."""
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True)
class ReferenceTerms:
    """Of n pairs: log-likelihoods [n] in nats, and mean token entropies over log V [n]."""

    chosen: Tensor
    rejected: Tensor
    entropy_chosen: Tensor
    entropy_rejected: Tensor

    @property
    def entropy(self) -> Tensor:
        """H̄(x) [n], the mean of both sides (arXiv 2410.04203, the authors' code)."""
        return pair_entropy(self.entropy_chosen, self.entropy_rejected)

    def phi_star(self) -> float:
        """1/mean(−log H̄), with which c(x) = −φ* log H̄(x) has mean 1 over these pairs."""
        return float(phi_star(self.entropy))

    def scale(self, phi: float) -> Tensor:
        """c(x) [n] by a φ* of these pairs or of others."""
        return dispersion(self.entropy, phi)


def digest(model: str, dataset: Any, *cut: object) -> str:
    """Of the reference's weights (`model`, their own digest), the tokens, and how they are cut."""
    sha = hashlib.sha256(f"{FORMAT} {model} {cut}".encode())
    tables = dataset.select_columns(list(COLUMNS)).with_format("arrow")
    for table in tables.iter(batch_size=1000):
        for name in COLUMNS:
            ids = table[name].combine_chunks()
            for part in (ids.value_lengths(), ids.flatten()):
                sha.update(part.to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return sha.hexdigest()


def write(folder: Path, key: str, terms: ReferenceTerms) -> None:
    """Keep the terms for `read` of the same key."""
    tensors = {name: value.float() for name, value in vars(terms).items()}
    save_tensors(_place(folder, key), tensors, {"key": key})


def read(folder: Path, key: str) -> ReferenceTerms | None:
    """The terms that were kept under this key. None where there are none, or where the file is of
    another key or cannot be read: then they are worked out again."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(_place(folder, key), "pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return ReferenceTerms(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, TypeError):
        return None


def _place(folder: Path, key: str) -> Path:
    return folder / f"{key[:24]}.safetensors"
