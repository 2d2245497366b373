"""The configuration tree: strict and typed. A recipe returns a `Run`; nothing else configures one.

`training.overrides` has what `a.b=c` does to it. Each section says itself which of its settings
are never read, given the others (`inert`): a change of such a setting is refused, not ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from scoretune.core.errors import visible

NEW_NETWORKS = ("unet", "dit", "mlp")
SHIPPED_MODELS = ("scenes", "scenes-flow")
SCENES = ("scenes", "scenes-held-out")
FUNCTION = r"[\w.]*:\w*"
"""How a user's own function is named: module:function."""
ONE_REWARD = r"https?://\S+|[\w.]+(:\w+)?(\([^()]*\))?"
"""How a reward is written that is no sum of others."""
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


def _only(condition: bool, why: str, *names: str) -> dict[str, str]:
    """These settings are inert unless the condition holds."""
    return {} if condition else dict.fromkeys(names, why)


def _by_outcome(objective: Objective) -> bool:
    """Whether it learns from likelihood ratios that are credited by how a path ends."""
    return isinstance(objective, PolicyGradient) and objective.baseline != "critic"


def _listed(value: Any) -> Any:
    """`a,b` as well as ["a", "b"]; a column may be called by a number."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]
OdeSolver: TypeAlias = Literal["ddim", "euler", "heun", "edm_heun", "dpmpp_2m"]
"""The names in `diffusion.solvers.ODE_SOLVERS`; a test compares the two."""


class Model(Strict):
    """What is fine-tuned, and how much of it; or the network that is trained from nothing."""

    source: str = Field(
        "scenes",
        description="'scenes', 'scenes-flow', a folder, a hub id, a network of your own as "
        "module:function; or a new 'unet', 'dit' or 'mlp'",
    )
    revision: str | None = Field(None, description="of a model of the hub: a branch, tag or commit")
    size: int = Field(
        0, ge=0, le=SIDE, description="side of the pictures in pixels; 0: the model's own"
    )
    shape: tuple[Annotated[int, Field(ge=1, le=2**20)], ...] = Field(
        (), description="module:function: of one state, e.g. [3,32,32] for pictures in [0, 1]"
    )
    without: Names = Field(
        (), max_length=NAMES, description="parts to leave out, e.g. text_encoder_3 (a T5)"
    )
    rank: int = Field(
        16, ge=0, le=4096, description="of the LoRA; 0 trains every weight, at a far lower rate"
    )
    targets: tuple[str, ...] = Field(
        ("to_q", "to_k", "to_v", "to_out.0"),
        max_length=NAMES,
        description="layers that the LoRA adapts, by the ends of their names",
    )
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="of the frozen weights; likelihoods and the adapter have fp32 or more"
    )
    guidance: float | None = Field(
        None,
        ge=0,
        le=1000,
        description="classifier-free, null: 1; what a guidance-distilled network is told, null: "
        "its pipeline's own",
    )
    process: str | None = Field(
        None,
        description="run the network under another process, e.g. VE(sigma_max=14); a new network: "
        "the process it is trained under",
    )
    prediction: Literal["epsilon", "sample", "v_prediction", "velocity"] | None = Field(
        None, description="of a new network: what it is trained to output"
    )
    width: int = Field(0, ge=0, le=4096, description="of a new network; 0: as suits its kind")
    depth: int = Field(0, ge=0, le=256, description="of a new network; 0: as suits its kind")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        new, function = self.source in NEW_NETWORKS, bool(re.fullmatch(FUNCTION, self.source))
        shipped = self.source in SHIPPED_MODELS
        network = Checked("a network of your own, model.source=module:function")
        fresh = Checked("a new network, model.source=unet, dit or mlp")
        return {
            **_only(self.rank > 0, "a LoRA, model.rank above 0", "targets"),
            **_only(function, network, "shape"),
            **_only(new or function, fresh, "prediction"),
            **_only(new, fresh, "width", "depth"),
            **_only(not on_data or new, Checked("a new network, or a pretrained one"), "process"),
            **_only(not on_data and not function, "a diffusers pipeline", "size", "without"),
            **_only(not on_data, REWARDED, "targets"),
            **_only(not function and not shipped, "a model of the hub", "revision"),
            **_only(not on_data, Checked(REWARDED), "rank", "precision", "guidance", "revision"),
        }


class Dataset(Strict):
    """How `data` are read for a network of one's own."""

    kind: Literal["auto", "images", "points", "series"] = Field(
        "auto", description="what the data are"
    )
    key: str | None = Field(None, description="which array of a .npz file")
    columns: Names = Field(
        (), max_length=LONGEST, description="of a table; empty takes all that hold numbers"
    )
    window: int = Field(
        0, ge=0, le=2**20, description="rows that make a series; 0: a row is a point"
    )
    stride: int = Field(1, ge=1, le=2**20, description="rows from one window to the next")
    size: int = Field(
        0, ge=0, le=SIDE, description="side to scale and crop pictures to; 0: as they are"
    )
    channels: Literal["auto", "first", "last"] = Field("auto", description="of images in arrays")
    held_out: float = Field(0.1, gt=0, lt=1, description="share that is never learned from")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return {
            **_only(self.window > 0, "dataset.window above 0", "stride"),
            **_only(on_data, ON_DATA, *self.leaves()),
        }


class Window(Strict):
    """Which steps of a path are stochastic and learned from; an ODE solver takes the others."""

    size: int = Field(
        0, ge=0, le=STEPS, description="steps; 0: every step is stochastic, there is no window"
    )
    order: Literal["progressive", "random", "frozen"] = Field(
        "progressive", description="moves from noise to data and begins again; jumps; stays"
    )
    every: int = Field(1, ge=1, le=UPDATES, description="updates between two moves")
    stride: int = Field(1, ge=1, le=STEPS, description="steps a move")
    decay: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="progressive: how fast stays grow shorter towards the data; 0: not",
    )
    decay_from: int = Field(13, ge=0, le=STEPS, description="the place from which on they do")
    solver: OdeSolver = Field("ddim", description="of the other steps")
    compress: float = Field(
        1.0, gt=0, le=1, description="share of the steps after the window that is taken"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        others = [name for name in self.leaves() if name != "size"]
        ratios = "likelihood ratios credited by outcome: mix_grpo, flow_grpo, ddpo"
        progressive = "sampling.window.order=progressive"
        return {
            **_only(self.decay > 0, "sampling.window.decay above 0", "decay_from"),
            **_only(self.order != "frozen", f"{progressive} or random", "every"),
            **_only(self.order == "progressive", progressive, "stride", "decay", "decay_from"),
            **_only(self.size > 0, "sampling.window.size above 0", *others),
            **_only(_by_outcome(run.objective), ratios, *others),
            **_only(_by_outcome(run.objective), Checked(ratios), "size"),
        }


class Sampling(Strict):
    """How the policy acts while it trains."""

    kernel: Literal["gddim", "renoise", "euler_maruyama", "exponential"] = Field(
        "gddim", description="how a step is taken"
    )
    noise: Literal["constant", "ramp", "flow", "dance", "cps"] = Field(
        "constant", description="how noisy at which time; `eta` is its level"
    )
    eta: float = Field(
        1.0,
        ge=0,
        le=100,
        description="stochasticity: 1 is the reverse SDE, 0 the ODE (draft, alignprop, refl); with "
        "noise=flow, dance or cps the level of that paper: η = eta/√2, η = eta/g(t), a share of "
        "the std",
    )
    eta_end: float | None = Field(None, ge=0, le=100, description="ramp: stochasticity at the data")
    steps: int = Field(10, ge=2, le=STEPS, description="of a path")
    grid: Literal["auto", "karras", "uniform", "shifted"] = Field(
        "auto", description="auto: karras; uniform where the noise has no finite ratio to data"
    )
    shift: float = Field(3.0, ge=1e-3, le=1000, description="of grid shifted")
    window: Window = Window()
    shared_noise: bool = Field(False, description="the samples of a prompt begin with one noise")
    jitter: bool = Field(False, description="draw the inner times anew for every path")
    integral_end: float = Field(
        1e-3,
        gt=0,
        lt=1,
        description="flows: share of the horizon where girsanov_kl ends; it grows like ln 1/t",
    )
    solver: OdeSolver | None = Field(
        None,
        description="null: the kernel's noise; else an ODE solver, for forms rate and explicit",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        objective, acts = run.objective, not run.objective.on_data
        forms = ("auto", "rate", "explicit")
        rates = isinstance(objective, ScoreAction) and objective.form in forms
        whose = Checked("score_as_action with objective.form=auto, rate or explicit")
        noise = "the kernel's noise, sampling.solver=null"
        return {
            **_only(self.noise == "ramp", "sampling.noise=ramp", "eta_end"),
            **_only(self.grid == "shifted", "sampling.grid=shifted", "shift"),
            **_only(run.sizes.group > 1, "sizes.group above 1", "shared_noise"),
            **_only(self.solver is None or not rates, noise, "kernel", "noise", "eta", "eta_end"),
            **_only(rates or self.jitter, f"{whose}, or sampling.jitter", "integral_end"),
            **_only(rates, whose, "solver"),
            **_only(
                acts,
                ON_POLICY,
                *("shared_noise", "jitter", "solver", "window.size", "integral_end"),
            ),
            **_only(not on_data, REWARDED, *self.leaves()),
        }


class Sizes(Strict):
    """How much is sampled and learned an update."""

    prompts: int = Field(16, ge=1, le=SAMPLES, description="an update")
    group: int = Field(8, ge=1, le=SAMPLES, description="samples of each prompt")
    batch: int = Field(
        0, ge=0, le=SAMPLES, description="matching: examples an update; 0: prompts × group"
    )
    minibatch: int = Field(
        64, ge=1, le=SAMPLES, description="steps, or paths, learned from at once"
    )
    share: float = Field(1.0, gt=0, le=1, description="of each path's steps that are learned from")
    accumulate: int = Field(
        1,
        ge=0,
        le=SAMPLES,
        description="minibatches an optimiser step; 0 makes one step of an epoch",
    )
    epochs: int = Field(
        1, ge=1, le=1000, description="passes over a round's states, each in a new order"
    )

    @model_validator(mode="after")
    def bounded(self) -> Sizes:
        """Refuse more samples than an update can hold."""
        if self.prompts * self.group > SAMPLES:
            raise PydanticCustomError(
                "samples",
                "prompts × group is {count} samples an update: at most {most}",
                {"count": self.prompts * self.group, "most": SAMPLES},
            )
        return self

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        acts, objective = not run.objective.on_data, run.objective
        scores = isinstance(objective, PolicyGradient) and objective.surrogate == "score_function"
        any_step = "recipes that learn from any step of a path (here objective.last says which)"
        several = (
            "objective.surrogate=clipped, since a score function is right for a single step of the "
            "optimiser a round, sizes.accumulate=0"
        )
        return {
            **_only(acts or not self.batch, "sizes.batch=0", "prompts", "group"),
            **_only(not acts, Checked("recipes on data"), "batch"),
            **_only(not isinstance(objective, Direct), any_step, "share"),
            **_only(
                not isinstance(objective, RankedPreference),
                "recipes that learn from the steps of paths (d3po, spo)",
                "share",
            ),
            **_only(run.sampling.window.size != 1, "more than one noisy step a path", "share"),
            **_only(acts, ON_POLICY, "minibatch", "share", "accumulate", "epochs"),
            **_only(not scores or not self.accumulate, several, "accumulate"),
            **_only(not scores or self.epochs == 1, several, "epochs"),
        }


class Hardware(Strict):
    """How the machine does it; changes no result beyond rounding."""

    device_batch: int = Field(
        0,
        ge=0,
        le=SAMPLES,
        description="states a network sees at once on a device; 0: as sizes says",
    )
    checkpointing: bool = Field(
        False, description="activations are computed again instead of kept: less memory, slower"
    )
    cache_prompts: bool = Field(
        False, description="encode every prompt once, then let go of the text encoders"
    )
    decode_batch: int = Field(
        0, ge=0, le=SAMPLES, description="pictures decoded at once; 0: about four megapixels"
    )
    offload_paths: bool = Field(False, description="paths wait in the computer's memory")
    compile: bool = Field(False, description="torch.compile the network")
    channels_last: bool = Field(False, description="memory layout of convolutions")
    shard: bool = Field(False, description="spread the weights over the processes (FSDP2)")
    deterministic: bool = Field(
        False,
        description="kernels that give the same bits every time: slower, and some have none",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(not on_data, Checked(REWARDED), *self.leaves())


class Tracking(Strict):
    """Where numbers go besides the run folder's metrics.jsonl."""

    trackers: Names = Field(
        (), max_length=NAMES, description="tensorboard, wandb, trackio: any of them"
    )
    project: str = Field("scoretune", description="what the trackers file the run under")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(bool(self.trackers), "tracking.trackers", "project")


class Optimiser(Strict):
    """AdamW on the adapter."""

    kind: Literal["adamw", "fused", "8bit"] = Field(
        "adamw", description="fused: one kernel a step; 8bit: bitsandbytes' (an extra)"
    )
    learning_rate: float = Field(1e-3, gt=0, le=10, description="at the first update")
    weight_decay: float = Field(0.0, ge=0, le=1000, description="decoupled, as AdamW has it")
    clip_norm: float = Field(1.0, ge=1e-9, le=1e9, description="longest gradient of a step")
    decay: Literal["linear", "none"] = Field("linear", description="of the rate, to 0 at the end")
    nonfinite: Literal["stop", "skip"] = Field(
        "stop", description="a step whose gradient is NaN or infinite: ends the run, or is left out"
    )
    ema: float = Field(
        0.0, ge=0, lt=1, description="networks from data: decay of the averaged weights; 0: none"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(on_data, ON_DATA, "ema")


class Critic(Strict):
    """The value network: V = c_skip(t)·reward(x̂0) + c_out(t)·F."""

    learning_rate: float = Field(1e-3, gt=0, le=10, description="of the critic")
    width: int = Field(48, ge=8, le=4096, multiple_of=4, description="channels of F")
    passes: int = Field(2, ge=1, le=1000, description="over a round's states, each round")
    warmup: int = Field(
        1, ge=0, le=UPDATES, description="rounds that only fit the critic, before update 1"
    )
    body: Literal["auto", "small", "backbone"] = Field(
        "auto", description="F: a head on the policy's features (auto: if it has any), or small"
    )
    skip: Literal["cos_sin", "linear", "cos", "none"] = Field(
        "cos_sin", description="c_skip and c_out over time; none: V = F alone"
    )
    inputs: Literal["both", "noisy", "denoised"] = Field("both", description="of a small F")
    gae_lambda: float | None = Field(
        None,
        ge=0,
        le=1,
        description="ratios: what an increment of the value at the end of a path counts at its "
        "beginning; 0: a step's own increment, 1: the outcome; null: 0 in score_as_action, else 1",
    )
    estimate: Literal["pretrained", "policy"] = Field(
        "pretrained",
        validation_alias=AliasChoices("estimate", "jacobian"),
        description="whose x̂0(x) the value reads where its slope is asked for",
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        objective = run.objective
        slopes = isinstance(objective, ScoreAction) and objective.form != "ratio"
        valued = isinstance(objective, ScoreAction) or (
            isinstance(objective, PolicyGradient) and objective.baseline == "critic"
        )
        return {
            **_only(self.body != "backbone", Checked("objective.critic.body=small"), "inputs"),
            **_only(
                slopes, "score_as_action and objective.form=slope, rate or explicit", "estimate"
            ),
            **_only(
                not isinstance(objective, ScoreAction) or objective.form in ("auto", "ratio"),
                "objective.form=ratio",
                "gae_lambda",
            ),
            **_only(valued, "objective.baseline=critic", *self.leaves()),
        }


class Objective(Strict):
    """What is minimised; `on_data`: it is learned from data, not from the policy's own samples."""

    on_data: ClassVar[bool] = False


class Matching(Objective):
    """Score matching on data."""

    on_data: ClassVar[bool] = True
    kind: Literal["matching"] = "matching"
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    weight: Literal["own", "noise", "data", "v", "velocity", "likelihood", "edm", "min_snr"] = (
        Field(
            "own",
            description="on the error; own: 1 on what the network predicts; edm: as published, "
            "for data of deviation 0.5, though data of one's own are standardised to 1",
        )
    )
    times: Literal["uniform", "importance", "lognormal", "logit_normal"] = Field(
        "uniform",
        description="how times are drawn; lognormal: as published, for data of deviation 0.5",
    )
    loss: Literal["denoising", "sliced", "implicit"] = Field(
        "denoising", description="of score matching; the last two from derivatives of the network"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of prompts that are left empty")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(not on_data, Checked(REWARDED), "dropout")


class Consistency(Objective):
    """One call of the network says where a path began (arXiv 2303.01469, 2310.14189)."""

    on_data: ClassVar[bool] = True
    kind: Literal["consistency"] = "consistency"
    rule: Literal["auto", "distillation", "ict", "ct"] = Field(
        "auto", description="auto: distillation of a trained network, ict for a new one"
    )
    points: int = Field(
        0, ge=0, le=100_000, description="of the finest grid; 0: as the rule's paper has it"
    )
    solver: Literal["heun", "euler"] = Field("heun", description="the teacher's")
    decay: float = Field(0.95, ge=0, lt=1, description="distillation: memory of the target network")
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    sigma_data: float = Field(
        1.0, ge=1e-4, le=1e4, description="deviation of the states: data are standardised"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        new = run.model.source in NEW_NETWORKS
        distils = self.rule == "distillation" or (self.rule == "auto" and not new)
        taught = "objective.rule=distillation of a trained network"
        return _only(distils, taught, "solver", "decay")


def _deviation(value: object) -> object:
    """`shared_scale` was a bool, and is in the files of older runs."""
    return {True: "within", False: "group"}[value] if isinstance(value, bool) else value


class Trusting(Objective):
    """What may bound how far an update goes."""

    trust_region: float | None = Field(
        None, ge=1e-9, le=1e9, description="KL that an update may move, in nats; adapts a penalty"
    )
    early_stop: bool = Field(
        False, description="end an update that has moved 1.5 times the trust region"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(self.trust_region is not None, "objective.trust_region", "early_stop")


class PolicyGradient(Trusting):
    """Likelihood ratios and the rewards of whole paths: REINFORCE, DDPO, DPOK, GRPO."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    surrogate: Literal["clipped", "score_function"] = Field(
        "clipped", description="PPO's, or REINFORCE for a single step of the optimiser a round"
    )
    clip: float = Field(0.2, ge=1e-9, le=1e6, description="how far a likelihood ratio may leave 1")
    kl_weight: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="of the KL to the pretrained model: deviations of the reward a nat; with "
        "baseline=critic, which divides by none, the reward's own unit a nat",
    )
    temperature: float = Field(
        1.0, ge=1e-6, le=1e9, description="divides log-ratios, which are sums over dimensions"
    )
    baseline: Literal["group", "running", "critic"] = Field(
        "group",
        description="what a reward is compared with: its prompt's others of the update, its "
        "prompt's last `buffer` ones, or a value",
    )
    combine: Literal["rewards", "advantages"] = Field(
        "rewards", description="several rewards: weighted before they are compared, or after"
    )
    buffer: int = Field(
        32, ge=2, le=SAMPLES, description="running: rewards remembered of each prompt"
    )
    min_count: int = Field(
        16,
        ge=2,
        le=SAMPLES,
        description="running: with fewer than that, compared with the whole batch",
    )
    shared_scale: Annotated[Literal["group", "within", "global"], BeforeValidator(_deviation)] = (
        Field(
            "within",
            description="group: rewards are divided by their group's own deviation, by one of all "
            "about their group's mean, or by one of all about the mean of all",
        )
    )
    critic: Critic = Critic()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        one_reward = re.fullmatch(ONE_REWARD, run.reward) is not None
        clipped, steps = self.surrogate == "clipped", run.sizes.accumulate
        one_step = "a single step of the optimiser a round, sizes.accumulate=0"
        return {
            **_only(clipped, "objective.surrogate=clipped", "clip"),
            **_only(clipped or not steps, one_step, "surrogate"),
            **super().inert(run, on_data),
            **_only(not one_reward, "a sum of rewards, reward=a + 0.5*b", "combine"),
            **_only(
                self.baseline == "running", "objective.baseline=running", "buffer", "min_count"
            ),
            **_only(self.baseline == "group", "objective.baseline=group", "shared_scale"),
        }


class ScoreAction(Trusting):
    """Continuous-time policy optimisation with a critic."""

    kind: Literal["score_action"] = "score_action"
    form: Literal["auto", "slope", "rate", "explicit", "ratio"] = Field(
        "auto", description="auto: rate if the reward has a gradient, else ratio"
    )
    clip: float = Field(0.2, ge=1e-9, le=1e6, description="how far a likelihood ratio may leave 1")
    kl_weight: float = Field(
        0.003,
        ge=0,
        le=1e6,
        description="of the KL to the pretrained model, in the reward's own unit a nat; the "
        "default is for a log-probability: scale it with the reward",
    )
    exploration: float = Field(
        0.3, ge=1e-6, le=100, description="explicit: deviation of tried noise estimates"
    )
    critic: Critic = Critic()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        ratios = self.form in ("auto", "ratio", "explicit")
        return {
            **_only(ratios, "objective.form=ratio or explicit", "clip"),
            **_only(self.form == "explicit", "objective.form=explicit", "exploration"),
            **super().inert(run, on_data),
        }


class Preference(Objective):
    """Which of two samples people prefer, or which they like: Diffusion-DPO and its kin."""

    on_data: ClassVar[bool] = True
    kind: Literal["preference"] = "preference"
    preset: str = Field(
        "dpo", description="the loss: dpo, ipo, kto, simpo, mallows_theta, rainbow, dspo …"
    )
    beta: float | None = Field(
        None,
        ge=1e-9,
        le=1e9,
        description="how closely the model is held to the pretrained one; null: 5000 with "
        "beta_unit=mean (100 without the whole reference, 0.01 for dspo), or as much in nats",
    )
    beta_unit: Literal["mean", "nats"] = Field(
        "mean",
        description="of beta; mean: Diffusion-DPO's B, on the mean squared error of an element, at "
        "all times alike; nats: on the bound of the log-likelihood, a sum over elements and an "
        "integral over the log-SNR",
    )
    times: Literal["uniform", "importance", "lognormal", "logit_normal"] = Field(
        "uniform",
        description="how times are drawn; importance: uniformly in the log-SNR; the last two are "
        "emphases, for beta_unit=mean",
    )
    t_min: float = Field(1e-3, ge=1e-9, le=1e4, description="smallest time that is learned from")
    alpha: float | None = Field(
        None,
        ge=0,
        le=1,
        description="the pretrained model's part in the reference, of which the rest sets every "
        "pair apart by the margin; null: the preset's own",
    )
    margin: float | None = Field(
        None,
        ge=0,
        le=1e9,
        description="by how much the preferred side should be ahead, as a reward (beta times a "
        "difference); odpo: times the difference of scores; null: the preset's own",
    )
    sft_weight: float | None = Field(
        None, ge=0, le=1e9, description="of the preferred side's own error; null: the preset's own"
    )
    label_smoothing: float | None = Field(
        None,
        ge=0,
        lt=0.5,
        description="share of labels that are taken to be wrong; null: the preset's own",
    )
    dispersion: Literal["none", "votes", "model"] = Field(
        "none",
        description="what tells disputed prompts from agreed ones, for the mallows presets and "
        "rainbow: the raters' votes, or how unsure the pretrained model is of the pictures",
    )
    ties: Literal["keep", "drop"] = Field("keep", description="pairs of which neither is preferred")
    raters: Literal["soft", "separate"] = Field(
        "soft", description="several of one pair: their share is its label, or a pair each"
    )
    likes: bool = Field(
        False, description="kto: data are single samples, liked or not; else both sides of pairs"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="share of prompts that are left empty")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(not self.likes, "objective.likes=false", "ties", "raters")


class Ranking(Strict):
    """How the policy's own samples become pairs with labels."""

    pairing: Literal["extremes", "all"] = Field(
        "extremes", description="of a prompt's samples: the best and the worst, or every two"
    )
    label: Literal["hard", "soft", "votes"] = Field(
        "hard",
        description="hard: the higher reward is preferred; soft: with probability "
        "σ((r − r')/temperature), Bradley–Terry; votes: the share of raters who vote so",
    )
    temperature: float = Field(
        1.0, ge=1e-9, le=1e9, description="the difference of rewards that a rater barely sees"
    )
    raters: int = Field(3, ge=1, le=1000, description="votes: how many raters there are")
    ties: Literal["keep", "drop"] = Field(
        "drop", description="pairs of equal rewards or of as many votes"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        votes, objective = self.label == "votes", run.objective
        of_candidates = _of_candidates(objective)
        weighed = (
            isinstance(objective, RankedPreference) and objective.dispersion == "samples"
        ) or (isinstance(objective, StepPreference) and of_candidates and objective.threshold > 0)
        whole = "the samples of a prompt: online_dpo and d3po"
        return {
            **_only(votes, "objective.ranking.label=votes", "raters"),
            **_only(
                self.label != "hard" or weighed,
                "objective.ranking.label=soft or votes, or objective.dispersion=samples",
                "temperature",
            ),
            **_only(not of_candidates, whole, "pairing"),
            **_only(run.sizes.group != 2 or of_candidates, "sizes.group above 2", "pairing"),
        }


def _of_candidates(objective: Objective) -> bool:
    """Whether preferences are of candidates of single steps, not of whole paths."""
    return isinstance(objective, StepPreference) and objective.candidates > 0


class RankedPreference(Preference):
    """Preferences about the policy's own samples, ranked by the reward: online DPO."""

    on_data: ClassVar[bool] = False
    kind: Literal["ranked_preference"] = "ranked_preference"  # type: ignore[assignment]
    reference: Literal["pretrained", "acting"] = Field(
        "pretrained", description="acting: the policy that drew the samples, the last round's"
    )
    dispersion: Literal["none", "votes", "samples"] = Field(  # type: ignore[assignment]
        "none",
        description="what tells disputed prompts from agreed ones, for the mallows presets and "
        "rainbow: the raters' votes, or how far the rewards of a prompt's samples lie apart",
    )
    ranking: Ranking = Ranking()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        data = "recipes on pairs of data; objective.ranking says it here"
        return {
            **super().inert(run, on_data),
            **dict.fromkeys(("ties", "raters", "likes"), data),
        }


class StepPreference(Objective):
    """Preferences about single steps of a sampler: D3PO and SPO."""

    kind: Literal["step_preference"] = "step_preference"
    preset: str = Field("dpo", description="the loss, any of pairs")
    beta: float = Field(0.1, ge=1e-9, le=1e9, description="multiplies a step's log-ratio, in nats")
    clip: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="how far a step's likelihood ratio to the reference may leave 1 before it is "
        "no longer pushed; null: any distance",
    )
    temperature: float = Field(
        1.0,
        ge=1e-6,
        le=1e9,
        description="divides log-ratios, which are sums over dimensions: as many as there are make "
        "the means of the published code",
    )
    reference: Literal["pretrained", "acting"] = Field(
        "pretrained", description="acting: the policy that drew the samples, the last round's"
    )
    candidates: int = Field(
        0,
        ge=0,
        le=64,
        description="0: the steps of a prompt's samples, ranked at their ends; else so many next "
        "states of each step, ranked by the reward of what the policy expects of them",
    )
    threshold: float = Field(
        0.3,
        ge=0,
        lt=1,
        description="candidates: smallest gap of their softmax, at ranking.temperature, to learn "
        "from",
    )
    skip: int = Field(
        0, ge=0, le=STEPS, description="candidates: steps from noise that have only one"
    )
    ranking: Ranking = Ranking()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        several = "objective.candidates above 1"
        return _only(self.candidates > 0, several, "threshold", "skip")


class Direct(Objective):
    """The reward's gradient through the last steps (DRaFT, AlignProp) or the estimate (ReFL)."""

    kind: Literal["direct"] = "direct"
    through: Literal["steps", "estimate"] = Field(
        "steps", description="what the gradient passes through"
    )
    last: int = Field(1, ge=1, le=STEPS, description="steps, from the end, that are learned from")
    random: bool = Field(False, description="a random number of them, up to `last`")
    graph: Literal["auto", "kept", "steps"] = Field(
        "auto",
        description="kept: of all those steps at once; steps: of one at a time, less memory and "
        "slower; auto: kept without a KL weight, hardware.checkpointing or sizes.accumulate",
    )
    kl_weight: float = Field(0.0, ge=0, le=1e6, description="of the KL to the pretrained model")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return _only(self.through == "steps", "objective.through=steps", "random", "graph")


class Adjoint(Objective):
    """Adjoint matching: regression onto lean adjoints under the pretrained model."""

    kind: Literal["adjoint"] = "adjoint"
    kl_weight: float = Field(0.003, gt=0, le=1e6, description="of the KL to the pretrained model")


class Energy(Objective):
    """D(x)MI: the reward is learned, an energy that tells data from samples."""

    kind: Literal["energy"] = "energy"
    update: Literal["dxmi", "ctrl"] = Field(
        "dxmi", description="value slopes where a step arrives, or where it starts"
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="of the energy")
    width: int = Field(48, ge=8, le=4096, multiple_of=4, description="channels of the energy")
    kl_weight: float = Field(0.0, ge=0, le=1e6, description="of the KL to the pretrained model")


class Gap(Strict):
    """The reward-gap matrix that evaluations add: every η at every number of steps."""

    steps: tuple[Annotated[int, Field(ge=1, le=STEPS)], ...] = Field(
        (), max_length=64, description="numbers of steps; empty: no matrix"
    )
    etas: tuple[Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)], ...] = Field(
        (0.0, 0.5, 1.0, 1.5), min_length=1, max_length=64, description="0 is the ODE"
    )
    every: int = Field(1, ge=1, le=UPDATES, description="evaluations between two matrices")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        return {
            **_only(bool(self.steps), "evaluation.gap.steps", "etas", "every"),
            **_only(not on_data, Checked(REWARDED), *self.leaves()),
        }


class Guard(Strict):
    """What watches over a run for a reward that is gamed, at every evaluation."""

    action: Literal["off", "warn", "stop", "rollback"] = Field(
        "warn", description="on alarm; rollback: end with the weights of the best evaluation"
    )
    judge: str | None = Field(
        None, description="a reward that is never optimised; null: the model's own judge, if any"
    )
    margin: float = Field(
        0.0,
        ge=0,
        le=1e9,
        description="how far below its best the judge may fall, besides by chance",
    )
    chain_kl: float | None = Field(
        None,
        gt=0,
        le=1e9,
        validation_alias=AliasChoices("chain_kl", "path_kl"),
        description="budget of the chain's KL to the base model, in nats; null: none",
    )
    diversity: float = Field(0.7, ge=0, le=1, description="share of the base model's to keep")
    features: str | None = Field(
        None, description="in which diversity is measured; null: the judge's, or pixels"
    )
    pattern: float = Field(
        3.0,
        ge=1,
        le=1e9,
        description="periodic artefacts: how many times the base model's, at most",
    )
    implicit_accuracy: float = Field(
        0.98,
        ge=0.5,
        le=1,
        description="preferences: above it, since the last evaluation, the pairs are told apart by "
        "something trivial, and pictures that have changed by image_shift are an alarm",
    )
    image_shift: float = Field(
        0.1, ge=0, le=1, description="preferences: mean change of a pixel since the base model"
    )
    patience: int = Field(1, ge=1, le=UPDATES, description="evaluations in a row before an alarm")

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        others = [name for name in self.leaves() if name != "action"]
        judged = isinstance(run.objective, Preference)
        return {
            **_only(judged, "recipes on preferences", "implicit_accuracy", "image_shift"),
            **_only(self.action != "off", "guard.action=warn, stop or rollback", *others),
            **_only(not on_data, REWARDED, *self.leaves()),
        }


class Evaluation(Strict):
    """How progress is measured: held-out prompts, fixed noise, the deterministic sampler."""

    gap: Gap = Gap()

    prompts: str | None = Field(
        None, description="as `prompts`; null: held-out scenes, or a user's model's own prompts"
    )
    per_task: int = Field(
        30,
        ge=0,
        le=10_000,
        description="scenes, or prompts trained on too: how many of each task; 0: all",
    )
    solver: OdeSolver = Field("ddim", description="of the deterministic sampler")
    steps: int = Field(20, ge=1, le=STEPS, description="of that sampler")
    every: int = Field(
        14, ge=0, le=UPDATES, description="updates between evaluations; 0 only at both ends"
    )
    seed: int = Field(
        20240, ge=0, le=2**32 - 1, description="of the noise, the same at every evaluation"
    )
    samples: int = Field(
        500, ge=2, le=100_000, description="networks from data: drawn at each evaluation"
    )

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        listed = self.prompts is None or self.prompts in (*SCENES, "none")
        one_step = isinstance(run.objective, Consistency)
        return {
            **_only(on_data, ON_DATA, "samples"),
            **_only(listed, "evaluation.prompts=null, or scenes", "per_task"),
            **_only(not on_data, REWARDED, "prompts", "per_task"),
            **_only(not one_step, "a model that is no consistency model", "solver"),
        }


class Checkpoints(Strict):
    """When to save, and how many to keep."""

    every: int = Field(5, ge=1, le=UPDATES, description="updates between two checkpoints")
    keep: int = Field(2, ge=1, le=UPDATES, description="how many, the newest")


class Run(Strict):
    """Everything that decides what a run does."""

    recipe: str = Field(description="the method that the settings began with")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="of everything random")
    updates: int = Field(50, ge=1, le=UPDATES, description="rounds of sampling and learning")
    model: Model = Model()
    prompts: str = Field(
        "scenes",
        description="'scenes', a file (txt, csv, tsv, jsonl, parquet), datasets:ID, or 'none'",
    )
    prompts_per_task: int = Field(
        200, ge=0, le=10_000, description="scenes: as many of each task; 0 takes all"
    )
    data: str = Field(
        "scenes",
        description="matching: 'scenes' or a folder of images and captions; for a network of one's "
        "own also an array, a table, 'digits', 'swiss-roll' or 'moons'; preference: pairs",
    )
    dataset: Dataset = Dataset()
    reward: str = Field(
        "reader",
        description="its name, name(setting=value), http://…, module:function, or a weighted sum: "
        "reader + 0.5*brightness",
    )
    objective: (
        Matching
        | Consistency
        | Preference
        | RankedPreference
        | StepPreference
        | PolicyGradient
        | ScoreAction
        | Direct
        | Adjoint
        | Energy
    ) = Field(discriminator="kind")
    sampling: Sampling = Sampling()
    sizes: Sizes = Sizes()
    optimiser: Optimiser = Optimiser()
    hardware: Hardware = Hardware()
    tracking: Tracking = Tracking()
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()

    def inert(self, run: Run, on_data: bool) -> dict[str, str]:
        acts, objective = not self.objective.on_data, self.objective
        shipped = self.model.source in SHIPPED_MODELS
        held_out = self.evaluation.prompts is None and not shipped
        listed = self.prompts in (*SCENES, "none")
        reads = isinstance(objective, Energy) or objective.on_data
        return {
            **_only(listed, "prompts=scenes or none", "prompts_per_task"),
            **_only(acts, ON_POLICY, "prompts_per_task"),
            **_only(acts or held_out, ON_POLICY, "prompts"),
            **_only(not on_data, REWARDED, "reward", "prompts"),
            **_only(reads, "supervised, consistency, dxmi or recipes on preferences", "data"),
        }
