"""Heads that turn an embedding into one number: a linear map, or five of them in a row.

The published five-layer heads (LAION's `sac+logos+ava1-l14-linearMSE`, ImageReward's) have dropout
between their layers and no activation, so that they too are linear once trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from scoretune.core import hub
from scoretune.core.errors import UserError
from scoretune.core.files import load_tensors

FIVE = tuple(f"layers.{place}" for place in (0, 2, 4, 6, 7))  # 1, 3 and 5 are dropout
"""Names of the five layers' weights, as published."""


def load(path: Path) -> nn.Sequential:
    """The frozen head of a .safetensors file, in float32. Raises UserError for anything else."""
    if path.exists():
        hub.refuse_pickle(
            path,
            'convert it once, in its folder: python -c "import torch, safetensors.torch as s; '
            f"s.save_file(torch.load({path.name!r}, weights_only=True), "
            f'{path.with_suffix(".safetensors").name!r})"',
        )
    weights = load_tensors(path, "give a .safetensors file", kind="the head ")
    try:
        return stacked(weights)
    except ValueError as error:
        raise UserError(f"{str(path)!r} is no head ({error})") from error


def check_width(head: nn.Sequential, name: str, width: int) -> None:
    """Raises UserError unless the head takes embeddings of that width."""
    taken = cast(nn.Linear, head[0]).in_features
    if taken != width:
        raise UserError(
            f"the head {name!r} takes embeddings of {taken} numbers, and the model gives {width}: "
            "take the head that was trained on this model"
        )


def stacked(weights: Mapping[str, Tensor]) -> nn.Sequential:
    """The layers [.., D] -> [.., 1] of a state dict, frozen. Raises ValueError if it is no head."""
    names = FIVE if f"{FIVE[0]}.weight" in weights else ("",)
    keys = [f"{name}.{kind}".lstrip(".") for name in names for kind in ("weight", "bias")]
    if set(weights) != set(keys):
        raise ValueError(
            f"it has {', '.join(sorted(weights)[:3]) or 'nothing'}, …: a head has weight and bias, "
            f"or those of {', '.join(FIVE)}"
        )
    layers: list[nn.Linear] = []
    for name in names:
        weight = weights[f"{name}.weight".lstrip(".")].float()
        bias = weights[f"{name}.bias".lstrip(".")].float()
        if weight.ndim != 2 or bias.shape != weight.shape[:1]:
            raise ValueError(f"{name or 'weight'} is of shape {tuple(weight.shape)}")
        with torch.device("meta"):  # no random numbers for weights that are replaced at once
            layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        if layers and layers[-1].out_features != layer.in_features:
            raise ValueError(f"{name} takes {layer.in_features} numbers and is given others")
        layers.append(layer)
    if layers[-1].out_features != 1:
        raise ValueError(f"it gives {layers[-1].out_features} numbers, not one")
    return nn.Sequential(*layers).requires_grad_(False).eval()
