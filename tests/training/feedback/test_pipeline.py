"""The pipeline on a store: killed anywhere it goes on, and ends with the same pairs."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
import torch

from scoretune.core import distributed
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.scenes.world import EMPTY, Layout
from scoretune.data.store import open_store
from scoretune.diffusion.kernels import GDDIM
from scoretune.policy import Policy
from scoretune.rewards.cache import metadata_of
from scoretune.training.feedback import roles
from scoretune.training.feedback.filters import Filter
from scoretune.training.feedback.pipeline import Cast, Job, Pipeline
from scoretune.training.feedback.records import (
    Answer,
    Critique,
    Edited,
    EditPlan,
    Issue,
    Shown,
)
from scoretune.training.feedback.workers import Cluster
from small_model import bright, noising
from two_processes import run_in_two

PROMPTS = tuple("a prompt of its own length" + "!" * place for place in range(11))


@dataclass
class Roles:
    """Whoever is asked dies at the call `dies`, as by kill -9."""

    dies: int = -1
    calls: list[str] = field(default_factory=list)

    def called(self, who: str) -> None:
        self.calls.append(who)
        if len(self.calls) == self.dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def critic(self, pictures):
        self.called("critic")
        said = []
        for shown in pictures:
            dark = float(shown.pixels.mean()) < 0.62
            issues = [Issue(what="too dark", category="composition")] if dark else []
            unread = len(shown.prompt) % 5 == 0
            content = None if unread else Critique(alignment=5, issues=issues)
            said.append(Answer(content, "…", 3 if unread else 1))
        return said

    def writer(self, pictures, critiques):
        self.called("writer")
        return [Answer(EditPlan(instructions=["make it brighter"]), "") for _ in critiques]

    def editor(self, pictures, plans, seeds):
        self.called("editor")
        shifts = [0.2 if seed % 3 else -0.2 for seed in seeds]
        return [Edited((p.pixels + s).clamp(0, 1)) for p, s in zip(pictures, shifts, strict=True)]

    def reward(self, images, prompts):
        self.called("reward")
        return bright(images, prompts)


def policy() -> Policy:
    return Policy(noising(), GDDIM(1.0))


def pipeline(folder: Path, cast: Roles, **job) -> Pipeline:
    settings = {"critic": "c", "writer": "w", "editor": "e", "reward": "bright"} | job
    return Pipeline(
        open_store(str(folder), create=True),
        Job(model="little", prompts=PROMPTS, **settings),
        Cast(policy, cast.critic, cast.writer, cast.editor, cast.reward, None),
        lambda *_: None,
        chunk=3,
    )


def pairs(folder: Path) -> list[tuple[str, str]]:
    """Preferred and other picture, by what is in them, in the order of the store."""
    store = open_store(str(folder))
    return [
        (store.sample(pair.first).picture, store.sample(pair.second).picture)
        for pair in store.pairs(source="rpo-edit")
    ]


def test_what_comes_through_each_stage(tmp_path):
    cast = Roles()
    summary = pipeline(tmp_path, cast, filter=Filter(reversed=True)).run()
    unread = sum(len(prompt) % 5 == 0 for prompt in PROMPTS)
    assert summary["pictures"] == len(PROMPTS)
    assert summary["critiques"]["malformed"] == summary["critiques"]["asked again"] == unread
    assert summary["edits"] == summary["plans"]["with instructions"] > 2
    outcomes = summary["verdicts"]
    assert outcomes["better"] and outcomes["worse"]
    assert summary["acceptance"]["composition"] == {
        "edits": summary["edits"],
        "kept": outcomes["better"],
    }
    made = pairs(tmp_path)
    assert len(made) == summary["pairs"] == outcomes["better"] + outcomes["worse"]
    store = open_store(str(tmp_path))
    for (better, worse), pair in zip(made, store.pairs(source="rpo-edit"), strict=True):
        sides = torch.stack([store.pixels(better), store.pixels(worse)])
        levels = bright(sides, [pair.prompt] * 2)
        assert levels[0] > levels[1]
    for edit in store.edits():  # where it came from
        edited = store.sample(edit.edited)
        assert edited.parent == edit.sample
        assert edited.settings["instructions"] == edit.instructions == ["make it brighter"]


def test_a_second_run_asks_nobody(tmp_path):
    first = pipeline(tmp_path, Roles()).run()
    before, cast = pairs(tmp_path), Roles()
    assert pipeline(tmp_path, cast).run() == first
    assert cast.calls == []
    assert pairs(tmp_path) == before


def test_every_role_sees_what_the_prompt_file_says_beside_the_text(tmp_path):
    prompts = tuple(Prompt(text, {"text": str(place)}) for place, text in enumerate(PROMPTS))
    asked: dict[str, set[str]] = {"critic": set(), "editor": set(), "reward": set()}
    cast = Roles()

    def noted(who, prompts):
        asked[who] |= {metadata_of(prompt)["text"] for prompt in prompts}

    def critic(pictures):
        noted("critic", [shown.prompt for shown in pictures])
        return cast.critic(pictures)

    def editor(pictures, plans, seeds):
        noted("editor", [shown.prompt for shown in pictures])
        return cast.editor(pictures, plans, seeds)

    def reward(images, prompts):
        noted("reward", prompts)
        return cast.reward(images, prompts)

    made = pipeline(tmp_path, cast)
    job, others = replace(made.job, prompts=prompts), (cast.writer, editor, reward, None)
    replace(made, job=job, cast=Cast(policy, critic, *others)).run()
    assert asked["critic"] == set(map(str, range(len(PROMPTS))))
    assert asked["editor"] == asked["reward"] <= asked["critic"]
    store = open_store(str(tmp_path))
    assert {one.metadata["text"] for one in store.samples(source="edit")} == asked["editor"]
    other = replace(job, prompts=tuple(Prompt(prompt, {"text": "x"}) for prompt in prompts))
    assert other.keys("edits") == job.keys("edits")
    assert other.keys("verdicts") != job.keys("verdicts") != made.job.keys("verdicts")


def test_another_filter_asks_the_rewards_alone(tmp_path):
    pipeline(tmp_path, Roles()).run()
    cast = Roles()
    pipeline(tmp_path, cast, filter=Filter(threshold=0.1)).run()
    assert set(cast.calls) == {"reward"}


def test_killed_anywhere_it_ends_with_the_same_pairs(tmp_path):
    whole, kills = Roles(), 0
    pipeline(tmp_path / "whole", whole).run()
    for dies in (1, 3, 4, 5, 2, 2, 3, -1):  # of the calls that are left
        child = os.fork()
        if child == 0:
            torch.set_num_threads(1)
            pipeline(tmp_path / "killed", Roles(dies)).run()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        kills += os.WIFSIGNALED(status)
    assert kills >= 5
    assert not os.WIFSIGNALED(status) and os.WEXITSTATUS(status) == 0
    assert pairs(tmp_path / "killed") == pairs(tmp_path / "whole") != []


def share(folder: Path) -> None:
    """One process of two that share the pictures; what it asked whom is written down."""
    torch.set_num_threads(1)
    rank = distributed.start(2).rank
    cast = Roles()
    pipeline(folder / "shared", cast).run()
    (folder / f"calls-{rank}").write_text("\n".join(cast.calls))
    distributed.stop()


def test_two_processes_share_the_pictures_and_end_with_the_same_pairs(tmp_path):
    alone = Roles()
    pipeline(tmp_path / "alone", alone).run()
    run_in_two(share, tmp_path)
    shared = [(tmp_path / f"calls-{rank}").read_text().split() for rank in range(2)]
    assert sorted(shared[0] + shared[1]) == sorted(alone.calls)
    assert all(set(calls) == {"critic", "writer", "editor", "reward"} for calls in shared)
    assert pairs(tmp_path / "shared") == pairs(tmp_path / "alone") != []


@pytest.mark.slow
def test_two_workers_of_a_cluster_end_with_the_same_pairs(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'scoretune[cluster]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where they find this file
    pipeline(tmp_path / "alone", Roles()).run()
    workers = Cluster(2)
    try:
        summary = replace(pipeline(tmp_path / "cluster", Roles()), workers=workers).run()
        failing = replace(pipeline(tmp_path / "fails", Roles()), workers=workers)
        with pytest.raises(UserError, match="gave 0 answers"):
            next(workers(failing.cast, raising, [(0, ())]))
    finally:
        workers.close()
    assert summary == pipeline(tmp_path / "alone", Roles()).run()
    assert pairs(tmp_path / "cluster") == pairs(tmp_path / "alone") != []


def raising(cast: Cast) -> None:
    raise UserError("'a critic' gave 0 answers for 3 pictures")


def test_a_cluster_needs_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'scoretune\[cluster\]', here and on every"):
        Cluster(2)


class Late:
    """Workers whose results come two chunks after what was cut for them, as a cluster's do."""

    def __call__(self, cast, task, chunks):
        waiting = []
        for rows, arguments in chunks:
            waiting.append((rows, task(cast, *arguments)))
            if len(waiting) == 3:
                yield waiting.pop(0)
        yield from waiting


def test_results_may_come_after_later_chunks_were_cut(tmp_path):
    pipeline(tmp_path / "here", Roles()).run()
    replace(pipeline(tmp_path / "late", Roles()), workers=Late()).run()
    assert pairs(tmp_path / "late") == pairs(tmp_path / "here") != []


def test_an_editor_that_gives_nothing_is_refused(tmp_path):
    cast = Roles()
    cast.editor = lambda pictures, plans, seeds: [
        Edited(torch.zeros_like(p.pixels), "the editor gave a black picture") for p in pictures
    ]
    summary = pipeline(tmp_path, cast).run()
    assert summary["pairs"] == 0
    assert summary["verdicts"] == {"the editor gave a black picture": summary["edits"]}


def scene(**cells: tuple[int, int]) -> torch.Tensor:
    digits, colours = [EMPTY] * 4, [0] * 4
    for place, (digit, colour) in cells.items():
        digits["abcd".index(place)], colours["abcd".index(place)] = digit, colour
    layout = Layout(tuple(digits), tuple(colours))
    return torch.from_numpy(draw_in_hands([layout], "judge", [(5, 6, 7, 8)])[0])


def test_the_shipped_critic_writer_and_editor_mend_a_scene():
    wrong = Shown("a red seven", scene(a=(7, 1)))
    critic, writer, editor = (
        roles.named(kind, name, table)
        for kind, name, table in (
            ("critic", "reader", roles.CRITICS),
            ("writer", "reader(most=2)", roles.WRITERS),
            ("editor", "scenes", roles.EDITORS),
        )
    )
    (critique,) = critic([wrong])
    assert [issue.what for issue in critique.content.issues] == ["the seven is not red"]
    (plan,) = writer([wrong], [critique.content])
    assert plan.content.instructions == ["make the seven red"]
    (edited,) = editor([wrong], [plan.content.instructions], [0])
    (after,) = critic([Shown(wrong.prompt, edited.pixels)])
    assert after.content.issues == []
    assert after.content.alignment > 9 > 1 > critique.content.alignment
    assert torch.equal(edited.pixels[:, 16:], wrong.pixels[:, 16:])  # all else as it was
    (same,) = editor([wrong], [["paint it like Monet"]], [0])
    assert torch.equal(same.pixels, wrong.pixels)


def test_a_prompt_that_the_reader_does_not_know():
    with pytest.raises(UserError, match="critic=reader knows scenes of digits only"):
        roles.named("critic", "reader", roles.CRITICS)([Shown("a cat", scene())])


@pytest.mark.parametrize("text", ["raeder", "openai", "vlm(model=x, temper=1)"])
def test_a_critic_that_does_not_exist_or_lacks_a_setting(text):
    with pytest.raises(UserError):
        roles.named("critic", text, roles.CRITICS)


def test_every_prompt_of_the_world_has_a_critic():
    assert roles.named("critic", "reader", roles.CRITICS)(
        [Shown(ask.text, scene(b=(3, 2))) for ask in world.balanced(world.training_asks(), 1, 0)]
    )
