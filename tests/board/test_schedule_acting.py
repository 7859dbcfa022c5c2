"""Running a schedule now, pausing and resuming it from its page: who may, once for two clicks, audited."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from django.test import Client

from queues import contracts
from queues.contract_switches import database_now
from queues.models import AuditEntry, Job, JobType, Schedule
from tests.board.conftest import ClientOf
from tests.board.test_schedules import HTMX, PAGE, plain, row
from tests.outcomes.test_schedules import NAME, make_schedule, tick

VERBS = ("run", "pause", "resume")


def url(verb: str, name: str = NAME) -> str:
    return f"{PAGE}{name}/{verb}/"


def due(client: Client) -> str:
    """Open the form of "run now" and return the newest tick that it knows."""
    [after] = re.findall(r'name="after" value="(\d+)"', client.get(url("run"), headers=HTMX).text)
    return str(after)


@pytest.mark.parametrize("verb", VERBS)
def test_who_may_act(client_of: ClientOf, verb: str) -> None:
    make_schedule(payload='{"n": 1}')
    viewer, operator = client_of("viewer"), client_of("operator")
    assert viewer.get(url(verb)).status_code == 403
    assert viewer.post(url(verb), {"reason": "x"}).status_code == 403
    assert client_of("operator", enforce_csrf_checks=True).post(url(verb), {"reason": "x"}).status_code == 403
    assert not Job.objects.exists()
    assert not Schedule.objects.get().paused
    assert not AuditEntry.objects.exists()
    assert operator.get(url(verb)).status_code == 200
    for missing in (url(verb, "no.such"), url("burn"), f"{PAGE}%00/{verb}/"):
        assert operator.get(missing).status_code == 404, missing
        assert operator.post(missing, {"reason": "x"}).status_code == 404, missing
    assert operator.put(url(verb)).status_code == 405


def test_what_is_offered(client_of: ClientOf) -> None:
    make_schedule()
    operator = client_of("operator")
    found = row(operator)
    assert [f'id="{verb}-{NAME}"' in found for verb in VERBS] == [True, True, False]
    Schedule.objects.update(paused=True)
    found = row(operator)
    assert [f'id="{verb}-{NAME}"' in found for verb in VERBS] == [True, False, True]
    assert not [verb for verb in VERBS if f'id="{verb}-' in row(client_of("viewer"))]


def test_it_is_run_once_for_two_clicks_on_a_form(operator: Client) -> None:
    make_schedule(payload='{"until": "{tick}"}')
    tick()
    after = due(operator)
    first = operator.post(url("run"), {"reason": "the meeting is early", "after": after}, headers=HTMX)
    assert first.status_code == 200
    assert f"A job of {NAME} is enqueued." in first.text
    [job] = Job.objects.all()
    assert f"/jobs/{job.id}/" in first.text
    again = operator.post(url("run"), {"reason": "the meeting is early", "after": after})
    assert (again.status_code, again["Location"]) == (303, f"/jobs/{job.id}/")
    assert f"{NAME} was run already." in operator.get(PAGE).text
    assert [one.id for one in Job.objects.all()] == [job.id]
    [entry] = AuditEntry.objects.filter(object_type="schedule")
    assert (entry.action, entry.actor, entry.object_id, entry.reason, entry.source) == (
        "schedule.run", "operator", NAME, "the meeting is early", "ui",
    )  # fmt: skip
    assert entry.request_id
    assert "run by operator" in operator.get(PAGE).text
    # A form that is opened afterwards is another wish.
    assert due(operator) != after
    operator.post(url("run"), {"reason": "once more", "after": due(operator)})
    assert Job.objects.count() == 2


@pytest.mark.parametrize("after", ["", "x", "9" * 40, "-1", "\u0663"])
def test_an_odd_form_is_no_error(operator: Client, after: str) -> None:
    make_schedule()
    assert operator.post(url("run"), {"reason": "x", "after": after}).status_code == 303
    assert Job.objects.count() == 1


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("reason", "said"), [("", "Say why"), (" \x00 ", "Say why"), ("x" * 1001, "At most 1,000")])
def test_without_a_reason_nothing_is_done(operator: Client, verb: str, reason: str, said: str) -> None:
    make_schedule(paused=verb == "resume")
    answer = operator.post(url(verb), {"reason": reason})
    assert answer.status_code == 422
    assert said in answer.text
    assert not AuditEntry.objects.exists()
    assert not Job.objects.exists()
    assert Schedule.objects.get().paused == (verb == "resume")


def test_a_job_that_is_refused_is_said(operator: Client) -> None:
    """What stands in the error is shown redacted; the press is on the page as a tick that became no job."""
    make_schedule(payload='{"n": "password=hunter2"}')
    JobType.objects.update(enabled=False)
    contracts.forget()
    answer = operator.post(url("run"), {"reason": "x"}, headers=HTMX)
    assert answer.status_code == 200
    assert f"{NAME} became no job" in answer.text
    assert "disabled" in answer.text
    assert "hunter2" not in answer.text
    assert not Job.objects.exists()
    assert "refused, run by operator" in operator.get(PAGE).text
    toast = answer.text.split('class="toast')[1][:40]
    assert "is-retrying" in toast, "a warning"


def test_pausing_and_resuming(operator: Client) -> None:
    """With reason and end, each once in the audit log, however often it is sent."""
    make_schedule()
    until = (database_now() + dt.timedelta(hours=2)).replace(second=0, microsecond=0)
    body = {"reason": "the mill is closed", "until": f"{until:%Y-%m-%dT%H:%M}"}
    shown = operator.post(url("pause"), body, headers=HTMX)
    assert (shown.status_code, f"{NAME} is paused." in shown.text) == (200, True)
    assert operator.post(url("pause"), body)["Location"] == PAGE
    one = Schedule.objects.get()
    assert (one.paused, one.paused_by, one.paused_reason, one.paused_until) == (
        True, "operator", "the mill is closed", until,
    )  # fmt: skip
    assert "operator: the mill is closed" in row(operator)
    for _ in range(2):
        assert operator.post(url("resume"), {"reason": "it is open"}).status_code == 303
    assert not Schedule.objects.get().paused
    entries = AuditEntry.objects.filter(object_type="schedule").order_by("id")
    assert [(one.action, one.reason) for one in entries] == [
        ("schedule.paused", "the mill is closed"), ("schedule.resumed", "it is open"),
    ]  # fmt: skip
    audit = operator.get("/audit/", {"object": "schedule"}).text
    assert "does not exist" not in audit
    assert audit.count(f'href="/schedules/#schedule-{NAME}"') == 2
    assert f"operator paused {NAME}" in plain(operator.get("/").text)


@pytest.mark.parametrize(
    ("until", "said"),
    [
        ("soon", "This is not a time"), ("2020-01-01T00:00", "in the future"), ("2999-01-01T00:00", "at most 366 days"),
    ],
)  # fmt: skip
def test_an_end_that_cannot_be_is_said(operator: Client, until: str, said: str) -> None:
    make_schedule()
    answer = operator.post(url("pause"), {"reason": "x", "until": until})
    assert answer.status_code == 422
    assert said in answer.text
    assert f'value="{until}"' in answer.text, "what was typed stays"
    assert not Schedule.objects.get().paused


def test_a_line_that_cannot_be_read_is_not_run(operator: Client) -> None:
    make_schedule(cron="61 * * * *")
    answer = operator.post(url("run"), {"reason": "x"}, headers=HTMX)
    assert answer.status_code == 409
    assert "The line cannot be read" in answer.text
    assert operator.get(PAGE).status_code == 200


def test_the_audit_log_of_what_the_pages_link_to_can_be_asked_for(viewer: Client) -> None:
    """A link to a filter that the page then clears leads to everything."""
    for kind in ("schedule", "dependency"):
        assert "does not exist" not in viewer.get("/audit/", {"object": kind}).text, kind
