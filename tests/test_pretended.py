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
FEW = ["pretended.py", "another_device and cuda", "an_evaluation", "flux", "diffusion_transformer"]
FEW += [f"[{name}]" for name in ("dpok", "dxmi", "fp16", "sliced", "moved", "adjoint_matching")]
"""What is run unless SCORETUNE_DEVICES=1 asks for every recipe, family and precision."""


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this PyTorch knows real devices")
@pytest.mark.skipif(shutil.which("g++") is None, reason="the device is compiled by g++")
def test_a_pretended_device_runs_what_a_real_one_would():
    path = os.pathsep.join([str(HERE), str(HERE / "training"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "pytest", "-q", "-p", "pretend_cuda", "-p", "no:cacheprovider"]
    command += ["-x", "training/test_device.py", "pretended.py"]
    if not os.environ.get("SCORETUNE_DEVICES"):
        command += ["-k", " or ".join(FEW)]
    done = subprocess.run(
        command, cwd=HERE, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout
