"""Folders of models, what they are, without torch: networks of one's own, as a run on data leaves
them, and diffusers' pipelines."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from scoretune.core import hub, reading
from scoretune.core.errors import UserError

FORMAT = "scoretune score network 1"
INDEX, DENOISERS = "model_index.json", ("unet", "transformer")


def home(folder: Path) -> Path | None:
    """The model folder that a folder is, or that a run folder holds; None where there is none."""
    for place in (folder, folder / "model"):
        try:
            if described(place).get("format") == FORMAT:
                return place
        except (OSError, ValueError, AttributeError):
            continue
    return None


def described(folder: Path) -> dict[str, Any]:
    """What the configuration of a model folder says. Raises OSError or ValueError."""
    return cast("dict[str, Any]", reading.read_json(folder / "config.json"))


LEAST = 100 * 2**20
"""Bytes of a denoiser: what is published of a family says nothing of a miniature below it."""


def pipeline_class(source: str, revision: str | None = None) -> str | None:
    """The class of the pipeline in a folder, a hub id or below a run, of a published size; None for
    a miniature, and for what is none or not to be had."""
    folder = Path(source)
    try:
        if (folder / "run.json").is_file() and not (folder / INDEX).exists():
            model = reading.read_json(folder / "run.json")["config"]["model"]
            return pipeline_class(model["source"], model["revision"])
        if not folder.is_dir():
            folder = _cached(source, revision)
        named = reading.read_json(folder / INDEX)["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None
    weights = [file for part in DENOISERS for file in (folder / part).glob("*.safetensors")]
    small = bool(weights) and sum(file.stat().st_size for file in weights) < LEAST
    return None if small or not isinstance(named, str) else named


def is_hub_id(source: str) -> bool:
    """Whether a source has the form ORG/NAME, and is no path."""
    return source.count("/") == 1 and not hub.is_local(source) and ":" not in source


def is_described(source: str, revision: str | None = None) -> bool:
    """Whether the index of a hub id is in the cache, or could be downloaded."""
    try:
        return (_cached(source, revision) / INDEX).is_file()
    except (OSError, UserError):
        return False


def _cached(source: str, revision: str | None) -> Path:
    """The folder of a hub id in this machine's cache, its index downloaded where it was not."""
    from huggingface_hub import hf_hub_download

    def load(here: bool) -> Path:
        index = hf_hub_download(source, INDEX, revision=revision, local_files_only=here)
        return Path(index).parent

    if not is_hub_id(source):
        raise FileNotFoundError(source)
    return hub.offline_first(source, "a diffusers pipeline", load, setting="model.source")
