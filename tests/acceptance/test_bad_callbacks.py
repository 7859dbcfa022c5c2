"""RELIABILITY C2 over the wire: signed callbacks and callback addresses against gunicorn with the real settings.

Not here: what evidence does to a job in each state (tests/api/test_callbacks.py, tests/concurrency/test_callbacks.py).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import secrets
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest

from queues.callback_tokens import callback_token
from queues.http_target import signing_key
from queues.models import Job
from queues.states import JobState
from tests.acceptance.conftest import IN_CALL_SECRET, IN_NEXT_SECRET, OLD_SECRET
from tests.acceptance.wire import Answer, Web, rows
from tests.factories import get, make_job, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("transactional_db")]

S = JobState
SAYS: dict[str, Any] = {"outcome": "confirmed", "ref": "crm_1"}
WRONG_SECRET = "whsec_" + base64.b64encode(b"somebody else's secret").decode()
NO_JOB = "00000000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def transactional_db(committed: None) -> None:
    """One database for all tests of this module."""


@pytest.fixture
def nothing_stored(web: Web) -> Iterator[None]:
    """Insist that the test leaves every row as it was."""
    before = rows()
    yield
    assert rows() == before


def awaiting(kind: str = "in.call", **columns: Any) -> Job:
    """Make a job whose run handed it over."""
    return make_job(S.AWAITING_CONFIRMATION, **{"type": kind, "fence": 1, "attempt": 1, "begun": 1, **columns})


def signature(raw: bytes, webhook_id: str, timestamp: str, secret: str = IN_CALL_SECRET) -> str:
    """Sign as Standard Webhooks says."""
    mac = hmac.digest(signing_key(secret), f"{webhook_id}.{timestamp}.".encode() + raw, hashlib.sha256)
    return "v1," + base64.b64encode(mac).decode()


def signed(raw: bytes, *, webhook_id: str = "", at: str = "", secret: str = IN_CALL_SECRET) -> list[tuple[str, str]]:
    """Return the headers of a signed callback."""
    webhook_id = webhook_id or f"msg_{secrets.token_hex(8)}"
    at = at or str(int(time.time()))
    return [("webhook-id", webhook_id), ("webhook-timestamp", at),
            ("webhook-signature", signature(raw, webhook_id, at, secret))]  # fmt: skip


def call(web: Web, body: Any, *, kind: str = "in.call", replace: tuple[str, str | None] | None = None,
         **how: Any) -> Answer:  # fmt: skip
    """Send a signed callback; `replace` gives one header another value, or leaves it out."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = signed(raw, **how)
    if replace is not None:
        headers = [one for one in headers if one[0] != replace[0]]
        headers += [] if replace[1] is None else [(replace[0], replace[1])]
    return web.post(f"/callbacks/{kind}", raw, key=None, headers=headers)


def tell(web: Web, token: str, body: Any) -> Answer:
    """Use the address that an HTTP target was given."""
    return web.post(f"/callbacks/jobs/{token}", body, key=None)


def test_a_good_one(web: Web) -> None:
    """The two ways work, so what follows is refused for its own reason."""
    one, two = awaiting(), awaiting()
    assert call(web, {**SAYS, "job_id": str(one.id)}).json()["result"] == "confirmed"
    assert tell(web, callback_token(two.id, 1), SAYS).json()["result"] == "confirmed"
    assert {get(one.id).state, get(two.id).state} == {"confirmed"}


NO_SIGNATURES = [
    None, "", " ", "v1", "v1,", ",", "garbage", "v1,a,b", "v1,@@@", "v1,abc", "v1," + "A" * 44, "v2," + "A" * 44,
    "v1a," + "A" * 44, "V1," + "A" * 44, " ".join(["v1," + "A" * 44] * 11), "v1,\xff\xfe", "v1," + "A" * 3000,
    "v1,=", "v1 ,AAAA", "whsec_AAAA",
]  # fmt: skip


def test_signatures_that_are_none(web: Web, subtests: pytest.Subtests) -> None:
    """K-01: 401 for each, and the job waits on."""
    job = awaiting()
    before = rows()
    body = {**SAYS, "job_id": str(job.id)}
    for value in NO_SIGNATURES:
        with subtests.test(ascii(str(value)[:30])):
            call(web, body, replace=("webhook-signature", value)).problem(401, "signature_invalid")
    # 10,000 of them do not even fit into the headers.
    assert call(web, body, replace=("webhook-signature", " ".join(["v1,AAAA"] * 10_000))).status in (400, 431)
    # One that fits the body with another byte, id or time is none.
    raw = json.dumps(body).encode()
    for headers, sent in ((signed(raw), raw + b" "), (signed(raw, secret=WRONG_SECRET), raw)):
        web.post("/callbacks/in.call", sent, key=None, headers=headers).problem(401, "signature_invalid")
    headers = signed(raw)
    headers[0] = ("webhook-id", "another")
    web.post("/callbacks/in.call", raw, key=None, headers=headers).problem(401, "signature_invalid")
    headers = signed(raw)
    headers[1] = ("webhook-timestamp", str(int(time.time()) + 1))
    web.post("/callbacks/in.call", raw, key=None, headers=headers).problem(401, "signature_invalid")
    # A key of ours is no signature.
    web.post("/callbacks/in.call", raw).problem(401, "signature_invalid")
    assert rows() == before


def test_one_of_ten_is_enough(web: Web) -> None:
    """K-01: a provider that rotates its key sends several."""
    raw = json.dumps({**SAYS, "job_id": str(awaiting().id)}).encode()
    headers = signed(raw)
    good = headers.pop()[1]
    headers.append(("webhook-signature", " ".join(["v1," + "A" * 44] * 9 + [good])))
    assert web.post("/callbacks/in.call", raw, key=None, headers=headers).status == 200


def test_timestamps(web: Web, subtests: pytest.Subtests) -> None:
    """K-02: whole seconds in ASCII digits, at most 300 from now; signed all the same."""
    job = awaiting()
    before = rows()
    now = int(time.time())
    for at in (str(now - 330), str(now + 330), "NaN", "Infinity", "1e9", "-1", "0", str(2**63), "9" * 400, f"{now}.0",
               f" {now} 1", f"+{now}", hex(now), "now"):  # fmt: skip
        with subtests.test(at[:30]):
            answer = call(web, {**SAYS, "job_id": str(job.id)}, at=at)
            answer.problem(401, "timestamp_out_of_tolerance")
    call(web, {**SAYS, "job_id": str(job.id)}, replace=("webhook-timestamp", None)).problem(
        401, "timestamp_out_of_tolerance"
    )
    assert rows() == before
    assert call(web, {**SAYS, "job_id": str(job.id)}, at=str(now - 200)).status == 200


def test_the_same_callback_again(web: Web) -> None:
    """K-03: the same id inside the tolerance is a duplicate and changes nothing, whatever it says now."""
    job = awaiting()
    body = {**SAYS, "job_id": str(job.id)}
    assert call(web, body, webhook_id="again-1").json()["duplicate"] is False
    # The duplicate is counted, which is a row of its own; the job is not touched.
    before = rows()["digest"]
    for _ in range(3):
        assert call(web, body, webhook_id="again-1").json()["duplicate"] is True
    other = awaiting()
    said = call(web, {**SAYS, "job_id": str(other.id)}, webhook_id="again-1").json()
    assert (said["duplicate"], get(other.id).state) == (True, "awaiting_confirmation")
    sql("DELETE FROM queues_job WHERE id = %s", other.id)
    assert rows()["digest"] == before


def test_rotation(web: Web) -> None:
    """K-04: during a rotation both secrets are taken; after its end the old one is refused."""
    job = awaiting()
    for secret in (IN_CALL_SECRET, IN_NEXT_SECRET):
        assert call(web, {**SAYS, "job_id": str(job.id)}, secret=secret).status == 200
    job = awaiting("in.rotating")
    assert call(web, {**SAYS, "job_id": str(job.id)}, kind="in.rotating", secret=OLD_SECRET).status == 200
    job = awaiting("in.rotated")
    body = {**SAYS, "job_id": str(job.id)}
    call(web, body, kind="in.rotated", secret=OLD_SECRET).problem(401, "signature_invalid")
    assert get(job.id).state == "awaiting_confirmation"
    assert call(web, body, kind="in.rotated", secret=IN_NEXT_SECRET).status == 200


def test_ids_that_could_be_read_in_two_ways(web: Web, nothing_stored: None) -> None:
    """K-05: no dot, no space, at most 255 characters; a megabyte does not fit into the headers."""
    for webhook_id in ("a.b", ".", "a b", "a" * 256, "a" * 5000):
        call(web, SAYS, webhook_id=webhook_id).problem(400, "webhook_id_invalid")
    call(web, SAYS, replace=("webhook-id", "caf\xe9")).problem(400, "webhook_id_invalid")
    call(web, SAYS, replace=("webhook-id", None)).problem(401, "signature_invalid")
    assert call(web, SAYS, webhook_id="a" * 1024 * 1024).status in (400, 431)


def test_no_oracle(web: Web) -> None:
    """K-06: a job that does not exist and one of another type get one answer, and so do types without a secret."""
    foreign = awaiting("in.other")
    before = rows()
    said = [call(web, {**SAYS, "job_id": job_id}).problem(404, "unknown_job")
            for job_id in (NO_JOB, str(foreign.id), "x", "", "00000000", "\u00e9")]  # fmt: skip
    said += [tell(web, token, SAYS).problem(404, "unknown_job")
             for token in ("x", callback_token(foreign.id, 1)[:-1], callback_token(foreign.id, 1)[::-1], "%00",
                           callback_token(UUID(NO_JOB), 1), "a" * 3000, "%ff%fe")]  # fmt: skip
    assert len({json.dumps({**one, "request_id": ""}) for one in said}) == 1
    shut = [call(web, SAYS, kind=kind).problem(401, "signature_invalid")
            for kind in ("in.other", "in.nothing", "in.plain", "%00", "in.call%0a", "a" * 500)]  # fmt: skip
    assert len({json.dumps({**one, "request_id": ""}) for one in shut}) == 1
    assert rows() == before


def test_an_older_run(web: Web) -> None:
    """K-07: run 1 speaks while run 2 runs: its proof is kept for the job, its rejection changes nothing."""
    job = make_job(S.PROCESSING, type="in.call", fence=2, attempt=2, begun=2)
    said = tell(web, callback_token(job.id, 1), {"outcome": "rejected"}).json()
    assert (said["result"], said["applied"], get(job.id).state) == ("superseded", False, "processing")
    said = tell(web, callback_token(job.id, 1), SAYS).json()
    assert (said["result"], said["applied"], get(job.id).state) == ("kept", True, "processing")
    # The token decides which run it is about; the body cannot.
    other = make_job(S.PROCESSING, type="in.call", fence=2, attempt=2, begun=2)
    said = tell(web, callback_token(other.id, 1), {"outcome": "rejected", "run": 2}).json()
    assert said["result"] == "superseded"


def test_late_ones(web: Web) -> None:
    """K-08: 200, flagged, kept; no state changes."""
    for state in (S.DEAD, S.EXPIRED, S.CANCELLED):
        job = make_job(state, type="in.call", fence=1, attempt=1, begun=1)
        for _ in range(2):
            said = call(web, {**SAYS, "job_id": str(job.id)}).json()
            assert (said["late"] or said["duplicate"], said["applied"], said["state"]) == (True, False, state.value)
        kept = get(job.id)
        assert (kept.state, len(kept.late_evidence or [])) == (state.value, 1)


MISSHAPEN: list[Any] = [
    {}, [], None, 1, {"outcome": "OK "}, {"outcome": 1}, {"outcome": "Confirmed"}, {"outcome": "confirmed "},
    {"outcome": None}, {"status": "confirmed"}, {**SAYS, "ref": 1}, {**SAYS, "run": 0}, {**SAYS, "run": 2**31},
    {**SAYS, "run": -1}, {**SAYS, "run": True}, {**SAYS, "retryable": "no"}, {**SAYS, "more": 1},
]  # fmt: skip

BAD_BODIES: list[tuple[bytes, int, str]] = [
    (b"", 400, "invalid_json"),
    (b"not json", 400, "invalid_json"),
    (b"outcome=confirmed", 400, "invalid_json"),
    (b'{"outcome":"confirmed","ref":NaN}', 400, "invalid_json"),
    (b"\xef\xbb\xbf{}", 400, "invalid_encoding"),
    (b'{"outcome":"confirmed","ref":"\xff"}', 400, "invalid_encoding"),
    (b'{"outcome":"confirmed","ref":"\\u0000"}', 422, "invalid_unicode"),
    (b'{"outcome":"confirmed","ref":"\\ud800"}', 422, "invalid_unicode"),
    (b'{"outcome":"confirmed","outcome":"rejected"}', 422, "duplicate_key"),
    (b'{"outcome":"confirmed","ref":"' + b"r" * 1001 + b'"}', 422, "invalid_request"),
    (b'{"outcome":"confirmed","run":1e400}', 422, "*"),
    (b'{"outcome":"confirmed","run":' + b"9" * 5000 + b"}", 422, "*"),
    (b'{"outcome":"confirmed","ref":' + b"[" * 50_000 + b"}", 422, "*"),
    *(
        (json.dumps(body).encode(), 422, "invalid_request")
        for body in MISSHAPEN
    ),
]  # fmt: skip


def test_bad_bodies(web: Web, subtests: pytest.Subtests) -> None:
    """K-09: refused after the signature was checked, and no state changes; unsigned ones learn nothing."""
    job = awaiting()
    before = rows()
    for body, status, code in BAD_BODIES:
        with subtests.test(ascii(body[:60])):
            for answer in (call(web, body), tell(web, callback_token(job.id, 1), body)):
                assert answer.status == status, answer
                if code != "*":
                    answer.problem(status, code)
            call(web, body, secret=WRONG_SECRET).problem(401, "signature_invalid")
    for answer in (call(web, b" " * 5 * 1024 * 1024), tell(web, callback_token(job.id, 1), b" " * 65537)):
        answer.problem(413, "payload_too_large")
    raw = json.dumps(SAYS).encode()
    web.post("/callbacks/in.call", raw, key=None, kind="text/plain", headers=signed(raw)).problem(
        415, "unsupported_media_type"
    )
    assert rows() == before
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        web.send(method, "/api/v1/callbacks/in.call", raw, key=None).problem(405, "method_not_allowed")


def test_a_thousand_at_once(web: Web) -> None:
    """K-10: one transition, 999 duplicates; no 5xx, so no deadlock escapes. Half signed, half with the token."""
    job = awaiting()
    body = json.dumps({**SAYS, "job_id": str(job.id)}).encode()
    said = json.dumps(SAYS).encode()
    token = callback_token(job.id, 1)
    results: Counter[tuple[int, str]] = Counter()
    lock = threading.Lock()

    def many(worker: int) -> None:
        connection = http.client.HTTPConnection(*web.address, timeout=60)
        found = []
        for n in range(50):
            plain = {"Content-Type": "application/json"}
            if (n + worker) % 2:
                headers = {**plain, **dict(signed(body, webhook_id=f"k10-{worker}-{n}"))}
                connection.request("POST", "/api/v1/callbacks/in.call", body, headers)
            else:
                connection.request("POST", f"/api/v1/callbacks/jobs/{token}", said, plain)
            response = connection.getresponse()
            found.append((response.status, json.loads(response.read())["result"]))
        connection.close()
        with lock:
            results.update(found)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(many, range(20)))
    assert results == {(200, "confirmed"): 1, (200, "duplicate"): 999}
    settled = get(job.id)
    assert (settled.state, settled.evidence and settled.evidence["ref"]) == ("confirmed", "crm_1")
