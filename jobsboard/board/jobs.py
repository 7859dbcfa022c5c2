"""Jobs: where are those in state X, and what happened to this one? Searching, and the page of one job."""

from __future__ import annotations

import contextlib
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.views.decorators.http import require_safe

from dlq import preflight
from jobsboard.board import death, job_evidence, job_view, payload, replay_checks, shell, twice, why
from jobsboard.board.params import Params, scope_of, seal
from jobsboard.board.refresh import answer, live
from jobsboard.roles import can, require
from queues import contracts, outcomes
from queues.lifecycle.confirm import NOTES_KEPT
from queues.models import AuditEntry, Job
from queues.outcomes import Board, JobFilter, JobPage
from queues.redaction import redact_text
from queues.states import DEAD_REASONS, OPEN, REPLAYABLE, JobState

AUDIT_SHOWN: Final = 8
_STATES: Final = {state.value: state.value.replace("_", " ") for state in JobState}


@require("view")
@require_safe
def search(request: HttpRequest) -> HttpResponse:
    """Go where the words lead."""
    return _found(request)


def _found(request: HttpRequest) -> HttpResponse:
    """Lead a job's id to the job, a type or a reason to its page; anything else is a key."""
    words = Params(request).text("q") or ""
    try:
        return HttpResponseRedirect(reverse("job", args=[UUID(words)]))
    except ValueError:
        pass
    if words in shell.board_of(request).types:
        return HttpResponseRedirect(reverse("job-type", args=[words]))
    if words in DEAD_REASONS:
        return HttpResponseRedirect(f"{reverse('dead-letters')}?{urlencode({'reason': words})}")
    return HttpResponseRedirect(reverse("jobs") + (f"?{urlencode({'key': words})}" if words else ""))


@require("view")
@require_safe
@live
def jobs(request: HttpRequest) -> HttpResponse:
    """List jobs, newest first."""
    if request.GET.get("q"):
        return _found(request)
    params = Params(request)
    board = shell.board_of(request)
    wanted, texts = _wanted(params, board)
    scope = "jobs " + scope_of(texts)
    page = outcomes.jobs(
        wanted,
        types=list(board.types),
        counts={state.value: board.count(state) for state in OPEN},
        after=params.cursor("after", scope=scope),
        before=params.cursor("before", scope=scope),
    )
    context = {
        "title": "Jobs",
        "rows": page.rows,
        "page": page,
        "newer": seal(page.newer, scope=scope),
        "older": seal(page.older, scope=scope),
        "searched": _searched(wanted, page),
        "wanted": texts,
        "verdict": _title(wanted, board),
        "tabs": _tabs(wanted, board, texts),
        "notes": params.notes,
        "filters": [type_filter(board, wanted.type), tier_filter(board, texts["tier"])],
        "keep": [(name, texts[name]) for name in ("state", "key", "group", "from", "to") if texts[name]],
        "chips": [(name, texts[name]) for name in ("key", "group", "from", "to") if texts[name]],
    }
    return answer(request, "board/jobs.html", context)


def _wanted(params: Params, board: Board) -> tuple[JobFilter, dict[str, str]]:
    tier = params.choice("tier", {str(number) for number in board.tiers})
    since, until = params.moment("from"), params.moment("to")
    wanted = JobFilter(
        type=params.choice("type", board.types),
        tiers=(int(tier),) if tier else (),
        state=params.choice("state", _STATES),
        key=params.text("key"),
        group=params.text("group"),
        since=since,
        until=until,
    )
    texts = {
        "type": wanted.type or "",
        "tier": tier or "",
        "state": wanted.state or "",
        "key": wanted.key or "",
        "group": wanted.group or "",
        "from": since.isoformat() if since else "",
        "to": until.isoformat() if until else "",
    }
    return wanted, texts


def type_filter(board: Board, value: str | None) -> dict[str, Any]:
    """Return the select of job types."""
    return {"name": "type", "label": "Type", "value": value or "", "options": [(name, name) for name in board.types]}


def tier_filter(board: Board, value: str) -> dict[str, Any]:
    """Return the select of tiers."""
    options = [(str(t.number), f"{t.number} {t.name}") for t in board.tiers.values()]
    return {"name": "tier", "label": "Tier", "value": value, "options": options}


def _tabs(wanted: JobFilter, board: Board, texts: dict[str, str]) -> list[dict[str, Any]]:
    """Open states with their counts; of history there is no count, since nobody counts the jobs table."""
    tier = wanted.tiers[0] if wanted.tiers else None
    kept = {name: value for name, value in texts.items() if value and name != "state"}
    tabs = []
    for state, word in [("", "all"), *_STATES.items()]:
        query = urlencode({**kept, "state": state} if state else kept)
        number = board.count(state, tier=tier, name=wanted.type) if state in OPEN else None
        url = f"{reverse('jobs')}?{query}" if query else reverse("jobs")
        tabs.append({"word": word.capitalize(), "n": number, "url": url, "on": (wanted.state or "") == state})
    return tabs


def _title(wanted: JobFilter, board: Board) -> str:
    tier = wanted.tiers[0] if wanted.tiers else None
    of = f"{wanted.type} " if wanted.type else ""
    if wanted.key:
        return f"Jobs with the key {wanted.key}"
    if wanted.state in OPEN:
        n = board.count(wanted.state or "", tier=tier, name=wanted.type)
        return f"{n:,} {of}job{'' if n == 1 else 's'} {_STATES[wanted.state or '']}"
    if wanted.state:
        return f"{of}jobs {_STATES[wanted.state]}".capitalize() if not of else f"{of}jobs {_STATES[wanted.state]}"
    n = board.count(*OPEN, tier=tier, name=wanted.type)
    return f"{n:,} open {of}job{'' if n == 1 else 's'}"


def _searched(wanted: JobFilter, page: JobPage) -> str:
    if wanted.key:
        return "Looked up by key: its newest job, and those that it replays."
    if page.looked is not None:
        of = f" of {wanted.type}" if wanted.type else ""
        whole = "all" if page.looked < outcomes.LOOK_AT_MOST else "the next"
        return f"Searched {whole} {page.looked:,} jobs{of}, newest first." + (
            "" if page.complete else " Older ones follow."
        )
    return f"{len(page.rows):,} shown, newest first."


@require("view")
@require_safe
@live
def job(request: HttpRequest, job_id: UUID) -> HttpResponse:
    """Show one job."""
    return job_page(request, job_id, place="jobs")


def job_page(request: HttpRequest, job_id: UUID, *, place: str, toast: dict[str, str] | None = None) -> HttpResponse:
    """Render a job below Jobs or below Dead letters."""
    found = Job.objects.filter(id=job_id).first()
    if found is None:
        raise Http404
    board = shell.board_of(request)
    rows = job_view.attempts(found, now=board.now)
    last = found.failures[-1] if found.failures and isinstance(found.failures[-1], dict) else {}
    dead = place == "dlq"
    above = ("Dead letters", reverse("dead-letters")) if dead else ("Jobs", reverse("jobs"))
    context: dict[str, Any] = {
        "title": f"{found.type} {str(found.id)[-12:]}",
        "crumbs": [above, (found.type, reverse("job-type", args=[found.type])), (str(found.id)[-12:], "")],
        "job": found,
        "place": place,
        "headline": job_view.headline(found),
        "attempts": rows,
        "timeline": job_view.timeline(found, rows, now=board.now),
        "awaiting_shown": any(row.awaited for row in rows),
        "took": ((found.settled_at or board.now) - found.accepted_at).total_seconds(),
        "late": (found.settled_at or board.now) > job_view.window_end(found),
        "failure": last,
        "proof": job_evidence.proof(found),
        "heard": job_evidence.heard(found),
        "heard_most": NOTES_KEPT,
        "signs": twice.of_job(found),
        "progress": job_evidence.progress(found),
        "reference": redact_text(found.reference or ""),
        "confirmed_late": found.state != JobState.CONFIRMED and bool(preflight.late_evidence(found, "confirmed")),
        "traceback": payload.traceback_blocks(str(last.get("traceback") or "")),
        "allowed": job_view.allowed(found),
        "may_act": can(request.user, "act"),
        "may_reveal": can(request.user, "reveal"),
        "act_url": act_urls(found, place),
        "trace": death.trace(found),
        "audit": list(
            AuditEntry.objects.filter(object_type="job", object_id=str(found.id)).order_by("-id")[:AUDIT_SHOWN]
        ),
        "toast": toast,
        **_contract(request, found),
        **_death(request, found, place),
    }
    return answer(request, "board/job.html", context, poll=15)


def _contract(request: HttpRequest, found: Job) -> dict[str, Any]:
    """Add what depends on the contract: the payload's redaction, and what is awaited."""
    board = shell.board_of(request)
    values = can(request.user, "see_payload")
    contract = None
    with contextlib.suppress(contracts.UnknownContract):
        contract = contracts.of_version(found.type, found.contract_version)
    # Without the contract nobody knows what it would hide.
    pointers, values = (contract.redact, values) if contract is not None else ((), False)
    known = board.types.get(found.type)
    return {
        "payload": payload.shown(found.payload, values=values, pointers=pointers),
        "payload_values": values,
        "now_version": known.version if known else None,
        "awaited": job_evidence.awaited(found, contract),
        "why": why.of_job(request, found, contract),
    }


def _death(request: HttpRequest, found: Job, place: str) -> dict[str, Any]:
    """Add what concerns a job that ended without its outcome: whether it may be replayed, and what stood around it."""
    if found.state not in REPLAYABLE or found.probe:
        return {"around": None, "card": None}
    facts = replay_checks.facts_of(found, now=shell.board_of(request).now)
    return {
        "around": death.around(found, facts),
        "card": replay_checks.card(found, facts, request.user) if replay_checks.possible(found) else None,
        # Workers are asked when somebody opens the page, not by each poll of it.
        "ask_now": "HX-Request" not in request.headers,
    }


def act_urls(job: Job, place: str) -> dict[str, str]:
    """Return where things are done to a job, by verb."""
    name = "dead-letter-act" if place == "dlq" else "job-act"
    verbs = ("replay", "edit", "close", "ignore", "verdict", "reveal")
    return {verb: reverse(name, args=[job.id, verb]) for verb in verbs}
