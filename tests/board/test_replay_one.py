"""Replaying one dead letter: the card, asking a worker, the dialog's fingerprint, who may override, only once."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from django.test import Client

from queues import contracts, lifecycle
from queues.accept import enqueue
from queues.models import AuditEntry, ContractRevision, DedupeKey, Job, JobType
from queues.states import Reason
from tests.board.conftest import ClientOf, bury
from tests.board.verdicts import Worker, alert, answering, checks, dialog, fails, hidden, logged, old_answer, works
from tests.factories import accept, claim, confirmed, fold_all, get, make_type, set_columns, sql

DAY = 86_400
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return answering(monkeypatch)


@pytest.fixture
def kind(db: None) -> JobType:
    return make_type("mail.send", tier_id=1, redact=["/to"], provider_key_ttl_seconds=DAY)


@pytest.fixture
def dead(kind: JobType) -> Job:
    """A dead letter that nothing speaks against, once a worker has answered."""
    ids = [enqueue("mail.send", {"to": "kim@shop.example", "n": 1}, dedupe_key="mail-1").job_id]
    bury(ids, message="550 no such mailbox", reason=Reason.ATTEMPTS_EXHAUSTED)
    works("mail.send")
    return get(ids[0])


def send(client: Client, job: Job, form: dict[str, Any], *, htmx: bool = False) -> Any:
    return client.post(f"/dlq/{job.id}/replay/", form, headers={"HX-Request": "true"} if htmx else {})


def children(job: Job) -> list[UUID]:
    return list(Job.objects.filter(replay_of=job.id).values_list("id", flat=True))


# ---- the card


def test_the_page_asks_nobody_and_the_card_asks_once(viewer: Client, dead: Job, worker: Worker) -> None:
    page = viewer.get(f"/dlq/{dead.id}/")
    assert worker.asked == []
    assert "Not known to be safe" in page.text
    fetch = f'hx-get="/dlq/{dead.id}/verdict/" hx-trigger="load"'
    assert fetch in page.text
    card = viewer.get(f"/dlq/{dead.id}/verdict/", headers={"HX-Request": "true"})
    assert worker.asked == [dead.id]
    assert card.text.lstrip().startswith('<section class="card safe is-confirmed" id="verdict"')
    assert "Safe to replay" in card.text
    assert '<div role="status">' in card.text
    assert 'hx-trigger="load"' not in card.text
    # A poll draws the last answer again, and does not fetch the card.
    poll = viewer.get(f"/dlq/{dead.id}/", headers={"HX-Request": "true"})
    assert "Safe to replay" in poll.text
    assert fetch not in poll.text
    assert worker.asked == [dead.id]


def test_without_script_a_link_asks_and_leads_back(viewer: Client, dead: Job, worker: Worker) -> None:
    response = viewer.get(f"/jobs/{dead.id}/verdict/")
    assert (response.status_code, response["Location"]) == (302, f"/jobs/{dead.id}/")
    assert worker.asked == [dead.id]
    assert "Safe to replay" in viewer.get(response["Location"]).text


def test_what_no_worker_answers_is_not_known_and_never_green(viewer: Client, dead: Job, worker: Worker) -> None:
    worker.outcome = ""
    card = viewer.get(f"/dlq/{dead.id}/verdict/", headers={"HX-Request": "true"})
    assert "Not known to be safe" in card.text
    assert 'class="card safe is-cancelled"' in card.text
    assert checks(card)["Not known whether it is done"] == "cancelled"
    assert "7 pass" in card.text
    assert "1 not known" in card.text


def test_an_old_answer_is_not_known_again(viewer: Client, dead: Job) -> None:
    viewer.get(f"/dlq/{dead.id}/verdict/", headers={"HX-Request": "true"})
    old_answer(dead, seconds=40)
    page = viewer.get(f"/dlq/{dead.id}/").text
    assert "Not known to be safe" in page
    assert "seconds old; nobody has answered since" in page


def test_the_card_has_eight_checks_with_their_evidence(viewer: Client, dead: Job) -> None:
    card = viewer.get(f"/dlq/{dead.id}/verdict/", headers={"HX-Request": "true"})
    assert checks(card) == dict.fromkeys(
        [
            "Not yet resolved", "Not already done", "Idempotency key still honoured", "Not superseded",
            "Inside max age", "What it calls is healthy", "Same contract", "Not a failure for good",
        ],
        "confirmed",
    )  # fmt: skip
    assert "8 pass" in card.text
    assert "The check did not find the work done" in card.text


@pytest.mark.parametrize("state", ["expired", "cancelled"])
def test_expired_and_cancelled_jobs_have_the_card_too(operator: Client, kind: JobType, state: str) -> None:
    (job_id,) = accept(1, kind="mail.send", dedupe_key="k")
    if state == "cancelled":
        lifecycle.cancel([job_id], reason=Reason.OPERATOR)
    else:
        set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
        lifecycle.expire([job_id])
    works("mail.send")
    page = operator.get(f"/jobs/{job_id}/").text
    assert ("Safe to replay" in page) is (state == "cancelled")
    assert ("Past max age" in page) is (state == "expired")
    # No attempt began, so there is nothing that a worker could be asked.
    assert 'hx-trigger="load"' not in page
    assert 'id="close"' not in page
    assert f'href="/jobs/{job_id}/edit/"' in page


def test_a_job_that_goes_on_has_no_card_and_no_verdict(viewer: Client, kind: JobType, worker: Worker) -> None:
    (job_id,) = accept(1, kind="mail.send")
    assert 'id="verdict"' not in viewer.get(f"/jobs/{job_id}/").text
    response = viewer.get(f"/jobs/{job_id}/verdict/", headers={"HX-Request": "true"})
    assert (response.status_code, response["HX-Redirect"]) == (204, f"/jobs/{job_id}/")
    assert viewer.get("/jobs/00000000-0000-7000-8000-000000000000/verdict/").status_code == 404
    assert worker.asked == []


# ---- who may press what


def test_against_it_only_an_admin_is_offered_to_replay_anyway(client_of: ClientOf, dead: Job) -> None:
    fails("mail.send")
    seen = {role: client_of(role).get(f"/dlq/{dead.id}/").text for role in ("viewer", "operator", "owner", "admin")}
    assert all("Do not replay" in page for page in seen.values())
    assert "Replay anyway" not in seen["viewer"]
    for role in ("operator", "owner"):
        button = re.search(r"<button[^>]*disabled[^>]*>.*?Replay anyway…</button>", seen[role])
        assert button, role
        assert "An admin may replay it all the same." in seen[role]
        assert 'id="replay"' not in seen[role]
    assert 'id="replay"' in seen["admin"]
    assert "Replay anyway…" in seen["admin"]


@pytest.mark.parametrize("role", ["operator", "owner"])
def test_without_the_right_an_unsafe_replay_is_409_whatever_the_form_says(
    client_of: ClientOf, dead: Job, role: str
) -> None:
    client = client_of(role)
    fails("mail.send")
    form = dialog(client, dead, anyway="1")
    shown = client.get(f"/dlq/{dead.id}/replay/").text
    assert "An admin may replay it all the same." in shown
    assert "go primary" not in shown
    response = send(client, dead, form)
    assert response.status_code == 409
    assert alert(response).startswith("What it calls fails:")
    assert children(dead) == []


def test_an_admin_replays_anyway_and_the_log_says_so(client_of: ClientOf, dead: Job) -> None:
    admin = client_of("admin")
    fails("mail.send")
    form = dialog(admin, dead)
    assert form["anyway"] == "1"
    without = {name: value for name, value in form.items() if name != "anyway"}
    assert send(admin, dead, without).status_code == 409
    assert send(admin, dead, form).status_code == 303
    after = logged("job.replayed")
    assert (after["verdict"], after["checks"]) == ("unsafe", {"dependency": "fail"})


# ---- the dialog


def test_a_replay_makes_one_child_however_often_it_is_sent(operator: Client, dead: Job) -> None:
    form = dialog(operator, dead)
    first, second = send(operator, dead, form), send(operator, dead, form)
    assert first.status_code == second.status_code == 303
    (child,) = children(dead)
    assert first["Location"] == second["Location"] == f"/jobs/{child}/"
    entry = AuditEntry.objects.get(action="job.replayed")
    assert (entry.actor, entry.reason, entry.source) == ("operator", "relay is back", "ui")
    assert logged("job.replayed")["verdict"] == "safe"
    page = operator.get(f"/dlq/{dead.id}/").text
    assert "Replayed by operator" in page
    assert f"/jobs/{child}/" in page


def test_a_second_operator_gets_the_same_child(client_of: ClientOf, dead: Job) -> None:
    one, other = client_of("operator"), client_of("owner")
    forms = dialog(one, dead), dialog(other, dead)
    assert send(one, dead, forms[0])["Location"] == send(other, dead, forms[1])["Location"]
    assert len(children(dead)) == 1
    assert AuditEntry.objects.get(action="job.replayed").actor == "operator"


def test_htmx_gets_the_page_as_it_is_now_and_a_toast(operator: Client, dead: Job) -> None:
    response = send(operator, dead, dialog(operator, dead), htmx=True)
    assert response.status_code == 200
    assert response.text.lstrip().startswith('<div class="stack" id="region"')
    assert f'hx-get="/dlq/{dead.id}/"' in response.text
    assert 'hx-target="#toasts"' in response.text
    assert "Replayed 1 job." in response.text


def test_a_verdict_that_changed_is_409_with_the_difference_and_asks_anew(operator: Client, dead: Job) -> None:
    form = dialog(operator, dead)
    JobType.objects.filter(name=dead.type).update(max_age_seconds=1)
    fails("mail.send", n=3)
    response = send(operator, dead, form, htmx=True)
    assert response.status_code == 409
    assert "What is known has changed since you looked" in alert(response)
    (change,) = re.findall(r"<li>(.*?)</li>", response.text)
    assert change.startswith("What it calls fails now and then: was pass, now note: 4 of the newest 13 runs failed")
    again = hidden(response)
    assert again["verdict"] not in ("", form["verdict"])
    assert children(dead) == []
    assert send(operator, dead, {**form, **again}).status_code == 303


def test_a_worker_that_found_the_work_done_meanwhile_stops_the_replay(
    operator: Client, dead: Job, worker: Worker
) -> None:
    form = dialog(operator, dead)
    old_answer(dead, seconds=25)
    worker.outcome = "confirmed"
    response = send(operator, dead, form)
    assert response.status_code == 409
    assert "Already done: was pass, now fail: The check found the work done: ref-9" in response.text
    assert children(dead) == []


@pytest.mark.parametrize("verdict", ["", "1", "1pppppppp1", "2pppppppp", "x" * 500, "1ffffffff"])
def test_a_form_without_the_verdict_that_stands_is_409(operator: Client, dead: Job, verdict: str) -> None:
    response = send(operator, dead, dialog(operator, dead, verdict=verdict))
    assert response.status_code == 409
    assert hidden(response)["verdict"] == "1pppppppp"
    assert children(dead) == []


@pytest.mark.parametrize("reason", ["", "  ", "\x00", "x" * 1_001, "x" * 1_048_576])
def test_r_07_a_reason_is_needed_and_has_an_end(operator: Client, dead: Job, reason: str) -> None:
    """R-07."""
    response = send(operator, dead, dialog(operator, dead, reason=reason))
    assert response.status_code == 422
    assert alert(response)
    assert hidden(response)["verdict"] == "1pppppppp"
    assert len(response.text) < 200_000
    assert children(dead) == []


@pytest.mark.parametrize("reason", ["<script>alert(1)</script>", '=HYPERLINK("https://evil.example","x")'])
def test_r_07_a_reason_is_text_wherever_it_is_shown(operator: Client, dead: Job, reason: str) -> None:
    """R-07."""
    assert send(operator, dead, dialog(operator, dead, reason=reason)).status_code == 303
    assert AuditEntry.objects.get(action="job.replayed").reason == reason
    for url in (f"/dlq/{dead.id}/", f"/audit/?object=job&id={dead.id}"):
        page = operator.get(url).text
        assert reason not in page
        assert reason.replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;") in page


def test_r_01_what_cannot_be_replayed_says_why(operator: Client, dead: Job) -> None:
    """R-01: confirmed, running, waiting, resolved."""
    done, running, waiting = accept(3, kind="mail.send")
    lifecycle.settle([confirmed(run) for run in claim([done])])
    claim([running])
    for job_id, state in ((done, "confirmed"), (running, "processing"), (waiting, "accepted")):
        response = send(operator, get(job_id), dialog(operator, get(job_id)))
        assert response.status_code == 409
        assert alert(response) == f"The job is {state}; only dead, expired and cancelled ones are replayed."
        assert children(get(job_id)) == []
    operator.post(f"/dlq/{dead.id}/ignore/", {"reason": "known"})
    response = send(operator, dead, dialog(operator, dead))
    assert (response.status_code, alert(response)) == (409, "The job was ignored by operator.")
    shown = operator.get(f"/dlq/{dead.id}/replay/").text
    assert "It cannot be replayed. It was ignored by operator." in shown
    assert "go primary" not in shown


def test_r_01_an_admin_cannot_force_what_is_final(client_of: ClientOf, dead: Job) -> None:
    """R-01."""
    admin = client_of("admin")
    form = dialog(admin, dead, anyway="1")
    admin.post(f"/dlq/{dead.id}/close/", {"reason": "x"})
    assert send(admin, dead, form).status_code == 409
    assert children(dead) == []


def test_r_02_a_newer_job_with_the_key_is_named(client_of: ClientOf, dead: Job) -> None:
    """R-02: refused for everybody, with a link to the job that holds the key."""
    (newer,) = accept(1, kind="mail.send")
    DedupeKey.objects.filter(type="mail.send", key="mail-1").update(job_id=newer)
    admin = client_of("admin")
    page = admin.get(f"/dlq/{dead.id}/").text
    assert "Superseded" in page
    assert 'id="replay"' not in page
    assert re.search(rf'<a class="btn" href="/jobs/{newer}/">.*?The job in its place</a>', page)
    form = admin.get(f"/dlq/{dead.id}/replay/")
    assert f'href="/jobs/{newer}/"' in form.text
    response = send(admin, dead, {**hidden(form), "reason": "x", "anyway": "1"})
    assert response.status_code == 409
    assert f'href="/jobs/{newer}/"' in response.text
    assert children(dead) == []


@pytest.mark.parametrize(("change", "words"), [({"enabled": False}, "disabled"), ({"paused": True}, "is paused")])
def test_r_04_a_type_that_takes_no_jobs_is_409(
    client_of: ClientOf, dead: Job, change: dict[str, bool], words: str
) -> None:
    """R-04: a disabled type for everybody; of a paused one an admin decides."""
    operator, admin = client_of("operator"), client_of("admin")
    form = dialog(operator, dead)
    JobType.objects.filter(name=dead.type).update(**change)
    contracts.forget()
    response = send(operator, dead, form)
    assert response.status_code == 409
    assert words in response.text
    assert "go primary" not in response.text
    assert children(dead) == []
    assert ('id="replay"' in admin.get(f"/dlq/{dead.id}/").text) is ("paused" in change)


def test_r_04_a_type_that_was_deleted_is_409(operator: Client, dead: Job) -> None:
    """R-04."""
    form = dialog(operator, dead)
    ContractRevision.objects.filter(job_type_id=dead.type).delete()
    JobType.objects.filter(name=dead.type).delete()
    contracts.forget()
    assert send(operator, dead, form).status_code == 409
    assert children(dead) == []
    page = operator.get(f"/dlq/{dead.id}/").text
    assert "Type takes no jobs" in page
    assert 'id="replay"' not in page
    assert 'id="edit"' not in page


# ---- what stood around it


@pytest.mark.parametrize("fingerprint", ["f" * 16, None])
def test_the_page_tells_of_the_same_failure_and_leads_through_it(
    viewer: Client, kind: JobType, fingerprint: str | None
) -> None:
    ids = accept(3, kind="mail.send")
    failure = {"error_class": "Boom", "message": "boom", "traceback": ""}
    lifecycle.settle(
        [
            lifecycle.End(
                id=run.id, fence=run.fence, verdict=lifecycle.Verdict.FAILED, reason="permanent_error",
                failure=failure, fingerprint=fingerprint,
            )
            for run in claim(ids)
        ]
    )  # fmt: skip
    fold_all()
    first, middle, last = sorted(ids)
    page = viewer.get(f"/dlq/{middle}/").text
    assert re.search(rf'rel="prev"[^>]*href="/dlq/{last}/"', page)
    assert re.search(rf'rel="next"[^>]*href="/dlq/{first}/"', page)
    group = sql("SELECT id FROM queues_failurecount WHERE fingerprint = %s", fingerprint or "")[0][0]
    assert f'href="/dlq/groups/{group}/"' in page
    assert "Review all 3" in page
    assert "Deaths of this failure in the last 24 h, peak 3" in page
    lifecycle.close_dead_letters([first], resolution="ignored", by="ann")
    assert 'rel="next"' not in viewer.get(f"/dlq/{middle}/").text


def test_what_it_depends_on_then_and_now(viewer: Client, dead: Job) -> None:
    hour = dead.settled_at.replace(minute=0, second=0, microsecond=0) if dead.settled_at else None
    assert hour
    fails("mail.send", n=19, grain="hour", runs=20)
    page = viewer.get(f"/dlq/{dead.id}/").text
    assert re.search(r'<dd class="bad">20 of 30 runs failed, ', page)
    assert f"{hour:%H:%M} to {hour + timedelta(hours=1):%H:%M} UTC" in page
    assert "What it calls is healthy. 1 of the newest 10 runs failed" in page


def test_the_contract_then_and_now(viewer: Client, dead: Job) -> None:
    row = JobType.objects.get(name=dead.type)
    row.version, row.max_attempts = 2, 9
    row.save()
    old = ContractRevision.objects.get(job_type_id=dead.type)
    ContractRevision.objects.create(
        job_type=row, version=2, fields={**old.fields, "max_attempts": 9}, actor="ann", reason="more"
    )
    contracts.forget()
    page = viewer.get(f"/dlq/{dead.id}/").text
    assert "Contract then and now" in page
    assert re.search(r'<th scope="row">max_attempts</th><td[^>]*>5</td><td[^>]*>9</td>', page)
    assert "Contract changed since acceptance" in page


def test_the_lineage_is_told_up_and_down_and_has_an_end(viewer: Client, dead: Job) -> None:
    ids = [dead.id]
    for _ in range(24):
        child = lifecycle.replay(ids[-1], by="ann")
        assert child is not None
        lifecycle.cancel([child], reason=Reason.OPERATOR)
        ids.append(child)
    page = viewer.get(f"/jobs/{ids[3]}/").text
    card = page[page.index('id="h-line"') :]
    card = card[: card.index("</section>")]
    told = re.findall(r'href="/jobs/([0-9a-f-]{36})/"', card)
    assert len(told) == 20
    assert set(told) < {str(one) for one in ids}
    assert str(ids[3]) not in told
    assert told[:5] == [str(one) for one in (*ids[:3], *ids[4:6])]
    assert "this one replays it" in card
    assert "replays this one" in card


@pytest.mark.parametrize(
    ("sent", "shown"), [(f"00-{TRACE}-00f067aa0ba902b7-01", True), ("<b>", False), (f"00-{TRACE}", False)]
)
def test_the_trace_of_a_producer_is_shown_only_as_one(viewer: Client, kind: JobType, sent: str, shown: bool) -> None:
    (job_id,) = accept(1, kind="mail.send")
    set_columns(job_id, raw_trace=f"jsonb_build_object('traceparent', '{sent}'::text)")
    bury([job_id])
    assert (f'data-copy="{TRACE}"' in viewer.get(f"/dlq/{job_id}/").text) is shown
