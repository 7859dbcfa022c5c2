"""Outcomes: what became of a cohort, totals since the beginning, signs of duplicate effects."""

import django.db.models.functions.datetime
from django.db import migrations, models

MERGE = """
-- Two histograms as one.
CREATE FUNCTION jobs_merge_counts(a jsonb, b jsonb) RETURNS jsonb LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
  SELECT jsonb_object_agg(bucket, n) FROM (
    SELECT bucket, sum(n::bigint) AS n FROM (
      SELECT * FROM jsonb_each_text(a) UNION ALL SELECT * FROM jsonb_each_text(b)) AS both_of_them (bucket, n)
    GROUP BY bucket) AS merged
$$;
"""


class Migration(migrations.Migration):
    """Add columns and a table, and fill them."""

    dependencies = [
        ("queues", "0006_stage"),
    ]

    operations = [
        migrations.AddField(
            model_name="outcomerollup",
            name="blind_attempts",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="confirmed_after_rejection",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="ended",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="late",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="retries",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="second_references",
            field=models.BigIntegerField(db_default=0, default=0),
        ),
        migrations.AddField(
            model_name="outcomerollup",
            name="window_least",
            field=models.IntegerField(db_default=0, default=0),
        ),
        migrations.AlterField(
            model_name="outcomerollup",
            name="grain",
            field=models.CharField(
                choices=[("minute", "minute"), ("hour", "hour"), ("day", "day"), ("total", "total")],
                db_collation="C",
                max_length=6,
            ),
        ),
        migrations.CreateModel(
            name="SuspectedDuplicate",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("tier", models.SmallIntegerField()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("blind_attempt", "An attempt began without knowing how the one before had ended"),
                            ("second_reference", "Two different external references for one business action"),
                            ("contradiction", "Rejected after it was confirmed"),
                            ("confirmed_after_rejection", "Confirmed after it was rejected"),
                        ],
                        db_collation="C",
                        max_length=25,
                    ),
                ),
                ("job_id", models.UUIDField()),
                ("fence", models.IntegerField()),
                ("at", models.DateTimeField()),
                ("detail", models.JSONField(default=dict)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["type", "id"], name="suspected_by_type"),
                    models.Index(fields=["job_id"], name="suspected_by_job"),
                    models.Index(fields=["at"], name="suspected_recent"),
                ],
            },
        ),
        migrations.CreateModel(
            name="OutcomeBuckets",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "grain",
                        "type",
                        "at",
                        "tier",
                        "measure",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("grain", models.CharField(db_collation="C", max_length=6)),
                ("type", models.CharField(blank=True, db_collation="C", max_length=64)),
                ("at", models.DateTimeField()),
                ("tier", models.SmallIntegerField()),
                ("measure", models.CharField(db_collation="C", max_length=8)),
                ("counts", models.JSONField()),
            ],
        ),
        # Its table stays: the scheduler and the pages of the release before read it while they are replaced.
        migrations.SeparateDatabaseAndState(state_operations=[migrations.DeleteModel(name="OutcomeHistogram")]),
        migrations.AddIndex(model_name="auditentry", index=models.Index(fields=["at"], name="audit_by_time")),
        migrations.RunSQL(MERGE, "DROP FUNCTION jobs_merge_counts(jsonb, jsonb);"),
        # Last: a fold takes its tables in this order.
        migrations.AddField(
            model_name="boardversion",
            name="folded_at",
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
        ),
    ]
