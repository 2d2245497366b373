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

With a `compression` the states are measurements of the data (`models.compression`): `embed` takes
them and `decode` recovers the data from them, so that nothing else needs to know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core import files, model_folder
from scoretune.core.conditions import Condition
from scoretune.core.errors import UserError, unknown
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process, expand, process_named
from scoretune.models.base import check_readable
from scoretune.models.compression import Compression
from scoretune.models.networks import NETWORKS, Content, Design

CLOCK = 7.0
"""|ln ρ| is clamped here: e⁷ ≈ 1100, and e⁻⁷ is less than a pixel's rounding."""
COMPRESSION = "compression."
"""What the names of its tensors begin with in a file."""


@dataclass
class ScoreNetwork:
    """A trainable model of standardised data, without prompts: data = mean + std · x0, or of their
    measurements, y = mean + std · x0."""

    design: Design
    process: Process
    prediction: Prediction
    mean: Tensor
    std: Tensor
    compression: Compression | None = None
    network: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        if self.design.kind not in NETWORKS:
            raise unknown("network", self.design.kind, NETWORKS)
        check_readable(f"a network of {self.prediction.name}", self.process, self.prediction)
        self.network = NETWORKS[self.design.kind](self.design)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.design.shape

    @property
    def content(self) -> Content:
        """What is drawn, once it is decoded."""
        return self.design.content if self.compression is None else self.compression.content

    @property
    def data_shape(self) -> tuple[int, ...]:
        """Of what is drawn, once it is decoded."""
        return self.design.shape if self.compression is None else self.compression.shape

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts)).to(next(self.network.parameters()).device)

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
        if self.compression is not None:
            data = self.compression.recover(data.flatten(1))
        if self.content != "images":
            return data
        return data.clamp(0, 1).expand(-1, max(3, self.data_shape[0]), -1, -1)

    def embed(self, images: Tensor) -> Tensor:
        if self.content == "images" and self.data_shape[0] == 1:
            images = images.mean(1, keepdim=True)
        if self.compression is not None:
            images = self.compression.measure(images).view(-1, *self.shape)
        return (images - self.mean.to(images)) / self.std.to(images)

    def numbers(self, data: Tensor) -> Tensor:
        """Data [n, *S] in standard deviations, [n, d]."""
        if self.compression is not None:
            return self.compression.standardised(data).flatten(1)
        return self.embed(data).flatten(1)


def clock(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Where between data (0) and noise (1) a time lies: ½ + ln(σ/α)/14, clamped, same shape."""
    log_ratio = torch.log(sigma) - torch.log(alpha)
    return 0.5 + log_ratio.clamp(-CLOCK, CLOCK) / (2 * CLOCK)


# ------------------------------------------------------------------------------ on the disk


def save(model: ScoreNetwork, folder: Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write `weights.safetensors` and, with `notes` for whoever samples, `config.json`."""
    config = {
        "format": model_folder.FORMAT,
        "process": repr(model.process),
        "prediction": model.prediction.name,
        **asdict(model.design),
        "notes": dict(notes or {}),
    }
    tensors = {f"network.{k}": v for k, v in model.network.state_dict().items()}
    tensors |= {"mean": model.mean, "std": model.std}
    if model.compression is not None:
        config["compression"] = model.compression.described()
        tensors |= {f"{COMPRESSION}{k}": v for k, v in model.compression.tensors().items()}
    files.save_tensors(folder / "weights.safetensors", tensors)
    files.write_json(folder / "config.json", config)
    return folder


def load(folder: Path) -> ScoreNetwork:
    """The model of a folder that `save` wrote. Raises UserError when it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = model_folder.described(folder)
        tensors = load_file(folder / "weights.safetensors")
        design = Design(**{part.name: config[part.name] for part in fields(Design)})
        model = ScoreNetwork(
            replace(design, shape=tuple(design.shape)),
            process_named(config["process"]),
            prediction_named(config["prediction"]),
            tensors.pop("mean"),
            tensors.pop("std"),
            _compression(config.get("compression"), tensors),
        )
        weights = {name.removeprefix("network."): value for name, value in tensors.items()}
        model.network.load_state_dict(weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"model folder {str(folder)!r} is damaged ({error}): give one that a run from data "
            "wrote, with its config.json and weights.safetensors"
        ) from error
    return model


def _compression(
    described: dict[str, Any] | None, tensors: dict[str, Tensor]
) -> Compression | None:
    """How the data were measured; what is stored of it leaves `tensors`. Raises ValueError where a
    part is missing."""
    names = [name for name in tensors if name.startswith(COMPRESSION)]
    stored = {name.removeprefix(COMPRESSION): tensors.pop(name) for name in names}
    if described is None and not stored:
        return None
    if described is None or not stored:
        where = "config.json" if described is None else "weights.safetensors"
        raise ValueError(f"it draws measurements, and {where} lacks the operator that took them")
    return Compression.restored(described, stored)


def notes(folder: Path) -> dict[str, Any]:
    """The notes that `save` was given."""
    return cast("dict[str, Any]", model_folder.described(folder).get("notes", {}))
