"""Noising processes x_t = α(t) x0 + σ(t) ε: the union of them is the registry.

The processes are in `standard`, `contractive` and `tabulated`, and what follows from α and σ is in
`base`. A new one is a frozen dataclass in `standard` and its name in the union `Process`: the
contract tests, `every_process`, `process_named` and the command line read it from there.
"""

import ast
from dataclasses import fields
from typing import TypeAlias, cast, get_args

from scoretune.diffusion.lookup import lookup
from scoretune.diffusion.processes.base import (
    Schedule,
    diffusion_sq,
    drift_rate,
    expand,
    half_log_snr,
    log_snr,
    noise_ratio,
    rates,
    score,
    time_of_ratio,
)
from scoretune.diffusion.processes.contractive import ContractiveOU, ContractiveSubVP, ContractiveVP
from scoretune.diffusion.processes.standard import (
    EDM,
    OU,
    VE,
    VP,
    Cosine,
    GeometricVE,
    RectifiedFlow,
    SubVP,
)
from scoretune.diffusion.processes.tabulated import Tabulated

__all__ = [
    "EDM",
    "OU",
    "VE",
    "VP",
    "ContractiveOU",
    "ContractiveSubVP",
    "ContractiveVP",
    "Cosine",
    "GeometricVE",
    "Process",
    "RectifiedFlow",
    "Schedule",
    "SubVP",
    "Tabulated",
    "diffusion_sq",
    "drift_rate",
    "every_process",
    "expand",
    "half_log_snr",
    "log_snr",
    "noise_ratio",
    "process_named",
    "rates",
    "score",
    "time_of_ratio",
]


Process: TypeAlias = (
    VP
    | RectifiedFlow
    | Tabulated
    | SubVP
    | OU
    | VE
    | GeometricVE
    | EDM
    | Cosine
    | ContractiveOU
    | ContractiveVP
    | ContractiveSubVP
)
"""Every process there is; the union is the registry."""


def every_process() -> tuple[Process, ...]:
    """One of each kind with its default constants, in the order of the union."""
    kinds = get_args(Process)
    return tuple(Tabulated.scaled_linear() if k is Tabulated else k() for k in kinds)


def process_named(text: str) -> Process:
    """The process that a text names, with its constants: `VE` or `VE(sigma_max=80)`.

    Raises ValueError for an unknown name (with the nearest) or constant, and for a bad value.
    """
    catalogue = {kind.__name__: kind for kind in get_args(Process) if kind is not Tabulated}
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        call = tree if isinstance(tree, ast.Call) else ast.Call(tree, [], [])
        name = ast.unparse(call.func)
        positional = [float(ast.literal_eval(value)) for value in call.args]
        constants = {str(k.arg): float(ast.literal_eval(k.value)) for k in call.keywords}
    except (SyntaxError, ValueError, TypeError):
        raise ValueError(
            f"cannot read the process {text!r}: write its name and constants, as VE(sigma_max=80)"
        ) from None
    kind = lookup("process", name, catalogue)
    options = {field.name: field for field in fields(kind)}
    for key in constants:
        lookup(f"constant of {name}", key, options)
    try:
        return cast(Process, kind(*positional, **constants))
    except (ValueError, TypeError) as error:
        raise ValueError(f"cannot make the process {text!r}: {error}") from None
