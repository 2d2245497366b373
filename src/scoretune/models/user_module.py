"""A user's own network, from a function of theirs: `module:function`.

The function takes nothing and returns either a module that is called as `module(x, t)`, about which
the settings then say what it is (process, prediction and shape of a state); or a whole `Backbone`,
which says so itself and alone knows prompts. It is called more than once and must return a new
network with the same weights every time.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core.conditions import Condition
from scoretune.core.config import Model
from scoretune.core.errors import UserError, user_errors
from scoretune.core.files import save_tensors
from scoretune.core.resolve import imported
from scoretune.core.user_code import contained
from scoretune.diffusion.estimates import Prediction, prediction_named
from scoretune.diffusion.processes import Process, process_named
from scoretune.models.base import PRECISIONS, check_readable
from scoretune.models.lora import ATTENTION
from scoretune.policy import Backbone

PARTS = ("process", "prediction", "shape", "network", "encode", "predict", "decode", "embed")
"""What makes a `Backbone`."""
WEIGHTS = "model.safetensors"
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)


@dataclass
class BareNetwork:
    """A module called as `network(x, t)` with states x [B, *S] and times t [B] of its process.

    States of three dimensions with one or three channels are pictures, data in [-1, 1]; any others
    are shown as they are. It knows no prompts.
    """

    network: nn.Module
    process: Process
    prediction: Prediction
    shape: tuple[int, ...]
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        self.dtype = next(self.network.parameters()).dtype

    @property
    def pictures(self) -> bool:
        """Whether states are pictures."""
        return len(self.shape) == 3 and self.shape[0] in (1, 3)

    def encode(self, prompts: Sequence[str]) -> Condition:
        return Condition.none(len(prompts)).to(next(self.network.parameters()).device)

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        output: Any = self.network(x.to(self.dtype), t.to(self.dtype))
        if not isinstance(output, Tensor):
            raise _wrong(self.network, f"returned a {type(output).__name__}: return a tensor")
        if output.shape != x.shape:
            shapes = f"returned shape {tuple(output.shape)} for a state of {tuple(x.shape)}"
            raise _wrong(self.network, f"{shapes}: they must be equal, see model.shape")
        if not bool(torch.isfinite(output).all()):
            spoilt = int((~torch.isfinite(output)).flatten(1).any(1).nonzero()[0])
            raise _wrong(
                self.network,
                f"put out NaN or infinity at t={float(t[spoilt]):.4g}: look at its weights, or "
                "lower optimiser.learning_rate",
            )
        return output

    def decode(self, x0: Tensor) -> Tensor:
        if not self.pictures:
            return x0
        return (x0.float() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)

    def embed(self, images: Tensor) -> Tensor:
        if not self.pictures:
            return images
        if self.shape[0] == 1:
            images = images.mean(1, keepdim=True)
        return images * 2 - 1


def load(model: Model) -> Backbone:
    """What the function `model.source` returns, as a backbone; a whole one is used as it is.

    Random weights are the same at every call, and the caller's random numbers are left alone.
    Raises UserError for a function that cannot be called or returns something else, and for a bare
    module about which the settings do not say enough.
    """
    source, process, prediction, shape = model.source, model.process, model.prediction, model.shape
    returned = _returned(source)
    missing = [name for name in PARTS if name not in dir(returned)]
    if not missing:
        _check_whole(
            source, returned, declared=bool(prediction or shape or model.precision != "fp32")
        )
        _freeze(source, returned.network)
        return cast(Backbone, returned)
    if not isinstance(returned, nn.Module):
        raise UserError(
            f"model {source!r} returned a {type(returned).__name__}: return a torch.nn.Module, or "
            f"a Backbone (this lacks {', '.join(missing)})"
        )
    _check_call(source, returned)
    if not (process and prediction and shape):
        named = {"process": process, "prediction": prediction, "shape": shape}
        absent = ", ".join(f"model.{name}" for name, value in named.items() if not value)
        raise UserError(
            f"model {source!r} is a bare network, which does not say what it is: set {absent} "
            "(e.g. model.process=VP() model.prediction=epsilon model.shape=[3,32,32])"
        )
    _freeze(source, returned)
    with user_errors(f"model.process={process}"):
        noising = process_named(process)
    output = prediction_named(prediction)
    check_readable(f"model.prediction={output.name}", noising, output)
    return BareNetwork(returned.to(PRECISIONS[model.precision]), noising, output, shape)


def adaptable(network: nn.Module) -> tuple[str, ...]:
    """The layers that a LoRA adapts unless told otherwise: attention by diffusers' names, else
    every linear layer and convolution.

    Raises UserError where there is none.
    """
    modules = dict(network.named_modules())
    if any(name.rpartition(".")[2] in ATTENTION[:3] for name in modules):
        return ATTENTION
    # torch's attention reads the weights of its last layer past the layer: an adapter is not seen.
    attention = [name for name, each in modules.items() if isinstance(each, nn.MultiheadAttention)]
    hidden = {f"{name}.out_proj" for name in attention}
    fit = {
        name
        for name, each in modules.items()
        if isinstance(each, nn.Linear) or (isinstance(each, CONVOLUTIONS) and each.groups == 1)
    } - {"", *hidden}
    others = modules.keys() - fit
    # A target is also found at the end of other names.
    targets = sorted(name for name in fit if not any(o.endswith(f".{name}") for o in others))
    if not targets:
        raise UserError(
            f"{type(network).__name__} holds no linear layer or convolution that a LoRA could "
            "adapt: set model.rank=0 to train every weight"
        )
    return tuple(targets)


def save(backbone: Backbone, folder: Path) -> Path:
    """Write the network's state dict by its own names, as `module.load_state_dict` takes it."""
    state = backbone.network.state_dict()
    save_tensors(folder / WEIGHTS, {name: weight.clone() for name, weight in state.items()})
    return folder / WEIGHTS


def _returned(source: str) -> Any:
    function = imported("model", source)
    if isinstance(function, nn.Module):
        raise UserError(f"model {source!r} is a module: name a function that returns a new one")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # not the devices', which the fork leaves alone
        try:
            with contained(f"model {source!r}"):
                return function()
        except UserError:
            raise
        except Exception as error:  # it is the user's code
            raise UserError(
                f"model {source!r} failed with {type(error).__name__}: {error}; it is called "
                "without arguments, and returns a torch.nn.Module or a Backbone"
            ) from error


def _freeze(source: str, network: nn.Module) -> None:
    """Ready to be adapted: nothing trained, nothing random, no adapter yet."""
    parameters = dict(network.named_parameters())
    if not parameters:
        raise UserError(f"model {source!r} returned a network without weights: nothing to train")
    if any(".lora_A." in name for name in parameters):
        raise UserError(
            f"model {source!r} returned a network with a LoRA: build a new one at every call, and "
            "merge older adapters"
        )
    network.requires_grad_(False).eval()
    if any(isinstance(each, FUSED) for each in network.modules()):
        # Without gradient torch's fast path reads weights past adapted layers: acting and judging
        # would be two policies.
        torch.backends.mha.set_fastpath_enabled(False)


def _check_whole(source: str, returned: Any, *, declared: bool) -> None:
    if declared:
        raise UserError(
            f"model {source!r} returned a whole Backbone, which says what it is: leave out "
            "model.prediction, model.shape and model.precision"
        )
    wanted: dict[str, Any] = {"network": nn.Module, "prediction": Prediction, "shape": tuple}
    for name, kind in wanted.items():
        value = getattr(returned, name)
        if not isinstance(value, kind):
            raise UserError(
                f"model {source!r}: its {name} is a {type(value).__name__}, not a {kind.__name__}"
            )
    if not {"alpha", "sigma", "horizon", "prior_std"} <= set(dir(returned.process)):
        raise UserError(f"model {source!r}: its process is no Process: give one, e.g. VP()")


def _check_call(source: str, network: nn.Module) -> None:
    signature = inspect.signature(network.forward)
    try:
        signature.bind("x", "t")
    except TypeError:
        raise UserError(
            f"model {source!r} is called as module(x, t) and takes {signature}: a network that is "
            "told more, such as prompts, must come as a whole Backbone"
        ) from None


def _wrong(network: nn.Module, what: str) -> UserError:
    return UserError(f"the network {type(network).__name__} {what}")
