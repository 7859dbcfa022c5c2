"""Judge what is left when everything has healed: jobs, effects, keys, replays, audit entries and counts."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

from queues.models import AuditEntry, Job
from queues.states import JobState
from tests.factories import fold_all, sql, state_counts, true_counts
from tests.faults.stories import ATOMIC, Effect, effects

OPEN = ("accepted", "processing", "retrying", "awaiting_confirmation")
AUDITED = {
    "job.replayed": "replayed_by IS NOT NULL",
    "job.cancelled": "state = 'cancelled' AND reason <> 'superseded'",
    "job.confirmed_by_hand": "evidence ->> 'kind' = 'manual' OR late_evidence @> '[{\"kind\": \"manual\"}]'",
}


def judge(path: Path) -> None:
    """Assert what every story must leave behind."""
    jobs = list(Job.objects.all())
    assert not [job.id for job in jobs if job.state in OPEN], "every job ends"
    _effects(jobs, effects(path))
    rows = Counter(str(i) for (i,) in sql("SELECT job_id FROM fault_row"))
    for job in jobs:
        if job.type == ATOMIC:
            assert rows[str(job.id)] == (job.state == JobState.CONFIRMED), "an atomic effect is there as its job is"
    keys = Counter(sql("SELECT type, dedupe_key FROM queues_job WHERE dedupe_key IS NOT NULL AND replay_of IS NULL"))
    assert not [key for key, n in keys.items() if n > 1], "one job for one key"
    children = Counter(job.replay_of for job in jobs if job.replay_of)
    assert {job.id: job.replayed_by for job in jobs if job.replayed_by} == {
        job.replay_of: job.id for job in jobs if job.replay_of
    }, "a replay has two ends"
    assert not [parent for parent, n in children.items() if n > 1], "one replay for one job"
    for action, condition in AUDITED.items():
        acted = sql(f"SELECT count(*) FROM queues_job WHERE {condition}")[0][0]
        assert AuditEntry.objects.filter(action=action).count() == acted, f"{action}: with its entry, or not at all"
    assert set(AuditEntry.objects.values_list("action", flat=True)) <= AUDITED.keys()
    _counts()


def _effects(jobs: list[Job], done: list[Effect]) -> None:
    by_what: dict[tuple[str, str], list[Effect]] = defaultdict(list)
    for effect in done:
        by_what[(effect.job, effect.what)].append(effect)
    known = {str(job.id): job for job in jobs}
    for (job_id, what), mine in by_what.items():
        assert job_id in known, "an effect of a job that is not there"
        assert len({effect.run for effect in mine}) == len(mine), "a run acts once"
        assert sum(not effect.told for effect in mine) <= 1, "a second effect is told"
        assert max(effect.run for effect in mine) <= known[job_id].fence
        # A step that was kept is never done again; one that was not may be, and its run is told so.
        assert what == "effect" or len(mine) <= 2
    for job in jobs:
        proof = (job.evidence or {}).get("ref")
        if job.state == JobState.CONFIRMED and job.type == "fault.plain" and proof not in ("told", "by-hand"):
            assert proof in {f"{effect.job}/{effect.run}" for effect in done if effect.job == str(job.id)}


def _counts() -> None:
    """Counts equal SQL truth (I-35), whatever was killed between a transition and its count."""
    fold_all()
    assert state_counts() == true_counts()
    columns = "sum(accepted), sum(replayed), sum(confirmed), sum(dead), sum(expired), sum(cancelled)"
    counted = sql(f"SELECT {columns} FROM queues_outcomerollup WHERE grain = 'minute'")[0]
    true = sql(
        "SELECT count(*) FILTER (WHERE replay_of IS NULL), count(*) FILTER (WHERE replay_of IS NOT NULL),"
        " count(*) FILTER (WHERE state = 'confirmed'), count(*) FILTER (WHERE state = 'dead'),"
        " count(*) FILTER (WHERE state = 'expired'), count(*) FILTER (WHERE state = 'cancelled') FROM queues_job"
        " WHERE NOT probe"
    )[0]
    assert tuple(int(n or 0) for n in counted) == tuple(int(n) for n in true)
