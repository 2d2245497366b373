"""What `ocr(engine=rapidocr)` reads of written words: five fonts, five heights, twelve words.

    python benchmarks/ocr.py

A picture is a word, dark on light, with a margin of its height. `exact` is the share that is read
letter by letter, `reward` the mean of what the reward gives, seconds are of one CPU core.
"""

from __future__ import annotations

import time
from pathlib import Path

import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from scoretune.rewards.cache import eight_bit
from scoretune.rewards.ocr import Ocr, agreement

FOLDER = Path(matplotlib.get_data_path()) / "fonts/ttf"
FONTS = ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Oblique", "STIXGeneral", "cmss10")
HEIGHTS = (8, 12, 16, 32, 96)
WORDS = ("cat", "OPEN", "Lantern", "harbour", "bread", "mill", "River", "zebra", "JAZZ")
WORDS += ("24", "number 7", "quiet house")


def written(word: str, font: ImageFont.FreeTypeFont) -> Tensor:
    """A picture [1, 3, H, W] of a word."""
    left, top, right, bottom = (round(edge) for edge in font.getbbox(word))
    margin = round(font.size)
    size = (right - left + 2 * margin, bottom - top + 2 * margin)
    picture = Image.new("RGB", size, (244, 240, 230))
    ImageDraw.Draw(picture).text((margin - left, margin - top), word, (20, 30, 90), font)
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255


def main() -> None:
    for detect in (True, False):
        engine = Ocr(engine="rapidocr", detect=detect)
        for height in HEIGHTS:
            fonts = [ImageFont.truetype(str(FOLDER / f"{name}.ttf"), height) for name in FONTS]
            pictures = [(word, eight_bit(written(word, font))) for font in fonts for word in WORDS]
            engine.read(pictures[0][1])
            start = time.process_time()
            texts = [engine.read(picture)[0] for _, picture in pictures]
            seconds = (time.process_time() - start) / len(texts)
            words = [word for word, _ in pictures]
            rewards = [*map(agreement, texts, words)]
            exact = sum(reward == 1 for reward in rewards) / len(rewards)
            print(
                f"detect={detect!s:5} height={height:3} exact={exact:.2f} "
                f"reward={sum(rewards) / len(rewards):.3f} seconds={seconds:.3f}"
            )


if __name__ == "__main__":
    main()
