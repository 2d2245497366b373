"""What the machine is asked for: kernels that repeat themselves, activations computed again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from scoretune.core.config import Hardware, Model
from scoretune.core.errors import UserError
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Adapter, Policy
from scoretune.training import engine
from scoretune.training.activation_checkpointing import can_recompute, recompute


class Switched(Adapter):
    """x → w sin x, or sin x with its adapter off: the same shapes either way."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return x.sin() if self.disable_adapters else self.weight * x.sin()


class Network(nn.Module):
    """One block that is computed again as diffusers' are."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.through = Switched(), None

    def enable_gradient_checkpointing(self, gradient_checkpointing_func=None) -> None:
        self.through = gradient_checkpointing_func

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x).exp() if self.through is None else self.through(self.block, x).exp()


@pytest.mark.parametrize("off", [False, True])
def test_a_block_is_computed_again_as_it_was(off):
    """d/dx exp(w sin x) = w cos x exp(w sin x), with w = 1 where the adapter was off."""
    network, x = Network(), torch.tensor([0.3, 1.1], requires_grad=True)
    assert can_recompute(network)
    recompute(network)
    network.block.enable_adapters(not off)
    y = network(x)
    network.block.enable_adapters(off)  # before the backward pass
    weight = 1.0 if off else 5.0
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(slope, weight * x.cos() * (weight * x.sin()).exp())
    assert network.block.disable_adapters is not off, "and left as it was found"


def test_a_network_that_recomputes_by_means_of_its_own_is_refused():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def enable_gradient_checkpointing(self) -> None:
            """Nobody can tell it in which state to compute again."""

    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
    policy.backbone.network = Own()
    with pytest.raises(UserError, match="a Own cannot compute its activations again"):
        engine.furnish(policy, Model(), Hardware(checkpointing=True))


def test_a_kernel_without_a_deterministic_form_is_named():
    says = "x_cuda does not have a deterministic implementation, but you set 'torch.use_…'"
    assert engine.undetermined(RuntimeError(says)) == "x_cuda"
    assert engine.undetermined(RuntimeError("something else")) == ""


def test_kernels_may_be_asked_to_repeat_themselves(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    try:
        engine.be_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
