"""Dead letters counted by what they died of, and answers of the outside world; those that are there are counted."""

from django.db import migrations, models

COUNT = """
INSERT INTO queues_failurecount (type, tier, reason, fingerprint, died, open, first_at, last_at)
SELECT type, max(tier), reason, left(coalesce(fingerprint, ''), 16), count(*), count(*), min(settled_at),
  max(settled_at)
FROM queues_job WHERE state = 'dead' AND resolution = 'open' AND NOT probe GROUP BY 1, 3, 4
"""


class Migration(migrations.Migration):
    """Add them."""

    dependencies = [
        ("queues", "0009_probes"),
    ]

    operations = [
        migrations.CreateModel(
            name="FailureCount",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("type", models.CharField(db_collation="C", max_length=64)),
                ("tier", models.SmallIntegerField()),
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
                ("died", models.BigIntegerField(default=0)),
                ("open", models.BigIntegerField(default=0)),
                ("first_at", models.DateTimeField()),
                ("last_at", models.DateTimeField()),
            ],
            options={
                "indexes": [
                    models.Index(fields=["last_at"], name="failure_recent"),
                    models.Index(
                        condition=models.Q(("open__gt", 0)), fields=["tier", "-last_at", "-id"], name="failure_open"
                    ),
                ],
                "constraints": [models.UniqueConstraint(fields=("type", "reason", "fingerprint"), name="failure_once")],
            },
        ),
        migrations.CreateModel(
            name="FailureHour",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "failure_id", "at", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("failure_id", models.BigIntegerField()),
                ("at", models.DateTimeField()),
                ("died", models.BigIntegerField(default=0)),
            ],
            options={
                "indexes": [models.Index(fields=["at"], name="failure_hour_by_time")],
            },
        ),
        migrations.CreateModel(
            name="OutsideAnswer",
            fields=[
                ("job_id", models.UUIDField(primary_key=True, serialize=False)),
                ("asked_at", models.DateTimeField()),
                ("taken_until", models.DateTimeField(null=True)),
                ("answered_at", models.DateTimeField(null=True)),
                (
                    "outcome",
                    models.CharField(
                        blank=True,
                        choices=[
                            ("confirmed", "The work was done"),
                            ("rejected", "The work was refused"),
                            ("none", "The work was not done"),
                            ("failed", "The check could not answer"),
                            ("no_check", "There is no check to ask"),
                        ],
                        default="",
                        max_length=9,
                    ),
                ),
                ("reference", models.CharField(blank=True, default="", max_length=1000)),
                ("detail", models.CharField(blank=True, default="", max_length=300)),
            ],
            options={
                "indexes": [models.Index(fields=["asked_at"], name="outside_answer_by_time")],
            },
        ),
        migrations.RunSQL(COUNT, migrations.RunSQL.noop),
    ]
