"""The probes page, the pill, the attention list, the type's and the job's page; and sending one now."""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from queues import contracts, lifecycle, probes
from queues.models import AuditEntry, Job, JobType, ProbeRun
from queues.states import Reason
from tests.board.conftest import ClientOf, bury
from tests.factories import claim, confirmed, fold_all, get, make_type, set_columns, sql

NAME = "mail.send"


def a_type(name: str = NAME, **overrides: Any) -> None:
    make_type(name, **{"tier_id": 1, "probe_every_seconds": 60, "window_seconds": 30, **overrides})


def begin(name: str = NAME) -> UUID:
    """Send a probe and return its job."""
    sql(
        "INSERT INTO queues_probe (type, next_at, failures) VALUES (%s, jobs_now() - interval '1 s', 0)"
        " ON CONFLICT (type) DO UPDATE SET next_at = excluded.next_at",
        name,
    )
    assert probes.begin_due() == 1
    job_id: UUID = ProbeRun.objects.filter(type=name).latest("id").job_id  # type: ignore[assignment]
    return job_id


def passed(name: str = NAME) -> UUID:
    job_id = begin(name)
    assert lifecycle.settle([confirmed(run) for run in claim([job_id])])
    probes.settle_open()
    return job_id


def failed(name: str = NAME, message: str = "550 <no> such mailbox, password=hunter2") -> UUID:
    job_id = begin(name)
    bury([job_id], message=message)
    probes.settle_open()
    return job_id


def skipped() -> None:
    lifecycle.cancel([begin()], reason=Reason.OPERATOR)
    probes.settle_open()


def plain(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))


def test_without_any_there_is_a_way_to_the_first_one(viewer: Client, client_of: ClientOf) -> None:
    page = viewer.get("/probes/").text
    assert "No type is probed" in page
    assert "/admin/queues/jobtype/" not in page
    assert "/admin/queues/jobtype/" in client_of("owner").get("/probes/").text


def test_all_pass(viewer: Client) -> None:
    a_type()
    a_type("report.build", tier_id=3)
    job_id, _ = passed(), passed("report.build")
    page = viewer.get("/probes/").text
    assert "All 2 probes pass" in page
    assert f'href="/types/{NAME}/"' in page
    assert page.count(f"/jobs/{job_id}/") == 2, "the last result and its tick"
    assert "Failed runs" not in page
    assert 'class="n bad"' not in page
    assert "Run now" not in page, "a viewer looks"


def test_one_that_fails_is_red_everywhere(viewer: Client) -> None:
    """Its row, the pill of every page, the attention list; with what happened, redacted and escaped."""
    a_type()
    a_type("report.build")
    passed("report.build")
    failed()
    job_id = failed()
    fold_all()
    page = viewer.get("/probes/").text
    assert "1 of 2 probes fails" in page
    assert re.search(rf'<tr id="probe-{NAME}" class="breach">', page)
    assert page.index(f"probe-{NAME}") < page.index("probe-report.build"), "what fails comes first"
    assert "2 in a row" in plain(page)
    assert "550 &lt;no&gt; such mailbox" in page
    assert "hunter2" not in page
    assert f"/jobs/{job_id}/" in page.split('id="failed"')[1]
    overview = viewer.get("/").text
    assert f"The probe of {NAME} fails" in overview
    assert "2 in a row, the last one: Boom: 550 &lt;no&gt; such mailbox" in overview
    assert "hunter2" not in overview
    for text in (page, overview, viewer.get("/jobs/").text):
        assert re.search(r'href="/probes/"[^>]*>(?:(?!</a>).)*<span class="n bad">1</span>', text, re.DOTALL)


def test_a_failing_probe_reddens_nothing_but_its_own_line(viewer: Client) -> None:
    """No promise, no dead letter, no other line of the attention list speaks of it."""
    a_type()

    def attention() -> list[str]:
        fold_all()
        section = viewer.get("/").text.split('id="h-att"')[1].split("</section>")[0]
        return re.findall(r"<b title=[^>]+>([^<]+)</b>", section)

    before = attention()
    assert before, "no scheduler is running, for one"
    failed()
    assert set(attention()) == {*before, f"The probe of {NAME} fails"}
    assert 'class="breach"' not in viewer.get("/types/").text


def test_what_an_older_release_stored_is_redacted_as_well(viewer: Client) -> None:
    a_type()
    failed()
    ProbeRun.objects.update(detail="it said password=hunter2")
    for url in ("/probes/", "/"):
        assert "it said password=[redacted]" in viewer.get(url).text


def test_a_success_takes_it_off_again(viewer: Client) -> None:
    a_type()
    failed()
    passed()
    fold_all()
    assert "fails" not in plain(viewer.get("/").text)
    assert "The probe passes" in viewer.get("/probes/").text


def test_a_type_that_is_held_is_not_red(viewer: Client) -> None:
    a_type()
    failed()
    JobType.objects.update(paused=True)
    contracts.forget()
    page = viewer.get("/probes/").text
    assert "0 of 1 probe pass, none fails" in page
    assert 'class="n bad"' not in page
    assert "fails" not in plain(viewer.get("/").text)


def test_the_strip_shows_each_run_in_words_and_shape(viewer: Client) -> None:
    a_type()
    passed()
    failed()
    skipped()
    begin()
    page = viewer.get("/probes/").text
    [drawn] = re.findall(r'<svg[^>]*role="group".*?</svg>', page, re.DOTALL)
    label = f"Last 4 runs of {NAME}, newest right: 1 passed, 1 failed, 1 skipped, 1 running"
    assert f'aria-label="{label}"' in drawn
    titles = re.findall(r"<title>([^<]+)</title>", drawn)
    assert [title.split(",")[0] for title in titles] == ["Passed", "Failed", "Skipped", "Running"]
    assert "took" in titles[0]
    assert titles[2].endswith(": its job was cancelled")
    heights = re.findall(r'class="so"[^>]*height="(\d+)"', drawn)
    assert heights == ["10", "20", "4", "5", "5"], "no outcome is told by colour alone"
    assert drawn.count('<a class="is-') == 4
    assert drawn.count('tabindex="-1"') == 4


def test_only_the_last_runs_are_drawn(viewer: Client) -> None:
    a_type()
    sql(
        "INSERT INTO queues_proberun (type, tier, window_seconds, begun_at, settled_at, outcome, took_seconds, reason,"
        " detail, by) SELECT %s, 1, 30, jobs_now(), jobs_now(), 'passed', n, '', '', '' FROM generate_series(1, 100) n",
        NAME,
    )
    page = viewer.get("/probes/").text
    assert page.count("<title>Passed") == 60
    # Of 41 to 100 the 57th.
    assert '<td class="num">1m 37s</td>' in page


def test_statements_do_not_grow(viewer: Client) -> None:
    """The session, the user, the role, the board, what fires; and two of its own."""
    a_type()
    passed()

    def statements(url: str) -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(url).status_code == 200
        return len(captured)

    before = {url: statements(url) for url in ("/probes/", "/", f"/types/{NAME}/")}
    assert before["/probes/"] <= 7
    for index in range(5):
        a_type(f"more.{index}")
        for _ in range(3):
            passed(f"more.{index}")
    assert statements("/probes/") == before["/probes/"]
    failed()
    assert statements("/") <= before["/"] + 1
    assert statements(f"/types/{NAME}/") == before[f"/types/{NAME}/"]


def test_the_page_of_a_type_has_one_line(viewer: Client) -> None:
    a_type()
    make_type("quiet.job")
    passed()
    assert re.search(r'id="probe"><a href="/probes/">Probe</a>: passed <time', viewer.get(f"/types/{NAME}/").text)
    failed()
    failed()
    assert "failed 2 times in a row, the last time" in viewer.get(f"/types/{NAME}/").text
    assert 'id="probe"' not in viewer.get("/types/quiet.job/").text


def test_the_page_of_its_job_says_what_it_is(operator: Client) -> None:
    """And offers no replay; a plain job's says nothing of it."""
    a_type()
    job_id = failed()
    page = operator.get(f"/jobs/{job_id}/").text
    assert "A probe</a>: in no number and no list of jobs" in page
    assert "Replay" not in plain(page.split("<main")[1].split("</main>")[0])
    assert "Ignored" not in page
    assert str(job_id) not in operator.get("/jobs/").text
    assert str(job_id) not in operator.get("/dlq/").text
    answer = operator.post(f"/jobs/{job_id}/replay/", {"reason": "x"})
    assert answer.status_code == 409
    assert "The job is a probe" in answer.text
    assert Job.objects.count() == 1


# Sending one now.

SEND = f"/probes/{NAME}/send/"
HTMX = {"HX-Request": "true"}


def test_who_may_send(client_of: ClientOf) -> None:
    a_type()
    assert client_of("viewer").get(SEND).status_code == 403
    assert client_of("viewer").post(SEND, {"reason": "x"}).status_code == 403
    assert not ProbeRun.objects.exists()
    operator = client_of("operator")
    assert f'id="send-{NAME}"' in operator.get("/probes/").text
    assert operator.get("/probes/no.such/send/").status_code == 404
    assert client_of("operator", enforce_csrf_checks=True).post(SEND, {"reason": "x"}).status_code == 403


def test_it_is_sent_once_for_a_click(operator: Client) -> None:
    a_type()
    last = passed()
    form = operator.get(SEND, headers=HTMX).text
    [after] = re.findall(r'name="after" value="(\d+)"', form)
    first = operator.post(SEND, {"reason": "looks dead", "after": after}, headers=HTMX)
    assert first.status_code == 200
    assert "is on its way" in first.text
    run = ProbeRun.objects.latest("id")
    assert (run.by, run.outcome) == ("operator", "running")
    assert lifecycle.settle([confirmed(one) for one in claim([run.job_id])])  # type: ignore[list-item]
    probes.settle_open()
    again = operator.post(SEND, {"reason": "looks dead", "after": after})
    assert (again.status_code, again["Location"]) == (303, "/probes/")
    assert "was sent already" in operator.get("/probes/").text
    assert set(ProbeRun.objects.values_list("job_id", flat=True)) == {last, run.job_id}
    [entry] = AuditEntry.objects.filter(action="probe.sent")
    assert (entry.actor, entry.object_id, entry.reason) == ("operator", NAME, "looks dead")
    assert "sent by operator" in operator.get("/probes/").text


@pytest.mark.parametrize(("body", "status"), [({}, 422), ({"reason": "x" * 1001}, 422), ({"reason": "   "}, 422)])
def test_without_a_reason_nothing_is_sent(operator: Client, body: dict[str, str], status: int) -> None:
    a_type()
    assert operator.post(SEND, body).status_code == status
    assert not ProbeRun.objects.exists()


@pytest.mark.parametrize("after", ["", "x", "9" * 40, "-1", "\u0663"])
def test_an_odd_form_is_no_error(operator: Client, after: str) -> None:
    a_type()
    assert operator.post(SEND, {"reason": "x", "after": after}).status_code == 303
    assert ProbeRun.objects.count() == 1


def test_a_type_that_is_held_says_so(operator: Client) -> None:
    a_type()
    JobType.objects.update(paused=True)
    contracts.forget()
    answer = operator.post(SEND, {"reason": "x"}, headers=HTMX)
    assert answer.status_code == 409
    assert "is paused: a probe would not run" in answer.text
    assert "Run now" not in operator.get("/probes/").text


def test_a_payload_that_no_longer_fits_is_said(operator: Client) -> None:
    a_type()
    JobType.objects.update(schema={"required": ["n"]})
    contracts.forget()
    answer = operator.post(SEND, {"reason": "x"}, headers=HTMX)
    assert answer.status_code == 200
    assert "It was not accepted" in answer.text
    assert "is-retrying" in answer.text.split('class="toast')[1][:40]


def test_a_proof_that_came_late_is_in_the_strip(viewer: Client) -> None:
    a_type(success="callback")
    job_id = begin()
    set_columns(job_id, raw_ready_at="jobs_now() - interval '40 s'", raw_expires_at="jobs_now()")
    assert lifecycle.expire([job_id])
    probes.settle_open()
    lifecycle.confirm([lifecycle.Proof(id=job_id, positive=True, kind="callback", ref="a")])
    assert probes.note_late() == 1
    page = viewer.get("/probes/").text
    assert "confirmed late</title>" in page
    assert "Confirmed late, 40 s after it was ready." in page
    assert get(job_id).state == "expired"
