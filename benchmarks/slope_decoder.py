"""What following a reward's gradient through a decoder costs, SDXL's own and a small one
(`model.slope_decoder`): bytes and FLOPs of one picture, by `scoretune plan`.

    .venv/bin/python benchmarks/slope_decoder.py [sdxl …]

From configurations alone (`published_models.py`): nothing was run on such a card. The small decoder
is diffusers' `AutoencoderTiny` as it is by default, which is that of madebyollin/taesdxl.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from published_models import build
from scoretune.commands.plan.model import model_of
from scoretune.training import settings_file


def small_decoder(home: Path) -> Path:
    import torch
    from diffusers import AutoencoderTiny

    with torch.device("meta"):
        AutoencoderTiny().save_config(home / "small")
    return home / "small"


def rows(name: str, home: Path) -> list[str]:
    """A line through each decoder."""
    prompts = home / "prompts.txt"
    prompts.write_text("a red circle\n")
    source, lines = build(name, home), []
    for label, changes in (
        ("its own", []),
        ("small", [f"model.slope_decoder={small_decoder(home)}"]),
    ):
        named = [f"model.source={source}", f"prompts={prompts}", "reward=brightness", *changes]
        model = model_of(settings_file.named("score_as_action", named), ["a red circle"])[1]
        cost = model.plain.sloping.at(1)
        weights = model.parts.get("slope_decoder", 0)
        lines.append(
            f"| {name} | {label} | {cost.peak / 1e9:.2f} GB | {cost.flops / 1e12:.1f} | "
            f"{weights / 1e6:.1f} MB |"
        )
    return lines


if __name__ == "__main__":
    print("| model | decoder of slopes | graph of one picture | TFLOPs, there and back | weights |")
    print("|---|---|---|---|---|", flush=True)
    for each in sys.argv[1:] or ["sdxl"]:
        with tempfile.TemporaryDirectory() as folder:
            print("\n".join(rows(each, Path(folder))), flush=True)
