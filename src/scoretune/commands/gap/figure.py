"""The reward gap for people: a table in the terminal, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scoretune.evaluate.gap import ODE, Row, Sampler
from scoretune.evaluate.report.format import NOTHING
from scoretune.evaluate.report.sections.gap import extent, steps_of


def models_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["model"] for row in rows))


def sampler_of(row: Row) -> Sampler:
    return Sampler(row["solver"], row["eta"])


def samplers_of(rows: Sequence[Row]) -> list[Sampler]:
    return list(dict.fromkeys(map(sampler_of, rows)))


def numbers_of(rows: Sequence[Row]) -> list[int]:
    return sorted({row["steps"] for row in rows})


def half(row: Row, low: str, high: str) -> float:
    """Half of an interval's width."""
    return float(row[high] - row[low]) / 2


# ------------------------------------------------------------------------------ the table


def show_table(result: Row) -> None:
    """Reward, gap and bias of every sampler and number of steps, a table a model, on stdout."""
    from rich.console import Console
    from rich.table import Table

    console, rows = Console(soft_wrap=False), result["rows"]
    for model in models_of(rows):
        model_rows = [row for row in rows if row["model"] == model]
        title = f"{result['reward']} of the {model} model, {result['prompts']} prompts"
        table = Table(title=title, title_justify="left")
        table.add_column("steps")
        for steps in numbers_of(model_rows):
            table.add_column(str(steps), justify="right", no_wrap=True)
        for sampler in samplers_of(model_rows):
            entries = {r["steps"]: r for r in model_rows if sampler_of(r) == sampler}
            cells = [_cell(entries.get(steps)) for steps in numbers_of(model_rows)]
            table.add_row(_label(sampler, result["fine"]), *cells, end_section=True)
        console.print(table)
        for reason in dict.fromkeys(row["reason"] for row in model_rows if row["reason"]):
            console.print(f"{NOTHING} {reason}", markup=False, highlight=False)
    console.print(
        "Reward and differences with 95 % intervals over prompts; bold: clear of zero. "
        "W2 is the steps' own exact error on Gaussian data of deviation 0.5. " + result["note"],
        markup=False,
        highlight=False,
    )


def _label(sampler: Sampler, fine: int) -> str:
    lines = [str(sampler), *(["[dim]  gap[/]"] if sampler != ODE else [])]
    return "\n".join([*lines, *(["[dim]  bias[/]"] if fine else []), "[dim]  W2[/]"])


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    if row["reward"] is None:
        return NOTHING
    digits = _digits(row)
    lines = [f"{row['reward']:.{digits}f} ±{half(row, 'ci_low', 'ci_high'):.{digits}f}"]
    for key in (*([] if sampler_of(row) == ODE else ["gap"]), "bias"):
        if row[key] is not None:
            low, high = f"{key}_low", f"{key}_high"
            text = f"{row[key]:+.{digits}f} ±{half(row, low, high):.{digits}f}"
            lines.append(f"[bold]{text}[/]" if row[low] > 0 or row[high] < 0 else text)
    lines.append(NOTHING if row["gaussian_w2"] is None else f"{row['gaussian_w2']:.4f}")
    return "\n".join(lines)


def _digits(row: Row) -> int:
    """Decimals for a cell's numbers: a reward may be a share or kilobytes."""
    return 3 if abs(row["reward"]) + half(row, "ci_low", "ci_high") < 10 else 1


# ------------------------------------------------------------------------------ the figure


def save_figure(result: Row, folder: Path) -> None:
    """`gap.svg` and `gap.png`: for each model reward, gap and the matrix of gaps."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if row["reward"] is not None]
    models = models_of(rows)
    figure = Figure(figsize=(13, 4.1 * len(models)), layout="constrained")
    grid = figure.subplots(len(models), 3, squeeze=False, width_ratios=(1, 1, 1.25))
    for line, model in zip(grid, models, strict=True):
        model_rows = [row for row in rows if row["model"] == model]
        _curves(line[0], model_rows, "reward", ("ci_low", "ci_high"))
        _curves(line[1], model_rows, "gap", ("gap_low", "gap_high"))
        _matrix(line[2], model_rows, limit=max(map(extent, rows), default=0.0))
        line[0].set_title(f"{model} model", loc="left")
        line[0].set_ylabel(f"{result['reward']}, mean of {result['prompts']} prompts")
        line[1].set_ylabel("gap: reward less the ODE's, same steps")
        line[0].legend(frameon=False, fontsize=8)
    _level(grid)
    with rc_context({"svg.hashsalt": "gap"}):  # the same numbers give the same file
        figure.savefig(folder / "gap.svg", metadata={"Date": None})
    figure.savefig(folder / "gap.png", dpi=110)


def _level(grid: Any) -> None:
    """The models' curves on the same vertical axes."""
    for column in (0, 1):
        limits = [axes.get_ylim() for axes in grid[:, column]]
        for axes in grid[:, column]:
            axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))


def _curves(axes: Any, rows: Sequence[Row], key: str, ends: tuple[str, str]) -> None:
    """A line a sampler with its intervals, side by side, for at one place they would hide."""
    shown = [s for s in samplers_of(rows) if not (key == "gap" and s == ODE)]
    for i, sampler in enumerate(shown):
        model_rows = sorted((row for row in rows if sampler_of(row) == sampler), key=steps_of)
        low, high = ([abs(row[end] - row[key]) for row in model_rows] for end in ends)
        aside = 1 + 0.03 * (i - (len(shown) - 1) / 2)
        axes.errorbar(
            [row["steps"] * aside for row in model_rows],
            [row[key] for row in model_rows],
            yerr=[low, high],
            label=str(sampler),
            **_style(sampler, samplers_of(rows)),
        )
    if key == "gap":
        axes.axhline(0, color="black", linewidth=1)
    _number_axis(axes, rows)


def _style(sampler: Sampler, among: Sequence[Sampler]) -> dict[str, Any]:
    """Colour by stochasticity, the ODEs in black and grey; dashes by solver."""
    from matplotlib import colormaps

    line = {"marker": "o", "markersize": 4, "elinewidth": 0.9, "linewidth": 1.8}
    if not sampler.eta:
        ode = sampler == ODE
        return line | {"color": "black" if ode else "grey", "linestyle": "-" if ode else ":"}
    solvers = list(dict.fromkeys(other.solver for other in among if other.eta))
    top = max(other.eta for other in among)
    return line | {
        "color": colormaps["viridis"](0.9 * sampler.eta / top),
        "linestyle": ("-", "--", ":", "-.")[solvers.index(sampler.solver) % 4],
    }


def _number_axis(axes: Any, rows: Sequence[Row]) -> None:
    numbers = numbers_of(rows)
    if len(numbers) > 1:
        axes.set_xscale("log")
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.minorticks_off()
    axes.set_xlabel("steps")
    axes.grid(alpha=0.3)


def _matrix(axes: Any, rows: Sequence[Row], *, limit: float) -> None:
    """The gaps as a heat map with their numbers; the ODE's own row is left out."""
    samplers = [s for s in samplers_of(rows) if s != ODE]
    numbers = numbers_of(rows)
    at = {(sampler_of(r), r["steps"]): r for r in rows}
    if not samplers:
        axes.axis("off")
        return
    nan = float("nan")
    shades = [[at[s, n]["gap"] if (s, n) in at else nan for n in numbers] for s in samplers]
    axes.imshow(shades, cmap="RdBu", vmin=-limit or -1, vmax=limit or 1, aspect="auto")
    for i, sampler in enumerate(samplers):
        for j, steps in enumerate(numbers):
            row = at.get((sampler, steps))
            text = NOTHING
            if row is not None:
                chance, digits = half(row, "gap_low", "gap_high"), _digits(row)
                text = f"{row['gap']:+.{digits}f}\n±{chance:.{digits}f}"
            dark = row is not None and limit > 0 and abs(row["gap"]) > 0.6 * limit
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="w" if dark else "k")
    axes.set_xticks(range(len(numbers)), [str(n) for n in numbers])
    axes.set_yticks(range(len(samplers)), [str(s) for s in samplers])
    axes.set_xlabel("steps")
    axes.set_title("gap, 95 % intervals", loc="left", fontsize=10)
