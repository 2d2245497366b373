"""Activations that are computed again in the backward pass instead of being kept.

A block that is computed again must be computed as it was. Between its forward and its backward pass
the adapter may have been switched: slopes of a value go through the pretrained network, and by the
time they are taken the policy acts with its adapter again. So each block remembers which of its
adapters were off and whether attention had to have a second derivative, and computes again like
that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
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
        off = [layer.disable_adapters for layer in layers]
        any_attention = torch.backends.cuda.flash_sdp_enabled()  # of the CPU too

        @contextmanager
        def as_before() -> Iterator[None]:
            attention = nullcontext() if any_attention else sdpa_kernel(SDPBackend.MATH)
            with switched(layers, off), attention:
                yield

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), as_before()

        return checkpoint(call, *args, use_reentrant=False, context_fn=contexts)

    return again
