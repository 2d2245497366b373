"""Networks that learn a score from data: any process, any prediction; a UNet, a DiT or an MLP.

Data are standardised, so a state x = αx0 + σε has variance about c² = α² + σ², which for some
processes grows without bound. The network F never sees that scale (arXiv 2206.00364, section 5):

    output(x, t) = √(a² + b²) · F(x/c, clock),   clock = ln ρ,   ρ = σ/α

where the output's target is a·x0 + b·ε (`diffusion.estimates`): what F is asked for has variance 1
at all times. With `v_prediction` this is EDM's preconditioning, F's target being (ε − ρx0)/√(1+ρ²)
whatever the process. Since x/c and ln ρ depend on x/α and ρ alone, so does F: what it learned under
one process means the same under another (but for `velocity`, whose a and b are a process's own).

The clock is the logarithm of ρ, not t: every decade of noise gets the same room, however fast a
process runs through it. It is clamped where the answer no longer changes, so it is bounded for
processes that end without any signal (ρ = ∞).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.batches import Condition
from scoretune.diffusion import grids
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process, expand, process_named
from scoretune.errors import UserError, unknown

Content = Literal["images", "points", "series"]
CLOCK = 7.0
"""|ln ρ| is clamped here: e⁷ ≈ 1100, and e⁻⁷ is less than a pixel's rounding."""
FREQUENCIES = (1.0, 2.0, 4.0, 8.0, 16.0)
FORMAT = "scoretune score network 1"


@dataclass(frozen=True)
class Design:
    """A network in words: its kind, the shape of a state, how wide and how deep (0: the default).

    `images` have shape (channels, height, width), `points` (dimensions,), `series` (columns,
    window).
    """

    kind: str
    shape: tuple[int, ...]
    content: Content = "images"
    width: int = 0
    depth: int = 0


@dataclass
class ScoreNetwork:
    """A trainable model of standardised data, without prompts.

    `mean` and `std` broadcast to a state: data = mean + std · x0.
    """

    design: Design
    process: Process
    prediction: Prediction
    mean: Tensor
    std: Tensor
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        if self.design.kind not in NETWORKS:
            raise unknown("network", self.design.kind, NETWORKS)
        _check_readable(self.process, self.prediction)
        self.network = NETWORKS[self.design.kind](self.design)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.design.shape

    def encode(self, prompts: Sequence[str]) -> Condition:
        device = next(self.network.parameters()).device
        return Condition(torch.zeros(len(prompts), 0, 0, device=device))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        t = t.to(torch.promote_types(x.dtype, torch.float32))
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        a, b = self.prediction.row(self.process, t)
        scaled = x / expand(torch.hypot(alpha, sigma), x)
        weights = next(self.network.parameters()).dtype
        output = self.network(scaled.to(weights), clock(alpha, sigma).to(weights))
        return expand(torch.hypot(a, b), x) * cast(Tensor, output).to(x.dtype)

    def decode(self, x0: Tensor) -> Tensor:
        data = x0 * self.std.to(x0) + self.mean.to(x0)
        if self.design.content != "images":
            return data
        return data.clamp(0, 1).expand(-1, max(3, self.shape[0]), -1, -1)

    def embed(self, images: Tensor) -> Tensor:
        if self.design.content == "images" and self.shape[0] == 1:
            images = images.mean(1, keepdim=True)
        return (images - self.mean.to(images)) / self.std.to(images)


def score_network(
    kind: str,
    shape: tuple[int, ...],
    *,
    process: Process,
    prediction: str = "v_prediction",
    content: Content | None = None,
    width: int = 0,
    depth: int = 0,
) -> ScoreNetwork:
    """A fresh `unet`, `dit` or `mlp` for data of mean 0 and variance 1.

    The content follows from the number of dimensions of `shape` unless it is given.
    """
    contents: dict[int, Content] = {1: "points", 2: "series", 3: "images"}
    design = Design(kind, tuple(shape), content or contents[len(shape)], width, depth)
    ones = torch.ones(1)
    return ScoreNetwork(design, process, prediction_named(prediction), 0 * ones, ones)


def clock(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Where between data (0) and noise (1) a time lies: ½ + ln(σ/α)/14, clamped, same shape."""
    log_ratio = torch.log(sigma) - torch.log(alpha)
    return 0.5 + log_ratio.clamp(-CLOCK, CLOCK) / (2 * CLOCK)


# ---------------------------------------------------------------------------- the networks


class Perceptron(nn.Module):
    """A residual perceptron on the flattened state, each block told the time.

    The layers named `mix` are what a LoRA adapts: model.targets=["mix"].
    """

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
        told = self.clock(torch.cat([(angle * math.pi).sin(), (angle * math.pi).cos()], 1))
        hidden = self.enter(x.flatten(1))
        for block in self.blocks:
            hidden = block(hidden, told)
        return cast(Tensor, self.leave(F.silu(hidden)).view(x.shape))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.tell, self.mix = nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, hidden: Tensor, told: Tensor) -> Tensor:
        inner = self.mix(F.layer_norm(hidden, hidden.shape[1:])) + self.tell(told)
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
    for pictures of 8×8 (32, 64), 1.0 M for 28×28 (16, 32, 64) unless told otherwise.
    """
    from diffusers import UNet2DModel

    channels, height, width = _sides(design)
    levels = design.depth or min(4, max(2, round(math.log2(min(height, width) / 4)) + 1))
    base, halve = design.width or (32 if levels <= 2 else 16), 2 ** (levels - 1)
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


NETWORKS: dict[str, Callable[[Design], nn.Module]] = {"unet": unet, "dit": dit, "mlp": Perceptron}


# ------------------------------------------------------------------------------ on the disk


def save(model: ScoreNetwork, folder: Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write `config.json` and `weights.safetensors`, replacing older ones; `load` reads them.

    `notes` are kept in the configuration for whoever samples from the model.
    """
    from safetensors.torch import save_file

    written = {
        "format": FORMAT,
        "process": repr(model.process),
        "prediction": model.prediction.name,
        **asdict(model.design),
        "notes": dict(notes or {}),
    }
    tensors = {f"network.{k}": v for k, v in model.network.state_dict().items()}
    tensors |= {"mean": model.mean, "std": model.std}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".writing"
    save_file(plain, aside)
    aside.chmod(0o644)  # it is written for the owner alone
    os.replace(aside, folder / "weights.safetensors")
    aside.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    os.replace(aside, folder / "config.json")
    return folder


def load(folder: Path) -> ScoreNetwork:
    """The model of a folder that `save` wrote. Raises UserError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = described(folder)
        tensors = load_file(folder / "weights.safetensors")
        design = Design(
            found["kind"], tuple(found["shape"]), found["content"], found["width"], found["depth"]
        )
        process, prediction = process_named(found["process"]), prediction_named(found["prediction"])
        model = ScoreNetwork(design, process, prediction, tensors.pop("mean"), tensors.pop("std"))
        own = {name.removeprefix("network."): value for name, value in tensors.items()}
        model.network.load_state_dict(own)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model folder {str(folder)!r} is damaged ({error}): give one that a run from data "
            "wrote, with its config.json and weights.safetensors"
        ) from error
    return model


def home(folder: Path) -> Path | None:
    """The model folder that a folder is, or that a run folder holds; None where there is none."""
    for place in (folder, folder / "model"):
        try:
            if described(place).get("format") == FORMAT:
                return place
        except (OSError, ValueError, AttributeError):
            continue
    return None


def notes(folder: Path) -> dict[str, Any]:
    """What `save` was told to remember."""
    return cast("dict[str, Any]", described(folder).get("notes", {}))


def described(folder: Path) -> dict[str, Any]:
    """What the configuration of a model folder says. Raises OSError or ValueError."""
    found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return cast("dict[str, Any]", found)


# ----------------------------------------------------------------------------------- checks


def _check_readable(process: Process, prediction: Prediction) -> None:
    """Refuse an output from which x0 cannot be solved at the noisiest time, where sampling begins.

    The determinant αb − σa of `estimates.read`, over the length of (a, b) and (α, σ).
    """
    t = torch.tensor([process.horizon, (process.horizon + grids.default_end(process)) / 2])
    alpha, sigma = process.alpha(t), process.sigma(t)
    a, b = prediction.row(process, t)
    relative = (alpha * b - sigma * a) / (torch.hypot(a, b) * torch.hypot(alpha, sigma))
    if not bool((relative.abs() > 1e-7).all()):
        raise UserError(
            f"a network of {prediction.name} cannot be read at the noisiest time of {process}, "
            "where no signal is left: choose v_prediction, velocity or sample"
        )


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
