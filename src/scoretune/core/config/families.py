"""Settings that fit a family of pretrained models, by the class of its pipeline, with their source.

The recipes' own are for the miniature that ships, whose learning rate would wreck a real model.
What a family says goes over a recipe's and below what people set. The numbers are as published or,
where nobody published any for reinforcement learning, as guides to fine-tuning have them; none has
been run here on these models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

OURS = {"sampling.steps": 10, "sizes.prompts": 16, "sizes.group": 8}
"""What these are where a recipe says nothing; what it says of them is the method's, and stays."""
FULL = 0.1
"""A full fine-tuning's learning rate as a share of a LoRA's, at most (Diffusion-DPO trains SDXL's
whole UNet at 1e-5 and less)."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What fits a family: pictures of `size` pixels, videos of `frames` (0: the model's own), the
    steps of a path and of an evaluation, the scales of guidance (by the picture of models that
    edit), LoRA rank and learning rate, states in the network `at_once`; `heavy` models compute
    activations again."""

    source: str
    size: int | str = 0
    frames: int = 0
    steps: int = 10
    evaluation: int = 50
    guidance: float | None = None
    image_guidance: float | None = None
    precision: str = "bf16"
    rank: int = 16
    learning_rate: float = 1e-4
    prompts: int = 8
    group: int = 8
    at_once: int = 4
    heavy: bool = True

    def settings(self, full: bool) -> Iterator[tuple[str, Any]]:
        """The settings by their paths; `full`: every weight is trained."""
        yield "model.size", self.size
        yield "model.frames", self.frames
        yield "model.guidance", self.guidance
        yield "model.image_guidance", self.image_guidance
        if not full:
            yield "model.precision", self.precision
            yield "model.rank", self.rank
        yield "optimiser.learning_rate", self.learning_rate * (FULL if full else 1)
        yield "sampling.steps", self.steps
        yield "evaluation.steps", self.evaluation
        yield "sizes.prompts", self.prompts
        yield "sizes.group", self.group
        yield "hardware.device_batch", self.at_once
        yield "hardware.checkpointing", self.heavy


DDPO = "ddpo-pytorch config/base.py (rate, precision) and arXiv 2305.13301 (50 steps, scale 5)"
FLOW_GRPO = "Flow-GRPO config/base.py and config/grpo.py"
GUIDE = "SimpleTuner's quickstarts (rate 1e-4, rank 16, bf16), the pipeline's call (steps, scale)"
DEFAULTS: Mapping[str, Defaults] = {
    "StableDiffusionPipeline": Defaults(
        source=DDPO, steps=50, guidance=5.0, precision="fp16", rank=4, heavy=False
    ),
    "StableDiffusionXLPipeline": Defaults(source=GUIDE, steps=50, guidance=5.0),
    "StableDiffusion3Pipeline": Defaults(
        source=f"{FLOW_GRPO}: pickscore_sd3",
        size=512,
        evaluation=40,
        guidance=4.5,
        rank=32,
        learning_rate=3e-4,
        group=24,
        at_once=9,
    ),
    "FluxPipeline": Defaults(
        source=f"{FLOW_GRPO}: pickscore_flux_8gpu",
        size=512,
        steps=6,
        evaluation=28,
        guidance=3.5,
        rank=64,
        learning_rate=3e-4,
        group=24,
        at_once=3,
    ),
    "QwenImagePipeline": Defaults(
        source=f"{FLOW_GRPO}: pickscore_qwenimage",
        size=512,
        guidance=4.0,
        rank=64,
        learning_rate=3e-4,
        group=16,
    ),
    "StableDiffusionInstructPix2PixPipeline": Defaults(
        source="diffusers' instructpix2pix_lora (rank, rate) and instruct_pix2pix (fp16, 20 steps),"
        " the pipeline's call (100 steps to evaluate, scales 7.5 and 1.5, as in arXiv 2211.09800)",
        steps=20,
        evaluation=100,
        guidance=7.5,
        image_guidance=1.5,
        precision="fp16",
        rank=4,
        learning_rate=5e-5,
        heavy=False,
    ),
    "FluxKontextPipeline": Defaults(
        source=f"{FLOW_GRPO}: counting_flux_kontext, scripts/train_flux_kontext.py (rank)",
        size=512,
        steps=6,
        evaluation=28,
        guidance=2.5,
        rank=64,
        learning_rate=3e-4,
        group=21,
        at_once=3,
    ),
    "QwenImageEditPipeline": Defaults(
        source=f"{FLOW_GRPO}: counting_qwenimage_edit, train_qwenimage_edit_plus.py (rank)",
        size=512,
        guidance=4.0,
        rank=64,
        learning_rate=3e-4,
        group=16,
    ),
    "ChromaPipeline": Defaults(source=GUIDE, evaluation=35, guidance=5.0),
    "Flux2KleinPipeline": Defaults(source=GUIDE, guidance=4.0),
    "ZImagePipeline": Defaults(source=GUIDE, guidance=6.0),
    "Lumina2Pipeline": Defaults(source=GUIDE, evaluation=30, guidance=4.0),
    "SanaPipeline": Defaults(source=GUIDE, evaluation=20, guidance=4.5),
    "PixArtAlphaPipeline": Defaults(source=GUIDE, steps=20, evaluation=20, guidance=4.5),
    "PixArtSigmaPipeline": Defaults(source=GUIDE, steps=20, evaluation=20, guidance=4.5),
    "AuraFlowPipeline": Defaults(source=GUIDE, guidance=3.5),
    "CogView4Pipeline": Defaults(source=GUIDE, guidance=5.0),
    "WanPipeline": Defaults(
        source=f"{FLOW_GRPO}: general_ocr_wan2_1, scripts/train_wan2_1.py (rank)",
        size="416x240",
        frames=33,
        steps=20,
        guidance=4.5,
        rank=32,
        group=4,
        at_once=8,
    ),
    "LTXPipeline": Defaults(
        source="SimpleTuner's quickstart of LTX (rate 5e-5, 25 steps, scale 3)",
        evaluation=25,
        guidance=3.0,
        learning_rate=5e-5,
        group=4,
        at_once=1,
    ),
    "HunyuanVideoPipeline": Defaults(
        source="the pipeline's call (steps, scale), SimpleTuner's rate and rank for others",
        guidance=6.0,
        group=4,
        at_once=1,
    ),
    "CogVideoXPipeline": Defaults(
        source="the pipeline's call (steps, scale), SimpleTuner's rate and rank for others",
        guidance=6.0,
        group=4,
        at_once=1,
    ),
    "LatentConsistencyModelPipeline": Defaults(
        source="the pipeline's call; the rate of ddpo-pytorch", steps=4, evaluation=4, guidance=8.5
    ),
}
"""By the class of the pipeline."""
