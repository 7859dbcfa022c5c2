"""Deaths of one failure by the minute, and failures in the order of lists."""

from django.db import migrations, models


class Migration(migrations.Migration):
    """Add them."""

    dependencies = [("queues", "0013_flow_indexes")]

    operations = [
        migrations.CreateModel(
            name="FailureMinute",
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
            options={"indexes": [models.Index(fields=["at"], name="failure_minute_by_time")]},
        ),
        migrations.AddIndex(
            model_name="failurecount",
            index=models.Index(fields=["tier", "-last_at", "-id"], name="failure_listed"),
        ),
    ]
