"""Diffusers pipelines as continuous-time models, by what their own calls tell the denoiser.

A pipeline's call is run on prompts up to the denoiser, and what that is given besides the state and
the time is the condition: encoders, templates, masks and places stay diffusers' own code. From then
on the denoiser is called here. A `Row` says of a family what no call shows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor

from scoretune.core.conditions import Condition, Named, joined
from scoretune.data.prompts import Prompt, picture_of
from scoretune.diffusion.processes import Tabulated
from scoretune.models import editing
from scoretune.models.autoencoder import latent_shape, multiple
from scoretune.models.base import Pipelined, Told, default_argument
from scoretune.models.lora import ATTENTION
from scoretune.models.packing import PLANE, Layout
from scoretune.models.pipelines import Family
from scoretune.models.schedulers import copied, schedule_of, taking, times_along
from scoretune.models.videos import draws_videos, usual_frames
from scoretune.policy import Deployment

MASK = ":mask"
"""Behind the name of rows that the denoiser takes as a list of texts: which places of each are."""
PICTURE = ":picture"
"""Rows of the picture that is edited, [B, …]: what the denoiser gets behind its packed state."""
TIMES = 1000
"""What a scheduler's time is divided by for networks that are told it in [0, 1]."""
FEW = 4
"""Steps, of which the first alone is taken."""
GUIDED = 2.0
"""A scale at which pipelines make their unprompted twin; which one it is does not matter."""


def of_label(model: Observed, label: Tensor, x: Tensor) -> Tensor:
    """The scheduler's time."""
    return label


def of_fraction(model: Observed, label: Tensor, x: Tensor) -> Tensor:
    """The time in [0, 1], rounded as pipelines round it: half precision tells few times apart."""
    return label.to(model.dtype) / TIMES


def of_progress(model: Observed, label: Tensor, x: Tensor) -> Tensor:
    """How far from noise to data, in [0, 1], rounded as Z-Image rounds it: its network multiplies
    this by 1000 again, and an ulp is 6e-5 of its angles."""
    return (TIMES - label) / TIMES


def rescaled(free: Tensor, bound: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance with the norm of the prompted output, over the last dimension."""
    guided = free + scale * (bound - free)
    kept, grown = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (bound, guided))
    return guided * cast(Tensor, kept / grown)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A family of diffusers pipelines: its class, its denoiser, and what their call does not show.

    `state` and `time` are the denoiser's names of what is not the condition, `clock` what it is
    told of the scheduler's time at states x, `sign` what its output is multiplied by. `unprompted`:
    whether a guided call asks once for both, unprompted rows first or last, or twice, the prompted
    first; or the twin is the empty prompt. `scale` is the call's name of guidance, ours less
    `offset`. Arguments in `shared` have no row a prompt; `masks` name the mask of a text which may
    be left out where every place is one.

    A family that edits pictures has its state and the picture's, packed alike, one behind the other
    (dimension 1). `edits` is what its call is given besides the picture, `sees` whether its text
    encoder reads that too, `image_scale` the call's name of guidance by the picture; the
    denoiser's channels are the latents of so many `pictures`. `picture_first`: whether its blocks
    put out the picture before the caption.
    """

    kind: str
    networks: tuple[str, ...]
    state: str = "hidden_states"
    time: str = "timestep"
    clock: Callable[[Observed, Tensor, Tensor], Tensor] = of_label
    sign: float = 1.0
    layout: Layout = PLANE
    unprompted: Literal["first", "last", "second", "empty"] = "first"
    combine: Callable[[Tensor, Tensor, float], Tensor] | None = None
    distilled: Callable[[Any], bool] = lambda pipeline: False
    scale: str = "guidance_scale"
    offset: float = 0.0
    negative: str | None = None
    shared: tuple[str, ...] = ()
    masks: Mapping[str, str] = field(default_factory=dict)
    masked: bool = True
    summary: str = "encoder_hidden_states"
    arguments: Callable[[Any], dict[str, Any]] = lambda pipeline: {}
    edits: Callable[[Observed], dict[str, Any]] | None = None
    sees: bool = False
    image_scale: str = ""
    pictures: int = 1
    picture_first: bool = False
    prepare: Callable[[str, Any], None] = lambda source, pipeline: None
    side: int | str = 0
    targets: tuple[str, ...] = ATTENTION
    needed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    @property
    def family(self) -> Family[Any]:
        return Family((self.kind,), self.networks, self.build, self.unused, self.needed)

    def guidance(self, scale: float, negatives: int) -> dict[str, Any]:
        """The arguments of the pipeline's call for our scale of guidance away from so many empty
        prompts."""
        empty = {} if self.negative is None else {"negative_prompt": [self.negative] * negatives}
        return {self.scale: scale - self.offset, **(empty if negatives else {})}

    def build(self, pipeline: Any, source: str, size: int | str) -> Observed:
        """The model of a pipeline."""
        self.prepare(source, pipeline)
        pipeline.set_progress_bar_config(disable=True)
        model = Observed
        if self.distilled(pipeline):
            model = ObservedTold
        elif self.combine is not None:
            model = ObservedGuiding
        shape = latent_shape(
            source,
            pipeline,
            size,
            packed=self.layout.patch,
            side=self.side,
            pictures=self.pictures,
        )
        if draws_videos(pipeline):
            shape = (shape[0], usual_frames(pipeline), *shape[1:])
        by_picture = default_argument(pipeline, self.image_scale) or 1.0
        schedule = schedule_of(source, pipeline.scheduler)
        return model(pipeline, schedule, shape, row=self, image_guidance=float(by_picture))


class _Asked(Exception):
    """The denoiser was called."""


class _Recorder:
    """Stands in a denoiser's place until its last call, of which it keeps the arguments by name."""

    def __init__(self, network: Any, calls: int) -> None:
        self.network, self.calls = network, calls
        self.signature = inspect.signature(network.forward)
        self.arguments: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.network, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls -= 1
        if self.calls:
            return self.network(*args, **kwargs)
        self.arguments = dict(self.signature.bind(*args, **kwargs).arguments)
        raise _Asked


@dataclass
class Observed(Pipelined):
    """A pipeline whose own call says what its denoiser is told; all but the denoiser is frozen."""

    row: Row = field(kw_only=True)
    twin: Named | None = field(default=None, kw_only=True, repr=False)
    """What the denoiser is told without a prompt, one row."""
    spare: Any = field(default=None, kw_only=True, repr=False)
    """What the pipeline's `encode_prompt` gave for the empty prompt, once there are no encoders."""
    image_guidance: float = field(default=1.0, kw_only=True)
    """Of a model that edits, and is guided by the picture: how far away from none."""
    twins: dict[str, Named] = field(default_factory=dict, kw_only=True, repr=False)
    """What the denoiser is told of the cached prompts' pictures alone, where encoders see them."""

    @property
    def targets(self) -> tuple[str, ...]:
        return self.row.targets

    @property
    def picture_first(self) -> bool:
        return self.row.picture_first

    @property
    def deployment(self) -> Deployment | None:
        """As of any pipeline, by its own name of guidance; none where it is not read at all."""
        own, row = super().deployment, self.row
        unread = row.unprompted == "empty" and not isinstance(self, ObservedTold)
        if own is None or unread:
            return own if own is None else replace(own, guidance=None)
        scale = default_argument(self.pipeline, row.scale)
        return replace(own, guidance=None if scale is None else scale + row.offset)

    # ------------------------------------------------------------------------ what is observed

    def asked(
        self, prompts: Sequence[str], calls: int = 1, **arguments: Any
    ) -> tuple[dict[str, Any], Any]:
        """What the pipeline's call gives the denoiser, at that one of its calls, by name; and its
        scheduler then. Latents come from a generator of its own, and steps from a copied scheduler.
        """
        pipeline, part, here = self.pipeline, self.part, self.device
        recorder, scheduler = _Recorder(self.network, calls), self._scheduler()
        drawn = {} if here.type == "meta" else {"generator": torch.Generator(here).manual_seed(0)}
        given = {"num_inference_steps": FEW, **self.sides, **self.row.arguments(pipeline)}
        places = {part: recorder, "scheduler": scheduler}
        before = {name: vars(pipeline)[name] for name in places}
        vars(pipeline).update(places)  # past what registers a new part
        try:
            given |= self.pictures(prompts)
            pipeline(prompt=[*prompts], output_type="latent", **{**given, **drawn, **arguments})
        except _Asked:
            return recorder.arguments, scheduler
        finally:
            vars(pipeline).update(before)
        raise RuntimeError(f"a {self.row.kind} drew without asking its {part} {calls} times")

    @property
    def _steps_itself(self) -> bool:
        """Whether a call of the pipeline tells more of its times than its scheduler's config."""
        return self.part != "unet" and not isinstance(self.process, Tabulated)

    def _scheduler(self) -> Any:
        """A copy of the pipeline's; of a UNet, whose call need not know it, and of a model without
        numbers, one that looks at none of its own."""
        from diffusers import DDIMScheduler

        if not self._steps_itself:
            return DDIMScheduler()
        return copied(self.pipeline.scheduler)

    @property
    def sides(self) -> dict[str, int]:
        """Height and width of the pictures in pixels, and how many frames videos have, as the
        pipeline's call takes them."""
        height, width = (side * self.factor for side in self.shape[-2:])
        frames = {"num_frames": self.frames} if self.frames else {}
        return {"height": height, "width": width, **frames}

    @property
    def edited_sides(self) -> dict[str, int] | None:
        return None if self.row.edits is None else self.sides

    def pictures(self, prompts: Sequence[str]) -> dict[str, Any]:
        """What the pipeline's call is given of the pictures that prompts edit."""
        if self.row.edits is None:
            return {}
        images = [editing.shown(prompt, self.sides) for prompt in prompts]
        return {"image": images, **self.row.edits(self)}

    @property
    def packed_length(self) -> int:
        """How long a packed state is in its dimension 1, behind which a picture's begins."""
        state = torch.empty(1, *self.shape, device="meta")
        return int(self.row.layout.pack(state).shape[1])

    def _scale(self, guided: bool) -> dict[str, Any]:
        """The argument of guidance: off, or on, or what the network itself is told."""
        row = self.row
        return row.guidance(GUIDED, 1) if guided else row.guidance(1.0, 0)

    def named(self, arguments: Mapping[str, Any], count: int) -> Named:
        """The arguments of a call on `count` states, but for what is not the condition."""
        row, rows, shared = self.row, dict[str, Tensor](), dict[str, Any]()
        if row.edits is not None:
            rows[PICTURE] = arguments[row.state][:, self.packed_length :]
        for name, value in _flat(arguments):
            if name in (row.state, row.time, "return_dict"):
                continue
            if isinstance(value, Tensor) and name not in row.shared:
                rows[name] = value
            elif isinstance(value, list) and len(value) == count and _tensors(value):
                rows[name], rows[name + MASK] = _filled(value)
            elif value is not None:
                shared[name] = value[:1] if isinstance(value, list) else value
        for name, mask in row.masks.items():
            if mask not in rows:
                rows[mask] = torch.ones(rows[name].shape[:2], device=rows[name].device).long()
        return Named(rows, shared, row.summary, row.masked)

    # ------------------------------------------------------------------------------ conditions

    def text_states(self, prompts: Sequence[str]) -> Named:
        """What the denoiser is told of prompts."""
        return self.named(self.asked(prompts, **self._scale(guided=False))[0], len(prompts))

    @property
    def multiple(self) -> int:
        return multiple(self.pipeline, self.row.layout.patch)

    def reshaped(self, shape: tuple[int, ...]) -> Self:
        return replace(super().reshaped(shape), twin=None, twins={})

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser is told of prompts, and without one."""
        tokens = self.text_states(prompts) if self.prompt_cache is None else self._cached(prompts)
        if self.row.sees:  # what is left without a text differs from picture to picture
            return Condition(tokens, self._seen_alone(prompts), own_nulls=True)
        if self.twin is None:
            self.twin = self._unprompted()
        self.twin = self.twin.to(self.device)
        if self.row.edits is None:
            return Condition(tokens, self.twin)
        alike = self.twin[torch.zeros(len(tokens), dtype=torch.long)]
        return Condition(
            tokens,
            replace(alike, rows={**alike.rows, PICTURE: tokens.rows[PICTURE]}),
            own_nulls=True,
            blind=self.twin if self.guided_by_picture else None,
            image_guidance=self.image_guidance,
        )

    @property
    def guided_by_picture(self) -> bool:
        """Whether guidance is away from no picture too, which is one more call."""
        return bool(self.row.image_scale) and self.image_guidance != 1

    def _seen_alone(self, prompts: Sequence[str]) -> Named:
        """What the denoiser is told of the pictures of prompts without their texts."""
        if self.prompt_cache is not None:
            return cast(Named, joined([self.twins[_key(p)] for p in prompts])).to(self.device)
        empty = self.row.negative or ""
        return self.text_states([Prompt(empty, picture=picture_of(prompt)) for prompt in prompts])

    def _unprompted(self) -> Named:
        row = self.row.unprompted
        if row == "empty":
            return self.text_states([""])
        calls = 2 if row == "second" else 1
        both = self.named(self.asked([""], calls, **self._scale(guided=True))[0], 3 - calls)
        return both[-1:] if row == "last" else both[:1]

    def keep(self, prompts: Sequence[str], batch: int) -> None:
        """As of any pipeline, with what its call needs to be run without encoders."""
        kept: list[Any] = [None]
        if self._steps_itself:
            with self._encoding() as kept:
                self.encode([""])
        else:
            self.encode([""])
        if self.row.sees:
            pictures = {_key(prompt): prompt for prompt in [*prompts, ""]}
            self.twins = {key: self._seen_alone([p]).to("cpu") for key, p in pictures.items()}
        super().keep(prompts, batch)
        self.spare = kept[-1]

    @contextmanager
    def _encoding(self) -> Iterator[list[Any]]:
        """Within this context what `encode_prompt` returns is kept; without encoders it returns
        what it did of the empty prompt."""
        inner, kept = self.pipeline.encode_prompt, list[Any]()

        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            kept.append(inner(*args, **kwargs) if self.spare is None else self.spare)
            return kept[-1]

        self.pipeline.encode_prompt = encode_prompt
        try:
            yield kept
        finally:
            del self.pipeline.encode_prompt

    def deployed_times(self, steps: int) -> Tensor:
        """The times [N+1] along which the pipeline itself would step, from a call of its own; of a
        UNet, a noise table and a model without weights, from the scheduler's config."""
        if not self._steps_itself:
            return super().deployed_times(steps)
        if self.device.type == "meta":
            return self._undrawn_times(steps)
        with torch.no_grad(), self._encoding(), taking(self.pipeline.scheduler, steps):
            scheduler = self.asked([""], num_inference_steps=steps, **self._scale(guided=False))[1]
        return times_along(self.schedule, scheduler, steps)

    def _undrawn_times(self, steps: int) -> Tensor:
        """The times of a model without weights; a shift that its call would work out from the size
        is the scheduler's smallest, which changes no number of steps."""
        own = copied(self.pipeline.scheduler)
        shifts = bool(own.config.get("use_dynamic_shifting"))
        with taking(own, steps):
            own.set_timesteps(steps, **({"mu": own.config.base_shift} if shifts else {}))
        return times_along(self.schedule, own, steps)

    # ------------------------------------------------------------------------- the denoiser

    def predict(self, x: Tensor, t: Tensor, tokens: Named) -> Tensor:
        row, dtype = self.row, self.dtype
        shown, label = self.told(x, t)
        packed = row.layout.pack(shown.to(dtype))
        length = packed.shape[1] if row.edits is not None else 0
        if length:
            packed = torch.cat([packed, tokens.rows[PICTURE].to(dtype)], 1)
        output = self.network(
            **{row.state: packed, row.time: row.clock(self, label, x)},
            **_arguments(tokens, len(x), dtype),
            return_dict=False,
        )[0]
        if length:  # what it says of the picture's own places is not used
            output = output[:, :length]
        return row.sign * row.layout.unpack(output, x)


@dataclass
class ObservedTold(Told, Observed):
    """The same, with guidance distilled into the denoiser: it is told the scale."""

    def _scale(self, guided: bool) -> dict[str, Any]:
        return {self.row.scale: self.scale}


@dataclass
class ObservedGuiding(Observed):
    """The same, whose pipeline puts prompted and unprompted outputs together in its own way."""

    def guided(self, free: Tensor, bound: Tensor, scale: float) -> Tensor:
        """The output [B, *S] of guidance."""
        layout, combine = self.row.layout, cast(Any, self.row.combine)
        packed: Tensor = combine(layout.pack(free), layout.pack(bound), scale)
        return layout.unpack(packed, free)


def _flat(arguments: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Arguments by name, those within dictionaries by their path."""
    for name, value in arguments.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        else:
            yield path + name, value


def _key(prompt: str) -> str:
    """The picture of a prompt, as a key."""
    picture = picture_of(prompt)
    return "" if picture is None else picture.sha256


def _tensors(values: list[Any]) -> bool:
    return all(isinstance(value, Tensor) for value in values)


def _filled(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Texts [L, D] of several lengths as one tensor [B, L, D], and which places are [B, L]."""
    masks = [torch.ones(len(text), device=text.device).long() for text in texts]
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(texts, batch_first=True), pad(masks, batch_first=True)


def _arguments(tokens: Named, count: int, dtype: torch.dtype) -> dict[str, Any]:
    """A condition as the denoiser's arguments on `count` states."""
    flat: dict[str, Any] = {}
    for name, rows in tokens.rows.items():
        rows = rows.to(dtype) if rows.is_floating_point() else rows
        if name + MASK in tokens.rows:
            mask = tokens.rows[name + MASK]
            flat[name] = [row[places > 0] for row, places in zip(rows, mask, strict=True)]
        elif not name.endswith(MASK) and name != PICTURE:
            flat[name] = rows
    for name, value in tokens.shared.items():
        flat[name] = value * count if isinstance(value, list) else value
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split(".")
        place = nested
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = value
    return nested
