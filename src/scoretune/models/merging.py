"""A fine-tuned model as a whole: the pipeline it came from, with its trained weights."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import model_folder
from scoretune.core.config import Model
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.models import pipelines, score_network
from scoretune.models.base import Pipelined
from scoretune.models.export import ADAPTER
from scoretune.models.recycled import inner
from scoretune.policy import Backbone, Policy, adapter_layers

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def merge(policy: Policy, model: Model, folder: Path) -> Path:
    """Write the pipeline that `model` names with the policy's network; plain diffusers loads it.

    A LoRA is added in float32, W + scale · B A, to the weights as the base stores them, and saved
    in the base's dtype. Of a full fine-tuning the trained weights are saved as they were trained.
    Parts that the run did without, and a safety checker, are not there. Raises UserError for a
    folder that is in use and for a network of the user's own code.
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{str(folder)!r} is not empty: choose another --to for the merged model")
    own = inner(policy.backbone)
    try:
        if isinstance(own, score_network.ScoreNetwork):
            return _merge_own(own, model, folder)
        if isinstance(own, Pipelined):
            return _merge_pipeline(own, model, folder)
    except OSError as error:
        raise UserError(
            f"cannot write the merged model to {str(folder)!r} ({error}): choose another --to"
        ) from error
    raise UserError(
        f"{model.source} is made by code of your own, which is no pipeline to merge into: export "
        "its LoRA with --format peft"
    )


def mergeable(backbone: Backbone) -> bool:
    """Whether `merge` knows the form of a model."""
    return isinstance(inner(backbone), score_network.ScoreNetwork | Pipelined)


def _merge_pipeline(own: Pipelined, model: Model, folder: Path) -> Path:
    where = str(world.shipped(model.source)) if model.source in world.SHIPPED else model.source
    index = pipelines.described(where, model.revision)
    left_out = [name for name in ("safety_checker", *model.without) if name in index]
    stored: Any = {n: _stored(where, n, model.revision) for n, v in index.items() if _is_part(v)}
    base = pipelines.load(
        index["_class_name"], where, revision=model.revision, dtype=stored, without=left_out
    )
    trained, fresh = own.network, getattr(base, own.part)
    if adapter_layers(trained):
        _add(trained, fresh)
    else:
        state = trained.state_dict()
        fresh.to(next(iter(trained.parameters())).dtype).load_state_dict(state)
    base.save_pretrained(folder, safe_serialization=True)
    return folder


def _is_part(place: object) -> bool:
    """Whether an entry of a pipeline's index is a part that is there: [library, class]."""
    return isinstance(place, list) and place != [None, None]


def _add(trained: nn.Module, fresh: nn.Module) -> None:
    """Add every layer's scale · B A to the layer of that name in a network without an adapter."""
    for name, delta in deltas(trained).items():
        weight = fresh.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data = (weight.data.float() + delta.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def deltas(network: nn.Module) -> dict[str, Tensor]:
    """What a LoRA adds to the weights of each layer, in float32, by the layer's name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = {}
    for name, layer in network.named_modules():
        if isinstance(layer, BaseTunerLayer):
            kept: Any = layer
            found[name] = kept.get_delta_weight(ADAPTER).float()
    return found


def _merge_own(own: score_network.ScoreNetwork, model: Model, folder: Path) -> Path:
    """A network that learned from data, as a folder that `scoretune sample` and training take."""
    bare = score_network.ScoreNetwork(own.design, own.process, own.prediction, own.mean, own.std)
    home = model_folder.home(Path(model.source))
    if adapter_layers(own.network):
        assert home is not None, "the run loaded it from there"
        bare.network.load_state_dict(score_network.load(home).network.state_dict())
        _add(own.network, bare.network)
    else:
        bare.network.load_state_dict(own.network.state_dict())
    return score_network.save(bare, folder, score_network.notes(home) if home else None)


def _stored(where: str, part: str, revision: str | None) -> torch.dtype:
    """The dtype of most numbers of a pipeline's part on disk; float32 where that is unknown."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for file in sorted((_home(where, revision) / part).glob("*.safetensors")):
        if _variant(file):
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    piece = opened.get_slice(name)
                    counts[piece.get_dtype()] += max(1, torch.Size(piece.get_shape()).numel())
        except (SafetensorError, OSError):
            continue
    known = [kind for kind, _ in counts.most_common() if kind in DTYPES]
    return DTYPES[known[0]] if known else torch.float32


def _variant(file: Path) -> bool:
    """Whether a file is beside the plain one, as in `model.fp16.safetensors`."""
    return file.name.count(".") > 1


def _home(where: str, revision: str | None) -> Path:
    """The folder of a pipeline: itself, or where the hub's files are kept on this machine."""
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(where, "model_index.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else Path(where)
