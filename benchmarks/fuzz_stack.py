"""The stack that `benchmarks.fuzz_api` fuzzes: job types, processes, and jobs in every state."""

import socket
from pathlib import Path
from uuid import UUID

from django.db import connection

from benchmarks import fuzz_handlers as kinds
from benchmarks.chaos.processes import Processes, until
from dlq.models import ReplayPlan
from jobsboard.api import keys
from queues import actions, contracts
from queues.accept import Item, enqueue_many
from queues.callback_tokens import callback_token
from queues.models import FailureCount, Job, JobType

PAUSED, STRICT, OFF = "fuzz.paused", "fuzz.strict", "fuzz.off"
TYPES = (kinds.DONE, kinds.DEAD, kinds.RETRY, kinds.AWAIT, kinds.SLOW, PAUSED, STRICT, OFF)


def prepare(scopes: str) -> str:
    """Make the job types and a key; returns the key."""
    awaited = {"success": "callback", "callback_secret_env": "FUZZ_SECRET", "confirm_within_seconds": 86400}
    for name, fields in {
        kinds.DONE: {"success": "reference", "redact": ["/card"]},
        kinds.DEAD: {},
        kinds.RETRY: {"max_attempts": 20},
        kinds.AWAIT: awaited,
        kinds.SLOW: {"hard_limit_seconds": 60},
        PAUSED: {"paused": True},
        STRICT: {"schema": {"type": "object", "required": ["n"]}, "max_payload_bytes": 2000},
        OFF: {"enabled": False},
    }.items():
        JobType.objects.update_or_create(name=name, defaults={"tier_id": 2, "success": "return", **fields})
    contracts.forget()
    return keys.issue_key(label="fuzz", scopes=scopes.split(","))[1]


def start(processes: Processes) -> int:
    """Start web, a worker and a scheduler; returns the port of the web once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    web = ["gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{port}", "--workers", "2", "--threads", "4"]
    processes.start("web", "-m", *web, "--timeout", "30", "--no-control-socket")
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "WARNING", "-c", "2"]
    processes.start("worker", "-m", "celery", "-A", "jobsboard", "worker", "-Q", "tier2", *flags)
    processes.start("scheduler", "manage.py", "scheduler")

    def answers() -> bool:
        with socket.socket() as one:
            return one.connect_ex(("127.0.0.1", port)) == 0

    if not until(answers, seconds=60):
        raise SystemExit("the web did not start")
    return port


def reach_every_state(states: set[str], *, each: int) -> None:
    """Accept jobs and see to it that some are in each state. Raises: SystemExit."""
    for name in TYPES[:-1]:
        enqueue_many([Item(type=name, payload={"n": n, "card": "4111"}, group=f"g{n % 3}") for n in range(each)])
    for more in ({"max_age": 0.2}, {"delay_seconds": 3600.0, "dedupe_key": "fuzz-delayed"}):
        enqueue_many([Item(type=PAUSED, payload={"n": 1}, **more)])
    for job_id in Job.objects.filter(type=PAUSED).values_list("id", flat=True)[:5]:
        actions.cancel_job(job_id, actor="fuzz", reason="to have some", source="fuzz")

    def reached() -> bool:
        return set(Job.objects.values_list("state", flat=True).distinct()) >= states

    if not until(reached, seconds=60):
        raise SystemExit(f"no job came to {states - set(Job.objects.values_list('state', flat=True).distinct())}")


def look() -> list[tuple[str, int, str]]:
    """Return some jobs of each state, the newest and a few others: (id, fence, state)."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id::text, fence, state FROM (SELECT id, fence, state, row_number() OVER (PARTITION BY state"
            " ORDER BY id DESC) AS n, count(*) OVER (PARTITION BY state) AS all_n FROM queues_job) AS t"
            " WHERE n <= 15 OR n > all_n - 5"
        )
        return list(cursor.fetchall())


def plans_and_groups() -> tuple[list[str], list[str]]:
    """Return ids of plans and of failure groups, the newest."""
    plans = ReplayPlan.objects.order_by("-id").values_list("id", flat=True)[:20]
    groups = FailureCount.objects.order_by("-id").values_list("id", flat=True)[:20]
    return [str(one) for one in plans], [str(one) for one in groups]


def token(job_id: str, fence: int) -> str:
    """Return the token of a callback address."""
    return callback_token(UUID(job_id), fence)


def errors_in(folder: Path) -> list[str]:
    """Return what the processes' logs say of errors."""
    return [
        f"{path.name}: {line[:300]}"
        for path in sorted(folder.glob("*.log"))
        if path.name != "schemathesis.log"
        for line in path.read_text(errors="replace").splitlines()
        if " ERROR " in line or line.startswith("Traceback")
    ]
