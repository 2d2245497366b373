"""What we export, plain diffusers loads, and draws the same pictures with it."""

from __future__ import annotations

import hashlib

import pytest
import torch
from diffusers import StableDiffusionPipeline

from scoretune import export
from scoretune.backbones import stable_diffusion
from scoretune.diffusion import grids, solvers
from scoretune.diffusion.kernels import GDDIM
from scoretune.errors import UserError
from scoretune.policy import Policy, adapter_state, add_adapter
from scoretune.scenes import world

PROMPTS = ["a red seven", "two fives", "a three left of a nine"]
STEPS = 10


def finetuned() -> Policy:
    """The shipped model with an adapter that does something."""
    backbone = stable_diffusion.load(str(world.shipped()))
    add_adapter(backbone.network, rank=4)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in adapter_state(backbone.network).items():
        if "lora_B" in name:
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=generator))
    return Policy(backbone, GDDIM(1.0))


@pytest.fixture(scope="module")
def policy() -> Policy:
    return finetuned()


@pytest.fixture(scope="module")
def theirs(policy, tmp_path_factory) -> StableDiffusionPipeline:
    folder = tmp_path_factory.mktemp("lora")
    export.lora(policy, folder)
    pipe = StableDiffusionPipeline.from_pretrained(world.shipped(), safety_checker=None)
    pipe.load_lora_weights(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def ours(policy: Policy, guidance: float, latents: torch.Tensor) -> torch.Tensor:
    guided = Policy(policy.backbone, policy.kernel, guidance)
    condition = policy.backbone.encode(PROMPTS)
    process = policy.backbone.process
    times = grids.diffusers_times(process, STEPS, spacing="trailing")
    return policy.backbone.decode(solvers.ddim(process, guided.field(condition), latents, times))


def drawn(pipe, guidance: float, latents: torch.Tensor) -> torch.Tensor:
    return pipe(
        PROMPTS,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        eta=0.0,
        latents=latents.clone(),
        output_type="pt",
    ).images


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_same_pictures_in_plain_diffusers(policy, theirs, guidance):
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    mine, pictures = ours(policy, guidance, latents), drawn(theirs, guidance, latents)
    assert torch.isfinite(pictures).all()
    torch.testing.assert_close(mine, pictures, rtol=0, atol=1e-4)
    with policy.reference():  # the adapter is what made them so
        assert float((ours(policy, guidance, latents) - pictures).abs().max()) > 0.01


def test_every_adapter_weight_arrives(policy, theirs):
    own = adapter_state(policy.backbone.network)
    loaded = {n: p for n, p in theirs.unet.named_parameters() if "lora_" in n}
    assert sorted(t.shape for t in own.values()) == sorted(p.shape for p in loaded.values())
    assert mass(loaded.values()) == pytest.approx(mass(own.values()), rel=1e-6)


def mass(tensors) -> float:
    return sum(float(tensor.detach().abs().sum()) for tensor in tensors)


def test_equal_adapters_make_equal_files(policy, tmp_path):
    hashes = {
        hashlib.sha256(export.lora(policy, tmp_path / str(k)).read_bytes()).hexdigest()
        for k in range(6)
    }
    assert len(hashes) == 1


def test_nothing_to_export(tmp_path):
    bare = Policy(stable_diffusion.load(str(world.shipped())), GDDIM(1.0))
    with pytest.raises(UserError, match="nothing to export"):
        export.lora(bare, tmp_path)
