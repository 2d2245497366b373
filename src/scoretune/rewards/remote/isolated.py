"""A function with packages of its own as a reward: in another process, of another interpreter.

`isolated(call=module:function, python=/path/to/venv/bin/python)` starts that interpreter on
`_worker.py`, which needs neither scoretune nor torch, and speaks to it by pipes: JSON and raw
pixels, never pickles. Needs a POSIX system.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.rewards.cache import Memory, Pixels, eight_bit, metadata_of
from scoretune.rewards.remote.foreign import Process

WORKER = Path(__file__).with_name("_worker.py")
# As a command, not as a file: the folder of the file would hide packages of the same names.
START = "import sys; del sys.argv[0]; exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"


@dataclass(frozen=True)
class Isolated:
    """Calls `call` (module:function, found in `folder` or installed there) under `python`.

    The function takes (images, prompts) and returns one number an image. `images` says how it gets
    them: a list of Pillow images, one NumPy array [B, H, W, 3] of uint8, or `raw`: a list of
    (width, height, RGB bytes), which needs no package. Its prompts have an attribute `metadata`.
    `timeout` seconds are for a call, and for the start. Raises UserError, in one line.
    """

    call: str
    python: str = sys.executable
    folder: str = "."
    timeout: float = 120.0
    batch: int = 16
    cache: int = 4096
    images: Literal["pil", "numpy", "raw"] = "pil"

    def __post_init__(self) -> None:
        _check(self)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return self.memory.scores(eight_bit(images), prompts, self._ask, self.batch)

    def fingerprint(self) -> Mapping[str, str]:
        """The function, its interpreter, its module's version and the hash of its file."""
        told = self.process.ready()
        return {"call": self.call, "python": self.python, **told}

    @cached_property
    def memory(self) -> Memory:
        """The scores that were given before."""
        return Memory(self.cache)

    @cached_property
    def process(self) -> Process:
        """The process at the other end, started at the first question."""
        python = _found(self.python) or self.python
        command = (python, "-c", START, str(WORKER), self.call, self.images)
        folder = str(Path(self.folder).expanduser())
        return Process(self.call, command, folder, self.timeout)

    def _ask(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        asked = {
            "shape": pixels.shape[:3],
            "prompts": [str(prompt) for prompt in prompts],
            "metadata": [metadata_of(prompt) for prompt in prompts],
        }
        scores = self.process.ask(asked, pixels.tobytes())
        if len(scores) != len(prompts):
            raise UserError(
                f"reward {self.call!r} gave {len(scores)} numbers for {len(prompts)} images: "
                "return one an image"
            )
        return scores


def _check(reward: Isolated) -> None:
    if not re.fullmatch(r"[\w.]+:[\w.]+", reward.call):
        raise UserError(f"isolated(call={reward.call}): write it as module:function")
    if _found(reward.python) is None:
        raise UserError(
            f"isolated(python={reward.python}): no such interpreter; make one with "
            "python -m venv FOLDER, and give FOLDER/bin/python"
        )
    if not Path(reward.folder).expanduser().is_dir():
        raise UserError(f"isolated(folder={reward.folder}): no such folder; give the module's")
    if not (reward.timeout > 0 and reward.batch >= 1 and reward.cache >= 0):
        raise UserError(
            f"isolated(timeout={reward.timeout:g}, batch={reward.batch}, cache={reward.cache}): "
            "timeout must be above 0, batch 1 or more, cache 0 or more"
        )
    if os.name != "posix":
        raise UserError("isolated(...) needs Linux or macOS: use scoretune serve-reward instead")


def _found(python: str) -> str | None:
    """The interpreter's absolute path; a link stays one, for a venv is found by its own."""
    found = shutil.which(os.path.expanduser(python))
    return None if found is None else os.path.abspath(found)
