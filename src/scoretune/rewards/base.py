"""What a reward is: a function of finished images and their prompts, one number each; of videos,
the mean over their frames unless it takes whole videos."""

from __future__ import annotations

import sysconfig
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from scoretune.core.errors import UserError, user_errors
from scoretune.core.finite import is_finite
from scoretune.core.profiling import part
from scoretune.core.records import spans
from scoretune.core.user_code import contained
from scoretune.data.prompts import picture_of
from scoretune.data.source_pictures import SourcePicture

Reward = Callable[[Tensor, Sequence[str]], Tensor]
"""(images [B, 3, H, W] in [0, 1], B prompts) -> rewards [B]; higher is better."""


@runtime_checkable
class OfVideos(Protocol):
    """A reward that may be called with whole videos [B, T, 3, H, W]: a function of one's own says
    so by `function.takes_videos = True`. Others are shown their frames."""

    takes_videos: bool


@runtime_checkable
class OfSomePrompts(Protocol):
    """A reward that cannot judge every prompt: it says so when a run is built, not in its middle. A
    function of one's own does by `function.check_prompt = other_function`."""

    def check_prompt(self, prompt: str) -> None:
        """Raises UserError, or ValueError, for a prompt that lacks what the reward reads of it."""


Precision = Literal["float32", "bfloat16", "float16"]
"""What a reward's network computes in."""


@runtime_checkable
class Fingerprinted(Protocol):
    """A reward that can say what exactly scores: model ids, commits, hashes of weights."""

    def fingerprint(self) -> Mapping[str, str]: ...


class Batched(ABC):
    """A reward with a gradient that scores `batch` pictures at once, a field of its subclass."""

    batch: int

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch={self.batch}: a reward scores at least one picture at a time")

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Images [B, 3, H, W] in [0, 1] and B prompts -> [B]."""
        if len(prompts) != len(images):
            raise UserError(f"{len(images)} images have {len(prompts)} prompts: give one each")
        parts = [self._score(images[s], prompts[s]) for s in spans(len(images), self.batch)]
        return torch.cat(parts) if parts else images.new_zeros(0)

    @abstractmethod
    def _score(self, images: Tensor, prompts: Sequence[str]) -> Tensor: ...


class RewardFailed(UserError):
    """A reward that cannot judge these images: it fails, or returns another shape."""


class NotFinite(UserError):
    """Images that hold NaN or infinity: no reward can say anything of them."""


def has_gradient(reward: Reward, name: str, image: Tensor, prompt: str) -> bool:
    """True when the reward can be differentiated by the image [3, H, W]."""
    probe = image.detach()[None].requires_grad_()
    return checked(reward, name, probe, [prompt]).requires_grad


def checked(reward: Reward, name: str, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The rewards in float32, or one clear line on what is wrong with them.

    Of videos [B, T, 3, H, W] a reward of pictures is the mean over all frames. A user's reward
    gets copies, so that what it does to them is seen by nobody else. Raises NotFinite where the
    images are at fault, not the reward.
    """
    whole = isinstance(reward, OfVideos) and reward.takes_videos
    if images.dim() == 5 and not whole:
        return on_frames(reward, name, images, prompts)
    try:
        with part("reward"), contained(f"reward {name!r}"):
            if _package(reward) == __name__.partition(".")[0]:
                values = torch.as_tensor(reward(images, prompts))
            else:
                values = torch.as_tensor(reward(images.clone(), list(prompts)))
    except UserError:
        raise
    except Exception as error:
        _check_finite(images, prompts)
        raise RewardFailed(
            f"reward {name!r} failed with {type(error).__name__}: {error}{_place(error, reward)}; "
            f"it is called with images {tuple(images.shape)} in [0, 1] and a list of "
            f"{len(prompts)} prompts"
        ) from error
    if values.shape != (len(images),):
        raise RewardFailed(
            f"reward {name!r} returned shape {tuple(values.shape)} for {len(images)} images: "
            f"return one number an image, shape ({len(images)},)"
        )
    if values.is_complex() or values.is_meta:
        what = (
            "complex numbers" if values.is_complex() else "a tensor without numbers (meta device)"
        )
        raise RewardFailed(f"reward {name!r} returned {what}: return one real number an image")
    values = values.to(images.device, torch.float32)
    if not bool(torch.isfinite(values).all() & torch.isfinite(images).all()):  # one look at both
        _check_finite(images, prompts)
        bad = int((~torch.isfinite(values)).nonzero()[0])
        raise UserError(
            f"reward {name!r} is {values[bad].item()} for the prompt {prompts[bad]!r}: "
            "return finite numbers"
        )
    return values


def on_frames(reward: Reward, name: str, videos: Tensor, prompts: Sequence[str]) -> Tensor:
    """The mean of a reward of pictures over the frames of videos [B, T, 3, H, W], [B]."""
    texts = [prompt for prompt in prompts for _ in range(videos.shape[1])]
    values = checked(reward, name, videos.flatten(0, 1), texts)
    return values.view(videos.shape[:2]).mean(1)


def check_prompt(reward: Reward, prompt: str) -> None:
    """Refuse a prompt that a reward, or a part of it, cannot judge. Raises UserError."""
    if isinstance(reward, OfSomePrompts):
        with user_errors():
            reward.check_prompt(prompt)


def check_prompts(
    reward: Reward, name: str, prompts: Iterable[str], *, source: str, fix: str
) -> None:
    """Refuse `prompts`, of that `source`, that a reward cannot judge, before anything is loaded or
    drawn; `fix` says what to change. Raises UserError."""
    for prompt in dict.fromkeys(prompts):
        try:
            check_prompt(reward, prompt)
        except UserError as error:
            raise UserError(f"reward {name!r} cannot judge {source} ({error}): {fix}") from error


def can_judge(reward: Reward, prompts: Iterable[str]) -> bool:
    """Whether a reward can judge every one of these prompts."""
    try:
        for prompt in dict.fromkeys(prompts):
            check_prompt(reward, prompt)
    except UserError:
        return False
    return True


def source_image(prompt: str, use: str) -> Tensor:
    """The picture [3, H, W] that a prompt edits. `use` says what for: "NAME compares with"."""
    return wanted_picture(prompt, use).pixels


def wanted_picture(prompt: str, use: str) -> SourcePicture:
    """The file of `source_image`, which is not decoded. Raises UserError where there is none."""
    picture = picture_of(prompt)
    if picture is None:
        raise UserError(
            f"{use} the picture that is edited, and the prompt {str(prompt)[:40]!r} has none: give "
            "prompts with a column image"
        )
    return picture


def _check_finite(images: Tensor, prompts: Sequence[str]) -> None:
    """Raises NotFinite for the first image that holds another number."""
    for place, image in enumerate(images):
        if not is_finite(image):
            raise NotFinite(
                f"the model's sample for the prompt {prompts[place]!r} holds NaN or infinity"
            )


def _package(reward: Reward) -> str:
    """The package that a reward, or its class, is of."""
    return str(getattr(reward, "__module__", "")).partition(".")[0]


def _place(error: Exception, reward: Reward) -> str:
    """` at FILE:LINE`, the innermost line of the user's own code; empty where there is none."""
    package_of_reward = _package(reward)
    places = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = Path(frame.f_code.co_filename)
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        named = package == package_of_reward != __name__.partition(".")[0]
        if path.is_file() and (named or not _belongs_to_libraries(path)):
            places = f" at {path.name}:{line}"
    return places


def _belongs_to_libraries(path: Path) -> bool:
    """Whether a file is of Python, of what is installed, or of this package."""
    homes = [Path(__file__).parents[1], Path(sysconfig.get_path("stdlib"))]
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(installed) or any(path.resolve().is_relative_to(home.resolve()) for home in homes)
