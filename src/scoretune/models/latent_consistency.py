"""Latent consistency models: any diffusers LatentConsistencyModelPipeline, folder or hub.

One call of the UNet, which is told the guidance scale, says where a path of the guided ODE began
(arXiv 2310.04378): f = c_skip x + c_out x̂0, x̂0 being read from its output. f is the data that
this backbone predicts. A model's own sampler goes to f and back with fresh noise: Renoise(CPS(1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from scoretune.core.errors import UserError
from scoretune.diffusion import estimates
from scoretune.diffusion.estimates import Prediction
from scoretune.diffusion.processes import expand
from scoretune.models.base import Pipelined, Told
from scoretune.models.pipelines import Family, by_schedule

SIGMA_DATA = 0.5  # LCMScheduler's, which no configuration changes


@dataclass
class LatentConsistency(Told, Pipelined):
    """A LatentConsistencyModelPipeline as a continuous-time model; all but the UNet is frozen.

    `schedule` says what the UNet itself puts out, of which f is made.
    """

    @property
    def prediction(self) -> Prediction:
        return estimates.data

    def text_states(self, prompts: Sequence[str]) -> Tensor:
        """Text states [B, L, D]."""
        return cast(Tensor, self.pipeline.encode_prompt(list(prompts), self.device, 1, False)[0])

    def guidance_embedding(self, x: Tensor) -> Tensor:
        """Sines of scale − 1, [B, G], which guidance was distilled in by (arXiv 2210.03142)."""
        unet, scale = self.pipeline.unet, torch.tensor([self.scale - 1.0])
        sines = self.pipeline.get_guidance_scale_embedding(scale, unet.config.time_cond_proj_dim)
        return cast(Tensor, sines.to(x.device, unet.dtype).expand(len(x), -1))

    def predict(self, x: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """f [B, C, h, w] in float32."""
        unet, label = self.pipeline.unet, self.schedule.label(t)
        output = unet(
            x.to(unet.dtype),
            label,
            timestep_cond=self.guidance_embedding(x),
            encoder_hidden_states=tokens.to(unet.dtype),
        ).sample
        x = x.float()
        data = estimates.read(self.process, self.schedule.prediction, t, x, output.float()).data
        skip, out = boundary(label, self.pipeline.scheduler.config.timestep_scaling)
        return expand(skip, x) * x + expand(out, x) * data


def boundary(label: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) at labels [B]: σ_d²/(u² + σ_d²) and u/√(u² + σ_d²), u = scaling · label.

    (arXiv 2310.04378 eq. 9, with LCMScheduler's constants.) 1 and 0 at the first node and below.
    """
    scaled = label.clamp(min=0) * scaling
    whole = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / whole, scaled / whole.sqrt()


def build(pipeline: Any, source: str, size: int | str) -> LatentConsistency:
    """The model of a pipeline. Raises UserError for what such a pipeline could not draw with."""
    _check(source, pipeline)
    return by_schedule(LatentConsistency, pipeline, source, size)


def _check(source: str, pipeline: Any) -> None:
    """Refuse what such a pipeline could not draw with itself."""
    scheduler = pipeline.scheduler
    if type(scheduler).__name__ != "LCMScheduler":
        raise UserError(
            f"the scheduler of {source!r} is a {type(scheduler).__name__}: a latent consistency "
            "model needs an LCMScheduler"
        )
    if scheduler.config.clip_sample or scheduler.config.thresholding:
        raise UserError(
            f"the scheduler of {source!r} clips its estimates, which latents are not made for: set "
            "clip_sample and thresholding to false"
        )
    if not pipeline.unet.config.time_cond_proj_dim:
        raise UserError(
            f"{source!r} has a UNet that is not told a guidance scale: save the pipeline as a "
            "StableDiffusionPipeline"
        )


FAMILY = Family(
    kinds=("LatentConsistencyModelPipeline",),
    networks=("UNet2DConditionModel",),
    build=build,
    unused=("safety_checker",),
)
load = FAMILY.load
