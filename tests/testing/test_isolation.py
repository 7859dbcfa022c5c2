"""A test neither waits for a broker nor inherits contracts, and its bodies find the connection of a worker."""

from __future__ import annotations

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, connection, transaction

from jobsboard.testing import isolated
from jobsboard.testing.clock import running_ahead
from jobsboard.testing.session import session
from queues import broker, contracts
from queues.accept import enqueue
from queues.models import JobType
from tests.factories import TYPE, make_type, sql


def test_nobody_is_asked_to_publish(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the length of a queue nor after a commit; afterwards all is as it was."""
    monkeypatch.undo()
    before = broker.is_short, broker.publish
    monkeypatch.setattr(broker._channel, "call", lambda *_: pytest.fail("the broker was called"))
    make_type()
    with isolated():
        enqueue(TYPE, {})
        assert broker.publish([("tier2", [])])
    assert (broker.is_short, broker.publish) == before


def test_contracts_are_read_anew(db: None) -> None:
    """A test that was rolled back leaves none behind."""
    make_type()
    contracts.current(TYPE)
    JobType.objects.filter(name=TYPE).update(max_attempts=9)
    with isolated():
        assert contracts.current(TYPE).max_attempts == 9
        JobType.objects.filter(name=TYPE).update(max_attempts=8)
    assert contracts.current(TYPE).max_attempts == 8


def test_what_a_body_commits_goes_with_the_test(db: None) -> None:
    """Savepoints stand in for its transactions; what fails takes nothing of the test's along."""
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        User.objects.create(username="the test's")
        with session():
            User.objects.bulk_create([User(username="a"), User(username="b")])
            with pytest.raises(IntegrityError):
                User.objects.bulk_create([User(username="c"), User(username="a")])
            with pytest.raises(transaction.TransactionManagementError):
                User.objects.select_for_update().first()
        assert User.objects.count() == 3
        raise ZeroDivisionError
    assert User.objects.count() == 0


def test_the_tests_transaction_is_as_it_was(db: None) -> None:
    """Also after a body that raised in the middle of a transaction of its own."""
    hooks = len(connection.run_on_commit)
    transaction.on_commit(lambda: None)
    with pytest.raises(KeyboardInterrupt), session():
        transaction.set_autocommit(False)
        User.objects.create(username="left open")
        raise KeyboardInterrupt
    assert connection.in_atomic_block and not connection.autocommit
    assert len(connection.run_on_commit) == hooks + 1
    assert User.objects.count() == 0


def test_two_sessions_are_one(db: None) -> None:
    """A handler that runs another one finds nothing else than it has itself."""
    with session():
        ours = connection.connection
        with session():
            assert connection.connection is ours


def test_the_clock_comes_back_from_a_broken_transaction(db: None) -> None:
    """The rollback brings it."""
    with pytest.raises(IntegrityError), transaction.atomic(), running_ahead():
        User.objects.create(username="a")
        User.objects.create(username="a")
    assert sql("SELECT prosrc FROM pg_proc WHERE proname = 'jobs_clock'") == [("SELECT clock_timestamp()",)]
