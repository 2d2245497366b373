"""The roles as protocols, and who can play them by name, as `name(setting=value, …)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from scoretune.core import resolve
from scoretune.core.errors import unknown
from scoretune.training.feedback import (
    editors,
    openai_server,
    scene_editor,
    scene_reader,
    vision_language,
)
from scoretune.training.feedback.records import Answer, Critique, Edited, EditPlan, Shown


class Critic(Protocol):
    """Says what is wrong with pictures. Never raises for what a model answers."""

    def __call__(self, pictures: Sequence[Shown]) -> list[Answer[Critique]]: ...


class Writer(Protocol):
    """Makes instructions of critiques. Never raises for what a model answers."""

    def __call__(
        self, pictures: Sequence[Shown], critiques: Sequence[Critique]
    ) -> list[Answer[EditPlan]]: ...


class Editor(Protocol):
    """Carries instructions out, those of a picture one after the other."""

    def __call__(
        self, pictures: Sequence[Shown], plans: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> list[Edited]: ...


# To add one: write a frozen dataclass whose fields are its settings, as for rewards, and a line.
CRITICS: dict[str, Callable[..., Critic]] = {
    "reader": scene_reader.SceneCritic,
    "vlm": vision_language.VlmCritic,
    "openai": openai_server.ServerCritic,
}
WRITERS: dict[str, Callable[..., Writer]] = {
    "reader": scene_reader.SceneWriter,
    "vlm": vision_language.VlmWriter,
    "openai": openai_server.ServerWriter,
}
EDITORS: dict[str, Callable[..., Editor]] = {
    "scenes": scene_editor.SceneEditor,
    "scenes-edit": editors.ScenesEdit,
    "instruct_pix2pix": editors.InstructPix2Pix,
    "controlnet": editors.ControlNet,
    "kontext": editors.Kontext,
    "qwen_image_edit": editors.QwenImageEdit,
}
Role = TypeVar("Role")


def named(kind: str, text: str, table: Mapping[str, Callable[..., Role]]) -> Role:
    """Who is meant by `name`, `name(setting=value)` or a user's `module:object`.

    Raises UserError for an unknown name or setting.
    """
    if resolve.is_function(text):
        return resolve.imported(kind, text)  # type: ignore[return-value]
    call = resolve.read_call(text)
    if call.name not in table:
        raise unknown(kind, call.name, [*table, "module:function"])
    return resolve.instantiate(kind, call, table[call.name])
