"""Rewards by name: what a configuration calls a reward, and what a run reports beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from scoretune.core import calls, hub
from scoretune.core.errors import UserError, unknown
from scoretune.data.scenes import world
from scoretune.rewards import (
    aesthetic,
    clip,
    image_reward,
    ocr,
    pixels,
    python,
    reader,
    vlm,
    weighted,
)
from scoretune.rewards.base import Fingerprinted, Reward
from scoretune.rewards.remote import isolated, server_reward


def _incompressibility(quality: int = 95) -> Reward:
    return pixels.Compressibility(quality, sign=-1.0)


@dataclass(frozen=True)
class FolderReading(reader.Reading):
    """The reading by a network of a folder."""

    folder: Path = Path()

    def fingerprint(self) -> dict[str, str]:
        return {"sha256": hub.sha256(self.folder / "reader.safetensors")}


def _reader(folder: str = "") -> Reward:
    """The shipped reader, or that of a folder which `scoretune pretrain scenes` made."""
    home = Path(folder).expanduser() if folder else world.shipped()
    if folder and not (home / "reader.safetensors").is_file():
        raise UserError(
            f"{folder!r} holds no reader.safetensors: give a folder that `scoretune pretrain "
            "scenes` made"
        )
    try:
        return FolderReading(reader.load(home, "reader"), folder=home)
    except (RuntimeError, KeyError) as error:
        raise UserError(
            f"the reader.safetensors in {str(home)!r} is none of scoretune's: give a folder that "
            "`scoretune pretrain scenes` made"
        ) from error


# To add a reward: write rewards/NAME.py with a frozen dataclass whose fields are its settings (str,
# int, float, bool, Literal, tuple[str, ...] or one of these | None) and whose __call__ takes
# (images, prompts); import it above with the others and add one line `"name": name.Class` here.
# Constructing must be cheap: networks are loaded at the first call. A function that returns a
# reward will do as well; its parameters are the settings. `http://…` alone is `server(url=…)`.
REWARDS: dict[str, Callable[..., Reward]] = {
    "reader": _reader,
    "compressibility": pixels.Compressibility,
    "incompressibility": _incompressibility,
    "brightness": lambda: pixels.brightness,
    "clip": clip.Clip,
    "pickscore": clip.PickScore,
    "hpsv2": clip.HpsV2,
    "aesthetic": aesthetic.Aesthetic,
    "image_reward": image_reward.ImageReward,
    "server": server_reward.Server,
    "isolated": isolated.Isolated,
    "ocr": ocr.Ocr,
    "vlm": vlm.Vlm,
}


def named_reward(name: str) -> Reward:
    """The reward of that name, a user's `module:function`, or a weighted sum of such.

    A sum looks like `reader + 0.5*compressibility(quality=80) - 0.1*my_module:function`.
    """
    terms = weighted.terms(name, REWARDS)
    if len(terms) == 1 and terms[0][0] == 1:
        return _single(terms[0][1])
    short = [text.partition("(")[0] for _, text in terms]
    return weighted.Weighted(
        tuple(
            weighted.Part(text if short.count(label) > 1 else label, weight, _single(text))
            for label, (weight, text) in zip(short, terms, strict=True)
        )
    )


def fingerprint(name: str) -> dict[str, Any]:
    """What exactly scores: every part of a reward with its weight, settings and class.

    Beside them stand what tells one set of weights from another: a hub id's commit or a folder's
    sha256, the sha256 of the source of a `module:function`. All of it is JSON.
    """
    return {
        "reward": name,
        "parts": [
            {"name": text, "weight": weight} | _identity(text)
            for weight, text in weighted.terms(name, REWARDS)
        ],
        "libraries": {"scoretune": version("scoretune")}
        | {library: version(library) for library in ("torch", "transformers")},
    }


def _identity(text: str) -> dict[str, Any]:
    reward, call = _single(text), _call(text)
    kind = reward if inspect.isfunction(reward) else type(reward)
    found: dict[str, Any] = {"class": f"{kind.__module__}:{kind.__qualname__}"}
    if call is None:
        source = inspect.getsourcefile(kind)
        return found | ({"sha256 of the source": hub.sha256(Path(source))} if source else {})
    constructor = REWARDS[call.name]
    defaults = {k: p.default for k, p in inspect.signature(constructor).parameters.items()}
    found["settings"] = defaults | calls.values("reward", call, constructor)
    return found | (dict(reward.fingerprint()) if isinstance(reward, Fingerprinted) else {})


def _single(text: str) -> Reward:
    call = _call(text)
    if call is None:
        return python.from_path(text)
    if call.name not in REWARDS:
        raise unknown("reward", call.name, [*REWARDS, "module:function"])
    return calls.made("reward", call, REWARDS[call.name])


def _call(text: str) -> calls.Call | None:
    """The term as a name with settings; None for a `module:function`."""
    if text.startswith(("http://", "https://")):
        return calls.Call("server", {"url": text})
    return None if ":" in text.partition("(")[0] else calls.read(text)


def verdict_metrics(model: str) -> dict[str, Reward]:
    """For models of the shipped world: does the reader, does the judge, find what was asked?

    Each gives 0 or 1. A model folder that `scoretune pretrain scenes` made holds its own two.
    """
    folder = world.shipped() if model in world.SHIPPED else Path(model)
    if not (folder / "judge.safetensors").exists():
        return {}
    return {n: reader.Reading(reader.load(folder, n), soft=False) for n in ("reader", "judge")}
