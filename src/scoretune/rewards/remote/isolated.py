"""A function with packages of its own as a reward: in another process, of another interpreter.

`isolated(call=module:function, python=/path/to/venv/bin/python)` starts that interpreter on
`_worker.py`, which needs neither scoretune nor torch and says how frames of JSON and raw pixels are
exchanged with it by pipes. Needs a POSIX system.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

from scoretune.core.errors import UserError
from scoretune.rewards.cache import Cached, Pixels, metadata_of

LENGTHS = struct.Struct(">QQ")
WORKER = Path(__file__).with_name("_worker.py")
# As a command, not as a file: the folder of the file would hide packages of the same names.
START = "import sys; del sys.argv[0]; exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))"


@dataclass(frozen=True)
class Isolated(Cached):
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
        super().__post_init__()
        if not re.fullmatch(r"[\w.]+:[\w.]+", self.call):
            raise UserError(f"isolated(call={self.call}): write it as module:function")
        if _interpreter(self.python) is None:
            raise UserError(
                f"isolated(python={self.python}): no such interpreter; make one with "
                "python -m venv FOLDER, and give FOLDER/bin/python"
            )
        if not Path(self.folder).expanduser().is_dir():
            raise UserError(f"isolated(folder={self.folder}): no such folder; give the module's")
        if not self.timeout > 0:
            raise UserError(f"isolated(timeout={self.timeout:g}): timeout must be above 0")
        if os.name != "posix":
            raise UserError(
                "isolated(...) needs Linux or macOS: use scoretune serve-reward instead"
            )

    def fingerprint(self) -> Mapping[str, str]:
        """The function, its interpreter, its module's version and the hash of its file."""
        return {"call": self.call, "python": self.python, **self.worker.ready()}

    @cached_property
    def worker(self) -> Worker:
        """The process at the other end, started at the first request."""
        python = _interpreter(self.python) or self.python
        command = (python, "-c", START, str(WORKER), self.call, self.images)
        folder = str(Path(self.folder).expanduser())
        return Worker(self.call, command, folder, self.timeout)

    def _score(self, pixels: Pixels, prompts: list[str]) -> list[float]:
        request = {
            "shape": pixels.shape[:3],
            "prompts": [str(prompt) for prompt in prompts],
            "metadata": [metadata_of(prompt) for prompt in prompts],
        }
        scores = self.worker.scores(request, pixels.tobytes())
        if len(scores) != len(prompts):
            raise UserError(
                f"reward {self.call!r} gave {len(scores)} numbers for {len(prompts)} images: "
                "return one an image"
            )
        return scores


def _interpreter(python: str) -> str | None:
    """The interpreter's absolute path; a link stays one, for a venv is found by its own."""
    path = shutil.which(os.path.expanduser(python))
    return None if path is None else os.path.abspath(path)


# ------------------------------------------------------------------------ the process


class WorkerEnded(Exception):
    """The process is gone; the text says how it ended."""


class Worker:
    """A process that starts when needed, and ends with this object or this interpreter.

    It runs `command` in `folder` and has `timeout` seconds to start and to answer.
    """

    def __init__(self, name: str, command: Sequence[str], folder: str, timeout: float) -> None:
        self.name, self.command, self.folder = name, tuple(command), folder
        self.timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._description: dict[str, str] = {}
        self._last_line: deque[str] = deque(maxlen=1)
        self._lock = threading.Lock()
        self._end: weakref.finalize[..., Any] | None = None

    def ready(self) -> Mapping[str, str]:
        """What the function is: `interpreter`, `version`, `sha256`. Starts it where it is not."""
        with self._lock:
            self._started()
            return dict(self._description)

    def scores(self, request: Mapping[str, Any], pixels: bytes) -> list[float]:
        """The scores; a process that crashes is started once more for the same request."""
        try:
            body = json.dumps(request).encode()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the metadata of a prompt cannot be sent as JSON ({error}): keep to text, "
                "numbers, lists and objects"
            ) from error
        frame = LENGTHS.pack(len(body), len(pixels)) + body + pixels
        with self._lock:
            try:
                answer = self._exchange(self._started(), frame, "gave no answer")
            except WorkerEnded:
                try:
                    answer = self._exchange(self._started(), frame, "gave no answer")
                except WorkerEnded as error:
                    self._fail(f"crashed twice on the same images: {error}", "run it by hand")
        if "error" in answer:
            self._fail(f"failed with {answer['error']}", "mend the function")
        return [float(score) for score in answer["scores"]]

    def close(self) -> None:
        """End the process, and all that it started."""
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is not None:
            return self._child
        try:
            child = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self.folder,
                env=_environment(),
                start_new_session=True,
            )
        except OSError as error:
            self._fail(f"cannot be started: {error}", "check python=")
        self._child, self._last_line = child, deque(maxlen=1)
        assert child.stderr is not None
        drain = threading.Thread(target=_drain, args=(child.stderr, self._last_line), daemon=True)
        drain.start()
        self._end = weakref.finalize(self, _end, child, drain)
        try:
            answer = self._exchange(child, b"", "did not start")
        except WorkerEnded as error:
            self._fail(f"did not start: {error}", "run its import by hand with that python")
        if "broken" in answer:
            self.close()
            self._fail(
                f"cannot be imported by {self.command[0]}: {answer['broken']}",
                "install what is missing there, or mend folder=",
            )
        self._description = answer["ready"]
        return child

    def _exchange(self, child: subprocess.Popen[bytes], frame: bytes, slow: str) -> dict[str, Any]:
        """Write the frame, read one. Ends the process where it is slow or gone."""
        try:
            return _send_and_receive(child, frame, time.monotonic() + self.timeout)
        except TimeoutError:
            self.close()
            self._fail(
                f"{slow} within {self.timeout:g} s and was killed", "raise timeout=, or mend it"
            )
        except (OSError, EOFError, ValueError) as error:
            last = self._last_line
            with suppress(subprocess.TimeoutExpired):
                child.wait(1.0)  # so that the exit code is its own, not of our kill
            self.close()
            how = _in_words(child.returncode)
            raise WorkerEnded(f"{how}, last words {last[0]!r}" if last else how) from error
        except BaseException:  # Ctrl-C in between: half an exchange cannot be gone on with
            self.close()
            raise

    def _fail(self, what: str, fix: str) -> NoReturn:
        raise UserError(
            f"reward {self.name!r} {what}: {fix}, then go on with: scoretune train --resume RUN"
        )


def _send_and_receive(child: subprocess.Popen[bytes], frame: bytes, until: float) -> dict[str, Any]:
    """Raises TimeoutError after `until`, EOFError or OSError where the other end is gone."""
    assert child.stdin is not None and child.stdout is not None
    view = memoryview(frame)
    os.set_blocking(child.stdin.fileno(), False)
    while view:
        _wait(child.stdin, selectors.EVENT_WRITE, until)
        view = view[os.write(child.stdin.fileno(), view[: 2**16]) :]
    first, second = LENGTHS.unpack(_read(child.stdout, LENGTHS.size, until))
    message: dict[str, Any] = json.loads(_read(child.stdout, first, until))
    _read(child.stdout, second, until)
    return message


def _read(stream: IO[bytes], size: int, until: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        _wait(stream, selectors.EVENT_READ, until)
        part = os.read(stream.fileno(), min(size - len(received), 2**16))
        if not part:
            raise EOFError
        received += part
    return bytes(received)


def _wait(stream: IO[bytes], event: int, until: float) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(stream, event)
        if not selector.select(max(until - time.monotonic(), 0)):
            raise TimeoutError


def _drain(stream: IO[bytes], last: deque[str]) -> None:
    """Pass on what the process says to people, and keep its last line."""
    for line in iter(stream.readline, b""):
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            last.append(text)
            with suppress(OSError, ValueError):  # nobody listens any more
                print(text, file=sys.stderr)


def _end(child: subprocess.Popen[bytes], drain: threading.Thread) -> None:
    """Kill the process and all of its group; leave no zombie and no open pipe."""
    with suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)
    child.kill()
    child.wait()
    drain.join(1.0)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _in_words(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"it exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _environment() -> dict[str, str]:
    """This one without what tells Python where its packages are: they are of this interpreter."""
    removed = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {key: value for key, value in os.environ.items() if key not in removed}
    return {**kept, "PYTHONUNBUFFERED": "1"}
