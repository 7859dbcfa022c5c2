"""The metric of circuit breakers."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobsboard", "0004_alert_metrics"),
    ]

    operations = [
        migrations.AlterField(
            model_name="alertrule",
            name="metric",
            field=models.CharField(
                choices=[
                    ("lag", "Outcome lag: p95 as a multiple of the window"),
                    ("burn_rate", "Promise: how fast the error budget burns"),
                    ("late_ratio", "Late and stale share of outcomes"),
                    ("dead_inflow", "New dead letters"),
                    ("dead_open", "Unresolved dead letters"),
                    ("new_failures", "Failures that nobody has seen before"),
                    ("regressed_failures", "Failures that came back after being resolved"),
                    ("replay_plans_stopped", "Replay plans that their stop rule holds"),
                    ("backlog", "Backlog: share of the tier's limit"),
                    ("oldest_open", "Oldest open job: age as a multiple of its window"),
                    ("no_worker", "Seconds that a queue with work has no worker"),
                    ("not_consuming", "Seconds that a queue with free workers has begun nothing that is due"),
                    ("breaker_open", "Circuit breakers that hold jobs back: 1 while not closed"),
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
    ]
