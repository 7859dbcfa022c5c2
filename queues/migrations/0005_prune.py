"""Pruning in SQL: which days may be looked at, a walk over one of them, and the swap of its partition.

`queues.scheduler.prune` decides which of them comes when.
"""

from django.db import migrations

DAYS = """
-- Partitions that may hold something to remove: past the shortest retention of any type (7 days: a type that is gone),
-- and never today's or yesterday's, which jobs_make_partitions makes again. Six hours more, so that what was accepted
-- before midnight and settled after it goes with its day instead of staying behind.
CREATE FUNCTION jobs_prunable_days() RETURNS SETOF date LANGUAGE sql STABLE
SET search_path = pg_catalog, public, pg_temp AS $$
  SELECT p.day FROM (
    SELECT to_date(right(c.relname, 8), 'YYYYMMDD') AS day FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
    WHERE i.inhparent = 'public.queues_job'::regclass AND c.relname ~ '^queues_job_[0-9]{8}$') AS p
  CROSS JOIN (
    SELECT least(7, min(keep_confirmed_days), min(keep_other_days)) AS days FROM public.queues_jobtype) AS k
  WHERE p.day + 1 + k.days <= ((public.jobs_now() - interval '6 hours') AT TIME ZONE 'UTC')::date
    AND p.day <= (public.jobs_now() AT TIME ZONE 'UTC')::date - 2
  ORDER BY p.day
$$;
"""

LINEAGE = """
-- Whether nothing of a lineage can run any more, asked of a replayed job's child. The newest job counts, not the child:
-- a replay of a replay still uses the results of the first job's steps. A missing one was pruned, so it had ended.
CREATE FUNCTION jobs_lineage_ended(child uuid) RETURNS boolean LANGUAGE plpgsql
SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
  state text;
  resolution text;
  newer uuid;
BEGIN
  LOOP
    SELECT j.state, j.resolution, j.replayed_by INTO state, resolution, newer
    FROM public.queues_job j WHERE j.id = child;
    IF NOT FOUND THEN RETURN true; END IF;
    IF newer IS NULL THEN RETURN state = 'confirmed' OR coalesce(resolution <> 'open', false); END IF;
    child := newer;
  END LOOP;
END $$;
"""

WALK = """
-- Look at the next `most` jobs of a day, in id order, and say which must stay. What belongs to those that may go (keys,
-- references, results of steps) is removed here; the rows themselves only with `remove`, else a swap takes them.
--
-- A job that may go can never be wanted again: it is terminal, so it never opens; it is confirmed or resolved, so
-- nobody can replay it; and nothing of its lineage can run. The exception are expired and cancelled jobs, which may be
-- replayed at any time: those go here, under their row lock. So the answer stays true without any lock on the table.
-- All OUT columns are null when another session prunes.
CREATE FUNCTION jobs_prune(day date, after uuid, most integer, remove boolean,
  OUT seen integer, OUT last uuid, OUT may_go integer, OUT removed integer, OUT stay uuid[], OUT stay_bytes bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '100ms'
-- The partition is walked by its primary key and keys are found one by one, whatever the statistics say.
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET jit = off AS $fn$
DECLARE
  part text := 'queues_job_' || to_char(day, 'YYYYMMDD');
  final uuid[];
  loose uuid[];
  keyed uuid[];
  types text[];
  keys text[];
  wanted uuid[];
  gone uuid[] := '{}';
BEGIN
  IF most IS NULL OR most NOT BETWEEN 1 AND 50000 THEN RAISE EXCEPTION 'most must be 1 to 50000'; END IF;
  IF NOT pg_try_advisory_xact_lock(7264502) THEN RETURN; END IF;
  IF to_regclass('public.' || part) IS NULL THEN
    seen := 0; may_go := 0; removed := 0; stay := '{}'; stay_bytes := 0;
    RETURN;
  END IF;
  EXECUTE format($q$
    SELECT count(*), (array_agg(t.id ORDER BY t.id DESC))[1],
      coalesce(array_agg(t.id) FILTER (WHERE t.ripe AND NOT t.loose), '{}'),
      coalesce(array_agg(t.id) FILTER (WHERE t.ripe AND t.loose), '{}'),
      coalesce(array_agg(t.id) FILTER (WHERE NOT t.ripe), '{}'),
      coalesce(sum(t.bytes) FILTER (WHERE NOT t.ripe), 0),
      coalesce(array_agg(t.id) FILTER (WHERE t.ripe AND t.dedupe_key IS NOT NULL), '{}'),
      coalesce(array_agg(t.type::text) FILTER (WHERE t.ripe AND t.dedupe_key IS NOT NULL), '{}'),
      coalesce(array_agg(t.dedupe_key::text) FILTER (WHERE t.ripe AND t.dedupe_key IS NOT NULL), '{}')
    FROM (
      SELECT j.id, j.type, j.dedupe_key, coalesce(j.resolution = 'open', false) AS loose,
        coalesce(pg_column_size(j.payload), 0) + coalesce(pg_column_size(j.result), 0)
          + pg_column_size(j.failures) AS bytes,
        CASE
          WHEN j.settled_at IS NULL OR (j.state = 'dead' AND j.resolution = 'open') THEN false
          -- In hours, so that no session's time zone matters; at most a century, so that no sum overflows.
          WHEN j.settled_at >= public.jobs_now() - make_interval(hours => 24 * least(36500, CASE j.state
            WHEN 'confirmed' THEN coalesce(c.keep_confirmed_days, 7) ELSE coalesce(c.keep_other_days, 30) END))
            THEN false
          WHEN (SELECT k.expires_at FROM public.queues_dedupekey k WHERE k.type = j.type AND k.key = j.dedupe_key
            AND k.job_id = j.id) > public.jobs_now() THEN false
          WHEN j.replayed_by IS NOT NULL THEN public.jobs_lineage_ended(j.replayed_by)
          ELSE true END AS ripe
      FROM (SELECT * FROM public.%1$I WHERE id > $1 ORDER BY id LIMIT $2) AS j
      LEFT JOIN public.queues_jobtype c ON c.name = j.type
    ) AS t
  $q$, part)
  INTO seen, last, final, loose, stay, stay_bytes, keyed, types, keys
  USING coalesce(after, '00000000-0000-0000-0000-000000000000'::uuid), most;
  may_go := cardinality(final) + cardinality(loose);
  wanted := loose || CASE WHEN remove THEN final ELSE '{}'::uuid[] END;
  IF cardinality(wanted) > 0 THEN
    -- Under its lock a row is as it was seen, unless it was replayed: then it stays, and its keys and steps as well.
    EXECUTE format($q$
      WITH hit AS MATERIALIZED (
        SELECT j.id FROM public.%1$I j WHERE j.id = ANY($1)
          AND coalesce(j.resolution = 'open', false) = (j.id = ANY($2)) ORDER BY j.id FOR UPDATE SKIP LOCKED
      ), gone AS (
        DELETE FROM public.%1$I j USING hit WHERE j.id = hit.id RETURNING j.id
      )
      SELECT coalesce(array_agg(id), '{}') FROM gone
    $q$, part) INTO gone USING wanted, loose;
    stay := stay || ARRAY(SELECT unnest(wanted) EXCEPT SELECT unnest(gone));
  END IF;
  removed := cardinality(gone);
  IF NOT remove THEN gone := gone || final; END IF;
  IF cardinality(gone) = 0 THEN RETURN; END IF;
  -- A key that somebody has locked is being let go or moved by him; accept lets go of what a missing job holds.
  -- (EXECUTE, so that the array is a constant, which is looked up by a hash.)
  EXECUTE $q$
    DELETE FROM public.queues_dedupekey k USING (
      SELECT k.type, k.key FROM unnest($1, $2, $3) AS g (id, type, key)
      JOIN public.queues_dedupekey k ON k.type = g.type AND k.key = g.key AND k.job_id = g.id
      WHERE g.id = ANY($4) ORDER BY k.type, k.key FOR UPDATE OF k SKIP LOCKED
    ) AS hit WHERE k.type = hit.type AND k.key = hit.key
  $q$ USING keyed, types, keys, gone;
  DELETE FROM public.queues_jobreference WHERE job_id = ANY(gone);
  DELETE FROM public.queues_stepresult WHERE job_id = ANY(gone);
END $fn$;
"""

SWAP = """
-- Put a small partition with the jobs that stay in the place of a day's; without any the day has no partition any more.
-- `stay` comes from a walk without `remove`. Whatever it says, open jobs and unresolved dead letters are kept.
CREATE FUNCTION jobs_prune_swap(day date, stay uuid[]) RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp SET lock_timeout = '100ms'
SET enable_seqscan = off SET jit = off AS $fn$
DECLARE
  part text := 'queues_job_' || to_char(day, 'YYYYMMDD');
  small text := part || '_new';
  keep uuid[];
  columns text;
BEGIN
  IF stay IS NULL OR cardinality(stay) > 5000 THEN RAISE EXCEPTION 'at most 5000 jobs may stay'; END IF;
  IF NOT pg_try_advisory_xact_lock(7264502) THEN RETURN 'busy'; END IF;
  IF day NOT IN (SELECT public.jobs_prunable_days()) THEN RETURN 'gone'; END IF;
  BEGIN
    -- Stops writers of this partition only, so that the copy is true; readers and everybody else go on.
    EXECUTE format('LOCK TABLE ONLY public.%I IN SHARE MODE', part);
    -- By the partial indexes: nothing here reads the whole partition.
    EXECUTE format($q$
      SELECT coalesce(array_agg(id), '{}') FROM (
        SELECT unnest($1) AS id
        UNION SELECT id FROM public.%1$I WHERE state = 'processing'
        UNION SELECT id FROM public.%1$I WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation')
        UNION SELECT id FROM public.%1$I WHERE state = 'dead' AND resolution = 'open'
      ) AS t
    $q$, part) INTO keep USING stay;
    IF cardinality(keep) > 10000 THEN RAISE EXCEPTION 'too many jobs stay for a swap'; END IF;
    IF cardinality(keep) > 0 THEN
      SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns FROM pg_attribute
      WHERE attrelid = 'public.queues_job'::regclass AND attnum > 0 AND NOT attisdropped;
      EXECUTE format('CREATE TABLE public.%I (LIKE public.queues_job INCLUDING ALL) WITH (fillfactor = 70,'
        ' autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05)', small);
      EXECUTE format('INSERT INTO public.%I (%s) SELECT %s FROM public.%I WHERE id = ANY($1)',
        small, columns, columns, part) USING keep;
    END IF;
    -- From here on everybody waits, so nothing but the catalogue is written. Parent first, as every statement does: who
    -- waits for this partition then holds the parent, and it is we who give up. Whoever waits for the parent plans anew
    -- when we are done and finds the rows in the new partition.
    LOCK TABLE ONLY public.queues_job IN ACCESS EXCLUSIVE MODE;
    -- Nobody can have it but who names it directly (VACUUM): not worth a second wait with the parent in our hands.
    EXECUTE format('LOCK TABLE ONLY public.%I IN ACCESS EXCLUSIVE MODE NOWAIT', part);
    EXECUTE format('ALTER TABLE public.queues_job DETACH PARTITION public.%I', part);
    IF cardinality(keep) > 0 THEN
      EXECUTE format('ALTER TABLE public.queues_job ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        small, public.jobs_day_floor(day), public.jobs_day_floor(day + 1));
    END IF;
    EXECUTE format('DROP TABLE public.%I', part);
    IF cardinality(keep) > 0 THEN
      EXECUTE format('ALTER TABLE public.%I RENAME TO %I', small, part);
      RETURN 'swapped';
    END IF;
    RETURN 'dropped';
  EXCEPTION WHEN lock_not_available THEN
    RETURN 'refused';
  END;
END $fn$;
"""

# They remove for good: only their owner may call them, and whom the owner grants it.
GRANTS = """
REVOKE EXECUTE ON FUNCTION jobs_prune(date, uuid, integer, boolean), jobs_prune_swap(date, uuid[]) FROM PUBLIC;
"""

DROP = """
DROP FUNCTION jobs_prune_swap(date, uuid[]);
DROP FUNCTION jobs_prune(date, uuid, integer, boolean);
DROP FUNCTION jobs_lineage_ended(uuid);
DROP FUNCTION jobs_prunable_days();
"""


class Migration(migrations.Migration):
    """Add functions only."""

    dependencies = [("queues", "0004_confirmation")]
    operations = [migrations.RunSQL(DAYS + LINEAGE + WALK + SWAP + GRANTS, DROP)]
