"""What training asks of the machine: gradients, steps of the optimiser, precision, memory, speed.

None of it changes what is learned. Frozen weights may be in half precision; whatever is trained is
kept in fp32, since updates are smaller than half a unit in a half-precision number's last place,
and so is all arithmetic on states, likelihoods and losses.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from scoretune.core import distributed, fsdp
from scoretune.core.config import Hardware, Model, Optimiser
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.core.resolve import is_function
from scoretune.models.base import Pipelined
from scoretune.models.recycled import inner
from scoretune.policy import Policy
from scoretune.training.activation_checkpointing import can_recompute, recompute

READ = 32
"""Prompts that are encoded at once, at most, before the encoders are let go."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class TorchEngine:
    """Gradients of `at_once` states at a time (0: of a whole minibatch), added up over processes.

    Minibatches are brought to `device`, None for where they are.

    With a `scaler` losses are scaled before the backward pass, so that gradients in fp16 do not
    vanish, and steps whose gradients overflowed are left out (arXiv 1710.03740).

    It `skips` other steps with a gradient that is not finite, or training ends at the first.

    Where the weights are `sharded`, all processes must ask the network equally often: one that has
    fewer parts of a minibatch than another passes some row once more, which counts for 0.
    """

    device: torch.device | None = None
    at_once: int = 0
    scaler: torch.amp.GradScaler | None = None
    sharded: bool = False
    skips: bool = False

    def parts(self, batch: Any, some: Any = None) -> Iterator[tuple[Any, int]]:
        """A minibatch in parts that fit the memory, and how many of its rows each stands for.

        There are none of a minibatch that other processes have, unless the weights are sharded:
        then the first row of `some`, a batch that is not empty, stands for 0 rows.
        """
        rows = max(1, self.at_once // batch.states_a_row) if self.at_once else max(len(batch), 1)
        cuts = list(spans(len(batch), rows))
        # All ask before they compute.
        most = distributed.most(len(cuts)) if self.sharded else len(cuts)
        for cut in cuts:
            part = batch if len(cuts) == 1 else batch.take(cut)
            yield part.to(self.device), len(part)
        for _ in range(most - len(cuts)):
            yield some.take(slice(0, 1)).to(self.device), 0

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients to those that are there."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def step(
        self, optimiser: torch.optim.Optimizer, parameters: Sequence[Tensor], clip_norm: float
    ) -> float:
        """One step with the gradients of all processes, at most `clip_norm` long; their length.

        A gradient that is not finite makes no step. With a scaler, which lowers its scale then, its
        length counts as 0.
        """
        # Gradients of slices are added up already.
        distributed.add_up(p for p in parameters if not fsdp.is_sharded_tensor(p))
        if self.scaler is not None:
            self.scaler.unscale_(optimiser)
        norm = fsdp.clip(parameters, clip_norm)
        if self.scaler is None:
            if math.isfinite(norm):
                optimiser.step()
        else:
            self.scaler.step(optimiser)
            self.scaler.update()
            norm = norm if math.isfinite(norm) else 0.0  # it was left out
        optimiser.zero_grad(set_to_none=True)
        return norm

    def total(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """Numbers added up over the processes."""
        return distributed.total(numbers)

    def extremes(self, numbers: Mapping[str, float]) -> dict[str, float]:
        """The smallest over the processes of what is called *_min, the largest of *_max."""
        lows = {n: v if n.endswith("_min") else -v for n, v in numbers.items()}
        lows = distributed.least(lows)
        return {n: v if n.endswith("_min") else -v for n, v in lows.items()}

    def state(self) -> dict[str, Any]:
        return {"scale": None if self.scaler is None else self.scaler.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.scaler is not None and state["scale"] is not None:
            self.scaler.load_state_dict(state["scale"])


# ------------------------------------------------------------------- as settings ask for it


def furnish(policy: Policy, model: Model, hardware: Hardware) -> None:
    """Give a policy the memory and speed that settings ask of the machine."""
    network = policy.backbone.network
    policy.at_once = hardware.device_batch
    if model.rank == 0 and model.precision in HALVES:
        network.float()  # the weights that are trained; they compute in half precision
        policy.autocast = HALVES[model.precision]
    if hardware.checkpointing:
        _checkpoint(policy)
    if hardware.channels_last:
        cast(Any, network).to(memory_format=torch.channels_last)
    if hardware.compile:
        from torch import _dynamo

        # Features are read by hooks that come and go: what was compiled must not outlive them.
        _dynamo.config.skip_nnmodule_hook_guards = False
        network.compile()
    pipeline = inner(policy.backbone)
    if isinstance(pipeline, Pipelined):
        pipeline.decode_batch = hardware.decode_batch
    elif hardware.decode_batch or hardware.cache_prompts or hardware.offload:
        raise UserError(
            f"hardware.decode_batch, hardware.cache_prompts and hardware.offload are for "
            f"pipelines, and {model.source!r} is none: leave them out"
        )


def cache_prompts(policy: Policy, prompts: Iterable[str]) -> None:
    """Encode all prompts of a run once, and let go of the encoders. Where parts of the pipeline are
    offloaded, its denoiser waits meanwhile too."""
    pipeline, device = inner(policy.backbone), policy.device
    if not isinstance(pipeline, Pipelined):
        return
    if pipeline.offloaded is not None:
        pipeline.network.to("cpu")
    pipeline.cache_prompts(list(prompts), policy.at_most(READ))
    pipeline.network.to(device)


def shards(hardware: Hardware) -> bool:
    """Whether weights are sharded over the processes: in a single one nothing changes."""
    return hardware.shard and distributed.team().size > 1


def engine(
    model: Model, hardware: Hardware, device: torch.device, *, skips: bool = False
) -> TorchEngine:
    """Gradients and steps as settings ask for them."""
    scaler = None
    if model.precision == "fp16":
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)  # it grows if it can
    return TorchEngine(device, hardware.device_batch, scaler, shards(hardware), skips)


def optimiser(settings: Optimiser, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW of the kind that settings name. Raises UserError where this machine has it not."""
    rates: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.weight_decay}
    if settings.kind == "8bit":
        return _eight_bit(parameters, rates)
    if settings.kind == "fused":
        rates["fused"] = True
    return torch.optim.AdamW(parameters, **rates)


def be_deterministic() -> None:
    """From here on kernels give the same bits every time, or raise an error."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS begins
    torch.use_deterministic_algorithms(True)


def undetermined(error: BaseException) -> str:
    """The kernel that an error says has no deterministic form, else nothing."""
    kernel, says, _ = str(error).partition(" does not have a deterministic implementation")
    return kernel.split()[-1] if says and isinstance(error, RuntimeError) else ""


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("not enough memory", "can't allocate memory", "DefaultCPUAllocator")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def check_offload(hardware: Hardware) -> None:
    """Refuse what does not go with parts that come to the device and leave it."""
    if hardware.offload and hardware.compile:
        raise UserError("hardware.offload does not go with hardware.compile: leave one of them out")


def check_shard(model: Model, hardware: Hardware, kind: str) -> None:
    """Refuse what does not go with weights that are sharded over the processes; `kind` is of the
    optimiser. An objective refuses settings of its own."""
    for name in ("compile", "channels_last", "offload"):
        if hardware.shard and getattr(hardware, name):
            raise UserError(
                f"hardware.shard does not go with hardware.{name}: leave one of them out"
            )
    untrainable = {  # what does not know slices of trained weights
        "model.precision=fp16": model.precision == "fp16",
        "optimiser.kind=8bit": kind == "8bit",
        "a network of your own": is_function(model.source),  # one process writes it
    }
    for setting, is_set in untrainable.items():
        if hardware.shard and not model.rank and is_set:
            raise UserError(
                f"hardware.shard with model.rank=0 does not go with {setting}: leave it out, or "
                "set model.rank above 0"
            )


def _checkpoint(policy: Policy) -> None:
    network = policy.backbone.network
    if not can_recompute(network):
        raise UserError(
            f"a {type(network).__name__} cannot compute its activations again: leave out "
            "hardware.checkpointing, or set hardware.device_batch lower"
        )
    recompute(network)
    pipeline = inner(policy.backbone)
    decoder = pipeline.followed_decoder if isinstance(pipeline, Pipelined) else None
    if decoder is not None and can_recompute(decoder):
        recompute(decoder)  # a reward's gradient passes through it


def _eight_bit(parameters: list[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimiser.kind=8bit is bitsandbytes': pip install 'scoretune[eightbit]', or set "
            "optimiser.kind=adamw"
        ) from error
    return cast(torch.optim.Optimizer, AdamW8bit(parameters, **settings))
