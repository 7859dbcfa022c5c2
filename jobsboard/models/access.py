"""API keys, their rates, and login attempts: columns and constraints.

Not here: issuing and checking keys (`jobsboard.api.keys`); what spends of a rate (`jobsboard.api.rate`).
"""

from django.db import models
from django.db.models.functions import Now

SCOPES = ("jobs:write", "jobs:read", "jobs:confirm", "dlq:read", "dlq:replay")


RATE_MIN = 0.001
RATE_MAX = 1_000_000


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
    rate_per_second = models.FloatField(
        null=True,
        blank=True,
        verbose_name="jobs a second",
        help_text="How many jobs the key may send a second, over all web processes. A batch counts by its jobs, and a "
        "job that is refused or a duplicate counts too. More is answered with 429. Empty or 0: no limit.",
    )
    rate_burst = models.PositiveIntegerField(
        default=0,
        db_default=0,
        blank=True,
        verbose_name="jobs at once",
        help_text="How many jobs it may send at once after a rest. 0: what one second brings, at least one. A batch of "
        "more jobs than this is taken only when nothing of it is spent; what it takes too much is waited for after.",
    )
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
            # NaN, which PostgreSQL holds for the greatest number, is no rate either.
            models.CheckConstraint(
                name="api_key_rate_is_sane",
                condition=(
                    models.Q(rate_per_second=None)
                    | models.Q(rate_per_second=0)
                    | models.Q(rate_per_second__range=(RATE_MIN, RATE_MAX))
                )
                & models.Q(rate_burst__lte=RATE_MAX),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.label} (jb_live_{self.prefix})"


class ApiKeyBucket(models.Model):
    """What is left of a key's rate: jobs that it may send at once, as of a time; below 0 after a large batch.

    Not columns of the key: every request reads that row, and many would wait for its writes. A key without a bucket
    has a full one. Written by `jobsboard.api.rate` alone.
    """

    key = models.OneToOneField(ApiKey, on_delete=models.CASCADE, primary_key=True, related_name="bucket")
    tokens = models.FloatField()
    filled_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.key_id}: {self.tokens:g}"


class LoginAttempt(models.Model):
    """One try to log in, counted for a minute. `who` is a keyed digest of account and address, never a name."""

    who = models.CharField(max_length=64, db_collation="C")
    at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes = [models.Index(fields=["who", "at"], name="login_attempts_of")]

    def __str__(self) -> str:
        return f"{self.who[:8]} {self.at:%F %T}"
