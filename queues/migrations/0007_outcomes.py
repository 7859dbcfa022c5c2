"""Outcomes: what became of a cohort, totals since the beginning, signs of duplicate effects."""

import django.db.models.functions.datetime
from django.db import migrations, models

# What was counted so far: totals from the days, and how many of each cohort have ended, from those that are open still.
# A scheduler of the release before adds to neither while it goes on; its folds wait for this transaction.
FILL = """
LOCK TABLE queues_outcomerollup, queues_outcomehistogram IN SHARE ROW EXCLUSIVE MODE;
UPDATE queues_outcomerollup SET ended = ready;
UPDATE queues_outcomerollup r SET ended = r.ended - o.n FROM (
  SELECT g.grain, date_trunc(g.grain, j.ready_at, 'UTC') AS at, j.type, j.tier, count(*) AS n
  FROM queues_job j CROSS JOIN (VALUES ('minute'), ('hour'), ('day')) AS g (grain)
  WHERE j.state IN ('accepted', 'processing', 'retrying', 'awaiting_confirmation')
    AND j.replay_of IS NULL AND NOT j.probe
  GROUP BY 1, 2, 3, 4
) AS o WHERE r.grain = o.grain AND r.at = o.at AND r.type = o.type AND r.tier = o.tier;
INSERT INTO queues_outcomerollup (grain, at, type, tier, window_seconds, ready, in_window, excluded, ended, accepted,
  duplicates, confirmed, dead, expired, cancelled, replayed, runs, failed, lost, late_evidence, contradictions,
  superseded)
SELECT 'total', to_timestamp(0), type, tier, max(window_seconds), sum(ready), sum(in_window), sum(excluded), sum(ended),
  sum(accepted), sum(duplicates), sum(confirmed), sum(dead), sum(expired), sum(cancelled), sum(replayed), sum(runs),
  sum(failed), sum(lost), sum(late_evidence), sum(contradictions), sum(superseded)
FROM queues_outcomerollup WHERE grain = 'day' GROUP BY type, tier;
INSERT INTO queues_outcomebuckets (grain, type, at, tier, measure, counts)
SELECT grain, type, at, tier, measure, jsonb_object_agg(bucket, n) FROM (
  SELECT g.grain, coalesce(h.type, '') AS type, g.at, h.tier, h.measure, h.bucket, sum(h.n) AS n
  FROM queues_outcomehistogram h
  CROSS JOIN LATERAL (SELECT h.grain, h.at UNION ALL SELECT 'total', to_timestamp(0) WHERE h.grain = 'day') AS g
  GROUP BY GROUPING SETS ((g.grain, h.type, g.at, h.tier, h.measure, h.bucket),
    (g.grain, g.at, h.tier, h.measure, h.bucket))) AS sums
GROUP BY 1, 2, 3, 4, 5;
"""
EMPTY = "DELETE FROM queues_outcomerollup WHERE grain = 'total';"

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
        migrations.RunSQL(FILL, EMPTY),
        # Last: a fold takes its tables in this order.
        migrations.AddField(
            model_name="boardversion",
            name="folded_at",
            field=models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
        ),
    ]
