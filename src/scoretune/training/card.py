"""The model card of a fine-tuned model: `README.md` in the form that the hub reads.

Says what was set and what was measured; the licence is left to whoever publishes the model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from scoretune.core.config import Model, Run
from scoretune.core.errors import UserError
from scoretune.data.scenes import world
from scoretune.evaluate.report.record import Row, at, read_record
from scoretune.models import pipelines
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.training.card_results import measured
from scoretune.training.overrides import of_data
from scoretune.training.run_folder import recorded

FILES = {"kohya": "lora_kohya.safetensors"}
"""Weights that diffusers would not find by itself."""


class Subject(NamedTuple):
    """What a card is about: a run, what its folder says, and the form of what lies beside it."""

    run: Run
    about: Row
    form: str
    parts: Mapping[str, Any]
    """Of the base model's pipeline; empty for a network of one's own."""


def write(run_folder: Path, folder: Path | None = None, form: str = "diffusers") -> Path:
    """Write the card of a run into a folder (default: the run's `lora/`).

    `form` is one of `export.FORMS`, or `merged` for a whole model. Raises UserError for what is no
    run folder.
    """
    run = recorded(run_folder)
    subject = Subject(run, read_record(run_folder).about, form, _index(run))
    what = "All weights of the model" if form == "merged" else "A LoRA"
    parts = [
        _front_matter(subject),
        f"# {run.recipe} on {run.model.source}",
        f"{what}, trained by the recipe `{run.recipe}` of scoretune.",
        "## Training\n\n" + _training(subject),
        "## Measured\n\n" + measured(run_folder),
        "## Use\n\n" + _usage(subject),
        "## Repeat\n\n" + _repeat(subject),
    ]
    path = (folder or run_folder / "lora") / "README.md"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {str(path)!r} ({error}): choose another --to") from error
    return path


def _index(run: Run) -> Mapping[str, Any]:
    """What the base model's pipeline is made of; empty where it is none, or not to be had."""
    source = run.model.source
    where = str(world.shipped(source)) if source in world.SHIPPED else source
    try:
        return pipelines.described(where, run.model.revision)
    except UserError:
        return {}


def _front_matter(subject: Subject) -> str:
    """YAML with the strings of JSON, which YAML reads alike."""
    run, lines = subject.run, []
    whole = subject.form == "merged"
    if _on_hub(run.model):
        lines.append(f"base_model: {json.dumps(run.model.source)}")
        lines.append(f"base_model_relation: {'finetune' if whole else 'adapter'}")
    if subject.parts:
        lines.append("library_name: diffusers")
        kind = "text-to-image" if "tokenizer" in subject.parts else "unconditional-image-generation"
        lines.append(f"pipeline_tag: {kind}")
    lines.append("tags:")
    lines += [f"- {json.dumps(tag)}" for tag in ("scoretune", run.recipe, *(["lora"][whole:]))]
    lines.append("# license: yours to choose; the base model's may bind you")
    return "---\n" + "\n".join(lines) + "\n---"


def _training(subject: Subject) -> str:
    run = subject.run
    sizes, sampling, model = run.sizes, run.sampling, run.model
    from_data = of_data(run) or run.objective.kind in ("matching", "consistency")
    rows: dict[str, object] = {
        "base model": f"`{model.source}`" + (f" at `{model.revision}`" if model.revision else ""),
        **({"data": f"`{run.data}`"} if from_data else _reward(subject)),
        "prompts": f"`{run.prompts}`",
        "prompts of the evaluation": _evaluated(run),
        "updates": run.updates,
    }
    if not from_data:
        rows |= {
            "samples an update": f"{sizes.prompts} prompts, {sizes.group} of each",
            "sampler of training": f"{sampling.kernel}, noise {sampling.noise}, "
            f"η {sampling.eta:g}, {sampling.steps} steps",
        }
    rows |= {
        "guidance": f"{model.guidance:g}",
        "trained": f"a LoRA of rank {model.rank}" if model.rank else "all weights",
        "learning rate": f"{run.optimiser.learning_rate:g}",
        "precision": model.precision,
        "seed": run.seed,
    }
    table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in rows.items())
    settings = json.dumps(run.model_dump(), indent=2)
    return (
        f"| | |\n|---|---|\n{table}\n<details><summary>All settings</summary>\n\n```json\n"
        f"{settings}\n```\n\n</details>"
    )


def _reward(subject: Subject) -> dict[str, object]:
    """The reward, and what tells it from another of that name."""
    name, known = subject.run.reward, at(subject.about, "reward")
    when = ""
    if known is None:
        try:
            known, when = fingerprint(name, named_reward(name)), " (when this card was written)"
        except Exception:  # a user's own code may be gone from this machine, or fail in any way
            return {"reward": f"`{name}`"}
    parts = at(known, "parts") or [known]
    told = "<br>".join(f"`{json.dumps(part, sort_keys=True)}`" for part in parts)
    return {"reward": f"`{name}`", f"its fingerprint{when}": told}


def _evaluated(run: Run) -> str:
    """Which prompts are measured: without others, those that were trained on."""
    held_out = "scenes-held-out" if run.model.source in world.SHIPPED else None
    chosen = run.evaluation.prompts or held_out
    return f"`{chosen}`" if chosen else "those of training: nothing was held out"


def _cell(value: object) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")


# ------------------------------------------------------------------------------ use and repeat


def _usage(subject: Subject) -> str:
    run, parts = subject.run, subject.parts
    if not parts:
        return (
            f"`{run.model.source}` is no pipeline of diffusers; scoretune draws with it:\n\n"
            "```\nscoretune sample FOLDER --count 64 --out samples.png\n```"
        )
    kind = parts["_class_name"]
    whole = subject.form == "merged"
    imports, base = [f"from diffusers import {kind}"], json.dumps(run.model.source)
    if run.model.source in world.SHIPPED and not whole:
        imports.append("from scoretune.data.scenes import world")
        base = f"world.shipped({base})"
    # diffusers wants to be told of parts that the base, or the run, does without.
    missing = [n for n, part in parts.items() if part == [None, None] or n in run.model.without]
    absent = [f"{name}=None" for name in missing]
    extra, attach = ([], []) if whole else _attached(subject)
    lines = [
        *sorted({*imports, *extra}),
        "",
        'here = "."  # this folder, or its name on the hub',
        f"pipe = {kind}.from_pretrained({', '.join(['here' if whole else base, *absent])})",
        *attach,
        f"picture = pipe({_arguments(subject)}).images[0]",
    ]
    note = f"The results above are of the sampler {run.evaluation.solver}; a pipeline has its own."
    return "```python\n" + "\n".join(lines) + "\n```\n\n" + note


def _attached(subject: Subject) -> tuple[list[str], list[str]]:
    """What to import, and how the LoRA goes on the pipeline."""
    part = "unet" if "unet" in subject.parts else "transformer"
    if subject.form == "peft":
        load = f"pipe.{part} = PeftModel.from_pretrained(pipe.{part}, here)"
        return ["from peft import PeftModel"], [load]
    import diffusers

    name = subject.parts["_class_name"]
    # diffusers reads kohya's form of UNets and of Flux; of others it would load nothing, silently.
    unread = subject.form == "kohya" and part != "unet" and name != "FluxPipeline"
    if unread or "load_lora_weights" not in dir(getattr(diffusers, name, None)):
        told = ["from pathlib import Path", "from scoretune import loras"]
        return told, [f"loras.load(pipe.{part}, Path(here))"]
    file = FILES.get(subject.form)
    named = f", weight_name={json.dumps(file)}" if file else ""
    return [], [f"pipe.load_lora_weights(here{named})"]


def _arguments(subject: Subject) -> str:
    run, given = subject.run, []
    if "tokenizer" in subject.parts:
        given = ['"a prompt"', f"guidance_scale={run.model.guidance:g}"]
    elif subject.parts["_class_name"] == "DiTPipeline":
        given = ["class_labels=[0]", f"guidance_scale={run.model.guidance:g}"]
    return ", ".join([*given, f"num_inference_steps={run.evaluation.steps}"])


def _repeat(subject: Subject) -> str:
    about, versions = subject.about, at(subject.about, "versions")
    told = f"```\n{about.get('command', 'the command was not recorded')}\n```"
    if isinstance(versions, dict):
        told += "\n\nWith " + ", ".join(f"{name} {number}" for name, number in versions.items())
        told += f", on {about['machine']}." if "machine" in about else "."
    return told


def _on_hub(model: Model) -> bool:
    """Whether a source is the name of a model on the hub, as far as a name tells."""
    name = re.fullmatch(r"[\w.-]+/[\w.-]+", model.source)
    return name is not None and not Path(model.source).exists()
