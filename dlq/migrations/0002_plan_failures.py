"""Which failures a plan is about; those of plans that are not over are found in their items."""

from django.db import migrations, models

FILL = """
INSERT INTO dlq_planfailure (type, reason, fingerprint, plan_id)
SELECT DISTINCT i.type, split_part(i.failure, '/', 1), split_part(i.failure, '/', 2), i.plan_id
FROM dlq_replayplan p JOIN dlq_planitem i ON i.plan_id = p.id
WHERE p.state IN ('running', 'paused', 'stopped', 'following') AND p.action = 'replay' AND NOT p.dry_run
  AND i.failure <> ''
"""


class Migration(migrations.Migration):
    """Add them."""

    dependencies = [("dlq", "0001_initial")]

    operations = [
        migrations.CreateModel(
            name="PlanFailure",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "type",
                        "reason",
                        "fingerprint",
                        "plan_id",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("reason", models.CharField(max_length=24)),
                ("fingerprint", models.CharField(blank=True, db_collation="C", max_length=32)),
                ("plan_id", models.UUIDField()),
            ],
            options={"indexes": [models.Index(fields=["plan_id"], name="failure_by_plan")]},
        ),
        migrations.AddIndex(
            model_name="failuregroup",
            index=models.Index(fields=["id"], condition=models.Q(state="ignored"), name="group_ignored"),
        ),
        migrations.RunSQL(FILL, migrations.RunSQL.noop),
    ]
