"""Other people's files: this machine's first, then the hub's; never pickles, and quietly."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import TypeVar

from scoretune.core.errors import UserError, first_line

T = TypeVar("T")

SECONDS = 5.0  # for a name server, a proxy and the hub together
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}
"""Endings of files that can run code when read."""


def is_local(source: str) -> bool:
    """Whether a source is meant as a path, and not as a hub id."""
    return Path(source).expanduser().exists() or source.startswith((".", "/", "~"))


def place(source: str) -> str:
    """A hub id as it is, and a path with its home folder written out."""
    return str(Path(source).expanduser()) if is_local(source) else source


def refuse_pickle(path: Path, fix: str) -> None:
    """Refuse a file that can run code when read; `fix` says what to do about it."""
    if path.suffix in PICKLES:
        raise UserError(
            f"'{path.parent.name}/{path.name}' is a pickle, which can run code when read; {fix}"
        )


def refuse_endless(path: Path) -> None:
    """Refuse a pipe, a socket or a device, which may never end."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{str(path)!r} is no regular file: take it out of the folder")


def refuse_pickles(folder: Path, fix: str) -> None:
    """Refuse a folder where weights lie as pickles only, or where a file may never end."""
    files = sorted(folder.iterdir())
    for path in files:
        refuse_endless(path)
    if not any(path.suffix == ".safetensors" for path in files):
        for path in files:
            refuse_pickle(path, fix)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def quieten() -> None:
    """No progress bars and no warnings of transformers, and of diffusers where it is in use."""
    import sys

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    if "diffusers" in sys.modules:
        from diffusers.utils import logging as diffusers_logging

        diffusers_logging.disable_progress_bar()
        diffusers_logging.set_verbosity_error()


def reachable(seconds: float = SECONDS) -> bool:
    """Whether the hub gives any answer within so many seconds, asked once and by the way that
    downloads take. Never under HF_HUB_OFFLINE."""
    from huggingface_hub import constants, get_session

    answers: list[object] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=seconds))
        except Exception:  # no network, no such host, no way through a proxy: each has its own kind
            return

    if constants.HF_HUB_OFFLINE:
        return False
    # In a thread: looking up a name knows no time limit.
    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(answers)


@contextmanager
def quiet() -> Iterator[None]:
    """Within this context the hub's client does not tell of every attempt."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def offline_first(
    source: str, what: str, load: Callable[[bool], T], *, setting: str = "model"
) -> T:
    """`load(True)` from files of this machine; without them `load(False)` from the hub.

    Raises UserError where neither has `what`, or what `load` raises of it; the hub is first asked,
    once, whether it is there.
    `setting` names the source in the error.
    """
    fix = f"give a folder or hub id of {what}"
    with quiet():
        try:
            return load(True)
        except UserError:
            raise
        except Exception as error:  # not in the cache, or broken: each has its own kind
            failure = error
        if not is_local(source) and reachable():
            try:
                return load(False)
            except UserError:
                raise
            except Exception as error:  # no such id or revision: each has its own kind
                failure = error
        elif not is_local(source) and (folder := Path(source).parent) != Path() and folder.is_dir():
            near = difflib.get_close_matches(
                Path(source).name, [path.name for path in folder.iterdir()], n=1
            )
            hint = f"did you mean {str(folder / near[0])!r}?" if near else "check the path"
            fix = f"there is no {Path(source).name!r} in the folder {str(folder)!r}: {hint}"
        elif not is_local(source):
            fix = (
                "the hub was not asked (out of reach, or HF_HUB_OFFLINE): run, with a network, "
                f"hf download {source}; or set {setting}=FOLDER of {what}"
            )
    raise UserError(f"cannot load the model {source!r} ({first_line(failure)}): {fix}") from failure
