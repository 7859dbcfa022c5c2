"""Callbacks over HTTP: RELIABILITY.md C2, rows K-01 to K-09. K-10, in parallel: tests/concurrency/test_callbacks.py."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from standardwebhooks import Webhook

from jobsboard.api import signatures
from queues import contracts, lifecycle, secrets_box
from queues.callback_tokens import callback_token
from queues.http_target import signing_key
from queues.models import Callback, Job, JobReference, JobType
from queues.states import JobState
from tests.api.conftest import Api, problem
from tests.factories import accept, claim, failed, get, make_job, set_columns

S = JobState
NO_JOB = "00000000-0000-7000-8000-000000000000"
SECRET = "whsec_" + base64.b64encode(b"k" * 24).decode()
OTHER = "whsec_" + base64.b64encode(b"o" * 24).decode()


def _whsec(secret: str) -> str:
    """Write a secret as the library wants it."""
    return secret if secret.startswith("whsec_") else "whsec_" + base64.b64encode(secret.encode()).decode()


@dataclass
class Provider:
    """Signs as an independent library does."""

    client: Client = field(default_factory=lambda: Client(raise_request_exception=False))

    def send(
        self,
        body: Any,
        *,
        kind: str = "crm.sync",
        secret: str = SECRET,
        webhook_id: str = "",
        at: int | None = None,
        content_type: str = "application/json",
        **headers: str | None,
    ) -> Any:
        """Send a signed callback; headers replace those of the signature, None leaves one out."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        webhook_id = webhook_id or f"msg_{secrets.token_hex(8)}"
        at = int(time.time()) if at is None else at
        try:
            signature = Webhook(_whsec(secret)).sign(webhook_id, datetime.fromtimestamp(at, tz=UTC), raw.decode())
        except UnicodeDecodeError:
            # The library takes text only.
            mac = hmac.digest(signing_key(secret), f"{webhook_id}.{at}.".encode() + raw, hashlib.sha256)
            signature = "v1," + base64.b64encode(mac).decode()
        sent = {"webhook-id": webhook_id, "webhook-timestamp": str(at), "webhook-signature": signature}
        for name, value in headers.items():
            sent[name.replace("_", "-")] = value  # type: ignore[assignment]
        return self.client.post(
            f"/api/v1/callbacks/{kind}",
            raw,
            content_type=content_type,
            headers={name: value for name, value in sent.items() if value is not None},
        )

    def tell(self, token: str, body: Any) -> Any:
        """Use the address that an HTTP target was given."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(f"/api/v1/callbacks/jobs/{token}", raw, content_type="application/json")


@pytest.fixture
def provider(types: None, monkeypatch: pytest.MonkeyPatch) -> Provider:
    """Return a provider of two types that await callbacks, one of them without a secret."""
    monkeypatch.setenv("CRM_SECRET", SECRET)
    JobType.objects.create(name="crm.sync", tier_id=2, success="callback", callback_secret_env="CRM_SECRET")
    JobType.objects.create(name="crm.bare", tier_id=2, success="callback")
    contracts.forget()
    return Provider()


def _awaiting(**columns: Any) -> Job:
    return make_job(S.AWAITING_CONFIRMATION, **{"type": "crm.sync", "fence": 1, "attempt": 1, "begun": 1, **columns})


def _state(job: Job) -> str:
    return get(job.id).state


def _says(response: Any, status: int = 200) -> dict[str, Any]:
    assert response.status_code == status, response.content
    body: dict[str, Any] = response.json()
    assert set(body) == {"applied", "result", "duplicate", "late", "job_id", "state"}
    return body


def test_a_token_confirms(provider: Provider) -> None:
    job = _awaiting()
    said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "confirmed", "ref": "crm_1"}))
    assert said == {
        "applied": True,
        "result": "confirmed",
        "duplicate": False,
        "late": False,
        "job_id": str(job.id),
        "state": "confirmed",
    }
    evidence = get(job.id).evidence
    assert evidence is not None
    assert (evidence["kind"], evidence["ref"], evidence["run"]) == ("callback", "crm_1", 1)
    again = _says(provider.tell(callback_token(job.id, 1), {"outcome": "confirmed", "ref": "crm_1"}))
    assert (again["applied"], again["duplicate"], again["state"]) == (False, True, "confirmed")


def test_a_token_rejects(provider: Provider) -> None:
    job = _awaiting()
    said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "rejected", "detail": "no such contact"}))
    assert (said["applied"], said["result"], said["state"]) == (True, "rejected", "dead")
    assert get(job.id).reason == "rejected"
    job = _awaiting()
    said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "rejected", "retryable": True}))
    assert (said["applied"], said["result"], said["state"]) == (True, "retrying", "retrying")


def test_the_token_names_the_run_and_the_body_cannot(provider: Provider) -> None:
    """I-27: whoever was given run 1 speaks of run 1."""
    job = _awaiting(fence=2)
    said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "rejected", "run": 2}))
    assert (said["applied"], said["result"], said["state"]) == (False, "superseded", "awaiting_confirmation")


@pytest.mark.parametrize("token", ["x", "A" * 70, "ä", "%00", "jobs", "a" * 5000])
def test_no_oracle_for_tokens(provider: Provider, token: str) -> None:
    """K-06, I-27: a forged token, and a true one of a job that is gone, look the same."""
    body = {"outcome": "confirmed"}
    gone = problem(provider.tell(callback_token(UUID(NO_JOB), 1), body), 404, "unknown_job")
    forged = problem(provider.tell(token, body), 404, "unknown_job")
    for one in (gone, forged):
        one.pop("request_id")
    assert gone == forged


def test_a_token_of_another_job(provider: Provider) -> None:
    """I-27: half of one token and half of another are none."""
    one, two = _awaiting(), _awaiting()
    mixed = callback_token(one.id, 1)[:30] + callback_token(two.id, 1)[30:]
    problem(provider.tell(mixed, {"outcome": "confirmed"}), 404, "unknown_job")
    assert (_state(one), _state(two)) == ("awaiting_confirmation", "awaiting_confirmation")


def test_a_provider_confirms_by_id_and_by_reference(provider: Provider) -> None:
    one, two = _awaiting(), _awaiting()
    said = _says(provider.send({"outcome": "confirmed", "job_id": str(one.id), "ref": "crm_1"}))
    assert (said["applied"], said["result"], said["job_id"]) == (True, "confirmed", str(one.id))
    JobReference.objects.create(type="crm.sync", ref="crm_2", job_id=two.id, fence=1)
    said = _says(provider.send({"outcome": "confirmed", "ref": "crm_2"}))
    assert (said["applied"], said["job_id"], said["state"]) == (True, str(two.id), "confirmed")


def test_the_id_is_taken_before_the_reference(provider: Provider) -> None:
    """Where both are sent, the reference is evidence only."""
    one, two = _awaiting(), _awaiting()
    JobReference.objects.create(type="crm.sync", ref="crm_2", job_id=two.id, fence=1)
    _says(provider.send({"outcome": "confirmed", "job_id": str(one.id), "ref": "crm_2"}))
    assert (_state(one), _state(two)) == ("confirmed", "awaiting_confirmation")


def test_a_callback_before_its_job_is_kept(provider: Provider) -> None:
    """202: in the inbox until the reference is known; sent again it still is."""
    for _ in range(2):
        said = _says(provider.send({"outcome": "confirmed", "ref": "early"}, webhook_id="msg_1"), 202)
        assert (said["applied"], said["result"], said["job_id"]) == (False, "pending", None)
    assert Callback.objects.filter(applied_at=None).count() == 1


@pytest.mark.parametrize(
    "signature",
    [
        None,
        "",
        " ",
        "v1",
        "v1,",
        "garbage",
        "v1,a,b",
        "v1,@@@",
        "v1,abc",
        "v1a," + "A" * 44,
        "v2,{good}",
        "{good}=",
        "V1,{good}",
        "é" * 40,
        " ".join(["v1,AAAA"] * 10_000),
        " ".join(["v1,AAAA"] * 10) + " {good}",
    ],
)
def test_signatures_that_are_none(provider: Provider, signature: str | None) -> None:
    """K-01."""
    job = _awaiting()
    body = json.dumps({"outcome": "confirmed", "job_id": str(job.id)}).encode()
    at = int(time.time())
    good = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(at, tz=UTC), body.decode())
    if signature is not None:
        text = good.removeprefix("v1,") if signature.startswith(("v2", "V1")) else good
        signature = signature.replace("{good}", text)
    response = provider.send(body, webhook_id="msg_1", at=at, webhook_signature=signature)
    problem(response, 401, "signature_invalid")
    assert _state(job) == "awaiting_confirmation"


def test_one_of_ten_signatures_is_enough(provider: Provider) -> None:
    """A provider that rotates its secret signs with both."""
    body = json.dumps({"outcome": "confirmed", "job_id": str(_awaiting().id)}).encode()
    at = int(time.time())
    good = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(at, tz=UTC), body.decode())
    signature = " ".join([*["v1,AAAA"] * 8, good, "v1a,x"])
    _says(provider.send(body, webhook_id="msg_1", at=at, webhook_signature=signature))


def test_a_signature_is_over_id_time_and_bytes(provider: Provider) -> None:
    """Nothing that was signed can be exchanged."""
    job = _awaiting()
    body = json.dumps({"outcome": "confirmed", "job_id": str(job.id)}).encode()
    at = int(time.time())
    good = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(at, tz=UTC), body.decode())
    for changed in (
        provider.send(body + b" ", webhook_id="msg_1", at=at, webhook_signature=good),
        provider.send(body, webhook_id="msg_2", at=at, webhook_signature=good),
        provider.send(body, webhook_id="msg_1", at=at + 1, webhook_signature=good),
        provider.send(body, webhook_id="msg_1", webhook_timestamp=f"0{at}", webhook_signature=good),
        provider.send(body, kind="crm.bare", webhook_id="msg_1", at=at, webhook_signature=good),
        provider.send(body, secret=OTHER),
        provider.send(body, secret="x"),
    ):
        problem(changed, 401, "signature_invalid")
    assert _state(job) == "awaiting_confirmation"
    _says(provider.send(body, webhook_id="msg_1", at=at, webhook_signature=good))


@pytest.mark.parametrize(
    "timestamp", [None, "", "NaN", "1e9", "-1", str(2**63), "{now}.0", "{now} ", "+{now}", "٣", "9" * 5000, "0x10"]
)
def test_timestamps_that_are_none(provider: Provider, timestamp: str | None) -> None:
    """K-02: whole seconds in digits only."""
    job = _awaiting()
    text = None if timestamp is None else timestamp.replace("{now}", str(int(time.time())))
    response = provider.send({"outcome": "confirmed", "job_id": str(job.id)}, webhook_timestamp=text)
    problem(response, 401, "timestamp_out_of_tolerance")
    assert _state(job) == "awaiting_confirmation"


@pytest.mark.parametrize(("off", "status"), [(-301, 401), (-300, 200), (0, 200), (300, 200), (301, 401)])
def test_tolerance(provider: Provider, monkeypatch: pytest.MonkeyPatch, off: int, status: int) -> None:
    """K-02: five minutes to both sides."""
    now = int(time.time())
    monkeypatch.setattr(signatures, "_now", lambda: now)
    response = provider.send({"outcome": "confirmed", "job_id": str(_awaiting().id)}, at=now + off)
    assert response.status_code == status


def test_the_same_callback_again(provider: Provider) -> None:
    """K-03, also when a newer run or a contradiction came between."""
    job = _awaiting()
    body = {"outcome": "rejected", "job_id": str(job.id), "retryable": True}
    assert _says(provider.send(body, webhook_id="msg_1"))["result"] == "retrying"
    set_columns(job.id, raw_due_at="jobs_now()")
    claim([job.id])
    again = _says(provider.send(body, webhook_id="msg_1"))
    assert (again["applied"], again["duplicate"]) == (False, True)
    rejection = get(job.id).rejection
    assert rejection is not None
    assert (_state(job), rejection["fence"]) == ("processing", 1)


def test_rotation(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    """K-04: the old secret counts until its time is up; a variable may hold several."""
    job = _awaiting()
    body = {"outcome": "confirmed", "job_id": str(job.id)}
    kind = JobType.objects.get(name="crm.bare")
    kind.callback_secret, kind.callback_secret_old = secrets_box.seal(SECRET), secrets_box.seal("old, plain")

    def send(secret: str, *, until: timedelta | None) -> int:
        kind.callback_secret_old_until = None if until is None else datetime.now(tz=UTC) + until
        kind.save()
        contracts.forget()
        status: int = provider.send({**body, "job_id": NO_JOB}, kind="crm.bare", secret=secret).status_code
        return status

    # 404: signed well, and there is no such job.
    assert send(SECRET, until=None) == 404
    assert send("old, plain", until=timedelta(minutes=1)) == 404
    assert send("old, plain", until=timedelta(seconds=-1)) == 401
    assert send("old, plain", until=None) == 401
    monkeypatch.setenv("CRM_SECRET", f" plain-one,\n{OTHER} ")
    assert provider.send({**body, "job_id": NO_JOB}, secret="plain-one").status_code == 404
    assert provider.send({**body, "job_id": NO_JOB}, secret=SECRET).status_code == 401
    assert provider.send(body, secret=OTHER).status_code == 200


@pytest.mark.parametrize("value", ["", " , ", "whsec_", "whsec_***"])
def test_a_broken_secret_opens_nothing(provider: Provider, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("CRM_SECRET", value)
    JobType.objects.filter(name="crm.sync").update(callback_secret=b"junk")
    contracts.forget()
    problem(provider.send({"outcome": "confirmed", "ref": "x"}), 401, "signature_invalid")
    monkeypatch.delenv("CRM_SECRET")
    problem(provider.send({"outcome": "confirmed", "ref": "x"}), 401, "signature_invalid")


@pytest.mark.parametrize("webhook_id", ["a.b", "x" * 1_000_000, "x" * 256, "a b", "é", "a\tb", "\x7f"])
def test_ids_that_could_be_read_in_two_ways(provider: Provider, webhook_id: str) -> None:
    """K-05."""
    body = {"outcome": "confirmed", "ref": "x"}
    for kind in ("crm.sync", "nope"):
        problem(provider.send(body, kind=kind, webhook_id=webhook_id), 400, "webhook_id_invalid")


@pytest.mark.parametrize("sent", [{}, {"webhook_signature": "v1,AAAA"}, {"secret": OTHER}, {"webhook_id": "m"}])
def test_no_oracle_for_types(provider: Provider, sent: dict[str, Any]) -> None:
    """K-06: a type that does not exist, one without a secret and a wrong signature are answered alike."""
    answers = []
    for kind in ("nope", "crm.bare", "mail.off", "crm.sync"):
        secret = OTHER if kind == "crm.sync" else sent.get("secret", SECRET)
        given = {name: value for name, value in sent.items() if name != "secret"}
        response = provider.send({"outcome": "confirmed", "ref": "x"}, kind=kind, secret=secret, **given)
        body = problem(response, 401, "signature_invalid")
        body.pop("request_id")
        headers = {k: v for k, v in response.headers.items() if k not in ("X-Request-Id",)}
        answers.append((body, headers))
    assert all(answer == answers[0] for answer in answers)
    big = [provider.send(b" " * 65_537, kind=kind) for kind in ("nope", "crm.bare", "crm.sync")]
    assert {response.status_code for response in big} == {413}


def test_jobs_of_nobody_and_of_another_type(provider: Provider) -> None:
    """K-06: one answer."""
    theirs = make_job(S.AWAITING_CONFIRMATION, type="billing.receipt", fence=1)
    answers = []
    for job_id in (NO_JOB, str(theirs.id), "x", "", "9" * 5000):
        body = problem(provider.send({"outcome": "confirmed", "job_id": job_id}), 404, "unknown_job")
        body.pop("request_id")
        answers.append(body)
    assert all(answer == answers[0] for answer in answers)
    assert _state(theirs) == "awaiting_confirmation"
    assert not Callback.objects.exists()


def test_run_1_is_confirmed_while_run_2_runs(provider: Provider) -> None:
    """K-07: positive evidence belongs to the job. It counts when the run ends, however it ends."""
    job_id = accept(kind="crm.sync")[0]
    lifecycle.settle([failed(claim([job_id])[0], retry_in=0.0)])
    run = claim([job_id])[0]
    said = _says(provider.tell(callback_token(job_id, 1), {"outcome": "confirmed", "ref": "crm_1"}))
    assert (said["applied"], said["result"], said["state"]) == (True, "kept", "processing")
    lifecycle.settle([failed(run, retry_in=0.0)])
    job = get(job_id)
    assert (job.state, job.evidence and job.evidence["ref"]) == ("confirmed", "crm_1")


def test_run_1_is_rejected_while_run_2_runs(provider: Provider) -> None:
    """K-07: a rejection counts only for the run that its token names."""
    job_id = accept(kind="crm.sync")[0]
    lifecycle.settle([failed(claim([job_id])[0], retry_in=0.0)])
    claim([job_id])
    said = _says(provider.tell(callback_token(job_id, 1), {"outcome": "rejected", "detail": "no"}))
    assert (said["applied"], said["result"], said["state"]) == (False, "superseded", "processing")
    late = get(job_id).late_evidence
    assert late is not None
    assert (late[0]["outcome"], late[0]["run"]) == ("rejected", 1)


@pytest.mark.parametrize("state", [S.DEAD, S.CANCELLED, S.EXPIRED])
def test_late(provider: Provider, api: Api, state: JobState) -> None:
    """K-08, I-29: kept, shown and flagged; the job stays as it is."""
    job = make_job(state, type="crm.sync", fence=1, begun=1)
    said = _says(provider.send({"outcome": "confirmed", "job_id": str(job.id), "ref": "crm_1"}))
    assert (said["applied"], said["late"], said["state"]) == (False, True, state)
    shown = api.get(f"/jobs/{job.id}").json()
    assert (shown["state"], shown["evidence"]["ref"], shown["evidence"]["late"]) == (state, "crm_1", True)
    assert [(one["outcome"], one["ref"]) for one in shown["late_evidence"]] == [("confirmed", "crm_1")]
    found = api.get(f"/dead-letters/{job.id}/preflight").json()
    assert found["verdict"] == "unsafe"


def test_a_contradiction_is_answered_with_200(provider: Provider) -> None:
    """A provider would repeat a 409 for ever."""
    job = make_job(S.CONFIRMED, type="crm.sync", fence=1)
    for _ in range(2):
        said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "rejected"}))
        assert (said["applied"], said["result"], said["state"]) == (False, "contradiction", "confirmed")
    assert len(get(job.id).late_evidence or []) == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b" ", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"outcome=confirmed", 400, "invalid_json"),
        (b'{"outcome": NaN}', 400, "invalid_json"),
        (b"[]", 422, "invalid_request"),
        (b'{"outcome": "OK "}', 422, "invalid_request"),
        (b'{"outcome": 1}', 422, "invalid_request"),
        (b'{"outcome": null}', 422, "invalid_request"),
        (b'{"status": "OK "}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "status": 1}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "outcome": "rejected"}', 422, "duplicate_key"),
        (b'{"outcome": "confirmed", "ref": "a\\u0000b"}', 422, "invalid_unicode"),
        (b'{"outcome": "confirmed", "ref": "\\ud800"}', 422, "invalid_unicode"),
        (b'{"outcome": "confirmed", "ref": 7}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "ref": "' + b"x" * 1001 + b'"}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "run": 0}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "run": 2147483648}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "run": "1"}', 422, "invalid_request"),
        (b'{"outcome": "confirmed", "retryable": "no"}', 422, "invalid_request"),
        (b"[" * 30_000, 422, "too_deep"),
        (b'{"outcome": "confirmed", "ref": "\xff"}', 400, "invalid_encoding"),
    ],
)
def test_bodies_that_are_refused(provider: Provider, body: bytes, status: int, code: str) -> None:
    """K-09: after the signature was checked, and nothing changes. The token's callback reads as strictly."""
    job = _awaiting()
    problem(provider.send(body, secret=OTHER), 401, "signature_invalid")
    for response in (provider.send(body), provider.tell(callback_token(job.id, 1), body)):
        assert response.status_code in (400, 422)
        problem(response, response.status_code, response.json()["code"])
    found = provider.send(body).json()
    assert (found["status"], found["code"]) == (status, code)
    assert _state(job) == "awaiting_confirmation"
    assert not Callback.objects.exists()


def test_sizes_and_kinds_of_bodies(provider: Provider) -> None:
    """K-09: read up to 64 KiB, whoever sends it; what is not JSON is refused after its signature."""
    problem(provider.send(b"x" * 5_000_000), 413, "payload_too_large")
    problem(provider.tell(callback_token(_awaiting().id, 1), b"x" * 5_000_000), 413, "payload_too_large")
    body = {"outcome": "confirmed", "ref": "x"}
    problem(provider.send(body, content_type="text/plain", secret=OTHER), 401, "signature_invalid")
    problem(provider.send(body, content_type="text/plain"), 415, "unsupported_media_type")
    assert _says(provider.send(body, content_type="application/json; charset=utf-8"), 202)


def test_a_callback_names_a_job(provider: Provider) -> None:
    for body in ({"outcome": "confirmed"}, {"outcome": "confirmed", "ref": " "}):
        assert problem(provider.send(body), 422, "invalid_request")["pointer"] == "/ref"


def test_a_long_detail_is_cut_and_redacted(provider: Provider) -> None:
    """A proof must not get lost over the words beside it."""
    job = _awaiting()
    detail = "password=hunter2 " + "x" * 10_000
    _says(provider.send({"outcome": "rejected", "job_id": str(job.id), "detail": detail}))
    stored = json.dumps([get(job.id).rejection, get(job.id).failures])
    assert "hunter2" not in stored
    assert len(stored) < 8000


def test_no_key_no_csrf_no_cookie(provider: Provider) -> None:
    """They are called by machines that have none of these; a key changes nothing."""
    provider.client = Client(enforce_csrf_checks=True, raise_request_exception=False)
    job = _awaiting()
    response = provider.send({"outcome": "confirmed", "job_id": str(job.id)})
    assert (response.status_code, dict(response.cookies)) == (200, {})
    assert provider.client.get("/api/v1/callbacks/crm.sync").status_code == 405


def test_a_callback_counts_once_for_a_lineage(provider: Provider, api: Api) -> None:
    """Positive evidence of a dead job confirms its replay, which has not begun."""
    job = make_job(S.DEAD, type="crm.sync", fence=1, begun=1)
    child = api.post(f"/jobs/{job.id}/replay", {"reason": "again"}).json()["id"]
    said = _says(provider.tell(callback_token(job.id, 1), {"outcome": "confirmed", "ref": "crm_1"}))
    assert (said["applied"], said["job_id"], said["state"]) == (True, child, "confirmed")


_HEADER = st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=60)


@pytest.mark.django_db
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["crm.sync", "nope", "crm.bare"]),
    headers=st.fixed_dictionaries({}, optional={f"webhook-{n}": _HEADER for n in ("id", "timestamp", "signature")}),
    body=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    content_type=st.sampled_from(["application/json", "text/plain", ""]),
)
def test_no_garbage_is_a_500(
    provider: Provider, kind: str, headers: dict[str, str], body: bytes, content_type: str
) -> None:
    """K-01, K-02, K-09: unsigned garbage."""
    response = provider.client.post(f"/api/v1/callbacks/{kind}", body, content_type=content_type, headers=headers)
    assert response.status_code in (400, 401)


_VALUE: st.SearchStrategy[Any] = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)


@pytest.mark.django_db
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=st.dictionaries(
        st.sampled_from(["outcome", "ref", "detail", "retryable", "run", "job_id", "x"]),
        _VALUE | st.sampled_from(["confirmed", "rejected", NO_JOB]),
    )
    | st.lists(_VALUE, max_size=3),
)
def test_no_signed_garbage_is_a_500(provider: Provider, said: Any) -> None:
    """K-09: what a provider signs may be nonsense all the same."""
    body = json.dumps(said).encode()
    assert provider.send(body).status_code in (200, 202, 400, 404, 422)
    token = callback_token(UUID(NO_JOB), 1)
    assert provider.tell(token, body).status_code in (400, 404, 422)
