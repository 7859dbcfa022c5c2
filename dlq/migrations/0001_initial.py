"""Failure groups, replay plans and their items."""

import django.db.models.expressions
from django.db import migrations, models


class Migration(migrations.Migration):
    """Add them."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="FailureGroup",
            fields=[
                ("id", models.BigIntegerField(primary_key=True, serialize=False)),
                ("type", models.CharField(db_collation="C", max_length=64)),
                (
                    "reason",
                    models.CharField(
                        choices=[
                            ("attempts_exhausted", "attempts exhausted"),
                            ("permanent_error", "permanent error"),
                            ("payload_invalid", "payload invalid"),
                            ("rejected", "rejected"),
                            ("unconfirmed", "unconfirmed"),
                            ("no_evidence", "no evidence"),
                            ("stale", "stale"),
                            ("poison", "poison"),
                            ("time_limit", "time limit"),
                            ("no_handler", "no handler"),
                        ],
                        max_length=24,
                    ),
                ),
                ("fingerprint", models.CharField(blank=True, db_collation="C", max_length=32)),
                ("sample", models.UUIDField(null=True)),
                ("error_class", models.CharField(blank=True, default="", max_length=200)),
                ("message", models.CharField(blank=True, default="", max_length=300)),
                ("frame", models.CharField(blank=True, default="", max_length=300)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("replaying", "Being replayed"),
                            ("resolved", "Resolved"),
                            ("ignored", "Ignored"),
                        ],
                        default="open",
                        max_length=9,
                    ),
                ),
                ("state_at", models.DateTimeField()),
                ("state_by", models.CharField(blank=True, default="", max_length=150)),
                ("state_reason", models.CharField(blank=True, default="", max_length=1000)),
                ("ignored_until", models.DateTimeField(null=True)),
                ("note", models.CharField(blank=True, default="", max_length=1000)),
                ("owner", models.CharField(blank=True, default="", max_length=150)),
                ("died_before", models.BigIntegerField(default=0)),
                ("regressed_at", models.DateTimeField(null=True)),
                ("regressions", models.IntegerField(default=0)),
                ("plan_id", models.UUIDField(null=True)),
                ("triage", models.JSONField(null=True)),
                ("triaged_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("plan_id__isnull", False)), fields=["plan_id"], name="group_by_plan"
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(fields=("type", "reason", "fingerprint"), name="group_once"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("state", "ignored"), _negated=True),
                            models.Q(("state_reason", ""), _negated=True),
                            _connector="OR",
                        ),
                        name="ignored_has_reason",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="PlanItem",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "plan_id", "number", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("plan_id", models.UUIDField()),
                ("number", models.IntegerField()),
                ("job_id", models.UUIDField()),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("failure", models.CharField(blank=True, default="", max_length=64)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("waiting", "Waiting"),
                            ("done", "Done"),
                            ("skipped", "Skipped"),
                            ("failed", "Failed"),
                        ],
                        default="waiting",
                        max_length=7,
                    ),
                ),
                ("code", models.CharField(blank=True, default="", max_length=32)),
                ("detail", models.CharField(blank=True, default="", max_length=300)),
                ("tries", models.SmallIntegerField(default=0)),
                ("at", models.DateTimeField(null=True)),
                ("child", models.UUIDField(null=True)),
                ("outcome", models.CharField(blank=True, default="", max_length=9)),
                ("failing", models.BooleanField(default=False)),
                ("looked_at", models.DateTimeField(null=True)),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "waiting")), fields=["plan_id", "number"], name="item_waiting"
                    ),
                    models.Index(
                        condition=models.Q(("outcome__in", ["open", "awaiting"])),
                        fields=["plan_id", "outcome", "looked_at"],
                        name="item_followed",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("state__in", ["skipped", "failed"]),
                            ("outcome__in", ["dead", "expired", "cancelled", "lost"]),
                            _connector="OR",
                        ),
                        fields=["plan_id", "number"],
                        name="item_unwell",
                    ),
                ],
                "constraints": [models.UniqueConstraint(fields=("plan_id", "job_id"), name="item_once")],
            },
        ),
        migrations.CreateModel(
            name="ReplayPlan",
            fields=[
                ("id", models.UUIDField(primary_key=True, serialize=False)),
                (
                    "action",
                    models.CharField(
                        choices=[("replay", "Replay"), ("cancel", "Cancel"), ("ignore", "Ignore")],
                        default="replay",
                        max_length=6,
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("paused", "Paused"),
                            ("stopped", "Stopped by its rule"),
                            ("aborted", "Aborted"),
                            ("following", "Waiting for outcomes"),
                            ("finished", "Finished"),
                        ],
                        default="running",
                        max_length=9,
                    ),
                ),
                ("state_reason", models.CharField(blank=True, default="", max_length=1000)),
                ("state_at", models.DateTimeField()),
                ("held", models.CharField(blank=True, default="", max_length=300)),
                ("selection", models.JSONField()),
                ("as_of", models.DateTimeField()),
                ("types", models.JSONField(default=list)),
                ("reason", models.CharField(max_length=1000)),
                ("created_by", models.CharField(max_length=150)),
                ("source", models.CharField(max_length=8)),
                ("request_id", models.CharField(blank=True, default="", max_length=64)),
                ("idempotency_key", models.CharField(max_length=255, null=True)),
                ("request_hash", models.CharField(blank=True, default="", max_length=64)),
                ("created_at", models.DateTimeField()),
                ("dry_run", models.BooleanField(default=False)),
                ("forced", models.BooleanField(default=False)),
                ("rate_per_second", models.FloatField()),
                ("concurrency", models.IntegerField()),
                ("stop_on_failure_ratio", models.FloatField()),
                (
                    "order",
                    models.CharField(
                        choices=[("oldest", "Oldest first"), ("newest", "Newest first")], default="oldest", max_length=6
                    ),
                ),
                ("paced_at", models.DateTimeField()),
                ("judged_since", models.DateTimeField()),
                ("finished_at", models.DateTimeField(null=True)),
                ("total", models.IntegerField()),
                ("left_out", models.IntegerField(default=0)),
                ("done", models.IntegerField(default=0)),
                ("skipped", models.IntegerField(default=0)),
                ("failed", models.IntegerField(default=0)),
                ("why", models.JSONField(default=dict)),
                ("open", models.IntegerField(default=0)),
                ("failing", models.IntegerField(default=0)),
                ("awaiting", models.IntegerField(default=0)),
                ("confirmed", models.IntegerField(default=0)),
                ("dead_again", models.IntegerField(default=0)),
                ("expired", models.IntegerField(default=0)),
                ("cancelled", models.IntegerField(default=0)),
                ("lost", models.IntegerField(default=0)),
                ("judged_ok", models.IntegerField(default=0)),
                ("judged_bad", models.IntegerField(default=0)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["created_at"], name="plan_by_time"),
                    models.Index(
                        condition=models.Q(("state__in", ["running", "paused", "stopped", "aborted", "following"])),
                        fields=["state"],
                        name="plan_alive",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("idempotency_key__isnull", False)),
                        fields=("created_by", "idempotency_key"),
                        name="plan_once",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            (
                                "total__gte",
                                django.db.models.expressions.CombinedExpression(
                                    django.db.models.expressions.CombinedExpression(
                                        models.F("done"), "+", models.F("skipped")
                                    ),
                                    "+",
                                    models.F("failed"),
                                ),
                            )
                        ),
                        name="plan_adds_up",
                    ),
                ],
            },
        ),
    ]
