"""How long a job is in its state, and whether the end of its last run is known: columns of the job.

In a migration of its own, as 0003 is and for its reason.
"""

from django.db import migrations

# Constants as defaults, so that no partition is written anew.
ADD = """
ALTER TABLE queues_job ADD COLUMN entered_at timestamptz, ADD COLUMN unknown_end boolean NOT NULL DEFAULT false;
"""
DROP = "ALTER TABLE queues_job DROP COLUMN entered_at, DROP COLUMN unknown_end;"


class Migration(migrations.Migration):
    """Add them."""

    dependencies = [("queues", "0005_prune")]
    operations = [migrations.RunSQL(ADD, DROP)]
