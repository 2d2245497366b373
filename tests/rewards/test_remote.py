"""Rewards behind a URL: the protocol, a client that is patient but not for ever, the server."""

from __future__ import annotations

import json
import random
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from email.message import Message
from email.utils import formatdate
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch

from forked import forked_command
from scoretune.core.errors import UserError
from scoretune.data.prompts import Prompt
from scoretune.rewards.base import checked
from scoretune.rewards.cache import ScoreCache, eight_bit
from scoretune.rewards.catalog import named_reward
from scoretune.rewards.pixels import brightness
from scoretune.rewards.remote import protocol
from scoretune.rewards.remote.client import MOST_WAIT, TOKEN, Client, Remote
from scoretune.rewards.remote.server import MOST_AT_ONCE, RewardServer, Service

IMAGES = torch.rand(5, 3, 8, 6, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a", "b", "c", "d", "e"]
GOOD = json.dumps({"scores": [0.5]})
SCORES = partial(protocol.decode_response, count=1)


@contextmanager
def replying(*replies: tuple) -> Iterator[tuple[str, list]]:
    """A server that gives these (status, headers, body) in turn, the last one for ever.

    Yields its URL and the list of requests: (path, headers, body).
    """
    requests: list = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            requests.append((self.path, dict(self.headers), body))
            status, headers, reply = replies[min(len(requests), len(replies)) - 1]
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            pieces = [reply.encode()] if isinstance(reply, str) else reply
            for piece in pieces:
                if isinstance(piece, float):
                    time.sleep(piece)
                else:
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_GET = do_POST

        def log_message(self, *_):
            pass

        def handle(self):
            with suppress(OSError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with _running(partial(server.serve_forever, 0.01), server.shutdown):
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    server.server_close()


@contextmanager
def served(reward, **settings) -> Iterator[RewardServer]:
    server = RewardServer(Service("mine", reward, **settings), "127.0.0.1", 0)
    with _running(server.serve, server.stop):
        yield server


@contextmanager
def _running(serve, stop) -> Iterator[None]:
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join()


def patient(url: str, **settings) -> tuple[Client, list[float]]:
    """A client that notes how long it would have slept."""
    slept: list[float] = []
    return Client(url, sleep=slept.append, random=random.Random(0), **settings), slept


def question(count: int = 1, side: int = 4) -> bytes:
    pixels = np.zeros((count, side, side, 3), np.uint8)
    return protocol.encode_request(pixels, ["a"] * count)


def post(url: str, body: bytes, **headers: str) -> tuple[int, dict, Message]:
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read()), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read()), error.headers


# ---------------------------------------------------------------------------- the protocol


def test_a_question_arrives_as_it_was_asked():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 3), np.uint8)
    prompts = tuple(Prompt(text, {"text": text, "n": [1]}) for text in ("ä", "", 'b "c"'))
    arrived = protocol.decode_request(protocol.encode_request(pixels, prompts))
    assert np.array_equal(arrived.pixels, pixels)
    assert arrived.prompts == prompts
    assert [p.metadata for p in arrived.prompts] == [p.metadata for p in prompts]


def test_the_golden_message():
    message = json.loads(question())
    assert sorted(message) == ["images", "metadata", "prompts", "version"]
    assert (message["version"], message["prompts"], message["metadata"]) == (1, ["a"], [{}])
    assert message["images"][0].startswith("iVBORw0KGgo")  # the eight bytes every PNG begins with


def changed(**entries) -> bytes:
    message = json.loads(question(2)) | entries
    return json.dumps({k: v for k, v in message.items() if v is not None}).encode()


IMAGE = json.loads(question())["images"][0]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"<html>", "HTML instead of JSON: '<html>'"),
        (b"\xff\xfe", "something instead of JSON"),
        (b"[" * 100_000, "something instead of JSON"),
        (b"[1]", "the message is '[1]': input should be an object"),
        (changed(version=2), "version is '2': input should be 1"),
        (changed(prompts=None), "prompts: field required"),
        (changed(prompts=["a", 5]), "prompts[1] is '5': input should be a valid string"),
        (changed(prompts=["a"]), "1 prompts, 2 images and 2 metadata"),
        (changed(metadata=[{}, "x"]), "metadata[1] is 'x': input should be an object"),
        (changed(images=[], prompts=[], metadata=[]), "no images"),
        (changed(images=[IMAGE, "%%%"]), "image 1 is not a PNG in base64"),
        (changed(images=[IMAGE, IMAGE[:60]]), "image 1 is not a PNG in base64"),
        (changed(images=[IMAGE, "R0lGODlhAQABAAAAACw="]), "image 1 is not a PNG in base64"),
        (
            changed(images=[IMAGE, json.loads(question(side=5))["images"][0]]),
            "image 1 is 5x5 and image 0 is 4x4",
        ),
    ],
)
def test_a_malformed_question_is_told_in_one_line(body, words):
    with pytest.raises(protocol.ProtocolError) as caught:
        protocol.decode_request(body)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(protocol, "SIDE", 3)
    with pytest.raises(protocol.ProtocolError, match="image 0 is 4x4 pixels: at most 3 a side"):
        protocol.decode_request(question())


def test_metadata_may_be_missing():
    assert [p.metadata for p in protocol.decode_request(changed(metadata=None)).prompts] == [{}, {}]


def test_metadata_that_json_cannot_hold_is_refused():
    with pytest.raises(UserError, match="metadata of a prompt cannot be sent as JSON"):
        protocol.encode_request(np.zeros((1, 2, 2, 3), np.uint8), [Prompt("a", {"x": set()})])


# ---------------------------------------------------------------------------- the client


def test_a_served_reward_is_the_reward_of_the_8_bit_pictures():
    with served(brightness, batch=2) as server:
        reward = Remote(server.url, batch=3)
        found = checked(reward, "server", IMAGES, PROMPTS)
    exact = brightness((IMAGES * 255).round() / 255, PROMPTS)
    torch.testing.assert_close(found, exact, atol=1e-6, rtol=0)
    assert not torch.allclose(found, brightness(IMAGES, PROMPTS), atol=1e-7, rtol=0)


def test_questions_go_in_batches_with_their_metadata():
    prompts = [Prompt(text, {"text": text * 2}) for text in PROMPTS]
    seen = []

    def reward(images, prompts):
        seen.append([(str(p), p.metadata["text"]) for p in prompts])
        return images.mean((1, 2, 3))

    with served(reward) as server:
        Remote(server.url, batch=2)(IMAGES, prompts)
    assert seen == [
        [("a", "aa"), ("b", "bb")],
        [("c", "cc"), ("d", "dd")],
        [("e", "ee")],
    ]


def test_a_bare_url_is_a_server():
    assert named_reward("http://127.0.0.1:9") == Remote("http://127.0.0.1:9")
    written = "server(url=https://host:8000/x, timeout=5, batch=2, retries=0, cache=0)"
    wanted = Remote("https://host:8000/x", timeout=5.0, batch=2, retries=0, cache=0)
    assert named_reward(written) == wanted


def test_500_three_times_and_then_recovery():
    bad = (500, {}, '{"error": "out of memory"}')
    with replying(bad, bad, bad, (200, {}, GOOD)) as (url, requests):
        client, slept = patient(url, retries=3)
        assert client.post(b"x", SCORES) == [0.5]
    assert len(requests) == 4
    dice = random.Random(0)
    assert slept == [base * dice.uniform(0.5, 1.5) for base in (0.5, 1.0, 2.0)]


def test_what_does_not_recover_is_told_with_the_servers_own_words():
    with replying((500, {}, '{"error": "out of\\nmemory"}')) as (url, requests):
        client, slept = patient(url, retries=2)
        with pytest.raises(UserError) as caught:
            client.post(b"x", SCORES)
    assert len(requests) == 3 and len(slept) == 2
    assert str(caught.value) == (
        f"reward server {url} answered 500 (out of memory) (3 attempts): see its log, then repeat "
        "the command, or go on with scoretune train --resume and the run's folder"
    )


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(status):
    soon = formatdate(time.time() + 60, usegmt=True)
    replies = [(status, {"Retry-After": "7"}, ""), (status, {"Retry-After": soon}, "")]
    with replying(*replies, (200, {}, GOOD)) as (url, _):
        client, slept = patient(url)
        client.post(b"x", SCORES)
    assert slept[0] == 7.0
    assert 57 < slept[1] <= 60


def test_who_asks_to_wait_for_an_hour_is_not_waited_for():
    assert MOST_WAIT < 3600
    with replying((429, {"Retry-After": "3600"}, "")) as (url, requests):
        client, slept = patient(url)
        with pytest.raises(UserError, match="asks to wait 3600 s"):
            client.post(b"x", SCORES)
    assert (len(requests), slept) == (1, [])


@pytest.mark.parametrize(
    ("status", "headers", "fix"),
    [
        (400, {}, "mend what it names"),
        (401, {}, TOKEN),
        (404, {}, "mend the path"),
        (413, {}, "lower batch="),
        (302, {"Location": "http://elsewhere/"}, "give the url http://elsewhere/"),
    ],
)
def test_a_refusal_is_never_asked_again(status, headers, fix):
    with replying((status, headers, "<html>no</html>")) as (url, requests):
        client, slept = patient(url)
        with pytest.raises(UserError, match=fix):
            client.post(b"x", SCORES)
    assert (len(requests), slept) == (1, [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_no_failure_until_patience_ends(status):
    with replying(*[(status, {}, "")] * 9, (200, {}, GOOD)) as (url, requests):
        client, slept = patient(url, retries=0)
        assert client.post(b"x", SCORES) == [0.5]
    dice = random.Random(0)
    bases = [min(0.5 * 2**k, 30.0) for k in range(9)]
    assert len(requests) == 10
    assert slept == [base * dice.uniform(0.5, 1.5) for base in bases]
    with replying((status, {"Retry-After": "7"}, "")) as (url, requests):
        client, slept = patient(url, patience=22.0)
        with pytest.raises(UserError, match=r"\(busy for 21 s\): raise patience="):
            client.post(b"x", SCORES)
    assert slept == [7.0, 7.0, 7.0] and len(requests) == 4


def test_an_answer_that_breaks_off_is_asked_for_again():
    cut, length = '{"version": 1, "scores": [0.', {"Content-Length": "60"}
    with replying((200, {}, cut), (200, length, cut), (200, {}, GOOD)) as (url, requests):
        reward = Remote(url)
        object.__setattr__(reward.client, "sleep", lambda seconds: None)
        assert reward(IMAGES[:1], ["a"]).tolist() == [0.5]
    assert len(requests) == 3
    said = pytest.raises(UserError, match=r"JSON that breaks off after 28 bytes \(1 attempt\)")
    with replying((200, {}, cut)) as (url, _), said:
        Remote(url, retries=0)(IMAGES[:1], ["a"])


def test_headers_that_drip_end_with_the_timeout():
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def drip() -> None:
        line, _ = listener.accept()
        with line, suppress(OSError):
            line.sendall(b"HTTP/1.1 200 OK\r\nX: ")
            while not ended.wait(0.02):
                line.sendall(b"a")

    with _running(drip, ended.set), listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UserError, match=r"gave no answer within 0\.3 s"):
            Client(url, timeout=0.3, retries=0).post(b"x", SCORES)


def test_a_server_that_is_down():
    with replying((200, {}, GOOD)) as (url, _):
        pass
    client, slept = patient(url, retries=2)
    with pytest.raises(UserError) as caught:
        client.post(b"x", SCORES)
    assert f"reward server {url} cannot be reached:" in str(caught.value)
    assert str(caught.value).endswith(
        "refused (3 attempts): start it, or mend the url, then repeat the command, or go on with "
        "scoretune train --resume and the run's folder"
    )
    assert len(slept) == 2


@pytest.mark.parametrize(
    "body",
    [
        [0.5, GOOD.encode()],  # silent, then all at once
        [piece for letter in GOOD for piece in (0.03, letter.encode())],  # a letter at a time
    ],
)
def test_a_server_that_is_slow(body):
    with replying((200, {}, body)) as (url, requests):
        client, _ = patient(url, retries=1, timeout=0.1)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"gave no answer within 0\.1 s \(2 attempts"):
            client.post(b"x", SCORES)
        assert time.monotonic() - start < 0.6
    assert len(requests) == 2


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"scores": [1, 2]}', "it gave 2 scores for 1 images"),
        ("<!doctype html><p>Sign in", "HTML instead of JSON: '<!doctype html><p>Sign in'"),
        ('{"scores": [NaN]}', "scores[0] is 'nan': input should be a finite number"),
        ('{"scores": [1e999]}', "scores[0] is 'inf': input should be a finite number"),
        ('{"scores": [1' + "0" * 400 + "]}", "...': input should be a finite number"),
        ('{"scores": ["high"]}', "scores[0] is 'high': input should be a valid number"),
        ('{"scores": [true]}', "scores[0] is 'True': input should be a valid number"),
        ('{"scores": 0.5}', "scores is '0.5': input should be a valid array"),
        ('{"reward": [0.5]}', "scores: field required"),
        ('{"version": 7, "scores": [0.5]}', "version is '7': input should be 1"),
    ],
)
def test_an_answer_that_is_none(body, words):
    with replying((200, {}, body)) as (url, requests), pytest.raises(UserError) as caught:
        Remote(url)(IMAGES[:1], ["a"])
    line = str(caught.value)
    assert words in line and url in line and "train --resume and" in line and "\n" not in line
    assert len(requests) == 1


def test_an_endless_answer_is_cut_off(monkeypatch):
    monkeypatch.setattr("scoretune.rewards.remote.client.MOST_BYTES", 1000)
    with replying((200, {}, "x" * 5000)) as (url, _), pytest.raises(UserError, match="endless"):
        Client(url).post(b"x", SCORES)


def test_waiting_draws_nothing_from_the_runs_random_numbers():
    random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), torch.get_rng_state()
    with replying((503, {}, ""), (200, {}, GOOD)) as (url, _):
        Client(url, sleep=lambda _: None).post(b"x", SCORES)
    assert random.getstate() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])


def test_the_token_is_sent_and_a_proxy_is_not_asked_for_this_machine(monkeypatch):
    monkeypatch.setenv(TOKEN, "secret ")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with replying((200, {}, GOOD)) as (url, requests):
        Client(url).post(b"x", SCORES)
    assert requests[0][1]["Authorization"] == "Bearer secret"


def test_a_token_that_no_header_can_hold(monkeypatch):
    monkeypatch.setenv(TOKEN, "a\nb")
    with pytest.raises(UserError, match=TOKEN):
        Client("http://127.0.0.1:9").post(b"x", SCORES)


@pytest.mark.parametrize(
    "url", ["host:8000", "ftp://host", "http://", "http://h:99999", "http://h/a b", "http://ö/"]
)
def test_no_url(url):
    with pytest.raises(UserError, match=r"no url of a server: write http://host:port"):
        Remote(url)


def test_a_password_in_a_url_would_be_recorded():
    with pytest.raises(UserError, match=TOKEN) as caught:
        Remote("http://me:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("setting", [{"timeout": 0}, {"retries": -1}, {"batch": 0}, {"cache": -1}])
def test_settings_out_of_range(setting):
    with pytest.raises(UserError, match=r"^server\(timeout="):
        Remote("http://host", **setting)


def test_the_fingerprint_asks_the_server_and_does_without_it():
    with served(brightness, fingerprint={"weights": {"sha256": "ab"}}) as server:
        there = Remote(server.url).fingerprint()
    assert there == {
        "url": server.url,
        "served": "mine",
        "served weights": '{"sha256": "ab"}',
    }
    assert Remote(server.url).fingerprint() == {"url": server.url, "served": "unknown"}


# ---------------------------------------------------------------------------- the memory


def test_what_was_asked_before_is_not_asked_again():
    requests = []

    def ask(pixels, prompts):
        requests.append(list(prompts))
        return [float(picture.mean()) for picture in pixels]

    memory, pixels = ScoreCache(10), eight_bit(IMAGES)
    first = memory.scores(pixels, PROMPTS, ask, 2)
    assert requests == [["a", "b"], ["c", "d"], ["e"]]
    again = memory.scores(pixels.copy(), PROMPTS, ask, 2)
    assert torch.equal(first, again)
    assert (len(requests), memory.hits, memory.misses) == (3, 5, 5)
    memory.scores(pixels[:1], ["another prompt"], ask, 2)
    memory.scores(pixels[:1], [Prompt("a", {"text": "x"})], ask, 2)
    changed = pixels[:1].copy()
    changed[0, 0, 0, 0] ^= 1
    memory.scores(changed, ["a"], ask, 2)
    memory.scores(pixels[:1].transpose(0, 2, 1, 3), ["a"], ask, 2)
    assert (len(requests), memory.hits, memory.misses) == (7, 5, 9)


def test_equal_pictures_of_a_batch_are_asked_for_once_and_without_a_memory_each():
    pixels, counts = eight_bit(IMAGES[[0, 0, 1, 0]]), {}
    for size in (5, 0):
        seen = []
        memory = ScoreCache(size)
        memory.scores(
            pixels, ["a"] * 4, lambda p, q, seen=seen: [seen.append(x) or 0.0 for x in q], 8
        )
        counts[size] = len(seen)
    assert counts == {5: 2, 0: 4}


def test_the_one_asked_for_longest_ago_is_forgotten():
    memory, pixels = ScoreCache(2), eight_bit(IMAGES)

    def ask(place):
        before = memory.misses
        memory.scores(pixels[[place]], ["a"], lambda p, q: [0.0] * len(q), 1)
        return memory.misses > before

    assert [ask(0), ask(1), ask(0), ask(2), ask(0), ask(1)] == [1, 1, 0, 1, 0, 1]
    assert len(memory) == 2


def test_what_came_before_a_failure_stays_known():
    memory, pixels = ScoreCache(10), eight_bit(IMAGES)

    def ask(_, prompts):
        if "c" in prompts:
            raise UserError("down")
        return [1.0] * len(prompts)

    with pytest.raises(UserError):
        memory.scores(pixels, PROMPTS, ask, 2)
    assert len(memory) == 2


def test_pictures_become_8_bit_as_a_screen_shows_them():
    images = torch.tensor([-1.0, 0.0, 0.5, 1.0, 7.0, 100.4 / 255]).view(1, 1, 1, 6)
    found = eight_bit(images.expand(1, 3, 1, 6))
    assert found.shape == (1, 1, 6, 3)
    assert found[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 100]
    broken = IMAGES.clone()
    broken[3, 0, 0, 0] = torch.nan
    with pytest.raises(UserError, match="picture 3 of 5 holds NaN"):
        eight_bit(broken)


# ---------------------------------------------------------------------------- the server


def test_concurrent_questions_are_answered_one_at_a_time():
    inside, most = 0, 0

    def reward(images, prompts):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return images.mean((1, 2, 3))

    found = {}
    with served(reward) as server:

        def ask(place):
            found[place] = float(Remote(server.url)(IMAGES[[place]], ["a"]))

        threads = [threading.Thread(target=ask, args=(place,)) for place in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    exact = brightness((IMAGES * 255).round() / 255, PROMPTS).tolist()
    assert [found[place] for place in range(5)] == pytest.approx(exact, abs=1e-6)
    assert most == 1


def test_too_many_at_once_are_asked_to_come_back():
    with served(brightness) as server:
        for _ in range(MOST_AT_ONCE):
            server.service.places.acquire()
        status, message, headers = post(server.url, question())
        assert (status, headers["Retry-After"]) == (429, "1")
        for _ in range(MOST_AT_ONCE):
            server.service.places.release()
        assert post(server.url, question())[0] == 200
    assert "wait already" in message["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/", changed(images=[IMAGE, "AAAA"]), 400, "image 1 is not a PNG"),
        ("/", b"{", 400, "JSON that breaks off after 1 bytes"),
        ("/", b" " * 300_000, 413, "300000 bytes, and 200000 at most"),
        ("/", b" " * 30_000_000, 413, "30000000 bytes"),
        ("/else", question(), 404, "nothing is at '/else'"),
    ],
)
def test_what_the_server_refuses(path, body, status, words, capsys):
    with served(brightness, limit=200_000) as server:
        found, message, _ = post(server.url + path, body)
    assert (found, list(message)) == (status, ["error"])
    assert words in message["error"]
    logged = capsys.readouterr().err.splitlines()
    assert len(logged) == 1 and f"127.0.0.1 {status} " in logged[0] and words in logged[0]


def test_the_client_shows_which_image_did_not_decode(monkeypatch):
    monkeypatch.setattr(protocol, "_png", lambda picture: "AAAA")
    told_which = pytest.raises(UserError, match=r"400 \(image 0 is not a PNG in base64")
    with served(brightness) as server, told_which:
        Remote(server.url)(IMAGES[:2], ["a", "b"])


def test_what_the_reward_refuses_is_not_asked_again_and_what_broke_is():
    def refuses(images, prompts):
        raise UserError("no quotes in the prompt")

    def breaks(images, prompts):
        raise RuntimeError("CUDA out of memory")

    for reward, status, words in ((refuses, 422, "no quotes"), (breaks, 500, "out of memory")):
        with served(reward) as server:
            found, message, _ = post(server.url, question())
        assert found == status
        assert words in message["error"]


def test_a_token_guards_the_reward_and_what_it_is():
    with served(brightness, token="secret") as server:
        assert post(server.url, question())[0] == 401
        assert post(server.url, question(), Authorization="Bearer secre")[0] == 401
        assert post(server.url, question(), Authorization="Bearer secret")[0] == 200
        health = {"version": 1, "ready": True}
        assert post(f"{server.url}/health", None)[1] == health
        known = post(f"{server.url}/health", None, Authorization="Bearer secret")[1]
    assert known == health | {"reward": "mine", "fingerprint": {}}


def test_a_request_is_one_line_that_says_what_was_remembered(capsys):
    with replying((200, {}, '{"scores": [1]}')) as (url, requests), served(Remote(url)) as server:
        for _ in range(2):  # of two equal pictures one is scored
            assert post(server.url, changed())[1] == {"version": 1, "scores": [1.0, 1.0]}
    assert len(requests) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "127.0.0.1 200 2 images, " in first and "remembered" not in first
    assert "127.0.0.1 200 2 images, 2 remembered, " in second


def test_requests_that_drip_lock_nobody_out(monkeypatch):
    """More of them than wait for a score, each with the headers and a piece of the body."""
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{"
    with served(brightness) as server, ExitStack() as stack:
        for _ in range(MOST_AT_ONCE + 4):
            line = socket.create_connection((server.host, server.port), timeout=10)
            stack.enter_context(line).sendall(head)
        assert post(server.url, question())[0] == 200


def test_a_connection_that_asks_for_nothing_is_closed(monkeypatch):
    monkeypatch.setattr("scoretune.rewards.remote.server.HEADER_PATIENCE", 0.2)
    with (
        served(brightness) as server,
        socket.create_connection((server.host, server.port), timeout=10) as line,
    ):
        line.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nX-Slow: ")
        assert line.recv(100) == b""


def test_bodies_have_room_for_so_many_bytes_in_all():
    with served(brightness, limit=1000) as server:
        server.service.held = 3999
        status, message, headers = post(server.url, question())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "of other requests wait already" in message["error"]
        server.service.held = 0
        assert post(server.url, question())[0] == 200
        assert server.service.held == 0


def test_the_pixels_of_a_request_are_bounded_before_any_is_decoded(monkeypatch):
    monkeypatch.setattr(protocol, "PIXELS", 40)
    assert len(protocol.decode_request(question(2)).pixels) == 2  # of 16 pixels each
    with pytest.raises(
        protocol.ProtocolError, match="the images have 48 pixels, 40 at most: send fewer"
    ):
        protocol.decode_request(question(3))


def test_foreign_text_cannot_command_the_terminal(capsys):
    with served(brightness) as server:
        post(server.url + "/%1b%5b2J", question())
    assert "\x1b" not in capsys.readouterr().err
    command = '{"error": "\\u001b]0;owned\\u0007"}'
    with replying((400, {}, command)) as (url, _), pytest.raises(UserError) as caught:
        Client(url).post(b"x", SCORES)
    assert r"\x1b]0;owned\x07" in str(caught.value)


def test_a_reward_is_not_opened_to_other_machines_without_a_token(command):
    found = command("serve-reward", "brightness", "--host", "0.0.0.0", "--port", 0)
    assert found.code == 2 and "--host 0.0.0.0 is open to other machines: give --token" in found.err


def test_a_body_that_does_not_arrive(monkeypatch):
    monkeypatch.setattr("scoretune.rewards.remote.server.PATIENCE", 0.2)
    with (
        served(brightness) as server,
        socket.create_connection((server.host, server.port), timeout=10) as line,
    ):
        line.sendall(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in line.recv(2**16)
        assert server.service.places.acquire(blocking=False)  # its place is free again


@pytest.mark.parametrize("missing", ["fastapi", "uvicorn"])
def test_serving_without_the_extra_names_it(command, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    result = command("serve-reward", "brightness", "--port", 0)
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert f"serving a reward needs {missing}: pip install 'scoretune[serve]'" in result.err


def test_a_port_that_is_taken():
    with served(brightness) as server:
        port = server.port
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port} .*--port"):
            RewardServer(server.service, "127.0.0.1", port)


def test_the_command_serves_and_stops():
    with forked_command("serve-reward", "brightness", "--port", 0) as process:
        ready = process.stdout.readline()
        assert ready.startswith("brightness is ready at http://127.0.0.1:")
        url = ready.split()[4].rstrip(";")
        reward = Remote(url)
        found = reward(IMAGES, PROMPTS)
        fingerprint = reward.fingerprint()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert torch.allclose(found, brightness(IMAGES, PROMPTS), atol=2e-3)
    assert fingerprint["served"] == "brightness"
    assert (process.returncode, out) == (0, "stopped\n")
    assert len(err.splitlines()) == 1 and "200 5 images, " in err


def test_the_command_says_what_is_wrong(command):
    found = command("serve-reward", "brightnes")
    assert (found.code, len(found.err.splitlines())) == (2, 1)
    assert "did you mean 'brightness'" in found.err
    found = command("serve-reward", "brightness", "--device", "tpu")
    assert found.code == 2 and "--device tpu" in found.err


def test_a_run_whose_server_dies_goes_on_where_it_stopped(command, small, tmp_path):
    run, states = tmp_path / "run", []

    def mortal(images, prompts):
        saved = any((run / "checkpoints").glob("step-*"))
        states.append("saved" if saved else "new")
        if states.count("saved") == 1:
            raise RuntimeError("the machine is gone")
        return images.mean((1, 2, 3))

    with served(mortal) as server:
        reward = f"reward=server(url={server.url}, retries=0, cache=0)"
        stopped = command("train", "ddpo", *small, reward, "evaluation.steps=1", "--run", run)
        told = [line for line in stopped.err.splitlines() if line.startswith("scoretune: ")]
        assert (stopped.code, len(told), states[-1]) == (2, 1, "saved")
        assert "the machine is gone" in told[0] and "scoretune train --resume" in told[0]
        resumed = command("train", "--resume", run)
    assert resumed.code == 0, resumed.err
    updates = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["update"] for line in updates if "loss" in line] == [1, 2]
