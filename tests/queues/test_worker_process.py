"""What a pool process does with the signals that it gets while a body runs."""

from __future__ import annotations

import os
import signal

import pytest

from queues import worker_process
from queues.worker_process import undisturbed


@pytest.fixture(autouse=True)
def in_a_pool_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process._Worker, "main_pid", 1)


def test_the_first_sigterm_passes_by_and_the_second_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-17: a supervisor tells every process of a service; the worker itself drains."""
    seen: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    try:
        with undisturbed():
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert seen == [signal.SIGTERM]
        os.kill(os.getpid(), signal.SIGTERM)
        assert len(seen) == 2
    finally:
        signal.signal(signal.SIGTERM, before)


def test_what_a_body_forks_can_be_ended() -> None:
    """It inherits the handler, and has no worker that drains it."""
    with undisturbed():
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGTERM
