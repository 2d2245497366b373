"""Folders of diffusers' pipelines: what an index says, which files hold the weights, and loading
all of them, whole and unpickled."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from scoretune.core import hub, reading
from scoretune.core.errors import UserError
from scoretune.models.quantized import Quantization, drop_wide_copies

INDEX = "model_index.json"
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(\w+))?(?:-\d+-of-\d+)?\.safetensors"
)
"""Files of weights; the group is their variant, as in model.fp16.safetensors."""
PROCESSOR = "Qwen2VLProcessor"
"""Reads pictures and videos, the latter by torchvision."""
LIBRARIES = ("diffusers", "transformers")
LONGEST = 77
"""Tokens of a prompt, of a tokenizer that does not say: CLIP's."""
UNSET = 10**6
"""What transformers takes for "no limit" is beyond this."""


def described(source: str, revision: str | None = None) -> dict[str, Any]:
    """`model_index.json` of a folder or hub id, by part. Raises UserError where there is none."""
    if hub.is_local(source):
        return _checked(source, _index_of(Path(source)))
    import diffusers  # only now: importing it warns of torchvision

    hub.quieten()
    return hub.offline_first(
        source,
        "a diffusers pipeline with safetensors weights",
        lambda here: _checked(
            source,
            diffusers.DiffusionPipeline.load_config(
                source, revision=revision, local_files_only=here
            ),
        ),
        setting="model.source",
    )


def check_processor(source: str, index: Mapping[str, Any]) -> None:
    """Refuse a pipeline that reads pictures by a class which transformers cannot make here."""
    if index.get("processor") == ["transformers", PROCESSOR] and not find_spec("torchvision"):
        raise UserError(
            f"{source!r} reads pictures with a {PROCESSOR}, for which transformers needs "
            "torchvision: pip install torchvision"
        )


def _index_of(folder: Path) -> Any:
    if folder.is_file():
        raise UserError(_single_file(folder))
    if not folder.is_dir():
        raise UserError(f"model folder {str(folder)!r} does not exist: check the path")
    try:
        return reading.read_json(folder / INDEX)
    except (OSError, ValueError):
        raise UserError(
            f"{str(folder)!r} is no diffusers pipeline (no readable {INDEX}): "
            "save one with pipe.save_pretrained(folder)"
        ) from None


def _checked(source: str, index: Any) -> dict[str, Any]:
    """An index that is one: parts by name, each a library and a class, or none."""
    if not isinstance(index, dict):
        raise UserError(
            f"the {INDEX} of {source!r} holds a {type(index).__name__}, no parts by their names: "
            "save the pipeline with pipe.save_pretrained(folder)"
        )
    kind = index.get("_class_name")
    if not isinstance(kind, str):
        raise UserError(
            f"the {INDEX} of {source!r} gives _class_name as {json.dumps(kind)[:80]}, which is no "
            "name of a class (code of a model's own is never run): write e.g. "
            "StableDiffusionPipeline"
        )
    for name, place in index.items():
        library_and_class = isinstance(place, list) and len(place) == 2
        if (
            isinstance(place, list)
            and name[:1] != "_"
            and not (
                library_and_class and all(each is None or isinstance(each, str) for each in place)
            )
        ):
            raise UserError(
                f"the {INDEX} of {source!r} gives {name} as {json.dumps(place)[:80]}: write a "
                'library and a class, as ["diffusers", "UNet2DConditionModel"]'
            )
    return index


def _single_file(path: Path) -> str:
    """What a file is that was given in place of a folder."""
    from safetensors import SafetensorError, safe_open

    hub.refuse_pickle(path, "model.source takes the folder or hub id of a diffusers pipeline")
    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError):
        return f"{str(path)!r} is a file, and no safetensors: give the folder of a pipeline"
    if any(".lora" in name or "lora_" in name for name in names):
        return (
            f"{str(path)!r} is a LoRA, no model: set model.source to the model that it was trained "
            "on (scoretune gap takes it as --lora)"
        )
    return (
        f"{str(path)!r} is a model in a single file, and model.source takes a folder: convert it "
        "once by pipe = StableDiffusionPipeline.from_single_file(FILE) (or the class it is of); "
        "pipe.save_pretrained(FOLDER)"
    )


# ------------------------------------------------------------------------------------ loading


Dtype = torch.dtype | Mapping[str, torch.dtype]
"""Of all parts, or of each by its name (float32 where it is not named)."""


def load_pipeline(
    kind: str,
    source: str,
    *,
    revision: str | None,
    dtype: Dtype,
    without: Sequence[str] = (),
    quantize: Quantization | None = None,
) -> Any:
    """The frozen pipeline of that class. Raises UserError for another class, for pickles, and for a
    part that lacks a weight."""
    index = described(source, revision)
    if index["_class_name"] != kind:
        raise UserError(
            f"{source!r} holds a {index['_class_name']}, not a {kind}: give a folder or hub id "
            "of one"
        )
    absent = {part for part, place in index.items() if place == [None, None]}
    left_out = absent | set(without)
    import diffusers

    hub.quieten()
    made = getattr(diffusers, kind)

    def load(here: bool) -> Any:
        folder = Path(source)
        if not hub.is_local(source):
            folder = _fetched(made, source, index, left_out, revision=revision, here=here)
        for path in (path for name in index for path in (folder / name).glob("*")):
            hub.refuse_endless(path)
        parts = {
            name: _part(source, folder / name, place, dtype, quantize)
            for name, place in _networks(index).items()
            if name not in left_out
        }
        return made.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            **parts,
            **dict.fromkeys(left_out),
        )

    pipeline = hub.offline_first(
        source, f"a {kind} with safetensors weights", load, setting="model.source"
    )
    pipeline.set_progress_bar_config(disable=True)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval()
    if "vae" in pipeline.components:
        channels_last(pipeline.vae)
    return pipeline


def channels_last(vae: nn.Module) -> None:
    """Lay out the weights of an autoencoder of pictures so that it decodes in three quarters of the
    time."""
    if all(weight.dim() < 5 for weight in vae.parameters()):
        cast(Any, vae).to(memory_format=torch.channels_last)


def _fetched(
    made: Any,
    source: str,
    index: dict[str, Any],
    left_out: Collection[str],
    *,
    revision: str | None,
    here: bool,
) -> Path:
    """The cached folder of a hub id, of its fp16 variant where there is no other; `here`: nothing
    is downloaded."""
    failures: list[Exception] = []
    for variant in (None, "fp16"):
        try:
            folder = Path(
                made.download(
                    source,
                    revision=revision,
                    variant=variant,
                    use_safetensors=True,
                    local_files_only=here,
                    **dict.fromkeys(left_out),
                )
            )
        except Exception as error:  # of many kinds: tried with the other variant
            failures.append(error)
            continue
        if all(_variants(folder / name) for name in _networks(index) if name not in left_out):
            return folder
    if failures:
        raise failures[0]
    return folder


def _networks(index: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """The classes of the parts that have weights, with their library, by the part's name."""
    networks = {}
    for name, place in index.items():
        if isinstance(place, list) and place[0] in LIBRARIES:
            made = getattr(importlib.import_module(place[0]), place[1], None)
            if isinstance(made, type) and issubclass(made, nn.Module):
                networks[name] = (made, place[0])
    return networks


def _part(
    source: str,
    folder: Path,
    place: tuple[Any, str],
    dtype: Dtype,
    quantize: Quantization | None = None,
) -> nn.Module:
    """A network with all of its weights. Raises UserError for pickles and for one that is missing,
    in whose place transformers puts random numbers."""
    made, library = place
    if folder.is_dir():
        hub.refuse_pickles(
            folder,
            "if you trust it, convert it once: "
            f"p = {source!r}; DiffusionPipeline.from_pretrained(p).save_pretrained(p)",
        )
    of_part = dtype.get(folder.name, torch.float32) if isinstance(dtype, Mapping) else dtype
    packed = {}
    if quantize is not None and quantize.covers(folder.name):
        packed["quantization_config"] = quantize.config(library, of_part)
    loaded, report = made.from_pretrained(
        str(folder),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        variant=_variant(source, folder),
        dtype=of_part,
        **packed,
    )
    missing = sorted(report["missing_keys"])
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"the {folder.name} of {source!r} lacks the weight {missing[0]}{others}: get the "
            f"folder whole, {library} would put random numbers in its place"
        )
    if packed:
        drop_wide_copies(loaded)
    return loaded  # type: ignore[no-any-return]


def weight_files(source: str, folder: Path) -> list[Path]:
    """The files of a part's weights that are loaded."""
    variant = _variant(source, folder)
    matches = {path: WEIGHTS.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))}
    return [path for path, match in matches.items() if match and match.group(1) == variant]


def _variants(folder: Path) -> set[str | None]:
    """The variants of the weights in a folder, None for the plain ones."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return {match.group(1) for match in map(WEIGHTS.fullmatch, names) if match}


def _variant(source: str, folder: Path) -> str | None:
    """The variant to load: plain weights where there are some, else the only one there is."""
    variants = _variants(folder)
    if len(variants) > 1 and None not in variants:
        names = ", ".join(sorted(map(str, variants)))
        raise UserError(
            f"the {folder.name} of {source!r} has weights in several variants ({names}) and none "
            "that is plain: leave one of them in the folder"
        )
    return None if None in variants or not variants else variants.pop()


# ------------------------------------------------------------------------- what is mended, said


def left_out(index: dict[str, Any], parts: Sequence[str]) -> list[str]:
    """A line of the parts that the pipeline has and a family never loads."""
    present = [name for name in parts if index.get(name) not in (None, [None, None])]
    names = " and ".join(name.replace("_", " ") for name in present)
    return [f"the {names} of the pipeline is left out"] if present else []


def mend_tokenizers(source: str, pipeline: Any) -> list[str]:
    """Give tokenizers the length and the padding that they do not say; a line for each.

    The length is what the encoder has places for, at most 77; padding is the end of a text. Raises
    UserError for one that knows no end either.
    """
    lines = []
    for name, part in pipeline.components.items():
        if not name.startswith("tokenizer") or part is None:
            continue
        if part.model_max_length > UNSET:
            encoder = pipeline.components.get(name.replace("tokenizer", "text_encoder"))
            known = {} if encoder is None else encoder.config.to_dict()
            places = known.get("max_position_embeddings")
            part.model_max_length = min(places or LONGEST, LONGEST)
            lines.append(
                f"the {name} does not say how long a prompt may be: {part.model_max_length} tokens"
            )
            if name == "tokenizer" and "tokenizer_max_length" in vars(pipeline):
                pipeline.tokenizer_max_length = part.model_max_length
        if part.pad_token is None:
            if part.eos_token is None:
                raise UserError(
                    f"the {name} of {source!r} has neither a padding nor an end token: name one in "
                    f"{name}/tokenizer_config.json, as pad_token"
                )
            part.pad_token = part.eos_token
            lines.append(f"the {name} has no padding: {part.eos_token} takes its place")
    return lines
