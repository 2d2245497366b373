"""The tests of a CUDA device, on a pretended one (`pretend_cuda`): in a process of its own, for it
must be there before torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
FEW = ["pretended.py", "another_device and cuda", "offloaded_parts", "[fp16]"]
"""What the quick tests run: the device itself, a run that goes on there, what moves, a precision.
The slow one runs every recipe, family and precision, and evaluations."""


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this PyTorch knows real devices")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device is compiled by g++")
@pytest.mark.parametrize(
    "words", [pytest.param(FEW, id="few"), pytest.param([], id="all", marks=pytest.mark.slow)]
)
def test_a_pretended_device_runs_what_a_real_one_would(words):
    path = os.pathsep.join([str(HERE), str(HERE / "training"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_cuda", "-p", "no:cacheprovider"]
    command += ["-x", "training/test_device.py", "pretended.py"]
    command += ["-k", " or ".join(words)] if words else []
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout
