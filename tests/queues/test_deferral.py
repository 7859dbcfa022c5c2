"""What can wait is deferred while a tier above waits for workers: when, for how long, and what that holds back."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from queues import actions, broker, contracts, deferral, lifecycle, outcomes
from queues.contract_switches import NOT_DEFERRABLE, SwitchRefused, database_now, set_switch
from queues.contract_versions import ContractInvalid, save, save_tier
from queues.models import AuditEntry, BoardVersion, Job, JobType, Tier
from queues.outcomes.causes import explain_job, explain_type
from queues.scheduler import deferral as service
from queues.scheduler import switches
from queues.scheduler.stage import Stage
from queues.states import JobState
from tests.factories import accept, assignments, fold_all, get, make_job, make_type, released, set_columns, sql

pytestmark = pytest.mark.django_db

URGENT, MAIL, SCORE, REPORT = "pay", "mail", "score", "report"
Shift = Callable[[str], None]


@pytest.fixture(autouse=True)
def kinds(db: None) -> None:
    """Two types that can wait below tier 1, one that cannot, and a bound of 30 s."""
    make_type(URGENT, tier_id=1, max_age_seconds=604_800)
    make_type(MAIL, tier_id=2, deferrable=True)
    make_type(SCORE, tier_id=3, deferrable=True)
    make_type(REPORT, tier_id=3)
    bound(1, 30)


def bound(tier: int, seconds: int) -> int:
    return Tier.objects.filter(pk=tier).update(defer_after_seconds=seconds)


def change(name: str, **values: Any) -> int:
    """Change a type, also for processes that know it."""
    contracts.forget()
    return JobType.objects.filter(pk=name).update(**values)


def waiting(seconds: float, *, kind: str = URGENT, **given: Any) -> UUID:
    """Accept a job that has been due for so long."""
    [job_id] = accept(kind=kind, **given)
    set_columns(job_id, raw_due_at=f"jobs_now() - interval '{seconds} s'")
    fold_all()
    return job_id


def look() -> deferral.Swept:
    """Look as the scheduler does, with contracts as they are."""
    contracts.forget()
    return deferral.sweep()


def deferred() -> set[str]:
    return set(JobType.objects.filter(deferred=True).values_list("name", flat=True))


def entries() -> list[tuple[str, str, str]]:
    return list(AuditEntry.objects.order_by("id").values_list("action", "object_id", "actor"))


def test_a_tier_that_waits_defers_what_can_wait_below_it() -> None:
    """Who, why and until when are in the row and in the audit log, once."""
    waiting(42)
    version, now = BoardVersion.objects.get().n, database_now()
    swept = look()
    assert set(swept.deferred) == deferred() == {MAIL, SCORE}
    row = JobType.objects.get(pk=MAIL)
    assert (row.deferred_by, row.paused, row.version) == ("scheduler", False, 1)
    assert re.fullmatch(r"Tier 1 waits 4[2-9] s for a worker, more than 30 s", row.deferred_reason)
    assert row.deferred_until is not None
    assert timedelta(seconds=295) < row.deferred_until - now < timedelta(seconds=330)
    assert BoardVersion.objects.get().n > version
    assert sorted(entries()) == [("contract.deferred", MAIL, "scheduler"), ("contract.deferred", SCORE, "scheduler")]
    entry = AuditEntry.objects.get(object_id=MAIL)
    assert (entry.reason, entry.source) == (row.deferred_reason, "command")
    assert entry.before == {"deferred": False, "deferred_until": None}
    assert entry.after == {"deferred": True, "deferred_until": row.deferred_until.isoformat()}
    assert service.run_once() is False
    assert len(entries()) == 2


def test_only_what_is_below_the_tier_is_deferred() -> None:
    """What can wait in the tier itself does not give way to itself."""
    change(URGENT, deferrable=True)
    bound(1, 0)
    bound(2, 30)
    waiting(42, kind=MAIL)
    assert look().deferred == [SCORE]
    bound(1, 30)
    waiting(42)
    look()
    assert deferred() == {MAIL, SCORE}


def behind_its_priority() -> None:
    """An old job that newer ones of a higher priority go before."""
    waiting(60, priority=-5)
    waiting(1, priority=50)
    waiting(1, priority=10)


def left_behind() -> None:
    """A job that was accepted while its type was in another tier; workers of tier 1 take it."""
    change(URGENT, tier_id=3)
    waiting(60)
    change(URGENT, tier_id=1)


def overdue_retry() -> None:
    """A job whose next attempt is due."""
    make_job(JobState.RETRYING, type=URGENT, tier=1, raw_due_at="jobs_now() - interval '60 s'")
    sql("INSERT INTO queues_statecount (tier, type, state, n) VALUES (1, %s, 'retrying', 1)", URGENT)


@pytest.mark.parametrize("arrange", [behind_its_priority, left_behind, overdue_retry])
def test_what_waits_for_a_worker_counts(arrange: Callable[[], Any]) -> None:
    arrange()
    look()
    assert deferred() >= {MAIL, SCORE}


@pytest.mark.parametrize(
    "arrange",
    [
        lambda: waiting(20),
        lambda: waiting(-60),
        lambda: waiting(60, priority=deferral.LAST),
        lambda: waiting(60, kind=MAIL),
        lambda: (waiting(60), bound(1, 0)),
        lambda: (waiting(60), change(URGENT, paused=True)),
        lambda: (waiting(60), change(URGENT, deferred=True, deferred_by="bob")),
        lambda: (waiting(60), change(URGENT, concurrency=1)),
        lambda: (waiting(60), change(URGENT, breaker="open")),
        lambda: (waiting(60), JobType.objects.update(deferrable=False)),
        lambda: (waiting(60), JobType.objects.filter(deferrable=True).update(paused=True)),
        lambda: lifecycle.claim([waiting(60)], worker="w"),
    ],
    ids=["short", "not due", "goes last", "tier without a bound", "no bound", "paused", "deferred", "limited",
         "breaker", "nothing can wait", "what can wait is paused", "it runs"],
)  # fmt: skip
def test_what_does_not_wait_for_a_worker_defers_nothing(arrange: Callable[[], Any]) -> None:
    arrange()
    swept = look()
    assert (list(swept.deferred), entries()) == ([], [])
    assert deferred() <= {URGENT}


def test_it_lasts_while_the_tier_waits_for_half_of_its_bound(shift_clock: Shift) -> None:
    """Hysteresis: begun above 30 s, kept above 15 s, and the end moves on without a word."""
    job_id = waiting(42)
    look()
    ends = []
    for minutes in (2, 4, 6, 8):
        shift_clock(f"{minutes} min")
        set_columns(job_id, raw_due_at="jobs_now() - interval '16 s'")
        assert (list(look().taken_back), deferred()) == ([], {MAIL, SCORE})
        assert switches.run_once() is False
        end = JobType.objects.get(pk=MAIL).deferred_until
        assert end is not None
        ends.append(end)
    assert ends == sorted(set(ends))
    assert len(entries()) == 2


def test_it_is_taken_back_after_a_minute_of_calm(shift_clock: Shift) -> None:
    job_id = waiting(42)
    look()
    set_columns(job_id, raw_due_at="jobs_now() - interval '10 s'")
    for shift in ("5 s", "30 s", "55 s"):
        shift_clock(shift)
        set_columns(job_id, raw_due_at="jobs_now() - interval '10 s'")
        assert look() == deferral.Swept()
    # It presses once more: the minute begins anew.
    shift_clock("58 s")
    set_columns(job_id, raw_due_at="jobs_now() - interval '20 s'")
    assert look().renewed == 2
    for shift, back in (("100 s", set()), ("115 s", set()), ("130 s", {MAIL, SCORE})):
        shift_clock(shift)
        set_columns(job_id, raw_due_at="jobs_now() - interval '10 s'")
        assert set(look().taken_back) == back
    row = JobType.objects.get(pk=MAIL)
    assert (row.deferred, row.deferred_reason, row.deferred_by, row.deferred_until) == (False, "", "", None)
    entry = AuditEntry.objects.filter(object_id=MAIL).latest("id")
    assert (entry.action, entry.actor) == ("contract.undeferred", "scheduler")
    assert entry.reason == "No tier above it has waited for half of its bound in the last 60 s."
    assert len(entries()) == 4


def test_without_a_scheduler_that_looks_it_ends_by_itself(shift_clock: Shift) -> None:
    waiting(42)
    look()
    shift_clock("299 s")
    switches.run_once()
    assert deferred() == {MAIL, SCORE}
    shift_clock("310 s")
    switches.run_once()
    assert deferred() == set()
    entry = AuditEntry.objects.filter(object_id=MAIL).latest("id")
    assert (entry.action, entry.actor) == ("contract.undeferred", "scheduler")
    assert re.match(r"Its time was up. It was deferred because: Tier 1 waits", entry.reason)


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda: change(MAIL, deferrable=False), "Its contract no longer allows deferral."),
        (lambda: change(MAIL, tier_id=1), "No tier above it has a bound any more."),
        (lambda: bound(1, 0), "No tier above it has a bound any more."),
    ],
)
def test_what_may_no_longer_be_deferred_is_taken_back_at_once(arrange: Callable[[], Any], reason: str) -> None:
    waiting(42)
    look()
    arrange()
    assert MAIL in look().taken_back
    assert AuditEntry.objects.filter(object_id=MAIL).latest("id").reason == reason


def test_a_persons_own_deferral_is_never_undone(shift_clock: Shift) -> None:
    """Neither one that they began, nor one that they took over from the scheduler."""
    set_switch(MAIL, deferred=True, actor="bob", reason="quiet hours")
    waiting(42)
    assert look().deferred == [SCORE]
    set_switch(SCORE, deferred=True, actor="bob", reason="leave it")
    sql(f"UPDATE queues_job SET {assignments(JobState.CANCELLED)}")
    for shift in ("10 min", "2 h"):
        shift_clock(shift)
        look()
        switches.run_once()
    assert deferred() == {MAIL, SCORE}
    assert set(JobType.objects.filter(deferred=True).values_list("deferred_by", "deferred_until")) == {("bob", None)}


def test_a_persons_own_end_is_neither_moved_nor_cut_short(shift_clock: Shift) -> None:
    until = database_now() + timedelta(minutes=3)
    set_switch(MAIL, deferred=True, actor="bob", reason="quiet hours", until=until)
    job_id = waiting(42)
    look()
    shift_clock("30 s")
    look()
    assert JobType.objects.get(pk=MAIL).deferred_until == until
    for shift, left in (("2 min", {MAIL}), ("4 min", set())):
        shift_clock(shift)
        set_columns(job_id, raw_due_at="jobs_now()")
        look()
        switches.run_once()
        assert deferred() == left
    assert AuditEntry.objects.filter(object_id=MAIL).latest("id").reason == (
        "Its time was up. It was deferred because: quiet hours"
    )


def test_what_a_person_took_back_is_left_alone_for_ten_minutes(shift_clock: Shift) -> None:
    waiting(42)
    look()
    set_switch(MAIL, deferred=False, actor="bob", reason="the campaign must go out", source="ui")
    for shift in ("2 s", "5 min", "580 s"):
        shift_clock(shift)
        assert (list(look().deferred), deferred()) == ([], {SCORE})
    shift_clock("620 s")
    assert look().deferred == [MAIL]


def test_what_the_scheduler_took_back_may_be_deferred_again_at_once(shift_clock: Shift) -> None:
    job_id = waiting(42)
    look()
    shift_clock("80 s")
    set_columns(job_id, raw_due_at="jobs_now()")
    assert set(look().taken_back) == {MAIL, SCORE}
    set_columns(job_id, raw_due_at="jobs_now() - interval '31 s'")
    assert set(look().deferred) == {MAIL, SCORE}


def test_a_deferred_type_accepts_and_nothing_of_it_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage publishes none of it, a person's retry-now begins none, and its clock goes on."""
    hints: list[UUID] = []
    monkeypatch.setattr(broker, "depth", lambda queue, max_age=0.2: 0)

    def publish(sent: Sequence[tuple[str, Sequence[UUID]]]) -> bool:
        hints.extend(i for _, ids in sent for i in ids)
        return True

    monkeypatch.setattr(broker, "publish", publish)
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    make_type("limited", tier_id=3, deferrable=True, concurrency=5)
    later = make_job(JobState.RETRYING, type=MAIL, raw_due_at="jobs_now() + interval '1 h'").id
    [urgent], mail, limited = [waiting(42)], accept(2, kind=MAIL), accept(2, kind="limited")
    look()
    mail += accept(kind=MAIL)
    actions.retry_now(later, actor="bob", reason="now", source="ui")
    ready = [get(i).ready_at for i in mail]
    held = [*mail, *limited, later]
    contracts.forget()
    fold_all()
    stage = Stage()
    stage.run_once()
    stage.run_once()
    assert set(hints) == {urgent}
    assert lifecycle.next_due([(MAIL, None, 5), ("limited", None, 5)]) == []
    assert lifecycle.claim(held, worker="w") == []
    assert lifecycle.claim_limited(held, worker="w") == []
    assert {get(i).state for i in held} == {JobState.ACCEPTED, JobState.RETRYING}
    assert [get(i).ready_at for i in mail] == ready
    for name in (MAIL, "limited"):
        set_switch(name, deferred=False, actor="bob", reason="go")
    assert {run.id for run in lifecycle.claim(held, worker="w")} == {*mail, later}
    assert {run.id for run in lifecycle.claim_limited(held, worker="w")} == set(limited)


def test_a_run_that_has_begun_goes_on_and_comes_back_to_wait() -> None:
    [job_id] = accept(kind=MAIL)
    [run] = lifecycle.claim([job_id], worker="w")
    waiting(42)
    look()
    assert lifecycle.holding([(run.id, run.fence)])
    lifecycle.settle([released(run)])
    assert lifecycle.claim([job_id], worker="w") == []


def test_only_what_the_contract_allows_is_deferred_by_a_person() -> None:
    with pytest.raises(SwitchRefused, match=NOT_DEFERRABLE):
        set_switch(REPORT, deferred=True, actor="bob", reason="x")
    given = {"tier": 3, "success": "return", "deferred": True}
    with pytest.raises(ContractInvalid, match="Only what is deferrable"):
        save("new.type", given, actor="bob", reason="x")
    row = save("new.type", {**given, "deferrable": True}, actor="bob", reason="x").job_type
    assert (row.deferred, row.deferred_by, row.deferred_reason) == (True, "bob", "x")
    # Undoing is always allowed.
    change("new.type", deferrable=False)
    assert not set_switch("new.type", deferred=False, actor="bob", reason="x").deferred


def test_the_bound_of_a_tier_is_audited() -> None:
    save_tier(2, {"defer_after_seconds": 90}, actor="ada", reason="launch week")
    assert Tier.objects.get(pk=2).defer_after_seconds == 90
    entry = AuditEntry.objects.get()
    assert (entry.before, entry.after) == ({"defer_after_seconds": 0}, {"defer_after_seconds": 90})


def test_the_explanations_name_it() -> None:
    """Why is it late, and why is it not running: deferred, by whom, why, since and until when."""
    job_id = accept(kind=MAIL)[0]
    set_columns(job_id, raw_ready_at="jobs_now() - interval '1 h'", raw_due_at="jobs_now() - interval '1 h'")
    waiting(42)
    look()
    fold_all()
    board = outcomes.board()
    job = explain_job(Job.objects.get(id=job_id), board=board, broker=True)
    late = explain_type(MAIL, board=board, span=outcomes.Span.of("6h", now=board.now), broker=True)
    assert late is not None
    for why in (job, late):
        cause = next(one for one in why.causes if one.code == "deferred")
        assert cause.verdict == "cause"
        assert cause.sentence == "mail is deferred: nothing of it is started"
        assert re.match(r"By scheduler since .*, until .* \(in [45] min.*\)\. Tier 1 waits 4\d s for", cause.detail)
        assert cause.next is not None
        assert cause.next.kind == "undefer"
        assert cause.since is not None
    assert not any(one.code == "backlog" and one.verdict == "cause" for one in late.causes)


def test_a_full_batch_says_that_there_may_be_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferral, "BATCH", 1)
    waiting(42)
    assert service.run_once() is True
    contracts.forget()
    assert service.run_once() is True
    contracts.forget()
    assert service.run_once() is False
    assert deferred() == {MAIL, SCORE}
