"""Laws of this installation: the shipped model, its libraries, its disk and its device."""

from __future__ import annotations

import copy
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoretune.commands.doctor.laws.base import Law
from scoretune.commands.doctor.laws.models import Draws
from scoretune.core import checkpoints
from scoretune.core.conditions import Condition
from scoretune.core.config import Model, PolicyGradient, Run
from scoretune.data.scenes import draw, world
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.processes import Tabulated
from scoretune.models.catalog import move
from scoretune.models.lora import adapter_state
from scoretune.policy import Policy
from scoretune.rewards import reader
from scoretune.training.build import build_policy

PROMPTS = ["a red seven", "two fives"]
TABLE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@cache
def shipped(rank: int = 0) -> Policy:
    """The miniature Stable Diffusion; with a `rank`, one whose adapter is already far from 0."""
    model = Model(source="scenes", rank=rank)
    run = Run(recipe="none", objective=PolicyGradient(), model=model)
    policy = build_policy(run, torch.device("cpu"))
    generator = torch.Generator().manual_seed(5)
    if rank:
        for weight in policy.parameters():
            weight.data = 0.1 * torch.randn(weight.shape, generator=generator)
    return policy


def inputs(policy: Policy, device: torch.device) -> tuple[Tensor, Tensor, Condition]:
    """Two noisy states, their times and their prompts."""
    move(policy.backbone, device)
    x = torch.randn(2, *policy.backbone.shape, generator=torch.Generator().manual_seed(4))
    t = torch.tensor([0.4, 0.8], device=device)
    return x.to(device), t, policy.backbone.encode(PROMPTS)


def ratio(device: torch.device) -> float:
    return Draws(shipped()).ratio(device)


def repeats(device: torch.device) -> float:
    return Draws(shipped()).repeats(device)


def adapter_off(device: torch.device) -> float:
    return Draws(shipped(4)).reference(device, shipped())


def adapter_is_felt(device: torch.device) -> float:
    """Whether a changed adapter changes the estimate: 1 or 0."""
    plain, adapted = (
        policy.estimate(*inputs(policy, device)) for policy in (shipped(), shipped(4))
    )
    return float((plain.data - adapted.data).abs().max() > 1e-3)


def without_gradient(device: torch.device) -> float:
    """How many tensors of the adapter the log-probability of a step tells nothing about."""
    policy = shipped(4)
    x, t, condition = inputs(policy, device)
    with torch.enable_grad():
        step = policy.transition(x, t, t / 2, condition)
        total = step.log_prob(x).sum()
        slopes = torch.autograd.grad(total, policy.parameters(), allow_unused=True)
    return float(sum(slope is None or not bool(slope.any()) for slope in slopes))


def roundtrip(device: torch.device) -> float:
    """How many tensors of an adapter change on the way through a checkpoint on the disk."""
    state = adapter_state(shipped(4).backbone.network)
    with TemporaryDirectory() as folder:
        again = checkpoints.load(checkpoints.save(Path(folder), 1, {"policy": state}))["policy"]
    return float(sum(not torch.equal(again[name], state[name].cpu()) for name in state))


def against_ddim_scheduler(device: torch.device) -> float:
    """Largest difference of ten steps from diffusers' DDIMScheduler, on the shipped network."""
    import diffusers

    policy = shipped()
    x, _, condition = inputs(policy, device)
    scheduler = diffusers.DDIMScheduler(
        **TABLE, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"
    )
    process = policy.backbone.process
    assert isinstance(process, Tabulated)
    times = grids.diffusers_times(process, 10, spacing="trailing")
    ours = solvers.ddim(process, policy.field(condition), x, times)
    return float((ours - _followed(scheduler, 10, policy, x, condition)).abs().max())


def against_dpm_solver(device: torch.device) -> float:
    """Largest difference of twenty steps from diffusers' DPMSolverMultistepScheduler."""
    import diffusers

    policy = shipped()
    x, _, condition = inputs(policy, device)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **TABLE,
        solver_type="midpoint",
        final_sigmas_type="sigma_min",
        timestep_spacing="trailing",
    )
    process = policy.backbone.process
    assert isinstance(process, Tabulated)
    times = grids.diffusers_times(process, 20, spacing="trailing")
    ours = solvers.dpmpp_2m(process, policy.field(condition), x, times)
    return float((ours - _followed(scheduler, 20, policy, x, condition)).abs().max())


def _followed(
    scheduler: Any, steps: int, policy: Policy, x: Tensor, condition: Condition
) -> Tensor:
    """Where a scheduler of diffusers leads."""
    scheduler.set_timesteps(steps, device=x.device)
    network = policy.backbone.network
    for index in scheduler.timesteps:
        output = network(x, index, encoder_hidden_states=condition.summary).sample
        x = scheduler.step(output, index, x).prev_sample
    return x


def judged(device: torch.device) -> float:
    """The share of freshly drawn scenes that the shipped judge calls right."""
    rng, asks = np.random.default_rng(0), world.held_out_asks()[:64]
    pictures = draw.draw([world.lay_out(ask, rng) for ask in asks], "pictures", rng)
    judge = reader.load(world.shipped(), "judge").to(device)
    return float(reader.is_fulfilled(judge(torch.from_numpy(pictures).to(device)), asks).mean())


def float32_products(device: torch.device) -> float:
    """Relative error of a product of 512×512 matrices in float32; TF32 would give 1/1000."""
    one, other = torch.randn(2, 512, 512, generator=torch.Generator().manual_seed(0)).to(device)
    exact = one.double() @ other.double()
    return float((one @ other - exact).norm() / exact.norm())


def bfloat16_network(device: torch.device) -> float:
    """Relative error of the shipped network in bfloat16."""
    policy = shipped()
    x, t, condition = inputs(policy, device)
    label = 1000 * t - 1
    exact = policy.backbone.network(x, label, encoder_hidden_states=condition.summary).sample
    narrow = copy.deepcopy(policy.backbone.network).to(torch.bfloat16)
    tokens = condition.summary.to(torch.bfloat16)
    output = narrow(x.to(torch.bfloat16), label, encoder_hidden_states=tokens).sample
    return float((output.float() - exact).norm() / exact.norm())


LAWS = (
    Law("device: float32 products", 0, float32_products, 1e-5, "rounding"),
    Law("shipped model: ratio, unchanged", 1, ratio, 0, "one door for all"),
    Law("shipped model: same seed", 0, repeats, 0, "determinism"),
    Law("shipped model: adapter off", 0, adapter_off, 1e-5, "arXiv 2106.09685"),
    Law("shipped model: adapter is felt", 1, adapter_is_felt, 0, "arXiv 2106.09685"),
    Law("shipped model: tensors unreached", 0, without_gradient, 0, "chain rule"),
    Law("shipped model: in bfloat16", 0, bfloat16_network, 0.05, "rounding"),
    Law("shipped judge: reads drawn scenes", 1, judged, 0.1, "how it was trained"),
    Law("disk: tensors changed by saving", 0, roundtrip, 0, "safetensors"),
    Law("our DDIM = diffusers' DDIMScheduler", 0, against_ddim_scheduler, 1e-4, "diffusers"),
    Law("our DPM++ 2M = diffusers' own", 0, against_dpm_solver, 1e-4, "diffusers"),
)
