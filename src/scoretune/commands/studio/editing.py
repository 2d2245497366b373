"""What people say of a picture, carried out: an editor's picture beside the original, and a pair.

An edit takes a moment or minutes, so each is made in a thread, one after the other. What was said
is in the store before: an edit that a kill cut off, or that failed, is begun again from the page.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Set
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scoretune.core.errors import UserError, one_line
from scoretune.data.store import Pair, Reason, Sample, StoredEdit

if TYPE_CHECKING:
    from scoretune.data.store.store import Store
    from scoretune.rewards.base import Reward
    from scoretune.training.feedback.roles import Editor

MOST_WAITING = 20
"""Edits that wait for the one that is being made."""
PATIENCE = 2.0
"""Seconds that a page waits for an edit before it says that one is being made."""
UNKNOWN = "no instruction that the editor knows"


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
    _roles: tuple[Editor, Reward | None] = field(init=False)

    def __post_init__(self) -> None:
        """Raises UserError for an editor or a reward that there is not."""
        from scoretune.rewards.catalog import named_reward
        from scoretune.training.feedback import roles

        made = roles.named("editor", self.editor, roles.EDITORS)
        self._roles = made, named_reward(self.reward) if self.reward else None

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
                pair = edited(self.store, reason, self.editor, self._roles, self.reward)
            if pair is not None:
                self.after(reason.rater, pair)
        except Exception as error:  # of a model, too: it ends this edit and no other
            self._problems[reason.id] = one_line(str(error) or type(error).__name__)[:300]
        finally:
            with self._lock:
                del self._waiting[reason.id]


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


def edited(
    store: Store, reason: Reason, name: str, roles: tuple[Editor, Reward | None], reward: str
) -> Pair | None:
    """Carry a reason out and store its critique, its edit and the verdict; the pair of both
    pictures, None where nothing was changed. Raises UserError where the editor cannot do it."""
    from scoretune.training.feedback.person import critique_of, instructions_of
    from scoretune.training.feedback.records import Shown

    before = store.sample(reason.sample)
    shown = Shown(before.prompt, store.pixels(before.picture))
    critique = store.add_critique(
        key=f"{key_of(reason)}/critique",
        sample=before.id,
        critic=f"rater {reason.rater}",
        payload={"content": critique_of(reason).model_dump(), "attempts": 1},
        raw=reason.text,
    )
    record: dict[str, Any] = {"key": key_of(reason), "sample": before.id, "critique": critique}
    record |= {"editor": name, "seed": reason.id}
    plan = instructions_of(reason, shown)
    if not plan:
        verdict = {"outcome": "refused", "reason": UNKNOWN}
        store.add_edit(**record, instructions=[], edited=None, verdict=verdict)
        return None
    editor, judge = roles
    (edit,) = editor([shown], [plan], [reason.id])
    if edit.pixels.shape != shown.pixels.shape:
        raise UserError(f"the editor {name!r} gave a picture of another size: use another")
    verdict = _verdict(shown, edit, judge, reward)
    with store.together():
        after = store.add_sample(
            prompt=before.prompt,
            picture=store.add_picture(edit.pixels),
            source="edit",
            model=name,
            seed=reason.id,
            settings={"instructions": plan, "problem": edit.problem, "rater": reason.rater},
            parent=before.id,
            round=before.round,
            key=f"{key_of(reason)}/edited",
        )
        store.add_edit(**record, instructions=plan, edited=after.id, verdict=verdict)
        if verdict["reason"] not in ("better", "not better", "not measured"):
            return None
        return store.add_pair(before.id, after.id)


def _verdict(shown: Any, edit: Any, judge: Reward | None, reward: str) -> dict[str, Any]:
    """What the filter of `scoretune rpo` says of an edit. Without a reward, whether it is one; what
    is no better by the reward is still paired, since people are asked."""
    import torch

    from scoretune.rewards.base import checked
    from scoretune.training.feedback.filters import Filter, distances

    both = torch.stack([shown.pixels, edit.pixels])
    distance = float(distances(both[:1], both[1:]))
    gain: float | None = None
    if judge is not None and not edit.problem:
        with torch.no_grad():
            old, new = checked(judge, reward, both, [shown.prompt] * 2).tolist()
        gain = new - old
    verdict = asdict(Filter()(gain or 0.0, distance, problem=edit.problem))
    if gain is None and verdict["reason"] == "not better":
        verdict = {"outcome": "kept", "reason": "not measured"}
    return verdict | {"gain": gain, "second": None, "distance": distance}
