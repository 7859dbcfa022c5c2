"""API keys and login attempts: columns and constraints. Not here: issuing and checking keys (`jobsboard.api.keys`)."""

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
