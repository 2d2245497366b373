"""Score as action against DDPO on the shipped model, several seeds each.

    python benchmarks/seeds.py --seeds 0 1 2 --jobs 2 --out docs/seeds

Each arm is a run of the command line, with the demo's evaluation. Writes `seeds.json` (every
run's result, the gains' 95 % intervals over seeds, by Student's t) and `seeds.svg` (judge accuracy
against network evaluations, one thin line a seed, a thick one for their mean).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ARMS = {
    "score_as_action": ["train", "score_as_action"],
    "ddpo": ["train", "ddpo", "updates=34", "evaluation.every=8"],  # as many network evaluations
}
COLOURS = {"score_as_action": "#0b6e99", "ddpo": "#c8553d"}


def run_once(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """One run in a process of its own, with one thread."""
    where = folder / f"{arm}-{seed}"
    command = [sys.executable, "-c", "from scoretune.cli import main; main()", *ARMS[arm]]
    command += [f"seed={seed}", "--run", str(where), "--json"]
    if not (where / "result.json").exists():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, capture_output=True, check=True)
    result = json.loads((where / "result.json").read_text())
    lines = (where / "evaluations.jsonl").read_text().splitlines()
    return {
        "arm": arm,
        "seed": seed,
        "result": result | {"run": where.name},
        "evaluations": [json.loads(line) for line in lines],
    }


def interval(values: list[float]) -> dict[str, float]:
    """Mean and 95 % interval over seeds, by Student's t."""
    from scipy import stats

    mean = sum(values) / len(values)
    if len(values) < 2:
        return {"mean": mean}
    error = float(stats.sem(values)) * float(stats.t.ppf(0.975, len(values) - 1))
    return {
        k: round(v, 4) for k, v in {"mean": mean, "low": mean - error, "high": mean + error}.items()
    }


def summary(runs: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Gains of judge and reader over seeds, and how much work it took."""
    own = [run["result"] for run in runs if run["arm"] == arm]
    gains = {
        who: interval([r[who]["final"]["overall"] - r[who]["base"]["overall"] for r in own])
        for who in ("judge", "reader")
    }
    return {
        "seeds": len(own),
        "judge_base": round(sum(r["judge"]["base"]["overall"] for r in own) / len(own), 4),
        "judge_final": interval([r["judge"]["final"]["overall"] for r in own]),
        "gain": gains,
        "network_evaluations": own[0]["network_evaluations"],
        "seconds": [r["seconds"] for r in own],
        "path_kl": [r["path_kl"] for r in own],
    }


def reached(runs: list[dict[str, Any]], level: float) -> list[int | None]:
    """For each score-as-action run: network evaluations until the judge reached `level`."""
    first: list[int | None] = []
    for run in runs:
        if run["arm"] == "score_as_action":
            above = [
                line["network_evaluations"]
                for line in run["evaluations"]
                if line["judge"]["overall"] >= level
            ]
            first.append(min(above) if above else None)
    return first


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Judge accuracy against network evaluations."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.add_subplot()
    for arm, colour in COLOURS.items():
        own = [run["evaluations"] for run in runs if run["arm"] == arm]
        if not own:
            continue
        x = [line["network_evaluations"] / 1000 for line in own[0]]
        curves = [[line["judge"]["overall"] for line in lines] for lines in own]
        for curve in curves:
            axes.plot(x, curve, color=colour, alpha=0.35, linewidth=1)
        mean = [sum(column) / len(column) for column in zip(*curves, strict=True)]
        axes.plot(x, mean, color=colour, linewidth=2.5, label=arm.replace("_", " "))
    axes.set_xlabel("network evaluations of training (thousands)")
    axes.set_ylabel("judge accuracy on held-out prompts")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options.add_argument("--jobs", type=int, default=1)
    options.add_argument("--runs", type=Path, help="where runs are; finished ones are not repeated")
    options.add_argument("--out", type=Path, default=Path("docs/seeds"))
    chosen = options.parse_args()
    folder = chosen.runs or Path(tempfile.mkdtemp(prefix="scoretune-seeds-"))
    work = [(arm, seed) for seed in chosen.seeds for arm in chosen.arms]
    with ThreadPoolExecutor(chosen.jobs) as pool:
        runs = list(pool.map(lambda pair: run_once(*pair, folder), work))
    seeds = " ".join(map(str, chosen.seeds))
    report: dict[str, Any] = {
        "command": f"python benchmarks/seeds.py --seeds {seeds} --jobs {chosen.jobs}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "jobs": chosen.jobs,
        "summary": {arm: summary(runs, arm) for arm in chosen.arms},
    }
    if set(chosen.arms) == set(ARMS):
        level = report["summary"]["ddpo"]["judge_final"]["mean"]
        report["evaluations_to_reach_ddpo"] = reached(runs, level)
    report["runs"] = runs
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "seeds.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(runs, chosen.out / "seeds.svg")
    print(json.dumps({k: v for k, v in report.items() if k != "runs"}, indent=2))
    print(f"runs are in {folder}")


if __name__ == "__main__":
    main()
