"""Run clients against a stack while it is shot at, heal it, judge what it did; exit 1 when a promise is broken.

Run: `SEED=1 make chaos`, or `make chaos ARGS="--seconds 30"`.
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
from pathlib import Path

import django
from django.db import connection

from benchmarks.chaos import checker, latency, sabotage
from benchmarks.chaos.clients import BatchClient, Client
from benchmarks.chaos.faults import Faults
from benchmarks.chaos.handlers import ATOMIC, CHECKED, PLAIN
from benchmarks.chaos.plan import plan
from benchmarks.chaos.processes import ROOT, Processes, until
from jobsboard.local import ports

CLIENTS = 4


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument("--seconds", type=float, default=90.0, help="how long faults are injected")
    parser.add_argument("--faults-every", type=float, default=2.5, help="seconds between two faults, on average")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second, of all clients together")
    parser.add_argument("--batch-rate", type=float, default=60.0, help="jobs a second that come in batches besides")
    parser.add_argument("--heal-seconds", type=float, default=120.0, help="how long healing and draining may each take")
    parser.add_argument("--keep", action="store_true", help="keep the logs also of a run that held")
    parser.add_argument("--sabotage", action="store_true", help="break every promise before judging: all must be seen")
    return parser.parse_args()


def prepare() -> str:
    """Migrate, make the job types and a key for the clients; returns the key."""
    manage = [sys.executable, "manage.py"]
    subprocess.run([*manage, "migrate", "-v", "0"], check=True, cwd=ROOT)
    django.setup()
    from queues import contracts
    from queues.models import JobType

    lasting = {"poison_after": 20, "max_attempts": 20, "lease_seconds": 5, "backoff_base_seconds": 0.2}
    for name, tier in ((PLAIN, 2), (CHECKED, 1), (ATOMIC, 2)):
        values = {"tier_id": tier, "success": "reference", "backoff_cap_seconds": 2.0, **lasting}
        JobType.objects.update_or_create(name=name, defaults=values)
    contracts.forget()
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE chaos_row (job_id uuid, run integer)")
    connection.close()
    argv = [*manage, "api_key", "create", "--label", "chaos", "--scopes", "jobs:write", "--types", "chaos.*"]
    made = subprocess.run(argv, check=True, cwd=ROOT, capture_output=True, text=True)
    return made.stdout.split()[-1]


def start(processes: Processes, *, web_port: int) -> None:
    """Start web, two workers and two schedulers."""
    web = ["gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{web_port}", "--workers", "2", "--threads", "4"]
    processes.start("web", "-m", *web, "--timeout", "30", "--graceful-timeout", "10", "--no-control-socket")
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-c", "4"]
    for number in (1, 2):
        name = f"w{number}@%h"
        processes.start(
            f"worker-{number}", "-m", "celery", "-A", "jobsboard", "worker", "-Q", "tier1,tier2", "-n", name, *flags
        )
        processes.start(f"scheduler-{number}", "manage.py", "scheduler")


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"chaos: {text}", flush=True)


def run(chosen: argparse.Namespace, folder: Path) -> bool:
    """Do it all; returns whether every promise held."""
    web_port, ledger_port = ports.free(), ports.free()
    os.environ["CHAOS_LEDGER_PORT"] = str(ledger_port)
    api_key = prepare()
    effects = folder / "effects.jsonl"
    ledger = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.chaos.ledger", str(ledger_port), str(effects)], cwd=ROOT
    )
    processes = Processes(folder, os.environ)
    try:
        start(processes, web_port=web_port)
        clients: list[Client] = [
            Client(f"s{chosen.seed}c{n}", port=web_port, api_key=api_key, rate=chosen.rate / CLIENTS, seed=chosen.seed)
            for n in range(CLIENTS)
        ]
        if chosen.batch_rate > 0:
            clients.append(
                BatchClient(
                    f"s{chosen.seed}b", port=web_port, api_key=api_key, rate=chosen.batch_rate, seed=chosen.seed
                )
            )
        planned = plan(chosen.seed, seconds=chosen.seconds, every=chosen.faults_every)
        faults = Faults(processes, planned)
        _shoot(chosen, processes, clients, faults, effects)
        verdicts = _heal(chosen, clients, faults, effects)
    finally:
        processes.close()
        ledger.terminate()
        ledger.wait(10)
    report(chosen, clients, faults, verdicts)
    if not verdicts.hold:
        evidence = {"faults": [vars(one) for one in faults.done], "broken": verdicts.broken}
        (folder / "evidence.json").write_text(json.dumps(evidence, indent=1, default=str))
    return all(verdicts.broken.values()) if chosen.sabotage else verdicts.hold


def _shoot(
    chosen: argparse.Namespace, processes: Processes, clients: list[Client], faults: Faults, effects: Path
) -> None:
    for client in clients:
        client.thread.start()
    if not until(lambda: effects.exists() and effects.stat().st_size > 0, seconds=90):
        raise SystemExit(f"the stack does not work, before any fault; logs are in {processes.folder}")
    until(lambda: all(worker.pool() for worker in processes.named("worker")), seconds=30)
    say(f"seed {chosen.seed}: {len(faults.plan)} faults in {chosen.seconds:.0f} s")
    faults.thread.start()
    faults.thread.join()
    threading.Event().wait(1.0)
    for client in clients:
        client.stop.set()
    for client in clients:
        client.thread.join()


def _heal(chosen: argparse.Namespace, clients: list[Client], faults: Faults, effects: Path) -> checker.Verdicts:
    began = time.monotonic()
    if not faults.heal(seconds=chosen.heal_seconds):
        say("the stack did not come back")
    for client in clients:
        client.settle(began + chosen.heal_seconds)
    settled = time.monotonic()
    until(lambda: checker.still_open() == 0, seconds=chosen.heal_seconds, every=0.5)
    say(f"healed after {settled - began:.1f} s, drained after {time.monotonic() - settled:.1f} s more")
    told = {key: one for client in clients for key, one in client.told.items()}
    if chosen.sabotage:
        say(f"sabotaged; refused: {sabotage.break_all(told, effects)}")
    verdicts = checker.judge(told, effects, faults.done)
    verdicts.facts |= latency.accepting(faults.done, [at for client in clients for at in client.accepted_at])
    return verdicts


def report(chosen: argparse.Namespace, clients: list[Client], faults: Faults, verdicts: checker.Verdicts) -> None:
    """Print the table."""
    counts = sum((client.counts for client in clients), Counter[str]())
    kinds = Counter(one.kind for one in faults.done)
    print(
        f"seed {chosen.seed}: {sum(kinds.values())} faults: " + ", ".join(f"{k} {n}" for k, n in sorted(kinds.items()))
    )
    if faults.missed:
        print(f"  not injected, no victim was there in time: {dict(faults.missed)}")
    print(
        f"  accepts: {counts['ok']} ok ({counts['new']} new, {counts['repeated']} repeated), {counts['failed']} failed,"
        f" {counts['unknown']} unknown; { ({k: n for k, n in counts.items() if k.startswith('answer')}) }"
    )
    for name, value in verdicts.facts.items():
        print(f"  {name}: {value}")
    for name, found in verdicts.broken.items():
        print(f"{len(found):6d}  {name}")
        for one in found[:3]:
            print(f"        {json.dumps(one, default=str)[:900]}")
    print("ALL HOLD" if verdicts.hold else "BROKEN")
    if chosen.sabotage:
        print(f"sabotage: {sum(map(bool, verdicts.broken.values()))} of {len(verdicts.broken)} seen")


def main() -> None:
    """Run once."""
    chosen = options()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.chaos.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-chaos-"))
    held = False
    try:
        held = run(chosen, folder)
    finally:
        if held and not chosen.keep:
            shutil.rmtree(folder)
        else:
            print(f"the logs and the evidence are in {folder}")
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
