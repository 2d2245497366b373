"""Finished cells of a matrix in a file, by the hash of all that decides them: a second call goes on
where the first was stopped."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scoretune import __version__
from scoretune.core.files import append_line
from scoretune.data.prompts import identity
from scoretune.evaluate.gap import Cell, CellRewards, Comparison
from scoretune.models.catalog import guidance_of
from scoretune.policy import Policy
from scoretune.rewards.base import Reward


@dataclass(frozen=True)
class CellFile:
    """The cells at `path` of one model: `source` says by which names and weights it was loaded."""

    path: Path
    source: tuple[str | None, ...]
    policy: Policy
    comparison: Comparison

    def read(self, cells: Iterable[Cell]) -> dict[Cell, CellRewards]:
        """Those of the cells that an earlier call has finished."""
        finished: dict[str, CellRewards] = {}
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else ()
        for text in lines:
            try:
                line = json.loads(text)
                finished[line["key"]] = line.get("reason") or torch.tensor(line["values"])
            except (ValueError, KeyError, TypeError):
                continue  # the line that was being written when the process was killed
        keys = {cell: self._key(cell) for cell in cells}
        return {cell: finished[key] for cell, key in keys.items() if key in finished}

    def append(self, cell: Cell, rewards: CellRewards) -> None:
        """Keep a finished cell."""
        line: dict[str, Any] = {
            "key": self._key(cell),
            "model": cell.model,
            "sampler": str(cell.sampler),
            "steps": cell.steps,
        }
        line |= {"reason": rewards} if isinstance(rewards, str) else {"values": rewards.tolist()}
        append_line(self.path, line)

    def _key(self, cell: Cell) -> str:
        """A hash of everything that decides a cell."""
        comparison, policy = self.comparison, self.policy
        own = comparison.grid == "deployed"
        decides = [
            *(*self.source, comparison.reward_name, comparison.seed, guidance_of(policy)),
            *(*map(identity, comparison.prompts.texts), comparison.grid, comparison.sampling.shift),
            *(comparison.times(policy.backbone.process, cell.steps).tolist() if own else ()),
            *(str(policy.backbone.process), _code_of(comparison.reward), __version__),
            *(str(cell.sampler.solver), cell.sampler.eta, cell.steps, cell.model),
        ]
        return hashlib.sha256(json.dumps(decides).encode()).hexdigest()


def weights_hash(policy: Policy) -> str:
    """A hash of the network's weights, adapter included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(policy.backbone.network.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _code_of(reward: Reward) -> str:
    """What a user's own function says now; a cell of another text is another cell."""
    try:
        return inspect.getsource(inspect.getmodule(reward) or type(reward))
    except (OSError, TypeError):
        return type(reward).__name__
