"""What the page of a job says about its proof: what it waits for, how far it is, what came of each run."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import pytest
from django.test import Client

from jobsboard.board import job_view, timeline
from queues import contract_versions, lifecycle, outcomes
from queues.confirmation import Evidence, by_token, confirm_job
from queues.lifecycle import CheckEnd, End, Run, Verdict
from queues.models import Job
from queues.states import JobState
from tests.factories import accept, claim, failed, get, make_job, make_type, set_columns, sql

S = JobState
Shift = Callable[[str], None]
UNANSWERED = {"error_class": "HTTPError", "message": "503", "traceback": ""}


def words(client: Client, job: Job) -> str:
    """Return the text of a job's page, its clock times as T."""
    text = client.get(f"/jobs/{job.id}/").text
    text = re.sub(r"\s*<[^>]+>\s*", " ", text[text.index('id="region"') :])
    text = re.sub(r"\b\d\d:\d\d:\d\d\b", "T", html.unescape(" ".join(text.split())))
    return re.sub(r" ([.,;:])", r"\1", text)


def started(kind: str = "crm.sync") -> Run:
    return claim(accept(1, kind=kind))[0]


def handed_over(run: Run, *, within: float | None = 300.0, act: float = 300.0, polled: bool = False) -> Job:
    """End a run that wants a proof from outside."""
    lifecycle.settle(
        [
            End(
                id=run.id, fence=run.fence, verdict=Verdict.AWAITING, reference="crm_1", confirm_in=within, act_in=act,
                polled=polled,
            )
        ]
    )  # fmt: skip
    return get(run.id)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("contract", "said", "then"),
    [
        ({"success": "callback"}, "Awaiting a callback until T.", "it becomes a dead letter"),
        ({"success": "callback", "on_unconfirmed": "retry"}, "Awaiting a callback until T.", "another attempt follows"),
        (
            {"success": "callback", "on_unconfirmed": "check_again", "confirm_within_seconds": 12},
            "Awaiting a callback until T. The check is asked in 11 s.",
            "it becomes a dead letter",
        ),
        ({"success": "check"}, "Awaiting a check until T. The check is asked in 11 s.", "it becomes a dead letter"),
        (
            {"success": "reference", "on_unconfirmed": "check_again", "check_every_seconds": 2},
            "Awaiting a check until T. The check is asked again in 11 s.",
            "it becomes a dead letter",
        ),
    ],
)
def test_what_an_awaiting_job_waits_for(viewer: Client, contract: dict[str, str], said: str, then: str) -> None:
    make_type("crm.sync", **{"check_every_seconds": 12, **contract})
    polled = "check" in f"{contract}"
    job = handed_over(started(), act=12.0 if polled else 300.0, polled=polled)
    text = words(viewer, job)
    assert said in text
    assert f"If no proof comes by T, {then}." in text
    assert "Reference crm_1" in text
    assert "without an answer" not in text


@pytest.mark.django_db
def test_checks_that_did_not_answer_are_counted(viewer: Client) -> None:
    make_type("crm.sync", success="check", check_every_seconds=10)
    job = handed_over(started(), act=0.0, polled=True)
    for n in (1, 2, 3):
        set_columns(job.id, raw_due_at="jobs_now()")
        due = lifecycle.claim_checks([job.id])[0]
        lifecycle.finish_checks(
            [CheckEnd(id=job.id, fence=due.fence, due_at=due.due_at, outcome="failed", next_in=20.0,
                      failure=UNANSWERED if n == 1 else None)]
        )  # fmt: skip
    text = words(viewer, job)
    assert "The check is asked again in 19 s; 3 checks without an answer." in text
    # The run is one row, the check below it is none of its own.
    assert "1 T" in text
    assert "Handed over reference crm_1" in text
    assert "then T" in text
    assert "HTTPError" in text
    set_columns(job.id, raw_due_at="jobs_now() - interval '1 s'")
    assert "The check is due; 3 checks without an answer." in words(viewer, job)


@pytest.mark.django_db
def test_a_type_that_is_gone_still_says_until_when(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(S.AWAITING_CONFIRMATION, raw_confirm_by="jobs_now() + interval '60 s'")
    assert "Awaiting its proof until T." in words(viewer, job)


@pytest.mark.django_db
def test_an_attempt_that_was_put_off_is_explained(viewer: Client) -> None:
    make_type("crm.sync", success="check")
    run = started()
    lifecycle.settle([failed(run)])
    assert "could not answer" not in words(viewer, get(run.id))
    for n in (1, 2):
        set_columns(run.id, raw_due_at="jobs_now()")
        again = claim([run.id])[0]
        lifecycle.settle(
            [End(id=again.id, fence=again.fence, verdict=Verdict.PUT_OFF, retry_in=30.0,
                 failure=UNANSWERED if n == 1 else None)]
        )  # fmt: skip
        times = "" if n == 1 else ", 2 times so far"
        said = f"The check before it could not answer{times}: it is asked again then, and the work waits for it."
        assert f"Next attempt in 29 s. {said}" in words(viewer, get(run.id))


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("share", "text", "said"),
    [(0.62, "batch 31 of 50", "62%: batch 31 of 50"), (0.0, "", "0%"), (1.0, "password=hunter2", "100%: password=")],
)
def test_progress_of_the_run_that_goes_on(viewer: Client, share: float, text: str, said: str) -> None:
    make_type("crm.sync")
    run = started()
    assert "Progress" not in words(viewer, get(run.id))
    assert lifecycle.set_progress(run.id, run.fence, share=share, text=text)
    page = words(viewer, get(run.id))
    assert "Progress as the run said" in page
    assert said in page
    assert "hunter2" not in page
    # What an older run said is no longer true.
    lifecycle.settle([failed(run)])
    assert "Progress" not in words(viewer, get(run.id))
    set_columns(run.id, raw_due_at="jobs_now()")
    again = claim([run.id])[0]
    assert "Progress" not in words(viewer, get(run.id))
    lifecycle.set_progress(run.id, again.fence, share=0.1, text="")
    assert "10%" in words(viewer, get(run.id))


def told(job: Job) -> list[tuple[str, str, bool]]:
    """Return number, outcome and whether the proof was awaited, of each row of the attempts."""
    rows = job_view.attempts(job, now=outcomes.board().now)
    return [("then" if row.after else str(row.number), row.outcome, row.awaited is not None) for row in rows]


@pytest.mark.django_db
def test_a_run_that_handed_over_is_told_until_its_proof_came(viewer: Client, shift_clock: Shift) -> None:
    make_type("crm.sync", success="callback", on_unconfirmed="retry", confirm_within_seconds=60)
    shift_clock("-10 minutes")
    run = started()
    shift_clock("-9 minutes")
    job = handed_over(run)
    assert told(job) == [("1", "Handed over", True)]
    shift_clock("-4 minutes")
    set_columns(job.id, raw_confirm_by="jobs_now()", raw_due_at="jobs_now()")
    assert lifecycle.give_up_waiting([job.id])
    job = get(job.id)
    assert told(job) == [("1", "Handed over", True), ("then", "Unconfirmed", False)]
    row = job_view.attempts(job, now=outcomes.board().now)[0]
    assert (round(row.took or 0), row.waited) == (60, "5m")
    shift_clock("-210 seconds")
    again = claim([job.id])[0]
    shift_clock("-3 minutes")
    handed_over(again)
    shift_clock("-1 minute")
    by_token(job.id, Evidence(outcome="confirmed", ref="crm_2"))
    shift_clock("0")
    job = get(job.id)
    # Of the first run only its story is left: the row knows the times of its newest.
    assert told(job) == [("1", "Unconfirmed", False), ("2", "Confirmed", True)]
    rows = job_view.attempts(job, now=outcomes.board().now)
    assert [row.waited for row in rows] == ["30s", "2m"]
    drawn = timeline.timeline(job_view.timeline(job, rows, now=outcomes.board().now))
    assert "2m awaiting the proof" in drawn
    assert drawn.count('class="is-awaiting"') == 1
    assert "awaiting the proof" in words(viewer, job)


@pytest.mark.django_db
@pytest.mark.parametrize("outcome", ["confirmed", "rejected"])
def test_a_word_from_outside_makes_no_run_of_its_own(outcome: str) -> None:
    """A failed run stays one, whatever is heard of its work afterwards."""
    make_type("crm.sync")
    run = started()
    lifecycle.settle([failed(run, retry_in=60)])
    evidence = Evidence(outcome="confirmed" if outcome == "confirmed" else "rejected", kind="manual")
    confirm_job(run.id, evidence, actor="ada", reason="x", source="ui")
    after = [] if outcome == "confirmed" else [("then", "Rejected", False)]
    assert told(get(run.id)) == [("1", "Boom", False), *after]


@pytest.mark.django_db
def test_dead_at_its_max_age_the_run_is_still_told() -> None:
    make_type("crm.sync", success="callback", on_unconfirmed="check_again")
    job = handed_over(started(), within=None)
    set_columns(job.id, raw_expires_at="jobs_now() - interval '1 s'")
    assert lifecycle.expire([job.id])
    assert get(job.id).reason == "unconfirmed"
    assert told(get(job.id)) == [("1", "Handed over", True)]


@pytest.mark.django_db
def test_who_confirmed_is_said(viewer: Client) -> None:
    make_type("crm.sync")
    for actor, said in (
        ("ada", "Confirmed by hand by ada."),
        ("key:jb_live_ab", "Confirmed through the API, key jb_live_ab."),
    ):
        (job_id,) = accept(1, kind="crm.sync")
        confirm_job(
            job_id, Evidence(outcome="confirmed", kind="manual"), actor=actor, reason="seen", source="ui"
        )  # fmt: skip
        assert said in words(viewer, get(job_id))


@pytest.mark.django_db
def test_a_rejection_of_an_earlier_run_is_told(viewer: Client) -> None:
    make_type("crm.sync", success="callback")
    job = handed_over(started())
    by_token(job.id, Evidence(outcome="rejected", detail="busy", retryable=True, run=1))
    assert "Rejected by a callback; another attempt follows. Said: busy" in words(viewer, job)
    set_columns(job.id, raw_due_at="jobs_now()")
    handed_over(claim([job.id])[0])
    assert "Rejected by a callback; another attempt followed. Said: busy" in words(viewer, job)


@pytest.mark.django_db
def test_secrets_in_references_are_not_shown(viewer: Client) -> None:
    make_type("crm.sync", success="callback")
    job = handed_over(started())
    set_columns(job.id, reference="token=sk_live_abcdefghijklmnop")
    by_token(job.id, Evidence(outcome="confirmed", ref="password=hunter2-marker", detail="api_key=marker-2"))
    page = viewer.get(f"/jobs/{job.id}/").text
    for secret in ("sk_live_abcdefghijklmnop", "hunter2-marker", "marker-2"):
        assert secret not in page


@pytest.mark.django_db
def test_a_long_list_of_late_evidence_says_that_it_was_cut(viewer: Client) -> None:
    make_type("crm.sync", success="callback")
    job = handed_over(started())
    for n in range(25):
        by_token(job.id, Evidence(outcome="confirmed", ref=f"crm_{n}"))
    text = words(viewer, job)
    assert text.count("Confirmed again") == 20
    assert "the first 20 are kept" in text


@pytest.mark.django_db
@pytest.mark.parametrize("odd", ['"text"', "[]", '{"share": "x", "at": "never"}', '{"at": 7}'])
def test_json_that_nobody_expects_breaks_no_page(viewer: Client, odd: str) -> None:
    contract_versions.save("test.job", {"success": "return"}, actor="ann", reason="first")
    job = make_job(S.PROCESSING)
    for column in ("progress", "rejection", "evidence"):
        sql(f"UPDATE queues_job SET {column} = %s::jsonb WHERE id = %s", odd, job.id)  # noqa: S608 (names above)
    sql("UPDATE queues_job SET late_evidence = %s::jsonb WHERE id = %s", f"[{odd}]", job.id)
    assert viewer.get(f"/jobs/{job.id}/").status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("contract", "said"),
    [
        ({"success": "callback"}, "Proof a callback within 5m, else a dead letter"),
        ({"success": "callback", "on_unconfirmed": "retry"}, "Proof a callback within 5m, else another attempt"),
        ({"success": "check"}, "Proof a check every 10s within 5m, else a dead letter"),
        ({"success": "check", "on_unconfirmed": "check_again"}, "Proof a check every 10s until max age"),
        ({"success": "reference"}, "Proof the handler’s reference, else a dead letter"),
        (
            {"success": "reference", "on_unconfirmed": "check_again"},
            "Proof the handler’s reference, else a check every 10s until max age",
        ),
        ({"success": "return"}, ""),
    ],
)
def test_the_contract_says_how_the_proof_is_got(viewer: Client, contract: dict[str, str], said: str) -> None:
    make_type("crm.sync", **contract)
    text = " ".join(re.sub(r"<[^>]+>", " ", viewer.get("/types/crm.sync/").text).split())
    assert said in text
    assert ("Proof" in text) is bool(said)


@pytest.mark.django_db
def test_the_contract_names_the_address_of_its_check(viewer: Client) -> None:
    make_type("crm.sync", success="check", check_url="https://crm.example/outcome?token=marker-77")
    page = viewer.get("/types/crm.sync/").text
    assert "marker-77" not in page
    assert "https://crm.example/outcome" in page
