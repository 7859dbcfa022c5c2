"""What was counted so far: totals, histograms in their new form, how many of each cohort have ended."""

from django.db import migrations

# A fold of the release before would leave out what it does not know, and totals with it: it fails from here on, what it
# would have folded waits for a scheduler of this release, and its pages go on. It always names this table.
STOP = """
CREATE FUNCTION outcomes_refuse_old_fold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'the scheduler of the release before folds no more; a scheduler of this one does';
END $$;
CREATE TRIGGER old_fold_stops BEFORE INSERT ON queues_outcomehistogram FOR EACH STATEMENT
  EXECUTE FUNCTION outcomes_refuse_old_fold();
"""
GO_ON = """
DROP TRIGGER old_fold_stops ON queues_outcomehistogram;
DROP FUNCTION outcomes_refuse_old_fold();
"""

# Of a cohort all have ended but those that are open; what is not folded so far comes with the same fold. Open jobs are
# found by their partial indexes. A scheduler of this release may have begun before this ran, so nothing is taken as empty.
FILL = """
LOCK TABLE queues_outcomerollup, queues_outcomehistogram IN SHARE ROW EXCLUSIVE MODE;
UPDATE queues_outcomerollup SET ended = ready;
INSERT INTO queues_outcomedelta (at, type, tier, measure, bucket, n, window_seconds)
SELECT at, type, tier, 'ended', -1, sum(n), 0 FROM (
  SELECT at, type, tier, CASE measure WHEN 'ready' THEN n ELSE -n END AS n FROM queues_outcomedelta
  WHERE measure IN ('ready', 'ended')
  UNION ALL
  SELECT date_trunc('minute', ready_at), type, tier, -1 FROM queues_job
  WHERE state IN ('accepted', 'retrying', 'awaiting_confirmation') AND replay_of IS NULL AND NOT probe
  UNION ALL
  SELECT date_trunc('minute', ready_at), type, tier, -1 FROM queues_job
  WHERE state = 'processing' AND replay_of IS NULL AND NOT probe
) AS s GROUP BY 1, 2, 3 HAVING sum(n) <> 0;
DELETE FROM queues_outcomerollup WHERE grain = 'total';
INSERT INTO queues_outcomerollup (grain, at, type, tier, window_seconds, ready, in_window, excluded, ended, accepted,
  duplicates, confirmed, dead, expired, cancelled, replayed, runs, failed, lost, late_evidence, contradictions,
  superseded, late, retries, blind_attempts, second_references, confirmed_after_rejection)
SELECT 'total', to_timestamp(0), type, tier, max(window_seconds), sum(ready), sum(in_window), sum(excluded), sum(ended),
  sum(accepted), sum(duplicates), sum(confirmed), sum(dead), sum(expired), sum(cancelled), sum(replayed), sum(runs),
  sum(failed), sum(lost), sum(late_evidence), sum(contradictions), sum(superseded),
  sum(late), sum(retries), sum(blind_attempts), sum(second_references), sum(confirmed_after_rejection)
FROM queues_outcomerollup WHERE grain = 'day' GROUP BY type, tier;
INSERT INTO queues_outcomebuckets (grain, type, at, tier, measure, counts)
SELECT grain, type, at, tier, measure, jsonb_object_agg(bucket, n) FROM (
  SELECT g.grain, coalesce(h.type, '') AS type, g.at, coalesce(h.tier, 0) AS tier, h.measure, h.bucket, sum(h.n) AS n
  FROM queues_outcomehistogram h
  CROSS JOIN LATERAL (SELECT h.grain, h.at UNION ALL SELECT 'total', to_timestamp(0) WHERE h.grain = 'day') AS g
  GROUP BY g.grain, g.at, h.measure, h.bucket, GROUPING SETS ((h.type, h.tier), (h.tier), ())) AS sums
GROUP BY 1, 2, 3, 4, 5
ON CONFLICT (grain, type, at, tier, measure)
DO UPDATE SET counts = jobs_merge_counts(queues_outcomebuckets.counts, excluded.counts);
"""
EMPTY = """
DELETE FROM queues_outcomerollup WHERE grain = 'total';
DELETE FROM queues_outcomebuckets;
"""


class Migration(migrations.Migration):
    """Apart from the change of the tables, whose locks nobody should wait for that long."""

    dependencies = [("queues", "0007_outcomes")]
    operations = [migrations.RunSQL(STOP, GO_ON), migrations.RunSQL(FILL, EMPTY)]
