"""API keys, login attempts and annotations: columns and constraints.

Not here: issuing and checking keys (`jobsboard.api.keys`), writing annotations (`jobsboard.annotations`).
"""

from django.db import models
from django.db.models.functions import Now

SCOPES = ("jobs:write", "jobs:read", "jobs:confirm", "dlq:read", "dlq:replay")


def every_type() -> list[str]:
    """Return the patterns of a key that may use every job type."""
    return ["*"]


class ApiKey(models.Model):
    """What is kept of a key: its public part and a digest of the whole. The key itself is shown once, then gone."""

    prefix = models.CharField(max_length=8, unique=True, db_collation="C", editable=False)
    # Hex of SHA-256: 256 random bits need no slow hash.
    digest = models.CharField(max_length=64, editable=False)
    label = models.CharField(max_length=100)
    scopes = models.JSONField(default=list)
    type_patterns = models.JSONField(default=every_type)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    created_by = models.CharField(max_length=150, blank=True, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)

    class Meta:
        verbose_name = "API key"
        constraints = [
            models.CheckConstraint(name="api_key_digest_is_sha256", condition=models.Q(digest__regex="^[0-9a-f]{64}$")),
            models.CheckConstraint(
                name="api_key_prefix_is_public_part", condition=models.Q(prefix__regex="^[0-9A-Za-z]{8}$")
            ),
        ]

    def __str__(self) -> str:
        return f"{self.label} (jb_live_{self.prefix})"


class LoginAttempt(models.Model):
    """One try to log in, counted for a minute. `who` is a keyed digest of account and address, never a name."""

    who = models.CharField(max_length=64, db_collation="C")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [models.Index(fields=["who", "at"], name="login_attempts_of")]

    def __str__(self) -> str:
        return f"{self.who[:8]} {self.at:%F %T}"


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
