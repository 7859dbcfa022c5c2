"""What a job that awaits its proof keeps in its row.

In a migration of its own: while the workers of the release before go on, a transaction that locks this table and another
one would meet their claims in the opposite order.
"""

from django.db import migrations

# Constants as defaults, so that no partition is written anew.
ADD = """
ALTER TABLE queues_job
  ADD COLUMN polled boolean NOT NULL DEFAULT false,
  ADD COLUMN checks smallint NOT NULL DEFAULT 0,
  ADD COLUMN check_failures smallint NOT NULL DEFAULT 0,
  ADD COLUMN reference varchar(1000),
  ADD COLUMN rejection jsonb;
-- Due checks, type by type.
CREATE INDEX job_polled ON queues_job (type, due_at) WHERE state = 'awaiting_confirmation' AND polled;
"""
DROP = """
DROP INDEX job_polled;
ALTER TABLE queues_job DROP COLUMN polled, DROP COLUMN checks, DROP COLUMN check_failures, DROP COLUMN reference,
  DROP COLUMN rejection;
"""


class Migration(migrations.Migration):
    """Add them."""

    dependencies = [("queues", "0002_jobs")]
    operations = [migrations.RunSQL(ADD, DROP)]
