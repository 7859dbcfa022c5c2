"""The read side: rollups to lag, ratios, series and lists. The only place with reporting SQL; nothing here writes."""

from queues.outcomes.flow import Counts, Flow, add, below_since, flow
from queues.outcomes.lag import Lags, Percentiles, lag_series, lag_slots, lags
from queues.outcomes.lists import LOOK_AT_MOST, JobFilter, JobPage, JobRow, jobs, oldest_jobs
from queues.outcomes.now import Board, Pool, Processes, TierNow, TypeNow, board, oldest_open, processes
from queues.outcomes.ranges import DEFAULT_RANGE, RANGES, Span
from queues.outcomes.staging import RECENT_ENOUGH, run_histograms, waiting_pairs

__all__ = [
    "DEFAULT_RANGE", "LOOK_AT_MOST", "RANGES", "RECENT_ENOUGH", "Board", "Counts", "Flow", "JobFilter", "JobPage",
    "JobRow", "Lags", "Percentiles", "Pool", "Processes", "Span", "TierNow", "TypeNow", "add", "below_since", "board",
    "flow", "jobs", "lag_series", "lag_slots", "lags", "oldest_jobs", "oldest_open", "processes",
    "run_histograms", "waiting_pairs",
]  # fmt: skip
