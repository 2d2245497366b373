"""The pretended device catches planted mistakes and lets sound code pass; run by test_pretended."""

from __future__ import annotations

import pytest
import torch
from test_device import hot_update
from torch import nn

import pretend_cuda
from scoretune.core import checkpoints
from scoretune.models import user_module
from scoretune.models.tiny import own

CUDA = torch.device("cuda", 0)
TWO = "Expected all tensors to be on the same device"


def cuda(*shape, **more):
    return torch.randn(shape, device=CUDA, **more)


MISTAKES = {
    "a sum of both devices": (lambda: cuda(3) + torch.ones(3), TWO),
    "a product of matrices": (lambda: cuda(3, 3) @ torch.ones(3, 3), TWO),
    "a 0-dimensional tensor where elementwise kernels alone take it": (
        lambda: torch.stack([cuda(), torch.tensor(1.0)]),
        TWO,
    ),
    "where": (lambda: torch.where(cuda(3) > 0, cuda(3), torch.zeros(3)), TWO),
    "indices of the device into the CPU": (
        lambda: torch.ones(3)[torch.zeros(1, dtype=torch.long, device=CUDA)],
        "indices should be either on cpu",
    ),
    "a model left behind": (lambda: nn.Linear(3, 2)(cuda(1, 3)), TWO),
    "a generator of the CPU": (
        lambda: torch.randn(3, device=CUDA, generator=torch.Generator()),
        "Expected a 'cuda' device type for generator but found 'cpu'",
    ),
    "a generator of the device": (
        lambda: torch.randperm(3, generator=torch.Generator(CUDA)),
        "Expected a 'cpu' device type",
    ),
    "numpy()": (lambda: cuda(3).numpy(), "can't convert cuda:0 device type tensor to numpy"),
    "another device": (lambda: torch.ones(1, device="cuda:1"), "invalid device ordinal"),
    "a gradient of the other device": (
        lambda: (cuda(3, requires_grad=True) * 2).backward(torch.ones(3)),
        "device",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_caught(mistake):
    made, message = MISTAKES[mistake]
    with pytest.raises((RuntimeError, TypeError), match=message):
        made()


def test_what_pytorch_allows_passes():
    x = cuda(3)
    assert (x + torch.tensor(1.0)).device == CUDA  # 0-dimensional tensors of the CPU join
    assert x[torch.tensor([2, 0])].is_cuda  # as do indices of the CPU
    assert x.cpu().numpy().sum() == pytest.approx(float(x.sum()))
    host = torch.get_rng_state()
    cuda(5)
    assert torch.equal(torch.get_rng_state(), host)  # two streams of random numbers


def test_training_is_that_of_the_cpu():
    def trained(device):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 1)).to(device)
        x = torch.randn(16, 4).to(device)
        optimiser = torch.optim.AdamW(net.parameters(), lr=0.01)
        for _ in range(3):
            optimiser.zero_grad()
            loss = net(x).square().mean()
            loss.backward()
            optimiser.step()
        return loss.item()

    assert trained("cuda") == pytest.approx(trained("cpu"), rel=1e-5)


def test_a_network_of_ones_own_leaves_the_random_numbers_of_the_device_alone():
    torch.cuda.manual_seed_all(5)
    before = torch.cuda.get_rng_state()
    user_module._returned(own.SOURCE)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_random_stream_of_the_device_in_use_is_saved_and_restored():
    state = checkpoints.random_state()
    assert len(state["cuda"]) == 1
    drawn = cuda(3)
    checkpoints.restore_random_state({**state, "cuda": [*state["cuda"], *state["cuda"]]})
    assert torch.equal(cuda(3), drawn)  # of more devices than there are


def test_an_update_waits_for_the_device_four_times_and_sends_it_six_copies(tmp_path):
    """Of DDPO: a rollout of eight steps, and four minibatches to one step of the optimiser. One of
    the copies is of the times of the scheduler that a pipeline is asked with, and one of which of
    the texts, each encoded once, a sample is of."""
    update = hot_update(tmp_path)
    update(0)
    pretend_cuda.seen["transfers"].clear()
    assert update(1) == 8 * 2 + 4 * 4
    transfers = pretend_cuda.seen["transfers"]
    kinds = {"wait": 0, "host to device": 0, "device to host": 0}
    for line, count in transfers.items():
        kinds[line.partition(" | ")[0]] += count
    assert kinds["wait"] + kinds["device to host"] <= 4, transfers
    assert kinds["host to device"] <= 6, transfers
