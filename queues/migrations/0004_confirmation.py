"""Confirmation in every form: evidence, references and steps of a job, switches that say who and until when."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    """Add them; the release before this one goes on beside it."""

    dependencies = [
        ("queues", "0003_awaiting"),
    ]

    operations = [
        migrations.AddField(
            model_name="jobtype",
            name="callback_secret",
            field=models.BinaryField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="callback_secret_old",
            field=models.BinaryField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="callback_secret_old_until",
            field=models.DateTimeField(blank=True, editable=False, null=True),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="disabled_by",
            field=models.CharField(blank=True, db_default="", default="", max_length=150),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="disabled_reason",
            field=models.CharField(blank=True, db_default="", default="", max_length=1000),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="disabled_until",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="paused_by",
            field=models.CharField(blank=True, db_default="", default="", max_length=150),
        ),
        migrations.AddField(
            model_name="jobtype",
            name="paused_until",
            field=models.DateTimeField(blank=True, null=True),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="contradictions",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="late_evidence",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="superseded",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="workerprocess",
            name="trouble",
            field=models.CharField(blank=True, db_default="", default="", max_length=500),
        ),
        migrations.CreateModel(
            name="Callback",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("webhook_id", models.CharField(db_collation="C", max_length=255)),
                ("job_id", models.UUIDField(null=True)),
                ("ref", models.CharField(blank=True, max_length=1000)),
                (
                    "outcome",
                    models.CharField(choices=[("confirmed", "confirmed"), ("rejected", "rejected")], max_length=9),
                ),
                ("run", models.IntegerField(null=True)),
                ("retryable", models.BooleanField(default=False)),
                ("detail", models.CharField(blank=True, max_length=2000)),
                ("received_at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("keep_until", models.DateTimeField()),
                ("applied_at", models.DateTimeField(null=True)),
                ("applied", models.CharField(blank=True, max_length=16)),
            ],
            options={
                "indexes": [
                    models.Index(
                        models.F("type"),
                        models.Func(models.F("ref"), models.Value(0), function="hashtextextended"),
                        condition=models.Q(("applied_at", None)),
                        name="callback_pending",
                    ),
                    models.Index(
                        fields=["received_at"], condition=models.Q(("applied_at", None)), name="callback_recent"
                    ),
                    models.Index(fields=["keep_until"], name="callback_keep"),
                ],
                "constraints": [models.UniqueConstraint(fields=("type", "webhook_id"), name="one_callback_per_id")],
            },
        ),
        migrations.CreateModel(
            name="JobReference",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("ref", models.CharField(max_length=1000)),
                ("job_id", models.UUIDField()),
                ("fence", models.IntegerField()),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "indexes": [
                    models.Index(
                        models.F("type"),
                        models.Func(models.F("ref"), models.Value(0), function="hashtextextended"),
                        name="reference_by_ref",
                    ),
                    models.Index(fields=["job_id"], name="reference_by_job"),
                    models.Index(fields=["at"], name="reference_recent"),
                ],
            },
        ),
        migrations.CreateModel(
            name="StepResult",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "root", "name", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("root", models.UUIDField()),
                ("name", models.CharField(db_collation="C", max_length=100)),
                ("job_id", models.UUIDField()),
                ("fence", models.IntegerField()),
                ("result", models.JSONField(null=True)),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "indexes": [models.Index(fields=["job_id"], name="step_by_job")],
            },
        ),
    ]
