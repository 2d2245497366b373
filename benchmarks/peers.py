"""Ours beside TRL's trainers and ddpo-pytorch's step: `make bench ARGS="--peers PYTHON"`.

    python benchmarks/peers.py --trl PYTHON [--ddpo FILE] [--pairs N] [--cases ddpo draft-5 ...]

PYTHON is the interpreter of an environment with trl 0.23.1, FILE ddpo-pytorch's
`ddim_with_logprob.py`; the README of this folder says how to get them. Both sides train the same
tiny pipeline from the same weights, on one thread, each in a process of its own. They are asked for
one epoch in turn, so that a drifting machine favours neither, and the ratios are those of pairs.
A ratio above 1 says how many times as fast ours is. Writes `peers.json` beside the printed table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
GOALS = {"ddpo": 1.3, "draft": 1.2, "alignprop": 1.2, "step": 2.0}
"""How many times as fast ours is meant to be."""


class Side:
    """One side in a process of its own, which runs an epoch when it is told to."""

    def __init__(self, python: str, script: str, folder: Path, more: list[str]) -> None:
        alone = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        environment = {**os.environ, **alone, **quiet}
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)  # our packages are of other versions
        self.log = (folder / f"{script}.log").open("w+")
        self.process = subprocess.Popen(
            [python, str(HERE / script), str(folder), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment,
            text=True,
        )
        self.about = self._answer()

    def epoch(self, case: str) -> dict[str, Any]:
        """What one epoch cost: processor and wall seconds, their parts, and the work done."""
        assert self.process.stdin is not None
        print(case, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            sys.exit(f"{self.process.args} stopped:\n{self.log.read()[-3000:]}")
        return dict(json.loads(line))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def trainers(python: str, pairs: int, cases: list[str], more: list[str]) -> dict[str, Any]:
    """Every case on both sides, and what the two sides are."""
    from peer_model import CASES

    wanted = [case for case in CASES if not cases or case in cases or case.split()[0] in cases]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = Side(sys.executable, "peer_ours.py", folder, more)  # writes the weights, so first
        theirs = Side(python, "peer_trl.py", folder, [])
        try:
            numbers = {}
            for case in wanted:
                numbers[case] = compared(ours, theirs, case, pairs)
                print(row(case, numbers[case]), flush=True)
            return {"versions": {"ours": ours.about, "trl": theirs.about}, "cases": numbers}
        finally:
            ours.close()
            theirs.close()


def compared(ours: Side, theirs: Side, case: str, pairs: int) -> dict[str, Any]:
    """One case: the two in turn after one warm-up of each."""
    both = []
    both = [(ours.epoch(case), theirs.epoch(case)) for _ in range(pairs + 1)][1:]
    mine, peer = [pair[0] for pair in both], [pair[1] for pair in both]
    return {
        "goal": GOALS[case.split()[0].split("-")[0]],
        "cpu": spread([b["cpu"] / a["cpu"] for a, b in both]),
        "wall": spread([b["wall"] / a["wall"] for a, b in both]),
        "ours": summary(mine),
        "trl": summary(peer),
    }


def spread(ratios: list[float]) -> dict[str, float]:
    """How many times as fast, of all pairs."""
    kept = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
    return {name: round(value, 3) for name, value in kept.items()}


def summary(costs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median seconds of a side's epochs, and their mean work."""

    def median(part: str, inner: str = "") -> float:
        return round(statistics.median((c[part][inner] if inner else c[part]) for c in costs), 4)

    parts = {name: median("parts", name) for name in costs[0]["parts"]}
    names = sorted({name for cost in costs for name in cost["work"]})
    work = {n: round(statistics.mean(c["work"].get(n, 0) for c in costs), 1) for n in names}
    return {"cpu": median("cpu"), "wall": median("wall"), "parts": parts, "work": work}


def row(case: str, numbers: dict[str, Any]) -> str:
    """A line of the table."""
    from peer_model import SAMPLES

    ours, trl, cpu, wall = (numbers[name] for name in ("ours", "trl", "cpu", "wall"))

    def side(cost: dict[str, Any]) -> str:
        work = cost["work"]
        return (
            f"{SAMPLES / cost['cpu']:6.2f}/s ({cost['parts']['rollout']:.2f} of {cost['cpu']:.2f} s"
            f" rollout; {work['unet states']:.0f} states, {work['unet states backwards']:.0f} back,"
            f" {work['optimiser steps']:.0f} steps)"
        )

    met = "" if cpu["median"] >= numbers["goal"] else f"  below {numbers['goal']}"
    return (
        f"{case:16} ours {side(ours)}  trl {side(trl)}  "
        f"{cpu['median']:.2f}x [{cpu['min']:.2f}, {cpu['max']:.2f}]  "
        f"wall {wall['median']:.2f}x{met}"
    )


def machine() -> dict[str, Any]:
    return {"platform": platform.platform(), "cores": os.cpu_count(), "threads": 1}


def compare(trl: str | None, ddpo: Path | None, pairs: int = 7, **selection: Any) -> dict[str, Any]:
    """All comparisons that were asked for, printed and as they are written down."""
    # Where things lie on this machine is nobody's business.
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    results: dict[str, Any] = {"machine": machine(), "command": " ".join(words)}
    if trl is not None:
        results |= trainers(trl, pairs, selection.get("cases", []), selection.get("more", []))
    if ddpo is not None:
        from peer_steps import step_costs

        results["steps"] = {name: spread(r) for name, r in step_costs(ddpo, 3 * pairs).items()}
        for name, numbers in results["steps"].items():
            met = "" if numbers["median"] >= GOALS["step"] else f"  below {GOALS['step']}"
            low, high = numbers["min"], numbers["max"]
            print(f"{name}: {numbers['median']:.2f}x [{low:.2f}, {high:.2f}]{met}")
    return results


def write(results: dict[str, Any], file: Path = HERE / "peers.json") -> None:
    file.write_text(json.dumps(results, indent=1) + "\n")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--trl", help="interpreter of an environment with trl 0.23.1")
    options.add_argument("--ddpo", type=Path, help="ddpo-pytorch's ddim_with_logprob.py")
    options.add_argument("--pairs", type=int, default=7)
    options.add_argument(
        "--cases", nargs="*", default=[], help="some cases, as ddpo or 'ddpo lora'"
    )
    options.add_argument("--set", nargs="*", default=[], help="settings of ours, as a.b=c")
    options.add_argument("--out", type=Path, default=HERE / "peers.json")
    arguments = options.parse_args()
    numbers = compare(
        arguments.trl, arguments.ddpo, arguments.pairs, cases=arguments.cases, more=arguments.set
    )
    write(numbers, arguments.out)


if __name__ == "__main__":
    main()
