"""The cards "Why it is late" and "Why it is not running": first cause first, one next step, few statements."""

from __future__ import annotations

import datetime as dt
import re
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board import why
from queues import broker, lifecycle, workers
from queues.contract_switches import set_switch
from queues.lifecycle import End, Verdict
from queues.models import Job
from queues.states import JobState
from tests.board.conftest import ClientOf
from tests.factories import accept, claim, fold_all, make_job, make_type, set_columns

NAME = "mail.send"


@pytest.fixture
def late(db: None) -> list[UUID]:
    """Jobs past their window: eight retry after a failure of their provider, two wait."""
    make_type(NAME, dependency="smtp")
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier2"], slots=4, busy=1)
    ids = accept(10, kind=NAME)
    failure = {"error_class": "Deferred", "message": "<b>451</b>", "traceback": ""}
    lifecycle.settle(
        [
            End(id=run.id, fence=run.fence, verdict=Verdict.FAILED, failure=failure, retry_in=300.0)
            for run in claim(ids[:8])
        ]
    )
    for job_id in ids:
        set_columns(job_id, raw_ready_at="jobs_now() - interval '600 s'")
    fold_all()
    return ids


def card(client: Client, url: str) -> str:
    page = client.get(url).text
    if 'id="why"' not in page:
        return ""
    begun = page[page.index('id="why"') :]
    return begun[: begun.index("</section>")]


def rows(text: str) -> list[str]:
    return re.findall(r"<b>(.*?)</b>", text)


def test_a_late_type_says_why_under_its_head(viewer: Client, late: list[UUID]) -> None:
    url = f"/types/{NAME}/"
    text = card(viewer, url)
    assert "Why it is late</h2>" in text
    assert rows(text)[:3] == [
        "smtp fails: 100% of 8 runs in the last 10 min",
        "8 jobs wait for another attempt",
        "2 jobs wait for a worker",
    ]
    assert "Newest error Deferred" in text
    assert "Not the cause. 1 of 4 slots are busy." in text
    assert f'href="/jobs/?state=retrying&amp;type={NAME}"' in text
    page = viewer.get(url).text
    assert page.index('id="why"') < page.index('id="h-lag"')


def test_a_type_on_time_says_so_and_invents_nothing(viewer: Client, db: None) -> None:
    make_type(NAME)
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    accept(2, kind=NAME)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier2"], slots=4, busy=1)
    fold_all()
    text = card(viewer, f"/types/{NAME}/")
    assert "Nothing is late</h2>" in text
    assert rows(text) == []


def test_an_open_job_says_why(viewer: Client, late: list[UUID]) -> None:
    text = card(viewer, f"/jobs/{late[0]}/")
    assert "Why it is not running</h2>" in text
    assert rows(text)[0] == "smtp fails: 100% of 8 runs in the last 10 min"
    assert rows(text)[1].startswith("1 of 5 attempts failed, next at ")
    assert "&lt;b&gt;451&lt;/b&gt;" in text
    assert "<b>451</b>" not in text
    claim([late[9]])
    assert "Why it is not confirmed</h2>" in card(viewer, f"/jobs/{late[9]}/")
    assert rows(card(viewer, f"/jobs/{late[9]}/"))[0].startswith("Attempt 1 is running since ")


def test_a_settled_job_has_no_card(viewer: Client, db: None) -> None:
    make_type(NAME)
    assert card(viewer, f"/jobs/{make_job(JobState.CONFIRMED, type=NAME).id}/") == ""


def test_only_who_may_resume_is_led_there(viewer: Client, client_of: ClientOf, late: list[UUID]) -> None:
    set_switch(NAME, actor="jane", reason="the provider asked", paused=True)
    link = f'href="/types/{NAME}/resume/"'
    for url in (f"/types/{NAME}/", f"/jobs/{late[9]}/"):
        seen = card(viewer, url)
        assert rows(seen)[0] == f"{NAME} is paused: nothing of it is started"
        assert link not in seen
        assert link in card(client_of("operator"), url)


def test_the_broker_is_asked(viewer: Client, late: list[UUID], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker, "ping", lambda: False)
    text = card(viewer, f"/jobs/{late[9]}/")
    assert "The broker did not answer at once" in rows(text)
    assert "Not known. Runs began all the same" in text


@pytest.mark.parametrize(("page", "most"), [("type", 4), ("job", 4)])
def test_the_card_costs_few_statements(
    viewer: Client, late: list[UUID], monkeypatch: pytest.MonkeyPatch, page: str, most: int
) -> None:
    """The stages of a late type are those that the page has read; the fourth is of its dependency."""
    url = f"/types/{NAME}/" if page == "type" else f"/jobs/{late[9]}/"
    viewer.get(url)
    with CaptureQueriesContext(connection) as with_card:
        assert 'id="why"' in viewer.get(url).text
    monkeypatch.setattr(why, f"of_{page}", lambda *args, **kwargs: None)
    with CaptureQueriesContext(connection) as without:
        assert 'id="why"' not in viewer.get(url).text
    assert 0 < len(with_card) - len(without) <= most


def test_a_range_of_the_past_does_not_speak_of_now(viewer: Client, late: list[UUID]) -> None:
    now = dt.datetime.now(dt.UTC)
    since, until = (f"{now - dt.timedelta(hours=h):%Y-%m-%dT%H:%M}Z" for h in (9, 3))
    text = card(viewer, f"/types/{NAME}/?from={since}&to={until}")
    assert "Nothing is late</h2>" in text
    assert "smtp fails" not in text


def test_the_jobs_page_still_finds_a_job(viewer: Client, late: list[UUID]) -> None:
    assert Job.objects.get(id=late[0]).state == "retrying"
    assert str(late[0]) in viewer.get(f"/jobs/?state=retrying&type={NAME}").text
