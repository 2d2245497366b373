"""Files of a run: whole or not at all, and logs of JSON lines."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core import distributed, reading
from scoretune.core.errors import UserError
from scoretune.core.finite import nonfinite


def write_whole(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written: aside first, then renamed."""
    with whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place to write a file to, which becomes `path` at the end of the context: a file that is
    never seen half-written. Each thread has its own, as several may write the same file."""
    aside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.writing")
    yield aside
    os.replace(aside, path)


def save_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write tensors by name as safetensors, as `write_whole` writes a text; its folder is made.

    Raises UserError where one holds NaN or infinity, OSError where the disk refuses.
    """
    from safetensors.torch import save_file

    bad = nonfinite(tensors)
    if bad:
        raise UserError(
            f"{str(path)!r} is not written: {len(bad)} of {len(tensors)} tensors hold NaN or "
            f"infinity, {bad[0]} first; lower the learning rate, or go back to an older checkpoint"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as aside:
        aside.touch()
        mode = aside.stat().st_mode  # as the umask has it: safetensors writes for the owner alone
        with disk_errors(path):
            save_file(plain, aside, metadata)
        aside.chmod(mode)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Within this context what safetensors says of the disk is an OSError, as everybody's is."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def load_tensors(path: Path, fix: str, *, kind: str = "") -> dict[str, Tensor]:
    """The tensors of a .safetensors file of a `kind`. Raises UserError, which says the fix."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        reading.check_regular(path)
        return dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {kind}{str(path)!r} ({error}): {fix}") from error


def write_json(path: Path, value: Any) -> None:
    """Write plain data as a readable JSON file, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2) + "\n")


def append_line(path: Path, line: Mapping[str, Any]) -> None:
    """Add one JSON line to a file, in the process that writes."""
    if not distributed.team().main:
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def forget_after(path: Path, update: int) -> None:
    """Drop the lines of updates that a resumed run will do again, and a last line cut short.

    Raises UserError for any other line that cannot be read, before anything is changed.
    """
    if not path.exists() or not distributed.team().main:
        return
    kept = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if line["update"] <= update:
                kept.append(json.dumps(line) + "\n")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number == len(lines):  # a kill in the middle of it
                break
            raise UserError(
                f"line {number} of {str(path)!r} cannot be read ({type(error).__name__}): delete "
                "that line to go on"
            ) from error
    write_whole(path, "".join(kept))  # a kill while writing must not cost the log
