"""Reinforcement learning in continuous time on any controlled diffusion (arXiv 2305.18901).

>>> learned = cpg(problems.LQ(), dt=0.05)
>>> learned.policy.slope, problems.LQ().optimum().slope
"""

from scoretune.control import problems
from scoretune.control.bounded import BangBang, BetaLinear, SquashedGaussian
from scoretune.control.critics import CLSTD, CTD0, MartingaleLoss, Quadratic
from scoretune.control.learning import Learned, cpg, cppo
from scoretune.control.policies import GaussianLinear
from scoretune.control.sde import ControlledSDE, quadratic
from scoretune.control.simulate import Paths, simulate
from scoretune.control.trust import KL, Clip, Shrinking, SqrtKL

__all__ = [
    "BangBang",
    "BetaLinear",
    "CLSTD",
    "CTD0",
    "Clip",
    "ControlledSDE",
    "GaussianLinear",
    "KL",
    "Learned",
    "MartingaleLoss",
    "Paths",
    "Quadratic",
    "Shrinking",
    "SqrtKL",
    "SquashedGaussian",
    "cpg",
    "cppo",
    "problems",
    "quadratic",
    "simulate",
]
