"""Many dead letters at once: a dialog that counts them as of now and looks at the newest, then a plan.

Selected: their ids. All matching: the filter, as of a moment, with the count that was seen. A form has a token, which
is the plan's idempotency key: sent twice it makes one plan. Not here: making and carrying out plans (`dlq.plans`).
"""

from __future__ import annotations

import datetime as dt
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final
from urllib.parse import urlencode
from uuid import UUID, uuid4

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from dlq import facts, groups, preflight
from dlq.plans import selection as choosing
from dlq.plans.create import (
    CONCURRENCY,
    CONCURRENCY_MOST,
    CountChanged,
    KeyReused,
    NothingSelected,
    PlanRequest,
    TooMany,
    create,
)
from dlq.plans.selection import MOST, Selection, SelectionInvalid
from dlq.replaying import Who
from jobsboard.board import shell
from jobsboard.board.acting import who
from jobsboard.board.asking import Asked, Deed, Refused, form, note
from jobsboard.board.groups import PLAIN
from jobsboard.roles import can, require
from queues import outcomes
from queues.models import Breaker, Job
from queues.outcomes import JobFilter
from queues.states import DEAD_REASONS

LOOKED_AT: Final = 50
PACES: Final = (("2", "2 a second"), ("10", "10 a second"), ("50", "50 a second"), ("100", "100 a second"))
STOPS: Final = (("0", "the first replay fails"), ("0.1", "10 % fail"), ("0.25", "25 % fail"), ("0.5", "50 % fail"))
_PACE: Final = "10"
_STOP: Final = "0.1"
_DEEDS: Final = {
    "replay": Deed(
        verb="replay", title="Replay {n} {noun}?",
        lead="Each becomes a new job with the same payload and the same idempotency key, after all live work.",
        ok="Replay {n}", keep="Keep as they are", icon="replay", why="must",
    ),
    "cancel": Deed(
        verb="cancel", title="Cancel {n} {noun}?",
        lead="They will not run again and leave the list of dead letters. Their history stays.",
        ok="Cancel {n}", keep="Keep as they are", icon="trash", why="must", danger=True,
    ),
    "ignore": Deed(
        verb="ignore", title="Ignore {n} {noun}?",
        lead="Nothing is to be done about them. They leave the list of dead letters; their history stays.",
        ok="Ignore {n}", keep="Keep as they are", icon="cancelled", why="must",
    ),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What is chosen, and how the form says it again. `words`: as the dialog names it."""

    selection: Selection
    words: str
    hidden: Sequence[tuple[str, str]]
    back: str


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One line of what was found in those that were looked at."""

    css: str
    icon: str
    title: str
    words: str
    n: int


@dataclass(kw_only=True)
class Form:
    """What was given, or the usual."""

    rate: str = _PACE
    stop: str = _STOP
    concurrency: str = str(CONCURRENCY)
    dry_run: bool = False
    forced: bool = False
    token: str = ""
    as_of: dt.datetime | None = None
    hidden: Sequence[tuple[str, str]] = field(default_factory=list)


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def bulk(request: HttpRequest) -> HttpResponse:
    """Say what would happen to all that is chosen, or make the plan and lead to it."""
    given = request.POST if request.method == "POST" else request.GET
    deed = _DEEDS.get(given.get("verb", ""))
    if deed is None:
        raise Http404
    try:
        chosen = _chosen(given, types=list(shell.board_of(request).types))
    except Refused as refused:
        return _nothing(request, deed, str(refused), status=refused.status)
    if request.method != "POST":
        return _dialog(request, deed, chosen)
    try:
        url = _plan(request, deed, chosen)
    except Refused as refused:
        return _dialog(request, deed, chosen, error=str(refused), status=refused.status)
    if "HX-Request" in request.headers:
        return HttpResponse(headers={"HX-Redirect": url})
    response = HttpResponseRedirect(url)
    response.status_code = 303
    return response


def _chosen(given: QueryDict, *, types: Sequence[str]) -> Chosen:
    """Read what is chosen: one failure, ids, or a filter. Raises: Refused, Http404."""
    row = None
    if failure := given.get("failure", ""):
        row = groups.group(int(failure)) if failure.isascii() and failure.isdigit() and len(failure) < 19 else None
        if row is None:
            raise Http404
    if row and row.mixed and given.get("all"):
        raise Refused("These failures are not told apart. Choose all of this type on the list.", status=422)
    back = reverse("failure-group", args=[row.id]) if row else reverse("dead-letters")
    kept = [("failure", str(row.id))] if row else []
    if not given.get("all"):
        ids = _ids(given)
        hidden = [*kept, *(("ids", str(one)) for one in ids)]
        return Chosen(
            selection=Selection(ids=tuple(ids)), words="selected by hand", hidden=hidden,
            back=back if row else f"{back}?view=flat",
        )  # fmt: skip
    kept.append(("all", "1"))
    if row:
        wanted = Selection(type=row.type, reason=row.reason, fingerprint=row.fingerprint)
        return Chosen(selection=wanted, words=f"all of {row.type} with this failure", hidden=kept, back=back)
    name, reason, tier = (given.get(key, "") for key in ("type", "died_of", "tier"))
    if (name and name not in types) or (reason and reason not in set(DEAD_REASONS)) or tier not in ("", "1", "2", "3"):
        raise Refused("This filter means nothing. Choose again on the list.", status=422)
    filters = [(key, value) for key, value in (("type", name), ("tier", tier), ("died_of", reason)) if value]
    shown = [("reason" if key == "died_of" else key, value) for key, value in filters]
    return Chosen(
        selection=Selection(type=name or None, tier=int(tier) if tier else None, reason=reason or None),
        words="all with " + ", ".join(f"{key} {value}" for key, value in shown) if shown else "all dead letters",
        hidden=[*kept, *filters],
        back=f"{back}?{urlencode([*shown, ('view', 'flat')])}",
    )


def _ids(given: QueryDict) -> list[UUID]:
    """Read ids, each once. Raises: Refused."""
    try:
        ids = list(dict.fromkeys(UUID(text) for text in given.getlist("ids")))
    except ValueError:
        raise Refused("One of the selected is no job. Select again on the list.", status=422) from None
    if not ids:
        raise Refused("Nothing is selected. Tick dead letters on the list first.", status=422)
    if len(ids) > MOST:
        raise Refused(f"More than {MOST:,} are selected.", status=422)
    return ids


def _plan(request: HttpRequest, deed: Deed, chosen: Chosen) -> str:
    """Make the plan, or find the one that this form made; return where it is shown. Raises: Refused."""
    given, ids = _form(request.POST), chosen.selection.ids
    reason = note(request, deed)
    if not 8 <= len(given.token) <= 64:
        raise Refused("This form is not one of ours. Look again.", status=422)
    if given.forced and not can(request.user, "replay_anyway"):
        raise Refused("Only an admin may replay what something speaks against.", status=422)
    try:
        wanted = PlanRequest(
            action=deed.verb,
            selection=chosen.selection,
            types=list(shell.board_of(request).types),
            who=Who(**who(request, reason)),
            as_of=given.as_of,
            expected_count=len(ids) if ids is not None else int(request.POST.get("expected", "")),
            rate_per_second=float(given.rate),
            concurrency=int(given.concurrency),
            stop_on_failure_ratio=float(given.stop),
            dry_run=given.dry_run,
            forced=given.forced,
            idempotency_key=given.token,
        )
    except ValueError:
        raise Refused("One of the values is no number.", status=422) from None
    try:
        plan, _ = create(wanted)
    except SelectionInvalid as invalid:
        raise Refused(f"{invalid.field.replace('_', ' ').capitalize()} {invalid}.", status=422) from None
    except CountChanged as changed:
        words = f"{changed.found:,} are dead and unresolved now, not {changed.expected:,}. Look again."
        raise Refused(words, status=409) from None
    except (TooMany, NothingSelected) as refused:
        words = str(refused)
        raise Refused(f"{words[:1].upper()}{words[1:]}.", status=409) from None
    except KeyReused:
        raise Refused("This form made a plan already. It is on the page of replays.", status=409) from None
    return reverse("replay-plan", args=[plan.id])


def _form(given: QueryDict) -> Form:
    """Read what was typed; the usual where nothing was."""
    return Form(
        rate=given.get("rate", _PACE) if given.get("rate", _PACE) in dict(PACES) else _PACE,
        stop=given.get("stop", _STOP) if given.get("stop", _STOP) in dict(STOPS) else _STOP,
        concurrency=given.get("concurrency", str(CONCURRENCY))[:6],
        dry_run="dry_run" in given,
        forced="forced" in given,
        token=given.get("token", ""),
        as_of=_moment(given.get("as_of", "")),
    )


def _moment(text: str) -> dt.datetime | None:
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=dt.UTC)


def _dialog(request: HttpRequest, deed: Deed, chosen: Chosen, *, error: str = "", status: int = 200) -> HttpResponse:
    """Count now, look at the newest, and ask."""
    given, as_of = _form(request.POST), choosing.now()
    types = list(shell.board_of(request).types)
    n = choosing.count(chosen.selection, types=types, as_of=as_of)
    ids = chosen.selection.ids
    left_out = len(ids) - n if ids is not None else 0
    extra = {
        "verb": deed.verb,
        "hidden": chosen.hidden,
        "chosen": chosen.words,
        "n": n,
        "left_out": left_out,
        "expected": len(ids) if ids is not None else n,
        "as_of": as_of,
        "as_of_iso": as_of.isoformat(),
        "token": given.token or uuid4().hex,
        "rates": PACES,
        "stops": STOPS,
        "values": given,
        "concurrency_most": CONCURRENCY_MOST,
        "may_force": can(request.user, "replay_anyway"),
        "takes": _takes(n, float(given.rate)),
    }
    refusal = ""
    if not n:
        refusal = "None of these is dead and unresolved any more." if ids else "Nothing like this is dead any more."
    elif n > MOST:
        refusal = f"More than {MOST:,} are selected, which is the most for one plan. Narrow the filter."
    elif deed.verb == "replay":
        extra |= _looked(chosen.selection, types=types, n=n)
    return form(request, _asked(deed, chosen, n, extra=extra, refusal=refusal), error=error, status=status)


def _asked(deed: Deed, chosen: Chosen, n: int, *, extra: Mapping[str, Any], refusal: str) -> Asked:
    many, noun = f"{n:,}", f"dead letter{'' if n == 1 else 's'}"
    named = replace(deed, title=deed.title.format(n=many, noun=noun), ok=deed.ok.format(n=many))
    return Asked(
        deed=named,
        about="",
        action=reverse("bulk"),
        back=chosen.back,
        crumbs=[("Dead letters", reverse("dead-letters")), (named.ok, "")],
        draw=lambda seen, toast: HttpResponse(),
        extra=extra,
        fields="board/_ask_bulk.html",
        refusal=refusal,
        into="#dialog",
    )


def _nothing(request: HttpRequest, deed: Deed, words: str, *, status: int) -> HttpResponse:
    """Say that nothing is chosen. A dialog is shown to htmx with 200: nothing was asked for that could fail."""
    named = replace(deed, title=f"Nothing to {deed.verb}", lead="", ok=deed.verb.capitalize())
    asked = Asked(
        deed=named, about="", action=reverse("bulk"), back=f"{reverse('dead-letters')}?view=flat",
        crumbs=[("Dead letters", reverse("dead-letters")), (named.ok, "")], draw=lambda seen, toast: HttpResponse(),
        refusal=words,
    )  # fmt: skip
    shown = 200 if request.method != "POST" and "HX-Request" in request.headers else status
    return form(request, asked, status=shown)


def _takes(n: int, rate: float) -> float:
    """Return how many seconds it takes at least."""
    return max(n / rate, 1.0)


def _looked(selection: Selection, *, types: Sequence[str], n: int) -> dict[str, Any]:
    """Judge up to 50 of the newest now, nobody being asked, and sum up what would become of them."""
    jobs = _newest(selection, types=types)
    found = facts.gather(jobs).values()
    against: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    notes: Counter[str] = Counter()
    out = unsure = noted = clean = 0
    down: dict[str, str] = {}
    for one in found:
        results = {check.name: check for check in preflight.judge(one).checks}
        # The dependency speaks for the whole plan, not for one job: a plan stops on it before it begins, or waits for
        # its circuit breaker.
        dependency = results.pop("dependency")
        if dependency.result == "fail":
            held = one.dependency.breaker is not None and one.dependency.breaker.state == Breaker.OPEN
            then = "waits" if held else "stops before it begins"
            down[dependency.title] = f"{dependency.evidence}. The plan {then} as long as this is so."
        fails = [name for name, check in results.items() if check.result == "fail"]
        doubts = [name for name, check in results.items() if check.result == "unknown"]
        hints = [name for name, check in results.items() if check.result == "note"]
        if fails:
            out += 1
            against[fails[0]] += 1
        elif doubts:
            unsure += 1
            unknown.update(doubts)
        elif hints:
            noted += 1
            notes.update(hints)
        else:
            clean += 1
    lines = [
        Seen(css="confirmed", icon="ok", title="Pass every check", words="", n=clean),
        Seen(css="retrying", icon="warn", title="Have something to note", words=_counted(notes), n=noted),
        Seen(css="cancelled", icon="help", title="Are not known to be safe", words=_counted(unknown), n=unsure),
        Seen(css="dead", icon="bad", title="Will be left out", words=_counted(against), n=out),
    ]
    return {
        "looked": len(found),
        "looked_all": len(found) >= n,
        "lines": [line for line in lines if line.n or line.css == "confirmed"],
        "down": sorted(down.items()),
    }


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{PLAIN.get(name, name)} ({n})" for name, n in counts.most_common())


def _newest(selection: Selection, *, types: Sequence[str]) -> list[Job]:
    """Return the newest dead letters of a selection."""
    if selection.ids is not None:
        return list(Job.objects.filter(id__in=selection.ids, probe=False).order_by("-id")[:LOOKED_AT])
    wanted = JobFilter(
        type=selection.type, tiers=(selection.tier,) if selection.tier else (), reason=selection.reason,
        fingerprint=selection.fingerprint, dead_letters=True,
    )  # fmt: skip
    page = outcomes.jobs(wanted, types=types, counts={})
    return list(Job.objects.filter(id__in=[row.id for row in page.rows[:LOOKED_AT]]).order_by("-id"))
