"""Candidate code on historical payloads: what is found, and that nothing of it is left behind."""

from __future__ import annotations

import datetime as dt
import io
import json
import os
import select
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

import pytest
from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import connection
from redis import Redis

from dlq.replay_test import comparing, database, run, sampling, words
from dlq.replay_test.child import Seen
from dlq.replay_test.comparing import Finding, Judgement
from dlq.replay_test.report import Report
from dlq.replay_test.sampling import Recorded
from queues.models import Job
from queues.states import JobState, Resolution
from tests.dlq import candidates
from tests.factories import TYPE, make_job, make_type, sql
from tests.old_days import days_ago, make_old_job, make_partition

S = JobState
HERE = "tests.dlq.candidates"
WEEK = dt.timedelta(days=7)
WALLED = sys.platform == "linux" and "Seccomp:\t0" in Path("/proc/self/status").read_text(encoding="ascii")
"""Where nobody has walled us in already, the wall in the kernel must stand; elsewhere native ways out are not tried."""


@pytest.fixture
def planted(transactional_db: None) -> Iterator[None]:
    """A table that candidates write to, and that nothing may be in afterwards."""
    sql("CREATE TABLE planted (n text)")
    yield
    assert sql("SELECT count(*) FROM planted") == [(0,)], "a write of a candidate was left behind"
    sql("DROP TABLE planted")


@contextmanager
def listening() -> Iterator[None]:
    """Count who comes: nobody. One port for streams and datagrams."""
    with socket.socket() as streams, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
        streams.bind(("127.0.0.1", 0))
        streams.listen()
        candidates.PORT = streams.getsockname()[1]
        datagrams.bind(("127.0.0.1", candidates.PORT))
        yield
        came, _, _ = select.select([streams, datagrams], [], [], 0.2)
        assert came == [], "a candidate reached the outside"


def payment(n: int, **values: Any) -> str:
    return json.dumps({"cents": 4711 + n, "currency": "EUR", "email": f"erika{n}@example.org", **values})


def recorded_payments() -> list[UUID]:
    """Make a history of `candidates.old`: 18 confirmed, two of them with an amount as text; 4 that it refused."""
    evidence = json.dumps({"kind": "reference", "ref": "tx-1", "late": False})
    failure = json.dumps([{"error_class": "UnknownCurrency", "message": "no currency XTS", "traceback": "t"}])
    confirmed: dict[str, Any] = {"raw_evidence": f"'{evidence}'", "raw_result": """'{"cents": 1}'"""}
    dead: dict[str, Any] = {"raw_failures": f"'{failure}'", "fingerprint": "of another place"}
    odd = [make_job(S.CONFIRMED, payload=payment(n, cents=f"{n}00.70"), **confirmed).id for n in (1, 2)]
    for n in range(16):
        make_job(S.CONFIRMED, payload=payment(n), **confirmed)
    for n in range(4):
        make_job(S.DEAD, payload=payment(n, currency="XTS"), **dead)
    return odd


def history(ways: Sequence[str]) -> dict[str, UUID]:
    """Make a confirmed job for each way."""
    return {way: make_job(S.CONFIRMED, payload=json.dumps({"way": way})).id for way in ways}


def tried(name: str, **options: Any) -> Report:
    """Run a replay test of a candidate of this folder."""
    asked = {"type": TYPE, "back": WEEK, "size": 500, "handler": f"{HERE}:{name}", "least": 1, **options}
    return run.run(run.Options(**asked))


def by_way(report: Report, ids: Mapping[str, UUID]) -> dict[str, Finding]:
    found = {finding.job_id: finding for finding in report.findings}
    return {way: found[job_id] for way, job_id in ids.items()}


def command(*arguments: str) -> tuple[int, str]:
    """Call the command; returns its exit code and what it prints."""
    out = io.StringIO()
    try:
        call_command("replay_test", "--type", TYPE, *arguments, stdout=out, stderr=out)
    except SystemExit as end:
        return int(str(end.code)), out.getvalue()
    except CommandError as error:
        return error.returncode, f"{out.getvalue()}{error}"
    return 0, out.getvalue()


# What the issue wants to see.


def test_a_planted_regression_is_found_and_the_old_code_passes(planted: None) -> None:
    """Must show 5: exit code 1 with the two jobs by name, exit code 0 for the code that made the history."""
    make_type(success="reference")
    odd = recorded_payments()
    code, text = command("--handler", f"{HERE}:old", "--json")
    passed = json.loads(text)
    assert (code, passed["exit_code"], passed["regression"]["count"]) == (0, 0, 0)
    assert (passed["chosen"], passed["judged"], passed["same"]) == (22, 22, 22), "refusals of then are refusals now"
    code, text = command("--handler", f"{HERE}:regressed", "--json")
    found = json.loads(text)
    assert (code, found["regression"]["count"], found["same"]) == (1, 2, 20)
    assert {one["job_id"] for one in found["regression"]["shown"]} == set(map(str, odd))
    first = found["regression"]["shown"][0]
    assert first["error_class"] == "ValueError"
    assert first["frame"].startswith(f"{HERE}:regressed:")
    assert found["walls"]["kernel"] or not WALLED


def test_no_value_of_a_payload_is_printed(planted: None) -> None:
    """Not by a message, nor by what the candidate prints; the words around it stay."""
    make_type(success="reference")
    recorded_payments()
    code, text = command("--handler", f"{HERE}:regressed")
    assert code == 1
    assert "bad amount # of #" in text
    assert "ValueError" in text
    for secret in ("100.70", "200.70", "erika", "ERIKA", "example.org", "EXAMPLE.ORG", "hunter2", "4711"):
        assert secret not in text


def test_as_a_ci_step_it_ends_with_its_code(planted: None) -> None:
    """A real `manage.py`: 1 with the regression and the table in words, the registered handler by default."""
    make_type(success="reference")
    recorded_payments()
    url = _database_url()
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(settings.BASE_DIR)}
    arguments = [sys.executable, "manage.py", "replay_test", "--type", TYPE, "--handler", f"{HERE}:regressed"]
    done = subprocess.run(
        arguments, cwd=settings.BASE_DIR, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 1, done.stderr
    assert "2 regressions. Exit code 1." in done.stdout
    assert "erika" not in done.stdout + done.stderr


def _database_url() -> str:
    known = connection.settings_dict
    secret = f":{known['PASSWORD']}" if known["PASSWORD"] else ""
    if str(known["HOST"]).startswith("/"):
        return f"postgresql://{known['USER']}{secret}@/{known['NAME']}?host={known['HOST']}&port={known['PORT']}"
    return f"postgresql://{known['USER']}{secret}@{known['HOST']}:{known['PORT']}/{known['NAME']}"


def test_a_planted_outbound_call_leaves_no_trace(planted: None, tmp_path: Path) -> None:
    """Must show 5: no way out of the process is open, and each try is told though the code hides it."""
    make_type()
    ids = history([way for way in candidates.OUT if WALLED or not way.startswith("native")])
    candidates.OUTSIDE = tmp_path / "outside"
    with listening():
        report = tried("leaves")
    assert report.kernel_wall or not WALLED
    for way, finding in by_way(report, ids).items():
        assert finding.judgement is Judgement.NOT_JUDGED, way
        assert f"refused: {candidates.OUT[way][0]}" in finding.why, way
    assert not candidates.OUTSIDE.exists()
    assert report.exit_code == 2, "a candidate of which nothing could be judged is not green"


def test_what_was_open_before_the_fork_leads_nowhere(planted: None, tmp_path: Path) -> None:
    """Connections and files that a module opened when it was imported: what is written to them does not arrive."""
    make_type()
    history(["once"])
    file = tmp_path / "log"
    ours, theirs = socket.socketpair()
    with ours, theirs, file.open("wb") as log:
        candidates.INHERITED[:] = [theirs.fileno(), log.fileno()]
        report = tried("uses_inherited")
        assert report.counts == {Judgement.SAME: 1}
        assert select.select([ours], [], [], 0.1)[0] == []
    assert file.read_bytes() == b""


def test_a_planted_database_write_leaves_no_trace(planted: None) -> None:
    """Must show 5: whatever way the code takes to write and to commit, and messages to workers as well."""
    make_type()
    ids = history(list(candidates.WRITES))
    jobs, waiting = Job.objects.count(), _waiting()
    report = tried("writes")
    found = by_way(report, ids)
    for way, (kind, _) in candidates.WRITES.items():
        if kind:
            assert found[way].judgement is Judgement.NOT_JUDGED, way
            assert kind in found[way].why, way
        else:
            assert found[way].judgement is Judgement.SAME, (way, found[way])
    assert (Job.objects.count(), _waiting()) == (jobs, waiting)
    left = "SELECT to_regclass('planted_too')::text, (SELECT count(*) FROM auth_group WHERE name = 'planted')"
    assert sql(left) == [(None, 0)]
    assert report.hooks == 1
    assert report.messages == 1


def _waiting() -> int:
    with Redis.from_url(settings.BROKER_URL) as broker:
        return int(broker.dbsize())


def test_openly_failing_writes_fail_for_no_other_reason(planted: None) -> None:
    """The ways of writing that a worker allows end well: it is the sandbox that leaves nothing, not an error."""
    make_type()
    ids = history([way for way, (kind, _) in candidates.WRITES.items() if not kind])
    found = by_way(tried("writes_openly"), ids)
    assert {way: f"{one.judgement} {one.message}" for way, one in found.items()} == dict.fromkeys(ids, "same ")


def test_read_only_refuses_instead_of_rolling_back(planted: None) -> None:
    """A write is not judged then, also one whose error the code keeps to itself; a read is."""
    make_type()
    ids = history(["plain", "atomic", "said", "second", "celery"])
    found = by_way(tried("writes", read_only=True), ids)
    assert {way for way, one in found.items() if "write" in one.why} == {"plain", "atomic", "said"}
    assert found["celery"].judgement is Judgement.SAME


def test_what_kills_its_process_is_one_finding(planted: None) -> None:
    """An exit, a crash, a hang, and too much memory; the payloads after it are run all the same."""
    make_type(hard_limit_seconds=1, soft_limit_seconds=0)
    ids = history(["exit", "well", "signal", "hang", "memory", "leave"])
    later = history(["well"])
    report = tried("ends", memory=256 << 20)
    found = by_way(report, ids)
    said = {way: (one.judgement, one.error_class, one.message) for way, one in found.items()}
    regression, same = Judgement.REGRESSION, Judgement.SAME
    assert said == {
        "well": (same, "", ""),
        "exit": (regression, "WorkerLost", "its process ended with code 3"),
        "signal": (regression, "WorkerLost", "its process was killed by signal 11"),
        "hang": (regression, "HardTimeLimitExceeded", ""),
        "memory": (regression, "MemoryError", ""),
        "leave": (regression, "SystemExit", "1"),
    }
    assert by_way(report, later)["well"].judgement is same
    assert report.seconds < 25, "the hang was ended at its limit of one second"
    assert report.exit_code == 1


def test_inside_it_is_as_in_a_worker(planted: None) -> None:
    """What a worker allows goes on, what it refuses is refused: transactions, constraints, steps, times, scratch."""
    make_type()
    ids = history(list(candidates.WORKER))
    found = by_way(tried("as_in_a_worker"), ids)
    expected = {way: error for way, (error, _) in candidates.WORKER.items()}
    assert {way: one.error_class for way, one in found.items()} == expected
    assert all((one.judgement is Judgement.REGRESSION) == bool(expected[way]) for way, one in found.items())
    assert Job.objects.filter(progress__isnull=False).count() == 0


# What can be judged.


def test_a_stub_makes_a_call_to_the_outside_judged(planted: None) -> None:
    """Without it exit code 2 and no regression; with it all are judged; a stub that fails is told."""
    make_type(success="reference")
    recorded_payments()
    with listening():
        without = tried("charge")
        stubbed = tried("charge", stub=f"{HERE}:stubbed")
        broken = tried("charge", stub=f"{HERE}:broken_stub")
    assert (without.judged, without.exit_code) == (0, 2)
    assert without.counts[Judgement.REGRESSION] == 0
    # Four that were refused then end well, and int("100.70") does not.
    assert stubbed.counts == {Judgement.SAME: 16, Judgement.IMPROVEMENT: 4, Judgement.REGRESSION: 2}
    assert (broken.judged, broken.exit_code) == (0, 2)
    assert broken.findings[0].why == "the stub failed: RuntimeError"


def test_what_was_refused_and_ends_well_is_an_improvement(planted: None) -> None:
    """It is listed and does not fail the gate; a result of another shape is a note."""
    make_type(success="reference")
    recorded_payments()
    report = tried("widened")
    assert report.counts == {Judgement.SAME: 18, Judgement.IMPROVEMENT: 4}
    assert report.exit_code == 0
    assert "Improvements (failed then, end well now): 4" in "\n".join(report.lines())


def test_a_payload_that_todays_contract_refuses_is_a_finding(planted: None) -> None:
    """A schema that became stricter is a regression of what was confirmed, and its words hold no value."""
    schema = {"type": "object", "properties": {"cents": {"type": "integer"}}}
    make_type(success="reference", schema=schema)
    odd = recorded_payments()
    report = tried("old")
    found = report.of(Judgement.REGRESSION)
    assert [finding.job_id for finding in found] == odd
    assert {finding.error_class for finding in found} == {"PayloadInvalid"}
    assert "00.70" not in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("arguments", "words_of_it"),
    [
        (("--handler", f"{HERE}:old", "--least", "23"), "only 22 jobs"),
        (("--handler", f"{HERE}:charge", "--require", "0"), "not one payload could be judged"),
        (("--handler", f"{HERE}:missing"), "no function 'missing'"),
        (("--handler", "no.such.module:f"), "cannot be imported"),
        (("--handler", "nonsense"), "not of the form"),
        ((), "no handler is registered"),
        (("--handler", f"{HERE}:old", "--since", "1m", "--type", "no.type"), "there is no job type"),
    ],
)
def test_what_cannot_be_judged_is_exit_code_2(planted: None, arguments: tuple[str, ...], words_of_it: str) -> None:
    """Unknown is never green, and never a regression."""
    make_type(success="reference")
    recorded_payments()
    candidates.PORT = 9
    code, text = command(*arguments)
    assert code == 2
    assert words_of_it in text


def test_without_a_sandbox_nothing_is_run(planted: None) -> None:
    """A pooler takes no settings of a session, so the server would not refuse: exit code 2, in words and in JSON."""
    make_type(success="reference")
    recorded_payments()
    with mock.patch.object(database, "_OPTIONS", ""):
        code, text = command("--handler", f"{HERE}:old", "--json")
    assert code == 2
    first = json.loads(text.splitlines()[0])
    assert first["exit_code"] == 2
    assert "a pooler stands between" in first["verdict"]


def test_its_own_fault_is_no_regression(transactional_db: None) -> None:
    """Python ends with 1 on an exception; the command does not."""
    with mock.patch.object(run, "run", side_effect=ZeroDivisionError("a fault of ours")):
        code, text = command()
    assert code == 2
    assert "a fault of ours" in text


def test_what_is_not_run_in_time_is_not_judged(planted: None) -> None:
    """The time of a CI step is bounded, and what was left out is not green."""
    make_type(success="reference")
    recorded_payments()
    report = tried("old", within=dt.timedelta(0))
    assert (report.not_run, report.judged, report.exit_code) == (22, 0, 2)


def test_an_http_target_is_not_judged_here(transactional_db: None) -> None:
    """Its code is elsewhere."""
    make_type(handler="http", target_url="https://shop.example/jobs")
    code, text = command()
    assert code == 2
    assert "HTTP target" in text


def test_a_share_below_the_wanted_is_exit_code_2(planted: None) -> None:
    """Half of the payloads needs the outside: 0.5 is enough, 0.6 is not."""
    make_type()
    candidates.OUTSIDE = Path("/nowhere/outside")
    for n in range(4):
        make_job(S.CONFIRMED, payload=json.dumps({"way": "file" if n % 2 else "none"}))
    assert (tried("leaves").exit_code, tried("leaves", require=0.6).exit_code) == (0, 2)


# The sample.


def test_a_sample_is_spread_and_has_dead_ones_of_every_failure(transactional_db: None) -> None:
    """Not the newest N: every day is there, a storm leaves room for other failures, and dead ones leave room too."""
    kind = make_type().name
    days = [days_ago(back) for back in (6, 4, 2)]
    known = {
        str(part)
        for (part,) in sql(
            "SELECT inhrelid::regclass FROM pg_inherits WHERE inhparent::regclass = 'queues_job'::regclass"
        )
    }
    made = [make_partition(day) for day in days if f"queues_job_{day:%Y%m%d}" not in known]
    try:
        by_day = {day: {make_old_job(day).id for _ in range(25)} for day in days}
        rare = {make_job(S.DEAD, fingerprint="rare", reason="rejected").id for _ in range(2)}
        storm = {make_job(S.DEAD, fingerprint="storm").id for _ in range(30)}
        resolved = make_job(S.DEAD, fingerprint="old", resolution=Resolution.IGNORED.value).id
        erased = make_job(S.CONFIRMED, raw_erased_at="jobs_clock()", payload=None).id
        others = {
            make_job(S.EXPIRED).id, make_job(S.ACCEPTED).id, make_job(S.CONFIRMED, probe=True).id,
            make_job(S.DEAD, reason="stale").id,
        }  # fmt: skip
        sampled = sampling.take(kind, back=WEEK, size=40, seed=3)
        again = sampling.take(kind, back=WEEK, size=40, seed=3)
        everything = sampling.take(kind, back=WEEK, size=500)
    finally:
        for part in made:
            sql(f"ALTER TABLE queues_job DETACH PARTITION {part}")
            sql(f"DROP TABLE {part}")
    ids = {job.id for job in sampled.jobs}
    assert len(ids) == 40
    assert all(4 <= len(ids & of_day) <= 20 for of_day in by_day.values()), "each day has its part"
    assert rare <= ids
    assert len(ids & storm) == 12 - 2 - (resolved in ids), "30 % are dead at most, and failures take turns"
    assert not ids & (others | {erased})
    assert {job.id for job in again.jobs} == ids, "the same seed chooses the same"
    assert len(everything.jobs) == 75 + 30 + 2 + 1
    assert everything.erased == 1


def test_reads_of_a_sample_are_bounded(transactional_db: None, django_assert_max_num_queries: Any) -> None:
    """A type with many jobs and few that count costs a number of rows that the sample's size gives, not the type's."""
    kind = make_type().name
    sql(
        "INSERT INTO queues_job (id, type, tier, contract_version, attempt_limit, window_seconds, due_at, ready_at,"
        " expires_at, accepted_at, request_hash, idempotency_key, root, payload)"
        " SELECT id, %s, 2, 1, 5, 60, now, now, now + interval '7 days', now, sha256('{}'), 'jb_' || id, id, '{}'"
        " FROM (SELECT jobs_uuid7() AS id, jobs_clock() AS now FROM generate_series(1, 3000)) AS t",
        kind,
    )
    with django_assert_max_num_queries(4 * sampling.SLICES + 10):
        sampled = sampling.take(kind, back=WEEK, size=10)
    assert sampled.jobs == []
    assert sampled.seen <= 10 * sampling.ROWS_PER_JOB


# Judging.

JOB = Recorded(
    id=uuid4(), state="confirmed", reason=None, fingerprint=None, evidence={"kind": "reference", "ref": "r"},
    reference=None, result=None, failures=(), idempotency_key="k", group=None, trace=None, age=1.0, left=60.0,
)  # fmt: skip
DEAD = replace(JOB, state="dead", reason="permanent_error", evidence=None, fingerprint="f1")
RAISED = Seen(ended="raised", error_class="Boom", signature="s1", fingerprints=("f2",))
WELL = Seen(ended="returned", returned="Confirmed", has_reference=True)
NOTHING = Seen(ended="returned", returned="None")
BOOM = {"error_class": "Boom", "message": "no 12", "traceback": "t"}
AGAIN = Seen(ended="raised", error_class="Boom", signature=words.signature("Boom", "no 99"))


class Contract:
    """What a handler has to return."""

    def __init__(self, success: str = "reference", on_unconfirmed: str = "dead") -> None:
        self.success, self.on_unconfirmed = success, on_unconfirmed


@pytest.mark.parametrize(
    ("job", "seen", "promise", "judgement"),
    [
        (JOB, WELL, Contract(), "same"),
        (JOB, RAISED, Contract(), "regression"),
        (JOB, NOTHING, Contract(), "regression"),
        (JOB, NOTHING, Contract(on_unconfirmed="check_again"), "regression"),
        (JOB, Seen(ended="crashed"), Contract(), "regression"),
        (JOB, Seen(ended="over_time"), Contract(), "regression"),
        (replace(JOB, evidence={"kind": "return", "ref": None}), NOTHING, Contract("return"), "same"),
        (replace(JOB, evidence={"kind": "return", "ref": "r"}), NOTHING, Contract("return"), "regression"),
        (replace(JOB, evidence={"kind": "callback", "ref": "x"}), NOTHING, Contract("callback"), "same"),
        (replace(JOB, evidence={"kind": "callback"}, reference="x"), NOTHING, Contract("callback"), "regression"),
        # It failed so once before it ended well, and may end well again.
        (replace(JOB, failures=(BOOM,)), AGAIN, Contract(), "not_judged"),
        (replace(JOB, failures=(BOOM,)), RAISED, Contract(), "regression"),
        (DEAD, WELL, Contract(), "improvement"),
        (DEAD, RAISED, Contract(), "changed"),
        (DEAD, Seen(ended="raised", fingerprints=("f0", "f1")), Contract(), "same"),
        (replace(DEAD, failures=(BOOM,)), AGAIN, Contract(), "same"),
        (replace(DEAD, reason="poison"), Seen(ended="crashed"), Contract(), "same"),
        (replace(DEAD, reason="time_limit"), Seen(ended="over_time"), Contract(), "same"),
        (replace(DEAD, reason="no_evidence"), NOTHING, Contract(), "same"),
        (replace(DEAD, reason="no_evidence"), WELL, Contract(), "improvement"),
        (replace(DEAD, reason="no_evidence"), RAISED, Contract(), "regression"),
        # Rejected from outside: the handler had done its part. By the handler: it had not.
        (replace(DEAD, reason="rejected", failures=({**BOOM, "traceback": ""},)), WELL, Contract(), "same"),
        (replace(DEAD, reason="rejected", failures=({**BOOM, "traceback": ""},)), RAISED, Contract(), "regression"),
        (replace(DEAD, reason="rejected", failures=(BOOM,)), WELL, Contract(), "improvement"),
    ],
)
def test_each_pair_of_then_and_now(job: Recorded, seen: Seen, promise: Contract, judgement: str) -> None:
    """What is a regression and what is not; and none of them is judged once the outside was tried."""
    assert comparing.judge(job, seen, promise).judgement == judgement
    outside = Seen(**{name: getattr(seen, name) for name in seen.__struct_fields__} | {"touched": ("network",)})
    assert comparing.judge(job, outside, promise).judgement is Judgement.NOT_JUDGED


@pytest.mark.parametrize(
    ("text", "payload", "shown"),
    [
        ("'amount_cents'", {"cents": 5}, "'amount_cents'"),
        ("no customer Max MUSTER", {"name": "Max Muster"}, "no customer #"),
        ("no customer Muster here", {"name": "Max Muster"}, "no customer # here"),
        ("a of b", {"x": ["a"]}, "# of b"),
        ("HTTP 500 for 1234.50", {}, "HTTP 500 for #"),
        ("first\nDETAIL: Key (email)=(a@b.c)", {}, "first"),
        ("true and null", {"a": True, "b": None}, "true and null"),
        ("", {"a": "b"}, ""),
    ],
)
def test_messages_are_scrubbed(text: str, payload: Any, shown: str) -> None:
    """Nothing that the payload holds, nor long numbers; the rest can be read."""
    assert words.scrub(text, payload) == shown


def test_many_regressions_are_counted_and_twenty_are_shown() -> None:
    """In the text and in the JSON."""
    findings = [comparing.judge(replace(JOB, id=uuid4()), RAISED, Contract()) for _ in range(25)]
    now = dt.datetime(2026, 11, 22, tzinfo=dt.UTC)
    report = Report(
        type=TYPE, candidate="a:b", contract_version=1, stub="", read_only=False, kernel_wall=False, since=now,
        until=now, rows_seen=25, erased=0, chosen=25, not_run=0, seconds=1.0, findings=findings, hooks=0, messages=0,
        least=20, require=0.5,
    )  # fmt: skip
    text = "\n".join(report.lines())
    assert Counter(line[:3] for line in text.splitlines())["  -"] == 20 + 4
    assert "and 5 more" in text
    assert "NO kernel wall" in text
    shown = report.as_json()["regression"]
    assert (shown["count"], len(shown["shown"])) == (25, 20)
