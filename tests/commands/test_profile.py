"""`scoretune profile`: every moment of an update belongs to one part, backward passes included."""

from __future__ import annotations

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from scoretune import recipes
from scoretune.commands.profile import frames, page
from scoretune.commands.profile.measure import Profile
from scoretune.core import profiling
from scoretune.core.profiling import part
from scoretune.training import overrides, run_folder

BIG = 512


@pytest.fixture(scope="module")
def record() -> frames.Record:
    """Of a small program: a decoder's output is learned from, and a number is read."""
    weight = torch.randn(BIG, BIG, requires_grad=True)
    scale = torch.ones(BIG, requires_grad=True)
    with (
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
        profiling.labelled(),
        part("update"),
    ):
        with part("data"), part("decode"):
            image = weight @ weight
        with part("learning"):
            loss = (image * scale).square().sum()
            loss.backward()
            loss.item()
    return frames.recorded(profiler)


def names(frame: frames.Frame) -> dict[str, str]:
    """Every name below a frame, and the part that it is of."""
    found = {frame.name: frame.part}
    for child in frame.children.values():
        found |= names(child)
    return found


def test_parts_are_the_whole_update(record):
    seconds = sum(spent.seconds for spent in record.parts.values())
    assert seconds == pytest.approx(record.root.seconds, rel=1e-6)
    assert {name for name, spent in record.parts.items() if spent.entered} == {
        *("update", "data", "decode", "learning")
    }


def test_a_backward_pass_belongs_to_the_part_whose_forward_pass_made_it(record):
    decode, learning = record.parts["decode"], record.parts["learning"]
    assert 0 < decode.backward < decode.seconds and 0 < learning.backward < learning.seconds
    assert record.parts["data"].backward == 0
    assert names(record.root)["MmBackward0"] == "decode"
    assert names(record.root)["MulBackward0"] == "learning"


def test_numbers_that_the_host_waits_for_are_counted(record):
    waits = {name: spent.synchronisations for name, spent in record.parts.items()}
    assert waits == dict.fromkeys(profiling.PARTS, 0) | {"learning": 1}


def test_memory_at_the_peak_is_of_all_that_is_alive(record):
    matrix = 4 * BIG * BIG  # the product, its scaled self, and their like on the way back
    assert 3 * matrix <= record.peak <= 7 * matrix
    assert record.peak_part in ("learning", "decode")


def test_parts_have_no_names_where_nobody_looks():
    with profile(activities=[ProfilerActivity.CPU]) as profiler, part("network"):
        torch.ones(2).sum()
    assert not any(event.name.startswith(profiling.PREFIX) for event in profiler.events())


def test_the_update_of_a_run_folder_is_profiled(command, small, tmp_path):
    run = overrides.changed(recipes.named("score_as_action"), small)
    run_folder.record(run, tmp_path / "run", 1)
    first = command("profile", tmp_path / "run", "--out", tmp_path / "page", "--json")
    assert first.code == 0, first.err
    found = json.loads(first.out.splitlines()[-1])
    parts = found["parts"]
    assert sum(spent["share"] for spent in parts.values()) == pytest.approx(1, abs=2e-3)
    assert min(parts[name]["entered"] for name in profiling.PARTS) > 0
    assert parts["network"]["backward"] > 0 and parts["reward"]["seconds"] > 0
    assert found["peak_bytes"] > 0 and found["cpu_seconds"] > 0
    text = (tmp_path / "page" / "profile.html").read_text()
    assert text.count("<rect") > 20 and "MiB more than before" in text
    assert json.loads((tmp_path / "page" / "profile.json").read_text())["recipe"]


def test_the_table_has_the_largest_part_first(record):
    lines = [*page.lines(Profile("toy", 1.0, 1.1, "cpu", record))]
    shares = [float(line[16:23].rstrip("% ")) for line in lines[1:-1]]
    assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(100, abs=0.5)


def test_what_cannot_be_profiled_is_refused_in_a_line(command):
    wrong = command("profile", "no_such_recipe")
    assert wrong.code == 2 and len(wrong.err.splitlines()) == 1
