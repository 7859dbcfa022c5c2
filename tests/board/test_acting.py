"""Cancelling and ignoring from the board, and what all deeds have in common: permission, CSRF, once, the audit."""

from __future__ import annotations

import pytest
from django.test import Client

from queues import lifecycle
from queues.models import AuditEntry, Job, JobType
from tests.board.conftest import ClientOf
from tests.board.verdicts import Worker, answering
from tests.factories import accept, claim, fold_all, make_type, state_counts


@pytest.mark.parametrize("verb", ["replay", "edit", "close", "ignore", "cancel"])
def test_acting_needs_a_role_and_a_csrf_token(client_of: ClientOf, dead: Job, verb: str) -> None:
    url = f"/dlq/{dead.id}/{verb}/"
    assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
    assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    assert Client().post(url, {"reason": "x"}).status_code == 302
    dead.refresh_from_db()
    assert dead.resolution == "open"
    assert not AuditEntry.objects.filter(object_id=str(dead.id)).exists()


@pytest.fixture(autouse=True)
def _worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return answering(monkeypatch)


@pytest.mark.parametrize("reason", ["", "   ", "\x00", "x" * 1_001])
def test_a_reason_is_needed_and_has_an_end(operator: Client, dead: Job, reason: str) -> None:
    response = operator.post(f"/dlq/{dead.id}/replay/", {"reason": reason})
    assert response.status_code == 422
    assert 'role="alert"' in response.text
    assert not Job.objects.filter(replay_of=dead.id).exists()


def test_a_dead_letter_is_cancelled_once(operator: Client, dead: Job) -> None:
    for _ in range(2):
        assert operator.post(f"/dlq/{dead.id}/close/", {"reason": "paid"}).status_code == 303
    dead.refresh_from_db()
    assert (dead.state, dead.resolution, dead.resolved_by) == ("dead", "cancelled", "operator")
    assert AuditEntry.objects.filter(action="dead_letter.cancelled").count() == 1
    refused = operator.post(f"/dlq/{dead.id}/replay/", {"reason": "x"})
    assert refused.status_code == 409
    assert "cancelled by operator" in refused.text
    fold_all()
    assert "dead" not in state_counts()
    assert "No dead letters" in operator.get("/dlq/").text


def test_a_dead_letter_is_ignored_once(operator: Client, dead: Job) -> None:
    assert f'href="/dlq/{dead.id}/ignore/"' in operator.get(f"/dlq/{dead.id}/").text
    for _ in range(2):
        assert operator.post(f"/dlq/{dead.id}/ignore/", {"reason": "known"}).status_code == 303
    dead.refresh_from_db()
    assert (dead.state, dead.resolution, dead.resolved_by) == ("dead", "ignored", "operator")
    entry = AuditEntry.objects.get(action="dead_letter.ignored")
    assert (entry.actor, entry.reason, entry.source) == ("operator", "known", "ui")
    assert operator.post(f"/dlq/{dead.id}/close/", {"reason": "x"}).status_code == 409
    assert "Ignored by operator" in operator.get(f"/dlq/{dead.id}/").text


def test_an_open_job_is_cancelled_and_a_running_one_asked(operator: Client) -> None:
    make_type("mail.send")
    waiting, running = accept(2, kind="mail.send")
    claim([running])
    assert operator.post(f"/jobs/{waiting}/cancel/", {"reason": "x"}).status_code == 303
    operator.post(f"/jobs/{running}/cancel/", {"reason": "x"})
    assert Job.objects.get(id=waiting).state == "cancelled"
    assert Job.objects.get(id=running).cancel_requested
    assert "Asked to stop" in operator.get(f"/jobs/{running}/").text
    # Again: the same answer, and no second entry.
    assert operator.post(f"/jobs/{waiting}/cancel/", {"reason": "x"}).status_code == 303
    assert AuditEntry.objects.filter(action="job.cancelled").count() == 1


def test_what_the_state_forbids_is_409(operator: Client, dead: Job) -> None:
    make_type("other.job")
    (open_job,) = accept(1, kind="other.job")
    assert operator.post(f"/jobs/{open_job}/replay/", {"reason": "x"}).status_code == 409
    assert operator.post(f"/jobs/{dead.id}/cancel/", {"reason": "x"}).status_code == 409
    assert operator.post(f"/jobs/{open_job}/close/", {"reason": "x"}).status_code == 409
    assert operator.post(f"/jobs/{open_job}/ignore/", {"reason": "x"}).status_code == 409


def test_unknown_verbs_jobs_and_methods(operator: Client, dead: Job) -> None:
    assert operator.get(f"/dlq/{dead.id}/explode/").status_code == 404
    assert operator.post(f"/dlq/{dead.root}0/replay/").status_code == 404
    assert operator.post("/dlq/00000000-0000-7000-8000-000000000000/replay/", {"reason": "x"}).status_code == 404
    assert operator.put(f"/dlq/{dead.id}/replay/").status_code == 405
    assert operator.post("/dlq/").status_code == 405


def test_a_replay_of_a_disabled_type_is_refused(operator: Client, dead: Job) -> None:
    JobType.objects.filter(name=dead.type).update(enabled=False)
    response = operator.post(f"/dlq/{dead.id}/replay/", {"reason": "x"})
    assert response.status_code == 409
    assert "Do not replay" in operator.get(f"/dlq/{dead.id}/").text
    assert lifecycle.replay(dead.id, by="x") is None
