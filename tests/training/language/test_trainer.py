"""The layer over TRL's trainer: its loss is the preset's and TRL's own, its cache is the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_lm
from scoretune.preference import PRESETS, Preset, dispersion, pairwise_loss, token_entropy
from scoretune.training.language import reference
from scoretune.training.language.trainer import PairPreference

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


def by_hand(model: Any, texts: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each pair's side: the log-likelihood, the scored tokens, the entropy over ln V."""
    tokenizer = tiny_lm.tokenizer()
    values = []
    for row in tiny_lm.PAIRS:
        prompt = tokenizer(row["prompt"])["input_ids"]
        ids = torch.tensor([tokenizer(row["prompt"] + row[texts] + "<end>")["input_ids"]])
        logits = model(ids[:, :-1]).logits[0, len(prompt) - 1 :]
        law = logits.log_softmax(-1)
        lp = law.gather(1, ids[0, len(prompt) :, None]).sum()
        entropy = token_entropy(logits[None], torch.ones(1, len(logits)))[0]
        values.append((lp, torch.tensor(float(len(logits))), entropy))
    lp, length, entropy = (torch.stack(column) for column in zip(*values, strict=True))
    return lp, length, entropy


def in_order(trainer: Any) -> dict[str, torch.Tensor]:
    """All pairs as one batch, in their order."""
    names = trainer.train_dataset.column_names
    trainer._set_signature_columns_if_needed()
    kept = [name for name in names if name in trainer._signature_columns]
    return trainer.data_collator(list(trainer.train_dataset.select_columns(kept)))


COLUMNS = {
    "label": [1.0, 0.5, 0.8, 0.0, 1.0, 1.0, 0.3, 1.0],
    "margin": [0.1, 0.4, -0.2, 0.0, 1.0, 0.3, 0.2, 0.1],
    "weight": [1.0, 2.0, 0.5, 1.0, 1.0, 1.0, 1.5, 0.0],
    "scale": [0.5, 0.9, 0.2, 0.4, 0.7, 0.3, 0.6, 0.8],
}


def test_every_preset_of_pairs_is_fed_what_the_formula_takes(tmp_path, case):
    trainer = trainer_of(
        tmp_path, preset="dpo", precompute_ref_log_probs=False, data=dataset(**COLUMNS)
    )
    with torch.no_grad():
        sides = [by_hand(m, s) for m in (trainer.model, trainer.ref_model) for s in SIDES]
    given = {name: torch.tensor(values) for name, values in COLUMNS.items()}
    batch = in_order(trainer)
    for name, preset in PRESETS.items():
        if preset.kind == "single" or preset.weighted or preset.scaling == "batch":
            continue  # these have tests of their own
        with case(name), torch.no_grad():
            trainer.preset = preset
            losses = pairwise_loss(
                *(lp for lp, _, _ in sides),
                preset=name,
                beta=0.1,
                lengths=(sides[0][1], sides[1][1]),
                **given,
            )
            loss = trainer.compute_loss(trainer.model, batch)
            assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-5, abs=2e-6)


SIDES = ("chosen", "rejected")


def test_the_weight_of_wpo_is_that_of_trl(tmp_path):
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(output_dir=str(tmp_path), use_weighting=True, **QUIET)
    theirs = DPOTrainer(
        tiny_lm.model(),
        tiny_lm.model(1),
        config,
        train_dataset=dataset(),
        processing_class=tiny_lm.tokenizer(),
    )
    ours = trainer_of(tmp_path, preset="wpo", precompute_ref_log_probs=False)
    assert loss_of(ours).item() == pytest.approx(loss_of(theirs).item(), abs=2e-6)


def test_the_kept_reference_is_the_model_before_training(tmp_path):
    trainer = trainer_of(tmp_path, preset="rainbow")
    assert trainer.ref_model is None
    with torch.no_grad():
        chosen, rejected = (by_hand(tiny_lm.model(), side) for side in SIDES)
    kept = trainer.train_dataset
    assert torch.allclose(torch.tensor(kept["ref_chosen_logps"][:]), chosen[0], atol=1e-4)
    assert torch.allclose(torch.tensor(kept["ref_rejected_logps"][:]), rejected[0], atol=1e-4)
    entropy = (chosen[2] + rejected[2]) / 2
    scale = torch.tensor(kept["scale"][:])
    assert torch.allclose(scale, dispersion(entropy, trainer.phi_star), rtol=1e-4)
    assert scale.mean().item() == pytest.approx(1, abs=1e-5)
    # the same whatever stands beside a pair in its batch
    other = trainer_of(tmp_path / "b", preset="rainbow", precompute_ref_batch_size=3)
    again = torch.tensor(other.train_dataset["ref_chosen_logps"][:])
    assert torch.allclose(again, chosen[0], atol=1e-4)


def test_the_reference_is_asked_once_and_a_stale_file_is_not_believed(tmp_path, monkeypatch):
    asked: list[str] = []
    ask = PairPreference._ask_reference
    monkeypatch.setattr(
        PairPreference, "_ask_reference", lambda self, *a: asked.append("") or ask(self, *a)
    )
    cache = tmp_path / "cache"

    def made(**settings: Any) -> Any:
        return trainer_of(tmp_path, reference_cache=str(cache), **settings)

    first = made(preset="rainbow")
    assert len(asked) == 1
    assert made(preset="dpo").train_dataset[3].keys() >= {"ref_chosen_logps"}  # of any preset
    assert len(asked) == 1
    made(preset="dpo", model=tiny_lm.model(2))
    made(preset="dpo", max_length=20)
    made(preset="dpo", data=dataset().select(range(7)))
    assert len(asked) == 4 == len(list(cache.iterdir()))
    place = next(
        path for path in cache.iterdir() if reference.read(cache, key_of(path)) is not None
    )
    key = key_of(place)
    terms = reference.read(cache, key)
    place.write_bytes(place.read_bytes()[:-8])  # cut short
    assert reference.read(cache, key) is None
    reference.write(cache, key[:24] + "0" * 40, terms)  # another key of the same name
    assert reference.read(cache, key) is None
    place.unlink()
    assert torch.equal(
        torch.tensor(made(preset="rainbow").train_dataset["scale"][:]),
        torch.tensor(first.train_dataset["scale"][:]),
    )


def key_of(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return str(file.metadata()["key"])


def test_without_a_reference_there_is_neither_a_second_model_nor_a_pass(tmp_path):
    trainer = trainer_of(tmp_path, preset="simpo", beta=2.0)
    assert trainer.ref_model is None
    assert not (tmp_path / "reference").exists()
    assert "ref_chosen_logps" not in trainer.train_dataset.column_names
    with torch.no_grad():
        chosen, rejected = (by_hand(trainer.model, side) for side in SIDES)
    expected = pairwise_loss(
        chosen[0], rejected[0], preset="simpo", beta=2.0, lengths=(chosen[1], rejected[1])
    )
    loss = trainer.compute_loss(trainer.model, in_order(trainer))
    assert loss.item() == pytest.approx(expected.mean().item(), abs=2e-6)


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_batches_that_are_accumulated_are_one_batch(tmp_path):
    options = {"preset": "rainbow", "max_steps": 2, "optim": "sgd", "learning_rate": 1e-3}
    whole = trainer_of(tmp_path / "a", **options)
    parts = trainer_of(
        tmp_path / "b",
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        **options,
    )
    before = weights(whole)
    whole.train()
    parts.train()
    assert not torch.equal(before, weights(whole))
    assert torch.allclose(weights(whole), weights(parts), atol=1e-6)


def test_the_reference_of_trdpo_follows(tmp_path):
    tiny_lm.folder(tmp_path / "model")
    trainer = trainer_of(
        tmp_path, preset="trdpo", max_steps=1, ref_model_sync_steps=1, learning_rate=1e-2
    )
    start = torch.cat([p.detach().flatten() for p in trainer.ref_model.parameters()])
    trainer.train()
    moved = torch.cat([p.detach().flatten() for p in trainer.ref_model.parameters()])
    assert not torch.equal(start, moved)
    assert torch.allclose(moved, 0.4 * start + 0.6 * weights(trainer), atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"preset": "kto"}, "single likes"),
        ({"preset": "dpoo"}, "did you mean 'dpo'"),
        ({"loss_type": ["ipo"]}, "TRL's own losses"),
        ({"beta": 0.0}, "beta must be above 0"),
        ({"precompute_ref_log_probs": False}, "entropies over all pairs"),
    ],
)
def test_what_a_configuration_refuses(tmp_path, settings, line):
    from scoretune.training.language import RainbowPOConfig

    with pytest.raises(ValueError, match=line):
        RainbowPOConfig(output_dir=str(tmp_path), **QUIET | settings)
