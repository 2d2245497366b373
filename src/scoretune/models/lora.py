"""LoRA adapters (arXiv 2106.09685): added to a network, taken from it, merged into its weights, and
read from a file into a bare one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import fsdp
from scoretune.core.errors import UserError
from scoretune.diffusion.transitions import wide
from scoretune.models import lora_files
from scoretune.policy import adapter_layers

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
ADAPTER = "default"
"""peft's name of the one adapter of a network."""


def add_adapter(network: nn.Module, rank: int, targets: tuple[str, ...] = ATTENTION) -> None:
    """Give the network a LoRA adapter, the only part that is trained then."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=rank, lora_alpha=rank, init_lora_weights=True, target_modules=list(targets)
    )
    network.requires_grad_(False)
    try:
        inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    except ValueError as error:
        raise UserError(
            f"no layer named {', '.join(targets)} to adapt in {type(network).__name__}: "
            "set model.targets to names of its linear or convolution layers"
        ) from error
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = wide(parameter.data)  # half-precision updates would be lost


def adapter_state(network: nn.Module) -> dict[str, Tensor]:
    """The trained tensors by name: the adapter, or everything under full fine-tuning.

    Of weights that are spread over several processes the main one gets them whole, the others none.
    """
    return {name: fsdp.full_state(p.data) for name, p in _trained(network).items()}


@contextmanager
def exchanged(network: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context the parameters of these names have these values, the others their own."""
    parameters = {name: p for name, p in network.named_parameters() if name in weights}
    before = {name: p.data for name, p in parameters.items()}
    for name, parameter in parameters.items():
        parameter.data = weights[name].to(parameter)
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = before[name]


def restore_adapter(network: nn.Module, state: dict[str, Tensor]) -> None:
    """The inverse of `adapter_state`; both must name exactly the same tensors."""
    trained = _trained(network)
    shapes = ({name: tensor.shape for name, tensor in each.items()} for each in (trained, state))
    if next(shapes) != next(shapes):
        raise UserError("the checkpoint holds other layers than this run trains: same model.rank?")
    for name, parameter in trained.items():
        fsdp.copy_into(parameter, state[name])


def _trained(network: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in network.named_parameters() if p.requires_grad}


@torch.no_grad()
def deltas(network: nn.Module) -> dict[str, Tensor]:
    """What a LoRA adds to the weights of each layer, scale · B A in float32, by its name."""
    layers = _tuned(network).items()
    return {name: layer.get_delta_weight(ADAPTER).float() for name, layer in layers}


@torch.no_grad()
def add_deltas(network: nn.Module, changes: Mapping[str, Tensor]) -> None:
    """Add a change, in float32, to the weights of each layer that it names."""
    for name, change in changes.items():
        weight: Any = network.get_submodule(name).weight
        weight.data = (weight.data.float() + change.to(weight.device)).to(weight.dtype)


@torch.no_grad()
def merge_adapter(network: nn.Module) -> None:
    """Put a network's LoRA into its weights, and take it off: a bare network, frozen."""
    changes: Any = deltas(network)
    for name, layer in _tuned(network).items():
        network.set_submodule(name, layer.get_base_layer())
    add_deltas(network, changes)
    if "peft_config" in vars(network):
        del network.peft_config
    network.requires_grad_(False)


def _tuned(network: nn.Module) -> dict[str, Any]:
    """The layers that carry a LoRA, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {n: layer for n, layer in network.named_modules() if isinstance(layer, BaseTunerLayer)}


def load_lora(network: nn.Module, path: str | Path) -> None:
    """Give a bare network the LoRA in a file, a folder or a run folder, in float32 and frozen.

    Raises UserError for what no form fits, is a pickle, or belongs to another network.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.utils import set_peft_model_state_dict

    if adapter_layers(network):
        raise UserError("this model already has an adapter: --lora goes on a model without one")
    read = lora_files.read(Path(path), network)
    # What multiplies B A is here always an alpha over the rank.
    alphas = {name: read.scales[name] * rank for name, rank in read.ranks.items()}
    rank, alpha = (Counter(each.values()).most_common(1)[0][0] for each in (read.ranks, alphas))
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        rank_pattern={_only(name): r for name, r in read.ranks.items() if r != rank},
        alpha_pattern={_only(name): a for name, a in alphas.items() if a != alpha},
        target_modules=sorted(read.ranks),
    )
    network.requires_grad_(False)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # whatever the precision of the base
    try:
        result = set_peft_model_state_dict(network, dict(read.tensors), adapter_name=ADAPTER)
    except RuntimeError as error:
        raise lora_files.another(read.file, "a layer has another size there") from error
    if result.unexpected_keys:
        raise lora_files.another(read.file, f"it holds {result.unexpected_keys[0]}")
    network.requires_grad_(False)


def _only(name: str) -> str:
    """A pattern that this layer alone fits."""
    return f"^{re.escape(name)}"
