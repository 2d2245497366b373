"""LoRA files in the forms that people have: every tensor is applied, or the file is refused by the
name of one that would not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from scoretune.core.errors import UserError
from scoretune.models import lora

RANK = 3


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Linear(6, 6), nn.Linear(6, 6)
        self.to_out = nn.ModuleList([nn.Linear(6, 4)])
        self.conv = nn.Conv2d(2, 4, 3)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down_blocks = nn.ModuleList([Attention(), Attention()])
        self.module = nn.Linear(2, 2)  # a name that DDP has too


LAYERS = {
    "down_blocks.0.to_q": (6, 6),
    "down_blocks.0.to_out.0": (4, 6),
    "down_blocks.1.to_k": (6, 6),
    "down_blocks.1.conv": (4, 2, 3, 3),
}
RANKS = {"down_blocks.1.to_k": 2}


def halves() -> dict[str, tuple[Tensor, Tensor]]:
    """A and B of every layer."""
    torch.manual_seed(5)
    pairs = {}
    for name, (outputs, *inputs) in LAYERS.items():
        rank = RANKS.get(name, RANK)
        b = torch.randn(outputs, rank, *(1 for _ in inputs[1:]))
        pairs[name] = (torch.randn(rank, *inputs), b)
    return pairs


def by(prefix: str = "", down: str = "lora_A.weight", up: str = "lora_B.weight") -> dict[str, Any]:
    return {
        f"{prefix}{name}.{end}": half
        for name, pair in halves().items()
        for end, half in zip((down, up), pair, strict=True)
    }


def kohya(prefix: str = "lora_unet_", alpha: float | None = 6.0) -> dict[str, Tensor]:
    tensors = {}
    for name, (a, b) in halves().items():
        flat = prefix + name.replace(".", "_")
        tensors |= {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b}
        if alpha is not None:
            tensors[f"{flat}.alpha"] = torch.tensor(alpha)
    return tensors


def written(folder: Path, tensors: dict[str, Tensor], beside: dict[str, Any] | None = None) -> Path:
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "x.safetensors")
    if beside is not None:
        (folder / "adapter_config.json").write_text(json.dumps(beside))
    return folder / "x.safetensors"


def applied(path: Path) -> dict[str, Tensor]:
    network = Network()
    lora.load_lora(network, path)
    return lora.deltas(network)


def expected(scales: dict[str, float]) -> dict[str, Tensor]:
    return {
        name: scales[name] * (b.flatten(1) @ a.flatten(1)).view(LAYERS[name])
        for name, (a, b) in halves().items()
    }


def everywhere(scale: float) -> dict[str, float]:
    return dict.fromkeys(LAYERS, scale)


def alphas(alpha: float) -> dict[str, float]:
    return {name: alpha / RANKS.get(name, RANK) for name in LAYERS}


PEFT = {"peft_type": "LORA", "r": RANK, "lora_alpha": 12, "rank_pattern": {"to_k": 2}}
READ: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None, dict[str, float]]] = {
    "plain": (by(), None, everywhere(1.0)),
    "diffusers": (by("unet."), None, everywhere(1.0)),
    "a transformer's": (by("transformer."), None, everywhere(1.0)),
    "older diffusers": (by("unet.", "lora.down.weight", "lora.up.weight"), None, everywhere(1.0)),
    "peft": (by("base_model.model."), PEFT, alphas(12)),
    "peft with its adapter's name": (
        by("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
        PEFT,
        alphas(12),
    ),
    "peft, root of the rank": (
        by("base_model.model."),
        PEFT | {"use_rslora": True},
        {name: 12 / RANKS.get(name, RANK) ** 0.5 for name in LAYERS},
    ),
    "peft, alphas by pattern": (
        by("base_model.model."),
        PEFT | {"alpha_pattern": {"to_q": 1.5, r"down_blocks\.1\.conv": 9}},
        alphas(12) | {"down_blocks.0.to_q": 0.5, "down_blocks.1.conv": 3.0},
    ),
    "compiled": (by("_orig_mod."), None, everywhere(1.0)),
    "compiled below peft": (by("base_model.model._orig_mod."), PEFT, alphas(12)),
    "DDP": (by("module."), None, everywhere(1.0)),
    "DDP, compiled, of a pipeline": (by("unet.module._orig_mod."), None, everywhere(1.0)),
    "kohya": (kohya(), None, alphas(6)),
    "kohya without alphas": (kohya(alpha=None), None, everywhere(1.0)),
    "kohya, compiled": (kohya("lora_unet__orig_mod_"), None, alphas(6)),
    "alphas in tensors": (
        by("unet.") | {f"unet.{name}.alpha": torch.tensor(6.0) for name in LAYERS},
        None,
        alphas(6),
    ),
}


@pytest.mark.parametrize("name", READ)
def test_every_tensor_is_applied_at_its_scale(tmp_path, name):
    tensors, beside, scales = READ[name]
    deltas = applied(written(tmp_path, tensors, beside))
    wanted = expected(scales)
    assert deltas.keys() == wanted.keys()
    for layer, delta in wanted.items():
        torch.testing.assert_close(deltas[layer], delta, rtol=1e-5, atol=1e-6)


LAYER = "down_blocks.0.to_q"
Q = "lora_unet_down_blocks_0_to_q"
ONE = torch.ones(1)
MORE: dict[str, tuple[dict[str, Tensor], dict[str, Any] | None, str]] = {
    "DoRA of peft": (
        by("base_model.model.")
        | {f"base_model.model.{LAYER}.lora_magnitude_vector.weight": torch.ones(6)},
        PEFT | {"use_dora": True},
        f"is a DoRA: base_model.model.{LAYER}.lora_magnitude_vector",
    ),
    "DoRA of kohya": (kohya() | {f"{Q}.dora_scale": ONE}, None, f"is a DoRA: {Q}.dora_scale"),
    "DoRA by its settings": (by("base_model.model."), PEFT | {"use_dora": True}, "use_dora=True"),
    "LoHa": ({f"{Q}.hada_w1_a": ONE}, None, f"is a LoHa: {Q}.hada_w1_a"),
    "LoHa of peft": (by("base_model.model."), {"peft_type": "LOHA"}, "is a LOHA"),
    "LoKr": (kohya() | {f"{Q}.lokr_w1": ONE}, None, f"is a LoKr: {Q}.lokr_w1"),
    "a core": (kohya() | {f"{Q}.lora_mid.weight": ONE}, None, f"lora_mid): {Q}.lora_mid.weight"),
    "differences": (kohya() | {f"{Q}.diff_b": ONE}, None, f"whole differences of weights: {Q}"),
    "biases": (
        by("base_model.model.") | {f"base_model.model.{LAYER}.bias": torch.ones(6)},
        PEFT,
        f"trains biases: base_model.model.{LAYER}.bias",
    ),
    "biases of B": (
        by() | {f"{LAYER}.lora_B.bias": torch.ones(6)},
        None,
        f"trains biases: {LAYER}.lora_B.bias",
    ),
    "biases by settings": (by(), PEFT | {"bias": "lora_only"}, "trains biases, bias=lora_only"),
    "whole modules": (
        by() | {"module.weight": torch.ones(2, 2)},
        None,
        "holds module.weight, which is neither A nor B",
    ),
    "whole modules by settings": (
        by(),
        PEFT | {"modules_to_save": ["module"]},
        "modules_to_save=['module']",
    ),
    "PiSSA": (by(), PEFT | {"init_lora_weights": "pissa"}, "init_lora_weights=pissa"),
    "a text encoder": (
        by("unet.") | by("text_encoder."),
        None,
        "also adapts a text encoder (text_encoder.down_blocks.0.to_",
    ),
    "a text encoder of kohya": (
        kohya() | kohya("lora_te1_"),
        None,
        "also adapts a text encoder (lora_te1_down_blocks_0",
    ),
    "a layer of another network": (
        by("unet.") | {f"unet.mid.to_q.lora_{half}.weight": torch.ones(3, 3) for half in "AB"},
        None,
        "it adapts mid.to_q",
    ),
    "half a layer, down": (
        {n: t for n, t in by().items() if n != f"{LAYER}.lora_B.weight"},
        None,
        f"lacks half of the layer {LAYER}",
    ),
    "half a layer, up": (
        {n: t for n, t in by().items() if n != f"{LAYER}.lora_A.weight"},
        None,
        f"lacks half of the layer {LAYER}",
    ),
    "an alpha alone": (
        by() | {"down_blocks.1.to_q.alpha": ONE},
        None,
        "has an alpha of down_blocks.1.to_q, and no more of it",
    ),
    "a layer twice": (by() | by("unet."), None, "it holds down_blocks.0.to_out.0 twice"),
    "two alphas": (
        by("base_model.model.") | {f"base_model.model.{LAYER}.alpha": torch.tensor(6.0)},
        PEFT,
        f"has two alphas of {LAYER}, 6 in a tensor and 12 in its settings",
    ),
}


@pytest.mark.parametrize("name", MORE)
def test_what_is_more_is_refused_by_its_name(tmp_path, name):
    tensors, beside, said = MORE[name]
    with pytest.raises(UserError) as caught:
        applied(written(tmp_path, tensors, beside))
    assert said in str(caught.value) and "\n" not in str(caught.value)
