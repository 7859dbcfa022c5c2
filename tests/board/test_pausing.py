"""Pausing and resuming a type from the board: permission, reason, end, what the page says, the audit entry."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from django.test import Client

from queues.contract_switches import database_now, set_switch
from queues.models import AuditEntry, JobType
from tests.board.conftest import ClientOf
from tests.factories import make_type

NAME = "mail.send"
PAUSE, RESUME, PAGE = (f"/types/{NAME}/{end}" for end in ("pause/", "resume/", ""))


@pytest.fixture(autouse=True)
def kind(db: None) -> JobType:
    return make_type(NAME)


def words(client: Client) -> str:
    """Return the text of the type's page."""
    return " ".join(re.sub(r"<[^>]+>", " ", client.get(PAGE).text).split())


def test_an_operator_pauses_with_a_reason_and_an_end(operator: Client) -> None:
    until = database_now().replace(second=0, microsecond=0) + timedelta(hours=3)
    response = operator.post(PAUSE, {"reason": "relay is down", "until": f"{until:%Y-%m-%dT%H:%M}"})
    assert (response.status_code, response["Location"]) == (303, PAGE)
    row = JobType.objects.get()
    assert (row.paused, row.paused_reason, row.paused_by, row.paused_until) == (
        True,
        "relay is down",
        "operator",
        until,
    )
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.reason, entry.source) == (
        "contract.paused", "operator", "relay is down", "ui",
    )  # fmt: skip
    text = words(operator)
    assert f"Paused by operator until {until:%Y-%m-%d %H:%M} UTC, nothing is started: relay is down" in text
    assert f'href="{RESUME}"' in operator.get(PAGE).text
    assert f'href="{PAUSE}"' not in operator.get(PAGE).text


def test_resuming_clears_it(operator: Client) -> None:
    operator.post(PAUSE, {"reason": "relay is down"})
    assert "Paused by operator, nothing is started: relay is down" in words(operator)
    assert operator.post(RESUME, {"reason": "it is back"}).status_code == 303
    row = JobType.objects.get()
    assert (row.paused, row.paused_reason, row.paused_by) == (False, "", "")
    assert AuditEntry.objects.latest("id").reason == "it is back"
    assert "Paused" not in words(operator)
    # Again: the same answer, and no second entry.
    assert operator.post(RESUME, {"reason": "it is back"}).status_code == 303
    assert AuditEntry.objects.filter(action="contract.resumed").count() == 1


def test_a_disabled_type_says_why(viewer: Client) -> None:
    set_switch(NAME, enabled=False, reason="moved to another team", actor="ada")
    assert "Disabled by ada, new jobs are refused: moved to another team" in words(viewer)


def test_htmx_gets_the_dialog_and_then_the_page_as_it_is_now(operator: Client) -> None:
    headers = {"HX-Request": "true"}
    dialog = operator.get(PAUSE, headers=headers).text
    assert "<html" not in dialog
    assert "Pause mail.send?" in dialog
    assert 'name="until"' in dialog
    assert 'name="until"' not in operator.get(RESUME, headers=headers).text
    response = operator.post(PAUSE, {"reason": "x"}, headers=headers)
    assert response.status_code == 200
    assert response.text.lstrip().startswith('<div class="stack" id="region"')
    assert f'hx-get="{PAGE}"' in response.text
    assert "Paused." in response.text
    assert f'href="{RESUME}"' in response.text


@pytest.mark.parametrize("url", [PAUSE, RESUME])
def test_who_may(client_of: ClientOf, url: str) -> None:
    assert "<html" in client_of("operator").get(url).text
    assert client_of("viewer").get(url).status_code == 403
    assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
    assert 'id="turn"' not in client_of("viewer").get(PAGE).text
    assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    assert Client().post(url, {"reason": "x"}).status_code == 302
    assert not AuditEntry.objects.filter(object_id=NAME).exists()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"reason": " \x00 "}, "Say why."),
        ({"reason": "x" * 1_001}, "At most 1,000 characters."),
        ({"reason": "x", "until": "2020-01-01T00:00"}, "must be in the future"),
        ({"reason": "x", "until": "9999-12-31T23:59"}, "at most 366 days"),
        ({"reason": "x", "until": "0001-01-01T00:00+23:00"}, "This is not a time."),
        ({"reason": "x", "until": "tomorrow\x00"}, "This is not a time."),
    ],
)
def test_what_is_refused_says_so_and_keeps_what_was_typed(operator: Client, given: dict[str, str], error: str) -> None:
    response = operator.post(PAUSE, given)
    assert response.status_code == 422
    assert re.search(rf'role="alert">[^<]*{error}', response.text)
    assert not JobType.objects.get().paused


def test_unknown_types_verbs_and_methods(operator: Client) -> None:
    assert operator.get("/types/gone/pause/").status_code == 404
    assert operator.post("/types/gone/pause/", {"reason": "x"}).status_code == 404
    assert operator.get(f"/types/{NAME}/explode/").status_code == 404
    assert operator.put(PAUSE).status_code == 405


def test_markup_in_a_reason_is_text(operator: Client) -> None:
    operator.post(PAUSE, {"reason": "<img src=x onerror=alert(1)>"})
    assert "<img src=x" not in operator.get(PAGE).text
