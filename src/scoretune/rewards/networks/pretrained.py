"""Networks of transformers, from a folder or the hub: loaded whole and unpickled, or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from scoretune.core import hub, reading
from scoretune.core.errors import UserError


def network(
    kind: str, source: str, *, revision: str | None, dtype: torch.dtype, unused: Sequence[str] = ()
) -> nn.Module:
    """The frozen network of that class of transformers, every weight of it from the files.

    transformers fills weights that a file lacks with random numbers; here that is a UserError, as
    is a missing folder or hub id, a network of another kind, and a pickle. Weights whose names
    begin with `unused` may be missing.
    """
    refuse_pickles(
        source,
        f'python -c "import transformers as t; t.{kind}.from_pretrained({source!r})'
        ".save_pretrained('FOLDER')\"",
    )
    import transformers

    hub.quieten()
    loaded, report = hub.offline_first(
        source,
        f"a {kind} of transformers with safetensors weights",
        lambda here: getattr(transformers, kind).from_pretrained(
            hub.place(source),
            revision=revision,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=here,
            output_loading_info=True,
            dtype=dtype,
        ),
    )
    missing = [key for key in report["missing_keys"] if not key.startswith(tuple(unused))]
    if missing:
        kind = type(loaded).__name__
        raise UserError(
            f"{source!r} lacks {len(missing)} of the weights of a {kind}, {min(missing)!r} among "
            f"them: give the folder or hub id of a whole {kind}"
        )
    return cast(nn.Module, loaded.requires_grad_(False).eval())


def tokenizer(source: str, *, revision: str | None) -> Any:
    """The tokenizer of a folder or hub id."""
    from transformers import AutoTokenizer

    hub.quieten()
    return hub.offline_first(
        source,
        "a tokenizer",
        lambda here: AutoTokenizer.from_pretrained(
            hub.place(source), revision=revision, trust_remote_code=False, local_files_only=here
        ),
    )


def file(source: str, name: str, *, revision: str | None) -> Path:
    """A file of a folder or hub id, on this machine. Raises UserError where there is none."""
    if hub.is_local(source):
        path = Path(hub.place(source)) / name
        if not path.is_file():
            raise UserError(f"{source!r} holds no {name}: give a folder that does, or a hub id")
        return path
    from huggingface_hub import hf_hub_download

    return hub.offline_first(
        source,
        f"a model with {name}",
        lambda here: Path(hf_hub_download(source, name, revision=revision, local_files_only=here)),
    )


def preprocessing(source: str, *, revision: str | None) -> dict[str, Any]:
    """The rules by which a folder or hub id prepares pictures; empty where it has none."""
    rules = _settings(source, "preprocessor_config.json", revision)
    if rules:
        return rules
    # Newer versions of transformers keep them elsewhere.
    elsewhere = _settings(source, "processor_config.json", revision).get("image_processor", {})
    return cast("dict[str, Any]", elsewhere)


def model_type(source: str, *, revision: str | None) -> str:
    """What the config.json of a folder or hub id says that it is, such as "clip"; else empty."""
    if hub.is_local(source) and not Path(hub.place(source)).is_dir():
        raise UserError(f"model folder {source!r} does not exist: check the path")
    return str(_settings(source, "config.json", revision).get("model_type", ""))


def _settings(source: str, name: str, revision: str | None) -> dict[str, Any]:
    try:
        path = file(source, name, revision=revision)
    except UserError:
        return {}
    try:
        return cast("dict[str, Any]", reading.read_json(path))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {str(path)!r} ({error}): fetch or save it again") from error


def identity(source: str, *, revision: str | None, part: str = "") -> dict[str, str]:
    """The sha256 of a folder's safetensors, or a hub id's commit; keys begin with `part`."""
    if hub.is_local(source):
        weights = sorted(Path(hub.place(source)).glob("*.safetensors"))
        exact = {f"sha256 {path.name}": hub.sha256(path) for path in weights}
    else:
        snapshot = file(source, "config.json", revision=revision).parent
        exact = {"revision": revision or "main", "commit": snapshot.name}
    return {f"{part}{key}": value for key, value in {"source": source, **exact}.items()}


def refuse_pickles(source: str, fix: str) -> None:
    """Refuse a folder that is missing or holds weights as pickles only; `fix` is a command."""
    if not hub.is_local(source):
        return
    folder, fix = Path(hub.place(source)), f"if you trust it, convert it once: {fix}"
    if not folder.exists():
        raise UserError(f"model folder {source!r} does not exist: check the path")
    if folder.is_file():
        hub.refuse_pickle(folder, fix)
        raise UserError(f"{source!r} is a file: give the folder of the model")
    hub.refuse_pickles(folder, fix)
