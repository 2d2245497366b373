"""The guard: rings rarely by chance, always when the judge falls, and the same after a kill."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from scoretune import recipes
from scoretune.commands.display import Live, guarded
from scoretune.core import checkpoints, config
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.evaluate.guard import guard, watches
from scoretune.evaluate.guard.spectrum import Peaks
from scoretune.evaluate.guard.watches import Best
from scoretune.evaluate.report.page import write_report
from scoretune.evaluate.scores import Measurement
from scoretune.training import overrides, run_folder
from scoretune.training.build import check
from scoretune.training.hooks import Silent
from scoretune.training.run import launch
from slow_cases import slow

# ------------------------------------------------------------------------------ known answers


@pytest.mark.parametrize(
    ("comparisons", "z"), [(1, 1.959964), (3, 2.393980), (10, 2.807034), (190, 3.649103)]
)
def test_thresholds(comparisons, z):
    """Φ⁻¹(1 − 0.025/m): of one comparison the 95 % interval, then Bonferroni's."""
    assert watches.threshold(comparisons) == pytest.approx(z, abs=2e-5)


def test_the_fall_of_verdicts_is_mcnemars():
    """20 prompts became wrong, 5 right: S = (20 − 5)/√25 = 3, whatever the other 75 did."""
    best, now = torch.zeros(100), torch.zeros(100)
    best[:20], now[20:25], best[50:], now[50:] = 1, 1, 1, 1
    fell, chance = watches.fall(best, now, z=2.0)
    assert fell == pytest.approx(0.15)
    assert fell / chance == pytest.approx(3 / 2)


@pytest.mark.parametrize("prompts", [1, 3, 6, 8])
@pytest.mark.parametrize("seed", range(3))
def test_efrons_bound_holds_for_a_handful_of_prompts(prompts, seed):
    """Over all sign flips of any differences: P(S > z) <= e^{−z²/2}."""
    sizes = torch.rand(prompts, generator=torch.Generator().manual_seed(seed)) ** 3
    flips = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=prompts)))
    zero = torch.zeros(prompts)
    for z in (0.5, 1.0, 1.5, 2.0, 2.5, 3.0):
        beyond = [
            fell > chance for fell, chance in (watches.fall(f, zero, z) for f in sizes * flips)
        ]
        assert sum(beyond) / len(flips) <= math.exp(-(z**2) / 2)


@pytest.mark.parametrize(
    ("looks", "level"), [(2, 0.0625), (3, 0.046875), (5, 0.0390625), (8, 0.0363927), (20, 0.031987)]
)
def test_the_level_of_verdicts_is_their_exact_binary_tail(looks, level):
    """The worst number n of verdicts that changed: pairs · P(2·Binomial(n, ½) − n > z√n)."""
    pairs = looks * (looks - 1) // 2
    z = watches.threshold(pairs)
    n = torch.arange(1, 201, dtype=torch.float64)[:, None]
    heads = torch.arange(201, dtype=torch.float64)
    log_choose = torch.lgamma(n + 1) - torch.lgamma(heads + 1) - torch.lgamma((n - heads).abs() + 1)
    chance = torch.where(heads <= n, torch.exp(log_choose - n * math.log(2)), 0.0)
    tails = pairs * torch.where(2 * heads - n > z * n.sqrt(), chance, 0.0).sum(1)
    assert float(tails.max()) == pytest.approx(level, rel=1e-4)
    assert float(tails.max()) < watches.LEVEL == pytest.approx(0.0795, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_the_level_holds_for_differences_of_any_sizes(seed):
    """Over all sign flips, LEVEL/TAIL of the normal tail at most, of any number of pairs."""
    sizes = torch.rand(12, generator=torch.Generator().manual_seed(seed)).double() ** (seed + 0.2)
    flips = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=12)), dtype=torch.float64)
    sums = (flips * sizes).sum(1) / sizes.square().sum().sqrt()
    for pairs in (1, 3, 10, 28):
        beyond = float((sums > watches.threshold(pairs)).double().mean())
        assert pairs * beyond <= watches.LEVEL


def test_one_prompt_never_rings():
    *_, alarm = watches.fallen(Best(0, torch.ones(1)), torch.zeros(1), 1, evaluations=2, margin=0)
    assert alarm is None


def test_diversity():
    """A right triangle and a point: ((3 + 4 + 5)/3 + 0)/2 = 2."""
    triangle = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    assert watches.diversity(torch.stack([triangle, torch.ones(3, 2)])) == pytest.approx(2)


def test_gains_are_in_deviations_of_the_base():
    base = watches.moments(torch.tensor([1.0, 3.0]))
    assert base == pytest.approx([2, math.sqrt(2)])
    assert watches.gain(torch.tensor([4.0]), base) == pytest.approx(math.sqrt(2))
    assert watches.moments(torch.ones(5)) == [1, 1]


def test_limits():
    assert watches.strayed(2.0, 3, 2.0) is None
    assert watches.collapsed(0.5, 3, 0.5) is None
    assert "2.1 nats" in getattr(watches.strayed(2.1, 3, 2.0), "text", "")
    assert "0.49 times" in getattr(watches.collapsed(0.49, 3, 0.5), "text", "")
    assert watches.period(0.5, 0.0) == "2 pixels down"
    assert watches.period(0.125, 0.375) == "8 pixels down and 2.67 pixels across"


# ------------------------------------------------------------------------- chance, by simulation


def rings(values: Tensor, looks: int) -> bool:
    """Whether the judge's values [looks, B], compared as a run does, raise an alarm."""
    best = Best(0, values[0])
    for update in range(1, len(values)):
        *_, alarm = watches.fallen(best, values[update], update, evaluations=looks, margin=0)
        if alarm is not None:
            return True
        if watches.mean(values[update]) > (best.mean or 0):
            best = Best(update, values[update])
    return False


def verdicts(accuracy: Tensor, prompts: int, generator: torch.Generator) -> Tensor:
    """Verdicts [looks, B] of prompts that differ in difficulty, anew at each of the looks."""
    difficulty = torch.rand(prompts, generator=generator)
    chance = (accuracy[:, None] + difficulty - 0.5).clamp(0, 1)
    return torch.bernoulli(chance, generator=generator)


RUNS = 400


def rate(accuracy: Tensor, prompts: int, times: int = RUNS) -> float:
    generator = torch.Generator().manual_seed(len(accuracy) + prompts)
    found = [rings(verdicts(accuracy, prompts, generator), len(accuracy)) for _ in range(times)]
    return sum(found) / times


@pytest.mark.slow
@pytest.mark.parametrize(("looks", "prompts"), [(2, 180), (5, 180), (5, 30), (15, 60)])
def test_a_judge_that_stands_still_seldom_rings(looks, prompts):
    """In 2.5 % of whole runs, though the best of all looks is what each is compared with."""
    allowed = watches.TAIL + 2 * math.sqrt(watches.TAIL / RUNS)
    assert rate(torch.full((looks,), 0.45), prompts) < allowed


def test_a_judge_that_rises_rings_less():
    assert rate(torch.linspace(0.4, 0.7, 5), 180) < 0.005


def test_the_plain_interval_would_ring_at_every_fourth_run(monkeypatch):
    """What the correction is for: 1.96 at each of 15 looks."""
    monkeypatch.setattr(watches, "threshold", lambda comparisons: 1.96)
    assert rate(torch.full((15,), 0.45), 60, times=100) > 0.25


def test_a_fall_rings():
    """From 60 % back to 40 % of 180 prompts, in the worst case of verdicts drawn anew each time."""
    assert rate(torch.tensor([0.4, 0.5, 0.6, 0.4, 0.4]), 180, times=100) > 0.9


def test_a_judge_of_any_scale():
    generator = torch.Generator().manual_seed(0)
    still = [rings(1e3 * torch.randn(5, 60, generator=generator), 5) for _ in range(200)]
    assert sum(still) / 200 < watches.TAIL + 0.02
    falling = torch.randn(5, 60, generator=generator) - torch.tensor([0, 0, 0, 0, 1.5])[:, None]
    assert rings(1e3 * falling, 5)


@pytest.mark.parametrize("pictures", [6, 30, 180])
def test_spectra_of_noise_seldom_ring(pictures):
    """Heights of white noise are exponential; at 1, without a pattern, four looks in 200 runs."""
    generator = torch.Generator().manual_seed(pictures)
    places = torch.rand(24, 2, generator=generator)
    rung = 0
    for _ in range(200):
        heights = torch.empty(4, pictures, 24).exponential_(generator=generator)
        found = [
            watches.patterned(
                Peaks(h, places), torch.full((24,), 0.9), 1, evaluations=5, factor=1.0
            )[1]
            for h in heights
        ]
        rung += any(alarm is not None for alarm in found)
    assert rung / 200 <= watches.TAIL + 0.018


def test_a_pattern_is_compared_with_the_base_models_own():
    places = torch.tensor([[0.25, 0.0], [0.5, 0.5]])
    heights = torch.tensor([7.0, 1.0]) + 0.1 * torch.rand(20, 2)
    base, patterned = torch.tensor([2.5, 0.4]), watches.patterned
    value, alarm = patterned(Peaks(heights, places), base, 9, evaluations=3, factor=3.0)
    assert alarm is None
    assert value == pytest.approx(7.05 / 2.5, rel=0.01)
    _, alarm = patterned(Peaks(heights, places), base, 9, evaluations=3, factor=2.0)
    assert alarm is not None
    assert (alarm.update, alarm.watch) == (9, "pattern")
    assert alarm.limit == pytest.approx(5)
    assert "4 pixels down" in alarm.text
    grown = heights + torch.tensor([0.0, 2.5])  # 3.5 times, but not of 0.4
    assert (
        "2 pixels down and 2 pixels across"
        in patterned(Peaks(grown, places), base, 9, evaluations=3, factor=3.0)[1].text
    )
    assert patterned(Peaks(grown[:1], places), base, 9, evaluations=3, factor=3.0)[1] is None


# ----------------------------------------------------------------------- what a monitor remembers


def monitor(run: config.Run, folder: Path, held_out: Prompts, on_alarm: Any) -> guard.Monitor:
    judge, features = guard.judge_and_features(
        run.guard, reward=run.reward, source=run.model.source
    )
    return guard.monitor(
        run.guard,
        run.evaluation,
        judge=judge,
        features=features,
        updates=run.updates,
        folder=folder,
        held_out=held_out,
        on_alarm=on_alarm,
    )


class Stage:
    """A policy of which nothing is asked but samples, and evaluations as they are wanted."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
        self.run = overrides.changed(recipes.named("ddpo"), ["evaluation.every=10", *changes])
        self.told: list[dict[str, Any]] = []
        folder.mkdir(exist_ok=True)
        self.monitor = monitor(self.run, folder, Prompts(("",), ("all",)), self.told.append)
        self.spread = 1.0
        monkeypatch.setattr(guard.Monitor, "_samples", lambda *_: torch.zeros(1, 2))
        monkeypatch.setattr(guard.Monitor, "_diversity", lambda *_: self.spread)
        monkeypatch.setattr(guard, "adapter_state", lambda network: {"weight": torch.ones(1)})

    def show(self, update: int, judge: float | None, chain_kl: float = 0.0) -> dict[str, Any]:
        prompts = Prompts(("",) * 100, ("all",) * 100)
        values = {"reward": torch.linspace(0, 1, 100) + update}
        if judge is not None:
            values["judge"] = (torch.arange(100) < 100 * judge).float()
        reward = values["reward"]
        measured = Measurement(
            prompts, torch.zeros(100, 2), values, reward, reward, {"chain_kl": chain_kl}
        )
        return self.monitor.observe(measured, _Nobody(), update).get("guard", {})  # type: ignore


class _Nobody:
    class backbone:
        network = None


def test_the_best_is_the_judges_highest(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch, "guard.action=stop")
    for update, judge in enumerate([0.4, 0.6, 0.58, 0.55]):
        numbers = stage.show(10 * update, judge)
    assert stage.monitor.best.update == 10
    assert numbers["fall"] == pytest.approx(0.05)
    # 6 looks are planned, 0 to 50
    chance = watches.threshold(15) * math.sqrt(5) / 100
    assert numbers["chance"] == pytest.approx(chance, abs=1e-4)
    assert stage.monitor.ended is None
    stage.show(40, 0.4)
    assert stage.monitor.ended == 40
    assert list(stage.monitor.until_ended(range(40, 50))) == []
    (alarm,) = stage.monitor.summary()["guard"]["alarms"]
    assert alarm["text"].startswith("the judge fell from 0.600 at update 10 to 0.400: by 0.200")
    assert [json.loads(t) for t in (tmp_path / "alarms.jsonl").read_text().splitlines()] == [alarm]


def test_a_margin_lets_the_judge_fall_further(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch, "guard.action=stop", "guard.margin=0.25")
    for update, judge in enumerate([0.6, 0.36, 0.34]):
        stage.show(10 * update, judge)
        assert (stage.monitor.ended is None) == (update < 2)


def test_patience(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch, "guard.action=stop", "guard.patience=2")
    for update, judge in enumerate([0.9, 0.5, 0.9, 0.5, 0.5]):
        assert stage.monitor.ended is None
        stage.show(10 * update, judge)
    assert stage.monitor.ended == 40


def test_a_warning_is_said_once(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch, "guard.chain_kl=2")
    for update, kl in enumerate([0.0, 3.0, 4.0, 1.0, 5.0]):
        stage.spread = 0.5 if update > 2 else 1.0
        stage.show(10 * update, 0.5, kl)
    assert [(said["update"], said["alarm"][:12]) for said in stage.told] == [
        (10, "the chain KL"),
        (30, "samples of o"),
    ]
    assert stage.monitor.ended is None
    assert list(stage.monitor.until_ended(range(3))) == [0, 1, 2]


def test_an_evaluation_over_a_limit_is_never_the_best(tmp_path, monkeypatch):
    """The judge likes it, but its samples are all alike."""
    stage = Stage(tmp_path, monkeypatch, "guard.action=rollback")
    stage.show(0, 0.4)
    stage.show(10, 0.5)
    stage.spread = 0.1
    stage.show(20, 0.9)
    told = stage.monitor.summary()["guard"]
    assert (told["ended"], told["kept"], told["best"]["judge"]) == (20, 10, 0.5)
    assert checkpoints.latest(tmp_path / "checkpoints" / "best").name == "step-00000010"


def test_without_a_judge_the_others_watch(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch, "guard.action=rollback", "guard.chain_kl=2")
    for update, kl in enumerate([0.0, 1.0, 1.9, 2.1]):
        numbers = stage.show(10 * update, None, kl)
    assert "judge" not in numbers
    assert numbers["reward_gain"] > 0
    assert (stage.monitor.ended, stage.monitor.best.update) == (30, 20)


def test_its_memory_goes_through_a_checkpoint(tmp_path, monkeypatch):
    first, again = (Stage(tmp_path / n, monkeypatch, "guard.action=stop") for n in "ab")
    first.show(0, 0.4)
    first.show(10, 0.7)
    saved = checkpoints.save(tmp_path, 1, first.monitor.state())
    again.monitor.restore(checkpoints.load(saved))
    assert first.show(20, 0.65) == again.show(20, 0.65)
    assert first.show(30, 0.3) == again.show(30, 0.3)
    assert first.monitor.summary() == again.monitor.summary()
    assert again.monitor.ended == 30


@pytest.mark.parametrize(
    ("texts", "drawn", "different"),
    [(["a"], 2, 1), (["a"] * 60, 36, 1), (list("abcdef"), 12, 6), (list("abcdefghij") * 6, 36, 6)],
)
def test_samples_of_a_few_prompts(tmp_path, texts, drawn, different):
    prompts = Prompts(tuple(texts), ("all",) * len(texts))
    chosen = monitor(recipes.named("ddpo"), tmp_path, prompts, print).prompts.texts
    assert (len(chosen), len(set(chosen))) == (drawn, different)
    assert list(chosen) == sorted(chosen)  # each prompt's samples stand together


def test_a_run_of_before_there_was_a_guard_goes_on_unguarded(tmp_path, monkeypatch):
    stage = Stage(tmp_path, monkeypatch)
    assert stage.show(20, 0.1) == {}


# --------------------------------------------------------------------------------- whole runs

BUDGET = ["updates=3", "evaluation.every=1", "guard.chain_kl=1e-9", "guard.patience=2"]
"""Every evaluation but the base's is beyond the budget: the alarm is at update 2."""


class Watched(Silent):
    """A watcher that remembers, and interrupts at the `nth` thing of a kind."""

    def __init__(self, kind: str = "", nth: int = 0) -> None:
        self.kind, self.left, self.alarms = kind, nth, []

    def stage(self, text: str) -> None:
        self._count(text)

    def line(self, numbers: dict[str, Any]) -> None:
        if "alarm" in numbers:
            self.alarms.append(numbers)
        self._count("alarm" if "alarm" in numbers else "update")

    def _count(self, kind: str) -> None:
        self.left -= kind.startswith(self.kind) and bool(self.kind)
        if self.kind and self.left == 0:
            self.kind = ""
            raise KeyboardInterrupt


def launched(run: config.Run, folder: Path, watcher: Watched | None = None) -> dict[str, Any]:
    run_folder.record(run, folder, threads=1)
    return launch(run, folder, watcher or Watched())


def told(folder: Path) -> dict[str, Any]:
    """Everything a run leaves that must not depend on a kill."""
    weights = (folder / "lora" / "pytorch_lora_weights.safetensors").read_bytes()
    lines = {}
    for name in ("metrics.jsonl", "evaluations.jsonl", "alarms.jsonl"):
        path = folder / name
        rows = [json.loads(t) for t in path.read_text().splitlines()] if path.exists() else []
        lines[name] = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"], result["run"]
    return {"weights": hashlib.sha256(weights).hexdigest(), "result": result, **lines}


@pytest.fixture(scope="module")
def guarded_runs(tmp_path_factory, small) -> dict[str, dict[str, Any]]:
    """The same run under every action, undisturbed. While it is off, what the guard draws and
    judges with is not there."""
    found = {}
    for action in ("off", "warn", "stop", "rollback"):
        folder = tmp_path_factory.mktemp(action)
        budget = BUDGET[:2] if action == "off" else BUDGET
        run = overrides.changed(recipes.named("ddpo"), [*small, *budget, f"guard.action={action}"])
        with pytest.MonkeyPatch.context() as patch:
            for name in ("sample", "verdicts", "grid_peaks", "named_features"):
                if action == "off":
                    patch.delattr(guard, name)
            launched(run, folder)
        found[action] = told(folder) | {"folder": folder}
    return found


def test_off_computes_nothing_and_warn_changes_nothing(guarded_runs):
    off, warn = guarded_runs["off"], guarded_runs["warn"]
    assert off["weights"] == warn["weights"]
    assert off["metrics.jsonl"] == warn["metrics.jsonl"]
    assert off["alarms.jsonl"] == []
    assert "guard" not in off["result"]
    assert all("guard" not in row for row in off["evaluations.jsonl"])
    without = [{k: v for k, v in r.items() if k != "guard"} for r in warn["evaluations.jsonl"]]
    assert without == off["evaluations.jsonl"]


def test_a_warning_lets_the_run_go_on(guarded_runs):
    found = guarded_runs["warn"]
    assert [row["update"] for row in found["evaluations.jsonl"]] == [0, 1, 2, 3]
    assert [(a["update"], a["watch"]) for a in found["alarms.jsonl"]] == [(2, "chain_kl")]
    assert found["result"]["guard"]["alarms"] == found["alarms.jsonl"]
    assert found["result"]["guard"]["ended"] is None


def test_a_stop_ends_the_run_where_it_is(guarded_runs):
    warn, found = guarded_runs["warn"], guarded_runs["stop"]
    assert len(found["metrics.jsonl"]) == 2
    assert found["evaluations.jsonl"] == warn["evaluations.jsonl"][:3]
    assert found["result"]["chain_kl"] == found["evaluations.jsonl"][-1]["chain_kl"]
    assert (found["result"]["guard"]["ended"], found["result"]["guard"]["kept"]) == (2, 2)
    assert (found["folder"] / "report.html").exists()


def test_a_rollback_ends_with_the_best_weights(guarded_runs):
    from scoretune.training.run_folder import load

    found = guarded_runs["rollback"]
    assert found["result"]["guard"]["kept"] == 0  # all others were beyond the budget
    assert found["result"]["chain_kl"] == 0
    base = found["evaluations.jsonl"][0]
    assert found["result"]["judge"]["final"] == base["judge"]
    assert found["result"]["reward"] == base["reward"]
    policy = load(found["folder"])
    kept = checkpoints.load(checkpoints.latest(found["folder"] / "checkpoints" / "best"))
    for name, parameter in policy.backbone.network.named_parameters():
        if name in kept["policy"]:
            assert torch.equal(parameter, kept["policy"][name])


@pytest.mark.parametrize(
    ("action", "kind", "nth"),
    [
        ("rollback", "alarm", 1),
        slow("stop", "evaluating", 4),
        slow("rollback", "update", 2),
        slow("rollback", "evaluating", 4),
        slow("warn", "update", 3),
    ],
)
def test_a_kill_changes_nothing(guarded_runs, tmp_path, small, action, kind, nth):
    """At an update, at the alarm, and when an ended run is measured for the last time."""
    run = overrides.changed(recipes.named("ddpo"), [*small, *BUDGET, f"guard.action={action}"])
    with pytest.raises(KeyboardInterrupt):
        launched(run, tmp_path, Watched(kind, nth))
    launched(run, tmp_path)
    undisturbed = {k: v for k, v in guarded_runs[action].items() if k != "folder"}
    assert told(tmp_path) == undisturbed
    if nth == 4:
        launched(run, tmp_path)  # finished: nothing is done again
        assert told(tmp_path) == undisturbed


def test_a_judge_of_ones_own(tmp_path, small):
    changes = [*small, "reward=reader", "guard.judge=brightness", "guard.features=pixels"]
    launched(overrides.changed(recipes.named("ddpo"), changes), tmp_path)
    first, *_ = told(tmp_path)["evaluations.jsonl"]
    assert first["guard"]["judge"] != first["judge"]["overall"]
    assert 0 < first["guard"]["judge"] < 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["guard.judge=reader"], "guard.judge=reader is optimised itself"),
        (["reward=reader + 2*brightness", "guard.judge=brightness"], "is optimised itself"),
        (["guard.judge=brightnes"], "brightness"),
        (["guard.features=readr"], "reader"),
    ],
)
def test_what_cannot_guard_is_refused_before_anything_is_loaded(changes, words):
    run = overrides.changed(recipes.named("ddpo"), changes)
    with pytest.raises(UserError, match=words):
        check(run)
    off = run.guard.model_copy(update={"action": "off"})
    check(run.model_copy(update={"guard": off}))


# -------------------------------------------------------------------------- display and report


def test_the_display_keeps_alarms_in_sight(tmp_path, capsys, guarded_runs):
    live = Live(recipes.named("ddpo"), tmp_path)
    live.line({"update": 14, "alarm": "the judge fell [from] 0.6"})
    assert "guard: at update 14 the judge fell [from] 0.6\n" in capsys.readouterr().err
    told_of = {
        name: guarded(found["result"].get("guard", {})) for name, found in guarded_runs.items()
    }
    assert told_of["off"] == []
    assert len(told_of["warn"]) == 1
    assert told_of["stop"][1] == "guard: the run was ended at update 2"
    assert told_of["rollback"][1].endswith("went back to the weights of update 0")
    assert guarded({"alarms": [], "ended": None}) == []


def test_the_report_tells_of_alarms(guarded_runs, tmp_path):
    pages = {
        name: write_report(found["folder"]).read_text(encoding="utf-8")
        for name, found in guarded_runs.items()
    }
    assert "being gamed?" not in pages["off"]
    for name in ("warn", "stop", "rollback"):
        assert "<b>Alarm at update 2:</b> the chain KL is" in pages[name]
        assert pages[name].count('<line class="alarm"') == 1
        assert "at most 1e\u221209</td><td>update 2</td>" in pages[name]
    assert "The run went on" in pages["warn"]
    assert "went back to the weights of update 0" in pages["rollback"]


def test_the_report_is_calm_without_alarms(guarded_runs, tmp_path):
    import shutil

    shutil.copytree(guarded_runs["warn"]["folder"], tmp_path / "calm")
    (tmp_path / "calm" / "alarms.jsonl").unlink()
    page = write_report(tmp_path / "calm").read_text(encoding="utf-8")
    assert "No alarm was raised." in page
    assert '<line class="alarm"' not in page
