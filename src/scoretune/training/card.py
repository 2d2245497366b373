"""The model card of a fine-tuned model: `README.md` in the form that the hub reads.

Says what was set and what was measured, nothing else; the licence is left to whoever publishes the
model. Its text is `templates/card.md` and `templates/measured.md`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoretune.core.config import Model, Run
from scoretune.core.errors import UserError, visible
from scoretune.evaluate.report import render
from scoretune.evaluate.report.record import Record, Row, at, number, read_record
from scoretune.models import export, folders
from scoretune.models.catalog import resolve
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.training.overrides import of_data
from scoretune.training.run_folder import recorded

FILES = {"kohya": "lora_kohya.safetensors"}
"""Weights that diffusers would not find by itself."""


class Subject(NamedTuple):
    """What a card is about: a run, what its folder says, and the form of what lies beside it."""

    run: Run
    record: Record
    form: str
    parts: Mapping[str, Any]
    """Of the base model's pipeline; empty for a network of one's own."""

    @property
    def whole(self) -> bool:
        """Whether all weights lie there, not an adapter's alone."""
        return self.form == "merged"


class Measured(NamedTuple):
    """A number before and after training, and its change with a 95 % interval where recorded."""

    name: str
    before: float | None
    after: float | None
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def write(run_folder: Path, folder: Path | None = None, form: str = "diffusers") -> Path:
    """Write the card of a run into a folder (default: the run's `lora/`).

    `form` is one of `export.FORMS`, or `merged` for a whole model. Raises UserError for what is no
    run folder.
    """
    run = recorded(run_folder)
    subject = Subject(run, read_record(run_folder), form, _index(run))
    about, versions = subject.record.about, at(subject.record.about, "versions")
    libraries = versions.items() if isinstance(versions, dict) else ()
    values = {
        "run": run,
        "about": {
            "command": str(about.get("command") or "").replace("```", ""),
            "machine": about.get("machine"),
        },
        "whole": subject.whole,
        "data": _data(subject),
        "training": {name: _cell(value) for name, value in _training(subject).items()},
        "settings": json.dumps(run.model_dump(), indent=2).replace("`", "\\u0060"),  # no fence
        "code": code,
        "measured": measured(subject.record),
        "pipeline": _pipeline(subject) if subject.parts else None,
        "versions": ", ".join(f"{name} {version}" for name, version in libraries),
    }
    path = (folder or run_folder / "lora") / "README.md"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return render.write(path, render.text("card.md", values, "scoretune.training"))
    except OSError as error:
        raise export.unwritten(path.parent, error) from error


def _index(run: Run) -> Mapping[str, Any]:
    """What the base model's pipeline is made of; empty where it is none, or not to be had."""
    try:
        source = resolve(run.model.source)
        return folders.described(source.where, source.settings(run.model).revision)
    except UserError:
        return {}


# ------------------------------------------------------------------------------ for the hub


def _data(subject: Subject) -> str:
    """The YAML that the hub indexes a model by, the results as a model-index among it."""
    from huggingface_hub import ModelCardData

    run = subject.run
    pipeline: dict[str, Any] = {}
    if subject.parts:
        pipeline = {"library_name": "diffusers", "pipeline_tag": _task(subject)}
    base: dict[str, Any] = {}
    if _on_hub(run.model):
        relation = "finetune" if subject.whole else "adapter"
        base = {"base_model": run.model.source, "base_model_relation": relation}
    data = ModelCardData(
        model_name=f"{run.recipe} on {run.model.source}",
        tags=["scoretune", run.recipe, *([] if subject.whole else ["lora"])],
        eval_results=_results(subject) or None,
        **pipeline,
        **base,
    )
    return str(data.to_yaml(original_order=["base_model", "base_model_relation", "library_name"]))


def _results(subject: Subject) -> list[Any]:
    """What was measured after training, on which prompts or data."""
    from huggingface_hub import EvalResult

    run = subject.run
    dataset = run.data if _from_data(run) else _evaluated(run) or run.prompts
    return [
        EvalResult(
            task_type=_task(subject),
            dataset_type="data" if _from_data(run) else "prompts",
            dataset_name=str(dataset),
            metric_type=re.sub(r"\W+", "_", change.name),
            metric_name=change.name,
            metric_value=change.after,
        )
        for change in _changes(subject.record.result)
        if change.after is not None
    ]


def _task(subject: Subject) -> str:
    """What the hub calls what the model does."""
    if not subject.parts:
        return "other"  # a network of one's own
    return "text-to-image" if "tokenizer" in subject.parts else "unconditional-image-generation"


def _on_hub(model: Model) -> bool:
    """Whether a source is the name of a model on the hub, as far as a name tells."""
    name = re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
    return name is not None and not Path(model.source).exists()


# ------------------------------------------------------------------------------ training


def _training(subject: Subject) -> dict[str, object]:
    run = subject.run
    sizes, sampling, model, prompts = run.sizes, run.sampling, run.model, _evaluated(run)
    rows: dict[str, object] = {
        "base model": code(model.source)
        + (f" at {code(model.revision)}" if model.revision else ""),
        **({"data": code(run.data)} if _from_data(run) else _reward(subject)),
        "prompts": code(run.prompts),
        "prompts of the evaluation": code(prompts)
        if prompts
        else "those of training: nothing was held out",
        "updates": run.updates,
    }
    if not _from_data(run):
        rows |= {
            "samples an update": f"{sizes.prompts} prompts, {sizes.group} of each",
            "sampler of training": f"{sampling.kernel}, noise {sampling.noise}, "
            f"{'η' if sampling.noise in ('constant', 'ramp') else 'level'} {sampling.eta:g}, "
            f"{sampling.steps} steps",
        }
    return rows | {
        "guidance": f"{_guidance(subject):g}",
        "trained": f"a LoRA of rank {model.rank}" if model.rank else "all weights",
        "learning rate": f"{run.optimiser.learning_rate:g}",
        "precision": model.precision,
        "seed": run.seed,
    }


def _from_data(run: Run) -> bool:
    """Whether it was data that the model learned from, not a reward."""
    return of_data(run) or run.objective.on_data


def _reward(subject: Subject) -> dict[str, object]:
    """The reward, and what tells it from another of that name."""
    name, identity = subject.run.reward, at(subject.record.about, "reward")
    when = ""
    if identity is None:
        try:
            identity, when = fingerprint(name, named_reward(name)), " (when this card was written)"
        except Exception:  # a user's own code may be gone from this machine, or fail in any way
            return {"reward": code(name)}
    parts = at(identity, "parts") or [identity]
    texts = "<br>".join(code(json.dumps(part, sort_keys=True)) for part in parts)
    return {"reward": code(name), f"its fingerprint{when}": texts}


def _evaluated(run: Run) -> str | None:
    """Which prompts are measured; None for those that were trained on."""
    held_out = "scenes-held-out" if resolve(run.model.source).shipped else None
    return run.evaluation.prompts or held_out


def code(text: str) -> str:
    """A code span of a text that may be anything: what would end it or be HTML is spelt out."""
    text = visible(text)
    if not set("`<>&") & set(text):
        return f"`{text}`"
    plain = "".join(c if c.isalnum() or c in " ./:=," else f"&#{ord(c)};" for c in text)
    return f"<code>{plain}</code>"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


# ------------------------------------------------------------------------------ what was measured


def measured(record: Record) -> str:
    """Markdown on a run's result: before and after, the reward gap, alarms, cost."""
    result = record.result
    gap, guard = at(result, "gap", "final"), at(result, "guard")
    samplers = [at(row, "sampler") for row in record.evaluations] or [at(result, "sampler")]
    alarms = at(guard, "alarms") or record.alarms
    values = {
        "result": result,
        "changes": _changes(result),
        "sampler": samplers[-1],
        "chain_kl": number(result, "chain_kl"),
        "girsanov_kl": number(result, "girsanov_kl"),
        "gap": {name: number(gap, name) for name in ("mean", "low", "high")}
        | {name: at(gap, name) for name in ("eta", "steps")},
        "guard": None
        if guard is None
        else {name: at(guard, name) for name in ("action", "ended", "kept")}
        | {"alarms": [(at(row, "update"), at(row, "text")) for row in alarms]},
        "unjudged": at(result, "reward") is not None and at(result, "judge") is None,
        "network_evaluations": number(result, "network_evaluations") or 0,
        "seconds": number(result, "seconds") or 0,
    }
    return render.text("measured.md", values, "scoretune.training").strip()


def _changes(result: Row) -> list[Measured]:
    changes = []
    for who in ("judge", "reader"):
        if at(result, who) is not None:
            before, after = (number(result, who, end, "overall") for end in ("base", "final"))
            gain = at(result, "gain", who)
            changes.append(Measured(f"{who} accuracy", before, after, *_bounded(gain)))
    for how in ("deterministic", "stochastic"):
        if at(result, "reward", how) is not None:
            before, after = number(result, "reward_base", how), number(result, "reward", how)
            gain = at(result, "gain", "reward") if how == "deterministic" else None
            changes.append(Measured(f"reward, {how} sampler", before, after, *_bounded(gain)))
    for name, row in (at(result, "data") or {}).items():
        before, after = number(row, "base"), number(row, "final")
        changes.append(Measured(name.replace("_", " "), before, after))
    return changes


def _bounded(gain: Any) -> tuple[float | None, ...]:
    return tuple(number(gain, name) for name in ("mean", "low", "high"))


# ------------------------------------------------------------------------------ use


def _pipeline(subject: Subject) -> dict[str, Any]:
    """The code that draws one picture with the model, in its parts."""
    run, parts = subject.run, subject.parts
    kind, source = parts["_class_name"], resolve(run.model.source)
    imports, base, made_by = [f"from diffusers import {kind}"], json.dumps(run.model.source), ""
    if subject.whole:
        base = "here"
    elif source.runs:  # no pipeline that diffusers could load: a run's is not written
        base, made_by = '"BASE"', f"scoretune export {run.model.source} --merge --to BASE"
    elif source.shipped:
        imports.append("import scoretune")
        base = f"scoretune.shipped({base})"
    extra, attach = ([], "") if subject.whole else _attached(subject)
    # diffusers wants to be told of parts that the base, or the run, does without.
    missing = [n for n, part in parts.items() if part == [None, None] or n in run.model.without]
    return {
        "kind": kind,
        "imports": sorted({*imports, *extra}),
        "made_by": made_by,
        "parts": [base, *(f"{name}=None" for name in missing)],
        "attach": attach,
        "arguments": _arguments(subject),
    }


def _attached(subject: Subject) -> tuple[list[str], str]:
    """What to import, and how the LoRA goes on the pipeline."""
    part = "unet" if "unet" in subject.parts else "transformer"
    if subject.form == "peft":
        load = f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, here)"
        return ["from peft import PeftModel"], load
    import diffusers

    name = subject.parts["_class_name"]
    # diffusers reads kohya's form of UNets and of Flux; of others it would load nothing, silently.
    unread = subject.form == "kohya" and part != "unet" and name != "FluxPipeline"
    if unread or "load_lora_weights" not in dir(getattr(diffusers, name, None)):
        return ["import scoretune"], f"scoretune.load_lora(pipe.{part}, here)"
    file = FILES.get(subject.form)
    weights = f", weight_name={json.dumps(file)}" if file else ""
    return [], f"pipe.load_lora_weights(here{weights})"


def _guidance(subject: Subject) -> float:
    """What the settings say, else what the pictures of the result were drawn with."""
    said = subject.run.model.guidance
    return said if said is not None else float(subject.record.result.get("guidance") or 1.0)


def _arguments(subject: Subject) -> list[str]:
    run, arguments = subject.run, []
    if "tokenizer" in subject.parts:
        arguments = ['"a prompt"', f"guidance_scale={_guidance(subject):g}"]
    elif subject.parts["_class_name"] == "DiTPipeline":
        arguments = ["class_labels=[0]", f"guidance_scale={_guidance(subject):g}"]
    return [*arguments, f"num_inference_steps={run.evaluation.steps}"]
