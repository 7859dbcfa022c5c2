"""What tests of circuit breakers share: a dependency, runs that tell of it, rounds of the service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from django.db.models import F

from queues import breakers, contracts, lifecycle
from queues.breakers import Standing
from queues.lifecycle import End, Run, Verdict
from queues.models import BreakerFlip, Dependency
from queues.scheduler import breakers as service
from tests.factories import WORKER, accept, confirmed, failed, fold_all, make_type

CRM: Final = "crm"
KIND: Final = "crm.sync"
Shift = Callable[[str], None]


def make_dependency(*kinds: str, name: str = CRM, **settings: Any) -> None:
    """Make a dependency, closed for an hour, and job types that name it."""
    for kind in kinds or (KIND,):
        make_type(kind, dependency=name, max_attempts=100)
    service.run_once()
    Dependency.objects.filter(name=name).update(since=F("since") - timedelta(hours=1), **settings)


def claim(ids: Sequence[UUID]) -> list[Run]:
    """Claim as a worker does."""
    return lifecycle.claim(ids, worker=WORKER) or lifecycle.claim_limited(ids, worker=WORKER)


def begin(n: int = 1, *, kind: str = KIND) -> list[Run]:
    """Accept jobs and begin as many of them as may."""
    return claim(accept(n, kind=kind))


def told(run: Run, called: str | None) -> End:
    """Return the end of a run that says this of its dependency."""
    return failed(run, called=called, retry_in=60.0) if called == "failed" else confirmed(run, called=called)


def end(runs: Sequence[Run], called: str | None) -> None:
    """End runs, all in the same way."""
    lifecycle.settle([told(run, called) for run in runs])


def call(n: int, called: str | None, *, kind: str = KIND) -> None:
    """Let so many new jobs run and end so; all of them have to begin."""
    runs = begin(n, kind=kind)
    assert len(runs) == n
    end(runs, called)


def judged() -> Standing:
    """Fold what was told, do a round of the service, and return how the dependency stands."""
    fold_all()
    service.run_once()
    contracts.forget()
    return standing()


def standing(name: str = CRM) -> Standing:
    """Return how a dependency stands."""
    found = breakers.standing(name)
    assert found is not None
    return found


def opened() -> Standing:
    """Let its breaker open."""
    call(20, "failed")
    found = judged()
    assert found.state == "open"
    return found


def half_opened(shift: Shift, *, after: str = "31 s") -> Standing:
    """Let its breaker open, and try again after a while."""
    opened()
    shift(after)
    found = judged()
    assert found.state == "half_open"
    return found


def changes(name: str = CRM) -> list[tuple[str, str]]:
    """Return the changes of a breaker, oldest first."""
    return list(BreakerFlip.objects.filter(dependency=name).order_by("id").values_list("was", "became"))


def released(runs: Sequence[Run]) -> None:
    """Give runs back whose bodies never began."""
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.RELEASED) for run in runs])
