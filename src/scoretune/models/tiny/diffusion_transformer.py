"""A tiny DiT of a thousand classes on latents of 4×4, which also predicts its variance."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from scoretune.models.tiny.stable_diffusion_xl import autoencoder, jittered

NAMES = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 207: "golden retriever"}
"""What three of the classes are called, as diffusers has it: names with commas between them."""


def build(folder: Path, seed: int = 0) -> Path:
    """Save the pipeline in a folder, its classes named; returns the folder."""
    pipeline(seed).save_pretrained(folder)
    index = folder / "model_index.json"  # diffusers reads names there, and does not save them
    described = json.loads(index.read_text(encoding="utf-8"))
    described["id2label"] = {str(number): name for number, name in NAMES.items()}
    index.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def pipeline(seed: int = 0) -> Any:
    """A DiTPipeline of random weights, with the scheduler of the published ones."""
    from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel

    torch.manual_seed(seed)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        patch_size=2,
        num_embeds_ada_norm=1000,  # the null class of diffusers' own call has this number
    )
    scheduler, whole = DDIMScheduler(clip_sample=False), jittered(network, 0.1).eval()
    return DiTPipeline(whole, autoencoder(), scheduler, id2label=dict(NAMES))
