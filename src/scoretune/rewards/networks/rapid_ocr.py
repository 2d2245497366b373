"""Text in pictures by RapidOCR, whose wheel carries PP-OCR's weights; runs in onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from scoretune.core.errors import UserError
from scoretune.core.hub import sha256
from scoretune.rewards.cache import Pixels

PACKAGES = ("rapidocr", "onnxruntime")


@dataclass(frozen=True)
class RapidOcr:
    """PP-OCR's networks on the CPU. `detect` finds the lines first; else a picture is one line."""

    detect: bool = True

    def __post_init__(self) -> None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise UserError(
                f"ocr(engine=rapidocr) needs the package {missing[0]}: "
                'pip install "scoretune[ocr]", or "rapidocr" and "onnxruntime"'
            )

    @cached_property
    def engine(self) -> Any:
        """The pipeline of networks, with as many threads as torch has."""
        from rapidocr import RapidOCR

        threads = torch.get_num_threads()
        settings = {
            "Global.log_level": "critical",
            "Global.use_det": self.detect,
            "Global.use_cls": False,  # no picture is upside down
            "EngineConfig.onnxruntime.intra_op_num_threads": threads,
            "EngineConfig.onnxruntime.inter_op_num_threads": threads,
        }
        return RapidOCR(params=settings)

    def read(self, pixels: Pixels) -> list[str]:
        """The text in each picture [B, H, W, 3], its lines from above to below, by spaces."""
        readings = (self.engine(picture[:, :, ::-1]) for picture in pixels)  # blue comes first
        return [" ".join(reading.txts or ()) for reading in readings]

    def fingerprint(self) -> Mapping[str, str]:
        """Versions of the packages and hashes of the networks."""
        import rapidocr

        networks = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))
        return {
            **{name: version(name) for name in PACKAGES},
            **{path.name: sha256(path) for path in networks},
            "detect": str(self.detect),
        }
