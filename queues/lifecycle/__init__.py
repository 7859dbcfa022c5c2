"""Every statement that inserts or updates a job: one guarded statement per transition, on batches.

Nobody else writes `queues_job` or `queues_dedupekey`; `tests/test_architecture.py` holds the tree to it.
"""

from queues.lifecycle.accept import Accepted, Holder, NewJob, count_duplicates, holders, insert, let_go
from queues.lifecycle.claim import Due, Run, claim, claimed_by, heartbeat, holding, stageable
from queues.lifecycle.resolve import Cancelled, cancel, close_dead_letters, replay
from queues.lifecycle.rollup import fold, touch_board
from queues.lifecycle.settle import End, Verdict, settle
from queues.lifecycle.sweep import expire, lost, rescue, stale

__all__ = [
    "Accepted", "Cancelled", "Due", "End", "Holder", "NewJob", "Run", "Verdict", "cancel", "claim", "claimed_by",
    "close_dead_letters", "count_duplicates", "expire", "fold", "heartbeat", "holders", "holding", "insert", "let_go",
    "lost", "replay", "rescue", "settle", "stageable", "stale", "touch_board",
]  # fmt: skip
