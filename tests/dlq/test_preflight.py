"""The verdict before a replay: eight prepared dead letters, what changes between look and press, who asks the world."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest

from dlq import facts, preflight, replaying
from dlq.replaying import Unsafe, VerdictChanged, Who
from queues import actions, broker, contracts, edited_replay, handlers, lifecycle, outside
from queues.handlers import Confirmed, JobContext
from queues.models import AuditEntry, Dependency, DependencyCalls, Job, OutsideAnswer, Probe
from queues.runtime import outside as on_worker
from tests.dlq.deaths import die, fold
from tests.factories import accept, claim, confirmed, get, make_type, set_columns, sql

pytestmark = pytest.mark.django_db
ANN = Who(actor="ann", reason="INC-7", source="ui")
GOOD: dict[str, Any] = {"provider_key_ttl_seconds": 86_400, "dependency": "mail", "success": "reference"}
KIND = "pre.good"


class Provider:
    """The outside world: which idempotency keys it knows, and whether it answers."""

    def __init__(self) -> None:
        self.done: dict[str, str] = {}
        self.down = False
        self.asked = 0

    def check(self, job: JobContext) -> Confirmed | None:
        """Look a key up."""
        self.asked += 1
        if self.down:
            raise ConnectionError("provider does not answer")
        ref = self.done.get(job.idempotency_key)
        return Confirmed(ref) if ref else None


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    """A provider, and a worker that answers each hint at once."""
    one = Provider()
    monkeypatch.setattr(broker, "is_short", lambda queue: False)

    def at_once(hints: Sequence[tuple[str, Sequence[UUID]]], *, task: str = broker.TASK) -> bool:
        if task == broker.OUTSIDE_TASK:
            for _, ids in hints:
                on_worker.answer_all(ids)
        return True

    monkeypatch.setattr(broker, "publish", at_once)
    monkeypatch.setitem(handlers._checks, KIND, one.check)
    make_type(KIND, **GOOD)
    well(KIND)
    yield one


def well(kind: str, *, n: int = 6) -> None:
    """Let jobs of a type run well, so that what it depends on is known to work."""
    lifecycle.settle([confirmed(run) for run in claim(accept(n, kind=kind))])
    fold()


def dead(kind: str = KIND, **overrides: Any) -> Job:
    """Return a dead letter that died of a time-out, which is no failure for good."""
    columns = {name: overrides.pop(name) for name in list(overrides) if name.startswith("raw_")}
    job_id = die(1, kind=kind, reason="attempts_exhausted", dedupe_key=f"k{dead.n}", **overrides)[0]  # type: ignore[attr-defined]
    dead.n += 1  # type: ignore[attr-defined]
    if columns:
        sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
        set_columns(job_id, **columns)
        sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    fold()
    return get(job_id)


dead.n = 0  # type: ignore[attr-defined]


def results(job: Job) -> dict[str, str]:
    """Return what is not passed."""
    return {c.name: c.result for c in replaying.look(job).checks if c.result != "pass"}


def test_all_good_is_safe(provider: Provider) -> None:
    found = replaying.look(dead())
    assert found.verdict == "safe"
    assert [check.result for check in found.checks] == ["pass"] * 8
    assert provider.asked == 1
    done = next(check for check in found.checks if check.name == "already_done")
    assert done.evidence == "The check did not find the work done"
    assert abs((done.at - found.at).total_seconds()) < 30


def test_already_done_at_the_provider(provider: Provider) -> None:
    job = dead()
    provider.done[job.idempotency_key] = "ch_17"
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unsafe", {"already_done": "fail"})
    assert found.worst.evidence == "The check found the work done: ch_17"


def test_the_providers_key_has_expired(provider: Provider) -> None:
    job = dead()
    sql("UPDATE queues_jobtype SET provider_key_ttl_seconds = 1 WHERE name = %s", KIND)
    old = UUID(int=(int((dt.datetime.now(dt.UTC) - dt.timedelta(hours=5)).timestamp() * 1000) << 80) | 7)
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    set_columns(job.id, root=old)
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    job = get(job.id)
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unsafe", {"idempotency_key": "fail"})
    assert "The provider may have forgotten it 4 hours ago" in found.worst.evidence


def test_superseded(provider: Provider) -> None:
    job, other = dead(), accept(1, kind=KIND)[0]
    sql("UPDATE queues_dedupekey SET job_id = %s WHERE type = %s AND key = %s", other, KIND, job.dedupe_key)
    found = replaying.look(job)
    assert (found.verdict, found.final, results(job)) == ("unsafe", True, {"superseded": "fail"})
    assert f"The job {other}, which is accepted, holds this key now" in found.worst.evidence
    with pytest.raises(actions.NotReplayable):
        replaying.replay(job.id, who=ANN, anyway=True)


def test_past_max_age(provider: Provider) -> None:
    job = dead(raw_expires_at="jobs_now() - interval '2 hours'")
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unsafe", {"max_age": "fail"})
    assert "that was over 2 hours ago" in found.worst.evidence


def test_the_dependency_fails_for_another_type(provider: Provider) -> None:
    make_type("pre.other", **GOOD)
    die(20, kind="pre.other", reason="time_limit")
    job = dead()
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unsafe", {"dependency": "fail"})
    assert found.worst.title == "mail fails"
    assert "20 of the newest 27 runs of 2 types failed" in found.worst.evidence or "21 of" in found.worst.evidence


# The dependency, by its circuit breaker


def breaker(**values: Any) -> None:
    """Put the breaker of the dependency so, without a clock or a service."""
    Dependency.objects.update_or_create(name="mail", defaults=values)


def calls(*, ok: int, failed: int = 0, slow: int = 0) -> None:
    """Let so many calls have ended in its window."""
    at = sql("SELECT date_trunc('second', jobs_now()) - interval '5 s'")[0][0]
    DependencyCalls.objects.create(dependency="mail", at=at, ok=ok, failed=failed, slow=slow)


def test_an_open_breaker_is_in_the_way_however_well_runs_went(provider: Provider) -> None:
    """Its jobs would only wait, and the six runs that went well are of the time before."""
    job = dead()
    assert results(job) == {}
    breaker(state="open", why="Of 20 calls in 60 s 20 failed; the limit is 50 %.", retry_at=moment("20 s"))
    found = replaying.look(job)
    assert (found.verdict, found.final, results(job)) == ("unsafe", False, {"dependency": "fail"})
    assert found.worst.title == "The circuit breaker of mail is open"
    assert re.fullmatch(
        r"Since \d\d:\d\d UTC: Of 20 calls in 60 s 20 failed; the limit is 50 %; next trials at \d\d:\d\d UTC",
        found.worst.evidence,
    )


def test_a_half_open_breaker_is_worth_a_note_though_runs_failed(provider: Provider) -> None:
    """It needs jobs to try: a replay may be one of them."""
    die(20, kind=KIND, reason="time_limit")
    job = dead()
    assert results(job) == {"dependency": "fail"}
    breaker(state="half_open")
    assert results(job) == {"dependency": "note"}


@pytest.mark.parametrize(
    ("seen", "found"),
    [
        ({"ok": 20}, {}),
        ({"ok": 17, "failed": 2, "slow": 1}, {}),
        # Less than its minimum, or more that failed than is nothing: by the runs of the last minutes, which failed.
        ({"ok": 19}, {"dependency": "fail"}),
        ({"ok": 16, "failed": 4}, {"dependency": "fail"}),
    ],
)
def test_a_closed_breaker_tells_by_its_own_numbers_once_there_are_enough(
    provider: Provider, seen: dict[str, int], found: dict[str, str]
) -> None:
    """What failed before it closed is over."""
    die(20, kind=KIND, reason="time_limit")
    job = dead()
    breaker(state="closed", since=moment("-1 hour"))
    calls(**seen)
    assert results(job) == found


def test_a_probe_that_fails_outweighs_a_closed_breaker(provider: Provider) -> None:
    job = dead()
    breaker(state="closed", since=moment("-1 hour"))
    calls(ok=50)
    Probe.objects.create(type=KIND, next_at=moment("1 min"), failures=1, failing_since=moment("-1 min"))
    assert results(job) == {"dependency": "fail"}


def moment(away: str) -> dt.datetime:
    at: dt.datetime = sql("SELECT jobs_now() + %s::interval", away)[0][0]
    return at


def test_the_schema_changed(provider: Provider) -> None:
    job = dead()
    schema = json.dumps({"type": "object", "required": ["invoice"]})
    sql("UPDATE queues_jobtype SET schema = %s, version = 2 WHERE name = %s", schema, KIND)
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unsafe", {"contract": "fail"})
    assert found.worst.title == "Needs an edit"
    edited = edited_replay.prepare(job, payload={"n": 0, "invoice": 7})
    assert replaying.look(job, edited=edited).verdict == "safe", "the edit fits today's contract"
    sql("UPDATE queues_jobtype SET schema = '{}' WHERE name = %s", KIND)
    assert results(job) == {"contract": "note"}


def test_no_check_is_never_green(provider: Provider) -> None:
    make_type("pre.blind", **GOOD)
    well("pre.blind")
    job = dead("pre.blind")
    found = replaying.look(job)
    assert (found.verdict, results(job)) == ("unknown", {"already_done": "unknown"})
    assert "has no check, so nobody can ask" in found.worst.evidence


def test_a_check_that_fails_is_not_known_and_never_safe(provider: Provider) -> None:
    job = dead()
    provider.down = True
    found = replaying.look(job)
    assert found.verdict == "unknown"
    assert "ConnectionError: provider does not answer" in found.worst.evidence


def test_without_a_worker_it_is_not_known_after_two_seconds(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker, "publish", lambda hints, task=broker.TASK: False)
    job = dead()
    found = replaying.look(job)
    assert found.verdict == "unknown"
    assert "no worker has told" in found.worst.evidence


def test_a_verdict_that_changes_between_look_and_press_is_refused_with_the_difference(provider: Provider) -> None:
    """Must show 4: what was safe is done by the time that somebody presses."""
    job = dead()
    seen = replaying.look(job)
    assert seen.verdict == "safe"
    provider.done[job.idempotency_key] = "ch_18"
    forget_answer(job)
    with pytest.raises(VerdictChanged) as caught:
        replaying.replay(job.id, who=ANN, verdict=seen.fingerprint)
    [change] = caught.value.changes
    assert (change.name, change.was, change.now) == ("already_done", "pass", "fail")
    assert get(job.id).replayed_by is None
    with pytest.raises(Unsafe):
        replaying.replay(job.id, who=ANN, verdict=caught.value.found.fingerprint)
    child = replaying.replay(job.id, who=ANN, verdict=caught.value.found.fingerprint, anyway=True)
    entry = AuditEntry.objects.get(action="job.replayed")
    assert entry.after is not None
    assert entry.after["replayed_by"] == str(child)
    assert (entry.after["verdict"], entry.after["checks"]) == ("unsafe", {"already_done": "fail"})


def forget_answer(job: Job) -> None:
    """Let the last answer be too old to stand on."""
    OutsideAnswer.objects.filter(job_id=job.id).update(
        asked_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=60),
        answered_at=dt.datetime.now(dt.UTC) - dt.timedelta(seconds=59),
    )


def test_an_answer_older_than_half_a_minute_counts_for_nothing(
    provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = dead()
    seen = replaying.look(job)
    forget_answer(job)
    monkeypatch.setattr(broker, "publish", lambda hints, task=broker.TASK: False)
    assert replaying.look(job, ask=False).verdict == "unknown"
    with pytest.raises(VerdictChanged):
        replaying.replay(job.id, who=ANN, verdict=seen.fingerprint)


def test_a_question_is_asked_once_by_many_lookers(provider: Provider) -> None:
    job = dead()
    for _ in range(5):
        replaying.look(job)
    assert provider.asked == 1


def test_asking_changes_no_job(provider: Provider) -> None:
    job = dead()
    provider.done[job.idempotency_key] = "ch_19"
    before = sql("SELECT md5(j::text) FROM queues_job j WHERE id = %s", job.id)
    replaying.look(job)
    assert sql("SELECT md5(j::text) FROM queues_job j WHERE id = %s", job.id) == before


def test_an_edit_with_another_key_is_another_job(provider: Provider) -> None:
    """Nothing that the first one did is known to it: no key was sent, nobody holds it; but it is worth a note."""
    job = dead()
    provider.done[job.idempotency_key] = "ch_20"
    edited = edited_replay.prepare(job, dedupe_key="another")
    found = replaying.look(job, edited=edited)
    assert found.verdict == "safe"
    assert {c.name: c.result for c in found.checks if c.result != "pass"} == {"superseded": "note"}


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        ("UPDATE queues_jobtype SET enabled = false", "contract"),
        ("UPDATE queues_jobtype SET paused = true, paused_reason = 'x'", "contract"),
    ],
)
def test_a_type_that_is_disabled_or_paused_is_in_the_way(provider: Provider, spoil: str, check: str) -> None:
    """R-04."""
    job = dead()
    sql(spoil)
    contracts.forget()
    assert results(job) == {check: "fail"}


def test_a_deferred_type_is_worth_a_note(provider: Provider) -> None:
    """It gives way for a while: a replay is as safe as ever, and waits."""
    job = dead()
    sql("UPDATE queues_jobtype SET deferred = true")
    contracts.forget()
    assert results(job) == {"contract": "note"}


def test_many_are_judged_by_as_many_statements_as_one(
    provider: Provider, django_assert_max_num_queries: Callable[..., Any]
) -> None:
    jobs = [dead() for _ in range(12)]
    well(KIND, n=80)
    outside.ask_and_wait([job.id for job in jobs])
    with django_assert_max_num_queries(9):
        assert {preflight.judge(one).verdict for one in facts.gather(jobs).values()} == {"safe"}
