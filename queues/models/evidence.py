"""What comes from outside about jobs, and what their runs left behind: callbacks, references, results of steps.

None of these has a foreign key to a job (DESIGN.md section 7); prune removes them with it.
"""

from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Now


def _digest(column: str) -> Func:
    # A reference may be longer than an index entry can be.
    return Func(F(column), Value(0), function="hashtextextended")


class Callback(models.Model):
    """A provider's callback as it came: the inbox of those that match no job yet, and the memory of those that did.

    A provider sends the same id again when our answer got lost; the second one must not count for a later run.
    """

    type = models.CharField(max_length=64, db_collation="C")
    webhook_id = models.CharField(max_length=255, db_collation="C")
    job_id = models.UUIDField(null=True)
    ref = models.CharField(max_length=1000, blank=True)
    outcome = models.CharField(max_length=9, choices=[("confirmed", "confirmed"), ("rejected", "rejected")])
    run = models.IntegerField(null=True)
    retryable = models.BooleanField(default=False)
    detail = models.CharField(max_length=2000, blank=True)
    received_at = models.DateTimeField(db_default=Now())
    keep_until = models.DateTimeField()
    applied_at = models.DateTimeField(null=True)
    applied = models.CharField(max_length=16, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["type", "webhook_id"], name="one_callback_per_id")]
        indexes = [
            models.Index("type", _digest("ref"), name="callback_pending", condition=Q(applied_at=None)),
            models.Index(fields=["received_at"], name="callback_recent", condition=Q(applied_at=None)),
            models.Index(fields=["keep_until"], name="callback_keep"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.webhook_id} {self.outcome}"


class JobReference(models.Model):
    """A reference that a run got from outside and that awaits its proof: it names the job and the run."""

    type = models.CharField(max_length=64, db_collation="C")
    ref = models.CharField(max_length=1000)
    job_id = models.UUIDField()
    fence = models.IntegerField()
    at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [
            models.Index("type", _digest("ref"), name="reference_by_ref"),
            models.Index(fields=["job_id"], name="reference_by_job"),
            models.Index(fields=["at"], name="reference_recent"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.ref}"


class StepResult(models.Model):
    """What a step of a handler returned. It belongs to the lineage: a replay does not do the step again."""

    pk = models.CompositePrimaryKey("root", "name")
    root = models.UUIDField()
    name = models.CharField(max_length=100, db_collation="C")
    job_id = models.UUIDField()
    fence = models.IntegerField()
    result = models.JSONField(null=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [models.Index(fields=["job_id"], name="step_by_job")]

    def __str__(self) -> str:
        return f"{self.root} {self.name}"
