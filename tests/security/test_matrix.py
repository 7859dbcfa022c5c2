"""Every route, every method, everybody: who gets in, and who does not, as `matrix.toml` says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from http.cookies import SimpleCookie
from typing import Any

import pytest
from django.contrib.admin import AdminSite
from django.db import transaction
from django.template.base import Template
from django.test import TestCase, override_settings
from django.utils.safestring import SafeString
from pytest_django import DjangoDbBlocker

from jobsboard.api import keys
from jobsboard.api.problems import CONTENT_TYPE
from queues import broker, outside
from tests.factories import sql
from tests.security import matrix, world
from tests.security.matrix import VERB, Line
from tests.security.world import HIDDEN, INSIDE, VALUE, World

ROUTES = [route.text for route in matrix.routes()]
TAKEN = {200, 201, 202, 302, 303, 400, 409, 422}
READS = {"GET", "HEAD", "OPTIONS"}
WRITTEN_BY_READS = {"dlq/export": {"queues_auditentry"}, "api/v1/dead-letters/export": {"queues_auditentry"}}
"""Who takes data out of the house is written down."""
SHOWS_ALL = {"admin/queues/schedule/<path:object_id>/change/"}
"""Who may edit a schedule edits its payload as it is."""
DRAWN = {"pages": {"viewer", "operator"}, "admin": {"viewer"}, "api": set(matrix.people()["api"])}
"""For whom what is answered is drawn too, as are refusals: `tests.board.test_pages` draws pages for each role."""
SESSIONS = "django.contrib.sessions.backends.signed_cookies"
WHOLE = "WHOLE_MATRIX" in os.environ


@pytest.fixture(scope="module")
def db(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Stand in for the one of each test: one transaction for all of them, taken back at the end."""
    with django_db_blocker.unblock():
        atomics = TestCase._enter_atomics()  # type: ignore[attr-defined]
        try:
            yield
        finally:
            TestCase._rollback_atomics(atomics)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def everybody(db: None) -> Iterator[World]:
    """Make the world once; every request is taken back by itself."""
    # Sessions in cookies, for they are read at every request.
    with override_settings(SESSION_ENGINE=SESSIONS), pytest.MonkeyPatch.context() as patch:
        patch.setattr(broker, "ping", lambda: True)
        patch.setattr(outside, "ask_and_wait", lambda ids, **_: {})
        # That a key was used is written down once a minute, whatever it asks for.
        patch.setattr(keys, "_note_use", lambda prefix: None)
        # As outside of tests, where no copy is kept of what each template was given.
        patch.setattr(Template, "_render", lambda template, context: template.nodelist.render(context))
        yield world.make()


def test_every_route_has_one_line_and_every_line_a_route() -> None:
    """S-01, S-02: a new route fails here until somebody says who may."""
    said = {route: [line.name for line in matrix.lines_of(route)] for route in ROUTES}
    assert {route: names for route, names in said.items() if len(names) != 1} == {}
    used = {line.pattern for route in ROUTES for line in matrix.lines_of(route)}
    assert {line.pattern for line in matrix.lines()} - used == set()
    assert len(ROUTES) > 100


@pytest.mark.parametrize("route", [route for route in matrix.routes() if route.deeds], ids=lambda route: route.text)
def test_every_verb_is_asked(route: matrix.Route) -> None:
    """S-02: a new verb of an address is asked too."""
    [line] = matrix.lines_of(route.text)
    assert frozenset(line.verbs) in route.deeds


@pytest.mark.parametrize("route", ROUTES)
def test_matrix(everybody: World, route: str) -> None:
    """S-01, S-02, S-03, S-11, S-12: each cell; what is refused shows nothing, and a look changes nothing."""
    [line] = matrix.lines_of(route)
    assert bool(line.verbs) == (VERB in route)
    wrong: list[str] = []
    for verb in line.verbs or ("",):
        path = everybody.address(route, verb)
        before = _writes()
        for method, who in _asked(line, route + verb):
            if method in READS:
                wrong += _ask(everybody, line, method, who, route, path)
        written = {name for name, n in _writes().items() if n > before.get(name, 0)}
        if written - WRITTEN_BY_READS.get(route, set()):
            wrong.append(f"{path}: a look changed {written}")
        for method, who in _asked(line, route + verb):
            if method not in READS:
                wrong += _ask(everybody, line, method, who, route, path)
    assert not wrong, "\n".join(wrong)


def _asked(line: Line, seed: str) -> Iterator[tuple[str, str]]:
    """Yield who asks with which method: everybody with GET and POST, every third with each of the others, in turn.

    What one row says of several methods is so asked with each of them. To look, who is forged is the admin: in turn,
    too. WHOLE_MATRIX in the environment asks all of it.
    """
    first = not line.verbs or seed.endswith(line.verbs[0])
    turn = sum(seed.encode())
    for k, method in enumerate(matrix.METHODS):
        for n, who in enumerate(matrix.people()[line.kind]):
            always = method == "POST" or (method == "GET" and who != "forged")
            if WHOLE or always or (first and (turn + k + n) % 3 == 0):
                yield method, who


def _ask(everybody: World, line: Line, method: str, who: str, route: str, path: str) -> list[str]:
    client, kind = everybody.client(line.kind, who), "application/x-www-form-urlencoded"
    wanted, usual = line.cells[method, who], b""
    let_in = wanted in ("ok", "taken")
    if line.kind == "api":
        usual, kind = b'{"reason": "x"}', "application/json"
    # Whom an answer logs out asks for the next thing as before.
    kept = client.cookies
    client.cookies = SimpleCookie({name: morsel.value for name, morsel in kept.items()})
    with transaction.atomic(), pytest.MonkeyPatch.context() as patch:
        if method != "GET" or (let_in and who not in DRAWN[line.kind]):
            patch.setattr(Template, "_render", lambda *_: SafeString(""))
            patch.setattr(AdminSite, "each_context", lambda *_: {})
        response: Any = client.generic(method, path, everybody.bodies.get(route, usual), kind)
        got, text = _name_of(response), world.body_of(response)
        transaction.set_rollback(True)
    client.cookies = kept
    place = f"{method} {path} as {who}"
    found = [] if _is(got, wanted) else [f"{place}: {got} for {wanted} {text[:200]!r}"]
    secret = HIDDEN in text and not (let_in and route in SHOWS_ALL)
    if secret or (VALUE in text and (not let_in or who == "viewer")) or (INSIDE in text and not let_in):
        found.append(f"{place}: shows what is planted")
    if line.kind == "api" and response.status_code >= 400 and response["Content-Type"] != CONTENT_TYPE:
        found.append(f"{place}: {response['Content-Type']}")
    return found


def _name_of(response: Any) -> str:
    """Name an answer as the matrix does; a redirect that is no login by its number."""
    to = response.headers.get("Location", "")
    if response.status_code == 302 and to.startswith(("/login/", "/admin/login/")):
        return "staff" if to.startswith("/admin/") else "login"
    return str(response.status_code)


def _is(got: str, wanted: str) -> bool:
    if wanted == "taken":
        return got.isdigit() and int(got) in TAKEN
    return got == ("200" if wanted == "ok" else wanted)


def _writes() -> dict[str, int]:
    """Return how many rows this transaction wrote, by table; what was taken back counts."""
    return dict(sql("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del FROM pg_stat_xact_user_tables"))
