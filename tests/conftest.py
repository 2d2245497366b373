"""One thread, no network, no display, the same random numbers every time."""

from __future__ import annotations

import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

# Before torch is imported: the thread pools are made at import.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    DIFFUSERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    NO_COLOR="1",
)

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
gc.disable()  # while tests are imported; on again in `pytest_runtestloop`

# No deadline: the first example pays for imports. Derandomised: a red build stays red.
settings.register_profile("scoretune", deadline=None, derandomize=True)
settings.load_profile("scoretune")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """All that was imported and collected stays to the end: looked through for garbage at every
    full collection, it takes a tenth of the suite's time."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def case() -> Callable[..., AbstractContextManager[None]]:
    """`with case(process, eta):` names the case in what a failure says, in a loop of many."""

    @contextmanager
    def named(*what: object) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            error.add_note("case: " + ", ".join(map(str, what)))
            raise

    return named


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Changes that make a run of the shipped model take a second: two paths of three steps."""
    return [
        "updates=2",
        "sizes.prompts=1",
        "sizes.group=2",
        "sampling.steps=3",
        "checkpoints.every=1",
        "evaluation.per_task=1",
        "evaluation.steps=2",
        "evaluation.every=0",
    ]


@pytest.fixture(scope="session")
def small(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`tiny`, on the shipped model with a UNet of one block and random weights in the place of its
    own: for all that does not ask what the pictures show, in half the time. The reader gives its
    noise 0 whatever it learns, so that brightness is what it learns from."""
    import small_scenes

    folder = small_scenes.build(tmp_path_factory.mktemp("small") / "scenes")
    return [*tiny, "reward=brightness", f"model.source={folder}"]


@pytest.fixture(scope="session")
def finished_run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the shipped model, to be read only: change a copy (`shutil.copytree`)."""
    from scoretune import recipes
    from scoretune.training import overrides, run_folder
    from scoretune.training.hooks import Silent
    from scoretune.training.run import launch

    changes = ["model.guidance=2.5", "model.rank=2", "evaluation.gap.steps=[2]"]
    run = overrides.changed(recipes.named("ddpo"), [*tiny, *changes])
    folder = tmp_path_factory.mktemp("finished") / "run"
    run_folder.record(run, folder, 1)
    launch(run, folder, Silent())
    return folder


class Outcome(NamedTuple):
    """What a command came to."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def _built_once() -> Iterator[None]:
    """The tree of all commands, which takes a twelfth of a second, is the same for every command of
    the session."""
    import typer.main

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        yield


@pytest.fixture
def command(
    _built_once: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Runs `scoretune ARGUMENTS` in this process, through the installed command's own entry."""

    def run(*arguments: object) -> Outcome:
        from scoretune.cli import main

        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["scoretune", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as done:
            code = int(done.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server's database; the test is skipped where there is no server."""
    import postgres_server

    if reason := postgres_server.lacking():
        pytest.skip(reason)
    with postgres_server.running() as url:
        yield url


@pytest.fixture
def postgres_database(postgres: str) -> str:
    """The URL of a new, empty database."""
    import uuid

    import sqlalchemy

    name = f"test_{uuid.uuid4().hex}"
    engine = sqlalchemy.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return postgres.rpartition("/")[0] + f"/{name}"
