"""People of each role, and a board with something on it."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from queues import broker, lifecycle, workers
from queues.lifecycle import End, Verdict
from queues.models import Job
from queues.states import Reason
from tests.factories import accept, claim, confirmed, fold_all, make_type


class ClientOf(Protocol):
    """Logs a person of a role in."""

    def __call__(self, role: str, *, enforce_csrf_checks: bool = False) -> Client: ...


@pytest.fixture(autouse=True)
def _broker_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ping", lambda: True)


@pytest.fixture
def client_of(db: None) -> ClientOf:
    """Return a function that logs a person of a role in."""

    def login(role: str, *, enforce_csrf_checks: bool = False) -> Client:
        person = User.objects.filter(username=role).first() or User.objects.create_user(role)
        if role != "nobody":
            person.groups.set([Group.objects.get_or_create(name=role)[0]])
        client = Client(enforce_csrf_checks=enforce_csrf_checks)
        client.force_login(person)
        return client

    return login


@pytest.fixture
def viewer(client_of: ClientOf) -> Client:
    return client_of("viewer")


@pytest.fixture
def operator(client_of: ClientOf) -> Client:
    return client_of("operator")


def bury(ids: list[UUID], *, message: str = "boom", reason: str = "permanent_error") -> None:
    """Let jobs die."""
    failure = {"error_class": "Boom", "message": message, "traceback": f'Traceback\n  File "a.py", line 1\n{message}'}
    lifecycle.settle(
        [
            End(id=run.id, fence=run.fence, verdict=Verdict.FAILED, reason=reason, failure=failure, seconds=0.1)
            for run in claim(ids)
        ]
    )


@pytest.fixture
def dead(db: None) -> Job:
    """A dead letter."""
    make_type("mail.send", tier_id=1, redact=["/to"])
    ids = accept(1, kind="mail.send", dedupe_key="mail-1")
    bury(ids, message="550 no such mailbox")
    fold_all()
    return Job.objects.get(id=ids[0])


@pytest.fixture
def busy(dead: Job) -> Job:
    """Jobs in every state that a short life reaches, workers and a scheduler."""
    make_type("report.build", tier_id=3)
    accept(3, kind="mail.send")
    claim(accept(2, kind="mail.send"), worker="w/1")
    lifecycle.settle([confirmed(run) for run in claim(accept(5, kind="mail.send"))])
    again = claim(accept(1, kind="mail.send"))[0]
    lifecycle.settle([End(id=again.id, fence=again.fence, verdict=Verdict.FAILED, retry_in=60)])
    lifecycle.cancel(accept(1, kind="mail.send"), reason=Reason.OPERATOR)
    workers.report("w/1", kind="worker", hostname="w", pid=1, queues=["tier1"], slots=4, busy=2)
    workers.report("s/1", kind="scheduler", hostname="s", pid=2)
    fold_all()
    return dead
