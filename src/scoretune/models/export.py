"""Taking a fine-tuned model elsewhere: its LoRA in the forms that others read, and to the hub.

A LoRA changes a layer's weights by scale · B A, A [r, inputs] and B [outputs, r] (arXiv
2106.09685). Three forms write the same numbers down: `diffusers` for `pipe.load_lora_weights`,
`peft` for `PeftModel.from_pretrained`, and `kohya`, in which every layer has an alpha and
scale = alpha/r.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core.errors import UserError, unknown
from scoretune.models.base import Pipelined
from scoretune.models.lora import adapter_state
from scoretune.models.recycled import inner
from scoretune.policy import Backbone, Policy

ADAPTER = "default"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # peft's names for A and B


def lora(policy: Policy, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights(folder)`."""
    weights, part = _weights(policy), _part(policy.backbone)
    settings = {f"{part}.{name}": value for name, value in _settings(policy).items()}
    return _write(
        folder / "pytorch_lora_weights.safetensors",
        {f"{part}.{name}": weight for name, weight in weights.items()},
        # One entry: safetensors orders several at random, and equal runs end in equal files.
        {"lora_adapter_metadata": json.dumps(settings)},
    )


def peft(policy: Policy, folder: Path) -> Path:
    """Write `adapter_model.safetensors` and its `adapter_config.json`.

    `PeftModel.from_pretrained(network, folder)` reads them, `network` being the pipeline's own.
    """
    settings = _settings(policy) | {"inference_mode": True}
    weights = {f"base_model.model.{name}": w for name, w in _weights(policy).items()}
    path = _write(folder / "adapter_model.safetensors", weights, {"format": "pt"})
    text = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
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
    return _write(folder / "lora_kohya.safetensors", tensors, {"format": "pt"})


FORMS: dict[str, Callable[[Policy, Path], Path]] = {
    "diffusers": lora,
    "peft": peft,
    "kohya": kohya,
}


def write(policy: Policy, folder: Path, form: str = "diffusers") -> Path:
    """Write the adapter in a form by its name; the path of its weights."""
    check(form)
    try:
        return FORMS[form](policy, folder)
    except OSError as error:
        raise UserError(
            f"cannot write to {str(folder)!r} ({error.strerror or error}): choose another --to"
        ) from error


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
    found: dict[str, Tensor] = get_peft_model_state_dict(network, adapter_name=ADAPTER)
    strange = [n for n in found if not n.endswith((DOWN, UP))]
    if strange:
        raise UserError(f"{strange[0]} is not of a plain LoRA: it cannot be exported")
    return {name: weight.detach().cpu().contiguous() for name, weight in found.items()}


def _settings(policy: Policy) -> dict[str, object]:
    network: Any = policy.backbone.network
    config = network.peft_config[ADAPTER].to_dict()
    return {key: _plain(value) for key, value in config.items()}


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Path:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata)
    return path


def _part(backbone: Backbone) -> str:
    """What the adapted network is called in its pipeline; a network of one's own, in none."""
    own = inner(backbone)
    return own.part if isinstance(own, Pipelined) else "unet"


def _plain(value: object) -> object:
    if isinstance(value, set | tuple):
        return sorted(map(str, value))
    return (
        value
        if isinstance(value, str | int | float | bool | list | dict) or value is None
        else str(value)
    )


# ------------------------------------------------------------------------------ to the hub


def hub() -> Any:
    """The hub as this machine's user. Raises UserError without a token, or told to be offline."""
    from huggingface_hub import HfApi, get_token, is_offline_mode

    if is_offline_mode():
        raise UserError("cannot reach the hub: HF_HUB_OFFLINE is set; unset it to push")
    if get_token() is None:
        raise UserError("the hub wants a token that may write: hf auth login, or set HF_TOKEN")
    return HfApi()


def push(folder: Path, name: str, *, public: bool = False, api: Any = None) -> str:
    """Upload a folder as the model `ORG/NAME` of the hub, private unless told otherwise; its URL.

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
            f"the hub refused to take {name!r} ({_first_line(error)}): may your token write there?"
        ) from error
    except OSError as error:
        raise UserError(
            f"cannot reach the hub ({_first_line(error)}): go online, unset HF_HUB_OFFLINE, or "
            f"upload {str(folder)!r} later"
        ) from error
    return str(url)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
