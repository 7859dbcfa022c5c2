"""What was enqueued, and what happens to a job from outside: `assert_enqueued`, `confirm`, `expire_lease`."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from jobsboard.testing import pending
from queues import confirmation, lifecycle
from queues.confirmation import Evidence, Outcome
from queues.models import Job
from queues.request import Receipt
from queues.states import JobState

Wanted = Mapping[str, Any] | Callable[[Any], bool]
"""What a payload must have: members with these values, whatever stands beside them; or what says yes to it."""
_LISTED: Final = 30


def enqueued(
    type: str | None = None,  # noqa: A002 (the job's type)
    payload: Wanted | None = None,
    *,
    dedupe_key: str | None = None,
    group: str | None = None,
) -> list[Job]:
    """Return the accepted jobs that fit, the oldest first, in whatever state they are by now."""
    jobs = Job.objects.order_by("accepted_at", "id")
    if type is not None:
        jobs = jobs.of_type(type)
    if dedupe_key is not None:
        jobs = jobs.filter(dedupe_key=dedupe_key)
    if group is not None:
        jobs = jobs.filter(group=group)
    return [job for job in jobs if payload is None or _fits(_payload(job), payload)]


def assert_enqueued(
    type: str,  # noqa: A002 (the job's type)
    payload: Wanted | None = None,
    *,
    dedupe_key: str | None = None,
    group: str | None = None,
    count: int = 1,
) -> Job:
    """Insist that so many jobs were accepted that fit, and return the newest of them.

    `payload` names members and their values, others may stand beside them; or it is a function that says yes or no.
    Raises: AssertionError, with what was enqueued.
    """
    if count < 1:
        raise ValueError("to say that nothing was enqueued: assert not enqueued(...)")
    found = enqueued(type, payload, dedupe_key=dedupe_key, group=group)
    if len(found) != count:
        wanted = ", ".join(
            [
                repr(type),
                *([] if payload is None else [f"payload={payload!r}"]),
                *([] if dedupe_key is None else [f"dedupe_key={dedupe_key!r}"]),
                *([] if group is None else [f"group={group!r}"]),
            ]
        )
        raise AssertionError(f"{len(found)} jobs fit {wanted}, and not {count}. {_all_enqueued()}")
    return found[-1]


def confirm(
    job: Job | Receipt | UUID,
    ref: str | None = None,
    *,
    outcome: Literal["confirmed", "rejected"] = "confirmed",
    detail: str = "",
    retryable: bool = False,
    run: int | None = None,
) -> Outcome:
    """Say what a provider's callback says about a job, and return what that did (`applied`, `state`).

    `run` names an earlier run by its number, as the address that it was given does; else it is the newest one.
    Raises: JobNotFound.
    """
    found = _get(job)
    evidence = Evidence(
        outcome=outcome, ref=ref, detail=detail, retryable=retryable, run=found.fence if run is None else run
    )
    return confirmation.by_token(found.id, evidence)


def expire_lease(job: Job | Receipt | UUID) -> Job:
    """Lose a job's run, as after kill -9 of its worker. A job that waits is claimed first, and its worker dies at once.

    The job is run again as `on_worker_lost` says; whether the lost run had an effect is not known (`maybe_duplicate`).
    Raises: AssertionError when no run can be lost: the job is settled, awaits its proof, or cannot be claimed.
    """
    found = _get(job)
    if found.state != JobState.PROCESSING and pending.claim(found.id) is None:
        raise AssertionError(f"{_line(found)}: there is no run that could be lost, and none can begin")
    fence = Job.objects.values_list("fence", flat=True).get(id=found.id)
    lifecycle.rescue([found.id], dead_runs=[(found.id, fence)])
    return _get(found.id)


def _get(job: Job | Receipt | UUID) -> Job:
    job_id = job if isinstance(job, UUID) else job.job_id if isinstance(job, Receipt) else job.id
    found = Job.objects.filter(id=job_id).first()
    if found is None:
        raise confirmation.JobNotFound(str(job_id))
    return found


def _payload(job: Job) -> Any:
    return None if job.payload is None else msgspec.json.decode(job.payload)


def _fits(found: Any, wanted: Wanted) -> bool:
    return _contains(found, wanted) if isinstance(wanted, Mapping) else bool(wanted(found))


def _contains(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        return isinstance(found, Mapping) and all(
            key in found and _contains(found[key], value) for key, value in wanted.items()
        )
    return bool(found == wanted)


def _all_enqueued() -> str:
    jobs = enqueued()
    if not jobs:
        return "Nothing was enqueued."
    more = f"\n  and {len(jobs) - _LISTED} more" if len(jobs) > _LISTED else ""
    return "Enqueued were:\n" + "\n".join(f"  {_line(job)}" for job in jobs[:_LISTED]) + more


def _line(job: Job) -> str:
    named = [f"{name}={value!r}" for name, value in (("key", job.dedupe_key), ("group", job.group)) if value]
    return " ".join([job.type, str(job.payload)[:300], *named, f"({job.state})"])
