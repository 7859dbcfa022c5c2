"""Drain 20,000 no-op jobs with `reference` evidence by Jobsboard and by plain Celery, on one broker, in one run.

Both start with all jobs waiting, then two prefork processes start on them; the clock runs from the first job taken
to the last one done, so start-up is not measured. Run by `make bench`.
"""

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import django
import redis
from django.db import connection

from benchmarks import plain_celery

PROCESSES = 2


@contextmanager
def running(*commands: Sequence[str]) -> Iterator[None]:
    """Run commands for the time of a block; each in a session of its own, so that its children end with it."""
    started = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        for command in commands
    ]
    try:
        yield
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def timed_drain(left: Callable[[], int], total: int, *, who: str, limit: float = 120.0) -> float:
    """Return the seconds from the first to the last job, looked at every 20 ms."""
    give_up = time.monotonic() + limit
    started: float | None = None
    while (now_left := left()) > 0:
        if started is None and now_left < total:
            started = time.monotonic()
        if time.monotonic() > give_up:
            raise SystemExit(f"gave up on {who}: {now_left} of {total} left after {limit:.0f} s")
        threading.Event().wait(0.02)
    return time.monotonic() - (started or time.monotonic())


def celery_command(app: str, *more: str) -> list[str]:
    """Return the command of a worker with the flags that both sides get."""
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR", "-c", str(PROCESSES)]
    return [sys.executable, "-m", "celery", "-A", app, "worker", *flags, *more]


def plain(jobs: int) -> float:
    """Drain with plain Celery: the queue's length, plus what workers hold unacknowledged."""
    client = redis.Redis.from_url(os.environ["BROKER_URL"])
    for number in range(jobs):
        plain_celery.noop.delay(number)

    def left() -> int:
        return int(client.llen("plain")) + int(client.hlen("unacked"))

    with running(celery_command("benchmarks.plain_celery", "-Q", "plain", "-n", "plain@%h")):
        return timed_drain(left, jobs, who="plain Celery")


def ours(jobs: int) -> float:
    """Drain with Jobsboard: accepted in batches of 1,000, confirmed with evidence, rolled up by a live scheduler."""
    from queues import contracts
    from queues.accept import Item, enqueue_many
    from queues.models import JobType

    JobType.objects.update_or_create(name="bench.noop", defaults={"tier_id": 2, "success": "reference"})
    contracts.forget()
    _warm()
    scheduler = [sys.executable, "manage.py", "scheduler"]
    began = time.monotonic()
    for start in range(0, jobs, 1000):
        enqueue_many([Item(type="bench.noop", payload={"n": n}) for n in range(start, min(start + 1000, jobs))])
    print(f"  accepted {jobs / (time.monotonic() - began):,.0f} jobs/s in batches of 1,000")

    started = False

    def left() -> int:
        # Two index probes: counting 20,000 rows every 20 ms cost a sixth of what it measured.
        nonlocal started
        with connection.cursor() as cursor:
            cursor.execute(_OPEN)
            waiting, running_now = cursor.fetchone()
        started = started or running_now
        return int(waiting or running_now) if started else jobs

    with running(scheduler, celery_command("jobsboard", "-Q", "tier2", "-n", "ours@%h")):
        took = timed_drain(left, jobs, who="Jobsboard")
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM queues_job WHERE type = 'bench.noop' AND state = 'confirmed'")
        confirmed = cursor.fetchone()[0]
        cursor.execute("SELECT count(*) FROM queues_job WHERE type = 'bench.noop'")
        if confirmed != cursor.fetchone()[0]:
            raise SystemExit(f"only {confirmed} jobs are confirmed with their evidence")
    return took


_OPEN = """
SELECT EXISTS (SELECT 1 FROM queues_job WHERE tier = 2 AND type = 'bench.noop' AND state IN ('accepted', 'retrying')),
  EXISTS (SELECT 1 FROM queues_job WHERE state = 'processing')
"""


_RUNS = """
SELECT coalesce(sum(c.n::bigint), 0) FROM queues_outcomebuckets, jsonb_each_text(counts) AS c (bucket, n)
WHERE measure = 'run' AND grain = 'total' AND type > ''
"""


def _warm() -> None:
    """Give the type a history of run times, as it has in production: a new type goes one id a message at first."""
    from queues.accept import Item, enqueue_many

    enqueue_many([Item(type="bench.noop", payload={"n": n}) for n in range(200)])
    with running(
        [sys.executable, "manage.py", "scheduler"], celery_command("jobsboard", "-Q", "tier2", "-n", "warm@%h")
    ):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with connection.cursor() as cursor:
                cursor.execute(_RUNS)
                if cursor.fetchone()[0] >= 200:
                    return
            threading.Event().wait(0.2)
    raise SystemExit("the warm-up did not finish")


def main() -> None:
    """Run both, alternating, and print the ratio of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True)
    django.setup()
    rates: dict[str, list[float]] = {"jobsboard": [], "celery": []}
    for _ in range(options.rounds):
        rates["jobsboard"].append(options.jobs / ours(options.jobs))
        rates["celery"].append(options.jobs / plain(options.jobs))
    best = {name: sorted(values)[len(values) // 2] for name, values in rates.items()}
    print(f"  plain Celery {best['celery']:,.0f} jobs/s, Jobsboard {best['jobsboard']:,.0f} jobs/s confirmed")
    print(f"RATIO {best['jobsboard'] / best['celery']:.1f}")


if __name__ == "__main__":
    main()
