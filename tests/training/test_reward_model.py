"""Reward models from votes: what they learn, that a killed run goes on, and bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from scoretune.core.errors import UserError
from scoretune.data.pairs import read_pairs
from scoretune.data.rankings import read_rankings
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw
from scoretune.data.scenes.world import shipped
from scoretune.preference import outcome_log_probs
from scoretune.rewards.base import has_gradient
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.rewards.networks import scene_readers, vote_heads
from scoretune.rewards.reward_model import RewardModel
from scoretune.training.reward_model import examples, measured
from scoretune.training.reward_model.learning import (
    LOOKS,
    PATIENCE,
    Lessons,
    Member,
    averaging,
    calibrated,
    learn,
)
from scoretune.training.reward_model.run import recorded, train_reward
from scoretune.training.reward_model.settings import RewardSettings, read, validated
from slow_cases import slow

PROMPTS = [f"{word} picture number {i}" for i in range(8) for word in ("a green", "a red")]
QUICK: dict[str, Any] = {"updates": 12, "members": 2, "width": 8, "batch": 8, "checkpoint_every": 5}


def watched(*told: Any) -> None:
    pass


def votes_folder(folder: Path, pairs_each: int = 6, votes: int = 5) -> Path:
    """Plain colours. Worth is how much of the asked colour there is; raters follow Davidson's law
    with ν = 0.5 at a gap of 8 for full colour against none."""
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number, prompt in enumerate(PROMPTS * pairs_each):
        levels = torch.rand(2, 3, generator=generator)
        for side in (0, 1):
            colour = tuple(int(255 * level) for level in levels[side])
            Image.new("RGB", (8, 8), colour).save(folder / f"{number}-{side}.png")
        asked = 1 if "green" in prompt else 0
        gap = 8 * (levels[0, asked] - levels[1, asked])
        law = outcome_log_probs(gap, "davidson", 0.5).exp()
        drawn = law.multinomial(votes, replacement=True, generator=generator).bincount(minlength=3)
        rows.append(
            {"prompt": prompt, "image_0": f"{number}-0.png", "image_1": f"{number}-1.png"}
            | {"votes_0": int(drawn[0]), "ties": int(drawn[1]), "votes_1": int(drawn[2])}
        )
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return votes_folder(tmp_path_factory.mktemp("votes") / "pairs")


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return votes_folder(tmp_path_factory.mktemp("votes") / "few", pairs_each=2)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained") / "my-reward"  # a path with a minus
    learning = {"updates": 50, "batch": 16, "learning_rate": 2e-2, "checkpoint_every": 1000}
    settings = RewardSettings(data=str(data), **QUICK | learning)
    return folder, train_reward(settings, folder, watched)


def test_it_learns_what_people_prefer_by_prompt(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = trained
    held = result["held_out"]
    assert held["accuracy"] > 0.75
    assert held["low"] < held["accuracy"] < held["high"]
    assert held["calibration_error"] < 0.15
    assert result["tie_model"] == "davidson"
    assert abs(result["tie"] - 0.5) < 3 * result["tie_error"] + 0.1
    reward = named_reward(str(folder))
    plain = torch.zeros(2, 3, 8, 8)
    plain[0, 1] = plain[1, 0] = 0.9
    green, red = "a green picture number 3", "a red picture number 3"
    scores = reward(plain, [green, green])
    assert scores[0] > scores[1] + 2
    assert reward(plain, [red, red])[1] > reward(plain, [red, red])[0] + 2


def test_the_folder_is_a_reward_like_any_other(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    reward = named_reward(str(folder))
    images, prompts = torch.rand(5, 3, 8, 8), PROMPTS[:5]
    assert has_gradient(reward, "it", images[0], prompts[0])
    whole = reward(images, prompts)
    one_by_one = torch.cat([reward(images[i : i + 1], prompts[i : i + 1]) for i in range(5)])
    assert torch.allclose(whole, one_by_one, atol=1e-5)
    assert reward(torch.rand(2, 3, 16, 16), prompts[:2]).shape == (2,)  # other sizes are scaled
    assert reward(images, ["words that nobody said"] * 5).isfinite().all()
    weights = named_reward(f"0.5*reward_model(folder={folder}) + brightness")
    assert torch.allclose(weights(images, prompts), 0.5 * whole + images.mean((1, 2, 3)), atol=1e-5)
    assert len(fingerprint(str(folder), reward)["parts"][0]["sha256 model.safetensors"]) == 64


def test_caution_takes_the_spread_of_the_members_off(trained: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = trained
    images, prompts = torch.rand(4, 3, 8, 8), PROMPTS[:4]
    plain, careful = RewardModel(str(folder)), RewardModel(str(folder), caution=1.5)
    spread = plain.uncertainty(images, prompts)
    assert torch.allclose(spread, plain.members(images, prompts).std(0))
    assert torch.allclose(careful(images, prompts), plain(images, prompts) - 1.5 * spread)


def test_a_reward_model_draws_no_random_numbers(trained: tuple[Path, dict[str, Any]]) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    RewardModel(str(trained[0]))(torch.zeros(1, 3, 8, 8), ["a red picture"])
    assert torch.equal(torch.rand(2), expected)


def test_the_page_says_how_good_it_is(trained: tuple[Path, dict[str, Any]]) -> None:
    page = (trained[0] / "report.html").read_text()
    for text in ("Held-out votes", "Davidson", "predicted share", "Expected calibration error"):
        assert text in page


# ------------------------------------------------------------------------------ runs


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def whole(little: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train_reward(RewardSettings(data=str(little), **QUICK), folder, watched)
    return folder


@pytest.mark.parametrize("when", [slow(("reading", 16)), slow(("member 1", 9)), ("member 2", 6)])
def test_a_killed_run_goes_on_to_the_same_weights(
    little: Path, whole: Path, tmp_path: Path, when: tuple[str, int]
) -> None:
    def killing(stage: str, done: int, total: int, numbers: dict[str, float]) -> None:
        if (stage, done) == when:
            raise Killed

    with pytest.raises(Killed):
        train_reward(RewardSettings(data=str(little), **QUICK), tmp_path / "cut", killing)
    train_reward(recorded(tmp_path / "cut"), tmp_path / "cut", watched)
    first, again = (load_file(n / "model.safetensors") for n in (whole, tmp_path / "cut"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("reward.json", "log.jsonl"):
        assert (whole / name).read_text() == (tmp_path / "cut" / name).read_text()
    with pytest.raises(UserError, match="is finished: use it as reward="):
        recorded(tmp_path / "cut")


def test_rankings_are_learned_from(data: Path, tmp_path: Path) -> None:
    """Whole orders with ties, alone and beside pairs."""
    files = sorted(str(path) for path in data.glob("*-0.png"))[:36]
    greens = [Image.open(file).getpixel((0, 0))[1] // 40 for file in files]  # type: ignore[index]
    rows = [
        {
            "prompt": f"a green picture number {i}",
            "images": files[3 * i : 3 * i + 3],
            "ranks": [-level for level in greens[3 * i : 3 * i + 3]],
        }
        for i in range(12)
    ]
    table = tmp_path / "rankings.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = RewardSettings(rankings=str(table), **QUICK | {"updates": 30, "learning_rate": 1e-2})
    result = train_reward(settings, tmp_path / "run", watched)
    assert (result["pairs"], result["rankings"]) == (0, 12)
    colours = torch.zeros(2, 3, 8, 8)
    colours[0, 1] = 1
    scores = named_reward(str(tmp_path / "run"))(colours, ["a green picture number 1"] * 2)
    assert scores[0] > scores[1]
    both = RewardSettings(data=str(data), rankings=str(table), **QUICK | {"updates": 2})
    assert train_reward(both, tmp_path / "both", watched)["rankings"] == 12


# ------------------------------------------------------------------------------ parts


class Exact(nn.Module):
    """A head that knows worth up to a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, pictures: Tensor, prompts: Tensor) -> Tensor:
        return self.factor * pictures[:, 0]


def test_the_scale_of_votes_is_found_whatever_that_of_the_members() -> None:
    generator = torch.Generator().manual_seed(1)
    worth = torch.randn(3000, 1, generator=generator)
    pairs = torch.arange(3000).view(-1, 2)
    law = outcome_log_probs(2.5 * (worth[::2] - worth[1::2])[:, 0], "davidson", 0.8).exp()
    votes = law.multinomial(4, replacement=True, generator=generator)
    counts = nn.functional.one_hot(votes, 3).sum(1).float()
    read = examples.Votes(
        worth, torch.zeros(1, 1), pairs, torch.zeros(1500).long(), counts, 1500, (),
        tuple(str(i) for i in range(1500)),
    )  # fmt: skip
    lessons = Lessons(read, torch.arange(1500) % 6 - 1, "davidson")
    for factor in (0.1, 1.0, 7.0):
        heads = nn.ModuleList(Exact(factor) for _ in range(4))
        scale, fit = calibrated(heads, lessons)
        assert fit is not None and fit.tie is not None and fit.tie_error is not None
        assert abs(scale * factor - 2.5) < 3 * float(fit.errors) * factor
        assert abs(fit.tie - 0.8) < 3 * fit.tie_error
        held = measured.HeldOut.of(heads, lessons, scale, fit).numbers()
        assert abs(held["factor"] - 1) < 3 * held["factor_error"] + 0.05
        assert held["calibration_error"] < 0.06
    scale, fit = calibrated(nn.ModuleList([Exact(-1.0)]), lessons)
    assert (scale, fit) == (1.0, None)  # votes that contradict give no scale


def test_shares_have_intervals_over_prompts() -> None:
    """By hand: 3 of 4 and 1 of 4, residuals ±1: 0.5 ± 1.96·√(2·2/1)/8; one by one, narrower."""
    right, of = torch.tensor([3.0, 1.0]), torch.tensor([4.0, 4.0])
    share, low, high = measured.share_with_interval(right, of, ["a", "b"])
    assert (share, high - share) == pytest.approx((0.5, 1.96 * 2 / 8))
    assert low == pytest.approx(0.5 - 1.96 * 2 / 8)


def test_a_prompt_stays_where_it_is_when_votes_on_others_come() -> None:
    def folds(count: int) -> dict[str, int]:
        groups = tuple(f"prompt {i}" for i in range(count) for _ in range(2))
        pairs = torch.zeros(len(groups), 2).long()
        read = examples.Votes(
            torch.zeros(1, 1), torch.zeros(1, 1), pairs, pairs[:, 0], torch.ones(len(groups), 3),
            len(groups), (), groups,
        )  # fmt: skip
        split = examples.split(read, 0.3, 5, seed=0)
        return dict(zip(groups, split.tolist(), strict=True))

    before, after = folds(60), folds(90)
    assert all(after[group] == fold for group, fold in before.items())
    assert 8 < sum(fold == -1 for fold in before.values()) < 30


def test_votes_with_ties_are_counted(tmp_path: Path) -> None:
    folder = votes_folder(tmp_path / "pairs", pairs_each=1)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    expected = [[row["votes_0"], row["ties"], row["votes_1"]] for row in rows]
    assert torch.allclose(read_pairs(str(folder)).counts(), torch.tensor(expected).float())


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_heads_on_encoders(kind: str, little: Path, tmp_path: Path) -> None:
    """Tiny networks of the real classes: a run, and a gradient by the picture."""
    encoder = tiny_encoder(kind, tmp_path / kind)
    settings = RewardSettings(data=str(little), features=str(encoder), **QUICK | {"updates": 2})
    train_reward(settings, tmp_path / "run", watched)
    reward = named_reward(str(tmp_path / "run"))
    assert has_gradient(reward, "it", torch.rand(3, 20, 20), "a red picture")
    parts = fingerprint(str(tmp_path / "run"), reward)["parts"][0]
    assert len(parts["encoder sha256 model.safetensors"]) == 64


def tiny_encoder(kind: str, folder: Path) -> Path:
    import transformers as t

    size = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}
    size |= {"num_hidden_layers": 1}
    letters = [*"abcdefghijklmnopqrstuvwxyz0123456789"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = t.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    text = size | {"vocab_size": len(words), "max_position_embeddings": 24}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = size | {"image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    if kind == "clip":
        network: Any = t.CLIPModel(
            t.CLIPConfig(
                text_config=text | {"projection_dim": 8},
                vision_config=vision | {"projection_dim": 8},
                projection_dim=8,
            )
        )
    else:
        network = t.SiglipModel(
            t.SiglipConfig(text_config=text | {"projection_size": 16}, vision_config=vision)
        )
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


SCENES = [f"a {colour} {digit}" for colour in ("red", "blue") for digit in world.DIGITS]


def scenes_folder(folder: Path) -> None:
    """For every prompt two pictures of noise, of which the first won 3 : 1."""
    folder.mkdir()
    pictures = np.random.default_rng(0).integers(256, size=(2 * len(SCENES), 32, 32, 3))
    for number, picture in enumerate(pictures.astype(np.uint8)):
        Image.fromarray(picture).save(folder / f"{number}.png")
    rows = [
        {"prompt": text, "image_0": f"{2 * i}.png", "image_1": f"{2 * i + 1}.png"}
        | {"votes_0": 3, "votes_1": 1}
        for i, text in enumerate(SCENES)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_scenes_begin_at_the_readers_opinion() -> None:
    """A head's scores are at first a multiple of the reader's, on pictures of what half of the
    prompts ask for, and 0 where the prompt is of another world."""
    view = vote_heads.Scenes(vote_heads.Words.of(SCENES), scene_readers.load(shipped(), "reader"))
    head = vote_heads.head(view, 16)
    rng = np.random.default_rng(0)
    asks = [world.asks_by_text()[text] for text in [*SCENES[:10], *SCENES[:10]]]
    images = torch.from_numpy(draw([world.lay_out(ask, rng) for ask in asks], "pictures", rng))
    pictures = torch.cat([images, images[:1]]).requires_grad_()
    scores = head(view.pictures(pictures), view.prompts([*SCENES, "words of another world"]))
    expected = named_reward("reader")(images, SCENES)
    assert expected[:10].median() > 0.9 > 0.1 > expected[10:].median()
    assert torch.allclose(scores[:-1], 3 * expected, atol=1e-4) and not bool(scores[-1])
    scores.sum().backward()
    assert pictures.grad is not None and bool(pictures.grad.isfinite().all())
    with pytest.raises(UserError, match="32 x 32"):
        view.pictures(torch.rand(1, 3, 16, 16))


def test_from_votes_to_a_fine_tuned_model_by_commands(
    command: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    """Votes on pictures of the shipped world become a reward on what the reader sees, which DDPO
    optimises, and which its card names."""
    scenes_folder(tmp_path / "pairs")
    reward, run = tmp_path / "reward", tmp_path / "run"
    votes = f"data={tmp_path / 'pairs'}"
    made = command("train", "reward", votes, "updates=2", "members=2", "--run", reward, "--json")
    assert made.code == 0, made.err
    result = json.loads(made.out.splitlines()[-1])
    assert result["features"] == "scenes"
    assert result["held_out"]["majority"] == 0.75
    assert result["held_out"]["raters"] == pytest.approx(0.5)  # of 3 : 1, 3 of 6 pairs of votes
    done = command("train", "ddpo", *small, "updates=1", f"reward={reward}", "--run", run)
    assert done.code == 0, done.err
    card = (run / "lora" / "README.md").read_text()
    assert str(reward) in card
    assert (
        fingerprint(str(reward), named_reward(str(reward)))["parts"][0]["sha256 model.safetensors"]
        in card
    )


def test_a_member_ends_where_left_out_votes_are_explained_ever_worse() -> None:
    """Fold 0 votes the other way: the member keeps what it was before its first update."""
    worth = torch.tensor([[1.0], [0.0]]).repeat(40, 1)
    pairs, nobody = torch.arange(80).view(-1, 2), torch.zeros(40).long()
    folds = torch.arange(40) % 2
    counts = nn.functional.one_hot(2 * (1 - folds), 3).float()
    read = examples.Votes(worth, torch.zeros(1, 1), pairs, nobody, counts, 40, (), ("a",) * 40)
    settings = RewardSettings(data="x", updates=1000, batch=8)
    member = Member.fresh(Exact(0.0), settings)
    done: list[int] = []
    lessons = Lessons(read, folds, "bradley_terry")
    learn(member, 0, lessons, settings, done=0, after=lambda update, _: done.append(update))
    assert done[-1] == PATIENCE * 1000 // LOOKS
    assert float(member.best["factor"]) == 0 < float(member.head.state_dict()["factor"])


def test_the_mean_of_members_that_err_apart_has_the_larger_factor() -> None:
    """Members see the truth with noise of their own: the factor of their mean, by least squares, is
    that of one of them times `averaging`."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(20000, generator=generator)
    gaps = truth + torch.randn(4, 20000, generator=generator)

    def factor(seen: Tensor) -> float:
        return float((truth * seen).sum() / seen.square().sum())

    one = sum(factor(seen) for seen in gaps) / 4
    assert one == pytest.approx(1 / 2, rel=0.05) and averaging(gaps) == pytest.approx(1.6, rel=0.05)
    assert factor(gaps.mean(0)) == pytest.approx(one * averaging(gaps), rel=0.02)


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([], "name the votes to learn from"),
        (["dat=x"], "data"),
        (["data=x", "ties=coin"], "ties"),
        (["data=x", "members=0"], "members"),
        (["data=x", "held_out=1"], "held_out"),
        (["data=x", "features=scenes", "side=32"], "side is of features=pixels"),
    ],
)
def test_settings_that_do_not_fit_are_one_line(changes: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        read(changes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300


def test_data_that_cannot_be_learned_from_is_one_line(data: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    shutil.copytree(data, few)
    rows = (few / "pairs.jsonl").read_text().splitlines()
    (few / "pairs.jsonl").write_text("\n".join(rows[:2]))
    bad: list[tuple[dict[str, Any], str]] = [
        ({"data": str(few)}, "needs three"),
        ({"data": str(tmp_path / "nowhere")}, "nowhere"),
        ({"data": str(data), "features": str(tmp_path / "no-clip")}, "does not exist"),
        ({"data": str(data), "features": str(data)}, "give the folder or hub id of a CLIP"),
        ({"data": str(data), "features": "pixels", "side": 512}, "small pictures"),
    ]
    for number, (given, told) in enumerate(bad):
        with pytest.raises(UserError, match=told) as caught:
            train_reward(validated(given), tmp_path / f"run{number}", watched)
        assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300, given
    ranks = tmp_path / "rankings.jsonl"
    ranks.write_text(json.dumps({"prompt": "a", "images": ["x.png"], "ranks": [1]}) + "\n")
    with pytest.raises(UserError, match="from 2 to 16 images"):
        read_rankings(str(ranks))


def test_a_folder_that_is_no_reward_is_one_line(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"holds no reward\.json"):
        named_reward(f"reward_model(folder={tmp_path})")
    with pytest.raises(UserError, match="caution"):
        named_reward(f"reward_model(folder={trained[0]}, caution=-1)")
    broken = tmp_path / "broken"
    shutil.copytree(trained[0], broken)
    record = json.loads((broken / "reward.json").read_text())
    images = torch.zeros(1, 3, 8, 8)
    for change, told in (({"version": 9}, "newer"), ({"width": 20}, "does not fit")):
        (broken / "reward.json").write_text(json.dumps(record | change))
        with pytest.raises(UserError, match=told):
            named_reward(str(broken))(images, ["a"])
    (broken / "reward.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the reward model"):
        named_reward(str(broken))(images, ["a"])
