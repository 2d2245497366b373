"""A small decoder of the shipped miniature's latents, taught in minutes what the model's own draws,
and whether slopes through it point where the true ones do.

    .venv/bin/python benchmarks/distilled_decoder.py FOLDER [--steps 1500]

FOLDER then holds an `AutoencoderTiny` for `model.slope_decoder=FOLDER`. It learns from x̂0 of random
times, of pictures of the base model's training prompts; what is measured is on x̂0 of others.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune import recipes
from scoretune.data.prompts import read_prompts
from scoretune.diffusion.named import grid
from scoretune.models.autoencoder import decoded
from scoretune.policy import Policy
from scoretune.rewards.catalog import named_reward
from scoretune.rollout import prior, rollout
from scoretune.training.build import build_policy

ROUNDS, STATES = 15, 64


@torch.no_grad()
def estimates(
    policy: Policy, times: Tensor, count: int, seed: int
) -> tuple[Tensor, Tensor, list[str]]:
    """x̂0 [N, 4, 8, 8] along the base model's paths, the share of noise left [N], and prompts."""
    generator = torch.Generator().manual_seed(seed)
    texts = read_prompts("scenes").texts
    seen, left, asked = [], [], []
    for start in range(0, count, STATES):
        prompts = [texts[(start + i) % len(texts)] for i in range(STATES)]
        noise = prior(policy, STATES, generator)
        path = rollout(policy, policy.encode(prompts), times, generator, noise)
        k = torch.randint(len(path.data), (STATES,), generator=generator)
        who = torch.arange(STATES)
        seen.append(path.data[k, who])
        left.append(path.times[k, who] / policy.backbone.process.horizon)
        asked += prompts
    return torch.cat(seen), torch.cat(left), asked


def distilled(vae: torch.nn.Module, latents: Tensor, steps: int) -> torch.nn.Module:
    """Adam on the mean absolute difference from what the model's own decoder draws."""
    from diffusers import AutoencoderTiny

    torch.manual_seed(0)
    small = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        decoder_block_out_channels=(24, 24, 24),
        num_decoder_blocks=(2, 1, 1),
    )
    optimiser = torch.optim.Adam(small.decoder.parameters(), lr=2e-3)
    for step in range(steps):
        rows = latents[torch.randint(len(latents), (32,))]
        with torch.no_grad():
            goal = decoded(vae, rows)
        loss = F.l1_loss(small.decode(rows).sample / 2 + 0.5, goal)
        optimiser.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 100 == 0:
            print(f"step {step}: mean absolute difference {float(loss):.4f}", flush=True)
    return small.eval().requires_grad_(False)


def slopes(decode: Callable[[Tensor], Tensor], x0: Tensor, prompts: list[str]) -> Tensor:
    place = x0.clone().requires_grad_()
    value = named_reward("reader")(decode(place), prompts)
    return torch.autograd.grad(value.sum(), place)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    given = parser.parse_args()
    run = recipes.score_as_action()
    policy = build_policy(run, torch.device("cpu"))
    times = grid(policy.backbone.process, run.sampling)
    vae = policy.backbone.pipeline.vae
    latents, _, _ = estimates(policy, times, 2048, seed=11)
    small = distilled(vae, latents, given.steps)
    small.save_pretrained(given.folder)

    fresh, left, prompts = estimates(policy, times, 512, seed=12)
    with torch.no_grad():
        off = (decoded(vae, fresh) - decoded(small, fresh)).abs().mean()
    print(f"mean absolute difference of pictures it was not taught: {float(off):.4f}")
    policy.backbone.slope_decoder = small
    through = slopes(policy.backbone.decode, fresh, prompts).flatten(1)
    policy.backbone.slope_decoder = None
    true = slopes(policy.backbone.decode, fresh, prompts).flatten(1)
    cosine = F.cosine_similarity(through, true)
    length = through.norm(dim=1) / true.norm(dim=1)
    whole = F.cosine_similarity(through.flatten(), true.flatten(), dim=0)
    print(f"cosine of all slopes at once: {float(whole):.3f}")
    for low, high in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1.01)):
        some = (left >= low) & (left < high)
        print(
            f"noise left {low:.2f}-{high:.2f}: cosine {float(cosine[some].median()):.3f}, length "
            f"{float(length[some].nanmedian()):.2f} of the true one, medians of {int(some.sum())}"
        )
    took: dict[str, list[float]] = {"own": [], "small": []}
    for _ in range(ROUNDS):
        for name, decoder in (("own", None), ("small", small)):
            policy.backbone.slope_decoder = decoder
            start = time.perf_counter()
            slopes(policy.backbone.decode, fresh[:STATES], prompts[:STATES])
            took[name].append(time.perf_counter() - start)
    ratios = [b / a for a, b in zip(took["own"], took["small"], strict=True)]
    print(
        f"seconds of {STATES} slopes: own {statistics.median(took['own']):.3f}, ratio "
        f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
    )


if __name__ == "__main__":
    main()
