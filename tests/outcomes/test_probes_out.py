"""Probes are in no number of the business: every transition, every list, every count, on a probe and on a plain job."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import pytest
from django.db import connection

from jobsboard.metrics.probes import ages
from queues import accept, lifecycle, outcomes
from queues.lifecycle import CheckEnd, End, Verdict
from queues.lifecycle.rollup import _COUNTS
from queues.outcomes import JobFilter, lists, watch
from queues.outcomes.causes import facts
from queues.states import OPEN, WAITING, JobState, Reason
from tests.factories import analyze, confirmed, failed, get, released, set_columns, sql
from tests.outcomes.deeds import (
    KIND,
    begin,
    contract,
    end,
    give_up,
    hand_over,
    lose,
    one,
    reject,
    say,
)

pytestmark = pytest.mark.django_db
_keys: Final = itertools.count(1)


def a_probe() -> UUID:
    return accept.accept_probe(KIND, key=f"probe-{next(_keys)}").job_id


def age(job_id: UUID, seconds: int = 4000) -> None:
    """Let a job have become ready long ago; it expires when it did."""
    set_columns(job_id, raw_ready_at=f"jobs_now() - interval '{seconds} s'", raw_expires_at="jobs_now()")


def fail(job_id: UUID, **overrides: Any) -> None:
    assert lifecycle.settle([failed(begin(job_id), **overrides)])


def confirmed_late(job_id: UUID) -> None:
    set_columns(job_id, raw_ready_at="jobs_now() - interval '1 day'")
    end(begin(job_id))


def retried(job_id: UUID) -> None:
    fail(job_id)
    end(begin(job_id))


def put_off(job_id: UUID) -> None:
    run = begin(job_id)
    assert lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.PUT_OFF)])


def awaited(job_id: UUID) -> None:
    hand_over(begin(job_id), "a")


def proven(job_id: UUID) -> None:
    awaited(job_id)
    assert say(job_id, "a") == "confirmed"


def proven_while_retrying(job_id: UUID) -> None:
    fail(job_id)
    assert say(job_id, "a") == "confirmed"


def not_proven(job_id: UUID) -> None:
    awaited(job_id)
    give_up(job_id)


def awaited_too_long(job_id: UUID) -> None:
    awaited(job_id)
    age(job_id)
    assert lifecycle.expire([job_id])


def expired(job_id: UUID) -> None:
    age(job_id)
    assert lifecycle.expire([job_id])


def blind(job_id: UUID) -> None:
    lose(begin(job_id))
    end(begin(job_id))


def poisoned(job_id: UUID) -> None:
    for _ in range(3):
        lose(begin(job_id))
    assert get(job_id).state == "dead"


def cancelled(job_id: UUID) -> None:
    assert lifecycle.cancel([job_id], reason=Reason.OPERATOR)


def cancelled_late(job_id: UUID) -> None:
    age(job_id, 5)
    cancelled(job_id)


def stopped(job_id: UUID) -> None:
    run = begin(job_id)
    cancelled(job_id)
    assert lifecycle.settle([failed(run)])


def check(job_id: UUID, outcome: str, **more: Any) -> None:
    run = begin(job_id)
    awaiting = End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, polled=True, confirm_in=0.0, act_in=0.0)
    assert lifecycle.settle([awaiting])
    [due] = lifecycle.claim_checks([job_id])
    proof = {"kind": "check", "ref": "r", "late": False} if outcome == "confirmed" else None
    ended = CheckEnd(id=due.id, fence=due.fence, due_at=due.due_at, outcome=outcome, evidence=proof, **more)
    assert lifecycle.finish_checks([ended])


def rejected(job_id: UUID) -> None:
    awaited(job_id)
    assert reject(job_id, ref="a") == "rejected"


def rejected_for_now(job_id: UUID) -> None:
    awaited(job_id)
    assert reject(job_id, ref="a", retryable=True) == "retrying"


def late_proof(job_id: UUID) -> None:
    fail(job_id, reason="permanent_error")
    assert say(job_id, "a") == "late"


def after_rejection(job_id: UUID) -> None:
    rejected(job_id)
    assert say(job_id, "b") == "late"


def contradicted(job_id: UUID) -> None:
    end(begin(job_id))
    assert reject(job_id) == "contradiction"


def second_reference(job_id: UUID) -> None:
    run = begin(job_id)
    hand_over(run, "a")
    assert say(job_id, "b") == "confirmed"
    assert say(job_id, "c") == "duplicate"


def superseded(job_id: UUID) -> None:
    run = begin(job_id)
    lose(run)
    begin(job_id)
    assert not lifecycle.settle([confirmed(run)])
    lifecycle.count_superseded([(run.id, run.fence)])


DEEDS: Final[dict[str, Callable[[UUID], Any]]] = {
    "accept": lambda job_id: None,
    "claim": begin,
    "finish in time": lambda job_id: end(begin(job_id)),
    "finish late": confirmed_late,
    "release": lambda job_id: lifecycle.settle([released(begin(job_id))]),
    "put off": put_off,
    "retry": retried,
    "bury": lambda job_id: fail(job_id, reason="permanent_error"),
    "await": awaited,
    "confirm": proven,
    "confirm before a run": lambda job_id: say(job_id, "a"),
    "confirm while it waits to be retried": proven_while_retrying,
    "give up": not_proven,
    "expire": expired,
    "expire while awaited": awaited_too_long,
    "rescue, and a blind attempt": blind,
    "poison": poisoned,
    "cancel in time": cancelled,
    "cancel late": cancelled_late,
    "stop": stopped,
    "check: confirmed": lambda job_id: check(job_id, "confirmed"),
    "check: rejected": lambda job_id: check(job_id, "rejected"),
    "check: none": lambda job_id: check(job_id, "none", otherwise="retry"),
    "reject": rejected,
    "reject, retryable": rejected_for_now,
    "late evidence": late_proof,
    "confirm after a rejection": after_rejection,
    "contradiction": contradicted,
    "second reference": second_reference,
    "superseded": superseded,
}


def told() -> tuple[Counter[tuple[str, int]], int]:
    """Return what was written since the last look, (measure, bucket) → n, and how many signs were kept; empty it."""
    rows = sql("DELETE FROM queues_outcomedelta RETURNING measure, bucket, n")
    signs = len(sql("DELETE FROM queues_suspectedduplicate RETURNING 1"))
    counts: Counter[tuple[str, int]] = Counter()
    for measure, bucket, n in rows:
        counts[measure, bucket] += n
    return counts, signs


@pytest.mark.parametrize("deed", DEEDS)
def test_a_transition_of_a_probe_counts_nothing_but_that_it_waits(deed: str) -> None:
    """DESIGN 5, outcome arithmetic: of a plain job it counts, so that this could fail."""
    contract(window_seconds=60, dedupe_window_seconds=0)
    found = {}
    for make in (one, a_probe):
        job_id = make()
        DEEDS[deed](job_id)
        found[make] = told(), get(job_id)
    (plain, _), job = found[one]
    (counts, kept), probe = found[a_probe]
    assert (probe.probe, job.probe) == (True, False)
    assert (probe.state, probe.reason, probe.fence) == (job.state, job.reason, job.fence), "they went the same way"
    assert {measure for measure, _ in counts} == {"open.probe"}
    assert kept == 0
    assert sum(counts.values()) == (probe.state in WAITING), "every +1 has its -1"
    assert {measure for measure, _ in plain} - {f"open.{state}" for state in OPEN}
    # What nobody has to resolve: not listed, never replayed, gone by its age.
    if job.resolution == "open":
        assert (probe.resolution, probe.resolved_by) == ("ignored", "probe")
        assert probe.resolved_at is not None
        assert lifecycle.replay(probe.id, by="me") is None
        assert lifecycle.close_dead_letters([probe.id], resolution="cancelled", by="me") == set()
        assert told() == (Counter(), 0)
    else:
        assert (probe.resolution, probe.resolved_by) == (None, None)


def test_the_table_above_has_every_measure() -> None:
    """A measure that no deed of the table moves would be checked by nobody; the two left out are no transition."""
    contract(window_seconds=60)
    for deed in DEEDS.values():
        deed(one())
    written = {measure for measure, _ in told()[0]}
    assert {*_COUNTS, "lag", "wait", "run", "backoff", "await"} - written == {"duplicates", "replayed"}


# Reading: beside a probe that is older, later and deader than every job, pages and alerts see the jobs alone.

A_TIER: Final = 2


def fold_all() -> None:
    while lifecycle.fold():
        pass


def everything() -> dict[str, Any]:
    """Return what pages, metrics and alerts read from the jobs table of one type, and what the rollups say."""
    fold_all()
    board, pair = outcomes.board(), (A_TIER, KIND)
    span = outcomes.Span.of("24h", now=board.now, folded_at=board.folded_at)
    listed = {
        state: outcomes.jobs(JobFilter(type=KIND, state=state), types=[KIND], counts={}).rows
        for state in (None, *JobState)
    }
    totals = outcomes.totals()
    return {
        "oldest": outcomes.oldest_open([pair]),
        "oldest jobs": [row.id for row in outcomes.oldest_jobs(KIND, tiers=[A_TIER], limit=9)],
        "lists": {state: [row.id for row in rows] for state, rows in listed.items()},
        "all types": [row.id for row in outcomes.jobs(JobFilter(), types=[KIND], counts={}).rows],
        "tier": [row.id for row in outcomes.jobs(JobFilter(tiers=(A_TIER,)), types=[KIND], counts={}).rows],
        "dead": [row.id for row in outcomes.jobs(JobFilter(dead_letters=True), types=[KIND], counts={}).rows],
        "overdue": watch.waiting({pair: 60})[pair].overdue,
        "ages": {key: seconds > 3000 for key, seconds in ages({pair: 9}).items()},
        "open": facts.open_jobs(KIND, tiers=[A_TIER]),
        "flow": outcomes.flow(span).total(),
        "times": outcomes.times(span).of("lag"),
        "totals": (totals.counts, totals.times.histograms, totals.times.dead),
        "dead count": board.count("dead"),
        "open count": {state: board.count(state) for state in OPEN},
        "signs": outcomes.signs(),
    }


def test_readers_see_the_jobs_alone() -> None:
    """Everything is equal before and after; each reader has something to see, so none is equal for want of jobs."""
    contract(window_seconds=60, tier_id=A_TIER)
    for deed in ("accept", "claim", "await", "finish in time", "bury", "expire", "cancel in time", "contradiction"):
        DEEDS[deed](one())
        age_ready = "jobs_now() - interval '1 minute'"
        sql(f"UPDATE queues_job SET ready_at = {age_ready} WHERE settled_at IS NULL")
    before = everything()
    assert all(before.values()), {name for name, value in before.items() if not value}
    for do in DEEDS.values():
        job_id = a_probe()
        do(job_id)
        job = get(job_id)
        if job.state in OPEN:
            set_columns(job_id, raw_ready_at="jobs_now() - interval '1 day'")
    everything_after = everything()
    assert {name for name in before if before[name] != everything_after[name]} == set()


def test_a_key_that_is_looked_up_finds_no_probe() -> None:
    contract()
    accept.accept_probe(KIND, key="probe-of-mine")
    assert outcomes.jobs(JobFilter(key="probe-of-mine"), types=[KIND], counts={}).rows == []


def many_probes(n: int) -> None:
    """Insert probes that were confirmed, newer than what is there."""
    sql(
        """
        WITH born AS (
          INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,
            expires_at, accepted_at, request_hash, idempotency_key, root, payload, probe)
          SELECT id, %s, 2, 1, 5, 60, now, now, now + interval '1 day', now, sha256('{}'), 'jb', id, '{}', true
          FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now FROM generate_series(1, %s)) AS t RETURNING id)
        SELECT count(*) FROM born
        """,
        KIND, n,
    )  # fmt: skip
    sql(
        "UPDATE queues_job SET state = 'confirmed', due_at = NULL, settled_at = jobs_now(),"
        """ evidence = '{"kind": "return"}' WHERE probe"""
    )


def pages(wanted: JobFilter) -> list[list[UUID]]:
    """Read a list to its end, and back again to its beginning."""
    found, after = [], None
    while True:
        page = outcomes.jobs(wanted, types=[KIND], counts={}, after=after)
        found.append([row.id for row in page.rows])
        assert page.looked in (None, outcomes.LOOK_AT_MOST)
        assert page.complete == (page.older is None)
        if page.older is None:
            break
        after = page.older
    back: list[UUID] = []
    before = after
    while before is not None:
        page = outcomes.jobs(wanted, types=[KIND], counts={}, before=before)
        back = [row.id for row in page.rows] + back
        before = page.newer
    assert back == [job_id for page in found[:-1] for job_id in page]
    return found


@pytest.mark.parametrize("wanted", [JobFilter(), JobFilter(type=KIND)])
def test_thousands_of_probes_in_a_row_bound_the_look(wanted: JobFilter, monkeypatch: pytest.MonkeyPatch) -> None:
    """DESIGN 2, promise 10: a page costs the same; it says how far it looked, and the next one goes on from there."""
    monkeypatch.setattr(lists, "LOOK_FIRST", 60)
    monkeypatch.setattr(lists, "LOOK_AT_MOST", 200)
    monkeypatch.setattr(outcomes, "LOOK_AT_MOST", 200)
    contract()
    old = [one() for _ in range(3)]
    many_probes(450)
    new = [one() for _ in range(60)]
    found = pages(wanted)
    assert [job_id for page in found for job_id in page] == [*reversed(new), *reversed(old)]
    # 50 that fit; then the last 10 and 190 probes; 200 of them; what is left.
    assert [len(page) for page in found] == [50, 10, 0, 3]


def test_a_page_mostly_looks_a_short_way(django_assert_num_queries: Callable[[int], Any]) -> None:
    """With some probes between the jobs, as there are, a page is one statement that reads two hundred rows."""
    contract()
    many_probes(300)
    for _ in range(60):
        one()
        a_probe()
    with django_assert_num_queries(1) as asked:
        page = outcomes.jobs(JobFilter(type=KIND), types=[KIND], counts={})
    assert (len(page.rows), page.looked) == (50, None)
    assert f"LIMIT {lists.LOOK_FIRST}" in asked[0]["sql"]
    with django_assert_num_queries(2):
        page = outcomes.jobs(JobFilter(type=KIND), types=[KIND], counts={}, after=page.older)
    assert (len(page.rows), page.looked, page.complete) == (10, None, True)


class _Captured:
    """Keeps a statement, so that it can be explained."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def __call__(self, execute: Any, statement: str, params: Any, many: bool, context: Any) -> Any:
        self.asked.append((statement, params))
        return execute(statement, params, many, context)


@pytest.mark.parametrize("read", [lambda: outcomes.oldest_open([(A_TIER, KIND)]), lambda: ages({(A_TIER, KIND): 100})])
def test_the_index_of_open_jobs_still_serves(read: Callable[[], Any]) -> None:
    """`AND NOT probe` is a filter on what it gives; beside thousands of probes no partition is read to its end."""
    contract(tier_id=A_TIER)
    many_probes(6000)
    a_probe()
    for _ in range(40):
        one()
    [(today,)] = sql("SELECT DISTINCT tableoid::regclass::text FROM queues_job")
    analyze("queues_job")
    with connection.execute_wrapper(asked := _Captured()):
        assert read()
    [(statement, params)] = asked.asked
    assert "AND NOT probe" in statement
    with connection.cursor() as cursor:
        cursor.execute("EXPLAIN " + statement, params)
        plan = "\n".join(row[0] for row in cursor.fetchall())
    assert f"Seq Scan on {today}" not in plan, plan
    assert re.search(rf"Index (Only )?Scan (using|on) {today}_\w+_idx", plan), plan
