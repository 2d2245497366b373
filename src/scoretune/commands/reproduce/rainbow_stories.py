"""RainbowPO on people's judgements with a small real language model, through the trainer itself.

The model is stories260K of llama2.c: 260,000 weights, trained on children's stories. The pairs are
PandaLM's test set: two answers to an instruction and three annotators, whose votes become one soft
label. Instructions, not pairs, are held out. No model of this size answers instructions; what is
measured is how well a reward that is implicit in it predicts people on instructions it never saw.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scoretune.commands.reproduce import llama2c
from scoretune.commands.reproduce.base import Cell, Numbers, Page, interval, shown
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.rainbow_world import file_name
from scoretune.core.errors import UserError
from scoretune.preference import PRESETS, Preset, implicit_margin

CHECKPOINT, VOCABULARY = "stories260K.bin", "tok512.bin"
PAIRS = "pandalm_testset-v1.json.gz"
LONGEST, TOKENS = 300, 128
"""Characters of an instruction and its longer answer, and the tokens that are read of them."""
HELD_OUT = 0.3
TUNING = (100, 101)
EPOCHS, BATCH, RATE = 2, 16, 5e-4
BETAS = {False: (0.03, 0.1, 0.3), True: (1.0, 3.0, 10.0)}

DPO, LN = PRESETS["dpo"], PRESETS["ln_dpo"]
MIXED = replace(LN, reference_weight=0.5, mixing=True, home_advantage=0.3)
RAINBOW = replace(MIXED, scaling="dispersion")
ARMS: dict[str, Preset] = {
    "DPO": DPO,
    "DPO + contextual scaling": replace(DPO, scaling="dispersion"),
    "LN-DPO": LN,
    "LN-DPO, square link": PRESETS["ln_ipo"],
    "SimPO": replace(LN, reference_weight=0.0, home_advantage=0.3),
    "Rainbow": RAINBOW,
    "Rainbow without length normalisation": replace(
        RAINBOW, length_normalised=False, home_advantage=3.0
    ),
    "Rainbow without mixing": replace(LN, scaling="dispersion"),
    "Rainbow without contextual scaling": MIXED,
}


def cells(seeds: int, quick: bool, model: str, data: str | None = None) -> list[Cell]:
    """Each arm: its β, and then its runs. Raises UserError where an input is missing."""
    for folder, names in ((model, (CHECKPOINT, VOCABULARY)), (data, (PAIRS,))):
        for name in names:
            if folder is None or not (Path(folder) / name).exists():
                option = "--data" if name == PAIRS else "--model"
                raise UserError(f"this part needs {name}: give its folder by {option}")
    return [
        Cell(
            file_name(arm),
            tuned,
            {"arm": arm, "seeds": seeds, "quick": quick, "model": model, "data": data},
            keeps_files=True,
        )
        for arm in (("DPO", "SimPO", "Rainbow") if quick else ARMS)
    ]


def tuned(arm: str, seeds: int, quick: bool, model: str, data: str, folder: Path) -> Numbers:
    """β by the mean held-out accuracy on the tuning seeds, and the runs of the others with it."""
    preset = ARMS[arm]
    rows = judged_rows(Path(data) / PAIRS)

    def run(seed: int, beta: float) -> Numbers:
        return learned(preset, beta, seed, quick, Path(model), rows, folder)

    betas: Sequence[float] = BETAS[preset.length_normalised][: 1 if quick else None]
    tuning: Sequence[int] = TUNING[: 1 if quick else None]
    trials = {b: sum(run(seed, b)["accuracy"] for seed in tuning) / len(tuning) for b in betas}
    best = max(trials, key=lambda beta: trials[beta])
    return {
        "arm": arm,
        "beta": best,
        "trials": {f"{beta:g}": accuracy for beta, accuracy in trials.items()},
        "runs": [run(seed, best) for seed in range(seeds)],
    }


def judged_rows(path: Path) -> list[dict[str, Any]]:
    """PandaLM's pairs with what more of the annotators prefer as chosen, and its share of votes; a
    vote for neither counts half. Answers that are no text, empty or alike are left out."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        read: list[Mapping[str, Any]] = json.load(file)
    rows = []
    for row in read:
        answers = [row["response1"], row["response2"]]
        if not all(isinstance(a, str) and a.strip() for a in answers) or len(set(answers)) == 1:
            continue
        votes = [{0: 0.5, 1: 1.0, 2: 0.0}[row[f"annotator{k}"]] for k in (1, 2, 3)]
        share = sum(votes) / 3
        if share < 0.5:
            answers, share = answers[::-1], 1 - share
        prompt = "\n".join(t for t in (row["instruction"], row["input"]) if t) + "\n"
        if len(prompt) + max(map(len, answers)) <= LONGEST:
            rows.append(
                {"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "label": share}
            )
    return rows


def split(rows: Sequence[dict[str, Any]], seed: int) -> tuple[list[Any], list[Any]]:
    """Rows to learn from, and those of held-out instructions that the annotators decided."""
    prompts = sorted({row["prompt"] for row in rows})
    order = torch.randperm(len(prompts), generator=torch.Generator().manual_seed(seed)).tolist()
    kept_back = {prompts[place] for place in order[: round(HELD_OUT * len(prompts))]}
    held_out = [r for r in rows if r["prompt"] in kept_back and r["label"] != 0.5]
    return [row for row in rows if row["prompt"] not in kept_back], held_out


def learned(
    preset: Preset,
    beta: float,
    seed: int,
    quick: bool,
    model: Path,
    rows: Sequence[dict[str, Any]],
    folder: Path,
) -> Numbers:
    """A run of the trainer; accuracies of the implicit reward and of the plain model, held out."""
    from datasets import Dataset, disable_progress_bars

    from scoretune.training.language import RainbowPOConfig, RainbowPOTrainer

    disable_progress_bars()
    train, held_out = split(rows, seed)
    if quick:
        train, held_out = train[:BATCH], held_out[:BATCH]
    config = RainbowPOConfig(
        output_dir=str(folder / "trainer"),
        reference_cache=str(folder / "reference"),
        beta=beta,
        max_steps=1 if quick else -1,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=RATE,
        max_length=TOKENS,
        seed=seed,
        **QUIET,
    )
    trainer = RainbowPOTrainer(
        llama2c.model(model / CHECKPOINT),
        args=config,
        train_dataset=Dataset.from_list(train),
        eval_dataset=Dataset.from_list(held_out),
        processing_class=llama2c.tokenizer(model / VOCABULARY),
        preset=preset,
    )
    trainer.train()
    return measured(trainer, preset, beta)


QUIET = {
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
    "log_level": "error",
    "gradient_checkpointing": False,
    "logging_steps": 1e9,
}


@torch.no_grad()
def measured(trainer: Any, preset: Preset, beta: float) -> Numbers:
    """Held out: the share of pairs whose chosen answer has the larger implicit reward, margins
    aside; that by the likelihood a token before training, where the reference was asked; and the
    mean log-loss of the reward."""
    right, before, pairs = 0.0, 0.0, 0
    loss = 0.0
    for batch in trainer.get_eval_dataloader():
        mask = batch["completion_mask"][:, 1:].sum(1)
        chosen, rejected = trainer.compute_ref_log_probs(trainer.model, trainer.of_trl(batch))
        terms = (batch.get("ref_chosen_logps"), batch.get("ref_rejected_logps"))
        margin = implicit_margin(
            chosen,
            rejected,
            terms[0],
            terms[1],
            preset=replace(preset, home_advantage=0.0, scaling=None),
            beta=beta,
            lengths=tuple(mask.chunk(2)),
        )
        right += float((margin > 0).sum())
        share = batch["label"]
        loss += float((torch.nn.functional.softplus(-margin) + (1 - share) * margin).sum())
        if preset.needs_reference:
            up, down = (term / length for term, length in zip(terms, mask.chunk(2), strict=True))
            before += float((up > down).sum())
        pairs += len(margin)
    return {
        "accuracy": right / pairs,
        "before": before / pairs,
        "loss": loss / pairs,
        "pairs": pairs,
    }


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Held-out accuracies of every arm, and their differences from Rainbow's."""
    arms = {numbers["arm"]: numbers for numbers in results.values()}
    before = interval([run["before"] for run in arms["DPO"]["runs"]])
    pairs = [run["pairs"] for run in arms["DPO"]["runs"]]
    page.text(
        "stories260K (llama2.c) on PandaLM's test set: answers of five models to instructions, "
        f"three annotators a pair, as one soft label; pairs of at most {LONGEST} characters. "
        f"{EPOCHS} epochs of AdamW at {RATE:g} on every weight, {BATCH} pairs at once, by "
        "`RainbowPOTrainer` with its kept reference. A seed is another split: "
        f"{HELD_OUT:.0%} of the instructions are held out, {min(pairs)} to {max(pairs)} decided "
        f"pairs of them. β of every arm is the best of three on the splits {TUNING[0]} and "
        f"{TUNING[1]}: {BETAS[False]}, and per token {BETAS[True]}. Accuracy is the share of pairs "
        "whose preferred answer has the larger implicit reward, margins aside. The likelihood a "
        f"token of the model before training says {shown(before)}."
    )
    rows, numbers = [], {}
    for arm, own in arms.items():
        accuracy = interval([run["accuracy"] for run in own["runs"]])
        apart = interval(
            [
                a["accuracy"] - b["accuracy"]
                for a, b in zip(own["runs"], arms["Rainbow"]["runs"], strict=True)
            ]
        )
        numbers[arm] = {
            "beta": own["beta"],
            "trials": own["trials"],
            "accuracy": accuracy,
            "apart": apart,
        }
        change = "" if arm == "Rainbow" else shown(apart, sign="+")
        rows.append([arm, f"{own['beta']:g}", shown(accuracy), change])
    page.table(["arm", "β", "held-out accuracy", "less Rainbow's"], rows)
    page.figure("accuracy", _figure(numbers, before[0]), "Held-out accuracy of every arm")
    return {"arms": numbers, "before": before}


def _figure(numbers: Numbers, before: float) -> Any:
    """Every arm's accuracy with its interval, beside the model before training and a coin."""
    figure, axes = subplots(size=(7, 3.6), grid="x")
    names = list(numbers)[::-1]
    for place, name in enumerate(names):
        mean, low, high = numbers[name]["accuracy"]
        axes.plot([low, high], [place, place], color=COLOURS[0])
        axes.plot(mean, place, "o", color=COLOURS[0])
    axes.axvline(0.5, color="black", linewidth=0.8)
    axes.axvline(before, color=COLOURS[1], linewidth=0.8, label="likelihood before training")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("held-out accuracy")
    axes.legend(frameon=False, fontsize=8)
    return figure
