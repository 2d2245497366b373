"""Parts of a pipeline that wait in the computer's memory and come to the device to be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Offloaded:
    """Parts with accelerate's hooks, as diffusers' own model offload has: a part's call, and of an
    autoencoder `encode` and `decode`, bring it to the device, where it stays until the network,
    which is always there, is called.
    """

    def __init__(
        self, network: nn.Module, parts: Mapping[str, nn.Module], device: torch.device
    ) -> None:
        from accelerate import cpu_offload_with_hook

        self.hooks: dict[str, Any] = {
            name: cpu_offload_with_hook(part, device)[1] for name, part in parts.items()
        }
        network.to(device).register_forward_pre_hook(lambda module, args: self.leave())

    def leave(self) -> None:
        """Take off the device what is there."""
        for hook in self.hooks.values():
            if next(hook.model.parameters()).device.type != "cpu":
                hook.offload()

    def release(self, *names: str) -> None:
        """From now on these parts stay where they are, or are nobody's."""
        for name in names:
            self.hooks.pop(name, None)
