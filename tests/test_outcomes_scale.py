"""The jobs that `benchmarks.scale` draws: their rollups are those of their rows, and a wrong one would be seen."""

import datetime as dt

import pytest

from benchmarks.scale import jobs, rollups, truth
from tests.factories import sql

pytestmark = pytest.mark.django_db
JOBS = 2_000


def test_seeded_rollups_equal_their_jobs() -> None:
    """Every state is drawn, one job in a hundred is open, all counts are the rows', and one count more is noticed."""
    now: dt.datetime = sql("SELECT jobs_now()")[0][0]
    jobs.make_kinds()
    jobs.make_partitions(now)
    jobs.draw(JOBS, now=now)
    jobs.insert(now=now)
    assert rollups.write_deltas(now=now) > JOBS
    rollups.fold_and_forget()
    assert sql("SELECT count(*) FROM queues_outcomedelta") == [(0,)]

    found = dict(sql("SELECT state, count(*) FROM queues_job GROUP BY state"))
    open_states = ("accepted", "processing", "retrying", "awaiting_confirmation")
    assert sum(found[state] for state in open_states if state in found) == JOBS / 100
    assert all(found.get(state) for state in ("confirmed", "dead", "expired", "cancelled", "accepted", "retrying"))
    compared, wrong = truth.differences()
    assert wrong == [], "\n".join(wrong)
    assert compared > 40

    for table, of, change in (
        ("queues_outcomerollup", "grain = 'hour' AND confirmed > 0", "confirmed = confirmed + 1"),
        ("queues_outcomebuckets", "grain = 'day' AND measure = 'lag' AND type > ''", "counts = '{\"239\": 1}'"),
        ("queues_statecount", "n > 0", "n = n + 1"),
    ):
        sql(f"UPDATE {table} SET {change} WHERE ctid = (SELECT min(ctid) FROM {table} WHERE {of})")
    names = {line.partition(":")[0] for line in truth.differences()[1]}
    assert names == {"hour confirmed", "day histogram lag", "states now"}
