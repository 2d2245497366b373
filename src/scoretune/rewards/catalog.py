"""Rewards by name: what a configuration calls a reward, and what a run reports beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from scoretune.core import resolve
from scoretune.core.errors import UserError, unknown
from scoretune.core.hub import sha256
from scoretune.core.resolve import Call, Term
from scoretune.data.scenes import world
from scoretune.rewards import (
    aesthetic,
    clip,
    frames,
    image_reward,
    letters,
    ocr,
    pixels,
    reader,
    reward_model,
    scene_edit,
    source_closeness,
    temporal_flickering,
    vlm,
)
from scoretune.rewards.base import Fingerprinted, Reward
from scoretune.rewards.frames import OnFrames
from scoretune.rewards.remote import client, isolated
from scoretune.rewards.weighted import Part, Weighted


def _incompressibility(quality: int = 95) -> Reward:
    return pixels.Compressibility(quality, sign=-1.0)


@dataclass(frozen=True)
class FolderReading(reader.Reading):
    """The reading by a network of a folder."""

    folder: Path = Path()

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": sha256(self.folder / "reader.safetensors")}


def _reader(folder: str = "") -> Reward:
    """The shipped reader, or that of a folder which `scoretune pretrain scenes` made."""
    home = Path(folder).expanduser() if folder else world.shipped()
    if folder and not (home / "reader.safetensors").is_file():
        raise UserError(
            f"{folder!r} holds no reader.safetensors: give a folder that `scoretune pretrain "
            "scenes` made"
        )
    return FolderReading(reader.load(home, "reader"), folder=home)


def _scene_edit() -> Reward:
    """Whether an instruction of the shipped world was carried out, by the shipped reader."""
    return scene_edit.EditReading(reader.load(world.shipped(), "reader"))


# To add a reward: write rewards/NAME.py with a frozen dataclass whose fields are its settings (str,
# int, float, bool, Literal, tuple[str, ...] or one of these | None) and whose __call__ takes
# (images, prompts); import it above with the others and add one line `"name": name.Class` here.
# Constructing must be cheap: networks are loaded at the first call. A function that returns a
# reward will do as well; its parameters are the settings, beside which every reward has `frames`.
# `http://…` alone is `server(url=…)`, and a folder that `train reward` made is
# `reward_model(folder=…)`.
REWARDS: dict[str, Callable[..., Reward]] = {
    "reader": _reader,
    "compressibility": pixels.Compressibility,
    "incompressibility": _incompressibility,
    "brightness": lambda: pixels.brightness,
    "source_closeness": source_closeness.SourceCloseness,
    "scene_edit": _scene_edit,
    "temporal_flickering": lambda: temporal_flickering.temporal_flickering,
    "clip": clip.Clip,
    "pickscore": clip.PickScore,
    "hpsv2": clip.HpsV2,
    "aesthetic": aesthetic.Aesthetic,
    "image_reward": image_reward.ImageReward,
    "server": client.Remote,
    "isolated": isolated.Isolated,
    "ocr": ocr.Ocr,
    "letters": letters.Letters,
    "vlm": vlm.Vlm,
    "reward_model": reward_model.RewardModel,
}
BEFORE_MINUS = (
    "reader",
    "compressibility",
    "incompressibility",
    "brightness",
    "source_closeness",
    "scene_edit",
    "temporal_flickering",
)
"""The names after which a hyphen without spaces is a minus and no part of a module's name."""


def terms(text: str) -> list[Term]:
    """The weights and terms of a reward's text; of one that is no sum, 1 and the text."""
    if reward_model.is_reward_model(text):  # whatever signs its path has
        return [Term(1.0, text)]
    return resolve.read_sum(text, BEFORE_MINUS)


def names(text: str) -> set[str]:
    """The names of a reward's parts, without their settings."""
    return {term.text.partition("(")[0] for term in terms(text)}


def named_reward(text: str) -> Reward:
    """The reward of that name, a user's `module:function`, or a sum as `a + 0.5*b(c=1)`."""
    parts = terms(text)
    if len(parts) == 1 and parts[0].weight == 1:
        return _single(parts[0].text)
    short = [part.text.partition("(")[0] for part in parts]
    return Weighted(
        tuple(
            Part(part.text if short.count(label) > 1 else label, part.weight, _single(part.text))
            for label, part in zip(short, parts, strict=True)
        )
    )


def fingerprint(text: str, reward: Reward) -> dict[str, Any]:
    """What exactly scores, as JSON: every part of a reward with weight, settings, class and hashes.

    `reward` is what `named_reward(text)` built.
    """
    built = [part.reward for part in reward.parts] if isinstance(reward, Weighted) else [reward]
    return {
        "reward": text,
        "parts": [
            {"name": term.text, "weight": term.weight} | _identity(term.text, part)
            for term, part in zip(terms(text), built, strict=True)
        ],
        "libraries": {"scoretune": version("scoretune")}
        | {library: version(library) for library in ("torch", "transformers")},
    }


def _identity(text: str, reward: Reward) -> dict[str, Any]:
    """The class of one part with its settings, or with the hash of its source, and the frames that
    it is shown of videos, where that is set."""
    if isinstance(reward, OnFrames):
        bare = frames.split(text)[0]
        return _identity(bare, reward.reward) | {"frames": reward.frames}
    call = _call(text)
    kind = reward if inspect.isfunction(reward) else type(reward)
    identity: dict[str, Any] = {"class": f"{kind.__module__}:{kind.__qualname__}"}
    if call is None:
        source = inspect.getsourcefile(kind)
        return identity | ({"sha256 of the source": sha256(Path(source))} if source else {})
    constructor = REWARDS[call.name]
    defaults = {k: p.default for k, p in inspect.signature(constructor).parameters.items()}
    identity["settings"] = defaults | resolve.typed_settings("reward", call, constructor)
    return identity | (dict(reward.fingerprint()) if isinstance(reward, Fingerprinted) else {})


def _single(text: str) -> Reward:
    """The reward of one term."""
    bare, shown = (text, None) if reward_model.is_reward_model(text) else frames.split(text)
    if shown is not None:
        return OnFrames(_single(bare), bare, shown)
    call = _call(text)
    if call is None:
        name, bracket, _ = text.partition("(")
        if bracket:
            raise UserError(
                f"reward {name!r} is a function of yours, whose only setting is frames: leave the "
                "brackets out"
            )
        function = resolve.imported("reward", text)
        if isinstance(function, type):
            raise UserError(
                f"reward {text!r} is a class: name a function of images and prompts, or put an "
                f"instance into the module, such as reward = {function.__name__}(), and name that"
            )
        return cast(Reward, function)
    if call.name not in REWARDS:
        raise unknown("reward", call.name, [*REWARDS, "module:function"])
    return resolve.instantiate("reward", call, REWARDS[call.name])


def _call(text: str) -> Call | None:
    """The term as a name with settings; None for a `module:function`."""
    if text.startswith(("http://", "https://")):
        return Call("server", {"url": text})
    if reward_model.is_reward_model(text):
        return Call("reward_model", {"folder": text})
    return None if ":" in text.partition("(")[0] else resolve.read_call(text)
