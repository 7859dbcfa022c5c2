"""A type that asks for probes, and what is known of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from queues import contracts, lifecycle, outcomes, probes
from queues.models import Job, JobType, ProbeRun
from tests.factories import claim, failed, get, make_type, sql

KIND: Final = "probed.job"
EVERY: Final = 100
WINDOW: Final = 30
Clock = Callable[[str], None]


def a_type(name: str = KIND, **overrides: Any) -> JobType:
    """Make a type that asks for probes, with one that is due."""
    kind = make_type(
        name,
        **{
            "probe_every_seconds": EVERY,
            "probe_payload": {"n": 7},
            "window_seconds": WINDOW,
            "success": "reference",
            **overrides,
        },
    )
    due(name)
    return kind


def due(name: str = KIND) -> None:
    sql(
        "INSERT INTO queues_probe (type, next_at, failures) VALUES (%s, jobs_now() - interval '1 s', 0)"
        " ON CONFLICT (type) DO UPDATE SET next_at = excluded.next_at",
        name,
    )


def change(name: str = KIND, **fields: Any) -> None:
    JobType.objects.filter(name=name).update(**fields)
    contracts.forget()


def begin(name: str = KIND) -> tuple[ProbeRun, Job]:
    """Send one probe and return its run and its job."""
    due(name)
    assert probes.begin_due() == 1
    run = ProbeRun.objects.filter(type=name).latest("id")
    assert run.job_id is not None
    return run, get(run.job_id)


def settled() -> tuple[str, str, str]:
    """Settle what there is; return how the newest run went."""
    probes.settle_open()
    run = ProbeRun.objects.latest("id")
    return run.outcome, run.reason, run.detail


def now(name: str = KIND) -> outcomes.ProbeNow:
    [found] = [one for one in outcomes.probes() if one.type == name]
    return found


def bury(job: Job) -> None:
    failure = {"error_class": "Boom", "message": "no answer, Authorization: Bearer abc123def456", "traceback": ""}
    assert lifecycle.settle([failed(claim([job.id])[0], reason="permanent_error", failure=failure)])
