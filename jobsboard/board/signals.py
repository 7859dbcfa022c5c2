"""What fires, and was anybody told? Read once for a page: the navigation, the headline and the overview share it.

Not here: the list of alerts (`alerts`), one alert (`alert`), what makes them (`jobsboard.alerts`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from django.db import connection
from django.http import HttpRequest
from django.urls import reverse

from jobsboard.alerts.ledger import KEEP
from jobsboard.board.verdict import Concern
from queues.redaction import redact_text

KEPT: Final = "_jobsboard_signals"

# A message that was made just now and not tried yet says nothing about whether anybody hears; nor do messages that are
# no longer kept.
_REACH: Final = """
  SELECT a.told = '' AS quiet,
    coalesce(a.told_at < jobs_now() - make_interval(secs => %(keep)s), false) AND count(*) = 0 AS forgotten,
    count(DISTINCT endpoint_id)::int AS asked,
    (count(DISTINCT endpoint_id) FILTER (WHERE state = 'delivered'))::int AS reached,
    coalesce(bool_or(state = 'pending' AND attempts = '[]' AND created_at > jobs_now() - interval '30 s'), false)
      AS fresh
  FROM jobsboard_webhookdelivery WHERE alert_id = a.id
"""
_SIGNALS: Final = f"""
WITH fires AS MATERIALIZED (
  SELECT a.title, a.severity, a.started_at, d.*
  FROM jobsboard_alert AS a CROSS JOIN LATERAL ({_REACH}) AS d WHERE a.state = 'firing'
), first AS (
  SELECT * FROM fires ORDER BY severity = 'critical' DESC, started_at DESC LIMIT 1
), counted AS (
  SELECT count(*)::int AS firing, (count(*) FILTER (WHERE quiet))::int AS quiet,
    (count(*) FILTER (WHERE NOT (quiet OR reached > 0 OR fresh OR forgotten)))::int AS untold FROM fires
), plans AS (
  SELECT (count(*) FILTER (WHERE state IN ('running', 'stopped')))::int AS alive,
    (count(*) FILTER (WHERE state = 'stopped'))::int AS stopped
  FROM dlq_replayplan WHERE state IN ('running', 'paused', 'stopped', 'aborted', 'following')
), ends AS (
  SELECT (count(*) FILTER (WHERE tells))::int AS known, (count(*) FILTER (WHERE tells AND enabled))::int AS enabled,
    (count(*) FILTER (WHERE tells AND fails))::int AS failing, (count(*) FILTER (WHERE fails))::int AS unwell
  FROM jobsboard_webhookendpoint CROSS JOIN LATERAL (SELECT format <> 'heartbeat' AS tells,
    CASE WHEN enabled THEN failures > 0 ELSE disabled_reason <> '' END AS fails) AS seen
)
SELECT c.firing, c.quiet, c.untold, e.known, e.enabled, e.failing, e.unwell,
  (SELECT count(*)::int FROM jobsboard_alert WHERE state = 'acknowledged'),
  p.alive, p.stopped, (SELECT count(*)::int FROM queues_schedule WHERE refused > 0 AND NOT paused),
  f.title, f.quiet, f.forgotten, f.asked, f.reached, f.fresh
FROM counted AS c CROSS JOIN ends AS e CROSS JOIN plans AS p LEFT JOIN first AS f ON true
"""  # noqa: S608 - constants of this module
_REACH_OF: Final = f"""
SELECT a.id, d.quiet, d.forgotten, d.asked, d.reached, d.fresh
FROM jobsboard_alert AS a CROSS JOIN LATERAL ({_REACH}) AS d WHERE a.id = ANY(%(ids)s)
"""  # noqa: S608 - constants of this module


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Whom one alert reached. `asked`: endpoints that a message was made for; `reached`: those that took one.

    `quiet`: it is silenced, so no message was made. `forgotten`: its messages are no longer kept. `fresh`: one was made
    just now, and its first try is not over.
    """

    quiet: bool
    forgotten: bool
    asked: int
    reached: int
    fresh: bool

    @property
    def untold(self) -> bool:
        """It should have reached somebody by now."""
        return not (self.quiet or self.forgotten or self.reached or self.fresh)

    @property
    def words(self) -> str:
        """Say it after "It"; empty where it is silenced."""
        ends = f"{self.asked} endpoint{'' if self.asked == 1 else 's'}"
        if self.reached:
            return f"reached {self.reached} of {ends}"
        if self.fresh:
            return f"is being sent to {ends}"
        if self.quiet:
            return "is silenced, so nobody was told"
        if self.forgotten:
            return f"was told more than {KEEP.days} days ago, and messages are not kept for so long"
        return f"reached none of {ends}" if self.asked else "reached nobody: no endpoint takes it"


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What fires. `untold`: alerts that should have reached somebody and did not; `quiet`: those that are silenced.

    `endpoints` are enabled and take alerts, of `endpoints_known`; `endpoints_failing`: the last try failed, or it was
    switched off because its receiver said that it is gone; `endpoints_unwell` counts dead man's switches as well.
    `title` and `reach` are of the alert that is worst. `plans`: replay plans that run or stopped by their rule.
    `schedules_refused`: schedules whose last tick became no job since accepting it was refused; paused ones are none.
    """

    firing: int
    quiet: int
    untold: int
    acknowledged: int
    endpoints: int
    endpoints_known: int
    endpoints_failing: int
    endpoints_unwell: int
    title: str
    reach: Reach | None
    plans: int = 0
    plans_stopped: int = 0
    schedules_refused: int = 0


def of(request: HttpRequest) -> Signals:
    """Return what fires, read once for a request."""
    kept = request.__dict__
    if KEPT not in kept:
        kept[KEPT] = read()
    found: Signals = kept[KEPT]
    return found


def read() -> Signals:
    """Read it, in one statement."""
    with connection.cursor() as cursor:
        cursor.execute(_SIGNALS, {"keep": KEEP.total_seconds()})
        row = cursor.fetchone()
    firing, quiet, untold, known, enabled, failing, unwell, acknowledged, plans, stopped, refused, title, *first = row
    return Signals(
        firing=firing, quiet=quiet, untold=untold, acknowledged=acknowledged, endpoints=enabled, endpoints_known=known,
        endpoints_failing=failing, endpoints_unwell=unwell, title=redact_text(title or ""),
        reach=_reach(*first) if firing else None, plans=plans, plans_stopped=stopped,
        schedules_refused=refused,
    )  # fmt: skip


def reach_of(ids: Collection[int]) -> Mapping[int, Reach]:
    """Return whom each of these alerts reached, in one statement."""
    if not ids:
        return {}
    with connection.cursor() as cursor:
        cursor.execute(_REACH_OF, {"ids": list(ids), "keep": KEEP.total_seconds()})
        rows = cursor.fetchall()
    return {pk: _reach(*seen) for pk, *seen in rows}


def _reach(quiet: bool, forgotten: bool, asked: int, reached: int, fresh: bool) -> Reach:
    return Reach(quiet=quiet, forgotten=forgotten, asked=asked, reached=reached, fresh=fresh)


def short(title: str) -> str:
    """Return what a title says first: up to the numbers, where a sentence stands before them."""
    said = title.split(";")[0]
    before, colon, _ = said.partition(": ")
    return before if colon and len(before.split()) > 2 else said


def heading(found: Signals) -> str:
    """Answer the page's question in one sentence or two: what fires, did anyone get it?"""
    if found.reach is None:
        more = f" {found.acknowledged} {'is' if found.acknowledged == 1 else 'are'} acknowledged and not over."
        return "No alert fires." + (more if found.acknowledged else "")
    n, one = found.firing, found.firing == 1
    fire = f"{n:,} alert{' fires' if one else 's fire'}"
    if found.untold == n and not found.endpoints:
        return f"{fire}, nobody was told: {_no_endpoint(found)}."
    if one:
        return f"{fire}: {short(found.title)}. It {found.reach.words}."
    if not found.untold:
        told = "All are silenced." if found.quiet == n else "Nobody is left untold."
    elif found.untold == n:
        told = "They reached nobody."
    else:
        told = f"{found.untold:,} of them reached nobody."
    return f"{fire}, worst of them: {short(found.title)}. {told}"


def _no_endpoint(found: Signals) -> str:
    return "every endpoint is disabled" if found.endpoints_known else "no endpoint is set up"


def concerns(found: Signals) -> list[Concern]:
    """Return what the overview says when alerts fire and nobody hears of them. What fires it says anyway."""
    if not found.untold:
        return []
    fires = f"{found.untold:,} alert{' fires' if found.untold == 1 else 's fire'}"
    if found.endpoints:
        evidence, action = f"{fires}, and no endpoint took a message", "See why"
    else:
        evidence, action = f"{fires}, and {_no_endpoint(found)}", "Endpoints"
    text = "Nobody is told of alerts"
    return [Concern(css="dead", text=text, evidence=evidence, since=None, url=reverse("webhooks"), action=action)]
