"""The jobs table in SQL: partitions, partial indexes, CHECK constraints, guards and clock functions.

Django cannot declare any of these. The transition guard is generated from `queues.states`.
"""

from typing import Any

from django.db import migrations

from queues import states
from queues.histogram import GAMMA, MAX_BUCKET, MIN_SECONDS


def _in(words: Any) -> str:
    return "(" + ", ".join(f"'{word}'" for word in words) + ")"


_LEGAL = _in(f"{old}>{new}" for old, news in states.TRANSITIONS.items() for new in sorted(news))
_OPEN, _WAITING, _TERMINAL = _in(states.OPEN), _in(states.WAITING), _in(states.TERMINAL)
_RESOLUTION = ", ".join(f"'{column}'" for column in states.RESOLUTION_COLUMNS)

CLOCK = """
-- Comparisons use jobs_now (STABLE: may be an index condition), stored times jobs_clock. Tests replace both.
CREATE FUNCTION jobs_now() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE AS 'SELECT statement_timestamp()';
CREATE FUNCTION jobs_clock() RETURNS timestamptz LANGUAGE sql VOLATILE PARALLEL SAFE AS 'SELECT clock_timestamp()';
"""

UUID7_BUILTIN = "CREATE FUNCTION jobs_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS 'SELECT uuidv7()';"
# Before PostgreSQL 18: 48 bits of milliseconds, 12 bits of their fraction (so that ids of one session ascend), random.
UUID7_OWN = """
CREATE FUNCTION jobs_uuid7() RETURNS uuid LANGUAGE sql VOLATILE AS $$
  SELECT encode(
    set_bit(set_bit(
      overlay(overlay(uuid_send(gen_random_uuid()) PLACING substring(int8send(micros / 1000) FROM 3) FROM 1 FOR 6)
        PLACING substring(int8send(28672 + (micros % 1000) * 4096 / 1000) FROM 7) FROM 7 FOR 2),
      64, 0), 65, 0)::bytea, 'hex')::uuid
  FROM (SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint AS micros) AS t
$$;
"""

BUCKET = f"""
-- The same buckets as queues.histogram.bucket_of.
CREATE FUNCTION jobs_bucket(seconds double precision) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
  SELECT CASE WHEN seconds <= {MIN_SECONDS} THEN 0
    ELSE least({MAX_BUCKET}, ceil(ln(seconds / {MIN_SECONDS}) / ln({GAMMA}::double precision))) END::smallint
$$;
"""

TABLE = f"""
CREATE SEQUENCE queues_job_seq CACHE 1;
CREATE TABLE queues_job (
  id uuid NOT NULL,
  state varchar(21) NOT NULL DEFAULT 'accepted',
  type varchar(64) COLLATE "C" NOT NULL,
  tier smallint NOT NULL,
  priority smallint NOT NULL DEFAULT 0,
  contract_version integer NOT NULL,
  attempt smallint NOT NULL DEFAULT 0,
  attempt_limit smallint NOT NULL,
  fence integer NOT NULL DEFAULT 0,
  crashes smallint NOT NULL DEFAULT 0,
  begun smallint NOT NULL DEFAULT 0,
  alone boolean NOT NULL DEFAULT false,
  cancel_requested boolean NOT NULL DEFAULT false,
  probe boolean NOT NULL DEFAULT false,
  canary boolean NOT NULL DEFAULT false,
  window_seconds integer NOT NULL,
  due_at timestamptz,
  ready_at timestamptz NOT NULL,
  expires_at timestamptz NOT NULL,
  confirm_by timestamptz,
  accepted_at timestamptz NOT NULL,
  published_at timestamptz,
  started_at timestamptz,
  finished_at timestamptz,
  settled_at timestamptz,
  request_hash bytea NOT NULL,
  dedupe_key varchar(255) COLLATE "C",
  idempotency_key varchar(64) NOT NULL,
  "group" varchar(255) COLLATE "C",
  worker varchar(200),
  reason varchar(24),
  fingerprint varchar(32),
  replay_of uuid,
  replayed_by uuid,
  root uuid NOT NULL,
  seq bigint,
  resolution varchar(9),
  resolved_at timestamptz,
  resolved_by varchar(150),
  erased_at timestamptz,
  evidence jsonb,
  late_evidence jsonb,
  result jsonb,
  progress jsonb,
  failures jsonb NOT NULL DEFAULT '[]',
  trace jsonb,
  payload json,
  CONSTRAINT queues_job_pkey PRIMARY KEY (id),
  CONSTRAINT job_state_known CHECK (state IN {_in(states.JobState)}),
  CONSTRAINT job_tier_known CHECK (tier BETWEEN 1 AND 3),
  CONSTRAINT job_priority_range CHECK (priority BETWEEN -100 AND 100),
  CONSTRAINT job_open_acts CHECK ((state IN {_OPEN}) = (due_at IS NOT NULL)),
  CONSTRAINT job_settled_when_terminal CHECK ((state IN {_TERMINAL}) = (settled_at IS NOT NULL)),
  CONSTRAINT job_run_has_worker CHECK (state <> 'processing' OR (worker IS NOT NULL AND started_at IS NOT NULL)),
  CONSTRAINT job_confirmed_has_evidence CHECK (state <> 'confirmed' OR (evidence IS NOT NULL AND reason IS NULL)),
  CONSTRAINT job_reason_fits CHECK (CASE state
    WHEN 'dead' THEN coalesce(reason IN {_in(states.DEAD_REASONS)}, false)
    WHEN 'expired' THEN coalesce(reason IN {_in(states.EXPIRED_REASONS)}, false)
    WHEN 'cancelled' THEN coalesce(reason IN {_in(states.CANCELLED_REASONS)}, false)
    WHEN 'processing' THEN reason IS NULL OR (cancel_requested AND reason IN {_in(states.CANCELLED_REASONS)})
    ELSE reason IS NULL END),
  CONSTRAINT job_resolution_fits CHECK ((state IN {_in(states.REPLAYABLE)}) = (resolution IS NOT NULL)),
  CONSTRAINT job_resolution_known CHECK (resolution IN {_in(states.Resolution)}),
  CONSTRAINT job_counts CHECK (attempt >= 0 AND attempt_limit BETWEEN 1 AND 100 AND fence >= 0 AND begun >= 0
    AND crashes >= 0),
  CONSTRAINT job_payload_or_erased CHECK ((payload IS NULL) = (erased_at IS NOT NULL))
) PARTITION BY RANGE (id);

-- What the stage walks: due work of one type, best first.
CREATE INDEX job_staging ON queues_job (tier, type, priority DESC, due_at) WHERE state IN {_WAITING};
-- Leases that ran out.
CREATE INDEX job_lease ON queues_job (due_at) WHERE state = 'processing';
CREATE INDEX job_awaiting ON queues_job (due_at) WHERE state = 'awaiting_confirmation';
CREATE INDEX job_expiry ON queues_job (expires_at) WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation');
-- Oldest waiting job of a type. Running ones are not in it: they are few, job_lease finds them, and each claim would
-- have to move its entry here.
CREATE INDEX job_open ON queues_job (tier, type, ready_at)
  WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation');
CREATE INDEX job_dead ON queues_job (type, id) WHERE state = 'dead' AND resolution = 'open';
CREATE INDEX job_by_type ON queues_job (type, id);
"""

GUARDS = f"""
CREATE FUNCTION jobs_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'job %: % is not a legal change (% to %)', OLD.id, TG_NAME, OLD.state, NEW.state
    USING ERRCODE = 'check_violation';
END $$;
CREATE FUNCTION jobs_refuse_insert() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'a job starts as accepted, not as %', NEW.state USING ERRCODE = 'check_violation';
END $$;
-- A terminal row may change in its resolution columns only; the payload may only be erased.
CREATE FUNCTION jobs_guard_terminal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF to_jsonb(OLD) - ARRAY[{_RESOLUTION}] IS DISTINCT FROM to_jsonb(NEW) - ARRAY[{_RESOLUTION}]
     OR (NEW.payload IS NOT NULL AND NEW.payload::text IS DISTINCT FROM OLD.payload::text)
     OR (OLD.replayed_by IS NOT NULL AND NEW.replayed_by IS DISTINCT FROM OLD.replayed_by) THEN
    RAISE EXCEPTION 'job % is % and cannot change', OLD.id, OLD.state USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER job_starts_accepted BEFORE INSERT ON queues_job FOR EACH ROW
  WHEN (NEW.state <> 'accepted') EXECUTE FUNCTION jobs_refuse_insert();
CREATE TRIGGER job_transition BEFORE UPDATE ON queues_job FOR EACH ROW
  WHEN (OLD.state <> NEW.state AND (OLD.state || '>' || NEW.state) NOT IN {_LEGAL})
  EXECUTE FUNCTION jobs_refuse();
CREATE TRIGGER job_fence_never_falls BEFORE UPDATE ON queues_job FOR EACH ROW
  WHEN (NEW.fence < OLD.fence OR NEW.id <> OLD.id) EXECUTE FUNCTION jobs_refuse();
CREATE TRIGGER job_terminal_is_final BEFORE UPDATE ON queues_job FOR EACH ROW
  WHEN (OLD.state IN {_TERMINAL} AND NEW.state = OLD.state) EXECUTE FUNCTION jobs_guard_terminal();
"""

PARTITIONS = """
-- Daily partitions by the time inside UUIDv7. LIKE + ATTACH, since CREATE ... PARTITION OF waits for open readers.
CREATE FUNCTION jobs_day_floor(day date) RETURNS uuid LANGUAGE sql IMMUTABLE AS $$
  SELECT (substr(h, 1, 8) || '-' || substr(h, 9, 4) || '-0000-0000-000000000000')::uuid
  FROM (SELECT lpad(to_hex((extract(epoch FROM day) * 1000)::bigint), 12, '0') AS h) AS t
$$;
CREATE FUNCTION jobs_make_partitions(days_ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, public SET lock_timeout = '100ms' AS $$
DECLARE
  day date;
  part text;
  made integer := 0;
BEGIN
  IF days_ahead NOT BETWEEN 0 AND 60 THEN RAISE EXCEPTION 'days_ahead must be 0 to 60'; END IF;
  -- One maker at a time; the second finds nothing to do.
  PERFORM pg_advisory_xact_lock(7264501);
  FOR day IN SELECT d::date FROM generate_series(
      (clock_timestamp() AT TIME ZONE 'UTC')::date - 1,
      (clock_timestamp() AT TIME ZONE 'UTC')::date + days_ahead, interval '1 day') AS d LOOP
    part := 'queues_job_' || to_char(day, 'YYYYMMDD');
    IF to_regclass('public.' || part) IS NULL THEN
      EXECUTE format('CREATE TABLE public.%I (LIKE public.queues_job INCLUDING ALL) WITH (fillfactor = 70,'
        ' autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.05)', part);
      EXECUTE format('ALTER TABLE public.queues_job ATTACH PARTITION public.%I FOR VALUES FROM (%L) TO (%L)',
        part, public.jobs_day_floor(day), public.jobs_day_floor(day + 1));
      made := made + 1;
    END IF;
  END LOOP;
  RETURN made;
END $$;
"""

AUDIT = """
CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the audit log is append-only' USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON queues_auditentry FOR EACH ROW
  EXECUTE FUNCTION audit_refuse();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON queues_auditentry FOR EACH STATEMENT
  EXECUTE FUNCTION audit_refuse();
"""

ROWS = """
INSERT INTO queues_tier (number, name, target_ratio, retry_budget, backlog_limit) VALUES
  (1, 'Critical', 0.999, 0.2, 1000000), (2, 'Customer facing', 0.995, 0.2, 1000000),
  (3, 'Housekeeping', 0.98, 0.2, 1000000);
INSERT INTO queues_boardversion (id, n) VALUES (1, 0);
"""

DROP = """
DROP TABLE queues_job CASCADE;
DROP SEQUENCE queues_job_seq;
DROP TRIGGER audit_append_only ON queues_auditentry;
DROP TRIGGER audit_no_truncate ON queues_auditentry;
DROP FUNCTION jobs_now, jobs_clock, jobs_uuid7, jobs_bucket, jobs_refuse, jobs_refuse_insert, jobs_guard_terminal,
  jobs_day_floor, jobs_make_partitions, audit_refuse;
DELETE FROM queues_tier; DELETE FROM queues_boardversion;
"""


def _create(apps: Any, editor: Any) -> None:
    builtin = editor.connection.pg_version >= 180000
    for sql in (CLOCK, UUID7_BUILTIN if builtin else UUID7_OWN, BUCKET, TABLE, GUARDS, PARTITIONS, AUDIT, ROWS):
        editor.execute(sql, params=None)
    editor.execute("SELECT jobs_make_partitions(14)", params=None)


def _drop(apps: Any, editor: Any) -> None:
    editor.execute(DROP, params=None)


class Migration(migrations.Migration):
    """Create what only SQL can say."""

    dependencies = [("queues", "0001_initial")]
    operations = [migrations.RunPython(_create, _drop)]
