"""Weights sharded over the processes: each keeps a slice of every weight (FSDP2, arXiv 2304.11277).

A block's slices are gathered just before it computes, and let go of right after; in the backward
pass they are gathered again. So a device needs room for its slices, a block or two, and what lies
outside of blocks; and all processes must ask the network equally often. A LoRA stays whole in every
process, since it is small: then only frozen weights are sharded. Where all weights are trained,
they, their gradients and the optimiser's state are slices (`DTensor`).
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scoretune.core import distributed
from scoretune.core.errors import UserError

BLOCKS = (
    *("transformer_blocks", "single_transformer_blocks"),
    *("down_blocks", "mid_block", "up_blocks"),
)
"""What diffusers calls the parts of its networks that compute one after the other."""
RATES = ("lr", "weight_decay")
REACHED_INTO = {("DiTTransformer2DModel", "transformer_blocks.0")}
"""Blocks whose weights the network also uses by itself: they are gathered with the rest of it."""


def shard(network: nn.Module, device: torch.device) -> None:
    """Keep this process's slices of a network's weights, on `device`, and let go of the rest.

    Block by block, so that the device never has to hold the whole. Whatever is trained beside
    frozen weights stays whole. Raises UserError for what cannot be sharded.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if getattr(FSDPModule, "set_force_sum_reduction_for_comms", None) is None:
        raise UserError(
            f"hardware.shard needs a newer torch than {torch.__version__}: install 2.9 or later"
        )
    kept = _kept(network)
    for parameter in network.parameters():
        if parameter in kept:
            parameter.data = parameter.data.to(device)
        else:
            parameter.data = parameter.data.contiguous()
    # Nobody changes in place what a block of diffusers returns, nor what a network does.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (distributed.team().size,))
    for module in (*_blocks(network), network):
        sharded = fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        sharded.set_gradient_divide_factor(1.0)  # gradients are summed, as everywhere else
        sharded.set_force_sum_reduction_for_comms(True)


def is_sharded_tensor(tensor: Tensor) -> bool:
    """Whether this process has only a slice of a tensor."""
    # Who has sharded anything has imported this, which takes a while.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(network: nn.Module) -> bool:
    """Whether a network's weights are sharded over the processes."""
    return any(is_sharded_tensor(parameter) for parameter in network.parameters())


def full_state(tree: Any) -> Any:
    """Dicts and lists with whole tensors for the slices of all processes, one after the other.

    They are put together in the memory of the main process's computer; the others, which must ask
    at the same time, get empty tensors in their place.
    """
    if isinstance(tree, dict):
        return {key: full_state(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [full_state(value) for value in tree]
    if not isinstance(tree, Tensor) or not is_sharded_tensor(tree):
        return tree
    full: Tensor = tree.detach().full_tensor()  # type: ignore[attr-defined]
    return full.cpu() if distributed.team().main else torch.empty(0)


def shard_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Of a whole tensor that every process has, the slice that is kept of a parameter."""
    if not is_sharded_tensor(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    there = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(there, parameter.device_mesh, parameter.placements, src_data_rank=None)


@torch.no_grad()
def copy_into(parameter: Tensor, tensor: Tensor) -> None:
    """Give a parameter, or this process's slice of it, the values of a whole tensor."""
    _local(parameter.detach()).copy_(_local(shard_like(tensor, parameter)))


def restore(optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimiser's whole state, keeping slices of what belongs to slices, and the rates that
    the settings gave it: what they are after so many updates is a schedule's to say."""
    rates = [{name: group[name] for name in RATES} for group in optimiser.param_groups]
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    kept = {
        number: {name: _moment(value, parameters[number]) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    optimiser.load_state_dict({**state, "state": kept})
    for group, own in zip(optimiser.param_groups, rates, strict=True):
        group.update(own)


def clip(parameters: Sequence[Tensor], limit: float) -> float:
    """Shorten the gradients, taken together, to at most `limit`; how long they were.

    What `nn.utils.clip_grad_norm_` does, also for slices.
    """
    slices = [p.grad for p in parameters if p.grad is not None and is_sharded_tensor(p)]
    if not slices:
        return float(nn.utils.clip_grad_norm_(parameters, limit))
    rest = [p.grad for p in parameters if p.grad is not None and not is_sharded_tensor(p)]
    local = [_local(gradient) for gradient in slices]
    norm = math.sqrt(distributed.total({"": _square(local)})[""] + _square(rest))
    factor = limit / (norm + 1e-6)
    if not factor >= 1:  # it may be no number
        for gradient in (*local, *rest):
            gradient.mul_(factor)
    return norm


def _kept(network: nn.Module) -> set[nn.Parameter]:
    """What every process keeps whole: what is trained beside frozen weights, and single numbers."""
    every = list(network.named_parameters())
    if any(not p.requires_grad for _, p in every):
        return {p for _, p in every if p.requires_grad or not p.dim()}
    single = [name for name, p in every if not p.dim()]
    if single:
        raise UserError(
            f"hardware.shard cannot take the weight {single[0]} of a {type(network).__name__} "
            "apart, a single number that is trained: leave it out, or set model.rank above 0"
        )
    return set()


def _blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The blocks of a network, inner ones first."""
    for name, module in reversed(list(network.named_modules())):
        above, _, last = name.rpartition(".")
        inside = last == "mid_block" or (above.rpartition(".")[2] in BLOCKS and last.isdigit())
        if inside and (type(network).__name__, name) not in REACHED_INTO:
            yield module


def _moment(value: Any, parameter: Tensor) -> Any:
    alone = not isinstance(value, Tensor) or value.shape != parameter.shape
    return value if alone else shard_like(value, parameter)


def _local(tensor: Tensor) -> Tensor:
    """This process's slice as a plain tensor, in the same memory."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor  # type: ignore[attr-defined]


def _square(gradients: Sequence[Tensor]) -> float:
    return sum(float(gradient.double().square().sum()) for gradient in gradients)
