"""Kill worker processes at random while atomic handlers write rows and step handlers do their steps; count effects.

Run: `python -m jobsboard.local isolated -- python -m benchmarks.exactly_once`.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import django
from django.db import connection

from benchmarks.drain import celery_command, running

TYPES = {
    "bench.atomic": {"lease_seconds": 5, "poison_after": 20, "success": "reference"},
    "bench.steps": {"poison_after": 20, "success": "reference"},
}


class Workers:
    """One worker that is killed again and again, a child at a time or as a whole, and started anew."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.children = self.whole = 0
        self.stop = threading.Event()
        self.process = self._start()
        self.thread = threading.Thread(target=self._kill, daemon=True)

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [word if word != "2" else "4" for word in celery_command("jobsboard", "-Q", "tier2", "-n", "x@%h")]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def _pool(self) -> list[int]:
        """Return the living children that run bodies; one that ends at this moment is none of them."""
        try:
            return self._children()
        except OSError:
            return []

    def _children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(p) for p in listed if b"django\0heartbeat" not in Path(f"/proc/{p}/cmdline").read_bytes()]

    def _kill(self) -> None:
        while not self.stop.wait(self.random.uniform(0.3, 1.2)):
            pool = self._pool()
            if self.random.random() < 0.15 and pool:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
                self.whole += 1
                self.process = self._start()
                self.stop.wait(3.0)
            elif pool:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.random.choice(pool), signal.SIGKILL)
                    self.children += 1

    def close(self) -> None:
        """End the killing and the worker."""
        self.stop.set()
        self.thread.join()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def make_types() -> None:
    """Make the job types of this measurement."""
    from queues import contracts
    from queues.models import JobType

    for name, values in TYPES.items():
        JobType.objects.update_or_create(name=name, defaults={"tier_id": 2, "backoff_base_seconds": 0.1, **values})
    contracts.forget()


def states(name: str) -> Counter[str]:
    """Count the jobs of a type by state."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT state, count(*) FROM queues_job WHERE type = %s GROUP BY state", [name])
        return Counter(dict(cursor.fetchall()))


def drain(name: str, payloads: list[dict[str, Any]], *, limit: float) -> Counter[str]:
    """Enqueue, and wait until nothing of a type is open. Returns the states that it ended in."""
    from queues.accept import Item, enqueue_many

    for at in range(0, len(payloads), 1000):
        enqueue_many([Item(type=name, payload=payload) for payload in payloads[at : at + 1000]])
    give_up = time.monotonic() + limit
    while sum((now := states(name))[s] for s in ("accepted", "processing", "retrying", "awaiting_confirmation")):
        if time.monotonic() > give_up:
            raise SystemExit(f"FAILED: {name} not done within {limit:.0f} s: {dict(now)}")
        threading.Event().wait(0.2)
    return now


def atomic(jobs: int, workers: Workers) -> bool:
    """Run atomic jobs under kills and count their rows."""
    began = time.monotonic()
    ended = drain("bench.atomic", [{"n": n, "seconds": 0.01} for n in range(jobs)], limit=900)
    took = time.monotonic() - began
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FILTER (WHERE n = 1), count(*) FILTER (WHERE n > 1) FROM"
            " (SELECT count(*) AS n FROM bench_effect GROUP BY job_id) AS e"
        )
        once, more = cursor.fetchone()
        cursor.execute("SELECT count(*) FROM queues_job WHERE type = 'bench.atomic' AND fence > 1")
        again = cursor.fetchone()[0]
    print(
        f"atomic: {jobs} jobs in {took:.0f} s, {workers.children} kills of a child, {workers.whole} of a whole worker;"
        f" {dict(ended)}, {again} ran more than once; rows: exactly one for {once} jobs, more for {more}"
    )
    # A run in which nobody died proves nothing.
    return ended == Counter(confirmed=jobs) and (once, more) == (jobs, 0) and workers.children > 0


def steps(jobs: int, effects: Path) -> bool:
    """Run jobs of four steps that die between them, and count each step's effects."""
    ended = drain("bench.steps", [{"n": n, "dies": 3} for n in range(jobs)], limit=600)
    seen = Counter(json.loads(line)["key"] for line in effects.read_text().splitlines())
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(crashes) FROM queues_job WHERE type = 'bench.steps'")
        crashes = cursor.fetchone()[0]
    twice = sum(n > 1 for n in seen.values())
    print(
        f"once: {jobs} jobs of 4 steps, {crashes} deaths between steps; {dict(ended)};"
        f" {len(seen)} of {jobs * 4} steps have an effect, {twice} of them more than one"
    )
    return ended == Counter(confirmed=jobs) and len(seen) == jobs * 4 and not twice


def main() -> None:
    """Run both; exit 1 when an effect is missing or doubled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--atomic", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    effects = Path(tempfile.mkstemp(prefix="effects-")[1])
    os.environ["EFFECT_LOG"] = str(effects)
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True)
    django.setup()
    make_types()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE IF NOT EXISTS bench_effect (job_id uuid, run integer); TRUNCATE bench_effect")
    try:
        with running([sys.executable, "manage.py", "scheduler"]):
            workers = Workers(chosen.seed)
            try:
                results = [steps(chosen.steps, effects)]
                workers.thread.start()
                results.append(atomic(chosen.atomic, workers))
            finally:
                if not workers.thread.ident:
                    workers.thread.start()
                workers.close()
    finally:
        effects.unlink()
    if not all(results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
