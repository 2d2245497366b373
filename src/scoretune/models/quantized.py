"""Frozen weights in eight or four bits, under a LoRA in float32.

What is stored, and in which bits, is diffusers' and transformers' own quantisation of linear layers
while they load: torchao's (int8 and float8, one scale an output), or bitsandbytes' (NF4 in blocks
of 64 with doubly quantised scales, arXiv 2305.14314; LLM.int8(), arXiv 2208.07339).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scoretune.core.config import Hardware, Model
from scoretune.core.errors import UserError

PACKAGES = {
    "int8": "torchao",
    "float8": "torchao",
    "nf4": "bitsandbytes",
    "bnb_int8": "bitsandbytes",
}
"""What packs the weights of each format."""
DENOISERS = ("unet", "transformer", "transformer_2")
"""What diffusers calls networks that are fine-tuned."""
NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""A number of NF4 with its share of the block's scale and of the scales' own."""


@dataclass(frozen=True)
class Quantization:
    """Which parts of a pipeline have their linear layers' weights in which format."""

    format: str
    encoders: bool = False

    def covers(self, part: str) -> bool:
        """Whether it is of the part of that name."""
        return part in DENOISERS or (self.encoders and part.startswith("text_encoder"))

    def config(self, library: str, dtype: torch.dtype) -> Any:
        """The library's own `quantization_config`; it computes in `dtype`."""
        made = importlib.import_module(library)
        if PACKAGES[self.format] == "torchao":
            from torchao import quantization

            kind = {
                "int8": quantization.Int8WeightOnlyConfig,
                "float8": quantization.Float8WeightOnlyConfig,
            }
            return made.TorchAoConfig(kind[self.format]())
        if self.format == "bnb_int8":
            return made.BitsAndBytesConfig(load_in_8bit=True)
        return made.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )


def quantization_of(model: Model) -> Quantization | None:
    """As settings ask for it; None for weights as they are."""
    return None if model.quantize is None else Quantization(model.quantize, model.quantize_encoders)


def check(model: Model, hardware: Hardware, device: torch.device) -> None:
    """Refuse what does not go with quantised weights, before anything is loaded."""
    check_settings(model, hardware)
    if model.quantize is None:
        return
    named = f"model.quantize={model.quantize}"
    package = PACKAGES[model.quantize]
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{named} needs {package}: pip install 'scoretune[quantize]'")
    if package == "bitsandbytes" and device.type == "cpu":
        raise UserError(
            f"{named} is bitsandbytes', which diffusers loads on a GPU alone: set "
            "model.quantize=int8, torchao's, which works on a CPU too"
        )


def check_settings(model: Model, hardware: Hardware) -> None:
    """Refuse settings that do not go with quantised weights, on whatever machine."""
    if model.quantize is None:
        return
    named = f"model.quantize={model.quantize}"
    if model.rank == 0:
        raise UserError(
            f"{named} is of frozen weights, and model.rank=0 trains them: set model.rank above 0, "
            "or leave it out"
        )
    if PACKAGES[model.quantize] == "bitsandbytes" and model.quantize_encoders and hardware.offload:
        raise UserError(
            f"hardware.offload does not go with text encoders of {named}, which stay on the "
            "device: leave out model.quantize_encoders, or set model.quantize=int8"
        )
    if hardware.shard:
        raise UserError(
            f"hardware.shard does not go with {named}, whose weights are no plain tensors: leave "
            "one of them out"
        )


def bytes_of(format: str, outputs: int, inputs: int, dtype: torch.dtype) -> int:
    """What the weight [outputs, inputs] of a linear layer takes, scales included; `dtype` is what
    it had before."""
    if format == "nf4":
        return round(outputs * inputs * NF4_BITS / 8)
    scale = 4 if format == "bnb_int8" else torch.empty((), dtype=dtype).element_size()
    zero = 1 if format == "int8" else 0
    return outputs * (inputs + scale + zero)


def drop_wide_copies(network: nn.Module) -> None:
    """Have torchao's layers make their weights wide again for the gradient.

    Its own matrix products widen a weight and keep the copy for the backward pass, so that a graph
    would hold all weights in full. bitsandbytes' layers do so themselves.
    """
    if importlib.util.find_spec("torchao") is None:
        return
    from torchao.utils import TorchAOBaseTensor

    for module in network.modules():
        if isinstance(module, nn.Linear) and isinstance(module.weight, TorchAOBaseTensor):
            module.__class__ = WidenedLinear


def dequantized(weight: Any) -> Tensor:
    """The numbers of a quantised weight."""
    wide: Tensor = weight.dequantize()
    return wide


class WidenedLinear(nn.Linear):
    """A frozen linear layer whose weight is wide only while it is multiplied with: `multiply` takes
    it as it is stored, `widen` makes of it what the gradient is multiplied with."""

    multiply: Callable[..., Tensor] = staticmethod(F.linear)
    widen: Callable[[Any], Tensor] = staticmethod(dequantized)

    def forward(self, input: Tensor) -> Tensor:
        given = input, self.weight, self.bias, self.multiply, self.widen
        output: Tensor = _Product.apply(*given)  # type: ignore[no-untyped-call]
        return output


class _Product(torch.autograd.Function):
    """x Wᵀ + b, whose gradient ∂x = ∂y W needs no more than the quantised W."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Any,
        bias: Tensor | None,
        multiply: Callable[..., Tensor],
        widen: Callable[[Any], Tensor],
    ) -> Tensor:
        ctx.weight, ctx.widen = weight, widen
        return multiply(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        return gradient @ ctx.widen(ctx.weight).to(gradient.dtype), None, None, None, None
