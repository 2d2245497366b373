"""A guard over a run: what is optimised may rise while what was meant falls (reward hacking).

At every evaluation it looks at a judge that is never optimised, at the path KL, at how much
samples of one prompt differ, and at periodic artefacts. On alarm it warns, ends the run, or goes
back to the weights of the best evaluation. All that it remembers is part of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core import checkpoints, distributed, files
from scoretune.core.config import Run
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts
from scoretune.diffusion import grids
from scoretune.evaluate.features import Features, named_features
from scoretune.evaluate.guard import watches
from scoretune.evaluate.guard.spectrum import Peaks, grid_peaks
from scoretune.evaluate.guard.watches import Alarm, Best
from scoretune.evaluate.measure import Measurement
from scoretune.evaluate.scores import sample, verdicts
from scoretune.models.catalog import resolve
from scoretune.models.lora import adapter_state, restore_adapter
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.catalog import REWARDS, named_reward, verdict_metrics
from scoretune.rewards.weighted import terms

PROMPTS, SAMPLES = 6, 36
"""Whose samples are compared with each other, and how many are drawn for that in all."""


@dataclass(frozen=True)
class Seen:
    """What one evaluation shows: values a prompt [B], and None for what there is not."""

    reward: Tensor
    judge: Tensor | None
    path_kl: float | None
    diversity: float
    peaks: Peaks | None


@dataclass
class Sentry:
    """Watches over one run, of which `looks` evaluations are planned; `tell` passes alarms on.

    Without `features` it is off.

    `base` is what the base model showed, `best` the judge's best evaluation without an alarm,
    `streaks` for how long each watch has been beyond its limit, `ended` the update of the alarm
    that ended the run.
    """

    run: Run
    folder: Path
    judge: Reward | None
    features: Features | None
    prompts: Prompts
    looks: int
    tell: Callable[[dict[str, Any]], None]
    base: dict[str, Any] | None = None
    best: Best | None = None
    streaks: dict[str, int] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    ended: int | None = None

    def look(self, found: Measurement, policy: Policy) -> dict[str, Any]:
        """Look at an evaluation and act on alarm; what its line in the log says of it."""
        update = int(found.verdicts.line["update"])
        if self.features is None or (self.base is None and update > 0):
            return {}  # off, or a run of before there was a guard: nothing to compare with
        seen = self._see(found, self._diversity(policy, self.features))
        self.base = self.base or _base(seen)
        numbers, over = self._compared(seen, update, self.base)
        self.streaks = {alarm.watch: self.streaks.get(alarm.watch, 0) + 1 for alarm in over}
        rung = {alarm["watch"] for alarm in self.alarms}
        new = [a for a in over if a.watch not in rung and self._lasts(a.watch)]
        for alarm in new:
            self._ring(alarm)
        if new and self.run.guard.action != "warn":
            self.ended = update
        elif not over and self._is_best(seen):
            self._keep(Best(update, seen.judge), policy)
        return {"guard": numbers}

    def while_calm(self, updates: Iterable[int]) -> Iterator[int]:
        """The updates, until an alarm ends the run."""
        for update in updates:
            if self.ended is not None:
                return
            yield update

    def settle(self, policy: Policy) -> int:
        """Give an ended run the weights that it keeps; the update they are of."""
        assert self.ended is not None
        if self.run.guard.action != "rollback":
            return self.ended
        distributed.wait()  # for the process that writes
        newest = checkpoints.latest(self._kept)
        assert newest is not None and self.best is not None, "the base model was kept at update 0"
        restore_adapter(policy.backbone.network, checkpoints.load(newest)["policy"])
        return self.best.update

    def summary(self) -> dict[str, Any]:
        """What the result of the run says; `kept` is the update of its weights, if it was ended."""
        if self.features is None:
            return {}
        rolled = self.ended is not None and self.run.guard.action == "rollback"
        best = self.best or Best(0, None)
        found = {
            "action": self.run.guard.action,
            "alarms": self.alarms,
            "ended": self.ended,
            "kept": best.update if rolled else self.ended,
            "best": {"update": best.update, "judge": best.mean},
        }
        return {"guard": found}

    def state(self) -> dict[str, Any]:
        best = self.best
        return {
            "base": self.base,
            "best": None if best is None else [best.update, best.values],
            "streaks": self.streaks,
            "alarms": self.alarms,
            "ended": self.ended,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.base, self.streaks = state["base"], state["streaks"]
        self.best = None if state["best"] is None else Best(*state["best"])
        self.alarms, self.ended = state["alarms"], state["ended"]

    @property
    def _kept(self) -> Path:
        return self.folder / "checkpoints" / "best"

    def _see(self, found: Measurement, diversity: float) -> Seen:
        values, images = found.verdicts.values, found.images
        judge = values.get("judge")
        if self.judge is not None:
            named = {str(self.run.guard.judge): self.judge}
            (judge,) = verdicts(images, found.prompts, named).values()
        return Seen(
            reward=values["reward"],
            judge=judge,
            path_kl=found.verdicts.line.get("path_kl"),
            diversity=diversity,
            peaks=grid_peaks(images) if images.dim() == 4 else None,
        )

    def _diversity(self, policy: Policy, features: Features) -> float:
        """Of the same prompts from the same noise each time; does not count as training."""
        chosen, calls = self.run.evaluation, policy.calls
        times = grids.uniform(policy.backbone.process, chosen.steps)
        images = sample(policy, self.prompts, times, chosen.seed + 1, chosen.solver)
        policy.calls = calls
        rows = features(images)
        return watches.spread(rows.unflatten(0, (len(set(self.prompts.texts)), -1)))

    def _compared(
        self, seen: Seen, update: int, base: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Alarm]]:
        """Every watch against its limit: numbers to write down, and what is over."""
        limits, found = self.run.guard, []
        share = seen.diversity / base["diversity"] if base["diversity"] else 1.0
        numbers = {"reward_gain": watches.gain(seen.reward, base["reward"]), "diversity": share}
        found.append(watches.collapsed(share, update, limits.diversity))
        if seen.judge is not None:
            numbers["judge"] = watches.mean(seen.judge)
            numbers["judge_gain"] = watches.gain(seen.judge, base["judge"])
        if seen.judge is not None and self.best is not None:
            numbers["fall"], numbers["chance"], alarm = watches.fallen(
                self.best, seen.judge, update, looks=self.looks, margin=limits.margin
            )
            found.append(alarm)
        if limits.path_kl is not None and seen.path_kl is not None:
            found.append(watches.strayed(seen.path_kl, update, limits.path_kl))
        if seen.peaks is not None:
            heights, places = seen.peaks.heights.cpu(), seen.peaks.frequencies
            numbers["pattern"], alarm = watches.patterned(
                heights, places, base["peaks"], update, looks=self.looks, times=limits.pattern
            )
            found.append(alarm)
        rounded = {name: round(value, 4) for name, value in numbers.items()}
        return rounded, [alarm for alarm in found if alarm is not None]

    def _lasts(self, watch: str) -> bool:
        return self.streaks[watch] >= self.run.guard.patience

    def _is_best(self, seen: Seen) -> bool:
        """The judge's highest; without a judge the newest evaluation that was all right."""
        if self.best is None or self.best.mean is None or seen.judge is None:
            return True
        return watches.mean(seen.judge) > self.best.mean

    def _keep(self, best: Best, policy: Policy) -> None:
        self.best = best
        if self.run.guard.action == "rollback":
            weights = {"policy": adapter_state(policy.backbone.network)}
            checkpoints.save(self._kept, best.update, weights, keep=1)

    def _ring(self, alarm: Alarm) -> None:
        line = asdict(alarm)
        self.alarms = [*self.alarms, line]
        files.append_line(self.folder / "alarms.jsonl", line)
        self.tell({"update": alarm.update, "alarm": alarm.text})


def sentry(
    run: Run, folder: Path, held_out: Prompts, tell: Callable[[dict[str, Any]], None]
) -> Sentry:
    """The guard that a configuration asks for."""
    judge, features = check(run)
    every = run.evaluation.every
    looks = 2 + ((run.updates - 1) // every if every else 0)  # the base, in between, the last
    return Sentry(run, folder, judge, features, _few(held_out), looks, tell)


def check(run: Run) -> tuple[Reward | None, Features | None]:
    """The judge that is named, if one is, and the features; refuses what could not guard."""
    named = run.guard.judge
    if run.guard.action == "off":
        return None, None
    optimised = {name.partition("(")[0] for _, name in terms(run.reward, REWARDS)}
    if named is not None and named.partition("(")[0] in optimised:
        raise UserError(
            f"guard.judge={named} is optimised itself, and rises when it is gamed: name a reward "
            "that is not part of reward, or leave it out"
        )
    shipped = "judge" in verdict_metrics(str(resolve(run.model.source).world))
    features = named_features(run.guard.features or ("judge" if shipped else "pixels"))
    return None if named is None else named_reward(named), features


def _few(held_out: Prompts) -> Prompts:
    """A few of the prompts, spread over all of them, each several times: no more in all than there
    are, if that makes pairs."""
    texts = list(dict.fromkeys(held_out.texts))
    count = min(PROMPTS, len(texts))
    times = max(2, min(SAMPLES, len(held_out)) // count)
    chosen = [texts[(2 * i + 1) * len(texts) // (2 * count)] for i in range(count)]
    repeated = tuple(text for text in chosen for _ in range(times))
    return Prompts(repeated, ("all",) * len(repeated))


def _base(seen: Seen) -> dict[str, Any]:
    return {
        "reward": watches.moments(seen.reward),
        "judge": None if seen.judge is None else watches.moments(seen.judge),
        "diversity": seen.diversity,
        "peaks": None if seen.peaks is None else seen.peaks.heights.cpu().mean(0),
    }
