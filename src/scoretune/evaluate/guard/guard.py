"""A guard over a run: what is optimised may rise while what was meant falls (reward hacking).

At every evaluation it looks at a judge that is never optimised, at the KL to the base model, at how
much samples of one prompt differ, at periodic artefacts, and, where preferences are learned, at how
well the preferred samples are still predicted. On alarm it warns, ends the run, or
goes back to the weights of the best evaluation. All that it remembers is part of the checkpoint.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from scoretune.core import checkpoints, distributed, files
from scoretune.core.config import Evaluation, Guard
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompts, size_of
from scoretune.evaluate.features import Features, named_features
from scoretune.evaluate.guard import watches
from scoretune.evaluate.guard.spectrum import Peaks, grid_peaks
from scoretune.evaluate.guard.watches import Alarm, Best
from scoretune.evaluate.mixed_sizes import in_place
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.evaluate.scores import Measurement, verdict_metrics, verdicts
from scoretune.evaluate.videos import middle
from scoretune.models.lora import adapter_state, restore_adapter
from scoretune.policy import Policy
from scoretune.rewards.base import Reward
from scoretune.rewards.catalog import named_reward, names

PROMPTS, SAMPLES = 6, 36
"""Whose samples are compared with each other, and how many are drawn for that in all."""


@dataclass(frozen=True)
class Observation:
    """What one evaluation shows: values a prompt [B], and None for what there is not."""

    reward: Tensor
    judge: Tensor | None
    chain_kl: float | None
    diversity: float
    peaks: Peaks | None
    error_ratio: float | None = None

    def as_base(self) -> dict[str, Any]:
        """What later evaluations are compared with."""
        return {
            "reward": watches.moments(self.reward),
            "judge": None if self.judge is None else watches.moments(self.judge),
            "diversity": self.diversity,
            "peaks": None if self.peaks is None else self.peaks.heights.cpu().mean(0),
        }


@dataclass
class Monitor:
    """Watches over one run of so many `evaluations`; `on_alarm` is told alarms.

    Without `features` it is off. `prompts` are those whose samples are compared with each other,
    `base` is what the base model showed, `best` the best evaluation without an alarm, `streaks` how
    long each watch has been beyond its limit, `ended` the update of the alarm that ended the run.
    `errors` are those on preferred samples, and the base model's, of the updates since the last
    evaluation; `first_error` is that of the first update, which begins at the base model.
    """

    settings: Guard
    evaluation: Evaluation
    folder: Path
    judge: Reward | None
    features: Features | None
    prompts: Prompts
    evaluations: int
    on_alarm: Callable[[dict[str, Any]], None]
    base: dict[str, Any] | None = None
    best: Best | None = None
    streaks: dict[str, int] = field(default_factory=dict)
    alarms: list[dict[str, Any]] = field(default_factory=list)
    ended: int | None = None
    errors: list[list[float]] = field(default_factory=list)
    first_error: float | None = None

    def learned(self, update: int, metrics: Mapping[str, float]) -> None:
        """A hook: what an update of a method on preferences says; where it does not ask the base
        model it is compared with its first update."""
        if "error_chosen" in metrics:
            error = metrics["error_chosen"]
            self.first_error = error if self.first_error is None else self.first_error
            self.errors = [*self.errors, [error, metrics.get("error_pretrained", self.first_error)]]

    def observe(self, measured: Measurement, policy: Policy, update: int) -> dict[str, Any]:
        """Look at an evaluation and act on alarm; what its line in the log says of it."""
        if self.features is None or (self.base is None and update > 0):
            return {}  # off, or a run of before there was a guard: nothing to compare with
        observed = self._observation(measured, policy, self.features)
        self.errors = []
        self.base = self.base or observed.as_base()
        numbers, over = self._compared(observed, update, self.base)
        self.streaks = {alarm.watch: self.streaks.get(alarm.watch, 0) + 1 for alarm in over}
        raised = {alarm["watch"] for alarm in self.alarms}
        lasting = [a for a in over if self.streaks[a.watch] >= self.settings.patience]
        new = [alarm for alarm in lasting if alarm.watch not in raised]
        for alarm in new:
            line = asdict(alarm)
            self.alarms = [*self.alarms, line]
            files.append_line(self.folder / "alarms.jsonl", line)
            self.on_alarm({"update": alarm.update, "alarm": alarm.text})
        if new and self.settings.action != "warn":
            self.ended = update
        elif not over and self._is_best(observed):
            self._keep(Best(update, observed.judge), policy)
        return {"guard": numbers}

    def until_ended(self, updates: Iterable[int]) -> Iterator[int]:
        """The updates, until an alarm ends the run."""
        for update in updates:
            if self.ended is not None:
                return
            yield update

    def settle(self, policy: Policy) -> int:
        """Give an ended run the weights that it keeps; the update they are of."""
        assert self.ended is not None
        if self.settings.action != "rollback":
            return self.ended
        distributed.wait()  # for the process that writes
        newest = checkpoints.latest(self._best_folder)
        assert newest is not None and self.best is not None, "the base model was kept at update 0"
        restore_adapter(policy.backbone.network, checkpoints.load(newest)["policy"])
        return self.best.update

    def summary(self) -> dict[str, Any]:
        """What the result of the run says; `kept` is the update of its weights, if it was ended."""
        if self.features is None:
            return {}
        rolled = self.ended is not None and self.settings.action == "rollback"
        best = self.best or Best(0, None)
        result = {
            "action": self.settings.action,
            "alarms": self.alarms,
            "ended": self.ended,
            "kept": best.update if rolled else self.ended,
            "best": {"update": best.update, "judge": best.mean},
        }
        return {"guard": result}

    def state(self) -> dict[str, Any]:
        best = self.best
        return {
            "base": self.base,
            "best": None if best is None else [best.update, best.values],
            "streaks": self.streaks,
            "alarms": self.alarms,
            "ended": self.ended,
            "errors": self.errors,
            "first_error": self.first_error,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.base, self.streaks = state["base"], state["streaks"]
        self.best = None if state["best"] is None else Best(*state["best"])
        self.alarms, self.ended = state["alarms"], state["ended"]
        self.errors = state.get("errors", [])  # older checkpoints know no such watch
        self.first_error = state.get("first_error")

    @property
    def _best_folder(self) -> Path:
        return self.folder / "checkpoints" / "best"

    def _observation(
        self, measured: Measurement, policy: Policy, features: Features
    ) -> Observation:
        several = self._samples(policy)
        values, judge = measured.values, measured.values.get("judge")
        if self.judge is not None:
            judge = self._judged(measured, policy.at_most(64), self.judge)
        return Observation(
            reward=values["reward"],
            judge=judge,
            chain_kl=measured.kls.get("chain_kl"),
            diversity=self._diversity(policy, features, several),
            peaks=_peaks(measured),
            error_ratio=self._error_ratio(),
        )

    def _judged(self, measured: Measurement, batch: int, judge: Reward) -> Tensor:
        """What the named judge says of the pictures, one value a prompt."""
        name = str(self.settings.judge)
        return in_place(
            [
                (places, verdicts(one.images, one.prompts, {name: judge}, batch)[name])
                for places, one in measured.of_each_size
            ]
        )

    def _samples(self, policy: Policy) -> Tensor:
        """Of the same prompts from the same noise each time; does not count as training."""
        evaluation = self.evaluation
        with policy.uncounted():
            return sample(
                policy,
                self.prompts,
                times=deployed_times(policy.backbone, evaluation.steps, self.prompts.texts),
                seed=evaluation.seed + 1,
                solver=evaluation.solver,
            )

    def _error_ratio(self) -> float | None:
        """The error on preferred samples since the last evaluation, as a multiple of the base
        model's."""
        base = sum(error for _, error in self.errors)
        return sum(error for error, _ in self.errors) / base if base else None

    def _diversity(self, policy: Policy, features: Features, images: Tensor) -> float:
        features = replace(features, batch=policy.at_most(features.batch))
        rows = features(images.to(policy.device))
        return watches.diversity(rows.unflatten(0, (len(set(self.prompts.texts)), -1)))

    def _compared(
        self, observed: Observation, update: int, base: dict[str, Any]
    ) -> tuple[dict[str, Any], list[Alarm]]:
        """Every watch against its limit: numbers to write down, and what is over."""
        limits = self.settings
        ratio = observed.diversity / base["diversity"] if base["diversity"] else 1.0
        numbers = {"reward_gain": watches.gain(observed.reward, base["reward"]), "diversity": ratio}
        alarms = [watches.collapsed(ratio, update, limits.diversity)]
        if observed.judge is not None:
            numbers["judge"] = watches.mean(observed.judge)
            numbers["judge_gain"] = watches.gain(observed.judge, base["judge"])
        if observed.judge is not None and self.best is not None:
            numbers["fall"], numbers["chance"], alarm = watches.fallen(
                self.best,
                observed.judge,
                update,
                evaluations=self.evaluations,
                margin=limits.margin,
            )
            alarms.append(alarm)
        if limits.chain_kl is not None and observed.chain_kl is not None:
            alarms.append(watches.strayed(observed.chain_kl, update, limits.chain_kl))
        if observed.error_ratio is not None:
            numbers["error_ratio"] = observed.error_ratio
            alarms.append(watches.diverged(observed.error_ratio, update, limits.error_ratio))
        if observed.peaks is not None:
            numbers["pattern"], alarm = watches.patterned(
                observed.peaks,
                base["peaks"],
                update,
                evaluations=self.evaluations,
                factor=limits.pattern,
            )
            alarms.append(alarm)
        rounded = {name: round(value, 4) for name, value in numbers.items()}
        return rounded, [alarm for alarm in alarms if alarm is not None]

    def _is_best(self, observed: Observation) -> bool:
        """The judge's highest; without a judge the newest evaluation that was all right."""
        if self.best is None or self.best.mean is None or observed.judge is None:
            return True
        return watches.mean(observed.judge) > self.best.mean

    def _keep(self, best: Best, policy: Policy) -> None:
        self.best = best
        if self.settings.action == "rollback":
            weights = {"policy": adapter_state(policy.backbone.network)}
            checkpoints.save(self._best_folder, best.update, weights, keep=1)


def _peaks(measured: Measurement) -> Peaks | None:
    """Periodic artefacts of all pictures, each size's beside its own spectrum; None for what is too
    small, or no picture."""
    found = [
        (places, grid_peaks(middle(one.images)) if one.images.dim() > 3 else None)
        for places, one in measured.of_each_size
    ]
    known = [(places, peaks) for places, peaks in found if peaks is not None]
    if len(known) < len(found):
        return None
    return Peaks(in_place([(p, peaks.heights) for p, peaks in known]), known[0][1].frequencies)


def monitor(
    settings: Guard,
    evaluation: Evaluation,
    *,
    judge: Reward | None,
    features: Features | None,
    updates: int,
    folder: Path,
    held_out: Prompts,
    on_alarm: Callable[[dict[str, Any]], None],
) -> Monitor:
    """The guard of a run of so many updates, with what `judge_and_features` gave for it."""
    every = evaluation.every
    evaluations = 2 + ((updates - 1) // every if every else 0)  # the base, in between, the last
    return Monitor(
        settings,
        evaluation,
        folder,
        judge,
        features,
        diversity_prompts(held_out),
        evaluations,
        on_alarm,
    )


def judge_and_features(
    settings: Guard, *, reward: str, source: str
) -> tuple[Reward | None, Features | None]:
    """The named judge, if any, and the features. Raises UserError for a judge that is optimised."""
    judge = settings.judge
    if settings.action == "off":
        return None, None
    if judge is not None and judge.partition("(")[0] in names(reward):
        raise UserError(
            f"guard.judge={judge} is optimised itself, and rises when it is gamed: name a reward "
            "that is not part of reward, or leave it out"
        )
    shipped = "judge" in verdict_metrics(source)
    features = named_features(settings.features or ("judge" if shipped else "pixels"))
    return None if judge is None else named_reward(judge), features


def diversity_prompts(held_out: Prompts) -> Prompts:
    """A few of the prompts, from all over them, each several times: no more in all than there are,
    if that makes pairs. Of prompts of several sizes those of the most common one."""
    sizes = [size_of(text) for text in held_out.texts]
    (common, among), *_ = Counter(sizes).most_common(1) or [(None, 0)]
    texts = [text for text in dict.fromkeys(held_out.texts) if size_of(text) == common]
    count = min(PROMPTS, len(texts))
    repeats = max(2, min(SAMPLES, among) // count)
    few = [texts[(2 * i + 1) * len(texts) // (2 * count)] for i in range(count)]
    repeated = tuple(text for text in few for _ in range(repeats))
    return Prompts(repeated, ("all",) * len(repeated))
