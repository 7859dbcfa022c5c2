"""Every statement that inserts or updates a job: one guarded statement per transition, on batches.

Nobody else writes `queues_job` or `queues_dedupekey`; `tests/test_architecture.py` holds the tree to it.
"""

from queues.lifecycle.accept import Accepted, Holder, NewJob, count_duplicates, holders, insert, let_go
from queues.lifecycle.check import CheckEnd, DueCheck, asked_checks, claim_checks, due_checks, finish_checks
from queues.lifecycle.claim import (
    Run,
    RunInfo,
    cancelled,
    claim,
    claimed_by,
    heartbeat,
    holding,
    runs,
)
from queues.lifecycle.claim_limited import claim_limited, forget_flow
from queues.lifecycle.confirm import Applied, Proof, Proven, confirm
from queues.lifecycle.overlap import Lane, LaneNote, forget_lanes, note_lanes, take_lanes
from queues.lifecycle.prune import STAY_MOST, Look, Swap, prunable_days, prune_callbacks, prune_day, swap_day
from queues.lifecycle.resolve import Cancelled, Edit, cancel, close_dead_letters, replay, replay_many, retry_now
from queues.lifecycle.rollup import (
    FAILURES_MOST,
    OTHERS,
    fold,
    forget_calls,
    forget_failures,
    forget_rollups,
    forget_suspected,
    recount_failures,
    touch_board,
)
from queues.lifecycle.settle import End, Verdict, count_superseded, settle
from queues.lifecycle.stageable import (
    HINT_SECONDS,
    LIMITED_HINT_SECONDS,
    Ask,
    Due,
    Room,
    next_due,
    rooms,
    stageable,
    stageable_in_groups,
    stageable_without_group,
    stageable_without_place,
    still_waiting,
)
from queues.lifecycle.steps import find_step, keep_step, set_progress
from queues.lifecycle.sweep import expire, give_up_waiting, lost, overdue, rescue, stale

__all__ = [
    "Accepted", "Applied", "Ask", "Cancelled", "CheckEnd", "Due", "DueCheck", "Edit", "End", "FAILURES_MOST",
    "HINT_SECONDS", "Holder", "Lane", "LaneNote", "LIMITED_HINT_SECONDS", "Look", "NewJob", "OTHERS", "Proof", "Proven",
    "Room", "Run", "RunInfo", "STAY_MOST", "Swap", "Verdict", "asked_checks", "cancel", "cancelled", "claim",
    "claim_checks", "claim_limited", "claimed_by", "close_dead_letters", "confirm", "count_duplicates",
    "count_superseded", "due_checks", "expire", "find_step", "finish_checks", "fold", "forget_calls", "forget_failures",
    "forget_flow", "forget_lanes", "forget_rollups", "forget_suspected", "give_up_waiting", "heartbeat", "holders",
    "holding", "insert", "keep_step", "let_go", "lost", "next_due", "note_lanes", "overdue", "prunable_days",
    "prune_callbacks", "prune_day", "recount_failures", "replay", "replay_many", "rescue", "retry_now", "rooms", "runs",
    "set_progress", "settle", "stageable", "stageable_in_groups", "stageable_without_group", "stageable_without_place",
    "stale", "still_waiting", "swap_day", "take_lanes", "touch_board",
]  # fmt: skip
