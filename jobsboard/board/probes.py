"""Probes: does the path work end to end? How they went, and sending one now.

What a probe is, and how a run is judged: `queues.probes`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods, require_safe

from jobsboard.board import shell
from jobsboard.board.params import Params
from jobsboard.board.probe_strip import Tick
from jobsboard.board.refresh import answer, live
from jobsboard.durations import duration
from jobsboard.roles import can, require
from queues import outcomes, probes
from queues.actions import REASON_CHARACTERS
from queues.outcomes import ProbeNow, RunOfProbe
from queues.probes import NotProbed, Sent
from queues.redaction import redact_text
from queues.states import Reason

FAILED_SHOWN: Final = 20
TICKS: Final = outcomes.RUNS_SHOWN
_REASONS: Final[Mapping[str, str]] = {
    probes.LATE: "not confirmed in time",
    Reason.STALE: "not confirmed in time",
    Reason.UNCONFIRMED: "no proof came in time",
    probes.PAUSED: "the type is paused",
    probes.DEFERRED: "the type is deferred",
    probes.DISABLED: "the type is disabled",
    probes.CANCELLED: "its job was cancelled",
    probes.MISSING: "its job is gone",
}
_BADGES: Final = {
    "passed": ("confirmed", "Passed"),
    "failed": ("dead", "Failed"),
    "skipped": ("cancelled", "Skipped"),
    "running": ("processing", "Running"),
}


@dataclass(frozen=True, kw_only=True)
class ProbeLine:
    """The probe of one type. `last`: its last settled run, else the one that is under way."""

    now: ProbeNow
    runs: Sequence[RunOfProbe]

    @property
    def last(self) -> RunOfProbe | None:
        """The run that says how things stand."""
        settled = [run for run in self.runs if run.outcome != "running"]
        return settled[-1] if settled else self.runs[-1] if self.runs else None

    @property
    def badge(self) -> tuple[str, str]:
        """The state whose look it has, and its word."""
        return _BADGES[self.last.outcome] if self.last else ("cancelled", "Not sent yet")

    @property
    def running(self) -> bool:
        """A run is under way."""
        return bool(self.runs) and self.runs[-1].outcome == "running"

    @property
    def fails(self) -> bool:
        """Somebody has to look at it."""
        return bool(self.now.failures) and not self.now.paused

    @property
    def p95(self) -> float | None:
        """Seconds, by nearest rank, of the runs shown that passed."""
        took = sorted(run.took_seconds for run in self.runs if run.outcome == "passed" and run.took_seconds is not None)
        return took[math.ceil(0.95 * len(took)) - 1] if took else None

    @property
    def why(self) -> str:
        """Why its last run did not pass."""
        return reason_words(self.now) if self.last and self.last.outcome in ("failed", "skipped") else ""

    @property
    def ticks(self) -> list[Tick]:
        """Its runs, as they are drawn."""
        return [
            Tick(
                outcome=run.outcome, words=_tick_words(run), url=reverse("job", args=[run.job_id]) if run.job_id else ""
            )
            for run in self.runs
        ]

    @property
    def label(self) -> str:
        """The strip in words."""
        counts = Counter(run.outcome for run in self.runs)
        told = ", ".join(
            f"{counts[name]} {name}" for name in ("passed", "failed", "skipped", "running") if counts[name]
        )
        return f"Last {len(self.runs)} runs of {self.now.type}, newest right: {told}" if self.runs else "No runs yet"


@dataclass(frozen=True, kw_only=True)
class FailedRun:
    """One run that failed, for the list below."""

    type: str
    run: RunOfProbe
    reason: str
    detail: str


@require("view")
@require_safe
@live
def probes_view(request: HttpRequest) -> HttpResponse:
    """Show all probes."""
    return _page(request)


def _page(request: HttpRequest, *, toast: Mapping[str, str] | None = None) -> HttpResponse:
    notes = Params(request).notes
    found = outcomes.probes()
    runs = outcomes.probe_runs([one.type for one in found])
    lines = sorted((ProbeLine(now=one, runs=runs.get(one.type, ())) for one in found), key=lambda line: not line.fails)
    context: dict[str, Any] = {
        "title": "Probes",
        "heading": heading(lines),
        "lines": lines,
        "failed": _failed(lines),
        "size": TICKS,
        "notes": notes,
        "may_act": can(request.user, "act"),
        "contracts": reverse("admin:queues_jobtype_changelist") if can(request.user, "edit_contract") else "",
        "toast": toast,
        "here": reverse("probes"),
    }
    return answer(request, "board/probes.html", context)


def heading(lines: Sequence[ProbeLine]) -> str:
    """Answer the page's question in one sentence."""
    if not lines:
        return "No type is probed"
    failing, passing = sum(line.fails for line in lines), sum(line.now.passes is True for line in lines)
    plural = "" if len(lines) == 1 else "s"
    if failing:
        return f"{failing} of {len(lines)} probe{plural} fail{'s' if failing == 1 else ''}"
    if passing == len(lines):
        return "The probe passes" if len(lines) == 1 else f"All {len(lines)} probes pass"
    return f"{passing} of {len(lines)} probe{plural} pass{'es' if passing == 1 else ''}, none fails"


def _failed(lines: Sequence[ProbeLine]) -> list[FailedRun]:
    found = [
        FailedRun(type=line.now.type, run=run, reason=_REASONS.get(run.reason, run.reason), detail=_safe(run.detail))
        for line in lines
        for run in line.runs
        if run.outcome == "failed"
    ]
    return sorted(found, key=lambda one: -one.run.id)[:FAILED_SHOWN]


def _tick_words(run: RunOfProbe) -> str:
    words = f"{_BADGES[run.outcome][1]}, {run.begun_at:%H:%M:%S} UTC"
    if run.outcome == "passed" and run.took_seconds is not None:
        words += f", took {duration(run.took_seconds)}"
    if run.reason:
        words += f": {_REASONS.get(run.reason, run.reason)}"
    if run.late_at is not None:
        words += ", confirmed late"
    return words + (f", sent by {run.by}" if run.by else "")


def reason_words(one: ProbeNow) -> str:
    """Say why the last settled run did not pass."""
    return _REASONS.get(one.reason, one.reason)


def _safe(text: str) -> str:
    return redact_text(text)


def words_of(one: ProbeNow) -> str:
    """Say how the probe of a type stands, before its time: passed, failed 3 times in a row."""
    if one.failures and not one.paused:
        return "failed" + (f" {one.failures} times in a row" if one.failures > 1 else "") + ", the last time"
    return one.outcome or "not sent yet"


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def send_probe(request: HttpRequest, name: str) -> HttpResponse:
    """Ask for a reason, then send one probe now. A second click on the same form sends no second one."""
    known = outcomes.probes([name])
    if not known:
        raise Http404
    if request.method != "POST":
        return _form(request, known[0])
    reason = request.POST.get("reason", "").replace("\x00", "").strip()
    if not reason:
        return _form(request, known[0], error="Say why. It is written to the audit log.", status=422)
    if len(reason) > REASON_CHARACTERS:
        return _form(request, known[0], error=f"At most {REASON_CHARACTERS:,} characters.", status=422)
    try:
        sent = probes.run_now(
            name,
            actor=request.user.get_username(),
            reason=reason,
            after=_after(request),
            source="ui",
            request_id=getattr(request, "request_id", ""),
        )
    except NotProbed as refused:
        return _form(request, known[0], error=str(refused), status=409)
    toast = _said(name, sent)
    if "HX-Request" in request.headers:
        request.__dict__.pop(shell.KEPT, None)
        return _page(request, toast=toast)
    messages.add_message(request, messages.WARNING if toast["level"] == "warning" else messages.SUCCESS, toast["text"])
    response = HttpResponseRedirect(reverse("probes"))
    response.status_code = 303
    return response


def _said(name: str, sent: Sent) -> dict[str, str]:
    if sent.job_id is None:
        return {"text": f"{name}: {_safe(sent.detail)}", "url": "", "link": "", "level": "warning"}
    text = f"The probe of {name} is on its way." if sent.fresh else f"A probe of {name} was sent already."
    return {"text": text, "url": reverse("job", args=[sent.job_id]), "link": "View its job", "level": "success"}


def _after(request: HttpRequest) -> int | None:
    """Return the newest run that the form knew."""
    said = request.POST.get("after", "")
    return int(said) if said.isascii() and said.isdigit() and len(said) < 19 else None


def _form(request: HttpRequest, known: ProbeNow, *, error: str = "", status: int = 200) -> HttpResponse:
    runs = outcomes.probe_runs([known.type], limit=1).get(known.type)
    back = reverse("probes")
    context: dict[str, Any] = {
        "title": "Send a probe",
        "heading": f"Send a probe of {known.type} now?",
        "window": known.window_seconds,
        "error": error,
        "given": request.POST.get("reason", "")[:REASON_CHARACTERS],
        "after": _after(request) if request.method == "POST" else runs[-1].id if runs else 0,
        "action": reverse("probe-send", args=[known.type]),
        "back": back,
        "limit": REASON_CHARACTERS,
        "alone": "HX-Request" in request.headers,
        "crumbs": [("Probes", back), ("Send a probe", "")],
    }
    return render(
        request, "board/_probe_form.html" if context["alone"] else "board/probe_send.html", context, status=status
    )
