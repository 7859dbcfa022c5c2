"""A failure for each job: how many are told apart, that counts stay true, and what lists and the service then read."""

from __future__ import annotations

import random
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from dlq import groups, triage
from dlq.groups import GroupFilter
from dlq.models import FailureGroup
from dlq.replaying import Who
from queues import lifecycle
from queues.lifecycle import rollup
from queues.models import FailureCount
from tests.board.conftest import client_of  # noqa: F401 (a fixture)
from tests.board.test_dead_letters_scale import touched
from tests.dlq.deaths import die, failures, fold, kill
from tests.factories import analyze, get, make_type, sql

pytestmark = pytest.mark.django_db
ANN = Who(actor="ann", reason="known", source="ui")
MANY = 6_000
LISTED_MOST = 1_000
"""Rows that a page of groups may read: its own, those of one type, the hours."""


@pytest.fixture(autouse=True)
def _type() -> None:
    make_type()


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let three failures of a type be told apart."""
    monkeypatch.setattr(rollup, "FAILURES_MOST", 3)


def fp(n: int) -> str:
    return f"{n:016x}"


def counts(kind: str = "test.job") -> dict[str, tuple[int, int]]:
    """Return (died, open) by fingerprint."""
    return {fingerprint: n for (name, _, fingerprint), n in failures().items() if name == kind}


@pytest.mark.usefixtures("three")
def test_beyond_so_many_failures_of_a_type_all_further_ones_are_one() -> None:
    """A message that is another one in each job must not make a group for each."""
    make_type("other")
    first = die(2, fingerprint=fp(1))
    fold()
    rest = [die(fingerprint=fp(n))[0] for n in range(2, 8)]
    die(kind="other", fingerprint=fp(9))
    fold()
    assert counts() == {fp(1): (2, 2), fp(2): (1, 1), fp(3): (1, 1), "*": (4, 4)}
    assert counts("other") == {fp(9): (1, 1)}, "another type has its own room"
    die(fingerprint=fp(1))
    die(fingerprint=fp(20))
    die(fingerprint="")
    fold()
    assert counts() == {fp(1): (3, 3), fp(2): (1, 1), fp(3): (1, 1), "*": (5, 5), "": (1, 1)}
    lifecycle.close_dead_letters([rest[-1], first[0]], resolution="ignored", by="ann")
    lifecycle.replay_many(rest[2:4], by="ann", priority=0)
    fold()
    assert counts() == {fp(1): (3, 2), fp(2): (1, 1), fp(3): (1, 1), "*": (5, 2), "": (1, 1)}
    assert lifecycle.recount_failures() == 0


@pytest.mark.usefixtures("three")
def test_counts_are_the_truth_after_any_walk_with_more_failures_than_are_told_apart() -> None:
    """I-35: the sum over all failures of a type and reason is what the jobs say, and the recount agrees at any time."""
    draw = random.Random(11)
    for _ in range(60):
        open_ids = [row[0] for row in sql("SELECT id FROM queues_job WHERE state = 'dead' AND resolution = 'open'")]
        deed = draw.choice(("die", "die", "die", "replay", "close", "fold", "fold"))
        if deed == "die" or not open_ids:
            reason = draw.choice(("permanent_error", "time_limit"))
            die(draw.randint(1, 2), fingerprint=fp(draw.randint(1, 9)), reason=reason)
        elif deed == "replay":
            children = lifecycle.replay_many(draw.sample(open_ids, min(2, len(open_ids))), by="ann", priority=0)
            kill(list(children.values()), fingerprint=fp(draw.randint(1, 9)))
        elif deed == "close":
            lifecycle.close_dead_letters([draw.choice(open_ids)], resolution="cancelled", by="ann")
        else:
            lifecycle.fold(limit=draw.randint(1, 20))
        if draw.random() < 0.2:
            lifecycle.recount_failures()
            assert lifecycle.recount_failures() == 0
    fold()
    lifecycle.recount_failures()
    told = sql("SELECT reason, sum(open)::int FROM queues_failurecount GROUP BY 1 HAVING sum(open) <> 0")
    true = sql("SELECT reason, count(*)::int FROM queues_job WHERE state = 'dead' AND resolution = 'open' GROUP BY 1")
    assert dict(told) == dict(true)
    assert sql("SELECT count(*) FROM queues_failurecount WHERE open < 0")[0][0] == 0
    assert FailureCount.objects.exclude(fingerprint="*").count() <= 3


@pytest.mark.usefixtures("three")
def test_the_failures_that_are_not_told_apart_have_a_page_and_no_plan_of_their_own(client_of: Any) -> None:  # noqa: F811
    ids = [die(fingerprint=fp(n))[0] for n in range(1, 6)]
    fold()
    triage.run_once()
    row = groups.group_of(get(ids[-1]))
    assert row is not None
    assert (row.fingerprint, row.open, row.mixed, row.state) == ("*", 2, True, "open")
    assert row.message == "Further failures, beyond the 1,000 of this type that are told apart"
    own = groups.group_of(get(ids[0]))
    assert own is not None
    assert (own.fingerprint, own.mixed) == (fp(1), False)
    client: Client = client_of("operator")
    page = client.get(f"/dlq/groups/{row.id}/")
    assert page.status_code == 200
    assert 'id="replay-all"' not in page.text
    assert 'id="replay-all"' in client.get(f"/dlq/groups/{own.id}/").text
    assert client.get("/dlq/").status_code == 200
    answer = client.get(f"/dlq/bulk/?verb=replay&failure={row.id}&all=1")
    assert (answer.status_code, "not told apart" in answer.text) == (422, True)


def test_a_fold_of_deaths_that_all_differ_ends_within_its_time() -> None:
    """Each job dies with words of its own: the fold must not compare each with each, or the numbers of everything
    stand (it ran into the limit of 15 s for a statement, again and again).
    """
    n = 12_000
    sql(
        "INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)"
        " SELECT date_trunc('minute', jobs_now()), 'kind.' || i % 100, 1, 'died.0.' || lpad(to_hex(i), 16, '0'), -1, 1,"
        f" 0 FROM generate_series(1, {n}) AS i"
    )
    assert sql("SHOW statement_timeout") == [("15s",)]
    assert lifecycle.fold() == n
    told = "SELECT count(*), sum(open)::int FROM queues_failurecount"
    assert sql(told) == [(n, n)]
    for table in ("queues_failureminute", "queues_failurehour"):
        assert sql(f"SELECT sum(died)::int FROM {table}") == [(n,)]


# ---- what is read, with a group for each of many dead letters


def make_many(n: int) -> None:
    """Make so many failures of sixty types and three tiers, met by the service; three in sixteen are ignored."""
    sql(
        "INSERT INTO queues_failurecount (type, tier, reason, fingerprint, died, open, first_at, last_at)"
        " SELECT 'kind.' || n %% 60, 1 + n %% 3, CASE WHEN n %% 97 = 5 THEN 'poison' ELSE 'permanent_error' END,"
        " lpad(to_hex(n), 16, '0'), 1, (n %% 4 > 0)::int, jobs_now(), jobs_now() - n * interval '1 s'"
        " FROM generate_series(1, %s) AS n",
        n,
    )
    sql(
        "INSERT INTO dlq_failuregroup (id, type, reason, fingerprint, error_class, message, frame, state, state_at,"
        " state_by, state_reason, note, owner, died_before, regressions, triaged_at)"
        " SELECT id, type, reason, fingerprint, '', '', '', CASE WHEN right(fingerprint, 1) IN ('0', '5', 'b') THEN"
        " 'ignored' WHEN open = 0 OR right(fingerprint, 1) = '7' THEN 'resolved' ELSE 'open' END, jobs_now(), 'ann',"
        " 'x', '', '', 1, 0, jobs_now() FROM queues_failurecount"
    )
    for table in ("queues_failurecount", "dlq_failuregroup"):
        analyze(table)


def busiest(read: Any) -> int:
    """Return how many rows the busiest scan of what is read touches."""
    with CaptureQueriesContext(connection) as captured:
        read()
    asked = [query["sql"] for query in captured if query["sql"].lstrip().startswith(("SELECT", "WITH", "("))]
    assert asked
    return max(touched(statement) for statement in asked)


def test_a_page_of_groups_reads_its_page_however_many_groups_there_are() -> None:
    """DESIGN promise 10: a group for each dead letter; each list, its next page, one type, a rare reason, one group."""
    make_many(MANY)
    types = [f"kind.{n}" for n in range(60)]
    assert touched("SELECT * FROM queues_failurecount WHERE died > 0") >= MANY, "reading all of them would be seen"
    for state in groups.STATES:
        wanted = GroupFilter(types=types, state=state)
        first = groups.groups(wanted)
        assert (len(first.rows), bool(first.older)) == (50, True), state
        most = 2 * LISTED_MOST if state == "ignored" else LISTED_MOST
        assert busiest(lambda wanted=wanted: groups.groups(wanted)) <= most, state
        assert busiest(lambda wanted=wanted, at=first.older: groups.groups(wanted, after=at)) <= most, state
        assert busiest(lambda state=state: groups.groups(GroupFilter(types=types, type="kind.7", state=state))) <= most
        assert busiest(lambda state=state: groups.groups(GroupFilter(types=types, tier=3, state=state))) <= most
    assert busiest(lambda: groups.group(FailureCount.objects.order_by("id")[77].id)) <= LISTED_MOST


@pytest.mark.parametrize("state", groups.STATES)
@pytest.mark.parametrize("narrow", [{}, {"reason": "poison"}, {"tier": 2}, {"type": "kind.7"}])
def test_pages_hold_every_group_once_also_where_a_page_looks_at_few(
    state: str, narrow: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_many(900)
    types = [f"kind.{n}" for n in range(60)]
    monkeypatch.setattr(groups, "LOOK_AT_MOST", 1_000)
    every = groups.groups(GroupFilter(types=types, state=state, **narrow), limit=1_000)
    assert every.older is None
    # Of ignored ones so many are known at all.
    monkeypatch.setattr(groups, "LOOK_AT_MOST", 1_000 if state == "ignored" or "type" in narrow else 70)
    seen, at = [], None
    for _ in range(200):
        page = groups.groups(GroupFilter(types=types, state=state, **narrow), after=at, limit=40)
        seen += [row.id for row in page.rows]
        at = page.older
        if at is None:
            break
    assert seen == [row.id for row in every.rows]
    assert at is None
    assert seen


def test_a_round_of_the_service_looks_at_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triage, "LOOK_AT", 30)
    make_many(1_500)
    FailureGroup.objects.all().delete()
    assert busiest(triage.Triage().run_once) <= 3 * 30
    assert 0 < FailureGroup.objects.count() <= 3 * 30


def test_the_service_walks_through_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown first and what died last in each round, the others in turn: none is forgotten."""
    monkeypatch.setattr(triage, "LOOK_AT", 30)
    monkeypatch.setattr(triage, "MOST", 40)
    make_many(200)
    FailureGroup.objects.all().delete()
    service = triage.Triage()
    for _ in range(200 // 30 + 2):
        service.run_once()
    assert FailureGroup.objects.count() == 200
    FailureGroup.objects.update(state="ignored", ignored_until=sql("SELECT jobs_now()")[0][0], state_reason="x")
    for _ in range(200 // 30 + 5):
        service.run_once()
    assert not FailureGroup.objects.filter(state="ignored").exists()
