"""Does every family of models work on this machine? Measured on miniatures of random weights.

Of each family: the same pictures as diffusers' own call, a LoRA that learns and leaves the
pretrained model alone, full fine-tuning, a LoRA that diffusers loads again, and a stopped run that
goes on bit for bit. Nothing is downloaded.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.families.parity import FAMILIES, Family, Request
from scoretune.core import hub
from scoretune.core.config import Run
from scoretune.core.errors import unknown
from scoretune.data.prompts import read_prompts
from scoretune.models.lora import adapter_state
from scoretune.models.lora_files import NAME
from scoretune.policy import Policy
from scoretune.training import run_folder
from scoretune.training.build import build_policy
from scoretune.training.engine import undetermined
from scoretune.training.hooks import Silent
from scoretune.training.overrides import changed
from scoretune.training.run import launch, ready

TOLERANCE = 1e-4
"""On pictures in [0, 1], between two implementations in float32."""
ROUNDING = 2e-6
"""Between two copies of the same weights, whose products some processors round by where they lie in
memory: 4.8e-7 was seen."""
SEEN = 1e-3
"""How far a LoRA must move pictures before its export says anything."""
CPU = torch.device("cpu")
TINY = (
    "reward=brightness",
    "updates=2",
    "sizes.prompts=2",
    "sizes.group=2",
    "sampling.steps=3",
    "checkpoints.every=1",
    "evaluation.steps=2",
    "evaluation.every=0",
    "guard.action=off",
    "optimiser.learning_rate=0.05",
    "model.rank=2",
)
FULL = ("updates=1", "model.rank=0", "optimiser.learning_rate=1e-3")


@dataclass
class Report:
    """What was measured of one family; None where it did not come to that.

    `parity` and `export` are the largest differences from diffusers' pictures, `applied` that of
    the pictures with the LoRA and without; `lora` and `full` the largest changes of a weight,
    `reference` that of the pretrained model's output; `weights` begins the hash of the LoRA file.
    """

    family: str
    parity: float | None = None
    lora: float | None = None
    reference: float | None = None
    full: float | None = None
    export: float | None = None
    applied: float | None = None
    resume: bool | None = None
    weights: str = ""
    seconds: float = 0.0
    error: str = ""
    failed: list[str] = field(default_factory=list)

    def conclude(self) -> None:
        """Name what does not hold."""
        held = {
            "parity": self.parity is not None and self.parity <= TOLERANCE,
            "lora": (self.lora or 0) > 0 and self._has_reference,
            "full": (self.full or 0) > 0,
            "export": self.export is not None and self.export <= TOLERANCE,
            "applied": (self.applied or 0) >= SEEN,
            "resume": bool(self.resume),
        }
        self.failed = [name for name, holds in held.items() if not holds]

    @property
    def _has_reference(self) -> bool:
        """Whether the pretrained model is there below the LoRA."""
        return self.reference is not None and self.reference <= ROUNDING

    @property
    def because(self) -> str:
        """What fails, in words."""
        numbers = ", ".join(f"{name} {value:.1e}" for name, value in self._numbers().items())
        return self.error or f"{', '.join(self.failed)} ({numbers}; tolerance {TOLERANCE:g})"

    def _numbers(self) -> dict[str, float]:
        return {
            name: value
            for name, value in asdict(self).items()
            if type(value) is float and name != "seconds"
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data, with the verdict."""
        return {**asdict(self), "passed": not self.failed}


class _Stopped(Exception):
    """Told by a watcher that has seen enough."""


@dataclass
class _Until(Silent):
    """Ends a run where the line of update `until` is written, and shows nothing of it."""

    until: int | None = None

    def line(self, numbers: dict[str, Any]) -> None:
        if numbers.get("update") == self.until:
            raise _Stopped


OnFamily = Callable[[str, int, int], None]
"""Told which family is measured next, how many were before it, and of how many."""


def selected(only: Sequence[str]) -> tuple[Family, ...]:
    """The families of these names, all if there are none. Raises UserError for an unknown one."""
    families = {family.name: family for family in FAMILIES}
    for name in only:
        if name not in families:
            raise unknown("family", name, families)
    return tuple(family for family in FAMILIES if not only or family.name in only)


def examine(only: Sequence[str] = (), on_family: OnFamily | None = None) -> list[Report]:
    """Measure families by name, or every one, in a folder that is removed afterwards."""
    families, reports = selected(only), []
    hub.quieten()
    with (
        tempfile.TemporaryDirectory(prefix="scoretune-") as folder,
        torch.random.fork_rng(devices=[]),
    ):
        for done, family in enumerate(families):
            if on_family:
                on_family(family.name, done, len(families))
            reports.append(measure(family, Path(folder) / family.name))
    torch.use_deterministic_algorithms(False)
    return reports


def measure(family: Family, folder: Path) -> Report:
    """One family; whatever goes wrong on the way is a finding, not a crash."""
    start, report = time.monotonic(), Report(family.name)
    try:
        with family.within():
            _measure(family, folder, report)
    except Exception as error:  # an unsound installation may raise anything
        report.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if kernel := undetermined(error):
            report.error = f"{kernel} has no deterministic form here: a resume tells nothing"
    report.seconds = round(time.monotonic() - start, 1)
    report.conclude()
    return report


def _measure(family: Family, folder: Path, report: Report) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    run, model = _configured(family, folder)
    prompts = read_prompts(run.prompts).texts
    bare = build_policy(changed(run, ["model.rank=0"]), CPU)
    report.parity = family.parity(Request(bare, model, prompts))
    _train(run, folder / "whole")
    tuned = run_folder.load(folder / "whole")
    learned = adapter_state(tuned.backbone.network)
    report.lora = max(float(w.abs().max()) for name, w in learned.items() if "lora_B" in name)
    with tuned.reference():
        report.reference = _change(bare, tuned, prompts)
    request = Request(tuned, model, prompts, folder / "whole" / "lora")
    report.export = family.parity(request)
    report.applied = family.parity(Request(tuned, model, prompts))
    _train(run, folder / "parts", until=2)  # its checkpoint is of update 1
    _train(run, folder / "parts")
    hashes = [hub.sha256(folder / name / "lora" / NAME) for name in ("whole", "parts")]
    report.resume, report.weights = hashes[0] == hashes[1], hashes[0][:12]
    _train(changed(run, FULL), folder / "full")
    before, after = (
        p.backbone.network.state_dict() for p in (bare, run_folder.load(folder / "full"))
    )
    report.full = max(float((after[name] - w).abs().max()) for name, w in before.items())


def _configured(family: Family, folder: Path) -> tuple[Run, Path]:
    """A DDPO run of two updates on the miniature, and where the miniature is."""
    model, prompts = family.build(folder / "model"), written(family, folder)
    sources = [f"model.source={model}", f"prompts={prompts}"]
    if torch.cuda.is_available():  # a resumed run is compared bit by bit
        sources.append("hardware.deterministic=true")
    return changed(recipes.named("ddpo"), [*TINY, *sources, *family.settings]), model


def written(family: Family, folder: Path) -> Path:
    """The prompts as a file, each with a picture of its own where the family edits one."""
    from PIL import Image

    if not family.edits:
        file = folder / "prompts.txt"
        file.write_text("\n".join(family.prompts) + "\n", encoding="utf-8")
        return file
    file, rows = folder / "edits.jsonl", []
    shape = (family.edits, family.edits, 3)
    for number, prompt in enumerate(family.prompts):
        drawn = torch.rand(shape, generator=torch.Generator().manual_seed(number))
        Image.fromarray((drawn * 255).byte().numpy()).save(folder / f"{number}.png")
        rows.append(json.dumps({"prompt": prompt, "image": f"{number}.png"}))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def _train(run: Run, folder: Path, until: int | None = None) -> None:
    checked = ready(run)
    run_folder.record(run, folder, threads=1, checked=checked)
    try:
        launch(run, folder, _Until(until), checked)
    except _Stopped:
        return


@torch.no_grad()
def _change(one: Policy, other: Policy, prompts: tuple[str, ...]) -> float:
    """The largest difference of what two policies' networks put out at one noisy state."""
    outputs: list[Tensor] = []
    for backbone in (one.backbone, other.backbone):
        generator = torch.Generator().manual_seed(2)
        x = torch.randn((len(prompts), *backbone.shape), generator=generator)
        t = torch.full((len(prompts),), 0.5 * backbone.process.horizon)
        outputs.append(backbone.predict(x, t, backbone.encode(prompts).tokens))
    return float((outputs[0] - outputs[1]).abs().max())
