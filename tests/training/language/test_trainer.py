"""The layer over TRL's trainer: its loss is the preset's and TRL's own, its cache is the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_lm
from scoretune.preference import PRESETS, Preset

QUIET = {
    "report_to": "none",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
    "per_device_train_batch_size": 8,
}


def dataset(**columns: list[float]) -> Any:
    from datasets import Dataset

    return Dataset.from_list(
        [row | {n: v[i] for n, v in columns.items()} for i, row in enumerate(tiny_lm.PAIRS)]
    )


def trainer_of(folder: Path, *, data: Any = None, model: Any = None, **settings: Any) -> Any:
    """Ours, on the tiny pairs, with another model as its reference unless one is cached."""
    from scoretune.training.language import RainbowPOConfig, RainbowPOTrainer

    config = RainbowPOConfig(output_dir=str(folder), **QUIET | settings)
    reference = None if config.precompute_ref_log_probs else tiny_lm.model(1)
    return RainbowPOTrainer(
        model or tiny_lm.model(),
        reference,
        config,
        train_dataset=dataset() if data is None else data,
        processing_class=tiny_lm.tokenizer(),
    )


def loss_of(trainer: Any) -> torch.Tensor:
    batch = next(iter(trainer.get_train_dataloader()))
    loss: torch.Tensor = trainer.compute_loss(trainer.model, batch)
    return loss


ln_hinge = replace(PRESETS["ln_dpo"], link="hinge")
TRL: dict[str, tuple[str | Preset, dict[str, Any], float]] = {
    "sigmoid": ("dpo", {}, 1),
    "hinge": ("rso", {}, 1),
    "sigmoid_norm": ("ln_dpo", {}, 1),
    "ipo": ("ln_ipo", {}, 0.25),
    "robust": ("robust", {"label_smoothing": 0.1}, 1),
    "exo_pair": ("exo", {"label_smoothing": 1e-3}, 1),
    "nca_pair": ("nca", {}, 1),
    "bco_pair": ("bco", {}, 1),
    "sppo_hard": ("sppo", {}, 0.25),
    "apo_zero": ("apo_zero", {}, 1),
    "apo_down": ("apo_down", {}, 1),
    "discopop": ("discopop", {}, 1),
    "sigmoid js_divergence": ("fdpo", {}, 1),
    "sigmoid forward_kl": ("fdpo_forward_kl", {}, 1),
    "sigmoid alpha_divergence": ("fdpo_alpha", {}, 1),
}
"""TRL's losses: our preset, TRL's settings, and β² where ours is theirs times that (β = ½)."""


def test_the_loss_and_its_gradient_are_those_of_trl(tmp_path, case):
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), beta=0.5, **QUIET)
    theirs = DPOTrainer(
        tiny_lm.model(),
        tiny_lm.model(1),
        config,
        train_dataset=dataset(),
        processing_class=tiny_lm.tokenizer(),
    )
    ours = trainer_of(tmp_path, preset="dpo", beta=0.5, precompute_ref_log_probs=False)
    for name, (preset, settings, factor) in TRL.items():
        with case(name):
            loss, _, divergence = name.partition(" ")
            theirs.loss_types, theirs.loss_weights = [loss], [1.0]
            theirs.f_divergence_type = divergence or "reverse_kl"
            theirs.label_smoothing = settings.get("label_smoothing", 0.0)
            ours.preset = PRESETS[preset]
            a, b = loss_of(ours) / factor, loss_of(theirs)
            assert a.item() == pytest.approx(b.item(), abs=2e-6, rel=2e-6)
            for trainer, value in ((ours, a), (theirs, b)):
                trainer.model.zero_grad()
                value.backward()
            for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
                assert torch.allclose(p.grad, q.grad, atol=2e-6, rtol=1e-4)
