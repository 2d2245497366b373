"""What a vote costs: the studio's answer to one, beside a bare FastAPI endpoint that inserts a row
into SQLite; and fifty raters at once, with the studio killed in between.

    python benchmarks/studio.py                  # p95 of a vote, and its ratio to the bare insert
    python benchmarks/studio.py --raters 50 --votes 100 --kills 5

Both servers are processes of their own and are asked in turn, so that a machine that drifts does
not favour either.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlencode

import torch

from scoretune.data.store import open_store

BARE = """
import sqlite3, sys, threading
import uvicorn
from fastapi import FastAPI, Form
from typing import Annotated
app, local = FastAPI(), threading.local()
@app.post("/vote")
def vote(ballot: Annotated[str, Form()], choice: Annotated[str, Form()]) -> dict[str, bool]:
    if not hasattr(local, "db"):
        local.db = sqlite3.connect(sys.argv[1], isolation_level=None)
    local.db.execute("insert into votes values (?, ?)", (ballot, choice))
    return {"stored": True}
uvicorn.run(app, port=int(sys.argv[2]), log_level="critical", access_log=False)
"""


def filled(folder: Path, pairs: int, raters: int) -> list[str]:
    """A store with pairs of small pictures, ten of a prompt; the tokens of its raters."""
    store = open_store(str(folder), create=True)
    generator = torch.Generator().manual_seed(0)
    with store.together():
        for number in range(pairs):
            ids = []
            for side in range(2):
                sha256 = store.add_picture(torch.rand(3, 8, 8, generator=generator))
                key, prompt = f"{number}/{side}", f"prompt {number // 10}"
                ids.append(store.add_sample(prompt=prompt, picture=sha256, key=key).id)
            store.add_pair(*ids)
    return [store.add_rater(f"rater {number}")[1] for number in range(raters)]


def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as at:
        return int(at.getsockname()[1])


def studio(folder: Path, port: int) -> subprocess.Popen[str]:
    """`scoretune studio` on a store, when it answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "scoretune", "studio", str(folder), "--no-browser"]
        + ["--port", str(port), "--runs", str(folder / "runs")],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


class Rater:
    """Votes over one connection, as a browser does, and sends a vote until it is answered."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.acknowledged, self.times = port, list[str](), list[float]()
        self.connection = HTTPConnection("127.0.0.1", port, timeout=120)
        answer = self.asked("GET", f"/enter?{urlencode({'token': token})}")
        self.headers = {
            "Cookie": answer[1].partition(";")[0],
            "Origin": f"http://127.0.0.1:{port}",
            "Content-Type": "application/x-www-form-urlencoded",
        }
        page = self.asked("GET", "/vote")[2]
        found = re.search(r'data-csrf="(\w+)"', page)
        assert found is not None
        self.headers["X-CSRF-Token"] = found[1]
        self.ballot = ballot_of(page)

    def asked(self, method: str, path: str, body: str | None = None) -> tuple[int, str, str]:
        """One answer; again and again while nobody is there."""
        while True:
            try:
                self.connection.request(method, path, body, getattr(self, "headers", {}))
                got = self.connection.getresponse()
                text = got.read().decode()
                return got.status, got.headers.get("set-cookie", ""), text
            except (OSError, HTTPException):
                self.connection.close()
                time.sleep(0.2)

    def vote(self) -> bool:
        """One vote; False when there is no pair left."""
        if not self.ballot:
            return False
        body = urlencode({"ballot": self.ballot, "choice": "left", "seconds": 1})
        began = time.perf_counter()
        status, _, page = self.asked("POST", "/vote", body)
        if status == 429:
            time.sleep(1)
            return True
        assert status == 200, page
        self.times.append(time.perf_counter() - began)
        self.acknowledged.append(self.ballot)
        self.ballot = ballot_of(page)
        return True


def ballot_of(page: str) -> str:
    found = re.search(r'name="ballot" value="([^"]+)"', page)
    return found[1] if found else ""


def p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]


def cost(votes: int, folder: Path) -> dict[str, float]:
    """The 95 % quantiles of a vote, in milliseconds, and their ratio."""
    (token,) = filled(folder / "store", votes, 1)
    database = folder / "bare.db"
    with sqlite3.connect(database) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table votes (ballot text unique, choice text)")
    port, other = free(), free()
    process = studio(folder / "store", port)
    bare = subprocess.Popen([sys.executable, "-c", BARE, str(database), str(other)])
    try:
        rater = Rater(port, token)
        connection_ = HTTPConnection("127.0.0.1", other, timeout=30)
        times: dict[str, list[float]] = {"studio": [], "bare": []}
        for number in range(votes):
            began = time.perf_counter()
            rater.vote()
            times["studio"].append(time.perf_counter() - began)
            began = time.perf_counter()
            ask_bare(connection_, number)
            times["bare"].append(time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGINT)
        bare.kill()
        process.wait()
        bare.wait()
    ends = {name: 1000 * p95(sorted(values[5:])) for name, values in times.items()}
    medians = {f"{k}_median": 1000 * statistics.median(v[5:]) for k, v in times.items()}
    return {**ends, **medians, "ratio": ends["studio"] / ends["bare"]}


def ask_bare(connection: HTTPConnection, number: int) -> None:
    body = urlencode({"ballot": str(number), "choice": "left"})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    while True:
        try:
            connection.request("POST", "/vote", body, headers)
            connection.getresponse().read()
            return
        except OSError:
            connection.close()
            time.sleep(0.2)


def crowd(raters: int, votes: int, kills: int, folder: Path) -> dict[str, float]:
    """So many raters at once, each so many votes; the studio is killed and started again."""
    tokens = filled(folder / "crowd", votes, raters)
    port = free()
    process = studio(folder / "crowd", port)
    people = [Rater(port, token) for token in tokens]
    began = time.perf_counter()

    def work(rater: Rater) -> None:
        while rater.vote():
            pass

    threads = [threading.Thread(target=work, args=(rater,)) for rater in people]
    for thread in threads:
        thread.start()
    for number in range(kills):
        target = raters * votes * (number + 1) // (kills + 1)
        while sum(len(rater.acknowledged) for rater in people) < target:
            if not any(thread.is_alive() for thread in threads):
                raise SystemExit("the raters ended before the last kill: see above")
            time.sleep(0.05)
        print(f"{target} votes acknowledged, and killed", file=sys.stderr, flush=True)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = studio(folder / "crowd", port)
    for thread in threads:
        thread.join()
    process.send_signal(signal.SIGINT)
    process.wait()
    stored = open_store(str(folder / "crowd")).votes()
    acknowledged = {key for rater in people for key in rater.acknowledged}
    keys = {vote.key for vote in stored}
    twice = Counter((vote.rater, vote.pair) for vote in stored if not vote.repeat)
    return {
        "acknowledged": len(acknowledged),
        "stored": len(stored),
        "lost": len(acknowledged - keys),
        "double": sum(count - 1 for count in twice.values()) + len(stored) - len(keys),
        "seconds": time.perf_counter() - began,
        "median_ms": 1000 * statistics.median(t for rater in people for t in rater.times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raters", type=int, default=0)
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--kills", type=int, default=0)
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        if given.raters:
            result = crowd(given.raters, given.votes, given.kills, Path(folder))
        else:
            result = cost(given.votes, Path(folder))
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))


if __name__ == "__main__":
    main()
