"""Policy optimisation for continuous RL: CPG and CPPO where the optimum is known.

The experiments of arXiv 2305.18901: linear-quadratic control and optimal pair trading, learned at
three time steps δt and compared with the analytic optimum of continuous time; CPPO's √KL penalty
beside a plain KL one, and beside a radius that never shrinks. No learner knows a coefficient of its
problem: all see states, actions and reward rates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scoretune.commands.reproduce.base import Cell, Numbers, Page, by_arm, interval, shown
from scoretune.commands.reproduce.drawing import subplots
from scoretune.control import KL, GaussianLinear, Shrinking, SqrtKL, cpg, cppo
from scoretune.control.problems import LQ, PairTrading
from scoretune.control.trust import Trust

PROBLEMS: dict[str, LQ | PairTrading] = {"LQ": LQ(), "pair trading": PairTrading()}
STEPS = (0.1, 0.05, 0.02)
CPG, SQRT, PLAIN = "CPG", "CPPO sqrt-KL", "CPPO KL"
CONSTANT = "CPPO sqrt-KL constant radius"
TRUSTS: dict[str, Trust] = {
    SQRT: SqrtKL(radius=Shrinking(0.1, 10)),
    PLAIN: KL(radius=Shrinking(0.02, 10)),
    CONSTANT: SqrtKL(radius=0.1),
}
METHODS = {"LQ": (CPG, SQRT, PLAIN, CONSTANT), "pair trading": (CPG, SQRT, PLAIN)}
ITERATIONS = {("LQ", True): 200, ("LQ", False): 100}
ITERATIONS |= {("pair trading", True): 300, ("pair trading", False): 150}
SIZES = {"LQ": (1000, 40_000), "pair trading": (500, 20_000)}  # CPPO's trajectories and clocks
LATE = 30  # iterations over which a settled policy should be at rest
PARAMETERS = ("slope", "intercept", "variance")
SIZE = (11, 6.2)  # of a figure, in inches


def cells(seeds: int, quick: bool) -> list[Cell]:
    """Every problem × method × δt × seed; `quick` shows that it runs, not what it finds."""
    return [
        Cell(
            f"{_name(problem, method, dt)}-{seed}",
            learn,
            {
                "problem": problem,
                "method": method,
                "dt": dt,
                "seed": seed,
                "iterations": 4 if quick else ITERATIONS[problem, method == CPG],
            },
        )
        for problem in PROBLEMS
        for method in METHODS[problem]
        for dt in (STEPS[:1] if quick else STEPS)
        for seed in range(seeds)
    ]


def learn(problem: str, method: str, dt: float, seed: int, iterations: int) -> Numbers:
    """One run from N(0, 1): η, in closed form, and the policy's numbers by iteration."""
    control, policy = PROBLEMS[problem], GaussianLinear()
    track: dict[str, list[float]] = {name: [] for name in ("value", *PARAMETERS)}

    def note(k: int, record: dict[str, float]) -> None:
        values = (record["value"], policy.slope, policy.intercept, policy.variance)
        for name, number in zip(track, values, strict=True):
            track[name].append(round(float(number), 6))

    common: dict[str, Any] = {"dt": dt, "iterations": iterations, "seed": seed, "policy": policy}
    if method == CPG:
        cpg(control, **common, on_iteration=note)
    else:
        common |= dict(zip(("trajectories", "clocks"), SIZES[problem], strict=True))
        cppo(control, **common, trust=TRUSTS[method], on_iteration=note)
    return dict(track)


@dataclass(frozen=True)
class Arm:
    """The runs of one problem, method and δt, one a seed."""

    problem: str
    method: str
    dt: float
    runs: tuple[Numbers, ...]

    def final(self, name: str) -> list[float]:
        return [run[name][-1] for run in self.runs]

    def gaps(self) -> list[float]:
        """η* − η of the last policies."""
        return [PROBLEMS[self.problem].optimum().objective - v for v in self.final("value")]

    def unrest(self) -> float:
        """The largest gap of any seed in its last iterations."""
        worst: float = min(min(run["value"][-LATE:]) for run in self.runs)
        return PROBLEMS[self.problem].optimum().objective - worst

    def numbers(self) -> Numbers:
        gaps = self.gaps()
        mean, low, high = interval(gaps)
        parameters = {name: median(self.final(name)) for name in PARAMETERS}
        gap: Numbers = {"median": median(gaps), "worst": max(gaps), "mean": mean}
        gap |= {"interval": [low, high], "unrest": self.unrest()}
        about = {"problem": self.problem, "method": self.method, "dt": self.dt}
        return {**about, "seeds": len(self.runs), "gap": gap, **parameters}


def arms(results: Mapping[str, Numbers]) -> list[Arm]:
    """Every arm that was run."""
    runs = by_arm(results)
    return [
        Arm(problem, method, dt, tuple(runs[name]))
        for problem in PROBLEMS
        for method in METHODS[problem]
        for dt in STEPS
        if (name := _name(problem, method, dt)) in runs
    ]


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """Tables of gaps to the optimum and of policies; learning curves; parameters by iteration."""
    ran = arms(results)
    page.text(
        "Each run starts from the policy N(0, 1), sees states, actions and reward rates, and is "
        "judged by η of its policy in closed form, in continuous time. Gaps are η* − η after the "
        "last iteration; intervals are 95 % for the mean over seeds (Student's t); the late worst "
        f"is the largest gap of any seed in its last {LATE} iterations."
    )
    for problem in PROBLEMS:
        optimum = PROBLEMS[problem].optimum()
        page.text(f"## {problem}: η* = {optimum.objective:.4f}")
        page.table(
            ("method", "δt", "seeds", "median gap", "worst", "late worst", "mean gap", *PARAMETERS),
            [_row(arm) for arm in ran if arm.problem == problem]
            + [("optimum", "", "", "0", "0", "0", "0", *_digits(optimum))],
        )
    page.figure("curves", curves(ran), "η by iteration, median and range over seeds")
    page.figure("parameters", parameters(ran), "Parameters of CPG's policy by iteration")
    page.text(
        "The √KL penalty acts by all or nothing: below a threshold of its coefficient the policy "
        "goes as far as the inner steps carry it, above it stands still. The constant radius is a "
        "negative control: it lets a policy that has arrived go on moving, which shows in the late "
        "worst. How much depends on the inner steps, here 20 of Adam at 0.005 in units of the "
        "policy's own standard deviation, which bound a move too."
    )
    return {"arms": [arm.numbers() for arm in ran]}


def curves(ran: Sequence[Arm]) -> Any:
    """A panel for each problem and δt; a line for each method; the optimum dashed."""
    figure, panels = subplots(len(PROBLEMS), len(STEPS), sharey="row", grid="none", size=SIZE)
    for row, problem in zip(panels, PROBLEMS, strict=True):
        best = PROBLEMS[problem].optimum().objective
        for axes, dt in zip(row, STEPS, strict=True):
            axes.axhline(best, color="black", linestyle="--", linewidth=1, label="optimum")
            for arm in ran:
                if (arm.problem, arm.dt) == (problem, dt):
                    _band(axes, [run["value"] for run in arm.runs], arm.method)
            axes.set(title=f"{problem}, δt = {dt}", ylim=(best - 0.6, best + 0.05))
            axes.set_xlabel("iteration")
        row[0].set_ylabel("η")
        row[0].legend(fontsize="small", loc="lower right")
    return figure


def parameters(ran: Sequence[Arm]) -> Any:
    """A panel for each problem and parameter of CPG's policy; a line for each δt."""
    figure, panels = subplots(len(PROBLEMS), len(PARAMETERS), grid="none", size=SIZE)
    for row, problem in zip(panels, PROBLEMS, strict=True):
        for axes, name in zip(row, PARAMETERS, strict=True):
            best = getattr(PROBLEMS[problem].optimum(), name)
            axes.axhline(best, color="black", linestyle="--", linewidth=1, label="optimum")
            for arm in ran:
                if (arm.problem, arm.method) == (problem, CPG):
                    _band(axes, [run[name] for run in arm.runs], f"δt = {arm.dt}")
            axes.set(title=f"{problem}: {name}", xlabel="iteration")
        row[0].legend(fontsize="small")
    return figure


def _band(axes: Any, tracks: Sequence[Sequence[float]], label: str) -> None:
    columns = list(zip(*tracks, strict=True))
    iterations = range(1, len(columns) + 1)
    (line,) = axes.plot(iterations, [median(c) for c in columns], label=label, linewidth=1.3)
    low, high = [min(c) for c in columns], [max(c) for c in columns]
    axes.fill_between(iterations, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def _row(arm: Arm) -> tuple[object, ...]:
    gaps = arm.gaps()
    worst = (f"{gap:.4f}" for gap in (median(gaps), max(gaps), arm.unrest()))
    numbers = (f"{median(arm.final(name)):.4f}" for name in PARAMETERS)
    return (arm.method, arm.dt, len(gaps), *worst, shown(interval(gaps), 4), *numbers)


def _digits(optimum: Any) -> list[str]:
    return [f"{getattr(optimum, name):.4f}" for name in PARAMETERS]


def _name(problem: str, method: str, dt: float) -> str:
    return f"{problem}-{method}-{dt}".replace(" ", "_")
