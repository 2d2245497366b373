"""Plans of models of videos: shapes that are remembered, decoders that go frame by frame, and the
number of frames as what lowers the memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.plan import memory, model, profiler, suggestions
from scoretune.commands.plan import plan as planning
from scoretune.commands.plan.counts import Facts
from scoretune.commands.plan.known_shapes import KnownShapes
from scoretune.commands.plan.verb import lines_of
from scoretune.core.config import Run
from scoretune.models import base
from scoretune.models.tiny import videos
from scoretune.models.videos import half_as_long
from scoretune.training import overrides

SMALL = [
    "reward=brightness",
    "guard.features=pixels",
    "sizes.prompts=2",
    "sizes.group=2",
    "sizes.minibatch=4",
    "sampling.steps=4",
    "evaluation.steps=2",
    "model.frames=9",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "prompts.txt").write_text("a red circle\n")
    return videos.build("wan", folder / "wan").parent


@pytest.fixture(scope="module")
def draft(home) -> Run:
    told = [f"model.source={home / 'wan'}", f"prompts={home / 'prompts.txt'}"]
    return overrides.changed(recipes.named("draft"), [*SMALL, *told])


@pytest.fixture(scope="module")
def measured(draft) -> tuple[Any, model.Model]:
    return model.model_of(draft, ["a red circle"])


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


# ------------------------------------------------------------------------- known shapes


ASKED: list[Callable[[], Any]] = [
    lambda: meta(3, 4) @ meta(4, 5),
    lambda: meta(3, 4).T.contiguous(),
    lambda: meta(2, 8, 5, 5).to(memory_format=torch.channels_last) + 1,
    lambda: meta(3, dtype=torch.long) + 1,
    lambda: meta(3, dtype=torch.long) + 1.0,
    lambda: meta(3, dtype=torch.bfloat16) * meta(3),
    lambda: torch.conv2d(meta(2, 3, 8, 8), meta(4, 3, 3, 3), None, 2, 1),
    lambda: torch.native_layer_norm(meta(2, 6), [6], None, None, 1e-5),
    lambda: torch.cat([meta(2, 3), meta(2, 4)], 1),
    lambda: meta(6, 4).view(4, 6).relu().unbind(1),
    lambda: meta(2, 8, dtype=torch.complex64).conj() * 2,
    lambda: torch.zeros(2, 3).sum(0),  # with numbers
    lambda: meta(4, 4).add_(1)[1:].clone(),
]


def told(value: Any) -> Any:
    if isinstance(value, Tensor):
        size = value.untyped_storage().nbytes()
        return value.shape, value.stride(), value.dtype, value.device.type, size
    return [told(each) for each in value] if isinstance(value, list | tuple) else value


def within(ask: Callable[[], Any]) -> tuple[Any, profiler.Cost]:
    seen: list[Any] = []
    return seen, profiler.cost(lambda: seen.append(told(ask())))


def test_what_is_remembered_is_what_torch_says(monkeypatch):
    shapes = KnownShapes()
    for ask in ASKED:
        monkeypatch.setattr(profiler, "SHAPES", lambda func, args, kwargs: func(*args, **kwargs))
        plain = within(ask)
        monkeypatch.setattr(profiler, "SHAPES", shapes)
        assert [within(ask), within(ask)] == [plain, plain]  # asked, and remembered
    assert shapes.outputs


def test_whole_numbers_become_the_floats_of_their_day(monkeypatch):
    monkeypatch.setattr(profiler, "SHAPES", KnownShapes())
    for usual in (torch.float32, torch.float64):
        before = torch.get_default_dtype()
        torch.set_default_dtype(usual)
        try:
            ((_, _, found, _, _),), _ = within(lambda: meta(3, dtype=torch.long) + 1.0)
        finally:
            torch.set_default_dtype(before)
        assert found is usual


def test_an_operation_is_worked_out_once():
    shapes, asked = KnownShapes(), list[Any]()

    def add(*args: Any, **kwargs: Any) -> Any:
        asked.append(args)
        return torch.ops.aten.add.Tensor(*args, **kwargs)

    add._schema = torch.ops.aten.add.Tensor._schema  # type: ignore[attr-defined]
    first, second = (shapes(add, (meta(2, 3), meta(3)), {}) for _ in range(2))
    assert len(asked) == 1 and told(first) == told(second)
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    for _ in range(2):  # with numbers: never remembered
        shapes(add, (meta(2, 3), torch.ones(())), {})
    assert len(asked) == 3


@pytest.mark.slow
def test_a_network_costs_the_same_with_shapes_remembered(measured, monkeypatch):
    policy, found = measured

    def decode() -> None:
        place = model._states(policy, 1).requires_grad_()
        policy.backbone.decode(place).sum().backward()

    monkeypatch.setattr(profiler, "SHAPES", lambda func, args, kwargs: func(*args, **kwargs))
    plain = profiler.cost(decode)
    assert found.plain.sloping.at(1).flops == pytest.approx(plain.flops, rel=1e-9)
    assert found.plain.sloping.at(1).peak == pytest.approx(plain.peak, rel=0.02)


# ------------------------------------------------------------------------------- videos


@pytest.mark.slow
def test_videos_decoded_one_by_one_cost_as_many_times_one(measured, monkeypatch):
    policy, _ = measured
    monkeypatch.setattr(base, "DECODED", 1)

    def decode(rows: int) -> None:
        place = model._states(policy, rows).requires_grad_()
        torch.autograd.backward([policy.backbone.decode(place).sum()])

    found = profiler.curve(decode, batches=(1, 2)).at(5)
    real = profiler.cost(lambda: decode(5))
    assert found.flops == pytest.approx(real.flops, rel=1e-9)
    assert found.peak == pytest.approx(real.peak, rel=0.01)


@pytest.mark.slow
def test_the_way_through_both_is_that_through_each(measured):
    """What a value's gradient takes: the decoder's graph is made behind the network's."""
    policy, found = measured
    network = policy.backbone.network
    condition = model._condition(policy, "a red circle")

    def value() -> None:
        place = model._states(policy, 3).requires_grad_()
        output = model._predicted(policy, place, condition)
        torch.autograd.grad(policy.backbone.decode(output.float()).sum(), place)

    resident = [*network.parameters(), *network.buffers(), *condition.tensors]
    real = profiler.cost(value, resident)
    assert found.plain.valuing.at(3).flops == pytest.approx(real.flops, rel=1e-6)
    assert found.plain.valuing.at(3).peak == pytest.approx(real.peak, rel=0.02)


@pytest.mark.slow
def test_fewer_frames_are_the_lever_where_the_decoder_takes_most(draft, measured):
    policy, found = measured
    assert found.frames == 9 and found.shorter == half_as_long(policy.backbone) == 3
    facts = Facts(policy.backbone.process, 1, True, True)
    by_phase = memory.phases(draft, found, facts, 1)
    worst, most = memory.peak(by_phase)
    graph = memory.decoder_graph(draft, found, facts, worst)
    assert worst == "learning" and most / 2 < graph <= by_phase[worst]["activations"]
    lower = dict(suggestions.suggestions(draft, found, facts, 1))
    shorter = model.model_of(overrides.changed(draft, ["model.frames=3"]), ["a red circle"])[1]
    fewer = memory.peak(memory.phases(draft, shorter, facts, 1))[1]
    assert lower["model.frames=3"] == pytest.approx(fewer, rel=0.15)


@pytest.mark.slow
def test_the_plan_says_so(draft, measured, monkeypatch):
    monkeypatch.setattr(planning, "model_of", lambda run, texts: measured)
    small = overrides.changed(draft, ["hardware.memory=1e-4GB"])
    lines = lines_of(planning.planned(small, seconds=0))
    assert any("through 9 frames: model.frames=3" in text for _, text in lines), lines
    (fit,) = (text for _, text in lines if text.startswith("does not fit: "))
    assert " too much " in fit and "lower model.frames, model.size" in fit
