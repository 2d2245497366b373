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
from scoretune.core.config import Model, PolicyGradient, Run, leaves
from scoretune.core.errors import UserError, first_line
from scoretune.models.lora import restore_adapter
from scoretune.policy import Policy
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.training import from_data, settings_file
from scoretune.training.build import Checked, build_policy
from scoretune.training.overrides import changed, of_data, unread, validated

MACHINE = ("hardware", "tracking", "checkpoints")
"""The settings that change no result."""
LIBRARIES = ("scoretune", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def check(run: Run, folder: Path) -> None:
    """Refuse a folder that holds another run: the same one goes on, on whatever machine."""
    if not distributed.team().main or not (folder / "run.json").exists():
        return
    if unfinished_start(folder):
        return
    if _apart_from_machine(recorded(folder)) != _apart_from_machine(run):
        raise UserError(
            f"{str(folder)!r} holds a run with other settings: choose another --run folder, or "
            f"go on with it by: scoretune train --resume {folder}"
        )


def unfinished_start(folder: Path) -> bool:
    """Whether a start was cut off while it wrote `run.json`, before there was a checkpoint.

    Raises UserError where there is one: then its settings are lost.
    """
    try:
        reading.read_json(folder / "run.json")
        return False
    except OSError:
        return False
    except ValueError as error:
        newest = checkpoints.latest(folder / "checkpoints")
        if newest is None:
            return True
        raise UserError(
            f"{str(folder / 'run.json')!r} is damaged ({first_line(error)}), and {newest.name} "
            "needs its settings: put a copy back, or choose another --run folder"
        ) from error


def record(
    run: Run,
    folder: Path,
    threads: int,
    *,
    command: str = "launched from Python",
    checked: Checked | from_data.Parts | None = None,
    resumed: bool = False,
) -> None:
    """Write `run.json`; a folder that holds another run is refused, the same run goes on.

    `command` is what a user types to repeat the run; one that is launched from Python has none.
    `checked` is what `ready` gave for this run: its reward is not built anew for its fingerprint.
    Of a run that is `resumed` the settings may have changed.
    """
    path = folder / "run.json"
    if not distributed.team().main:
        return
    if path.exists() and not unfinished_start(folder):
        if not resumed:
            check(run, folder)
        if recorded(folder) != run:
            files.write_json(path, json.loads(path.read_text()) | {"config": run.model_dump()})
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


def resumed(folder: Path, words: Sequence[str], *, accept_changes: bool = False) -> Run:
    """The settings of a run folder, of which those that change no result, and the number of
    updates, may be changed; all with `accept_changes`."""
    free = ("updates=", *(f"{part}." for part in MACHINE))
    for word in words:
        if not accept_changes and not word.startswith(free):
            raise UserError(
                f"--resume repeats the run's own settings, all but {', '.join(MACHINE)}, updates: "
                f"leave out {word!r}, or add --accept-changes (to train further, start another "
                f"run with model.source={folder})"
            )
    return changed(recorded(folder), words)


def decisive(run: Run) -> dict[str, Any]:
    """The settings that decide a run's numbers, by their paths: those that it reads."""
    never = unread(run)
    return {p: value for p, value in leaves(_apart_from_machine(run)) if p not in never}


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


def settings_of(named: str, changes: list[str]) -> Run:
    """The settings of a recipe, a settings file or a run folder, changed; UserError for none."""
    folder = Path(named)
    if (folder / "run.json").exists():
        return changed(recorded(folder), changes)
    return settings_file.named(named, changes)


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
    run = recorded(folder)
    alone = run.model.model_copy(update={"slope_decoder": None})  # of training, and it may be gone
    policy = build_policy(run.model_copy(update={"model": alone}), device)
    restore_adapter(policy.backbone.network, checkpoints.load(checkpoints.newest(folder))["policy"])
    return policy
