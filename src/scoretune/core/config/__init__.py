"""The configuration tree: strict and typed. A recipe returns a `Run`; nothing else configures one.

`training.overrides` has what `a.b=c` does to it. Each section says itself which of its settings
are never read, given the others (`inert`): a change of such a setting is refused, not ignored.
"""

from scoretune.core.config.base import STEPS, Checked, OdeSolver, Strict, leaves
from scoretune.core.config.compression import Compress
from scoretune.core.config.evaluation import Evaluation, Gap, Guard
from scoretune.core.config.machine import Checkpoints, Hardware, Optimiser, Tracking
from scoretune.core.config.model import NEW_NETWORKS, SHIPPED_MODELS, Dataset, Model
from scoretune.core.config.objectives import (
    Adjoint,
    Consistency,
    Critic,
    Direct,
    Energy,
    Guidance,
    Matching,
    Objective,
    PolicyGradient,
    ScoreAction,
    Trusting,
)
from scoretune.core.config.preferences import (
    Preference,
    RankedPreference,
    Ranking,
    StepPreference,
)
from scoretune.core.config.run import Run
from scoretune.core.config.sampling import Sampling, Sizes, Window

__all__ = [
    "NEW_NETWORKS",
    "SHIPPED_MODELS",
    "STEPS",
    "Adjoint",
    "Checked",
    "Checkpoints",
    "Compress",
    "Consistency",
    "Critic",
    "Dataset",
    "Direct",
    "Energy",
    "Evaluation",
    "Gap",
    "Guard",
    "Guidance",
    "Hardware",
    "Matching",
    "Model",
    "Objective",
    "OdeSolver",
    "Optimiser",
    "PolicyGradient",
    "Preference",
    "RankedPreference",
    "Ranking",
    "Run",
    "Sampling",
    "ScoreAction",
    "Sizes",
    "StepPreference",
    "Strict",
    "Tracking",
    "Trusting",
    "Window",
    "leaves",
]
