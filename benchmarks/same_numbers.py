"""Whether a change of the code's structure changed a number: short seeded runs, and their hashes.

    python benchmarks/same_numbers.py before.json                 # with one version installed
    python benchmarks/same_numbers.py after.json --against before.json   # with the other

Runs ten training commands, a gap, an evaluation and a doctor through the command line, each in a
process of its own with one thread, and hashes what they leave: weights, metrics, evaluations,
results. Times, paths and versions are left out. The two files can be compared where both came from
one machine; --against exits with 1 and names what differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SMALL = (
    "updates=2",
    "sizes.prompts=2",
    "sizes.group=2",
    "sizes.minibatch=4",
    "sampling.steps=4",
    "checkpoints.every=1",
    "evaluation.per_task=1",
    "evaluation.steps=3",
    "evaluation.every=1",
)
SMALL_DATA = ("updates=3", "sizes.batch=16", "evaluation.samples=16", "evaluation.steps=3")
TRAINED: dict[str, tuple[str, ...]] = {
    **{
        f"score_as_action-{form}": ("score_as_action", *SMALL, f"objective.form={form}")
        for form in ("rate", "slope", "explicit", "ratio")
    },
    "ddpo": ("ddpo", *SMALL),
    "mix_grpo": ("mix_grpo", *SMALL, "sampling.window.size=2"),
    "draft": ("draft", *SMALL),
    "dxmi": ("dxmi", *SMALL),
    "unet": ("supervised", "model.source=unet", "data=digits", *SMALL_DATA),
    "mlp": ("supervised", "model.source=mlp", "data=moons", *SMALL_DATA),
}
LEFT_OUT = ("seconds", "run", "model", "out", "started", "command", "versions", "machine", "device")
"""Of JSON: what differs between two runs of the same code."""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--against", type=Path, help="an earlier file, of the same machine")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="where the runs stay to be looked at")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        hashes = dict(sorted(measured(folder, arguments.jobs).items()))
    arguments.out.write_text(json.dumps(hashes, indent=1) + "\n", encoding="utf-8")
    if arguments.against is None:
        return 0
    before = json.loads(arguments.against.read_text(encoding="utf-8"))
    differing = [name for name in before if hashes.get(name) != before[name]]
    differing += [name for name in hashes if name not in before]
    print(f"{len(hashes)} hashes, {len(differing)} differ", *differing, sep="\n  ")
    return int(bool(differing))


def measured(folder: Path, jobs: int) -> dict[str, str]:
    """{what: sha256} of everything."""
    with ThreadPoolExecutor(jobs) as pool:
        trained = pool.map(lambda item: train(folder, *item), TRAINED.items())
        hashes = {name: value for part in trained for name, value in part.items()}
        changes = ("model.source=" + str(folder / "mlp"), "data=moons", *SMALL_DATA)
        hashes |= train(folder, "consistency", ("consistency", *changes, "evaluation.steps=1"))
        told = {
            "gap": (
                *("gap", folder / "ddpo", "--steps", "2,3", "--eta", "0,1", "--fine", 4),
                *("--per-task", 1, "--out", folder / "gap"),
            ),
            "evaluate": ("evaluate", folder / "ddpo"),
            "evaluate-data": ("evaluate", folder / "unet"),
            "doctor": ("doctor", "--device", "cpu"),
        }
        results = pool.map(lambda words: scoretune(*words, "--json"), told.values())
        for name, output in zip(told, results, strict=True):
            hashes[name] = digest(plain(json.loads(output.splitlines()[-1])))
    return hashes


def train(folder: Path, name: str, words: tuple[str, ...]) -> dict[str, str]:
    """One run, and the hashes of what it left."""
    run = folder / name
    scoretune("train", *words, "--run", run)
    hashes = {}
    for path in sorted(run.rglob("*")):
        where = f"{name}/{path.relative_to(run)}"
        if path.suffix == ".safetensors":
            hashes[where] = digest(tensors(path))
        elif path.suffix == ".jsonl" or path.name in ("result.json", "base.json"):
            lines = path.read_text(encoding="utf-8")
            parts = lines.splitlines() if path.suffix == ".jsonl" else [lines]
            hashes[where] = digest([plain(json.loads(part)) for part in parts])
    return hashes


def scoretune(*words: object) -> str:
    """What the command prints on its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", "scoretune", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    if done.returncode:
        raise SystemExit(f"scoretune {' '.join(map(str, words))}\n{done.stderr[-2000:]}")
    return done.stdout


def plain(value: Any) -> Any:
    """JSON without what differs between two runs of the same code."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items() if name not in LEFT_OUT}
    return [plain(part) for part in value] if isinstance(value, list) else value


def tensors(path: Path) -> list[str]:
    """Name, type, shape and bytes of every tensor of a file, without its metadata, and without the
    state of numpy's generator, which a run does not seed."""
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
    return [
        f"{name} {array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"
        for name, array in arrays.items()
        if (array.dtype.name, array.shape) != ("int64", (624,))
    ]


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    sys.exit(main())
