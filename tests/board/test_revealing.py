"""Revealing hidden values: who may, with a reason, once, in the answer alone, and in the audit log without them."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from queues.accept import enqueue
from queues.models import AuditEntry, Job
from tests.board.conftest import ClientOf, bury
from tests.board.verdicts import alert
from tests.factories import get, make_type

PAYLOAD = {"to": "kim@shop.example", "n": 1, "password": "hunter2-marker", "note": "token=abc-marker here"}
MARKERS = ("kim@shop.example", "hunter2-marker", "abc-marker")


@pytest.fixture
def dead(db: None) -> Job:
    make_type("mail.send", redact=["/to"])
    job_id = enqueue("mail.send", PAYLOAD).job_id
    bury([job_id])
    return get(job_id)


def reveal(client: Client, job: Job, reason: str = "match the order", *, htmx: bool = False) -> Any:
    headers = {"HX-Request": "true"} if htmx else {}
    return client.post(f"/dlq/{job.id}/reveal/", {"reason": reason}, headers=headers)


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_only_owners_reveal(client_of: ClientOf, dead: Job, role: str) -> None:
    client = client_of(role)
    assert client.get(f"/dlq/{dead.id}/reveal/").status_code == 403
    assert reveal(client, dead).status_code == 403
    assert "/reveal/" not in client.get(f"/dlq/{dead.id}/").text
    assert not AuditEntry.objects.filter(action="payload.revealed").exists()


@pytest.mark.parametrize("htmx", [False, True])
def test_values_are_shown_once_and_the_log_has_where_they_stand(client_of: ClientOf, dead: Job, htmx: bool) -> None:
    owner = client_of("owner")
    page = owner.get(f"/dlq/{dead.id}/").text
    assert f'href="/dlq/{dead.id}/reveal/"' in page
    form = owner.get(f"/dlq/{dead.id}/reveal/", headers={"HX-Request": "true"} if htmx else {}).text
    response = reveal(owner, dead, htmx=htmx)
    assert response.status_code == 200
    assert all(marker in response.text for marker in MARKERS)
    assert response["Cache-Control"] == "no-store"
    assert ("<html" in response.text) is not htmx
    if htmx:
        assert 'hx-trigger="load delay:60s" hx-target="this"' in response.text
    else:
        assert response["Refresh"] == f"60;url=/dlq/{dead.id}/"
    entry = AuditEntry.objects.get(action="payload.revealed")
    assert (entry.actor, entry.reason, entry.object_id) == ("owner", "match the order", str(dead.id))
    assert entry.after == {"pointers": ["/to", "/password", "/note"], "count": 3}
    for url in (f"/dlq/{dead.id}/", f"/jobs/{dead.id}/", f"/audit/?object=job&id={dead.id}", f"/dlq/{dead.id}/reveal/"):
        for headers in ({}, {"HX-Request": "true"}):
            later = owner.get(url, headers=headers).text
            assert not any(marker in later for marker in MARKERS), url
    assert not any(marker in page + form for marker in MARKERS)


def test_the_form_of_the_dialog_puts_the_answer_into_it(client_of: ClientOf, dead: Job) -> None:
    form = client_of("owner").get(f"/dlq/{dead.id}/reveal/", headers={"HX-Request": "true"}).text
    assert 'hx-target="#dialog" hx-swap="innerHTML"' in form


@pytest.mark.parametrize("reason", ["", " \x00", "x" * 1_001])
def test_without_a_reason_nothing_is_shown(client_of: ClientOf, dead: Job, reason: str) -> None:
    response = reveal(client_of("owner"), dead, reason)
    assert response.status_code == 422
    assert alert(response)
    assert not any(marker in response.text for marker in MARKERS)
    assert not AuditEntry.objects.exists()


def test_a_payload_that_hides_nothing_has_nothing_to_reveal(client_of: ClientOf, dead: Job) -> None:
    make_type("plain.job")
    job_id = enqueue("plain.job", {"n": 1}).job_id
    owner = client_of("owner")
    assert "/reveal/" not in owner.get(f"/jobs/{job_id}/").text
    assert "hides nothing" in owner.get(f"/jobs/{job_id}/reveal/").text
    assert owner.post(f"/jobs/{job_id}/reveal/", {"reason": "x"}).status_code == 409
    assert not AuditEntry.objects.exists()
