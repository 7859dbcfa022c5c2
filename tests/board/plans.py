"""Dead letters of two failures on a board, and plans made of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from django.test import Client

from dlq import triage
from dlq.models import FailureGroup, ReplayPlan
from dlq.plans import advance
from dlq.plans.create import PlanRequest, create
from dlq.plans.selection import Selection
from dlq.replaying import Who
from queues import contracts, lifecycle
from queues.models import FailureCount, OutcomeRollup
from tests.board.verdicts import hidden
from tests.dlq.deaths import die, fold
from tests.factories import claim, confirmed, sql

ANN = Who(actor="ann", reason="the relay is back", source="ui")
BULK = "/dlq/bulk/"
HTMX = {"HX-Request": "true"}


def failure(n: int = 3, *, kind: str = "mail.send", seen: bool = True, **named: Any) -> tuple[FailureCount, list[UUID]]:
    """Let jobs die of one failure, folded, and where `seen` met and judged by the service."""
    ids = die(n, kind=kind, **{"reason": "attempts_exhausted", "message": "connection reset", **named})
    fold()
    if seen:
        triage.run_once()
    return FailureCount.objects.get(type=kind, fingerprint=named.get("fingerprint", "f" * 16)), ids


def healthy(kind: str = "mail.send") -> None:
    """Let what a type calls be well whatever died of it, also when the minute turns."""
    for ahead in range(3):
        at = sql("SELECT date_trunc('minute', jobs_now()) + make_interval(mins => %s)", ahead)[0][0]
        OutcomeRollup.objects.create(grain="minute", at=at, type=kind, tier=3, runs=10_000)


def judge_again() -> None:
    """Let the service judge all groups again."""
    FailureGroup.objects.update(triaged_at=None)
    triage.run_once()


def plan(*ids: UUID, **overrides: Any) -> ReplayPlan:
    """Make a plan of jobs."""
    request = PlanRequest(**{
        "action": "replay", "selection": Selection(ids=ids), "types": list(contracts.all_current()), "who": ANN,
        **overrides,
    })  # fmt: skip
    return create(request)[0]


def step(found: ReplayPlan, *, seconds: float = 2.0) -> ReplayPlan:
    """Do one step of a plan, as the service would after so long."""
    sql("UPDATE dlq_replayplan SET paced_at = paced_at - make_interval(secs => %s) WHERE id = %s", seconds, found.id)
    sql("UPDATE dlq_planitem SET looked_at = looked_at - make_interval(secs => 10) WHERE plan_id = %s", found.id)
    advance.advance(found.id)
    return ReplayPlan.objects.get(id=found.id)


def succeed(*ids: UUID) -> None:
    """Run jobs and confirm them."""
    lifecycle.settle([confirmed(run) for run in claim(list(ids))])


def all_of(group: FailureCount, *, verb: str = "replay") -> dict[str, str]:
    """Return what the link to the dialog for all dead letters of a failure says."""
    return {"verb": verb, "failure": str(group.pk), "all": "1"}


def form_of(client: Client, *, verb: str = "replay", **given: Any) -> dict[str, Any]:
    """Open the dialog; return what its form sends. Ids are a list, as a browser sends them."""
    response = client.get(BULK, {"verb": verb, **given})
    assert response.status_code == 200, response.text
    return {"reason": "the relay is back", **hidden(response), **({"ids": given["ids"]} if "ids" in given else {})}
