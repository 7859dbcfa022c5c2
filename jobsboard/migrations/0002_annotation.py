"""Annotations: deploys, incidents and counts of support contacts."""

import django.db.models.functions.datetime
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("jobsboard", "0001_initial"),
    ]

    operations = [
        migrations.CreateModel(
            name="Annotation",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                (
                    "kind",
                    models.CharField(
                        choices=[("deploy", "deploy"), ("incident", "incident"), ("support", "support")], max_length=10
                    ),
                ),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
                ("job_type", models.CharField(blank=True, db_collation="C", default="", max_length=64)),
                ("category", models.CharField(blank=True, default="", max_length=64)),
                ("count", models.PositiveIntegerField(default=1)),
                ("text", models.CharField(blank=True, default="", max_length=1000)),
                ("url", models.CharField(blank=True, default="", max_length=2000, verbose_name="URL")),
                ("created_by", models.CharField(editable=False, max_length=150)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                (
                    "idempotency_key",
                    models.CharField(blank=True, db_collation="C", default="", editable=False, max_length=255),
                ),
                ("digest", models.CharField(blank=True, default="", editable=False, max_length=64)),
            ],
            options={
                "indexes": [
                    models.Index(fields=["at", "id"], name="annotation_by_time"),
                    models.Index(fields=["job_type", "at", "id"], name="annotation_by_type"),
                    models.Index(fields=["kind", "at", "id"], name="annotation_by_kind"),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("idempotency_key", ""), _negated=True),
                        fields=("created_by", "idempotency_key"),
                        name="annotation_once_per_key",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("kind__in", ["deploy", "incident", "support"])),
                        name="annotation_kind_is_known",
                    ),
                    models.CheckConstraint(condition=models.Q(("count__gte", 1)), name="annotation_counts_something"),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("kind", "support"), models.Q(("category", ""), _negated=True)),
                            models.Q(models.Q(("kind", "support"), _negated=True), ("category", ""), ("count", 1)),
                            _connector="OR",
                        ),
                        name="annotation_category_is_of_support",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("url", ""), ("url__regex", "^https?://"), _connector="OR"),
                        name="annotation_url_is_http",
                    ),
                ],
            },
        ),
    ]
