"""The judge's own labels of pairs of pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from scoretune.commands.reproduce.voted_pairs import judged
from scoretune.data.pairs import read_pairs
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw


def test_the_judge_prefers_what_the_prompt_asks_for(tmp_path: Path):
    """Whatever side it is on, and neither of two equal ones; votes have no say."""
    rng, asks = np.random.default_rng(0), world.asks_by_text()
    texts = ["a red zero", "a blue nine"]
    layouts = [world.lay_out(asks[text], rng) for text in texts]
    for name, picture in zip(("right", "wrong"), draw(layouts, "pictures", rng), strict=True):
        pixels = (picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    rows = [
        {"prompt": texts[0], "image_0": f"{first}.png", "image_1": f"{second}.png"}
        | {"votes_0": 1, "votes_1": 2}
        for first, second in (("right", "wrong"), ("wrong", "right"), ("wrong", "wrong"))
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "pairs.jsonl").write_text(lines, encoding="utf-8")
    table = judged(tmp_path)
    labels = [json.loads(line)["label_0"] for line in table.read_text("utf-8").splitlines()]
    assert labels == [1.0, 0.0, 0.5]
    assert len(read_pairs(str(table), ties="drop")) == 1  # the same two pictures, turned round
