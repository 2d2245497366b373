"""`scoretune families`: what it measures is true, and what is broken is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scoretune.commands.families import families, parity
from scoretune.commands.families.families import Report
from scoretune.commands.families.parity import FAMILIES, Request
from scoretune.models import catalog
from scoretune.models.tiny import own, words
from scoretune.models.tiny import stable_diffusion_3 as flow_miniature

NUMBERS = ("parity", "lora", "full", "export", "applied")


def named(name: str) -> parity.Family:
    (found,) = [family for family in FAMILIES if family.name == name]
    return found


def sound(**changes: float | bool | str | None) -> Report:
    """What is found of a family that works, changed."""
    found = Report(
        "any",
        parity=1e-6,
        lora=0.1,
        reference=0.0,
        full=1e-3,
        export=1e-6,
        applied=0.1,
        resume=True,
    )
    found = replace(found, **changes)
    found.conclude()
    return found


def test_a_family_works(command, monkeypatch):
    """The smallest is measured, after one that is said to work: all are measured elsewhere."""
    measure = families.measure

    def of(family: parity.Family, folder: Path) -> Report:
        return measure(family, folder) if family.name == "own" else sound(family=family.name)

    monkeypatch.setattr(families, "measure", of)
    done = command("families", "--json", "--only", "own", "--only", "unconditional")
    found = json.loads(done.out)
    assert [each["family"] for each in found] == ["unconditional", "own"]
    each = found[1]
    assert each["error"] == ""
    assert each["passed"], each
    assert all(each[name] > 0 for name in NUMBERS)
    assert each["reference"] == 0
    assert each["parity"] < 1e-4
    assert each["export"] < 1e-4
    assert each["applied"] > 0.01
    assert len(each["weights"]) == 12
    assert done.code == 0


def test_a_family_that_is_broken_is_found_and_the_others_are_measured(command, monkeypatch):
    def crash(folder: Path) -> Path:
        raise ValueError("no such\nminiature")

    far = replace(named("own"), name="far", parity=lambda asked: 0.5)
    gone = replace(named("own"), name="gone", build=crash)
    monkeypatch.setattr(families, "FAMILIES", (gone, far))
    done = command("families", "--json")
    first, second = json.loads(done.out)
    assert done.code == 1
    assert first["error"] == "ValueError: no such miniature"
    assert first["failed"] == ["parity", "lora", "full", "export", "applied", "resume"]
    assert not second["passed"]
    assert second["failed"] == ["parity", "export"]
    assert second["resume"]


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"parity": 2e-4}, ["parity"]),
        ({"parity": float("nan")}, ["parity"]),
        ({"lora": 0.0}, ["lora"]),
        ({"lora": float("nan")}, ["lora"]),
        ({"reference": 1e-4}, ["lora"]),
        ({"full": 0.0}, ["full"]),
        ({"export": 2e-4}, ["export"]),
        ({"applied": 1e-5}, ["applied"]),
        ({"resume": False}, ["resume"]),
    ],
)
def test_what_counts_as_failed(changes, failed):
    found = sound(**changes)
    assert found.failed == failed
    assert found.as_dict()["passed"] is not bool(failed)


def test_a_table_for_people(command, monkeypatch):
    monkeypatch.setattr(families, "examine", lambda only, note: [sound(), sound(parity=0.5)])
    done = command("families")
    assert done.code == 1
    assert "FAILS: any: parity (parity 5.0e-01" in done.out
    assert "1 of 2 families work" in done.out


def test_an_unknown_family_is_told_the_nearest(command):
    done = command("families", "--only", "fluxx")
    assert done.code == 2
    assert "unknown family 'fluxx': did you mean 'flux'?" in done.err


def test_parity_sees_a_wrong_model(tmp_path):
    """Another seed's weights on our side are far from diffusers' pictures."""
    from scoretune.diffusion.kernels import GDDIM
    from scoretune.policy import Policy

    theirs, other = tmp_path / "0", tmp_path / "1"
    flow_miniature.build(theirs), flow_miniature.build(other, seed=1)
    for folder, same in ((theirs, True), (other, False)):
        policy = Policy(
            catalog.FAMILIES["StableDiffusion3Pipeline"].load(str(folder)), GDDIM(1.0), 2.0
        )
        apart = parity.observed(Request(policy, theirs, words.PROMPTS))
        assert (apart < 1e-5) is same
        assert (apart > 1e-2) is not same


def test_a_tokenizer_of_few_words():
    reader = words.tokenizer()
    asked = reader(list(words.PROMPTS), padding="max_length", max_length=10).input_ids
    assert [len(row) for row in asked] == [10] * 4
    assert asked[0] == [1, 4, 6, 11, 2, 0, 0, 0, 0, 0]
    assert all(3 not in row and row[-1] in (0, 2) for row in asked)
    assert (reader.pad_token_id, reader.bos_token_id, reader.eos_token_id) == (0, 1, 2)
    assert reader("zebra").input_ids == [1, 3, 2]
    assert len(reader) == words.VOCABULARY
    assert words.tokenizer(77).model_max_length == 77


def test_the_own_miniature_is_the_same_at_every_call():
    torch.manual_seed(3)
    one, two = own.denoiser().state_dict(), own.denoiser().state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
