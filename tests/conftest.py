"""One thread, no network, no display, the same random numbers every time."""

from __future__ import annotations

import os

# Before torch is imported: the thread pools are made at import.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    DIFFUSERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    NO_COLOR="1",
)

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# No deadline: the first example pays for imports. Derandomised: a red build stays red.
settings.register_profile("scoretune", deadline=None, derandomize=True)
settings.load_profile("scoretune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
