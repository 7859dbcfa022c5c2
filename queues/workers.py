"""Live worker and scheduler processes: they report themselves, pages and the stage read them."""

import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

from django.db import connection

from queues.models import WorkerProcess

GONE_SECONDS: Final = 15
SCHEDULER_GONE_SECONDS: Final = 5
RELEASE: Final = 1
"""Raised when processes of the release before would get something wrong that this one starts: 1 knows probes."""

_REPORT: Final = """
INSERT INTO queues_workerprocess AS w (id, kind, hostname, pid, queues, slots, busy, memory_bytes, trouble, release,
  started_at, seen_at)
VALUES (%s, %s, %s, %s, to_jsonb(%s::text[]), %s, %s, %s, %s, %s, jobs_clock(), jobs_clock())
ON CONFLICT (id) DO UPDATE SET seen_at = jobs_clock(), busy = excluded.busy, slots = excluded.slots,
  queues = excluded.queues, memory_bytes = excluded.memory_bytes, trouble = excluded.trouble,
  release = excluded.release
"""
_SLOTS: Final = """
SELECT q, sum(slots) FROM queues_workerprocess, jsonb_array_elements_text(queues) AS q
WHERE kind = 'worker' AND seen_at > jobs_now() - make_interval(secs => %s) GROUP BY q
"""
_OF_HOST: Final = """
SELECT id, trouble FROM queues_workerprocess
WHERE kind = 'worker' AND hostname = %s AND seen_at > jobs_now() - make_interval(secs => %s) ORDER BY id
"""
_SCHEDULERS: Final = """
SELECT id, hostname, pid FROM queues_workerprocess
WHERE kind = 'scheduler' AND seen_at > jobs_now() - make_interval(secs => %s) ORDER BY started_at, id
"""


def hostname() -> str:
    """Return this host's name as it stands in reports."""
    return socket.gethostname()[:100]


def own_id() -> str:
    """Return the id under which this process reports itself."""
    return f"{hostname()}/{os.getpid()}"


def is_first_scheduler() -> bool:
    """Say whether this scheduler is the one that publishes: the oldest alive.

    Only to save double hints; when two believe it for a moment, or none, nothing is lost or run twice.
    """
    with connection.cursor() as cursor:
        cursor.execute(_SCHEDULERS, [SCHEDULER_GONE_SECONDS])
        rows = cursor.fetchall()
    alive = [row[0] for row in rows if row[1] != hostname() or os.path.exists(f"/proc/{row[2]}")]
    return not alive or alive[0] == own_id()


def report(
    process_id: str,
    *,
    kind: str,
    hostname: str,
    pid: int,
    queues: Sequence[str] = (),
    slots: int = 0,
    busy: int = 0,
    trouble: str = "",
) -> None:
    """Say that a process lives, how busy it is, and what is wrong with it."""
    values: list[Any] = [
        process_id[:200], kind, hostname[:100], pid, list(queues), slots, busy, _family_memory(pid), trouble[:500],
        RELEASE,
    ]  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute(_REPORT, values)


def sign_off(process_id: str) -> None:
    """Take a process off the list: it ended in good order, or somebody saw its end."""
    WorkerProcess.objects.filter(id=process_id).delete()


def slots_by_queue() -> Mapping[str, int]:
    """Return how many bodies can run at once for each queue that live workers consume."""
    with connection.cursor() as cursor:
        cursor.execute(_SLOTS, [GONE_SECONDS])
        return {queue: int(slots) for queue, slots in cursor.fetchall()}


def of_host(name: str) -> Mapping[str, str]:
    """Return what the live workers of a host say is wrong with them, by their id; an empty text is well."""
    with connection.cursor() as cursor:
        cursor.execute(_OF_HOST, [name, GONE_SECONDS])
        return dict(cursor.fetchall())


def forget_gone(*, after_seconds: int = 3600) -> int:
    """Delete processes that have not reported for so long."""
    with connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM queues_workerprocess WHERE seen_at < jobs_now() - make_interval(secs => %s)", [after_seconds]
        )
        return int(cursor.rowcount)


def _family_memory(pid: int) -> int:
    """Return the resident bytes of a process and its children; 0 when it is not known."""
    total = 0
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            family = [pid, *map(int, file.read().split())]
        for member in family:
            with open(f"/proc/{member}/statm", encoding="ascii") as file:
                total += int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return total
    return total
