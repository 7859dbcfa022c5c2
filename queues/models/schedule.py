"""Schedules: job types that the clock enqueues, and what became of their ticks.

Written by `queues.schedules`, read by `queues.outcomes.schedules`. The job of a tick is a job like any other.
"""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator, ProhibitNullCharactersValidator
from django.db import models
from django.db.models.functions import Now

from queues.models.contract import NAME, JobType


class Schedule(models.Model):
    """One line of cron in a time zone, and the job that each of its ticks enqueues.

    A tick that nobody saw in time (every scheduler was down, the schedule was paused) is missed; `catch_up` says what
    becomes of it.
    """

    class CatchUp(models.TextChoices):
        LATEST = "latest", "One job, for the newest missed tick"
        ALL = "all", "A job for each missed tick"
        SKIP = "skip", "None"

    name = models.CharField(
        max_length=64, primary_key=True, db_collation="C", validators=[NAME, ProhibitNullCharactersValidator()]
    )
    job_type = models.ForeignKey(JobType, on_delete=models.PROTECT, related_name="schedules")
    cron = models.CharField(max_length=200)
    timezone = models.CharField(max_length=64, default="UTC")
    # The text as it was written. In its strings {tick} and {date} stand for the tick's time and its local date.
    payload = models.TextField(default="{}")
    group = models.CharField(max_length=255, blank=True, default="")
    priority = models.SmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(-100), MaxValueValidator(100)]
    )
    catch_up = models.CharField(max_length=6, choices=CatchUp.choices, default=CatchUp.LATEST)
    description = models.CharField(max_length=500, blank=True, default="")

    paused = models.BooleanField(default=False, editable=False)
    paused_reason = models.CharField(max_length=1000, blank=True, default="", editable=False)
    paused_by = models.CharField(max_length=150, blank=True, default="", editable=False)
    paused_until = models.DateTimeField(null=True, editable=False)

    # The tick that is due next; null: its line names no time that comes.
    next_at = models.DateTimeField(null=True, editable=False)
    # The newest tick that was looked at, and the newest that became a job.
    last_at = models.DateTimeField(null=True, editable=False)
    last_job_at = models.DateTimeField(null=True, editable=False)
    last_job_id = models.UUIDField(null=True, editable=False)
    # Ticks in a row that were refused, and since when.
    refused = models.PositiveIntegerField(default=0, editable=False)
    refused_since = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    changed_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["next_at"], condition=models.Q(next_at__isnull=False), name="schedule_due")
        ]

    def __str__(self) -> str:
        return self.name


class ScheduleTick(models.Model):
    """One tick of a schedule, or one press of "run now": the job that came of it, or why none did."""

    class Outcome(models.TextChoices):
        ACCEPTED = "accepted", "Became a job"
        MISSED = "missed", "Missed"
        REFUSED = "refused", "Refused"

    schedule = models.CharField(max_length=64, db_collation="C")
    # When the line says; of a press the moment of the press.
    tick_at = models.DateTimeField()
    at = models.DateTimeField(db_default=Now())
    outcome = models.CharField(max_length=8, choices=Outcome.choices)
    job_id = models.UUIDField(null=True)
    # Of a missed stretch how many ticks it had, this one the newest; else 1.
    ticks = models.PositiveIntegerField(default=1)
    detail = models.CharField(max_length=300, blank=True, default="")
    # Who pressed; "" is the clock.
    by = models.CharField(max_length=150, blank=True, default="")

    class Meta:
        constraints: ClassVar = [
            # A tick becomes one job, however many schedulers look.
            models.UniqueConstraint(
                fields=["schedule", "tick_at"], condition=models.Q(by="", outcome="accepted"), name="schedule_tick_once"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["schedule", "tick_at"], name="schedule_tick_at"),
            models.Index(fields=["at"], name="schedule_tick_age"),
            models.Index(fields=["at"], condition=models.Q(outcome="missed"), name="schedule_tick_missed"),
        ]

    def __str__(self) -> str:
        return f"{self.schedule} {self.tick_at}"
