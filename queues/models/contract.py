"""Tiers, reliability contracts (job types) and their versions: fields and constraints, no behaviour.

Rules across fields are in `queues.contracts`; the form and its texts in the admin.
"""

from django.core.validators import MaxValueValidator, MinValueValidator, ProhibitNullCharactersValidator, RegexValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

NAME = RegexValidator(r"\A[a-z0-9][a-z0-9._-]{0,63}\Z", "Use 1 to 64 of a-z, 0-9, dot, dash and underscore.")
POOL = RegexValidator(r"\A[a-z0-9_-]{0,32}\Z", "Use up to 32 of a-z, 0-9, dash and underscore.")
_DAY = 86400


class Tier(models.Model):
    """How much a group of job types matters. Three rows, made by the first migration."""

    number = models.PositiveSmallIntegerField(primary_key=True)
    name = models.CharField(max_length=64)
    target_ratio = models.FloatField(validators=[MinValueValidator(0.0), MaxValueValidator(1.0)])
    retry_budget = models.FloatField(default=0.2)
    backlog_limit = models.PositiveIntegerField(default=1_000_000)
    # Once its jobs wait that long for a worker, deferrable types of the tiers below are deferred; 0: never.
    defer_after_seconds = models.PositiveIntegerField(default=0, db_default=0)

    def __str__(self) -> str:
        return f"Tier {self.number}: {self.name}"


class JobType(models.Model):
    """The reliability contract of one job type, in its newest version, with the switches beside it."""

    class Handler(models.TextChoices):
        PYTHON = "python", "Python handler of this name"
        HTTP = "http", "Signed HTTP request"

    class Success(models.TextChoices):
        REFERENCE = "reference", "The handler returns the reference that the outside world gave"
        CALLBACK = "callback", "The provider calls back"
        CHECK = "check", "A check asks the outside world"
        RETURN = "return", "The handler returned (unverified)"

    class OnUnconfirmed(models.TextChoices):
        DEAD = "dead", "Dead letter"
        RETRY = "retry", "Run again"
        CHECK_AGAIN = "check_again", "Check again until max age"

    class Stale(models.TextChoices):
        EXPIRE = "expire", "Expire quietly"
        DEAD = "dead", "Dead letter"

    class Backoff(models.TextChoices):
        FIXED = "fixed", "Fixed"
        LINEAR = "linear", "Linear"
        EXPONENTIAL = "exponential", "Exponential"

    class Jitter(models.TextChoices):
        NONE = "none", "None"
        FULL = "full", "Full"
        EQUAL = "equal", "Equal"

    class Lost(models.TextChoices):
        RETRY = "retry", "Run again"
        DEAD = "dead", "Dead letter"

    name = models.CharField(
        max_length=64, primary_key=True, db_collation="C", validators=[NAME, ProhibitNullCharactersValidator()]
    )
    version = models.PositiveIntegerField(default=1, editable=False)
    description = models.TextField(blank=True, max_length=2000)
    owner = models.CharField(max_length=100, blank=True)
    runbook_url = models.URLField(blank=True, max_length=500)
    # Switches: not versioned, untouched by `contracts sync`.
    enabled = models.BooleanField(default=True)
    disabled_reason = models.CharField(max_length=1000, blank=True, default="", db_default="")
    disabled_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    disabled_until = models.DateTimeField(null=True, blank=True)
    paused = models.BooleanField(default=False)
    paused_reason = models.CharField(max_length=1000, blank=True)
    paused_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    paused_until = models.DateTimeField(null=True, blank=True)
    # By a person, or by the scheduler while a tier above is short of workers; only where the contract allows it.
    deferred = models.BooleanField(default=False, db_default=False, editable=False)
    deferred_reason = models.CharField(max_length=1000, blank=True, default="", db_default="", editable=False)
    deferred_by = models.CharField(max_length=150, blank=True, default="", db_default="", editable=False)
    deferred_until = models.DateTimeField(null=True, blank=True, editable=False)

    tier = models.ForeignKey(Tier, on_delete=models.PROTECT, default=2, db_constraint=True)
    pool = models.CharField(max_length=32, blank=True, validators=[POOL])
    handler = models.CharField(max_length=10, choices=Handler.choices, default=Handler.PYTHON)
    target_url = models.CharField(max_length=2000, blank=True)
    target_secret_env = models.CharField(max_length=100, blank=True)
    target_secret = models.BinaryField(null=True, blank=True, editable=False)
    callback_secret_env = models.CharField(max_length=100, blank=True)
    callback_secret = models.BinaryField(null=True, blank=True, editable=False)
    # After a change the old secret is taken until then, so that a provider can change over without losing callbacks.
    callback_secret_old = models.BinaryField(null=True, blank=True, editable=False)
    callback_secret_old_until = models.DateTimeField(null=True, blank=True, editable=False)
    success = models.CharField(max_length=10, choices=Success.choices, default=Success.REFERENCE)
    check_url = models.CharField(max_length=2000, blank=True)
    check_every_seconds = models.PositiveIntegerField(default=10)
    confirm_within_seconds = models.PositiveIntegerField(default=300)
    on_unconfirmed = models.CharField(max_length=12, choices=OnUnconfirmed.choices, default=OnUnconfirmed.DEAD)

    window_seconds = models.PositiveIntegerField(default=60, validators=[MinValueValidator(1)])
    target_ratio = models.FloatField(null=True, blank=True, validators=[MinValueValidator(0.0), MaxValueValidator(1.0)])
    max_age_seconds = models.PositiveIntegerField(
        default=7 * _DAY, validators=[MinValueValidator(1), MaxValueValidator(365 * _DAY)]
    )
    on_stale = models.CharField(max_length=6, choices=Stale.choices, default=Stale.EXPIRE)

    key_required = models.BooleanField(default=False)
    key_template = models.CharField(max_length=255, blank=True)
    dedupe_window_seconds = models.PositiveIntegerField(default=0)
    provider_key_ttl_seconds = models.PositiveIntegerField(default=0)

    max_attempts = models.PositiveSmallIntegerField(
        default=5, validators=[MinValueValidator(1), MaxValueValidator(100)]
    )
    backoff = models.CharField(max_length=11, choices=Backoff.choices, default=Backoff.EXPONENTIAL)
    backoff_base_seconds = models.FloatField(default=2.0, validators=[MinValueValidator(0.01)])
    backoff_cap_seconds = models.FloatField(default=300.0, validators=[MinValueValidator(0.01)])
    jitter = models.CharField(max_length=5, choices=Jitter.choices, default=Jitter.FULL)
    never_retry = models.JSONField(default=list, blank=True)
    on_worker_lost = models.CharField(max_length=5, choices=Lost.choices, default=Lost.RETRY)
    poison_after = models.PositiveSmallIntegerField(default=3, validators=[MinValueValidator(1), MaxValueValidator(20)])
    lease_seconds = models.PositiveIntegerField(default=15, validators=[MinValueValidator(5), MaxValueValidator(3600)])
    soft_limit_seconds = models.PositiveIntegerField(default=0)
    hard_limit_seconds = models.PositiveIntegerField(default=0)

    concurrency = models.PositiveIntegerField(default=0)
    group_concurrency = models.PositiveIntegerField(default=0)
    rate_per_second = models.FloatField(default=0)
    rate_burst = models.PositiveIntegerField(default=0)
    group_rate_per_second = models.FloatField(default=0)
    ordered = models.BooleanField(default=False)
    ordered_on_failure = models.CharField(
        max_length=10, default="block", choices=[("block", "Block"), ("step_aside", "Step aside")]
    )
    overlap = models.CharField(
        max_length=9,
        default="none",
        choices=[
            (word, word.replace("_", " ").capitalize())
            for word in ("none", "keep_last", "throttle", "debounce", "replace")
        ],
    )
    overlap_seconds = models.PositiveIntegerField(default=0)
    priority_default = models.SmallIntegerField(default=0, validators=[MinValueValidator(-100), MaxValueValidator(100)])
    deferrable = models.BooleanField(default=False)
    dependency = models.CharField(max_length=64, blank=True)
    batch_size = models.PositiveIntegerField(default=1)
    canary_ratio = models.FloatField(default=0.0)
    keep_confirmed_days = models.PositiveIntegerField(default=7)
    keep_other_days = models.PositiveIntegerField(default=30)
    max_payload_bytes = models.PositiveIntegerField(
        default=262144, validators=[MinValueValidator(2), MaxValueValidator(1048576)]
    )
    redact = models.JSONField(default=list, blank=True)
    schema = models.JSONField(default=dict, blank=True)
    probe_every_seconds = models.PositiveIntegerField(default=0)
    probe_payload = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, output_field=models.JSONField())
    )

    # Whether a claim has to look at more than the jobs that it was asked for.
    limited = models.GeneratedField(
        expression=Q(concurrency__gt=0) | Q(group_concurrency__gt=0) | Q(rate_per_second__gt=0)  # type: ignore[arg-type]
        | Q(group_rate_per_second__gt=0) | Q(ordered=True),
        output_field=models.BooleanField(), db_persist=True,
    )  # fmt: skip
    # The breaker of its dependency, repeated here so that a claim sees it without another table.
    breaker = models.CharField(max_length=9, default="closed", db_default="closed", editable=False)

    created_at = models.DateTimeField(db_default=Now(), editable=False)
    changed_at = models.DateTimeField(db_default=Now(), editable=False)

    def __str__(self) -> str:
        return self.name


class ContractRevision(models.Model):
    """One version of a contract: the whole of its versioned fields, who made it, when and why. Never changed."""

    job_type = models.ForeignKey(JobType, on_delete=models.CASCADE, related_name="revisions")
    version = models.PositiveIntegerField()
    fields = models.JSONField()
    diff = models.JSONField(default=dict)
    actor = models.CharField(max_length=150)
    reason = models.CharField(max_length=1000, blank=True)
    at = models.DateTimeField(db_default=Now())

    class Meta:
        constraints = [models.UniqueConstraint(fields=["job_type", "version"], name="one_revision_per_version")]

    def __str__(self) -> str:
        return f"{self.job_type_id} v{self.version}"
