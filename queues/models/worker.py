"""Worker processes and schedulers as they report themselves, and the append-only audit log."""

from django.db import models
from django.db.models.functions import Now


class WorkerProcess(models.Model):
    """A live process: its heartbeat is `seen_at`; a row not seen for 30 s is gone."""

    id = models.CharField(max_length=200, primary_key=True)
    kind = models.CharField(max_length=10, choices=[("worker", "worker"), ("scheduler", "scheduler")])
    hostname = models.CharField(max_length=100)
    pid = models.IntegerField()
    queues = models.JSONField(default=list)
    slots = models.IntegerField(default=0)
    busy = models.IntegerField(default=0)
    memory_bytes = models.BigIntegerField(default=0)
    trouble = models.CharField(max_length=500, blank=True, db_default="", default="")
    # What its code knows (`queues.workers.RELEASE`); one of before this column says nothing, which is 0.
    release = models.PositiveSmallIntegerField(db_default=0, default=0)
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.id


class AuditEntry(models.Model):
    """Who did what, when, to which object, and why. A trigger refuses UPDATE, DELETE and TRUNCATE."""

    at = models.DateTimeField(db_default=Now())
    actor = models.CharField(max_length=150)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=200)
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    reason = models.CharField(max_length=1000, blank=True)
    source = models.CharField(max_length=10, default="ui", choices=[(s, s) for s in ("ui", "admin", "api", "command")])
    request_id = models.CharField(max_length=64, blank=True)

    class Meta:
        indexes = [
            models.Index(fields=["object_type", "object_id", "-id"], name="audit_by_object"),
            models.Index(fields=["at"], name="audit_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.actor} {self.action} {self.object_id}"
