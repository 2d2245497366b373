"""What a section of the settings is: frozen, strict, and able to say which of its settings a run
never reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator, model_validator
from pydantic_core import PydanticCustomError

from scoretune.core.errors import visible

if TYPE_CHECKING:
    from scoretune.core.config.run import Run


SIDE, STEPS, SAMPLES, UPDATES = 8192, 10_000, 2**20, 10**8
"""Bounds of pixels a side, of steps of a sampler, of what an update holds at once, of updates."""
LONGEST, NAMES = 4096, 256
"""Characters of a text among the settings, and names in a list."""
NUMBERS = (int, float, float | None)
"""The types of settings that are numbers."""


class Checked(str):
    """With what a setting would be read, where a check of `training` refuses it in more words."""


ON_DATA = Checked(
    "a score network that learns from data: recipe supervised or consistency, with model.source="
    "unet, dit, mlp or the folder of such a run"
)
REWARDED = "a pretrained model"
ON_POLICY = "a recipe that follows a reward"


class Strict(BaseModel):
    """Frozen, and without room for unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def numbers(cls, values: Any) -> Any:
        """A truth value where a number belongs becomes a text, which pydantic refuses."""
        if not isinstance(values, dict):
            return values
        numeric = {n for n, f in cls.model_fields.items() if f.annotation in NUMBERS}
        wrong = {n: str(v) for n, v in values.items() if isinstance(v, bool) and n in numeric}
        return {**values, **wrong}

    @field_validator("*")
    @classmethod
    def texts(cls, value: Any) -> Any:
        """Refuse texts that no file, screen or library takes."""
        for text in value if isinstance(value, tuple) else (value,):
            if isinstance(text, str) and (len(text) > LONGEST or visible(text) != text):
                raise PydanticCustomError(
                    "text",
                    "Input should be at most {most} characters without control characters",
                    {"most": LONGEST},
                )
        return value

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        """The settings of this section that a run never reads, and with what it would.

        `on_data`: it trains a score network on data (`training.overrides.of_data`).
        """
        return {}

    def unread(self, run: Run, on_data: bool) -> dict[str, str]:
        """`inert` of this section and of those within, by path."""
        unread: dict[str, str] = {}
        for name, section in vars(self).items():
            if isinstance(section, Strict):
                inner = section.unread(run, on_data)
                unread |= {f"{name}.{path}": why for path, why in inner.items()}
        return unread | self.inert(run, on_data)  # last: it knows the sections within

    def leaves(self) -> list[str]:
        """The names of all settings, those of sections within by their path."""
        return [path for path, _ in leaves(self.model_dump())]


def leaves(tree: Mapping[str, Any], joint: str = ".", path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings by its path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, joint, f"{path}{key}{joint}")
        else:
            yield f"{path}{key}", value


def only(condition: bool, why: str, *names: str) -> dict[str, str]:
    """These settings are inert unless the condition holds."""
    return {} if condition else dict.fromkeys(names, why)


def listed(value: Any) -> Any:
    """`a,b` as well as ["a", "b"]; a column may be called by a number."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(listed)]
OdeSolver: TypeAlias = Literal["ddim", "euler", "heun", "edm_heun", "dpmpp_2m"]
"""The names in `diffusion.solvers.ODE_SOLVERS`; a test compares the two."""
