"""Taking a fine-tuned model elsewhere: a LoRA that plain diffusers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scoretune.backbones.base import Backbone, Pipelined
from scoretune.backbones.recycled import inner
from scoretune.errors import UserError
from scoretune.policy import Policy, adapter_state


def lora(policy: Policy, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors` for `pipe.load_lora_weights(folder)`."""
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    network: Any = policy.backbone.network
    if not adapter_state(network):
        raise UserError("nothing to export: this model has no adapter")
    weights = get_peft_model_state_dict(network, adapter_name="default")
    part = _part(policy.backbone)
    tensors = {f"{part}.{name}": w.detach().cpu().contiguous() for name, w in weights.items()}
    config = network.peft_config["default"].to_dict()
    plain = {key: _plain(value) for key, value in config.items()}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "pytorch_lora_weights.safetensors"
    # One entry: safetensors orders several at random, and equal runs must end in equal files.
    metadata = {"lora_adapter_metadata": json.dumps({f"{part}.{k}": v for k, v in plain.items()})}
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
