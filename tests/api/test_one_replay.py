"""Replaying one job over HTTP: what refuses it, consent, races (C6 R-01 to R-04 and R-07, I-30). R-03: test_jobs."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from jobsboard.api import keys
from jobsboard.models import SCOPES
from queues import contract_switches, contracts
from queues.models import AuditEntry, Job, JobType, OutcomeRollup
from queues.states import JobState
from tests.api.conftest import Api, never_began, problem, runs_fail, runs_went_well
from tests.factories import make_job, make_type

S = JobState


def _dead(kind: str = "billing.receipt", **columns: Any) -> str:
    return str(make_job(S.DEAD, type=kind, **columns).id)


def test_a_replay_asks_by_itself(api: Api, asked: list[UUID]) -> None:
    """Nobody looked before: what is asked still counts, and what is not known stands in the audit log."""
    runs_went_well("billing.receipt")
    job_id = _dead(begun=1)
    assert api.post(f"/jobs/{job_id}/replay", {"reason": "x"}).status_code == 201
    assert asked == [UUID(job_id)]
    after = AuditEntry.objects.get(action="job.replayed").after or {}
    assert "already_done" not in after["checks"], "it passed"
    assert after["verdict"] == "unknown"


def test_an_unsafe_replay_needs_its_verdict_back(api: Api) -> None:
    """The refusal says what speaks against it, and handing that very verdict back is the consent."""
    runs_fail("billing.receipt")
    job_id = _dead()
    path = f"/dead-letters/{job_id}/replay"
    refused = problem(api.post(path, {"reason": "x"}), 409, "unsafe_replay")
    assert (refused["verdict"], len(refused["checks"]), refused["final"]) == ("unsafe", 8, False)
    assert refused["fingerprint"] == api.get(f"/dead-letters/{job_id}/preflight").json()["fingerprint"]
    assert "20 of the newest 20 runs failed" in refused["detail"]
    for wrong in ("unsafe", "", "1", "1PPPPPPPP", refused["fingerprint"] * 5):
        answer = problem(api.post(path, {"reason": "x", "verdict": wrong}), 422, "invalid_request")
        assert answer["pointer"] == "/verdict"
    assert api.get(f"/jobs/{job_id}").json()["replayed_by"] is None
    done = api.post(path, {"reason": "I know", "verdict": refused["fingerprint"]})
    assert done.status_code == 201, done.content
    entry = AuditEntry.objects.get(action="job.replayed")
    after = entry.after or {}
    assert (entry.reason, after["verdict"], after["checks"]["dependency"]) == ("I know", "unsafe", "fail")


def test_a_changed_verdict_replays_nothing(api: Api) -> None:
    """It was looked at while it was safe; since then what it depends on fails, and then it is healthy again. Each time
    the difference is said, and the verdict that is true now."""
    runs_went_well("billing.receipt")
    job_id = never_began(api, dedupe_key="k")
    safe = api.get(f"/dead-letters/{job_id}/preflight").json()["fingerprint"]
    runs_fail("billing.receipt")
    path = f"/jobs/{job_id}/replay"
    changed = problem(api.post(path, {"reason": "x", "verdict": safe}), 409, "verdict_changed")
    [change] = changed["changes"]
    assert set(change) == {"name", "title", "was", "now", "evidence"}
    assert (change["name"], change["was"], change["now"]) == ("dependency", "pass", "fail")
    assert "20 of the newest 20 runs failed" in change["evidence"]
    assert (changed["verdict"], len(changed["checks"])) == ("unsafe", 8)
    OutcomeRollup.objects.update(failed=0)
    back = problem(api.post(path, {"reason": "x", "verdict": changed["fingerprint"]}), 409, "verdict_changed")
    assert (back["fingerprint"], back["verdict"]) == (safe, "safe")
    assert api.get(f"/jobs/{job_id}").json()["replayed_by"] is None
    assert api.post(path, {"reason": "x", "verdict": safe}).status_code == 201


def test_r_01_what_is_not_replayed(api: Api) -> None:
    """R-01: confirmed, waiting, running, replayed, cancelled dead letters, erased ones: 409 with why, whatever verdict
    is handed back."""
    open_job, replayed = api.accept()["id"], _dead()
    child = api.post(f"/jobs/{replayed}/replay", {"reason": "x"}).json()["id"]
    cancelled = _dead()
    assert api.post(f"/dead-letters/{cancelled}/cancel", {"reason": "x"}).status_code == 200
    erased = _dead(raw_erased_at="jobs_now()", raw_payload="NULL")
    for job_id, code in (
        (str(make_job(S.CONFIRMED, type="billing.receipt").id), "not_replayable"),
        (str(make_job(S.PROCESSING, type="billing.receipt").id), "not_replayable"),
        (open_job, "not_replayable"),
        (replayed, "already_replayed"),
        (cancelled, "resolved"),
        (erased, "payload_erased"),
    ):
        for more in ({}, {"verdict": "1fppppppp"}):
            refused = problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x", **more}), 409, code)
            assert refused.get("replayed_by") == (child if code == "already_replayed" else None)
    assert Job.objects.filter(replay_of__isnull=False).count() == 1


def test_r_02_a_newer_job_holds_the_key(api: Api) -> None:
    """R-02: refused for good, with the job that holds it; under another key it is another job."""
    job_id = _dead(dedupe_key="k")
    holder = api.accept(dedupe_key="k")["id"]
    refused = problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x"}), 409, "key_moved_on")
    assert refused["held_by"] == holder
    verdict = api.get(f"/dead-letters/{job_id}/preflight").json()
    assert (verdict["final"], verdict["verdict"]) == (True, "unsafe")
    again = {"reason": "x", "verdict": verdict["fingerprint"]}
    problem(api.post(f"/jobs/{job_id}/replay", again), 409, "key_moved_on")
    assert api.post(f"/jobs/{job_id}/replay", {"reason": "x", "dedupe_key": "k2"}).status_code == 201


def test_r_04_a_contract_that_was_paused_disabled_or_deleted(api: Api) -> None:
    """R-04: paused needs consent, since the replay would wait; a disabled or deleted type refuses for good."""
    job_id = _dead()
    contract_switches.set_switch("billing.receipt", paused=True, actor="ada", reason="x")
    paused = problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x"}), 409, "unsafe_replay")
    assert next(one["title"] for one in paused["checks"] if one["result"] == "fail") == "Type is paused"
    contract_switches.set_switch("billing.receipt", enabled=False, actor="ada", reason="x")
    problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x"}), 409, "key_moved_on")
    JobType.objects.filter(name="billing.receipt").delete()
    contracts.forget()
    problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x", "verdict": paused["fingerprint"]}), 409, "key_moved_on")
    assert not Job.objects.filter(replay_of=job_id).exists()


def test_r_07_reasons(api: Api) -> None:
    """R-07: a megabyte, a NUL and half a character are refused; a script or a formula is kept as what it is, a text."""
    job_id = _dead()
    path = f"/dead-letters/{job_id}/ignore"
    problem(api.post(path, {"reason": "x" * 1_000_000}), 422, "invalid_request")
    problem(api.post(path, {"reason": "x" * 1_100_000}), 413, "payload_too_large")
    problem(api.post(path, b'{"reason": "a\\u0000b"}'), 422, "invalid_unicode")
    words = '=HYPERLINK("http://x") <script>alert(1)</script>'
    assert api.post(path, {"reason": words}).status_code == 200
    assert AuditEntry.objects.get(action="dead_letter.ignored").reason == words


@pytest.mark.concurrency
def test_i_30_twenty_posts_at_once_make_one_child(committed_types: None) -> None:
    """I-30: a double click, two operators, a retry after a 502: one is told 201, the others which job it is."""
    job_id, n = _dead(), 20
    text = keys.issue_key(label="test", scopes=SCOPES)[1]
    barrier = threading.Barrier(n, timeout=30)

    def post(_: int) -> tuple[int, dict[str, Any]]:
        try:
            barrier.wait()
            answer = Api(text).post(f"/dead-letters/{job_id}/replay", {"reason": "again"})
            return answer.status_code, json.loads(answer.content)
        finally:
            connection.close()

    with ThreadPoolExecutor(n) as pool:
        answers = list(pool.map(post, range(n)))
    [child] = Job.objects.filter(replay_of=job_id)
    assert [body["id"] for status, body in answers if status == 201] == [str(child.id)]
    others = [body for status, body in answers if status != 201]
    assert {(one["code"], one.get("replayed_by")) for one in others} == {("already_replayed", str(child.id))}, others
    assert AuditEntry.objects.filter(action="job.replayed").count() == 1


@pytest.fixture
def committed_types(transactional_db: None) -> None:
    """Make a job type that other connections see."""
    make_type("billing.receipt")
