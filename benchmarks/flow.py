"""Limits, rates, groups, order and merging on real workers: what is kept, and how much of what they allow is used.

A scheduler and two workers with threads run types with a limit; every body notes when it began and ended. Said for
each: what was seen at most (it must not be above the limit), and the time against the least that the limit allows.
Exits with 1 when a promise did not hold. Run by `make flow`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import django
from django.db import connection

from benchmarks.drain import running

WORKERS, THREADS = 2, 8


@dataclass(frozen=True)
class Body:
    """One run of a body, in seconds since 1970."""

    type: str
    group: str
    n: int
    began: float
    ended: float


@dataclass
class Verdicts:
    """What was promised and did not hold."""

    broken: list[str] = field(default_factory=list)

    def hold(self, what: str, holds: bool) -> None:
        """Say whether a promise held."""
        print(f"    {'ok    ' if holds else 'BROKEN'} {what}")
        if not holds:
            self.broken.append(what)


def most_at_once(bodies: Iterable[Body]) -> int:
    """Return how many ran at the same time at most; one that begins when another ends is beside it no more."""
    edges = sorted(edge for body in bodies for edge in ((body.began, 1), (body.ended, -1)))
    most = now = 0
    for _, step in edges:
        now += step
        most = max(most, now)
    return most


def most_in(bodies: Iterable[Body], seconds: float) -> int:
    """Return how many began at most in any span of so many seconds."""
    starts = sorted(body.began for body in bodies)
    most = first = 0
    for last, at in enumerate(starts):
        while starts[first] < at - seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


class Bench:
    """One stack of processes, and what its bodies wrote."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.verdicts = Verdicts()

    def make(self, name: str, **fields: Any) -> None:
        """Make a job type that sleeps."""
        from queues.models import JobType

        JobType.objects.create(
            name=name, tier_id=2, handler="python", success="reference", window_seconds=300, max_attempts=1, **fields
        )

    def send(self, name: str, groups: dict[str, int] | int, *, seconds: float) -> int:
        """Accept jobs, group by group."""
        from queues.accept import Item, enqueue_many

        wanted = {"": groups} if isinstance(groups, int) else groups
        items = [
            Item(type=name, payload={"n": n, "seconds": seconds}, group=group or None)
            for group, count in wanted.items()
            for n in range(count)
        ]
        for start in range(0, len(items), 1000):
            enqueue_many(items[start : start + 1000])
        return len(items)

    def bodies(self, name: str) -> list[Body]:
        """Return what ran of a type so far."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [body for line in lines if (body := Body(**json.loads(line))).type == name]

    def until_run(self, name: str, count: int, *, limit: float = 120.0) -> list[Body]:
        """Wait until so many ran."""
        give_up = time.monotonic() + limit
        while len(found := self.bodies(name)) < count:
            if time.monotonic() > give_up:
                raise SystemExit(f"gave up on {name}: {len(found)} of {count} ran")
            threading.Event().wait(0.1)
        return found


def limit(bench: Bench, jobs: int) -> None:
    """A provider that stands five requests at a time."""
    bench.make("flow.limit", concurrency=5)
    count = bench.send("flow.limit", jobs, seconds=0.05)
    bodies = bench.until_run("flow.limit", count)
    took, least = max(b.ended for b in bodies) - min(b.began for b in bodies), count * 0.05 / 5
    print(
        f"  concurrency 5, {count} bodies of 50 ms: {took:.1f} s, the least is {least:.1f} s ({least / took:.0%} used)"
    )
    bench.verdicts.hold(f"at most 5 at once (seen {most_at_once(bodies)})", most_at_once(bodies) <= 5)


def rate(bench: Bench, jobs: int) -> None:
    """Fifty a second, ten at once."""
    bench.make("flow.rate", rate_per_second=50, rate_burst=10)
    count = bench.send("flow.rate", jobs, seconds=0.0)
    bodies = bench.until_run("flow.rate", count)
    took, least = max(b.began for b in bodies) - min(b.began for b in bodies), (count - 10) / 50
    print(f"  50 a second, burst 10, {count} jobs: {took:.1f} s, the least is {least:.1f} s ({least / took:.0%} used)")
    # A body begins a moment after its claim, which took the token: claims 0.2 s apart may begin together.
    seen = most_in(bodies, 1.0)
    bench.verdicts.hold(f"at most 60 in any second, and what a slow thread adds (seen {seen})", seen <= 60 + 10)


def groups(bench: Bench, jobs: int) -> None:
    """One customer with a backlog, twenty with a few."""
    bench.make("flow.groups", concurrency=8, group_concurrency=2)
    wanted = {"big": jobs} | {f"small{n}": 5 for n in range(20)}
    count = bench.send("flow.groups", wanted, seconds=0.05)
    bodies = bench.until_run("flow.groups", count)
    began = min(b.began for b in bodies)
    small = max(b.ended for b in bodies if b.group != "big") - began
    took = max(b.ended for b in bodies) - began
    print(
        f"  8 at once, 2 of a group: 20 groups of 5 done after {small:.1f} s, behind {jobs} of one group ({took:.1f} s)"
    )
    by_group: dict[str, list[Body]] = defaultdict(list)
    for body in bodies:
        by_group[body.group].append(body)
    worst = max(most_at_once(ones) for ones in by_group.values())
    bench.verdicts.hold(f"at most 2 of a group (seen {worst})", worst <= 2)
    bench.verdicts.hold(f"at most 8 of all (seen {most_at_once(bodies)})", most_at_once(bodies) <= 8)
    bench.verdicts.hold("the small groups are done in half the time of the big one", small < took / 2)


def order(bench: Bench, jobs: int) -> None:
    """Forty accounts, each first in, first out."""
    bench.make("flow.order", ordered=True)
    each = jobs // 40
    count = bench.send("flow.order", {f"g{n}": each for n in range(40)}, seconds=0.01)
    bodies = bench.until_run("flow.order", count)
    took = max(b.ended for b in bodies) - min(b.began for b in bodies)
    lanes: dict[str, list[Body]] = defaultdict(list)
    for body in sorted(bodies, key=lambda b: b.began):
        lanes[body.group].append(body)
    hops = sorted(b.began - a.ended for lane in lanes.values() for a, b in zip(lane, lane[1:], strict=False))
    hop = hops[len(hops) // 2] * 1000
    print(f"  40 ordered groups of {each}, bodies of 10 ms: {took:.1f} s, {count / took:.0f} jobs/s")
    print(f"    {hop:.0f} ms from an end to the next begin (median)")
    bench.verdicts.hold("in order", all([b.n for b in lane] == list(range(each)) for lane in lanes.values()))
    bench.verdicts.hold("one at a time", all(most_at_once(lane) == 1 for lane in lanes.values()))


def merge(bench: Bench, jobs: int) -> None:
    """Four producers that change ten documents all the time; an index wants the newest of each, every other second."""
    bench.make("flow.merge", overlap="throttle", overlap_seconds=2, group_concurrency=1)
    each = jobs // 4

    def produce(first: int) -> None:
        from queues.accept import enqueue

        for n in range(first, first + each):
            enqueue("flow.merge", {"n": n, "seconds": 0.05}, group=f"doc{n % 10}")
        connection.close()

    began = time.monotonic()
    producers = [threading.Thread(target=produce, args=(lane * each,)) for lane in range(4)]
    for producer in producers:
        producer.start()
    for producer in producers:
        producer.join()
    took = time.monotonic() - began
    count = _ended("flow.merge", 4 * each)
    lanes: dict[str, list[Body]] = defaultdict(list)
    for body in sorted(bench.bodies("flow.merge"), key=lambda b: b.began):
        lanes[body.group].append(body)
    ran, turns = sum(map(len, lanes.values())), 10 * (int(took / 2) + 2)
    print(f"  throttle of 2 s, {4 * each} jobs of 10 groups in {took:.1f} s: {4 * each / took:.0f} accepted a second")
    bench.verdicts.hold(f"every job has its end: {count} confirmed or superseded", count == 4 * each)
    bench.verdicts.hold(f"at most one run of a group in 2 s ({ran} ran, {turns} turns)", 10 <= ran <= turns)
    bench.verdicts.hold("one at a time", all(most_at_once(lane) == 1 for lane in lanes.values()))


def _ended(name: str, count: int) -> int:
    """Wait until so many jobs of a type are confirmed or gave their place away; returns how many are."""
    for _ in range(600):
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM queues_job WHERE type = %s"
                " AND (state = 'confirmed' OR state = 'cancelled' AND reason = 'superseded')",
                [name],
            )
            found = int(cursor.fetchone()[0])
        if found >= count:
            break
        threading.Event().wait(0.1)
    return found


PARTS: dict[str, Callable[[Bench, int], None]] = {
    "limit": limit,
    "rate": rate,
    "groups": groups,
    "order": order,
    "merge": merge,
}


def main() -> None:
    """Run the parts one after the other on one stack."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=600)
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.flow_handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True)
    django.setup()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "bodies.jsonl"
        os.environ["FLOW_LOG"] = str(log)
        bench = Bench(log)
        flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "ERROR"]
        worker = [sys.executable, "-m", "celery", "-A", "jobsboard", "worker", *flags, "-Q", "tier2", "-P", "threads"]
        workers = [[*worker, "-c", str(THREADS), "-n", f"flow{n}@%h"] for n in range(WORKERS)]
        with running([sys.executable, "manage.py", "scheduler"], *workers):
            for name in options.only or PARTS:
                PARTS[name](bench, options.jobs)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*), count(*) FILTER (WHERE state = 'confirmed' AND fence = 1) FROM queues_job"
                " WHERE reason IS DISTINCT FROM 'superseded'"
            )
            total, confirmed = cursor.fetchone()
        bench.verdicts.hold(f"all {total} jobs confirmed at their first run", total == confirmed)
    if bench.verdicts.broken:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
