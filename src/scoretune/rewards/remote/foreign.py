"""A process of another interpreter, which answers questions by pipe: JSON and bytes, no pickles.

A frame is two big-endian 64-bit lengths, a JSON object of the first, and bytes of the second.
"""

from __future__ import annotations

import json
import os
import selectors
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
from typing import IO, Any, NoReturn

from scoretune.core.errors import UserError

LENGTHS = struct.Struct(">QQ")


class _Ended(Exception):
    """The process is gone; the text says how."""


class Process:
    """A process that is started when it is needed, and ended with this object or this interpreter.

    It runs `command` in `folder` and is given `timeout` seconds to start and to answer. Errors call
    it `name`.
    """

    def __init__(self, name: str, command: Sequence[str], folder: str, timeout: float) -> None:
        self.name, self.command, self.folder = name, tuple(command), folder
        self.timeout = timeout
        self._child: subprocess.Popen[bytes] | None = None
        self._told: dict[str, str] = {}
        self._last: deque[str] = deque(maxlen=1)
        self._lock = threading.Lock()
        self._end: weakref.finalize[..., Any] | None = None

    def ready(self) -> Mapping[str, str]:
        """What the function is: `interpreter`, `version`, `sha256`. Starts it where it is not."""
        with self._lock:
            self._started()
            return dict(self._told)

    def ask(self, asked: Mapping[str, Any], pixels: bytes) -> list[float]:
        """The scores; a process that crashes is started once more, and asked once more."""
        try:
            body = json.dumps(asked).encode()
        except (TypeError, ValueError) as error:
            raise UserError(
                f"the metadata of a prompt cannot be sent as JSON ({error}): keep to text, "
                "numbers, lists and objects"
            ) from error
        frame = LENGTHS.pack(len(body), len(pixels)) + body + pixels
        with self._lock:
            try:
                answer = self._exchange(frame)
            except _Ended:
                try:
                    answer = self._exchange(frame)
                except _Ended as error:
                    self._fail(f"crashed twice on the same images: {error}", "run it by hand")
        if "error" in answer:
            self._fail(f"failed with {answer['error']}", "mend the function")
        return [float(score) for score in answer["scores"]]

    def close(self) -> None:
        """End the process, and all that it started."""
        if self._end is not None:
            self._end()
        self._child = self._end = None

    def _exchange(self, frame: bytes) -> dict[str, Any]:
        return self._spoken(self._started(), frame, "gave no answer")

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
        self._child, self._last = child, deque(maxlen=1)
        assert child.stderr is not None
        drain = threading.Thread(target=_drain, args=(child.stderr, self._last), daemon=True)
        drain.start()
        self._end = weakref.finalize(self, _end, child, drain)
        try:
            answer = self._spoken(child, b"", "did not start")
        except _Ended as error:
            self._fail(f"did not start: {error}", "run its import by hand with that python")
        if "broken" in answer:
            self.close()
            self._fail(
                f"cannot be imported by {self.command[0]}: {answer['broken']}",
                "install what is missing there, or mend folder=",
            )
        self._told = answer["ready"]
        return child

    def _spoken(self, child: subprocess.Popen[bytes], frame: bytes, slow: str) -> dict[str, Any]:
        """Write the frame, read one. Ends the process where it is slow or gone."""
        try:
            return _conversation(child, frame, time.monotonic() + self.timeout)
        except TimeoutError:
            self.close()
            self._fail(
                f"{slow} within {self.timeout:g} s and was killed", "raise timeout=, or mend it"
            )
        except (OSError, EOFError, ValueError) as error:
            last = self._last
            with suppress(subprocess.TimeoutExpired):
                child.wait(1.0)  # so that its own end is told, not ours
            self.close()
            how = _how(child.returncode)
            raise _Ended(f"{how}, last words {last[0]!r}" if last else how) from error
        except BaseException:  # Ctrl-C in between: what is half said cannot be gone on with
            self.close()
            raise

    def _fail(self, what: str, fix: str) -> NoReturn:
        raise UserError(
            f"reward {self.name!r} {what}: {fix}, then go on with: scoretune train --resume RUN"
        )


def _conversation(child: subprocess.Popen[bytes], frame: bytes, until: float) -> dict[str, Any]:
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
    found = bytearray()
    while len(found) < size:
        _wait(stream, selectors.EVENT_READ, until)
        part = os.read(stream.fileno(), min(size - len(found), 2**16))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


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


def _how(code: int) -> str:
    """An exit code in words."""
    if code >= 0:
        return f"it exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _environment() -> dict[str, str]:
    """This one without what tells Python where its packages are: they are of this interpreter."""
    ours = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__"}
    kept = {key: value for key, value in os.environ.items() if key not in ours}
    return {**kept, "PYTHONUNBUFFERED": "1"}
