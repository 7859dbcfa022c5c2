"""API keys, login attempts, and the four groups that give roles (`jobsboard.roles`)."""

from typing import Any

import django.db.models.functions.datetime
from django.db import migrations, models

import jobsboard.models

GROUPS = ("viewer", "operator", "owner", "admin")


def _add_groups(apps: Any, editor: Any) -> None:
    group = apps.get_model("auth", "Group")
    for name in GROUPS:
        group.objects.using(editor.connection.alias).get_or_create(name=name)


class Migration(migrations.Migration):
    initial = True

    dependencies = [("auth", "0012_alter_user_first_name_max_length")]

    operations = [
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("prefix", models.CharField(db_collation="C", editable=False, max_length=8, unique=True)),
                ("digest", models.CharField(editable=False, max_length=64)),
                ("label", models.CharField(max_length=100)),
                ("scopes", models.JSONField(default=list)),
                ("type_patterns", models.JSONField(default=jobsboard.models.every_type)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now(), editable=False),
                ),
                ("created_by", models.CharField(blank=True, editable=False, max_length=150)),
                ("expires_at", models.DateTimeField(blank=True, null=True)),
                ("revoked_at", models.DateTimeField(blank=True, editable=False, null=True)),
                ("last_used_at", models.DateTimeField(blank=True, editable=False, null=True)),
            ],
            options={
                "verbose_name": "API key",
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("digest__regex", "^[0-9a-f]{64}$")), name="api_key_digest_is_sha256"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("prefix__regex", "^[0-9A-Za-z]{8}$")), name="api_key_prefix_is_public_part"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="LoginAttempt",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("who", models.CharField(db_collation="C", max_length=64)),
                ("at", models.DateTimeField(db_default=django.db.models.functions.datetime.Now())),
            ],
            options={
                "indexes": [models.Index(fields=["who", "at"], name="login_attempts_of")],
            },
        ),
        # Groups may have members by the time this is reversed, so they stay.
        migrations.RunPython(_add_groups, migrations.RunPython.noop),
    ]
