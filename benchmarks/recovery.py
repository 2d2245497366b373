"""What sparse recovery costs beside a plain loop, beside scikit-learn, and as states grow.

All three solve the same pictures at 48×48 with 784 Gaussian measurements and a weight of 3e-3, in
float64 on one thread (the configuration of arXiv 2509.03898's code, on scikit-learn's bundled
digits unless --mnist says where MNIST's files are), until every picture is within a relative error
of 1e-4 of the solution, which FISTA finds at a certificate of 1e-9. `ratio_to_plain`: CPU seconds
in [0, 1] against FISTA of fixed step without restart; `ratio_to_sklearn`: of non-negative pictures,
against Lasso(positive=True). `exponent`: of the time of a matrix-free operator over sizes 2^10 …
2^18; 1 is d, and d log d has about 1.1.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.nn import functional as F

from scoretune.commands.reproduce.image_data import idx
from scoretune.compressed import Gaussian, Operator, RandomisedHadamard, SubsampledDCT, fista

SIDE, M, WEIGHT, PRECISION = 48, 784, 3e-3, 1e-4
TOLERANCES = [10.0**-k for k in range(1, 9)]
"""Certificates, or scikit-learn's duality gaps: the loosest that is close enough is timed."""


def pictures(count: int, mnist: Path | None) -> Tensor:
    """[count, 48·48] in [0, 1]."""
    if mnist is None:
        images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None] / 16
        images = F.pad(images, (2, 2, 2, 2))
    else:
        images = idx(mnist / "t10k-images-idx3-ubyte.gz")[:count, None].float() / 255
    large = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear")
    return large.flatten(1).double().clamp(0, 1)


def seconds_to(solve: Callable[[float], Tensor], truth: Tensor) -> float:
    """CPU seconds of a solver at the loosest tolerance with which it comes close to `truth`."""
    for tolerance in TOLERANCES:
        start = time.process_time()
        x = solve(tolerance)
        seconds = time.process_time() - start
        if bool(((x - truth).norm(dim=1) <= PRECISION * truth.norm(dim=1)).all()):
            return seconds
    return math.nan


def compared(count: int, mnist: Path | None, lasso: int) -> dict[str, float]:
    """The two ratios; scikit-learn solves `lasso` of the pictures, one after the other."""
    operator = Gaussian(M, SIDE * SIDE, 1234)
    y = operator.forward(pictures(count, mnist))
    operator.norm()  # once, for all

    def ours(y: Tensor, high: float, adaptive: bool = True) -> Callable[[float], Tensor]:
        return lambda tolerance: (
            fista(
                *(operator, y, WEIGHT),
                box=(0.0, high),
                iterations=50_000,
                tolerance=tolerance,
                adaptive=adaptive,
            ).x
        )

    truth = ours(y, 1.0)(1e-9)
    mine = seconds_to(ours(y, 1.0), truth)
    numbers = {"seconds": mine, "ratio_to_plain": mine / seconds_to(ours(y, 1.0, False), truth)}

    few, matrix = y[:lasso], operator.dense.matrix.double().numpy()

    def sklearns(tolerance: float) -> Tensor:
        solver = Lasso(WEIGHT / M, fit_intercept=False, positive=True, tol=tolerance)
        solver.set_params(max_iter=100_000)
        return torch.stack([torch.from_numpy(solver.fit(matrix, r).coef_) for r in few.numpy()])

    truth = ours(few, math.inf)(1e-9)
    mine = seconds_to(ours(few, math.inf), truth)
    return numbers | {"ratio_to_sklearn": mine / seconds_to(sklearns, truth)}


def exponent(kind: Callable[[int, int], Operator], most: int) -> float:
    """Of the seconds of ten products with A and Aᵀ as a power of d, by least squares."""
    sizes, seconds = [2**k for k in range(10, most + 1, 2)], []
    for d in sizes:
        operator, x = kind(d // 4, d), torch.randn(4, d)
        operator.adjoint(operator.forward(x))
        start = time.process_time()
        for _ in range(10):
            operator.adjoint(operator.forward(x))
        seconds.append(time.process_time() - start)
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--lasso", type=int, default=1, help="pictures that scikit-learn solves")
    parser.add_argument("--mnist", type=Path, help="folder of t10k-images-idx3-ubyte.gz")
    parser.add_argument("--most", type=int, default=18, help="log2 of the largest size")
    given = parser.parse_args()
    torch.set_num_threads(1)
    numbers = compared(given.pictures, given.mnist, given.lasso)
    for name, kind in (("dct", SubsampledDCT), ("hadamard", RandomisedHadamard)):
        numbers[f"exponent_{name}"] = exponent(kind, given.most)
    print(json.dumps({name: round(value, 4) for name, value in numbers.items()}))


if __name__ == "__main__":
    main()
