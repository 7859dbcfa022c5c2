"""Deltas that transitions write and the rollups that the fold makes of them; read by `queues.outcomes`."""

from django.db import models
from django.db.models.functions import Now


class OutcomeDelta(models.Model):
    """A change of counts, written by the statement that caused it and deleted by the fold that sums it.

    Shape: measure is a column of OutcomeRollup, one of OutcomeBuckets with a bucket, `open.<state>`, or
    `died.<reason code>.<fingerprint>` and `resolved.…` likewise (FailureCount).
    """

    at = models.DateTimeField()
    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    measure = models.CharField(max_length=32, db_collation="C")
    bucket = models.SmallIntegerField(default=-1)
    n = models.IntegerField()
    window_seconds = models.IntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.measure} {self.n:+d} {self.type}"


class OutcomeRollup(models.Model):
    """Counts of one type in one minute, hour or day, and in total (`at` is then the epoch).

    `ready`, `in_window`, `excluded` and `ended` belong to the cohort that became ready in that time; the others are
    counted when they happened. The ratio of a cohort is in_window / (ready - excluded), once its longest window has
    passed; ready - ended of it are open still. `window_least` 0 is not known.
    """

    pk = models.CompositePrimaryKey("grain", "at", "type", "tier")
    grain = models.CharField(
        max_length=6, db_collation="C", choices=[(g, g) for g in ("minute", "hour", "day", "total")]
    )
    at = models.DateTimeField()
    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    window_seconds = models.IntegerField(default=0)
    window_least = models.IntegerField(default=0, db_default=0)
    ready = models.BigIntegerField(default=0)
    in_window = models.BigIntegerField(default=0)
    excluded = models.BigIntegerField(default=0)
    ended = models.BigIntegerField(default=0, db_default=0)
    accepted = models.BigIntegerField(default=0)
    duplicates = models.BigIntegerField(default=0)
    confirmed = models.BigIntegerField(default=0)
    late = models.BigIntegerField(default=0, db_default=0)
    dead = models.BigIntegerField(default=0)
    expired = models.BigIntegerField(default=0)
    cancelled = models.BigIntegerField(default=0)
    replayed = models.BigIntegerField(default=0)
    runs = models.BigIntegerField(default=0)
    retries = models.BigIntegerField(default=0, db_default=0)
    failed = models.BigIntegerField(default=0)
    lost = models.BigIntegerField(default=0)
    late_evidence = models.BigIntegerField(default=0, db_default=0)
    contradictions = models.BigIntegerField(default=0, db_default=0)
    superseded = models.BigIntegerField(default=0, db_default=0)
    blind_attempts = models.BigIntegerField(default=0, db_default=0)
    second_references = models.BigIntegerField(default=0, db_default=0)
    confirmed_after_rejection = models.BigIntegerField(default=0, db_default=0)

    def __str__(self) -> str:
        return f"{self.grain} {self.at:%F %R} {self.type}"


class OutcomeBuckets(models.Model):
    """A histogram of one measure: how many in each bucket, of durations those of `queues.histogram`.

    Measures: `lag` (ready to confirmed), and the time that jobs spent in a stage, counted when they left it: `wait`
    (due to started), `run`, `lost` (a run that was given up), `backoff` (failed to due), `await`. Of `dead` a bucket is
    a reason (`states.REASON_CODES`). Type "" is all types of the tier together,
    and tier 0 with it all of them.
    """

    pk = models.CompositePrimaryKey("grain", "type", "at", "tier", "measure")
    grain = models.CharField(max_length=6, db_collation="C")
    type = models.CharField(max_length=64, db_collation="C", blank=True)
    at = models.DateTimeField()
    tier = models.SmallIntegerField()
    measure = models.CharField(max_length=8, db_collation="C")
    # {bucket: n}; merged by jobs_merge_counts.
    counts = models.JSONField()

    def __str__(self) -> str:
        return f"{self.measure} of {self.type}, {self.grain} {self.at:%F %R}"


class SuspectedDuplicate(models.Model):
    """A sign that one business action may have taken effect twice: what was seen, of which job and run, and when.

    Written by the transition that saw it. It outlives its job: the sign may be all that is left to look into.
    """

    class Kind(models.TextChoices):
        BLIND_ATTEMPT = "blind_attempt", "An attempt began without knowing how the one before had ended"
        SECOND_REFERENCE = "second_reference", "Two different external references for one business action"
        CONTRADICTION = "contradiction", "Rejected after it was confirmed"
        CONFIRMED_AFTER_REJECTION = "confirmed_after_rejection", "Confirmed after it was rejected"

    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    kind = models.CharField(max_length=25, db_collation="C", choices=Kind.choices)
    job_id = models.UUIDField()
    fence = models.IntegerField()
    at = models.DateTimeField()
    # {known, said} references, {error_class} of the attempt before, {detail} of a rejection.
    detail = models.JSONField(default=dict)

    class Meta:
        indexes = [
            models.Index(fields=["type", "id"], name="suspected_by_type"),
            models.Index(fields=["job_id"], name="suspected_by_job"),
            models.Index(fields=["at"], name="suspected_recent"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.type} {self.job_id}"


class StateCount(models.Model):
    """How many jobs of a type are in an open state now, and how many dead letters are unresolved, as far as folded.

    Probes are in none of these; those that wait are counted as the state `probe`.
    """

    pk = models.CompositePrimaryKey("type", "tier", "state")
    type = models.CharField(max_length=64, db_collation="C")
    tier = models.SmallIntegerField()
    state = models.CharField(max_length=21, db_collation="C")
    n = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"{self.type} {self.state} {self.n}"


class BoardVersion(models.Model):
    """One row whose number rises when a page could look different: polls that saw it get 304."""

    id = models.SmallIntegerField(primary_key=True)
    n = models.BigIntegerField(default=0)
    at = models.DateTimeField(db_default=Now())
    # When a fold last left no delta behind: what happened before is in the rollups.
    folded_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return str(self.n)
