"""Everything that one evaluation of the rules reads: a bounded number of statements, however many jobs there are.

Not here: what the numbers mean (`metrics`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

from django.db import Error

from dlq import watch as dlq
from jobsboard.metrics import probes as bounded
from jobsboard.models import AlertRule, WebhookEndpoint
from queues import breakers, outcomes
from queues.breakers import Standing
from queues.outcomes import Board, Counts, Flow, ProbeNow, Span, Times, watch
from queues.states import OPEN
from queues.workers import GONE_SECONDS

Pair = tuple[int, str]
_T = TypeVar("_T")
_SLOT: Final = 60
_LONG_WINDOW: Final = 600


@dataclass(kw_only=True)
class Seen:
    """The state of things, read when first asked for and then kept: rules that ask alike pay once, also for a statement
    that ran into its time limit.
    """

    board: Board
    _kept: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def now(cls) -> Seen:
        """Begin with the board."""
        return cls(board=outcomes.board())

    @property
    def at(self) -> datetime:
        """The database's time."""
        return self.board.now

    def _span(self, seconds: int) -> Span:
        return Span.between(self.at - timedelta(seconds=seconds), self.at, now=self.at, folded_at=self.board.folded_at)

    def _once(self, name: str, read: Callable[[], _T]) -> _T:
        """Read once. Raises: the same error to everybody who asks."""
        if name not in self._kept:
            try:
                self._kept[name] = read()
            except Error as error:
                self._kept[name] = error
        found = self._kept[name]
        if isinstance(found, Error):
            raise found
        return cast(_T, found)

    def flow(self, seconds: int) -> Flow:
        """Return counts of the last so many seconds, grown to whole minutes."""
        return self._once(f"flow {seconds}", lambda: outcomes.flow(self._span(seconds)))

    def times(self, seconds: int) -> Times:
        """Return histograms of the last so many seconds, grown to whole minutes."""
        return self._once(
            f"times {seconds}",
            lambda: outcomes.times(self._span(seconds), names=self.board.types, measures=("lag", "dead")),
        )

    def judged(self, seconds: int, *, tier: int | None, name: str | None) -> dict[Pair, Counts]:
        """Return the cohorts whose windows passed in the last so many seconds, of each (tier, type).

        A window that is longer than the stretch has passed all the same: of each type the stretch is shifted back
        by its window.
        """
        found: dict[Pair, Counts] = {}
        for (of_tier, of_type), known in self._types(tier=tier, name=name).items():
            if known > _LONG_WINDOW:
                found[(of_tier, of_type)] = self._shifted(_later(known), seconds).total(tier=of_tier, name=of_type)
                continue
            flow = self.flow(_rounded(seconds + known + _SLOT))
            since = flow.span.until - timedelta(seconds=seconds + known + _SLOT)
            slots = flow.pairs.get((of_tier, of_type), {})
            begun = flow.span.slots
            counted = [one for index, one in slots.items() if 0 <= index < len(begun) and begun[index] >= since]
            found[(of_tier, of_type)] = outcomes.add(counted)
        return found

    def _shifted(self, window: int, seconds: int) -> Flow:
        """Return the minutes whose windows, of about this length, passed in the stretch: with the length of windows
        the slots of one span would outgrow the stretch.
        """
        until = self.at - timedelta(seconds=window)
        since = until - timedelta(seconds=seconds + _SLOT)
        span = Span.between(since, until, now=self.at, folded_at=self.board.folded_at)
        names = [one.name for one in self.board.types.values() if _later(one.window_seconds) == window]
        return self._once(f"shifted {window} {seconds}", lambda: outcomes.flow(span, names=names))

    def _types(self, *, tier: int | None, name: str | None) -> dict[Pair, int]:
        return {
            (one.tier, one.name): one.window_seconds
            for one in self.board.types.values()
            if tier in (None, one.tier) and name in (None, one.name)
        }

    @property
    def waiting(self) -> Mapping[Pair, watch.Waiting]:
        """Open jobs past their window and the longest due, of each (tier, type) that has open jobs."""
        types = self.board.types
        windows = {pair: types[pair[1]].window_seconds for pair in self.open_pairs if pair[1] in types}
        return self._once("waiting", lambda: watch.waiting(windows))

    @property
    def open_pairs(self) -> Sequence[Pair]:
        """Each (tier, type) with open jobs."""
        return [pair for pair, states in self.board.counts.items() if any(states.get(state) for state in OPEN)]

    @property
    def oldest(self) -> Mapping[Pair, datetime]:
        """Since when the oldest open job of each (tier, type) is ready."""
        return self._once("oldest", lambda: outcomes.oldest_open(self.open_pairs))

    @property
    def queues(self) -> Mapping[str, watch.Queue]:
        """Workers by queue."""
        return self._once("queues", lambda: watch.queues(gone_seconds=GONE_SECONDS))

    @property
    def ground(self) -> watch.Ground:
        """Limits, used types, partitions."""
        return self._once("ground", lambda: watch.ground())

    @property
    def limbo(self) -> Mapping[str, int]:
        """Jobs that nobody acted on, by what passed."""
        return self._once("limbo", lambda: bounded.limbo())

    @property
    def processes(self) -> Sequence[bounded.Process]:
        """Live workers and schedulers."""
        return self._once("processes", lambda: bounded.processes())

    @property
    def probes(self) -> Sequence[ProbeNow]:
        """How the probes went."""
        return self._once("probes", lambda: outcomes.probes())

    @property
    def breakers(self) -> Sequence[Standing]:
        """Circuit breakers as they stand."""
        return self._once("breakers", lambda: breakers.standings())

    @property
    def failures(self) -> Sequence[dlq.News]:
        """Failures that are new or came back."""
        return self._once("failures", lambda: dlq.news())

    def ignored(self, seconds: int = 0) -> Sequence[dlq.Ignored]:
        """Return the failures that somebody ignores now, with their deaths in the last so many seconds, grown to whole
        minutes.

        Read after the deaths that these are taken from: an older number would leave some that nobody is to hear of.
        """
        if seconds:
            self.times(seconds)
        since = self._span(seconds).since if seconds else self.at
        return self._once(f"ignored {seconds}", lambda: dlq.ignored(since=since))

    @property
    def stopped(self) -> dlq.Stopped:
        """Replay plans that their stop rule holds."""
        return self._once("stopped", lambda: dlq.stopped())

    @property
    def endpoints(self) -> Sequence[WebhookEndpoint]:
        """Where alerts go."""
        return self._once(
            "endpoints", lambda: list(WebhookEndpoint.objects.only("id", "name", "enabled", "failures", "last_error"))
        )

    @property
    def troubled(self) -> Sequence[str]:
        """Rules that could not be measured in the round before."""
        of_rules = AlertRule.objects.filter(enabled=True).exclude(trouble="")
        return self._once("troubled", lambda: list(of_rules.order_by("name").values_list("name", flat=True)))

    def queue_of(self, name: str) -> str:
        """Return the queue of a job type."""
        known = self.board.types[name]
        return f"tier{known.tier}.{known.pool}" if known.pool else f"tier{known.tier}"


def _later(window: int) -> int:
    """Round a long window up, so that few statements read them all."""
    step = 300 if window <= 3600 else 900 if window <= 21_600 else 3600
    return -(-window // step) * step


def _rounded(seconds: int) -> int:
    """Round up, so that types with windows of nearly the same length share one statement."""
    step = next((step for step in (600, 3600, 21_600, 86_400) if seconds <= step), None)
    return step or -(-seconds // 86_400) * 86_400
