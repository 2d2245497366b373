"""What training costs beyond its networks: `make bench`.

One update of each method, rollout and learning, is timed against the bare forwards and backwards of
the same networks on the same shapes: the UNet, the image decoder, the reward's network and the
critic. A step of learning from pairs is timed against its networks likewise. Then the forms of
score as action, critic included, against DDPO on the same batch and with the same path KL; then
MixGRPO's window against the whole path; then three families of pipelines beside their networks
(`family_costs.py`) and every solver beside its network and beside diffusers' (`solvers.py`). The
two are run in turn, so that a machine that drifts does not favour either, and the median of the
pairwise ratios is printed. Writes `bench.json` beside the printed lines.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import peers
from family_costs import family_costs
from scoretune import recipes
from scoretune.commands.profile.measure import measured
from scoretune.core import config
from scoretune.core.conditions import joined
from scoretune.core.records import PairExamples
from scoretune.rollout import prior
from scoretune.training import overrides
from scoretune.training.build import Parts, build, build_policy
from scoretune.training.objectives.preference_losses import loss_of
from solvers import paired_ratio, solver_costs


def bare(parts: Parts, run: config.Run) -> Callable[[], None]:
    """The networks' own work in one update, and nothing else."""
    backbone, sizes, steps = parts.policy.backbone, run.sizes, run.sampling.steps
    batch = sizes.prompts * sizes.group
    prompts = list(parts.held_out.texts[:1]) * batch
    condition = backbone.encode(prompts)
    x = prior(parts.policy, batch, torch.Generator().manual_seed(0))
    t = torch.full((batch,), 0.5)
    learned = round(sizes.share * steps) * batch
    forwards = steps * (2 if run.objective.kl_weight else 1)

    def part(size: int) -> tuple[torch.Tensor, torch.Tensor, Any]:
        index = torch.arange(size) % batch
        return x[index], t[index], condition.tokens[index]

    def summary(size: int) -> torch.Tensor:
        return condition.summary[torch.arange(size) % batch]

    def act() -> None:
        with torch.no_grad():
            backbone.encode(prompts)
            for _ in range(forwards):
                backbone.predict(x, t, condition.tokens)
            parts.reward(backbone.decode(x), prompts)

    def learn() -> None:
        for _ in range(learned // sizes.minibatch):
            backbone.predict(*part(sizes.minibatch)).sum().backward()

    def judge() -> None:
        credit = parts.method.source.credit
        size, count = credit.minibatch, learned // credit.minibatch
        for _ in range(count):  # the value's slope: through UNet, decoder, reward and critic
            state, time_, tokens = part(size)
            state.requires_grad_()
            data, features = backbone.predict_with_features(state, time_, tokens)
            guess = parts.reward(backbone.decode(data), prompts[:1] * size)
            value = credit.critic(state, data, time_, summary(size), guess, features)
            torch.autograd.grad(value.sum(), state)
        for _ in range(credit.passes * count):
            state, time_, _ = part(size)
            features = torch.zeros(size, backbone.feature_size)
            credit.critic(state, state, time_, summary(size), time_, features).sum().backward()

    def work() -> None:
        act()
        if run.objective.kind == "score_action":
            judge()
        learn()

    return work


def update(parts: Parts) -> Callable[[], None]:
    """One whole update as `train` makes it."""
    from scoretune.training.loop import train

    counter = iter(range(10**6))

    def work() -> None:
        number = next(counter)
        train(
            parts.method.source,
            parts.method.objective,
            parts.optimiser,
            parts.engine,
            updates=[number],
        )

    return work


def shares(run: config.Run) -> dict[str, float]:
    """What each part takes of an update, by torch's profiler."""
    profile = measured(run)
    return {
        f"{run.recipe}_share_{name}": round(profile.share(name), 4) for name in profile.record.parts
    }


BATCH = ["sizes.prompts=32", "sizes.group=1", "sizes.share=0.8", "objective.kl_weight=0.003"]
FORMS = {
    "rate": [],  # as the recipe has it: reward(x̂0) inside the value, features of the UNet
    "slope": ["objective.form=slope"],
    "ratio": ["objective.form=ratio"],
    "ratio_critic_alone": ["objective.form=ratio", "objective.critic.skip=none"],
    "rate_critic_alone": [
        *("objective.critic.skip=none", "objective.critic.body=small"),
        "objective.critic.inputs=noisy",
    ],
}


def critic_over_network(body: str, pairs: int) -> list[float]:
    """A critic's values of 64 states over the UNet's outputs at them, forwards alone."""
    parts = build(
        overrides.changed(recipes.named("score_as_action"), [f"objective.critic.body={body}"])
    )
    backbone, critic = parts.policy.backbone, parts.method.source.credit.critic
    condition = backbone.encode(list(parts.held_out.texts[:1]) * 64)
    x = prior(parts.policy, 64, torch.Generator().manual_seed(0))
    t, features = torch.full((64,), 0.5), torch.zeros(64, parts.policy.feature_size)

    def several(work: Callable[[], object]) -> Callable[[], None]:
        def repeated() -> None:
            with torch.no_grad():
                for _ in range(10):
                    work()

        return repeated

    return paired_ratio(
        several(lambda: critic(x, x, t, condition.summary, t, features)),
        several(lambda: backbone.predict(x, t, condition.tokens)),
        pairs,
    )


def over_ddpo(changes: list[str], pairs: int) -> list[float]:
    """An update of score as action over one of DDPO with the same batch."""
    ours = build(overrides.changed(recipes.named("score_as_action"), [*BATCH, *changes]))
    theirs = build(overrides.changed(recipes.named("ddpo"), BATCH))
    return paired_ratio(update(ours), update(theirs), pairs)


def preferences_over_networks(preset: str, pairs: int, count: int = 16) -> list[float]:
    """The loss of `count` pairs and its gradient over the same calls of the networks: one forward
    of the pretrained model, unless the preset asks none, one of the policy, and its backward."""
    policy = build_policy(recipes.named("ddpo"), torch.device("cpu"))
    objective = loss_of(config.Preference(preset=preset), policy)
    backbone, asks_reference = policy.backbone, preset != "simpo"
    generator = torch.Generator().manual_seed(0)
    first, second, noise = torch.randn(3, count, *backbone.shape, generator=generator)
    condition = backbone.encode(["a red seven"] * count)
    even, share = torch.ones(count), torch.rand(count, generator=generator)
    batch = PairExamples(first, second, condition, even, even, noise, share)
    x, t = torch.cat([first, second]), torch.cat([share, share])
    tokens = joined([condition.tokens] * 2)

    def step() -> None:
        objective(batch).value.backward()

    def networks() -> None:
        if asks_reference:
            with torch.no_grad(), policy.reference():
                policy.predict(x, t, tokens)
        policy.predict(x, t, tokens).sum().backward()

    return paired_ratio(step, networks, pairs)


PREFERENCES = ("dpo", "kto", "simpo", "dspo")
WINDOWS = {
    "window_2_of_16": ["sampling.window.size=2"],
    "window_2_of_16_own_noise": ["sampling.window.size=2", "sampling.shared_noise=false"],
    "window_2_of_16_flash": [
        *("sampling.window.size=2", "sampling.window.compress=0.4"),
        "sampling.window.solver=dpmpp_2m",
    ],
}


def over_whole_path(source: str, changes: list[str], pairs: int) -> list[float]:
    """An update of MixGRPO over one that is noisy, and learned from, on every step."""
    same = [f"model.source={source}", "sampling.steps=16", "sampling.window.order=random"]
    ours = build(overrides.changed(recipes.named("mix_grpo"), [*same, *changes]))
    whole = build(overrides.changed(recipes.named("mix_grpo"), [*same, "sampling.window.size=0"]))
    return paired_ratio(update(ours), update(whole), pairs)


def window_costs(pairs: int) -> dict[str, float]:
    """What an update costs with noise in a window, of an update with noise on every step."""
    results = {}
    for source in ("scenes-flow", "scenes"):
        for window, changes in WINDOWS.items():
            ratios = over_whole_path(source, changes, pairs)
            results[f"{source}_{window}_over_whole_path"] = round(statistics.median(ratios), 3)
    return results


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--pairs", type=int, default=5)
    options.add_argument("--out", type=Path, default=Path("bench.json"))
    options.add_argument("--windows", action="store_true", help="MixGRPO's windows alone, printed")
    options.add_argument("--preferences", action="store_true", help="steps of dpo and kin, printed")
    options.add_argument("--peers", help="TRL beside ours: an interpreter with trl 0.23.1")
    options.add_argument("--ddpo", type=Path, help="ddpo-pytorch's step beside ours: its file")
    arguments = options.parse_args()
    torch.set_num_threads(1)
    if arguments.peers or arguments.ddpo:
        peers.write(peers.compare(arguments.peers, arguments.ddpo, arguments.pairs))
        return
    if arguments.preferences:
        for preset in PREFERENCES:
            ratios = preferences_over_networks(preset, arguments.pairs)
            print(preset, *(f"{ratio:.3f}" for ratio in sorted(ratios)))
        return
    if arguments.windows:
        print(json.dumps(window_costs(arguments.pairs), indent=1))
        return
    results: dict[str, Any] = {}
    for recipe in ("ddpo", "score_as_action"):
        run = recipes.named(recipe)
        parts = build(run)
        ratios = paired_ratio(update(parts), bare(parts, run), arguments.pairs)
        results[f"{recipe}_update_over_networks"] = round(statistics.median(ratios), 3)
        results[f"{recipe}_update_over_networks_max"] = round(max(ratios), 3)
        results |= shares(run)
    for form, changes in FORMS.items():
        ratios = over_ddpo(changes, arguments.pairs)
        results[f"score_as_action_{form}_over_ddpo"] = round(statistics.median(ratios), 3)
    for preset in PREFERENCES:
        ratios = preferences_over_networks(preset, arguments.pairs)
        results[f"{preset}_step_over_networks"] = round(statistics.median(ratios), 3)
    results |= window_costs(arguments.pairs)
    for body in ("backbone", "small"):
        ratios = critic_over_network(body, arguments.pairs)
        results[f"critic_{body}_over_unet_forward"] = round(statistics.median(ratios), 4)
    results |= family_costs(arguments.pairs)
    results |= solver_costs(arguments.pairs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    results["peak_memory_mib"] = round(peak, 0)
    for name, value in results.items():
        print(f"{name}: {value}")
    results["machine"] = f"{platform.system()} {platform.machine()}, torch {torch.__version__}"
    results["command"] = "make bench"
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
