"""What torch's profiler recorded, as a tree of frames that each belong to a part of an update.

An operation belongs to the innermost named part around it (`core.profiling`). A backward pass runs
outside the part whose forward pass made it; autograd gives both one sequence number, and so it
belongs to that part too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from scoretune.core.profiling import PARTS, PREFIX

BACKWARD = "autograd::engine::evaluate_function: "
SYNCHRONISING = frozenset(
    {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"}
)
"""Operations whose result the host must wait for, on any device."""
DEVICE_WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


@dataclass
class Spent:
    """What a part took: seconds of the host, of them in backward passes; of the device; times that
    it was entered; and reads of device memory that the host must wait for."""

    seconds: float = 0.0
    backward: float = 0.0
    device: float = 0.0
    entered: int = 0
    synchronisations: int = 0


@dataclass
class Frame:
    """Calls of one name from one place: seconds with all that they called, and that."""

    name: str
    part: str
    seconds: float = 0.0
    calls: int = 0
    children: dict[tuple[str, str], Frame] = field(default_factory=dict)


@dataclass(frozen=True)
class Record:
    """Of one update: what each part took, the tree of calls, and the most bytes that were alive at
    once beyond those that were there before, with the part that was at work then."""

    parts: Mapping[str, Spent]
    root: Frame
    peak: int
    peak_part: str


def recorded(profiler: torch.profiler.profile) -> Record:
    """What a profiler saw of one update."""
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    results = profiler.profiler.kineto_results
    began = results.trace_start_ns()
    events: Iterable[Any] = results.events()  # torch's stub leaves out their bytes
    memory = [
        ((event.start_ns() - began) / 1e3, event.nbytes())
        for event in events
        if event.name() == "[memory]"
    ]
    return read(profiler.events() or (), memory)


def read(events: Iterable[Any], memory: Iterable[tuple[float, int]] = ()) -> Record:
    """The record of torch's `FunctionEvent`s, which lie within one event named `update`, and of
    bytes taken and given back, each at its microsecond."""
    ordered = sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end))
    forward = _forward_parts(ordered)
    parts: dict[str, Spent] = {name: Spent() for name in PARTS}
    (whole,) = (event for event in ordered if event.name == PREFIX + "update")
    root = Frame("update", "update")
    peak, peak_part = _peak(ordered, memory, forward)
    _visit(whole, root, "update", False, forward=forward, parts=parts)
    return Record(parts, root, peak, peak_part)


def _visit(
    event: Any, frame: Frame, part: str, back: bool, *, forward: Mapping[int, str], parts: Any
) -> None:
    """Add an event and all within it to its frame and to the parts."""
    frame.seconds += event.cpu_time_total / 1e6
    frame.calls += 1
    spent = parts[part]
    own = event.self_cpu_time_total / 1e6
    spent.seconds += own
    spent.backward += own * back
    spent.device += event.self_device_time_total / 1e6
    spent.synchronisations += event.name in SYNCHRONISING or event.name in DEVICE_WAITS
    spent.entered += event.name.startswith(PREFIX)
    for child in event.cpu_children:
        of_child, turned = _part(child, part, forward)
        key = child.name.removeprefix(PREFIX).removeprefix(BACKWARD), of_child
        inner = frame.children.setdefault(key, Frame(*key))
        _visit(child, inner, of_child, back or turned, forward=forward, parts=parts)


def _part(event: Any, around: str, forward: Mapping[int, str]) -> tuple[str, bool]:
    """The part that an event within another belongs to, and whether a backward pass begins."""
    if event.name.startswith(PREFIX):
        return event.name.removeprefix(PREFIX), False
    if event.name.startswith(BACKWARD):
        return forward.get(event.sequence_nr, around), True
    return around, False


def _forward_parts(ordered: Iterable[Any]) -> dict[int, str]:
    """The part of each operation that autograd numbered. Of several with one number the outermost
    made the node that is passed backwards."""
    found: dict[int, str] = {}
    for event in ordered:
        if event.sequence_nr < 0 or event.name.startswith((BACKWARD, PREFIX)):
            continue
        around, within_backward = event.cpu_parent, False
        while around is not None and not around.name.startswith(PREFIX):
            within_backward |= around.name.startswith(BACKWARD)
            around = around.cpu_parent
        if around is not None and not within_backward:
            found[event.sequence_nr] = around.name.removeprefix(PREFIX)
    return found


def _peak(
    ordered: Iterable[Any], memory: Iterable[tuple[float, int]], forward: Mapping[int, str]
) -> tuple[int, str]:
    """The most bytes alive at once beyond those before, and the part at work then."""
    alive, peak, moment = 0, 0, 0.0
    for when, change in sorted(memory):
        alive += change
        if alive > peak:
            peak, moment = alive, when
    at = "update"
    for event in ordered:  # the last that began of those that go on is the innermost
        if event.time_range.start <= moment <= event.time_range.end:
            at, _ = _part(event, at, forward)
    return peak, at
