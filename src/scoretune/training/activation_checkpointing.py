"""Activations that are computed again in the backward pass instead of being kept.

A block that is computed again must be computed as it was. Between its forward and its backward pass
the adapter may have been switched: slopes of a value go through the pretrained network, and by the
time they are taken the policy acts with its adapter again. So each block remembers which of its
adapters were off and whether attention had to have a second derivative, and computes again like
that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from scoretune.policy import adapter_layers, switched


def can_recompute(network: nn.Module) -> bool:
    """Whether a network can compute its activations again, by a function that it is given."""
    switch = getattr(network, "enable_gradient_checkpointing", None)
    if switch is None or not getattr(network, "_supports_gradient_checkpointing", True):
        return False
    return "gradient_checkpointing_func" in inspect.signature(switch).parameters


def recompute(network: nn.Module) -> None:
    """Let a network that can (`can_recompute`) compute its activations again, each block in the
    state of its forward pass."""
    network.enable_gradient_checkpointing(gradient_checkpointing_func=_again(network))  # type: ignore[operator]


def _again(network: nn.Module) -> Callable[..., Any]:
    """What diffusers calls in the place of a block, with the block and its arguments."""

    def again(block: Any, *args: Any) -> Any:
        call = block.__call__  # with the hooks of a module
        if torch.compiler.is_compiling():  # what is traced is computed again as it was traced
            return checkpoint(call, *args, use_reentrant=False)
        layers = adapter_layers(block if isinstance(block, nn.Module) else network)
        state = _State.of(layers)
        contexts = (nullcontext(), state)
        return checkpoint(call, *args, use_reentrant=False, context_fn=lambda: contexts)

    return again


@dataclass
class _State:
    """A context in which blocks are as they were when it was made; it may be entered again and
    again, as second derivatives do."""

    layers: Sequence[Any]
    off: Sequence[bool]
    any_attention: bool
    entered: list[ExitStack] = field(default_factory=list)

    @staticmethod
    def of(layers: Sequence[Any]) -> _State:
        off = [layer.disable_adapters for layer in layers]
        return _State(layers, off, torch.backends.cuda.flash_sdp_enabled())  # on a CPU too

    def __enter__(self) -> None:
        stack = ExitStack()
        stack.enter_context(switched(self.layers, self.off))
        if not self.any_attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        self.entered.append(stack)

    def __exit__(self, *error: Any) -> None:
        self.entered.pop().close()
