"""Tables of the composing application: keys, annotations, alerts and webhooks. What writes them is named in each."""

from jobsboard.models.access import RATE_MAX, RATE_MIN, SCOPES, ApiKey, ApiKeyBucket, LoginAttempt, every_type
from jobsboard.models.alert import Alert, AlertClock, AlertFinding, AlertRule, Metric, Severity
from jobsboard.models.annotation import ANNOTATION_KINDS, Annotation
from jobsboard.models.webhook import TEST, Event, WebhookDelivery, WebhookEndpoint, every_event

__all__ = [
    "ANNOTATION_KINDS",
    "RATE_MAX",
    "RATE_MIN",
    "SCOPES",
    "TEST",
    "Alert",
    "AlertClock",
    "AlertFinding",
    "AlertRule",
    "Annotation",
    "ApiKey",
    "ApiKeyBucket",
    "Event",
    "LoginAttempt",
    "Metric",
    "Severity",
    "WebhookDelivery",
    "WebhookEndpoint",
    "every_event",
    "every_type",
]
