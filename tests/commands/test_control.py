"""`scoretune control`: verdicts, stories, own mechanisms and bad words."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, NOTEBOOK = DOCS / "proof_of_stake.md", DOCS / "stake_notebook.md"


def test_a_sound_auction_and_one_with_a_jump(command):
    sound = command("control", "fee-auction", "check", "bsp", "k=2", "c=1", "gamma=1", "grid=2")
    assert sound.code == 0, sound.err
    assert len(re.findall("holds", sound.out)) == 3
    broken = command("control", "fee-auction", "check", "bsp", "grid=2", "worth=1", "share=0.7")
    assert broken.code == 1
    assert "1-SCP  FAILS by 0.3" in broken.out
    assert "no theta is safe at a tick of 1" not in broken.out
    assert "safe theta at a tick of 1: 0.5 to 0.7" in broken.out
    fine = ("grid=1", "worth=1", "share=0.7", "tick=0.5", "theta=0.5", "gamma=1")
    never = command("control", "fee-auction", "check", "bsp", *fine)
    assert "no theta is safe at a tick of 0.5: the tick must be at least 0.6" in never.out
    assert "Together they gain +0.3." in broken.out
    safe = command(
        *("control", "fee-auction", "check", "bsp", "theta=0.5", "tick=0.6", "grid=2"),
        *("worth=1", "share=0.7", "--json"),
    )
    assert safe.code == 0
    assert json.loads(safe.out.splitlines()[-1])["gains"] == {"UIC": 0, "MIC": 0, "1-SCP": 0}
    drawn = command("control", "fee-auction", "check", "second_price", "users=8", "draws=20")
    assert drawn.code == 1 and "MIC    FAILS" in drawn.out


def test_the_mechanism_on_the_page_is_checked(command, tmp_path, monkeypatch):
    (example,) = re.findall(r"```python\n(# my_auction.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(example.splitlines()) <= 20
    (tmp_path / "my_auction.py").write_text(example, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = command("control", "fee-auction", "check", "my_auction.py:shared", "part=0.5", "grid=2")
    assert done.code == 1, done.err
    assert "UIC    holds" in done.out and "1-SCP  FAILS" in done.out


def test_the_examples_on_the_page_print_what_their_comments_say(capsys):
    blocks = re.findall(r"```python\n(?!# my_auction)(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), {})
        number = r"-?\d+(?:\.\d+)?"
        printed = re.findall(number, capsys.readouterr().out)
        written = [n for words in re.findall("  # (.*)", block) for n in re.findall(number, words)]
        assert len(written) >= 4
        for value, shown in zip(printed, written, strict=True):
            assert float(value) == pytest.approx(float(shown), abs=5e-4)


def test_the_notebook_prints_what_it_says(capsys):
    blocks = re.findall(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", NOTEBOOK.read_text("utf-8"), re.S
    )
    assert len(blocks) == 5
    names: dict[str, object] = {}
    for code, output in blocks:
        exec(compile(code, str(NOTEBOOK), "exec"), names)
        printed = capsys.readouterr().out
        number = r"-?\d+(?:\.\d+)?"
        assert re.sub(number, "#", printed) == re.sub(number, "#", output)
        for value, shown in zip(
            re.findall(number, printed), re.findall(number, output), strict=True
        ):
            assert float(value) == pytest.approx(float(shown), abs=0.011 if "round" in code else 0)


def test_training_says_how_near_it_comes(command):
    words = ("staking", "valuation=200", "iterations=3", "trajectories=10", "policy=beta")
    done = command("control", "train", *words)
    assert done.code == 0, done.err
    assert "best        53.4465" in done.out and "Beta: towards buying by" in done.out
    parity = command("control", "train", "parity", "iterations=2", "trajectories=10", "--json")
    numbers = json.loads(parity.out.splitlines()[-1])
    assert numbers["best"] == pytest.approx(-0.989695, abs=1e-5) and numbers["iterations"] == 2
    assert numbers["saturated"] is None and numbers["value"] < numbers["best"]
    watched = command("control", "staking", "price=1.6", "volatility=0.4")
    assert "Bellman     57.9" in watched.out
    for words, says in (
        (["nothing"], "unknown problem 'nothing'"),
        (["staking", "policy=greedy"], "unknown value of staking(policy=…): 'greedy'"),
        (["staking", "rate=-1"], "must be finite and > 0"),
        (["staking", "dt=9"], "step must be > 0 and at most the horizon 5"),
        (["parity", "weight=0"], "friction and weight must be > 0"),
    ):
        bad = command("control", "train", *words)
        assert bad.code == 2 and says in bad.err and len(bad.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["bps"], "unknown mechanism 'bps': did you mean 'bsp'?"),
        (["bsp", "k"], "cannot read 'k'"),
        (["bsp", "kk=2"], "unknown setting of mechanism 'bsp' 'kk'"),
        (["bsp", "k=2", "k=3"], "'k' is there twice"),
        (["bsp", "k=two"], "must be int, got 'two'"),
        (["bsp", "tick=0"], "tick must be finite and > 0"),
        (["bsp", "k=1", "c=2"], "k = 1 must be at least the coalition c = 2"),
        (["bsp", "theta=0.2"], "theta must be in [c/k, gamma] = [0.5, 1]"),
        (["bsp", "worth=1"], "worth= and share= belong together"),
        (["bsp", "draws=-1"], "draws, rounds and seed must be >= 0"),
        (["nothing:there"], "cannot import the mechanism 'nothing:there'"),
        (["mine.py:fails", "k=2"], "mechanism 'mine.py:fails' failed with ZeroDivisionError"),
        (["mine.py:number"], "a mechanism is a fee_auction.Mechanism(name=…"),
        (["mine.py:leaves"], "mechanism 'mine.py:leaves' called sys.exit(0)"),
    ],
)
def test_bad_words_are_one_line(command, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "import sys\ndef fails(k):\n    return k / 0\ndef number():\n    return 3\n"
        "def leaves():\n    sys.exit(0)\n",
        encoding="utf-8",
    )
    done = command("control", "fee-auction", "check", *words)
    assert done.code == 2
    assert says in done.err
    assert len(done.err.strip().splitlines()) == 1 and len(done.err) <= 320


def test_the_best_trading(command):
    done = command("control", "staking", "valuation=200")
    assert done.code == 0, done.err
    assert "value       53.4465" in done.out and "buy, then sell from 2.553" in done.out
    tight = command("control", "staking", "stake=2", "price=3", "--json")
    numbers = json.loads(tight.out.splitlines()[-1])
    assert numbers["value"] == pytest.approx(11.42185, abs=1e-4)
    assert numbers["simple"]["sell always"] is None
    for words, says in (
        (["horizon=-1"], "horizon must be finite and > 0"),
        (["price=0"], "price: start must be finite and > 0"),
        (["discount=0"], "discount must be finite and > 0"),
        (["stake=-2"], "stake must be from 0 to the supply"),
        (["valuation=3", "price=1"], "leave out price="),
    ):
        bad = command("control", "staking", *words)
        assert bad.code == 2 and says in bad.err and len(bad.err.splitlines()) == 1
