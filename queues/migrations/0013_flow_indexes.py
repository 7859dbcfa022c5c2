"""Indexes that limits, groups and order are counted and walked by, and the functions that read them.

`type <> ''` holds for every job: it keeps sweeps over all running jobs, which do not say it, from taking this index.

Functions, since they keep their plans: no partition can be pruned here, and planning each of these for a month of
partitions costs more than the rest of a claim (measured with 16 of them: 16 ms in one statement, under its locks). All
take the snapshot of the statement that calls them.
"""

from django.db import migrations

from queues.migrations._indexes import on_jobs

INDEXES = {
    "job_running": "(type, \"group\") WHERE state = 'processing' AND type <> ''",
    "job_waiting_group": "(type, \"group\", priority DESC, due_at) WHERE state IN ('accepted', 'retrying')",
    "job_order": "(type, \"group\", seq) WHERE seq IS NOT NULL AND (state IN ('accepted', 'processing', "
        "'awaiting_confirmation', 'retrying') OR state = 'dead' AND resolution = 'open')",
}  # fmt: skip

_KEPT = """LANGUAGE plpgsql STABLE PARALLEL SAFE SET plan_cache_mode = force_generic_plan SET enable_seqscan = off
  SET enable_sort = off SET jit = off"""
_RUNNING = """r.type = kind COLLATE "C" AND r.type <> '' AND r.state = 'processing' AND r.due_at > jobs_now()"""
_WAITING = """j.type = kind COLLATE "C" AND j.state IN ('accepted', 'retrying')"""
_DUE = "j.due_at <= jobs_now() AND j.expires_at > jobs_now()"
_ROWS = "RETURNS TABLE (id uuid, alone boolean, due_at timestamptz, published_at timestamptz) ROWS 10"
_UNSETTLED = """j.type = kind COLLATE "C" AND j.seq IS NOT NULL AND (j.state IN ('accepted', 'processing',
      'awaiting_confirmation', 'retrying') OR j.state = 'dead' AND j.resolution = 'open')"""

FUNCTIONS = f"""
CREATE OR REPLACE FUNCTION jobs_running(kind text) RETURNS integer {_KEPT} AS $$
BEGIN
  RETURN (SELECT count(*) FROM queues_job r WHERE {_RUNNING});
END $$;
CREATE OR REPLACE FUNCTION jobs_running_in_group(kind text, lane text) RETURNS integer {_KEPT} AS $$
BEGIN
  RETURN (SELECT count(*) FROM queues_job r WHERE {_RUNNING} AND r."group" = lane COLLATE "C");
END $$;
CREATE OR REPLACE FUNCTION jobs_next_group(kind text, lane text) RETURNS text {_KEPT} AS $$
BEGIN
  RETURN (SELECT j."group" FROM queues_job j WHERE {_WAITING} AND j."group" > lane COLLATE "C"
    ORDER BY j."group" LIMIT 1);
END $$;
CREATE OR REPLACE FUNCTION jobs_due_in_group(kind text, lane text, most integer) {_ROWS} {_KEPT} AS $$
BEGIN
  RETURN QUERY SELECT j.id, j.alone, j.due_at, j.published_at FROM queues_job j
    WHERE {_WAITING} AND j."group" = lane COLLATE "C" AND {_DUE} ORDER BY j.priority DESC, j.due_at LIMIT most;
END $$;
-- Sorted by the group too, though all of them have none: the planner takes the index's order only then.
CREATE OR REPLACE FUNCTION jobs_due_without_group(kind text, most integer) {_ROWS} {_KEPT} AS $$
BEGIN
  RETURN QUERY SELECT j.id, j.alone, j.due_at, j.published_at FROM queues_job j
    WHERE {_WAITING} AND j."group" IS NULL AND {_DUE} ORDER BY j."group", j.priority DESC, j.due_at LIMIT most;
END $$;
CREATE OR REPLACE FUNCTION jobs_due_of_type(kind text, level integer, most integer) {_ROWS} {_KEPT} AS $$
BEGIN
  RETURN QUERY SELECT j.id, j.alone, j.due_at, j.published_at FROM queues_job j
    WHERE {_WAITING} AND j.tier = level::smallint AND {_DUE} ORDER BY j.priority DESC, j.due_at LIMIT most;
END $$;
-- Due: it may begin now. Not while another one of its group runs, which was first before this one came back or was seen.
CREATE OR REPLACE FUNCTION jobs_head_of_group(kind text, lane text, dead_block boolean)
  RETURNS TABLE (id uuid, alone boolean, due_at timestamptz, published_at timestamptz, seq bigint, due boolean) ROWS 1
  {_KEPT} AS $$
BEGIN
  RETURN QUERY SELECT j.id, j.alone, j.due_at, j.published_at, j.seq,
    j.state IN ('accepted', 'retrying') AND {_DUE} AND NOT EXISTS (SELECT FROM queues_job r WHERE
      r.type = kind COLLATE "C" AND r.type <> '' AND r."group" = lane COLLATE "C" AND r.state = 'processing'
      AND r.seq IS NOT NULL)
    FROM queues_job j WHERE {_UNSETTLED} AND j."group" = lane COLLATE "C" AND (j.state <> 'dead' OR dead_block)
    ORDER BY j.seq LIMIT 1;
END $$;
"""

DROP = """
DROP FUNCTION IF EXISTS jobs_running(text);
DROP FUNCTION IF EXISTS jobs_running_in_group(text, text);
DROP FUNCTION IF EXISTS jobs_next_group(text, text);
DROP FUNCTION IF EXISTS jobs_due_without_group(text, integer);
DROP FUNCTION IF EXISTS jobs_due_of_type(text, integer, integer);
DROP FUNCTION IF EXISTS jobs_due_in_group(text, text, integer);
DROP FUNCTION IF EXISTS jobs_head_of_group(text, text, boolean);
"""


class Migration(migrations.Migration):
    """Index running jobs by type and group, waiting ones by group, ordered ones by their place."""

    atomic = False
    dependencies = [("queues", "0012_flow")]
    operations = [
        on_jobs(INDEXES),
        # Run again after a kill: all of it is one transaction of its own, and replaces what is there already.
        migrations.RunSQL(f"BEGIN; {FUNCTIONS} COMMIT;", f"BEGIN; {DROP} COMMIT;"),
    ]
