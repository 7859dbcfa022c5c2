"""Probes: when they are sent, what they are, and what a person can do."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection

from queues import accept, backlog, contract_rules, contracts, lifecycle, outcomes, probes
from queues.contract_fields import defaults
from queues.models import AuditEntry, Job, JobType, Probe, ProbeRun
from queues.states import Reason
from tests.factories import claim, confirmed, get, make_type, sql
from tests.queues.probing import EVERY, KIND, WINDOW, Clock, a_type, begin, bury, change, due, now, settled

pytestmark = pytest.mark.django_db


# When they are sent.


def test_a_type_that_asks_is_probed_soon_and_one_that_stops_is_not() -> None:
    make_type("quiet.job")
    make_type(KIND, probe_every_seconds=EVERY)
    assert not probes.sweep()
    probe = Probe.objects.get()
    assert probe.type == KIND
    assert dt.timedelta(0) <= probe.next_at - outcomes.board().now <= dt.timedelta(seconds=5)
    assert now().next_at == probe.next_at
    change(probe_every_seconds=0)
    probes.sweep()
    assert not Probe.objects.exists()
    assert outcomes.probes() == []


def test_a_shorter_interval_counts_at_once() -> None:
    make_type(KIND, probe_every_seconds=3600)
    sql("INSERT INTO queues_probe (type, next_at, failures) VALUES (%s, jobs_now() + interval '1 hour', 0)", KIND)
    change(probe_every_seconds=EVERY)
    probes.sweep()
    assert Probe.objects.get().next_at - outcomes.board().now <= dt.timedelta(seconds=EVERY)


def test_one_that_is_due_is_sent_once_and_comes_again_about_an_interval_later(shift_clock: Clock) -> None:
    """After an outage of a day one run follows, not all that were missed."""
    a_type()
    shift_clock("1 day")
    assert [probes.begin_due(), probes.begin_due()] == [1, 0]
    probe, at = Probe.objects.get(), outcomes.board().now
    assert 0.9 * EVERY - 1 <= (probe.next_at - at).total_seconds() <= 1.1 * EVERY + 1
    assert probe.last_at is not None
    assert abs((probe.last_at - at).total_seconds()) < 5


def test_the_next_one_waits_for_the_one_that_is_open(shift_clock: Clock) -> None:
    a_type()
    run, job = begin()
    due()
    assert probes.begin_due() == 0
    assert lifecycle.settle([confirmed(claim([job.id])[0])])
    assert settled()[0] == "passed"
    assert probes.begin_due() == 1, "it was due all the time"


def test_a_probe_is_a_job_like_any_other_and_says_so() -> None:
    a_type(priority_default=5, max_attempts=3, max_age_seconds=7200, key_required=True, key_template="k-{n}")
    run, job = begin()
    assert (run.outcome, run.tier, run.window_seconds, run.by) == ("running", 2, WINDOW, "")
    assert (job.probe, job.state, job.group, job.priority, job.attempt_limit) == (True, "accepted", None, 5, 3)
    assert job.payload == '{"n":7}'
    assert job.dedupe_key is not None
    assert job.dedupe_key.startswith("probe-"), "no business key, so an idempotency key of its own"
    assert job.expires_at - job.ready_at == dt.timedelta(seconds=WINDOW)
    [claimed] = claim([job.id])
    assert claimed.probe


def test_two_probes_have_two_idempotency_keys() -> None:
    a_type()
    _, one = begin()
    lifecycle.cancel([one.id], reason=Reason.OPERATOR)
    probes.settle_open()
    _, other = begin()
    assert one.idempotency_key != other.idempotency_key


def test_an_ordered_types_probe_is_in_a_group_of_its_own() -> None:
    a_type(ordered=True)
    _, job = begin()
    assert job.group == job.dedupe_key


def test_no_backlog_refuses_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    a_type()
    monkeypatch.setattr(backlog, "full_tiers", lambda: frozenset({1, 2, 3}))
    with pytest.raises(accept.Overloaded):
        accept.enqueue(KIND, {})
    assert begin()[1].state == "accepted"


@pytest.mark.parametrize(
    ("switch", "reason"),
    [({"paused": True}, "paused"), ({"deferred": True}, "deferred"), ({"enabled": False}, "disabled")],
)
def test_a_held_type_is_not_probed_and_that_is_neither_failure_nor_success(switch: dict[str, Any], reason: str) -> None:
    a_type()
    change(**switch)
    assert probes.begin_due() == 1
    run = ProbeRun.objects.get()
    assert (run.outcome, run.reason, run.job_id) == ("skipped", reason, None)
    assert not Job.objects.exists()
    found = now()
    assert (found.failures, found.last_ok_at, found.outcome, found.reason) == (0, None, "skipped", reason)
    assert (found.paused, found.passes) == (True, None)


def test_a_switch_that_this_process_has_not_heard_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Contracts are cached for two seconds; the accept statement reads the switch."""
    a_type()
    contracts.all_current()
    real = probes._begin
    monkeypatch.setattr(probes, "_begin", lambda name, skip="", by="": real(name, skip="", by=by))
    JobType.objects.update(enabled=False)
    assert probes.begin_due() == 1
    assert list(ProbeRun.objects.values_list("outcome", "reason")) == [("skipped", "disabled")]


def test_a_type_that_is_wrong_stops_no_other() -> None:
    """Its payload no longer fits: the run says so, and the others are sent in the same round."""
    names = ["a.job", "b.job", "c.job"]
    for name in names:
        a_type(name)
    change("b.job", schema={"type": "object", "required": ["missing", "token=sk-aaaaaaaaaaaaaaaaaaaaaaaa"]})
    assert probes.begin_due() == 3
    assert {job.type for job in Job.objects.all()} == {"a.job", "c.job"}
    run = ProbeRun.objects.get(type="b.job")
    assert (run.outcome, run.reason, run.job_id) == ("failed", "contract_violation", None)
    assert run.detail.startswith("It was not accepted: the payload breaks the contract of 'b.job'")
    assert (now("b.job").failures, now("b.job").passes) == (1, False)


@pytest.mark.parametrize("broken", [lambda: 1 // 0, lambda: sql("SELECT 1 / 0")])
def test_an_error_in_the_middle_stops_no_other(broken: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    a_type("a.job")
    a_type("b.job")
    real = accept.accept_probe

    def wrong(name: str, *, key: str) -> accept.Receipt:
        receipt = real(name, key=key)
        if name == "a.job":
            broken()
        return receipt

    monkeypatch.setattr(probes, "accept_probe", wrong)
    assert probes.begin_due() == 2
    assert [job.type for job in Job.objects.all()] == ["b.job"], "what was accepted before the error is gone"
    assert ProbeRun.objects.get(type="a.job").reason == "not_accepted"


# What a person can do.


def run_now(**overrides: Any) -> probes.Sent:
    return probes.run_now(KIND, **{"actor": "ann", "reason": "looks dead", **overrides})


def test_a_person_sends_one_beside_the_schedule() -> None:
    a_type()
    Probe.objects.update(next_at=outcomes.board().now + dt.timedelta(seconds=50))
    before = Probe.objects.get().next_at
    sent = run_now()
    run = ProbeRun.objects.get()
    assert (sent.run_id, sent.job_id, sent.fresh, run.by) == (run.id, run.job_id, True, "ann")
    assert sent.job_id is not None
    assert get(sent.job_id).probe
    assert Probe.objects.get().next_at == before
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_id, entry.reason) == ("probe.sent", KIND, "looks dead")
    assert entry.after == {"run": run.id, "job": str(run.job_id)}


def test_one_that_is_under_way_is_the_answer() -> None:
    a_type()
    run, _ = begin()
    assert run_now().run_id == run.id
    assert not run_now().fresh
    assert not AuditEntry.objects.exists()


def test_a_second_click_sends_no_second_one() -> None:
    """The form names the last run that it knew; that the first click's run has passed meanwhile changes nothing."""
    a_type()
    run, job = begin()
    lifecycle.cancel([job.id], reason=Reason.OPERATOR)
    probes.settle_open()
    first = run_now(after=run.id)
    assert first.fresh
    assert first.job_id is not None
    assert lifecycle.settle([confirmed(claim([first.job_id])[0])])
    probes.settle_open()
    again = run_now(after=run.id)
    assert (again.run_id, again.fresh) == (first.run_id, False)
    assert run_now(after=run.id, actor="bob").fresh, "another person has not clicked before"
    assert AuditEntry.objects.count() == 2


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"paused": True}, "is paused"),
        ({"deferred": True}, "is deferred"),
        ({"enabled": False}, "is disabled"),
        ({"probe_every_seconds": 0}, "no probes"),
    ],
)
def test_a_type_that_is_held_or_does_not_ask_is_not_probed_by_hand(fields: dict[str, Any], words: str) -> None:
    a_type()
    change(**fields)
    with pytest.raises(probes.NotProbed, match=words):
        run_now()
    assert not ProbeRun.objects.exists()


def test_a_payload_that_no_longer_fits_is_said() -> None:
    a_type()
    change(schema={"required": ["x"]})
    sent = run_now()
    assert (sent.fresh, sent.job_id) == (True, None)
    assert "'x' is a required property" in sent.detail
    assert ProbeRun.objects.get().outcome == "failed"


# The contract.


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"probe_every_seconds": 9}, "probe_every_seconds", "At least 10 seconds"),
        ({"probe_every_seconds": 60, "probe_payload": []}, "probe_payload", "Must be an object."),
        (
            {"probe_every_seconds": 60, "schema": {"required": ["n"]}},
            "probe_payload",
            "Breaks the schema: 'n' is a required property",
        ),
        (
            {"probe_every_seconds": 60, "schema": {"properties": {"n": {"type": "string"}}}, "probe_payload": {"n": 1}},
            "probe_payload",
            "Breaks the schema at /n: 1 is not of type 'string'",
        ),
        (
            {"probe_every_seconds": 60, "max_payload_bytes": 20, "probe_payload": {"n": "ä" * 10}},
            "probe_payload",
            "It has 28 bytes, this job type takes 20",
        ),
        ({"probe_every_seconds": 60, "probe_payload": {"n": float("nan")}}, "probe_payload", "Not JSON"),
        ({"probe_every_seconds": 60, "probe_payload": {"n": dt.date(2026, 1, 1)}}, "probe_payload", "Value must"),
        ({"probe_payload": {"n": float("inf")}}, "probe_payload", "Not JSON"),
    ],
)
def test_what_a_contract_may_not_say(fields: dict[str, Any], field: str, words: str) -> None:
    found = contract_rules.check(fields)
    assert list(found.errors) == [field]
    assert found.errors[field][0].startswith(words)


@pytest.mark.parametrize(
    "fields",
    [
        {"probe_every_seconds": 10},
        {"probe_every_seconds": 0, "schema": {"required": ["n"]}},
        {"probe_every_seconds": 60, "probe_payload": {"n": 1}, "schema": {"required": ["n"]}},
    ],
)
def test_what_a_contract_may_say(fields: dict[str, Any]) -> None:
    found = contract_rules.check(fields)
    assert found.ok
    assert not any("enforced" in text for text in found.warnings)
    words = contract_rules.promise_sentence({**defaults(), **fields})
    assert ("A probe goes the whole way every" in words) == bool(fields["probe_every_seconds"])


# What reading costs.


def test_the_read_side_is_one_statement(django_assert_num_queries: Callable[[int], Any]) -> None:
    a_type("a.job")
    make_type("b.job", tier_id=1, probe_every_seconds=EVERY)
    for _ in range(3):
        bury(begin("a.job")[1])
        probes.settle_open()
    with django_assert_num_queries(1):
        found = outcomes.probes()
    assert [(one.type, one.tier, one.failures) for one in found] == [("b.job", 1, 0), ("a.job", 2, 3)]
    with django_assert_num_queries(1):
        runs = outcomes.probe_runs(["a.job", "b.job"], limit=2)
    assert [run.id for run in runs["a.job"]] == list(ProbeRun.objects.order_by("id").values_list("id", flat=True))[-2:]
    assert "b.job" not in runs


def test_the_board_notices(django_assert_num_queries: Callable[[int], Any]) -> None:
    """Whoever polls with the version that it saw gets the new page when a run begins or settles."""
    a_type()
    seen = [outcomes.board().version]
    _, job = begin()
    seen.append(outcomes.board().version)
    bury(job)
    probes.settle_open()
    seen.append(outcomes.board().version)
    assert seen[0] < seen[1] < seen[2]
    # Two of them are the savepoint that stands for the transaction here.
    with django_assert_num_queries(5):
        assert not probes.sweep()
    assert outcomes.board().version == seen[2], "nothing happened, nothing is new"


def test_one_run_of_a_type_at_a_time_is_the_databases_word() -> None:
    a_type()
    begin()
    params = {"type": KIND, "tier": 2, "window": 30, "reason": "", "by": ""}
    assert probes._rows(probes._BEGIN, params) == []
    assert connection.in_atomic_block
