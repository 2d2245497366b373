"""Pairs and likes of pictures: what tables mean, what is read when, and what is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from scoretune.core.errors import UserError
from scoretune.data.pairs import read_likes, read_pairs


def picture(level: int, width: int = 8, height: int = 8, kind: str = "PNG") -> bytes:
    """A grey picture as bytes."""
    stream = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), level, np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Writes the rows of a table and pictures of those levels, and gives the folder's path."""

    def to(rows, name="pairs.jsonl", levels=range(0, 200, 10)):
        for level in levels:
            (tmp_path / f"{level}.png").write_bytes(picture(level))
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path)

    return to


def row(chosen: int = 10, rejected: int = 20, prompt: str = "a cat", **more):
    return {"prompt": prompt, "chosen": f"{chosen}.png", "rejected": f"{rejected}.png", **more}


def numbered(first: int, second: int, label: object, prompt: str = "a cat", **more):
    names = {"image_0": f"{first}.png", "image_1": f"{second}.png", "label": label}
    return {"caption": prompt, **names, **more}


def level(images: torch.Tensor) -> list[int]:
    return [round(255 * float(image.mean())) for image in images]


def test_a_folder_of_pairs_is_read_by_its_table(folder):
    table = read_pairs(folder([row(label=1), row(50, 40, "a dog", label=0.75)]))
    assert table.captions == ("a cat", "a dog") and table.labels.tolist() == [1, 0.75]
    assert table.weights.tolist() == [1, 1] and table.votes.tolist() == [1, 1]
    first, second = table.load([1, 0])
    assert first.shape == (2, 3, 8, 8) and first.dtype == torch.float32
    assert level(first) == [50, 10] and level(second) == [40, 20]
    assert len(table) == 2 and table.scores is None


def test_rows_of_one_pair_are_one_soft_label_or_stay_apart(folder):
    rows = [numbered(10, 20, 1), numbered(20, 10, 1), numbered(10, 20, 1), numbered(10, 20, 0.5)]
    where = folder([*rows, numbered(10, 20, 0, "a dog"), numbered(30, 40, 0.5)])
    soft, apart = read_pairs(where), read_pairs(where, raters="separate")
    assert soft.labels.tolist() == [0.625, 0, 0.5] and soft.votes.tolist() == [4, 1, 1]
    assert soft.weights.tolist() == [2, 0.5, 0.5] and len(apart) == 6
    assert read_pairs(where, ties="drop").labels.tolist() == [0.625, 0]
    assert read_pairs(where, ties="drop", raters="separate").labels.tolist() == [1, 1, 1, 0]


def test_likes_are_single_pictures_or_both_sides_of_pairs(folder):
    rows = [{"prompt": "a", "image": "10.png", "liked": True}]
    rows += [{"prompt": "a", "image": "20.png", "liked": False}]
    likes = read_likes(folder(rows, "likes.jsonl"))
    assert likes.liked.tolist() == [1, 0] and level(likes.load([1])) == [20]
    pairs = read_pairs(folder([row(10, 20, label=0.75)], "x.jsonl") + "/x.jsonl").likes()
    assert pairs.liked.tolist() == [0.75, 0.25] and level(pairs.load([0, 1])) == [10, 20]


def test_the_pictures_of_a_row_that_are_not_there_are_named(folder):
    with pytest.raises(UserError, match=r"line 2: there is no picture rejected .*77.png"):
        read_pairs(folder([row(), row(10, 77)]))
