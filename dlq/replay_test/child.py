"""The process inside the sandbox: it runs one payload after the other and tells how each ended, in plain words.

Not here: judging (`comparing`), and what becomes of this process when a payload kills it (`process`).
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, NoReturn
from uuid import UUID

import msgspec
from django.db import Error, connection, transaction

from dlq.replay_test import kernel, walls, words
from dlq.replay_test.database import Databases, SandboxFailed
from dlq.replay_test.touches import Kind, Touches
from queues.handlers import (
    AwaitingConfirmation,
    Confirmed,
    Handler,
    JobContext,
    PermanentError,
    Rejected,
    RetryLater,
    SoftTimeLimitExceeded,
    StepInvalid,
)
from queues.redaction import shape
from queues.runtime import limits, steps, story

_LENGTH: Final = 8
Stub = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is tried, and how. Units: limits in seconds, memory in bytes beyond what the process has already."""

    type: str
    function: Handler
    atomic: bool
    stub: Stub | None
    soft_limit: float
    hard_limit: float
    never_retry: tuple[str, ...]
    memory: int
    read_only: bool


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One payload to run, with the job that it had."""

    id: UUID
    payload: str
    idempotency_key: str
    group: str | None
    trace: str | None
    age: float
    left: float


Ended = Literal["returned", "raised", "crashed", "over_time", "stub_failed"]


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """How a run ended. Of an error only what may be shown, and what tells whether it is a known one."""

    ended: Ended
    returned: str = ""
    """`Confirmed`, `AwaitingConfirmation`, `None`, or the name of a class that is no outcome."""
    has_reference: bool = False
    result_shape: Any = None
    error_class: str = ""
    message: str = ""
    frame: str = ""
    reason: str = ""
    """What the job would be dead of at once; empty where another attempt may follow."""
    signature: str = ""
    fingerprints: tuple[str, ...] = ()
    touched: tuple[Kind, ...] = ()
    hooks: int = 0
    messages: int = 0
    whole: bool = True
    """Whether the process may run another payload."""


class Ready(msgspec.Struct, frozen=True):
    """The first word of a child. `problem`: its walls could not be built."""

    problem: str
    kernel: bool


def live(control: socket.socket, candidate: Candidate, touches: Touches, folder: str) -> NoReturn:
    """Be the child: build the walls, say so, then serve until the parent goes. Never returns into the parent's code."""
    try:
        _serve(control, candidate, touches, folder)
    except BaseException:  # whatever it was: the parent sees that this process has ended
        os._exit(70)
    os._exit(0)


def _serve(control: socket.socket, candidate: Candidate, touches: Touches, folder: str) -> None:
    os.setsid()
    kernel.die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    walls.hush()
    walls.drop_inherited(control.fileno())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    databases = Databases(touches, read_only=candidate.read_only)
    sent: list[None] = []
    try:
        databases.open()
    except (SandboxFailed, Error) as error:
        send(control, Ready(problem=str(error).strip() or type(error).__name__, kernel=False))
        return
    walls.no_broker(lambda: sent.append(None))
    _bound_memory(candidate.memory)
    walls.arm(touches, folder)
    listener = kernel.arm(control)
    send(control, Ready(problem="", kernel=listener is not None))
    if listener is not None:
        socket.send_fds(control, [b"L"], [listener])
        os.close(listener)
    run = _Runs(candidate, databases, touches, sent)
    while (task := receive(control, Task)) is not None:
        send(control, run.one(task))


def _bound_memory(more: int) -> None:
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            data = int(file.read().split()[5]) * resource.getpagesize()
    except FileNotFoundError:
        # Not Linux: no bound.
        return
    resource.setrlimit(resource.RLIMIT_DATA, (data + more, data + more))


class _Runs:
    def __init__(self, candidate: Candidate, databases: Databases, touches: Touches, sent: list[None]) -> None:
        self._candidate = candidate
        self._databases = databases
        self._touches = touches
        self._sent = sent

    def one(self, task: Task) -> Seen:
        """Run a payload in transactions that are rolled back."""
        self._touches.clear()
        self._sent.clear()
        self._databases.begin(seconds=self._candidate.hard_limit)
        seen = self._run(task)
        hooks, whole = self._databases.hooks(), self._databases.roll_back()
        return msgspec.structs.replace(
            seen, touched=self._touches.all(), hooks=hooks, messages=len(self._sent), whole=whole
        )

    def _run(self, task: Task) -> Seen:
        entered = False
        payload: Any = None
        try:
            payload = msgspec.json.decode(task.payload)
            with self._candidate.stub() if self._candidate.stub else contextlib.nullcontext():
                entered = True
                outcome = self._call(task)
                self._databases.commit_checks()
                return _returned(outcome, task.id)
        except BaseException as error:  # as a worker does: SystemExit ends a run, not the process
            if not entered:
                return _raised(error, payload, self._candidate, ended="stub_failed")
            return _raised(error, payload, self._candidate)

    def _call(self, task: Task) -> Any:
        context = _context(task, self._candidate.type)
        with limits.soft_limit(self._candidate.soft_limit):
            if not self._candidate.atomic:
                return self._candidate.function(context)
            with transaction.atomic():
                return self._candidate.function(context)


class _Steps:
    """Steps that run and are forgotten with their run, refused where a worker refuses them."""

    def __init__(self) -> None:
        self._done: dict[str, Any] = {}

    def once(self, name: str, function: Callable[[], Any]) -> Any:
        steps.check_name(name)
        if connection.in_atomic_block:
            raise StepInvalid(f"step {name!r} stands inside a transaction: its result would be lost with it")
        if name not in self._done:
            self._done[name] = msgspec.json.decode(steps.encoded(name, function()))
        return self._done[name]

    def progress(self, share: float, text: str) -> None:
        """Nobody watches."""


def _context(task: Task, kind: str) -> JobContext:
    """Return the context of a first attempt that begins now, at the age at which the recorded job last began."""
    now = time.time()
    return JobContext(
        id=task.id,
        type=kind,
        run=1,
        attempt=1,
        payload_text=task.payload,
        idempotency_key=task.idempotency_key,
        group=task.group,
        accepted_epoch=now - task.age,
        deadline_epoch=now + task.left,
        maybe_duplicate=False,
        trace_text=task.trace,
        _steps=_Steps(),
    )


def _returned(outcome: Any, job_id: UUID) -> Seen:
    known = isinstance(outcome, (Confirmed, AwaitingConfirmation))
    result = story.json_result(job_id, outcome.result) if isinstance(outcome, Confirmed) else None
    return Seen(
        ended="returned",
        returned="None" if outcome is None else type(outcome).__name__,
        has_reference=known and story.reference(outcome.ref) is not None,
        result_shape=None if result is None else shape(result),
    )


def _raised(error: BaseException, payload: Any, candidate: Candidate, *, ended: Ended = "raised") -> Seen:
    told = story.of_error(error, type=candidate.type)
    name, message = told.failure["error_class"], told.failure["message"]
    reason = _reason(error, candidate.never_retry)
    # A soft limit is a reason of its own in the last attempt only.
    reasons = {"", reason, "time_limit"} if isinstance(error, SoftTimeLimitExceeded) else {"", reason}
    return Seen(
        ended=ended,
        error_class=name,
        message=words.scrub(message, payload),
        frame=words.frame(error),
        reason=reason,
        signature=words.signature(name, message),
        fingerprints=tuple(
            sorted(story.of_error(error, type=candidate.type, reason=one).fingerprint for one in reasons)
        ),
    )


def _reason(error: BaseException, never_retry: tuple[str, ...]) -> str:
    """Return what ends the job at once, as the runtime decides it, or nothing."""
    if isinstance(error, RetryLater):
        return ""
    if isinstance(error, Rejected):
        return "rejected"
    final = isinstance(error, (PermanentError, StepInvalid))
    return "permanent_error" if final or any(one.__name__ in never_retry for one in type(error).__mro__) else ""


# The line between the two processes.


def send(control: socket.socket, value: Any) -> None:
    """Send one message. Shape: its length in 8 bytes, then MessagePack. Raises: OSError."""
    text = msgspec.msgpack.encode(value)
    control.sendall(len(text).to_bytes(_LENGTH, "big") + text)


def receive(control: socket.socket, kind: type[Any]) -> Any:
    """Return the next message, or None when the other side has gone."""
    head = _exactly(control, _LENGTH)
    body = None if head is None else _exactly(control, int.from_bytes(head, "big"))
    return None if body is None else msgspec.msgpack.decode(body, type=kind)


def _exactly(control: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        part = control.recv(min(size - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)
