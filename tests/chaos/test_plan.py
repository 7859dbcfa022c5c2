"""The plan of a chaos run follows from its seed alone."""

from __future__ import annotations

from benchmarks.chaos.callbacks import MANNERS, manner
from benchmarks.chaos.plan import KINDS, plan


def test_the_same_seed_plans_the_same_faults() -> None:
    """`SEED=7 make chaos` twice is the same list twice; another seed is another."""
    assert plan(7, seconds=90, every=2.5) == plan(7, seconds=90, every=2.5)
    assert plan(7, seconds=90, every=2.5) != plan(8, seconds=90, every=2.5)


def test_every_kind_comes_where_there_is_room() -> None:
    """And in the order of time."""
    faults = plan(1, seconds=90, every=2.5)
    assert {fault.kind for fault in faults} == set(KINDS)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert len(plan(1, seconds=10, every=2.0)) == 5


def test_the_world_treats_a_key_alike_each_time() -> None:
    """And some keys in each manner."""
    keys = [f"k{n}" for n in range(300)]
    assert [manner("1", key) for key in keys] == [manner("1", key) for key in keys]
    assert {manner("1", key) for key in keys} == set(MANNERS)
