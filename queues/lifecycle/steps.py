"""What a run keeps while it goes on: results of its steps, and how far it is. Both name the fence of the run."""

from typing import Any
from uuid import UUID

import msgspec

from queues.lifecycle.sql import STATE, execute, transition, uuids

_HOLDS = f"""EXISTS (SELECT FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND j.fence = %(fence)s
  AND {STATE} = 'processing')"""

FIND = f"""
SELECT {_HOLDS}, s.root IS NOT NULL, s.result::text
FROM (SELECT 1) AS one LEFT JOIN queues_stepresult s ON s.root = %(root)s AND s.name = %(name)s
"""

# What a superseded run has done is kept as well: the step did happen, and its successor shall not do it again.
KEEP = f"""
WITH kept AS (
  INSERT INTO queues_stepresult (root, name, job_id, fence, result, at)
  VALUES (%(root)s, %(name)s, %(id)s, %(fence)s, %(result)s::jsonb, jobs_clock())
  ON CONFLICT (root, name) DO UPDATE SET name = excluded.name
  RETURNING result
)
SELECT {_HOLDS}, (SELECT result::text FROM kept)
"""

PROGRESS = f"""
WITH hit AS (
  SELECT j.id FROM queues_job j WHERE j.id = ANY(%(ids)s::uuid[]) AND j.fence = %(fence)s AND {STATE} = 'processing'
  FOR UPDATE OF j
)
UPDATE queues_job j SET progress = jsonb_build_object('share', %(share)s::float8, 'text', %(text)s::text,
  'at', jobs_clock())
FROM hit WHERE j.id = ANY(%(ids)s::uuid[]) AND j.id = hit.id RETURNING j.id
"""


def find_step(job_id: UUID, fence: int, *, root: UUID, name: str) -> tuple[bool, bool, Any]:
    """Return whether the run still holds its job, whether the step was done, and its result."""
    params = {"ids": uuids([job_id]), "fence": fence, "root": root, "name": name}
    holds, found, result = execute(FIND, params)[0]
    return holds, found, None if result is None else msgspec.json.decode(result)


def keep_step(job_id: UUID, fence: int, *, root: UUID, name: str, result: str) -> tuple[bool, Any]:
    """Keep what a step returned (JSON). Returns whether the run still holds its job, and the result that counts: the
    first one that was kept.
    """
    params = {"ids": uuids([job_id]), "id": job_id, "fence": fence, "root": root, "name": name, "result": result}
    holds, kept = transition("step", KEEP, params)[0]
    return holds, msgspec.json.decode(kept)


def set_progress(job_id: UUID, fence: int, *, share: float, text: str) -> bool:
    """Say how far a run is; False when it is no longer the job's."""
    return bool(execute(PROGRESS, {"ids": uuids([job_id]), "fence": fence, "share": share, "text": text}))
