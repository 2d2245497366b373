"""Files with a LoRA, in the forms that people have them, read whole or refused by name.

A layer's weights change by scale · B A, A [r, inputs] and B [outputs, r] (arXiv 2106.09685). Every
tensor of a file is one of those two, or an alpha, of a layer of the network at hand; what is more
than that (another kind of adapter, biases, a text encoder's part) would be left out, so it is
refused instead.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from scoretune.core import hub
from scoretune.core.errors import UserError

NAME = "pytorch_lora_weights.safetensors"
DOWN, UP = ".lora_A.weight", ".lora_B.weight"  # peft's names of A and B
ALPHA = ".alpha"
ENDS = {
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
}
"""Other names of A and B."""
# Before a layer's name: of a part of a pipeline, of peft, of torch.compile and of DDP.
WRAPPERS = ("unet.", "transformer.", "base_model.model.", "module.")
COMPILED = "_orig_mod."
KOHYA = ("lora_unet_", "lora_transformer_")
TEXT = ("text_encoder", "lora_te")
OTHERS = {
    r"\.lora_magnitude_vector|\.dora_scale$": "is a DoRA",
    r"\.hada_": "is a LoHa",
    r"\.lokr_": "is a LoKr",
    r"\.lora_mid\.": "is a LoCon with a core (lora_mid)",
    r"\.b?oft_": "is an OFT",
    r"\.diff(_b)?$": "holds whole differences of weights",
    r"\.bias$": "trains biases",
    r"\.lora_embedding": "adapts an embedding",
}
"""What else a file may hold, by what its tensors' names hold."""
READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
IDLE = {
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "revision"),
    *("inference_mode", "lora_dropout", "task_type", "auto_mapping", "base_model_name_or_path"),
    *("peft_version", "megatron_core", "megatron_config", "parent_library", "peft_type"),
}
"""Settings of peft that say nothing of what its tensors mean."""
INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""`init_lora_weights` that leave the network's own weights alone."""


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by the names of a network: A and B of its layers, their ranks, and what multiplies
    B A."""

    file: Path
    tensors: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    scales: Mapping[str, float]


def read(path: Path, network: nn.Module) -> LoraFile:
    """The LoRA of a file, of a folder with it or of a run folder. Raises UserError for what cannot
    be read whole."""
    file = _file(path)
    tensors, settings = _opened(file)
    _check_kind(file, tensors, settings)
    tensors, alphas = _named(file, tensors, network)
    ranks = {n.removesuffix(DOWN): len(w) for n, w in tensors.items() if n.endswith(DOWN)}
    _check(file, tensors, ranks, dict(network.named_modules()))
    adrift = sorted(set(alphas) - set(ranks))
    if adrift:
        raise another(file, f"it has an alpha of {adrift[0]}, and no more of it")
    return LoraFile(file, tensors, ranks, _scales(file, ranks, alphas, settings))


def another(file: Path, why: str) -> UserError:
    """A LoRA that does not fit."""
    return UserError(
        f"the LoRA {str(file)!r} is not of this model ({why}): give the model it was trained on"
    )


# ---------------------------------------------------------------------------------- the file


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


def _opened(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and peft's settings from its metadata or the file beside it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            metadata = (opened.metadata() or {}).get("lora_adapter_metadata", "{}")
        settings = _of_part(json.loads(metadata))
        beside = file.with_name("adapter_config.json")
        if not settings and beside.is_file():
            settings = dict(json.loads(beside.read_text(encoding="utf-8")))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{str(file)!r} cannot be read as safetensors ({error}): give a LoRA that was saved so"
        ) from error
    return tensors, settings


def _of_part(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the denoising network, which diffusers writes with its name before each."""
    for prefix in WRAPPERS:
        some = {n.removeprefix(prefix): v for n, v in metadata.items() if n.startswith(prefix)}
        if some:
            return some
    return dict(metadata)


def _check_kind(file: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """Refuse what is more than a plain LoRA of the network that denoises."""
    from peft import LoraConfig

    for name in tensors:
        if name.replace(COMPILED, "").startswith(TEXT):
            raise UserError(
                f"the LoRA {str(file)!r} also adapts a text encoder ({name}), which is left as it "
                "is here: give one of the denoising network alone"
            )
        kind = next((what for part, what in OTHERS.items() if re.search(part, name)), None)
        if kind is not None:
            raise _no_plain(file, f"{kind}: {name}")
    if settings.get("peft_type", "LORA") != "LORA":
        raise _no_plain(file, f"is a {settings['peft_type']}")
    plain = LoraConfig().to_dict()
    for key, value in settings.items():
        if key == "init_lora_weights" and value not in INITS:
            raise _no_plain(file, f"changes the network's own weights, init_lora_weights={value}")
        if key == "bias" and value not in (None, "none"):
            raise _no_plain(file, f"trains biases, bias={value}")
        known = key in READ or key in IDLE or key in ("init_lora_weights", "bias")
        if value and not known and value != plain.get(key):
            raise _no_plain(file, f"was made with {key}={str(value)[:60]}")


def _no_plain(file: Path, why: str) -> UserError:
    return UserError(
        f"the LoRA {str(file)!r} {why}; this version reads plain LoRAs: merge it into its model "
        "first, and set model.source to that"
    )


# --------------------------------------------------------------------------------- the names


def _named(
    file: Path, tensors: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """A and B by the network's own names, as peft ends them, and alphas by layer."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    if any(name.replace(COMPILED, "").startswith(KOHYA) for name in tensors):
        return _of_kohya(file, tensors, network)
    plain: Mapping[str, Tensor] = convert_unet_state_dict_to_peft(dict(tensors))
    layers = dict(network.named_modules())
    named: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in plain.items():
        layer, end = _parted(file, name)
        found = _unwrapped(layer, layers)
        if end == ALPHA:
            alphas[found] = float(tensor)
        elif found + end in named:
            raise another(file, f"it holds {found} twice")
        else:
            named[found + end] = tensor
    return named, alphas


def _parted(file: Path, name: str) -> tuple[str, str]:
    """A layer and what is of it: A, B or an alpha. Raises UserError for anything else."""
    for end in (DOWN, UP, ALPHA, *ENDS):
        if name.endswith(end):
            return name.removesuffix(end), ENDS.get(end, end)
    raise _no_plain(file, f"holds {name}, which is neither A nor B of a layer")


def _unwrapped(layer: str, layers: Mapping[str, nn.Module]) -> str:
    """A layer without what a pipeline, peft, torch.compile or DDP put before its name."""
    plain = layer.replace(COMPILED, "").replace(".processor.", ".")
    while plain not in layers:
        shorter = next(
            (plain.removeprefix(each) for each in WRAPPERS if plain.startswith(each)), plain
        )
        if shorter == plain:
            break
        plain = shorter
    return plain


def _of_kohya(
    file: Path, tensors: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Names with underscores are those of the network's layers, else of the original code's."""
    layers = {name.replace(".", "_"): name for name, _ in network.named_modules()}
    named: dict[str, Tensor] = {}
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        flat, end = _parted(file, name)
        flat = flat.replace(COMPILED, "").replace("_orig_mod_", "")
        for prefix in (*KOHYA, "module_"):
            flat = flat.removeprefix(prefix)
        layer = layers.get(flat)
        if layer is None:
            return _of_original(file, tensors, network)
        if end == ALPHA:
            alphas[layer] = float(tensor)
        else:
            named[layer + end] = tensor
    return named, alphas


def _of_original(
    file: Path, tensors: Mapping[str, Tensor], network: nn.Module
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Layers by the names of a model's original code, which diffusers knows for UNets and Flux, and
    of which it refuses what it cannot rename."""
    from diffusers import loaders
    from diffusers.utils import convert_unet_state_dict_to_peft

    kind = {
        "UNet2DConditionModel": "StableDiffusionLoraLoaderMixin",
        "FluxTransformer2DModel": "FluxLoraLoaderMixin",
    }.get(type(network).__name__)
    first = next(iter(tensors)).partition(".")[0]
    if kind is None:
        raise another(file, f"it adapts {first}")
    folded = {}  # alphas into the weights: their names would be changed in ways of their own
    for name, tensor in tensors.items():
        layer, end = _parted(file, name)
        if end == UP and layer + ALPHA in tensors:
            tensor = tensor.float() * float(tensors[layer + ALPHA]) / tensor.shape[1]
        if end != ALPHA:
            folded[name] = tensor
    mixin = getattr(loaders, kind)
    try:
        unet = {"unet_config": network.config} if "unet" in type(network).__name__.lower() else {}
        converted = mixin.lora_state_dict(folded, **unet)
    except Exception as error:  # of many kinds, for names it does not know
        raise another(file, f"it adapts {first}") from error
    plain = converted[0] if isinstance(converted, tuple) else converted
    peft = convert_unet_state_dict_to_peft(plain)
    halves = ((_parted(file, name), tensor) for name, tensor in peft.items())
    layers = dict(network.named_modules())
    return {_unwrapped(layer, layers) + end: tensor for (layer, end), tensor in halves}, {}


def _check(
    file: Path, tensors: Mapping[str, Tensor], ranks: Mapping[str, int], layers: Mapping[str, Any]
) -> None:
    """Refuse a LoRA that is of another network, or that is not made of plain numbers."""
    halves = {name.removesuffix(DOWN).removesuffix(UP) for name in tensors}
    strange = sorted(halves - set(layers))
    if strange or not ranks:
        raise another(file, f"it adapts {strange[0]}" if strange else "it adapts nothing")
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"the LoRA {str(file)!r} holds {kind} numbers ({name}): give one in float32, "
                "bfloat16 or float16, which may be mixed"
            )
    for name in sorted(halves):
        if name + UP not in tensors or name + DOWN not in tensors:
            raise UserError(f"the LoRA {str(file)!r} lacks half of the layer {name}: get it anew")
        if isinstance(layers[name], nn.Linear):
            theirs = (len(tensors[name + UP]), tensors[name + DOWN].shape[1])
            ours = (layers[name].out_features, layers[name].in_features)
            if theirs != ours:
                sizes = " and ".join(f"{inputs} to {outputs}" for outputs, inputs in (theirs, ours))
                raise another(file, f"{name} takes {sizes} numbers, there and here")


# --------------------------------------------------------------------------------- the scales


def _scales(
    file: Path, ranks: Mapping[str, int], alphas: Mapping[str, float], settings: Mapping[str, Any]
) -> dict[str, float]:
    """What multiplies B A of each layer: alpha over its rank, or over the root of that.

    An alpha is a tensor's, else of peft's settings, else the rank.
    """
    patterns, usual = settings.get("alpha_pattern") or {}, settings.get("lora_alpha")
    scales = {}
    for name, rank in ranks.items():
        pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", name)), None)
        said = usual if pattern is None else patterns[pattern]
        alpha = alphas.get(name, rank if said is None else said)
        if said is not None and alpha != said:
            raise UserError(
                f"the LoRA {str(file)!r} has two alphas of {name}, {alpha:g} in a tensor and "
                f"{said:g} in its settings: take out one of them"
            )
        root = settings.get("use_rslora")
        scales[name] = float(alpha) / (math.sqrt(rank) if root else rank)
    return scales
