"""Networks that learn a score: the scale they see, the clock they read, what they can become."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from networks import score_network
from scoretune.core import model_folder
from scoretune.core.errors import UserError
from scoretune.diffusion import estimates, grids
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import EDM, OU, VE, VP, Cosine, RectifiedFlow, SubVP
from scoretune.models import score_network as scores
from scoretune.models.lora import adapter_state, add_adapter
from scoretune.models.score_network import clock
from scoretune.policy import Policy

PROCESSES = [VP(), VE(sigma_max=80), RectifiedFlow(), EDM(), OU(), Cosine(), SubVP()]
PREDICTIONS = ["epsilon", "sample", "v_prediction", "velocity"]
named = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
SHAPES = [("mlp", (5,)), ("mlp", (2, 6)), ("unet", (1, 8, 8)), ("unet", (3, 11, 14))]
SHAPES += [("dit", (1, 8, 8)), ("dit", (3, 9, 13))]
narrow = {"unet": 8, "dit": 32, "mlp": 16}


class Spy(nn.Module):
    """Remembers what it is asked, and answers with ones."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x, share):
        self.x, self.share = x, share
        return torch.ones_like(x)


@named
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_network_sees_and_is_asked_for_variance_one(process, prediction):
    if prediction == "epsilon" and isinstance(process, RectifiedFlow):
        with pytest.raises(UserError, match=r"epsilon cannot be read .* choose v_prediction"):
            score_network("mlp", (3,), process=process, prediction=prediction)
        return
    model = score_network("mlp", (3,), process=process, prediction=prediction)
    model.network = Spy()
    for share in (0.01, 0.3, 1.0):
        t = torch.full((20_000,), share * process.horizon)
        x0, eps = torch.randn(2, 20_000, 3)
        x = estimates.perturb(process, t, x0, eps)
        scale = model.predict(x, t, torch.empty(0))
        goal = estimates.target(process, model.prediction, t, x0, eps)
        assert float(model.network.x.std()) == pytest.approx(1, abs=0.02)
        assert float((goal / scale).std()) == pytest.approx(1, abs=0.02)
        assert 0 <= float(model.network.share.min()) <= float(model.network.share.max()) <= 1


@named
def test_v_prediction_is_the_preconditioning_of_edm(process):
    """c_skip x + c_out F with c_skip = 1/(1+σ²), c_out = −σ/√(1+σ²) of x/α at σ = ρ (σ_data 1)."""
    model = score_network("mlp", (4,), process=process)
    model.network.requires_grad_(False)
    nn.init.normal_(model.network.leave.weight)
    t = torch.linspace(0.02, 0.8, 16) * process.horizon
    x = torch.randn(16, 4)
    alpha, sigma = process.alpha(t), process.sigma(t)
    rho, z = (sigma / alpha)[:, None], x / alpha[:, None]
    said = model.network(z / (1 + rho**2).sqrt(), clock(alpha, sigma))
    edm = z / (1 + rho**2) - rho / (1 + rho**2).sqrt() * said
    output = model.predict(x, t, torch.empty(0))
    read = estimates.read(process, model.prediction, t, x, output)
    assert torch.allclose(read.data, edm, atol=2e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_equal_weights_mean_the_same_under_every_process(prediction):
    told = []
    for process in (VP(), VE(), OU()):
        torch.manual_seed(3)
        model = score_network("mlp", (4,), process=process, prediction=prediction).network
        nn.init.normal_(model.leave.weight)
        owner = score_network("mlp", (4,), process=process, prediction=prediction)
        owner.network = model
        rho = torch.tensor([0.05, 0.4, 3.0], dtype=torch.float64)
        t = grids.time_of_ratio(process, rho).float()
        z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
        x = z * process.alpha(t)[:, None]
        output = owner.predict(x, t, torch.empty(0))
        told.append(estimates.read(process, owner.prediction, t, x, output).data)
    assert torch.allclose(told[0], told[1], atol=1e-3)
    assert torch.allclose(told[0], told[2], atol=1e-3)


def test_the_clock_gives_decades_equal_room_and_ends():
    one = torch.ones(())
    steps = [float(clock(one, one * 10.0**k)) for k in (-2, -1, 0, 1, 2)]
    assert torch.tensor(steps).diff().std() < 1e-6
    assert steps[2] == 0.5
    assert [float(clock(one, 0 * one)), float(clock(0 * one, one))] == [0, 1]


@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=str)
def test_any_size_passes_and_the_beginning_is_silent(kind, shape):
    model = score_network(kind, shape, process=VP(), width=narrow[kind])
    x, t = torch.randn(3, *shape), torch.tensor([0.1, 0.5, 1.0])
    first = model.predict(x, t, model.encode(["", "", ""]).tokens)
    assert first.shape == x.shape and not bool(first.any())
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    outputs = [model.predict(x, t, torch.empty(0)) for _ in range(2)]
    assert torch.equal(*outputs)  # nothing random, though it is in training mode
    moved = model.predict(x, t.roll(1), torch.empty(0))
    assert not torch.allclose(outputs[0], moved)  # it reads the clock
    alone = model.predict(x[1:2], t[1:2], torch.empty(0))
    assert torch.allclose(outputs[0][1:2], alone, atol=1e-4)


def test_default_sizes_are_small():
    for kind, shape in [("unet", (1, 8, 8)), ("unet", (1, 28, 28)), ("dit", (1, 28, 28))]:
        network = score_network(kind, shape, process=VP()).network
        assert 3e5 < sum(p.numel() for p in network.parameters()) < 1.2e6


def test_wide_states_stay_wide():
    model = score_network("mlp", (2,), process=VE())
    x = torch.randn(3, 2, dtype=torch.float64)
    assert model.predict(x, torch.ones(3), torch.empty(0)).dtype == torch.float64


def test_data_are_standardised_and_back():
    model = score_network("mlp", (1, 4, 4), process=VP())
    model.mean, model.std = torch.full((1, 1, 1), 0.3), torch.full((1, 1, 1), 0.2)
    grey = torch.rand(2, 1, 4, 4)
    states = model.embed(grey.expand(-1, 3, -1, -1))
    assert torch.allclose(states, (grey - 0.3) / 0.2, atol=1e-6)
    assert torch.allclose(model.decode(states), grey.expand(-1, 3, -1, -1), atol=1e-6)
    assert float(model.decode(states + 100).max()) == 1
    points = score_network("mlp", (2,), process=VP())
    assert torch.equal(points.decode(torch.full((1, 2), 7.0)), torch.full((1, 2), 7.0))


@pytest.mark.parametrize(("kind", "shape"), SHAPES, ids=str)
def test_a_saved_network_is_the_same_network(tmp_path, kind, shape):
    process = VE(sigma_min=0.02, sigma_max=30.0)
    model = score_network(kind, shape, process=process, prediction="sample", width=narrow[kind])
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    model.mean, model.std = torch.randn(1), torch.rand(1) + 0.5
    for notes in ({}, {"points": 8}):
        scores.save(model, tmp_path / "model", notes)
        assert scores.notes(tmp_path / "model") == notes
    again = scores.load(tmp_path / "model")
    assert (
        model_folder.home(tmp_path) == model_folder.home(tmp_path / "model") == tmp_path / "model"
    )
    assert model_folder.home(tmp_path / "nowhere") is None
    assert sorted(f.name for f in (tmp_path / "model").iterdir()) == [
        "config.json",
        "weights.safetensors",
    ]
    assert (again.process, again.design) == (process, model.design)
    x, t = torch.randn(2, *shape), torch.tensor([0.2, 0.9])
    ours, theirs = (m.predict(x, t, torch.empty(0)) for m in (model, again))
    assert torch.equal(ours, theirs)
    assert torch.equal(model.decode(x), again.decode(x))


@pytest.mark.parametrize("spoil", ["weights", "config", "process", "gone"])
def test_a_damaged_folder_is_one_line(tmp_path, spoil):
    folder = scores.save(score_network("mlp", (2,), process=VP(), width=16), tmp_path)
    config, weights = folder / "config.json", folder / "weights.safetensors"
    if spoil == "weights":
        weights.write_bytes(weights.read_bytes()[:200])
    elif spoil == "gone":
        weights.unlink()
    else:
        plain = json.loads(config.read_text())
        plain |= {"process": "VPP()"} if spoil == "process" else {"width": 24}
        config.write_text(json.dumps(plain))
    with pytest.raises(UserError, match=r"did you mean 'VP'" if spoil == "process" else "damaged"):
        scores.load(folder)


def test_what_does_not_fit_is_said():
    with pytest.raises(UserError, match=r"unknown network 'unnet': did you mean 'unet'"):
        score_network("unnet", (1, 8, 8), process=VP())
    with pytest.raises(UserError, match=r"a unet needs images, .* choose mlp"):
        score_network("unet", (2,), process=VP())
    with pytest.raises(UserError, match="multiple of 8, got 12"):
        score_network("unet", (1, 8, 8), process=VP(), width=12)
    with pytest.raises(UserError, match="multiple of 32, got 40"):
        score_network("dit", (1, 8, 8), process=VP(), width=40)


@pytest.mark.parametrize(
    ("kind", "shape", "targets"),
    [
        ("unet", (1, 8, 8), ("to_q", "to_k", "to_v", "to_out.0")),
        ("dit", (1, 8, 8), ("to_q", "to_k", "to_v", "to_out.0")),
        ("mlp", (2,), ("mix",)),
    ],
)
def test_a_lora_can_be_added_and_switched_off(kind, shape, targets):
    model = score_network(kind, shape, process=VP(), width=narrow[kind])
    for parameter in model.network.parameters():
        nn.init.normal_(parameter, std=0.1)
    policy = Policy(model, GDDIM(1.0))
    x, t = torch.randn(2, *shape), torch.tensor([0.2, 0.9])
    condition = model.encode(["", ""])
    before = policy.estimate(x, t, condition).data
    add_adapter(model.network, 4, targets)
    for tensor in adapter_state(model.network).values():
        nn.init.normal_(tensor, std=0.5)
    with policy.reference():
        assert torch.allclose(policy.estimate(x, t, condition).data, before, atol=1e-5)
    assert not torch.allclose(policy.estimate(x, t, condition).data, before, atol=1e-2)


@pytest.mark.parametrize(
    "process",
    [
        VP(),
        pytest.param(VE(), marks=pytest.mark.slow),
        pytest.param(RectifiedFlow(), marks=pytest.mark.slow),
    ],
    ids=lambda p: type(p).__name__,
)
def test_it_learns_the_posterior_mean_of_gaussian_data(process):
    """x0 = (z, z): E[x0 | x] = α(x₁ + x₂)/(2α² + σ²) in both places."""
    torch.manual_seed(0)
    model = score_network("mlp", (2,), process=process, width=64, depth=2)
    optimiser = torch.optim.Adam(model.network.parameters(), 3e-3)
    for _ in range(400):
        share = torch.rand(256)
        t, x0 = (0.01 + 0.99 * share) * process.horizon, torch.randn(256, 1).expand(-1, 2)
        eps = torch.randn(256, 2)
        x = estimates.perturb(process, t, x0, eps)
        goal = estimates.target(process, model.prediction, t, x0, eps)
        scale = torch.hypot(process.alpha(t), process.sigma(t))[:, None]
        loss = (((model.predict(x, t, torch.empty(0)) - goal) / scale) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    t = torch.full((500,), 0.5 * process.horizon)
    x0 = torch.randn(500, 1).expand(-1, 2)
    x = estimates.perturb(process, t, x0, torch.randn(500, 2))
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    exact = (alpha * x.sum(1, keepdim=True) / (2 * alpha**2 + sigma**2)).expand(-1, 2)
    with torch.no_grad():
        output = model.predict(x, t, torch.empty(0))
    found = estimates.read(process, model.prediction, t, x, output).data
    assert float((found - exact).square().mean().sqrt()) < 0.15
