"""What an update costs beyond its networks in three families of one row each, and what preparing
conditions costs beyond the pipeline's own encoding.

    .venv/bin/python benchmarks/family_costs.py [--pairs 5] [FAMILY …]

The miniatures are built 256 wide instead of 16, so that a call of the denoiser takes tens of
milliseconds; weights stay random. One update of DDPO under guidance 2 (one prompt, 4 samples, 2
steps, reward `brightness`) is run once with every call of the denoiser and of the decoder written
down; then updates and bare repetitions of those calls, with the gradients they were followed back
by, take turns. Conditions of `PROMPTS` prompts are prepared in turn with the call of the pipeline's
`encode_prompt` that is within. Ratios of processor time: the median, the least and the greatest.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from scoretune import recipes
from scoretune.models.tiny import transformers, videos
from scoretune.training import overrides
from scoretune.training.build import Parts, build
from scoretune.training.loop import train
from solvers import paired_ratio

WIDTH = 256
WIDE: Mapping[str, Any] = {"num_attention_heads": WIDTH // 8, "attention_head_dim": 8}
LANGUAGE: Mapping[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 16 * WIDTH,
    "num_attention_heads": WIDTH // 8,
}
UMT5: Mapping[str, Any] = {"d_kv": 8, "d_ff": 16 * WIDTH, "num_heads": WIDTH // 8}
SIZES: Mapping[str, tuple[Any, list[str]]] = {
    "qwen-image": (transformers, ["model.size=256"]),
    "sana": (transformers, ["model.size=128"]),
    "wan": (videos, ["model.size=128", "model.frames=5"]),
}
"""Of each family what builds it, and how large it draws."""
UPDATE = [
    "reward=brightness",
    "model.guidance=2",
    "sizes.prompts=1",
    "sizes.group=4",
    "sizes.minibatch=8",
    "sampling.steps=2",
]
PROMPTS = 32
Call = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], bool]


@contextmanager
def wide() -> Iterator[None]:
    """Within this context miniatures are built `WIDTH` wide."""
    with (
        mock.patch.object(transformers, "WIDTH", WIDTH),
        mock.patch.object(videos, "WIDTH", WIDTH),
        mock.patch.dict(transformers.HEADS, WIDE),
        mock.patch.dict(transformers.LANGUAGE, LANGUAGE),
        mock.patch.dict(transformers.UMT5, UMT5),
    ):
        yield


def parts_of(name: str, home: Path) -> Parts:
    module, changes = SIZES[name]
    with wide():
        folder = module.build(name, home / name)
    prompts = home / "prompts.txt"
    prompts.write_text("a red circle\na dark sky\n")
    told = [f"model.source={folder}", f"prompts={prompts}", *UPDATE, *changes]
    return build(overrides.changed(recipes.named("ddpo"), told))


def update(parts: Parts) -> Callable[[], None]:
    """One update as `train` makes it."""
    numbers = iter(range(10**6))

    def work() -> None:
        method = parts.method
        made = method.source, method.objective, parts.optimiser, parts.engine
        train(*made, updates=[next(numbers)])

    return work


def written_down(parts: Parts, work: Callable[[], None]) -> list[Call]:
    """The calls of the denoiser and the decoder in some work, and which were with a gradient."""
    pipeline: Any = parts.policy.backbone.pipeline  # type: ignore[attr-defined]
    network, vae, calls = pipeline.transformer, pipeline.vae, list[Call]()

    def listen(function: Callable[..., Any], args: Any, kwargs: Any) -> None:
        args, kwargs = tree_map(_detached, (args, kwargs))
        calls.append((function, args, kwargs, torch.is_grad_enabled()))

    hook = network.register_forward_pre_hook(
        lambda module, args, kwargs: listen(module, args, kwargs), with_kwargs=True
    )
    decode = vae.decode

    def decoding(*args: Any, **kwargs: Any) -> Any:
        listen(decode, args, kwargs)
        return decode(*args, **kwargs)

    with mock.patch.object(vae, "decode", decoding):
        work()
    hook.remove()
    return calls


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def again(calls: list[Call]) -> None:
    """The same calls and nothing else."""
    for function, args, kwargs, followed in calls:
        with torch.set_grad_enabled(followed):
            output = function(*args, **kwargs)
            if followed:
                output[0].sum().backward()


def over_networks(name: str, pairs: int) -> list[float]:
    """An update over the bare calls of its networks."""
    with tempfile.TemporaryDirectory() as home:
        parts = parts_of(name, Path(home))
    work = update(parts)
    work()  # what is made once
    calls = written_down(parts, work)
    return paired_ratio(work, lambda: again(calls), pairs)


def over_encoding(name: str, pairs: int) -> list[float]:
    """Conditions of prompts over the pipeline's own encoding of them."""
    with tempfile.TemporaryDirectory() as home:
        backbone: Any = parts_of(name, Path(home)).policy.backbone
    prompts = ["a blue square and a green sea", "a dark sky"] * (PROMPTS // 2)
    encode, asked = backbone.pipeline.encode_prompt, list[Any]()

    def listen(*args: Any, **kwargs: Any) -> Any:
        asked.append((args, kwargs))
        return encode(*args, **kwargs)

    backbone.encode(prompts)  # and the unprompted twin, which is kept
    with mock.patch.object(backbone.pipeline, "encode_prompt", listen):
        backbone.encode(prompts)
    ((args, kwargs),) = asked

    def alone() -> None:
        with torch.no_grad():
            encode(*args, **kwargs)

    return paired_ratio(lambda: backbone.encode(prompts), alone, pairs)


def family_costs(pairs: int, names: list[str] | None = None) -> dict[str, float]:
    """Medians, the least and the greatest, by name."""
    costs = {}
    for name in names or SIZES:
        for what, measure in (("update_over_networks", over_networks), ("encoding", over_encoding)):
            ratios = measure(name, pairs)
            costs[f"{name}_{what}"] = round(statistics.median(ratios), 3)
            costs[f"{name}_{what}_min"] = round(min(ratios), 3)
            costs[f"{name}_{what}_max"] = round(max(ratios), 3)
    return costs


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("families", nargs="*")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    for key, value in family_costs(arguments.pairs, arguments.families).items():
        print(f"{key}: {value}", flush=True)
