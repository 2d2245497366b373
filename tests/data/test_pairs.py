"""Pairs and likes of pictures: what tables mean, what is read when, and what is refused."""

from __future__ import annotations

import math
import os
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from judgement_tables import Split, bomb, lines, parquet, picture
from scoretune.core.errors import UserError
from scoretune.data import tables
from scoretune.data.pairs import read_likes, read_pairs


@pytest.fixture
def folder(tmp_path):
    """Writes the rows of a table beside pictures of levels 0, 10, …, and gives the folder."""
    for level in range(0, 100, 10):
        (tmp_path / f"{level}.png").write_bytes(picture(level))

    def to(rows, name: str = "pairs.jsonl") -> str:
        lines(tmp_path / name, rows)
        return str(tmp_path)

    return to


def row(chosen: object = 10, rejected: object = 20, prompt: object = "a cat", **more):
    return {"prompt": prompt, "chosen": f"{chosen}.png", "rejected": f"{rejected}.png", **more}


def numbered(first: int, second: int, label: object, prompt: str = "a cat", **more):
    names = {"image_0": f"{first}.png", "image_1": f"{second}.png", "label": label}
    return {"caption": prompt, **names, **more}


def levels(images: torch.Tensor) -> list[int]:
    return [round(255 * float(image.mean())) for image in images]


# ------------------------------------------------------------------------------- meaning


def test_a_folder_of_pairs_is_read_by_its_table(folder):
    table = read_pairs(folder([row(label=1), row(50, 40, "a dog", label=0.75)]))
    assert table.captions == ("a cat", "a dog") and table.labels.tolist() == [1, 0.75]
    assert table.weights.tolist() == [1, 1] and table.votes.tolist() == [1, 1]
    first, second = table.load([1, 0])
    assert first.shape == (2, 3, 8, 8) and first.dtype == torch.float32
    assert levels(first) == [50, 10] and levels(second) == [40, 20]
    assert len(table) == 2 and table.scores is None
    assert read_pairs(folder([row()])).labels.tolist() == [1], "chosen is preferred"


def test_rows_of_one_pair_are_one_soft_label_or_stay_apart(folder):
    rows = [numbered(10, 20, 1), numbered(20, 10, 1), numbered(10, 20, 1), numbered(10, 20, 0.5)]
    where = folder([*rows, numbered(10, 20, 0, "a dog"), numbered(30, 40, 0.5)])
    soft, apart = read_pairs(where), read_pairs(where, raters="separate")
    assert soft.labels.tolist() == [0.625, 0, 0.5] and soft.votes.tolist() == [4, 1, 1]
    assert soft.weights.tolist() == [2, 0.5, 0.5] and len(apart) == 6
    assert read_pairs(where, ties="drop").labels.tolist() == [0.625, 0]
    assert read_pairs(where, ties="drop", raters="separate").labels.tolist() == [1, 1, 1, 0]


@pytest.mark.parametrize("seed", range(5))
def test_one_soft_label_and_separate_rows_have_one_mean_loss(folder, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(60, generator=generator, dtype=torch.float64)
    sides = torch.stack([torch.randperm(4, generator=generator)[:2] * 10 for _ in labels])
    weights = torch.rand(60, generator=generator, dtype=torch.float64) + 0.1
    rows = [
        numbered(int(a), int(b), float(label), weight=float(weight))
        for (a, b), label, weight in zip(sides, labels, weights, strict=True)
    ]
    where, means = folder(rows), []
    for raters in ("soft", "separate"):
        table = read_pairs(where, raters=raters)
        first, second = table.load(range(len(table)))
        margin = first.mean((1, 2, 3)) - second.mean((1, 2, 3))
        loss = (
            -table.labels * margin.sigmoid().log() - (1 - table.labels) * (-margin).sigmoid().log()
        )
        means.append(float((table.weights * loss).mean() * len(table)) / float(table.weights.sum()))
    assert means[0] == pytest.approx(means[1], abs=1e-6)


def test_votes_are_a_label_and_how_many_stand_behind_it(folder):
    votes = {"votes_chosen": 3, "votes_rejected": 1, "ties": 4}
    unseen = {"votes_chosen": 0, "votes_rejected": 0, "ties": 0}
    table = read_pairs(folder([row(**votes), row(30, 40, **unseen), row(50, 60, **votes)]))
    assert table.labels.tolist() == [0.625, 0.625] and table.votes.tolist() == [8, 8]
    first = read_pairs(folder([{**numbered(10, 20, 0.5), "votes_0": 2, "votes_1": 0}]))
    assert first.labels.tolist() == [0.5] and first.votes.tolist() == [2], "a label says it itself"


def test_scores_follow_the_sides(folder):
    rows = [numbered(10, 20, 1, score_0=3, score_1=1), numbered(20, 10, 0, score_0=2, score_1=5)]
    assert read_pairs(folder(rows)).scores.tolist() == [[4, 1.5]]
    assert read_pairs(folder([row(chosen_score=2, rejected_score=1)])).scores.tolist() == [[2, 1]]


def test_likes_are_single_pictures_or_both_sides_of_pairs(folder):
    rows = [{"prompt": "a", "image": "10.png", "liked": True}]
    rows += [{"prompt": "a", "image": "20.png", "liked": k} for k in (False, True)]
    likes = read_likes(folder(rows, "likes.jsonl") + "/likes.jsonl")
    assert likes.liked.tolist() == [1, 0.5] and levels(likes.load([1])) == [20]
    assert likes.votes.tolist() == [1, 2] and sorted(likes.order(0, 0)) == [0, 1]
    pairs = read_likes(folder([row(label=0.75)], "x.jsonl") + "/x.jsonl")
    assert pairs.liked.tolist() == [0.75, 0.25] and levels(pairs.load([0, 1])) == [10, 20]


def test_pictures_are_scaled_and_cut_alike(folder, tmp_path):
    (tmp_path / "large.png").write_bytes(picture(10, 24, 16))
    (tmp_path / "small.png").write_bytes(picture(20, 12, 8))
    table = read_pairs(folder([row("large", "small"), row("small", "large", "a dog")]))
    first, second = table.load([0, 1], size=4)
    assert first.shape == second.shape == (2, 3, 4, 4) and levels(first) == [10, 20]
    with pytest.raises(UserError, match="line 1: the pictures of the pair differ in size, 24x16 "):
        table.load([0])
    (tmp_path / "tall.png").write_bytes(picture(20, 8, 12))
    table = read_pairs(folder([row("large", "tall"), row("small", "tall")]))
    with pytest.raises(UserError, match="line 2: the pictures of the pair differ in shape, 12x8 a"):
        table.load([1], size=4)
    table = read_pairs(folder([row(label=1), row("small", "small", label=0.5)]))
    with pytest.raises(
        UserError, match=r"differ in size \(8x8 and 12x8\): make them equal, or say"
    ):
        table.load([0, 1])


# ------------------------------------------------------------------------ bytes on demand


def of_pick_a_pic(count: int, **more: list[object]) -> dict[str, list[object]]:
    """Columns as Pick-a-Pic has them; the first of pair i has level 2i, the second 2i + 1."""
    return {
        "caption": [f"prompt {i}" for i in range(count)],
        "jpg_0": [picture(2 * i) for i in range(count)],
        "jpg_1": [picture(2 * i + 1) for i in range(count)],
        "label_0": [(0.0, 0.5, 1.0)[i % 3] for i in range(count)],
        **more,
    }


def test_pick_a_pic_is_read_from_parquet_one_row_group_at_a_time(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    labelled = [i != 4 for i in range(12)]
    where = parquet(tmp_path / "p.parquet", of_pick_a_pic(12, has_label=labelled), group=3)
    table = read_pairs(where, ties="drop")
    assert table.captions == tuple(f"prompt {i}" for i in range(12) if i % 3 != 1 and labelled[i])
    assert table.labels.tolist() == [0, 1] * 4
    first, second = table.load([0, 7, 1])
    assert levels(first) == [0, 22, 4] and levels(second) == [1, 23, 5]
    cells = table.pictures.cells
    assert isinstance(cells, tables.InParquet) and len(cells.kept) == 4, "all fit"
    monkeypatch.setattr(tables, "KEPT", 1)
    few = read_pairs(where, ties="drop")
    assert levels(few.load([0, 7, 1, 6])[0]) == [0, 22, 4, 18]
    assert isinstance(few.pictures.cells, tables.InParquet) and len(few.pictures.cells.kept) == 1


def test_a_pass_reads_each_row_group_once(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    where = parquet(tmp_path / "p.parquet", of_pick_a_pic(40), group=5)
    monkeypatch.setattr(tables, "KEPT", 1)
    apart = read_pairs(where)
    order = apart.order(0, seed=3)
    assert sorted(order) == list(range(40)) and order != apart.order(1, seed=3)
    assert order == read_pairs(where).order(0, seed=3)
    blocks = [i // 5 for i in order]
    changes = sum(a != b for a, b in zip(blocks[1:], blocks, strict=False))
    assert changes == 7 and blocks != sorted(blocks)
    assert any(order[i : i + 5] != sorted(order[i : i + 5]) for i in range(0, 40, 5))
    monkeypatch.setattr(tables, "KEPT", 2**28)
    assert len({i // 5 for i in apart.order(0, seed=3)[:5]}) > 2, "what fits is mixed"


def test_parts_of_a_folder_are_one_table(tmp_path):
    pytest.importorskip("pyarrow")
    for part, columns in enumerate((of_pick_a_pic(2), of_pick_a_pic(3))):
        columns["caption"] = [f"{part}: {text}" for text in columns["caption"]]
        parquet(tmp_path / f"train-{part}.parquet", columns)
    table = read_pairs(str(tmp_path))
    assert len(table) == 5 and levels(table.load([4, 1])[1]) == [5, 3]
    assert table.pictures.places[4] == "train-1.parquet, row 3"


def test_bytes_of_one_pair_are_known_again(tmp_path):
    pytest.importorskip("pyarrow")
    columns = of_pick_a_pic(3)
    twice = {name: [*cells, *cells[1:2]] for name, cells in columns.items()}
    twice["label_0"] = [1, 1, 1, 0]
    assert read_pairs(parquet(tmp_path / "p.parquet", twice)).labels.tolist() == [1, 0.5, 1]
    named = {**twice, "image_0_uid": list("abcd"), "image_1_uid": list("efgh")}
    assert len(read_pairs(parquet(tmp_path / "q.parquet", named))) == 4


def test_a_data_set_of_the_library_gives_bytes_or_paths(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    module = ModuleType("datasets")
    module.config = SimpleNamespace(HF_HUB_OFFLINE=True)
    (tmp_path / "there.png").write_bytes(picture(50))
    columns = of_pick_a_pic(3)
    columns["jpg_1"] = [
        *({"bytes": payload, "path": None} for payload in columns["jpg_1"][:2]),
        {"bytes": None, "path": str(tmp_path / "there.png")},
    ]
    module.load_dataset = lambda identity: {"train": Split(pyarrow.table(columns))}
    monkeypatch.setitem(sys.modules, "datasets", module)
    table = read_pairs("datasets:someone/pairs")
    assert table.labels.tolist() == [0, 0.5, 1] and levels(table.load([2, 0])[1]) == [50, 1]
    assert sorted(table.order(0, 0)) == [0, 1, 2]


# -------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(), row(10, 77)], "line 2: there is no picture rejected"),
        ([row(), row(10, 10)], "line 2: the two pictures are identical"),
        ([numbered(10, 20, 1.5)], "line 1: 'label' must lie in [0, 1], the probability that the "),
        ([numbered(10, 20, math.nan)], "line 1: 'label' must be a finite number, and is nan"),
        ([numbered(10, 20, {"a": [1]})], "'label' must be a finite number, and is {'a': [1]}"),
        ([row(), row(label=1)], "line 1: 'label' must be a finite number, and is missing"),
        ([row(weight=0)], "line 1: 'weight' must be above 0, and is 0"),
        ([row(votes_chosen=1.5, votes_rejected=0)], "'votes_chosen' must count votes, and is 1.5"),
        ([row(votes_chosen=1)], "has no column votes_rejected, and has prompt, chosen, reje"),
        ([row(score_chosen="high", score_rejected=1)], "'score_chosen' must be a finite number"),
        ([row(prompt=["a", "cat"])], "line 1: 'prompt' must be a text, and is ['a', 'cat']"),
        ([row(prompt="x" * 30_000)], "30,000 characters are no prompt"),
        ([{**row(), "chosen": ["a.png"]}], "'chosen' must be the path of a picture, and is ['a."),
        ([{**row(), "chosen": "https://a/b.png"}], "'chosen' is an address, 'https://a/b.png'"),
        ([{**row(), "chosen": "."}], "there is no picture chosen"),
        ([{**row(), "chosen": "a\0.png"}], "line 1: there is no picture chosen"),
        ([row(), 7], "line 2: 7 is no row of a table: write an object"),
        (["7"], "line 1: 7 is no row of a table: write an object such as"),
        ([row(), '{"prompt": '], "line 2, is not JSON"),
        ([], "pairs.jsonl' is empty: write one pair a row"),
        ([row(label=0.5)], None),
        ([row(votes_chosen=0, votes_rejected=0)], "has no pair that can be learned from"),
        ([{"prompt": "a", "chosne": "a", "rejected": "b"}], "did you mean 'chosne'? Name it 'chos"),
        (
            [{"prompt": "a", "image_0": "a", "image_1": "b"}],
            "has no column label_0, label or votes",
        ),
        (
            [{"promt": "a", "chosen": "a", "rejected": "b"}],
            "did you mean 'promt'? Name it 'prompt'",
        ),
        ([{"a": 1}], "has no column chosen, image_0 or jpg_0, and has a: name one 'chosen'"),
    ],
)
def test_what_cannot_be_learned_from_is_named(folder, rows, said):
    where = folder(rows)
    if said is None:
        assert len(read_pairs(where)) == 1
        said, ties = "has no pair that can be learned from", "drop"
    else:
        ties = "keep"
    with pytest.raises(UserError) as error:
        read_pairs(where, ties=ties)
    assert said in str(error.value) and len(str(error.value)) <= 300


def test_a_picture_that_does_not_decode_is_named_by_its_row(folder, tmp_path):
    (tmp_path / "cut.png").write_bytes(picture(10, 64, 64)[:60])
    (tmp_path / "text.png").write_text("no picture")
    os.mkfifo(tmp_path / "pipe.png")
    table = read_pairs(folder([row(), row("cut"), row("text"), row(30)]))
    with pytest.raises(UserError, match=r"line 2: cannot read the picture chosen \("):
        table.load([1])
    with pytest.raises(
        UserError, match=r"line 3: cannot read the picture chosen \(it is no PNG or "
    ):
        table.load([2])
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(UserError, match=r"line 1: .*10000x10000 pixels: at most"):
        read_pairs(folder([row("bomb")])).load([0])
    with pytest.raises(UserError, match=r"pipe.png.*a named pipe"):
        read_pairs(folder([row("pipe")]))


def test_pixels_that_are_the_same_are_no_pair_whatever_the_files_are_called(folder, tmp_path):
    (tmp_path / "copy.png").write_bytes(picture(10))
    table = read_pairs(
        folder([row(label=1), row("copy", 10, label=1), row("copy", 10, "b", label=0.5)])
    )
    with pytest.raises(UserError, match="line 2: the two pictures are identical"):
        table.load([1])
    assert levels(table.load([2])[0]) == [10]


def test_a_folder_with_no_table_or_with_several_is_refused(folder, tmp_path):
    lines(tmp_path / "a.jsonl", [row()])
    assert len(read_pairs(str(tmp_path))) == 1, "the only table there is"
    lines(tmp_path / "b.jsonl", [row()])
    with pytest.raises(UserError, match=r"has 2 tables: write one pairs\.jsonl beside the pictur"):
        read_pairs(str(tmp_path))
    assert len(read_pairs(folder([row(), row(30)]))) == 2, "that of the name"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"has no table: write one pairs\.jsonl"):
        read_pairs(str(tmp_path / "empty"))


def test_a_row_group_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    table = read_pairs(parquet(tmp_path / "p.parquet", of_pick_a_pic(3)), raters="separate")
    monkeypatch.setattr("scoretune.core.reading.memory", lambda: 400)
    with pytest.raises(UserError, match="write it with smaller row groups, or give it as datasets"):
        table.load([0])
