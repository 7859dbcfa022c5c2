"""Evaluate the rules, open and resolve alerts, and hand what is new to the outbox; all that writes findings and alerts.

Any number of schedulers may run: each round is claimed by one, and is dropped if another one began meanwhile. What a
round changes and the deliveries of it are one transaction, so nobody is told of what was not kept, or not told.
Not here: what rules measure (`metrics`), which alert a finding belongs to (`causes`), what people do (`people`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import Error, connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.alerts import causes, defaults, metrics, outbox
from jobsboard.alerts.metrics import Reading
from jobsboard.alerts.seen import Seen
from jobsboard.models import Alert, AlertClock, AlertFinding, AlertRule, Event, Metric, Severity
from queues.faults import fault
from queues.models import BoardVersion

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 5.0
UPDATE_SECONDS: Final = 300
"""Another finding of an alert is told at most so often; a higher severity at once."""
KEEP_RESOLVED: Final = timedelta(days=90)
FINDINGS_MOST: Final = 50
"""That an alert lists: of more, what has cleared goes first, then the newest are left out."""
REOPEN_SECONDS: Final = 900
"""The same cause within this time is the same alert again: what flaps is not new each time."""

# A slow round is left alone for a minute: rivals that cut each other short would keep none. A stamp of the future
# is of a clock that went back.
_CLAIM: Final = """
INSERT INTO jobsboard_alertclock AS c (id, evaluated_at) VALUES (1, jobs_clock())
ON CONFLICT (id) DO UPDATE SET evaluated_at = jobs_clock()
  WHERE c.evaluated_at IS NULL OR c.evaluated_at > jobs_now() + interval '10 s'
    OR (c.evaluated_at < jobs_now() - make_interval(secs => %s)
      AND (c.ended_at >= c.evaluated_at OR c.evaluated_at < jobs_now() - interval '60 s'))
RETURNING evaluated_at
"""
_END: Final = "UPDATE jobsboard_alertclock SET ended_at = jobs_clock() WHERE id = 1 AND evaluated_at = %s"
_HOLD: Final = "SELECT evaluated_at = %s FROM jobsboard_alertclock WHERE id = 1 FOR UPDATE"
_RANK: Final = {Severity.WARNING.value: 1, Severity.CRITICAL.value: 2}

Key = tuple[int, str]


def run_once() -> bool:
    """Evaluate all rules once, unless somebody did so within the last seconds."""
    claimed = _claim()
    if claimed is None:
        return False
    try:
        _round(claimed)
    finally:
        with connection.cursor() as cursor:
            cursor.execute(_END, [claimed])
    return False


def _round(claimed: datetime) -> None:
    defaults.ensure()
    rules = list(AlertRule.objects.filter(enabled=True))
    seen = Seen.now()
    readings = {rule.pk: _read(rule, seen) for rule in rules}
    fault("alerts.read")
    blind = any(readings[rule.pk] is None for rule in rules if rule.severity == Severity.CRITICAL)
    with transaction.atomic():
        if _still_mine(claimed):
            Round(rules=rules, readings=readings, now=seen.at).apply()
            if not blind:
                AlertClock.objects.update(completed_at=Now())


def _claim() -> datetime | None:
    with connection.cursor() as cursor:
        # Half a period: the service's own pace decides, a second scheduler only fills in.
        cursor.execute(_CLAIM, [EVERY_SECONDS / 2])
        row = cursor.fetchone()
    return row[0] if row else None


def _still_mine(claimed: datetime) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(_HOLD, [claimed])
        row = cursor.fetchone()
    return bool(row and row[0])


def _read(rule: AlertRule, seen: Seen) -> Sequence[Reading] | None:
    """Measure one rule; a rule that cannot be measured leaves its findings as they are and hinders no other."""
    trouble, found = "", None
    try:
        found = metrics.read(rule, seen)
    except (Error, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, Error) and not connection.is_usable():
            raise
        trouble = f"{type(error).__name__}: {error}"[:300]
    if trouble != rule.trouble:
        log.warning("alert rule %r %s", rule.name, f"cannot be measured: {trouble}" if trouble else "is measured again")
        AlertRule.objects.filter(pk=rule.pk).update(trouble=trouble)
    return found


def breached(rule: AlertRule, value: float | None, *, threshold: float | None = None) -> bool:
    """Say whether a value is on the bad side of a threshold, by default the rule's. No value is never bad."""
    limit = rule.threshold if threshold is None else threshold
    if value is None:
        return False
    if rule.comparison == AlertRule.Comparison.BELOW:
        return value < limit
    return value >= limit if rule.comparison == AlertRule.Comparison.AT_LEAST else value > limit


@dataclass(kw_only=True)
class Round:
    """One evaluation inside its transaction. `readings`: rule → its readings, None where it could not be measured."""

    rules: Sequence[AlertRule]
    readings: Mapping[int, Sequence[Reading] | None]
    now: datetime
    _rules: dict[int, AlertRule] = field(default_factory=dict)
    _alerts: dict[str, Alert] = field(default_factory=dict)
    _before: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    _touched: bool = False

    def apply(self) -> None:
        """Move findings, then alerts, then say what is new."""
        self._rules = {rule.pk: rule for rule in self.rules}
        self._alerts = {
            alert.key: alert
            for alert in Alert.objects.select_for_update().exclude(state=Alert.State.RESOLVED).order_by("id")
        }
        self._before = {key: _kept(alert) for key, alert in self._alerts.items()}
        active = self._findings()
        self._attach(active)
        self._refresh(active)
        fault("alerts.applied")
        if self._touched:
            # Pages that are open show it at their next poll. Last, since every fold waits for this row.
            BoardVersion.objects.update(n=F("n") + 1, at=Now())

    # ---- findings

    def _findings(self) -> list[AlertFinding]:
        """Bring findings in step with the readings; return those that have fired and not cleared."""
        known = {(found.rule_id, found.subject): found for found in AlertFinding.objects.all()}
        wanted: dict[Key, tuple[AlertRule, Reading]] = {
            (rule.pk, reading.subject): (rule, reading)
            for rule in self.rules
            for reading in self.readings[rule.pk] or ()
        }
        gone: list[AlertFinding] = []
        for key, found in known.items():
            rule = self._rules.get(found.rule_id)
            if rule is None:
                gone.append(found)
            elif self.readings[rule.pk] is not None:
                reading = wanted[key][1] if key in wanted else Reading(subject=found.subject, value=None, words="")
                if self._cleared(rule, found, reading):
                    gone.append(found)
        AlertFinding.objects.filter(pk__in=[found.pk for found in gone]).delete()
        new = [
            self._new(rule, reading)
            for key, (rule, reading) in wanted.items()
            if key not in known and breached(rule, reading.value)
        ]
        AlertFinding.objects.bulk_create(new)
        lost = {found.pk for found in gone}
        stay = [*(found for found in known.values() if found.pk not in lost), *new]
        return [found for found in stay if found.fired_at is not None]

    def _new(self, rule: AlertRule, reading: Reading) -> AlertFinding:
        return AlertFinding(
            rule=rule, subject=reading.subject, tier=reading.tier, job_type=reading.job_type, value=reading.value,
            words=reading.words[:300], since=self.now, fired_at=self.now if not rule.for_seconds else None,
        )  # fmt: skip

    def _cleared(self, rule: AlertRule, found: AlertFinding, reading: Reading) -> bool:
        """Move one finding on; return whether it is over."""
        before = (found.fired_at, found.well_since, found.value, found.words)
        bad = breached(rule, reading.value)
        if found.fired_at is None:
            if not bad:
                return True
            if (self.now - found.since).total_seconds() >= rule.for_seconds:
                found.fired_at = self.now
        elif breached(rule, reading.value, threshold=rule.clear_threshold):
            found.well_since = None
        else:
            found.well_since = found.well_since or self.now
            if (self.now - found.well_since).total_seconds() >= rule.clear_for_seconds:
                return True
        if found.well_since is None and reading.words:
            found.value, found.words = reading.value, reading.words[:300]
        if before != (found.fired_at, found.well_since, found.value, found.words):
            found.save(update_fields=["value", "words", "fired_at", "well_since"])
        return False

    # ---- alerts

    def _attach(self, active: Sequence[AlertFinding]) -> None:
        """Give every finding that has fired its alert."""
        # The cause before what follows from it; what stands by itself comes last.
        loose = sorted(
            (found for found in active if found.alert_id is None),
            key=lambda found: (_order(self._rule(found).metric), found.pk),
        )
        for found in loose:
            rule = self._rule(found)
            key = causes.route(rule, subject=found.subject, tier=found.tier, open_tiers=self._open_tiers(active))
            if key is None:
                continue
            alert = self._alerts.get(key) or self._open(key, found)
            found.alert = alert
            found.save(update_fields=["alert"])
            listed = self._listed(found)
            kept = [one for one in alert.findings if not _same(one, listed)]
            if len(kept) >= FINDINGS_MOST:
                kept = [one for one in kept if not one["cleared_at"]]
            alert.findings = [*kept, listed][:FINDINGS_MOST]

    def _rule(self, found: AlertFinding) -> AlertRule:
        return self._rules[found.rule_id]

    def _open_tiers(self, active: Sequence[AlertFinding]) -> dict[str, set[int]]:
        """Return what each open alert is about now: what has cleared explains nothing any more."""
        keys: dict[int | None, str] = {alert.pk: key for key, alert in self._alerts.items()}
        tiers: dict[str, set[int]] = {key: set() for key in self._alerts}
        for found in active:
            if found.alert_id in keys and found.tier is not None:
                tiers[keys[found.alert_id]].add(found.tier)
        return tiers

    def _open(self, key: str, found: AlertFinding) -> Alert:
        rule = self._rule(found)
        again = self._again(key)
        if again is not None:
            again.state, again.resolved_at, again.severity = Alert.State.FIRING, None, rule.severity
            again.acknowledged_at, again.acknowledged_by, again.note = None, "", ""
            again.save()
            self._alerts[key] = again
            return again
        alert = Alert(
            key=key, severity=rule.severity, title=found.words[:200], started_at=self.now,
            # What the cause is about, not what was found first: more tiers and types may follow.
            tier=found.tier if key == f"tier{found.tier}" else rule.tier, job_type=rule.job_type,
        )  # fmt: skip
        self._alerts[key] = alert
        alert.save(force_insert=True)
        return alert

    def _again(self, key: str) -> Alert | None:
        """Return the alert of this cause that was resolved a moment ago."""
        since = self.now - timedelta(seconds=REOPEN_SECONDS)
        of_key = Alert.objects.select_for_update().filter(key=key, state=Alert.State.RESOLVED, resolved_at__gt=since)
        return of_key.order_by("-id").first()

    def _listed(self, found: AlertFinding) -> dict[str, Any]:
        rule = self._rule(found)
        return {
            "rule": rule.pk, "rule_name": rule.name, "metric": rule.metric, "subject": found.subject,
            "severity": rule.severity, "tier": found.tier, "words": found.words, "value": found.value,
            "since": found.since.isoformat(), "cleared_at": None, "runbook_url": rule.runbook_url,
        }  # fmt: skip

    def _refresh(self, active: Sequence[AlertFinding]) -> None:
        """Bring every open alert in step with its findings, and tell what is new."""
        by_alert: dict[int | None, list[AlertFinding]] = {}
        for found in active:
            by_alert.setdefault(found.alert_id, []).append(found)
        for alert in self._alerts.values():
            mine = by_alert.get(alert.pk, [])
            alert.findings = _updated(alert.findings, [self._listed(found) for found in mine], now=self.now)
            # What has cleared is news when it comes again.
            standing = {_name(found.rule_id, found.subject) for found in mine}
            alert.told_findings = [name for name in alert.told_findings if name in standing]
            if mine:
                self._judge(alert, mine)
            else:
                alert.state, alert.resolved_at = Alert.State.RESOLVED, self.now
                # What it was about, not what cleared last.
                alert.title = min(alert.findings, key=_weight)["words"][:200] if alert.findings else alert.title
            event = self._event(alert, mine)
            if event is not None:
                self._tell(alert, event, mine)
            if event is not None or self._before.get(alert.key) != _kept(alert):
                self._touched = True
                alert.save()
        outbox.catch_up(
            [alert for alert in self._alerts.values() if self._waits_for_somebody(alert, by_alert.get(alert.pk, []))],
            now=self.now,
        )

    def _waits_for_somebody(self, alert: Alert, mine: Sequence[AlertFinding]) -> bool:
        told = alert.told not in ("", Event.RESOLVED)
        return alert.state == Alert.State.FIRING and told and not self._silenced(alert, mine)

    def _judge(self, alert: Alert, mine: Sequence[AlertFinding]) -> None:
        """Set title and severity: the title is the first cause's, the severity never falls while it is open."""
        alert.title = min((self._listed(found) for found in mine), key=_weight)["words"][:200]
        severity = max((self._rule(found).severity for found in mine), key=_RANK.__getitem__)
        if _RANK[severity] > _RANK[alert.severity]:
            alert.severity = severity
            if alert.state == Alert.State.ACKNOWLEDGED:
                # What was acknowledged was less.
                alert.state = Alert.State.FIRING

    def _silenced(self, alert: Alert, mine: Iterable[AlertFinding]) -> bool:
        if alert.silenced_until is not None and alert.silenced_until > self.now:
            return True
        rules = [self._rule(found) for found in mine]
        return bool(rules) and all(rule.silenced_until and rule.silenced_until > self.now for rule in rules)

    def _event(self, alert: Alert, mine: Sequence[AlertFinding]) -> Event | None:
        """Return what is to be told of an alert now, if anything."""
        if alert.state == Alert.State.RESOLVED:
            # Who was told that it fires is told that it is over, silenced or not.
            return Event.RESOLVED if alert.told not in ("", Event.RESOLVED) else None
        if self._silenced(alert, mine):
            return None
        told_at = alert.told_at or self.now
        # What gets well already is no news.
        worse = {_name(found.rule_id, found.subject) for found in mine if found.well_since is None}
        news = bool(worse - set(alert.told_findings)) and (self.now - told_at).total_seconds() >= UPDATE_SECONDS
        if alert.state == Alert.State.ACKNOWLEDGED and alert.told == Event.ACKNOWLEDGED and news:
            # What was acknowledged was something else.
            alert.state = Alert.State.FIRING
            return Event.UPDATED
        if alert.state == Alert.State.ACKNOWLEDGED:
            # Of what was silenced and acknowledged nobody was told, and somebody knows.
            return Event.ACKNOWLEDGED if alert.told not in ("", Event.ACKNOWLEDGED) else None
        if not alert.told:
            return Event.FIRING
        if alert.told == Event.RESOLVED:
            # It flaps: told again after a while, or at once when it is worse than it was.
            worse_now = _RANK[alert.severity] > _RANK[alert.told_severity]
            return Event.FIRING if worse_now or (self.now - told_at).total_seconds() >= UPDATE_SECONDS else None
        if _RANK[alert.severity] > _RANK[alert.told_severity]:
            return Event.UPDATED
        return Event.UPDATED if news else None

    def _tell(self, alert: Alert, event: Event, mine: Sequence[AlertFinding]) -> None:
        alert.sequence += 1
        alert.told, alert.told_at, alert.told_severity = event.value, self.now, alert.severity
        alert.told_findings = sorted(_name(found.rule_id, found.subject) for found in mine)
        log.info("%s %s %s", event.value, alert.key, alert.title)
        outbox.announce(alert, event, now=self.now)


def _kept(alert: Alert) -> tuple[Any, ...]:
    """Return what a round may change of an alert."""
    return (alert.state, alert.severity, alert.title, alert.findings, alert.told_findings)


def _name(rule: int, subject: str) -> str:
    return f"{rule} {subject}"


def _order(metric: str) -> int:
    """Rank a metric by how much it says."""
    known = Metric(metric)
    return causes.ORDER.index(known) if known in causes.ORDER else len(causes.ORDER)


def _weight(one: Mapping[str, Any]) -> tuple[int, int, str]:
    """Rank a finding as an alert lists it: the most severe first, then what says most, then what came first."""
    return (-_RANK[one["severity"]], _order(one["metric"]), one["since"])


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["rule"] == other["rule"] and one["subject"] == other["subject"])


def _updated(
    listed: Sequence[dict[str, Any]], current: Sequence[dict[str, Any]], *, now: datetime
) -> list[dict[str, Any]]:
    """Return an alert's list with what its findings are now, and when the others cleared."""
    by_name = {(one["rule"], one["subject"]): one for one in current}
    found = []
    for one in listed:
        fresh = by_name.get((one["rule"], one["subject"]))
        if fresh is not None:
            found.append(fresh)
        else:
            found.append(one if one["cleared_at"] else {**one, "cleared_at": now.isoformat()})
    return found


def forget_old() -> bool:
    """Delete alerts that were resolved long ago, with their deliveries."""
    Alert.objects.filter(state=Alert.State.RESOLVED, resolved_at__lt=Now() - KEEP_RESOLVED).delete()
    return False
