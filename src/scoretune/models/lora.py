"""LoRA adapters (arXiv 2106.09685): added to a network, taken from it, merged into its weights, and
read from a file into a bare one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import fsdp, hub
from scoretune.core.errors import UserError
from scoretune.diffusion.transitions import wide
from scoretune.policy import adapter_layers

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
NAME = "pytorch_lora_weights.safetensors"
# Of the network that denoises: in a file for a whole pipeline, and in peft's.
PREFIXES = ("unet.", "transformer.", "base_model.model.")
KOHYA = ("lora_unet_", "lora_transformer_")
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # peft's names of A and B
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
    file = _file(Path(path))
    tensors, settings = _read(file, network)
    ranks = {n.removesuffix(DOWN): len(w) for n, w in tensors.items() if n.endswith(DOWN)}
    _check(file, tensors, ranks, dict(network.named_modules()))
    common = Counter(ranks.values()).most_common(1)[0][0]
    config = LoraConfig(
        r=common,
        lora_alpha=settings.get("lora_alpha", common),
        rank_pattern={f"^{name}": rank for name, rank in ranks.items() if rank != common},
        # Without a word on alphas they are the ranks: W + B A in every layer.
        alpha_pattern=settings.get("alpha_pattern") or _exactly(ranks, settings),
        use_rslora=bool(settings.get("use_rslora", False)),
        target_modules=sorted(ranks),
    )
    network.requires_grad_(False)
    inject_adapter_in_model(config, network, adapter_name=ADAPTER)
    for name, parameter in network.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()  # whatever the precision of the base
    try:
        result = set_peft_model_state_dict(network, tensors, adapter_name=ADAPTER)
    except RuntimeError as error:
        raise _another(file, "a layer has another size there") from error
    if result.unexpected_keys:
        raise _another(file, f"it holds {result.unexpected_keys[0]}")
    network.requires_grad_(False)


def _exactly(ranks: Mapping[str, int], settings: Mapping[str, Any]) -> dict[str, float]:
    """Alphas of layers by their full names: those that tensors gave, else the ranks."""
    if "lora_alpha" in settings:
        return {}
    alphas = settings.get("alphas", {})
    return {f"^{name}": alphas.get(name, rank) for name, rank in ranks.items()}


def _check(
    file: Path, tensors: Mapping[str, Tensor], ranks: Mapping[str, int], layers: Mapping[str, Any]
) -> None:
    """Refuse a LoRA that is of another network, or that is not made of plain numbers."""
    strange = sorted(set(ranks) - set(layers))
    if strange or not ranks:
        raise _another(file, f"it adapts {strange[0]}" if strange else "it adapts nothing")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"the LoRA {str(file)!r} holds {kind} numbers ({name}): give one in float32, "
                "bfloat16 or float16, which may be mixed"
            )
    for name in ranks:
        up = tensors.get(name + UP)
        if up is None:
            raise UserError(f"the LoRA {str(file)!r} lacks half of the layer {name}: get it anew")
        if isinstance(layers[name], nn.Linear):
            theirs = (len(up), tensors[name + DOWN].shape[1])
            ours = (layers[name].out_features, layers[name].in_features)
            if theirs != ours:
                sizes = " and ".join(f"{inputs} to {outputs}" for outputs, inputs in (theirs, ours))
                raise _another(file, f"{name} takes {sizes} numbers, there and here")


def _another(file: Path, why: str) -> UserError:
    return UserError(
        f"the LoRA {str(file)!r} is not of this model ({why}): give the model it was trained on"
    )


def _file(path: Path) -> Path:
    """The one file that is meant by a file, a folder with it, or a run folder."""
    hub.refuse_pickle(path, "give a .safetensors file")
    if path.is_file():
        return path
    for folder in (path, path / "lora"):
        if (folder / NAME).is_file():
            return folder / NAME
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else []
    if len(files) == 1:
        return files[0]
    if path.is_dir():
        hub.refuse_pickles(path, "convert the LoRA to .safetensors")
    why = "holds no one .safetensors file" if path.is_dir() else "does not exist"
    raise UserError(f"the LoRA {str(path)!r} {why}: give the file, or the folder {NAME} is in")


def _read(file: Path, network: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by peft's names, without the prefix, and the adapter's own settings."""
    from diffusers.utils import convert_unet_state_dict_to_peft
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
        settings = _bare(json.loads(metadata)) or _beside(file)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} cannot be read as safetensors ({error}): give a LoRA that was saved so"
        ) from error
    if any(name.startswith(("text_encoder", "lora_te")) for name in tensors):
        raise UserError(
            f"the LoRA {str(file)!r} also adapts a text encoder, which is left as it is here: give "
            "one of the denoising network alone"
        )
    if any(".lora_down." in name for name in tensors):
        return _of_kohya(file, tensors, network)
    named = convert_unet_state_dict_to_peft(_bare(tensors))
    names = [name for name in named if name.endswith(".alpha")]
    alphas = {name.removesuffix(".alpha"): float(named.pop(name)) for name in names}
    return named, {"alphas": alphas} | settings


def _beside(file: Path) -> dict[str, Any]:
    """What peft wrote about an adapter, in a file of its own."""
    settings = file.with_name("adapter_config.json")
    if not settings.is_file():
        return {}
    return dict(json.loads(settings.read_text(encoding="utf-8")))


def _of_kohya(
    file: Path, tensors: dict[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Names with underscores are those of the network's layers, else of the original code's."""
    layers = {name.replace(".", "_"): name for name, _ in network.named_modules()}
    named, alphas = {}, {}
    for name, tensor in tensors.items():
        flat, _, end = name.partition(".")
        for prefix in KOHYA:
            flat = flat.removeprefix(prefix)
        layer = layers.get(flat)
        if layer is None:
            return _of_original(file, tensors, network), {}
        if end == "alpha":
            alphas[layer] = float(tensor)
        else:
            half = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"}
            named[f"{layer}.{half.get(end, end)}"] = tensor
    return named, {"alphas": alphas}


def _of_original(file: Path, tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Layers by the names of a model's original code, which diffusers knows for UNets and Flux."""
    from diffusers import loaders
    from diffusers.utils import convert_unet_state_dict_to_peft

    kind = {
        "UNet2DConditionModel": "StableDiffusionLoraLoaderMixin",
        "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    }.get(type(network).__name__)
    first = next(iter(tensors)).partition(".")[0]
    if kind is None:
        raise _another(file, f"it adapts {first}")
    folded = {}  # alphas into the weights: their names would be changed in ways of their own
    for name, tensor in tensors.items():
        layer, _, end = name.partition(".")
        if end == "lora_up.weight" and f"{layer}.alpha" in tensors:
            tensor = tensor.float() * float(tensors[f"{layer}.alpha"]) / tensor.shape[1]
        if end != "alpha":
            folded[name] = tensor
    mixin = getattr(loaders, kind)
    try:
        unet = {"unet_config": network.config} if "unet" in type(network).__name__.lower() else {}
        read = mixin.lora_state_dict(folded, **unet)
    except Exception as error:  # of many kinds, for names it does not know
        raise _another(file, f"it adapts {first}") from error
    named = read[0] if isinstance(read, tuple) else read
    plain: dict[str, Tensor] = convert_unet_state_dict_to_peft(_bare(named))
    return plain


def _bare(entries: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of the denoising network by their names in it; all, where none has a prefix."""
    for prefix in PREFIXES:
        some = {n.removeprefix(prefix): v for n, v in entries.items() if n.startswith(prefix)}
        if some:
            return some
    return dict(entries)
