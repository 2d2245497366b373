"""A user's own network, named as module:function: what is accepted, and that it fine-tunes."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from scoretune import recipes
from scoretune.core import config, resolve
from scoretune.core.errors import UserError
from scoretune.diffusion import estimates, grids, solvers
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VE, VP, RectifiedFlow
from scoretune.models import export, lora, lora_files, user_module
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.recycled import Recycled
from scoretune.models.tiny import own as miniature
from scoretune.models.user_module import BareNetwork, adaptable
from scoretune.policy import Policy
from scoretune.rollout import deterministic, prior, rollout
from scoretune.training import build, overrides, run_folder

CPU = torch.device("cpu")
POINTS = {"process": "VP()", "prediction": "epsilon", "shape": [2]}
HEAD = """
import torch
from torch import nn
from scoretune.core.conditions import Condition
from scoretune.diffusion import estimates
from scoretune.diffusion.processes import VP

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x, t):
        return self.second(torch.tanh(self.first(torch.cat([x, t[:, None]], 1))))

class Told(Net):
    def forward(self, x, t, tokens):
        return super().forward(x, t) + tokens.sum((1, 2))[:, None]

class Whole:
    process, prediction, shape = VP(), estimates.noise, (2,)

    def __init__(self):
        self.network = Told()

    def encode(self, prompts):
        return Condition(torch.tensor([[[float(len(p))]] for p in prompts]), torch.zeros(1, 1))

    def predict(self, x, t, tokens):
        return self.network(x, t, tokens)

    def decode(self, x0):
        return x0

    def embed(self, images):
        return images
"""


@pytest.fixture
def named(tmp_path, monkeypatch, request):
    """Writes a module into the current folder; its name is new in every test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    base = "mine_" + hashlib.sha256(request.node.name.encode()).hexdigest()[:10]

    def write(code: str, function: str = "denoiser") -> str:
        (tmp_path / f"{base}.py").write_text(HEAD + code)
        return f"{base}:{function}"

    return write


def load(source: str, **changes: Any) -> Any:
    return user_module.load(config.Model(source=source, **{**POINTS, **changes}))


def refused(source: str, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        load(source, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def raised(backbone: Any, x: torch.Tensor) -> str:
    with pytest.raises(UserError) as caught:
        backbone.predict(x, torch.full((len(x),), 0.5), backbone.encode([""] * len(x)).tokens)
    return str(caught.value)


# ------------------------------------------------------------------------------ what is accepted


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("my_models:denoiser", True),
        ("pack.age.models:denoiser", True),
        (":denoiser", True),
        ("scenes", False),
        ("stabilityai/stable-diffusion", False),
        ("C:/models", False),
        ("./models:one", False),
    ],
)
def test_a_function_is_told_from_a_folder_or_a_hub_id(text, verdict):
    assert resolve.is_function(text) is verdict


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my:folder").mkdir()
    assert not resolve.is_function("my:folder")


def test_a_bare_module_is_what_the_settings_say(named):
    found = load(named("def denoiser(): return Net()"))
    assert (found.process, found.prediction.name, found.shape) == (VP(), "epsilon", (2,))
    assert not any(p.requires_grad for p in found.network.parameters())
    x, t = torch.randn(3, 2), torch.rand(3)
    assert torch.equal(found.predict(x, t, found.encode(["a"] * 3).tokens), found.network(x, t))
    assert torch.equal(found.decode(x), x)
    assert torch.equal(found.embed(x), x)


def test_a_class_is_a_function_that_returns_a_module(named):
    assert type(load(named("", "Net")).network).__name__ == "Net"


def test_random_weights_are_the_same_at_every_call_and_cost_no_randomness(named):
    source = named("def denoiser(): return Net()")
    torch.manual_seed(5)
    first = load(source).network.state_dict()
    after = torch.rand(1)
    torch.manual_seed(6)
    second = load(source).network.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


@pytest.mark.parametrize("channels", [1, 3])
def test_states_of_one_or_three_channels_are_pictures(channels):
    found = BareNetwork(miniature.denoiser(), VP(), estimates.noise, (channels, 4, 4))
    x = torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0])
    seen = found.decode(x[:, None, None, None].expand(-1, channels, 4, 4))
    assert seen.shape == (6, 3, 4, 4)
    assert seen[:, :, 0, 0].mean(1).tolist() == [0, 0, 0.5, 0.75, 1, 1]
    images = torch.rand(2, 3, 4, 4)
    back = found.decode(found.embed(images))
    expected = images if channels == 3 else images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(back, expected)


@pytest.mark.parametrize("shape", [(2,), (3, 16), (4, 8, 8)])
def test_other_states_are_shown_as_they_are(shape):
    found = BareNetwork(miniature.denoiser(), VP(), estimates.noise, shape)
    x = torch.randn(2, *shape)
    assert torch.equal(found.decode(x), x)
    assert torch.equal(found.embed(x), x)


def test_a_whole_backbone_is_used_as_it_is(named):
    source = named("def denoiser(): return Whole()")
    found = user_module.load(config.Model(source=source))
    assert type(found).__name__ == "Whole"
    model = config.Model(source=source, rank=2, guidance=2.0)
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    policy = build.build_policy(run, CPU)
    x, t = torch.randn(2, 2), torch.full((2,), 0.5)
    condition = policy.backbone.encode(["a", "abc"])
    free = found.network(x, t, torch.zeros(2, 1, 1))
    told = free + torch.tensor([[1.0], [3.0]])
    noise = policy.estimate(x, t, condition).noise
    torch.testing.assert_close(noise, free + 2 * (told - free))
    moved = build.build_policy(overrides.changed(run, ["model.process=VE(sigma_max=14)"]), CPU)
    assert isinstance(moved.backbone, Recycled)
    assert moved.backbone.process == VE(sigma_max=14)


def test_a_declared_process_is_its_own_and_not_another(named):
    source = named("def denoiser(): return Net()")
    model = config.Model(source=source, process="VP()", prediction="epsilon", shape=(2,))
    run = config.Run(recipe="none", objective=config.PolicyGradient(), model=model)
    assert isinstance(build.build_policy(run, CPU).backbone, BareNetwork)


def test_half_precision_is_that_of_the_module(named):
    found = load(named("def denoiser(): return Net()"), precision="bf16")
    policy = Policy(found, GDDIM(1.0))
    x = torch.randn(2, 2)
    assert found.predict(x, torch.rand(2), torch.zeros(2, 0, 0)).dtype == torch.bfloat16
    assert policy.estimate(x, torch.rand(2), found.encode(["", ""])).data.dtype == torch.float32


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("def denoiser(): return 3", "returned a int: return a torch.nn.Module, or a Backbone"),
        ("def denoiser(): return None", "returned a NoneType"),
        ("def denoiser(size): return Net()", "failed with TypeError"),
        ("def denoiser(): raise RuntimeError('no file')", "RuntimeError: no file"),
        ("denoiser = Net()", "is a module: name a function that returns a new one"),
        ("denoiser = 3", "is a int, not a function"),
        ("def other(): return Net()", "has no 'denoiser'"),
        ("def denoiser(:", "SyntaxError"),
        ("def denoiser(): return nn.Tanh()", "takes (input: torch.Tensor)"),
        ("def denoiser(): return Told()", "must come as a whole Backbone"),
        ("class W(Net):\n  pass\ndef denoiser():\n  m = W(); m.encode = 1; return m", None),
    ],
)
def test_what_is_no_model_says_so_in_a_line(named, code, told):
    source = named(code)
    if told is None:  # a module with one part of a Backbone is a bare module
        assert isinstance(load(source), BareNetwork)
        return
    message = refused(source)
    assert told in message
    assert repr(source) in message


def test_an_object_that_is_nearly_a_backbone_says_what_it_lacks(named):
    source = named("class Near(Whole):\n  pass\ndel Whole.embed, Whole.decode\ndenoiser = Near")
    assert "(this lacks decode, embed)" in refused(source, process=None, prediction=None, shape=())


@pytest.mark.parametrize(
    ("part", "value", "told"),
    [
        ("prediction", "'epsilon'", "its prediction is a str, not a Prediction"),
        ("network", "print", "its network is a builtin_function_or_method, not a Module"),
        ("shape", "[2]", "its shape is a list, not a tuple"),
        ("process", "'VP()'", "its process is no Process: give one, e.g. VP()"),
    ],
)
def test_a_whole_backbone_of_wrong_parts(named, part, value, told):
    code = f"class Bad(Whole):\n  {part} = {value}\n  __init__ = lambda self: None\n"
    source = named(code + ("" if part == "network" else "  network = Told()\n"), "Bad")
    assert told in refused(source, process=None, prediction=None, shape=())


def test_a_whole_backbone_needs_no_declaration(named):
    source = named("def denoiser(): return Whole()")
    assert "leave out model.prediction, model.shape" in refused(source, process=None)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ({"process": None}, "set model.process ("),
        ({"prediction": None, "shape": ()}, "set model.prediction, model.shape ("),
        ({"process": "VPP()"}, "unknown process 'VPP': did you mean 'VP'?"),
        ({"process": "RectifiedFlow()"}, "cannot be read at the noisiest time"),
    ],
)
def test_what_settings_must_say(named, missing, told):
    assert told in refused(named("def denoiser(): return Net()"), **missing)


def test_an_output_of_another_shape_names_both(named):
    found = load(named("def denoiser(): return Net()"), shape=[2])
    found.network.second = nn.Linear(8, 5)
    message = raised(found, torch.randn(3, 2))
    assert "Net returned shape (3, 5) for a state of (3, 2)" in message


def test_what_is_not_a_tensor_or_not_finite(named):
    code = "class Pair(Net):\n  def forward(self, x, t): return (x,)\ndenoiser = Pair"
    assert "Pair returned a tuple: return a tensor" in raised(load(named(code)), torch.zeros(1, 2))
    found = BareNetwork(nn.Linear(2, 2), VP(), estimates.noise, (2,))
    found.network.forward = lambda x, t: x / (x - 1)
    spoilt = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert "Linear put out NaN or infinity at t=0.5" in raised(found, spoilt)


def test_a_network_with_a_lora_is_refused(named):
    source = named("kept = Net()\ndef denoiser(): return kept")
    add_adapter(load(source).network, 2, ("first",))
    assert "returned a network with a LoRA: build a new one" in refused(source)


def test_the_command_refuses_before_there_is_a_folder(named, command, tmp_path):
    source = named("def denoiser(): return Net()")
    folder = tmp_path / "run"
    done = command("train", "ddpo", f"model.source={source}", "prompts=none", "--run", folder)
    assert done.code == 2
    assert "set model.process, model.prediction, model.shape" in done.err
    done = command("train", "ddpo", "model.source=nowhere_of_mine:net", "--run", folder)
    assert "cannot import the model 'nowhere_of_mine:net'" in done.err
    done = command("train", "ddpo", "model.shape=[2]", "--run", folder)
    assert "model.shape is of a network of your own" in done.err
    assert not folder.exists()


# ------------------------------------------------------------------------------ what a LoRA adapts


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k, self.other = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)


def test_attention_by_name_comes_first():
    assert adaptable(nn.Sequential(Block())) == ("to_q", "to_k", "to_v", "to_out.0")


def test_else_every_linear_layer_and_convolution():
    network = nn.ModuleDict(
        {
            "line": nn.Linear(2, 2),
            "deep": nn.Sequential(nn.Conv2d(2, 2, 1), nn.SiLU(), nn.Conv1d(2, 2, 1)),
            "grouped": nn.Conv2d(2, 2, 1, groups=2),
            "norm": nn.LayerNorm(2),
        }
    )
    assert adaptable(network) == ("deep.0", "deep.2", "line")
    add_adapter(network, 1, adaptable(network))
    adapted = {name.partition(".lora")[0] for name in adapter_state(network)}
    assert adapted == {"deep.0", "deep.2", "line"}


def test_a_name_that_ends_other_names_is_left_out():
    """peft takes a target for the end of a name: "0" would also take the SiLU "1.0"."""
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.SiLU(), nn.Linear(2, 2)))
    assert adaptable(network) == ("1.1",)
    add_adapter(network, 1, adaptable(network))


def test_a_network_without_such_layers_is_refused():
    with pytest.raises(UserError, match=r"no linear layer or convolution .* set model.rank=0"):
        adaptable(nn.Sequential(nn.LayerNorm(2)))


def test_torchs_own_attention_acts_and_learns_as_one(named):
    """Its fast path would pass by an adapter whenever there is no gradient."""
    code = """
class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = nn.Linear(2, 8)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
        self.leave = nn.Linear(8, 2)

    def forward(self, x, t):
        return self.leave(self.layer(self.enter(x)[:, None]))[:, 0] + t[:, None]
"""
    found = load(named(code, "Tokens"))
    names = adaptable(found.network)
    assert names == ("enter", "layer.linear1", "layer.linear2", "leave")
    add_adapter(found.network, 2, names)
    for tensor in adapter_state(found.network).values():
        tensor.copy_(torch.randn(tensor.shape))
    x, t = torch.randn(4, 2), torch.rand(4)
    with torch.no_grad():
        acted = found.predict(x, t, torch.zeros(4, 0, 0))
    assert torch.equal(acted, found.predict(x, t, torch.zeros(4, 0, 0)))
    found.predict(x, t, torch.zeros(4, 0, 0)).sum().backward()
    assert all(p.grad is not None for p in found.network.parameters() if p.requires_grad)


# ---------------------------------------------------------------------------------- it is sampled


def test_exact_gaussian_noise_is_sampled_exactly(named):
    """Of N(m, s²) under a rectified flow, x = αm + √(α²s² + σ²) z all along the ODE."""
    code = """
class Exact(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.std = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.4))

    def forward(self, x, t):
        a, s = (1 - t)[:, None], t[:, None]
        z = (x - a * self.mean) / (a**2 * self.std**2 + s**2)
        return s * z - (self.mean + a * self.std**2 * z)
"""
    source = named(code, "Exact")
    found = load(source, process="RectifiedFlow()", prediction="velocity")
    policy, x = Policy(found, GDDIM(1.0)), torch.randn(5, 2)
    times = grids.uniform(RectifiedFlow(), 400)
    final = deterministic(policy, found.encode([""] * 5), times, x, "heun")
    torch.testing.assert_close(final, 0.7 + 0.4 * x, rtol=0, atol=1e-3)


def test_a_rollout_judges_itself_alike(named):
    found = load(named("def denoiser(): return Net()"))
    add_adapter(found.network, 2, adaptable(found.network))
    policy, generator = Policy(found, GDDIM(1.0)), torch.Generator().manual_seed(0)
    condition, x = found.encode([""] * 3), prior(policy, 3, generator)
    path = rollout(policy, condition, grids.karras(VP(), 4), generator, x)
    for k in range(4):
        law = policy.transition(path.states[k], path.times[k], path.times[k + 1], condition)
        assert torch.equal(law.log_prob(path.states[k + 1]), path.log_probs[k])


def test_the_miniature_is_eulers_own_line():
    found = build.build_policy(mini("model.rank=0"), CPU)
    x, times = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 0.6, 0.0])
    network = miniature.denoiser()
    with torch.no_grad():
        middle = x - 0.4 * network(x, torch.ones(2))
        last = middle - 0.6 * network(middle, torch.full((2,), 0.6))
        field = found.field(found.backbone.encode(["", ""]))
        mine = solvers.euler(RectifiedFlow(), field, x, times)
    torch.testing.assert_close(mine, last, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------ it is trained


def mini(*changes: str, tiny: tuple[str, ...] = ()) -> config.Run:
    given = ["prompts=none", "reward=brightness", "model.rank=2", "optimiser.learning_rate=0.05"]
    rest = ["evaluation.per_task=3", "guard.action=off", *miniature.SETTINGS]
    return overrides.changed(recipes.named("ddpo"), [*tiny, *given, *rest, *changes])


def test_a_lora_trains_and_is_loaded_again(tiny, tmp_path, launched):
    launched(mini(tiny=tiny), tmp_path / "run")
    policy = run_folder.load(tmp_path / "run")
    learned = adapter_state(policy.backbone.network)
    assert {name.partition(".lora")[0] for name in learned} == {
        *("clock", "enter", "leave", "mix.1")
    }
    assert any(bool(w.any()) for name, w in learned.items() if "lora_B" in name)
    fresh = miniature.denoiser()
    before = fresh(torch.ones(1, 1, 8, 8), torch.ones(1))
    lora.load_lora(fresh, tmp_path / "run")
    x, t = torch.ones(1, 1, 8, 8), torch.ones(1)
    assert torch.equal(fresh(x, t), policy.backbone.predict(x, t, torch.zeros(1, 0, 0)))
    assert float((fresh(x, t) - before).detach().abs().max()) > 1e-3
    with policy.reference():
        assert torch.equal(before, policy.backbone.predict(x, t, torch.zeros(1, 0, 0)))
    again = export.lora(policy, tmp_path / "again").read_bytes()
    assert again == (tmp_path / "run" / "lora" / lora_files.NAME).read_bytes()


def test_every_weight_trains_and_is_saved(tiny, tmp_path, launched):
    launched(mini("model.rank=0", "optimiser.learning_rate=1e-3", tiny=tiny), tmp_path / "run")
    found = run_folder.load(tmp_path / "run").backbone
    before = miniature.denoiser().state_dict()
    moved = [n for n, w in found.network.state_dict().items() if not torch.equal(w, before[n])]
    assert sorted(moved) == sorted(before)
    path = user_module.save(found, tmp_path / "out")
    assert path == tmp_path / "out" / "model.safetensors"
    fresh = miniature.denoiser()
    fresh.load_state_dict(load_file(path))
    x, t = torch.ones(1, 1, 8, 8), torch.ones(1)
    assert torch.equal(fresh(x, t), found.network(x, t))


def test_tied_weights_are_saved_and_read(tmp_path):
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[1].weight = network[0].weight
    path = user_module.save(BareNetwork(network, VP(), estimates.noise, (2,)), tmp_path)
    assert set(load_file(path)) == {"0.weight", "0.bias", "1.weight", "1.bias"}


def test_points_train_through_the_command(named, command, tiny, tmp_path):
    code = "def denoiser(): return Net()\ndef right(points, prompts): return points[:, 0]"
    source = named(code)
    reward = source.replace("denoiser", "right")
    given = [f"{name}={value}" for name, value in zip(*SAID, strict=True)]
    asked = [f"model.source={source}", f"reward={reward}", "prompts=none", "model.rank=2", *given]
    done = command("train", "ddpo", *tiny, *asked, "--run", tmp_path / "run", "--json")
    assert done.code == 0, done.err
    learned = adapter_state(run_folder.load(tmp_path / "run").backbone.network)
    assert {name.partition(".lora")[0] for name in learned} == {"first", "second"}


SAID = (
    ("model.process", "model.prediction", "model.shape"),
    ("VP()", "epsilon", "[2]"),
)
