"""The numbers that breakers are judged by: how they are written, folded and forgotten, and what readers see."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from django.db import connection

from queues import breakers, lifecycle
from queues.lifecycle import rollup
from queues.models import Dependency, DependencyCalls
from queues.outcomes.breakers import histories
from queues.scheduler import breakers as service
from queues.scheduler import housekeeping
from tests.factories import TYPE, confirmed, make_type, sql
from tests.queues.breaking import CRM, KIND, Shift, begin, call, changes, end, make_dependency, opened

pytestmark = pytest.mark.django_db
NOW: Final = datetime(2026, 5, 31, 12, 0, tzinfo=UTC)


def test_a_type_without_a_dependency_costs_nothing() -> None:
    """The statement that ends its runs is the one of before, and writes no row more."""
    make_dependency()
    make_type(TYPE)
    runs = begin(3, kind=TYPE)
    with _Statements() as seen:
        lifecycle.settle([confirmed(run) for run in runs])
    assert "queues_dependency" not in seen.text
    assert sql(_CALLED) == []
    runs = begin(3, kind=KIND)
    with _Statements() as seen:
        end(runs, "ok")
    assert "queues_dependency" in seen.text
    assert sql(_CALLED) == [("called.ok", 3, True)]


_CALLED: Final = """
SELECT measure, n, at = date_trunc('second', at) FROM queues_outcomedelta WHERE measure LIKE 'called%%'
"""


def _deltas() -> int:
    return int(sql("SELECT count(*) FROM queues_outcomedelta")[0][0])


class _Statements:
    """The text of what is sent to the database."""

    text = ""

    def __enter__(self) -> _Statements:
        self._wrapped = connection.execute_wrapper(self._take)
        self._wrapped.__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        self._wrapped.__exit__(*args)

    def _take(self, execute: Any, text: str, params: Any, many: bool, context: Any) -> Any:
        self.text += text
        return execute(text, params, many, context)


def _rollups() -> list[tuple[Any, ...]]:
    return sql(
        "SELECT to_jsonb(r) FROM queues_outcomerollup r UNION ALL SELECT to_jsonb(b) FROM queues_outcomebuckets b"
        " ORDER BY 1"
    )


def test_calls_are_folded_by_second_and_are_in_no_rollup(monkeypatch: pytest.MonkeyPatch) -> None:
    """I-35, I-24: also when a scheduler of the release before folds them: its counts are right, the calls are lost."""
    make_dependency()
    call(4, "ok")
    call(3, "failed")
    call(2, "slow")
    of_before = rollup.FOLD.replace("AND measure NOT LIKE 'called.%%'", "")
    start, stop = of_before.index("), called AS ("), of_before.index("), failed AS (")
    of_before = of_before[:start] + of_before[stop:]
    sql("SAVEPOINT before")
    lifecycle.fold()
    now = _rollups()
    # A second may pass between the three.
    assert sql("SELECT dependency, sum(ok), sum(failed), sum(slow), bool_and(at = date_trunc('second', at))"
               " FROM queues_dependencycalls GROUP BY 1") == [(CRM, 4, 3, 2, True)]  # fmt: skip
    call(1, "ok")
    # Alone in its hour, it makes no row of an hour.
    sql("UPDATE queues_outcomedelta SET at = at - interval '5 hours' WHERE measure LIKE 'called%%'")
    lifecycle.fold()
    assert sql("SELECT 1 FROM queues_outcomerollup WHERE grain = 'hour' AND at < jobs_now() - interval '3 h'") == []
    assert sum(DependencyCalls.objects.values_list("ok", flat=True)) == 5
    sql("ROLLBACK TO before")
    monkeypatch.setattr(rollup, "FOLD", of_before)
    lifecycle.fold()
    assert _rollups() == now
    assert _deltas() == DependencyCalls.objects.count() == 0


def test_calls_are_forgotten_after_a_day(shift_clock: Shift) -> None:
    make_dependency()
    opened()
    shift_clock("23 hours")
    housekeeping.forget_old()
    assert DependencyCalls.objects.exists()
    shift_clock("25 hours")
    housekeeping.forget_old()
    assert not DependencyCalls.objects.exists()
    assert len(changes()) == 1
    shift_clock("91 days")
    housekeeping.forget_old()
    assert changes() == []


def test_readers_need_one_statement(django_assert_num_queries: Any) -> None:
    make_dependency()
    make_type("mail.welcome", dependency="mail")
    service.run_once()
    opened()
    with django_assert_num_queries(1):
        crm, mail = breakers.standings()
    assert (crm.name, crm.state, crm.calls, crm.failed, crm.types) == (CRM, "open", 20, 20, (KIND,))
    assert (mail.name, mail.state, mail.calls, mail.ratio, mail.types) == ("mail", "closed", 0, None, ("mail.welcome",))
    assert breakers.standing("nobody") is None


def _flip(at: datetime, was: str, became: str) -> None:
    sql("INSERT INTO queues_breakerflip (dependency, at, was, became, why, by) VALUES (%s, %s, %s, %s, '', '')",
        CRM, at, was, became)  # fmt: skip


def test_history_shows_the_worst_of_each_part() -> None:
    minute = timedelta(minutes=1)

    def strip() -> list[str]:
        letters = {"closed": ".", "half_open": "h", "open": "O"}
        return ["".join(letters[s] for s in histories(since=NOW, now=NOW + 10 * minute, parts=10)[CRM])]

    make_dependency()
    assert strip() == [".........."]
    Dependency.objects.update(state="open")
    assert strip() == ["OOOOOOOOOO"]
    _flip(NOW + 2.5 * minute, "closed", "open")
    assert strip() == ["..OOOOOOOO"]
    _flip(NOW + 4.5 * minute, "open", "half_open")
    _flip(NOW + 4.6 * minute, "half_open", "closed")
    assert strip() == ["..OOO....."]
    _flip(NOW + 8.1 * minute, "closed", "open")
    _flip(NOW + 8.2 * minute, "open", "half_open")
    assert strip() == ["..OOO...Oh"]
    _flip(NOW - minute, "open", "closed")
    assert strip() == ["..OOO...Oh"]
