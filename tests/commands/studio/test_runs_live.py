"""Runs as the studio follows, stops and starts them; and the rounds of pictures that it draws."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from scoretune.commands.feedback import collect
from scoretune.commands.studio import jobs, live, rounds
from scoretune.commands.studio.pages.rounds import settings_of
from scoretune.commands.studio.security import Refused
from scoretune.core import lock
from scoretune.core.errors import UserError
from scoretune.data.store import open_store
from studios import Client, filled, run_folder, served


def test_a_run_is_stopped_in_good_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    signals: list[tuple[int, int]] = []
    monkeypatch.setattr(jobs.os, "kill", lambda process, sent: signals.append((process, sent)))
    run = tmp_path / "run"
    with pytest.raises(UserError, match="not running"):
        jobs.stop(run)
    with lock.held(run):  # as `scoretune train` does
        assert jobs.running(run) == os.getpid()
        jobs.stop(run)
        assert signals == [(os.getpid(), signal.SIGINT)]
        (run / lock.NAME).write_text(f"{os.getpid()} another-machine")
        with pytest.raises(UserError, match="on this machine"):
            jobs.stop(run)
    run.mkdir(exist_ok=True)
    (run / lock.NAME).write_text(f"{os.getpid()} {socket.gethostname()}")
    assert jobs.running(run) is None  # a file that was left behind locks nothing
    assert len(signals) == 1


def test_new_lines_are_followed(tmp_path: Path):
    follower, metrics = live.Follower(tmp_path / "run"), tmp_path / "run" / "metrics.jsonl"
    assert list(follower.news()) == []
    metrics.parent.mkdir()
    metrics.write_text('{"update": 1, "reward": {"a": 2}, "bad": NaN, "text": "x"}\n{"upd')
    row = {"update": 1.0, "reward.a": 2.0, "text": "x"}
    assert list(follower.news()) == [("rows", {"log": "metrics", "rows": [row]})]
    assert list(follower.news()) == []
    with metrics.open("a") as file:
        file.write('ate": 2}\nnot json\n[1]\n')
    assert list(follower.news()) == [("rows", {"log": "metrics", "rows": [{"update": 2.0}]})]
    metrics.write_text('{"update": 1}\n')  # resumed from an earlier update
    assert list(follower.news()) == [("rows", {"log": "metrics", "rows": [{"update": 1.0}]})]
    jobs.log_of(tmp_path / "run").write_bytes(b"a\rb\n" + b"x" * 20_000 + b"\xff<b>")
    ((kind, text),) = follower.news()
    assert kind == "text" and text.endswith("x\ufffd<b>") and len(text) <= live.TAIL


def test_events_are_sent_to_the_owner_alone(tmp_path: Path):
    store = filled(tmp_path / "store")
    with served(store, tmp_path / "store") as studio:
        run_folder(studio.runs / "a")
        rater = Client(studio.address).enter(store.add_rater("ann")[1])
        name = live.name_of(studio.runs / "a")
        for path in ("/runs", f"/runs/{name}", f"/runs/{name}/events", "/rounds", "/raters"):
            assert rater.get(path).status == 403
        assert rater.post("/rounds", updates=1).status == 403
        assert rater.post(f"/runs/{name}/stop").status == 403
        owner = Client(studio.address).enter(studio.keys.token)
        for path in ("/runs/nothing", "/runs/..%2f..", f"/runs/{name}/previews/99"):
            assert owner.get(path).status == 404
        assert "fewer than 10 votes" in owner.post("/rounds", updates=1).text


def test_only_harmless_settings_are_changed_from_a_page():
    assert settings_of("dpo", "objective.beta=5 seed=1") == ["objective.beta=5", "seed=1"]
    assert settings_of("reward", "members=2") == ["members=2"]
    with pytest.raises(Refused, match="no setting"):
        settings_of("reward", "features=evil")
    for text in ("reward=evil:function", "model.source=/", "--run=x", "data=x", "updates", "seed"):
        with pytest.raises(Refused, match="no setting"):
            settings_of("online_dpo", text)


def test_a_reward_is_trained_chosen_and_ranks_for_online_dpo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = filled(tmp_path, prompts=("a cat", "a dog"), per_prompt=4)
    rater = store.add_rater("ann")[0].id
    for pair in store.pairs():
        store.add_vote(key=str(pair.id), pair=pair.id, rater=rater, choice="first", seconds=1)
    with served(store, tmp_path) as studio:
        orders: list[list[str]] = []
        monkeypatch.setattr(studio.jobs, "start", lambda model, words: orders.append(words))
        owner = Client(studio.address).enter(studio.keys.token)
        assert "train one on the votes first" in owner.post("/rounds", kind="online_dpo").text
        assert owner.post("/rounds", kind="reward", settings="members=2").status == 200
        assert owner.post("/rounds", kind="evil").status == 422
        assert owner.post("/rounds", kind="dpo", updates="0").status == 422
        run = studio.runs / "round-1"
        run.mkdir(parents=True)
        jobs.log_of(run).write_text("member 1\r39 of 40\n")
        (run / "reward.json").write_text("{}")
        held = {"accuracy": 0.75, "low": 0.7, "high": 0.8}
        (run / "result.json").write_text(json.dumps({"held_out": held}))
        page = owner.get("/rounds").text
        assert "agrees with 75" in page and "Let round-1 choose the next pairs" in page
        assert "It chooses the next pairs" in owner.post("/rounds/use", reward=str(run)).text
        assert studio.choosing.how == str(run)
        assert owner.post("/rounds/use", reward="/etc").status == 422
        assert owner.post("/rounds", kind="online_dpo", reward="round-1", updates="7").status == 200
        assert owner.post("/rounds", kind="online_dpo", reward="../x").status == 409
        assert "not running" in owner.post("/rounds/stop").text
    reward, ranked = orders
    assert reward == ["reward", f"data={tmp_path}", "features=pixels", "updates=400", "members=2"]
    assert {"online_dpo", f"reward={run}", "updates=7", "model.source=scenes"} <= set(ranked)


def test_one_job_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jobs.sys, "executable", "/bin/cat")  # prints its mistake and ends
    own = jobs.Jobs(str(tmp_path), tmp_path / "runs")
    first = own.start("scenes", ["dpo"])
    assert own.process is not None
    own.process.wait(20)
    second = own.start("scenes", ["dpo"])
    assert [run.name for run in (first, second)] == ["round-1", "round-2"]
    assert own.rounds() == [second, first] and jobs.log_of(first).is_file()
    own.process = SimpleNamespace(poll=lambda: None)  # one that goes on
    with pytest.raises(UserError, match="already"):
        own.start("scenes", ["dpo"])


@pytest.fixture
def drawing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A sampler that draws noise; how many pictures it drew, each time."""
    counts: list[int] = []

    def draw(self: collect.Artist, prompts: list[str], seeds: list[int]) -> torch.Tensor:
        counts.append(len(prompts))
        noise = [torch.Generator().manual_seed(seed + self.policy.shift) for seed in seeds]
        return torch.stack([torch.rand(3, 4, 4, generator=one) for one in noise])

    monkeypatch.setattr(collect.Artist, "draw", draw)
    monkeypatch.setattr(collect, "digest", lambda policy: str(policy.shift))
    monkeypatch.setattr("scoretune.evaluate.samples.deployment_of", lambda _: None)
    return counts


def policy(shift: int) -> Any:
    return SimpleNamespace(shift=shift, backbone=None, guidance=1.0)


def test_rounds_are_drawn_once_and_pair_the_old_and_the_new(tmp_path: Path, drawing: list[int]):
    store = open_store(str(tmp_path), create=True)
    prompts = [f"prompt {n}" for n in range(7)]
    notes: list[tuple[int, int]] = []

    def note(done: int, total: int) -> None:
        notes.append((done, total))
        if len(notes) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rounds.first_round(store, policy(0), prompts, model="m", per_prompt=3, note=note)
    before = {one.key: one.picture for one in store.samples()}
    rounds.first_round(store, policy(0), prompts, model="m", per_prompt=3, note=note)
    assert drawing == [16, 5] and len(store.samples()) == 21 and len(store.pairs()) == 21
    assert before.items() <= {one.key: one.picture for one in store.samples()}.items()
    both = [("m", policy(0)), ("runs/round-1", policy(9))]
    assert rounds.next_round(store, both, prompts, number=1, note=note) == 7
    assert rounds.latest(store) == 1
    new = [pair for pair in store.pairs() if store.sample(pair.first).round == 1]
    sides = [{store.sample(n).model for n in (pair.first, pair.second)} for pair in new]
    assert sides == [{"m", "runs/round-1"}] * 7 and notes[-1] == (14, 14)
    seeds = [[store.sample(n).seed for n in (pair.first, pair.second)] for pair in new]
    assert all(old == tuned for old, tuned in seeds)  # from one noise
    same = [("m", policy(0)), ("copy", policy(0))]
    assert rounds.next_round(store, same, prompts, number=2, note=note) == 0
