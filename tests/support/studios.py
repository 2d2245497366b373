"""A studio on a small store, served in a thread of the test's own process, and a plain client."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import torch

from scoretune.commands.studio.app import application
from scoretune.commands.studio.studio import Studio
from scoretune.commands.studio.verb import Place, Tools, assembled
from scoretune.core.listening import listen
from scoretune.data.scenes import world
from scoretune.data.scenes.draw import draw_in_hands
from scoretune.data.store import open_store
from scoretune.data.store.store import Store

NO_TOOLS = Tools()
PROMPTS = ("a red seven", "two fives", "a three left of a nine", "a blue one")


def filled(folder: Path, *, per_prompt: int = 3, prompts: tuple[str, ...] = PROMPTS) -> Store:
    """A store of flat pictures of different colours, each prompt's paired each with each; the
    first pair has gold."""
    store = open_store(str(folder), create=True)
    generator = torch.Generator().manual_seed(0)
    for prompt in prompts:
        ids = []
        for number in range(per_prompt):
            picture = torch.rand(3, 1, 1, generator=generator).expand(3, 8, 8)
            sha256 = store.add_picture(picture)
            key = f"{prompt}/{number}"
            ids.append(store.add_sample(prompt=prompt, picture=sha256, model="m", key=key).id)
        for place, first in enumerate(ids):
            for second in ids[place + 1 :]:
                gold = None if store.pairs() else "first"
                store.add_pair(first, second, gold=gold)
    return store


def scene(*cells: str) -> torch.Tensor:
    """A picture of the shipped world with such as "red seven" in its four cells, "" for none."""
    digits, colours = [world.EMPTY] * world.CELLS, [0] * world.CELLS
    for cell, words in enumerate(cells):
        if words:
            colour, digit = words.split()
            digits[cell] = world.DIGITS.index(digit)
            colours[cell] = world.COLOURS.index(colour)
    layout = world.Layout(tuple(digits), tuple(colours))
    return torch.from_numpy(draw_in_hands([layout], "judge", [(5, 6, 7, 8)])[0])


@contextmanager
def served(
    store: Store, folder: Path, *, port: int = 0, tools: Tools = NO_TOOLS
) -> Iterator[Studio]:
    """A studio that answers while the context lasts."""
    import uvicorn

    at = listen("127.0.0.1", port)
    address = f"http://127.0.0.1:{at.getsockname()[1]}"
    place = Place(store, str(folder), "scenes")
    made = assembled(place, folder / "runs", address, public=False, token_file=None, tools=tools)
    config = uvicorn.Config(
        application(made), lifespan="off", log_level="critical", ws="none", access_log=False
    )
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [at]}, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        running.should_exit = running.force_exit = True
        thread.join(10)
        at.close()


class Answer(NamedTuple):
    """A status, the headers by their names in small letters, and a text."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Client:
    """A browser without a screen: it keeps its cookie, and sends what a page of ours would."""

    address: str
    cookie: str = ""
    csrf: str = ""
    pause: float = field(default=0.0)

    def ask(
        self, method: str, path: str, body: bytes | None = None, **headers: str | None
    ) -> Answer:
        """One request; a header that is None is left out. `_` in names stands for `-`."""
        host = self.address.removeprefix("http://")
        sent = {"host": host, "cookie": self.cookie}
        if method != "GET":
            sent |= {"origin": self.address, "x-csrf-token": self.csrf}
            sent["content-type"] = "application/x-www-form-urlencoded"
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value.encode("utf-8", "surrogatepass"))
        if body is not None and "content-length" not in sent:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        got = connection.getresponse()
        text = got.read().decode("utf-8", "replace")
        connection.close()
        time.sleep(self.pause)
        return Answer(got.status, {k.lower(): v for k, v in got.getheaders()}, text)

    def get(self, path: str, **headers: str | None) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, /, **fields: object) -> Answer:
        return self.ask("POST", path, urlencode(fields, doseq=True).encode())

    def enter(self, token: str) -> Client:
        """Come in by a token."""
        answer = self.get(f"/enter?{urlencode({'token': token})}")
        assert answer.status == 200, answer
        self.cookie = answer.headers["set-cookie"].partition(";")[0]
        page = self.get("/vote").text
        found = re.search(r'data-csrf="(\w+)"', page)
        assert found is not None, page
        self.csrf = found[1]
        return self


def ballot_of(page: str) -> str:
    """The ballot that a page shows; empty where it shows none."""
    found = re.search(r'name="ballot" value="([^"]+)"', page)
    return found[1] if found else ""


def run_folder(run: Path) -> Path:
    """A small finished run, with an alarm whose text is not to be run."""
    from PIL import Image

    (run / "previews").mkdir(parents=True)
    Image.new("RGB", (16, 8), "red").save(run / "previews" / "before.png")
    (run / "run.json").write_text('{"recipe": "dpo", "config": {"updates": 2, "seed": 0}}')
    rows = [f'{{"update": {n}, "loss": {1 / n}, "seconds": {n}}}\n' for n in (1, 2)]
    (run / "metrics.jsonl").write_text("".join(rows))
    (run / "alarms.jsonl").write_text('{"update": 2, "text": "<b>the judge fell</b>"}\n')
    (run / "result.json").write_text('{"seconds": 2.0}')
    return run
