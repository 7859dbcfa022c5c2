"""Why a job of a limited or ordered type waits, and what a type's limits hold back: said with the numbers of claims."""

from __future__ import annotations

import datetime as dt
import re
from uuid import UUID

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from queues import contracts, lifecycle, outcomes
from queues.contract_switches import set_switch
from queues.lifecycle import Run
from queues.models import FlowState, Job, JobType
from queues.outcomes import limits
from queues.outcomes.causes import Cause, explain_job
from queues.states import Reason, Resolution
from tests.factories import WORKER, accept, analyze, confirmed, failed, fold_all, get, make_type, set_columns, sql
from tests.queues.late import CAUSE, NAME, NOT, codes, machines, of_job, of_type, one, overdue

pytestmark = pytest.mark.django_db


def claim(ids: list[UUID]) -> list[Run]:
    return lifecycle.claim_limited(ids, worker=WORKER)


def jobs(n: int, group: str | None = None, **more: object) -> list[UUID]:
    return accept(n, kind=NAME, group=group, **more)


def end(runs: list[Run]) -> None:
    lifecycle.settle([confirmed(run) for run in runs])


def die(job_id: UUID) -> None:
    [run] = claim([job_id])
    lifecycle.settle([failed(run, reason=Reason.PERMANENT_ERROR)])


def change(**values: object) -> None:
    JobType.objects.filter(name=NAME).update(**values)
    contracts.forget()


def limited(job_id: UUID) -> list[tuple[str, str]]:
    """Return (code, sentence) of what limits hold a job by."""
    found = of_job(job_id).causes
    return [(cause.code, cause.sentence) for cause in found if cause.verdict == CAUSE and cause.code != "backlog"]


def test_the_limit_of_a_type() -> None:
    make_type(NAME, concurrency=2)
    machines("tier2")
    ids = jobs(5)
    runs = claim(ids)
    why = of_job(ids[4])
    assert codes(why) == ["concurrency", "backlog"]
    assert why.sentence == "2 of 2 runs of mail.send hold a lease: it waits for one to end."
    assert one(why, "concurrency").evidence == {"running": 2, "limit": 2}
    assert one(why, "backlog").sentence == "2 jobs of this type are ahead of it"
    # The next one of all has nothing ahead of it, and is not said to wait for an unknown reason.
    set_columns(ids[2], raw_due_at="jobs_now() - interval '40 s'")
    assert codes(of_job(ids[2])) == ["concurrency"]
    change(concurrency=1)
    assert of_job(ids[2]).sentence == ("2 runs of mail.send hold a lease, and the limit is 1: it waits until fewer do.")
    end(runs)
    change(concurrency=2)
    room = one(of_job(ids[2]), "concurrency")
    assert (room.verdict, room.sentence) == (NOT, "0 of 2 runs of mail.send hold a lease: there is room")


def test_a_rate_says_when_its_next_token_comes() -> None:
    make_type(NAME, rate_per_second=0.1)
    machines("tier2")
    first, second = jobs(2)
    assert one(of_job(first), "rate").sentence == "0.1 a second of mail.send begin: 1 token is left"
    claim([first])
    FlowState.objects.update(filled_at=sql("SELECT jobs_now() - interval '4 s'")[0][0])
    found = one(of_job(second), "rate")
    assert found.verdict == CAUSE
    assert re.fullmatch(
        r"0\.1 a second of mail\.send begin: the next token comes in about [56](\.\d)? s", found.sentence
    )
    assert 5 < found.evidence["next_in_seconds"] <= 6
    FlowState.objects.update(filled_at=sql("SELECT jobs_now() - interval '1 min'")[0][0])
    assert codes(of_job(second)) == []


def test_no_estimate_promises_more_than_the_rate_allows() -> None:
    """Twenty began in the ten minutes before the rate was set: at that pace 30 need 15 min, by the rate 300 s a job."""
    make_type(NAME)
    machines("tier2")
    end(lifecycle.claim(jobs(20), worker=WORKER))
    change(rate_per_second=0.01)
    ids = jobs(31)
    FlowState.objects.create(type=NAME, group="", tokens=0, filled_at=sql("SELECT jobs_now()")[0][0])
    job = of_job(ids[30])
    assert codes(job) == ["rate", "backlog"]
    assert "with 30 jobs ahead of it not before about 51 min" in one(job, "rate").sentence
    assert "2 a minute were started in the last 10 min: at least 51 min by its rate." in one(job, "backlog").detail
    assert one(job, "backlog").evidence["starts_in_seconds"] == pytest.approx(3100, abs=20)
    overdue(*ids)
    late = of_type()
    assert codes(late) == ["rate"]
    assert late.causes[0].sentence == "0.01 a second of mail.send begin: 31 jobs wait for a token"
    assert late.causes[0].detail == "The last of them begins in 51 min at the earliest."
    # With a full bucket it is no cause, and the backlog's estimate keeps to it all the same.
    change(rate_burst=100)
    FlowState.objects.update(tokens=None)
    late = of_type()
    assert codes(late) == ["backlog"]
    assert "about 15 min at that pace" in one(late, "backlog").detail
    FlowState.objects.update(tokens=5, filled_at=sql("SELECT jobs_now() + interval '1 h'")[0][0])
    change(rate_burst=5)
    assert one(of_type(), "backlog").evidence["drained_in_seconds"] == pytest.approx(2600)
    assert "at least 43 min by its rate" in one(of_type(), "backlog").detail


def test_the_limit_of_a_group() -> None:
    """Another group's backlog is not ahead of it."""
    make_type(NAME, group_concurrency=2)
    machines("tier2")
    many, other = jobs(300, "a"), jobs(3, "b")
    assert codes(of_job(other[0])) == []
    assert one(of_job(other[0]), "backlog").sentence == "Nothing is ahead of it: it should start within seconds"
    claim(many[:2] + other[:1])
    assert limited(many[5]) == [("group_concurrency", "2 of 2 runs of its group hold a lease: it waits for one to end")]
    assert one(of_job(many[5]), "backlog").sentence == "3 jobs of its group are ahead of it"
    room = of_job(other[2])
    assert one(room, "backlog").sentence == "1 job of its group is ahead of it"
    assert one(room, "group_concurrency").sentence == "1 of 2 runs of its group holds a lease: there is room"
    [alone] = jobs(1)
    assert [cause.code for cause in of_job(alone).causes if cause.code.startswith("group")] == []


def test_the_rate_of_a_group() -> None:
    make_type(NAME, group_rate_per_second=1)
    machines("tier2")
    a, b = jobs(3, "a"), jobs(1, "b")
    claim(a)
    FlowState.objects.update(filled_at=sql("SELECT jobs_now()")[0][0])
    [(code, sentence)] = limited(a[1])
    assert code == "group_rate"
    assert sentence.startswith("1 a second of its group begin: the next token comes in about ")
    assert [code for code, _ in limited(a[2])] == ["group_rate"]
    assert one(of_job(b[0]), "group_rate").verdict == NOT


@pytest.fixture
def ordered() -> list[UUID]:
    make_type(NAME, ordered=True)
    machines("tier2")
    return jobs(4, "a")


def behind(job_id: UUID) -> Cause:
    """Return the only cause of a job that waits for its group."""
    why = of_job(job_id)
    assert codes(why) == ["order"]
    return why.causes[0]


def test_behind_the_first_of_its_group(ordered: list[UUID]) -> None:
    """In each state that the first one can be in, with a way to it."""
    first, _, third, _ = ordered
    short = str(first)[-12:]
    assert one(of_job(first), "order").sentence == "It is the first of its group"
    assert behind(third).sentence == f"Behind job {short} of its group, which waits to be started"
    assert behind(third).detail == "2 jobs of its group go before it, one after the other."
    [run] = claim([first])
    assert behind(third).sentence.endswith("which runs")
    lifecycle.settle([failed(run, retry_in=300.0)])
    assert re.search(r"which waits for its next attempt, .* UTC \(in [45] min.*\)$", behind(third).sentence)
    found = behind(third)
    assert found.next is not None
    assert (found.next.kind, found.next.params) == ("job", {"id": str(first)})
    assert (found.evidence["job_id"], found.evidence["state"], found.evidence["blocked"]) == (
        str(first), "retrying", False,
    )  # fmt: skip


def test_a_dead_letter_that_blocks_is_named_until_somebody_decides(ordered: list[UUID]) -> None:
    first, second, third, _ = ordered
    die(first)
    found = behind(third)
    assert found.sentence == (
        f"Behind job {str(first)[-12:]} of its group, which is a dead letter and holds the group up until somebody"
        " decides"
    )
    assert found.detail.startswith("Replay, cancel or ignore it: the group goes on.")
    assert found.next is not None
    assert (found.next.kind, found.next.params) == ("dead_letter", {"id": str(first)})
    child = lifecycle.replay(first, by="me")
    assert child is not None
    assert behind(second).evidence["job_id"] == str(child), "a replay takes its parent's place"
    end(claim([child]))
    assert one(of_job(second), "order").sentence == "It is the first of its group"
    die(second)
    lifecycle.close_dead_letters([second], resolution=Resolution.IGNORED, by="me")
    assert codes(of_job(third)) == []


def test_a_dead_letter_that_steps_aside_blocks_nobody(ordered: list[UUID]) -> None:
    change(ordered_on_failure="step_aside")
    die(ordered[0])
    assert codes(of_job(ordered[1])) == []
    overdue(*ordered[1:])
    assert "order" not in [cause.code for cause in of_type().causes]


def test_who_has_no_place_in_the_order_is_told_so() -> None:
    make_type(NAME)
    machines("tier2")
    [old] = jobs(1, "a")
    change(ordered=True)
    [alone] = jobs(1)
    jobs(2, "a")
    for job_id, why in ((old, "It was accepted before its type was ordered."), (alone, "It has no group.")):
        found = one(of_job(job_id), "order")
        assert (found.verdict, found.sentence, found.detail) == (NOT, "It waits for no other job of a group", why)


def test_limits_are_not_asked_for_a_job_that_something_else_holds() -> None:
    """Before its time, and while its type is paused."""
    make_type(NAME, concurrency=1, ordered=True)
    machines("tier2")
    first, second = jobs(2, "a")
    claim([first])
    later = jobs(1, "a", run_at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))[0]
    assert codes(of_job(later)) == ["scheduled"]
    set_switch(NAME, actor="jane", reason="", paused=True)
    assert codes(of_job(second)) == ["paused"]


def test_a_type_at_its_limit() -> None:
    """What is due waits for the limit, and not for a worker."""
    make_type(NAME, concurrency=2)
    machines("tier2")
    ids = jobs(6)
    overdue(*ids)
    assert codes(of_type()) == ["backlog"]
    assert one(of_type(), "concurrency").sentence == "0 of 2 runs of mail.send hold a lease: there is room"
    runs = claim(ids)
    late = of_type()
    assert codes(late) == ["concurrency"]
    assert late.causes[0].sentence == "2 of 2 runs of mail.send hold a lease: 4 jobs wait for one to end"
    assert late.causes[0].share == pytest.approx(4 / 6)
    assert late.causes[0].since is None, "nobody wrote down since when"
    assert (late.causes[0].evidence["running"], late.causes[0].evidence["waiting"]) == (2, 4)
    end(runs)
    assert codes(of_type()) == ["backlog"]


def test_groups_of_a_type_that_are_held_up() -> None:
    """Also while nothing is late: what stops jobs is named. A dead letter with nobody behind it holds up nothing."""
    make_type(NAME, ordered=True)
    machines("tier2")
    a, b, c, _ = jobs(4, "a"), jobs(2, "b"), jobs(1, "c"), jobs(2, "d")
    assert codes(of_type()) == []
    for job_id in (a[0], b[0], c[0]):
        die(job_id)
    found = of_type()
    assert (found.state, codes(found)) == ("no_data", ["order"])
    held = found.causes[0]
    assert held.sentence == "2 groups are held up by a dead letter"
    assert held.detail == "Behind them wait 4 jobs. Replay, cancel or ignore them: the groups go on."
    assert held.evidence["job_id"] == str(a[0])
    assert held.next is not None
    assert (held.next.kind, held.next.params) == ("dead_letters", {"type": NAME})
    overdue(*a[1:], *b[1:])
    found = of_type()
    assert codes(found)[0] == "order"
    assert found.causes[0].share == 1.0
    lifecycle.close_dead_letters([a[0], b[0]], resolution=Resolution.IGNORED, by="me")
    assert one(of_type(), "order").sentence == "No group is held up by a dead letter"


def test_a_look_that_ended_early_says_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    make_type(NAME, ordered=True)
    machines("tier2")
    for group in "abc":
        die(jobs(4, group)[0])
    assert one(of_type(), "order").evidence["at_least"] is False
    monkeypatch.setattr(limits, "_BEHIND_MOST", 2)
    found = one(of_type(), "order")
    assert found.sentence == "At least 3 groups are held up by a dead letter"
    assert found.detail.startswith("Behind them wait at least 6 jobs.")
    monkeypatch.setattr(limits, "_BEHIND_MOST", 20)
    monkeypatch.setattr(limits, "GROUPS_MOST", 2)
    assert one(of_type(), "order").sentence == "At least 2 groups are held up by a dead letter"


def test_groups_of_a_type_that_are_at_their_limit() -> None:
    make_type(NAME, group_concurrency=1)
    machines("tier2")
    a, b, c = jobs(3, "a"), jobs(2, "b"), jobs(2, "c")
    claim([a[0], b[0]])
    overdue(*a, *b, *c)
    late = of_type()
    assert codes(late) == ["backlog", "group_concurrency"]
    assert one(late, "backlog").sentence == "5 jobs wait to be started"
    found = one(late, "group_concurrency")
    assert found.sentence == "2 of 3 groups with waiting jobs have their one run taken"
    change(group_concurrency=3)
    assert one(of_type(), "group_concurrency").sentence == "No group is at its limit"


def test_a_range_that_has_ended_is_not_explained_by_limits_of_now() -> None:
    make_type(NAME, concurrency=1)
    machines("tier2")
    ids = jobs(3)
    claim(ids)
    overdue(*ids)
    fold_all()
    board = outcomes.board()
    span = outcomes.Span.of("15m", now=board.now - dt.timedelta(hours=1))
    with CaptureQueriesContext(connection) as captured:
        found = outcomes.causes.explain_type(NAME, board=board, span=span, broker=True)
    assert found is not None
    assert "concurrency" not in [cause.code for cause in found.causes]
    assert not any("jobs_running" in query["sql"] for query in captured)


@pytest.mark.parametrize(
    ("tokens", "burst", "ahead", "spent"),
    [(0.9, 10, 0, True), (1.0, 10, 0, False), (3.0, 10, 30, True), (9.0, 10, 30, False), (1.0, 1, 30, False)],
)
def test_when_a_rate_is_said_to_hold(tokens: float, burst: int, ahead: int, spent: bool) -> None:
    """A bucket that stays full while jobs wait says that workers are what is short."""
    assert outcomes.causes.limits.is_spent(tokens, burst, ahead) is spent


def test_limits_cost_statements_on_indexes() -> None:
    """One more for a job, three for a type with everything; whatever the number of jobs, no partition is scanned."""
    make_type(NAME, ordered=True, group_concurrency=1, concurrency=5, rate_per_second=50)
    machines("tier2")
    for group in "abc":
        die(jobs(20, group)[0])
    fold_all()
    analyze("queues_job")
    sql("SET LOCAL enable_seqscan = off")
    board, job = outcomes.board(), Job.objects.filter(state="accepted").order_by("-id")[0]
    with CaptureQueriesContext(connection) as of_one:
        explain_job(job, board=board, broker=True)
    assert len(of_one) == 3, "its group says how many are before it, so nobody counts what is ahead of it in its type"
    with CaptureQueriesContext(connection) as of_all:
        found = limits.limits_of(NAME)
    assert found is not None
    assert len(of_all) == 3
    assert (found.held.n, found.full.looked) == (3, 3)
    for query in [*of_one, *of_all]:
        if "queues_job " in query["sql"] and "; " in query["sql"]:
            plan = "\n".join(row[0] for row in sql(f"EXPLAIN {query['sql'].split('; ')[1]}"))
            assert not re.search(r"Seq Scan on queues_job_\d", plan), plan
            assert re.search(r"Index.* Scan.*queues_job_\d", plan), plan


def test_a_group_of_five_thousand_is_not_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planner believes that there is one job; what counts up to a bound must still end there."""
    make_type(NAME, ordered=True, group_concurrency=1)
    [first] = jobs(1, "a")
    analyze("queues_job")
    sql("ALTER TABLE queues_job DISABLE TRIGGER USER")
    columns = ", ".join(
        f'"{f.column}"' for f in Job._meta.concrete_fields if f.name not in ("id", "root", "failures", "seq")
    )
    sql(
        f"INSERT INTO queues_job (id, root, seq, {columns}) SELECT id, id, 1000000 + n, {columns} FROM ("
        f"SELECT jobs_uuid7() AS id, n, {columns} FROM queues_job CROSS JOIN generate_series(1, 5000) AS n) AS t"
    )
    sql("ALTER TABLE queues_job ENABLE TRIGGER USER")
    die(first)
    last = Job.objects.filter(type=NAME, group="a").order_by("-seq")[0]
    for ask in (lambda: outcomes.causes.limits.place_of(last), lambda: limits.limits_of(NAME)):
        with CaptureQueriesContext(connection) as captured:
            ask()
        for query in captured:
            if "; " not in query["sql"]:
                continue
            sql("SET LOCAL enable_sort = off")
            rows = sql(f"EXPLAIN (ANALYZE, TIMING OFF) {query['sql'].split('; ')[1]}")
            sql("SET LOCAL enable_sort = on")
            plan = "\n".join(row[0] for row in rows)
            read = [float(n) for n in re.findall(r"Scan .*?actual rows=([0-9.]+)", plan)]
            removed = [int(n) for n in re.findall(r"Rows Removed by Filter: ([0-9]+)", plan)]
            assert max([0, *read, *removed]) <= 1001, plan
    assert get(first).state == "dead"
