"""Kill every worker process while jobs run, and empty the broker while jobs wait; say how long until all are confirmed.

Run: `python -m jobsboard.local isolated -- python -m benchmarks.recovery`.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
import redis

from benchmarks.drain import celery_command, running

JOBS, SECONDS, SLOTS, WAITING = 50, 5.0, 8, 500


def until(condition: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Wait for a condition and return how long it took."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise SystemExit(f"FAILED: {what} not within {seconds} s")
        threading.Event().wait(0.05)
    return time.monotonic() - began


def worker() -> "subprocess.Popen[bytes]":
    """Start a worker with SLOTS bodies, in a session of its own."""
    command = [word if word != "2" else str(SLOTS) for word in celery_command("jobsboard", "-Q", "tier2", "-n", "r@%h")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def family(pid: int) -> list[int]:
    """Return a process and all its descendants; the heartbeat process is one of them."""
    found = [pid]
    for parent in found:
        try:
            found += map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split())
        except OSError:
            continue
    return found


def make_types() -> None:
    """Make the job types of this measurement."""
    from queues import contracts
    from queues.models import JobType

    for name, values in {"bench.sleep": {"key_template": "{key}"}, "bench.noop": {}}.items():
        JobType.objects.update_or_create(name=name, defaults={"tier_id": 2, "success": "reference", **values})
    contracts.forget()


def count(name: str, **filters: Any) -> int:
    """Count jobs of a type."""
    from queues.models import Job

    return Job.objects.filter(type=name, **filters).count()


def kill_workers(effects: Path) -> bool:
    """Kill -9 every process of the worker while at least SLOTS jobs run."""
    from queues.accept import Item, enqueue_many

    current = worker()
    try:
        enqueue_many([Item(type="bench.sleep", payload={"key": f"k{n}", "seconds": SECONDS}) for n in range(JOBS)])
        until(lambda: count("bench.sleep", state="processing") >= SLOTS, seconds=60, what="enough jobs running")
        victims = family(current.pid)
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        current.wait()
        killed = time.monotonic()
        current = worker()
        until(lambda: count("bench.sleep", state="confirmed") == JOBS, seconds=180, what="all confirmed after the kill")
        took = time.monotonic() - killed
    finally:
        os.killpg(current.pid, signal.SIGTERM)
        current.wait(30)
    lines = [json.loads(line) for line in effects.read_text().splitlines()]
    seen = Counter(line["key"] for line in lines)
    second = {line["key"]: line["maybe_duplicate"] for line in lines}
    unmarked = [key for key, n in seen.items() if n > 1 and not second[key]]
    # What had to run after the kill, eight at a time, each five seconds.
    own = -(-JOBS // SLOTS) * SECONDS
    print(
        f"kill -9 of {len(victims)} processes: {len(seen)} of {JOBS} keys in the effect log, "
        f"{sum(n > 1 for n in seen.values())} twice, {len(unmarked)} of those unmarked; "
        f"all confirmed after {took:.1f} s (own run time {own:.0f} + 20 = {own + 20:.0f} allowed)"
    )
    return len(seen) == JOBS and not unmarked and took <= own + 20


def flush_broker() -> bool:
    """Empty the broker while jobs wait in it."""
    from queues.accept import Item, enqueue_many

    broker = redis.Redis.from_url(os.environ["BROKER_URL"])
    enqueue_many([Item(type="bench.noop", payload={"n": n}) for n in range(WAITING)])
    until(lambda: int(broker.llen("tier2")) > 0, seconds=20, what="hints in the broker")
    before = int(broker.llen("tier2"))
    broker.flushall()
    flushed = time.monotonic()
    with running(celery_command("jobsboard", "-Q", "tier2", "-n", "f@%h")):
        until(
            lambda: count("bench.noop", state="confirmed") == WAITING, seconds=90, what="all confirmed after FLUSHALL"
        )
    took = time.monotonic() - flushed
    print(f"FLUSHALL with {before} hints out and {WAITING} jobs waiting: all confirmed after {took:.1f} s")
    return True


def main() -> None:
    """Run both; exit 1 when a promise is broken."""
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    effects = Path(tempfile.mkstemp(prefix="effects-")[1])
    os.environ["EFFECT_LOG"] = str(effects)
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True)
    django.setup()
    make_types()
    try:
        with running([sys.executable, "manage.py", "scheduler"]):
            results = [kill_workers(effects), flush_broker()]
    finally:
        effects.unlink()
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
