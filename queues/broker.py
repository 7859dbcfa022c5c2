"""Hints to workers: publish ids, measure queues, ping. Best effort: every call ends soon and raises nothing.

A lost hint costs latency only: the scheduler publishes again what was not claimed (DESIGN.md section 8).
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, TypeVar
from uuid import UUID

from celery import current_app, uuid
from kombu import Connection, Producer
from kombu.exceptions import ChannelError

from queues.faults import fault

TASK: Final = "queues.run"
CHECK_TASK: Final = "queues.check"
OUTSIDE_TASK: Final = "queues.outside"
CANARY_TASK: Final = "queues.canary"
SOCKET_SECONDS: Final = 0.1
"""Connect and send are bounded by this each."""
CALL_SECONDS: Final = 0.2
"""No caller waits longer, whatever hangs."""
LEAVE_SECONDS: Final = 2.0
"""After a failure this process leaves publishing to the scheduler for so long."""
DEPTH_SECONDS: Final = 0.2
SHORT_QUEUE: Final = 16
"""With fewer messages waiting a new job is published at once, alone."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Call(Generic[_T]):
    """One piece of work for the broker thread, and its answer."""

    def __init__(self, work: Callable[[Producer], _T], default: _T) -> None:
        self.work = work
        self.answer = default
        self.failed = False
        self.abandoned = False
        self.done = threading.Event()


class _Channel:
    """One connection of this process, made again after a failure or a fork, used by one daemon thread.

    The thread is there for the bound: a resolver takes no time limit, and no producer is to wait for it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._calls: queue.SimpleQueue[_Call[Any]] = queue.SimpleQueue()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._down_until = 0.0
        self._depths: dict[str, tuple[float, int]] = {}

    def forget(self) -> None:
        """Start afresh in a forked child: the parent's socket and thread are not ours."""
        self.__init__()  # type: ignore[misc]

    @property
    def down(self) -> bool:
        return time.monotonic() < self._down_until

    def call(self, work: Callable[[Producer], _T], default: _T) -> _T:
        """Run `work` with a producer; on any failure return `default` and step back for LEAVE_SECONDS."""
        if self.down:
            return default
        self._start()
        call = _Call(work, default)
        self._calls.put(call)
        if not call.done.wait(CALL_SECONDS):
            call.abandoned = True
            self._step_back("no answer in time")
            return default
        return default if call.failed else call.answer

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="broker", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        while True:
            call = self._calls.get()
            try:
                if not call.abandoned:
                    call.answer = call.work(self._ready_producer())
            except Exception as error:  # any failure of the broker or its client means the same: not published
                call.failed = True
                self._step_back(type(error).__name__)
                self._close()
            call.done.set()

    def _step_back(self, why: str) -> None:
        if not self.down:
            log.warning("broker does not answer, hints are left to the scheduler: %s", why)
        self._down_until = time.monotonic() + LEAVE_SECONDS

    def _ready_producer(self) -> Producer:
        if self._producer is None:
            options = {
                **current_app.conf.broker_transport_options,
                "socket_timeout": SOCKET_SECONDS,
                "socket_connect_timeout": SOCKET_SECONDS,
                "retry_on_timeout": False,
                # kombu's own defaults would try again after two seconds, in the caller's request.
                "max_retries": 1,
                "interval_start": 0,
                "interval_step": 0,
                "interval_max": 0,
            }
            self._connection = current_app.connection_for_write(
                transport_options=options, connect_timeout=SOCKET_SECONDS
            )
            self._producer = Producer(self._connection.default_channel, auto_declare=False)
        return self._producer

    def _close(self) -> None:
        connection, self._connection, self._producer = self._connection, None, None
        if connection is not None:
            try:
                connection.release()
            except Exception as error:  # a broken socket may fail again while it is closed
                log.debug("closing the broker connection failed: %s", error)

    def depth(self, name: str, *, max_age: float) -> int | None:
        """Return how many messages wait, at most `max_age` seconds old; None when it is not known."""
        known = self._depths.get(name)
        if known is not None and time.monotonic() - known[0] < max_age:
            return known[1]
        found = self.call(lambda producer: _declared_depth(producer, name), None)
        if found is not None:
            self._depths[name] = (time.monotonic(), found)
        return found


def _declared_depth(producer: Producer, name: str) -> int | None:
    try:
        return int(producer.channel.queue_declare(queue=name, passive=True).message_count)
    except ChannelError:
        # The queue is not there: nothing waits. Redis forgets empty lists.
        return 0


_channel: Final = _Channel()


def after_fork() -> None:
    """Forget the parent's connection."""
    _channel.forget()


def depth(name: str, *, max_age: float = DEPTH_SECONDS) -> int | None:
    """Return how many messages wait in a queue, at most `max_age` seconds old; None when the broker does not say."""
    return _channel.depth(name, max_age=max_age)


def is_short(name: str) -> bool:
    """Say whether a new job should be published at once."""
    waiting = depth(name)
    return waiting is not None and waiting < SHORT_QUEUE


def publish(hints: Sequence[tuple[str, Sequence[UUID]]], *, task: str = TASK) -> bool:
    """Send (queue, ids) hints in one round trip. Returns False when none may have arrived."""
    if not hints:
        return True

    def send(producer: Producer) -> bool:
        fault("publish.inside")
        with producer.batch(max_size=len(hints) + 1):
            for name, ids in hints:
                _send_one(producer, name, ids, task=task)
        return True

    return _channel.call(send, False)


def _send_one(producer: Producer, name: str, ids: Sequence[UUID], *, task: str) -> None:
    headers, properties, body, _ = _task_message([str(job_id) for job_id in ids], task=task)
    producer.publish(
        body, exchange="", routing_key=name, serializer="json", headers=headers, retry=False, delivery_mode=1,
        **properties,
    )  # fmt: skip


def _task_message(ids: list[str], *, task: str) -> Any:
    # argsrepr is given so that Celery does not write the ids a second time.
    return current_app.amqp.as_task_v2(uuid(), task, args=(ids,), argsrepr="", ignore_result=True)


def ping() -> bool:
    """Say whether the broker answers."""
    return depth("tier1") is not None
