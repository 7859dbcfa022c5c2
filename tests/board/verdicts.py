"""What the checks before a replay look at, arranged: runs that go well, a worker that answers, the form of a dialog."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from queues import lifecycle, outside
from queues.models import AuditEntry, Job, OutcomeRollup
from tests.factories import accept, claim, confirmed, fold_all, sql


def works(kind: str, *, n: int = 9) -> None:
    """Let so many runs of a type go well that its dependency is healthy in spite of one that failed."""
    lifecycle.settle([confirmed(run) for run in claim(accept(n, kind=kind))])
    fold_all()


def fails(kind: str, *, n: int = 30, grain: str = "minute", runs: int | None = None) -> None:
    """Let so many runs of a type fail that its dependency is not, in this minute or hour; of `runs`, else of all."""
    at = sql("SELECT date_trunc(%s, jobs_now())", grain)[0][0]
    OutcomeRollup.objects.create(grain=grain, at=at, type=kind, tier=3, runs=n if runs is None else runs, failed=n)


class Worker:
    """Stands for the workers that are asked about jobs: answers at once, or not at all (`outcome` empty)."""

    def __init__(self) -> None:
        self.outcome = "none"
        self.asked: list[UUID] = []

    def ask(self, ids: Sequence[UUID]) -> None:
        """Take the place of `outside.ask`."""
        self.asked += ids
        for job_id in ids:
            if self.outcome:
                sql(
                    "INSERT INTO queues_outsideanswer (job_id, asked_at, answered_at, outcome, reference, detail)"
                    " VALUES (%s, jobs_clock(), jobs_clock(), %s, 'ref-9', '') ON CONFLICT (job_id) DO UPDATE"
                    " SET asked_at = jobs_clock(), answered_at = jobs_clock(), outcome = excluded.outcome",
                    job_id, self.outcome,
                )  # fmt: skip


def answering(monkeypatch: pytest.MonkeyPatch) -> Worker:
    """Let workers answer; nobody waits for one that does not."""
    worker = Worker()
    monkeypatch.setattr(outside, "ask", worker.ask)
    monkeypatch.setattr(outside, "ask_and_wait", partial(outside.ask_and_wait, seconds=0.0))
    return worker


def old_answer(job: Job, *, seconds: int) -> None:
    """Make what a worker said about a job so old."""
    sql(
        "UPDATE queues_outsideanswer SET asked_at = asked_at - make_interval(secs => %s),"
        " answered_at = answered_at - make_interval(secs => %s) WHERE job_id = %s",
        seconds, seconds, job.id,
    )  # fmt: skip


def hidden(response: Any) -> dict[str, str]:
    """Return the hidden fields of a form."""
    found = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', response.text)
    return {name: html.unescape(value) for name, value in found if name != "csrfmiddlewaretoken"}


def dialog(client: Client, job: Job, **given: Any) -> dict[str, Any]:
    """Open the dialog of a replay; returns what its form sends."""
    return {"reason": "relay is back", **hidden(client.get(f"/dlq/{job.id}/replay/")), **given}


def alert(response: Any) -> str:
    """Return what is said to be wrong."""
    found = re.search(r'class="errors" role="alert"[^>]*>(?:<p>)?(.*?)</p>', response.text, re.S)
    return html.unescape(found[1]) if found else ""


def checks(response: Any) -> Mapping[str, str]:
    """Return the card's checks: title → look."""
    found = re.findall(r'<li class="is-(\w+)"><svg[^>]*>.*?</svg><div><b>(.*?)</b>', response.text, re.S)
    return {html.unescape(title): look for look, title in found}


def logged(action: str) -> dict[str, Any]:
    """Return what the one entry of an action says came after it."""
    after = AuditEntry.objects.get(action=action).after
    assert isinstance(after, dict)
    return after
