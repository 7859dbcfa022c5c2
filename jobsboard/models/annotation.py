"""Annotations: columns and constraints. Not here: writing them (`jobsboard.annotations`)."""

from django.db import models
from django.db.models.functions import Now

ANNOTATION_KINDS = ("deploy", "incident", "support")


class Annotation(models.Model):
    """Something that happened outside and may explain lag: a deploy, an incident, or people who asked support."""

    kind = models.CharField(max_length=10, choices=[(kind, kind) for kind in ANNOTATION_KINDS])
    at = models.DateTimeField(db_default=Now())
    # A name and no foreign key: what was seen stays when a type goes. Empty: about all types.
    job_type = models.CharField(max_length=64, blank=True, default="", db_collation="C")
    category = models.CharField(max_length=64, blank=True, default="")
    count = models.PositiveIntegerField(default=1)
    text = models.CharField(max_length=1000, blank=True, default="")
    url = models.CharField("URL", max_length=2000, blank=True, default="")
    created_by = models.CharField(max_length=150, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    idempotency_key = models.CharField(max_length=255, blank=True, default="", editable=False, db_collation="C")
    # Hex of SHA-256 over what was sent with the key.
    digest = models.CharField(max_length=64, blank=True, default="", editable=False)

    class Meta:
        indexes = [
            models.Index(fields=["at", "id"], name="annotation_by_time"),
            models.Index(fields=["job_type", "at", "id"], name="annotation_by_type"),
            models.Index(fields=["kind", "at", "id"], name="annotation_by_kind"),
        ]
        constraints = [
            # One key of a sender makes one annotation, however often it is sent.
            models.UniqueConstraint(
                fields=["created_by", "idempotency_key"],
                condition=~models.Q(idempotency_key=""),
                name="annotation_once_per_key",
            ),
            models.CheckConstraint(
                name="annotation_kind_is_known", condition=models.Q(kind__in=list(ANNOTATION_KINDS))
            ),
            models.CheckConstraint(name="annotation_counts_something", condition=models.Q(count__gte=1)),
            models.CheckConstraint(
                name="annotation_category_is_of_support",
                condition=(models.Q(kind="support") & ~models.Q(category=""))
                | (~models.Q(kind="support") & models.Q(category="", count=1)),
            ),
            models.CheckConstraint(
                name="annotation_url_is_http", condition=models.Q(url="") | models.Q(url__regex="^https?://")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.at:%F %R}"
