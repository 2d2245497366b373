"""Run folders: what was run, written down so that it can be repeated and resumed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from scoretune.core import checkpoints, distributed, files, model_folder, reading
from scoretune.core.config import Model, PolicyGradient, Run
from scoretune.core.errors import UserError
from scoretune.models.lora import restore_adapter
from scoretune.policy import Policy
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.training import from_data
from scoretune.training.build import Checked, build_policy
from scoretune.training.overrides import changed, of_data, validated

MACHINE = ("hardware", "tracking", "checkpoints")
"""The settings that change no result."""
LIBRARIES = ("scoretune", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def record(
    run: Run,
    folder: Path,
    threads: int,
    *,
    command: str = "launched from Python",
    checked: Checked | from_data.Parts | None = None,
) -> None:
    """Write `run.json`; a folder that holds another run is refused, the same run goes on.

    `command` is what a user types to repeat the run; one that is launched from Python has none.
    `checked` is what `ready` gave for this run: its reward is not built anew for its fingerprint.
    """
    path = folder / "run.json"
    if not distributed.team().main:
        return
    if path.exists():
        before = recorded(folder)
        same_results = _apart_from_machine(before) == _apart_from_machine(run)
        if before != run and same_results:
            files.write_json(path, json.loads(path.read_text()) | {"config": run.model_dump()})
        elif before != run:
            raise UserError(
                f"{str(folder)!r} holds a run with other settings: choose another --run folder, or "
                f"go on with it by: scoretune train --resume {folder}"
            )
        return
    described = {
        "recipe": run.recipe,
        "command": command,
        "seed": run.seed,
        "threads": threads,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **_versions()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "reward": None if of_data(run) else _fingerprint(run, checked),
        "config": run.model_dump(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(path, described)
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose --run"
        ) from error


def _fingerprint(run: Run, checked: Checked | from_data.Parts | None) -> dict[str, Any]:
    built = checked.reward if isinstance(checked, Checked) else named_reward(run.reward)
    return fingerprint(run.reward, built)


def resumed(folder: Path, words: Sequence[str]) -> Run:
    """The settings of a run folder, of which those that change no result may be changed."""
    for word in words:
        if not word.startswith(tuple(f"{part}." for part in MACHINE)):
            raise UserError(
                f"--resume repeats the run's own settings, all but {', '.join(MACHINE)}: leave out "
                f"{word!r} (to train further, start another run with model.source={folder})"
            )
    return changed(recorded(folder), words)


def _apart_from_machine(run: Run) -> dict[str, Any]:
    return run.model_dump(exclude=set(MACHINE))


def recorded(folder: Path) -> Run:
    """The settings of a run folder. Raises UserError when it is none."""
    try:
        described = reading.read_json(folder / "run.json")
        return validated(described["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(folder)!r} is no run folder (no readable run.json): give one that "
            "`scoretune train` or `scoretune demo` made"
        ) from error


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def load(path: str | Path, device: torch.device | None = None) -> Policy:
    """The policy of a run folder (its newest checkpoint), a model folder or a shipped model.

    A pipeline is put on `device`, the CPU unless given; a small network of data stays there.
    """
    folder, device = Path(path), device or torch.device("cpu")
    if not (folder / "run.json").exists():
        model = Model(source=str(path), rank=0)
        bare = Run(recipe="none", objective=PolicyGradient(), model=model)
        return build_policy(bare, device)
    if model_folder.home(folder) is not None:  # runs on data keep their model
        return from_data.trained(folder)
    policy = build_policy(recorded(folder), device)
    restore_adapter(policy.backbone.network, checkpoints.load(checkpoints.newest(folder))["policy"])
    return policy
