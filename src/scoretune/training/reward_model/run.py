"""A run of learning a reward from votes: from settings to a folder that is a reward."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import checkpoints, files, reading
from scoretune.core.errors import UserError, first_line
from scoretune.data.pairs import read_pairs
from scoretune.data.rankings import read_rankings
from scoretune.data.scenes import world
from scoretune.evaluate.scores import rounded
from scoretune.rewards import reward_model
from scoretune.rewards.networks import scene_readers, vote_heads
from scoretune.training.reward_model import examples, learning, measured, page
from scoretune.training.reward_model import settings as settings_of
from scoretune.training.reward_model.learning import Lessons, Member
from scoretune.training.reward_model.settings import RewardSettings

Watch = Callable[[str, int, int, dict[str, float]], None]
"""Told the stage, how much of it is done, of how much, and its numbers."""
RECORD = "settings.json"


def train_reward(settings: RewardSettings, folder: Path, watch: Watch) -> dict[str, Any]:
    """Train the ensemble and write reward.json, model.safetensors and report.html; the result.

    Goes on from the newest checkpoint of the folder, if it has one. Raises UserError.
    """
    start = time.monotonic()
    table = read_pairs(settings.data) if settings.data else None
    rankings = read_rankings(settings.rankings) if settings.rankings else ()
    features = settings.features
    if features == "auto":
        features = "pixels" if settings.side else examples.kind_of_features(table, rankings)
    view = _view(settings, features, table, rankings)
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(folder / RECORD, settings.model_dump())
    votes = examples.read(
        table, rankings, view, lambda done, total: watch("reading", done, total, {})
    )
    kept = max(settings.members, 5)
    folds = examples.split(votes, settings.held_out, kept, settings.seed)
    lessons = Lessons(votes, folds, examples.kind_of_ties(settings.ties, votes.counts[folds >= 0]))
    heads = _members(settings, folder, view, lessons, watch)
    scale, fit = learning.calibrated(heads, lessons)
    scale = rounded(scale)
    record = _record(settings, features, view, scale)
    held_out = measured.HeldOut.of(heads, lessons, scale, fit)
    result = {
        "run": str(folder),
        "settings": settings.model_dump(),
        "features": features,
        "pairs": votes.ranked,
        "rankings": len(votes.rankings),
        "votes": float(votes.counts.sum()),
        "tie_model": lessons.ties,
        **measured.fitted(fit),
        "held_out": held_out.numbers(),
    }
    files.save_tensors(folder / reward_model.WEIGHTS, heads.state_dict())
    files.write_json(folder / reward_model.RECORD, record)
    page.write(folder, result, held_out.calibration())
    result["seconds"] = round(time.monotonic() - start, 1)
    files.write_json(folder / "result.json", result)
    return result


def recorded(folder: Path) -> RewardSettings:
    """The settings of a run, to go on with it. Raises UserError."""
    try:
        settings = settings_of.validated(reading.read_json(folder / RECORD))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{str(folder)!r} holds no run of train reward ({first_line(error)[:80]}): leave out "
            "--resume"
        ) from error
    if (folder / "result.json").exists():
        raise UserError(f"the run in {str(folder)!r} is finished: use it as reward={folder}")
    return settings


def is_reward_run(folder: Path) -> bool:
    """Whether a folder is of a run of `train reward`, finished or not."""
    try:
        return "features" in json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def _view(settings: RewardSettings, features: str, table: Any, rankings: Any) -> vote_heads.View:
    kind = vote_heads.kind_of(features)
    if kind == "encoder":
        encoder = vote_heads.Encoder(features, settings.revision)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        encoder.network.to(device)  # also refuses it here, before pictures are read
        return encoder
    words = examples.words_of(table, rankings)
    if kind == "pixels":
        return vote_heads.Pixels(words, examples.side_of(table, rankings, settings.side))
    return vote_heads.Scenes(words, scene_readers.load(world.shipped(), "reader"))


def _record(
    settings: RewardSettings, features: str, view: vote_heads.View, scale: float
) -> dict[str, Any]:
    """What `rewards.reward_model` reads."""
    record: dict[str, Any] = {
        "version": reward_model.VERSION,
        "features": features,
        "revision": settings.revision,
        "width": settings.width,
        "members": settings.members,
        "scale": scale,
    }
    if isinstance(view, vote_heads.Pixels | vote_heads.Scenes):
        record |= {"words": list(view.words.vocabulary), "length": view.words.length}
    if isinstance(view, vote_heads.Pixels):
        record["side"] = view.side
    return record


def _members(
    settings: RewardSettings,
    folder: Path,
    view: vote_heads.View,
    lessons: Lessons,
    watch: Watch,
) -> nn.ModuleList:
    """Every member, one after the other, from the newest checkpoint on."""
    newest = checkpoints.latest(folder / "checkpoints")
    state = None if newest is None else checkpoints.load(newest)
    if state is not None and state["settings"] != settings.model_dump():
        raise UserError(
            f"the checkpoints of {str(folder)!r} were made with other settings: choose another "
            "--run"
        )
    finished: list[dict[str, Tensor]] = [] if state is None else list(state["finished"])
    first = 0 if state is None else state["member"]
    for number in range(first, settings.members):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed * 64 + number)
            member = Member.fresh(vote_heads.head(view, settings.width), settings)
        done = 0
        if state is not None and number == first:
            member.restore(state["state"])
            done = state["update"]
        files.forget_after(folder / "log.jsonl", number * settings.updates + done)
        after = _keeping(settings, folder, watch, number=number, member=member, finished=finished)
        learning.learn(member, number, lessons, settings, done=done, after=after)
        watch(f"member {number + 1}", settings.updates, settings.updates, {})
        finished.append(member.best)
    heads = nn.ModuleList(vote_heads.head(view, settings.width) for _ in finished)
    for head, weights in zip(heads, finished, strict=True):
        head.load_state_dict(weights)
    return heads.eval().requires_grad_(False)


def _keeping(
    settings: RewardSettings,
    folder: Path,
    watch: Watch,
    *,
    number: int,
    member: Member,
    finished: list[dict[str, Tensor]],
) -> Callable[[int, dict[str, float]], None]:
    """What follows an update of a member: a line of the log, the bar, now and then a checkpoint."""

    def after(update: int, numbers: dict[str, float]) -> None:
        whole = number * settings.updates + update
        files.append_line(folder / "log.jsonl", {"update": whole, "member": number, **numbers})
        watch(f"member {number + 1}", update, settings.updates, numbers)
        if update % settings.checkpoint_every == 0 or update == settings.updates:
            state = {
                "member": number,
                "update": update,
                "finished": finished,
                "state": member.state(),
                "settings": settings.model_dump(),
            }
            checkpoints.save(folder / "checkpoints", whole, state)

    return after
