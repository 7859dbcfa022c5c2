"""Job types: the list, worst first, and one type: is it late, since when, and what does its contract promise?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from urllib.parse import urlencode

from django.http import Http404, HttpRequest, HttpResponse
from django.urls import reverse
from django.views.decorators.http import require_safe

from jobsboard.board import charts, limits, marks, rates, shell, summary, twice, why
from jobsboard.board.params import Params, chosen_range
from jobsboard.board.probes import words_of
from jobsboard.board.refresh import answer, live
from jobsboard.durations import duration
from jobsboard.roles import can, require
from queues import outcomes
from queues.contract_rules import promise_sentence
from queues.contract_switches import HOLDS
from queues.contract_versions import fields_of
from queues.models import ContractRevision, JobType
from queues.outcomes import ProbeNow, Span, TypeNow
from queues.outcomes.limits import Limits, limits_of
from queues.redaction import redact_text
from queues.states import OPEN

VERSIONS: Final = 10
OLDEST: Final = 6
_SHOW: Final = {
    "late": "outside promise", "overdue": "oldest open past its window", "dead": "with dead letters",
    "held": "behind a breaker", "deferred": "deferred",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Version:
    """One version of a contract and what it changed: rows of (field, before, after)."""

    number: int
    at: datetime
    actor: str
    reason: str
    rows: Sequence[tuple[str, str, str]]

    @property
    def words(self) -> str:
        """The changes in one line."""
        if self.number == 1:
            return "created"
        return ", ".join(f"{name.replace('_', ' ')} {old} to {new}" for name, old, new in self.rows[:3])


@require("view")
@require_safe
@live
def job_types(request: HttpRequest) -> HttpResponse:
    """List the types."""
    params = Params(request)
    board = shell.board_of(request)
    chosen = chosen_range(params, now=board.now, folded_at=board.folded_at)
    tier = params.choice("tier", {str(number) for number in board.tiers})
    show = params.choice("show", _SHOW)
    numbers = summary.read(board, chosen.span)
    lines = summary.type_lines(numbers)
    number = int(tier) if tier else None
    times = outcomes.times(chosen.span, tier=number)
    shown = [
        line
        for line in lines
        if tier in (None, str(line.tier))
        and (show != "late" or line.breach)
        and (show != "overdue" or line.overdue)
        and (show != "dead" or line.dead)
        and (show != "held" or line.breaker != "closed")
        and (show != "deferred" or line.deferred)
    ]
    late = [line for line in lines if line.breach]
    context = {
        "title": "Job types",
        **chosen.context(),
        "types": shown,
        "all_types": len(lines),
        "verdict": _late_words(late, len(lines)),
        "worst": late[0] if late else None,
        "stages": rates.stage_lines(times, board, tier=number),
        "rates": rates.rate_lines(numbers.flow.total(tier=number), times),
        "of": f"Tier {number}" if number else "All tiers",
        "stage_query": f"&tier={number}" if number else "",
        "notes": params.notes,
        "keep": chosen.given,
        "filters": [
            {
                "name": "tier",
                "label": "Tier",
                "value": tier or "",
                "options": [(str(t.number), f"{t.number} {t.name}") for t in board.tiers.values()],
            },
            {"name": "show", "label": "Only", "value": show or "", "options": list(_SHOW.items())},
        ],
    }
    return answer(request, "board/job_types.html", context)


def _late_words(late: Sequence[summary.TypeLine], total: int) -> str:
    if not total:
        return "No job types yet"
    if not late:
        return "No job type is outside its promise"
    return f"{len(late)} of {total} job types {'is' if len(late) == 1 else 'are'} outside the promise"


@require("view")
@require_safe
@live
def job_type(request: HttpRequest, name: str) -> HttpResponse:
    """Show one type."""
    return type_page(request, name)


def type_page(request: HttpRequest, name: str, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    """Render the page of a type."""
    board = shell.board_of(request)
    known = board.types.get(name)
    if known is None:
        raise Http404
    params = Params(request)
    chosen = chosen_range(params, now=board.now, folded_at=board.folded_at)
    row, versions = _versions(name)
    held_back = limits_of(name) if row.limited else None
    can_edit = can(request.user, "edit_contract") and getattr(request.user, "is_staff", False)
    context: dict[str, Any] = {
        "title": name,
        "crumbs": [("Job types", reverse("job-types")), (name, "")],
        **chosen.context(),
        "notes": params.notes,
        "type": known,
        "versions": versions,
        "shown_version": _chosen(params, versions),
        "edit_url": reverse("admin:queues_jobtype_change", args=[name]) if can_edit else "",
        "may_act": can(request.user, "act"),
        "toast": toast,
        **_numbers(request, known, chosen.span, versions, held_back),
        **_contract(row, known),
        "limits": limits.card(held_back, fields_of(row)),
    }
    context["twice"] = twice.card(context["total"], row, chosen)
    return answer(request, "board/job_type.html", context, poll=15)


def _numbers(
    request: HttpRequest, known: TypeNow, span: Span, versions: Sequence[Version], held_back: Limits | None
) -> dict[str, Any]:
    board = shell.board_of(request)
    series = outcomes.flow(span, name=known.name).series()
    total = outcomes.add(series)
    since = outcomes.below_since(series, known.target, span)
    lags, _ = outcomes.lag_slots(span, name=known.name)
    times = outcomes.times(span, name=known.name)
    tiers = [tier for tier, name in board.counts if name == known.name]
    oldest = outcomes.oldest_jobs(known.name, tiers=tiers, limit=OLDEST)
    happened = marks.read(span, name=known.name)
    marked = happened.marks(types={known.name}, named=False)
    return {
        "total": total,
        "lag": times.of("lag"),
        "since": since,
        "breach": total.ratio is not None and total.ratio < known.target,
        "dead": board.count("dead", name=known.name),
        "open": board.count(*OPEN, name=known.name),
        "stages": rates.stage_lines(times, board, name=known.name, window=known.window_seconds),
        "stage_query": "&" + urlencode({"type": known.name}),
        "rates": rates.rate_lines(total, times, retry_budget=known.retry_budget),
        "oldest": oldest,
        "lag_chart": charts.lag_chart(
            span,
            lags,
            title="Outcome lag",
            window=known.window_seconds,
            since=since,
            marks=marked,
            lane=happened.lane(),
        ),
        "ratio_chart": charts.ratio_chart(span, series, target=known.target, since=since, marks=marked),
        "flow_chart": charts.flow_chart(span, series, marks=marked),
        "support": happened.support(),
        "why": why.of_type(
            request, known.name, span, series=series, versions=versions, stages=times.stages(), limits=held_back
        ),
    }


def _contract(row: JobType, known: TypeNow) -> dict[str, Any]:
    fields = fields_of(row) | {"tier": row.tier_id}
    cap = f", at most {duration(row.backoff_cap_seconds)}" if row.backoff != "fixed" else ""
    return {
        "contract": row,
        "held": _held_words(row),
        "promise_sentence": promise_sentence(fields, tier_ratio=known.target),
        "probe": _probe(row),
        "retry_words": f"{row.max_attempts} attempts, {row.backoff} from {duration(row.backoff_base_seconds)}{cap}",
        "proof_words": _proof_words(row),
        "check_url": redact_text(row.check_url),
        "stale_words": "then expired" if row.on_stale == "expire" else "then a dead letter",
    }


def _probe(row: JobType) -> tuple[str, ProbeNow] | None:
    """Return how its probe stands, in words and in full; None where none is sent."""
    found = outcomes.probes([row.name]) if row.probe_every_seconds else []
    return (words_of(found[0]), found[0]) if found else None


def _proof_words(row: JobType) -> str:
    """Say what proves the work and what follows without it."""
    asked = f"a check every {duration(row.check_every_seconds)}"
    then = {"dead": "a dead letter", "retry": "another attempt", "check_again": f"{asked} until max age"}
    within = f" within {duration(row.confirm_within_seconds)}"
    if row.success == "check" and row.on_unconfirmed == "check_again":
        return then["check_again"]
    proof = {"reference": "the handler’s reference", "callback": f"a callback{within}", "check": f"{asked}{within}"}
    return f"{proof[row.success]}, else {then[row.on_unconfirmed]}" if row.success in proof else ""


def _held_words(row: JobType) -> list[str]:
    """Say what is switched off, by whom, until when and why."""
    found = []
    for hold in HOLDS:
        if getattr(row, hold.switch) == hold.value:
            reason, by, until = (getattr(row, column) for column in hold.columns[1:])
            words = hold.prefix.capitalize() + (f" by {by}" if by else "")
            words += f" until {until:%Y-%m-%d %H:%M} UTC" if until else ""
            effect = "new jobs are refused" if hold.switch == "enabled" else "nothing is started"
            found.append(f"{words}, {effect}" + (f": {reason}" if reason else ""))
    return found


def _versions(name: str) -> tuple[JobType, list[Version]]:
    """Return the contract as it is now, and its newest versions, in one statement."""
    found = list(
        ContractRevision.objects.filter(job_type_id=name)
        .select_related("job_type")
        .defer("fields")
        .order_by("-version")[:VERSIONS]
    )
    # A type that was made by hand has no versions.
    row = found[0].job_type if found else JobType.objects.get(name=name)
    return row, [
        Version(number=one.version, at=one.at, actor=one.actor, reason=one.reason, rows=_diff_rows(one.diff))
        for one in found
    ]


def _chosen(params: Params, versions: Sequence[Version]) -> Version | None:
    """Return the version whose change is shown: the one asked for, else the newest that changed something."""
    asked = params.choice("version", {str(version.number) for version in versions})
    return next((v for v in versions if str(v.number) == asked), versions[0] if versions else None)


def _diff_rows(diff: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, _shown(pair[0]), _shown(pair[1])) for name, pair in diff.items() if isinstance(pair, list)]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:197]}…"
