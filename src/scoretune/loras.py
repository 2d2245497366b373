"""A LoRA from a file into a bare network: what `export.lora` wrote, or another's of that format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoretune.errors import UserError
from scoretune.policy import adapter_layers

NAME = "pytorch_lora_weights.safetensors"
PREFIXES = ("unet.", "transformer.")  # of the network that denoises, in a file for a whole pipeline
PICKLES = {".bin", ".ckpt", ".pt", ".pth", ".pkl"}


def load(network: nn.Module, path: Path) -> None:
    """Give a bare network the adapter in a file or folder; nothing of it is trained.

    Raises UserError for what cannot be read, is a pickle, or belongs to another network.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    if adapter_layers(network):
        raise UserError("this model already has an adapter: --lora goes on a model without one")
    file = _file(path)
    tensors, settings = _read(file)
    ranks = {name.removesuffix(".lora_A.weight"): len(w) for name, w in tensors.items() if _a(name)}
    known = dict(network.named_modules())
    strange = sorted(set(ranks) - set(known))
    if strange or not ranks:
        raise _another(file, f"it adapts {strange[0]}" if strange else "it adapts nothing")
    common = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=common,
        lora_alpha=settings.get("lora_alpha", common),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != common},
        alpha_pattern=settings.get("alpha_pattern", {}),
        use_rslora=bool(settings.get("use_rslora", False)),
        target_modules=sorted(ranks),
    )
    network.requires_grad_(False)
    inject_adapter_in_model(config, network, adapter_name="default")
    try:
        result = set_peft_model_state_dict(network, tensors, adapter_name="default")
    except RuntimeError as error:
        raise _another(file, "a layer has another size there") from error
    if result.unexpected_keys:
        raise _another(file, f"it holds {result.unexpected_keys[0]}")
    network.requires_grad_(False)


def _a(name: str) -> bool:
    return name.endswith(".lora_A.weight")


def _another(file: Path, why: str) -> UserError:
    return UserError(
        f"the LoRA {str(file)!r} is not of this model ({why}): give the model it was trained on"
    )


def _file(path: Path) -> Path:
    """The one file that is meant by a file, a folder with it, or a run folder."""
    if path.suffix in PICKLES:
        raise UserError(
            f"{str(path)!r} is a pickle, which can run code when read: give a .safetensors file"
        )
    if path.is_file():
        return path
    for folder in (path, path / "lora"):
        if (folder / NAME).is_file():
            return folder / NAME
    found = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(found) == 1:
        return found[0]
    if path.is_dir() and not found and any(p.suffix in PICKLES for p in path.iterdir()):
        raise UserError(f"{str(path)!r} holds pickles only: convert the LoRA to .safetensors")
    why = "holds no one .safetensors file" if path.is_dir() else "does not exist"
    raise UserError(f"the LoRA {str(path)!r} {why}: give the file, or the folder {NAME} is in")


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by peft's names, without the prefix, and the adapter's own settings."""
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            noted = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
        described = _bare(json.loads(noted))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} cannot be read as safetensors ({error}): give a LoRA that was saved so"
        ) from error
    if any(name.startswith("text_encoder") for name in tensors):
        raise UserError(
            f"the LoRA {str(file)!r} also adapts a text encoder, which is left as it is here: give "
            "one of the denoising network alone"
        )
    named = convert_unet_state_dict_to_peft(_bare(tensors))
    alphas = {n.removesuffix(".alpha"): float(named.pop(n)) for n in list(named) if _alpha(n)}
    return named, {"alpha_pattern": alphas} | described


def _alpha(name: str) -> bool:
    return name.endswith(".alpha")


def _bare(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the denoising network by their names in it; all, where none has a prefix."""
    for prefix in PREFIXES:
        own = {n.removeprefix(prefix): v for n, v in entries.items() if n.startswith(prefix)}
        if own:
            return own
    return dict(entries)
