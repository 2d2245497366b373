"""Networks of transformers, from a folder or the hub: loaded whole and unpickled, or not at all.

Files on this machine come first, those of the hub's cache among them; the network is asked only
when they are not here, and never under HF_HUB_OFFLINE.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import nn

from scoretune.core import hub
from scoretune.core.errors import UserError

T = TypeVar("T")
PICKLES = {".bin", ".ckpt", ".pt", ".pth"}


def network(kind: str, source: str, *, revision: str | None, dtype: torch.dtype) -> nn.Module:
    """The frozen network of that class of transformers, every weight of it from the files.

    transformers fills weights that a file lacks with random numbers; here that is a UserError, as
    is a missing folder or hub id, a network of another kind, and a pickle.
    """
    refuse_pickles(
        source,
        f'python -c "import transformers as t; t.{kind}.from_pretrained({source!r})'
        ".save_pretrained('FOLDER')\"",
    )
    import transformers

    _quieten()
    found, told = offline_first(
        source,
        f"a {kind} of transformers with safetensors weights",
        lambda here: getattr(transformers, kind).from_pretrained(
            _place(source),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=here,
            output_loading_info=True,
            dtype=dtype,
        ),
    )
    whole(source, kind, told["missing_keys"])
    return cast(nn.Module, found.requires_grad_(False).eval())


def whole(source: str, kind: str, missing: set[str]) -> None:
    """Refuse a network of which some weights are in no file."""
    if missing:
        raise UserError(
            f"{source!r} lacks {len(missing)} of the weights of a {kind}, {min(missing)!r} among "
            f"them: give the folder or hub id of a whole {kind}"
        )


def tokenizer(source: str, *, revision: str | None) -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    _quieten()
    return offline_first(
        source,
        "a tokenizer",
        lambda here: AutoTokenizer.from_pretrained(
            _place(source), revision=revision, trust_remote_code=False, local_files_only=here
        ),
    )


def file(source: str, name: str, *, revision: str | None) -> Path:
    """A file of a folder or hub id, on this machine. Raises UserError where there is none."""
    if hub.is_local(source):
        path = Path(_place(source)) / name
        if not path.is_file():
            raise UserError(f"{source!r} holds no {name}: give a folder that does, or a hub id")
        return path
    from huggingface_hub import hf_hub_download

    return offline_first(
        source,
        f"a model with {name}",
        lambda here: Path(hf_hub_download(source, name, revision=revision, local_files_only=here)),
    )


def preprocessing(source: str, *, revision: str | None) -> dict[str, Any]:
    """The rules by which a folder or hub id prepares pictures; empty where it has none."""
    told = _settings(source, "preprocessor_config.json", revision)
    if told:
        return told  # newer versions of transformers keep them elsewhere
    found = _settings(source, "processor_config.json", revision).get("image_processor", {})
    return cast("dict[str, Any]", found)


def _settings(source: str, name: str, revision: str | None) -> dict[str, Any]:
    try:
        path = file(source, name, revision=revision)
    except UserError:
        return {}
    try:
        return cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}): fetch or save it again") from error


def identity(source: str, *, revision: str | None) -> dict[str, str]:
    """What exactly a source is: the sha256 of a folder's safetensors, or a hub id's commit."""
    if not hub.is_local(source):
        snapshot = file(source, "config.json", revision=revision).parent
        return {"source": source, "revision": revision or "main", "commit": snapshot.name}
    folder = Path(_place(source))
    weights = sorted(folder.glob("*.safetensors"))
    return {"source": source} | {f"sha256 {path.name}": sha256(path) for path in weights}


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _place(source: str) -> str:
    return str(Path(source).expanduser()) if hub.is_local(source) else source


def refuse_pickles(source: str, fix: str) -> None:
    """Refuse a folder that is missing or holds weights as pickles only; `fix` is a command."""
    if not hub.is_local(source):
        return
    folder = Path(_place(source))
    if not folder.exists():
        raise UserError(f"model folder {source!r} does not exist: check the path")
    files = [folder] if folder.is_file() else sorted(folder.iterdir())
    pickled = [path for path in files if path.suffix in PICKLES]
    if pickled and not any(path.suffix == ".safetensors" for path in files):
        raise UserError(
            f"{str(pickled[0])!r} is a pickle, which can run code when read; if you trust it, "
            f"convert it once: {fix}"
        )
    if folder.is_file():
        raise UserError(f"{source!r} is a file: give the folder of the model")


def offline_first(source: str, what: str, load: Callable[[bool], T]) -> T:
    """`load(True)` from files here; if they are not here, `load(False)` from the hub.

    Raises UserError where neither has it; the hub is first asked, once, whether it is there.
    """
    try:
        return hub.offline_first(load, local=hub.is_local(source))
    except Exception as error:  # a missing hub, id, file or shape: each has its own kind
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        fix = f"give a folder, or the hub id, of {what}"
        if isinstance(error, hub.NotAsked):
            fix = f"{hub.fetched(source, 'model')} of {what}"
        raise UserError(f"cannot load {source!r} ({first_line}): {fix}") from error


def _quieten() -> None:
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
