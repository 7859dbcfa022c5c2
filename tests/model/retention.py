"""What may be removed, as RELIABILITY.md I-41 says it."""

from __future__ import annotations

from queues.states import JobState, Resolution
from tests.model.rows import DAY, Row, World

S = JobState


def prune(world: World, *, remove: bool) -> None:
    """Remove what nobody can want any more (I-41). Without `remove` the rows that are final stay for a swap."""
    ripe = {number: row for number, row in world.jobs.items() if _may_go(world, row)}
    loose = {number for number, row in ripe.items() if row.resolution is Resolution.OPEN}
    gone = {number for number in ripe if (remove or number in loose) and number not in world.locked}
    freed = gone if remove else gone | (set(ripe) - loose)
    for number in freed:
        row = ripe[number]
        name = (row.kind, str(row.key))
        held = world.keys.get(name)
        if row.key is not None and held is not None and held.job == number and name not in world.locked_keys:
            world.set_key(name, None)
    for number in gone:
        world.touched.add(number)
        del world.jobs[number]
    world.removed |= freed
    world.references = tuple(ref for ref in world.references if ref.job not in freed)


def _may_go(world: World, row: Row) -> bool:
    if row.settled is None or (row.state is S.DEAD and row.resolution is Resolution.OPEN):
        return False
    keep = row.contract.keep_confirmed_days if row.state is S.CONFIRMED else row.contract.keep_other_days
    if row.settled >= world.now - keep * DAY:
        return False
    held = world.keys.get((row.kind, str(row.key))) if row.key is not None else None
    if held is not None and held.job == row.number and held.expires is not None and held.expires > world.now:
        return False
    newest = world.newest(row.number)
    # A replayed one goes when nothing of its lineage can run any more, also not by another replay.
    return row.replayed_by is None or newest is None or not (newest.open or newest.resolution is Resolution.OPEN)
