"""Asking before doing: a dialog with htmx, a plain page without; then the page behind it, as it is after the deed.

Not here: what is done, and who may (the views that ask).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.shortcuts import render

from jobsboard.board import shell, signals

NOTE_CHARACTERS: Final = 1000


@dataclass(frozen=True, kw_only=True)
class Deed:
    """What a person is about to do, in words. `why`: must, may, or empty where nobody is asked."""

    verb: str
    title: str
    lead: str
    ok: str
    keep: str
    icon: str
    why: str = ""
    danger: bool = False


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done, in words; with a link, where a browser without script goes then."""

    text: str
    url: str = ""
    link: str = ""
    level: Literal["success", "warning"] = "success"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question: what is to be done to what, and which page is behind it. `draw` gets request and toast.

    `fields`: a template of what the form shows before the note, with `extra` as its context. `refusal`: why it cannot
    be done at all; then there is nothing to press.
    """

    deed: Deed
    about: str
    action: str
    back: str
    crumbs: list[tuple[str, str]]
    draw: Callable[[HttpRequest, dict[str, str]], HttpResponse]
    extra: Mapping[str, Any] = field(default_factory=dict)
    detail: str = ""
    icon: str = "alert"
    fields: str = ""
    refusal: str = ""
    into: str = "#region"


class Refused(Exception):
    """What was asked cannot be done; said to the person. `status` is 409 or 422.

    `instead`: the question as it is to be asked now.
    """

    def __init__(self, words: str, *, status: int, instead: Asked | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.instead = instead


def ask(request: HttpRequest, asked: Asked, do: Callable[[], str | Done]) -> HttpResponse:
    """Show the question, or do it and show the page behind; `do` returns what was done, or raises Refused."""
    if request.method != "POST":
        return form(request, asked)
    try:
        told = do()
    except Refused as refused:
        return form(request, refused.instead or asked, error=str(refused), status=refused.status)
    done = Done(text=told) if isinstance(told, str) else told
    if "HX-Request" in request.headers:
        toast = {"text": done.text, "url": done.url, "link": done.link, "level": done.level}
        return asked.draw(_looking(request, asked.back), toast)
    messages.add_message(request, getattr(messages, done.level.upper()), done.text)
    response = HttpResponseRedirect(done.url or asked.back)
    response.status_code = 303
    return response


def note(request: HttpRequest, deed: Deed) -> str:
    """Read why. Raises: Refused."""
    text = request.POST.get("reason", "").replace("\x00", "").strip()
    if not text and deed.why == "must":
        raise Refused("Say why. It is written to the audit log.", status=422)
    if len(text) > NOTE_CHARACTERS:
        raise Refused(f"At most {NOTE_CHARACTERS:,} characters.", status=422)
    return text


def until(request: HttpRequest) -> datetime | None:
    """Read the end, in UTC where it names no zone; None: none was given. Raises: Refused."""
    text = request.POST.get("until", "").strip()
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Refused("This is not a time. Example: 2026-05-31 18:00 (UTC).", status=422) from None


def seen_at(request: HttpRequest) -> str:
    """Return the path of the page that is behind a dialog; empty without one."""
    return urlsplit(request.headers.get("HX-Current-URL", "")).path


def _looking(request: HttpRequest, path: str) -> HttpRequest:
    """Return the request as if the person had opened the page that is behind the dialog, with its filters."""
    seen = urlsplit(request.headers.get("HX-Current-URL", ""))
    query = QueryDict(seen.query if seen.path == path and len(seen.query) < 2000 else "")
    looking = copy.copy(request)
    for kept in (shell.KEPT, signals.KEPT):
        looking.__dict__.pop(kept, None)
    looking.path = looking.path_info = path
    looking.GET = query
    looking.META = {**request.META, "QUERY_STRING": query.urlencode()}
    return looking


def form(request: HttpRequest, asked: Asked, *, error: str = "", status: int = 200) -> HttpResponse:
    """Render the question, with what was typed and what is wrong with it."""
    alone = "HX-Request" in request.headers
    context: dict[str, Any] = {
        "title": asked.deed.ok,
        "asked": asked,
        "deed": asked.deed,
        "error": error,
        "given": request.POST.get("reason", "")[:NOTE_CHARACTERS],
        "limit": NOTE_CHARACTERS,
        "alone": alone,
        "crumbs": asked.crumbs,
        **asked.extra,
    }
    return render(request, "board/_ask_form.html" if alone else "board/ask.html", context, status=status)
