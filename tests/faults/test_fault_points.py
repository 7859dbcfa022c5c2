"""Every fault point, by kill, by error and by delay: what remains is whole, and told again nothing happens twice.

RELIABILITY.md B0 (L4): I-03, I-10, I-13, I-16, I-28, I-31, I-34, I-35. With `delay` the world goes on by an hour
while a process stands at the point: its leases are over, its jobs run elsewhere, and then it goes on.
"""

from __future__ import annotations

import datetime as dt
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import redis
from django.conf import settings as django_settings
from django.core.management import call_command

from jobsboard.alerts import defaults
from jobsboard.models import Alert, AlertRule, WebhookEndpoint
from jobsboard.testing import run_pending
from queues import broker, faults, lifecycle
from queues.actions import NotCancellable
from queues.faults import POINTS
from queues.models import Job, JobType, ProbeRun
from queues.scheduler import prune
from queues.states import JobState
from tests.factories import accept, fold_all, get, lose_lease, make_job, make_type, set_columns, sql
from tests.faults.child import Action, Told, tell
from tests.faults.history import judge
from tests.faults.stories import (
    ATOMIC,
    BREAKER_POINTS,
    CALLBACK,
    CHECKED,
    EFFECTS,
    HTTP,
    LIMITED,
    MERGING,
    PLAIN,
    PLAN_POINTS,
    SCHEDULE_POINTS,
    STEPS,
    STORIES,
)
from tests.old_days import days_ago, ids_of, make_old_job, make_partition

pytestmark = [pytest.mark.concurrency, pytest.mark.usefixtures("stage_set")]
S = JobState
ACTIONS: Final[tuple[Action, ...]] = ("kill", "error", "delay")
_ENV: Final = {"SHOP_SECRET": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"}
_CLOCK: Final = {"jobs_now": ("STABLE", "statement_timestamp()"), "jobs_clock": ("VOLATILE", "clock_timestamp()")}


def set_clock(interval: str) -> None:
    """Move the database's clock for every session."""
    for name, (kind, now) in _CLOCK.items():
        sql(
            f"CREATE OR REPLACE FUNCTION {name}() RETURNS timestamptz LANGUAGE sql {kind} PARALLEL SAFE AS"
            f" $$SELECT {now} + interval '{interval}'$$"
        )


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of effects."""
    monkeypatch.setenv(EFFECTS, str(tmp_path / "effects"))
    return tmp_path / "effects"


@pytest.fixture
def stage_set(transactional_db: None, log: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Job types, a table for atomic effects, no broker in this process (the story has one), no hints left over."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    _forget_hints()
    sql("CREATE TABLE IF NOT EXISTS fault_row (job_id uuid, run integer)")
    lasting = {"success": "reference", "max_attempts": 20, "poison_after": 20}
    for name in (PLAIN, ATOMIC, STEPS):
        make_type(name, **lasting)
    make_type(LIMITED, **lasting, concurrency=1, rate_per_second=1000.0)
    make_type(MERGING, **lasting, overlap="keep_last")
    make_type(CALLBACK, **{**lasting, "success": "callback", "confirm_within_seconds": 300})
    make_type(CHECKED, **{**lasting, "success": "check", "confirm_within_seconds": 300})
    definitions = [sql("SELECT pg_get_functiondef(%s::regproc)", name)[0][0] for name in _CLOCK]
    yield
    for definition in definitions:
        sql(definition)
    sql("DROP TABLE fault_row")
    _forget_hints()


def _forget_hints() -> None:
    """Empty the queue: behind hints of other tests a stage may have no room for its own."""
    with redis.Redis.from_url(django_settings.BROKER_URL) as client:
        client.delete("tier2")


@pytest.fixture
def target(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A service that takes jobs, and the keys that it was sent."""
    keys: list[str] = []

    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            keys.append(self.headers["Idempotency-Key"])
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b'{"ref": "re_1"}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    settings.OUTBOUND_ALLOWED_CIDRS = ["127.0.0.0/8"]
    for name, value in _ENV.items():
        monkeypatch.setenv(name, value)
    url = f"http://127.0.0.1:{server.server_port}/jobs"
    make_type(HTTP, handler="http", target_url=url, target_secret_env="SHOP_SECRET", success="reference")  # noqa: S106
    yield keys
    server.shutdown()
    server.server_close()


def _accepted(kind: str) -> Callable[[], tuple[Any, ...]]:
    return lambda: (accept(kind=kind)[0],)


def _handed_over(kind: str) -> Job:
    [job_id] = accept(kind=kind)
    STORIES["run"](job_id)
    job = get(job_id)
    assert job.state == S.AWAITING_CONFIRMATION
    return job


def _lost() -> tuple[Any, ...]:
    [job_id] = accept(kind=PLAIN)
    lifecycle.claim([job_id], worker="gone/1.1")
    lose_lease(job_id)
    return ("rescue",)


def _stale() -> tuple[Any, ...]:
    [job_id] = accept(kind=PLAIN)
    set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    return ("expire",)


def _overdue() -> tuple[Any, ...]:
    past = "jobs_now() - interval '1 s'"
    set_columns(_handed_over(CALLBACK).id, raw_confirm_by=past, raw_due_at=past)
    return ("give_up",)


def _dead() -> tuple[Any, ...]:
    [job_id] = accept(kind=PLAIN, dedupe_key="the-key")
    set_columns(job_id, raw_expires_at="jobs_now() - interval '1 s'")
    lifecycle.expire([job_id])
    return (job_id,)


def _with_token() -> tuple[Any, ...]:
    job = _handed_over(CALLBACK)
    return job.id, job.fence


def _due_check() -> tuple[Any, ...]:
    job = _handed_over(CHECKED)
    set_columns(job.id, raw_due_at="jobs_now() - interval '1 s'")
    return (job.id,)


@dataclass(frozen=True)
class Case:
    """A story with what must be there before it. `answers`: what it may say when it is told again."""

    name: str
    story: str
    points: str
    setup: Callable[[], tuple[Any, ...]] = tuple
    ends: frozenset[str] = field(default=frozenset({"confirmed"}))


_ANY: Final = frozenset({"confirmed", "dead", "expired", "cancelled"})
CASES: Final = (
    Case("accept", "accept", "accept.before accept.after publish.before publish.inside"),
    Case("merge", "merge", "overlap.inserted cancel.before cancel.after", lambda: _accepted(MERGING)()[1:],
         frozenset({"cancelled", "confirmed"})),
    Case("run", "run", "claim.before claim.after body.before body.after finish.before finish.after", _accepted(PLAIN)),
    Case("limited", "run", "claim_limited.before claim_limited.after body.before finish.after", _accepted(LIMITED)),
    Case("atomic", "run", "body.before body.after finish.before finish.after", _accepted(ATOMIC)),
    Case("steps", "run", "step.done step.before step.after", _accepted(STEPS)),
    Case("beat", "beat", "heartbeat.before heartbeat.after", _accepted(PLAIN)),
    Case("rescue", "sweep", "rescue.selected rescue.before rescue.after", _lost),
    Case("expire", "sweep", "expire.selected expire.before expire.after", _stale, frozenset({"expired"})),
    Case("give_up", "sweep", "give_up.selected give_up.before give_up.after", _overdue, frozenset({"dead"})),
    Case("stage", "stage", "stage.selected publish.inside", lambda: _accepted(PLAIN)()[1:]),
    Case("fold", "fold", "fold.before fold.after", lambda: _accepted(PLAIN)()[1:]),
    Case("cancel", "cancel", "cancel.before cancel.after cancel.committed", _accepted(PLAIN),
         frozenset({"cancelled", "confirmed"})),
    Case("replay", "replay", "replay.before replay.after replay.committed", _dead, frozenset({"expired", "confirmed"})),
    Case("confirm", "confirm", "confirm.before confirm.after confirm.committed", lambda: (_handed_over(CALLBACK).id,),
         frozenset({"confirmed", "dead"})),
    Case("token", "token", "confirm.before confirm.after", _with_token, frozenset({"confirmed", "dead"})),
    Case("provider", "provider", "callback.kept confirm.before confirm.after",
         lambda: (_handed_over(CALLBACK).reference,), frozenset({"confirmed", "dead"})),
    Case("check", "ask", "check_claim.before check_claim.after check_finish.before check_finish.after", _due_check),
)  # fmt: skip


def _heal() -> None:
    """Let everything happen that is due within the max age of every job."""
    run_pending(ahead=dt.timedelta(days=8))


def _go_on() -> None:
    """An hour passes, in which others do what is due."""
    set_clock("1 hour")
    run_pending()


def _tell(story: str, *arguments: Any, point: str, action: Action, log: Path) -> Told:
    told = tell(story, *arguments, point=point, action=action, env={**_ENV, EFFECTS: str(log)}, meanwhile=_go_on)
    assert told.struck, f"{story} never came to {point}"
    return told


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    ("case", "point"), [pytest.param(case, p, id=f"{case.name}-{p}") for case in CASES for p in case.points.split()]
)
def test_a_fault_loses_nothing_and_doubles_nothing(case: Case, point: str, action: Action, log: Path) -> None:
    """I-03, I-10, I-13, I-16, I-28, I-31, I-34, I-35: killed, failed or held up at any point, and then told again."""
    arguments = case.setup()
    told = _tell(case.story, *arguments, point=point, action=action, log=log)
    again = None
    try:
        again = STORIES[case.story](*arguments)
    except NotCancellable:
        # Held up before its statement, it came too late: the job has run.
        assert action == "delay"
    if case.story in ("accept", "merge", "replay") and told.answer is not None:
        assert again == told.answer, "whoever asks again gets the same job"
    _heal()
    judge(log)
    if case.story in ("accept", "replay"):
        assert Job.objects.filter(state=S.CONFIRMED).count() == 1
    assert set(Job.objects.values_list("state", flat=True)) <= case.ends


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", ["accept.before", "accept.after", "publish.before"])
def test_an_accept_over_http(point: str, action: Action, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """I-03: a producer that got no 2xx asks again with its key, and there is one job; a 2xx names it for good."""
    call_command("api_key", "create", "--label", "test", "--scopes", "jobs:write", "--types", "fault.*")
    token = capsys.readouterr().out.split()[-1]
    told = _tell("accept_by_api", token, point=point, action=action, log=log)
    stored = set(map(str, Job.objects.values_list("id", flat=True)))
    if told.answer is None:
        # Inside the transaction nothing is stored yet; after it the answer is lost, the job is not.
        assert len(stored) == (point == "publish.before")
        if action == "error":
            assert told.error is not None
            assert "503" in told.error
    else:
        assert stored == {told.answer}
    again = STORIES["accept_by_api"](token)
    assert again == (told.answer or again)
    _heal()
    judge_keys = Job.objects.filter(dedupe_key="the-key").values_list("id", flat=True)
    assert list(map(str, judge_keys)) == [again]
    assert get(again).state == S.CONFIRMED


@pytest.mark.parametrize("action", ACTIONS)
def test_an_answer_that_was_not_read(action: Action, log: Path, target: list[str]) -> None:
    """The service has done it and we do not know: it is asked again under the same key, which makes it one effect."""
    [job_id] = accept(kind=HTTP)
    _tell("run", job_id, point="http.answered", action=action, log=log)
    _heal()
    assert get(job_id).state == S.CONFIRMED
    assert len(target) == 2
    assert set(target) == {get(job_id).idempotency_key}


@pytest.mark.parametrize(
    ("point", "action"),
    [("accept.before", "kill"), ("accept.after", "kill"), ("accept.after", "error"), ("accept.after", "delay")],
)
def test_a_scheduler_that_dies_while_it_sends_a_probe(point: str, action: Action, log: Path) -> None:
    """Between the claim of a due type and the commit of its job: no run without its job, no job without its run."""
    JobType.objects.filter(name=PLAIN).update(probe_every_seconds=60)
    sql("INSERT INTO queues_probe (type, next_at, failures) VALUES (%s, jobs_now() - interval '1 s', 0)", PLAIN)
    _tell("probe", point=point, action=action, log=log)
    STORIES["probe"]()
    pairs = set(ProbeRun.objects.exclude(job_id=None).values_list("job_id", flat=True))
    assert pairs == set(Job.objects.filter(probe=True).values_list("id", flat=True))
    _heal()
    STORIES["probe"]()
    judge(log)
    # An error of one type is a failed run; held up for an hour, its window is over. Else nothing is seen of it.
    outcomes = list(ProbeRun.objects.order_by("id").values_list("outcome", flat=True))
    assert outcomes[0] == ("passed" if action == "kill" else "failed")
    assert len(outcomes) == 1 or action == "delay", "an hour on another one was due"
    assert Job.objects.filter(probe=True).count() == len(pairs)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("point", ["alerts.read", "alerts.applied"])
def test_a_scheduler_that_dies_while_it_opens_an_alert(point: str, action: Action, log: Path) -> None:
    """I-36: whoever comes next opens it, and each endpoint is told once: alert and deliveries are one commit."""
    WebhookEndpoint.objects.create(name="ops", url_sealed=b"", url_shown="https://hooks.example")
    make_job(S.PROCESSING, type=PLAIN, raw_due_at="jobs_now() - interval '1 minute'")
    defaults.ensure()
    AlertRule.objects.filter(default_key="limbo").update(for_seconds=0, edited=True)
    told = _tell("alerts", point=point, action=action, log=log)
    if action == "kill":
        assert not Alert.objects.filter(key="limbo:all").exists()
    assert (told.error is not None) == (action == "error")
    for _ in range(2):
        sql("UPDATE jobsboard_alertclock SET evaluated_at = evaluated_at - interval '1 minute'")
        STORIES["alerts"]()
    [alert] = Alert.objects.filter(key="limbo:all")
    assert list(alert.deliveries.values_list("event", "sequence")) == [("alert.firing", 1)]


@pytest.mark.parametrize("action", ["kill", "error"])
@pytest.mark.parametrize("point", ["prune_day.before", "prune_day.after", "prune_swap.before", "prune_swap.after"])
def test_a_prune_that_is_interrupted(point: str, action: Action, log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-41: killed in the middle, a prune has taken nothing that stays, and the next one ends its work."""
    monkeypatch.setattr(prune, "SWAP_FROM", prune.SWAP_FROM)
    day = days_ago(60)
    make_partition(day)
    try:
        dead = make_old_job(day, S.DEAD)
        waiting = make_old_job(day, S.RETRYING)
        gone = [make_old_job(day, key=f"key-{n}").id for n in range(3)]
        _tell("prune_all", point=point, action=action, log=log)
        assert {dead.id, waiting.id} <= ids_of(day)
        STORIES["prune_all"]()
        assert ids_of(day) == {dead.id, waiting.id}
        assert not set(gone) & {i for (i,) in sql("SELECT job_id FROM queues_dedupekey")}
    finally:
        sql("DELETE FROM queues_job")
        sql(f"DROP TABLE IF EXISTS queues_job_{day:%Y%m%d}")


def test_every_point_is_struck() -> None:
    """Each point of the code is one of the list, and each of the list is struck above."""
    struck = {point for case in CASES for point in case.points.split()} | {
        "http.answered",
        "alerts.read",
        "alerts.applied",
    }
    struck |= {*PLAN_POINTS, *BREAKER_POINTS, *SCHEDULE_POINTS}
    struck |= {f"prune_{name}.{moment}" for name in ("day", "swap") for moment in ("before", "after")}
    assert struck == POINTS
    root = Path(faults.__file__).parent
    text = "".join(
        path.read_text() for app in (root, *map(root.with_name, ("dlq", "jobsboard"))) for path in app.rglob("*.py")
    )
    named = set(re.findall(r'fault(?:\(|, )"([a-z_.]+)"', text))
    stated = set(re.findall(r'transition\(\s*"([a-z_]+)"', text))
    assert named | {f"{name}.{moment}" for name in stated for moment in ("before", "after")} == POINTS


def test_nothing_is_armed_by_itself() -> None:
    """Outside a test a point does nothing, and a point that is not there cannot be armed."""
    fold_all()
    assert faults._armed == {}
    with pytest.raises(ValueError, match="no fault point"):
        faults.arm("finish.whenever", lambda: None)
