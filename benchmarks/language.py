"""A step of `RainbowPOTrainer` beside one of TRL's `DPOTrainer`, on the same model and batch.

    python benchmarks/language.py [--pairs N] [--width W] [--layers L] [--rank R] [--json FILE]

Three trainers in one process and on one thread: TRL's with its reference asked in every batch, ours
alike, and ours with kept terms. They take a step in turn, so that a drifting machine favours none;
ratios are those of a round, in processor time, and of the fastest steps. Peak memory is
that of the tensors of one step; a reference that is asked in every batch has its weights besides.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import torch
from torch.profiler import ProfilerActivity

import tiny_lm

CPU = ProfilerActivity.CPU
SIDES = ("trl", "ours", "kept")
GOALS = {"ours": 1.05, "kept": 0.75}
"""The most that a step of ours may take, in steps of TRL's."""


def rows(count: int, letters: int) -> Any:
    """Pairs of texts of so many bytes."""
    from datasets import Dataset

    text = "the quick brown fox jumps over the lazy dog and comes back again " * 20
    return Dataset.from_list(
        [
            {
                "prompt": text[n : n + 16],
                "chosen": text[n + 16 : n + 16 + letters],
                "rejected": text[2 * n + 20 : 2 * n + 20 + letters - n % 7],
            }
            for n in range(count)
        ]
    )


def model(seed: int, options: argparse.Namespace) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.width,
        intermediate_size=3 * options.width,
        num_hidden_layers=options.layers,
        num_attention_heads=options.width // 32,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=256,
    )
    return LlamaForCausalLM(config)


def step_of(side: str, options: argparse.Namespace, folder: Path) -> Callable[[], None]:
    """One step of a trainer on its one batch: the loss, its gradient, and AdamW."""
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    from scoretune.training.language import RainbowPOConfig, RainbowPOTrainer

    shared = {
        "output_dir": str(folder / side),
        "per_device_train_batch_size": options.batch,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
    }
    kind: Any = DPOTrainer if side == "trl" else RainbowPOTrainer
    args = (
        DPOConfig(**shared)
        if side == "trl"
        else RainbowPOConfig(**shared, preset="dpo", precompute_ref_log_probs=side == "kept")
    )
    lora = LoraConfig(r=options.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = kind(
        model(0, options),
        None if side == "kept" or options.rank else model(0, options),
        args,
        train_dataset=rows(options.batch, options.letters),
        processing_class=tiny_lm.tokenizer(),
        peft_config=lora if options.rank else None,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    optimiser = torch.optim.AdamW([p for p in trainer.model.parameters() if p.requires_grad], 1e-6)
    trainer.model.train()

    def step() -> None:
        trainer.compute_loss(trainer.model, batch).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def times(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratios to TRL's steps over rounds, after two that are not counted."""
    steps = {side: step_of(side, options, folder) for side in SIDES}
    rounds = []
    for _ in range(options.pairs + 2):
        spent = {}
        for side, step in steps.items():
            start = time.process_time()
            step()
            spent[side] = time.process_time() - start
        rounds.append(spent)
    rounds = rounds[2:]
    memory = {side: peak(step) for side, step in steps.items()}
    numbers: dict[str, Any] = {"trl": {"seconds": statistics.median(r["trl"] for r in rounds)}}
    numbers["trl"]["peak MiB"] = memory["trl"]
    for side, goal in GOALS.items():
        ratios = sorted(r[side] / r["trl"] for r in rounds)
        numbers[side] = {
            "goal": goal,
            "ratio": statistics.median(ratios),
            "least": ratios[0],
            "greatest": ratios[-1],
            "of_the_fastest": min(r[side] for r in rounds) / min(r["trl"] for r in rounds),
            "peak MiB": memory[side],
        }
    return numbers


def peak(step: Callable[[], None]) -> float:
    """Mebibytes of tensors that a step holds at most beyond those from before it, by the profiler
    of torch, which sees every allocation."""
    with torch.profiler.profile(activities=[CPU], profile_memory=True) as profile:
        step()
    assert profile.profiler is not None
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(itertools.accumulate(change for _, change in changes)) / 2**20


def disable_bars() -> None:
    from datasets import disable_progress_bars

    disable_progress_bars()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {
        "pairs": 15, "width": 128, "layers": 4, "vocabulary": 8192, "batch": 4, "letters": 96,
        "rank": 0,
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    disable_bars()
    with tempfile.TemporaryDirectory() as name:
        numbers = times(options, Path(name))
    for side, own in numbers.items():
        print(side, {name: round(value, 3) for name, value in own.items()})
    if options.json is not None:
        options.json.write_text(
            json.dumps({"options": vars(options) | {"json": None}, "steps": numbers})
        )


if __name__ == "__main__":
    main()
