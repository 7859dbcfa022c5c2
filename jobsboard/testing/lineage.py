"""One business action in memory: its runs, and what they leave behind for each other. No row, no contract.

Steps, fences and contexts are as the runtime has them (`queues.runtime.steps`, `lifecycle.steps`); a worker that dies
is an exception that no handler should catch.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID, uuid4, uuid5

import msgspec
from django.db import connection

from queues.handlers import JobContext, RunSuperseded, StepInvalid
from queues.lifecycle import Run
from queues.runtime.context import context_of
from queues.runtime.steps import check_name, encoded

_NAMES: Final = UUID("6f9619ff-8b86-d011-b42d-00c04fc964ff")
_LOST: Final = {"error_class": "WorkerLost", "message": "the process that ran this job is gone", "worker": "test"}
MAX_AGE: Final = 7 * 86400.0

Point = tuple[str, str]
"""Where a run is: before, inside (done, and not stored) or after a step of this name."""


class Killed(BaseException):
    """Its worker is gone. Nothing that a handler does from now on happens."""


@dataclass(kw_only=True)
class Lineage:
    """One job and its replays. The same number means the same action: its ids and keys are the same."""

    type: str
    payload: Any
    group: str | None = None
    number: int = 1
    id: UUID = field(init=False)
    root: UUID = field(init=False)
    results: dict[str, str] = field(default_factory=dict)
    fence: int = 0
    attempt: int = 0
    begun: int = 0
    failures: list[Mapping[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.id = self.root = uuid5(_NAMES, f"{self.type} {self.number}")

    def claim(self) -> Run:
        """Begin a run. The one before is no longer the job's."""
        self.fence += 1
        self.attempt += 1
        self.begun += 1
        now = time.time()
        return Run(
            id=self.id,
            fence=self.fence,
            type=self.type,
            contract_version=1,
            attempt=self.attempt,
            begun=self.begun,
            payload=msgspec.json.encode(self.payload).decode(),
            idempotency_key=f"jb_{self.root.hex}",
            group=self.group,
            accepted_at=now,
            expires_at=now + MAX_AGE,
            failures=msgspec.json.encode(self.failures).decode(),
            probe=False,
            trace=None,
            lease_seconds=15,
            root=self.root,
            reference=None,
            check_failures=0,
        )

    def lose(self) -> None:
        """Lose the newest run: it cost a crash, not an attempt."""
        self.failures.append({"attempt": self.attempt, **_LOST})
        self.attempt -= 1

    def replay(self) -> None:
        """Go on as a new job: another id, fresh attempts, and the same key, root and results of steps."""
        self.id = uuid4()
        self.fence = self.attempt = 0
        self.failures = []


@dataclass(kw_only=True)
class Body:
    """One run's steps: `on` is told where the run is, and may raise Killed there."""

    lineage: Lineage
    run: Run
    on: Callable[[Point], None] = lambda point: None
    done: list[str] = field(default_factory=list)
    dead: bool = False

    def context(self, *, cancelled: bool = False, late: bool = False) -> JobContext:
        """Return what the handler gets; `late`: accepted long ago, and too old by now."""
        run = self.run
        if late:
            times = {"accepted_at": run.accepted_at - 5 * MAX_AGE, "expires_at": run.accepted_at - 1.0}
            run = msgspec.structs.replace(run, **times)
        return context_of(run, cancelled=lambda: cancelled, steps=self)

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        """Do a step unless its result is known, as `queues.runtime.steps` does."""
        check_name(name)
        if connection.in_atomic_block:
            raise StepInvalid(f"step {name!r} stands inside a transaction: its result would be lost with it")
        self._at("before", name)
        if self._superseded():
            raise RunSuperseded(f"run {self.run.fence} is no longer the job's; step {name!r} was not begun")
        results = self.lineage.results
        if name in results:
            return msgspec.json.decode(results[name])
        text = encoded(name, function())
        self._at("inside", name)
        results.setdefault(name, text)
        self.done.append(name)
        if self._superseded():
            raise RunSuperseded(f"run {self.run.fence} lost its lease during step {name!r}, which is kept")
        self._at("after", name)
        return msgspec.json.decode(text)

    def progress(self, share: float, text: str) -> None:
        """Nobody watches."""

    def _superseded(self) -> bool:
        return self.lineage.id != self.run.id or self.lineage.fence != self.run.fence

    def _at(self, where: str, name: str) -> None:
        if self.dead:
            raise Killed
        try:
            self.on((where, name))
        except Killed:
            self.dead = True
            raise
