"""Networks of one's own, sized for a laptop, on a state of variance 1 and a clock in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.errors import UserError

Content = Literal["images", "points", "series"]
FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)


@dataclass(frozen=True)
class Design:
    """A network: its kind, the shape of a state, its width and depth (0: the default).

    `images` have shape [C, H, W], `points` [d], `series` [columns, window].
    """

    kind: str
    shape: tuple[int, ...]
    content: Content = "images"
    width: int = 0
    depth: int = 0


class Perceptron(nn.Module):
    """A residual perceptron on the flattened state; a LoRA adapts its layers named `mix`."""

    def __init__(self, design: Design) -> None:
        super().__init__()
        size, width = math.prod(design.shape), design.width or 128
        self.enter = nn.Linear(size, width)
        self.clock = nn.Sequential(nn.Linear(2 * len(FREQUENCIES), width), nn.SiLU())
        self.blocks = nn.ModuleList(_Block(width) for _ in range(design.depth or 4))
        self.leave = nn.Linear(width, size)
        _silence(self.leave)

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        angle = share[:, None] * torch.tensor(FREQUENCIES, device=x.device, dtype=x.dtype)
        clock = self.clock(torch.cat([(angle * math.pi).sin(), (angle * math.pi).cos()], 1))
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, clock)
        return cast(Tensor, self.leave(F.silu(hidden)).view(x.shape))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tell, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, clock: Tensor) -> Tensor:
        inner = self.mix(F.layer_norm(hidden, hidden.shape[1:])) + self.tell(clock)
        return hidden + cast(Tensor, self.out(F.silu(inner)))


class Picture(nn.Module):
    """A diffusers network on images, padded to sides that it can halve or cut into patches."""

    def __init__(self, body: nn.Module, sides: tuple[int, int], labels: bool) -> None:
        super().__init__()
        self.body, self.sides, self.labels = body, sides, labels

    def forward(self, x: Tensor, share: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = F.pad(x, (0, self.sides[1] - width, 0, self.sides[0] - height), mode="replicate")
        steps = 1000 * share  # what diffusers' sinusoids are made for
        if self.labels:  # a DiT wants a class: there is one
            classes = torch.zeros(len(x), dtype=torch.long, device=x.device)
            out = self.body(padded, steps, class_labels=classes, return_dict=False)[0]
        else:
            out = self.body(padded, steps, return_dict=False)[0]
        return cast(Tensor, out[..., :height, :width])


def unet(design: Design) -> nn.Module:
    """diffusers' UNet2DModel: `depth` levels of one residual block, attention at the lowest.

    The first level is `width` wide, the next twice and the others four times that: 0.7 M weights
    for pictures of 8×8 (32, 64), 1.0 M for 28×28 (16, 32, 64) unless set otherwise.
    """
    from diffusers import UNet2DModel

    channels, height, width = _sides(design)
    levels = design.depth or min(4, max(2, round(math.log2(min(height, width) / 4)) + 1))
    base, halve = design.width or (32 if levels <= 2 else 16), 2 ** (levels - 1)
    if halve > 2 * max(height, width):
        raise UserError(
            f"a unet of depth {levels} halves its pictures {levels - 1} times, and they are "
            f"{width}x{height}: lower model.depth"
        )
    if base % 8:
        raise UserError(f"the width of a unet must be a multiple of 8, got {base}")
    widths = [base * min(2**level, 4) for level in range(levels)]
    plain = levels - 1
    body = UNet2DModel(
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=widths,
        norm_num_groups=8,
        down_block_types=["DownBlock2D"] * plain + ["AttnDownBlock2D"],
        up_block_types=["AttnUpBlock2D"] + ["UpBlock2D"] * plain,
        attention_head_dim=8,
    )
    _silence(body.conv_out)
    return Picture(body, (_up(height, halve), _up(width, halve)), labels=False)


def dit(design: Design) -> nn.Module:
    """diffusers' DiTTransformer2DModel (arXiv 2212.09748) of `depth` blocks, with one class."""
    from diffusers import DiTTransformer2DModel
    from diffusers.models.embeddings import LabelEmbedding

    channels, height, width = _sides(design)
    base, largest = design.width or 96, max(height, width)
    if base % 32:
        raise UserError(f"the width of a dit must be a multiple of 32, got {base}")
    patch = 2 if largest <= 16 else 4 if largest <= 32 else 8
    side = _up(largest, patch)
    body = DiTTransformer2DModel(
        num_attention_heads=base // 32,
        attention_head_dim=32,
        in_channels=channels,
        num_layers=design.depth or 4,
        sample_size=side,
        patch_size=patch,
        num_embeds_ada_norm=1,
    )
    for module in body.modules():
        if isinstance(module, LabelEmbedding):
            module.dropout_prob = 0.0  # nothing to drop, and no random numbers spent on it
    _silence(body.proj_out_2)
    return Picture(body, (side, side), labels=True)


def weight_count(design: Design) -> int:
    """How many weights a network would have, none of which is made."""
    with torch.device("meta"):
        network = NETWORKS[design.kind](design)
    return sum(parameter.numel() for parameter in network.parameters())


NETWORKS: dict[str, Callable[[Design], nn.Module]] = {"unet": unet, "dit": dit, "mlp": Perceptron}


def _sides(design: Design) -> tuple[int, int, int]:
    if len(design.shape) != 3:
        raise UserError(
            f"a {design.kind} needs images, and a state here has shape {design.shape}: choose mlp"
        )
    channels, height, width = design.shape
    return channels, height, width


def _up(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple


def _silence(layer: nn.Module) -> None:
    """Begin with F = 0: the loss starts at the variance of its target."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
