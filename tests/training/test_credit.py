"""Credit: golden numbers of group advantages, and critics whose credit adds up to what happened."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from scoretune import recipes
from scoretune.core import checkpoints, config, distributed
from scoretune.core.conditions import Condition
from scoretune.core.config import Sizes
from scoretune.core.errors import UserError
from scoretune.core.records import Scores, Trajectory
from scoretune.diffusion import grids
from scoretune.diffusion.kernels import GDDIM, response
from scoretune.diffusion.processes import VP
from scoretune.models import toy
from scoretune.policy import Policy
from scoretune.rollout import Acting, prior, rollout
from scoretune.training import overrides
from scoretune.training.credit.critic import CriticCredit, rule_named, traced
from scoretune.training.credit.outcome import (
    GroupCredit,
    RunningCredit,
    group_advantage,
    remembered,
    running_advantage,
    standardise,
)
from scoretune.training.credit.reward_gradient import RewardSlope
from scoretune.training.credit.values import critic_for
from scoretune.training.objectives.base import ScoreAction
from scoretune.training.sources.base import deal_out
from scoretune.training.sources.on_policy import reward_metrics, transitions
from scoretune.training.sources.step_choice import any_steps, last_steps, one_of_last
from slow_cases import slow

STEPS, BATCH = 6, 64


def path_of(batch: int = BATCH, seed: int = 0, eta: float = 1.0, **options) -> Trajectory:
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(eta))
    generator = torch.Generator().manual_seed(seed)
    times = grids.karras(VP(), STEPS)
    noise = prior(policy, batch, generator)
    return rollout(policy, Condition.none(batch), times, generator, noise, acting=Acting(**options))


def square(x: Tensor, who: Tensor | None = None) -> Tensor:
    return x[:, 0] ** 2


def every_step(path: Trajectory) -> tuple[Tensor, Tensor]:
    """The numbers k, b [N·B] of all steps of all samples, in order."""
    steps, batch = path.data.shape[:2]
    return torch.arange(steps).repeat_interleave(batch), torch.arange(batch).repeat(steps)


def advantages(credit, path: Trajectory, rewards: Tensor) -> Tensor:
    """The advantages [N, B] of a path."""
    credited = credit(path, Scores(rewards), square, *every_step(path))
    return credited.advantage.view(path.log_probs.shape)


def critic_credit(
    kl_weight: float = 0.0,
    form: str = "ratio",
    eta: float = 1.0,
    skip: str = "cos_sin",
    exploration: float = 0.0,
    **options,
) -> CriticCredit:
    torch.manual_seed(0)
    critic = critic_for((1,), 0, 1.0, skip=skip)
    optimiser = torch.optim.Adam(critic.parameters(), lr=3e-3)
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(eta))
    return CriticCredit(
        critic=critic,
        optimiser=optimiser,
        policy=policy,
        kl_weight=kl_weight,
        rule=rule_named(form, exploration),
        **options,
    )


# ---------------------------------------------------------------------------- of whole paths


def test_group_advantages_golden():
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0, 0.0, 4.0])
    # Centred by prompt: −1, 1, 0, 0, −2, 2. Their deviation is √(10/5) = √2.
    shared = torch.tensor([-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]) / 2**0.5
    torch.testing.assert_close(group_advantage(rewards, 2), shared, rtol=1e-5, atol=1e-6)
    # GRPO: by the group's own deviation, √2, 0 and 2√2, which makes the equal group 0.
    own = torch.tensor([-1.0, 1.0, 0.0, 0.0, -1.0, 1.0]) / 2**0.5
    torch.testing.assert_close(
        group_advantage(rewards, 2, deviation="group"), own, rtol=1e-5, atol=1e-6
    )


def test_a_global_deviation_holds_the_differences_between_prompts():
    rewards = torch.tensor([1.0, 3.0, 10.0, 10.0, 0.0, 4.0])
    # Theirs about their mean, 14/3: √(286/15) = 4.3665.
    own = torch.tensor([-1.0, 1.0, 0.0, 0.0, -2.0, 2.0]) / (286 / 15) ** 0.5
    torch.testing.assert_close(group_advantage(rewards, 2, "global"), own, rtol=1e-5, atol=1e-6)


def test_the_deviation_by_its_old_and_new_words():
    words = {True: "within", False: "group", "global": "global"}
    for given, meant in words.items():
        assert config.PolicyGradient(shared_scale=given).shared_scale == meant
    with pytest.raises(ValueError, match="shared_scale"):
        config.PolicyGradient(shared_scale="prompt")
    changed = overrides.changed(recipes.named("grpo"), ["objective.shared_scale=true"])
    assert changed.objective.shared_scale == "within"


def test_a_prompts_difficulty_does_not_matter():
    rewards = torch.randn(12)
    harder = rewards.view(3, 4) + torch.tensor([[0.0], [5.0], [-9.0]])
    torch.testing.assert_close(
        group_advantage(harder.flatten(), 4), group_advantage(rewards, 4), rtol=1e-4, atol=1e-5
    )


def test_standardise_golden():
    found = standardise(torch.tensor([0.0, 1.0, 2.0]))
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 1.0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rewards", [torch.tensor([3.0]), torch.full((4,), 3.0)])
def test_without_a_difference_there_is_no_credit(rewards):
    advantage = advantages(GroupCredit(group=1), path_of(len(rewards)), rewards)
    assert torch.equal(advantage, torch.zeros(STEPS, len(rewards)))


def test_terminal_credit_is_the_same_at_every_step_and_bounded():
    rewards = torch.zeros(BATCH)
    rewards[0] = 1e6
    path = path_of()
    advantage = advantages(GroupCredit(group=BATCH, bound=5.0), path, rewards)
    assert torch.equal(advantage, advantage[:1].expand(STEPS, -1))
    assert float(advantage.max()) == float(advantage[0, 0]) == 5.0
    credited = GroupCredit(group=BATCH)(path, Scores(rewards), square, *every_step(path))
    assert credited.data_slope is None


GROUPS = tuple(prompt for prompt in "abcde" for _ in range(7))


def drawn(seed: int, groups: int = 5, group: int = 7) -> Tensor:
    return torch.randn(groups * group, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deviation", ["within", "group"])
def test_group_advantages_ignore_where_a_prompts_rewards_lie(seed, deviation):
    """And, by each group's own deviation, their scale as well; by a shared one only everyone's."""
    rewards, shift = drawn(seed), drawn(seed + 10, 5, 1)
    scale = drawn(seed + 20, 5, 1).exp()
    plain = group_advantage(rewards, 7, deviation)
    moved = group_advantage((rewards.view(5, 7) * 3.0 + shift[:, None]).flatten(), 7, deviation)
    torch.testing.assert_close(moved, plain, rtol=1e-4, atol=1e-5)
    stretched = group_advantage((rewards.view(5, 7) * scale[:, None]).flatten(), 7, deviation)
    assert torch.allclose(stretched, plain, rtol=1e-4, atol=1e-4) != (deviation == "within")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deviation", ["within", "group", "global"])
def test_group_advantages_follow_the_order_of_samples(seed, deviation):
    rewards, plain = drawn(seed), group_advantage(drawn(seed), 7, deviation)
    within, among = torch.randperm(7), torch.randperm(5)

    def mixed(values: Tensor) -> Tensor:
        return values.view(5, 7)[among][:, within].flatten()

    found = group_advantage(mixed(rewards), 7, deviation)
    torch.testing.assert_close(found, mixed(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("group", [3, 7, 24])
def test_equal_rewards_get_exactly_nothing(group):
    """Their mean differs from them by rounding, and 1e-6 is no large number to divide that by."""
    value = torch.tensor([0.1, 1 / 3, 0.7, 97.3, 1e6 + 0.1])
    rewards = value.repeat_interleave(group)
    assert bool((rewards.view(-1, group) - rewards.view(-1, group).mean(1, keepdim=True)).any())
    for deviation in ("within", "group", "global"):
        assert not bool(group_advantage(rewards, group, deviation).any())
    for level in value:
        assert not bool(standardise(level.expand(group)).any())


# ---------------------------------------------------------------------------- of several rewards


def two_rewards(scale: tuple[float, float] = (1.0, 1.0), seed: int = 0, **weights: float) -> Scores:
    """Scores of two rewards for five prompts, 7 samples each; `scale` is of the rewards."""
    weights = weights or {"good": 1.0, "nice": 1.0}
    parts = {
        name: weight * s * drawn(seed + i) ** (1 + i)
        for i, (s, (name, weight)) in enumerate(zip(scale, weights.items(), strict=True))
    }
    return Scores(sum(parts.values()), prompts=GROUPS, parts=parts)


def compared_apart(scores: Scores, kind: str, **weights: float) -> Tensor:
    """The advantages [35] of a fresh credit rule, by its own call."""
    path = path_of(35)
    credit = GroupCredit(7, weights=weights)
    if kind != "group":
        credit = RunningCredit(buffer=7, min_count=7, weights=weights)
    return credit(path, scores, square, *every_step(path)).advantage[:35]


kinds = pytest.mark.parametrize("kind", ["group", "running"])


@kinds
def test_rewards_compared_one_by_one_forget_their_units(kind):
    plain, stretched = two_rewards(), two_rewards((0.01, 100.0))
    even = {"good": 1.0, "nice": 1.0}
    torch.testing.assert_close(
        compared_apart(stretched, kind, **even),
        compared_apart(plain, kind, **even),
        rtol=1e-3,
        atol=1e-3,
    )
    together = compared_apart(plain, kind), compared_apart(stretched, kind)
    assert float((together[0] - together[1]).abs().max()) > 0.5


@kinds
def test_a_weight_is_of_the_advantage(kind):
    """A sum of each reward's own advantages, linear in the weights, whatever their sign."""
    alone = [compared_apart(Scores(drawn(i) ** (1 + i), GROUPS), kind) for i in range(2)]
    weights = {"good": 2.0, "nice": -0.3}
    found = compared_apart(two_rewards(**weights), kind, **weights)
    torch.testing.assert_close(found, 2 * alone[0] - 0.3 * alone[1], rtol=1e-4, atol=1e-4)
    doubled = {name: 20 * weight for name, weight in weights.items()}
    torch.testing.assert_close(
        compared_apart(two_rewards(**doubled), kind, **doubled), 20 * found, rtol=1e-4, atol=1e-3
    )


def test_advantages_of_two_rewards_golden():
    scores = Scores(
        torch.tensor([0.0, 0.0]),
        (),
        {"up": torch.tensor([2.0, 4.0]), "down": torch.tensor([-2.0, -4.0])},
    )
    path = path_of(2)
    # Two samples of a group lie 1/√2 deviations from their mean; 3 − 0.5 deviations are left.
    for weights, expected in (({}, 0.0), ({"up": 3.0, "down": 0.5}, 2.5 / 2**0.5)):
        credited = GroupCredit(2, weights=weights)(path, scores, square, *every_step(path))
        half = torch.tensor([-expected, expected])
        torch.testing.assert_close(credited.advantage[:2], half, rtol=1e-5, atol=1e-5)


@kinds
def test_a_reward_alone_is_its_own_sum(kind):
    scores = Scores(3 * drawn(0), GROUPS, {"good": 3 * drawn(0)})
    torch.testing.assert_close(
        compared_apart(scores, kind, good=3.0),
        3 * compared_apart(scores, kind),
        rtol=1e-4,
        atol=1e-4,
    )


# ---------------------------------------------------------------------------- of a prompt's past


def test_running_advantages_golden():
    memory = {"a": [0.0, 0.0, 3.0, 3.0], "b": [5.0, 1.0]}
    rewards, prompts = torch.tensor([3.0, 1.0, 3.0]), ("a", "b", "a")
    # a: mean 1.5, population deviation 1.5. b has too few: 7/3 and √(8/9) of the whole batch.
    found = running_advantage(rewards, prompts, memory, min_count=4)
    expected = torch.tensor([1.0, -(2**0.5), 1.0])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    own = running_advantage(rewards, prompts, memory, min_count=2)
    torch.testing.assert_close(own, torch.tensor([1.0, -1.0, 1.0]), rtol=1e-5, atol=1e-5)


def test_a_memory_forgets_the_oldest():
    memory = {"a": [1.0, 2.0], "z": [9.0]}
    found = remembered(memory, ("b", "a", "a"), (3.0, 4.0, 5.0), buffer=3)
    assert found == {"a": [2.0, 4.0, 5.0], "z": [9.0], "b": [3.0]}
    assert memory == {"a": [1.0, 2.0], "z": [9.0]}


@pytest.mark.parametrize("seed", range(3))
def test_a_memory_of_this_group_alone_is_the_groups_deviation(seed):
    rewards, prompts = drawn(seed), GROUPS
    memory = remembered({}, prompts, rewards.tolist(), buffer=7)
    found = running_advantage(rewards, prompts, memory, min_count=7)
    own = group_advantage(rewards, 7, deviation="group") * (7 / 6) ** 0.5  # ours is unbiased
    torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_running_advantages_ignore_a_prompts_scale_and_the_order(seed):
    rewards, prompts = drawn(seed, 3, 8), tuple("abc" * 8)
    past = {p: drawn(seed + i, 1, 20).tolist() for i, p in enumerate("abc")}

    def of(chosen: Tensor, known, texts=prompts) -> Tensor:
        memory = remembered(known, texts, chosen.tolist(), buffer=32)
        return running_advantage(chosen, texts, memory, min_count=16)

    plain = of(rewards, past)
    line = {"a": (2.0, 5.0), "b": (0.1, -3.0), "c": (30.0, 0.0)}
    factor, shift = torch.tensor([line[p] for p in prompts]).T
    moved = {p: [line[p][0] * r + line[p][1] for r in known] for p, known in past.items()}
    torch.testing.assert_close(of(rewards * factor + shift, moved), plain, rtol=1e-3, atol=1e-3)
    order = torch.randperm(24)
    mixed = of(rewards[order], past, tuple(prompts[int(i)] for i in order))
    torch.testing.assert_close(mixed, plain[order], rtol=1e-5, atol=1e-6)


def test_a_memory_of_equal_rewards_says_nothing():
    rewards = torch.full((20,), 0.1)
    memory = remembered({}, ("a",) * 20, rewards.tolist(), buffer=16)
    assert not bool(running_advantage(rewards, ("a",) * 20, memory, 16).any())


def rounds_of(credit: RunningCredit, seeds: range) -> list[Tensor]:
    path, found = path_of(35), []
    for seed in seeds:
        found.append(credit(path, two_rewards(seed=seed), square, *every_step(path)).advantage)
    return found


@pytest.mark.parametrize("weights", [{}, {"good": 1.0, "nice": 1.0}])
def test_a_memory_survives_a_checkpoint_to_the_bit(tmp_path, weights):
    credit, again, blank = (RunningCredit(32, 16, weights=weights) for _ in range(3))
    rounds_of(credit, range(3))
    saved = checkpoints.save(tmp_path, 1, credit.state())
    at_that_time = {name: dict(known) for name, known in credit.memories.items()}
    expected = rounds_of(credit, range(3, 5))
    again.restore(checkpoints.load(saved))
    assert again.memories == at_that_time != credit.memories
    assert set(again.memories) == set(weights or {""})
    for ours, theirs in zip(rounds_of(again, range(3, 5)), expected, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(rounds_of(blank, range(3, 4))[0], expected[0])


def test_how_many_have_a_history_is_logged():
    credit, path = RunningCredit(8, 4), path_of(3)
    shares = []
    for prompts in [("a", "a", "b")] * 3:
        scores = Scores(torch.tensor([1.0, 2.0, 3.0]), prompts)
        shares.append(credit(path, scores, square, *every_step(path)).metrics["own_history"])
    assert shares == [0.0, pytest.approx(2 / 3), pytest.approx(2 / 3)]  # b has three by then


def test_a_memory_that_is_never_used_is_refused():
    with pytest.raises(UserError, match=r"set objective\.min_count to at most objective\.buffer"):
        RunningCredit(buffer=16, min_count=17)
    assert RunningCredit(buffer=16, min_count=16).memories == {}


# ---------------------------------------------------------------------------- of single steps


def test_td_advantages_telescope():
    path, credit = path_of(), critic_credit()
    rewards = square(path.final)
    with torch.no_grad():
        start = credit.critic(
            path.states[0],
            path.data[0],
            path.times[0],
            path.condition.tokens,
            square(path.data[0]),
        )
    summed = advantages(credit, path, rewards).sum(0)
    torch.testing.assert_close(summed, rewards - start, rtol=1e-4, atol=1e-5)


def test_the_kl_is_a_running_cost():
    path, kls = path_of(), torch.rand(STEPS, BATCH)
    with_kl = replace(path, moved_sq=kls / path.kl_weights)
    plain = advantages(critic_credit(), path, square(path.final))
    costly = advantages(critic_credit(0.3), with_kl, square(path.final))
    torch.testing.assert_close(costly, plain - 0.3 * kls, rtol=1e-4, atol=1e-5)


def test_the_critic_learns_of_the_cost_still_to_come():
    """A constant reward and a KL of 1 a step: V = 2 − 0.1·(steps left)."""
    path = path_of()
    path = replace(path, moved_sq=1 / path.kl_weights)
    credit = critic_credit(0.1)
    scores, steps = Scores(torch.full((BATCH,), 2.0)), every_step(path)

    def two(x: Tensor, who: Tensor) -> Tensor:
        return torch.full((len(x),), 2.0)

    first = credit(path, scores, two, *steps).metrics["value_loss"]
    for _ in range(40):
        last = credit(path, scores, two, *steps).metrics["value_loss"]
    assert last < 0.05 * first


def test_credit_comes_before_the_fit():
    path = path_of()
    found = [
        advantages(critic_credit(passes=passes), path, square(path.final)) for passes in (1, 9)
    ]
    assert torch.equal(*found)


@pytest.mark.slow
def test_it_learns_a_value_that_is_known():
    """Reward x², data N(0, 1): V(t, x) = α²x² + 1 − α²; the guess x̂0² is its first term."""
    policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
    # Where the state says something about the outcome.
    credit, times = critic_credit(), torch.linspace(0.35, 0.001, 11)

    def path_of(seed: int, batch: int) -> Trajectory:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(batch, 1, generator=generator)
        return rollout(policy, Condition.none(batch), times, generator, noise)

    for seed in range(24):
        path = path_of(seed, 256)
        metrics = credit(path, Scores(square(path.final)), square, *every_step(path)).metrics
    assert metrics["explained_variance"] > 0.5  # on paths that the fit had not seen
    path = path_of(99, 2000)
    x, share = path.states[:-1, :, 0], VP().alpha(times[:-1])[:, None] ** 2
    with torch.no_grad():
        learned = credit.views(path, square, *every_step(path)).value.view_as(x)
    exact, guess = share * x**2 + 1 - share, path.data[:, :, 0] ** 2
    assert (learned - exact).square().mean() < 0.25 * (guess - exact).square().mean()


def test_some_steps_are_credited_as_among_all():
    path = path_of()
    whole = advantages(critic_credit(), path, square(path.final))
    k, b = torch.tensor([5, 0, 3]), torch.tensor([7, 63, 0])
    some = critic_credit()(path, Scores(square(path.final)), square, k, b).advantage
    torch.testing.assert_close(some, whole[k, b])


def test_an_outcome_is_compared_with_what_was_expected():
    """A = G − V: the reward less the KL still to come, less the value where the step begins."""
    path = replace(path_of(), moved_sq=torch.rand(STEPS, BATCH))
    credit, rewards = critic_credit(0.3, "outcome"), square(path.final)
    with torch.no_grad():
        values = torch.stack(
            [
                credit.critic(x, data, t, path.condition.tokens, square(data))
                for x, data, t in zip(path.states[:-1], path.data, path.times[:-1], strict=True)
            ]
        )
    to_come = path.kls.flip(0).cumsum(0).flip(0)
    found = advantages(credit, path, rewards)
    torch.testing.assert_close(found, rewards - 0.3 * to_come - values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.95])
def test_generalised_advantages_lie_between_increments_and_outcomes(decay):
    """A_k = Σ_j λ^(share of the path between) δ_j, with the value of every visited state."""
    path = replace(path_of(jitter=True), moved_sq=torch.rand(STEPS, BATCH))
    increments, outcomes, found = (  # each by a critic that has not been fitted yet
        advantages(replace(critic_credit(0.3), rule=traced(rule)), path, square(path.final))
        for rule in (0.0, 1.0, decay)
    )
    clock = (path.times[0] - path.times) / (path.times[0] - path.times[-1])
    for k in range(STEPS):
        kept = decay ** (clock[k:-1] - clock[k])
        torch.testing.assert_close(found[k], (kept * increments[k:]).sum(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(increments.flip(0).cumsum(0).flip(0), outcomes, rtol=1e-4, atol=1e-4)


def test_in_continuous_time_nothing_is_learned_from_pure_noise():
    path = path_of(40)
    chosen = any_steps(1.0, first=1)(path, torch.Generator().manual_seed(0))
    assert sorted(set(chosen.k.tolist())) == list(range(1, STEPS))
    assert chosen.path_steps == STEPS - 1
    assert bool((path.girsanov_weights[0] == 0).all())  # a mean over the others is the whole sum


# ---------------------------------------------------------------------------- by slopes


def slope_inside(t: Tensor) -> Tensor:
    """∂V/∂x where V = cos(πt/2)·x̂0 for N(0, 1), which is exact for the reward x but for the cos."""
    alpha, sigma = VP().alpha(t), VP().sigma(t)
    return torch.cos(t * torch.pi / 2) * alpha / (alpha**2 + sigma**2)


def credited(path: Trajectory, form: str, k: Tensor, b: Tensor, **options):
    """What an untrained critic says of rewards `factor·x`, a factor for each sample."""
    credit = critic_credit(form=form, **options)
    for parameter in credit.critic.parameters():
        torch.nn.init.zeros_(parameter)
    factors = torch.arange(float(path.data.shape[1]))  # the judge must know who is who
    scores = Scores(factors * path.final[:, 0])
    said = credit(path, scores, lambda x, who: factors[who] * x[:, 0], k, b)
    return credit, factors[b], said


@pytest.mark.parametrize("jitter", [False, True])
@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_slopes_are_the_gradient_of_the_value_where_a_step_arrives(eta, jitter):
    """On Gaussian data V = reward(x̂0) is exact for a linear reward, and so is its slope."""
    path = path_of(40, eta=eta, jitter=jitter)
    k, b = every_step(path)
    credit, factors, said = credited(path, "slope", k, b, eta=eta)
    t, t_next = path.times[k, b], path.times[k + 1, b]
    slope = torch.where(k == STEPS - 1, 1.0, slope_inside(t_next))  # at the end, the reward's own
    expected = response(GDDIM(eta), VP(), t, t_next) * slope * factors
    torch.testing.assert_close(said.data_slope[:, 0], expected, rtol=1e-3, atol=1e-5)
    assert not said.data_slope.requires_grad
    assert said.advantage is None
    assert said.action is None
    assert credit.policy.calls == (STEPS - 1) * 40  # none where a path ends


@pytest.mark.parametrize("options", [{}, {"jitter": True}, {"solver": "heun"}, {"eta": 0.5}])
def test_rates_are_the_gradient_of_the_value_where_the_path_is(options):
    """(1+η²)/2 α ∇V dℓ of the visited state; nothing at pure noise, which stands for nothing."""
    path, eta = path_of(40, **options), options.get("eta", 0.0 if "solver" in options else 1.0)
    k, b = every_step(path)
    credit, factors, said = credited(path, "rate", k, b, eta=eta or 1.0)
    t = path.times[k, b]
    along = (1 + eta**2) / 2 * VP().alpha(t) * path.log_snr_steps[k, b]
    expected = along * slope_inside(t) * factors
    torch.testing.assert_close(said.data_slope[:, 0], expected, rtol=1e-3, atol=1e-5)
    assert bool((said.data_slope[k == 0] == 0).all())
    assert credit.policy.calls == STEPS * 40


@pytest.mark.parametrize("estimate", ["pretrained", "policy"])
def test_a_slope_is_the_gradient_of_the_value_that_is_learned(estimate):
    """V reads the pretrained x̂0, or the policy's: its value and its Jacobian, both or neither."""
    control = toy.HatControl(1)
    torch.nn.init.normal_(control.table, std=0.5)
    policy = Policy(toy.Controlled(toy.Gaussian(VP(), 0.0, 1.0), control), GDDIM(1.0))
    generator, who = torch.Generator().manual_seed(0), Condition.none(8)
    noise = prior(policy, 8, generator)
    path = rollout(policy, who, grids.karras(VP(), STEPS), generator, noise)
    credit = replace(critic_credit(form="rate"), policy=policy, estimate=estimate)
    for parameter in credit.critic.parameters():
        torch.nn.init.zeros_(parameter)
    views = credit.views(path, lambda x, b: x[:, 0] ** 2, *every_step(path), slopes=True)
    condition = path.condition.take(every_step(path)[1])

    def value(x: Tensor) -> Tensor:
        with policy.reference() if estimate == "pretrained" else nullcontext():
            data = policy.estimate(x, views.t, condition).data
        return torch.cos(views.t * torch.pi / 2) * data[:, 0] ** 2

    x = views.x.detach().requires_grad_()
    torch.testing.assert_close(views.value, value(x).detach(), rtol=1e-4, atol=1e-4)
    slope = torch.autograd.grad(value(x).sum(), x)[0]
    torch.testing.assert_close(views.slope, slope, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("estimate", ["pretrained", "policy"])
@pytest.mark.parametrize("form", ["rate", "slope", "explicit"])
def test_one_look_serves_slope_and_kl(form, estimate):
    """The same credit and fit as by a path that knows every reference, which asks once more."""
    first, batch = (0 if form == "slope" else 1), 8
    control = toy.HatControl(1)
    torch.manual_seed(3)
    torch.nn.init.normal_(control.table, std=0.5)
    policy = Policy(toy.Controlled(toy.Gaussian(VP(), 0.0, 1.0), control), GDDIM(1.0))
    found, calls = [], []
    for reference in (True, False):
        generator = torch.Generator().manual_seed(0)
        noise, times = prior(policy, batch, generator), grids.karras(VP(), STEPS)
        in_chain = form == "slope"
        path = rollout(
            policy,
            Condition.none(batch),
            times,
            generator,
            noise,
            reference=reference,
            in_chain=in_chain,
        )
        credit = critic_credit(0.3, form, exploration=0.2, first=first, estimate=estimate)
        credit = replace(credit, policy=policy)
        k, b = (part[every_step(path)[0] >= first] for part in every_step(path))
        policy.calls = 0
        torch.manual_seed(1)
        said = credit(path, Scores(square(path.final)), lambda x, w: x[:, 0] ** 2, k, b)
        found.append(transitions(path, said, k, b, 1.0))
        found.append(said.metrics)
        calls.append(policy.calls)
    (asked, fit), (shared, fit_shared) = found[:2], found[2:]
    for name in ("reference_data", "data_slope", "advantage", "action"):
        one, other = getattr(asked, name), getattr(shared, name)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert fit_shared["value_loss"] == pytest.approx(fit["value_loss"], rel=1e-4)
    again = batch * (STEPS - first) if estimate == "policy" else batch * (form == "slope")
    assert calls[1] == calls[0] + again


@pytest.mark.parametrize("form", ["rate", "slope"])
def test_returns_by_the_drawn_steps_are_those_of_the_path_on_average(form, monkeypatch):
    """Over all draws of two steps, at the states that the critic is fitted on: where the drawn
    steps begin, or where they arrive."""
    first, batch, by_state = (0 if form == "slope" else 1), 3, {}
    control = toy.HatControl(1)
    torch.nn.init.constant_(control.table, 0.5)
    policy = Policy(toy.Controlled(toy.Gaussian(VP(), 0.0, 1.0), control), GDDIM(1.0))
    generator, times = torch.Generator().manual_seed(0), grids.karras(VP(), STEPS)
    who, noise = Condition.none(batch), prior(policy, batch, generator)
    asked = {"reference": True, "in_chain": form == "slope"}
    path = rollout(policy, who, times, generator, noise, **asked)
    scores = Scores(square(path.final))
    _, exact = critic_credit(0.3, form).returns(path, scores)
    assert float((exact[first] - exact[-1]).abs().min()) > 1e-3  # there is a KL to speak of
    path = replace(path, reference_data=None, moved_sq=None)

    def fitted_on(self, path, read, returns):
        for state in set(read.at.tolist()):
            by_state.setdefault(state, []).append(returns[state])
        return {}

    monkeypatch.setattr(CriticCredit, "_fit", fitted_on)
    for pair in combinations(range(first, STEPS), 2):
        k = torch.tensor(pair).repeat_interleave(batch)
        b = torch.arange(batch).repeat(2)
        credit = replace(critic_credit(0.3, form, first=first), policy=policy)
        kls = credit(path, scores, square, k, b).metrics
        assert kls.keys() == {"chain_kl" if form == "slope" else "girsanov_kl"}
    assert len(by_state) == STEPS - first
    for state, returns in by_state.items():
        torch.testing.assert_close(torch.stack(returns).mean(0), exact[state], rtol=1e-4, atol=1e-5)


def test_rate_and_slope_tend_to_each_other():
    """Summed over a path, as the steps get finer."""
    off = []
    for steps in (80, 320):
        policy = Policy(toy.Gaussian(VP(), 0.0, 1.0), GDDIM(1.0))
        generator = torch.Generator().manual_seed(0)
        times = grids.karras(VP(), steps)
        path = rollout(policy, Condition.none(2), times, generator, prior(policy, 2, generator))
        k, b = every_step(path)
        rate, slope = (
            credited(path, form, k, b)[2].data_slope[b == 1].sum() for form in ("rate", "slope")
        )
        off.append(abs(float(rate / slope) - 1))
    assert off[1] < 0.4 * off[0] < 0.1  # near the data a step's response lags behind its length


@pytest.mark.parametrize("form", ["slope", "rate", "explicit"])
def test_slopes_need_a_reward_with_a_gradient(form):
    path = path_of()
    with pytest.raises(UserError, match=r"form=ratio"):
        critic_credit(form=form, exploration=0.3)(
            path, Scores(square(path.final)), lambda x, who: torch.zeros(len(x)), *every_step(path)
        )


@pytest.mark.parametrize("form", ["rate", "explicit"])
def test_a_critic_alone_needs_no_gradient_of_the_reward(form):
    path = path_of()
    credit = critic_credit(form=form, skip="none", exploration=0.3)
    scores, steps = Scores(square(path.final)), every_step(path)
    for _ in range(3):
        said = credit(path, scores, lambda x, who: square(x).detach(), *steps)
    part = said.data_slope if form == "rate" else said.advantage
    assert torch.isfinite(part).all()
    assert float(part.abs().max()) > 0


# ---------------------------------------------------------------------------- tried actions


@pytest.mark.parametrize("kl_weight", [slow(0.0), 0.4])
def test_tried_actions_have_the_gradient_of_rates(kl_weight):
    """E over actions of q Δ ∇log π is the gradient of ⟨x̂0, slope⟩ − κ·KL (arXiv 2502.01819)."""
    path = path_of(4000)
    moved = torch.full_like(path.etas, 0.25)
    path = replace(path, reference_data=path.data + 0.5, moved_sq=moved, in_chain=False)
    k, b = torch.full((4000,), 4), torch.arange(4000)

    def gradients(form: str) -> Tensor:
        """The gradient of the loss by the mean of the data, of each state of its own: [M]."""
        options = {"kl_weight": kl_weight, "exploration": 0.2}
        credit = critic_credit(form=form, **options)
        said = credit(path, Scores(path.final[:, 0]), lambda x, who: x[:, 0], k, b)
        steps = transitions(path, said, k, b, 1.0)
        policy, read = credit.policy, credit.policy.estimate
        moved = torch.zeros(4000, 1, requires_grad=True)

        def estimate(x, t, condition):
            seen = read(x, t, condition)
            ratio = (VP().alpha(t) / VP().sigma(t))[:, None]
            return replace(seen, data=seen.data + moved, noise=seen.noise - ratio * moved)

        policy.estimate = estimate
        loss = ScoreAction(policy, clip=0.2, **options)(steps).value
        return -4000 * torch.autograd.grad(loss, moved)[0][:, 0]

    tried, exact = gradients("explicit"), gradients("rate")
    error = float(tried.std()) / 4000**0.5
    assert float(exact.abs().mean()) > 10 * error
    assert float(tried.mean()) == pytest.approx(float(exact.mean()), abs=4 * error)


def test_what_was_tried_is_the_estimate_plus_noise():
    path = path_of(400)
    k, b = torch.full((400,), 3), torch.arange(400)
    said = credited(path, "explicit", k, b, exploration=0.2)[2]
    t = path.times[k, b][:, None]
    noise = (path.states[k, b] - VP().alpha(t) * path.data[k, b]) / VP().sigma(t)
    tried = said.action - noise
    assert float(tried.std()) == pytest.approx(0.2, rel=0.15)
    # For V = cos(πt/2) factor x̂0 the advantage is linear in what was tried, −σ ∇V dℓ per unit.
    gain = -(VP().sigma(t) * path.log_snr_steps[k, b][:, None] * slope_inside(t))[:, 0]
    expected = gain * torch.arange(400.0) * tried[:, 0]
    torch.testing.assert_close(said.advantage, expected, rtol=1e-3, atol=1e-3)


# ---------------------------------------------------------------------------- by the reward


def test_a_rewards_slope_at_the_estimate():
    path, (k, b) = path_of(7), (torch.tensor([5, 0, 3, 3]), torch.tensor([6, 0, 2, 1]))
    factors = torch.arange(7.0)
    said = RewardSlope(at_once=3)(
        path, Scores(torch.zeros(7)), lambda x, who: factors[who] * square(x), k, b
    )
    expected = 2 * factors[b][:, None] * path.data[k, b]
    torch.testing.assert_close(said.data_slope, expected)
    assert said.advantage is None


def test_a_rewards_slope_needs_a_gradient():
    path = path_of(3)
    with pytest.raises(UserError, match="the reward has none"):
        RewardSlope()(
            path, Scores(torch.zeros(3)), lambda x, who: torch.zeros(len(x)), *every_step(path)
        )


# ---------------------------------------------------------------------------- to minibatches


def learned(path: Trajectory, share: float, seed: int = 0):
    """What a source makes of a path: (k, b, Steps)."""
    scores, group = Scores(square(path.final)), path.data.shape[1]
    k, b, whole, *_ = any_steps(share)(path, torch.Generator().manual_seed(seed))
    credited = GroupCredit(group)(path, scores, square, k, b)
    return k, b, transitions(path, credited, k, b, whole)


def test_every_transition_is_learned_once():
    path = path_of(5, jitter=True)
    k, b, steps = learned(path, 1.0)
    deal = distributed.deal(k, b, 5)
    sizes = Sizes(minibatch=7)
    batches, counts = deal_out(steps, sizes, torch.Generator().manual_seed(0), deal)
    assert counts == (7, 7, 7, 7, 2)
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert all(batch.path_steps == STEPS for batch in batches)
    found = torch.cat([batch.x for batch in batches]).flatten()
    assert not torch.equal(found, steps.x.flatten())
    torch.testing.assert_close(found.sort().values, path.states[:-1].flatten().sort().values)
    advantage = GroupCredit(5)(path, Scores(square(path.final)), square, k, b).advantage
    for row in range(len(steps)):  # what belongs together stays together
        assert torch.equal(steps.x[row], path.states[k[row], b[row]])
        assert torch.equal(steps.x_next[row], path.states[k[row] + 1, b[row]])
        assert steps.t[row] == path.times[k[row], b[row]]
        assert steps.t_next[row] == path.times[k[row] + 1, b[row]]
        assert torch.equal(steps.data[row], path.data[k[row], b[row]])
        assert steps.kl_weight[row] == path.kl_weights[k[row], b[row]]
        assert steps.advantage[row] == advantage[row]


def test_a_share_of_the_steps():
    k, b, steps = learned(path_of(10), 0.5)
    assert len(steps) == 30
    assert steps.path_steps == STEPS  # a mean times this still estimates the sum over the path
    assert len({(int(i), int(j)) for i, j in zip(k, b, strict=True)}) == 30  # none twice
    assert b.bincount().tolist() == [3] * 10  # as many of each path
    assert len(k.unique()) > 3


def test_the_last_steps():
    path = path_of(10)
    k, b, count, *_ = last_steps(2)(path, torch.Generator().manual_seed(0))
    assert sorted(zip(b.tolist(), k.tolist(), strict=True)) == [
        (i, j) for i in range(10) for j in (4, 5)
    ]
    assert count == 2.0
    assert last_steps(99)(path, torch.Generator())[2] == STEPS  # no more than there are


def test_a_random_number_of_the_last_steps():
    path = path_of(300)
    k, b, count, *_ = last_steps(4, random=True)(path, torch.Generator().manual_seed(0))
    many = b.bincount(minlength=300)
    assert sorted(many.unique().tolist()) == [1, 2, 3, 4]
    assert float(many.float().mean()) == pytest.approx(count) == pytest.approx(2.5, abs=0.3)
    first = torch.full((300,), STEPS).scatter_reduce(0, b, k, "amin")
    assert torch.equal(first, STEPS - many)  # the last ones, none left out


def test_one_of_the_last_steps():
    k, b, count, *_ = one_of_last(4)(path_of(300), torch.Generator().manual_seed(0))
    assert torch.equal(b, torch.arange(300))
    assert k.unique().tolist() == [2, 3, 4, 5]
    assert count == 1.0


def test_a_solvers_path_has_no_log_probabilities():
    path = path_of(5, solver="ddim")
    k, b, whole, *_ = any_steps(1.0)(path, torch.Generator())
    credited = RewardSlope()(path, Scores(torch.zeros(5)), square, k, b)
    steps = transitions(path, credited, k, b, whole)
    assert steps.x_next is None
    assert steps.take(torch.tensor([1, 2])).x_next is None


def test_reward_metrics_golden():
    found = reward_metrics(Scores(torch.tensor([1.0, 2.0, 3.0])))
    half = 1.96 * 1.0 / 3**0.5
    assert found == pytest.approx({"reward": 2, "reward_low": 2 - half, "reward_high": 2 + half})
    assert reward_metrics(Scores(torch.tensor([2.0]))) == {
        "reward": 2.0,
        "reward_low": 2.0,
        "reward_high": 2.0,
    }
    parts = {"reader": torch.tensor([0.5, 1.5]), "a:b": torch.tensor([-1.0, -3.0])}
    found = reward_metrics(Scores(torch.tensor([-0.5, -1.5]), parts=parts))
    assert found["reward"] == found["reward/reader"] + found["reward/a:b"] == -1.0
    assert found["reward/a:b"] == -2.0
