"""A fixture: whatever a test did, the rollups count the signs that are there."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Iterator

import pytest

from jobsboard.testing import isolated
from queues import handlers, outcomes
from tests.factories import fold_all, sql
from tests.outcomes.deeds import COUNTED


@pytest.fixture
def counts_are_rows(db: None) -> Iterator[None]:
    """What the rollups count is the number of rows, in the totals and over a range."""
    known, asked = dict(handlers._handlers), dict(handlers._checks)
    with isolated():
        yield
    handlers._handlers.clear()
    handlers._handlers.update(known)
    handlers._checks.clear()
    handlers._checks.update(asked)
    fold_all()
    rows = Counter({kind: int(n) for kind, n in sql("SELECT kind, count(*) FROM queues_suspectedduplicate GROUP BY 1")})
    total = outcomes.add(outcomes.totals().counts.values())
    flow = outcomes.flow(outcomes.Span.of("1h", now=outcomes.board().now + dt.timedelta(minutes=2))).total()
    for counts in (total, flow):
        assert [getattr(counts, name) for name in COUNTED.values()] == [rows[kind] for kind in COUNTED]
        assert counts.suspected == rows.total()
