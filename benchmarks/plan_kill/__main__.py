"""Make dead letters, have a plan replay them, kill what carries it out, judge what came of it; exit 1 when it is wrong.

Run: `make plan-kill`, or `make plan-kill ARGS="--items 800 --seconds 15 --rate 40 --seed 3"`.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import django
import psycopg

from benchmarks.chaos.history import fetch, unfolded
from benchmarks.chaos.processes import ROOT, Processes, until
from benchmarks.plan_kill import checker, sabotage, seen
from benchmarks.plan_kill.kills import Killing, kills
from benchmarks.plan_kill.people import People, Web, until_ready
from benchmarks.plan_kill.seen import Seen
from jobsboard.local import ports

MANAGE = (sys.executable, "manage.py")
SCOPES = "dlq:read,dlq:replay,jobs:read"
PAUSES = 2
TELL_SECONDS = 10.0


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument("--items", type=int, default=5_000, help="dead letters, all in one plan")
    parser.add_argument("--seconds", type=float, default=60.0, help="over how long the kills are spread")
    parser.add_argument("--every", type=float, default=3.0, help="seconds between two kills, on average")
    parser.add_argument("--rate", type=float, default=200.0, help="the plan's replays a second")
    parser.add_argument("--concurrency", type=int, default=300, help="the plan's replays on their way at once")
    parser.add_argument("--patience", type=float, default=90.0, help="seconds that the plan may stand still")
    parser.add_argument("--sabotage", action="store_true", help="break every promise afterwards: all must be seen")
    parser.add_argument("--keep", action="store_true", help="keep the logs also of a run that held")
    parser.add_argument("--result", type=Path, help="write what was seen into this file, as JSON")
    return parser.parse_args()


BEGAN = time.monotonic()


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"plan-kill: {time.monotonic() - BEGAN:5.1f} s: {text}", flush=True)


def prepare(provider_key_ttl: int = 7 * 86_400) -> str:
    """Migrate, make the job type and a key for the API; returns the key."""
    subprocess.run([*MANAGE, "migrate", "-v", "0"], check=True, cwd=ROOT)
    django.setup()
    from benchmarks.plan_kill.handlers import TYPE
    from jobsboard.api import keys
    from queues import contracts
    from queues.models import JobType

    values = {
        "tier_id": 2, "success": "reference", "poison_after": 20, "max_attempts": 20, "lease_seconds": 5,
        "hard_limit_seconds": 120, "backoff_base_seconds": 0.2, "backoff_cap_seconds": 2.0,
        "provider_key_ttl_seconds": provider_key_ttl,
    }  # fmt: skip
    JobType.objects.update_or_create(name=TYPE, defaults=values)
    contracts.forget()
    return keys.issue_key(label="plan-kill", scopes=SCOPES.split(","))[1]


@contextlib.contextmanager
def provider_of(chosen: argparse.Namespace, effects: Path) -> Iterator[None]:
    """Start the provider and wait until it answers."""
    port = ports.free()
    os.environ["PLAN_PROVIDER_PORT"] = str(port)
    argv = [sys.executable, "-m", "benchmarks.plan_kill.provider", str(port), str(effects), str(chosen.seed)]
    process = subprocess.Popen(argv, cwd=ROOT)
    try:
        if not until(lambda: at_work() is not None, seconds=20):
            raise SystemExit("the provider did not start")
        yield
    finally:
        process.terminate()
        process.wait(10)


def at_work() -> set[int] | None:
    """Return the processes that run a body; None when the provider does not say."""
    from benchmarks.plan_kill.handlers import ask

    try:
        return set(ask("GET", "/running")["pids"])
    except (OSError, http.client.HTTPException, ValueError):
        return None


def start(folder: Path, *, web_port: int) -> Processes:
    """Start web, two schedulers and a worker, and keep them running."""
    processes = Processes(folder, os.environ)
    gunicorn = ["gunicorn", "jobsboard.wsgi", "--bind", f"127.0.0.1:{web_port}", "--workers", "1", "--threads", "8"]
    processes.start("web", "-m", *gunicorn, "--timeout", "30", "--graceful-timeout", "10", "--no-control-socket")
    for number in (1, 2):
        processes.start(f"scheduler-{number}", "manage.py", "scheduler")
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO", "-c", "4"]
    processes.start("worker-1", "-m", "celery", "-A", "jobsboard", "worker", "-Q", "tier2", "-n", "w1@%h", *flags)
    return processes


@dataclass
class Run:
    """What a run left. Units: seconds."""

    seen: Seen
    killing: Killing
    seconds: float = 0.0


def run(chosen: argparse.Namespace, folder: Path) -> Run:
    """Do it all but judge."""
    web = Web(port=ports.free(), api_key=prepare())
    from benchmarks.plan_kill import deaths

    effects = folder / "effects.jsonl"
    with provider_of(chosen, effects):
        died = deaths.die(chosen.items)
        say(f"{len(died.fates):,} dead letters")
        deaths.close(died)
        deaths.fold()
        say("counted")
        processes = start(folder, web_port=web.port)
        try:
            killing = Killing(
                processes, kills(chosen.seed, seconds=chosen.seconds, every=chosen.every),
                running=lambda: at_work() or set(),
            )  # fmt: skip
            people = People(web, order=_order(chosen, died.as_of.isoformat()), key="plan-kill-1", seed=chosen.seed)
            plan, seconds = _shoot(chosen, people, killing)
            killing.heal(seconds=chosen.patience)
            people.end()
            until(lambda: unfolded() == 0, seconds=chosen.patience)
            say("healed and counted")
            found = Seen(plan=plan, key=people.key, fates=died.fates, told=people.told)
            seen.read(found, effects=effects, logs=folder)
        finally:
            processes.close()
    return Run(seen=found, killing=killing, seconds=seconds)


def _order(chosen: argparse.Namespace, as_of: str) -> dict[str, Any]:
    from benchmarks.plan_kill.handlers import TYPE

    return {
        "filter": {"type": TYPE}, "as_of": as_of, "expected_count": chosen.items, "reason": "the provider is back",
        "rate_per_second": chosen.rate, "concurrency": chosen.concurrency, "stop_on_failure_ratio": 1,
    }  # fmt: skip


def _shoot(chosen: argparse.Namespace, people: People, killing: Killing) -> tuple[str, float]:
    """Let the plan be asked for and carried out while things are killed; returns its id and how long it took."""
    ready = until_ready(people.web, lambda answers: until(answers, seconds=90))
    if not ready or not until(lambda: all(p.pool() for p in killing.processes.named("worker")), seconds=60):
        raise SystemExit(f"the stack does not work, before any kill; logs are in {killing.processes.folder}")
    say(f"seed {chosen.seed}: {len(killing.plan)} kills in {chosen.seconds:.0f} s")
    began = time.monotonic()
    killing.thread.start()
    plan = people.post(seconds=chosen.patience)
    if plan is None:
        raise SystemExit(f"no plan was made: {people.told.answers} {people.told.refused}")
    people.begin(plan, pauses=PAUSES)
    finished = _follow(plan, patience=chosen.patience)
    seconds = time.monotonic() - began
    killing.end()
    say(f"{'finished' if finished else 'STANDS STILL'} after {seconds:.1f} s")
    return plan, seconds


def _follow(plan: str, *, patience: float) -> bool:
    """Wait until the plan is finished; False when nothing of it moves for too long."""
    last: Any = None
    give_up, tell_at = time.monotonic() + patience, 0.0
    while time.monotonic() < give_up:
        now = _progress(plan)
        if time.monotonic() > tell_at:
            say(f"{now}")
            tell_at = time.monotonic() + TELL_SECONDS
        if now is not None and now["state"] == "finished":
            return True
        if now is not None and now != last:
            last, give_up = now, time.monotonic() + patience
        until(lambda: False, seconds=0.3)
    say(f"the plan stands still: {last}")
    return False


def _progress(plan: str) -> dict[str, Any] | None:
    try:
        [row] = fetch(
            "SELECT state, state_reason, held, done, skipped, open, awaiting, confirmed, dead_again"
            " FROM dlq_replayplan WHERE id = %s", plan,
        )  # fmt: skip
    except psycopg.Error:
        return None
    return row


def report(chosen: argparse.Namespace, done: Run, broken: checker.Broken, unseen: list[str]) -> None:
    """Print the table."""
    found = done.seen
    repeats = sum(not line["first"] for line in found.effects)
    print(
        f"seed {chosen.seed}: {chosen.items:,} items in {done.seconds:.1f} s, load {os.getloadavg()[0]:.1f}; kills: "
        + ", ".join(f"{kind} {n}" for kind, n in sorted(done.killing.counts.items()))
        + (f"; no victim in time: {dict(done.killing.missed)}" if done.killing.missed else "")
    )
    print(f"  answers: {dict(sorted(found.told.answers.items()))}")
    print(f"  pauses: {len(found.told.pauses)}; effects: {len(found.effects) - repeats}, told repeats: {repeats}")
    for name, evidence in broken.items():
        print(f"{len(evidence):6d}  {name}")
        for one in evidence[:3]:
            print(f"        {json.dumps(one, default=str)[:700]}")
    print("ALL HOLD" if not any(broken.values()) else "BROKEN")
    if chosen.sabotage:
        print(f"sabotage: {len(broken) - len(unseen)} of {len(broken)} seen{': not ' if unseen else ''}{unseen or ''}")


def _keep(chosen: argparse.Namespace, folder: Path, done: Run, broken: checker.Broken) -> None:
    kept = {
        "seed": chosen.seed, "items": chosen.items, "seconds": done.seconds, "kills": dict(done.killing.counts),
        "missed": dict(done.killing.missed), "answers": dict(done.seen.told.answers),
        "pauses": len(done.seen.told.pauses), "broken": {name: len(found) for name, found in broken.items()},
    }  # fmt: skip
    if chosen.result is not None:
        chosen.result.write_text(json.dumps(kept, indent=1))
    evidence = {**kept, "done": [vars(one) for one in done.killing.done], "evidence": broken}
    (folder / "evidence.json").write_text(json.dumps(evidence, indent=1, default=str))


def main() -> None:
    """Run once."""
    chosen = options()
    os.environ["JOBSBOARD_HANDLERS"] = "benchmarks.plan_kill.handlers"
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "jobsboard.settings")
    folder = Path(tempfile.mkdtemp(prefix="jobsboard-plan-kill-"))
    held = False
    try:
        done = run(chosen, folder)
        broken = checker.judge(done.seen)
        unseen = sabotage.unseen(done.seen) if chosen.sabotage else []
        report(chosen, done, broken, unseen)
        _keep(chosen, folder, done, broken)
        held = not any(broken.values()) and not unseen
    finally:
        if held and not chosen.keep:
            shutil.rmtree(folder)
        else:
            print(f"the logs and the evidence are in {folder}")
    if not held:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
