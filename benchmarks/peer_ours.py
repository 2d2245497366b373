"""Our side of a comparison, run by `peers.py` under its own interpreter.

    python peer_ours.py FOLDER [SETTING=VALUE ...]

FOLDER/weights holds the shared weights. Epochs are updates of `training.build`'s parts, by `train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from itertools import count
from pathlib import Path

import peer_model
from peer_model import GUIDANCE, PROMPTS, RANK, SAMPLES, STEPS, TRAIN_BATCH, Epoch, Watch
from scoretune import recipes
from scoretune.training import overrides
from scoretune.training.build import build
from scoretune.training.loop import train

# TRL's log-ratios are means over the 256 dimensions, and its clip is 1e-4.
DDPO = ["objective.clip=1e-4", "objective.temperature=256", "sizes.share=1"]


def epoch(case: str, folder: Path, watch: Watch, more: Sequence[str] = ()) -> Epoch:
    """One update of the recipe that does what a case is."""
    name, _, kind = case.partition(" ")
    recipe = name.partition("-")[0]
    if name == "ddpo":
        changes = [*DDPO, f"sizes.minibatch={TRAIN_BATCH}", f"sizes.accumulate={STEPS}"]
    elif name == "ddpo-whole":
        changes = [*DDPO, f"sizes.minibatch={TRAIN_BATCH * STEPS}", "sizes.accumulate=1"]
    else:
        last = STEPS if name == "alignprop" else int(name.removeprefix("draft-"))
        changes = [f"objective.last={last}", f"sizes.minibatch={SAMPLES}"]
    rank = RANK if kind == "lora" else 0
    return _epoch(recipe, [f"model.rank={rank}", *changes, *more], folder, watch)


def _epoch(recipe: str, changes: list[str], folder: Path, watch: Watch) -> Epoch:
    same = [
        f"model.source={folder / 'ours'}",
        f"model.guidance={GUIDANCE}",
        f"prompts={folder / 'prompts.txt'}",
        "reward=brightness",
        f"sampling.steps={STEPS}",
        *(f"sizes.prompts={SAMPLES}", "sizes.group=1"),
        *("optimiser.learning_rate=1e-5", "optimiser.weight_decay=1e-4"),
    ]
    parts = build(overrides.changed(recipes.named(recipe), [*same, *changes]))
    pipeline, source, number = parts.policy.backbone.pipeline, parts.method.source, count()
    watch.follow(pipeline.unet, pipeline.vae.decoder)
    credited = getattr(source, "credit", None)  # a kept graph needs none
    if credited is not None:
        source.credit = watch.around("credit", credited)
    roll = watch.around("rollout", source)

    def epoch() -> None:
        train(roll, parts.method.objective, parts.optimiser, parts.engine, updates=[next(number)])
        watch.seconds["rollout"] -= watch.seconds.get("credit", 0.0)

    return epoch


def main() -> None:
    folder, answers, watch = Path(sys.argv[1]), peer_model.pipe(), Watch()
    peer_model.pipeline(folder / "weights").save_pretrained(folder / "ours")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    about = peer_model.versions("torch", "diffusers", "transformers", "peft")
    make = partial(epoch, folder=folder, watch=watch, more=sys.argv[2:])
    peer_model.serve(answers, watch, make, about)


if __name__ == "__main__":
    main()
