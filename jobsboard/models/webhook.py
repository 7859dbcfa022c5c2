"""Webhook endpoints and the deliveries to them: columns and constraints, no behaviour.

Not here: making deliveries (`jobsboard.alerts.outbox`), sending them (`jobsboard.alerts.delivery`).
"""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from jobsboard.models.alert import Alert, Severity


class Event(models.TextChoices):
    """What an endpoint is told."""

    FIRING = "alert.firing", "Fires"
    UPDATED = "alert.updated", "Gets worse, or has another cause"
    ACKNOWLEDGED = "alert.acknowledged", "Acknowledged"
    RESOLVED = "alert.resolved", "Resolved"


TEST = "alert.test"
"""The event of a test; every endpoint takes it."""


def every_event() -> list[str]:
    """Return all events."""
    return [event.value for event in Event]


class WebhookEndpoint(models.Model):
    """Where alerts go. Address and secrets are sealed: of chat services the address is the secret."""

    class Format(models.TextChoices):
        STANDARD = "standard", "Standard Webhooks"
        SLACK = "slack", "Slack"
        ALERTMANAGER = "alertmanager", "Alertmanager v4"
        HEARTBEAT = "heartbeat", "Dead man's switch: a POST at an interval while alerts can leave"

    name = models.CharField(max_length=100, unique=True)
    format = models.CharField(max_length=12, choices=Format.choices, default=Format.STANDARD)
    url_sealed = models.BinaryField(editable=False)
    # Scheme, host and port of it, and a sign that there is more.
    url_shown = models.CharField(max_length=300, editable=False)
    events = models.JSONField(default=every_event)
    least_severity = models.CharField(max_length=8, choices=Severity.choices, default=Severity.WARNING)
    secret_sealed = models.BinaryField(null=True, editable=False)
    secret_at = models.DateTimeField(null=True, editable=False)
    # After a rotation both secrets sign until then.
    secret_old_sealed = models.BinaryField(null=True, editable=False)
    secret_old_until = models.DateTimeField(null=True, editable=False)
    every_seconds = models.PositiveIntegerField(
        default=60, validators=[MinValueValidator(10), MaxValueValidator(86_400)],
        help_text="Of a dead man's switch: how often it is told that all is well.",
    )  # fmt: skip
    next_beat_at = models.DateTimeField(null=True, editable=False)
    enabled = models.BooleanField(default=True, db_default=True)
    # Why it is not enabled any more, where not a person has said so.
    disabled_reason = models.CharField(max_length=300, blank=True, default="", editable=False)
    last_ok_at = models.DateTimeField(null=True, editable=False)
    last_failed_at = models.DateTimeField(null=True, editable=False)
    last_error = models.CharField(max_length=300, blank=True, default="", editable=False)
    # Tries that failed since the last success.
    failures = models.PositiveIntegerField(default=0, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.CharField(max_length=150, blank=True, default="", editable=False)

    def __str__(self) -> str:
        return self.name


class WebhookDelivery(models.Model):
    """One message to one endpoint, tried until it is settled. Its body never changes; its id is the `webhook-id`."""

    class State(models.TextChoices):
        PENDING = "pending", "Pending"
        DELIVERED = "delivered", "Delivered"
        SUPERSEDED = "superseded", "Superseded by a newer state of its alert"
        FAILED = "failed", "Given up"

    # "msg_" and 32 random hex digits.
    id = models.CharField(max_length=40, primary_key=True, db_collation="C")
    # They tell who was reached: an endpoint goes after them.
    endpoint = models.ForeignKey(WebhookEndpoint, on_delete=models.PROTECT, related_name="deliveries")
    # None: a test.
    alert = models.ForeignKey(Alert, null=True, on_delete=models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=20)
    # The alert's, at that time.
    sequence = models.IntegerField(default=0)
    body = models.TextField()
    state = models.CharField(max_length=10, choices=State.choices, default=State.PENDING)
    attempt = models.PositiveSmallIntegerField(default=0)
    # [{at, status, took_seconds, error, excerpt}], oldest first; excerpts are redacted and cut.
    attempts = models.JSONField(default=list)
    # When it is tried next; pushed ahead and committed before a try, so that a try that dies comes again.
    due_at = models.DateTimeField(null=True, db_default=Now())
    created_at = models.DateTimeField(db_default=Now())
    settled_at = models.DateTimeField(null=True)
    created_by = models.CharField(max_length=150, blank=True, default="")

    class Meta:
        verbose_name_plural = "webhook deliveries"
        constraints = [
            models.CheckConstraint(
                name="delivery_settles_once",
                condition=models.Q(state="pending", settled_at=None, due_at__isnull=False)
                | (~models.Q(state="pending") & models.Q(settled_at__isnull=False, due_at=None)),
            ),
        ]
        indexes = [
            models.Index(fields=["endpoint", "due_at"], condition=models.Q(state="pending"), name="delivery_due"),
            models.Index(fields=["endpoint", "-created_at"], name="delivery_of_endpoint"),
            models.Index(fields=["alert", "endpoint", "sequence"], name="delivery_of_alert"),
            models.Index(fields=["created_at"], name="delivery_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.endpoint_id}"
