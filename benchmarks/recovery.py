"""What sparse recovery costs beside a plain loop, beside scikit-learn, and as states grow.

`ratio_to_plain`: seconds to a relative error of 1e-4, against FISTA of fixed step without restart
in the same process, on pictures of handwriting at 48×48 with 784 Gaussian measurements in [0, 1]
(the configuration of arXiv 2509.03898's code, on scikit-learn's bundled digits unless --mnist says
where MNIST's files are). `ratio_to_sklearn`: the same problems without an upper bound, against
Lasso(positive=True). `exponent`: of the time of a matrix-free operator over sizes 2^10 … 2^18; 1 is
d, and d log d has about 1.1.
"""

from __future__ import annotations

import argparse
import gzip
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

from scoretune.compressed import (
    Gaussian,
    Operator,
    RandomisedHadamard,
    SubsampledDCT,
    fista,
    proximal,
)

SIDE, M, WEIGHT, PRECISION = 48, 784, 3e-3, 1e-4


def pictures(count: int, mnist: Path | None) -> Tensor:
    """[count, 48·48] in [0, 1]."""
    if mnist is None:
        images = torch.tensor(load_digits().images[:count], dtype=torch.float32)[:, None] / 16
        images = F.pad(images, (2, 2, 2, 2))
    else:
        raw = gzip.decompress((mnist / "t10k-images-idx3-ubyte.gz").read_bytes())
        array = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28)[:count]
        images = torch.from_numpy(array.copy()).float() / 255
    return F.interpolate(images, size=(SIDE, SIDE), mode="bilinear").flatten(1)


def plain(operator: Operator, y: Tensor, truth: Tensor, box: tuple[float, float]) -> float:
    """Seconds of a loop with step 1/‖A‖² until every picture is within the precision of `truth`."""
    bound, t = operator.norm() ** 2, 1.0
    x = ahead = torch.zeros_like(truth)
    start = time.process_time()
    for k in range(1, 20_000):
        step = ahead - operator.adjoint(operator.forward(ahead) - y) / bound
        after = proximal(step, WEIGHT / bound, box)
        following = (1 + math.sqrt(1 + 4 * t * t)) / 2
        ahead, x, t = after + (t - 1) / following * (after - x), after, following
        if k % 10 == 0 and reached(x, truth):
            break
    return time.process_time() - start


def ours(operator: Operator, y: Tensor, truth: Tensor, box: tuple[float, float]) -> float:
    """Seconds of `fista` at the loosest certificate with which every picture is as close."""
    for tolerance in (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 5e-4, 2e-4, 1e-4):
        start = time.process_time()
        x = fista(operator, y, WEIGHT, box=box, iterations=20_000, tolerance=tolerance).x
        seconds = time.process_time() - start
        if reached(x, truth):
            return seconds
    return math.nan


def reached(x: Tensor, truth: Tensor) -> bool:
    return bool(((x - truth).norm(dim=1) <= PRECISION * truth.norm(dim=1)).all())


def compared(count: int, mnist: Path | None, lasso: int) -> dict[str, float]:
    """The two ratios; scikit-learn solves `lasso` of the pictures, one after the other."""
    operator, images = Gaussian(M, SIDE * SIDE, 1234), pictures(count, mnist)
    y, box, open_ = operator.forward(images), (0.0, 1.0), (0.0, math.inf)
    operator.norm()
    truth = fista(operator, y, WEIGHT, box=box, iterations=20_000, tolerance=1e-4).x
    mine = ours(operator, y, truth, box)
    numbers = {"seconds": mine, "ratio_to_plain": mine / plain(operator, y, truth, box)}
    few = y[:lasso]
    truth = fista(operator, few, WEIGHT, box=open_, iterations=20_000, tolerance=1e-4).x
    mine = ours(operator, few, truth, open_)
    solver = Lasso(WEIGHT / M, fit_intercept=False, positive=True, tol=1e-6, max_iter=10_000)
    matrix = operator.dense.matrix.float().numpy()
    start = time.process_time()
    for row in few.numpy():
        solver.fit(matrix, row)
    return numbers | {"ratio_to_sklearn": mine / (time.process_time() - start)}


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
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--lasso", type=int, default=3, help="pictures that scikit-learn solves")
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
