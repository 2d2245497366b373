"""Editors that follow instructions, each a pipeline of diffusers.

Instructions are carried out one after the other, each on what the last one made. What comes out is
as large as the picture that went in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from scoretune.core import distributed, hub
from scoretune.core.records import spans
from scoretune.data.scenes import world
from scoretune.models.folders import check_processor, described
from scoretune.rewards.base import Precision
from scoretune.training.feedback.records import Edited, Shown

BLACK = 0.02
"""Largest value of a picture with nothing in it: what safety checkers and overflows leave."""


@dataclass(frozen=True)
class DiffusersEditor:
    """A pipeline of a folder or hub id, and how it is called.

    model: folder or hub id; steps and guidance: 0 for the pipeline's own; batch: pictures at once;
    dtype: of its networks.
    """

    model: str
    steps: int = 0
    guidance: float = 0.0
    batch: int = 1
    revision: str | None = None
    dtype: Precision = "float32"

    CLASS: ClassVar[str] = ""
    GUIDANCE: ClassVar[str] = "guidance_scale"

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline, on this process's device. Raises UserError where it cannot be loaded."""
        pipe = self._load().to(distributed.device())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def _load(self, **parts: Any) -> Any:
        import diffusers

        kind = getattr(diffusers, self.CLASS)
        dtype = getattr(torch, self.dtype)
        hub.quieten()
        return hub.offline_first(
            self.model,
            f"a {self.CLASS}",
            lambda here: kind.from_pretrained(
                hub.place(self.model),
                revision=self.revision,
                local_files_only=here,
                torch_dtype=dtype,
                use_safetensors=True,
                **parts,
            ),
        )

    def settings(self, pictures: Tensor) -> dict[str, Any]:
        """What the pipeline is called with beside instructions; `pictures` [B, 3, H, W]."""
        chosen: dict[str, Any] = {"image": pictures}
        if self.steps:
            chosen["num_inference_steps"] = self.steps
        if self.guidance:
            chosen[self.GUIDANCE] = self.guidance
        return chosen

    @torch.no_grad()
    def __call__(
        self, pictures: Sequence[Shown], plans: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> list[Edited]:
        """Each picture after the instructions of its plan; a seed gives the same edit again."""
        now = [shown.pixels for shown in pictures]
        for turn in range(max(map(len, plans), default=0)):
            rows = [i for i, plan in enumerate(plans) if turn < len(plan)]
            for span in spans(len(rows), self.batch):
                some = rows[span]
                texts = [plans[i][turn] for i in some]
                changed = self.edited(
                    torch.stack([now[i] for i in some]), texts, [seeds[i] + turn for i in some]
                )
                for i, picture in zip(some, changed, strict=True):
                    now[i] = picture
        return [_checked(picture) for picture in now]

    def edited(self, pictures: Tensor, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """One instruction for each picture [B, 3, H, W]; as large as they are, on the CPU."""
        device = distributed.device()
        output = self.pipeline(
            prompt=list(texts),
            generator=[torch.Generator(device).manual_seed(seed) for seed in seeds],
            output_type="pt",
            **self.settings(pictures.to(device)),
        ).images
        return _fitted(output.float().cpu(), pictures.shape[-2:])


@dataclass(frozen=True)
class InstructPix2Pix(DiffusersEditor):
    """InstructPix2Pix (arXiv 2211.09800); `image_guidance` holds it to the picture."""

    model: str = "timbrooks/instruct-pix2pix"
    image_guidance: float = 1.5

    CLASS: ClassVar[str] = "StableDiffusionInstructPix2PixPipeline"

    def settings(self, pictures: Tensor) -> dict[str, Any]:
        return super().settings(pictures) | {"image_guidance_scale": self.image_guidance}


@dataclass(frozen=True)
class ScenesEdit(InstructPix2Pix):
    """The shipped InstructPix2Pix in miniature, as its card measures it; it knows the instructions
    of `data.scenes.edits`."""

    model: str = str(world.shipped_editor())
    steps: int = 20
    guidance: float = 3.0
    batch: int = 32


@dataclass(frozen=True)
class ControlNet(DiffusersEditor):
    """A Stable Diffusion beside a ControlNet that was taught instructions, such as
    control_v11e_sd15_ip2p; `scale` is the weight of the picture."""

    model: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    control: str = "lllyasviel/control_v11e_sd15_ip2p"
    scale: float = 1.0

    CLASS: ClassVar[str] = "StableDiffusionControlNetPipeline"

    def _load(self, **parts: Any) -> Any:
        import diffusers

        dtype = getattr(torch, self.dtype)
        control = hub.offline_first(
            self.control,
            "a ControlNet",
            lambda here: diffusers.ControlNetModel.from_pretrained(
                hub.place(self.control),
                local_files_only=here,
                torch_dtype=dtype,
                use_safetensors=True,
            ),
        )
        return super()._load(controlnet=control, **parts)

    def settings(self, pictures: Tensor) -> dict[str, Any]:
        return super().settings(pictures) | {"controlnet_conditioning_scale": self.scale}


@dataclass(frozen=True)
class Kontext(DiffusersEditor):
    """FLUX.1 Kontext (arXiv 2506.15742)."""

    model: str = "black-forest-labs/FLUX.1-Kontext-dev"
    guidance: float = 2.5

    CLASS: ClassVar[str] = "FluxKontextPipeline"

    def settings(self, pictures: Tensor) -> dict[str, Any]:
        height, width = pictures.shape[-2:]
        own = {"height": height, "width": width, "max_area": height * width}
        # the pipeline would scale a picture to the sizes that the great model was trained on
        free = {"_auto_resize": False} if min(height, width) < 512 else {}
        return super().settings(pictures) | own | free


@dataclass(frozen=True)
class QwenImageEdit(DiffusersEditor):
    """Qwen-Image-Edit (arXiv 2508.02324), which reads pictures at one megapixel."""

    model: str = "Qwen/Qwen-Image-Edit"
    guidance: float = 4.0

    CLASS: ClassVar[str] = "QwenImageEditPipeline"
    GUIDANCE: ClassVar[str] = "true_cfg_scale"

    def _load(self, **parts: Any) -> Any:
        check_processor(self.model, described(self.model, self.revision))
        return super()._load(**parts)

    def settings(self, pictures: Tensor) -> dict[str, Any]:
        from PIL import Image

        height, width = pictures.shape[-2:]
        arrays = (pictures * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        own = {"image": [Image.fromarray(each) for each in arrays], "height": height}
        empty = [" "] * len(pictures)
        return super().settings(pictures) | own | {"width": width, "negative_prompt": empty}


def _fitted(pictures: Tensor, size: torch.Size) -> Tensor:
    if pictures.shape[-2:] == size:
        return pictures
    return F.interpolate(pictures, tuple(size), mode="bilinear", antialias=True).clamp(0, 1)


def _checked(picture: Tensor) -> Edited:
    if not bool(picture.isfinite().all()):
        return Edited(torch.zeros_like(picture), "the editor gave NaN or infinity")
    if float(picture.max()) < BLACK:
        return Edited(picture, "the editor gave a black picture")
    return Edited(picture)
