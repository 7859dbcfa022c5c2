"""Fields, constraints and read-side filters; statements that write jobs are in `queues.lifecycle`."""

from queues.models.contract import ContractRevision, JobType, Tier
from queues.models.evidence import Callback, JobReference, StepResult
from queues.models.failure import FailureCount, FailureHour, FailureMinute, OutsideAnswer
from queues.models.flow import Breaker, BreakerFlip, Dependency, DependencyCalls, FlowState, OverlapState
from queues.models.job import DedupeKey, Job, JobQuerySet
from queues.models.outcome import (
    BoardVersion,
    OutcomeBuckets,
    OutcomeDelta,
    OutcomeRollup,
    StateCount,
    SuspectedDuplicate,
)
from queues.models.probe import Probe, ProbeRun
from queues.models.schedule import Schedule, ScheduleTick
from queues.models.worker import AuditEntry, WorkerProcess

__all__ = [
    "AuditEntry",
    "BoardVersion",
    "Breaker",
    "BreakerFlip",
    "Callback",
    "ContractRevision",
    "DedupeKey",
    "Dependency",
    "DependencyCalls",
    "FailureCount",
    "FailureHour",
    "FailureMinute",
    "FlowState",
    "Job",
    "JobQuerySet",
    "JobReference",
    "JobType",
    "OutcomeBuckets",
    "OutcomeDelta",
    "OutcomeRollup",
    "OutsideAnswer",
    "OverlapState",
    "Probe",
    "ProbeRun",
    "Schedule",
    "ScheduleTick",
    "StateCount",
    "StepResult",
    "SuspectedDuplicate",
    "Tier",
    "WorkerProcess",
]
