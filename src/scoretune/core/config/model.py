"""What is fine-tuned, or trained from nothing, and how data are read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from scoretune.core.config.base import (
    LONGEST,
    NAMES,
    ON_DATA,
    REWARDED,
    SIDE,
    Checked,
    Names,
    Strict,
    only,
)

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


NEW_NETWORKS = ("unet", "dit", "mlp")
SHIPPED_MODELS = ("scenes", "scenes-flow")
FUNCTION = r"[\w.]*:\w*"
"""How a user's own function is named: module:function."""


def _pixels(value: Any) -> int | str:
    """A side in pixels, or width x height."""
    text = str(value)
    sides = (
        [int(side) for side in text.split("x")] if re.fullmatch(r"\d{1,5}(x\d{1,5})?", text) else []
    )
    square = isinstance(value, int) and not isinstance(value, bool)
    if (
        (square or len(sides) == 2)
        and sides
        and min(sides) >= len(sides) - 1
        and max(sides) <= SIDE
    ):
        return int(value) if square else text
    raise PydanticCustomError(
        "size",
        "Input should be a side in pixels, or width x height as 1344x768, up to {most}",
        {"most": SIDE},
    )


class Model(Strict):
    """What is fine-tuned, and how much of it; or the network that is trained from nothing."""

    source: str = Field(
        "scenes",
        description="'scenes', 'scenes-flow', a folder, a hub id, a network of your own as "
        "module:function; or a new 'unet', 'dit' or 'mlp'",
    )
    revision: str | None = Field(None, description="of a model of the hub: a branch, tag or commit")
    size: Annotated[int | str, PlainValidator(_pixels)] = Field(
        0,
        description="of the pictures in pixels: a side, or width x height as 1344x768; 0: the "
        "model's own",
    )
    frames: int = Field(
        0, ge=0, le=2**12, description="of the videos that a model draws; 0: the model's own"
    )
    shape: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field(
        (), description="module:function: of one state, e.g. [3,32,32] for pictures in [0, 1]"
    )
    without: Names = Field(
        (), max_length=NAMES, description="parts to leave out, e.g. text_encoder_3 (a T5)"
    )
    rank: int = Field(
        16, ge=0, le=4096, description="of the LoRA; 0 trains every weight, at a far lower rate"
    )
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        max_length=NAMES,
        description="layers that the LoRA adapts, by the ends of their names",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="of the frozen weights; likelihoods and the adapter have fp32 or more"
    )
    quantize: Literal["int8", "float8", "nf4", "bnb_int8"] | None = Field(
        None,
        description="store the frozen denoiser below a LoRA in 8 or 4 bits: int8, float8 "
        "(torchao), nf4, bnb_int8 (bitsandbytes, on a GPU)",
    )
    quantize_encoders: bool = Field(False, description="and the text encoders")
    slope_decoder: str | None = Field(
        None,
        description="a small autoencoder of the same latents, a folder or hub id such as "
        "madebyollin/taesdxl, that a reward's gradient goes back through; pictures stay the "
        "model's own",
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="classifier-free, null: 1; what a guidance-distilled network is told, null: "
        "its pipeline's own",
    )
    image_guidance: float | None = Field(
        None,
        ge=1,
        le=1000,
        description="InstructPix2Pix: scale of guidance by the picture, beside that by the text; "
        "null: its pipeline's own",
    )
    process: str | None = Field(
        None,
        description="run the network under another process, e.g. VE(sigma_max=14); a new network: "
        "the process it is trained under",
    )
    prediction: Literal["epsilon", "sample", "v_prediction", "velocity"] | None = Field(
        None, description="of a new network: what it is trained to output"
    )
    width: int = Field(0, ge=0, le=4096, description="of a new network; 0: as suits its kind")
    depth: int = Field(0, ge=0, le=256, description="of a new network; 0: as suits its kind")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        new, function = self.source in NEW_NETWORKS, bool(re.fullmatch(FUNCTION, self.source))
        shipped = self.source in SHIPPED_MODELS
        network = Checked("a network of your own, model.source=module:function")
        fresh = Checked("a new network, model.source=unet, dit or mlp")
        return {
            **only(self.rank > 0, "a LoRA, model.rank above 0", "targets"),
            **only(
                self.quantize is not None,
                "quantised weights, model.quantize",
                "quantize_encoders",
            ),
            **only(function, network, "shape"),
            **only(new or function, fresh, "prediction"),
            **only(new, fresh, "width", "depth"),
            **only(not on_data or new, Checked("a new network, or a pretrained one"), "process"),
            **only(not on_data and not function, "a diffusers pipeline", "size", "without"),
            **only(not on_data and not function, "a text-to-video pipeline", "frames"),
            **only(
                not on_data and not function,
                Checked("a diffusers pipeline"),
                "quantize",
                "quantize_encoders",
                "slope_decoder",
            ),
            **only(not on_data, REWARDED, "targets"),
            **only(not function and not shipped, "a model of the hub", "revision"),
            **only(not on_data, Checked(REWARDED), "rank", "precision", "guidance", "revision"),
            **only(not on_data, Checked(REWARDED), "image_guidance"),
            **only(
                run.objective.kind != "guidance",
                "recipes that sample with guidance, and this one learns that of objective.scale",
                "guidance",
            ),
        }


class Dataset(Strict):
    """How `data` are read for a network of one's own."""

    kind: Literal["auto", "images", "points", "series"] = Field(
        "auto", description="what the data are"
    )
    key: str | None = Field(None, description="which array of a .npz file")
    columns: Names = Field(
        (), max_length=LONGEST, description="of a table; empty takes all that hold numbers"
    )
    window: int = Field(
        0, ge=0, le=2**20, description="rows that make a series; 0: a row is a point"
    )
    stride: int = Field(1, ge=1, le=2**20, description="rows from one window to the next")
    size: int = Field(
        0, ge=0, le=SIDE, description="side to scale and crop pictures to; 0: as they are"
    )
    channels: Literal["auto", "first", "last"] = Field("auto", description="of images in arrays")
    held_out: float = Field(0.1, gt=0, lt=1, description="share that is never learned from")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return {
            **only(self.window > 0, "dataset.window above 0", "stride"),
            **only(on_data, ON_DATA, *self.leaves()),
        }
