"""In the demo's storm the page of the late type names the mail provider first: real SMTP, real handlers and checks."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from jobsboard.demo.mail_server import BEHAVIOURS
from jobsboard.testing import run_pending
from queues import broker, workers
from queues.accept import Item, enqueue_many
from queues.handlers import load
from queues.models import Job
from tests.board.conftest import ClientOf, client_of, viewer
from tests.demo.test_mail import WELCOME, server
from tests.factories import fold_all, set_columns

__all__ = ["ClientOf", "client_of", "server", "viewer"]


@pytest.fixture
def late(db: None, server: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty welcome mails, tried once as the mail server stands the storm, half a minute after their window.

    Their next attempts are a minute away.
    """
    monkeypatch.setattr(broker, "ping", lambda: True)
    call_command("demo_contracts", crm_url="http://127.0.0.1:1/contacts", stdout=StringIO(), stderr=StringIO())
    load(["jobsboard.demo.handlers"])
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier1", "tier2", "tier3"], slots=3)
    enqueue_many([Item(type=WELCOME, payload={"user_id": n, "email": f"c{n}@example.org"}) for n in range(1, 31)])
    server["deferred"] = BEHAVIOURS["storm"].deferred
    run_pending(type=WELCOME)
    for job in Job.objects.filter(state="retrying"):
        set_columns(job.id, raw_ready_at="jobs_now() - interval '60 s'", raw_due_at="jobs_now() + interval '60 s'")
    fold_all()


def rows_of(page: str) -> list[str]:
    card = page[page.index('id="why"') :]
    return re.findall(r"<b>(.*?)</b>", card[: card.index("</section>")])


def test_the_late_type_names_the_mail_provider_first(viewer: Client, late: None) -> None:
    rows = rows_of(viewer.get(f"/types/{WELCOME}/?range=15m").text)
    assert re.fullmatch(r"mail-provider fails: [\d.]+% of \d+ runs in the last 10 min", rows[0])
    assert re.fullmatch(r"\d+ jobs wait for another attempt", rows[1])
    calm = viewer.get("/types/billing.handoff/?range=15m").text
    assert "Nothing is late" in calm
    assert rows_of(calm) == []


def test_a_job_of_it_says_the_same(viewer: Client, late: None) -> None:
    job = Job.objects.filter(state="retrying").order_by("id")[0]
    rows = rows_of(viewer.get(f"/jobs/{job.id}/").text)
    assert rows[0].startswith("mail-provider fails: ")
    assert re.match(r"\d of 4 attempts failed, ", rows[1])
