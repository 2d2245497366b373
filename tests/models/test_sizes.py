"""Prompts that ask for sizes of their own: one size a call, a round, a batch of an evaluation."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import tiny_autoencoder
from scoretune import recipes
from scoretune.commands.families import families
from scoretune.commands.plan.plan import planned
from scoretune.commands.plan.verb import lines_of
from scoretune.commands.sample import draw
from scoretune.core import checkpoints
from scoretune.core.config import Model, Run, Sizes
from scoretune.core.errors import UserError
from scoretune.data.picture_size import Size
from scoretune.data.prompts import Prompt, Prompts, identity, read_prompts, size_of
from scoretune.diffusion.kernels import GDDIM
from scoretune.diffusion.processes import VP
from scoretune.evaluate.guard.guard import diversity_prompts
from scoretune.evaluate.mixed_sizes import by_size, on_canvas, source_pictures
from scoretune.evaluate.samples import deployed_times, sample
from scoretune.evaluate.scores import measure
from scoretune.models import catalog
from scoretune.models.autoencoder import decoded
from scoretune.models.sizes import check_drawable, largest, shape_of, size_notes, sized
from scoretune.models.tiny import flux, stable_diffusion_xl
from scoretune.models.toy import Gaussian
from scoretune.policy import Policy
from scoretune.rewards.pixels import brightness
from scoretune.rollout import prior
from scoretune.training import build
from scoretune.training.credit.outcome import GroupCredit
from scoretune.training.overrides import changed
from scoretune.training.sources.on_policy import OnPolicy

KINDS = (pytest.param("sdxl", marks=pytest.mark.slow), "flux")
BUILDERS = {"sdxl": stable_diffusion_xl.build, "flux": flux.build}
WIDE, TALL, OWN = Size(64, 32), Size(32, 64), Size(32, 32)
ROWS = (("a red circle", WIDE), ("a dark sky", OWN), ("a red circle", TALL), ("two cats", WIDE))


class Folders(dict[str, Path]):
    """A tiny model of each kind, built when it is asked for."""

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home

    def __missing__(self, kind: str) -> Path:
        self[kind] = BUILDERS[kind](self.home / kind)
        return self[kind]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Folders:
    return Folders(tmp_path_factory.mktemp("sizes"))


def written(folder: Path, rows, name: str = "prompts.csv") -> str:
    """A table of texts with their sizes, None for none."""
    with (folder / name).open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "width", "height"])
        for text, size in rows:
            table.writerow([text, *(("", "") if size is None else (size.width, size.height))])
    return str(folder / name)


def mixed() -> Prompts:
    texts = tuple(Prompt(text, size=size) for text, size in ROWS)
    return Prompts(texts, ("all",) * len(texts))


def policy_of(folder: Path, size: int | str = 0, guidance: float = 1.0) -> Policy:
    backbone = catalog.load_backbone(Model(source=str(folder), size=size))
    return Policy(backbone, GDDIM(1.0), guidance)


def run_of(recipe: str, folder: Path, prompts: str, *more: str) -> Run:
    changes = [*families.TINY, f"model.source={folder}", f"prompts={prompts}", *more]
    return changed(recipes.named(recipe), changes)


# ------------------------------------------------------------------------------------- files


def test_a_size_is_part_of_a_prompt_and_may_be_missing(tmp_path):
    rows = [*ROWS[:3], ("no size", None)]
    texts = read_prompts(written(tmp_path, rows)).texts
    assert [size_of(text) for text in texts] == [WIDE, OWN, TALL, None]
    assert texts[0] == "a red circle" and texts[0] != texts[2]
    assert len({identity(text) for text in texts}) == 4
    assert texts[0].metadata["width"] == "64"
    (tmp_path / "one.jsonl").write_text(
        '{"prompt": "a", "Width": 64.0, "HEIGHT": 32}\n{"prompt": "b", "width": null}\n'
    )
    assert [size_of(t) for t in read_prompts(str(tmp_path / "one.jsonl")).texts] == [WIDE, None]
    (tmp_path / "plain.txt").write_text("a\n")
    assert size_of(read_prompts(str(tmp_path / "plain.txt")).texts[0]) is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"width": 64}, "line 2: there is a width and no height: give both columns, or neither"),
        ({"height": 64, "width": ""}, "there is a height and no width"),
        ({"width": 0, "height": 64}, "the width must be a whole number of pixels from 1 to 8192"),
        ({"width": 64, "height": -8}, "the height must be a whole number"),
        ({"width": "wide", "height": 64}, "and is 'wide'; where the column is not of the picture"),
        ({"width": 64.5, "height": 64}, "the width must be a whole number"),
        ({"width": True, "height": 64}, "the width must be a whole number"),
        ({"width": 10**9, "height": 64}, "from 1 to 8192"),
        ({"width": 10**400, "height": 64}, "the width must be a whole number"),
    ],
)
def test_what_is_no_size_is_named_with_its_row(tmp_path, row, said):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n' + json.dumps({"prompt": "b", **row}) + "\n")
    with pytest.raises(UserError, match=said):
        read_prompts(str(file))


# ------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompts_size_is_that_of_a_model_of_that_size(folders, kind):
    """States, conditions with time ids or places, the shift of times, noise: all as if
    `model.size` were the prompt's."""
    one, other = policy_of(folders[kind], guidance=2.0), policy_of(folders[kind], "64x32", 2.0)
    prompts = [Prompt("a red circle", size=WIDE)]
    assert shape_of(one.backbone, prompts) == other.backbone.shape == (4, 4, 8)
    assert one.backbone.shape == (4, 4, 4)
    mine, theirs = one.encode(prompts), other.encode([str(prompts[0])])
    for own, their in ((mine.tokens, theirs.tokens), (mine.null, theirs.null)):
        for name, rows in their.rows.items():
            assert torch.equal(own.rows[name], rows), name
        for name, value in their.shared.items():
            assert not isinstance(value, torch.Tensor) or torch.equal(own.shared[name], value), name
    times = [deployed_times(one.backbone, 4, prompts), deployed_times(other.backbone, 4)]
    assert torch.equal(*times)
    own_times = deployed_times(one.backbone, 4)
    assert torch.equal(own_times, times[0]) == (kind == "sdxl")  # FLUX shifts them by the size
    draw = torch.Generator().manual_seed(3)
    x = prior(one, 1, draw, shape_of(one.backbone, prompts))
    t = torch.full((1,), one.backbone.process.horizon / 2)
    assert torch.equal(one.estimate(x, t, mine).data, other.estimate(x, t, theirs).data)
    plain = one.encode(["a red circle"])  # its own size is as it was
    assert torch.equal(plain.tokens.rows[plain.tokens.summary], mine.summary)
    with pytest.raises(ValueError, match="one batch ask for pictures of 3 shapes"):
        shape_of(one.backbone, mixed().texts)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_two_sizes_are_those_drawn_alone_from_the_same_noise(folders, kind):
    policy, run = policy_of(folders[kind]), recipes.named("ddpo")
    settings = {"evaluation": run.evaluation.model_copy(update={"steps": 2}), "metrics": {}}
    sampling = run.sampling.model_copy(update={"steps": 2})
    settings |= {"sampling": sampling, "reward": brightness, "reward_name": "brightness"}
    both = measure(policy, mixed(), **settings)
    assert [list(places) for places, _ in both.parts] == [[0, 3], [1], [2]]
    seen = []
    for places, some in by_size(policy.backbone, mixed()):
        size = size_of(some.texts[0])
        alone = policy_of(folders[kind], str(size))
        texts = Prompts(tuple(map(str, some.texts)), some.tasks)
        there = measure(alone, texts, **settings)
        drawn = next(one for where, one in both.parts if where == places)
        assert torch.equal(drawn.images, there.images)
        assert drawn.images.shape[-2:] == (size.height, size.width)
        for ours, theirs in (
            (both.values["reward"], there.values["reward"]),
            (both.stochastic, there.stochastic),
            (both.ode, there.ode),
        ):
            assert torch.equal(ours[list(places)], theirs)
        seen.append((places, there.images))
    assert torch.equal(both.images, on_canvas(seen)) and both.images.shape == (4, 3, 64, 64)
    assert len(both.of_each_size) == 3


def test_prompts_of_two_sizes_are_read_once_and_the_encoders_let_go(folders):
    policy, texts = policy_of(folders["flux"], guidance=1.0), mixed().texts
    before = {text: policy.encode([text]) for text in texts}
    times = {text: deployed_times(policy.backbone, 3, [text]) for text in texts}
    policy.backbone.cache_prompts(texts)
    assert policy.backbone.pipeline.text_encoder is None
    with pytest.raises(UserError, match="was not encoded before the text encoders were let go"):
        policy.encode([Prompt("a red circle", size=Size(96, 64))])
    for text in texts:
        kept = policy.encode([text])
        for name, rows in before[text].tokens.rows.items():
            assert torch.equal(kept.tokens.rows[name], rows)
        assert torch.equal(kept.tokens.shared["img_ids"], before[text].tokens.shared["img_ids"])
        assert torch.equal(deployed_times(policy.backbone, 3, [text]), times[text])


@pytest.mark.parametrize(
    ("kind", "size", "said"),
    [
        (
            "flux",
            Size(60, 32, "row 7"),
            "row 7: it asks for 60x32, and the sides of a FluxPipeline",
        ),
        ("flux", Size(60, 32), "multiples of 16: the nearest that work are 48x32 and 64x32"),
        ("flux", Size(4, 40), "multiples of 16: the nearest that work are 16x32 and 16x48"),
    ],
)
def test_sides_that_the_autoencoder_does_not_divide(folders, kind, size, said):
    backbone = policy_of(folders[kind]).backbone
    with pytest.raises(UserError, match=said):
        check_drawable(backbone, ["plain", Prompt("a", size=size)])
    check_drawable(backbone, mixed().texts)


def test_the_first_row_of_a_size_is_named(folders):
    rows = [Prompt(f"p{i}", size=Size(60, 32, f"row {i}")) for i in (2, 5)]
    with pytest.raises(UserError, match="row 2: it asks for 60x32"):
        check_drawable(policy_of(folders["flux"]).backbone, rows)


def test_gradients_of_every_size_go_through_the_slope_decoder(folders, tmp_path):
    small = tiny_autoencoder.build(tmp_path / "little", latent_channels=4, blocks=4)
    run = run_of("draft", folders["flux"], "none", f"model.slope_decoder={small}")
    backbone: Any = build.build_policy(run, torch.device("cpu")).backbone
    assert backbone.in_size_of([Prompt("a", size=WIDE)]).slope_decoder is backbone.slope_decoder
    for size in (WIDE, TALL):
        prompts = [Prompt("a", size=size)]
        x0 = torch.randn(
            2, *shape_of(backbone, prompts), generator=torch.Generator().manual_seed(0)
        )
        for model in (backbone, sized(backbone, prompts)):
            place, other = x0.clone().requires_grad_(), x0.clone().requires_grad_()
            pictures = model.decode(place)
            assert torch.equal(pictures, model.decode(x0))
            toward = torch.randn_like(pictures)
            (slope,) = torch.autograd.grad((pictures * toward).sum(), place)
            through = decoded(backbone.slope_decoder, other)
            (expected,) = torch.autograd.grad((through * toward).sum(), other)
            assert torch.equal(slope, expected) and slope.abs().sum() > 0


def test_models_of_one_shape_refuse_sizes(tmp_path):
    from scoretune.models.tiny import unconditional

    pixels = catalog.load_backbone(Model(source=str(unconditional.build(tmp_path / "pixels"))))
    toy = Gaussian(VP())
    asks = [Prompt("", size=Size(32, 32, "row 2"))]
    for backbone, said in ((pixels, "draws one size alone"), (toy, "draws states of one shape")):
        with pytest.raises(UserError, match=f"row 2: it asks for 32x32, and .* {said}"):
            check_drawable(backbone, asks)
        check_drawable(backbone, [""])
        assert sized(backbone, [""]) is backbone


# ------------------------------------------------------------------------------------ rounds


def paths(policy: Policy, prompts: Prompts, sizes: Sizes) -> OnPolicy:
    return OnPolicy(
        policy=policy,
        prompts=prompts,
        reward=brightness,
        reward_name="brightness",
        credit=GroupCredit(sizes.group),
        times=torch.tensor([1.0, 0.5]),
        sizes=sizes,
        seed=3,
        choose=lambda path, generator: None,
    )


def test_rounds_are_of_one_size_and_ask_every_prompt_equally_often(folders):
    policy = policy_of(folders["flux"])
    sizes = (*(WIDE,) * 5, *(OWN,) * 3, TALL, None)  # no size is the model's own, as OWN is
    texts = tuple(Prompt(f"prompt {i}", size=size) for i, size in enumerate(sizes))
    prompts = Prompts(texts, ("all",) * len(texts))
    source, asked = paths(policy, prompts, Sizes(prompts=3, group=2)), Counter[str]()
    again = paths(policy, prompts, Sizes(prompts=3, group=2))
    for round_ in range(60):
        state = source.state()
        drawn = source._next_prompts()
        assert drawn[::2] == drawn[1::2] and len(drawn) == 6
        assert len({shape_of(policy.backbone, [text]) for text in drawn}) == 1
        if round_ % 7 == 0:  # resumed there, it goes on alike
            again.restore(state)
        assert again._next_prompts() == drawn
        asked.update(drawn[::2])
    waiting = Counter(prompts.texts[place] for place in source.waiting)
    laps = [asked[text] + waiting[text] for text in texts]
    assert max(laps) - min(laps) <= 1 and sum(laps) == source.cursor
    assert len(source.waiting) <= 3 * 2
    assert source.noise(drawn, torch.Generator().manual_seed(0)).shape[1:] == shape_of(
        policy.backbone, drawn
    )


def test_prompts_of_one_size_come_in_the_order_they_always_had(folders):
    policy = policy_of(folders["flux"])
    plain = Prompts(tuple("abcdefg"), ("all",) * 7)
    own = Prompts(tuple(Prompt(text, size=OWN) for text in plain.texts), plain.tasks)
    sources = [paths(policy, prompts, Sizes(prompts=3, group=1)) for prompts in (plain, own)]
    for _ in range(9):
        one, other = (source._next_prompts() for source in sources)
        assert [*map(str, one)] == [*map(str, other)]
    assert sources[0].cursor == sources[1].cursor == 27
    assert not sources[0].waiting and not sources[1].waiting


def test_a_resumed_run_of_fewer_prompts_an_update_takes_those_that_wait_first(folders):
    policy = policy_of(folders["flux"])
    texts = tuple(Prompt(f"p{i}", size=size) for i, size in enumerate((WIDE,) * 5 + (OWN,) * 7))
    prompts = Prompts(texts, ("all",) * len(texts))
    source = paths(policy, prompts, Sizes(prompts=2, group=1))
    source.restore({"cursor": 12, "waiting": [0, 1, 2, 3, 4], "credit": source.credit.state()})
    drawn = [source._next_prompts() for _ in range(2)]
    assert drawn == [["p0", "p1"], ["p2", "p3"]]  # not all five, which no update has room for
    assert source.waiting == [4] and source.cursor == 12
    assert len(source._next_prompts()) == 2


def test_too_few_prompts_of_a_size_are_said(folders):
    backbone = policy_of(folders["flux"]).backbone
    first, second = size_notes(backbone, mixed(), 2)
    assert first == (
        "prompts of 3 sizes, of which every update has one: 64x32 (2), 32x32 (1), 32x64 (1)"
    )
    assert second.startswith("32x32, 32x64: fewer prompts than sizes.prompts=2")
    assert len(size_notes(backbone, mixed(), 1)) == 1
    assert size_notes(backbone, Prompts(("a", Prompt("b", size=OWN)), ("all",) * 2), 9) == ()
    assert len(largest(backbone, mixed().texts).shape) == 3
    assert largest(backbone, mixed().texts).shape != backbone.shape
    common = diversity_prompts(mixed())
    assert {size_of(text) for text in common.texts} == {WIDE}


# -------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "recipe", ["ddpo", pytest.param("score_as_action", marks=pytest.mark.slow)]
)
def test_a_run_on_two_sizes_learns_and_resumes_exactly(folders, tmp_path, kind, recipe):
    rows = [("a red circle", WIDE), ("a dark sky", TALL), ("two cats", WIDE), ("a tree", TALL)]
    prompts = written(tmp_path, rows)
    run = run_of(recipe, folders[kind], prompts, "sampling.eta=0.5")
    families._train(run, tmp_path / "whole")
    lines = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert all(line["grad_norm"] > 0 for line in lines)
    families._train(run, tmp_path / "halves", until=1)
    families._train(run, tmp_path / "halves")
    ends = [
        checkpoints.load(checkpoints.latest(tmp_path / each / "checkpoints"))
        for each in ("whole", "halves")
    ]
    assert ends[0]["policy"].keys() == ends[1]["policy"].keys()
    assert all(torch.equal(ends[0]["policy"][n], ends[1]["policy"][n]) for n in ends[0]["policy"])
    shown = json.loads((tmp_path / "whole/previews/prompts.json").read_text())
    assert (shown["side"], shown["width"]) == (64, 64)
    said = draw(tmp_path / "whole", read_prompts(prompts).texts[:2], tmp_path / "out.png", steps=1)
    assert "2 pictures" in said
    with Image.open(tmp_path / "out.png") as strip:
        assert strip.size == (2 * 128, 128)


@pytest.mark.slow
def test_sizes_that_are_the_models_own_change_nothing(folders, tmp_path):
    """A table whose rows all ask for `model.size` trains to the bit as one without the columns."""
    weights = []
    for name, size in (("plain", None), ("sized", WIDE)):
        prompts = written(tmp_path, [(text, size) for text, _ in ROWS[1:]], f"{name}.csv")
        run = run_of("ddpo", folders["sdxl"], prompts, "model.size=64x32")
        families._train(run, tmp_path / name)
        newest = checkpoints.latest(tmp_path / name / "checkpoints")
        weights.append(checkpoints.load(newest)["policy"])
        lines = (tmp_path / name / "evaluations.jsonl").read_text().splitlines()
        weights[-1]["rewards"] = torch.tensor(
            [json.loads(line)["reward"]["deterministic"] for line in lines]
        )
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_data_of_one_size_and_a_store_refuse_sizes(folders, tmp_path, command):
    prompts = written(tmp_path, ROWS)
    changes = [f"model.source={folders['flux']}", f"prompts={prompts}", "reward=brightness"]
    done = command("train", "dxmi", *changes, "--run", tmp_path / "run")
    assert done.code == 2 and "recipe 'dxmi' compares samples with data of one size" in done.err
    done = command(
        *("feedback", "collect", folders["flux"], f"prompts={prompts}"),
        *("--store", tmp_path / "store"),
    )
    assert done.code == 2 and "a store has pictures of one size" in done.err


@pytest.mark.slow
def test_a_run_on_two_sizes_follows_a_slope_decoder(folders, tmp_path):
    small = tiny_autoencoder.build(tmp_path / "little", latent_channels=4, blocks=4)
    prompts = written(tmp_path, [("a red circle", WIDE), ("a dark sky", TALL)] * 2)
    run = run_of("draft", folders["flux"], prompts, f"model.slope_decoder={small}")
    families._train(run, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert lines and all(line["grad_norm"] > 0 for line in lines)


def test_a_plan_refuses_a_size_that_cannot_be_drawn(folders, tmp_path, command):
    prompts = written(tmp_path, [("a", OWN), ("b", Size(60, 32))])
    settings = [f"model.source={folders['flux']}", f"prompts={prompts}", "reward=brightness"]
    done = command("plan", "ddpo", *settings)
    assert done.code == 2 and not done.out
    assert "row 3: it asks for 60x32, and the sides of a FluxPipeline" in done.err


@pytest.mark.slow
def test_a_plan_is_for_the_largest_size(folders, tmp_path):
    prompts = written(tmp_path, [("a", None), ("b", WIDE), ("c", Size(96, 64))])
    run = run_of("ddpo", folders["sdxl"], prompts)
    forecast = planned(run, seconds=0)
    assert forecast["size"] == "96x64"
    assert ("size", "96x64, the largest that prompts ask for: what follows is of that") in lines_of(
        forecast
    )
    same = planned(run_of("ddpo", folders["sdxl"], prompts, "model.size=96x64"), seconds=0)
    assert forecast["memory"] == same["memory"]
    plain = run_of("ddpo", folders["sdxl"], written(tmp_path, [("a", None)], "plain.csv"))
    unsized = planned(plain, seconds=0)
    assert unsized["size"] == "" and unsized["memory"]["peak"] < forecast["memory"]["peak"]
    assert "size" not in dict(lines_of(unsized))


# ---------------------------------------------------------------------------------- pictures


def test_pictures_of_several_sizes_lie_in_the_middle_of_one_canvas():
    wide, tall = torch.zeros(2, 3, 2, 6), torch.full((1, 3, 4, 2), 0.5)
    canvas = on_canvas([((0, 2), wide), ((1,), tall)])
    assert canvas.shape == (3, 3, 4, 6)
    assert torch.equal(canvas[0, :, 1:3], wide[0]) and bool((canvas[0, :, [0, 3]] == 1).all())
    assert torch.equal(canvas[1, :, :, 2:4], tall[0]) and bool((canvas[1, :, :, :2] == 1).all())
    assert on_canvas([((0, 1), wide)]) is wide
    assert source_pictures(["a"], 4) is None


def test_samples_refuse_a_batch_of_two_sizes(folders):
    policy = policy_of(folders["flux"])
    times = deployed_times(policy.backbone, 1)
    with pytest.raises(ValueError, match="of 3 shapes"):
        sample(policy, mixed(), times=times, seed=0)
