"""Frozen weights in eight bits below a LoRA: what it learns, keeps, exports and draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from scoretune import recipes
from scoretune.commands.families import families
from scoretune.commands.families.parity import Request, observed
from scoretune.commands.plan import profiler
from scoretune.commands.plan.model import model_of
from scoretune.core.config import Model, Run
from scoretune.core.errors import UserError
from scoretune.models import catalog, quantized
from scoretune.models.lora import adapter_state
from scoretune.models.tiny import flux, stable_diffusion_xl
from scoretune.training import build, overrides, run_folder

CPU = torch.device("cpu")
TINY = [
    "reward=brightness",
    "updates=2",
    "sizes.prompts=1",
    "sizes.group=2",
    "sampling.steps=3",
    "checkpoints.every=1",
    "evaluation.steps=2",
    "evaluation.every=0",
    "guard.action=off",
    "optimiser.learning_rate=0.05",
    "model.rank=2",
    "model.guidance=2",
]
BUILDERS = {"sdxl": stable_diffusion_xl.build, "flux": flux.build}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    return {name: make(home / name) for name, make in BUILDERS.items()}


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="pip install 'scoretune[quantize]'")


def settings(folder: Path, *changes: str) -> Run:
    prompts = folder.parent / "prompts.txt"
    prompts.write_text("a red cat\na dog\n")
    given = [f"model.source={folder}", f"prompts={prompts}", *changes]
    return overrides.changed(recipes.named("ddpo"), [*TINY, *given])


def backbone(folder: Path, **changes: Any) -> Any:
    return catalog.load_backbone(Model(source=str(folder), **changes))


def linears(network: nn.Module) -> list[nn.Linear]:
    return [each for each in network.modules() if isinstance(each, nn.Linear)]


@pytest.mark.parametrize("name", BUILDERS)
def test_a_network_in_eight_bits_says_nearly_the_same(folders, torchao, name):
    plain, packed = backbone(folders[name]), backbone(folders[name], quantize="int8")
    assert all(isinstance(each, quantized.WidenedLinear) for each in linears(packed.network))
    x, t = torch.randn(2, *plain.shape), torch.tensor([0.3, 0.8])
    tokens = plain.encode(["a red cat", "a dog"]).tokens
    with torch.no_grad():
        whole, rounded = plain.predict(x, t, tokens), packed.predict(x, t, tokens)
    error = float((whole - rounded).norm() / whole.norm())
    assert 0 < error < 0.02, error
    assert packed.dtype == plain.dtype == torch.float32
    packed_encoder = backbone(folders[name], quantize="int8", quantize_encoders=True)
    states = packed_encoder.encode(["a red cat", "a dog"]).summary
    assert 0 < float((states - plain.encode(["a red cat", "a dog"]).summary).abs().max()) < 0.1


def test_the_gradient_is_that_of_the_wide_weights(folders, torchao):
    network = backbone(folders["flux"], quantize="int8").network
    layer: Any = linears(network)[3]
    wide = layer.weight.dequantize()
    x = torch.randn(5, 3, layer.in_features, requires_grad=True)
    kept: list[Any] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: kept.append(s) or s, lambda s: s):
        layer(x).square().sum().backward()
    (seen,) = (x.grad,)
    (expected,) = torch.autograd.grad(nn.functional.linear(x, wide, layer.bias).square().sum(), x)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)
    assert not any(each.numel() == wide.numel() for each in kept)  # no copy waited for it


def test_a_lora_over_it_has_gradients_and_is_switched_off(folders, torchao):
    policy = build.build_policy(settings(folders["flux"], "model.quantize=int8"), CPU)
    bare = backbone(folders["flux"], quantize="int8")
    x, t = torch.randn(2, *bare.shape), torch.tensor([0.3, 0.8])
    tokens = bare.encode(["a red cat", "a dog"]).tokens
    policy.backbone.predict(x, t, tokens).square().sum().backward()
    ups = [p for n, p in policy.backbone.network.named_parameters() if "lora_B" in n]
    assert ups and all(p.dtype == torch.float32 and float(p.grad.norm()) > 0 for p in ups)
    with torch.no_grad():
        for parameter in ups:
            parameter.add_(0.1)
        assert not torch.equal(policy.backbone.predict(x, t, tokens), bare.predict(x, t, tokens))
        with policy.reference():
            assert torch.equal(policy.backbone.predict(x, t, tokens), bare.predict(x, t, tokens))


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_lora_learns_is_kept_and_goes_elsewhere(folders, torchao, tmp_path, name):
    """Plain diffusers draws with the exported LoRA what the quantised network draws with it."""
    run, runs = settings(folders[name], "model.quantize=int8"), {}
    for folder, stops in (("whole", (None,)), ("parts", (2, None))):  # 2: its checkpoint is of 1
        for until in stops:
            families._train(run, tmp_path / folder, until=until)
        runs[folder] = run_folder.load(tmp_path / folder)
    whole, parts = runs.values()
    learned = adapter_state(whole.backbone.network)
    assert all(each.dtype == torch.float32 for each in learned.values())
    assert max(float(w.abs().max()) for n, w in learned.items() if "lora_B" in n) > 0.01
    again = adapter_state(parts.backbone.network)
    assert all(torch.equal(learned[key], again[key]) for key in learned)
    bare = backbone(folders[name], quantize="int8")
    x, t = torch.randn(2, *bare.shape), torch.tensor([0.3, 0.8])
    tokens = bare.encode(["a red cat", "a dog"]).tokens
    with torch.no_grad():
        assert not torch.equal(whole.backbone.predict(x, t, tokens), bare.predict(x, t, tokens))
        with whole.reference():
            assert torch.equal(whole.backbone.predict(x, t, tokens), bare.predict(x, t, tokens))
    prompts = ("a red cat", "a dog")
    request = Request(whole, folders[name], prompts, tmp_path / "whole" / "lora")
    apart, without = (observed(each) for each in (request, replace(request, lora=None)))
    assert 1e-6 < apart < 0.02 < without, (apart, without)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("format", ["int8", "float8"])
def test_what_a_plan_foretells_is_what_real_weights_take(folders, torchao, name, format):
    both = [f"model.quantize={format}", "model.quantize_encoders=true", "model.guidance=1"]
    run, rows = settings(folders[name], *both), 32
    policy, found = build.build_policy(run, CPU), model_of(run, ["a red cat"])[1]
    parts = policy.backbone.pipeline.components  # type: ignore[attr-defined]
    modules = {n: part for n, part in parts.items() if isinstance(part, nn.Module)}
    assert found.parts == {n: sum(map(size, tensors(part))) for n, part in modules.items()}
    tokens = policy.encode(["a red cat"] * rows).tokens
    x = torch.randn(rows, *policy.backbone.shape)
    t = torch.full((rows,), policy.backbone.process.horizon / 2)
    for parameter in policy.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def learn() -> None:
        policy.backbone.predict(x, t, tokens).float().square().sum().backward()

    learn()
    there = [*tensors(policy.backbone.network), *tokens.rows.values(), x, t]
    real = profiler.cost(learn, there)
    assert real.flops == pytest.approx(found.plain.learning.at(rows).flops, rel=1e-6)
    assert real.peak == pytest.approx(found.plain.learning.at(rows).peak, rel=0.1)


def tensors(module: nn.Module) -> list[torch.Tensor]:
    """What a module holds, quantised weights by the tensors that they are made of."""
    held: list[Any] = [*module.parameters(), *module.buffers()]
    plain = (torch.Tensor, nn.Parameter)
    inside = [[each] if type(each) in plain else pieces(each) for each in held]
    return [tensor for each in inside for tensor in each]


def pieces(weight: Any) -> list[torch.Tensor]:
    return [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]


def size(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


REFUSED = {
    "model.quantize=int8 model.rank=0": "model.rank=0 trains them",
    "model.quantize=nf4": "set model.quantize=int8",
    "model.quantize=bnb_int8": "bitsandbytes",
    "model.quantize=int8 hardware.shard=true": "hardware.shard does not go with",
    "model.quantize=int4": "model.quantize",
    "model.quantize_encoders=true": "it is for quantised weights",
}


@pytest.mark.parametrize("changes", REFUSED)
def test_what_cannot_be_quantised_is_refused_in_a_line(folders, monkeypatch, changes):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    with pytest.raises(UserError) as said:
        build.check_settings(settings(folders["flux"], *changes.split()))
    line = str(said.value)
    assert REFUSED[changes] in line and "\n" not in line and len(line) <= 300


def test_what_is_not_installed_is_named(folders, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs torchao: pip install 'scoretune\[quantize\]'"):
        build.check_settings(settings(folders["flux"], "model.quantize=int8"))


def test_a_finished_run_is_exported_first(folders, tmp_path):
    run = settings(folders["flux"])
    run_folder.record(run, tmp_path / "run", 1)
    with pytest.raises(UserError, match="scoretune export RUN --merge"):
        backbone(tmp_path / "run", quantize="int8")
