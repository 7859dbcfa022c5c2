"""Probes: which types ask for them, when and with what, and how their runs went."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("queues", "0008_outcomes_so_far"),
    ]

    operations = [
        migrations.AddField(
            model_name="jobtype",
            name="probe_payload",
            field=models.JSONField(
                blank=True, db_default=models.Value({}, output_field=models.JSONField()), default=dict
            ),
        ),
        migrations.CreateModel(
            name="Probe",
            fields=[
                ("type", models.CharField(db_collation="C", max_length=64, primary_key=True, serialize=False)),
                ("next_at", models.DateTimeField()),
                ("last_at", models.DateTimeField(null=True)),
                ("last_ok_at", models.DateTimeField(null=True)),
                ("failing_since", models.DateTimeField(null=True)),
                ("failures", models.PositiveIntegerField(default=0)),
                ("took_seconds", models.FloatField(null=True)),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("failing_since", None), ("failures", 0)),
                            models.Q(("failing_since__isnull", False), ("failures__gt", 0)),
                            _connector="OR",
                        ),
                        name="probe_fails_since",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ProbeRun",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("tier", models.SmallIntegerField()),
                ("job_id", models.UUIDField(null=True)),
                ("window_seconds", models.IntegerField()),
                ("begun_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("settled_at", models.DateTimeField(null=True)),
                (
                    "outcome",
                    models.CharField(
                        choices=[
                            ("running", "Running"),
                            ("passed", "Passed"),
                            ("failed", "Failed"),
                            ("skipped", "Skipped"),
                        ],
                        default="running",
                        max_length=7,
                    ),
                ),
                ("took_seconds", models.FloatField(null=True)),
                ("reason", models.CharField(blank=True, default="", max_length=24)),
                ("detail", models.CharField(blank=True, default="", max_length=300)),
                ("late_at", models.DateTimeField(null=True)),
                ("by", models.CharField(blank=True, default="", max_length=150)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["type", "id"], name="probe_run_by_type"),
                    models.Index(fields=["begun_at"], name="probe_run_by_time"),
                    models.Index(
                        condition=models.Q(("late_at", None), ("outcome", "failed")),
                        fields=["settled_at"],
                        name="probe_run_may_be_late",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("outcome", "running")), fields=("type",), name="probe_run_once"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("outcome", "running"), ("settled_at", None)),
                            models.Q(models.Q(("outcome", "running"), _negated=True), ("settled_at__isnull", False)),
                            _connector="OR",
                        ),
                        name="probe_run_settles",
                    ),
                ],
            },
        ),
        # A constant as default: no row is written anew, and a process of the release before leaves it out.
        migrations.AddField(
            model_name="workerprocess",
            name="release",
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
    ]
