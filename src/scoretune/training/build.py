"""From a configuration to what a fine-tuning run is made of, checked before anything is loaded."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from scoretune.core import distributed, fsdp, hub, model_folder
from scoretune.core.config import (
    NEW_NETWORKS,
    Dataset,
    Energy,
    Guidance,
    Model,
    Run,
    Sampling,
    ScoreAction,
)
from scoretune.core.errors import UserError, unknown, user_errors
from scoretune.core.resolve import is_function
from scoretune.data.prompts import Prompts, check_one_size, read_prompts
from scoretune.data.scenes.world import EDITOR, SHIPPED
from scoretune.diffusion.named import grid, kernel
from scoretune.diffusion.paths import INTEGRAL_END
from scoretune.diffusion.processes import Process, process_named
from scoretune.diffusion.recycling import check_recyclable
from scoretune.diffusion.theory.gaussian import law
from scoretune.diffusion.theory.reward_gap import sampler_bias
from scoretune.evaluate.features import Features
from scoretune.evaluate.guard import guard
from scoretune.evaluate.scores import unjudged
from scoretune.models import quantized, score_network, slope_decoder, user_module
from scoretune.models.base import Pipelined
from scoretune.models.catalog import family_of, load_backbone, lora_targets, move, remarks, resolve
from scoretune.models.folders import load_pipeline
from scoretune.models.lora import add_adapter
from scoretune.models.observed import Observed
from scoretune.models.pipelines import Loader
from scoretune.models.recycled import inner
from scoretune.models.sizes import check_drawable, size_notes
from scoretune.policy import Backbone, Distilled, Policy
from scoretune.rewards.base import Reward, RewardFailed, check_prompts, has_gradient
from scoretune.rewards.catalog import named_reward, names
from scoretune.training import engine, trackers
from scoretune.training.objectives import KINDS
from scoretune.training.objectives.method import Context, Method, Setup
from scoretune.training.objectives.score_action import follows_slopes
from scoretune.training.progress import Learner

HELD_OUT_MOST = 50_000
"""Pictures that an evaluation draws, and holds, at most: as many as Fréchet distances take."""


TORN = 5.0
"""W2 by which a sampler may miss data of deviation ½: ten times that is no sample of anything."""


@dataclass(frozen=True)
class Checked:
    """What checking a run has read and built: the prompts to train on, those held out, the reward,
    whether that has a gradient (None: the model's own pictures will tell), and what the guard looks
    by."""

    prompts: Prompts
    held_out: Prompts
    reward: Reward
    differentiable: bool | None
    judge: Reward | None = None
    features: Features | None = None

    def probe(self, run: Run) -> str:
        """A prompt that the reward is asked about."""
        return (self.held_out if run.objective.on_data else self.prompts).texts[0]


@dataclass
class Parts(Learner):
    """Everything a fine-tuning run is made of."""

    reward: Reward
    held_out: Prompts
    notes: tuple[str, ...] = ()
    """What people should know of how the model was loaded and is used, a line each."""


def check(run: Run) -> Checked:
    """Refuse what cannot work, in one line, before anything is loaded.

    No model is loaded: a grey picture tells whether the reward has a gradient.
    """
    check_settings(run)
    _check_source(run.model)
    _check_world(run)
    prompts, held_out = read_prompts(run.prompts, run.prompts_per_task), held_out_prompts(run)
    reward = named_reward(run.reward)
    watching = guard.judge_and_features(run.guard, reward=run.reward, source=run.model.source)
    checked = Checked(prompts, held_out, reward, None, *watching)
    if isinstance(run.objective, Energy):
        why = f"recipe {run.recipe!r} compares samples with data of one size"
        check_one_size(prompts.texts, why)
    _check_judged(run, checked)
    trackers.check(run.tracking)
    _check_process(run.model)
    try:
        grey = torch.full((3, 32, 32), 0.5, device=distributed.device())
        differentiable = has_gradient(reward, run.reward, grey, checked.probe(run))
    except RewardFailed:  # it may want larger pictures: the model's own will tell
        return checked
    check_settings(run, differentiable)
    return replace(checked, differentiable=differentiable)


def _check_judged(run: Run, checked: Checked) -> None:
    """Refuse prompts that the reward cannot judge, and held-out ones that the guard's judge cannot,
    before there is a run folder."""
    if not run.objective.on_data:
        source = f"prompts={run.prompts}"
        fix = "set prompts=FILE of such as it reads, or another reward"
        check_prompts(checked.reward, run.reward, checked.prompts.texts, source=source, fix=fix)
    named, shown = run.evaluation.prompts, "the held-out prompts"
    source = f"evaluation.prompts={named}" if named else f"{shown} of {run.model.source!r}"
    judges = {run.reward: checked.reward}
    judges |= {} if checked.judge is None else {str(run.guard.judge): checked.judge}
    for name, judge in judges.items():
        fix = "set evaluation.prompts=FILE of such as it reads"
        check_prompts(judge, name, checked.held_out.texts, source=source, fix=fix)


def check_settings(run: Run, differentiable: bool | None = None) -> None:
    """Refuse settings that do not fit each other; `differentiable`: whether the reward has a
    gradient, None where that is not known yet."""
    KINDS[run.objective.kind].check(run.objective, context_of(run, differentiable))
    _check_only_for_data(run)
    _check_slopes(run, differentiable)
    _check_ramp(run)
    engine.check_shard(run.model, run.hardware, run.optimiser.kind)
    engine.check_offload(run.hardware)
    quantized.check(run.model, run.hardware, distributed.device())
    if run.hardware.memory is not None:
        raise UserError(
            "hardware.memory is for scoretune plan, which prints the settings that fit: give "
            "those instead"
        )


def _check_slopes(run: Run, differentiable: bool | None) -> None:
    if run.model.slope_decoder is None:
        return
    if not follows_reward(run, differentiable):
        raise UserError(
            "model.slope_decoder is what a reward's gradient goes through, and this run follows "
            "none: leave it out, or take score_as_action with a reward that has a gradient, draft, "
            "alignprop, refl or adjoint_matching"
        )


def follows_reward(run: Run, differentiable: bool | None) -> bool:
    """Whether a run follows the gradient of its reward, or (None) may, where it is not known yet
    whether that has one."""
    if isinstance(run.objective, ScoreAction) and differentiable is not None:
        return follows_slopes(run.objective, differentiable)
    return KINDS[run.objective.kind].follows_reward


def context_of(run: Run, differentiable: bool | None = None) -> Context:
    """The rest of a run that its objective's settings must suit."""
    return Context(
        recipe=run.recipe,
        reward=run.reward,
        data=run.data,
        sampling=run.sampling,
        sizes=run.sizes,
        hardware=run.hardware,
        differentiable=differentiable,
        processes=distributed.team().size,
        new_network=run.model.source in NEW_NETWORKS,
    )


def build(run: Run, checked: Checked | None = None) -> Parts:
    """The policy, the method and the engine of a configuration, checked here if it was not."""
    checked = checked or check(run)
    if run.hardware.deterministic:
        engine.be_deterministic()
    device = distributed.device()
    policy = build_policy(run, device)
    texts = [*checked.prompts.texts, *checked.held_out.texts]
    check_drawable(policy.backbone, texts)
    notes = remarks(policy, run.model.guidance, texts)  # while there are encoders
    notes += unjudged(run.model.source, checked.held_out)
    if not run.objective.on_data:
        notes += size_notes(policy.backbone, checked.prompts, run.sizes.prompts)
    if run.hardware.cache_prompts:
        engine.cache_prompts(policy, texts)
    return Parts(
        policy=policy,
        method=build_method(run, policy, checked),
        optimiser=engine.optimiser(run.optimiser, policy.parameters()),
        engine=engine.engine(
            run.model, run.hardware, device, skips=run.optimiser.nonfinite == "skip"
        ),
        reward=checked.reward,
        held_out=checked.held_out,
        notes=notes,
    )


def build_policy(run: Run, device: torch.device, *, loader: Loader = load_pipeline) -> Policy:
    """The model of a configuration behind its training kernel, with a fresh adapter.

    `loader` makes a pipeline: another makes one without weights.
    """
    backbone = load_backbone(run.model, loader=loader)
    sharded = engine.shards(run.hardware)
    base = inner(backbone)
    if run.model.slope_decoder is not None:
        _follow_through(run.model.slope_decoder, base, device)
    if run.hardware.offload and isinstance(base, Pipelined):
        base.offload(device)
    else:
        move(backbone, device, network=not sharded)
    if run.model.rank:
        add_adapter(backbone.network, run.model.rank, lora_targets(run.model, backbone))
    else:
        backbone.network.requires_grad_(True)
    guidance = run.model.guidance
    if isinstance(base, Distilled):  # it is told the scale: asking twice would guide twice
        base.scale, guidance = (base.scale if guidance is None else guidance), 1.0
    if run.model.image_guidance is not None:
        _guide_by_picture(run.model.source, base, run.model.image_guidance)
    with user_errors():
        policy = Policy(backbone, kernel(run.sampling), 1.0 if guidance is None else guidance)
    engine.furnish(policy, run.model, run.hardware)
    if sharded:
        fsdp.shard(backbone.network, device)
    return policy


def _follow_through(source: str, backbone: Backbone, device: torch.device) -> None:
    """Have gradients of pictures go back through another decoder. Raises UserError for a model
    without one of its own."""
    if not isinstance(backbone, Pipelined) or "vae" not in backbone.pipeline.components:
        raise UserError("model.slope_decoder is for a pipeline with an autoencoder: leave it out")
    dtype = next(backbone.pipeline.vae.parameters()).dtype
    if device.type == "meta":
        small = slope_decoder.without_weights(source, backbone.pipeline.vae, dtype)
    else:
        small = slope_decoder.load(source, backbone.pipeline.vae, dtype)
    backbone.slope_decoder = small.to(device)


def _guide_by_picture(source: str, backbone: Backbone, scale: float) -> None:
    """Set the scale of guidance by the picture. Raises UserError for a model that has none."""
    if not (isinstance(backbone, Observed) and backbone.row.image_scale):
        raise UserError(
            f"model.image_guidance is for InstructPix2Pix, and {source!r} is not guided by a "
            "picture: leave it out"
        )
    backbone.image_guidance = scale


def build_method(run: Run, policy: Policy, checked: Checked) -> Method:
    """The objective and its source, once the model's own pictures have said whether the reward
    has a gradient."""
    kind, backbone = KINDS[run.objective.kind], policy.backbone
    with torch.no_grad():
        image = backbone.decode(torch.zeros(1, *backbone.shape, device=policy.device))[0]
    differentiable = has_gradient(checked.reward, run.reward, image, checked.probe(run))
    context = context_of(run, differentiable)
    kind.check(run.objective, context)
    if not run.objective.on_data:
        _check_sampler(backbone.process, run.sampling)
    setup = Setup(
        policy=policy,
        prompts=checked.prompts,
        reward=checked.reward,
        context=context,
        seed=run.seed,
    )
    return kind.build(run.objective, setup)


def held_out_prompts(run: Run) -> Prompts:
    """What is evaluated: the named prompts, else held-out scenes, else some that are trained on."""
    evaluation = run.evaluation
    if evaluation.prompts is None and not resolve(run.model.source).shipped:
        prompts = read_prompts(run.prompts, evaluation.per_task).few(evaluation.per_task)
    else:
        prompts = read_prompts(evaluation.prompts or "scenes-held-out", evaluation.per_task)
    if len(prompts) > HELD_OUT_MOST:
        raise UserError(
            f"{len(prompts):,} prompts are more than the {HELD_OUT_MOST:,} that an evaluation may "
            "draw: lower evaluation.per_task, or name fewer with evaluation.prompts"
        )
    return prompts


# ----------------------------------------------------------------------------------- checks


def _check_only_for_data(run: Run) -> None:
    """Refuse what only networks of one's own that learn from data understand."""
    for name, is_set in (
        ("optimiser.ema", bool(run.optimiser.ema)),
        ("dataset", run.dataset != Dataset()),
    ):
        if is_set:
            raise UserError(
                f"{name} is for networks of one's own that learn from data: leave it out, or set "
                "recipe supervised with model.source=unet, dit, mlp or the folder of such a run"
            )


def _check_ramp(run: Run) -> None:
    """Refuse a KL weight where the noise ends, and with it the KL of a step loses all bounds."""
    sampling, distils = run.sampling, isinstance(run.objective, Guidance)
    weight = getattr(run.objective, "kl_weight", 0.0)
    if not (weight or distils):
        return
    end = sampling.eta if sampling.eta_end is None else sampling.eta_end
    if sampling.noise == "ramp" and end < sampling.eta / 100:
        use, fix = "this recipe learns by it", ""
        if not distils:
            use = f"objective.kl_weight={weight:g} weighs it"
            fix = ", or set objective.kl_weight=0"
        raise UserError(
            f"sampling.eta_end={end:g} leaves the last steps without noise, where their KL has no "
            f"bound, and {use}: raise eta_end to {sampling.eta / 100:g} or more{fix}"
        )


def _check_sampler(process: Process, sampling: Sampling) -> None:
    """Refuse an end of integrals that the grid does not have, and a sampler whose steps tear even
    Gaussian data apart, which a closed form tells."""
    with user_errors():
        times, acting = grid(process, sampling).double(), kernel(sampling)
    if sampling.integral_end != INTEGRAL_END and float(process.sigma(times[-1])) > 0:
        raise UserError(
            f"sampling.integral_end={sampling.integral_end:g} is of no use here: the grid of this "
            "model ends in noise, and so do its integrals; leave it out"
        )
    if sampling.solver is not None:
        return
    start = law(process, times[0], mean=1.0, variance=0.25)
    error = sampler_bias(process, acting, times, 0.25, mean=1.0, start=start)
    if not error < TORN:
        raise UserError(
            f"{sampling.steps} steps of sampling.kernel={sampling.kernel} with "
            f"sampling.eta={sampling.eta:g} end {error:.3g} away from plain data of deviation 0.5: "
            "lower sampling.eta, raise sampling.steps, or set sampling.kernel=gddim"
        )


def _check_world(run: Run) -> None:
    """Refuse the shipped world's prompts and reader to a model that does not draw it."""
    source, model = run.model.source, resolve(run.model.source)
    # Of what is no pipeline its loader tells.
    missing = hub.is_local(model.where) and not (Path(model.where) / "model_index.json").exists()
    draws_scenes = (model.world / "judge.safetensors").exists()
    if draws_scenes or missing or run.objective.on_data:
        return
    if run.prompts == "scenes":
        raise UserError(
            f"prompts=scenes, the default, are of the shipped digits, which {source!r} has not "
            "learned: set prompts=FILE (one a line), or prompts=none, and a reward"
        )
    if "reader" in names(run.reward):
        raise UserError(
            f"reward=reader, the default, judges the shipped digits, which {source!r} has not "
            "learned: set reward=NAME, or a function of yours as reward=module:function"
        )


def _check_process(model: Model) -> None:
    """Refuse a process that is none, or that a network of one's own cannot be run under."""
    if model.process is None:
        return
    with user_errors(f"model.process={model.process}"):
        process, home = process_named(model.process), model_folder.home(Path(model.source))
        if home is not None:
            check_recyclable(score_network.load(home).process, process)


def _check_source(model: Model) -> None:
    if model.source in NEW_NETWORKS:
        raise UserError(
            f"a new {model.source} has learned nothing that could be fine-tuned: train it with "
            "recipe supervised, then set model.source to the folder of that run"
        )
    if is_function(model.source) and not (model.width or model.depth):
        user_module.load(model)  # before there is a run folder: settings may be missing
        return
    names = [*SHIPPED, EDITOR, *NEW_NETWORKS]
    meant = difflib.get_close_matches(model.source, names, cutoff=0.7)
    if meant and model.source not in names and not Path(model.source).exists():
        raise unknown("model source", model.source, names)
    if model.prediction or model.width or model.depth:
        raise UserError(
            "model.prediction, model.width and model.depth are of new networks: leave them out, or "
            "set model.source=unet, dit or mlp"
        )
    if model.shape:
        raise UserError("model.shape is of a network of your own, module:function: leave it out")
    source = resolve(model.source)
    if source.kind == "pipeline" and hub.is_local(source.where):
        family_of(source.where)  # before there is a run folder
