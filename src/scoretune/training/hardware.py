"""How the machine does a run's work: precision, memory, speed. None of it changes what is learned.

Frozen weights may be in half precision; whatever is trained is kept in fp32, since updates are
smaller than half a unit in a half-precision number's last place, and so is all arithmetic on
states, likelihoods and losses.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import nn

from scoretune.core import distributed
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.core.resolve import is_function
from scoretune.models.base import Pipelined
from scoretune.models.recycled import inner
from scoretune.policy import Policy
from scoretune.training.engine import Machine

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def furnish(policy: Policy, run: Run) -> None:
    """Give a policy the memory and speed that a run asks of the machine."""
    chosen, network = run.hardware, policy.backbone.network
    policy.at_once = chosen.device_batch
    if run.model.rank == 0 and run.model.precision in HALVES:
        network.float()  # the weights that are trained; they compute in half precision
        policy.autocast = HALVES[run.model.precision]
    if chosen.checkpointing:
        _checkpoint(network)
    if chosen.channels_last:
        cast(Any, network).to(memory_format=torch.channels_last)
    if chosen.compile:
        network.compile()
    own = inner(policy.backbone)
    if isinstance(own, Pipelined):
        own.decode_batch = chosen.decode_batch
    elif chosen.decode_batch or chosen.cache_prompts:
        raise UserError(
            f"hardware.decode_batch and hardware.cache_prompts are for pipelines, and "
            f"{run.model.source!r} is none: leave them out"
        )


def remember(policy: Policy, run: Run, prompts: Iterable[str]) -> None:
    """Encode all prompts of a run and let go of the encoders, if it asks for that."""
    own = inner(policy.backbone)
    if run.hardware.cache_prompts and isinstance(own, Pipelined):
        own.cache_prompts(list(prompts))


def spreads(run: Run) -> bool:
    """Whether a run's weights are spread over its processes: in a single one nothing changes."""
    return run.hardware.shard and distributed.team().size > 1


def machine(run: Run, device: torch.device) -> Machine:
    """Gradients and steps as a run asks for them."""
    scaler = None
    if run.model.precision == "fp16":
        scaler = torch.amp.GradScaler(device.type, init_scale=2.0**8)  # it grows if it can
    return Machine(device, run.hardware.device_batch, scaler, spreads(run))


def optimiser(run: Run, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW of the kind that a run names. Raises UserError where this machine has it not."""
    chosen = run.optimiser
    settings: dict[str, Any] = {
        "lr": chosen.learning_rate,
        "weight_decay": chosen.weight_decay,
    }
    if chosen.kind == "8bit":
        return _eight_bit(parameters, settings)
    if chosen.kind == "fused":
        settings["fused"] = True
    return torch.optim.AdamW(parameters, **settings)


def check(run: Run) -> None:
    """Refuse what several processes, or this method, cannot do, before anything is loaded."""
    team, chosen = distributed.team(), run.hardware
    if team.size > 1 and run.objective.kind == "energy":
        raise UserError(
            f"recipe {run.recipe!r} fits an energy to all samples at once, in one process: start "
            "it without torchrun"
        )
    matching = run.objective.kind == "matching"
    whole = run.sizes.batch or run.sizes.prompts * run.sizes.group if matching else 0
    whole, name = (whole, "sizes.batch") if matching else (run.sizes.prompts, "sizes.prompts")
    if whole % team.size:
        raise UserError(
            f"{name}={whole} cannot be shared equally by {team.size} processes, each with all "
            f"samples of its prompts: set a multiple of {team.size}"
        )
    outcomes = run.objective.kind == "policy_gradient" and run.objective.baseline != "critic"
    if chosen.offload_paths and not outcomes:
        raise UserError(
            f"hardware.offload_paths is for likelihood ratios credited by outcome, and recipe "
            f"{run.recipe!r} asks the network about its paths: leave it out, or lower "
            "sizes.prompts or sizes.group"
        )
    if chosen.shard:
        _check_shard(run)


def short_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "not enough memory" in str(error)


def _check_shard(run: Run) -> None:
    """Refuse what does not go with weights that are spread over the processes."""
    for setting, is_set in _unspreadable(run).items():
        if is_set:
            raise UserError(f"hardware.shard does not go with {setting}: leave one of them out")
    if run.model.rank:
        return
    for setting, is_set in _untrainable(run).items():
        if is_set:
            raise UserError(
                f"hardware.shard with model.rank=0 does not go with {setting}: leave it out, or "
                "set model.rank above 0"
            )


def _unspreadable(run: Run) -> dict[str, bool]:
    """What asks the network more often in one process than in another, or takes it apart."""
    chosen, objective = run.hardware, run.objective
    return {
        "hardware.compile": chosen.compile,
        "hardware.channels_last": chosen.channels_last,
        "objective.random": (
            objective.kind == "direct" and objective.through == "steps" and objective.random
        ),
        "sizes.share below 1": objective.kind == "adjoint" and run.sizes.share < 1,
        "objective.loss other than denoising": (
            objective.kind == "matching" and objective.loss != "denoising"
        ),
    }


def _untrainable(run: Run) -> dict[str, bool]:
    """What does not know slices of trained weights."""
    return {
        "model.precision=fp16": run.model.precision == "fp16",
        "optimiser.kind=8bit": run.optimiser.kind == "8bit",
        "a network of your own": is_function(run.model.source),  # one process writes it
    }


def _checkpoint(network: nn.Module) -> None:
    switch = getattr(network, "enable_gradient_checkpointing", None)
    if switch is None or not getattr(network, "_supports_gradient_checkpointing", True):
        raise UserError(
            f"a {type(network).__name__} cannot compute its activations again: leave out "
            "hardware.checkpointing, or set hardware.device_batch lower"
        )
    switch()


def _eight_bit(parameters: list[nn.Parameter], settings: dict[str, Any]) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UserError(
            "optimiser.kind=8bit is bitsandbytes': pip install 'scoretune[eightbit]', or set "
            "optimiser.kind=adamw"
        ) from error
    return cast(torch.optim.Optimizer, AdamW8bit(parameters, **settings))
