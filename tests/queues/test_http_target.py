"""The HTTP handler and check against a real receiver: what is sent and signed, what each answer becomes (S-17)."""

from __future__ import annotations

import base64
import datetime as dt
import email.utils
import hashlib
import hmac
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs
from uuid import UUID

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from queues import callback_tokens, http_target, secrets_box
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext, PermanentError, Rejected, RetryLater
from queues.http_target import CheckFailed, SecretMissing, TargetFailed, ask, deliver, signing_key
from queues.outbound import TargetRefused, TargetTimeout, TargetUnreachable

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD = '{"b":1e2,"a":1.0, "text":"Grüße \\u2603","a":2}'
JOB_ID = UUID("0195f0c8-7d7a-7000-8000-000000000001")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@dataclass(frozen=True)
class Target:
    target_url: str
    target_secret_env: str = "SHOP_SECRET"
    target_secret: bytes | None = None


@dataclass(frozen=True)
class CheckTarget:
    check_url: str
    target_secret_env: str = "SHOP_SECRET"
    target_secret: bytes | None = None


@dataclass
class Receiver:
    """A service of somebody else: keeps what it got and answers what it was told to."""

    url: str = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b'{"ref": "re_1"}'
    paths: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    """As they stand in the request line; the server's own parser changes some."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    hang: threading.Event | None = None


@pytest.fixture
def receiver(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.0/8"]
    settings.PUBLIC_URL = "https://jobs.example"
    monkeypatch.setenv("SHOP_SECRET", SECRET)
    told = Receiver()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.do_POST()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            told.methods.append(self.command)
            told.targets.append(self.requestline.split(" ")[1])
            told.paths.append(self.path)
            told.got.append((dict(self.headers.items()), body))
            if told.hang is not None:
                told.hang.wait(10)
                return
            self.send_response(told.status)
            for name, value in told.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told.body)))
            self.end_headers()
            self.wfile.write(told.body)

        def log_message(self, *args: Any) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}/jobs"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield told
    server.shutdown()
    server.server_close()


def make_context(**overrides: Any) -> JobContext:
    values: dict[str, Any] = {
        "id": JOB_ID,
        "type": "billing.receipt",
        "run": 7,
        "attempt": 2,
        "payload_text": PAYLOAD,
        "idempotency_key": "jb_" + "0" * 32,
        "group": None,
        "accepted_epoch": 1_795_219_200.0,
        "deadline_epoch": 1_795_824_000.0,
        "maybe_duplicate": False,
    }
    return JobContext(**{**values, **overrides})


def test_the_request(receiver: Receiver) -> None:
    deliver(make_context(trace_text=json.dumps({"traceparent": TRACE})), Target(receiver.url))
    headers, body = receiver.got[0]
    assert receiver.paths == ["/jobs"]
    assert body == PAYLOAD.encode()
    assert headers["Content-Type"] == "application/json"
    assert headers["webhook-id"] == headers["Jobsboard-Job-Id"] == str(JOB_ID)
    assert headers["Idempotency-Key"] == "jb_" + "0" * 32
    assert headers["Jobsboard-Job-Type"] == "billing.receipt"
    assert headers["Jobsboard-Attempt"] == "2"
    assert headers["traceparent"] == TRACE
    assert "Jobsboard-Probe" not in headers
    start, token = headers["Jobsboard-Callback-Url"].rsplit("/", 1)
    assert start == "https://jobs.example/api/v1/callbacks/jobs"
    assert callback_tokens.verify(token) == callback_tokens.CallbackToken(job_id=JOB_ID, fence=7)


def test_a_probe_says_so(receiver: Receiver) -> None:
    deliver(make_context(probe=True), Target(receiver.url))
    assert receiver.got[0][0]["Jobsboard-Probe"] == "true"


def test_a_broken_trace_is_left_out(receiver: Receiver) -> None:
    deliver(make_context(trace_text=json.dumps({"traceparent": "x\r\nX-Evil: 1"})), Target(receiver.url))
    assert "traceparent" not in receiver.got[0][0]


def test_an_independent_library_verifies_the_signature(receiver: Receiver) -> None:
    deliver(make_context(), Target(receiver.url))
    headers, body = receiver.got[0]
    Webhook(SECRET).verify(body, headers, json_parse=False)
    with pytest.raises(WebhookVerificationError):
        Webhook(SECRET).verify(body + b" ", headers, json_parse=False)


def test_a_plain_secret_is_taken_as_bytes(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = "a plain secret, not base64!"
    monkeypatch.setenv("SHOP_SECRET", plain)
    deliver(make_context(), Target(receiver.url))
    headers, body = receiver.got[0]
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mac = base64.b64encode(hmac.digest(plain.encode(), signed, hashlib.sha256)).decode()
    assert headers["webhook-signature"] == f"v1,{mac}"
    Webhook("whsec_" + base64.b64encode(plain.encode()).decode()).verify(body, headers, json_parse=False)


def test_the_published_vector() -> None:
    at = dt.datetime.fromtimestamp(1614265330, tz=dt.UTC)
    given = Webhook(signing_key(SECRET)).sign("msg_p5jXN8AQM9LWM0D4loKWxJek", at, '{"test": 2432232314}')
    assert given == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert given != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OA="


def test_the_stored_secret_is_used_when_no_variable_is_named(receiver: Receiver) -> None:
    deliver(make_context(), Target(receiver.url, target_secret_env="", target_secret=secrets_box.seal(SECRET)))
    headers, body = receiver.got[0]
    Webhook(SECRET).verify(body, headers, json_parse=False)


@pytest.mark.parametrize(
    ("env", "value", "stored"),
    [("UNSET_SECRET", None, None), ("SHOP_SECRET", " ", None), ("", None, None), ("", None, b"junk"),
     ("SHOP_SECRET", "whsec_***", None), ("SHOP_SECRET", "whsec_", None)],
)  # fmt: skip
def test_without_a_secret_nothing_is_sent_and_a_retry_may_find_one(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, env: str, value: str | None, stored: bytes | None
) -> None:
    monkeypatch.delenv("UNSET_SECRET", raising=False)
    if value is not None:
        monkeypatch.setenv(env, value)
    with pytest.raises(SecretMissing) as caught:
        deliver(make_context(), Target(receiver.url, target_secret_env=env, target_secret=stored))
    assert not isinstance(caught.value, PermanentError)
    assert receiver.got == []


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b'{"ref": "re_1"}', Confirmed("re_1")),
        (201, b'{"ref": 42, "pages": 3}', Confirmed("42", result={"pages": 3})),
        (200, b'{"ref": " re "}', Confirmed("re")),
        (204, b"", Confirmed("")),
        (200, b"<html>ok</html>", Confirmed("")),
        (200, b'{"ref": ""}', Confirmed("")),
        (200, b'{"ref": null}', Confirmed("")),
        (200, b'{"ref": true}', Confirmed("")),
        (200, b'{"ref": 0}', Confirmed("")),
        (200, b'{"ref": {"a": 1}}', Confirmed("")),
        (200, b'["ref"]', Confirmed("")),
        (200, b'{"ref": "' + b"x" * 1001 + b'"}', Confirmed("")),
        (200, b"[" * 60_000, Confirmed("")),
        (200, b'{"ref": "re_1", "x": "' + b"x" * 70_000 + b'"}', Confirmed("")),
        (200, b"\xff\xfe", Confirmed("")),
        (202, b"", AwaitingConfirmation()),
        (202, b'{"ref": "later"}', AwaitingConfirmation("later")),
    ],
)
def test_answers_that_end_the_run(
    receiver: Receiver, status: int, body: bytes, outcome: Confirmed | AwaitingConfirmation
) -> None:
    receiver.status, receiver.body = status, body
    assert deliver(make_context(), Target(receiver.url)) == outcome


@pytest.mark.parametrize("status", [400, 410, 422])
def test_permanent_answers(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.body = status, b"no such\x1b[31m customer\n"
    with pytest.raises(PermanentError, match=f"answered {status}: no such.x1b.31m customer"):
        deliver(make_context(), Target(receiver.url))


@pytest.mark.parametrize("status", [301, 302, 307, 304, 401, 403, 404, 409, 500, 502, 503, 429])
def test_everything_else_is_retried(receiver: Receiver, status: int) -> None:
    receiver.status, receiver.headers = status, {"Location": "http://169.254.169.254/"}
    with pytest.raises(TargetFailed) as caught:
        deliver(make_context(), Target(receiver.url))
    assert caught.value.status == status
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("17", 17), ("3600", 3600), ("1000000000", 3600), ("9" * 5000, 3600),
     ("Fri, 31 Dec 9999 23:59:59 GMT", 3600), ("Thu, 01 Jan 1970 00:00:00 GMT", 0)],
)  # fmt: skip
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after(receiver: Receiver, status: int, value: str, seconds: float) -> None:
    receiver.status, receiver.headers = status, {"Retry-After": value}
    with pytest.raises(RetryLater) as caught:
        deliver(make_context(), Target(receiver.url))
    assert caught.value.seconds == seconds


def test_retry_after_as_a_date(receiver: Receiver) -> None:
    at = dt.datetime.now(tz=dt.UTC) + dt.timedelta(seconds=100)
    receiver.status, receiver.headers = 503, {"Retry-After": email.utils.format_datetime(at, usegmt=True)}
    with pytest.raises(RetryLater) as caught:
        deliver(make_context(), Target(receiver.url))
    assert 90 < caught.value.seconds <= 100


@pytest.mark.parametrize("value", ["", "soon", "-5", "1.5", "٣", "Fri, 99 Foo"])
def test_a_retry_after_that_says_nothing(receiver: Receiver, value: str) -> None:
    assert http_target.retry_after(value) is None


def test_a_snippet_is_short(receiver: Receiver) -> None:
    receiver.status, receiver.body = 500, b"x" * 5000
    with pytest.raises(TargetFailed) as caught:
        deliver(make_context(), Target(receiver.url))
    assert len(str(caught.value)) < 1100


def test_a_timeout_is_retried(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("queues.outbound.post.__kwdefaults__", {"seconds": 0.3})
    receiver.hang = threading.Event()
    with pytest.raises(TargetTimeout) as caught:
        deliver(make_context(), Target(receiver.url))
    receiver.hang.set()
    assert caught.value.may_have_arrived


def test_a_refused_address_is_retried_and_nothing_is_sent(settings: Any, receiver: Receiver) -> None:
    """A mistake in the allowed ranges must not bury thousands of jobs at once."""
    settings.OUTBOUND_ALLOWED_CIDRS = []
    with pytest.raises(TargetRefused):
        deliver(make_context(), Target(receiver.url))
    assert receiver.got == []


def test_nobody_there_is_retried(receiver: Receiver) -> None:
    with pytest.raises(TargetUnreachable):
        deliver(make_context(), Target("http://127.0.0.1:9/jobs"))


def test_callback_tokens() -> None:
    token = callback_tokens.callback_token(JOB_ID, 7)
    assert len(token) == 70
    assert callback_tokens.verify(token) == callback_tokens.CallbackToken(job_id=JOB_ID, fence=7)
    assert callback_tokens.callback_token(JOB_ID, 8) != token
    for position in range(len(token)):
        changed = token[:position] + ("A" if token[position] != "A" else "B") + token[position + 1 :]
        assert callback_tokens.verify(changed) is None
    for broken in ("", "x", token[:-1], token + "A", token + "=", "ä" * 70, "*" * 70):
        assert callback_tokens.verify(broken) is None


def test_callback_tokens_outlive_a_rotation_of_the_key(settings: Any) -> None:
    token = callback_tokens.callback_token(JOB_ID, 7)
    old = settings.SECRET_KEY
    settings.SECRET_KEY = "another-key-of-at-least-32-characters-0123"
    assert callback_tokens.verify(token) is None
    settings.SECRET_KEY_FALLBACKS = [old]
    assert callback_tokens.verify(token) is not None


def test_a_sealed_secret(settings: Any) -> None:
    sealed = secrets_box.seal("geheim")
    assert b"geheim" not in sealed
    assert secrets_box.open(sealed) == "geheim"
    old = settings.ENCRYPTION_KEYS
    settings.ENCRYPTION_KEYS = [base64.urlsafe_b64encode(b"1" * 32).decode(), *old]
    assert secrets_box.open(sealed) == "geheim"
    resealed = secrets_box.reseal(sealed)
    settings.ENCRYPTION_KEYS = settings.ENCRYPTION_KEYS[:1]
    assert secrets_box.open(resealed) == "geheim"
    with pytest.raises(secrets_box.CannotOpen):
        secrets_box.open(sealed)


def test_the_payload_is_sent_as_it_was_stored(receiver: Receiver) -> None:
    deliver(make_context(payload_text=json.dumps({"a": "é"}, ensure_ascii=False)), Target(receiver.url))
    assert receiver.got[0][1] == '{"a": "é"}'.encode()


def ask_at(receiver: Receiver, path: str = "/status", **overrides: Any) -> Confirmed | Rejected | None:
    """Ask the receiver, which answers what it was told to."""
    url = receiver.url.removesuffix("/jobs") + path
    return ask(make_context(**overrides), CheckTarget(url))


def test_the_question(receiver: Receiver) -> None:
    receiver.body = b'{"outcome": "unknown"}'
    assert ask_at(receiver, trace_text=json.dumps({"traceparent": TRACE}), probe=True) is None
    headers, body = receiver.got[0]
    path, _, query = receiver.paths[0].partition("?")
    assert (receiver.methods, path, body) == (["GET"], "/status", b"")
    assert parse_qs(query, strict_parsing=True) == {
        "job_id": [str(JOB_ID)],
        "type": ["billing.receipt"],
        "idempotency_key": ["jb_" + "0" * 32],
    }
    assert headers["webhook-id"] == headers["Jobsboard-Job-Id"] == str(JOB_ID)
    assert headers["Idempotency-Key"] == "jb_" + "0" * 32
    assert (headers["Jobsboard-Job-Type"], headers["Jobsboard-Attempt"]) == ("billing.receipt", "2")
    assert (headers["Jobsboard-Probe"], headers["traceparent"]) == ("true", TRACE)
    assert "Jobsboard-Callback-Url" not in headers
    assert "Content-Type" not in headers


def test_the_known_reference_is_asked_for(receiver: Receiver) -> None:
    receiver.body = b'{"outcome": "confirmed"}'
    assert ask_at(receiver, "/status?tenant=7#part", reference="re 1&x") == Confirmed("re 1&x")
    assert parse_qs(receiver.paths[0].partition("?")[2])["ref"] == ["re 1&x"]
    assert receiver.paths[0].startswith("/status?tenant=7&job_id=")


@pytest.mark.parametrize(
    "path", ["/status", "/a/../b", "/%7e/%c3%bc?q=[1]", "/a b?c=d e", "//two//slashes", "", "?x=%zz", "/p;k=v"]
)
def test_the_signature_is_over_the_line_that_is_sent(receiver: Receiver, path: str) -> None:
    """A receiver has no body to verify: it takes path and query as they arrived."""
    if " " in path:
        with pytest.raises(CheckFailed):
            ask_at(receiver, path)
        return
    receiver.body = b'{"outcome": "unknown"}'
    ask_at(receiver, path)
    headers, _ = receiver.got[0]
    Webhook(SECRET).verify(receiver.targets[0], headers, json_parse=False)


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"outcome": "confirmed", "ref": "re_2"}', Confirmed("re_2")),
        (b'{"outcome": "confirmed", "ref": 42}', Confirmed("42")),
        (b'{"outcome": "confirmed"}', Confirmed("confirmed by check")),
        (b'{"outcome": "confirmed", "ref": " "}', Confirmed("confirmed by check")),
        (b'{"outcome": "unknown", "ref": "re_2", "more": 1}', None),
    ],
)
def test_answers_of_a_check(receiver: Receiver, body: bytes, outcome: Confirmed | None) -> None:
    receiver.body = body
    assert ask_at(receiver) == outcome


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"outcome": "rejected", "detail": "bounced\\u001b[31m, password=hunter2"}', "bounced\\x1b[31m, password="),
        (b'{"outcome": "rejected"}', "127.0.0.1 says that the work was rejected"),
        (b'{"outcome": "rejected", "detail": 1}', "127.0.0.1 says that the work was rejected"),
    ],
)
def test_a_check_that_rejects(receiver: Receiver, body: bytes, detail: str) -> None:
    receiver.body = body
    said = ask_at(receiver)
    assert isinstance(said, Rejected)
    assert str(said).startswith(detail)
    assert "hunter2" not in str(said)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b""),
        (200, b"confirmed"),
        (200, b'["confirmed"]'),
        (200, b'{"outcome": "Confirmed"}'),
        (200, b'{"outcome": true}'),
        (200, b'{"outcome": null}'),
        (200, b'{"outcome": ["confirmed"]}'),
        (200, b"[" * 60_000),
        (200, b'{"outcome": "confirmed", "x": "' + b"x" * 70_000 + b'"}'),
        (201, b'{"outcome": "confirmed"}'),
        (202, b'{"outcome": "confirmed"}'),
        (302, b'{"outcome": "confirmed"}'),
        (404, b'{"outcome": "rejected"}'),
        (503, b"later"),
    ],
)
def test_a_check_that_cannot_answer(receiver: Receiver, status: int, body: bytes) -> None:
    """A wrong word for yes is no yes, and no no either."""
    receiver.status, receiver.body, receiver.headers = status, body, {"Location": "http://169.254.169.254/"}
    with pytest.raises(CheckFailed):
        ask_at(receiver)
    assert len(receiver.got) == 1


def test_a_check_in_time(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_target, "CHECK_SECONDS", 0.3)
    receiver.hang = threading.Event()
    with pytest.raises(CheckFailed):
        ask_at(receiver)
    receiver.hang.set()


def test_a_check_obeys_the_rules_for_addresses(settings: Any, receiver: Receiver) -> None:
    """S-17 for the second kind of request."""
    settings.OUTBOUND_ALLOWED_CIDRS = []
    with pytest.raises(CheckFailed):
        ask_at(receiver)
    assert receiver.got == []


def test_a_check_is_not_sent_unsigned(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOP_SECRET")
    with pytest.raises(CheckFailed):
        ask_at(receiver)
    assert receiver.got == []
