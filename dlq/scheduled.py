"""What the scheduler does for dead letters."""

from dlq import triage
from dlq.plans import advance, keep
from queues.scheduler import Service
from queues.scheduler import register as add


def register() -> None:
    """Register the services of `dlq`."""
    add(Service(name="failure-groups", every_seconds=2.0, run_once=triage.Triage().run_once))
    add(Service(name="failure-groups-kept", every_seconds=600.0, run_once=triage.forget_gone))
    add(Service(name="replay-plans-kept", every_seconds=600.0, run_once=keep.forget_items))
    add(Service(name="replay-plans", every_seconds=0.25, run_once=advance.run_once))
