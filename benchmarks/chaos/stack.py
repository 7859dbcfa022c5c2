"""The stack that is shot at: job types, processes with wires and clocks of their own, and the harness's own tables.

Not here: PostgreSQL and Valkey, which `jobsboard.local isolated` starts and restarts.
"""

import os
import random
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import django
import redis
from django.db import connection

from benchmarks.chaos.callbacks import CONFIRM_SECONDS
from benchmarks.chaos.clock import HOURS, Clocks
from benchmarks.chaos.handlers import ATOMIC, CALLBACK, CANCELLED, CHECKED, DYING, PLAIN
from benchmarks.chaos.processes import ROOT, Processes
from benchmarks.chaos.wire import Wire

WORKERS = SCHEDULERS = 2
DEAF_SECONDS = 20
"""After so long without a canary a worker counts as deaf; the default is too long for a short run."""
SCOPES = "jobs:write,jobs:read,dlq:read,dlq:replay"
MANAGE = (sys.executable, "manage.py")

# What becomes of each row that is not part of the volume, transition by transition, with the lease that it promises.
HISTORY = """
CREATE TABLE chaos_row (job_id uuid, run integer, at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE chaos_history (
  n bigint GENERATED ALWAYS AS IDENTITY, job_id uuid NOT NULL, was text NOT NULL, state text NOT NULL,
  fence integer NOT NULL, due_at timestamptz, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE FUNCTION chaos_note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  INSERT INTO chaos_history (job_id, was, state, fence, due_at)
  VALUES (NEW.id, OLD.state, NEW.state, NEW.fence, NEW.due_at);
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER UPDATE ON queues_job FOR EACH ROW
  WHEN (NEW.type <> 'chaos.atomic'
    AND (OLD.state, OLD.fence, OLD.due_at) IS DISTINCT FROM (NEW.state, NEW.fence, NEW.due_at))
  EXECUTE FUNCTION chaos_note();
"""


def prepare() -> str:
    """Migrate, make the job types, the harness's tables and a key for the clients; returns the key."""
    subprocess.run([*MANAGE, "migrate", "-v", "0"], check=True, cwd=ROOT)
    django.setup()
    from queues import contracts
    from queues.models import JobType

    lasting = {
        "poison_after": 20,
        "max_attempts": 20,
        "lease_seconds": 5,
        "hard_limit_seconds": 120,
        "backoff_base_seconds": 0.2,
        "backoff_cap_seconds": 2.0,
    }
    kinds: dict[str, dict[str, object]] = {
        PLAIN: {},
        CHECKED: {"tier_id": 1},
        ATOMIC: {},
        CALLBACK: {
            "success": "callback",
            "confirm_within_seconds": CONFIRM_SECONDS,
            "on_unconfirmed": "retry",
        },
        CANCELLED: {},
        DYING: {},
    }
    for name, special in kinds.items():
        values = {"tier_id": 2, "success": "reference", **lasting, **special}
        JobType.objects.update_or_create(name=name, defaults=values)
    contracts.forget()
    with connection.cursor() as cursor:
        cursor.execute(HISTORY)
    connection.close()
    argv = [*MANAGE, "api_key", "create", "--label", "chaos", "--scopes", SCOPES, "--types", "chaos.*"]
    made = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True)
    return made.stdout.split()[-1]


@dataclass(frozen=True)
class Stack:
    """What was started, with its wires and clocks by the names of processes."""

    processes: Processes
    wires: dict[str, Wire]
    clocks: Clocks

    def close(self) -> None:
        """End the processes, then what is between them and the broker."""
        self.processes.close()
        for wire in self.wires.values():
            wire.close()


def start(folder: Path, *, web_port: int, seed: int) -> Stack:
    """Start web, the workers and the schedulers; some of their clocks are hours wrong from the start."""
    chance = random.Random(f"{seed} clocks")
    names = ["web", *(f"{kind}-{n + 1}" for kind in ("worker", "scheduler") for n in range(2))]
    clocks = Clocks(folder)
    for name in names:
        clocks.set(name, chance.choice([0, *HOURS]) * 3600.0)
    stack = Stack(Processes(folder, os.environ), {}, clocks)
    web = ["gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{web_port}", "--workers", "2", "--threads", "4"]
    web += ["--timeout", "30", "--graceful-timeout", "10", "--no-control-socket"]
    stack.processes.start("web", "-m", *web, env=clocks.env("web"))
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-c", "6"]
    url = urlsplit(os.environ["BROKER_URL"])
    for number in range(1, WORKERS + 1):
        name = f"worker-{number}"
        wire = stack.wires[name] = Wire(url.hostname or "", url.port or 6379)
        through = url._replace(netloc=f":{url.password}@127.0.0.1:{wire.port}").geturl()
        env = {**clocks.env(name), "BROKER_URL": through, "WORKER_DEAF_SECONDS": str(DEAF_SECONDS)}
        argv = ["-m", "celery", "-A", "jobsboard", "worker", "-Q", "tier1,tier2", "-n", f"w{number}@%h", *flags]
        stack.processes.start(name, *argv, env=env)
    for number in range(1, SCHEDULERS + 1):
        name = f"scheduler-{number}"
        stack.processes.start(name, "manage.py", "scheduler", env=clocks.env(name))
    return stack


def send_canaries() -> None:
    """Send each worker a message of its own; whoever consumes takes it at once."""
    from queues import broker

    for number in range(1, WORKERS + 1):
        broker.publish([(f"canary.w{number}@{socket.gethostname()}", [])], task=broker.CANARY_TASK)


def untaken_canaries() -> list[str]:
    """Return the queues of workers that did not take what was sent to them; [""] when the broker does not answer."""
    try:
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as client:
            return sorted(key.decode() for key in client.scan_iter("canary.*"))
    except redis.RedisError:
        return [""]
