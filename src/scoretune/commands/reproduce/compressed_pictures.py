"""Pictures recovered from their measurements: what m, the box and the weight do, before anything
is learned. Bundled digits on a wide canvas; MNIST in the configuration of arXiv 2509.03898's code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from scoretune.commands.reproduce.base import Cell, Numbers, Page
from scoretune.commands.reproduce.compressed_sets import digits
from scoretune.commands.reproduce.drawing import COLOURS, subplots
from scoretune.commands.reproduce.image_data import idx
from scoretune.compressed import Gaussian, fista, statistical_dimension
from scoretune.core.errors import UserError

SEED = 1234
DIGITS = {(64, True): 0.018, (100, True): 9.5e-4, (100, False): 7.4e-3, (144, True): 1e-5}
DIGITS |= {(196, True): 1e-5}
MNIST = {(400, True): 0.068, (784, True): 0.0236, (784, False): 0.0444, (1024, True): 0.004}
"""Mean squared errors by (m, box) that the specification of this experiment measured."""
FILE = "t10k-images-idx3-ubyte.gz"


def cells(seeds: int, quick: bool, data: str | None = None) -> list[Cell]:
    """One a number of measurements; nothing is random but the operator, which is fixed."""
    count = 10 if quick else 100
    made = [
        Cell(f"digits-{m}-{box}", recovered, {"m": m, "box": box, "count": count, "data": None})
        for m, box in DIGITS
    ]
    if data is not None:
        if not (Path(data) / "mnist" / FILE).is_file():
            raise UserError(f"--data {data} holds no mnist/{FILE}: put it there")
        made += [
            Cell(f"mnist-{m}-{box}", recovered, {"m": m, "box": box, "count": count, "data": data})
            for m, box in MNIST
        ]
    return made


def mnist(folder: str, count: int) -> Tensor:
    """Test pictures scaled to 48×48: [count, 2304]."""
    small = idx(Path(folder) / "mnist" / FILE)[:count, None].float() / 255
    return F.interpolate(small, size=(48, 48), mode="bilinear").flatten(1)


def recovered(m: int, box: bool, count: int, data: str | None) -> Numbers:
    """The mean squared error of pictures, weight 0.003, at most 500 iterations."""
    x = digits(count) if data is None else mnist(data, count)
    operator = Gaussian(m, x.shape[1], SEED)
    bounds = (0.0, 1.0) if box else None
    solved = fista(operator, operator.forward(x), 3e-3, box=bounds, iterations=500, tolerance=0.01)
    sparsity = float((x > 0).sum(1).double().mean())
    return {
        "mse": float((solved.x - x).square().mean()),
        "iterations": float(solved.iterations.double().mean()),
        "sparsity": sparsity,
        "delta": statistical_dimension(sparsity, x.shape[1]),
        "delta_nonnegative": statistical_dimension(sparsity, x.shape[1], True),
    }


def present(results: dict[str, Numbers], page: Page) -> Numbers:
    """A row a configuration beside what was expected, and a figure."""
    page.text(ABOUT)
    rows = []
    for name, numbers in results.items():
        kind, m, box = name.split("-")
        expected = (DIGITS if kind == "digits" else MNIST)[int(m), box == "True"]
        near = numbers["mse"] <= 1.1 * expected
        rows.append({"pictures": kind, "m": int(m), "box": box == "True", "holds": near, **numbers})
        rows[-1]["expected"] = f"{expected:g}"
    page.table(
        ["pictures", "m", "δ", "δ non-negative", "box", "MSE", "expected", "holds", "iterations"],
        [
            [
                row["pictures"],
                row["m"],
                f"{row['delta']:.0f}",
                f"{row['delta_nonnegative']:.0f}",
                "yes" if row["box"] else "no",
                f"{row['mse']:.2g}",
                row["expected"],
                "yes" if row["holds"] else "no",
                f"{row['iterations']:.0f}",
            ]
            for row in rows
        ],
    )
    page.figure("pictures", _figure(rows), "error of recovered pictures by measurements")
    return {"rows": rows}


def _figure(rows: list[Numbers]) -> Any:
    figure, axes = subplots(size=(6, 3.6))
    for colour, kind in zip(COLOURS, dict.fromkeys(row["pictures"] for row in rows), strict=False):
        boxed = [row for row in rows if row["pictures"] == kind and row["box"]]
        shares = [row["m"] / row["delta"] for row in boxed]
        errors = [max(row["mse"], 1e-9) for row in boxed]
        axes.plot(shares, errors, "o-", color=colour, label=kind)
    axes.set_yscale("log")
    axes.set_xlabel("measurements, in δ")
    axes.set_title("mean squared error in the box")
    axes.legend(frameon=False, fontsize=8)
    return figure


ABOUT = """
Gaussian measurements (seed 1234 of this library's generator), weight 0.003, at most 500 iterations.
δ is that of the mean sparsity; the expected errors are those of this experiment's specification,
measured with another operator and another decoder. In the configuration of the authors' code,
m = 784 for MNIST at 48×48, m is below both statistical dimensions: recovery is lossy. A row holds
if the error is no more than a tenth above the expected one; between the two dimensions it depends
on the operator and on how far the decoder goes, and may be far below.
"""
