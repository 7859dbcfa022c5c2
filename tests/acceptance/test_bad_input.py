"""RELIABILITY C1 over the wire: gunicorn with the real settings, and bytes that no client library would send.

Every answer is checked by `wire.checked`: problem documents, no HTML, no redirect, no 500. What is refused stores
nothing; what is accepted is stored as it was sent. The inputs are in corpus.py. Not here: callbacks
(test_bad_callbacks.py), settings (test_bad_settings.py).
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from jobsboard.api import keys
from jobsboard.models import SCOPES, ApiKey
from tests.acceptance.corpus import BAD_BODIES, BAD_HTTP, BAD_KEYS, BAD_QUERIES, KEPT, PLAIN, with_payload
from tests.acceptance.wire import Answer, Web, quiet_rows, rows, until
from tests.factories import get, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("transactional_db")]

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def transactional_db(committed: None) -> None:
    """One database for all tests of this module."""


@pytest.fixture
def nothing_stored(web: Web) -> Iterator[None]:
    """Insist that the test leaves every row as it was."""
    before = rows()
    yield
    assert rows() == before


def test_bad_bodies(web: Web, nothing_stored: None, subtests: pytest.Subtests) -> None:
    """H-01 to H-19: each is refused with its code, and nothing is stored."""
    for name, body, status, code in BAD_BODIES:
        with subtests.test(name):
            answer = web.post("/jobs", body)
            if code == "*":
                assert answer.status == status, answer
            else:
                answer.problem(status, code)


def test_the_place_of_the_error(web: Web, nothing_stored: None) -> None:
    """H-01, H-15: line and column, or a pointer that leads there."""
    assert "line 1 column 7" in web.post("/jobs", b'{"a":1').problem(400, "invalid_json")["detail"]
    said = web.post("/jobs", with_payload(b'{"a":[{"b/c":1,"b/c":2}]}')).problem(422, "duplicate_key")
    assert said["pointer"].endswith("/a/0/b~1c")


def chunked(*pieces: bytes) -> Iterator[bytes]:
    """Yield a chunked body."""
    for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


CHUNKED = (("Content-Type", "application/json"), ("Transfer-Encoding", "chunked"))


def test_sizes(web: Web, nothing_stored: None) -> None:
    """H-02: the limit is said, whether the length is announced, chunked or a lie."""
    for path, limit in (("/jobs", MIB), ("/jobs/batch", 16 * MIB)):
        head = web.head("POST", f"/api/v1{path}", headers=(*CHUNKED[:1], ("Content-Length", str(limit + 1))))
        assert web.raw([head, b" " * 65536]).problem(413, "payload_too_large")["limit"] == limit
        head = web.head("POST", f"/api/v1{path}", headers=CHUNKED)
        answer = web.raw([head, *chunked(*[b" " * 65536] * (limit // 65536), b"  ")])
        assert answer.problem(413, "payload_too_large")["limit"] == limit
    huge = web.head("POST", "/api/v1/jobs", headers=(*CHUNKED[:1], ("Content-Length", "9" * 30)))
    web.raw([huge, b"{"]).problem(413, "payload_too_large")


def test_a_chunked_body_is_taken(web: Web) -> None:
    """H-02: without Content-Length, in pieces that cut characters in two; stored as it was sent."""
    payload = '{"é": "🚀",  "n":1.0}'.encode()
    body = with_payload(payload)
    answer = web.raw([web.head("POST", "/api/v1/jobs", headers=CHUNKED), *chunked(*(bytes([b]) for b in body))])
    assert answer.status == 201
    assert get(UUID(answer.json()["id"])).payload == payload.decode()


def test_bad_http(web: Web, nothing_stored: None, subtests: pytest.Subtests) -> None:
    """H-02: what never becomes a request is answered as a problem as well, by gunicorn itself."""
    for name, rest in BAD_HTTP:
        with subtests.test(name):
            head = web.head("POST", "/api/v1/jobs", headers=CHUNKED[:1])[:-2]
            assert 400 <= web.raw(head + rest).status <= 501
    for line in (b"POST /api/v1/jobs?" + b"a" * 10_000 + b" HTTP/1.1", b"POST", b"\x16\x03\x01", b"get / HTTP/1.1",
                 b"POST /api/v1/jobs HTTP/9.9"):  # fmt: skip
        with subtests.test(str(line[:20])):
            assert 400 <= web.raw(line + b"\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").status < 500


def test_other_content_types(web: Web, nothing_stored: None) -> None:
    """415: only application/json, and no content encoding."""
    body = json.dumps(PLAIN).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "json", "*/*"):
        web.post("/jobs", body, kind=kind).problem(415, "unsupported_media_type")
    web.post("/jobs", body, headers=[("Content-Encoding", "gzip")]).problem(415, "unsupported_media_type")
    bare = web.head("POST", "/api/v1/jobs", headers=[("Content-Length", str(len(body)))])
    web.raw(bare + body).problem(415, "unsupported_media_type")


def test_bad_keys(web: Web, nothing_stored: None, subtests: pytest.Subtests) -> None:
    """H-05, H-10: a key has 1 to 255 visible ASCII characters, in the body and in the header."""
    for key in BAD_KEYS:
        with subtests.test(ascii(key[:20])):
            web.post("/jobs", {**PLAIN, "dedupe_key": key}).problem(400, "dedupe_key_invalid", "/dedupe_key")
    for sent in ("k" * 256, "a b", "k" * 3000, "caf\xe9", ""):
        web.post("/jobs", PLAIN, headers=[("Idempotency-Key", sent)]).problem(400, "dedupe_key_invalid")
    web.post("/jobs", {**PLAIN, "dedupe_key": "a"}, headers=[("Idempotency-Key", "b")]).problem(
        400, "idempotency_key_mismatch"
    )
    others: list[Any] = [1, True, [], {}]
    for value in others:
        web.post("/jobs", {**PLAIN, "dedupe_key": value}).problem(422, "invalid_request", "/dedupe_key")


def test_one_key_one_job(web: Web) -> None:
    """H-05 to H-08: the holder comes back for the same request however written; another request is refused."""
    for key in ("!", "k" * 255, "a,b;c"):
        first = web.post("/jobs", {**PLAIN, "dedupe_key": key})
        assert first.status == 201
        again = web.post("/jobs", b'{ "payload":{"n":1 } ,\n "dedupe_key":' + json.dumps(key).encode()
                         + b', "type":"in.plain"}')  # fmt: skip
        assert (again.status, again.headers["idempotency-replayed"]) == (200, "true")
        by_header = web.post("/jobs", PLAIN, headers=[("Idempotency-Key", key)])
        assert by_header.status == 200
        assert {a.json()["id"] for a in (first, again, by_header)} == {first.json()["id"]}
        assert again.headers["location"] == f"/api/v1/jobs/{first.json()['id']}"
        before = rows()
        for payload in ({"n": 1.0}, {"n": 2}, {"n": 1, "m": 1}, {}, [1], None):
            said = web.post("/jobs", {**PLAIN, "payload": payload, "dedupe_key": key}).problem(422, "dedupe_conflict")
            assert said["job_id"] == first.json()["id"]
        web.post("/jobs", {**PLAIN, "dedupe_key": key, "group": "g"}).problem(422, "dedupe_conflict")
        assert rows() == before
    # Another type has keys of its own and learns nothing of the first.
    other = web.post("/jobs", {"type": "in.other", "payload": {"n": 2}, "dedupe_key": "!"})
    assert other.status == 201
    assert {web.post("/jobs", {**PLAIN, "dedupe_key": key}).status for key in ("K1", "k1")} == {201}


def test_what_is_accepted_is_stored_byte_for_byte(web: Web, subtests: pytest.Subtests) -> None:
    """H-16, H-17: no reader between the socket and the row changes a byte, and the job can be shown."""
    for payload in KEPT:
        with subtests.test(ascii(payload[:40])):
            answer = web.post("/jobs", with_payload(payload))
            assert answer.status == 201, answer
            job_id = answer.json()["id"]
            assert get(UUID(job_id)).payload == payload.decode()
            assert web.get(f"/jobs/{job_id}").status == 200
    batch = b'{"jobs":[' + b" , ".join(with_payload(payload) for payload in KEPT) + b"]}"
    results = web.post("/jobs/batch", batch).json()["results"]
    assert [get(UUID(one["job"]["id"])).payload for one in results] == [payload.decode() for payload in KEPT]


def test_good_times(web: Web) -> None:
    """H-19: the past means now; no message waits in the broker for a later time."""
    ahead = datetime.now(UTC) + timedelta(days=365)
    for run_at in ("1970-01-01T00:00:00Z", "2020-02-29t23:59:59.999999999-11:30", "0001-01-01T00:00:00Z"):
        job = get(UUID(web.post("/jobs", {**PLAIN, "run_at": run_at}).json()["id"]))
        assert job.ready_at == job.accepted_at
    job = get(UUID(web.post("/jobs", {**PLAIN, "run_at": ahead.isoformat()}).json()["id"]))
    assert (job.ready_at, job.published_at) == (ahead, None)


def test_who_is_not_let_in(web: Web, nothing_stored: None) -> None:
    """H-20: one 401 for everything that is wrong with a key, over the same path, with the same words."""
    row, revoked = keys.issue_key(label="revoked", scopes=SCOPES)
    row.revoked_at = datetime.now(UTC)
    row.save()
    row, expired = keys.issue_key(label="expired", scopes=SCOPES)
    row.expires_at = datetime.now(UTC) - timedelta(seconds=1)
    row.save()
    bad = [
        None, "Bearer", "Bearer ", "Basic " + "a" * 20, f"Basic {web.key}", web.key, f"Token {web.key}", "Bearer null",
        f"Bearer {web.key}x", f"Bearer {web.key[:-1]}", f"Bearer {web.key} {web.key}", f"Bearer {web.key},Bearer",
        f"Bearer {revoked}", f"Bearer {expired}", f"Bearer {web.key.upper()}", "Bearer " + "a" * 5000,
        f"Bearer jb_live_{'A' * 8}_{'b' * 43}_{'c' * 6}", f'Bearer "{web.key}"', "Bearer \xe9\xff",
        f"Bearer {web.key[:40]}\t{web.key[40:]}",
    ]  # fmt: skip
    said = set()
    for header in bad:
        sent = [] if header is None else [("Authorization", header)]
        for method, path, body in (("POST", "/jobs", PLAIN), ("GET", "/jobs", None), ("GET", "/openapi.json", None)):
            raw = None if body is None else json.dumps(body).encode()
            answer = web.send(method, f"/api/v1{path}", raw, key=None, headers=sent)
            problem = answer.problem(401, "unauthorized")
            assert answer.headers["www-authenticate"].startswith("Bearer")
            said.add(json.dumps({**problem, "request_id": ""}))
    assert len(said) == 1
    web.send("POST", f"/api/v1/jobs?api_key={web.key}", json.dumps(PLAIN).encode()).problem(401, "unauthorized")
    web.get(f"/jobs?key={web.key}").problem(401, "unauthorized")
    # A second Authorization header is joined to the first; neither is believed.
    web.get("/jobs", headers=[("Authorization", f"Bearer {web.key}")]).problem(401, "unauthorized")
    ApiKey.objects.filter(label__in=["revoked", "expired"]).delete()


def test_addresses(web: Web, nothing_stored: None) -> None:
    """H-21: no redirect, no HTML at any address below /api/, however written."""
    body = json.dumps(PLAIN).encode()
    for path in ("/api/v1/jobs/", "/api/v1//jobs", "/api/v1/JOBS", "/api/v1", "/api/v1/", "/api/", "/api/v2/jobs",
                 "/api/v1/jobs%00", "/api/v1/jobs%2f", "/api/v1/jobs/%ff", "/api/v1/../v1/jobs", "/api/v1/jobs;a=1",
                 "/api/v1/jobs/batch/", "/api/v1/%6aobs/x", "/api/v1/jobs/" + "a" * 3000):  # fmt: skip
        answer = web.send("POST", path, body)
        assert answer.status in (404, 405), (path, answer)
    for path in ("/jobs/x", "/jobs/00000000-0000-7000-8000-00000000000g", "/jobs/00000000000070008000000000000000",
                 "/jobs/%7b00000000-0000-7000-8000-000000000000%7d", "/jobs/00000000-0000-7000-8000-000000000000",
                 "/jobs/%00", "/jobs/%e2%82", "/job-types/%00", "/job-types/in%2eplain%0a"):  # fmt: skip
        assert web.get(path).problem(404, "unknown_job" if path.startswith("/jobs/") else "unknown_job_type")
        web.post(f"{path}/cancel", {"reason": "x"})


def test_methods(web: Web, nothing_stored: None) -> None:
    """H-22: 405 with Allow; nothing overrides a method."""
    body = json.dumps(PLAIN).encode()
    for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "BREW"):
        answer = web.send(method, "/api/v1/jobs", body)
        answer.problem(405, "method_not_allowed")
        assert {one.strip() for one in answer.headers["allow"].split(",")} >= {"GET", "POST"}
    head = web.send("HEAD", "/api/v1/jobs")
    assert (head.body, head.status in (200, 405)) == (b"", True)
    override = [("X-HTTP-Method-Override", "POST"), ("X-HTTP-Method", "POST"), ("X-Method-Override", "POST")]
    listed = web.send("GET", "/api/v1/jobs?limit=1", body, headers=override)
    assert (listed.status, "items" in listed.json()) == (200, True)
    web.send("GET", "/api/v1/jobs?_method=POST", body).problem(422, "invalid_query")


def test_batches(web: Web) -> None:
    """H-23: 0 and 1001 are refused whole; one bad of 100 spoils none; of two with a key the first is new."""
    before = rows()
    bad: list[Any] = [{"jobs": []}, {"jobs": [PLAIN] * 1001}, {"jobs": PLAIN}, {"jobs": None}, {}, [PLAIN],
                      {"jobs": [PLAIN], "more": 1}]  # fmt: skip
    for body in bad:
        assert web.post("/jobs/batch", body).status == 422
    web.post("/jobs/batch", {"jobs": [PLAIN]}, headers=[("Idempotency-Key", "k")]).problem(
        400, "idempotency_key_mismatch"
    )
    web.post("/jobs/batch", b'{"jobs":[' + with_payload(b"1") + b",]}").problem(400, "invalid_json")
    assert rows() == before
    many: list[Any] = [{**PLAIN, "payload": {"n": n}, "dedupe_key": f"batch-{n}"} for n in range(100)]
    many[7] = {**PLAIN, "priority": 1000}
    many[8] = {"type": "in.off", "payload": 1}
    many[9] = {"type": "in.nothing", "payload": 1}
    many[10] = 17
    many[50] = {**many[49]}
    many[60] = {**many[59], "payload": {"n": "other"}}
    results = web.post("/jobs/batch", {"jobs": many}).json()["results"]
    expected = [201] * 100
    expected[7], expected[8], expected[9], expected[10], expected[50], expected[60] = 422, 409, 404, 422, 200, 422
    assert [one["status"] for one in results] == expected
    assert results[50]["job"]["id"] == results[49]["job"]["id"]
    assert [one["job"]["dedupe_key"] for one in results if one["status"] == 201] == [
        f"batch-{n}" for n in range(100) if expected[n] == 201
    ]
    for index in (7, 8, 9, 10, 60):
        assert results[index]["error"]["pointer"].startswith(f"/jobs/{index}")
    assert web.post("/jobs/batch", {"jobs": [PLAIN]}).json()["results"][0]["status"] == 201
    assert len(web.post("/jobs/batch", {"jobs": [PLAIN] * 1000}).json()["results"]) == 1000


def test_a_closed_type_is_an_unknown_one(web: Web, nothing_stored: None) -> None:
    """H-08, H-23: a key for one type sees nothing of the others, alone and in a batch."""
    row, narrow = keys.issue_key(label="narrow", scopes=SCOPES, type_patterns=["in.other"])
    closed = web.post("/jobs", PLAIN, key=narrow).problem(404, "unknown_job_type")
    unknown = web.post("/jobs", {**PLAIN, "type": "in.nothing"}, key=narrow).problem(404, "unknown_job_type")
    assert {**closed, "request_id": ""} == {**unknown, "request_id": ""}
    [one] = web.post("/jobs/batch", {"jobs": [PLAIN]}, key=narrow).json()["results"]
    assert one["status"] == 404
    row.delete()


def job_count() -> int:
    """Return how many jobs there are."""
    return int(sql("SELECT count(*) FROM queues_job")[0][0])


def test_clients_that_go_away(web: Web) -> None:
    """H-24: a body that ends early stores nothing, even where its beginning is a whole job; a whole one stores once."""
    body = json.dumps({**PLAIN, "dedupe_key": "gone"}).encode()
    before = job_count()
    # The length promises more than comes: what came is valid JSON, and still not what the client meant to send.
    head = web.head("POST", "/api/v1/jobs", headers=(*CHUNKED[:1], ("Content-Length", str(len(body) + 10))))
    with socket.create_connection(web.address, timeout=20) as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        web.exchange(connection, b"").problem(400, "bad_request")
    with socket.create_connection(web.address, timeout=20) as connection:
        chunks = b"%x\r\n%s\r\n" % (len(body), body)
        connection.sendall(web.head("POST", "/api/v1/jobs", headers=CHUNKED) + chunks)
        connection.shutdown(socket.SHUT_WR)
        web.exchange(connection, b"").problem(400, "bad_request")
    assert job_count() == before
    for _ in range(3):
        with socket.create_connection(web.address, timeout=20) as connection:
            connection.sendall(web.head("POST", "/api/v1/jobs", body) + body)
    assert until(lambda: job_count() == before + 1, seconds=20)
    assert web.post("/jobs", body).status == 200
    assert job_count() == before + 1
    # Nobody waits for the three, but the next test counts rows.
    quiet_rows()


def test_slow_bodies_hold_nobody(web: Web, nothing_stored: None) -> None:
    """H-24: more clients than there are threads send a byte now and then; others are served, and they are cut off."""
    head = web.head("POST", "/api/v1/jobs", headers=(*CHUNKED[:1], ("Content-Length", "1000")))
    slow = [socket.create_connection(web.address, timeout=60) for _ in range(12)]
    try:
        began = time.monotonic()
        for one in slow:
            one.sendall(head + b"{")
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.5):
                for one in slow:
                    with contextlib.suppress(OSError):
                        one.sendall(b" ")

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert web.raw(web.head("GET", "/livez"), method="GET", seconds=30).status == 200
            answers = [Web.exchange(one, b"") for one in slow]
            took = time.monotonic() - began
        finally:
            stop.set()
            dripping.join()
        assert {answer.problem(408, "request_timeout")["status"] for answer in answers} == {408}
        # Two rounds of REQUEST_BODY_SECONDS at most, on a machine that has other things to do.
        assert took < 30
    finally:
        for one in slow:
            one.close()


def test_bad_queries(web: Web, nothing_stored: None, subtests: pytest.Subtests) -> None:
    """H-25: every parameter is read strictly, on every list."""
    for query in BAD_QUERIES:
        with subtests.test(query[:40]):
            assert web.get("/jobs?" + query.replace(" ", "%20")).status == 422
            if not query.startswith(("state", "tier", "group", "dedupe_key")):
                assert web.get("/dead-letters?" + query.replace(" ", "%20")).status == 422
    # U+0000 in a name of a type is one that nobody has.
    web.get("/jobs?type=%00").problem(404, "unknown_job_type")
    web.get("/jobs?type=in.nothing").problem(404, "unknown_job_type")


def test_cursors(web: Web) -> None:
    """H-25: a cursor is signed and belongs to its filter."""
    assert web.post("/jobs/batch", {"jobs": [PLAIN] * 5}).status == 200
    page = web.get("/jobs?type=in.plain&limit=2").json()
    cursor = page["next"]
    following = web.get(f"/jobs?type=in.plain&limit=2&cursor={cursor}").json()["items"]
    assert {one["id"] for one in following}.isdisjoint(one["id"] for one in page["items"])
    payload, _, signature = cursor.partition(":")
    for bad in (f"{cursor}x", f"x{cursor}", f"{payload}:", signature, cursor.upper(), cursor[:-1],
                f"{payload[::-1]}:{signature}"):  # fmt: skip
        web.get(f"/jobs?type=in.plain&cursor={bad}").problem(422, "invalid_cursor", "cursor")
    for other in ("", "type=in.other&", "type=in.plain&state=dead&"):
        web.get(f"/jobs?{other}cursor={cursor}").problem(422, "invalid_cursor", "cursor")
    web.get(f"/dead-letters?type=in.plain&cursor={cursor}").problem(422, "invalid_cursor", "cursor")


def test_reasons_and_repairs(web: Web) -> None:
    """The same strictness for the calls that change a job."""
    answer = web.post("/jobs", PLAIN)
    assert answer.status == 201
    job = answer.json()
    before = rows()
    bad: list[Any] = [{}, {"reason": ""}, {"reason": "  \n"}, {"reason": "x" * 1001}, {"reason": 1}, {"reason": None},
                      [], {"reason": "x", "more": 1}, b"", b'{"reason":"\\ud800"}', b'{"reason":"\\u0000"}',
                      b"\xff"]  # fmt: skip
    for call in ("cancel", "retry-now", "replay"):
        for body in bad:
            assert web.post(f"/jobs/{job['id']}/{call}", body).status in (400, 422), (call, body)
    web.post(f"/jobs/{job['id']}/replay", {"reason": "x"}).problem(409, "not_replayable")
    web.post(f"/jobs/{job['id']}/retry-now", {"reason": "x"}).problem(409, "not_retrying")
    web.post(f"/dead-letters/{job['id']}/cancel", {"reason": "x"}).problem(409, "not_cancellable")
    assert rows() == before
    strange = "\u202e<b>\x1b[31m"
    answers: list[Answer] = [web.post(f"/jobs/{job['id']}/cancel", {"reason": strange}) for _ in range(2)]
    assert [(one.status, one.json()["effect"]) for one in answers] == [(200, "none")] * 2
    assert sql("SELECT reason FROM queues_auditentry WHERE object_id = %s", job["id"])[0] == (strange,)
