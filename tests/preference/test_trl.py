"""R1: the presets against TRL's own trainers, on a small random GPT-2 and unequal completions."""

from __future__ import annotations

import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from scoretune.preference import (
    PRESETS,
    kl_baseline,
    on_policy_weight,
    pairwise_loss,
    single_loss,
)

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

BETA, WORDS, PAIRS = 0.3, 43, 8
CLOSE = {"rtol": 2e-6, "atol": 2e-6}


def network(seed):
    """A GPT-2 of 2 layers and width 32."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=WORDS, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def tokenizer():
    """One token a word, w3 to w42."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{k}": k for k in range(3, WORDS)}
    made = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )


def text(generator, most):
    count = int(torch.randint(1, most, (), generator=generator))
    return "".join(f" w{int(k)}" for k in torch.randint(3, WORDS, (count,), generator=generator))


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """TRL's DPO trainer with a policy that is not its reference, on 8 pairs."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    generator = torch.Generator().manual_seed(0)
    rows = [
        {"prompt": text(generator, 5), "chosen": text(generator, 9), "rejected": text(generator, 7)}
        for _ in range(PAIRS)
    ]
    config = trl.DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), beta=BETA, bf16=False, use_cpu=True,
        gradient_checkpointing=False, per_device_train_batch_size=PAIRS, report_to=[],
        disable_tqdm=True, use_weighting=True,
    )  # fmt: skip
    return trl.DPOTrainer(
        model=network(0), ref_model=network(1), args=config, processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip


@pytest.fixture(scope="module")
def batch(trainer):
    return next(iter(trainer.get_train_dataloader()))


def sums(model, batch):
    """Of each completion: Σ ln π(y_t), Σ ln Σ_v π(v)², and the number of its tokens."""
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    log_probs = logits[:, :-1].log_softmax(-1)
    mask = batch["completion_mask"][:, 1:].float()
    taken = log_probs.gather(-1, batch["input_ids"][:, 1:, None])[..., 0]
    collisions = (2 * log_probs).logsumexp(-1)
    return (taken * mask).sum(1), (collisions * mask).sum(1), mask.sum(1)


@pytest.fixture(scope="module")
def pairs(trainer, batch):
    """Both sides' log-likelihoods under policy and reference, and their lengths."""
    policy, collisions, lengths = sums(trainer.model, batch)
    reference, _, _ = sums(trainer.ref_model, batch)
    sides = (*policy.chunk(2), *reference.chunk(2))
    assert bool((lengths[:PAIRS] != lengths[PAIRS:]).any())
    assert float((policy - reference).abs().min()) > 1e-3
    return SimpleNamespace(sides=sides, lengths=lengths.chunk(2), collisions=collisions.chunk(2))


def theirs(trainer, batch, kind, *, smoothing=0.0, divergence="reverse_kl", weighting=False):
    trainer.loss_types = kind if isinstance(kind, list) else [kind]
    trainer.loss_weights = [1.0] * len(trainer.loss_types)
    trainer.label_smoothing, trainer.f_divergence_type = smoothing, divergence
    trainer.use_weighting = weighting
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, dict(batch))


IPO = 1 / BETA**2  # our square links are β² times theirs
SAME = [  # TRL's loss, our preset, its factor, TRL's other settings
    ("sigmoid", "dpo", 1, {}),
    ("sigmoid", "trdpo", 1, {}),
    ("sigmoid_norm", "ln_dpo", 1, {}),
    ("hinge", "rso", 1, {}),
    ("ipo", "ln_ipo", IPO, {}),
    ("exo_pair", "exo", 1, {"smoothing": 1e-3}),
    ("nca_pair", "nca", 1, {}),
    ("robust", "robust", 1, {"smoothing": 0.1}),
    ("bco_pair", "bco", 1, {}),
    ("sppo_hard", "sppo", IPO, {}),
    ("apo_zero", "apo_zero", 1, {}),
    ("apo_down", "apo_down", 1, {}),
    ("discopop", "discopop", 1, {}),
    ("sigmoid", "fdpo", 1, {"divergence": "js_divergence"}),
    ("sigmoid", "fdpo_forward_kl", 1, {"divergence": "forward_kl"}),
    ("sigmoid", "fdpo_alpha", 1, {"divergence": "alpha_divergence"}),
]


@pytest.mark.parametrize(("kind", "name", "factor", "settings"), SAME)
def test_losses_of_the_dpo_trainer(trainer, batch, pairs, kind, name, factor, settings):
    ours = (
        factor * pairwise_loss(*pairs.sides, preset=name, beta=BETA, lengths=pairs.lengths).mean()
    )
    torch.testing.assert_close(ours, theirs(trainer, batch, kind, **settings), **CLOSE)


def test_plain_ipo_is_theirs_without_lengths(trainer, batch, pairs):
    """TRL divides by lengths; with lengths of 1 both forms are one."""
    ones = torch.ones(PAIRS)
    same = {"beta": BETA, "lengths": (ones, ones)}
    assert torch.equal(
        pairwise_loss(*pairs.sides, preset="ipo", **same),
        pairwise_loss(*pairs.sides, preset="ln_ipo", **same),
    )


def test_wpo(trainer, batch, pairs):
    up, down = (
        on_policy_weight(side, length, collision)
        for side, length, collision in zip(
            pairs.sides[:2], pairs.lengths, pairs.collisions, strict=True
        )
    )
    ours = pairwise_loss(*pairs.sides, preset="wpo", beta=BETA, weight=up * down).mean()
    torch.testing.assert_close(ours, theirs(trainer, batch, "sigmoid", weighting=True), **CLOSE)


def test_the_sft_term(trainer, batch, pairs):
    """TRL averages over the tokens of the batch, the papers over sequences: both are one where
    every sequence weighs by its length."""
    chosen, lengths = pairs.sides[0], pairs.lengths[0]
    tokens = -chosen.sum() / lengths.sum()
    torch.testing.assert_close(tokens, theirs(trainer, batch, "sft"), **CLOSE)
    preference = pairwise_loss(*pairs.sides, beta=BETA).mean()
    both = theirs(trainer, batch, ["sigmoid", "sft"])
    torch.testing.assert_close(preference + tokens, both, **CLOSE)
    rpo = pairwise_loss(*pairs.sides, preset="rpo_alpha", beta=BETA, lengths=pairs.lengths)
    torch.testing.assert_close(rpo.mean(), preference - (chosen / lengths).mean(), **CLOSE)


def test_losses_of_the_cpo_trainer(pairs):
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    def cpo(kind, alpha=0.0, *, tokens):
        own = SimpleNamespace(
            loss_type=kind, alpha=alpha, beta=BETA, simpo_gamma=0.5, label_smoothing=0.0,
            accelerator=SimpleNamespace(device="cpu"),
        )  # fmt: skip
        sides = pairs.sides[:2]
        if tokens:
            sides = [side / length for side, length in zip(sides, pairs.lengths, strict=True)]
        return CPOTrainer.cpo_loss(own, *sides)[0]

    def ours(preset, **given):
        return pairwise_loss(*pairs.sides[:2], preset=preset, beta=BETA, **given)

    lengths = {"lengths": pairs.lengths}
    torch.testing.assert_close(ours("simpo", **lengths), cpo("simpo", tokens=True), **CLOSE)
    other_unit = replace(PRESETS["simpo"], target_margin=0.0, home_advantage=0.5 / BETA)
    torch.testing.assert_close(ours(other_unit, **lengths), cpo("simpo", tokens=True), **CLOSE)
    alpha = cpo("simpo", 0.25, tokens=True)
    torch.testing.assert_close(ours("alphapo", **lengths), alpha, **CLOSE)
    preference = ours("cpo") + pairs.sides[0]  # less the likelihood of the chosen
    torch.testing.assert_close(preference, cpo("sigmoid", tokens=False), rtol=2e-6, atol=1e-5)
    slic = ours("slic") + 0.1 * pairs.sides[0]
    torch.testing.assert_close(slic, cpo("hinge", tokens=False), rtol=2e-6, atol=1e-5)


def test_the_odds_of_the_orpo_trainer(pairs):
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    own = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    likely = [side / length for side, length in zip(pairs.sides[:2], pairs.lengths, strict=True)]
    reward = ORPOTrainer.odds_ratio_loss(own, *likely)[0]  # −β ln σ(log odds), to be maximised
    ours = pairwise_loss(*pairs.sides[:2], preset="orpo", beta=BETA, lengths=pairs.lengths)
    torch.testing.assert_close(ours, -reward - likely[0], **CLOSE)


@pytest.mark.parametrize(
    ("kind", "name"), [("kto", "kto"), ("apo_zero_unpaired", "apo_zero_single")]
)
def test_losses_of_the_kto_trainer(tmp_path, trainer, kind, name):
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"prompt": text(generator, 5), "completion": text(generator, 9), "label": bool(k % 3)}
        for k in range(6)
    ]
    config = trl.KTOConfig(
        output_dir=str(tmp_path), beta=BETA, loss_type=kind, bf16=False, use_cpu=True,
        gradient_checkpointing=False, per_device_train_batch_size=6, report_to=[],
        desirable_weight=1.3, undesirable_weight=0.7, disable_tqdm=True,
    )  # fmt: skip
    policy, reference = trainer.model, trainer.ref_model
    unpaired = trl.KTOTrainer(
        model=policy, ref_model=reference, args=config, processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    batch = next(iter(unpaired.get_train_dataloader()))
    with torch.no_grad():
        expected = unpaired.compute_loss(policy, dict(batch))
    lp, rp = (sums(model, batch)[0] for model in (policy, reference))
    baseline = None
    if kind == "kto":
        others = {
            "input_ids": batch["KL_input_ids"],
            "attention_mask": batch["KL_attention_mask"],
            "completion_mask": batch["KL_completion_mask"],
        }
        baseline = kl_baseline(sums(policy, others)[0] - sums(reference, others)[0])
    liked = torch.as_tensor(batch["label"]).float()
    ours = single_loss(lp, rp, liked, preset=name, beta=BETA, baseline=baseline, weights=(1.3, 0.7))
    torch.testing.assert_close(ours.mean(), expected, **CLOSE)
