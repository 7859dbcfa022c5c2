"""Hints to workers: publish ids, measure queues, ping. Best effort: every call ends soon and raises nothing.

A lost hint costs latency only: the scheduler publishes again what was not claimed (DESIGN.md section 8).
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from celery import current_app, uuid
from kombu import Connection, Producer
from kombu.exceptions import ChannelError

TASK: Final = "queues.run"
SOCKET_SECONDS: Final = 0.1
"""Connect and send are bounded by this each, so that a call ends within 200 ms."""
LEAVE_SECONDS: Final = 2.0
"""After a failure this process leaves publishing to the scheduler for so long."""
DEPTH_SECONDS: Final = 0.2
SHORT_QUEUE: Final = 16
"""With fewer messages waiting a new job is published at once, alone."""

log = logging.getLogger(__name__)
_T = TypeVar("_T")


class _Channel:
    """One connection of this process with short time-outs, made again after a failure or a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: Connection | None = None
        self._producer: Producer | None = None
        self._down_until = 0.0
        self._depths: dict[str, tuple[float, int]] = {}

    def forget(self) -> None:
        """Start afresh in a forked child: the parent's socket is not ours."""
        self.__init__()  # type: ignore[misc]

    @property
    def down(self) -> bool:
        return time.monotonic() < self._down_until

    def call(self, work: Callable[[Producer], _T], default: _T) -> _T:
        """Run `work` with a producer; on any failure return `default` and step back for LEAVE_SECONDS."""
        if self.down:
            return default
        # Waiting for a neighbour's call that hangs would add its wait to ours.
        if not self._lock.acquire(timeout=SOCKET_SECONDS):
            return default
        try:
            return work(self._ready_producer())
        except Exception as error:  # any failure of the broker or its client means the same: not published
            log.warning("broker does not answer, hints are left to the scheduler: %s", type(error).__name__)
            self._down_until = time.monotonic() + LEAVE_SECONDS
            self._close()
            return default
        finally:
            self._lock.release()

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

    def depth(self, queue: str, *, max_age: float) -> int | None:
        """Return how many messages wait, at most `max_age` seconds old; None when it is not known."""
        known = self._depths.get(queue)
        if known is not None and time.monotonic() - known[0] < max_age:
            return known[1]
        found = self.call(lambda producer: _declared_depth(producer, queue), None)
        if found is not None:
            self._depths[queue] = (time.monotonic(), found)
        return found


def _declared_depth(producer: Producer, queue: str) -> int | None:
    try:
        return int(producer.channel.queue_declare(queue=queue, passive=True).message_count)
    except ChannelError:
        # The queue is not there: nothing waits. Redis forgets empty lists.
        return 0


_channel: Final = _Channel()


def after_fork() -> None:
    """Forget the parent's connection."""
    _channel.forget()


def depth(queue: str, *, max_age: float = DEPTH_SECONDS) -> int | None:
    """Return how many messages wait in a queue, at most `max_age` seconds old; None when the broker does not say."""
    return _channel.depth(queue, max_age=max_age)


def is_short(queue: str) -> bool:
    """Say whether a new job should be published at once."""
    waiting = depth(queue)
    return waiting is not None and waiting < SHORT_QUEUE


def publish(hints: Sequence[tuple[str, Sequence[UUID]]]) -> bool:
    """Send (queue, ids) hints in one round trip. Returns False when none may have arrived."""
    if not hints:
        return True

    def send(producer: Producer) -> bool:
        with producer.batch(max_size=len(hints) + 1):
            for queue, ids in hints:
                _send_one(producer, queue, ids)
        return True

    return _channel.call(send, False)


def _send_one(producer: Producer, queue: str, ids: Sequence[UUID]) -> None:
    headers, properties, body, _ = _task_message([str(job_id) for job_id in ids])
    producer.publish(
        body, exchange="", routing_key=queue, serializer="json", headers=headers, retry=False, delivery_mode=1,
        **properties,
    )  # fmt: skip


def _task_message(ids: list[str]) -> Any:
    # argsrepr is given so that Celery does not write the ids a second time.
    return current_app.amqp.as_task_v2(uuid(), TASK, args=(ids,), argsrepr="", ignore_result=True)


def ping() -> bool:
    """Say whether the broker answers."""
    return depth("tier1") is not None
