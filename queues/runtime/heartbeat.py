"""The small process beside each worker: extends leases, reports the death of bodies, stops what lost its lease or
passed its hard limit.

It is started before the pool forks and ends with its worker, so no handler can starve it (DESIGN.md section 8). Its
guard only looks at the map, kills and makes marks there; its beat, the only one that asks the database, writes what
became of the runs. So limits hold while the database is away, and what was marked is written when it is back.
"""

import contextlib
import ctypes
import datetime as dt
import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from django.db import Error, connection

from queues import lifecycle, workers
from queues.lifecycle import End, Verdict
from queues.runtime import limits
from queues.runtime.ear import Ear
from queues.runtime.leases import Held, LeaseTable, alive, now

log = logging.getLogger(__name__)

BEAT_SECONDS: Final = 0.25
REPORT_SECONDS: Final = 2.0
FIRST_BEAT_SECONDS: Final = 1.0
"""So long a new heartbeat process may try to renew before it stops anybody: with two thirds of 5 s still below 5 s."""
ORPHAN_SECONDS: Final = 10.0
REPLACE_GRACE: Final = 10.0
"""How long the neighbours of a run that hangs in a thread may go on before their process is ended."""
DEAF_GRACE: Final = 60.0
"""How long the bodies of a worker that takes no messages may go on before it is ended."""
PATIENT_SECONDS: Final = 5.0
"""No supervisor kills what it stops any sooner."""
STOP_SECONDS: Final = 0.5
"""The least between SIGTERM and SIGKILL: enough to stop fetching, and to give back hints that were fetched."""
ASK_SECONDS: Final = 1.0
ASK_AFTER_SECONDS: Final = 0.5
"""Younger runs are not asked about: most end before anybody could have cancelled them."""
ASK_MOST: Final = 1000
_PR_SET_PDEATHSIG: Final = 1


def main(arguments: Mapping[str, Any]) -> None:
    """Beat until the worker is gone. Shape: {fd, parent, node, queues, slots, own_queue, deaf_after}."""
    # Ctrl-C and the worker's own SIGTERM concern the worker; this process ends after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # A parent-death signal of a supervisor must not reach it either: it reports the deaths of that moment.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, 0)
    table = LeaseTable(arguments["fd"])
    ear = Ear(table, queue=arguments["own_queue"], deaf_after=arguments["deaf_after"])
    Heart(table, ear=ear, **{k: arguments[k] for k in ("parent", "node", "queues", "slots")}).run()


class Heart:
    """The loop and what it remembers between beats."""

    def __init__(
        self, table: LeaseTable, *, parent: int, node: str, queues: list[str], slots: int, ear: Ear | None = None
    ) -> None:
        self.table = table
        self.ear = ear or Ear(table, queue="", deaf_after=0)
        self.deaf = False
        self.parent = parent
        self.node = node
        self.queues = queues
        self.slots = slots
        self.reported_at = float("-inf")
        self.orphaned_at: float | None = None
        self.asked_at = float("-inf")
        self.beaten = threading.Event()
        self.lock = threading.Lock()
        """Held to mark and kill, and to give a slot away: nothing of the next owner is marked for the last one."""
        self.stopped: set[int] = set()
        """Processes that we ended ourselves: their jobs are not to blame."""
        self.replacing_since: float | None = None
        """When the worker itself was told to end, because a body hangs in one of its threads."""
        self.trouble = ""
        self.settled: set[tuple[UUID, int]] = set()
        """Overdue runs whose end is written while their body still hangs."""

    def run(self) -> None:
        """Beat until the worker and its bodies are gone."""
        # A thread of its own: a database that neither answers nor refuses holds the beat, and then bodies must end.
        threading.Thread(target=self._guard, name="guard", daemon=True).start()
        while not self._finished():
            try:
                self.beat()
                self.beaten.set()
            except Error as error:
                log.warning("heartbeat: database does not answer: %s", error)
                connection.close()
            threading.Event().wait(BEAT_SECONDS)
        self._sign_off()

    def _guard(self) -> None:
        # One that starts late, or again, first tries to renew what it finds; it cost nobody's lease a try so far.
        self.beaten.wait(FIRST_BEAT_SECONDS)
        while True:
            try:
                self.stop_what_is_lost()
                self.stop_what_is_overdue()
                self.stop_what_is_deaf()
            except Exception:  # without this thread no limit would hold any more
                log.exception("heartbeat: the guard failed")
            threading.Event().wait(BEAT_SECONDS)

    def _finished(self) -> bool:
        """The worker is gone, and so are its bodies, or we waited long enough for their end."""
        if os.getppid() == self.parent:
            return False
        if self.orphaned_at is None:
            self.orphaned_at = now()
        return not any(True for _ in self.table.slots()) or now() - self.orphaned_at > ORPHAN_SECONDS

    def beat(self) -> None:
        """Extend what is older than a third of its lease, pass cancels on, bury the dead, end what is overdue."""
        # Asked once and first: who dies later in this beat keeps its slot until the next one has reported its runs.
        gone = {pid for pid, _ in self.table.slots() if not alive(pid)}
        held = list(self.table.held())
        # One that is overdue in a child that was just killed is left as it is: the next beat finds the child dead.
        going_on = [run for run in held if run.pid not in gone and not run.overdue]
        # Before the dead, whose rows may be locked: waiting for those must cost nobody a lease.
        if due := [run for run in going_on if now() - run.renewed_at > run.lease_seconds / 3]:
            self._renew(due)
        self._ask_for_cancels(going_on)
        self._bury([run for run in held if run.pid in gone])
        with self.lock:
            for pid, offset in list(self.table.slots()):
                if pid in gone:
                    self.table.free(offset)
                    self.stopped.discard(pid)
        self._end_hanging([run for run in held if run.overdue and run.pid == self.parent and run.pid not in gone])
        busy = sum(run.began > 0 for run in going_on)
        # A worker that ends takes nothing; that is no deafness.
        if not self.table.draining and self.ear.is_deaf(busy=busy >= self.slots):
            self.deaf = True
        if now() - self.reported_at > REPORT_SECONDS:
            self._report(busy=busy)
            self.reported_at = now()

    def _bury(self, dead: list[Held]) -> None:
        """Say what became of a dead process's runs: over their limit, never begun, or lost."""
        if not dead:
            return
        self._end_overdue([run for run in dead if run.overdue and run.pair not in self.settled])
        unbegun = [run for run in dead if run.began == 0]
        if unbegun:
            lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.RELEASED) for run in unbegun])
        # We killed it, perhaps before a restart of ours; the mark of the run that it was for is still there.
        stopped = self.stopped | {run.pid for run in dead if run.overdue}
        # A worker that has been stopping for a while is killed by whoever does not wait any longer: that says nothing
        # of its jobs. One that dies right after it was told to stop may have been told by a job.
        given_up = self.table.drains_for(PATIENT_SECONDS)
        for blame in (True, False):
            runs = [
                run.pair
                for run in dead
                if run.began != 0 and not run.overdue and (run.pid not in stopped and not given_up) is blame
            ]
            if runs:
                lifecycle.rescue([run[0] for run in runs], dead_runs=runs, blame=blame)
        log.warning("heartbeat: %d runs lost with their processes, %d of them never began", len(dead), len(unbegun))

    def _end_hanging(self, hanging: list[Held]) -> None:
        """End runs whose body hangs in a thread of the living worker, each once."""
        self.settled &= {run.pair for run in hanging}
        new = [run for run in hanging if run.pair not in self.settled]
        self._end_overdue(new)
        self.settled |= {run.pair for run in new}

    def _end_overdue(self, overdue: list[Held]) -> None:
        """End runs past their hard limit as failed attempts; a body that ended in that instant has its own end."""
        if not overdue:
            return
        known = {(run.id, run.fence): run for run in lifecycle.runs([run.pair for run in overdue])}
        ends = [
            limits.overrun(
                known[run.pair],
                limit=run.hard_limit,
                seconds=now() - abs(run.began),
                replaced=run.pid == self.parent,
                # Until the worker is gone the body may still do something; its successor must not run beside it.
                not_before=REPLACE_GRACE + STOP_SECONDS if run.pid == self.parent else 0.0,
            )
            for run in overdue
            if run.pair in known
        ]
        if ends:
            lifecycle.settle(ends)

    def _ask_for_cancels(self, living: list[Held]) -> None:
        """Tell bodies of a cancel long before their lease is extended, by one look at most in a second."""
        if now() - self.asked_at < ASK_SECONDS:
            return
        running = [run for run in living if run.began > 0 and now() - run.began >= ASK_AFTER_SECONDS][:ASK_MOST]
        if running:
            self.asked_at = now()
            cancelled = lifecycle.cancelled([run.pair for run in running])
            for run in running:
                if run.pair in cancelled:
                    self.table.stop(run)

    def _renew(self, due: list[Held]) -> None:
        asked_at = now()
        kept = lifecycle.heartbeat([(*run.pair, run.lease_seconds) for run in due])
        missing = [run for run in due if run.pair not in kept]
        # A row that somebody else has locked at this moment is skipped, and tried again at the next beat.
        locked = lifecycle.holding([run.pair for run in missing]) if missing else set()
        for run in due:
            cancel = kept.get(run.pair)
            if cancel is not None:
                self.table.renewed(run, at=asked_at, cancel=cancel)
            elif run.pair not in locked:
                # Superseded, or its end was written between our look and the statement.
                self.table.stop(run)

    def stop_what_is_lost(self) -> None:
        """Kill bodies whose lease could not be renewed for two thirds of it: their successors may begin soon.

        A member that has not begun may do so at any moment. A body that has ended cannot harm its successor.
        """
        for run in list(self.table.held()):
            if run.overdue or run.began < 0 or now() - run.renewed_at <= run.lease_seconds * 2 / 3:
                continue
            if alive(run.pid):
                log.error("heartbeat: lease of job %s could not be renewed, stopping process %d", run.id, run.pid)
                self._kill(run.pid)

    def stop_what_is_overdue(self) -> None:
        """Enforce hard limits: a child is killed, a worker whose threads run the bodies is replaced."""
        passed = [run for run in self.table.held() if run.passed(now())]
        for run in passed:
            if not run.overdue:
                self._stop_overdue(run)
        if any(run.pid == self.parent for run in passed):
            # One that came to its end after all leaves the worker to its warm shutdown.
            hanging = [run for run in self.table.held() if run.pid == self.parent and run.overdue and run.began > 0]
            if hanging and alive(self.parent):
                self._replace(hanging)

    def stop_what_is_deaf(self) -> None:
        """Replace a worker that takes no messages any more. What it runs may end before."""
        if not self.deaf or not alive(self.parent):
            return
        if self.replacing_since is None:
            log.error("heartbeat: worker %d takes no messages any more and is ended", self.parent)
            self._begin_replacing("takes no messages any more although the broker does")
            return
        waited = now() - self.replacing_since
        running = any(run.began > 0 for run in self.table.held())
        if waited > DEAF_GRACE or (waited > REPLACE_GRACE and not running):
            self._kill(self.parent)

    def _stop_overdue(self, run: Held) -> None:
        with self.lock:
            # Since the look its body may have ended, and its process may be at the next job.
            if not self.table.unchanged(run) or not alive(run.pid):
                return
            self.table.mark_overdue(run)
            log.error("heartbeat: job %s, process %d: %s", run.id, run.pid, limits.words("hard", run.hard_limit))
            if run.pid != self.parent:
                self._kill(run.pid)

    def _replace(self, hanging: list[Held]) -> None:
        """End the worker: nothing new begins, and its other bodies get a grace. Its supervisor starts the next one."""
        if self.replacing_since is None:
            self._begin_replacing(f"job {hanging[0].id} ran past its hard limit of {hanging[0].hard_limit:g} s")
            return
        waited = now() - self.replacing_since
        others = any(run.pid == self.parent and not run.overdue for run in self.table.held())
        if waited > REPLACE_GRACE or (waited > STOP_SECONDS and not others):
            if self.parent not in self.stopped:
                log.error("heartbeat: worker %d is ended, a body hangs in one of its threads", self.parent)
            self._kill(self.parent)

    def _begin_replacing(self, why: str) -> None:
        self.replacing_since = now()
        self.trouble = f"{why} at {dt.datetime.now(dt.UTC):%H:%M:%S} UTC; this process is being replaced"
        self.reported_at = float("-inf")
        self.table.drain()
        os.kill(self.parent, signal.SIGTERM)

    def _kill(self, pid: int) -> None:
        self.stopped.add(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def _report(self, *, busy: int) -> None:
        # One that stops takes nothing more: it counts for no queue, and the page of queues says that it drains. Trouble
        # is told by queue.
        queues = [] if self.table.draining and not self.trouble else self.queues
        workers.report(
            f"{self.node}/{self.parent}", kind="worker", hostname=self.node, pid=self.parent, queues=queues,
            slots=self.slots, busy=busy, trouble=self.trouble,
        )  # fmt: skip

    def _sign_off(self) -> None:
        try:
            workers.sign_off(f"{self.node}/{self.parent}")
        except Error as error:
            log.warning("heartbeat: could not sign off: %s", error)
