"""The small process beside each worker: extends leases, reports the death of bodies, stops what lost its lease.

It is started before the pool forks and ends with its worker, so no handler can starve it (DESIGN.md section 8).
"""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any, Final

from django.db import Error, connection

from queues import lifecycle, workers
from queues.runtime.leases import Held, LeaseTable, alive, now

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.25
REPORT_SECONDS: Final = 2.0
ORPHAN_SECONDS: Final = 10.0
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Mapping[str, Any]) -> None:
    """Beat until the worker is gone. Shape: {fd, parent, node, queues, slots}."""
    # Ctrl-C and the worker's own SIGTERM concern the worker; this process ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A parent-death signal of a supervisor must not reach it either: it reports the deaths of that moment.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    Heart(LeaseTable(arguments["fd"]), **{k: arguments[k] for k in ("parent", "node", "queues", "slots")}).run()


class Heart:
    """The loop and what it remembers between beats."""

    def __init__(self, table: LeaseTable, *, parent: int, node: str, queues: list[str], slots: int) -> None:
        self.table = table
        self.parent = parent
        self.node = node
        self.queues = queues
        self.slots = slots
        self.reported_at = float("-inf")
        self.orphaned_at: float | None = None
        self.stopped: set[int] = set()
        """Processes that we ended ourselves: their jobs are not to blame."""

    def run(self) -> None:
        """Beat until the worker and its bodies are gone."""
        # A thread of its own: a database that neither answers nor refuses holds the beat, and then bodies must end.
        threading.Thread(target=self._guard, name="guard", daemon=True).start()
        while not self._finished():
            try:
                self.beat()
            except Error as error:
                log.warning("heartbeat: database does not answer: %s", error)
                connection.close()
            threading.Event().wait(BEAT_SECONDS)
        self._sign_off()

    def _guard(self) -> None:
        while True:
            self.stop_what_is_lost()
            threading.Event().wait(BEAT_SECONDS)

    def _finished(self) -> bool:
        """The worker is gone, and so are its bodies, or we waited long enough for their end."""
        if os.getppid() == self.parent:
            return False
        if self.orphaned_at is None:
            self.orphaned_at = now()
        return not any(True for _ in self.table.slots()) or now() - self.orphaned_at > ORPHAN_SECONDS

    def beat(self) -> None:
        """Bury the dead first, then extend what is older than a third of its lease."""
        # Asked once and first: who dies later in this beat keeps its slot until the next one has reported its runs.
        gone = {pid for pid, _ in self.table.slots() if not alive(pid)}
        held = list(self.table.held())
        dead = [run for run in held if run.pid in gone]
        if dead:
            log.warning("heartbeat: %d runs lost with their processes", len(dead))
            for blame in (True, False):
                runs = [(run.id, run.fence) for run in dead if (run.pid not in self.stopped) is blame]
                if runs:
                    lifecycle.rescue([run[0] for run in runs], dead_runs=runs, blame=blame)
        for pid, offset in list(self.table.slots()):
            if pid in gone:
                self.table.free(offset)
                self.stopped.discard(pid)
        due = [r for r in held if r not in dead and now() - r.renewed_at > r.lease_seconds / 3]
        if due:
            self._renew(due)
        if now() - self.reported_at > REPORT_SECONDS:
            self._report(busy=len({run.pid for run in held}))
            self.reported_at = now()

    def _renew(self, due: list[Held]) -> None:
        asked_at = now()
        kept = lifecycle.heartbeat([(run.id, run.fence) for run in due])
        missing = [run for run in due if (run.id, run.fence) not in kept]
        # A row that somebody else has locked at this moment is skipped, and tried again at the next beat.
        locked = lifecycle.holding([(run.id, run.fence) for run in missing]) if missing else set()
        for run in due:
            cancel = kept.get((run.id, run.fence))
            if cancel is not None:
                self.table.renewed(run, at=asked_at, cancel=cancel)
            elif (run.id, run.fence) not in locked:
                # Superseded, or its end was written between our look and the statement.
                self.table.stop(run)

    def stop_what_is_lost(self) -> None:
        """Kill bodies whose lease could not be renewed for two thirds of it: their successors may begin soon."""
        for run in list(self.table.held()):
            if now() - run.renewed_at > run.lease_seconds * 2 / 3 and alive(run.pid):
                log.error("heartbeat: lease of job %s could not be renewed, stopping process %d", run.id, run.pid)
                self.stopped.add(run.pid)
                try:
                    os.kill(run.pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue

    def _report(self, *, busy: int) -> None:
        workers.report(
            f"{self.node}/{self.parent}", kind="worker", hostname=self.node, pid=self.parent, queues=self.queues,
            slots=self.slots, busy=busy,
        )  # fmt: skip

    def _sign_off(self) -> None:
        try:
            workers.sign_off(f"{self.node}/{self.parent}")
        except Error as error:
            log.warning("heartbeat: could not sign off: %s", error)
