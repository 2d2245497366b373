"""TRL's side of a comparison, run by `peers.py` under an interpreter that has trl 0.23.1.

    PYTHON peer_trl.py FOLDER

FOLDER/weights holds the shared weights. TRL's trainers are used as they are; what they would log
or save is switched off, and so are progress bars.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from torch import Tensor

import peer_model
from peer_model import GUIDANCE, PROMPTS, SAMPLES, STEPS, TRAIN_BATCH, Epoch, Watch


def brightness(images: Tensor, prompts: Any, metadata: Any) -> tuple[Tensor, dict[str, Any]]:
    """Mean pixel value, as scoretune's reward of that name."""
    return images.mean((1, 2, 3)), {}


def epoch(case: str, folder: Path, watch: Watch) -> Epoch:
    """One epoch of the trainer that TRL has for a case."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from trl import AlignPropTrainer, DDPOTrainer

    # Trainers in one process share these: the next one's accumulation would be the last one's.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState()  # TRL's logger wants it before a trainer is made
    name, _, kind = case.partition(" ")
    if name.startswith("ddpo"):
        return _epoch(DDPOTrainer, ddpo(), folder, kind == "lora", watch)
    last = STEPS if name == "alignprop" else int(name.removeprefix("draft-"))
    config = alignprop(last, random=name == "alignprop")
    return _epoch(AlignPropTrainer, config, folder, kind == "lora", watch)


def ddpo() -> Any:
    """An optimiser step on every `TRAIN_BATCH` samples at all times."""
    from trl import DDPOConfig

    return DDPOConfig(
        mixed_precision="no",
        sample_num_steps=STEPS,
        sample_guidance_scale=GUIDANCE,
        sample_batch_size=SAMPLES,
        sample_num_batches_per_epoch=1,
        train_batch_size=TRAIN_BATCH,
        train_gradient_accumulation_steps=1,
        train_learning_rate=1e-5,
        seed=0,
    )


def alignprop(last: int, random: bool) -> Any:
    """Back through the last steps; if `random`, each is left out as TRL draws it."""
    from trl import AlignPropConfig

    return AlignPropConfig(
        mixed_precision="no",
        sample_num_steps=STEPS,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=SAMPLES,
        train_gradient_accumulation_steps=1,
        train_learning_rate=1e-5,
        truncated_backprop_rand=random,
        truncated_backprop_timestep=STEPS - last,
        truncated_rand_backprop_minmax=(0, STEPS),
        seed=0,
    )


def _epoch(kind: Any, config: Any, folder: Path, lora: bool, watch: Watch) -> Epoch:
    from trl import DefaultDDPOStableDiffusionPipeline

    prompts = cycle(PROMPTS)
    pipeline = DefaultDDPOStableDiffusionPipeline(str(folder / "trl"), use_lora=lora)
    trainer = kind(config, brightness, lambda: (next(prompts), {}), pipeline)
    pipeline.set_progress_bar_config(disable=True)
    watch.follow(pipeline.unet, pipeline.vae.decoder)
    trainer._generate_samples = watch.around("rollout", trainer._generate_samples)
    return lambda: trainer.step(0, 0)  # epoch 0 is never saved


def main() -> None:
    folder, answers, watch = Path(sys.argv[1]), peer_model.pipe(), Watch()
    warnings.simplefilter("ignore")
    peer_model.pipeline(folder / "weights").save_pretrained(folder / "trl")
    about = peer_model.versions("trl", "torch", "diffusers", "transformers", "peft", "accelerate")
    peer_model.serve(answers, watch, partial(epoch, folder=folder, watch=watch), about)


if __name__ == "__main__":
    main()
