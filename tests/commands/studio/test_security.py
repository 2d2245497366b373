"""The studio's guard: each attack is tried, and refused, and nothing is changed by it."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoretune.commands.studio import keys
from scoretune.commands.studio.keys import Keys, Session
from scoretune.commands.studio.security import MOST_BYTES, Rate
from scoretune.commands.studio.studio import Studio
from scoretune.core.errors import UserError
from studios import Client, ballot_of, filled, served

EVIL = "<script>document.title='stolen'</script>\"'><img src=x onerror=alert(1)>"
SQL = "'; DROP TABLE votes; --"


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    folder = tmp_path_factory.mktemp("store")
    with served(filled(folder, prompts=(EVIL, SQL, "two fives")), folder) as made:
        yield made


@pytest.fixture
def owner(studio: Studio) -> Client:
    studio.door.failures.buckets.clear()
    studio.door.requests.buckets.clear()
    return Client(studio.address).enter(studio.keys.token)


@pytest.fixture
def rater(studio: Studio) -> Client:
    studio.door.failures.buckets.clear()
    return Client(studio.address).enter(studio.store.add_rater(EVIL)[1])


def picture_of(studio: Studio) -> str:
    return f"/pictures/{studio.store.samples()[0].picture}"


def test_nothing_is_served_without_a_session(studio: Studio):
    stranger = Client(studio.address)
    for path in ("/", "/vote", "/static/studio.css", picture_of(studio), "/runs", "/nothing"):
        answer = stranger.get(path)
        assert answer.status in (401, 429), path
        assert "<form" not in answer.text
    assert stranger.post("/vote", ballot="x", choice="left").status in (401, 429)


def test_wrong_tokens_are_refused_and_then_for_a_while_all(studio: Studio):
    studio.door.failures.buckets.clear()
    stranger = Client(studio.address)
    answers = [stranger.get(f"/enter?token=guess{n}").status for n in range(12)]
    assert answers[:10] == [401] * 10 and answers[-1] == 429
    assert stranger.get("/enter").status == 429
    studio.door.failures.buckets.clear()
    for cookie in ("owner.1.99999999999.0", "owner.1.x.", "....", "é", ""):
        stranger.cookie = f"{studio.door.cookie}={cookie}"
        assert stranger.get("/vote").status == 401


def test_the_cookie_is_out_of_scripts_and_other_sites_reach(studio: Studio):
    cookie = Client(studio.address).get(f"/enter?token={studio.keys.token}").headers["set-cookie"]
    assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
    assert studio.keys.token not in cookie


def test_a_session_cannot_be_raised_or_outlive_its_time():
    one = Keys(b"k" * 32, "t" * 20)
    cookie = one.cookie(Session("7", owner=False), now=0.0)
    assert one.session(cookie, now=10.0) == Session("7", owner=False)
    assert one.session(cookie.replace("rater", "owner", 1), now=10.0) is None
    assert one.session(cookie.replace(".7.", ".8.", 1), now=10.0) is None
    assert one.session(cookie, now=keys.LASTING + 1.0) is None
    assert Keys(b"j" * 32, "t" * 20).session(cookie, now=10.0) is None
    assert one.csrf(cookie) != one.csrf(one.cookie(Session("8", owner=False), now=0.0))


def test_another_raters_ballot_and_vote_are_out_of_reach(studio: Studio, owner: Client):
    first, second = (
        Client(studio.address).enter(studio.store.add_rater(name)[1]) for name in ("ann", "bob")
    )
    theirs = ballot_of(first.get("/vote").text)
    assert second.post("/vote", ballot=theirs, choice="left").status == 403
    assert first.post("/vote", ballot=theirs, choice="left").status == 200
    assert "nothing to take back" in second.post("/vote/undo").text
    second.csrf, first.csrf = first.csrf, second.csrf
    assert second.post("/vote/undo").status == 403
    voted = [vote for vote in studio.store.votes() if vote.key == theirs]
    assert len(voted) == 1 and studio.store.rater(voted[0].rater).name == "ann"


def test_other_origins_and_hosts_change_and_read_nothing(studio: Studio, owner: Client):
    before = len(studio.store.votes())
    body = f"ballot={ballot_of(owner.get('/vote').text)}&choice=left".encode()
    port = studio.address.rpartition(":")[2]
    for origin in ("http://evil.example", "null", "", None, f"http://localhost.evil:{port}"):
        assert owner.ask("POST", "/vote", body, origin=origin).status == 403
    assert owner.ask("POST", "/vote", body, x_csrf_token=None).status == 403
    assert owner.ask("POST", "/vote", body, x_csrf_token="0" * 32).status == 403
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", "", f"127.0.0.1.evil:{port}"):
        assert owner.ask("GET", "/vote", host=host).status == 421
        assert owner.ask("POST", "/vote", body, host=host, origin=f"http://{host}").status == 421
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert owner.ask(method, "/vote", body).status == 405
    assert len(studio.store.votes()) == before


def test_only_pictures_of_the_store_are_files(studio: Studio, owner: Client):
    assert owner.get(picture_of(studio)).status == 200
    for path in (
        "/pictures/../store.db",
        "/pictures/..%2fstore.db",
        "/pictures/%2e%2e%2fstudio.key",
        "/pictures//etc/passwd",
        f"/pictures/{'0' * 64}",
        "/pictures/'%20OR%201=1",
        "/pictures/%00",
        "/static/../keys.py",
        "/static/..%2f..%2f..%2fpyproject.toml",
        "/static//etc/passwd",
    ):
        answer = owner.get(path)
        assert answer.status == 404, path
        assert "root:" not in answer.text and "SQLite" not in answer.text


def test_texts_are_shown_and_never_run(studio: Studio, rater: Client, owner: Client):
    pages = [rater.get("/vote").text for _ in range(2)]
    voter = Client(studio.address).enter(studio.store.add_rater("eve")[1])
    for _ in studio.store.pairs():
        page = voter.get("/vote").text
        pages.append(page)
        voter.post("/vote", ballot=ballot_of(page), choice="tie")
    assert any("&lt;script&gt;" in page for page in pages)
    for page in pages:
        assert "<script>document" not in page and "<img src=x" not in page
        assert 'onerror=alert(1)>"' not in page


def test_every_answer_carries_the_policy(studio: Studio, owner: Client):
    for path in ("/vote", "/static/studio.css", picture_of(studio), "/nothing", "/enter"):
        headers = owner.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy, path
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
    page = owner.get("/vote").text
    assert "<style" not in page and " style=" not in page and " onclick" not in page
    assert page.count("<script") == page.count("<script src=")


def test_sql_and_nonsense_in_every_field_are_one_line(studio: Studio, owner: Client):
    before = len(studio.store.votes())
    ballot = ballot_of(owner.get("/vote").text)
    for fields in (
        {"ballot": SQL, "choice": "left"},
        {"ballot": ballot, "choice": SQL},
        {"ballot": ballot, "choice": "left", "seconds": SQL},
        {"ballot": ballot + SQL, "choice": "left"},
        {"ballot": "1.0.x." + "0" * 32, "choice": "left"},
        {"ballot": "x" * 5000, "choice": "left"},
        {"ballot": "\ud800".encode("utf-8", "surrogatepass"), "choice": "left"},
        {},
    ):
        answer = owner.post("/vote", **fields)
        assert answer.status in (403, 404, 422), fields
        assert len(answer.text.splitlines()) == 1 and "Traceback" not in answer.text
    assert len(studio.store.votes()) == before
    assert owner.post("/vote", ballot=ballot, choice="left", seconds="nan").status == 200


def test_bodies_are_bounded(owner: Client):
    assert owner.ask("POST", "/vote", b"x" * (MOST_BYTES + 1)).status == 413
    assert owner.ask("POST", "/vote", b"x", content_length=str(10**12)).status == 413
    assert owner.ask("POST", "/vote", b"x", content_length="-1").status in (400, 413)


def test_requests_are_limited_by_rate():
    rate = Rate(rate=1.0, burst=3.0)
    assert [rate.take("a", now=0.0) for _ in range(4)] == [True, True, True, False]
    assert rate.take("b", now=0.0) and not rate.take("a", now=0.5) and rate.take("a", now=1.6)
    assert rate.take("c", now=0.0, cost=0.0) and rate.take("c", now=0.0, cost=0.0)


def test_too_many_requests_are_told_so(studio: Studio, owner: Client):
    rate = studio.door.requests
    rate.burst, rate.rate = 5.0, 0.0
    try:
        rate.buckets.clear()
        statuses = [owner.get("/vote").status for _ in range(6)]
    finally:
        rate.burst, rate.rate = 200.0, 40.0
        rate.buckets.clear()
    assert statuses == [200] * 5 + [429]


def test_the_secret_is_for_its_owners_eyes_and_lasts(tmp_path: Path):
    first, second = keys.opened(tmp_path), keys.opened(tmp_path)
    assert first.secret == second.secret and first.token != second.token
    assert stat.S_IMODE((tmp_path / keys.NAME).stat().st_mode) == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == [keys.NAME]
    (tmp_path / keys.NAME).write_bytes(b"short")
    with pytest.raises(UserError, match="damaged"):
        keys.opened(tmp_path)


def test_a_token_file_must_hold_a_secret(tmp_path: Path):
    file = tmp_path / "token"
    for text in ("", "short", "two words that are long", "ü" * 20):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="token-file"):
            keys.opened(tmp_path, file)
    file.write_text("a-token-of-some-length\n")
    assert keys.opened(tmp_path, file).is_owner("a-token-of-some-length")
    with pytest.raises(UserError, match="cannot read --token-file"):
        keys.opened(tmp_path, tmp_path / "none")


def test_other_machines_need_a_token_file(command):
    outcome = command("studio", "--demo", "--host", "0.0.0.0")
    assert outcome.code == 2 and "--token-file" in outcome.err and outcome.err.count("\n") == 1


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it is 60,000 x 60,000 pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"\0" * 10_000)
    chunks = [head, data, b"IEND"]
    parts = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_uploads_are_looked_at_before_they_are_decoded(studio: Studio, rater: Client):
    before = len(studio.store.samples())
    for payload in (bomb(), b"<svg onload=alert(1)>", b"", b"GIF89a", b"\x89PNG\r\n\x1a\n"):
        body = b'--x\r\nContent-Disposition: form-data; name="picture"; filename="../../a"\r\n\r\n'
        body += payload + b"\r\n--x--\r\n"
        kind = "multipart/form-data; boundary=x"
        answer = rater.ask("POST", "/why/1/upload", body, content_type=kind)
        assert answer.status == 422, answer
        assert len(answer.text.splitlines()) == 1
    assert len(studio.store.samples()) == before


def test_reasons_of_any_text_are_stored_and_never_run(studio: Studio, rater: Client):
    ticket = re.search(r'name="ticket" value="([^"]+)"', rater.get("/why/1").text)
    assert ticket is not None
    sent = {"ticket": ticket[1], "tags": [EVIL[:40]], "text": EVIL + SQL, "box": "0,0,1,1"}
    answer = rater.post("/why/1", **sent)
    assert answer.status == 200 and "<script>document" not in answer.text
    assert "&lt;script&gt;" in answer.text
    for box in ("1,1,0,0", "0,0,2,2", "a,b,c,d", "nan,0,1,1", SQL):
        assert rater.post("/why/1", **sent | {"box": box}).status == 422
    assert rater.get(f"/why/{10**30}").status == rater.get("/why/x").status == 422
    assert [reason.text for reason in studio.store.reasons()] == [EVIL + SQL]
