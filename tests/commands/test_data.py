"""`scoretune data check` and `data resample`, through the command itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from judgement_tables import bomb, lines, parquet, picture
from scoretune.commands.data.resample import Resampling, resample
from scoretune.commands.data.tally import agreement, wilson
from scoretune.core.errors import UserError
from scoretune.data.pairs import read_pairs
from scoretune.data.text_pairs import read_text_pairs


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of one's own to run in, with pictures of levels 0, 10, …"""
    for level in range(0, 60, 10):
        (tmp_path / f"{level}.png").write_bytes(picture(level))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def checked(command, here):
    """What `scoretune data check --json` says of rows, and with which code it ends."""

    def run(rows, name: str = "pairs.jsonl"):
        lines(here / name, rows)
        outcome = command("data", "check", name, "--json")
        assert outcome.out, outcome.err
        return json.loads(outcome.out), outcome.code

    return run


def sides(first: object, second: object, label: object, rater: str = "", **more):
    row = {"caption": "a cat", "image_0": f"{first}.png", "image_1": f"{second}.png"}
    return {**row, "label": label, **({"rater": rater} if rater else {}), **more}


# ---------------------------------------------------------------------------------- check


def test_pairs_of_pictures_are_counted(checked, command, here):
    (here / "copy.png").write_bytes(picture(10))
    (here / "wide.png").write_bytes(picture(20, 16, 16))
    said, code = checked(
        [
            *(sides(10, 20, label, rater) for label, rater in ((1, "a"), (1, "b"), (0, "c"))),
            sides(20, 10, 0, "a"),  # what a has said already
            sides(30, 40, 0.5, "a"),
            sides(30, "wide", 0, "b", caption="a dog"),
            sides(10, "copy", 0.5, "c"),
        ]
    )
    assert code == 0 and said["kind"] == "pairs of pictures" and not said["refusal"]
    counts = {"rows": 7, "pairs": 4, "prompts": 2, "ties": 2, "disputed": 1, "repeated": 1}
    assert counts.items() <= said.items() and said["identical"] == 1 and said["two_sizes"] == 1
    assert said["labels"] == {"mean": 3 / 7, "first": 2, "second": 3, "ties": 2, "soft": 0}
    assert said["position"]["first"] == 0.4 and said["position"]["of"] == 5
    assert said["raters"]["named"] == 3 and said["raters"]["agreement"]["compared"] == 6
    assert said["raters"]["agreement"]["share"] == 0.5
    assert said["sizes"][0] == {"width": 8, "height": 8, "count": 13}
    shown = command("data", "check", ".").out
    assert "the first is preferred in 40.0 % of 5 (95 % interval 11.8 to 76.9 %)" in shown
    assert "1 pairs of two sizes, which training scales alike" in shown
    assert shown.endswith("can be learned from\n")


def test_what_it_counts_is_what_training_reads(checked, here):
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(0, 4, (80, 2), generator=generator).tolist()
    rows = [
        sides(10 * a, 10 * b, (0, 0.5, 1)[(a + i) % 3], "xyz"[i % 3], weight=1 + i % 2)
        for i, (a, b) in enumerate(places)
        if a != b
    ]
    said, _ = checked(rows)
    table = read_pairs("pairs.jsonl")
    assert said["pairs"] == len(table) and said["ties"] == int((table.labels == 0.5).sum())
    assert len(read_pairs("pairs.jsonl", ties="drop")) == said["pairs"] - said["ties"]


def test_broken_rows_are_named_and_training_refuses_them(checked, command, here):
    (here / "cut.png").write_bytes(picture(1, 64, 64)[:50])
    (here / "bomb.png").write_bytes(bomb())
    (here / "tall.png").write_bytes(picture(20, 8, 16))
    (here / "copy.png").write_bytes(picture(10))
    bad = [sides(10, x, 1) for x in ("cut", "bomb", "tall", "copy", "none", 10)]
    said, code = checked([sides(10, 20, 1), *bad, sides(10, 20, 2), sides(10, 20, 0)])
    assert code == 1 and [row["row"] for row in said["broken"]] == [
        f"line {i}" for i in range(2, 9)
    ]
    assert said["identical"] == 2 and said["pairs"] == 1
    wanted = ("cannot read", "at most", "differ in shape", "identical", "no picture", "identical")
    for row, words in zip(said["broken"], (*wanted, "must lie in [0, 1]"), strict=True):
        assert (
            words in row["problem"] and len(row["problem"]) <= 300 and "jsonl" not in row["problem"]
        )
    assert said["refusal"].startswith("7 of 9 rows cannot be read, and training refuses the file")
    shown = command("data", "check", "pairs.jsonl")
    assert shown.code == 1 and "line 4: the pictures of the pair differ in shape" in shown.out


@pytest.mark.parametrize(
    ("rows", "refusal"),
    [
        ([sides(10, 20, 0.5), sides(20, 30, 0.5)], "all pairs are ties"),
        ([sides(10, 20, 1), sides(10, 20, 0)], "all pairs are ties"),
        ([sides(10, 20, 1, has_label=False)], "no row was judged"),
    ],
)
def test_it_ends_with_1_where_nothing_can_be_learned(checked, rows, refusal):
    said, code = checked(rows)
    assert code == 1 and refusal in said["refusal"]


def test_parquet_with_bytes_and_likes(checked, command, here):
    likes = [{"prompt": "a", "image": f"{k}0.png", "liked": k == 1} for k in (1, 2)]
    said, code = checked(likes, "likes.jsonl")
    assert code == 0 and said["kind"] == "liked pictures" and said["labels"]["first"] == 1
    pytest.importorskip("pyarrow")
    columns = {
        "caption": ["a", "b", "c"],
        "jpg_0": [picture(1), picture(2), b"no picture"],
        "jpg_1": [picture(3), picture(2), picture(4)],
        "label_0": [1.0, 0.0, 0.0],
    }
    outcome = command("data", "check", parquet(here / "p.parquet", columns, 2), "--json")
    said = json.loads(outcome.out)
    assert outcome.code == 1 and said["identical"] == 1 and said["pairs"] == 1
    assert [row["row"] for row in said["broken"]] == ["row 2", "row 3"]


def test_pairs_of_texts_have_lengths(checked, command):
    rows = [
        {"prompt": "a", "chosen": "long" * k, "rejected": "s" * 3 * k, "rater": "x"}
        for k in range(1, 12)
    ]
    said, code = checked(rows)
    assert code == 0 and said["kind"] == "pairs of texts" and said["position"] is None
    assert said["lengths"][0] == {"median": 24, "p90": 40, "longest": 44}
    assert said["longer"]["preferred"] == 1 and said["longer"]["low"] > 0.7
    shown = command("data", "check", "pairs.jsonl").out
    assert (
        "the longer is preferred in 100.0 % of 11 (95 % interval 74.1 to 100.0 %): a bias" in shown
    )
    bad = [{**rows[0], "chosen": ""}, {**rows[0], "rejected": "long"}, {**rows[0], "chosen": 3}]
    said, code = checked([*rows, *bad])
    assert code == 1 and said["empty"] == 1 and said["identical"] == 1 and len(said["broken"]) == 3


def test_single_completions(checked):
    rows = [{"prompt": "a", "completion": k, "label": k == "b"} for k in "bcd"]
    said, code = checked(rows)
    assert code == 0 and said["kind"] == "liked texts" and said["labels"]["second"] == 2


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("none.jsonl", None, "cannot read 'none.jsonl' (No such file or directory)"),
        ("pairs.json", "[[[[" * 2000, "nested too deep"),
        ("pairs.json", '{"a": 1}', "holds no list"),
        ("pairs.jsonl", "", "is empty: write one pair a row"),
        ("pairs.jsonl", '{"chosen": 1', "line 1, is not JSON"),
        ("pairs.jsonl", '{"chosne": "a", "rejectd": "b"}', "did you mean 'chosne'?"),
        ("pairs.csv", "prompt,chosen,rejected\na,b\n", "row 2: 2 cells where the first row has 3"),
        ("pairs.parquet", "PAR1 and no more", "cannot read 'pairs.parquet'"),
        (
            "pairs.jsonl",
            '{"prompt": "a", "samples": [], "scores": []}',
            "data resample pairs.jsonl",
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(command, here, name, text, said):
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    if text is not None:
        (here / name).write_text(text)
    outcome = command("data", "check", name)
    assert outcome.code == 2 and said in outcome.err and not outcome.out
    assert outcome.err.startswith("scoretune: ") and len(outcome.err.splitlines()) == 1
    assert len(outcome.err) <= 312


def test_the_interval_of_a_share_covers_it_as_often_as_it_says():
    share, low, high = wilson(15, 50)  # Newcombe 1998, table I, method 3: 0.1910 to 0.4375
    assert (share, round(low, 4), round(high, 4)) == (0.3, 0.1910, 0.4375)
    assert wilson(0, 20)[1] == pytest.approx(0, abs=1e-12) and wilson(20, 20)[2] <= 1
    generator = torch.Generator().manual_seed(0)
    for chance in (0.1, 0.5):
        drawn = (torch.rand(4000, 60, generator=generator) < chance).sum(1).tolist()
        covered = sum(low <= chance <= high for _, low, high in (wilson(k, 60) for k in drawn))
        assert abs(covered / 4000 - 0.95) < 0.02


def test_raters_who_toss_coins_agree_not_beyond_chance():
    generator = torch.Generator().manual_seed(0)
    votes = torch.multinomial(torch.tensor([0.4, 0.4, 0.2]), 5 * 4000, True, generator=generator)
    groups = torch.nn.functional.one_hot(votes.view(-1, 5), 3).sum(1).tolist()
    tossed = agreement(groups)
    assert tossed["share"] == pytest.approx(0.36, abs=0.01)
    assert tossed["beyond_chance"] == pytest.approx(0, abs=0.02)
    assert agreement([[3, 0, 0], [0, 2, 0]])["beyond_chance"] == 1
    assert agreement([[1, 0, 0], [0, 1, 0]]) is None
    swapped = [[b, a, t] for a, b, t in groups]
    assert agreement(swapped) == tossed, "which side is first means nothing"


# ------------------------------------------------------------------------------- resample


def pools(count: int = 1, scores=(0.0, 1.0, 2.0, 3.0)):
    samples = [f"answer {k}" for k in range(len(scores))]
    return [{"prompt": f"p{i}", "samples": samples, "scores": list(scores)} for i in range(count)]


def test_samples_become_pairs_that_training_reads(command, here):
    lines(here / "samples.jsonl", pools(20))
    outcome = command("data", "resample", "samples.jsonl", "--seed", 1, "--json")
    said = json.loads(outcome.out)
    assert outcome.code == 0 and said["pairs"] == 20 and said["mean_score_of_samples"] == 1.5
    pairs = read_text_pairs("pairs.jsonl")
    assert len(pairs) == 20 and (pairs.scores[:, 0] > pairs.scores[:, 1]).all()
    assert pairs.scores.diff().mean() == -said["mean_gap"]
    first = Path("pairs.jsonl").read_bytes()
    assert command("data", "resample", "samples.jsonl", "--seed", 1).code == 2, "nothing is lost"
    for seed, same in ((1, True), (2, False)):
        command("data", "resample", "samples.jsonl", "--seed", seed, "--out", f"{seed}.jsonl")
        assert (Path(f"{seed}.jsonl").read_bytes() == first) == same


def test_a_temperature_of_0_takes_the_best_and_a_high_one_any(here):
    where, out = lines(here / "samples.jsonl", pools(300)), here / "pairs.jsonl"
    cold = resample(where, Resampling(0.0, 2), out)
    assert all((r["score_chosen"], r["score_rejected"]) == (3, 2) for r in cold.rows)
    hot = resample(where, Resampling(1e6, 2), out).as_dict()
    assert hot["mean_score_of_accepted"] == pytest.approx(1.5, abs=0.15)
    assert hot["mean_gap"] == pytest.approx(5 / 3, abs=0.15), "of two of four, any"
    everyone = resample(where, Resampling(1.0, 4, pairing="tournament"), out)
    assert len(everyone.rows) == 900 and resample(where, Resampling(1.0, 4), out).rows[0] == {
        "prompt": "p0",
        "chosen": "answer 3",
        "rejected": "answer 0",
        "score_chosen": 3,
        "score_rejected": 0,
    }


def test_the_first_accepted_follows_the_tilted_law(here):
    """P(i first) ∝ e^{r_i/τ}, so the better of two accepted has a law in closed form."""
    scores, tau = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), 0.7
    where = lines(here / "samples.jsonl", pools(1500, scores.tolist()))
    found = resample(where, Resampling(tau, 2, percentile=False), here / "pairs.jsonl")
    p = (scores / tau).softmax(0)
    left_out = [
        p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b]) for a, b in ((1, 2), (0, 2), (0, 1))
    ]
    drawn = [(r["score_rejected"], r["score_chosen"]) for r in found.rows]
    for pair, chance in zip(((0.5, 1.0), (0.0, 1.0), (0.0, 0.5)), left_out, strict=True):
        error = 4 * (float(chance) * (1 - float(chance)) / 1500) ** 0.5
        assert abs(drawn.count(pair) / 1500 - float(chance)) < error


def test_ranks_do_not_care_for_the_unit_of_scores(here):
    rows = []
    for scale in (1.0, 1000.0):
        scores = [scale * s**3 for s in (0.1, 0.5, 2.0, 0.3, 1.0)]
        where = lines(here / "s.jsonl", pools(50, scores))
        rows.append([r["chosen"] for r in resample(where, Resampling(), here / "p.jsonl").rows])
    assert rows[0] == rows[1]


def test_pictures_keep_their_place(command, here):
    rows = [{"prompt": "a", "images": ["10.png", "20.png"], "scores": [2, 1]}]
    lines(here / "samples.jsonl", rows)
    (here / "elsewhere").mkdir()
    assert command("data", "resample", "samples.jsonl", "--out", "elsewhere/p.jsonl").code == 0
    first, second = read_pairs("elsewhere/p.jsonl").load([0])
    assert [round(255 * float(x.mean())) for x in (first, second)] == [10, 20]


def test_the_names_of_simpo_s_data_and_messages(command, here):
    pytest.importorskip("pyarrow")
    columns = {
        "prompt": ["a", "b"],
        "all_generated_responses": [["x", "y", "z"], ["x", "y", "z"]],
        "all_rm_scores": [[0.1, 0.2, 0.3], [0.2, 0.2, 0.2]],
    }
    where = parquet(here / "s.parquet", columns)
    outcome = command("data", "resample", where, "--out", "p.parquet", "--candidates", 3)
    assert "1 pairs of 2 prompts in p.parquet, 1 of equal score left out" in outcome.out
    pairs = read_text_pairs("p.parquet")
    assert pairs.chosen == ("z",) and pairs.rejected == ("x",)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"scores": [1, float("nan"), 2, 3]},
            "line 1: 'scores' must be a finite number, and is nan",
        ),
        ({"scores": [1, 2]}, "line 1: 4 samples and 2 scores: give one score a sample"),
        ({"scores": 3}, "line 1: 'scores' must be a list, and is 3"),
        ({"samples": ["a"], "scores": [1]}, "line 1: a pair needs two samples, and there is 1"),
        ({"samples": ["a", "", "b", "c"]}, "line 1: 'samples' is empty"),
        ({"samples": ["a.png"] * 4}, "line 1: there is no picture samples 'a.png'"),
        ({"samples": ["a", 1, {}, None]}, "line 1: 'samples' must be a text or a list of messages"),
        ({"scores": [1, 1, 1, 1]}, "no two accepted samples differ in score"),
        ({"scores": None, "score": [1]}, "line 1: 'scores' must be a list, and is missing"),
    ],
)
def test_samples_that_make_no_pairs_are_one_line(command, here, row, said):
    lines(here / "samples.jsonl", [{**pools()[0], **row}])
    outcome = command("data", "resample", "samples.jsonl")
    assert outcome.code == 2 and said in outcome.err and len(outcome.err.splitlines()) == 1
    assert not Path("pairs.jsonl").exists() and len(outcome.err) <= 312


def test_options_of_resampling_that_make_no_sense(command, here):
    lines(here / "samples.jsonl", pools())
    for options, said in (
        (("--candidates", 9), "4 samples, and --candidates asks for 9: lower it"),
        (("--candidates", 1), "makes no pair"),
        (("--pairing", "extrems"), "did you mean 'extremes'"),
        (("--out", "pairs.txt"), "must end in .jsonl or .parquet"),
        (("--out", "none/pairs.jsonl"), "there is no folder 'none'"),
        (("--temperature", -1), "Invalid value for '--temperature'"),
    ):
        outcome = command("data", "resample", "samples.jsonl", *options)
        assert outcome.code == 2 and said in outcome.err, outcome.err
    with pytest.raises(UserError, match="has no column samples, images, responses or all_gen"):
        resample(lines(here / "x.jsonl", [{"prompt": "a", "scores": []}]), Resampling(), here)
