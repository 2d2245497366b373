"""Data from files: every form becomes states of the same kind, and what cannot be learned from is
refused in one line."""

from __future__ import annotations

import gzip
import io
import json
import re
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from scoretune.core.config import Dataset
from scoretune.core.errors import UserError
from scoretune.data import datasets
from scoretune.data.datasets import Data, read_data

PLAIN = Dataset()


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(path, size=(6, 4), mode="RGB", seed=0):
    channels = {"RGB": (3,), "L": (), "RGBA": (4,)}[mode]
    pixels = rng(seed).integers(0, 256, (size[1], size[0], *channels), dtype=np.uint8)
    Image.fromarray(pixels, mode).save(path)
    return pixels


# ---------------------------------------------------------------------------- pictures


def test_a_folder_of_pictures_needs_no_captions(tmp_path):
    wanted = [picture(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    data = read_data(str(tmp_path))
    assert data.kind == "images" and data.states.shape == (3, 3, 4, 6)
    ours = (data.states * 255).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(ours, np.stack(wanted))


def test_grey_pictures_have_one_channel_unless_some_are_coloured(tmp_path):
    for i in range(2):
        picture(tmp_path / f"{i}.png", mode="L", seed=i)
    assert read_data(str(tmp_path)).states.shape == (2, 1, 4, 6)
    picture(tmp_path / "2.JPG", mode="RGB", seed=2)
    assert read_data(str(tmp_path)).states.shape == (3, 3, 4, 6)


def test_pictures_are_scaled_and_cropped_in_the_middle(tmp_path):
    wide = np.zeros((8, 16), np.uint8)
    wide[:, 4:12] = 255  # the middle square is white
    for i in range(2):
        Image.fromarray(wide, "L").save(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="is the same everywhere"):
        read_data(str(tmp_path), Dataset(size=8))
    Image.fromarray(255 - wide, "L").save(tmp_path / "2.png")
    states = read_data(str(tmp_path), Dataset(size=8)).states
    assert states.shape == (3, 1, 8, 8)
    assert states.flatten(1).mean(1).tolist() == [1, 1, 0]
    assert read_data(str(tmp_path), Dataset(size=4)).states.shape == (3, 1, 4, 4)


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    def told(match, reading=PLAIN):
        with pytest.raises(UserError, match=match):
            read_data(str(tmp_path), reading)

    told(r"no \.png or \.jpg pictures")
    picture(tmp_path / "a.png")
    told("holds 1 of what is learned from: give at least 2")
    picture(tmp_path / "b.png", size=(5, 5))
    told(r"differ in size: make them equal, or set dataset\.size")
    assert len(read_data(str(tmp_path), Dataset(size=4))) == 2
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    told(r"cannot read the picture '.*b\.png'")
    told("has no arrays, columns or rows", Dataset(columns=("x",)))


# ---------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("shape", "states"),
    [
        ((4, 6, 5), (4, 1, 6, 5)),
        ((4, 6, 5, 3), (4, 3, 6, 5)),
        ((4, 6, 5, 1), (4, 1, 6, 5)),
        ((4, 3, 6, 5), (4, 3, 6, 5)),
        ((4, 1, 6, 5), (4, 1, 6, 5)),
    ],
    ids=str,
)
def test_images_in_arrays(tmp_path, shape, states):
    bytes_ = rng().integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "bytes.npz", images=bytes_)
    np.save(tmp_path / "unit.npy", bytes_ / 255)
    np.save(tmp_path / "signed.npy", (bytes_ / 127.5 - 1).astype(np.float32))
    np.save(tmp_path / "whole.npy", bytes_.astype(np.int64))
    found = [read_data(str(tmp_path / f"{n}.np{e}")) for n, e in
             [("bytes", "z"), ("unit", "y"), ("signed", "y"), ("whole", "y")]]  # fmt: skip
    assert all(d.kind == "images" and d.states.shape == states for d in found)
    assert all(torch.allclose(d.states, found[0].states, atol=1e-6) for d in found)
    flat = torch.from_numpy(bytes_).float().reshape(-1) / 255
    assert float(found[0].states.sum()) == pytest.approx(float(flat.sum()), rel=1e-5)


def test_where_the_colours_are_can_be_told(tmp_path):
    values = rng().random((5, 3, 4, 3))
    np.save(tmp_path / "x.npy", values)
    with pytest.raises(UserError, match=r"where are the colours of x\.npy of shape \(5, 3, 4, 3\)"):
        read_data(str(tmp_path / "x.npy"))
    first = read_data(str(tmp_path / "x.npy"), Dataset(channels="first")).states
    last = read_data(str(tmp_path / "x.npy"), Dataset(channels="last")).states
    assert first.shape == (5, 3, 4, 3) and last.shape == (5, 3, 3, 4)
    assert torch.equal(last, first.permute(0, 3, 1, 2))


def test_points_and_series_in_arrays(tmp_path):
    values = rng().normal(size=(30, 2))
    np.savez(tmp_path / "x.npz", a=values, b=values[:, 0])
    name = str(tmp_path / "x.npz")
    points = read_data(name, Dataset(key="a"))
    assert (points.kind, points.names) == ("points", ("0", "1"))
    assert np.allclose(points.states.numpy(), values)
    assert read_data(name, Dataset(key="b")).states.shape == (30, 1)
    assert read_data(name, Dataset(key="a", columns=("1",))).states.shape == (30, 1)
    windows = read_data(name, Dataset(key="a", window=5, stride=2))
    assert (windows.kind, windows.states.shape) == ("series", (13, 2, 5))
    assert np.allclose(windows.states[3].numpy(), values[6:11].T)
    np.save(tmp_path / "w.npy", values.reshape(6, 5, 2))
    ready = read_data(str(tmp_path / "w.npy"), Dataset(kind="series"))
    assert (ready.kind, ready.states.shape) == ("series", (6, 2, 5))
    assert np.allclose(ready.states[1].numpy(), values[5:10].T)


def test_what_is_wrong_with_an_array_is_said(tmp_path):
    def told(match, values=None, reading=PLAIN, name="x.npy", **arrays):
        path = tmp_path / name
        np.savez(path, **arrays) if arrays else np.save(path, values)
        with pytest.raises(UserError, match=match):
            read_data(str(path), reading)

    told("Object arrays cannot be loaded", np.array([1, "a", None], dtype=object))
    told("holds <U1, not numbers", np.array(["a", "b"]))
    told("holds 2 arrays .a, b.: choose one with dataset.key", name="x.npz", a=[1.0], b=[2.0])
    pair = {"aa": [1.0, 2.0], "bb": [2.0, 3.0]}
    told(
        "unknown array of x.npz 'ab': did you mean", reading=Dataset(key="ab"), name="x.npz", **pair
    )
    told("leave out dataset.key", np.ones(3), Dataset(key="a"))
    told(r"x.npy of shape \(2, 2, 2, 2, 2\) is not points", rng().random((2,) * 5))
    told("has 2 channels: give one or three", rng().random((9, 4, 5, 2)), Dataset(channels="last"))
    told(r"lie in \[-3, 5\]: bring them to", np.array([-3.0, 5, 0, 1] * 4).reshape(4, 2, 2))
    told("not finite, first in entry 2", np.array([[1.0], [2.0], [np.nan], [np.inf]]))
    told("not finite, first in entry 1", np.array([0] * 8 + [np.nan] * 8).reshape(2, 8, 1, 1))
    told("holds 1 of what is learned from", np.ones((1, 2)))
    told("holds 0 of what is learned from", np.ones((0, 2)))
    told("the states of .* are empty", np.ones((3, 0)))
    told("column '1' of .* is the same everywhere", np.stack([np.arange(4.0), np.ones(4)], 1))
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(UserError, match=r"cannot read '.*x\.npz'"):
        read_data(str(tmp_path / "x.npz"))
    (tmp_path / "x.npy").write_bytes(b"")
    with pytest.raises(UserError, match=r"cannot read '.*x\.npy'"):
        read_data(str(tmp_path / "x.npy"))


# ---------------------------------------------------------------------------- tables


TABLE = "date,low,high\n2020-01,1.5,3\n2020-02,2.5,4\n2020-03,0.5,7\n2020-04,0.1,6\n"


def test_tables_of_points(tmp_path):
    (tmp_path / "x.csv").write_text(TABLE)
    data = read_data(str(tmp_path / "x.csv"))
    assert (data.kind, data.names) == ("points", ("low", "high"))
    wanted = torch.tensor([[1.5, 3], [2.5, 4], [0.5, 7], [0.1, 6]])
    assert torch.equal(data.states, wanted)
    named = read_data(str(tmp_path / "x.csv"), Dataset(columns=("high", "low")))
    assert torch.equal(named.states, wanted.flip(1)) and named.names == ("high", "low")
    (tmp_path / "x.csv.gz").write_bytes(gzip.compress(TABLE.encode()))
    assert torch.equal(read_data(str(tmp_path / "x.csv.gz")).states, wanted)
    (tmp_path / "x.tsv").write_text(TABLE.replace(",", "\t"))
    assert torch.equal(read_data(str(tmp_path / "x.tsv")).states, wanted)
    rows = [{"date": "2020", "low": low, "high": high} for low, high in wanted.tolist()]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("x.json", "x.jsonl"):
        read = read_data(str(tmp_path / name))
        assert torch.equal(read.states, wanted) and read.names == ("low", "high")
    (tmp_path / "bare.csv").write_text("1,2\n3,4\n\n")
    bare = read_data(str(tmp_path / "bare.csv"))
    assert bare.names == ("0", "1") and torch.equal(bare.states, torch.tensor([[1.0, 2], [3, 4]]))


def test_parquet_is_read_like_csv(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"name": ["a", "b", "c"], "x": [1, 2, 4], "y": [0.5, 1.5, None]})
    parquet.write_table(table, tmp_path / "x.parquet")
    path = str(tmp_path / "x.parquet")
    with pytest.raises(UserError, match="not finite, first in entry 2"):
        read_data(path)
    found = read_data(path, Dataset(columns=("x",)))
    assert found.states.flatten().tolist() == [1, 2, 4] and found.names == ("x",)
    with pytest.raises(UserError, match=r"row 1, column 'name' of .* is 'a', not a number"):
        read_data(path, Dataset(columns=("name",)))
    with pytest.raises(UserError, match=r"unknown column of x\.parquet 'z'"):
        read_data(path, Dataset(columns=("z",)))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(UserError, match=r"cannot read '.*x\.parquet'"):
        read_data(path)


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"needs pyarrow: pip install 'scoretune\[data\]'"):
        read_data(str(tmp_path / "x.parquet"))


@pytest.mark.parametrize(
    ("text", "match", "reading"),
    [
        ("", "is empty: write a line of names", Dataset()),
        ("a,b\n1,2\n3\n", "row 3: 1 cells where the first row has 2", Dataset()),
        ("a,b\n1,2\nx,4\n", "row 3, column 'a' of .* is 'x', not a number", Dataset()),
        ("a,b\n1,2\n,4\n", "row 3, column 'a' of .* is '', not a number", Dataset()),
        ("a,b\n1,2\nnan,4\n", "not finite, first in entry 1", Dataset()),
        ("a,b\nx,y\nz,w\n", "has no column of numbers", Dataset()),
        ("a,b\n", "is empty: write a line of names", Dataset()),
        (TABLE, "unknown column of x.csv 'hihg': did you mean 'high'", Dataset(columns=("hihg",))),
        (TABLE, "row 2, column 'date' of .* is '2020-01'", Dataset(columns=("date",))),
        (TABLE, "has 4 rows, too few for windows of 4", Dataset(window=4)),
        (TABLE, "say how many rows of .* make a series", Dataset(kind="series")),
        (TABLE, "holds points: leave out dataset.kind=images", Dataset(kind="images")),
        (TABLE, "is a table: leave out dataset.key", Dataset(key="a")),
        (TABLE, "set dataset.window too", Dataset(stride=2)),
    ],
)
def test_what_is_wrong_with_a_table_is_said(tmp_path, text, match, reading):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UserError, match=match):
        read_data(str(tmp_path / "x.csv"), reading)


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "x.csv.gz").write_bytes(b"nonsense")
    for name in ("x.csv", "x.csv.gz"):
        with pytest.raises(UserError, match=f"cannot read '.*{re.escape(name)}'"):
            read_data(str(tmp_path / name))


# ---------------------------------------------------------------------------- names


def test_what_is_bundled():
    digits, roll, moons = (read_data(name) for name in ("digits", "swiss-roll", "moons"))
    assert digits.states.shape == (1797, 1, 8, 8) and digits.kind == "images"
    assert float(digits.states.min()) == 0 and float(digits.states.max()) == 1
    assert roll.states.shape == moons.states.shape == (10_000, 2)
    assert read_data("digits", Dataset(size=16)).states.shape == (1797, 1, 16, 16)


def test_a_source_that_is_none(tmp_path):
    with pytest.raises(UserError, match="unknown data 'digit': did you mean 'digits'"):
        read_data("digit")
    with pytest.raises(UserError, match=r"data '.*/x\.csv' does not exist: check the path"):
        read_data(str(tmp_path / "x.csv"))
    (tmp_path / "x.txt").write_text("1")
    with pytest.raises(UserError, match=r"give a folder of pictures, or a file that ends in \.npz"):
        read_data(str(tmp_path / "x.txt"))


# ---------------------------------------------------------------------------- sharing out


@pytest.mark.parametrize("kind", ["points", "series", "images"])
def test_means_and_spreads_are_of_channels(kind):
    shape = {"points": (50, 3), "series": (50, 3, 7), "images": (50, 3, 4, 5)}[kind]
    scale = torch.tensor([1.0, 10, 100]).view(3, *(1,) * (len(shape) - 2))
    data = Data(torch.randn(shape) * scale + scale, kind)
    plain = (data.states - data.mean) / data.std
    assert data.mean.shape == data.std.shape == scale.shape
    rest = [d for d in range(len(shape)) if d != 1]
    assert torch.allclose(plain.mean(rest), torch.zeros(3), atol=1e-5)
    assert torch.allclose(plain.std(rest), torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_both_learned_and_held_out(seed):
    data = Data(torch.arange(100.0)[:, None], "points")
    known, held = data.split(0.2, seed)
    assert (len(known), len(held)) == (80, 20)
    assert sorted(torch.cat([known.states, held.states]).flatten().tolist()) == list(range(100))
    again = data.split(0.2, seed)[1]
    assert torch.equal(again.states, held.states)
    assert not torch.equal(data.split(0.2, seed + 10)[1].states, held.states)
    assert [len(part) for part in Data(torch.rand(2, 1), "points").split(0.9, 0)] == [1, 1]


@pytest.mark.parametrize(("window", "stride"), [(5, 1), (5, 2), (5, 5), (4, 7)])
def test_held_out_windows_share_no_row_with_the_others(tmp_path, window, stride):
    np.save(tmp_path / "x.npy", np.arange(200.0))
    data = read_data(str(tmp_path / "x.npy"), Dataset(window=window, stride=stride))
    known, held = data.split(0.2, 0)
    ours, theirs = (set(part.states.flatten().tolist()) for part in (known, held))
    assert not ours & theirs
    assert len(known) >= 0.7 * len(data) and len(held) >= 0.19 * len(data)
    if window <= stride:
        assert len(known) + len(held) == len(data)
    else:
        assert max(ours) < min(theirs)


def test_too_few_windows_to_hold_any_out(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12.0))
    data = read_data(str(tmp_path / "x.npy"), Dataset(window=8))
    with pytest.raises(UserError, match="5 windows are too few to hold out 1 that share no rows"):
        data.split(0.1, 0)


@pytest.mark.parametrize("shape", [(10**12, 4), (3, 10**9), (-4, 2)], ids=str)
def test_an_array_that_lies_about_its_shape_is_never_made(tmp_path, shape):
    honest = io.BytesIO()
    np.save(honest, np.zeros((3, 4), np.float32))
    body = honest.getvalue()
    lie = body.replace(b"(3, 4), }", f"{shape}, }}".encode())
    lie = lie[: len(body) + len(lie) - len(body)]
    (tmp_path / "x.npy").write_bytes(lie)
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as file:
        file.writestr("a.npy", lie)
    for name in ("x.npy", "x.npz"):
        with pytest.raises(UserError, match=r"its header says shape|cannot read"):
            read_data(str(tmp_path / name))


def test_an_array_beyond_the_memory_is_refused_by_its_header(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.zeros((50, 4)))
    monkeypatch.setattr(datasets, "memory", lambda: 1599)
    with pytest.raises(UserError, match="exceed this machine's"):
        read_data(str(tmp_path / "x.npy"))
