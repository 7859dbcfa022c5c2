"""Alert rules, findings and alerts; webhook endpoints and their deliveries."""

import django.core.validators
import django.db.models.deletion
import django.db.models.functions.datetime
import jobsboard.models.webhook
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobsboard", "0002_annotation"),
    ]

    operations = [
        migrations.CreateModel(
            name="AlertClock",
            fields=[
                ("id", models.SmallIntegerField(primary_key=True, serialize=False)),
                ("evaluated_at", models.DateTimeField(null=True)),
                ("ended_at", models.DateTimeField(null=True)),
                ("completed_at", models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name="WebhookEndpoint",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                (
                    "format",
                    models.CharField(
                        choices=[
                            ("standard", "Standard Webhooks"),
                            ("slack", "Slack"),
                            ("alertmanager", "Alertmanager v4"),
                            ("heartbeat", "Dead man's switch: a POST at an interval while alerts can leave"),
                        ],
                        default="standard",
                        max_length=12,
                    ),
                ),
                ("url_sealed", models.BinaryField()),
                ("url_shown", models.CharField(editable=False, max_length=300)),
                ("events", models.JSONField(default=jobsboard.models.webhook.every_event)),
                (
                    "least_severity",
                    models.CharField(
                        choices=[("warning", "Warning"), ("critical", "Critical")], default="warning", max_length=8
                    ),
                ),
                ("secret_sealed", models.BinaryField(null=True)),
                ("secret_at", models.DateTimeField(editable=False, null=True)),
                ("secret_old_sealed", models.BinaryField(null=True)),
                ("secret_old_until", models.DateTimeField(editable=False, null=True)),
                (
                    "every_seconds",
                    models.PositiveIntegerField(
                        default=60,
                        help_text="Of a dead man's switch: how often it is told that all is well.",
                        validators=[
                            django.core.validators.MinValueValidator(10),
                            django.core.validators.MaxValueValidator(86400),
                        ],
                    ),
                ),
                ("next_beat_at", models.DateTimeField(editable=False, null=True)),
                ("enabled", models.BooleanField(db_default=True, default=True)),
                ("disabled_reason", models.CharField(blank=True, default="", editable=False, max_length=300)),
                ("last_ok_at", models.DateTimeField(editable=False, null=True)),
                ("last_failed_at", models.DateTimeField(editable=False, null=True)),
                ("last_error", models.CharField(blank=True, default="", editable=False, max_length=300)),
                ("failures", models.PositiveIntegerField(default=0, editable=False)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                ("created_by", models.CharField(blank=True, default="", editable=False, max_length=150)),
            ],
        ),
        migrations.CreateModel(
            name="Alert",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("key", models.CharField(db_collation="C", max_length=128)),
                (
                    "state",
                    models.CharField(
                        choices=[("firing", "Firing"), ("acknowledged", "Acknowledged"), ("resolved", "Resolved")],
                        default="firing",
                        max_length=12,
                    ),
                ),
                (
                    "severity",
                    models.CharField(choices=[("warning", "Warning"), ("critical", "Critical")], max_length=8),
                ),
                ("title", models.CharField(max_length=200)),
                ("tier", models.PositiveSmallIntegerField(null=True)),
                ("job_type", models.CharField(blank=True, db_collation="C", default="", max_length=64)),
                ("findings", models.JSONField(default=list)),
                ("started_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("acknowledged_at", models.DateTimeField(null=True)),
                ("acknowledged_by", models.CharField(blank=True, default="", max_length=150)),
                ("note", models.CharField(blank=True, default="", max_length=1000)),
                ("resolved_at", models.DateTimeField(null=True)),
                ("silenced_until", models.DateTimeField(null=True)),
                ("silenced_by", models.CharField(blank=True, default="", max_length=150)),
                ("sequence", models.IntegerField(default=0)),
                ("told", models.CharField(blank=True, default="", max_length=20)),
                ("told_at", models.DateTimeField(null=True)),
                ("told_severity", models.CharField(blank=True, default="", max_length=8)),
                ("told_findings", models.JSONField(default=list)),
            ],
            options={
                "indexes": [models.Index(fields=["started_at", "id"], name="alert_by_time")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("state", "resolved"), _negated=True),
                        fields=("key",),
                        name="alert_open_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("resolved_at__isnull", False), ("state", "resolved")),
                            models.Q(models.Q(("state", "resolved"), _negated=True), ("resolved_at", None)),
                            _connector="OR",
                        ),
                        name="alert_resolved_has_time",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="AlertRule",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("name", models.CharField(max_length=100, unique=True)),
                ("default_key", models.CharField(blank=True, editable=False, max_length=40, null=True, unique=True)),
                ("edited", models.BooleanField(db_default=False, default=False, editable=False)),
                (
                    "metric",
                    models.CharField(
                        choices=[
                            ("lag", "Outcome lag: p95 as a multiple of the window"),
                            ("burn_rate", "Promise: how fast the error budget burns"),
                            ("late_ratio", "Late and stale share of outcomes"),
                            ("dead_inflow", "New dead letters"),
                            ("dead_open", "Unresolved dead letters"),
                            ("backlog", "Backlog: share of the tier's limit"),
                            ("oldest_open", "Oldest open job: age as a multiple of its window"),
                            ("no_worker", "Seconds that a queue with work has no worker"),
                            ("not_consuming", "Seconds that a queue with free workers has begun nothing that is due"),
                            ("probe_failed", "Probe: failures in a row"),
                            ("limbo", "Jobs in limbo"),
                            ("worker_memory", "Memory of a worker, in MB"),
                            ("suspected_duplicates", "Signs of duplicate effects"),
                            ("rollup_age", "Age of the numbers, in seconds"),
                            ("partitions_ahead", "Days of partitions that are made ahead"),
                            ("undelivered", "Endpoint: failed deliveries in a row"),
                            ("unmeasured", "Rules that cannot be measured"),
                        ],
                        max_length=20,
                    ),
                ),
                (
                    "scope",
                    models.CharField(
                        choices=[("all", "Everything"), ("tier", "One tier"), ("type", "One job type")],
                        default="all",
                        max_length=4,
                    ),
                ),
                (
                    "tier",
                    models.PositiveSmallIntegerField(
                        blank=True,
                        null=True,
                        validators=[
                            django.core.validators.MinValueValidator(1),
                            django.core.validators.MaxValueValidator(3),
                        ],
                    ),
                ),
                ("job_type", models.CharField(blank=True, db_collation="C", default="", max_length=64)),
                (
                    "reason",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("attempts_exhausted", "attempts_exhausted"),
                            ("permanent_error", "permanent_error"),
                            ("payload_invalid", "payload_invalid"),
                            ("rejected", "rejected"),
                            ("unconfirmed", "unconfirmed"),
                            ("no_evidence", "no_evidence"),
                            ("stale", "stale"),
                            ("poison", "poison"),
                            ("time_limit", "time_limit"),
                            ("no_handler", "no_handler"),
                        ],
                        default="",
                        help_text="Of new dead letters: only those of this reason.",
                        max_length=20,
                    ),
                ),
                (
                    "over_seconds",
                    models.PositiveIntegerField(
                        default=300,
                        help_text="The stretch of time that is measured, where the metric has one.",
                        validators=[
                            django.core.validators.MinValueValidator(60),
                            django.core.validators.MaxValueValidator(86400),
                        ],
                    ),
                ),
                (
                    "least_events",
                    models.PositiveIntegerField(
                        default=0, help_text="Of shares and percentiles: with fewer events there is no value."
                    ),
                ),
                (
                    "comparison",
                    models.CharField(
                        choices=[("above", "above"), ("at_least", "at least"), ("below", "below")],
                        default="above",
                        max_length=8,
                    ),
                ),
                ("threshold", models.FloatField()),
                ("clear_threshold", models.FloatField(blank=True, help_text="Empty: the threshold itself.", null=True)),
                (
                    "for_seconds",
                    models.PositiveIntegerField(
                        default=0, validators=[django.core.validators.MaxValueValidator(86400)]
                    ),
                ),
                (
                    "clear_for_seconds",
                    models.PositiveIntegerField(
                        default=60, validators=[django.core.validators.MaxValueValidator(86400)]
                    ),
                ),
                (
                    "severity",
                    models.CharField(
                        choices=[("warning", "Warning"), ("critical", "Critical")], default="warning", max_length=8
                    ),
                ),
                ("enabled", models.BooleanField(db_default=True, default=True)),
                ("silenced_until", models.DateTimeField(blank=True, null=True)),
                ("silenced_by", models.CharField(blank=True, default="", editable=False, max_length=150)),
                ("runbook_url", models.CharField(blank=True, default="", max_length=2000, verbose_name="Runbook URL")),
                ("trouble", models.CharField(blank=True, default="", editable=False, max_length=300)),
                (
                    "updated_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("job_type", ""), ("scope", "all"), ("tier", None)),
                            models.Q(("job_type", ""), ("scope", "tier"), ("tier__isnull", False)),
                            models.Q(("scope", "type"), ("tier", None), models.Q(("job_type", ""), _negated=True)),
                            _connector="OR",
                        ),
                        name="alert_rule_scope_is_named",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("runbook_url", ""), ("runbook_url__regex", "^https?://"), _connector="OR"),
                        name="alert_rule_url_is_http",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="AlertFinding",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("subject", models.CharField(db_collation="C", max_length=128)),
                ("tier", models.PositiveSmallIntegerField(null=True)),
                ("job_type", models.CharField(blank=True, db_collation="C", default="", max_length=64)),
                ("value", models.FloatField(null=True)),
                ("words", models.CharField(blank=True, default="", max_length=300)),
                ("since", models.DateTimeField()),
                ("fired_at", models.DateTimeField(null=True)),
                ("well_since", models.DateTimeField(null=True)),
                (
                    "alert",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.SET_NULL, related_name="+", to="jobsboard.alert"
                    ),
                ),
                (
                    "rule",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, related_name="found", to="jobsboard.alertrule"
                    ),
                ),
            ],
            options={
                "constraints": [models.UniqueConstraint(fields=("rule", "subject"), name="alert_finding_once")],
            },
        ),
        migrations.CreateModel(
            name="WebhookDelivery",
            fields=[
                ("id", models.CharField(db_collation="C", max_length=40, primary_key=True, serialize=False)),
                ("event", models.CharField(max_length=20)),
                ("sequence", models.IntegerField(default=0)),
                ("body", models.TextField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("delivered", "Delivered"),
                            ("superseded", "Superseded by a newer state of its alert"),
                            ("failed", "Given up"),
                        ],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("attempt", models.PositiveSmallIntegerField(default=0)),
                ("attempts", models.JSONField(default=list)),
                ("due_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), null=True)),
                ("created_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("settled_at", models.DateTimeField(null=True)),
                ("created_by", models.CharField(blank=True, default="", max_length=150)),
                (
                    "alert",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="deliveries",
                        to="jobsboard.alert",
                    ),
                ),
                (
                    "endpoint",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="deliveries",
                        to="jobsboard.webhookendpoint",
                    ),
                ),
            ],
            options={
                "verbose_name_plural": "webhook deliveries",
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "pending")), fields=["endpoint", "due_at"], name="delivery_due"
                    ),
                    models.Index(fields=["endpoint", "-created_at"], name="delivery_of_endpoint"),
                    models.Index(fields=["alert", "endpoint", "sequence"], name="delivery_of_alert"),
                    models.Index(fields=["created_at"], name="delivery_by_time"),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("due_at__isnull", False), ("settled_at", None), ("state", "pending")),
                            models.Q(
                                models.Q(("state", "pending"), _negated=True),
                                ("due_at", None),
                                ("settled_at__isnull", False),
                            ),
                            _connector="OR",
                        ),
                        name="delivery_settles_once",
                    )
                ],
            },
        ),
    ]
