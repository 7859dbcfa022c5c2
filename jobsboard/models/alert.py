"""Alert rules, what they find, and the alerts that come of it: columns and constraints, no behaviour.

Not here: evaluating rules and opening alerts (`jobsboard.alerts.engine`), which alone writes findings and alerts.
"""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from queues.states import DEAD_REASONS


class Metric(models.TextChoices):
    """What a rule measures; how is said in `jobsboard.alerts.metrics`."""

    LAG = "lag", "Outcome lag: p95 as a multiple of the window"
    BURN_RATE = "burn_rate", "Promise: how fast the error budget burns"
    LATE_RATIO = "late_ratio", "Late and stale share of outcomes"
    DEAD_INFLOW = "dead_inflow", "New dead letters"
    DEAD_OPEN = "dead_open", "Unresolved dead letters"
    NEW_FAILURES = "new_failures", "Failures that nobody has seen before"
    REGRESSED_FAILURES = "regressed_failures", "Failures that came back after being resolved"
    REPLAY_PLANS_STOPPED = "replay_plans_stopped", "Replay plans that their stop rule holds"
    BACKLOG = "backlog", "Backlog: share of the tier's limit"
    OLDEST_OPEN = "oldest_open", "Oldest open job: age as a multiple of its window"
    NO_WORKER = "no_worker", "Seconds that a queue with work has no worker"
    NOT_CONSUMING = "not_consuming", "Seconds that a queue with free workers has begun nothing that is due"
    BREAKER_OPEN = "breaker_open", "Circuit breakers that hold jobs back: 1 while not closed"
    PROBE_FAILED = "probe_failed", "Probe: failures in a row"
    LIMBO = "limbo", "Jobs in limbo"
    WORKER_MEMORY = "worker_memory", "Memory of a worker, in MB"
    SUSPECTED_DUPLICATES = "suspected_duplicates", "Signs of duplicate effects"
    ROLLUP_AGE = "rollup_age", "Age of the numbers, in seconds"
    PARTITIONS_AHEAD = "partitions_ahead", "Days of partitions that are made ahead"
    UNDELIVERED = "undelivered", "Endpoint: failed deliveries in a row"
    UNMEASURED = "unmeasured", "Rules that cannot be measured"


class Severity(models.TextChoices):
    WARNING = "warning", "Warning"
    CRITICAL = "critical", "Critical"


class AlertRule(models.Model):
    """What is too much of what, for how long. Default rules are made by the code; a person may change them."""

    class Scope(models.TextChoices):
        ALL = "all", "Everything"
        TIER = "tier", "One tier"
        TYPE = "type", "One job type"

    class Comparison(models.TextChoices):
        ABOVE = "above", "above"
        AT_LEAST = "at_least", "at least"
        BELOW = "below", "below"

    name = models.CharField(max_length=100, unique=True)
    # Names a rule of the code (`jobsboard.alerts.defaults`); null is a rule of somebody's own.
    default_key = models.CharField(max_length=40, unique=True, null=True, blank=True, editable=False)
    # A default rule that a person changed: the code's newer numbers do not overwrite it.
    edited = models.BooleanField(default=False, db_default=False, editable=False)
    metric = models.CharField(max_length=20, choices=Metric.choices)
    scope = models.CharField(max_length=4, choices=Scope.choices, default=Scope.ALL)
    tier = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(3)]
    )
    # A name and no foreign key: a rule may stand before its type does.
    job_type = models.CharField(max_length=64, blank=True, default="", db_collation="C")
    reason = models.CharField(
        max_length=20, blank=True, default="", choices=[(r.value, r.value) for r in DEAD_REASONS],
        help_text="Of new dead letters: only those of this reason.",
    )  # fmt: skip
    over_seconds = models.PositiveIntegerField(
        default=300, validators=[MinValueValidator(60), MaxValueValidator(86_400)],
        help_text="The stretch of time that is measured, where the metric has one.",
    )  # fmt: skip
    least_events = models.PositiveIntegerField(
        default=0, help_text="Of shares and percentiles: with fewer events there is no value."
    )
    comparison = models.CharField(max_length=8, choices=Comparison.choices, default=Comparison.ABOVE)
    threshold = models.FloatField()
    # Hysteresis: what fires stays so until the value is on the good side of this.
    clear_threshold = models.FloatField(null=True, blank=True, help_text="Empty: the threshold itself.")
    for_seconds = models.PositiveIntegerField(default=0, validators=[MaxValueValidator(86_400)])
    clear_for_seconds = models.PositiveIntegerField(default=60, validators=[MaxValueValidator(86_400)])
    severity = models.CharField(max_length=8, choices=Severity.choices, default=Severity.WARNING)
    enabled = models.BooleanField(default=True, db_default=True)
    silenced_until = models.DateTimeField(null=True, blank=True)
    silenced_by = models.CharField(max_length=150, blank=True, default="", editable=False)
    runbook_url = models.CharField("Runbook URL", max_length=2000, blank=True, default="")
    # Why it could not be measured in the last round; empty is well.
    trouble = models.CharField(max_length=300, blank=True, default="", editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="alert_rule_scope_is_named",
                condition=models.Q(scope="all", tier=None, job_type="")
                | models.Q(scope="tier", tier__isnull=False, job_type="")
                | (models.Q(scope="type", tier=None) & ~models.Q(job_type="")),
            ),
            models.CheckConstraint(
                name="alert_rule_url_is_http",
                condition=models.Q(runbook_url="") | models.Q(runbook_url__regex="^https?://"),
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Alert(models.Model):
    """One cause that people were, or are to be, told of. Of a key one alert at most is open."""

    class State(models.TextChoices):
        FIRING = "firing", "Firing"
        ACKNOWLEDGED = "acknowledged", "Acknowledged"
        RESOLVED = "resolved", "Resolved"

    key = models.CharField(max_length=128, db_collation="C")
    state = models.CharField(max_length=12, choices=State.choices, default=State.FIRING)
    severity = models.CharField(max_length=8, choices=Severity.choices)
    title = models.CharField(max_length=200)
    tier = models.PositiveSmallIntegerField(null=True)
    job_type = models.CharField(max_length=64, blank=True, default="", db_collation="C")
    # What it consists of, also what has cleared since: {rule, rule_name, subject, severity, words, value, since,
    # cleared_at, runbook_url}.
    findings = models.JSONField(default=list)
    started_at = models.DateTimeField(db_default=Now())
    acknowledged_at = models.DateTimeField(null=True)
    acknowledged_by = models.CharField(max_length=150, blank=True, default="")
    note = models.CharField(max_length=1000, blank=True, default="")
    resolved_at = models.DateTimeField(null=True)
    # Nobody is told before then.
    silenced_until = models.DateTimeField(null=True)
    silenced_by = models.CharField(max_length=150, blank=True, default="")
    # Rises with every state that was told: of two messages the higher one is newer.
    sequence = models.IntegerField(default=0)
    # What endpoints were told last: "" nothing yet, else an event, with the severity and the findings of then.
    told = models.CharField(max_length=20, blank=True, default="")
    told_at = models.DateTimeField(null=True)
    told_severity = models.CharField(max_length=8, blank=True, default="")
    told_findings = models.JSONField(default=list)

    class Meta:
        constraints = [
            # One cause is one alert.
            models.UniqueConstraint(fields=["key"], condition=~models.Q(state="resolved"), name="alert_open_once"),
            models.CheckConstraint(
                name="alert_resolved_has_time",
                condition=models.Q(state="resolved", resolved_at__isnull=False)
                | (~models.Q(state="resolved") & models.Q(resolved_at=None)),
            ),
        ]
        indexes = [models.Index(fields=["started_at", "id"], name="alert_by_time")]

    def __str__(self) -> str:
        return self.title


class AlertFinding(models.Model):
    """A rule that is, was a moment ago, or soon will be breached for one subject. Gone when all is well again."""

    rule = models.ForeignKey(AlertRule, on_delete=models.CASCADE, related_name="found")
    subject = models.CharField(max_length=128, db_collation="C")
    tier = models.PositiveSmallIntegerField(null=True)
    job_type = models.CharField(max_length=64, blank=True, default="", db_collation="C")
    value = models.FloatField(null=True)
    words = models.CharField(max_length=300, blank=True, default="")
    since = models.DateTimeField()
    fired_at = models.DateTimeField(null=True)
    # Since when the value is on the good side again.
    well_since = models.DateTimeField(null=True)
    alert = models.ForeignKey(Alert, null=True, on_delete=models.SET_NULL, related_name="+")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["rule", "subject"], name="alert_finding_once")]

    def __str__(self) -> str:
        return f"{self.subject}: {self.words}"


class AlertClock(models.Model):
    """One row: when rules were evaluated last. Its lock lets one scheduler at a time do so."""

    id = models.SmallIntegerField(primary_key=True)
    # When a round began, which is its name; when one ended, however it did; and when one was kept that could measure
    # what is critical. Only the last says that alerts work.
    evaluated_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.evaluated_at}"
