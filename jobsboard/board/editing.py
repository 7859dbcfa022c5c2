"""Replaying one job with another payload or key: type, look at what it changes, then replay.

The stored payload is never overwritten. Holding an edit against today's contract is `queues.edited_replay`'s, the
replay `dlq.replaying`'s.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse
from django.views.decorators.http import require_http_methods

from dlq import replaying
from dlq.preflight import Change, Preflight
from dlq.replaying import Unsafe, VerdictChanged
from jobsboard.board import replay_checks, replay_one
from jobsboard.board.asking import NOTE_CHARACTERS, Deed, Refused, note
from jobsboard.roles import can, require
from queues import contracts, edited_replay
from queues.accept import EnqueueError
from queues.edited_replay import Edited
from queues.models import Job
from queues.redaction import redact
from queues.request import PayloadInvalid

_WHY: Final = Deed(verb="edit", title="", lead="", ok="", keep="", icon="", why="must")
_KEY_CHARACTERS: Final = 255


@dataclass(frozen=True, kw_only=True)
class _Typed:
    """What somebody typed: the payload as text, the key, and that another key is meant."""

    payload: str
    key: str
    other: bool

    @property
    def seal(self) -> str:
        """Name it, so that what is replayed is what the preview showed."""
        return hashlib.sha256(f"{self.payload}\x00{self.key}".encode()).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class _Change:
    """One field: as it was and as it will be, redacted. `hidden`: neither is shown."""

    pointer: str
    before: str
    after: str
    hidden: bool


class _Wrong(Exception):
    """The edit cannot be replayed as it is: what is said to the person, and where in the payload."""

    def __init__(self, words: str, *, status: int = 422, where: Sequence[dict[str, str]] = ()) -> None:
        super().__init__(words)
        self.status = status
        self.where = where


@require("act")
@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, job_id: UUID, place: str) -> HttpResponse:
    """Show the form, then what it changes with the verdict about that, then replay."""
    job = Job.objects.filter(id=job_id).first()
    if job is None:
        raise Http404
    if not can(request.user, "see_payload"):
        raise PermissionDenied
    stored = _stored(job)
    if stored is None or not replay_checks.possible(job):
        return _over(request, job, place)
    if request.method != "POST":
        return _page(request, job, place, stored, _Typed(payload=stored, key=job.dedupe_key or "", other=False))
    typed = _Typed(
        payload=request.POST.get("payload", "").replace("\r\n", "\n"),
        key=request.POST.get("key", "").strip(),
        other="other" in request.POST,
    )
    try:
        edited = _prepare(job, stored, typed)
    except _Wrong as wrong:
        return _page(request, job, place, stored, typed, wrong=wrong)
    if request.POST.get("step") != "replay":
        return _page(request, job, place, stored, typed, edited=edited)
    return _replay(request, job, place, stored, typed, edited)


def _replay(request: HttpRequest, job: Job, place: str, stored: str, typed: _Typed, edited: Edited) -> HttpResponse:
    show = partial(_page, request, job, place, stored, typed, edited=edited)
    try:
        if request.POST.get("seen") != typed.seal:
            raise _Wrong("You have changed it since the preview. Look at what it changes now.", status=409)
        if edited.edit.dedupe_key is not None and not typed.other:
            raise _Wrong("Under another key this is a different job. Tick that you mean it.")
        child = replay_one.do(request, job, reason=note(request, _WHY), edited=edited)
    except _Wrong as wrong:
        return show(wrong=wrong)
    except Refused as refused:
        return show(wrong=_Wrong(str(refused), status=refused.status))
    except VerdictChanged as changed:
        return show(wrong=_Wrong(replay_one.CHANGED, status=409), found=changed.found, changes=changed.changes)
    except Unsafe as unsafe:
        return show(wrong=_Wrong(f"{unsafe}.", status=409), found=unsafe.found)
    return _see_other(reverse("job", args=[child]))


def _prepare(job: Job, stored: str, typed: _Typed) -> Edited:
    """Hold what was typed against today's contract. Raises: _Wrong."""
    if len(typed.key) > _KEY_CHARACTERS:
        raise _Wrong(f"A dedupe key has at most {_KEY_CHARACTERS} characters.")
    payload = None if typed.payload.strip() == stored.strip() else typed.payload
    try:
        edited = edited_replay.prepare(job, payload=payload, dedupe_key=typed.key or None)
    except PayloadInvalid as invalid:
        words = f"not JSON: {invalid.detail}" if invalid.code == "invalid_json" else invalid.detail
        raise _Wrong(_sentence(words), where=_where(invalid)) from None
    except EnqueueError as refused:
        raise _Wrong(_sentence(refused.detail)) from None
    if not edited.diff:
        raise _Wrong("Nothing is changed. Replay it as it is instead.")
    return edited


def _where(invalid: PayloadInvalid) -> list[dict[str, str]]:
    if invalid.violations:
        return [{"pointer": one.get("pointer", ""), "message": one.get("message", "")} for one in invalid.violations]
    return [{"pointer": invalid.pointer, "message": invalid.code}] if invalid.pointer else []


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:].rstrip('.')}."


def _stored(job: Job) -> str | None:
    """Return the payload as it may be seen, as text to edit; None where there is none to see."""
    try:
        if job.payload is None:
            return None
        pointers = contracts.of_version(job.type, job.contract_version).redact
        return json.dumps(redact(json.loads(job.payload), pointers=pointers), ensure_ascii=False, indent=2)
    except (ValueError, RecursionError, contracts.UnknownContract):
        return None


def _over(request: HttpRequest, job: Job, place: str) -> HttpResponse:
    """Answer for a job that nobody can edit any more: a second click gets the new job, as the first did."""
    if job.replayed_by is not None and request.method == "POST":
        return _see_other(reverse("job", args=[job.replayed_by]))
    back = reverse("dead-letter" if place == "dlq" else "job", args=[job.id])
    words = "This job cannot be replayed with an edit: it was resolved, it goes on, or its payload cannot be shown."
    context = {"title": "Edit and replay", "job": job, "back": back, "over": words, "crumbs": _crumbs(job, back)}
    return render(request, "board/edit.html", context, status=409)


def _page(
    request: HttpRequest, job: Job, place: str, stored: str, typed: _Typed, *, edited: Edited | None = None,
    wrong: _Wrong | None = None, found: Preflight | None = None, changes: Sequence[Change] = (),
) -> HttpResponse:  # fmt: skip
    back = reverse("dead-letter" if place == "dlq" else "job", args=[job.id])
    context: dict[str, Any] = {
        "title": "Edit and replay",
        "job": job,
        "back": back,
        "crumbs": _crumbs(job, back),
        "stored": stored.split("\n"),
        "typed": typed,
        "rows": min(max(typed.payload.count("\n") + 2, 8), 40),
        "given": request.POST.get("reason", "")[:NOTE_CHARACTERS],
        "limit": NOTE_CHARACTERS,
        "key_limit": _KEY_CHARACTERS,
        "wrong": wrong,
        "changes": changes,
        **(_preview(request, job, edited, found) if edited else {}),
    }
    return render(request, "board/edit.html", context, status=wrong.status if wrong else 200)


def _preview(request: HttpRequest, job: Job, edited: Edited, found: Preflight | None) -> dict[str, Any]:
    """Return what the edit changes, and the verdict about the job as it would be."""
    found = found or replaying.look(job, edited=edited)
    press = replay_checks.pressable(found, request.user)
    return {
        "diff": [_change(pointer, *values) for pointer, values in edited.diff.items()],
        "notes": edited.notes,
        "new_key": edited.edit.dedupe_key,
        "verdict": found,
        "lines": replay_checks.lines(found),
        "anyway": press == "anyway",
        "refusal": replay_one.refusal(press, found),
    }


def _change(pointer: str, before: Any, after: Any) -> _Change:
    def said(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False)[:400]

    return _Change(pointer=pointer, before=said(before), after=said(after), hidden=before == after)


def _crumbs(job: Job, back: str) -> list[tuple[str, str]]:
    return [("Jobs", reverse("jobs")), (str(job.id)[-12:], back), ("Edit and replay", "")]


def _see_other(url: str) -> HttpResponse:
    response = HttpResponseRedirect(url)
    response.status_code = 303
    return response
