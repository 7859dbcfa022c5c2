"""A worker that lives and no longer takes messages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from django.core.management import CommandError, call_command

from queues import broker, workers
from queues.runtime import heartbeat, leases
from queues.runtime.ear import CANARY_SHARE, Ear
from queues.runtime.heartbeat import DEAF_GRACE, REPLACE_GRACE, Heart
from queues.runtime.leases import LeaseTable

AFTER = 75.0


class World:
    """The clock, and a broker that takes canaries or not."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.takes = True
        self.sent = 0

    def publish(self, hints: Any, *, task: str) -> bool:
        """Take a canary."""
        assert (task, hints) == (broker.CANARY_TASK, [("canary.w@host", [])])
        self.sent += self.takes
        return self.takes


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """A clock and a broker of the test's."""
    made = World()
    monkeypatch.setattr(leases, "now", lambda: made.now)
    monkeypatch.setattr(heartbeat, "now", lambda: made.now)
    monkeypatch.setattr(broker, "publish", made.publish)
    return made


def passing(world: World, ear: Ear, seconds: float, *, busy: bool = False, hear: LeaseTable | None = None) -> bool:
    """Let time pass, a second at a time; with `hear` each canary comes through. Says whether it ever was deaf."""
    deaf = False
    for _ in range(int(seconds)):
        sent = world.sent
        deaf = ear.is_deaf(busy=busy) or deaf
        world.now += 1
        if hear is not None and world.sent > sent:
            hear.hear()
    return deaf


def test_a_worker_that_takes_its_canaries_is_well(world: World) -> None:
    """I-23: asked a few times a minute, for ever."""
    table = LeaseTable()
    ear = Ear(table, queue="canary.w@host", deaf_after=AFTER)
    assert not passing(world, ear, 1000, hear=table)
    assert world.sent == pytest.approx(1000 / (AFTER / CANARY_SHARE), abs=2)


def test_a_worker_that_takes_none_is_deaf(world: World) -> None:
    """I-23: found within two minutes, from whatever moment it fell deaf."""
    table = LeaseTable()
    ear = Ear(table, queue="canary.w@host", deaf_after=AFTER)
    passing(world, ear, 100, hear=table)
    assert not passing(world, ear, AFTER)
    assert passing(world, ear, 120 - AFTER)


@pytest.mark.parametrize("excuse", ["busy", "broker down", "broker down at times", "switched off"])
def test_what_says_nothing_about_the_worker(world: World, excuse: str) -> None:
    """I-23: busy bodies take no canary; a broker that is down takes none either: a restart would help neither."""
    table = LeaseTable()
    ear = Ear(table, queue="canary.w@host", deaf_after=0 if excuse == "switched off" else AFTER)
    world.takes = excuse != "broker down"
    for _ in range(10):
        assert not passing(world, ear, 40, busy=excuse == "busy")
        if excuse == "broker down at times":
            world.takes = not world.takes


@pytest.fixture
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a worker that hears nothing, not even SIGTERM."""
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.django_db
@pytest.mark.parametrize("running", [False, True])
def test_a_deaf_worker_is_replaced(world: World, worker: subprocess.Popen[bytes], running: bool) -> None:
    """I-23: health turns red, nothing new begins; it ends at once when idle, else its bodies get a minute."""
    table = LeaseTable()
    ear = Ear(table, queue="canary.w@host", deaf_after=AFTER)
    heart = Heart(table, parent=worker.pid, node=workers.hostname(), queues=["tier2"], slots=2, ear=ear)
    heart.beat()
    call_command("worker_health")
    if running:
        job_id = uuid4()
        slot = table.take_slot()
        slot.hold(job_id, 1, 1e9, since=world.now)
        slot.begin(job_id, 1, hard_limit=0.0)
    for _ in range(90):
        world.now += 1
        heart.ear.is_deaf(busy=False)
    heart.beat()
    assert heart.deaf
    heart.stop_what_is_deaf()
    assert table.draining
    heart.beat()
    with pytest.raises(CommandError, match="takes no messages any more"):
        call_command("worker_health")
    world.now += REPLACE_GRACE + 1
    heart.stop_what_is_deaf()
    if running:
        assert worker.poll() is None
        world.now += DEAF_GRACE
        heart.stop_what_is_deaf()
    assert worker.wait(20) == -9


@pytest.mark.django_db
def test_a_host_without_workers_is_not_well() -> None:
    """Nobody reports: that is no health."""
    with pytest.raises(CommandError, match="no worker of this host"):
        call_command("worker_health")
