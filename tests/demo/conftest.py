"""A demo directory of the test's own, and jobs as handlers see them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from jobsboard.demo import place
from queues.handlers import AwaitingConfirmation, Confirmed, JobContext

MakeContext = Callable[..., JobContext]


@pytest.fixture(autouse=True)
def demo_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be a demo, in a directory that nobody else has."""
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "demo"))
    return place.directory()


@pytest.fixture
def context() -> MakeContext:
    """Return a function that makes the context of a run."""

    def make(type: str, payload: dict[str, Any], **overrides: Any) -> JobContext:  # noqa: A002
        values: dict[str, Any] = {
            "id": uuid4(),
            "type": type,
            "run": 1,
            "attempt": 1,
            "payload_text": msgspec.json.encode(payload).decode(),
            "idempotency_key": "jb_" + "1" * 32,
            "group": None,
            "accepted_epoch": 0.0,
            "deadline_epoch": 0.0,
            "maybe_duplicate": False,
        }
        return JobContext(**{**values, **overrides})

    return make


def confirmed(found: object) -> Confirmed:
    """Insist that a handler brought evidence."""
    assert isinstance(found, Confirmed)
    return found


def awaiting(found: object) -> AwaitingConfirmation:
    """Insist that a handler waits for its proof."""
    assert isinstance(found, AwaitingConfirmation)
    return found
