"""Doing an experiment: its parts one after the other, each with its page."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoretune.commands.reproduce import EXPERIMENTS, Part
from scoretune.commands.reproduce.base import Page, Watch, run_cells, spent
from scoretune.core.errors import UserError, unknown


@dataclass(frozen=True)
class Inputs:
    """Folders of the user's: a model for the part that wants one, and pictures to learn from."""

    model: Path | None = None
    data: Path | None = None


NO_INPUTS = Inputs()


def reproduce(
    name: str,
    folder: Path,
    *,
    parts: Sequence[str] = (),
    seeds: int = 5,
    jobs: int = 1,
    quick: bool = False,
    inputs: Inputs = NO_INPUTS,
    watcher: Callable[[str], Watch] | None = None,
) -> dict[str, Any]:
    """Run the named experiment's parts in `folder`; every part's numbers by its name.

    A stopped experiment goes on where it was: cells that are finished are not repeated.
    """
    selected, data = parts_named(name, parts, inputs), inputs.data
    if data is not None and not data.is_dir():
        raise UserError(f"--data {data} is not a folder")
    results: dict[str, Any] = {}
    for part_name, part in selected.items():
        name_of_module, _, member = part.place.partition(":")
        module = importlib.import_module(f"scoretune.commands.reproduce.{name_of_module}")
        content = getattr(module, member) if member else module
        extra = {"model": str(inputs.model)} if part.wants_model else {}
        if part.wants_data and data is not None:
            extra["data"] = str(data)
        cells = content.cells(seeds, quick, **extra)
        home = folder / part_name
        watch = watcher(part_name) if watcher else None
        numbers = run_cells(cells, home, jobs=jobs, watch=watch)
        command = _command(name, part_name, seeds, quick) + _folders(part, data)
        page = Page(home, part.title, command)
        results[part_name] = content.present(numbers, page)
        page.write(results[part_name], spent(cells, home))
    return results


def parts_named(name: str, parts: Sequence[str], inputs: Inputs = NO_INPUTS) -> dict[str, Part]:
    """The parts of these names; without names all that need nothing that the user did not give."""
    if name not in EXPERIMENTS:
        raise unknown("experiment", name, EXPERIMENTS)
    all_parts = EXPERIMENTS[name]
    for part in parts:
        if part not in all_parts:
            raise unknown(f"part of {name}", part, all_parts)
    selected = {
        p: all_parts[p]
        for p in parts or all_parts
        if parts
        or (
            (inputs.model or not all_parts[p].wants_model)
            and (inputs.data or not all_parts[p].needs_data)
        )
    }
    for part, meant in selected.items():
        if meant.wants_model and inputs.model is None:
            raise UserError(f"part {part!r} needs --model FOLDER/model: {meant.model_hint}")
    return selected


def _command(name: str, part: str, seeds: int, quick: bool) -> str:
    command = f"scoretune reproduce {name} --part {part} --seeds {seeds}"
    return command + (" --quick" if quick else "")


def _folders(part: Part, data: Path | None) -> str:
    """The options that name folders, without saying which."""
    model = " --model FOLDER/model" if part.wants_model else ""
    return model + (" --data FOLDER" if part.wants_data and data is not None else "")
