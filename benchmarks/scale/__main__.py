"""Time `/metrics`, `GET /outcomes` and the board with ten thousand jobs and with a million, side by side.

Thirty days, 20 types, one job in a hundred open. Both databases lie on one PostgreSQL, each has a gunicorn, and every
request goes to both in turn, so that the machine's noise hits both alike. Exit 1 where the promise is broken: a median
of `/metrics` or `GET /outcomes` of more than 1.5 times the other.

A database that an earlier run made on the same servers is used as it is (`jobsboard.local isolated -- sh` is a shell
beside such servers). Run: `make scale`, or `make scale ARGS="--large 100000 --rounds 20"`.
"""

import argparse
import datetime as dt
import json
import os
import secrets
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
from django.db import connection

from benchmarks.chaos.processes import ROOT, Processes

RATIO_MOST = 1.5
FOLD_EVERY_SECONDS = 3.0


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=10_000, help="jobs of the one database")
    parser.add_argument("--large", type=int, default=1_000_000, help="jobs of the other")
    parser.add_argument("--rounds", type=int, default=60, help="requests for each address and size, after the warm-up")
    parser.add_argument("--only", default="", help="ask only what has this in its name")
    parser.add_argument("--result", type=Path, help="write the numbers into this file, as JSON")
    parser.add_argument("--explain", type=Path, help="write what each statement reads into this file")
    return parser.parse_args()


def timed(what: str, step: Callable[[], Any]) -> Any:
    """Run a step and say how long it took, and how busy the machine was."""
    began = time.monotonic()
    found = step()
    print(f"    {what}: {time.monotonic() - began:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    return found


def fill(count: int) -> None:
    """Fill the database that Django's connection is one to, and hold its rollups against its jobs."""
    from benchmarks.scale import jobs, rollups, truth

    now = jobs.execute("SELECT jobs_now()")[0][0]
    for setting in ("statement_timeout = 0", "synchronous_commit = off", "work_mem = '256MB'", "temp_buffers = '64MB'"):
        jobs.execute(f"SET {setting}")
    jobs.make_kinds()
    jobs.make_partitions(now)
    timed("drawn", lambda: jobs.draw(count, now=now))
    timed("inserted", lambda: jobs.insert(now=now))
    deltas = timed("counts written", lambda: rollups.write_deltas(now=now))
    timed(f"{deltas:,} counts folded", rollups.fold_and_forget)
    timed("vacuumed", lambda: jobs.execute("VACUUM (ANALYZE)"))
    compared, wrong = timed("held against the jobs", truth.differences)
    if wrong:
        raise SystemExit("the rollups differ from the jobs:\n" + "\n".join(wrong))
    sizes = jobs.execute("SELECT grain, count(*) FROM queues_outcomerollup GROUP BY 1 ORDER BY 1")
    histograms = jobs.execute("SELECT grain, count(*) FROM queues_outcomebuckets GROUP BY 1 ORDER BY 1")
    print(f"    {compared} kinds of counts are those of the jobs; rollups {dict(sizes)}, histograms {dict(histograms)}")


def addresses(now: dt.datetime, name: str) -> dict[str, str]:
    """Return what is asked: a name and its path. Those that begin with GET or / belong to the promise."""
    week, month = (f"{now - dt.timedelta(days=days):%Y-%m-%dT%H:%M:%SZ}" for days in (7, 30))
    return {
        "/metrics": "/metrics",
        "GET /outcomes, 24 hours": "/api/v1/outcomes",
        "GET /outcomes, 7 days": f"/api/v1/outcomes?since={week}",
        "GET /outcomes, 30 days": f"/api/v1/outcomes?since={month}",
        "GET /outcomes, a type, 24 hours": f"/api/v1/outcomes?type={name}",
        "GET /outcomes, a type, 30 days": f"/api/v1/outcomes?type={name}&since={month}",
        "board, 6 hours": "/",
        "board, 30 days": "/?range=30d",
        "board, a type, 6 hours": f"/types/{name}/",
        "board, a type, 30 days": f"/types/{name}/?range=30d",
    }


def measure(sites: list[Any], asked: dict[str, str], *, rounds: int) -> dict[str, dict[str, Any]]:
    """Ask each address of each site in turn; returns the milliseconds, and what the machine did meanwhile."""
    from benchmarks.scale.sites import using
    from queues import lifecycle

    took: dict[str, dict[str, list[float]]] = {name: {site.name: [] for site in sites} for name in asked}
    sizes: dict[str, dict[str, int]] = {name: {} for name in asked}
    loads: list[float] = []
    folded = 0.0
    for number in range(-3, rounds):
        for turn, (name, path) in enumerate(asked.items()):
            if time.monotonic() - folded > FOLD_EVERY_SECONDS:
                # As the scheduler does: windows are judged as of the last fold.
                for site in sites:
                    with using(site.url):
                        lifecycle.fold()
                folded = time.monotonic()
            for site in sites if (number + turn) % 2 else reversed(sites):
                seconds, body = site.ask(path)
                sizes[name][site.name] = len(body)
                if number >= 0:
                    took[name][site.name].append(seconds * 1000)
        loads.append(os.getloadavg()[0])
    return {
        name: {
            "median_ms": {size: statistics.median(values) for size, values in by_size.items()},
            "p95_ms": {size: statistics.quantiles(values, n=20)[18] for size, values in by_size.items()},
            "least_ms": {size: min(values) for size, values in by_size.items()},
            "bytes": sizes[name],
            "load": [min(loads), max(loads)],
        }
        for name, by_size in took.items()
    }


def report(found: dict[str, dict[str, Any]], sites: list[Any]) -> int:
    """Print the table; returns the exit code."""
    small, large = (site.name for site in sites)
    load = next(iter(found.values()))["load"]
    print(f"\nmilliseconds with {small} and {large} jobs; load average {load[0]:.1f} to {load[1]:.1f}")
    print(f"{'':34}{'median':>16}{'p95':>18}{'least':>18}{'bytes':>18}  ratio of medians, of least")
    broken = []
    for name, numbers in found.items():
        columns = "".join(
            f"{numbers[which][small]:>9.1f}{numbers[which][large]:>9.1f}"
            for which in ("median_ms", "p95_ms", "least_ms")
        )
        ratio = numbers["median_ms"][large] / numbers["median_ms"][small]
        least = numbers["least_ms"][large] / numbers["least_ms"][small]
        numbers["ratio"] = ratio
        sizes = f"{numbers['bytes'][small]:>9}{numbers['bytes'][large]:>9}"
        print(f"{name:34}{columns}{sizes}  {ratio:.2f} {least:.2f}")
        if ratio > RATIO_MOST and not name.startswith("board"):
            broken.append(f"{name}: {ratio:.2f}")
    print(f"at most {RATIO_MOST}: " + (f"BROKEN by {'; '.join(broken)}" if broken else "held"))
    return 1 if broken else 0


def check_answers(sites: list[Any], asked: dict[str, str]) -> None:
    """Hold what the API says of 30 days against the jobs table. Raises: SystemExit."""
    from benchmarks.scale.jobs import execute
    from benchmarks.scale.sites import using

    for site in sites:
        said = json.loads(site.ask(asked["GET /outcomes, 30 days"])[1])
        with using(site.url):
            execute("SET statement_timeout = 0")
            true = execute(
                "SELECT count(*) FILTER (WHERE accepted_at >= %(since)s),"
                " count(*) FILTER (WHERE settled_at >= %(since)s AND state = 'confirmed') FROM queues_job",
                {"since": said["since"]},
            )[0]
        if (said["accepted"], said["confirmed"]) != true or not said["in_window_ratio"]:
            raise SystemExit(
                f"GET /outcomes of {site.name} jobs says {said['accepted'], said['confirmed']}, not {true}"
            )


def main() -> int:
    """Fill, ask, report; returns the exit code."""
    chosen = options()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    os.environ["METRICS_TOKEN"] = secrets.token_urlsafe(24)
    subprocess.run([sys.executable, "manage.py", "migrate", "-v", "0"], check=True, cwd=ROOT)
    django.setup()
    from benchmarks.scale import jobs, plans
    from benchmarks.scale.sites import Site, make_database, start, using

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-scale-"))
    processes = Processes(folder, os.environ)
    try:
        sites = []
        for count in (chosen.small, chosen.large):
            print(f"  {count:,} jobs")
            url, was_there = make_database(f"scale_{count}")
            site = Site(jobs=count, url=url, shared=folder / f"web-{count}-shared")
            if not was_there:
                with using(site.url):
                    fill(count)
            start(site, processes)
            sites.append(site)
        with connection.cursor() as cursor:
            cursor.execute("SELECT jobs_now()")
            asked = addresses(cursor.fetchone()[0], jobs.kind(1))
        check_answers(sites, asked)
        asked = {name: path for name, path in asked.items() if chosen.only in name}
        found = measure(sites, asked, rounds=chosen.rounds)
        code = report(found, sites)
        if chosen.result:
            chosen.result.write_text(json.dumps(found, indent=1) + "\n")
        if chosen.explain:
            lines = [line for path in asked.values() for line in plans.compare(path, *sites)]
            lines += [text for path in asked.values() for text in plans.texts(path, sites[1], least_ms=2)]
            chosen.explain.write_text("\n".join(lines) + "\n")
        return code
    finally:
        processes.close()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
