"""Run named reliability cells against Jobsboard and against plain Celery; exit 1 unless Jobsboard passes all that ran.

Run: `python -m jobsboard.local isolated -- python -m benchmarks.cells [--only crash_recovery] [--system jobsboard]`.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

import django
import psycopg
import redis

from benchmarks.cells.effect import TYPE
from benchmarks.cells.faults import CELLS, Cell
from benchmarks.cells.lanes import ACKNOWLEDGED, Lane
from benchmarks.cells.systems import Jobsboard, PlainCelery
from benchmarks.cells.verdict import DONE, Verdict, judge
from benchmarks.chaos.processes import ROOT, until

RATE, BURST = 10.0, 100
STEADY_SECONDS, BURST_SECONDS, AFTER_SECONDS = 6.0, 2.0, 5.0
"""Load before the burst, from the burst to the fault, and after healing."""
HEAL_SECONDS: Final = 60.0
HELD: Final = 8
"""The least number of jobs in a worker's hands when the fault begins."""
SHORT_VISIBILITY: Final = 30


@dataclass(frozen=True)
class Result:
    """A line of the table."""

    cell: str
    system: str
    held: int
    verdict: Verdict


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = [cell.name for cell in CELLS]
    parser.add_argument("--only", action="append", choices=names, help="a cell; can be given more than once")
    parser.add_argument("--system", choices=("jobsboard", "celery", "both"), default="both")
    parser.add_argument("--watch", type=float, default=60.0, help="seconds after healing in which jobs may come back")
    parser.add_argument("--keep", action="store_true", help="keep logs and ledgers also of a run that passed")
    return parser.parse_args()


def prepare() -> str:
    """Migrate, make the job type and a key for the producers; returns the key."""
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v", "0"], check=True, cwd=ROOT)
    django.setup()
    from queues import contracts
    from queues.models import JobType

    # Default lease, attempts and back-off. The worker is killed on purpose here: a job that is in its hands three
    # times is no poison.
    JobType.objects.update_or_create(name=TYPE, defaults={"tier_id": 2, "success": "reference", "poison_after": 20})
    contracts.forget()
    argv = [*manage, "api_key", "create", "--label", "cells", "--scopes", "jobs:write", "--types", "cells.*"]
    made = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True)
    return made.stdout.split()[-1]


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"cells: {text}", flush=True)


def run(cell: Cell, lanes: Sequence[Lane], *, watch: float) -> list[Result]:
    """Run a cell; lanes that are run together get the same fault at the same time."""
    try:
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.warm()
        for lane in lanes:
            lane.load(rate=RATE, burst=BURST)
        threading.Event().wait(STEADY_SECONDS)
        for lane in lanes:
            lane.fire()
        threading.Event().wait(BURST_SECONDS)
        if not until(lambda: all(lane.held() >= HELD for lane in lanes), seconds=20, every=0.02):
            raise SystemExit(
                f"{cell.name}: no worker has {HELD} jobs in hand; the logs are in {lanes[0].folder.parent}"
            )
        held = [lane.held() for lane in lanes]
        stroke = cell.strike(lanes)
        if not until(lambda: well(lanes), seconds=HEAL_SECONDS, every=0.2):
            say(f"{cell.name}: not healed after {HEAL_SECONDS:.0f} s")
        threading.Event().wait(AFTER_SECONDS)
        for lane in lanes:
            lane.stop_load()
        began = time.monotonic()
        until(lambda: all(drained(lane) for lane in lanes), seconds=watch, every=0.5)
        say(f"{cell.name}: {stroke.what}; watched for {time.monotonic() - began:.0f} s after the load ended")
        return [
            Result(cell=cell.name, system=lane.name, held=count, verdict=verdict(lane, stroke_at=stroke.at))
            for lane, count in zip(lanes, held, strict=True)
        ]
    finally:
        for lane in lanes:
            lane.close()


def well(lanes: Sequence[Lane]) -> bool:
    """Tell whether the servers answer and every process is up."""
    try:
        with psycopg.connect(os.environ["DATABASE_URL"], connect_timeout=3):
            pass
        with redis.Redis.from_url(os.environ["BROKER_URL"], socket_timeout=3) as broker:
            broker.ping()
    except (psycopg.Error, redis.RedisError):
        return False
    return all(process.alive for lane in lanes for process in lane.processes.all)


def drained(lane: Lane) -> bool:
    """Tell whether every acknowledged job has its effect and nothing is left to do."""
    try:
        traces = lane.traces()
    except (psycopg.Error, redis.RedisError):
        return False
    effects = lane.effects()
    promised = (key for key, one in lane.told.items() if one.outcome == ACKNOWLEDGED)
    return all(where == DONE for where in traces.values()) and all(key in effects for key in promised)


def verdict(lane: Lane, *, stroke_at: float) -> Verdict:
    """Judge a lane and write down what it is judged by."""
    effects, traces = lane.effects(), lane.traces()
    found = judge(
        lane.told, effects, traces, stroke_at=stroke_at, keeps_rows=lane.keeps_rows, broken=lane.broken(effects)
    )
    told = {key: asdict(one) for key, one in lane.told.items()}
    evidence = {"stroke_at": stroke_at, "verdict": asdict(found), "traces": traces, "told": told}
    (lane.folder / "evidence.json").write_text(json.dumps(evidence, indent=1))
    refused = Counter(f"{one.outcome} {one.detail}" for one in lane.told.values() if one.outcome != ACKNOWLEDGED)
    if refused:
        say(f"{lane.name} answered: {dict(refused)}")
    for name in ("lost", "stuck", "left", "doubled", "broken"):
        if keys := getattr(found, name):
            say(f"{lane.name} {name}: {[(key, traces.get(key, 'no trace')) for key in keys[:3]]}")
    return found


HEAD: Final = (
    "cell", "system", "acknowledged", "refused or unknown", "held", "lost", "stuck", "left behind",
    "doubled, told", "doubled, not told", "first s", "last s", "result",
)  # fmt: skip


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    for one in results:
        v = one.verdict
        counts = [v.acknowledged, v.unanswered, one.held, *map(len, (v.lost, v.stuck, v.left))]
        words = [str(n) for n in (*counts, len(v.doubled_told), len(v.doubled))]
        seconds = ["" if value is None else f"{value:.1f}" for value in (v.first, v.last)]
        cells = [one.cell, one.system, *words, *seconds, "passed" if v.passed else "**failed**"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def all_lanes(chosen: argparse.Namespace, folder: Path) -> list[tuple[Cell, Callable[[], list[Lane]]]]:
    """Return what is to be run, in order: each cell by Jobsboard, then by plain Celery in both configurations."""
    cells = [cell for cell in CELLS if not chosen.only or cell.name in chosen.only]
    env = dict(os.environ)
    api_key = prepare() if chosen.system != "celery" else ""

    def ours(cell: Cell) -> list[Lane]:
        return [Jobsboard(cell.name, folder=folder, env=env, api_key=api_key)]

    def theirs(cell: Cell) -> list[Lane]:
        configured = (("celery", 1, None), (f"celery-{SHORT_VISIBILITY}s", 2, SHORT_VISIBILITY))
        return [
            PlainCelery(cell.name, name=name, database=database, visibility=visibility, folder=folder, env=env)
            for name, database, visibility in configured
        ]

    found: list[tuple[Cell, Callable[[], list[Lane]]]] = []
    for cell in cells:
        if chosen.system != "celery":
            found.append((cell, partial(ours, cell)))
        if chosen.system != "jobsboard" and not cell.postgres:
            found.append((cell, partial(theirs, cell)))
    return found


def main() -> None:
    """Run what was asked for and print one table."""
    chosen = options()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.cells.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-cells-"))
    results: list[Result] = []
    passed = False
    try:
        for cell, lanes in all_lanes(chosen, folder):
            with redis.Redis.from_url(os.environ["BROKER_URL"]) as broker:
                broker.flushall()
            results += run(cell, lanes(), watch=chosen.watch)
        ours = [one.verdict.passed for one in results if one.system == Jobsboard.name]
        passed = all(ours)
    finally:
        print(table(results), flush=True)
        if passed and not chosen.keep:
            shutil.rmtree(folder)
        else:
            print(f"logs, ledgers and evidence are in {folder}")
    if not passed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
