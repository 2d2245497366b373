"""Taking a fine-tuned model elsewhere: its LoRA in the forms that others read, the pipeline that it
came from with what was learned in its weights, and either to the hub.

A LoRA changes a layer's weights by scale · B A, A [r, inputs] and B [outputs, r] (arXiv
2106.09685). Three forms write the same numbers down: `diffusers` for `pipe.load_lora_weights`,
`peft` for `PeftModel.from_pretrained`, and `kohya`, in which every layer has an alpha and
scale = alpha/r.
"""

from __future__ import annotations

import errno
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import files
from scoretune.core.config import Model
from scoretune.core.errors import UserError, first_line, unknown
from scoretune.models import folders, score_network
from scoretune.models.base import Pipelined
from scoretune.models.catalog import apply_run, resolve
from scoretune.models.lora import ADAPTER, adapter_state, add_deltas, deltas
from scoretune.models.lora_files import DOWN, NAME, UP
from scoretune.models.recycled import inner
from scoretune.policy import Backbone, Policy, adapter_layers


def lora(policy: Policy, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights(folder)`."""
    weights, part = _weights(policy), _part(policy.backbone)
    settings = {f"{part}.{name}": value for name, value in _settings(policy).items()}
    tensors = {f"{part}.{name}": weight for name, weight in weights.items()}
    # One entry: safetensors orders several at random, and equal runs end in equal files.
    files.save_tensors(folder / NAME, tensors, {"lora_adapter_metadata": json.dumps(settings)})
    return folder / NAME


def peft(policy: Policy, folder: Path) -> Path:
    """Write `adapter_model.safetensors` and its config, for `PeftModel.from_pretrained`."""
    settings = _settings(policy) | {"inference_mode": True}
    weights = {f"base_model.model.{name}": w for name, w in _weights(policy).items()}
    path = folder / "adapter_model.safetensors"
    files.save_tensors(path, weights, {"format": "pt"})
    files.write_json(folder / "adapter_config.json", dict(sorted(settings.items())))
    return path


def kohya(policy: Policy, folder: Path) -> Path:
    """Write `lora_kohya.safetensors`: layers by their names with underscores, each with an alpha.

    They begin with `lora_unet_`, or, in a transformer, with `lora_transformer_`: what diffusers
    reads of a UNet and of a Flux. diffusers believes in one alpha for all attention, so the most
    common one is written of every layer, and the up weights take what another's differs by.
    """
    prefix = "lora_unet_" if _part(policy.backbone) == "unet" else "lora_transformer_"
    network, weights, tensors = policy.backbone.network, _weights(policy), {}
    layers = {n.removesuffix(DOWN): len(w) for n, w in weights.items() if n.endswith(DOWN)}
    alphas = {n: scale_of(network.get_submodule(n)) * rank for n, rank in layers.items()}
    common = Counter(alphas.values()).most_common(1)[0][0]
    for name in layers:
        flat, up = prefix + name.replace(".", "_"), weights[name + UP]
        same = alphas[name] == common
        tensors[f"{flat}.lora_down.weight"] = weights[name + DOWN]
        tensors[f"{flat}.lora_up.weight"] = up if same else up * (alphas[name] / common)
        tensors[f"{flat}.alpha"] = torch.tensor(common, dtype=torch.float32)
    path = folder / "lora_kohya.safetensors"
    files.save_tensors(path, tensors, {"format": "pt"})
    return path


FORMS: dict[str, Callable[[Policy, Path], Path]] = {"diffusers": lora, "peft": peft, "kohya": kohya}


def write(policy: Policy, folder: Path, form: str = "diffusers") -> Path:
    """Write the adapter in a form by its name; the path of its weights."""
    check(form)
    try:
        return FORMS[form](policy, folder)
    except OSError as error:
        raise unwritten(folder, error) from error


def unwritten(folder: Path, error: OSError) -> UserError:
    """What a user does about a folder that cannot be written to."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    fix = "free some space there, or choose another --to" if full else "choose another --to"
    return UserError(f"cannot write to {str(folder)!r} ({error.strerror or error}): {fix}")


def check(form: str) -> None:
    """Refuse a form that does not exist."""
    if form not in FORMS:
        raise unknown("format", form, FORMS)


def scale_of(layer: nn.Module) -> float:
    """What an adapted layer multiplies B A with."""
    scaling: Mapping[str, float] = layer.scaling  # type: ignore[assignment]
    return float(scaling[ADAPTER])


def _weights(policy: Policy) -> dict[str, Tensor]:
    """The adapter's tensors by peft's names, `LAYER.lora_A.weight` and `LAYER.lora_B.weight`."""
    from peft.utils import get_peft_model_state_dict

    network: Any = policy.backbone.network
    if not adapter_state(network):
        raise UserError(
            "nothing to export: this model has no adapter; a run with model.rank=0 trained all "
            "weights, which --merge writes as a whole pipeline"
        )
    weights: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    strange = [n for n in weights if not n.endswith((DOWN, UP))]
    if strange:
        raise UserError(f"{strange[0]} is not of a plain LoRA: it cannot be exported")
    return {name: weight.detach().cpu() for name, weight in weights.items()}


def _settings(policy: Policy) -> dict[str, object]:
    network: Any = policy.backbone.network
    config = network.peft_config[ADAPTER].to_dict()
    return {key: _plain(value) for key, value in config.items()}


def _part(backbone: Backbone) -> str:
    """What the adapted network is called in its pipeline; a network of one's own, in none."""
    base = inner(backbone)
    return base.part if isinstance(base, Pipelined) else "unet"


def _plain(value: object) -> object:
    if isinstance(value, set | tuple):
        return sorted(map(str, value))
    return (
        value
        if isinstance(value, str | int | float | bool | list | dict) or value is None
        else str(value)
    )


# ------------------------------------------------------------------------------ as a whole

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
    base = inner(policy.backbone)
    try:
        with files.disk_errors(folder):
            return _merged(base, model, folder)
    except OSError as error:
        raise unwritten(folder, error) from error


def _merged(base: Backbone, model: Model, folder: Path) -> Path:
    if isinstance(base, score_network.ScoreNetwork):
        return _merge_score_network(base, model, folder)
    if isinstance(base, Pipelined):
        return _merge_pipeline(base, model, folder)
    raise UserError(
        f"{model.source} is made by code of your own, which is no pipeline to merge into: export "
        "its LoRA with --format peft"
    )


def _merge_pipeline(trained: Pipelined, model: Model, folder: Path) -> Path:
    source = resolve(model.source)
    model = source.settings(model)
    index = folders.described(source.where, model.revision)
    left_out = [name for name in ("safety_checker", *model.without) if name in index]
    stored: Any = {
        name: _stored(source.where, name, model.revision)
        for name, place in index.items()
        if isinstance(place, list) and place != [None, None]  # a part that is there
    }
    pipeline = folders.load_pipeline(
        index["_class_name"], source.where, revision=model.revision, dtype=stored, without=left_out
    )
    network = getattr(pipeline, trained.part)
    if adapter_layers(trained.network):
        for run in source.runs:
            apply_run(network, run)
        add_deltas(network, deltas(trained.network))
    else:
        dtype = next(iter(trained.network.parameters())).dtype
        network.to(dtype).load_state_dict(trained.network.state_dict())
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def _merge_score_network(trained: score_network.ScoreNetwork, model: Model, folder: Path) -> Path:
    """A network that learned from data, as a folder that `scoretune sample` and training take."""
    source = resolve(model.source)
    home = Path(source.where)
    bare = score_network.ScoreNetwork(
        trained.design,
        trained.process,
        trained.prediction,
        trained.mean,
        trained.std,
        trained.compression,
    )
    if adapter_layers(trained.network):
        bare.network.load_state_dict(score_network.load(home).network.state_dict())
        for run in source.runs:
            apply_run(bare.network, run)
        add_deltas(bare.network, deltas(trained.network))
    else:
        bare.network.load_state_dict(trained.network.state_dict())
    notes = score_network.notes(home) if source.kind == "score network" else None
    return score_network.save(bare, folder, notes)


def _stored(where: str, part: str, revision: str | None) -> torch.dtype:
    """The dtype of most numbers of a pipeline's part on disk; float32 where that is unknown."""
    from safetensors import SafetensorError, safe_open

    counts: Counter[str] = Counter()
    for file in folders.weight_files(where, _folder(where, revision) / part):
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    piece = opened.get_slice(name)
                    counts[piece.get_dtype()] += max(1, torch.Size(piece.get_shape()).numel())
        except (SafetensorError, OSError):
            continue
    dtypes = [kind for kind, _ in counts.most_common() if kind in DTYPES]
    return DTYPES[dtypes[0]] if dtypes else torch.float32


def _folder(where: str, revision: str | None) -> Path:
    """The folder of a pipeline: itself, or where the hub's files are kept on this machine."""
    if Path(where).is_dir():
        return Path(where)
    from huggingface_hub import try_to_load_from_cache

    index = try_to_load_from_cache(where, "model_index.json", revision=revision)
    return Path(index).parent if isinstance(index, str) else Path(where)


# ------------------------------------------------------------------------------ to the hub


def hub() -> Any:
    """The hub as this machine's user. Raises UserError without a token and when offline."""
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise UserError("cannot reach the hub: HF_HUB_OFFLINE is set; unset it to push")
    if get_token() is None:
        raise UserError("the hub wants a token that may write: hf auth login, or set HF_TOKEN")
    return HfApi()


def push(folder: Path, name: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder as the model `ORG/NAME` of the hub, private unless `public`; its URL.

    `api` is `hub()`, or stands for it. Raises UserError where the hub cannot be reached, and for
    what it refuses. A model that is there keeps its visibility.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"--push takes the name of a model as ORG/NAME, got {name!r}")
    api = api or hub()
    try:
        url = api.create_repo(name, private=not public, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=str(folder), commit_message="Upload by scoretune"
        )
    except HFValidationError as error:
        raise UserError(f"--push {name!r}: {error}") from error
    except HfHubHTTPError as error:
        raise UserError(
            f"the hub refused to take {name!r} ({first_line(error)}): may your token write there?"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot reach the hub ({first_line(error)}): go online, unset HF_HUB_OFFLINE, or "
            f"upload {str(folder)!r} later"
        ) from error
    return str(url)
