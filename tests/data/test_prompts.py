"""Prompts from files of every kind, what they say beside, and the order they are asked in."""

from __future__ import annotations

import copy
import gzip
import json
import os
import sys
from collections import Counter
from types import ModuleType, SimpleNamespace

import pytest
import torch
from PIL import Image

from judgement_tables import Split
from scoretune.core.errors import UserError
from scoretune.data import formats, source_pictures
from scoretune.data.datasets import read_data
from scoretune.data.prompts import Prompt, Prompts, in_laps, order, read_prompts
from scoretune.data.scenes import edit_lessons
from scoretune.data.scenes.edits import KINDS, edits_by_instruction
from scoretune.rewards.catalog import named_reward

GENEVAL = [
    {"tag": "counting", "include": [{"class": "cup", "count": 2}], "prompt": "two cups"},
    {
        "tag": "color_attr",
        "include": [{"class": "dog", "count": 1, "color": "red"}],
        "exclude": [{"class": "dog", "count": 2}],
        "prompt": "a red dog",
    },
]


@pytest.fixture
def write(tmp_path):
    """Writes a file of that name and gives its path."""

    def to(name: str, text: str | bytes) -> str:
        payload = text.encode() if isinstance(text, str) else text
        path = tmp_path / name
        path.write_bytes(gzip.compress(payload) if name.endswith(".gz") else payload)
        return str(path)

    return to


def lines(items: list[dict[str, object]]) -> str:
    return "".join(json.dumps(item) + "\n" for item in items)


def parquet(path, columns: dict[str, object]) -> str:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


# ------------------------------------------------------------------------------ prompts


def test_a_prompt_is_its_text_and_carries_what_was_said_beside():
    prompt = Prompt("a cat", {"tag": "animals"})
    assert prompt == "a cat" and hash(prompt) == hash("a cat") and {prompt: 1}["a cat"] == 1
    assert isinstance(prompt, str) and json.dumps([prompt]) == '["a cat"]'
    assert (prompt,)[-1].metadata == {"tag": "animals"} == copy.deepcopy(prompt).metadata
    assert Prompt("a dog").metadata == {} and type(prompt[2:]) is str


def test_prompts_of_two_arguments_have_equal_weights_and_empty_metadata():
    prompts = Prompts(("a", "b"), ("x", "y"))
    assert prompts.weights == (1.0, 1.0) and prompts.texts == ("a", "b") and len(prompts) == 2
    assert [text.metadata for text in prompts.texts] == [{}, {}]
    with pytest.raises(ValueError, match="a task each"):
        Prompts(("a", "b"), ("x",))
    with pytest.raises(ValueError, match="above 0"):
        Prompts(("a", "b"), ("x", "y"), (1.0, 0.0))


def test_a_reward_of_the_old_signature_reads_the_metadata(write, tmp_path, monkeypatch):
    module = "def of(images, prompts):\n    return images.new_tensor([p.metadata['goal'] for p in "
    (tmp_path / "scores_by_row.py").write_text(module + "prompts])\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    told = read_prompts(write("p.jsonl", lines([{"prompt": "a", "goal": k} for k in range(3)])))
    reward = named_reward("scores_by_row:of")
    repeated = [text for text in told.texts[1:] for _ in range(2)]
    assert reward(torch.zeros(4, 3, 2, 2), repeated).tolist() == [1, 1, 2, 2]


def test_few_are_spread_over_each_task():
    prompts = Prompts(tuple("abcdefg"), ("x",) * 5 + ("y",) * 2, (1, 2, 3, 4, 5, 6, 7))
    assert prompts.few(2).texts == ("a", "c", "f", "g") and prompts.few(2).weights == (1, 3, 6, 7)
    assert prompts.few(0) == prompts == prompts.few(9)


# -------------------------------------------------------------------------------- order


def test_texts_come_lap_after_lap():
    prompts = Prompts(("a", "b", "c"), ("all",) * 3)
    laps = [prompts.texts[place] for lap in range(3) for place in order(prompts, lap, 7)]
    assert in_laps(prompts, 7, seed=7) == laps[:7]
    assert sorted(in_laps(prompts, 3, seed=7)) == ["a", "b", "c"]
    assert in_laps(prompts, 2, seed=7) == laps[:2]


def test_equal_weights_keep_the_order_of_runs_of_before():
    for weights in ((), (2.5,) * 11):
        prompts = Prompts(("p",) * 11, ("all",) * 11, weights)
        for seed, lap in ((0, 0), (3, 1), (12, 40)):
            generator = torch.Generator().manual_seed(seed * 7919 + lap)
            assert order(prompts, lap, seed) == torch.randperm(11, generator=generator).tolist()


@pytest.mark.parametrize("weights", [(1, 2, 3, 4, 10), (0.001, 1, 1, 1, 1), (5, 1, 0.5, 0.5, 3)])
def test_weighted_passes_are_in_proportion(weights):
    prompts = Prompts(tuple("abcde"), ("all",) * 5, weights)
    expected = [5 * w / sum(weights) for w in weights]
    total: Counter[int] = Counter()
    for lap in range(400):
        found = order(prompts, lap, seed=1)
        assert len(found) == 5
        counts = Counter(found)
        assert all(abs(counts[i] - expected[i]) < 1 for i in range(5))
        total += counts
        assert all(abs(total[i] - (lap + 1) * expected[i]) < 3 for i in range(5))


def test_weighted_passes_are_shuffled_and_repeat_themselves():
    prompts = Prompts(tuple("abcdefgh"), ("all",) * 8, (8, 1, 1, 1, 1, 1, 1, 1))
    found = [order(prompts, lap, seed=0) for lap in range(50)]
    assert found == [order(prompts, lap, seed=0) for lap in range(50)]
    assert found != [order(prompts, lap, seed=1) for lap in range(50)]
    firsts = Counter(passed[0] for passed in found)
    assert 15 < firsts[0] < 38, "the heavy prompt is 8/15 of a pass, wherever one looks"


def test_no_offset_favours_anybody():
    weights = (1.0, 2.0, 4.0)
    prompts = Prompts(tuple("abc"), ("all",) * 3, weights)
    total = sum((Counter(order(prompts, 0, seed)) for seed in range(3000)), Counter())
    for i, weight in enumerate(weights):
        expected = 3 * weight / 7
        assert abs(total[i] / 3000 - expected) < 4 * 0.5 / 3000**0.5


# -------------------------------------------------------------------------------- files


def test_text_files_have_one_prompt_a_line(write):
    odd = "a cat\r\n\n  a dog \ncaf\u00e9, \u2028 with a separator\na cat"
    for name in ("p.txt", "p.prompts", "p.txt.gz", "p"):
        found = read_prompts(write(name, odd))
        assert found.texts == ("a cat", "a dog", "caf\u00e9, \u2028 with a separator", "a cat")
        assert set(found.tasks) == {"all"} and set(found.weights) == {1.0}
    assert read_prompts(write("bom.txt", b"\xef\xbb\xbfa cat")).texts == ("a cat",)


@pytest.mark.parametrize("column", ["prompt", "Prompt", "caption", "text", "Prompts"])
def test_tables_have_a_column_of_prompts(write, column):
    table = f'id,{column},weight,task\n7,"a cat, asleep",2,easy\n8,a dog,0.5,\n'
    found = read_prompts(write("p.csv.gz", table))
    assert found.texts == ("a cat, asleep", "a dog")
    assert found.weights == (2.0, 0.5) and found.tasks == ("easy", "all")
    assert found.texts[0].metadata == {
        "id": "7",
        column: "a cat, asleep",
        "weight": "2",
        "task": "easy",
    }


def test_the_column_prompt_goes_before_caption_and_text(write):
    assert read_prompts(write("p.csv", "text,caption,prompt\na,b,c\n")).texts == ("c",)


def test_quotes_of_a_tsv_are_characters_unless_they_wrap_a_cell(write):
    table = 'Prompt\tCategory\tChallenge\tNote\n"STOP" on a sign\tArts\tBasic\t\n'
    table += '"a ""big"" dog"\tAnimals\tQuantity\tof "Dogs"\n'
    found = read_prompts(write("parti.tsv", table))
    assert found.texts == ('"STOP" on a sign', 'a "big" dog')
    assert found.tasks == ("Arts", "Animals")
    assert found.texts[1].metadata["Note"] == 'of "Dogs"'


def test_geneval_metadata_comes_whole(write):
    for name in ("evaluation_metadata.jsonl", "test_metadata.jsonl.gz"):
        found = read_prompts(write(name, lines(GENEVAL)))
        assert found.texts == ("two cups", "a red dog")
        assert found.tasks == ("counting", "color_attr")
        assert [text.metadata for text in found.texts] == GENEVAL


def test_json_is_a_list_of_texts_or_objects_or_lists_by_their_style(write):
    assert read_prompts(write("a.json", '["a cat", "a dog"]')).texts == ("a cat", "a dog")
    tifa = '[{"id": "coco_1", "caption": "a cat"}, {"id": "coco_2", "caption": "a dog"}]'
    found = read_prompts(write("b.json.gz", tifa))
    assert found.texts == ("a cat", "a dog") and found.texts[1].metadata["id"] == "coco_2"
    styles = '{"anime": ["a cat", "a dog"], "photo": [{"prompt": "a cow", "weight": 3}]}'
    found = read_prompts(write("c.json", styles))
    assert found.texts == ("a cat", "a dog", "a cow") and found.weights == (1, 1, 3)
    assert found.tasks == ("anime", "anime", "photo")


def test_every_noun_meets_every_action(write):
    nouns, actions = write("nouns.txt", "cat\nant\n"), write("acts.txt", "riding a bike\nplaying\n")
    found = read_prompts(f"pairs:{nouns}:{actions}")
    assert found.texts == (
        "a cat riding a bike",
        "a cat playing",
        "an ant riding a bike",
        "an ant playing",
    )
    assert found.tasks == ("riding a bike", "playing") * 2
    assert found.texts[2].metadata == {"noun": "ant", "action": "riding a bike"}


def test_parquet_is_read_without_its_pictures(tmp_path):
    columns = {
        "image": [b"\x89PNG", b"\x89PNG"],
        "caption": ["a cat", "a dog"],
        "weight": [1, 3],
        "boxes": [[{"x": 1}], []],
    }
    found = read_prompts(parquet(tmp_path / "p.parquet", columns))
    assert found.texts == ("a cat", "a dog") and found.weights == (1.0, 3.0)
    row = {"caption": "a cat", "weight": 1, "boxes": [{"x": 1}]}
    assert found.texts[0].metadata == row
    packed = tmp_path / "q.parquet.gz"
    packed.write_bytes(gzip.compress((tmp_path / "p.parquet").read_bytes()))
    assert read_prompts(str(packed)) == found


# ----------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "payload", "said"),
    [
        ("p.txt", "", "is empty: write one prompt a line"),
        ("p.csv", "prompt,weight\n", "is empty"),
        ("p.json", "[]", "is empty"),
        ("p.csv", "id,promt\n1,a cat\n", "has id, promt: did you mean 'promt'?"),
        ("p.csv", "id,question\n1,a cat\n", "has id, question: name one 'prompt'"),
        ("p.csv", "prompt,task\na cat, asleep,easy\n", "row 2: 3 cells where the first row has 2"),
        ("p.tsv", "prompt\ttask\na cat\n", "where the first row has 2: mind the tabs"),
        ("p.jsonl", '{"prompt": "a"}\n\n["b", "c"]\n', "line 3: ['b', 'c'] is no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n', "line 2, is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n{"caption": "b"}\n', "line 2: 'prompt' must be a text, and"),
        ("p.jsonl", '{"prompt": ["a"]}\n', "line 1: 'prompt' must be a text, and is ['a']"),
        ("p.json", '["a cat", 3]', "entry 2: 3 is no prompt"),
        ("p.json", "a cat", "is not JSON"),
        ("p.json", '{"prompt": "a cat"}', "holds no list of prompts"),
        ("p.csv", "prompt,weight\na,1\nb,0\n", "row 3: the weight must be a number above 0, and"),
        ("p.jsonl", '{"prompt": "a", "weight": -1}', "line 1: the weight must be a number above 0"),
        (
            "p.csv",
            "prompt,weight\na,many\n",
            "row 2: the weight must be a number above 0, and is '",
        ),
        ("p.txt", b"\xff\xfe\x00", "(it is text in UTF-16: save it as UTF-8)"),
        ("p.parquet", b"PAR1 nothing", "cannot read the prompt file"),
        ("p.txt", b"a cat\na caf\xe9\n", "(line 2 holds the byte 0xe9, which is not UTF-8"),
        ("p.csv", 'prompt,weight\n"a cat,1\nb,2\n', "row 2: a quote opens and never closes"),
        ("p.csv", 'prompt,weight\n"a" cat,1\n', "row 2: ',' expected after"),
        ("p.csv", "prompt;weight\na cat;1\n", "row 1, has semicolons and no comma: put commas"),
        ("p.csv", "prompt\tweight\na cat\t1\n", "row 1, has tabs and no comma"),
        ("p.csv", "prompt,weight\na,1\n ,1\n", "row 3: the prompt is empty"),
        ("p.json", '["a", ""]', "entry 2: the prompt is empty"),
        ("p.json", "[" * 10**5, "it is nested too deep"),
        ("p.json", r'["\ud83d"]', "half a surrogate pair"),
        ("p.jsonl", r'{"prompt": "a\u0000b"}', "line 1: the prompt holds the character NUL"),
        ("p.txt", "a" * 20_001, "20,001 characters are no prompt: at most 20,000"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(write, name, payload, said):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(UserError) as error:
        read_prompts(write(name, payload))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_holds_no_more_rows_than_the_limit(write, monkeypatch):
    monkeypatch.setattr(formats, "MOST_ROWS", 3)
    name = write("p.txt", "a\nb\nc\n")
    assert len(read_prompts(name)) == 3
    with pytest.raises(UserError, match="makes 9 prompts: at most 3"):
        read_prompts(f"pairs:{name}:{name}")
    with pytest.raises(UserError, match="has more than 3 rows: give a part of it"):
        read_prompts(write("q.json", '["a", "b", "c", "d"]'))


def test_missing_and_broken_files_are_said_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"No such file or directory.*one prompt a line"):
        read_prompts(str(tmp_path / "nowhere.csv"))
    for payload in (b"not gzip", gzip.compress(b"a cat" * 99)[:-12]):
        (tmp_path / "broken.txt.gz").write_bytes(payload)
        with pytest.raises(UserError, match="not a whole gzip file"):
            read_prompts(str(tmp_path / "broken.txt.gz"))


def test_the_nearest_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat\n")
    (tmp_path / "captions.csv").write_text("prompt\na cat\n")
    (tmp_path / "promts").mkdir()  # a folder is no file of prompts
    monkeypatch.chdir(tmp_path)
    for source, near in [
        ("promts.txt", "prompts.txt"),
        (str(tmp_path / "prompt.txt"), str(tmp_path / "prompts.txt")),
        ("caption.csv:prompt", "captions.csv"),
    ]:
        with pytest.raises(UserError) as error:
            read_prompts(source)
        assert str(error.value).endswith(f": did you mean {near!r}?")


@pytest.mark.parametrize(
    ("name", "payload"),
    [
        ("p.csv", "prompt,style:long\na dog,a cat\n"),
        ("p.csv.gz", "prompt,style:long\na dog,a cat\n"),
        ("p.jsonl", '{"prompt": "a dog", "style:long": "a cat"}\n'),
    ],
)
def test_a_table_may_name_its_column(write, name, payload):
    file = write(name, payload)
    assert read_prompts(file).texts == ("a dog",)
    assert read_prompts(f"{file}:prompt").texts == ("a dog",)
    with pytest.raises(UserError, match=r"unknown column of '.*' 'promt': did you mean 'prompt'"):
        read_prompts(f"{file}:promt")


def test_a_column_of_any_name_is_taken_with_its_row(write):
    found = read_prompts(write("p.csv", "id,question\n7,a cat\n") + ":question")
    assert found.texts == ("a cat",) and found.texts[0].metadata["id"] == "7"
    # A file that is called so is read as it is.
    assert read_prompts(write("p.csv:question", "a cow\n")).texts == ("a cow",)


@pytest.mark.parametrize(
    ("library", "source"), [("pyarrow", "p.parquet"), ("datasets", "datasets:someone/prompts")]
)
def test_without_the_extra_the_line_says_how_to_install_it(tmp_path, monkeypatch, library, source):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"needs .*: pip install 'scoretune\[data\]'"):
        read_prompts(source)


# ------------------------------------------------------------- the datasets library


@pytest.fixture
def library(monkeypatch):
    """A stand-in for `datasets` that knows one id, and notes whether it was asked offline."""
    pyarrow = pytest.importorskip("pyarrow")
    module, asked = ModuleType("datasets"), []
    module.config = SimpleNamespace(HF_HUB_OFFLINE=False)
    cached = {"someone/prompts"}

    def load_dataset(identity):
        asked.append((identity, module.config.HF_HUB_OFFLINE))
        if identity in cached or (identity == "someone/new" and not asked[-1][1]):
            rows = {"caption": ["a cat", "a dog"], "image": [b"1", b"2"], "k": [1, 2]}
            return {
                "test": Split(pyarrow.table(rows)),
                "train": Split(pyarrow.table({"text": ["x"]})),
            }
        raise ConnectionError(f"Couldn't reach {identity!r}\nand a second line")

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    return asked


def test_a_dataset_is_taken_from_the_cache_before_the_hub_is_asked(library):
    assert read_prompts("datasets:someone/prompts").texts == ("x",)
    assert library == [("someone/prompts", True)]
    found = read_prompts("datasets:someone/new:test")
    assert library[1:] == [("someone/new", True), ("someone/new", False)]
    assert found.texts == ("a cat", "a dog")
    assert found.texts[0].metadata == {"caption": "a cat", "k": 1}


def test_a_table_of_the_library_is_data_too(library):
    data = read_data("datasets:someone/prompts:test")
    assert data.states.tolist() == [[1], [2]] and data.names == ("k",)


def test_a_split_and_a_column_of_a_dataset(library):
    assert read_prompts("datasets:someone/prompts:test:caption").texts == ("a cat", "a dog")
    for source, said in (
        ("datasets:someone/prompts:tets", "'tets': did you mean 'test'"),
        ("datasets:someone/prompts:test:captoin", "'captoin': did you mean 'caption'"),
        ("datasets:someone/prompts:test:k", "row 1: 'k' must be a text, and is 1"),
        ("datasets:nobody/nothing", "cannot load the dataset 'nobody/nothing' (Couldn't reach"),
    ):
        with pytest.raises(UserError) as error:
            read_prompts(source)
        assert said in str(error.value) and "\n" not in str(error.value)


def test_a_named_column_may_be_called_anything(library):
    library.clear()
    with pytest.raises(UserError, match="must be a text"):
        read_prompts("datasets:someone/prompts:test:k")
    assert read_prompts("datasets:someone/prompts:train:text").texts == ("x",)


# ------------------------------------------------------------------- pictures that are edited


@pytest.fixture
def edits(tmp_path, write):
    """Writes rows beside two pictures, red.png and grey.png, and gives the file's path."""
    for name, colour in (("red", (255, 0, 51)), ("grey", (90, 90, 90))):
        Image.new("RGB", (6, 4), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "red.png").read_bytes()[:40])

    def to(*images: object) -> str:
        rows = [json.dumps({"prompt": "make it blue", "image": image}) for image in images]
        return write("edits.jsonl", "\n".join(rows))

    return to


def test_a_prompt_brings_the_picture_that_it_edits(edits):
    first, second, third = read_prompts(edits("red.png", "grey.png", "red.png")).texts
    assert first.image.shape == (3, 4, 6)
    assert first.image[:, 0, 0].tolist() == pytest.approx([1, 0, 0.2])
    assert first == third and first != second and first == "make it blue" == second
    assert list(dict.fromkeys([first, second, third])) == [first, second]
    assert first.identity == third.identity != second.identity
    assert copy.deepcopy(first) == first and copy.deepcopy(first) != second
    assert Prompt("make it blue").image is None


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("none.png", r"line 2: there is no picture image .*none\.png': No such file"),
        ("broken.png", r"line 2: cannot read the picture .*broken\.png'"),
        (None, r"line 2: 'image' must be the path of a picture, and is missing"),
        ("https://a.b/c.png", r"line 2: 'image' is an address, .*: download the picture first"),
    ],
)
def test_a_picture_that_is_not_there_is_named_by_its_row(edits, cell, said):
    with pytest.raises(UserError, match=said) as caught:
        read_prompts(edits("red.png", cell))
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


def test_a_picture_that_changes_meanwhile_is_noticed(edits, tmp_path):
    source_pictures._pixels.cache_clear()
    (prompt,) = read_prompts(edits("red.png")).texts
    (tmp_path / "red.png").write_bytes((tmp_path / "grey.png").read_bytes())
    os.utime(tmp_path / "red.png", ns=(1, 1))
    with pytest.raises(UserError, match="is another picture than when the prompts were read"):
        _ = prompt.image


def test_edits_of_scenes_as_a_prompt_file(tmp_path):
    prompts = read_prompts(str(edit_lessons.write(tmp_path / "edits", 10)))
    assert sorted(set(prompts.tasks)) == sorted(KINDS) and len(prompts) == 10
    assert all(text in edits_by_instruction() for text in prompts.texts)
    assert prompts.texts[0].image.shape == (3, 32, 32)
