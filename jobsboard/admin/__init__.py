"""The Django admin of keys, annotations, alert rules and endpoints; contracts have theirs in `queues.admin`."""

from jobsboard.admin import access, alerts, annotations, webhooks

__all__ = ["access", "alerts", "annotations", "webhooks"]
