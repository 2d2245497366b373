"""The laws hold here, each notices what breaks it, and a law that fails is reported."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scoretune import recipes
from scoretune.commands.doctor import doctor
from scoretune.commands.doctor.laws import (
    installed,
    learning,
    models,
    preference,
    reverse,
    samplers,
    stake,
)
from scoretune.commands.doctor.laws import processes as process_laws
from scoretune.commands.doctor.laws.base import Law, Verdict
from scoretune.core import checkpoints
from scoretune.core.errors import UserError
from scoretune.diffusion import estimates, solvers
from scoretune.diffusion.kernels import GDDIM, Posterior, Renoise, Transition
from scoretune.diffusion.processes import VE, VP, RectifiedFlow
from scoretune.evaluate import metrics
from scoretune.models import toy
from scoretune.models.lora import adapter_state
from scoretune.policy import Policy
from scoretune.preference import losses
from scoretune.training import overrides
from scoretune.training.build import build_policy
from scoretune.training.run_folder import record

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    return doctor.examine("cpu")


# ---------------------------------------------------------------------------- the laws


def test_every_law_holds_here(verdicts):
    failed = [(v.law.name, v.measured, v.error) for v in verdicts if not v.passed]
    assert not failed
    assert len(verdicts) >= 25


def test_laws_have_names_of_their_own_and_a_source(verdicts):
    laws = [verdict.law for verdict in verdicts]
    assert len({law.name for law in laws}) == len(laws)
    assert all(law.source and law.tolerance >= 0 and math.isfinite(law.expected) for law in laws)


def test_there_is_a_law_for_every_process():
    from typing import get_args

    from scoretune.diffusion.processes import Process

    names = {law.name.partition(":")[0] for law in process_laws.LAWS}
    assert {kind.__name__ for kind in get_args(Process)} <= names


def halved(method):
    return lambda self, *arguments: method(self, *arguments) / 2


def widened(step):
    return replace(step, std=1.001 * step.std)


def twice(function):
    return lambda *arguments, **settings: 2 * function(*arguments, **settings)


def late(field, share):
    """A network that gets the wrong time."""
    return lambda x, t: field(x, share * t)


BREAK = {
    "VP: α, σ from f, g²": (VP, "sde", lambda self, t: (-5 * t, 10 * t)),
    "VE: α, σ from f, g²": (VE, "sigma", halved(VE.sigma)),
    "VP, η = 1: std of samples": (reverse, "drift_rate", lambda process, t: 0 * t),
    "VE → ContractiveSubVP: estimate": (reverse, "recycled", lambda field, a, b: field),
    "exact steps of Gaussian data: W2": (
        reverse.gaussian,
        "transition",
        lambda *a, of=reverse.gaussian.transition, **k: widened(of(*a, **k)),
    ),
    "all processes: samples, closed form": (
        reverse.gaussian,
        "arrival",
        lambda process, mean, variance, eta: (mean, variance),
    ),
    "all processes: grids decrease": (
        process_laws.grids,
        "uniform",
        lambda process, n: torch.linspace(0, 1, n + 1),
    ),
    "Heun, 80 uniform steps: W2": (
        samplers,
        "exact_field",
        lambda process, of=samplers.exact_field: late(of(process), 0.999),
    ),
    "order of heun": (
        samplers,
        "exact_field",
        lambda process, of=samplers.exact_field: late(of(process), 0.9),
    ),
    "gDDIM(1) = DDIM(1)": (samplers, "GDDIM", lambda eta: GDDIM(eta + 0.01)),
    "DDIM's largest η, 50 steps": (Posterior, "limit", lambda process, t, t_next: 0 * t + 1.04),
    "reading v_prediction": (
        estimates,
        "read",
        lambda *a, of=estimates.read: replace(of(*a), noise=1.01 * of(*a).noise),
    ),
    "log-probability of a step": (Transition, "log_prob", halved(Transition.log_prob)),
    "KL of two steps": (Transition, "kl", halved(Transition.kl)),
    "path KL of Δε = .1, η = ½": (Transition, "kl", halved(Transition.kl)),
    "explicit − implicit score matching": (
        learning.score_matching,
        "implicit",
        lambda score, x: (score(x) ** 2).sum(1),
    ),
    "ln p by the probability flow": (
        learning.score_matching,
        "log_likelihood",
        lambda process, field, x, times: (0 * x[:, 0], x),
    ),
    "LQ optimum: rate = γ ln π": (learning.Evaluation, "rate", lambda self, x, a: 0.0),
    "occupation time by random clocks": (
        learning,
        "exponential_times",
        lambda count, discount, generator: torch.ones(count),
    ),
    "tilt of N(1, ¼): optimum": (learning, "optimum", lambda *a: torch.tensor(-0.67)),
    "clipped surrogate: slope at ratio 1": (
        learning,
        "clipped_surrogate",
        lambda new, old, advantage, clip: 2 * new * advantage,
    ),
    "GAE(0): the increment of the value": (
        learning,
        "gae",
        lambda *path, decay, of=learning.gae: of(*path, decay=0.5),
    ),
    "GAE(1): return less value": (
        learning,
        "gae",
        lambda *path, decay, of=learning.gae: of(*path[:3], decay=decay),  # no discount
    ),
    "GAE(.3) in many steps": (  # a λ a step
        learning,
        "gae",
        lambda values, *path, decay, of=learning.gae: of(
            values, *path, decay=decay ** len(path[1])
        ),
    ),
    "DPO at the reference": (preference, "pairwise_loss", twice(preference.pairwise_loss)),
    "RainbowPO without reference − SimPO": (
        preference,
        "replace",
        lambda preset, of=replace, **changes: of(preset, **changes | {"home_advantage": 0.5}),
    ),
    "losses of exchanged pairs": (losses._Pair, "exchanged", lambda self: self),
    "robust DPO on average − DPO": (
        preference,
        "pairwise_loss",
        lambda *sides, of=preference.pairwise_loss, preset="cdpo", **given: of(
            *sides, preset="cdpo", **given
        ),
    ),
    "KTO of a couple − APO-zero": (preference, "single_loss", twice(preference.single_loss)),
    "pair law of Mallows-φ, enumerated": (
        preference,
        "mallows_probability",
        lambda gap, phi, of=preference.mallows_probability: of(gap, phi, "theta"),
    ),
    "slope of Mallows-φ at the truth": (
        preference,
        "mallows_probability",
        lambda gap, phi, kind, of=preference.mallows_probability: of(gap, phi, "theta"),
    ),
    "slope of Mallows-θ at the truth": (preference, "scale_of_phi", torch.ones_like),
    "optimum of Ψ of Mallows-θ": (
        preference,
        "expected_psi",
        lambda preferred, law, transform, phi, of=preference.expected_psi: of(
            preferred, law, "dpo"
        ),
    ),
    "mean of the dispersion's scale": (preference, "phi_star", lambda entropies: 1.0),
    "worse of two accepted first": (
        preference,
        "rejection_sample",
        lambda pools, k, temperature, generator, of=preference.rejection_sample: of(
            pools, k, 1.1 * temperature, generator
        ),
    ),
    "ties of Rao–Kupper, θ = 2": (
        preference,
        "outcome_log_probs",
        lambda gap, model, tie, of=preference.outcome_log_probs: of(gap, "davidson", tie),
    ),
    "error of a fitted gap, 3 votes of 4": (
        preference,
        "fit_votes",
        lambda design, counts, model, of=preference.fit_votes: of(design, 2 * counts, model=model),
    ),
    "scores from exact shares": (
        preference,
        "fit_scores",
        lambda *votes, ridge, of=preference.fit_scores: of(*votes, model="rao_kupper", ridge=ridge),
    ),
    "four things tied, ln 4!": (
        preference,
        "tied_plackett_luce",
        lambda scores, ranks, of=preference.tied_plackett_luce: of(scores, ranks) / 2,
    ),
    "information between sure opposites": (
        preference,
        "pair_information",
        lambda gaps, of=preference.pair_information: of(gaps / 60),
    ),
    "calibration error of the truth": (
        preference,
        "expected_calibration_error",
        lambda p, label, of=preference.expected_calibration_error: of(p, 1 - label),
    ),
    "W2² of two Gaussians in the plane": (metrics, "wasserstein_gaussian", lambda *a: 1.3),
    "W2² of one point and two": (metrics, "wasserstein_1d", lambda x, y: 0.0),
    "shipped model: adapter off": (Policy, "reference", lambda self: contextlib.nullcontext()),
    "shipped model: adapter is felt": (
        installed,
        "shipped",
        lambda rank=0, of=installed.shipped: of(),
    ),
    "shipped model: ratio, unchanged": (Transition, "log_prob", lambda self, x: torch.rand(len(x))),
    "shipped model: same seed": (
        Transition,
        "draw_with",
        lambda self, noise: self.mean + self.std * torch.randn_like(self.mean),
    ),
    "disk: tensors changed by saving": (
        checkpoints,
        "load",
        lambda path, of=checkpoints.load: {
            "policy": {name: weight + 1 for name, weight in of(path)["policy"].items()}
        },
    ),
    "trading: value at a fair price": (
        stake.Staking,
        "valuation",
        lambda self, t, of=stake.Staking.valuation: 1.001 * of(self, t),
    ),
    "trading: end of buying at a fair price": (
        stake.Staking,
        "valuation",
        lambda self, t, of=stake.Staking.valuation: 1.001 * of(self, t),
    ),
    "trading: strategy played − value": (
        stake.Staking,
        "shares",
        lambda self, legs, t, of=stake.Staking.shares: 1.001 * of(self, legs, t),
    ),
    "trading: lattice − closed form": (
        stake,
        "solve",
        lambda problem, steps, of=stake.solve: of(replace(problem, cap=1.0), steps=steps),
    ),
    "trading: concave utility, fair price": (
        stake.Staking,
        "final",
        lambda self, share, of=stake.Staking.final: 1.01 * of(self, share),
    ),
    "trading: buy − sell at the convex tie": (
        stake.Staking,
        "final",
        lambda self, share, of=stake.Staking.final: of(self, share) * share,
    ),
    "trading: share that meets 0": (
        stake.Staking,
        "value",
        lambda self, legs, of=stake.Staking.value: of(self, [stake.Leg(0.0, 0.0)]),
    ),
    "trading: drawn prices, errors from 0": (
        stake,
        "simulate",
        lambda problem, of=stake.simulate, **k: of(replace(problem, stake=21), **k),
    ),
    "risk control: residual": (
        stake.RiskControl,
        "value",
        lambda self, x, p, of=stake.RiskControl.value: of(self, x, p) + 0.01,
    ),
    "parity: best of all gains": (
        stake.StakeParity,
        "gain",
        property(lambda self: 1.1 * self.curvature / self.friction),
    ),
    "parity: cost at full capacity": (stake, "capped_cost", lambda **k: 2.61),
    "BSP(1): largest gain": (
        stake,
        "search",
        lambda mechanism, market, of=stake.search: of(mechanism, replace(market, gamma=0.5)),
    ),
    "second price: the miner's gain": (
        stake,
        "search",
        lambda mechanism, market, of=stake.search: of(mechanism, replace(market, fakes=0)),
    ),
    "BSP(½), jump of 0.3, tick 0.6": (
        stake,
        "Jumps",
        lambda up, down, of=stake.Jumps: of(up=up + 1e-6, down=down),
    ),
    "urn: share of the truthful": (
        stake.Urn,
        "law",
        lambda self, n, of=stake.Urn.law: of(replace(self, gain=0.01), n),
    ),
    "urn: mean of the digamma martingale": (
        stake.Urn,
        "law",
        lambda self, n, of=stake.Urn.law: of(replace(self, gain=0.21), n),
    ),
    "our DDIM = diffusers' DDIMScheduler": (
        solvers,
        "ddim",
        lambda process, field, x, times, of=solvers.ddim: of(process, field, x, 0.99 * times),
    ),
}


@pytest.mark.parametrize("name", BREAK)
def test_a_law_notices_what_breaks_it(verdicts, name, monkeypatch):
    law = next(verdict.law for verdict in verdicts if verdict.law.name == name)
    owner, attribute, wrong = BREAK[name]
    if isinstance(owner, type) and attribute == "limit":
        wrong = staticmethod(wrong)
    monkeypatch.setattr(owner, attribute, wrong)
    with torch.no_grad():
        broken = doctor.measure(law, CPU)
    assert broken.error is None  # it is the number that is wrong
    assert not broken.passed


# ---------------------------------------------------------------------------- reports


def crash(device: torch.device) -> float:
    raise RuntimeError("no kernel image\nis available")


SOUND = Law("two halves", 1.0, lambda device: 0.5 + 0.5, 0, "arithmetic")
WRONG = Law("a [bold]wrong[/] sum", 4.0, lambda device: 2 + 1.9, 1e-3, "arXiv 0000.00000")
CRASH = Law("a crash", 0.0, crash, 1.0, "nothing")


def test_a_law_that_fails_is_told(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installation_laws", lambda: (SOUND, WRONG, CRASH))
    assert doctor.run("cpu") == 1
    output = capsys.readouterr().out
    assert "two halves" in output and "holds" in output
    assert "FAILS: a [bold]wrong[/] sum (expected by: arXiv 0000.00000)" in output
    assert "FAILS: a crash (RuntimeError: no kernel image is available)" in output
    assert "2 of 3 laws fail on cpu" in output


def test_the_verdict_in_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installation_laws", lambda: (SOUND, WRONG, CRASH))
    assert doctor.run("cpu", json_=True) == 1
    output = capsys.readouterr().out
    assert "NaN" not in output
    verdicts = json.loads(output)
    assert [set(row) for row in verdicts] == [
        {"law", "expected", "measured", "tolerance", "passed", "of_scores"}
    ] * 3
    assert [row["passed"] for row in verdicts] == [True, False, False]
    assert [row["measured"] for row in verdicts] == [1.0, 3.9, None]


def test_a_sound_installation_exits_with_0(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "installation_laws", lambda: (SOUND,))
    assert doctor.run("auto") == 0
    assert "all 1 laws hold on" in capsys.readouterr().out


def test_the_onlooker_is_told_every_law(monkeypatch):
    monkeypatch.setattr(doctor, "installation_laws", lambda: (SOUND, WRONG))
    seen = []
    doctor.examine("cpu", on_law=lambda law, done, total: seen.append((law.name, done, total)))
    assert seen == [(SOUND.name, 0, 2), (WRONG.name, 1, 2)]


def test_a_device_that_is_not_there(monkeypatch):
    with pytest.raises(UserError, match=r"unknown device 'cud': did you mean 'cuda'\?"):
        doctor.run("cud")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--device cpu") as caught:
        doctor.run("cuda")
    assert "\n" not in str(caught.value)
    assert doctor.device_named("auto") == CPU


def test_an_examination_leaves_the_random_numbers_alone(monkeypatch):
    noisy = replace(SOUND, measured=lambda device: 1.0 + 0 * float(torch.rand(())))
    monkeypatch.setattr(doctor, "installation_laws", lambda: (noisy,))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    doctor.examine("cpu")
    assert torch.equal(torch.rand(2), expected)


def test_importing_the_doctor_is_cheap():
    loaded = "'torch' in sys.modules or 'rich' in sys.modules"
    code = f"import sys, scoretune.commands.doctor.doctor; sys.exit({loaded})"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------- any model


def outcome(policy: Policy) -> dict[str, bool]:
    with torch.no_grad():
        verdicts = [doctor.measure(law, CPU) for law in models.laws_of(policy)]
    assert all(verdict.error is None for verdict in verdicts), verdicts
    return {verdict.law.name: verdict.passed for verdict in verdicts}


@pytest.mark.parametrize("process", [VP(), VE(), RectifiedFlow()], ids=["VP", "VE", "flow"])
def test_an_exact_model_passes(process):
    exact = toy.Controlled(toy.Gaussian(process, dimension=3), toy.HatControl(3))
    passed = outcome(Policy(exact, GDDIM(1.0)))
    assert all(passed.values()), passed


def test_a_model_whose_score_is_no_score_is_noticed(monkeypatch):
    """Noise that is read 30 % too large: the ODE and the SDE no longer share their marginals."""
    policy = Policy(toy.Gaussian(VP(), dimension=3), GDDIM(1.0))
    right = policy.backbone.network.forward
    monkeypatch.setattr(policy.backbone.network, "forward", lambda x, t: 1.3 * right(x, t))
    passed = outcome(policy)
    assert not passed["model: η = 1 and the ODE, z-score"]
    assert passed["model: ratio, unchanged"]


def test_a_model_that_is_never_the_same_is_noticed(monkeypatch):
    policy = Policy(toy.Gaussian(VP(), dimension=3), GDDIM(1.0))
    right = policy.backbone.network.forward
    monkeypatch.setattr(
        policy.backbone.network, "forward", lambda x, t: right(x, t) + 0.05 * torch.randn_like(x)
    )
    passed = outcome(policy)
    assert not passed["model: ratio, unchanged"]
    assert not passed["model: same seed"]


def test_a_run_folder_is_examined_with_its_adapter(tmp_path: Path, small: list[str]):
    run = overrides.changed(recipes.named("score_as_action"), small)
    policy = build_policy(run, CPU)
    for weight in policy.parameters():
        weight.data = 0.1 * torch.randn_like(weight)
    record(run, tmp_path, 1)
    state = {"policy": adapter_state(policy.backbone.network)}
    checkpoints.save(tmp_path / "checkpoints", 1, state)
    laws = {law.name: law for law in doctor.model_laws(str(tmp_path))}
    assert "model: adapter off" not in {law.name for law in models.laws_of(policy)}
    with torch.no_grad():
        assert doctor.measure(laws["model: adapter off"], CPU).measured == 0
        assert doctor.measure(laws["model: ratio, unchanged"], CPU).measured == 1
        assert doctor.measure(laws["model: infinite log-probabilities"], CPU).passed
    with pytest.raises(UserError, match="cannot load the model"):
        doctor.examine("cpu", model="nowhere/at/all")


def test_a_grid_always_has_noise_left():
    for process in (VP(), VE(), RectifiedFlow()):
        times = models.ending(process, 10)
        assert times[0] == process.horizon and bool((times.diff() < 0).all())
        x = torch.zeros(10, 1)
        estimate = estimates.Estimate(x, x)
        steps = Renoise(Posterior(1.0))(process, x, estimate, times[:-1], times[1:])
        assert bool((steps.std > 0).all())


def test_a_network_that_is_no_score_fails_nothing(capsys):
    """Equal marginals are a law of scores: a network that is none says so, and no more."""
    unsound = Law(
        "model: η = 1 and the ODE, z-score", 0, lambda device: 36.6, 4, "t", of_scores=True
    )
    sound = Law("two", 2, lambda device: 2.0, 0.1, "arithmetic")
    verdicts = [Verdict(unsound, 36.6), Verdict(sound, 2.0)]
    assert doctor.failures(verdicts) == []
    doctor.show(verdicts, "here")
    output = capsys.readouterr().out
    assert "FAILS" not in output and "no score" in output
    assert "all 1 laws hold here; with noise the model draws another law than without" in output
    broken = Verdict(unsound, float("nan"), error="it broke")
    assert doctor.failures([broken, *verdicts]) == [broken]
