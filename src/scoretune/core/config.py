"""The configuration tree: strict and typed. A recipe returns a `Run`; nothing else configures one.

`settings` has what `a.b=c` does to it.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Strict(BaseModel):
    """Frozen, and without room for unknown fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _listed(value: Any) -> Any:
    """`a,b` as well as ["a", "b"]; a column may be called by a number."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (str(value),)
    return value


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class Model(Strict):
    """What is fine-tuned, and how much of it; or the network that is trained from nothing."""

    source: str = Field(
        "scenes",
        description="'scenes', 'scenes-flow', a folder, a hub id, a network of your own as "
        "module:function; or a new 'unet', 'dit' or 'mlp'",
    )
    revision: str | None = None
    size: int = Field(0, ge=0, description="side of the pictures in pixels; 0: the model's own")
    shape: tuple[int, ...] = Field(
        (), description="module:function: of one state, e.g. [3,32,32] for pictures in [0, 1]"
    )
    without: Names = Field((), description="parts to leave out, e.g. text_encoder_3 (a T5)")
    rank: int = Field(
        16, ge=0, description="of the LoRA; 0 trains every weight, at a far lower rate"
    )
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = Field(
        "fp32", description="of the frozen weights; likelihoods and the adapter have fp32 or more"
    )
    guidance: float = Field(
        1.0, ge=0, description="classifier-free; what a guidance-distilled network is told"
    )
    process: str | None = Field(
        None,
        description="run the network under another process, e.g. VE(sigma_max=14); a new network: "
        "the process it is trained under",
    )
    prediction: Literal["epsilon", "sample", "v_prediction", "velocity"] | None = Field(
        None, description="of a new network: what it is trained to output"
    )
    width: int = Field(0, ge=0, description="of a new network; 0: as suits its kind")
    depth: int = Field(0, ge=0, description="of a new network; 0: as suits its kind")


class Dataset(Strict):
    """How `data` are read for a network of one's own."""

    kind: Literal["auto", "images", "points", "series"] = "auto"
    key: str | None = Field(None, description="which array of a .npz file")
    columns: Names = Field((), description="of a table; empty takes all that hold numbers")
    window: int = Field(0, ge=0, description="rows that make a series; 0: a row is a point")
    stride: int = Field(1, ge=1, description="rows from one window to the next")
    size: int = Field(0, ge=0, description="side to scale and crop pictures to; 0: as they are")
    channels: Literal["auto", "first", "last"] = Field("auto", description="of images in arrays")
    held_out: float = Field(0.1, gt=0, lt=1, description="share that is never learned from")


class Window(Strict):
    """Which steps of a path are stochastic and learned from; an ODE solver takes the others."""

    size: int = Field(0, ge=0, description="steps; 0: every step is stochastic, there is no window")
    order: Literal["progressive", "random", "frozen"] = Field(
        "progressive", description="moves from noise to data and begins again; jumps; stays"
    )
    every: int = Field(1, ge=1, description="updates between two moves")
    stride: int = Field(1, ge=1, description="steps a move")
    decay: float = Field(
        0.0, ge=0, description="progressive: how fast stays grow shorter towards the data; 0: not"
    )
    decay_from: int = Field(13, ge=0, description="the place from which on they do")
    solver: Literal["ddim", "euler", "heun", "dpmpp_2m"] = Field(
        "ddim", description="of the other steps"
    )
    compress: float = Field(
        1.0, gt=0, le=1, description="share of the steps after the window that is taken"
    )


class Sampling(Strict):
    """How the policy acts while it trains."""

    kernel: Literal["gddim", "renoise", "euler_maruyama", "exponential"] = "gddim"
    noise: Literal["constant", "ramp", "flow", "dance", "cps"] = Field(
        "constant", description="how noisy at which time; `eta` is its level"
    )
    eta: float = Field(1.0, gt=0, description="stochasticity: 1 is the reverse SDE, 0 the ODE")
    eta_end: float | None = Field(None, ge=0, description="ramp: stochasticity at the data")
    steps: int = Field(10, ge=2)
    grid: Literal["auto", "karras", "uniform", "shifted"] = Field(
        "auto", description="auto: karras; uniform where the noise has no finite ratio to data"
    )
    shift: float = Field(3.0, gt=0, description="of grid shifted")
    window: Window = Window()
    shared_noise: bool = Field(False, description="the samples of a prompt begin with one noise")
    jitter: bool = Field(False, description="draw the inner times anew for every path")
    solver: Literal["ddim", "euler", "heun", "dpmpp_2m"] | None = Field(
        None,
        description="null: the kernel's noise; else an ODE solver, for forms rate and explicit",
    )


class Sizes(Strict):
    """How much is sampled and learned an update."""

    prompts: int = Field(16, ge=1)
    group: int = Field(8, ge=1, description="samples of each prompt")
    batch: int = Field(0, ge=0, description="matching: examples an update; 0: prompts × group")
    minibatch: int = Field(64, ge=1)
    share: float = Field(1.0, gt=0, le=1, description="of each path's steps that are learned from")
    accumulate: int = Field(
        1, ge=0, description="minibatches an optimiser step; 0 makes one step of all"
    )


class Hardware(Strict):
    """How the machine does it; changes no result beyond rounding."""

    device_batch: int = Field(
        0, ge=0, description="states a network sees at once on a device; 0: as sizes says"
    )
    checkpointing: bool = Field(
        False, description="activations are computed again instead of kept: less memory, slower"
    )
    cache_prompts: bool = Field(
        False, description="encode every prompt once, then let go of the text encoders"
    )
    decode_batch: int = Field(
        0, ge=0, description="pictures decoded at once; 0: about four megapixels"
    )
    offload_paths: bool = Field(False, description="paths wait in the computer's memory")
    compile: bool = Field(False, description="torch.compile the network")
    channels_last: bool = Field(False, description="memory layout of convolutions")
    shard: bool = Field(False, description="spread the weights over the processes (FSDP2)")


class Tracking(Strict):
    """Where numbers go besides the run folder's metrics.jsonl."""

    trackers: Names = Field((), description="tensorboard, wandb, trackio: any of them")
    project: str = "scoretune"


class Optimiser(Strict):
    """AdamW on the adapter."""

    kind: Literal["adamw", "fused", "8bit"] = Field(
        "adamw", description="fused: one kernel a step; 8bit: bitsandbytes' (an extra)"
    )
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    decay: Literal["linear", "none"] = Field("linear", description="of the rate, to 0 at the end")
    ema: float = Field(
        0.0, ge=0, lt=1, description="networks from data: decay of the averaged weights; 0: none"
    )


class Critic(Strict):
    """The value network: V = c_skip(t)·reward(x̂0) + c_out(t)·F."""

    learning_rate: float = Field(1e-3, gt=0)
    width: int = Field(48, ge=8, multiple_of=4)
    passes: int = Field(2, ge=1)
    warmup: int = Field(1, ge=0, description="rounds that only fit the critic, before update 1")
    body: Literal["auto", "small", "backbone"] = Field(
        "auto", description="F: a head on the policy's features (auto: if it has any), or small"
    )
    skip: Literal["cos_sin", "linear", "cos", "none"] = "cos_sin"
    inputs: Literal["both", "noisy", "denoised"] = Field("both", description="of a small F")
    jacobian: Literal["pretrained", "policy"] = Field(
        "pretrained", description="whose ∂x̂0/∂x carries slopes back to the state"
    )


class Matching(Strict):
    """Score matching on data."""

    on_data: ClassVar[bool] = True
    kind: Literal["matching"] = "matching"
    t_min: float = Field(1e-3, gt=0)
    weight: Literal["own", "noise", "data", "v", "velocity", "likelihood", "edm", "min_snr"] = (
        Field("own", description="on the error; own: 1 on what the network predicts")
    )
    times: Literal["uniform", "importance", "lognormal", "logit_normal"] = Field(
        "uniform", description="how times are drawn"
    )
    loss: Literal["denoising", "sliced", "implicit"] = "denoising"
    dropout: float = Field(0.0, ge=0, lt=1, description="share of prompts that are left empty")


class Consistency(Strict):
    """One call of the network says where a path began (arXiv 2303.01469, 2310.14189)."""

    on_data: ClassVar[bool] = True
    kind: Literal["consistency"] = "consistency"
    rule: Literal["auto", "distillation", "ict", "ct"] = Field(
        "auto", description="auto: distillation of a trained network, ict for a new one"
    )
    points: int = Field(0, ge=0, description="of the finest grid; 0: as the rule's paper has it")
    solver: Literal["heun", "euler"] = Field("heun", description="the teacher's")
    decay: float = Field(0.95, ge=0, lt=1, description="distillation: memory of the target network")
    t_min: float = Field(1e-3, gt=0)
    sigma_data: float = Field(
        1.0, gt=0, description="deviation of the states: data are standardised"
    )


class PolicyGradient(Strict):
    """Likelihood ratios and the rewards of whole paths: REINFORCE, DDPO, DPOK, GRPO."""

    on_data: ClassVar[bool] = False
    kind: Literal["policy_gradient"] = "policy_gradient"
    surrogate: Literal["clipped", "score_function"] = "clipped"
    clip: float = Field(0.2, gt=0)
    kl_weight: float = Field(0.0, ge=0)
    temperature: float = Field(
        1.0, gt=0, description="divides log-ratios, which are sums over dimensions"
    )
    baseline: Literal["group", "running", "critic"] = Field(
        "group",
        description="what a reward is compared with: its prompt's others of the update, its "
        "prompt's last `buffer` ones, or a value",
    )
    combine: Literal["rewards", "advantages"] = Field(
        "rewards", description="several rewards: weighted before they are compared, or after"
    )
    buffer: int = Field(32, ge=2, description="running: rewards remembered of each prompt")
    min_count: int = Field(
        16, ge=2, description="running: with fewer than that, compared with the whole batch"
    )
    shared_scale: bool = Field(True, description="group: one deviation for all prompts")
    trust_region: float | None = Field(
        None, gt=0, description="path KL an update may move; adapts a penalty"
    )
    critic: Critic = Critic()


class ScoreAction(Strict):
    """Continuous-time policy optimisation with a critic."""

    on_data: ClassVar[bool] = False
    kind: Literal["score_action"] = "score_action"
    form: Literal["auto", "slope", "rate", "explicit", "ratio"] = Field(
        "auto", description="auto: rate if the reward has a gradient, else ratio"
    )
    clip: float = Field(0.2, gt=0)
    kl_weight: float = Field(0.003, ge=0)
    exploration: float = Field(
        0.3, gt=0, description="explicit: deviation of tried noise estimates"
    )
    trust_region: float | None = Field(
        None, gt=0, description="path KL an update may move; adapts a penalty"
    )
    critic: Critic = Critic()


class Direct(Strict):
    """The reward's gradient through the last steps (DRaFT, AlignProp) or the estimate (ReFL)."""

    on_data: ClassVar[bool] = False
    kind: Literal["direct"] = "direct"
    through: Literal["steps", "estimate"] = "steps"
    last: int = Field(1, ge=1, description="steps, from the end, that are learned from")
    random: bool = Field(False, description="a random number of them, up to `last`")
    graph: Literal["auto", "kept", "steps"] = Field(
        "auto",
        description="kept: of all those steps at once; steps: of one at a time, less memory and "
        "slower; auto: kept without a KL weight, hardware.checkpointing or sizes.accumulate",
    )
    kl_weight: float = Field(0.0, ge=0)


class Adjoint(Strict):
    """Adjoint matching: regression onto lean adjoints under the pretrained model."""

    on_data: ClassVar[bool] = False
    kind: Literal["adjoint"] = "adjoint"
    kl_weight: float = Field(0.003, gt=0)


class Energy(Strict):
    """D(x)MI: the reward is learned, an energy that tells data from samples."""

    on_data: ClassVar[bool] = False
    kind: Literal["energy"] = "energy"
    update: Literal["dxmi", "ctrl"] = Field(
        "dxmi", description="value slopes where a step arrives, or where it starts"
    )
    learning_rate: float = Field(1e-4, gt=0, description="of the energy")
    width: int = Field(48, ge=8, multiple_of=4)
    kl_weight: float = Field(0.0, ge=0)


class Gap(Strict):
    """The reward-gap matrix that evaluations add: every η at every number of steps."""

    steps: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (), description="numbers of steps; empty: no matrix"
    )
    etas: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (0.0, 0.5, 1.0, 1.5), min_length=1, description="0 is the ODE"
    )
    every: int = Field(1, ge=1, description="evaluations between two matrices")


class Guard(Strict):
    """What watches over a run for a reward that is gamed, at every evaluation."""

    action: Literal["off", "warn", "stop", "rollback"] = Field(
        "warn", description="on alarm; rollback: end with the weights of the best evaluation"
    )
    judge: str | None = Field(
        None, description="a reward that is never optimised; null: the model's own judge, if any"
    )
    margin: float = Field(
        0.0, ge=0, description="how far below its best the judge may fall, besides by chance"
    )
    path_kl: float | None = Field(None, gt=0, description="budget, in nats; null: none")
    diversity: float = Field(0.7, ge=0, le=1, description="share of the base model's to keep")
    features: str | None = Field(
        None, description="in which diversity is measured; null: the judge's, or pixels"
    )
    pattern: float = Field(
        3.0, ge=1, description="periodic artefacts: how many times the base model's, at most"
    )
    patience: int = Field(1, ge=1, description="evaluations in a row before an alarm")


class Evaluation(Strict):
    """How progress is measured: held-out prompts, fixed noise, the deterministic sampler."""

    gap: Gap = Gap()

    prompts: str | None = Field(
        None, description="as `prompts`; null: held-out scenes, or a user's model's own prompts"
    )
    per_task: int = Field(
        30, ge=0, description="scenes, or prompts trained on too: how many of each task; 0: all"
    )
    solver: Literal["ddim", "euler", "heun", "edm_heun", "dpmpp_2m"] = "ddim"
    steps: int = Field(20, ge=1)
    every: int = Field(14, ge=0, description="updates between evaluations; 0 only at both ends")
    seed: int = 20240
    samples: int = Field(500, ge=2, description="networks from data: drawn at each evaluation")


class Checkpoints(Strict):
    """When to save, and how many to keep."""

    every: int = Field(5, ge=1)
    keep: int = Field(2, ge=1)


class Run(Strict):
    """Everything that decides what a run does."""

    recipe: str
    seed: int = Field(0, ge=0, le=2**32 - 1)
    updates: int = Field(50, ge=1)
    model: Model = Model()
    prompts: str = Field(
        "scenes",
        description="'scenes', a file (txt, csv, tsv, jsonl, parquet), datasets:ID, or 'none'",
    )
    prompts_per_task: int = Field(
        200, ge=0, description="scenes: as many of each task; 0 takes all"
    )
    data: str = Field(
        "scenes",
        description="matching: 'scenes' or a folder of images and captions; for a network of one's "
        "own also an array, a table, 'digits', 'swiss-roll' or 'moons'",
    )
    dataset: Dataset = Dataset()
    reward: str = Field(
        "reader",
        description="its name, name(setting=value), http://…, module:function, or a weighted sum: "
        "reader + 0.5*brightness",
    )
    objective: Matching | Consistency | PolicyGradient | ScoreAction | Direct | Adjoint | Energy = (
        Field(discriminator="kind")
    )
    sampling: Sampling = Sampling()
    sizes: Sizes = Sizes()
    optimiser: Optimiser = Optimiser()
    hardware: Hardware = Hardware()
    tracking: Tracking = Tracking()
    evaluation: Evaluation = Evaluation()
    guard: Guard = Guard()
    checkpoints: Checkpoints = Checkpoints()


NEW_NETWORKS = ("unet", "dit", "mlp")
