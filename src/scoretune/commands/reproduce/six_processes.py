"""The processes that the experiments on contraction compare, with the constants of the paper."""

from __future__ import annotations

from scoretune.diffusion import processes
from scoretune.diffusion.processes import Process

SIX: dict[str, Process] = {
    "VP": processes.VP(),
    "sub-VP": processes.SubVP(),
    "VE": processes.VE(0.01, 50.0),
    "COU": processes.ContractiveOU(1.0, 10.0, 3.0),
    "CVP": processes.ContractiveVP(0.01, 8.0),
    "CsubVP": processes.ContractiveSubVP(0.01, 8.0),
}
