"""Learning in a measured space: how data are measured, and recovered."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from scoretune.core.config.base import Strict, only
from scoretune.core.config.model import NEW_NETWORKS

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


NEW = "a new network that learns from data: recipe supervised with model.source=unet, dit or mlp"


SPARSE_ALONE = (
    *("basis", "rule", "exponent", "steps"),
    *("weight", "box", "iterations", "precision", "force"),
)


class Compress(Strict):
    """Compressed sensing of data for a new network of one's own (arXiv 2509.03898)."""

    ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="measurements a number of the data; auto, or 0: by the rule, from the measured "
        "sparsity; null: the data themselves are learned from",
    )
    basis: Literal["auto", "identity", "dct", "haar", "db2", "db4"] = Field(
        "auto", description="in which the data are sparse; auto: where they are sparsest"
    )
    decoder: Literal["sparse", "linear"] = Field(
        "sparse",
        description="of measurements: sparse recovery, or the linear map that is best for the data",
    )
    operator: Literal["auto", "gaussian", "dct", "hadamard"] = Field(
        "auto", description="random measurements; auto: gaussian, dct for more than 4096 numbers"
    )
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of the operator")
    rule: Literal["feasible", "worst_case", "random_noise", "cost"] = Field(
        "feasible", description="ratio=auto: how m follows from the statistical dimension"
    )
    exponent: float = Field(
        1.0, gt=0, le=100, description="worst_case, random_noise: the latent error grows as m to it"
    )
    steps: float = Field(1.0, gt=0, le=1e6, description="cost: steps of the sampler a measurement")
    tolerance: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="share of a state's norm that its sparse form may miss; ratio=auto with "
        "decoder=linear: that the decoder may miss",
    )
    weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="λ of the decoder; 0: a hundredth of the measurements' spread",
    )
    box: bool = Field(True, description="pictures that are sparse themselves: recover in [0, 1]")
    iterations: int = Field(500, ge=1, le=10**6, description="of the decoder, at most")
    precision: float = Field(
        0.02,
        ge=1e-8,
        lt=1,
        description="of the decoder: violation of optimality, as a share of the weight",
    )
    force: bool = Field(False, description="train though recovery is expected to fail")

    @field_validator("ratio", mode="before")
    @classmethod
    def automatic(cls, value: Any) -> Any:
        return 0.0 if value == "auto" else value

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        rest = [name for name in self.leaves() if name != "ratio"]
        new = on_data and run.model.source in NEW_NETWORKS
        auto, sparse = self.ratio == 0, self.decoder == "sparse"
        return {
            **only(
                auto and self.rule == "cost", "compress.ratio=auto, compress.rule=cost", "steps"
            ),
            **only(
                auto and self.rule in ("worst_case", "random_noise"),
                "compress.ratio=auto and compress.rule=worst_case or random_noise",
                "exponent",
            ),
            **only(auto, "compress.ratio=auto", "rule"),
            **only(self.basis in ("auto", "identity"), "compress.basis=identity", "box"),
            **only(sparse, "compress.decoder=sparse", *SPARSE_ALONE),
            **only(self.ratio is not None, "compress.ratio", *rest),
            **only(new, NEW, *self.leaves()),
        }
