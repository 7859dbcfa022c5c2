"""A failure group: what people decided about one failure, beside the counts that the fold keeps."""

from django.db import models

from queues.states import DEAD_REASONS


class FailureGroup(models.Model):
    """One failure of one type: a fingerprint with its state, owner and note.

    Counts, first and last seen and the tier are `queues.models.FailureCount`'s row of the same id; nothing is counted
    here. That it is being replayed is read from the plans (`PlanFailure`) and not stored. `died_before` is its count
    when the group last changed its mind: a resolved group with more dead came back.
    """

    class State(models.TextChoices):
        OPEN = "open", "Open"
        REPLAYING = "replaying", "Being replayed"
        RESOLVED = "resolved", "Resolved"
        IGNORED = "ignored", "Ignored"

    # FailureCount's id.
    id = models.BigIntegerField(primary_key=True)
    type = models.CharField(max_length=64, db_collation="C")
    reason = models.CharField(max_length=24, choices=[(r.value, r.value.replace("_", " ")) for r in DEAD_REASONS])
    fingerprint = models.CharField(max_length=32, db_collation="C", blank=True)
    # The newest dead letter that was looked at, and what its last attempt said, redacted as it is stored there.
    sample = models.UUIDField(null=True)
    error_class = models.CharField(max_length=200, blank=True, default="")
    message = models.CharField(max_length=300, blank=True, default="")
    # `file:line function` of the innermost application frame.
    frame = models.CharField(max_length=300, blank=True, default="")
    state = models.CharField(max_length=9, choices=State.choices, default=State.OPEN)
    state_at = models.DateTimeField()
    # Who put it into its state; "system" is what the service saw.
    state_by = models.CharField(max_length=150, blank=True, default="")
    state_reason = models.CharField(max_length=1000, blank=True, default="")
    ignored_until = models.DateTimeField(null=True)
    note = models.CharField(max_length=1000, blank=True, default="")
    owner = models.CharField(max_length=150, blank=True, default="")
    died_before = models.BigIntegerField(default=0)
    # When it came back after it had been resolved, and how often it did.
    regressed_at = models.DateTimeField(null=True)
    regressions = models.IntegerField(default=0)
    # Not read: the release before wrote the plan here, and the state `replaying`, which counts as open.
    plan_id = models.UUIDField(null=True)
    # What the preflight found in the newest dead letters, from the database alone: {"looked": n, "verdicts":
    # {"safe": n, "unknown": n, "unsafe": n}, "against": {check: n}, "unknown": {check: n}, "notes": {check: n}}.
    triage = models.JSONField(null=True)
    triaged_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["type", "reason", "fingerprint"], name="group_once"),
            models.CheckConstraint(
                name="ignored_has_reason",
                condition=~models.Q(state="ignored") | ~models.Q(state_reason=""),
            ),
        ]
        indexes = [
            models.Index(fields=["plan_id"], condition=models.Q(plan_id__isnull=False), name="group_by_plan"),
            models.Index(fields=["id"], condition=models.Q(state="ignored"), name="group_ignored"),
        ]

    def __str__(self) -> str:
        return f"{self.type} {self.reason} {self.fingerprint}"
