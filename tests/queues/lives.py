"""The job type of the tests of the lifecycle, and a way to change its contract."""

from __future__ import annotations

from typing import Any

import pytest

from queues import broker
from queues.models import JobType
from tests.factories import TYPE, make_type, sql


@pytest.fixture(autouse=True)
def kind(db: None, monkeypatch: pytest.MonkeyPatch) -> JobType:
    """A job type with five attempts and one second between them; no broker."""
    monkeypatch.setattr(broker, "is_short", lambda queue: False)
    return make_type(backoff="fixed", backoff_base_seconds=1.0)


def change_type(**values: Any) -> None:
    """Change the newest contract and its revision."""
    JobType.objects.filter(name=TYPE).update(**values)
    for name, value in values.items():
        sql("UPDATE queues_contractrevision SET fields = fields || jsonb_build_object(%s::text, %s)", name, value)
