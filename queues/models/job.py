"""The job and its dedupe key: columns and read-side filters. Only `queues.lifecycle` writes these tables.

The table is range-partitioned by id and guarded by triggers, which Django cannot declare: migration 0001
creates it in SQL, and `tests/queues/test_schema.py` holds this class against the catalogue.
"""

from __future__ import annotations

from typing import Any

from django.db import models
from django.db.models.functions import Now

from queues.states import OPEN, JobState, Resolution


class JsonText(models.TextField):  # type: ignore[type-arg]
    """A `json` column read as its text: the driver would parse it, and 1.0 or a repeated blank would be gone."""

    def select_format(self, compiler: Any, sql: str, params: Any) -> tuple[str, Any]:
        """Select the column as text."""
        return f"({sql})::text", params


class JobQuerySet(models.QuerySet["Job"]):
    """Filters with a name; each is served by an index of migration 0001."""

    def open(self) -> JobQuerySet:
        """Jobs without an outcome yet."""
        return self.filter(state__in=OPEN)

    def dead_letters(self) -> JobQuerySet:
        """Dead jobs that nobody has replayed, cancelled or set aside."""
        return self.filter(state=JobState.DEAD, resolution=Resolution.OPEN)

    def of_type(self, name: str) -> JobQuerySet:
        """Jobs of one type."""
        return self.filter(type=name)


class Job(models.Model):
    """One accepted job: the row is the truth, whatever a message says."""

    id = models.UUIDField(primary_key=True)
    state = models.CharField(max_length=21, choices=[(s.value, s.value.replace("_", " ")) for s in JobState])
    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    priority = models.SmallIntegerField(default=0)
    contract_version = models.IntegerField()
    attempt = models.SmallIntegerField(default=0)
    attempt_limit = models.SmallIntegerField()
    fence = models.IntegerField(default=0)
    crashes = models.SmallIntegerField(default=0)
    begun = models.SmallIntegerField(default=0)
    alone = models.BooleanField(default=False)
    # How the last run of its lineage ended is not known, and nobody has asked since.
    unknown_end = models.BooleanField(default=False)
    cancel_requested = models.BooleanField(default=False)
    probe = models.BooleanField(default=False)
    canary = models.BooleanField(default=False)
    window_seconds = models.IntegerField()
    due_at = models.DateTimeField(null=True)
    ready_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    confirm_by = models.DateTimeField(null=True)
    accepted_at = models.DateTimeField()
    published_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    # When it came into its state; of a job that waits for its time, that time.
    entered_at = models.DateTimeField(null=True)
    settled_at = models.DateTimeField(null=True)
    request_hash = models.BinaryField(max_length=32)
    dedupe_key = models.CharField(max_length=255, null=True, db_collation="C")  # noqa: DJ001 (null: no key)
    idempotency_key = models.CharField(max_length=64)
    group = models.CharField(max_length=255, null=True, db_collation="C")  # noqa: DJ001 (null: no group)
    worker = models.CharField(max_length=200, null=True)  # noqa: DJ001 (null: no run yet)
    reason = models.CharField(max_length=24, null=True)  # noqa: DJ001 (null: not settled badly)
    fingerprint = models.CharField(max_length=32, null=True)  # noqa: DJ001 (null: never failed)
    replay_of = models.UUIDField(null=True)
    replayed_by = models.UUIDField(null=True)
    root = models.UUIDField()
    seq = models.BigIntegerField(null=True)
    resolution = models.CharField(max_length=9, null=True)  # noqa: DJ001 (null: nothing to resolve)
    resolved_at = models.DateTimeField(null=True)
    resolved_by = models.CharField(max_length=150, null=True)  # noqa: DJ001 (null: nobody yet)
    erased_at = models.DateTimeField(null=True)
    # Awaiting: whether a check is asked; its claims without any answer, and its answers in a row that were none.
    polled = models.BooleanField(default=False)
    checks = models.SmallIntegerField(default=0)
    check_failures = models.SmallIntegerField(default=0)
    reference = models.CharField(max_length=1000, null=True)  # noqa: DJ001 (null: none yet)
    # Evidence: {kind, ref, at, run}. Late evidence, a list: what came and could not count, {outcome, detail} beside it.
    # Rejection: {fence, ref, detail, retryable, at}, of the run that is still going on.
    evidence = models.JSONField(null=True)
    rejection = models.JSONField(null=True)
    late_evidence = models.JSONField(null=True)
    result = models.JSONField(null=True)
    progress = models.JSONField(null=True)
    failures = models.JSONField(default=list)
    trace = models.JSONField(null=True)
    # `json`, not `jsonb`: the text is kept as it was sent. Django gives it back as that text.
    payload = JsonText(null=True)  # noqa: DJ001 (null: erased)

    objects = JobQuerySet.as_manager()

    class Meta:
        managed = False
        db_table = "queues_job"

    def __str__(self) -> str:
        return f"{self.type} {self.id}"


class DedupeKey(models.Model):
    """The holder of a business key: one accepted job per (type, key) in its window."""

    pk = models.CompositePrimaryKey("type", "key")
    type = models.CharField(max_length=64, db_collation="C")
    key = models.CharField(max_length=255, db_collation="C")
    request_hash = models.BinaryField(max_length=32)
    job_id = models.UUIDField()
    expires_at = models.DateTimeField(null=True)
    accepted_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.type} {self.key}"
