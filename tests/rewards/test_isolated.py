"""A reward in a process of its own: other packages, other manners, and no way to hurt the run."""

from __future__ import annotations

import ast
import gc
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from forked import forked
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.rewards.base import checked
from scoretune.rewards.catalog import fingerprint, named_reward
from scoretune.rewards.remote.isolated import WORKER, Isolated

IMAGES = torch.rand(4, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c", "d"]
RED = [round(float(v), 4) for v in (IMAGES[:, 0] * 255).round().mean((1, 2))]

CONFLICTING = """
    __version__ = {version!r}

    def version():
        return __version__

    def score(images, prompts):
        return [float(__version__) + width * height for width, height, pixels in images]
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory) -> Path:
    """An environment with nothing but a package `conflicting`, of version 1.5."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    write(packages, "conflicting", CONFLICTING.format(version="1.5"))
    return folder / "bin" / "python"


def write(folder: Path, name: str, code: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(code))


@pytest.fixture
def mine(tmp_path):
    """Makes an isolated reward of a module's text; its function is called `score`."""
    made = []

    def make(code: str, **settings) -> Isolated:
        write(tmp_path, "mine", code)
        reward = Isolated("mine:score", folder=str(tmp_path), **{"images": "raw", **settings})
        made.append(reward)
        return reward

    yield make
    for reward in made:
        reward.worker.close()


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    """Whether a process ends within a few seconds, and leaves no zombie of ours."""
    until = time.monotonic() + 5
    while alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    try:
        os.waitpid(pid, os.WNOHANG)
        return False  # a child of ours that nobody has waited for
    except ChildProcessError:
        return not alive(pid)


def failure(reward: Isolated, images=IMAGES, prompts=PROMPTS) -> str:
    with pytest.raises(UserError) as caught:
        reward(images, prompts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------------------- apart


def test_the_two_versions_of_a_package_live_side_by_side(venv, tmp_path, monkeypatch):
    write(tmp_path, "conflicting", CONFLICTING.format(version="2.5"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # which must not reach the other interpreter
    monkeypatch.syspath_prepend(str(tmp_path))
    import conflicting

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    text = f"isolated(call=conflicting:score, python={venv}, folder={folder}, images=raw)"
    reward = named_reward(text)
    assert checked(reward, text, IMAGES, PROMPTS).tolist() == [1.5 + 48.0] * 4
    assert reward.fingerprint()["version"] == "1.5"
    assert conflicting.version() == "2.5"
    reward.worker.close()


def test_the_other_interpreter_has_neither_scoretune_nor_torch(venv, mine):
    code = """
        import importlib.util, sys
        names = ("scoretune", "torch", "numpy")

        def score(images, prompts):
            found = sum(importlib.util.find_spec(name) is not None for name in names)
            return [found + 10 * (sys.prefix != sys.base_prefix)] * len(images)
    """
    assert mine(code, python=str(venv))(IMAGES, PROMPTS).tolist() == [10.0] * 4


def test_the_worker_needs_the_standard_library_alone():
    tree = ast.parse(WORKER.read_text(), feature_version=(3, 8))
    at_top = {name for node in tree.body for name in _imported(node)}
    anywhere = {name for node in ast.walk(tree) for name in _imported(node)}
    assert at_top <= set(sys.stdlib_module_names)
    assert anywhere - at_top == {"numpy", "PIL"}
    assert "pickle" not in anywhere


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [str(node.module).partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("pil", "[sum(i.getdata(0)) / (i.width * i.height) for i in images]"),
        ("numpy", "images[..., 0].mean((1, 2))"),
        ("raw", "[sum(p[::3]) / (w * h) for w, h, p in images]"),
    ],
)
def test_pictures_come_as_the_function_wants_them(mine, kind, body):
    code = f"""
        def score(images, prompts):
            assert len(images) == len(prompts)
            return {body}
    """
    found = mine(code, images=kind, batch=3)(IMAGES, PROMPTS)
    assert [round(v, 4) for v in found.tolist()] == pytest.approx(RED, abs=2e-4)


def test_prompts_bring_what_belongs_to_them(mine):
    code = """
        def score(images, prompts):
            return [len(p) * p.metadata.get("weight", 1) for p in prompts]
    """
    prompts = [Prompt("abc", {"weight": 10}), "äöü", Prompt("", {}), '"q"\n']
    assert mine(code)(IMAGES, prompts).tolist() == [30.0, 3.0, 0.0, 4.0]


def test_frames_larger_than_any_pipe(mine):
    images = torch.rand(4, 3, 400, 300)
    code = "def score(images, prompts): return [len(p) for w, h, p in images]"
    assert mine(code)(images, PROMPTS).tolist() == [360_000.0] * 4


def test_what_the_function_prints_does_not_disturb(mine, capfd):
    code = """
        import os, subprocess, sys
        print("at import")

        def score(images, prompts):
            print("hello", len(images))
            os.write(1, b"\\x00\\x00\\x00\\x01raw\\n")
            subprocess.run(["echo", "from a child"])
            assert sys.stdin.read() == ""
            return [1.0] * len(images)
    """
    reward = mine(code)
    assert reward(IMAGES, PROMPTS).tolist() == [1.0] * 4
    reward.worker.close()
    out, err = capfd.readouterr()
    assert out == ""
    for words in ("at import", "hello 4", "raw", "from a child"):
        assert words in err


def test_nothing_is_asked_twice(mine):
    code = """
        asked = 0

        def score(images, prompts):
            global asked
            asked += len(images)
            return [asked] * len(images)
    """
    reward = mine(code)
    first = reward(IMAGES, PROMPTS)
    assert torch.equal(reward(IMAGES, PROMPTS), first)
    assert (reward.score_cache.hits, reward.score_cache.misses) == (4, 4)


def test_the_fingerprint_follows_the_file(mine):
    code = "__version__ = '3'\ndef score(images, prompts): return []"
    told = mine(code).fingerprint()
    assert told["version"] == "3"
    assert told["interpreter"] == ".".join(map(str, sys.version_info[:3]))
    assert mine(code + " ").fingerprint()["sha256"] != told["sha256"]


def test_one_interpreter_serves_the_fingerprint_and_the_scores(mine, tmp_path):
    code = f"""
        import pathlib

        with pathlib.Path({str(tmp_path / "starts")!r}).open("a") as file:
            file.write("x")

        def score(images, prompts):
            return [1.0] * len(images)
    """
    reward = mine(code)
    text = f"isolated(call=mine:score, folder={tmp_path}, images=raw)"
    assert fingerprint(text, reward)["parts"][0]["call"] == "mine:score"
    assert reward(IMAGES, PROMPTS).tolist() == [1.0] * 4
    assert (tmp_path / "starts").read_text() == "x"


# ---------------------------------------------------------------------------- what may go wrong


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import nowhere_to_be_found",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("def score(:", "SyntaxError: invalid syntax"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("other = 1", "AttributeError: module 'mine' has no attribute 'score'"),
        ("score = 1", "TypeError: 'mine:score' is a int, not a function"),
        ("import os\nos._exit(5)", "did not start: it exited with 5"),
        (
            "import os, sys\nprint('no licence', file=sys.stderr)\nos._exit(5)",
            "it exited with 5, last words 'no licence'",
        ),
    ],
)
def test_a_start_that_fails_is_one_line(mine, code, words):
    line = failure(mine(code))
    assert words in line
    assert "reward 'mine:score'" in line and "--resume RUN" in line


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise ValueError('bad\\npicture')", "failed with picture"),
        ("raise KeyError('x')", "failed with KeyError: 'x'"),
        ("return [1.0]", "gave 1 numbers for 4 images"),
        ("return 1.0", "TypeError: 'float' object is not iterable"),
        ("return ['high'] * 4", "ValueError: could not convert string to float: 'high'"),
    ],
)
def test_a_function_that_fails_is_one_line_and_the_process_stays(mine, body, words):
    reward = mine(f"def score(images, prompts):\n    {body}")
    assert words in failure(reward)
    process = reward.worker._child
    assert words in failure(reward)
    assert reward.worker._child is process


def test_nan_is_told_as_of_any_reward(mine):
    reward = mine("def score(images, prompts): return [float('nan')] * 4")
    with pytest.raises(UserError, match="is nan for the prompt 'a'"):
        checked(reward, "isolated", IMAGES, PROMPTS)


def test_who_takes_too_long_is_killed_with_its_children(mine, tmp_path):
    code = f"""
        import pathlib, subprocess, time

        def score(images, prompts):
            if prompts[0] == "a":
                child = subprocess.Popen(["sleep", "60"])
                pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(child.pid))
                time.sleep(60)
            return [1.0] * len(images)
    """
    reward = mine(code, timeout=1.0)
    reward.worker.ready()
    pid = reward.worker._child.pid
    start = time.monotonic()
    line = failure(reward)
    assert 1.0 <= time.monotonic() - start < 4
    assert "gave no answer within 1 s and was killed: raise timeout=" in line
    assert gone(pid) and gone(int((tmp_path / "pid").read_text()))
    assert reward(IMAGES[1:], PROMPTS[1:]).tolist() == [1.0] * 3  # a new one


def test_a_start_that_takes_too_long(mine):
    assert "did not start within 0.3 s" in failure(mine("import time\ntime.sleep(60)", timeout=0.3))


CRASH = """
    import os, pathlib, signal, sys
    mark = pathlib.Path({mark!r})

    def score(images, prompts):
        mark.write_text(mark.read_text() + "x" if mark.exists() else "x")
        if len(mark.read_text()) <= {times}:
            print("it hurts", file=sys.stderr)
            {end}
        return [2.0] * len(images)
"""


def test_a_crash_is_forgiven_once(mine, tmp_path):
    code = CRASH.format(mark=str(tmp_path / "mark"), times=1, end="os._exit(3)")
    reward = mine(code)
    assert reward(IMAGES, PROMPTS).tolist() == [2.0] * 4
    assert (tmp_path / "mark").read_text() == "xx"


@pytest.mark.parametrize(
    ("end", "how"),
    [("os._exit(3)", "it exited with 3"), ("os.kill(os.getpid(), 11)", "killed by SIGSEGV")],
)
def test_a_second_crash_is_one_line(mine, tmp_path, end, how):
    reward = mine(CRASH.format(mark=str(tmp_path / "mark"), times=9, end=end))
    assert f"crashed twice on the same images: {how}, last words 'it hurts'" in failure(reward)
    assert (tmp_path / "mark").read_text() == "xx"


def test_metadata_that_json_cannot_hold(mine):
    reward = mine("def score(images, prompts): return [1.0]")
    assert "cannot be sent as JSON" in failure(reward, IMAGES[:1], [Prompt("a", {"x": {1}})])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"call": "mine"}, "write it as module:function"),
        ({"python": "/no/such/python"}, "no such interpreter"),
        ({"folder": "/no/such/folder"}, "no such folder"),
        ({"timeout": 0.0}, "timeout must be above 0"),
        ({"cache": -1}, "cache 0 or more"),
    ],
)
def test_settings_that_cannot_be(settings, words):
    with pytest.raises(UserError, match=words):
        Isolated(**{"call": "mine:score", **settings})


def test_an_unknown_kind_of_pictures_is_named():
    with pytest.raises(UserError, match=r"isolated\(images=…\).* numpy, pil, raw"):
        named_reward("isolated(call=mine:score, images=jpeg)")


# ---------------------------------------------------------------------------- the end


def test_the_process_ends_with_the_reward(mine, tmp_path):
    write(tmp_path, "short", "def score(images, prompts): return [1.0] * len(images)")
    reward = Isolated("short:score", folder=str(tmp_path), images="raw")
    reward(IMAGES, PROMPTS)
    pid = reward.worker._child.pid
    assert alive(pid)
    del reward
    gc.collect()
    assert gone(pid)


def test_the_process_ends_with_a_run_that_is_killed(tmp_path):
    write(tmp_path, "short", "def score(images, prompts): return [1.0] * len(images)")

    def run():
        reward = Isolated("short:score", folder=str(tmp_path), images="raw")
        reward(IMAGES, PROMPTS)
        print(reward.worker._child.pid, flush=True)
        os.kill(os.getpid(), 9)

    with forked(run) as process:
        out, err = process.communicate()
    assert out.strip().isdigit(), err
    assert gone(int(out))


@pytest.mark.slow
@pytest.mark.parametrize("end", ["raise RuntimeError('bug')", "os.kill(os.getpid(), 9)"])
def test_the_process_ends_with_the_run_however_that_ends(tmp_path, end):
    write(tmp_path, "short", "def score(images, prompts): return [1.0] * len(images)")
    script = f"""
        import os
        import torch
        from scoretune.rewards.remote.isolated import Isolated
        reward = Isolated("short:score", folder={str(tmp_path)!r}, images="raw")
        reward(torch.zeros(1, 3, 2, 2), ["a"])
        print(reward.worker._child.pid, flush=True)
        {end}
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.strip().isdigit(), done.stderr
    assert gone(int(done.stdout))


def test_ctrl_c_while_it_works_leaves_nothing_half_said(mine, monkeypatch):
    code = """
        import time

        def score(images, prompts):
            time.sleep(0.5 if prompts[0] == "a" else 0)
            return [float(ord(p)) for p in prompts]
    """
    reward = mine(code)
    reward.worker.ready()
    previous = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(KeyboardInterrupt):
            reward(IMAGES, PROMPTS)
    finally:
        signal.signal(signal.SIGALRM, previous)
    # the answer to the first question must not be taken for that to the second
    assert reward(IMAGES[1:2], ["b"]).tolist() == [98.0]
