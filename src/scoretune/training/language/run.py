"""A run of preference tuning on a language model: from settings to a model folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from scoretune.core import files, hub, reading
from scoretune.core.errors import UserError, first_line, user_errors
from scoretune.data.text_pairs import TextPairs, plain, read_text_likes, read_text_pairs
from scoretune.preference import score_offset
from scoretune.training.language import settings as settings_of
from scoretune.training.language.settings import PreferText

Watch = Callable[[str, int, int, dict[str, float]], None]
"""Told the stage, the updates that are done, of how many, and the numbers of the last ones."""
RECORD, CHECKPOINTS, MODEL = "settings.json", "checkpoints", "model"
KTO_LOSSES = {"kto": "kto", "apo_zero_single": "apo_zero_unpaired"}
"""TRL's names of the presets of single likes."""
NOT_KEPT = ("trdpo", "sdpo", "beta_dpo")
"""Presets with a state that TRL's checkpoints do not hold."""
DEFAULT_LENGTH = 1024
"""Tokens of a sequence, where nobody says and the model has room."""


def prefer(
    source: str, settings: PreferText, folder: Path, watch: Watch, *, resume: bool = False
) -> dict[str, Any]:
    """Tune the model and write FOLDER/model and FOLDER/result.json; returns the result.

    `resume` goes on from the newest checkpoint. Raises UserError.
    """
    start = time.monotonic()
    data = training_data(settings, settings.data)
    held_out = training_data(settings, settings.held_out) if settings.held_out else None
    model, tokenizer = loaded(source)
    _check_talk(data, tokenizer, source)
    settings = settings.model_copy(update={"max_length": _length(settings.max_length, model)})
    files_kept = {"source": source, "settings": settings.model_dump()}
    if not resume:
        folder.mkdir(parents=True, exist_ok=True)
        files.write_json(folder / RECORD, files_kept)
    with user_errors():
        trainer = _trainer(model, tokenizer, settings, folder, data, held_out)
    trainer.add_callback(_watching(watch, folder, settings.preset))
    newest = _newest(folder / CHECKPOINTS) if resume else None
    done = trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
    if not torch.isfinite(torch.tensor(done.training_loss)):
        raise UserError(f"the loss is not finite: lower learning_rate={settings.rate:g}, or beta")
    measured = {} if held_out is None else _held_out(trainer)
    trainer.save_model(str(folder / MODEL))
    (folder / MODEL / "training_args.bin").unlink(missing_ok=True)  # a pickle that nobody needs
    result = {
        "run": str(folder),
        "model": str(folder / MODEL),
        "preset": settings.preset,
        "beta": settings.temperature,
        "pairs": len(data),
        "updates": trainer.state.global_step,
        "loss": done.training_loss,
        **_last(trainer.state.log_history),
        "held_out": measured,
        "phi_star": vars(trainer).get("phi_star"),
        "seconds": round(time.monotonic() - start, 1),
    }
    if trainer.is_world_process_zero():
        files.write_json(folder / "result.json", result)
    return result


def recorded(folder: Path) -> tuple[str, PreferText]:
    """The model and the settings of a run, to go on with it. Raises UserError."""
    try:
        kept = reading.read_json(folder / RECORD)
        source, settings = kept["source"], settings_of.validated(kept["settings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{str(folder)!r} holds no run of prefer-text ({first_line(error)}): leave out --resume"
        ) from error
    if (folder / "result.json").exists():
        raise UserError(f"the run in {str(folder)!r} is finished: its model is in {folder / MODEL}")
    if settings.preset in NOT_KEPT:
        raise UserError(
            f"{settings.preset} cannot go on: TRL's checkpoints do not hold its moving reference "
            "or mean; begin anew with another --run"
        )
    if _newest(folder / CHECKPOINTS) is None:
        raise UserError(f"{str(folder)!r} has no checkpoint yet: begin anew without --resume")
    return source, settings


def loaded(source: str) -> tuple[Any, Any]:
    """A causal language model in float32 and its tokenizer, this machine's first."""
    hub.quieten()

    def load(local: bool) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        place = hub.place(source)
        options = {"local_files_only": local}
        if hub.is_local(source):
            hub.refuse_pickles(Path(place), "save it by save_pretrained, which writes safetensors")
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, use_safetensors=True, **options
        )
        return model, tokenizer

    model, tokenizer = hub.offline_first(source, "a causal language model of transformers", load)
    if tokenizer.eos_token is None:
        raise UserError(
            f"the tokenizer of {source!r} has no end token, which every completion is scored with: "
            "set its eos_token and save it again"
        )
    return model, tokenizer


# ---------------------------------------------------------------------------- data


def training_data(settings: PreferText, where: str) -> Any:
    """Pairs, or likes for presets of single samples, as a data set of the `datasets` library."""
    from datasets import Dataset

    if settings.method.kind == "single":
        return Dataset.from_list(_likes(settings, where))
    pairs = read_text_pairs(where, ties=settings.ties, raters=settings.raters)
    columns: dict[str, torch.Tensor] = {}
    if bool((pairs.labels != 1).any()):
        columns["label"] = pairs.labels
    if bool((pairs.weights != 1).any()):
        columns["weight"] = pairs.weights
    if settings.method.offset:
        columns["margin"] = _offsets(pairs, settings, where)
    rows = pairs.rows()
    for name, values in columns.items():
        for row, value in zip(rows, values.tolist(), strict=True):
            row[name] = value
    return Dataset.from_list(rows)


def _offsets(pairs: TextPairs, settings: PreferText, where: str) -> torch.Tensor:
    if pairs.scores is None:
        raise UserError(
            f"odpo asks for a margin by the scores of both sides, and {where!r} has none in every "
            "row: give columns of scores, or another preset"
        )
    return score_offset(pairs.scores[:, 0], pairs.scores[:, 1], settings.offset)


def _likes(settings: PreferText, where: str) -> list[dict[str, Any]]:
    """Rows of TRL's unpaired form, whose label is true or false."""
    likes = read_text_likes(where, raters=settings.raters)
    if bool(((likes.liked != 0) & (likes.liked != 1)).any()):
        raise UserError(
            f"{settings.preset} is TRL's, which takes labels of 0 or 1, and {where!r} has ties or "
            "several raters: set raters=separate, leave ties out, or use a preset of pairs"
        )
    texts = zip(likes.prompts, likes.completions, likes.liked.tolist(), strict=True)
    return [
        {"prompt": plain(prompt), "completion": plain(completion), "label": bool(liked)}
        for prompt, completion, liked in texts
    ]


def _check_talk(data: Any, tokenizer: Any, source: str) -> None:
    """Refuse conversations where the tokenizer does not know how they are written."""
    first = data[0].get("chosen", data[0].get("completion"))
    if not isinstance(first, str) and tokenizer.chat_template is None:
        raise UserError(
            f"the pairs are conversations, and the tokenizer of {source!r} has no chat_template: "
            "set one, or give prompt, chosen and rejected as texts"
        )


# ---------------------------------------------------------------------------- the trainer


def _trainer(
    model: Any, tokenizer: Any, settings: PreferText, folder: Path, data: Any, held_out: Any
) -> Any:
    """TRL's trainer of single likes, or ours of pairs."""
    from transformers import PrinterCallback

    shared = _shared(settings, folder)
    preset = settings.method
    if preset.kind == "single":
        from trl import KTOConfig, KTOTrainer

        kind: Any = KTOTrainer
        args: Any = KTOConfig(**shared, loss_type=KTO_LOSSES[settings.preset])
    else:
        from scoretune.training.language import RainbowPOConfig, RainbowPOTrainer

        kind = RainbowPOTrainer
        cache = settings.reference_cache or str(folder / "reference")
        args = RainbowPOConfig(
            **shared,
            preset=settings.preset,
            reference_cache=cache,
            ref_model_sync_steps=settings.reference_every,
        )
    trainer = kind(
        model,
        args=args,
        train_dataset=data,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=_lora(settings.rank) if settings.rank else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _shared(settings: PreferText, folder: Path) -> dict[str, Any]:
    """Settings in TRL's and transformers' words."""
    return {
        "output_dir": str(folder / CHECKPOINTS),
        "beta": settings.temperature,
        "learning_rate": settings.rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": settings.warm_up,
        "num_train_epochs": settings.epochs,
        "max_steps": settings.updates or -1,
        "per_device_train_batch_size": settings.batch,
        "per_device_eval_batch_size": settings.batch,
        "gradient_accumulation_steps": settings.accumulate,
        "max_length": settings.max_length,
        "bf16": settings.precision == "bfloat16",
        "gradient_checkpointing": settings.gradient_checkpointing,
        "use_cpu": not torch.cuda.is_available(),
        "save_steps": settings.checkpoint_every,
        "save_total_limit": 2,
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
        "seed": settings.seed,
    }


def _length(wanted: int | None, model: Any) -> int:
    """Tokens of a sequence that the model has positions for. Raises UserError."""
    most = getattr(model.config, "max_position_embeddings", None) or DEFAULT_LENGTH
    if wanted is not None and wanted > most:
        raise UserError(
            f"max_length={wanted} is more than the model's {most} positions: set max_length={most} "
            "or less"
        )
    return wanted or min(DEFAULT_LENGTH, most)


def _lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")


def _watching(watch: Watch, folder: Path, stage: str) -> Any:
    """A callback that writes the log and tells `watch` of every update."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):  # type: ignore[misc]
        def on_log(
            self, args: Any, state: Any, control: Any, logs: Any = None, **rest: Any
        ) -> None:
            if not state.is_world_process_zero or "loss" not in logs:
                return
            files.append_line(folder / "log.jsonl", {"update": state.global_step, **logs})
            names = {"loss": "loss", "rewards/accuracies": "accuracy", "rewards/margins": "margin"}
            shown = {short: logs[name] for name, short in names.items() if name in logs}
            watch(stage, state.global_step, state.max_steps, shown)

    return Watching()


def _held_out(trainer: Any) -> dict[str, float]:
    """Loss and accuracy on the held-out pairs."""
    numbers = trainer.evaluate()
    return {
        name: numbers[f"eval_{key}"]
        for name, key in (
            ("loss", "loss"),
            ("accuracy", "rewards/accuracies"),
            ("margin", "rewards/margins"),
        )
        if f"eval_{key}" in numbers
    }


def _last(history: list[Mapping[str, float]]) -> dict[str, float]:
    """Accuracy and margin of the training pairs, over the last tenth of the updates."""
    lines = [line for line in history if "rewards/margins" in line and "loss" in line]
    lines = lines[-max(1, len(lines) // 10) :]
    return {
        name: sum(line[f"rewards/{key}"] for line in lines) / len(lines)
        for name, key in (("accuracy", "accuracies"), ("margin", "margins"))
        if lines and f"rewards/{key}" in lines[0]
    }


def _newest(checkpoints: Path) -> Path | None:
    """The newest checkpoint that was written to its end: transformers writes its state last."""
    if not checkpoints.is_dir():
        return None
    whole = [
        path for path in checkpoints.glob("checkpoint-*") if (path / "trainer_state.json").exists()
    ]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
