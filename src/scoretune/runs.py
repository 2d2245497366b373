"""Run folders: what was run, written down so that it can be repeated and resumed."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from scoretune import ranks
from scoretune.config import Run, of_data
from scoretune.errors import UserError
from scoretune.scorers import fingerprint
from scoretune.settings import validated

LIBRARIES = ("scoretune", "torch", "diffusers", "transformers", "peft", "accelerate", "numpy")


def record(run: Run, folder: Path, threads: int) -> None:
    """Write `run.json`; a folder that holds another run is refused, the same run goes on."""
    path = folder / "run.json"
    if not ranks.team().main:
        return
    if path.exists():
        if recorded(folder) != run:
            raise UserError(
                f"{str(folder)!r} holds a run with other settings: choose another --run folder, or "
                f"go on with it by: scoretune train --resume {folder}"
            )
        return
    described = {
        "recipe": run.recipe,
        "command": shlex.join(["scoretune", *sys.argv[1:]]),
        "seed": run.seed,
        "threads": threads,
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "versions": {"python": platform.python_version(), **_versions()},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "reward": None if of_data(run) else fingerprint(run.reward),
        "config": run.model_dump(),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(described, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r} ({error.strerror}): choose --run"
        ) from error


def recorded(folder: Path) -> Run:
    """The settings of a run folder. Raises UserError when it is none."""
    try:
        described = json.loads((folder / "run.json").read_text())
        return validated(described["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(folder)!r} is no run folder (no readable run.json): give one that "
            "`scoretune train` or `scoretune demo` made"
        ) from error


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
