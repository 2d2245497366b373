"""A reward that was learned from votes: the folder that `scoretune train reward` made.

An ensemble of heads on one view of pictures and prompts. Its scores are on the scale of the votes:
people who voted as those of the data prefer the one of two pictures with odds e^{difference}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from scoretune.core import hub
from scoretune.core.errors import UserError, first_line
from scoretune.core.files import load_tensors
from scoretune.data.scenes import world
from scoretune.rewards.base import Batched
from scoretune.rewards.networks import pretrained, scene_readers, vote_heads

RECORD, WEIGHTS = "reward.json", "model.safetensors"
VERSION = 1


def is_reward_model(folder: str) -> bool:
    """Whether a text names a folder that `scoretune train reward` has finished."""
    return (
        len(folder) < 4096 and "\n" not in folder and (Path(folder).expanduser() / RECORD).is_file()
    )


class Ensemble(NamedTuple):
    """A view, heads on it, and the factor that puts their scores on the scale of the votes."""

    view: vote_heads.View
    heads: nn.ModuleList
    scale: float

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Every member's scores, [K, B]."""
        texts = list(dict.fromkeys(prompts))  # a group's samples share their prompt
        read = self.view.prompts(texts).to(images.device)
        read = read[[texts.index(prompt) for prompt in prompts]]
        seen = self.view.pictures(images.float())
        heads = self.heads.to(images.device)
        return self.scale * torch.stack([head(seen, read) for head in heads])


@dataclass(frozen=True)
class RewardModel(Batched):
    """The mean of the members' scores, less `caution` times their standard deviation.

    folder: what `scoretune train reward` made; caution: 0 is the mean, and 1 takes pictures of
    which the votes tell little for as much worse (a lower confidence bound); batch: pictures at
    once. Has a gradient by the images.
    """

    folder: str
    caution: float = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.caution < 1e6:
            raise UserError(f"caution={self.caution:g}: it must be 0 or more, such as 1")
        if not is_reward_model(self.folder):
            raise UserError(
                f"{self.folder!r} holds no {RECORD}: give a folder that scoretune train reward "
                "made, or go on with it by --resume"
            )

    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        scores = self.ensemble.scores(images, prompts)
        mean = scores.mean(0)
        if not self.caution or len(scores) < 2:
            return mean
        return mean - self.caution * scores.std(0)

    def members(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Every member's scores [K, B]: `preference.pair_information` wants them."""
        parts = [
            self.ensemble.scores(
                images[start : start + self.batch], prompts[start : start + self.batch]
            )
            for start in range(0, len(images), self.batch)
        ]
        return torch.cat(parts, 1)

    def uncertainty(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """The standard deviation of the members' scores [B], 0 for a lone member."""
        scores = self.members(images, prompts)
        return scores.std(0) if len(scores) > 1 else torch.zeros_like(scores[0])

    def fingerprint(self) -> Mapping[str, str]:
        """The hashes of the heads, and what the encoder is, where there is one."""
        folder = Path(self.folder).expanduser()
        identity = {f"sha256 {WEIGHTS}": hub.sha256(folder / WEIGHTS)}
        features = str(self._record["features"])
        if vote_heads.kind_of(features) == "encoder":
            identity |= pretrained.identity(
                features, revision=self._record["revision"], part="encoder "
            )
        return identity

    @cached_property
    def ensemble(self) -> Ensemble:
        """The members, loaded at the first call."""
        return load(Path(self.folder).expanduser())

    @cached_property
    def _record(self) -> dict[str, Any]:
        return read_record(Path(self.folder).expanduser())


def view_of(record: Mapping[str, Any]) -> vote_heads.View:
    """The view that a record describes: `features`, `revision`, `words`, `length` and `side`."""
    features = str(record["features"])
    kind = vote_heads.kind_of(features)
    if kind == "encoder":
        return vote_heads.Encoder(features, record["revision"])
    words = vote_heads.Words(tuple(record["words"]), int(record["length"]))
    if kind == "pixels":
        return vote_heads.Pixels(words, int(record["side"]))
    return vote_heads.Scenes(words, scene_readers.load(world.shipped(), "reader"))


def load(folder: Path) -> Ensemble:
    """The ensemble of a folder, frozen. Raises UserError for what is none."""
    record = read_record(folder)
    fix = "train it again"
    weights = load_tensors(folder / WEIGHTS, fix, kind="the reward model ")
    view = view_of(record)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is replaced at once
        heads = nn.ModuleList(
            vote_heads.head(view, int(record["width"])) for _ in range(int(record["members"]))
        )
    try:
        heads.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(
            f"the {WEIGHTS} of {str(folder)!r} does not fit its {RECORD} "
            f"({first_line(error)[:80]}): {fix}"
        ) from error
    return Ensemble(view, heads.eval().requires_grad_(False), float(record["scale"]))


def read_record(folder: Path) -> dict[str, Any]:
    """The reward.json of a folder. Raises UserError where it cannot be read."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["version"] > VERSION:
            raise ValueError(f"version {record['version']} is newer than {VERSION}")
        for name in ("features", "revision", "width", "members", "scale"):
            record[name]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot read the reward model {str(path)!r} ({first_line(error)[:80]}): give a folder "
            "that this version's scoretune train reward made"
        ) from error
    return dict(record)
