"""Probes and their runs: when each type is asked next, and what became of the runs of the last days.

Written by `queues.probes`, read by `queues.outcomes.probes`. The job of a run is a job like any other; nothing points
to its row.
"""

from django.db import models
from django.db.models.functions import Now


class Probe(models.Model):
    """One job type whose contract asks for probes. A run that was skipped changes neither success nor failures."""

    type = models.CharField(max_length=64, primary_key=True, db_collation="C")
    next_at = models.DateTimeField()
    # When the last run began.
    last_at = models.DateTimeField(null=True)
    last_ok_at = models.DateTimeField(null=True)
    # Since the first of the failures in a row ended.
    failing_since = models.DateTimeField(null=True)
    failures = models.PositiveIntegerField(default=0)
    # Seconds from ready to confirmed, of the last run that was confirmed.
    took_seconds = models.FloatField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="probe_fails_since",
                condition=models.Q(failures=0, failing_since=None)
                | models.Q(failures__gt=0, failing_since__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return self.type


class ProbeRun(models.Model):
    """One probe of a type: a job that was sent through the real path, and how that went."""

    class Outcome(models.TextChoices):
        RUNNING = "running", "Running"
        PASSED = "passed", "Passed"
        FAILED = "failed", "Failed"
        SKIPPED = "skipped", "Skipped"

    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    # None: nothing was accepted.
    job_id = models.UUIDField(null=True)
    window_seconds = models.IntegerField()
    begun_at = models.DateTimeField(db_default=Now())
    settled_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=7, choices=Outcome.choices, default=Outcome.RUNNING)
    # Seconds from ready to confirmed.
    took_seconds = models.FloatField(null=True)
    # Of a dead, expired or cancelled job its reason, else one of `queues.probes`.
    reason = models.CharField(max_length=24, blank=True, default="")
    detail = models.CharField(max_length=300, blank=True, default="")
    # When the proof came all the same, of a run that had failed by then.
    late_at = models.DateTimeField(null=True)
    # Who asked for it; "" is the schedule.
    by = models.CharField(max_length=150, blank=True, default="")

    class Meta:
        constraints = [
            # One run of a type at a time, however many schedulers and people ask.
            models.UniqueConstraint(fields=["type"], condition=models.Q(outcome="running"), name="probe_run_once"),
            models.CheckConstraint(
                name="probe_run_settles",
                condition=models.Q(outcome="running", settled_at=None)
                | (~models.Q(outcome="running") & models.Q(settled_at__isnull=False)),
            ),
        ]
        indexes = [
            models.Index(fields=["type", "id"], name="probe_run_by_type"),
            models.Index(fields=["begun_at"], name="probe_run_by_time"),
            # Failed ones whose proof may still come.
            models.Index(
                fields=["settled_at"], condition=models.Q(outcome="failed", late_at=None), name="probe_run_may_be_late"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.outcome}"
