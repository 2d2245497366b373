"""Pictures, critiques, plans, edits, verdicts and pairs, each stage in the store.

A stage goes through its pictures in chunks that are always the same, and writes a chunk whole. What
the store has already is not made again, so a pipeline that was killed goes on, and ends with the
pairs that it would have had. Of several processes each takes every so many-th chunk; a cluster's
workers take the next.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scoretune.core import distributed
from scoretune.core.errors import UserError
from scoretune.core.records import spans
from scoretune.data.store import Sample, StoredCritique, StoredEdit
from scoretune.evaluate.samples import deployed_steps, drawn
from scoretune.policy import Policy
from scoretune.rewards.base import Reward, check_prompts
from scoretune.rewards.cache import metadata_of
from scoretune.rewards.catalog import named_reward
from scoretune.rollout import prior
from scoretune.training.feedback import roles
from scoretune.training.feedback.filters import Filter, distances
from scoretune.training.feedback.records import Answer, Critique, Edited, EditPlan, Shown
from scoretune.training.feedback.roles import Critic, Editor, Writer
from scoretune.training.feedback.store_rows import add_answer, gains, shown, verdict_row
from scoretune.training.feedback.workers import Workers, one_by_one

if TYPE_CHECKING:
    from scoretune.data.store.store import Store

STAGES = ("pictures", "critiques", "plans", "edits", "verdicts", "pairs")
Note = Callable[[str, int, int], None]
"""Told a stage, how many of its pictures are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What makes two pipelines one: the words of the command line that decide about its pictures.

    `agree` is a second reward, empty for none; `per_prompt` pictures are drawn for each prompt.
    """

    model: str
    prompts: tuple[str, ...]
    critic: str
    writer: str
    editor: str
    reward: str
    agree: str = ""
    per_prompt: int = 1
    seed: int = 0
    filter: Filter = field(default_factory=Filter)

    def __len__(self) -> int:
        return len(self.prompts) * self.per_prompt

    def prompt(self, index: int) -> str:
        """Of a picture by its number."""
        return self.prompts[index // self.per_prompt]

    def keys(self, stage: str) -> list[str]:
        """Idempotency keys of a stage, one a picture. A later stage's depends on all before it."""
        made: tuple[Any, ...] = (self.model, self.prompts, self.per_prompt, self.seed)
        made += (self.critic,) if stage != "pictures" else ()
        made += (self.writer,) if stage in ("plans", "edits", "verdicts") else ()
        made += (self.editor,) if stage in ("edits", "verdicts") else ()
        if stage == "verdicts":
            made += (self.reward, self.agree, asdict(self.filter))
            metadata = [metadata_of(prompt) for prompt in self.prompts]
            made += (metadata,) if any(metadata) else ()  # rewards see it
        digest = hashlib.sha256(json.dumps(made, default=str).encode()).hexdigest()[:20]
        return [f"rpo-{stage}-{digest}-{index}" for index in range(len(self))]


@dataclass(frozen=True)
class Cast:
    """Who does it: one method a stage, each of nothing but its arguments."""

    load: Callable[[], Policy]
    critic: Critic
    writer: Writer
    editor: Editor
    reward: Reward
    second: Reward | None

    @cached_property
    def policy(self) -> Policy:
        """The model, loaded when it is needed."""
        return self.load()

    def draw(self, texts: Sequence[str], seed: int) -> Tensor:
        """A picture a text, [B, 3, H, W], through the model's own sampler."""
        policy, generator = self.policy, torch.Generator().manual_seed(seed)
        noise, steps = prior(policy, len(texts), generator), deployed_steps(policy.backbone)
        return drawn(policy, texts, noise, generator, steps=steps)

    def criticise(self, pictures: Sequence[Shown]) -> list[Answer[Critique]]:
        """What is wrong with each."""
        return self.critic(pictures)

    def plan(
        self, pictures: Sequence[Shown], critiques: Sequence[Critique]
    ) -> list[Answer[EditPlan]]:
        """What would mend each; nobody is asked about none."""
        return self.writer(pictures, critiques) if pictures else []

    def edit(
        self, pictures: Sequence[Shown], plans: Sequence[Sequence[str]], seeds: Sequence[int]
    ) -> list[Edited]:
        """Each after its plan."""
        return self.editor(pictures, plans, seeds)

    def score(
        self, before: Tensor, after: Tensor, prompts: Sequence[str], names: tuple[str, str]
    ) -> tuple[list[float], list[float] | None, list[float]]:
        """What edits gain in each reward, and how far they are from their pictures."""
        second = None
        if self.second is not None:
            second = gains(self.second, names[1], before, after, prompts)
        first = gains(self.reward, names[0], before, after, prompts)
        return first, second, distances(before, after).tolist()


def cast_of(job: Job, policy: Callable[[], Policy]) -> Cast:
    """Whom a job names. Raises UserError for one that there is not, and for prompts that a reward
    cannot judge."""
    reward, second = named_reward(job.reward), named_reward(job.agree) if job.agree else None
    for name, judge in {job.reward: reward, job.agree: second}.items():
        fix = "give --prompts FILE of such as it reads, or another reward"
        if judge is not None:
            check_prompts(judge, name, job.prompts, source="the prompts", fix=fix)
    return Cast(
        load=policy,
        critic=roles.named("critic", job.critic, roles.CRITICS),
        writer=roles.named("writer", job.writer, roles.WRITERS),
        editor=roles.named("editor", job.editor, roles.EDITORS),
        reward=reward,
        second=second,
    )


@dataclass(frozen=True)
class Stored:
    """What the store has of a job."""

    store: Store
    job: Job

    def answers(self) -> dict[str, StoredCritique]:
        """What critics and writers said, by key."""
        return {critique.key: critique for critique in self.store.critiques()}

    def critiques(self) -> list[Critique | None]:
        """What was understood of each picture's critique."""
        stored = self.answers()
        return [_content(Critique, stored[key].payload) for key in self.job.keys("critiques")]

    def plans(self) -> list[list[str]]:
        """The instructions for each picture, none where nothing is to be mended."""
        stored = self.answers()
        plans = [_content(EditPlan, stored[key].payload) for key in self.job.keys("plans")]
        return [[] if plan is None else list(plan.instructions) for plan in plans]

    def samples(self, stage: str) -> dict[int, Sample]:
        """Pictures or edits by their number."""
        stored = {sample.key: sample for sample in self.store.samples()}
        return {row: stored[key] for row, key in enumerate(self.job.keys(stage)) if key in stored}

    def verdicts(self) -> dict[int, StoredEdit]:
        """Judged edits by the number of their picture."""
        stored = {edit.key: edit for edit in self.store.edits()}
        keys = self.job.keys("verdicts")
        return {row: stored[key] for row, key in enumerate(keys) if key in stored}


@dataclass(frozen=True)
class Pipeline:
    """A job on a store. `chunk` pictures are handled at once, by `workers`."""

    store: Store
    job: Job
    cast: Cast
    note: Note
    chunk: int = 32
    workers: Workers = one_by_one

    def run(self) -> dict[str, Any]:
        """All stages; the summary."""
        for stage in (self.draw, self.criticise, self.plan, self.edit, self.judge):
            stage()
            distributed.wait()
        if distributed.team().main:
            self.pair()
        distributed.wait()
        return summary(self.stored)

    @property
    def stored(self) -> Stored:
        """What is there."""
        return Stored(self.store, self.job)

    # ------------------------------------------------------------------------------- stages

    def draw(self) -> None:
        """The model's own pictures, through its own sampler."""
        done = {sample.key for sample in self.store.samples(source="model")}
        keys = self.job.keys("pictures")

        def seed(rows: Sequence[int]) -> int:
            return self.job.seed * 1_000_003 + rows[0]

        def wanted(rows: Sequence[int]) -> tuple[Any, ...]:
            return [self.job.prompt(row) for row in rows], seed(rows)

        for rows, images in self._work(
            "pictures", Cast.draw, wanted, [key in done for key in keys]
        ):
            with self.store.together():
                for row, image in zip(rows, images, strict=True):
                    self.store.add_sample(
                        prompt=self.job.prompt(row),
                        picture=self.store.add_picture(image),
                        model=self.job.model,
                        seed=seed(rows),
                        settings={"place": row - rows[0]},
                        key=keys[row],
                    )

    def criticise(self) -> None:
        """What is wrong with each picture."""
        keys, done = self.job.keys("critiques"), self.stored.answers()
        samples = self.stored.samples("pictures")

        def pictures(rows: Sequence[int]) -> tuple[Any, ...]:
            return ([shown(self.store, samples[row]) for row in rows],)

        ready = [key in done for key in keys]
        for rows, answers in self._work("critiques", Cast.criticise, pictures, ready):
            self._add_answers(rows, samples, keys, answers, self.job.critic)

    def plan(self) -> None:
        """What would mend it, where there is anything to mend."""
        keys, done = self.job.keys("plans"), self.stored.answers()
        samples, critiques = self.stored.samples("pictures"), self.stored.critiques()

        def wrong(rows: Sequence[int]) -> dict[int, Critique]:
            return {row: c for row in rows if (c := critiques[row]) is not None and c.issues}

        def issues(rows: Sequence[int]) -> tuple[Any, ...]:
            some = wrong(rows)
            return [shown(self.store, samples[row]) for row in some], list(some.values())

        ready = [key in done for key in keys]
        for rows, written in self._work("plans", Cast.plan, issues, ready):
            answers = {row: Answer(EditPlan(), "nothing to mend") for row in rows}
            answers |= dict(zip(wrong(rows), written, strict=True))
            in_order = [answers[row] for row in rows]
            self._add_answers(rows, samples, keys, in_order, f"writer {self.job.writer}")

    def edit(self) -> None:
        """The pictures after their plans; those without a plan stay as they are and are skipped."""
        keys, plans = self.job.keys("edits"), self.stored.plans()
        samples = self.stored.samples("pictures")
        done = {sample.key for sample in self.store.samples(source="edit")}
        seeds = [self.job.seed * 1_000_003 + 101 * row for row in range(len(self.job))]

        def planned(rows: Sequence[int]) -> tuple[Any, ...]:
            some = [row for row in rows if plans[row]]
            pictures = [shown(self.store, samples[row]) for row in some]
            return pictures, [plans[row] for row in some], [seeds[row] for row in some]

        ready = [keys[row] in done or not plans[row] for row in range(len(self.job))]
        for rows, edited in self._work("edits", Cast.edit, planned, ready):
            some = [row for row in rows if plans[row]]
            with self.store.together():
                for row, edit in zip(some, edited, strict=True):
                    self.store.add_sample(
                        prompt=self.job.prompt(row),
                        picture=self.store.add_picture(edit.pixels),
                        source="edit",
                        model=self.job.editor,
                        seed=seeds[row],
                        settings={"instructions": plans[row], "problem": edit.problem},
                        parent=samples[row].id,
                        key=keys[row],
                    )

    def judge(self) -> None:
        """What the rewards say of picture and edit, and the filter's verdict."""
        keys, plans = self.job.keys("verdicts"), self.stored.plans()
        samples, edits = self.stored.samples("pictures"), self.stored.samples("edits")
        critiques = self.stored.answers()
        done = {edit.key for edit in self.store.edits()}
        ready = [keys[row] in done or row not in edits for row in range(len(self.job))]
        of = self.job.keys("critiques")

        def both(rows: Sequence[int]) -> tuple[Any, ...]:
            some = [row for row in rows if row in edits]
            before, after = (
                torch.stack([self.store.pixels(side[row].picture) for row in some])
                for side in (samples, edits)
            )
            names = (self.job.reward, self.job.agree)
            return before, after, [self.job.prompt(row) for row in some], names

        for rows, scores in self._work("verdicts", Cast.score, both, ready):
            some = [row for row in rows if row in edits]
            verdicts = self._verdicts([edits[row] for row in some], *scores)
            with self.store.together():
                for row, verdict in zip(some, verdicts, strict=True):
                    self.store.add_edit(
                        key=keys[row],
                        sample=samples[row].id,
                        critique=critiques[of[row]].id,
                        editor=self.job.editor,
                        instructions=plans[row],
                        seed=edits[row].seed,
                        edited=edits[row].id,
                        verdict=verdict,
                    )

    def pair(self) -> None:
        """Pairs of what was kept, in the order of the pictures, all at once."""
        edits = list(self.stored.verdicts().values())
        with self.store.together():
            for done, edit in enumerate(edits, 1):
                assert edit.edited is not None, "only what came out is judged"
                if edit.verdict["outcome"] == "kept":
                    self.store.add_pair(edit.edited, edit.sample, source="rpo-edit")
                elif edit.verdict["outcome"] == "reversed":
                    self.store.add_pair(edit.sample, edit.edited, source="rpo-edit")
                self.note("pairs", done, len(edits))

    def _add_answers(
        self,
        rows: Sequence[int],
        samples: Mapping[int, Sample],
        keys: Sequence[str],
        answers: Sequence[Answer[Any]],
        who: str,
    ) -> None:
        if len(answers) != len(rows):
            raise UserError(f"{who!r} gave {len(answers)} answers for {len(rows)} pictures")
        with self.store.together():
            for row, answer in zip(rows, answers, strict=True):
                add_answer(self.store, keys[row], samples[row].id, who, answer)

    def _verdicts(
        self,
        edits: Sequence[Sample],
        firsts: Sequence[float],
        seconds: Sequence[float] | None,
        moved: Sequence[float],
    ) -> list[dict[str, Any]]:
        verdicts = []
        agree: Sequence[float | None] = [None] * len(edits) if seconds is None else seconds
        for gain, second, distance, edit in zip(firsts, agree, moved, edits, strict=True):
            problem = str(edit.settings.get("problem", ""))
            verdict = self.job.filter(gain, distance, second=second, problem=problem)
            verdicts.append(verdict_row(verdict, gain=gain, second=second, distance=distance))
        return verdicts

    def _work(
        self,
        stage: str,
        task: Callable[..., Any],
        arguments: Callable[[Sequence[int]], tuple[Any, ...]],
        done: Sequence[bool],
    ) -> Iterator[tuple[list[int], Any]]:
        """What a task of the cast gives for each chunk that is not done and this process's."""
        chunks = ((rows, arguments(rows)) for rows in self._chunks(done))
        for rows, result in self.workers(self.cast, task, chunks):
            yield rows, result
            self.note(stage, rows[-1] + 1, len(done))
        self.note(stage, len(done), len(done))

    def _chunks(self, done: Sequence[bool]) -> Iterator[list[int]]:
        team = distributed.team()
        for number, span in enumerate(spans(len(done), self.chunk)):
            rows = list(range(len(done)))[span]
            if number % team.size == team.rank and not all(done[row] for row in rows):
                yield rows


def _content(kind: type[Any], payload: Mapping[str, Any]) -> Any:
    content = payload["content"]
    return None if content is None else kind.model_validate(content)


# ---------------------------------------------------------------------------------- summary


def summary(stored: Stored) -> dict[str, Any]:
    """How many pictures came through each stage, how many answers could not be read, why edits
    were refused, and how many were kept of each category of issue."""
    answers, job = stored.answers(), stored.job
    read = [answers[key].payload for key in job.keys("critiques")]
    written = [answers[key].payload for key in job.keys("plans")]
    critiques, verdicts = stored.critiques(), stored.verdicts()
    reasons = Counter(str(edit.verdict["reason"]) for edit in verdicts.values())
    tried: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    for row, edit in verdicts.items():
        critique = critiques[row]
        for category in {issue.category for issue in critique.issues} if critique else ():
            tried[category] += 1
            kept[category] += edit.verdict["outcome"] == "kept"
    return {
        "pictures": len(job),
        "critiques": {
            "read": sum(payload["content"] is not None for payload in read),
            "malformed": sum(payload["content"] is None for payload in read),
            "asked again": sum(payload["attempts"] > 1 for payload in read),
            "nothing wrong": sum(c is not None and not c.issues for c in critiques),
        },
        "plans": {
            "with instructions": sum(bool(plan) for plan in stored.plans()),
            "malformed": sum(payload["content"] is None for payload in written),
        },
        "edits": len(verdicts),
        "verdicts": dict(reasons.most_common()),
        "pairs": sum(edit.verdict["outcome"] != "refused" for edit in verdicts.values()),
        "acceptance": {
            category: {"edits": tried[category], "kept": kept[category]}
            for category in sorted(tried)
        },
    }
