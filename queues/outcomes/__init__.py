"""The read side: rollups to lag, ratios, series and lists. The only place with reporting SQL; nothing here writes."""

from queues.outcomes.flow import Counts, Flow, add, below_since, flow
from queues.outcomes.lists import LOOK_AT_MOST, JobFilter, JobPage, JobRow, jobs, oldest_jobs
from queues.outcomes.now import Board, Pool, Processes, TierNow, TypeNow, board, oldest_open, processes
from queues.outcomes.probes import RUNS_SHOWN, ProbeNow, RunOfProbe, probe_runs, probes
from queues.outcomes.ranges import DAYS_KEPT, DEFAULT_RANGE, HOURS_KEPT, MINUTES_KEPT, RANGES, Span
from queues.outcomes.staging import RECENT_ENOUGH, run_histograms, waiting_pairs
from queues.outcomes.suspicion import Sign, signs, signs_of
from queues.outcomes.times import MEASURES, Percentiles, Stage, Times, lag_series, lag_slots, times
from queues.outcomes.totals import Totals, totals

__all__ = [
    "DAYS_KEPT", "DEFAULT_RANGE", "HOURS_KEPT", "LOOK_AT_MOST", "MEASURES", "MINUTES_KEPT", "RANGES", "RECENT_ENOUGH",
    "RUNS_SHOWN",
    "Board",
    "Counts", "Flow", "JobFilter", "JobPage", "JobRow", "Percentiles", "Pool", "ProbeNow", "Processes",
    "RunOfProbe", "Sign", "Span", "Stage",
    "TierNow", "Times", "Totals", "TypeNow", "add", "below_since", "board", "flow", "jobs", "lag_series", "lag_slots",
    "oldest_jobs", "oldest_open", "probe_runs", "probes", "processes", "run_histograms", "signs", "signs_of", "times",
    "totals", "waiting_pairs",
]  # fmt: skip
