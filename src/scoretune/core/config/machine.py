"""The optimiser, how the machine does its work, and what it keeps and reports on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from scoretune.core.config.base import (
    NAMES,
    ON_DATA,
    REWARDED,
    SAMPLES,
    UPDATES,
    Checked,
    Names,
    Strict,
    only,
)

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


class Optimiser(Strict):
    """AdamW on the adapter."""

    kind: Literal["adamw", "fused", "8bit"] = Field(
        "adamw", description="fused: one kernel a step; 8bit: bitsandbytes' (an extra)"
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="at the first update")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="decoupled, as AdamW has it")
    clip_norm: float = Field(1.0, ge=1e-9, le=1e9, description="longest gradient of a step")
    decay: Literal["linear", "none"] = Field("linear", description="of the rate, to 0 at the end")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose gradient is NaN or infinite: ends the run, or is left out"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="networks from data: decay of the averaged weights; 0: none"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(on_data, ON_DATA, "ema")


def _gigabytes(value: Any) -> Any:
    """Gigabytes of 10⁹ bytes, as a number or with their unit."""
    if not isinstance(value, str):
        return value
    try:
        return float(value.upper().removesuffix("GB"))
    except ValueError:
        raise PydanticCustomError("gigabytes", "give gigabytes, e.g. 24GB") from None


class Hardware(Strict):
    """How the machine does it; changes no result beyond rounding."""

    device_batch: int = Field(
        0,
        ge=0,
        le=SAMPLES,
        description="states a network sees at once on a device; 0: as sizes says",
    )
    checkpointing: bool = Field(
        False, description="activations are computed again instead of kept: less memory, slower"
    )
    cache_prompts: bool = Field(
        False, description="encode every prompt once, then let go of the text encoders"
    )
    offload: bool = Field(
        False,
        description="text encoders and autoencoder wait in the computer's memory until they are "
        "used",
    )
    memory: Annotated[float | None, BeforeValidator(_gigabytes)] = Field(
        None,
        gt=0,
        le=2**20,
        description="of a device, e.g. 24GB: `scoretune plan` finds settings that fit it",
    )
    decode_batch: int = Field(
        0, ge=0, le=SAMPLES, description="pictures decoded at once; 0: about four megapixels"
    )
    offload_paths: bool = Field(False, description="paths wait in the computer's memory")
    compile: bool = Field(False, description="torch.compile the network")
    channels_last: bool = Field(False, description="memory layout of convolutions")
    shard: bool = Field(False, description="spread the weights over the processes (FSDP2)")
    deterministic: bool = Field(
        False,
        description="kernels that give the same bits every time: slower, and some have none",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return {
            **only(False, Checked("scoretune plan"), "memory"),
            **only(not on_data, Checked(REWARDED), *self.leaves()),
        }


class Checkpoints(Strict):
    """When to save, and how many to keep."""

    every: int = Field(5, ge=1, le=UPDATES, description="updates between two checkpoints")
    keep: int = Field(2, ge=1, le=UPDATES, description="how many, the newest")


class Tracking(Strict):
    """Where numbers go besides the run folder's metrics.jsonl."""

    trackers: Names = Field(
        (), max_length=NAMES, description="tensorboard, wandb, trackio: any of them"
    )
    project: str = Field("scoretune", description="what the trackers file the run under")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return only(bool(self.trackers), "tracking.trackers", "project")
