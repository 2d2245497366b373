"""What people say of a picture, carried out: an editor's picture beside the original, and a pair.

An edit takes a moment or minutes, so each is made in a thread, one after the other. What was said
is in the store before: an edit that a kill cut off, or that failed, is begun again from the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scoretune.core.errors import UserError, one_line
from scoretune.data.store import Pair, Reason, Sample, StoredEdit

if TYPE_CHECKING:
    from scoretune.data.store.store import Store
    from scoretune.rewards.base import Reward
    from scoretune.training.feedback.records import Edited, Shown
    from scoretune.training.feedback.roles import Editor

MOST_WAITING = 20
"""Edits that wait for the one that is being made."""
PATIENCE = 2.0
"""Seconds that a page waits for an edit before it says that one is being made."""
UNKNOWN, NOT_MEASURED = "no instruction that the editor knows", "not measured"
PAIRED = ("better", "not better", NOT_MEASURED)
"""Verdicts on an edit that changed something: people are asked about it, also if the reward likes
it less."""


@dataclass(frozen=True)
class Carried:
    """One reason with what became of it: an edit with its verdict and the sample that came out, the
    pair of the two, whether it is being made now, and the problem where it failed."""

    reason: Reason
    edit: StoredEdit | None
    edited: Sample | None
    pair: Pair | None
    waiting: bool
    problem: str


@dataclass
class Editing:
    """An editor by its name as in `scoretune rpo`, at work on a store; with a `reward`'s name, the
    verdict of an edit says what that gains by it. `after` is told who asked for a pair."""

    store: Store
    editor: str
    reward: str = ""
    after: Callable[[int, Pair], Any] = lambda rater, pair: None
    _problems: dict[int, str] = field(default_factory=dict, init=False)
    _waiting: dict[int, threading.Thread] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)
    _edit: Editor = field(init=False)
    _judge: Reward | None = field(init=False)

    def __post_init__(self) -> None:
        """Raises UserError for an editor or a reward that there is not."""
        from scoretune.rewards.catalog import named_reward
        from scoretune.training.feedback import roles

        self._edit = roles.named("editor", self.editor, roles.EDITORS)
        self._judge = named_reward(self.reward) if self.reward else None

    def begin(self, reason: Reason) -> None:
        """Carry a reason out, unless that is being done; the page waits a moment for it.

        Raises UserError where too many wait already.
        """
        with self._lock:
            thread = self._waiting.get(reason.id)
            if thread is None:
                if len(self._waiting) >= MOST_WAITING:
                    raise UserError("the editor has much to do: what you said is stored; come back")
                self._problems.pop(reason.id, None)
                thread = threading.Thread(target=self._carry_out, args=(reason,), daemon=True)
                self._waiting[reason.id] = thread
                thread.start()
        thread.join(PATIENCE)

    def carried(self, sample: int) -> list[Carried]:
        """The reasons of a sample in the order in which they came, with what became of each."""
        return carried(self.store, sample, waiting=set(self._waiting), problems=self._problems)

    def _carry_out(self, reason: Reason) -> None:
        try:
            with self._turn:
                pair = self._edited(reason)
            if pair is not None:
                self.after(reason.rater, pair)
        except Exception as error:  # of a model, too: it ends this edit and no other
            self._problems[reason.id] = one_line(str(error) or type(error).__name__)[:300]
        finally:
            with self._lock:
                del self._waiting[reason.id]

    def _edited(self, reason: Reason) -> Pair | None:
        """Carry a reason out and store its critique, its edit and the verdict; the pair of both
        pictures, None where nothing was changed. Raises UserError where the editor cannot."""
        from scoretune.training.feedback.person import critique_of, instructions_of
        from scoretune.training.feedback.records import Answer
        from scoretune.training.feedback.store_rows import add_answer, shown

        store, key = self.store, key_of(reason)
        before = store.sample(reason.sample)
        picture, said = shown(store, before), Answer(critique_of(reason), reason.text)
        record: dict[str, Any] = {"key": key, "sample": before.id, "editor": self.editor}
        record["critique"] = add_answer(
            store, f"{key}/critique", before.id, f"rater {reason.rater}", said
        )
        plan, seed = instructions_of(reason, picture), reason.id
        record |= {"instructions": plan, "seed": seed}
        if not plan:
            verdict = {"outcome": "refused", "reason": UNKNOWN}
            store.add_edit(**record, edited=None, verdict=verdict)
            return None
        (edit,) = self._edit([picture], [plan], [seed])
        if edit.pixels.shape != picture.pixels.shape:
            raise UserError(
                f"the editor {self.editor!r} gave a picture of another size: use another"
            )
        verdict = self._verdict(picture, edit)
        with store.together():
            after = store.add_sample(
                prompt=before.full_prompt,
                picture=store.add_picture(edit.pixels),
                source="edit",
                model=self.editor,
                seed=seed,
                settings={"instructions": plan, "problem": edit.problem, "rater": reason.rater},
                parent=before.id,
                round=before.round,
                key=f"{key}/edited",
            )
            store.add_edit(**record, edited=after.id, verdict=verdict)
            paired = verdict["reason"] in PAIRED
            return store.add_pair(before.id, after.id) if paired else None

    def _verdict(self, before: Shown, edit: Edited) -> dict[str, Any]:
        """What the filter of `scoretune rpo` says of an edit; without a reward, whether it is
        one."""
        from scoretune.training.feedback.filters import Filter, Verdict, distances
        from scoretune.training.feedback.store_rows import gains, verdict_row

        old, new = before.pixels[None], edit.pixels[None]
        distance, gain = float(distances(old, new)), None
        if self._judge is not None and not edit.problem:
            (gain,) = gains(self._judge, self.reward, old, new, [before.prompt])
        verdict = Filter()(gain or 0.0, distance, problem=edit.problem)
        if gain is None and verdict.reason == "not better":
            verdict = Verdict("kept", NOT_MEASURED)
        return verdict_row(verdict, gain=gain, second=None, distance=distance)


def carried(
    store: Store, sample: int, *, waiting: Set[int] = frozenset(), problems: Mapping[int, str] = {}
) -> list[Carried]:
    """See `Editing.carried`."""
    edits = {edit.key: edit for edit in store.edits(sample=sample)}
    prompt = store.sample(sample).prompt
    both = {frozenset((p.first, p.second)): p for p in store.pairs(prompt=prompt, source="human")}
    rows = []
    for reason in store.reasons(sample=sample):
        edit = edits.get(key_of(reason))
        after = None if edit is None or edit.edited is None else store.sample(edit.edited)
        pair = None if after is None else both.get(frozenset((sample, after.id)))
        busy = edit is None and reason.id in waiting
        rows.append(Carried(reason, edit, after, pair, busy, problems.get(reason.id, "")))
    return rows


def key_of(reason: Reason) -> str:
    """Of the edit of a reason: there is one."""
    return f"why/{reason.id}/{reason.rater}"
