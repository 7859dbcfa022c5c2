"""What goes wrong and when: the same list for the same seed.

Not here: how a fault is done (`faults.py`). When it really happens may be later than planned: a fault waits for its
victim to be there.
"""

import random
from dataclasses import dataclass
from typing import Final

KINDS: Final[dict[str, int]] = {
    "worker": 4,  # SIGKILL of a worker, its pool and its heartbeat process
    "worker_not_heart": 4,  # SIGKILL of a worker and its pool; the heartbeat process lives to tell
    "worker_child": 8,  # SIGKILL of one pool process
    "heart": 1,  # SIGKILL of the heartbeat process
    "worker_paused": 1,  # SIGSTOP of a worker with pool and heartbeat process
    "worker_paused_heart": 1,  # the same, and SIGKILL of its heartbeat process, which nobody starts again meanwhile
    "pool_paused": 1,  # SIGSTOP of a worker's pool; its heartbeat process goes on
    "scheduler": 3,  # SIGKILL
    "web_worker": 3,  # SIGKILL of one gunicorn worker
    "web": 1,  # SIGKILL of gunicorn, master and workers
    "flush": 3,  # FLUSHALL
    "valkey": 2,  # SIGKILL; it comes back empty
    "postgres": 1,  # immediate stop; it comes back by crash recovery
    "backends": 4,  # pg_terminate_backend of some
    "pool_exhausted": 1,  # every connection that PostgreSQL has is held by somebody else
    "wire_reset": 3,  # all connections between a worker and the broker end by a reset
    "wire_swallow": 1,  # the same connections stay open and carry nothing any more
    "wire_hole": 1,  # for a time nothing passes between a worker and the broker, new connections neither
    "clock": 4,  # the wall clock of a process jumps by hours
}


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. `pick` in [0, 1) chooses the victim among those that are there."""

    at: float
    kind: str
    pick: float


def plan(seed: int, *, seconds: float, every: float) -> list[Fault]:
    """Return the faults of a run: every kind once where there is room, then by weight, in random order."""
    chance = random.Random(seed)
    count = max(1, int(seconds / every))
    kinds = list(KINDS)
    chance.shuffle(kinds)
    kinds += chance.choices(list(KINDS), weights=list(KINDS.values()), k=max(0, count - len(kinds)))
    kinds = kinds[:count]
    chance.shuffle(kinds)
    times = sorted(chance.uniform(0, seconds) for _ in kinds)
    return [Fault(at=at, kind=kind, pick=chance.random()) for at, kind in zip(times, kinds, strict=True)]
