"""`RainbowPOTrainer`: TRL's DPO trainer with the general preference loss in place of its own.

Data, PEFT, accelerate, DeepSpeed, logging and saving are TRL's. What is ours: the loss, which feeds
`preference.pairwise_loss` with sequence log-likelihoods (arXiv 2410.04203, R1 and R2), and the
reference's terms, which are worked out once (`reference`). Log-softmax is TRL's, in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune.preference import (
    Preset,
    adaptive_scale,
    implicit_margin,
    mean_entropy,
    on_policy_weight,
    pairwise_loss,
    phi_of_scale,
    preset_named,
)
from scoretune.training.language import reference

OF_A_PAIR = ("label", "margin", "weight", "scale")
"""Columns that the loss reads beside the tokens: the probability that `chosen` is preferred, a
margin in units of reward, a weight, and c(x) or φ(x)."""
NOT_OF_THE_MODEL = {"completion_mask", "ref_chosen_logps", "ref_rejected_logps", *OF_A_PAIR}
OF_TRL = (
    *("loss_type", "loss_weights", "label_smoothing", "f_divergence_type", "ld_alpha"),
    "use_weighting",
)
"""Settings of TRL's own losses, which a preset takes the place of."""


@dataclass
class Settings:
    """What `RainbowPOConfig` adds to TRL's `DPOConfig`."""

    preset: str = field(
        default="rainbow", metadata={"help": "A method by its name in scoretune.preference."}
    )
    phi_star: float | None = field(
        default=None,
        metadata={"help": "φ* of c(x) = −φ* log H̄(x); None: 1/mean(−log H̄) of the pairs."},
    )
    reference_cache: str | None = field(
        default=None,
        metadata={"help": "Folder of the reference's terms; None: below output_dir."},
    )
    precompute_ref_log_probs: bool = field(
        default=True, metadata={"help": "Work out the reference's terms once, and keep them."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of DPOConfig, which comes next
        for name in OF_TRL:
            made = type(self).__dataclass_fields__[name]
            factory = made.default_factory
            if (value := getattr(self, name)) != (factory() if callable(factory) else made.default):
                raise ValueError(f"{name}={value!r} is of TRL's own losses: name a preset instead")
        beta = self.beta  # type: ignore[attr-defined]
        if not beta > 0:
            raise ValueError(f"beta must be above 0, got {beta!r}")
        check(preset_named(self.preset), self)


def check(preset: Preset, config: Any) -> None:
    """Settle how the reference is kept. Raises ValueError where the two do not go together."""
    if preset.kind != "pair":
        raise ValueError(
            "this preset learns from single likes, not from pairs: use TRL's KTOTrainer, as "
            "scoretune prefer-text does"
        )
    if preset.reference_update is not None:
        config.sync_ref_model = True
        config.ref_model_mixup_alpha = 1.0 if of_stages(preset) else preset.reference_share
        config.precompute_ref_log_probs = False
    elif not preset.needs_reference and not by_entropy(preset):
        config.precompute_ref_log_probs = True  # of no terms: TRL then loads no second model
    elif by_entropy(preset) and not config.precompute_ref_log_probs:
        raise ValueError(
            "this preset scales by the reference's entropies over all pairs: it needs "
            "precompute_ref_log_probs=True"
        )


def by_entropy(preset: Preset) -> bool:
    """Whether it scales a pair by what the reference's entropies say of its prompt."""
    return preset.scaling in ("dispersion", "phi")


def of_stages(preset: Preset) -> bool:
    """Whether each stage's reference is the policy of the last (sDPO): TRL's moving reference with
    a share of 1, every `ref_model_sync_steps` updates."""
    return preset.reference_update == "stage"


class PairPreference:
    """What `RainbowPOTrainer` does otherwise than TRL's `DPOTrainer`, which comes next in line.

    `args` is a `RainbowPOConfig`. Beside TRL's columns a data set may have those of `OF_A_PAIR`;
    a label of ½ is a tie.
    """

    _tag_names = ("trl", "dpo", "rainbowpo")
    _name = "RainbowPO"
    _paper = {  # noqa: RUF012  # TRL reads it as it reads its own
        "title": "RainbowPO: A Unified Framework for Combining Improvements in Preference "
        "Optimization",
        "id": "2410.04203",
    }
    # Of TRL's trainer:
    args: Any
    accelerator: Any
    model: Any
    ref_model: Any
    data_collator: Any
    compute_ref_log_probs: Any
    aux_loss_enabled: bool
    router_aux_loss_coef: float
    _precompute_model_hash: str
    _metrics: dict[str, dict[str, list[float]]]

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: Any = None,
        *others: Any,
        preset: Preset | None = None,
        **rest: Any,
    ) -> None:
        """As TRL's trainer; `preset` takes the place of the one that `args` names."""
        if not isinstance(args, Settings):
            raise TypeError(f"args must be a RainbowPOConfig, got {type(args).__name__}")
        self.preset = preset_named(args.preset) if preset is None else preset
        check(self.preset, args)
        self.phi_star: float | None = args.phi_star
        super().__init__(model, ref_model, args, *others, **rest)  # type: ignore[call-arg]
        self.data_collator = WithColumns(self.data_collator)
        self.mean_gap = 0.0  # of β-DPO, over batches
        _score_tokens(self.model, *(["log_sum_sq_probs"] if self.preset.weighted else []))

    def _send_telemetry(self) -> None:
        """TRL counts its trainers' uses; nobody is told of this one's."""

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        self._signature_columns: list[str]
        self._signature_columns += [n for n in OF_A_PAIR if n not in self._signature_columns]

    # ------------------------------------------------------------------------ the reference

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """The data set with the reference's terms as columns, as far as the preset reads them."""
        if not (self.preset.needs_reference or by_entropy(self.preset)):
            return dataset
        terms = self._reference_terms(dataset, batch_size)
        columns: dict[str, Tensor] = {}
        if self.preset.needs_reference:
            columns |= {"ref_chosen_logps": terms.chosen, "ref_rejected_logps": terms.rejected}
        if by_entropy(self.preset) and "scale" not in dataset.column_names:
            if self.phi_star is None:
                self.phi_star = terms.phi_star()
            scale = terms.scale(self.phi_star)
            columns["scale"] = phi_of_scale(scale) if self.preset.scaling == "phi" else scale
        for column, values in columns.items():
            dataset = dataset.add_column(column, values.tolist())
        return dataset

    def _reference_terms(self, dataset: Any, batch_size: int) -> reference.ReferenceTerms:
        args, main = self.args, self.accelerator.is_main_process
        folder = Path(args.reference_cache or Path(args.output_dir) / "reference")
        cut = (args.max_length, args.truncation_mode)
        key = reference.digest(self._precompute_model_hash, dataset, *cut)
        self.accelerator.wait_for_everyone()
        terms = reference.read(folder, key)
        if terms is None:
            terms = self._ask_reference(dataset, batch_size)
            if main:
                reference.write(folder, key, terms)
        return terms

    def _ask_reference(self, dataset: Any, batch_size: int) -> reference.ReferenceTerms:
        """One pass of the reference over all pairs, without gradient."""
        from accelerate.utils import tqdm
        from torch.utils.data import DataLoader

        args, model = self.args, self.ref_model or self.model
        if self.ref_model is not None:
            _score_tokens(self.accelerator.unwrap_model(model))
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        entropies: list[Tensor] = []
        hook = model.register_forward_hook(lambda *call: entropies.append(call[-1].entropy))
        columns = []
        loader = DataLoader(dataset, batch_size=batch_size, collate_fn=self.data_collator)
        for batch in tqdm(
            iterable=self.accelerator.prepare(loader),
            desc="reference",
            disable=bool(args.disable_tqdm),
        ):
            logps = self.compute_ref_log_probs(model, self.of_trl(batch))
            mask = batch["completion_mask"][:, 1:].bool()
            spread = mean_entropy(entropies.pop()[:, -mask.shape[1] :].float(), mask, vocabulary)
            both = torch.stack([*logps, *spread.chunk(2)], 1)
            columns.append(self.accelerator.gather_for_metrics(both).cpu())
        hook.remove()
        return reference.ReferenceTerms(*torch.cat(columns).unbind(1))

    def _terms_of(self, inputs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        """rp(y) of both sides [B]: from the batch, from the reference, or none at all."""
        if not self.preset.needs_reference:
            return None, None
        if self.args.precompute_ref_log_probs:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        model = self.ref_model or self.model
        chosen, rejected = self.compute_ref_log_probs(model, self.of_trl(inputs))
        return chosen, rejected

    def of_trl(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch without the columns that TRL does not know of."""
        return {name: value for name, value in inputs.items() if name not in OF_A_PAIR}

    # ------------------------------------------------------------------------ the loss

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """The mean of `pairwise_loss` over the batch, and its numbers for the log."""
        fed = {name: value for name, value in inputs.items() if name not in NOT_OF_THE_MODEL}
        if self.aux_loss_enabled:  # of a mixture of experts
            fed["output_router_logits"] = True
        mask = inputs["completion_mask"]
        labels = inputs["input_ids"].masked_fill(mask == 0, -100)
        outputs = model(**fed, use_cache=False, labels=labels, fused_lm_head=True)
        scored = mask[:, 1:]
        per_token = outputs.log_probs[:, -scored.shape[1] :]
        lengths = scored.sum(1)
        sides = (*per_token.sum(1).chunk(2), *self._terms_of(inputs))
        weight = inputs.get("weight")
        if self.preset.weighted:
            own = on_policy_weight(
                per_token.sum(1), lengths, (outputs.log_sum_sq_probs * scored).sum(1)
            )
            weight = own.chunk(2)[0] * own.chunk(2)[1] * (1.0 if weight is None else weight)
        switches = self._switches(sides, lengths, inputs)
        losses = pairwise_loss(*sides, **switches, label=inputs.get("label"), weight=weight)
        loss = losses.mean()
        if self.aux_loss_enabled:
            loss = loss + self.router_aux_loss_coef * outputs.aux_loss
        entropy = outputs.entropy.detach().sum() / lengths.sum().clamp(min=1)
        self._note(sides, lengths, _margins(sides, switches), entropy)
        return (loss, outputs) if return_outputs else loss

    def _switches(self, sides: Any, lengths: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the loss is told beside the log-likelihoods."""
        switches = {
            "preset": self.preset,
            "beta": self.args.beta,
            "lengths": tuple(lengths.chunk(2)),
            "margin": inputs.get("margin"),
            "scale": inputs.get("scale"),
        }
        if self.preset.scaling == "batch":
            gaps = _margins(sides, {**switches, "scale": torch.ones_like(sides[0])})
            switches["scale"] = adaptive_scale(gaps, self.mean_gap)
            if self.model.training:
                self.mean_gap = 0.9 * self.mean_gap + 0.1 * float(gaps.mean())
        return switches

    def _note(self, sides: Any, lengths: Tensor, margins: Tensor, entropy: Tensor) -> None:
        """Numbers of a batch for the log, by one exchange between the processes."""
        chosen, rejected = (side.detach().float() for side in sides[:2])
        numbers = {
            "rewards/accuracies": (margins > 0).float().mean(),
            "rewards/margins": margins.mean(),
            "logps/chosen": chosen.mean(),
            "logps/rejected": rejected.mean(),
            "lengths/chosen": lengths[: len(chosen)].float().mean(),
            "lengths/rejected": lengths[len(chosen) :].float().mean(),
            "entropy": entropy,
        }
        if sides[2] is not None:
            numbers["rewards/chosen"] = self.args.beta * (chosen - sides[2]).mean()
            numbers["rewards/rejected"] = self.args.beta * (rejected - sides[3]).mean()
        mine = torch.stack([value.float() for value in numbers.values()])[None]
        means = self.accelerator.gather(mine).mean(0).tolist()
        for name, value in zip(numbers, means, strict=True):
            self._metrics["train" if self.model.training else "eval"][name].append(value)


class WithColumns:
    """A collator of TRL's, and the columns of a pair that it does not know of."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.collator(examples)
        for name in OF_A_PAIR:
            if name in examples[0]:
                batch[name] = torch.tensor([float(example[name]) for example in examples])
        return batch


def _margins(sides: Any, switches: dict[str, Any]) -> Tensor:
    """z of every pair, without gradient."""
    detached = (None if side is None else side.detach() for side in sides)
    return implicit_margin(*detached, **switches)  # type: ignore[arg-type]


def _score_tokens(model: Any, *more: str) -> None:
    """Have the fused head of a model tell log-probabilities and entropies, and no other numbers."""
    from trl.trainer.utils import add_fused_lm_head

    base = model.get_base_model() if _is_peft(model) else model
    add_fused_lm_head(base, outputs=("log_probs", "entropy", *more))


def _is_peft(model: Any) -> bool:
    from accelerate.utils import is_peft_model

    return bool(is_peft_model(model))


@cache
def classes() -> dict[str, type]:
    """`RainbowPOConfig` and `RainbowPOTrainer`, on TRL's classes."""
    from trl import DPOConfig, DPOTrainer

    @dataclass
    class RainbowPOConfig(Settings, DPOConfig):  # type: ignore[misc]
        """TRL's `DPOConfig` with a preset in place of `loss_type`."""

    class RainbowPOTrainer(PairPreference, DPOTrainer):  # type: ignore[misc]
        """TRL's `DPOTrainer` with the loss of a preset."""

    made: dict[str, type] = {}
    for kind in (RainbowPOConfig, RainbowPOTrainer):
        kind.__module__, kind.__qualname__ = "scoretune.training.language", kind.__name__
        made[kind.__name__] = kind
    return made
