"""How services run beside each other."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import pytest

from queues import workers
from queues.scheduler import registered, service
from queues.scheduler.service import Service, register, run_forever


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """A stop that nobody forgot; the scheduler's own reports go nowhere."""
    monkeypatch.setattr(workers, "report", lambda *_, **__: None)
    monkeypatch.setattr(workers, "sign_off", lambda *_: None)
    monkeypatch.setattr(service, "REPORT_SECONDS", 0.01)
    monkeypatch.setattr(service, "connection", _NoConnection())
    return threading.Event()


class _NoConnection:
    def close(self) -> None:
        """Do nothing."""


def _run(stop: threading.Event, done: threading.Event, *services: Service) -> None:
    def ender() -> None:
        done.wait(10)
        stop.set()

    thread = threading.Thread(target=ender)
    thread.start()
    run_forever(services, stop=stop)
    thread.join()
    assert done.is_set()


def _counting(n: int, done: threading.Event, more: bool = False) -> Callable[[], bool]:
    rounds = iter(range(n - 1))

    def run_once() -> bool:
        if next(rounds, None) is None:
            done.set()
        return more

    return run_once


def test_a_service_that_hangs_delays_no_other(stop: threading.Event) -> None:
    """DESIGN 8: each in a thread of its own; a stop does not wait for it for ever."""
    done, released = threading.Event(), threading.Event()
    hung = Service(name="hung", every_seconds=0.001, run_once=lambda: released.wait(10))
    busy = Service(name="busy", every_seconds=0.001, run_once=_counting(20, done))

    def release() -> None:
        done.wait(10)
        released.set()

    done_after = threading.Thread(target=release)
    done_after.start()
    _run(stop, done, hung, busy)
    done_after.join()


def test_a_service_that_fails_goes_on(stop: threading.Event, caplog: pytest.LogCaptureFixture) -> None:
    """It steps back and tries again; the log says what happened."""
    done = threading.Event()
    rounds = iter([1, 2])

    def run_once() -> bool:
        if next(rounds, None) is not None:
            raise ValueError("one bad round")
        done.set()
        return False

    _run(stop, done, Service(name="flaky", every_seconds=0.001, run_once=run_once))
    assert caplog.text.count("one bad round") == 2


def test_more_to_do_is_done_at_once(stop: threading.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    """`True` means that the next round does not wait for the next time."""
    monkeypatch.setattr(random, "random", lambda: 0.0)
    done = threading.Event()
    _run(stop, done, Service(name="sweep", every_seconds=60.0, run_once=_counting(5, done, more=True)))


def test_services_have_one_name_each() -> None:
    """Registering twice, as Django's `ready` may, makes no second loop."""
    before = registered()
    register(Service(name="stage", every_seconds=1, run_once=lambda: False))
    assert registered() == before
    assert {"stage", "rescue", "expire", "rollup", "housekeeping"} <= {s.name for s in registered()}
