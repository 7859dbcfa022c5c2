"""Failures by fingerprint, counted by the fold, and what the outside world answered when it was asked about a job."""

from django.db import models

from queues.states import DEAD_REASONS


class FailureCount(models.Model):
    """How many jobs of a type died of one failure, ever, and how many of these dead letters are open now.

    One row for each (type, reason, fingerprint); an empty fingerprint is a death without an error (too old). Of a type
    only so many are told apart (`queues.lifecycle.FAILURES_MOST`): what comes then is one row for each reason, `*`.
    Written by the fold alone. Times are those of the minute.
    """

    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    reason = models.CharField(max_length=24, choices=[(r.value, r.value.replace("_", " ")) for r in DEAD_REASONS])
    fingerprint = models.CharField(max_length=32, db_collation="C", blank=True)
    died = models.BigIntegerField(default=0)
    open = models.BigIntegerField(default=0)
    first_at = models.DateTimeField()
    last_at = models.DateTimeField()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["type", "reason", "fingerprint"], name="failure_once"),
        ]
        indexes = [
            models.Index(fields=["last_at"], name="failure_recent"),
            models.Index(fields=["tier", "-last_at", "-id"], condition=models.Q(open__gt=0), name="failure_open"),
            models.Index(fields=["tier", "-last_at", "-id"], name="failure_listed"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.reason} {self.fingerprint}"


class FailureHour(models.Model):
    """How many died of one failure in one hour."""

    pk = models.CompositePrimaryKey("failure_id", "at")
    failure_id = models.BigIntegerField()
    at = models.DateTimeField()
    died = models.BigIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["at"], name="failure_hour_by_time")]

    def __str__(self) -> str:
        return f"{self.failure_id} {self.at:%F %R} {self.died}"


class FailureMinute(models.Model):
    """How many died of one failure in one minute, of the last day: alerts leave out those that somebody ignores."""

    pk = models.CompositePrimaryKey("failure_id", "at")
    failure_id = models.BigIntegerField()
    at = models.DateTimeField()
    died = models.BigIntegerField(default=0)

    class Meta:
        indexes = [models.Index(fields=["at"], name="failure_minute_by_time")]

    def __str__(self) -> str:
        return f"{self.failure_id} {self.at:%F %R} {self.died}"


class OutsideAnswer(models.Model):
    """What the check of a job type said about one job that has ended, when somebody asked before a replay.

    One row a job: asking again moves `asked_at`. An answer counts when it is newer than the question. Nothing here
    changes the job.
    """

    class Outcome(models.TextChoices):
        CONFIRMED = "confirmed", "The work was done"
        REJECTED = "rejected", "The work was refused"
        NONE = "none", "The work was not done"
        FAILED = "failed", "The check could not answer"
        NO_CHECK = "no_check", "There is no check to ask"

    job_id = models.UUIDField(primary_key=True)
    asked_at = models.DateTimeField()
    # While a worker asks: until when nobody else does.
    taken_until = models.DateTimeField(null=True)
    answered_at = models.DateTimeField(null=True)
    outcome = models.CharField(max_length=9, choices=Outcome.choices, blank=True, default="")
    reference = models.CharField(max_length=1000, blank=True, default="")
    detail = models.CharField(max_length=300, blank=True, default="")

    class Meta:
        indexes = [models.Index(fields=["asked_at"], name="outside_answer_by_time")]

    def __str__(self) -> str:
        return f"{self.job_id} {self.outcome}"
