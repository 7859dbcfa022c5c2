"""Limits of flow and circuit breakers: what claims share about a type, a group, a dependency.

Which runs hold a lease is counted from the jobs themselves; here is only what cannot be derived from them.
"""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from queues.models.contract import NAME


class Breaker(models.TextChoices):
    """Whether work goes to a dependency."""

    CLOSED = "closed", "Closed"
    OPEN = "open", "Open"
    HALF_OPEN = "half_open", "Half open"


class FlowState(models.Model):
    """What claims of a limited type (group "") or of one of its groups lock, and the tokens of its rate.

    `tokens` null: the bucket is full. Written by `lifecycle.claim_limited` alone, swept when it says nothing.
    """

    pk = models.CompositePrimaryKey("type", "group")
    type = models.CharField(max_length=64, db_collation="C")
    group = models.CharField(max_length=255, blank=True, db_collation="C")
    tokens = models.FloatField(null=True)
    filled_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return f"{self.type} {self.group}".strip()


class OverlapState(models.Model):
    """What accepts of a merging type lock, by type and group ("" for jobs without one).

    Apart from FlowState: a producer that has not committed yet holds up its own kind, and no claim.
    """

    pk = models.CompositePrimaryKey("type", "group")
    type = models.CharField(max_length=64, db_collation="C")
    group = models.CharField(max_length=255, blank=True, db_collation="C")
    # Its newest job, when that is ready, and since when it and those whose place it has taken have waited.
    newest = models.UUIDField(null=True)
    ready_at = models.DateTimeField(null=True)
    since = models.DateTimeField(null=True)
    # Waits for a worker so long that it keeps its place: newer ones merge behind it.
    kept = models.UUIDField(null=True)
    touched_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes: ClassVar = [models.Index(fields=["touched_at"], name="overlap_touched")]

    def __str__(self) -> str:
        return f"{self.type} {self.group}".strip()


class Dependency(models.Model):
    """Something outside that job types need, and the circuit breaker that guards it."""

    name = models.CharField(max_length=64, primary_key=True, db_collation="C", validators=[NAME])
    description = models.CharField(max_length=300, blank=True, default="")
    timeout_seconds = models.FloatField(default=5, validators=[MinValueValidator(0.1), MaxValueValidator(300)])
    error_ratio = models.FloatField(default=0.5, validators=[MinValueValidator(0.01), MaxValueValidator(1)])
    # 0: a slow call is no failure.
    slow_seconds = models.FloatField(default=0, validators=[MinValueValidator(0)])
    minimum_calls = models.PositiveIntegerField(default=20, validators=[MinValueValidator(1)])
    window_seconds = models.PositiveIntegerField(default=60, validators=[MinValueValidator(5), MaxValueValidator(600)])
    reset_seconds = models.PositiveIntegerField(default=30, validators=[MinValueValidator(1), MaxValueValidator(3600)])
    trial_jobs = models.PositiveIntegerField(default=3, validators=[MinValueValidator(1), MaxValueValidator(100)])

    state = models.CharField(max_length=9, choices=Breaker.choices, default=Breaker.CLOSED, editable=False)
    since = models.DateTimeField(db_default=Now(), editable=False)
    why = models.CharField(max_length=300, blank=True, default="", editable=False)
    # When an open breaker lets trials through.
    retry_at = models.DateTimeField(null=True, editable=False)
    # How many trials a half open breaker still lets begin.
    trials_left = models.IntegerField(default=0, editable=False)
    # A person holds it open or closed, until then.
    forced = models.CharField(max_length=9, blank=True, default="", editable=False)
    forced_by = models.CharField(max_length=150, blank=True, default="", editable=False)
    forced_reason = models.CharField(max_length=1000, blank=True, default="", editable=False)
    forced_until = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name_plural = "dependencies"

    def __str__(self) -> str:
        return self.name


class DependencyCalls(models.Model):
    """How runs went that needed a dependency, by second of their end; folded from deltas, kept for a day.

    `trials_*` are those that a half open breaker let through; they are in no other count.
    """

    pk = models.CompositePrimaryKey("dependency", "at")
    dependency = models.CharField(max_length=64, db_collation="C")
    at = models.DateTimeField()
    ok = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    slow = models.IntegerField(default=0)
    trials_ok = models.IntegerField(default=0)
    trials_failed = models.IntegerField(default=0)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["at"], name="dependency_calls_at")]

    def __str__(self) -> str:
        return f"{self.dependency} {self.at}"


class BreakerFlip(models.Model):
    """One change of a breaker's state: when, from what to what, why, by whom ("" for the breaker itself)."""

    dependency = models.CharField(max_length=64, db_collation="C")
    at = models.DateTimeField(db_default=Now())
    was = models.CharField(max_length=9, choices=Breaker.choices)
    became = models.CharField(max_length=9, choices=Breaker.choices)
    why = models.CharField(max_length=300)
    by = models.CharField(max_length=150, blank=True)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["dependency", "at"], name="breaker_flip_at")]

    def __str__(self) -> str:
        return f"{self.dependency} {self.became} at {self.at}"
