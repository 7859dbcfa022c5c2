"""Run clients against a stack while it is shot at, heal it, judge what it did; exit 1 when a promise is broken.

Run: `SEED=1 make chaos`, or `make chaos ARGS="--seconds 30"`.
"""

import argparse
import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos import checker, history, latency, sabotage, stack
from benchmarks.chaos.clients import BatchClient, Client
from benchmarks.chaos.exhaust import Prober
from benchmarks.chaos.faults import PAUSE_SECONDS, Faults
from benchmarks.chaos.history import History
from benchmarks.chaos.plan import plan
from benchmarks.chaos.processes import ROOT, Process, send, until
from benchmarks.chaos.repairs import CancelClient, ReplayClient
from benchmarks.chaos.stack import Stack
from jobsboard.local import ports

CLIENTS = 4
BATCH_CLIENTS = 2
CANCELS_A_SECOND = REPLAYS_A_SECOND = 3.0


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or 1))
    parser.add_argument("--seconds", type=float, default=90.0, help="how long faults are injected")
    parser.add_argument("--faults-every", type=float, default=2.5, help="seconds between two faults, on average")
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second, of all single clients together")
    parser.add_argument("--batch-rate", type=float, default=60.0, help="jobs a second that come in batches besides")
    parser.add_argument("--pause", type=float, default=PAUSE_SECONDS, help="seconds that a SIGSTOP lasts")
    parser.add_argument("--heal-seconds", type=float, default=150.0, help="how long healing may take, or stand still")
    parser.add_argument("--keep", action="store_true", help="keep the logs also of a run that held")
    parser.add_argument("--result", type=Path, help="write what was seen into this file, as JSON")
    parser.add_argument("--sabotage", action="store_true", help="break every promise before judging: all must be seen")
    return parser.parse_args()


@dataclass
class Clients:
    """Everybody who asks something of the stack."""

    plain: list[Client] = field(default_factory=list)
    cancelling: list[CancelClient] = field(default_factory=list)
    replaying: list[ReplayClient] = field(default_factory=list)
    probers: list[Prober] = field(default_factory=list)

    @property
    def all(self) -> list[Client]:
        return [*self.plain, *self.cancelling, *self.replaying, *self.probers]

    @property
    def counts(self) -> Counter[str]:
        return sum((client.counts for client in self.all), Counter[str]())

    def settle(self, seconds: float) -> None:
        """Let everybody ask again for what they do not know, side by side."""
        deadline = time.monotonic() + seconds
        threads = [threading.Thread(target=client.settle, args=(deadline,)) for client in self.all]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def tell(self, known: History) -> None:
        """Write what they were told into a history."""
        known.told = {key: one for client in self.all for key, one in client.told.items()}
        known.cancels = [one for client in self.cancelling for one in client.cancels]
        known.cancel_asked = set().union(*(client.asked for client in self.cancelling))
        known.replays = [one for client in self.replaying for one in client.replays.values()]
        known.probes = [one for prober in self.probers for one in prober.probes]


def clients_of(chosen: argparse.Namespace, *, web_port: int, api_key: str, ledger_port: int) -> Clients:
    """Make the clients; nobody has begun."""
    seed = chosen.seed
    made = Clients()
    for n in range(CLIENTS):
        name = f"s{seed}c{n}"
        made.plain.append(Client(name, port=web_port, api_key=api_key, rate=chosen.rate / CLIENTS, seed=seed))
    for n in range(BATCH_CLIENTS if chosen.batch_rate > 0 else 0):
        rate = chosen.batch_rate / BATCH_CLIENTS
        made.plain.append(BatchClient(f"s{seed}b{n}", port=web_port, api_key=api_key, rate=rate, seed=seed))
    made.cancelling.append(CancelClient(f"s{seed}x", port=web_port, api_key=api_key, rate=CANCELS_A_SECOND, seed=seed))
    made.replaying.append(
        ReplayClient(
            f"s{seed}r", port=web_port, api_key=api_key, rate=REPLAYS_A_SECOND, seed=seed, ledger_port=ledger_port
        )
    )
    made.probers.append(Prober(port=web_port, api_key=api_key, seed=seed))
    return made


def say(text: str) -> None:
    """Tell how far it is."""
    print(f"chaos: {text}", flush=True)


@contextlib.contextmanager
def ledger_of(chosen: argparse.Namespace, effects: Path, *, web_port: int) -> Iterator[int]:
    """Start the ledger; gives its port."""
    port = ports.free()
    os.environ["CHAOS_LEDGER_PORT"] = str(port)
    env = {**os.environ, "CHAOS_WEB_PORT": str(web_port), "CHAOS_SEED": str(chosen.seed)}
    argv = [sys.executable, "-m", "benchmarks.chaos.ledger", str(port), str(effects)]
    ledger = subprocess.Popen(argv, cwd=ROOT, env=env)
    try:
        yield port
    finally:
        ledger.terminate()
        ledger.wait(10)


def ask_ledger(port: int, path: str) -> dict[str, Any]:
    """Ask the ledger something; nothing when it does not say."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        client.request("GET", path)
        answer: dict[str, Any] = json.loads(client.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError):
        return {}
    finally:
        client.close()
    return answer


def run(chosen: argparse.Namespace, folder: Path) -> bool:
    """Do it all; returns whether every promise held."""
    began, web_port = time.monotonic(), ports.free()
    effects = folder / "effects.jsonl"
    with ledger_of(chosen, effects, web_port=web_port) as ledger_port:
        api_key = stack.prepare()
        clients = clients_of(chosen, web_port=web_port, api_key=api_key, ledger_port=ledger_port)
        started = stack.start(folder, web_port=web_port, seed=chosen.seed)
        try:
            faults = Faults(
                started.processes,
                plan(chosen.seed, seconds=chosen.seconds, every=chosen.faults_every),
                wires=started.wires,
                clocks=started.clocks,
                prober=clients.probers[0],
                pause_seconds=chosen.pause,
                running=lambda: set(ask_ledger(ledger_port, "/running").get("pids", ())),
            )
            _shoot(chosen, started, clients, faults, effects)
            known = _heal(chosen, clients, faults, ledger_port)
            verdicts = _judge(chosen, clients, faults, known, effects)
        finally:
            started.close()
    report(chosen, clients, faults, verdicts, seconds=time.monotonic() - began)
    _keep(chosen, folder, clients, faults, verdicts)
    return all(verdicts.broken.values()) if chosen.sabotage else verdicts.hold


def _shoot(chosen: argparse.Namespace, started: Stack, clients: Clients, faults: Faults, effects: Path) -> None:
    askers = [client for client in clients.all if client not in clients.probers]
    for client in askers:
        client.thread.start()
    if not until(lambda: effects.exists() and effects.stat().st_size > 0, seconds=90):
        raise SystemExit(f"the stack does not work, before any fault; logs are in {started.processes.folder}")
    until(lambda: all(map(_is_up, started.processes.named("worker"))), seconds=30)
    say(f"seed {chosen.seed}: {len(faults.plan)} faults in {chosen.seconds:.0f} s")
    faults.thread.start()
    faults.thread.join()
    threading.Event().wait(1.0)
    for client in askers:
        client.stop.set()
    for client in askers:
        client.thread.join()


def _is_up(worker: Process) -> bool:
    return bool(worker.pool() and worker.heart())


def _heal(chosen: argparse.Namespace, clients: Clients, faults: Faults, ledger_port: int) -> History:
    """Wait until everything is up again and nothing is left to do; each step may take as long as healing may."""
    began = time.monotonic()
    if not faults.heal(seconds=chosen.heal_seconds):
        say("the stack did not come back")
    say(f"all up after {time.monotonic() - began:.1f} s")
    clients.settle(chosen.heal_seconds)
    say(f"every client knows what became of its requests after {time.monotonic() - began:.1f} s")
    until(lambda: ask_ledger(ledger_port, "/pending") == {"pending": 0}, seconds=chosen.heal_seconds, every=0.5)
    say(f"healed after {time.monotonic() - began:.1f} s")
    for left in (history.still_open, history.unfolded):
        _drain(left, seconds=chosen.heal_seconds)
    say(f"drained after {time.monotonic() - began:.1f} s")
    stack.send_canaries()
    until(lambda: not stack.untaken_canaries(), seconds=chosen.heal_seconds, every=0.5)
    return History(deaf=stack.untaken_canaries())


def _drain(left: Callable[[], int], *, seconds: float) -> None:
    """Wait until nothing is left; on a slow machine for as long as it becomes less."""
    least, give_up = sys.maxsize, time.monotonic() + seconds
    while time.monotonic() < give_up:
        now = left()
        if now == 0:
            return
        if 0 < now < least:
            least, give_up = now, time.monotonic() + seconds
        threading.Event().wait(0.5)


def _judge(
    chosen: argparse.Namespace, clients: Clients, faults: Faults, known: History, effects: Path
) -> checker.Verdicts:
    clients.tell(known)
    if chosen.sabotage:
        # A sweep would mend a broken row before the checker looks.
        for scheduler in faults.processes.named("scheduler"):
            send(scheduler.pid, signal.SIGSTOP)
        say(f"sabotaged; refused: {sabotage.break_all(known, effects)}")
    history.read(effects, known)
    history.load(known)
    verdicts = checker.judge(known)
    accepted_at = [at for client in clients.all for at in client.accepted_at]
    ended_at = {process.name: process.ended_at for process in faults.processes.all}
    verdicts.facts |= latency.figures(faults.done, known, accepted_at) | latency.replaced(faults.done, ended_at)
    return verdicts


def report(
    chosen: argparse.Namespace, clients: Clients, faults: Faults, verdicts: checker.Verdicts, *, seconds: float
) -> None:
    """Print the table."""
    counts, kinds = clients.counts, Counter(one.kind for one in faults.done)
    print(
        f"seed {chosen.seed}: {sum(kinds.values())} faults of {len(kinds)} kinds in {seconds:.0f} s: "
        + ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
    )
    if faults.missed:
        print(f"  not injected, no victim was there in time: {dict(faults.missed)}")
    print(
        f"  accepts: {counts['new']} new, {counts['repeated']} repeated, {counts['failed']} failed,"
        f" {counts['unknown']} unknown; { ({k: n for k, n in counts.items() if k.startswith('answer')}) }"
    )
    for name, value in verdicts.facts.items():
        print(f"  {name}: {value}")
    for name, found in verdicts.broken.items():
        print(f"{len(found):6d}  {name}")
        for one in found[:3]:
            print(f"        {json.dumps(one, default=_plain)[:900]}")
    print("ALL HOLD" if verdicts.hold else "BROKEN")
    if chosen.sabotage:
        print(f"sabotage: {sum(map(bool, verdicts.broken.values()))} of {len(verdicts.broken)} seen")


def _keep(
    chosen: argparse.Namespace, folder: Path, clients: Clients, faults: Faults, verdicts: checker.Verdicts
) -> None:
    seen = {
        "seed": chosen.seed,
        "faults": dict(Counter(one.kind for one in faults.done)),
        "missed": dict(faults.missed),
        "counts": dict(clients.counts),
        "facts": verdicts.facts,
        "broken": {name: len(found) for name, found in verdicts.broken.items()},
    }
    if chosen.result is not None:
        chosen.result.write_text(json.dumps(seen, indent=1, default=_plain))
    evidence = {**seen, "done": [vars(one) for one in faults.done], "evidence": verdicts.broken}
    (folder / "evidence.json").write_text(json.dumps(evidence, indent=1, default=_plain))


def _plain(value: object) -> object:
    return getattr(value, "__dict__", None) or str(value)


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
