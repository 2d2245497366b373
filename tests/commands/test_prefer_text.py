"""`scoretune prefer-text`: from a file of pairs to a model folder, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny_lm

WORDS = ["batch=4", "updates=4", "learning_rate=0.001", "rank=2", "checkpoint_every=2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_lm.folder(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture
def pairs(tmp_path) -> Path:
    return written(tmp_path / "pairs.jsonl", tiny_lm.PAIRS)


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_model_learns_from_a_file_and_goes_on_where_it_was_killed(
    command, model, pairs, tmp_path
):
    from peft import AutoPeftModelForCausalLM

    where = tmp_path / "run"
    words = [f"data={pairs}", f"held_out={pairs}", *WORDS]
    done = command("prefer-text", model, *words, "--run", where, "--json")
    assert done.code == 0, done.err
    result = json.loads(done.out.splitlines()[-1])
    assert (result["preset"], result["beta"], result["updates"]) == ("rainbow", 10.0, 4)
    assert 0 <= result["held_out"]["accuracy"] <= 1
    log = [json.loads(line) for line in (where / "log.jsonl").read_text().splitlines()]
    assert [line["update"] for line in log] == [1, 2, 3, 4]
    endings = {path.suffix for path in (where / "model").iterdir()}
    assert endings == {".safetensors", ".json", ".md"}
    AutoPeftModelForCausalLM.from_pretrained(where / "model")

    adapter = where / "model" / "adapter_model.safetensors"
    whole = adapter.read_bytes()
    for path in (where / "checkpoints" / "checkpoint-4", where / "model"):
        shutil.rmtree(path)
    (where / "result.json").unlink()
    again = command("prefer-text", "--resume", where, "--json")
    assert again.code == 0, again.err
    assert adapter.read_bytes() == whole
    over = command("prefer-text", "--resume", where)
    assert over.code == 2
    assert "is finished" in over.err


def test_every_weight_can_be_trained_and_read_by_transformers(command, model, tmp_path):
    """Also of texts that are longer than the model's positions, which lose their end."""
    from transformers import AutoModelForCausalLM

    longer = {"prompt": "on and on", "chosen": " and on" * 20, "rejected": " and off" * 20}
    pairs = written(tmp_path / "longer.jsonl", [*tiny_lm.PAIRS, longer])
    where = tmp_path / "run"
    words = [f"data={pairs}", "preset=simpo", "rank=0", "batch=4", "warm_up=0"]
    done = command("prefer-text", model, *words, "--run", where)
    assert done.code == 0, done.err
    assert f"the model is in {where / 'model'}" in done.err
    learned = AutoModelForCausalLM.from_pretrained(where / "model")
    before = tiny_lm.model().lm_head.weight
    assert not torch.equal(learned.lm_head.weight, before)


def test_single_likes_go_through_trl(command, model, tmp_path):
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for row in tiny_lm.PAIRS[:4]
        for side in ("chosen", "rejected")
    ]
    likes = written(tmp_path / "likes.jsonl", rows)
    done = command(
        "prefer-text",
        model,
        f"data={likes}",
        "preset=kto",
        *WORDS,
        "--run",
        tmp_path / "a",
        "--json",
    )
    assert done.code == 0, done.err
    assert json.loads(done.out.splitlines()[-1])["updates"] == 4
    ties = written(tmp_path / "ties.jsonl", [row | {"label": 0.5} for row in tiny_lm.PAIRS])
    done = command("prefer-text", model, f"data={ties}", "preset=kto", "--run", tmp_path / "b")
    assert done.code == 2
    assert "use a preset of pairs" in done.err


ROW = tiny_lm.PAIRS[0]
BAD: dict[str, tuple[list[dict[str, object]], list[str], str]] = {
    "no data": ([ROW], ["data="], "data=pairs.jsonl"),
    "no such preset": ([ROW], ["preset=rainbo"], "did you mean 'rainbow'"),
    "no such key": ([ROW], ["betta=1"], "did you mean 'beta'"),
    "beta": ([ROW], ["beta=0"], "must be above 0"),
    "a word": ([ROW], ["batch=many"], "batch: Input should be a valid integer"),
    "of no use": ([ROW], ["preset=simpo", "reference_cache=x"], "of no use here"),
    "a moving reference": ([ROW], ["preset=trdpo"], "set rank=0"),
    "an empty completion": ([ROW | {"chosen": " "}], [], "'chosen' is empty"),
    "identical": ([ROW | {"rejected": ROW["chosen"]}], [], "identical"),
    "a missing column": ([{"prompt": "a", "chosen": "b"}], [], "rejected"),
    "a label": ([ROW | {"label": 1.5}], [], "label"),
    "more tokens than the model takes": ([ROW], ["max_length=65"], "set max_length=64 or less"),
    "no scores": ([ROW], ["preset=odpo"], "margin by the scores"),
    "a conversation": (
        [
            {
                "prompt": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            }
        ],
        [],
        "no chat_template",
    ),
    "one dispersion": ([ROW], [], "same for all prompts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(command, model, tmp_path, name):
    rows, words, line = BAD[name]
    data = written(tmp_path / "pairs.jsonl", rows)
    where = tmp_path / "run"
    done = command("prefer-text", model, f"data={data}", *words, "--run", where)
    assert done.code == 2
    last = done.err.splitlines()[-1]
    assert last.startswith("scoretune: ")
    assert len(last) <= 320
    assert line in last


def test_a_model_that_is_not_there(command, pairs, tmp_path):
    done = command("prefer-text", tmp_path / "nowhere", f"data={pairs}", "--run", tmp_path / "run")
    assert done.code == 2
    assert "cannot load the model" in done.err
    assert not (tmp_path / "run").exists()
