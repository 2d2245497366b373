"""What a device holds at once: never more states than its batch, and the gradients of the whole."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

import judged
from scoretune import recipes
from scoretune.core.config import Run
from scoretune.diffusion.named import kernel
from scoretune.models.base import Pipelined
from scoretune.models.catalog import load_backbone
from scoretune.models.lora import add_adapter
from scoretune.models.tiny import stable_diffusion
from scoretune.policy import Policy
from scoretune.training import build, engine, overrides
from scoretune.training.objectives import KINDS
from scoretune.training.objectives.method import Method, Paths
from slow_cases import quick_ones

SPARING = ["hardware.checkpointing=true"]  # and as few states as can be learned from
ON_PICTURES = sorted(set(recipes.RECIPES) - {"consistency"})  # which is for networks of one's own
VARIANTS = {
    **{recipe: [recipe] for recipe in ON_PICTURES},
    "dpok, features": ["dpok", "objective.critic.body=backbone"],
    "slope": ["score_as_action", "objective.form=slope"],
    "slope, own Jacobian": [
        "score_as_action",
        "objective.form=slope",
        "objective.critic.estimate=policy",
    ],
    "explicit": ["score_as_action", "objective.form=explicit"],
    "explicit, no skip": [
        "score_as_action",
        "objective.form=explicit",
        "objective.critic.skip=none",
        "objective.critic.body=small",
    ],
    "ratio": ["score_as_action", "objective.form=ratio"],
    "draft, 2 kept": ["draft", "objective.last=2", "objective.graph=kept"],
    "draft, 2 back": ["draft", "objective.last=2", "objective.graph=steps"],
    "draft, KL": ["draft", "objective.last=2", "objective.kl_weight=0.1"],
    "spo": ["spo", "objective.threshold=0", "objective.skip=0"],
    "online_dpo, acting": ["online_dpo", "objective.reference=acting", "sizes.epochs=2"],
    "likes": ["kto", "objective.likes=true"],
    "ctrl": ["dxmi", "objective.update=ctrl", "objective.kl_weight=0.1"],
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> tuple[Pipelined, Path]:
    """A tiny Stable Diffusion whose adapter has moved, and the folder of all files."""
    home = tmp_path_factory.mktemp("memory")
    (home / "prompts.txt").write_text("a cat\na dog\n")
    for number in range(4):
        Image.new("RGB", (32, 32), (60 * number, 40, 200)).save(home / f"{number}.png")
        (home / f"{number}.txt").write_text("a cow")
    changes = [f"model.source={stable_diffusion.build(home / 'sd')}", f"prompts={home}/prompts.txt"]
    run = overrides.changed(recipes.ddpo(), [*changes, "model.precision=fp64"])
    made = load_backbone(run.model)
    add_adapter(made.network, 2, ("to_v",))  # few layers: this is about memory
    with torch.no_grad():  # else the adapter would change nothing, whatever its state
        for parameter in made.network.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    assert isinstance(made, Pipelined)
    return made, home


def settings_of(variant: str, home: Path) -> Run:
    recipe, *others = VARIANTS[variant]
    changes = [f"model.source={home / 'sd'}", "model.precision=fp64", *others]
    if recipe in ("supervised", "dxmi"):
        changes.append(f"data={home}")
    if recipe in judged.RECIPES:
        changes.append(f"data={judged.pairs_folder(home / 'pairs')}")
        return overrides.changed(recipes.named(recipe), [*changes, "sizes.batch=3"])
    if recipe == "supervised":
        return overrides.changed(recipes.named(recipe), [*changes, "sizes.batch=3"])
    changes += [f"prompts={home / 'prompts.txt'}", "sizes.prompts=1", "sizes.group=2"]
    scale = "objective.scale" if recipe == "guidance_distillation" else "model.guidance"
    changes += [f"{scale}=3", "guard.action=off", "sizes.minibatch=3", "sampling.steps=2"]
    changes.append("reward=brightness")
    return overrides.changed(recipes.named(recipe), changes)


@dataclass
class Watch:
    """States in calls of the network, and in graphs that wait for their backward pass."""

    alive: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)

    def enter(self, what: str, output: Tensor) -> Tensor:
        rows = len(output)
        self.largest[what] = max(self.largest.get(what, 0), rows)
        if not output.requires_grad:
            return output
        self.alive[what] = self.alive.get(what, 0) + rows
        self.most[what] = max(self.most.get(what, 0), self.alive[what])
        return Marked.apply(output, lambda: self.leave(what, rows))

    def looked(self, module, args, output):
        """A hook of a network of diffusers."""
        return (self.enter("network", output[0]), *output[1:])

    def leave(self, what: str, rows: int) -> None:
        self.alive[what] -= rows


class Marked(torch.autograd.Function):
    """The identity, which tells once that its graph was passed back through, or dropped."""

    @staticmethod
    def forward(ctx, x, left):
        ctx.gone = weakref.finalize(ctx, left)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.gone()
        return gradient, None


def method_of(run: Run, backbone: Pipelined) -> tuple[Policy, Method]:
    torch.manual_seed(2)
    policy = Policy(backbone, kernel(run.sampling), run.model.guidance)
    engine.furnish(policy, run.model, run.hardware)
    return policy, build.build_method(run, policy, build.check(run))


def gradient_of(run: Run, policy: Policy, method: Method) -> tuple[Tensor, Tensor]:
    """The gradient of the first update, and the weights of what was fitted on the way."""
    machine = engine.engine(run.model, run.hardware, torch.device("cpu"))
    torch.manual_seed(3)
    batches = method.source(0)
    whole = sum(map(len, batches.minibatches))
    for batch in batches.minibatches:
        for part, rows in machine.parts(batch):
            machine.backward(method.objective(part).value * (rows / whole))
    found = torch.cat([p.grad.flatten() for p in policy.parameters()])
    for parameter in policy.parameters():
        parameter.grad = None
    fitted = [torch.zeros(1)]

    def collect(tree):
        if isinstance(tree, Tensor):
            fitted.append(tree.flatten().double())
        elif isinstance(tree, dict):
            for value in tree.values():
                collect(value)

    collect(method.source.state())
    return found, torch.cat(fitted)


QUICK = ("ddpo", "score_as_action", "slope", "refl", "draft, 2 back", "adjoint_matching")
QUICK += ("online_dpo", "spo", "dpo", "supervised", "dxmi")
"""One of each source, and of each way of credit."""


@pytest.mark.parametrize("variant", quick_ones(VARIANTS, *QUICK))
def test_a_device_holds_its_batch_and_finds_the_gradient_of_the_whole(backbone, variant):
    network, home = backbone
    run = settings_of(variant, home)
    gradient, fitted = gradient_of(run, *method_of(run, network))
    context = build.context_of(run, True)
    samples = Paths(run.sizes.prompts * run.sizes.group, run.sampling.steps, run.sampling.steps)
    costs = KINDS[run.objective.kind].costs(run.objective, context, samples)
    least = [f"hardware.device_batch={costs.at_once}", *SPARING]
    sparing, watch = overrides.changed(run, least), Watch()
    try:
        policy, method = method_of(sparing, network)
        hook = network.network.register_forward_hook(watch.looked)
        decode = network.decode
        network.decode = lambda x: watch.enter("decoder", decode(x))
        try:
            less, refitted = gradient_of(sparing, policy, method)
        finally:
            hook.remove()
            del network.decode
    finally:
        for part in (network.network, network.pipeline.vae):
            part.disable_gradient_checkpointing()
    assert float(gradient.norm()) > 0
    assert float((less - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max())
    torch.testing.assert_close(refitted, fitted, rtol=0, atol=1e-6)
    guided = costs.at_once * (1 if run.objective.on_data else 2)
    assert watch.largest["network"] == guided
    # A graph through several steps of one path is what `graph=kept` asks for.
    assert 0 < watch.most["network"] <= guided * max(costs.graph_steps, 1)
    assert watch.largest.get("decoder", 1) <= costs.at_once
    assert watch.most.get("decoder", 1) <= 1
    assert not any(watch.alive.values())
