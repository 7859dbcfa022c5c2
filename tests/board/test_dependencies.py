"""Circuit breakers on the board: the page, the overview, the page of a type and of a job, and holding one by hand."""

from __future__ import annotations

import datetime as dt
import re
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board import breaker_strip
from queues import workers
from queues.contract_switches import database_now
from queues.models import AuditEntry, BreakerFlip, Dependency, DependencyCalls, JobType
from queues.outcomes.breakers import histories, newest_flips
from tests.board.conftest import ClientOf
from tests.factories import accept, fold_all, make_type, set_columns

PAGE = "/dependencies/"
OPEN, CLOSE, RELEASE = (f"{PAGE}crm/{verb}/" for verb in ("open", "close", "release"))
WHY = "Of 40 calls in 60 s 30 failed and 2 were slow; the limit is 50 %."


def depend(*kinds: str, name: str = "crm", state: str = "open", ago: int = 120, **values: Any) -> Dependency:
    """Let types depend on something whose breaker is so since a while."""
    for kind in kinds:
        make_type(kind)
    JobType.objects.filter(name__in=kinds).update(dependency=name, breaker=state)
    since = database_now() - dt.timedelta(seconds=ago)
    return Dependency.objects.create(name=name, state=state, since=since, **{"why": WHY, **values})


def flip(was: str, became: str, *, ago: float, name: str = "crm", **values: Any) -> None:
    """Let a breaker have changed so many hours ago."""
    at = database_now() - dt.timedelta(hours=ago)
    BreakerFlip.objects.create(dependency=name, at=at, was=was, became=became, **{"why": "why", **values})


@pytest.fixture
def crm(db: None) -> list[UUID]:
    """The CRM is down: its breaker is open, and five jobs of two types wait."""
    row = depend("crm.sync", "crm.notify", retry_at=database_now() + dt.timedelta(seconds=24))
    flip("closed", "open", ago=120 / 3600, why=WHY)
    at = database_now().replace(microsecond=0) - dt.timedelta(seconds=5)
    DependencyCalls.objects.create(dependency=row.name, at=at, ok=8, failed=30, slow=2)
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)
    workers.report("w/1", kind="worker", hostname="w", pid=2, queues=["tier2"], slots=4, busy=0)
    ids = [*accept(4, kind="crm.sync"), *accept(1, kind="crm.notify")]
    fold_all()
    return ids


def words(client: Client, url: str) -> str:
    """Return the text of a page's region."""
    return " ".join(re.sub(r"<[^>]+>", " ", client.get(url, headers={"HX-Request": "true"}).text).split())


def test_the_page_says_what_is_down_since_when_why_and_what_waits(viewer: Client, crm: list[UUID]) -> None:
    depend("mail.send", name="mail", state="closed", why="")
    page = viewer.get(PAGE).text
    text = words(viewer, PAGE)
    assert "<h1 data-say>1 of 2 circuit breakers is open: crm</h1>" in page
    assert page.index('id="dependency-crm"') < page.index('id="dependency-mail"'), "what is open comes first"
    crm_row = page[page.index('id="dependency-crm"') : page.index('id="dependency-mail"')]
    told = " ".join(re.sub(r"<[^>]+>", " ", crm_row).split())
    for said in (
        "Open",
        "80% of 40, 2 slow",
        "limit 50% of 20 in 1m",
        "2 min ago",
        "30 failed and 2 were slow",
        "in 2",
    ):
        assert said in told, said
    assert '<td class="num">5</td>' in crm_row
    assert 'href="/types/crm.notify/"' in crm_row
    assert 'href="/types/crm.sync/"' in crm_row
    assert "no calls" in text
    assert "No breaker changed" not in text
    # It is counted where people look first.
    assert re.search(r'Circuit breakers<span class="n bad">1</span>', page)


def test_a_half_open_one_says_how_many_trials_are_left(viewer: Client, db: None) -> None:
    depend("crm.sync", state="half_open", trials_left=2, why="It lets 3 jobs as trials through.")
    text = words(viewer, PAGE)
    assert "1 of 1 circuit breaker tries again: crm" in text
    assert "Half open" in text
    assert "2 of 3 left" in text
    assert 'class="n bad"' not in viewer.get(PAGE).text


@pytest.mark.parametrize("role", ["viewer", "owner"])
def test_without_a_dependency_it_says_what_to_do(client_of: ClientOf, db: None, role: str) -> None:
    text = words(client_of(role), PAGE)
    assert "No job type names a dependency" in text
    assert ("Contracts" in text) == (role == "owner")


def test_the_page_costs_the_same_however_many_dependencies_and_changes_there_are(
    viewer: Client, crm: list[UUID]
) -> None:
    def statements() -> int:
        viewer.get(PAGE)
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(PAGE).status_code == 200
        return len(captured)

    few = statements()
    for index in range(12):
        depend(f"other.{index}", name=f"other-{index}", state="closed")
        for ago in range(20):
            flip("open", "closed", ago=ago, name=f"other-{index}")
    assert statements() == few <= 8


# History


def test_a_history_is_the_worst_state_of_each_part(db: None) -> None:
    """The parts of a change have both states; those between two changes have the one in between."""
    depend("crm.sync", state="closed")
    depend("mail.send", name="mail", state="open")
    now = database_now()
    for was, became, ago in (
        ("closed", "open", 20.5), ("open", "half_open", 17.5), ("half_open", "closed", 17.4), ("closed", "open", 3.5),
        ("open", "closed", 3.4),
    ):  # fmt: skip
        flip(was, became, ago=ago)
    flip("closed", "open", ago=30, name="mail")
    found = histories(since=now - dt.timedelta(hours=24), now=now, parts=24)
    expected = ["closed"] * 3 + ["open"] * 4 + ["closed"] * 13 + ["open"] + ["closed"] * 3
    assert found == {"crm": expected, "mail": ["open"] * 24}


def test_newest_changes_of_all_come_in_order_and_no_more_than_asked_for(db: None) -> None:
    depend("crm.sync")
    depend("mail.send", name="mail")
    for ago in range(6):
        flip("closed", "open", ago=ago + 0.5, name=("crm", "mail")[ago % 2])
    now = database_now()
    found = newest_flips(since=now - dt.timedelta(hours=4), until=now, limit=3)
    assert [one.dependency for one in found] == ["crm", "mail", "crm"]
    assert len(newest_flips(since=now - dt.timedelta(hours=4), until=now, limit=9)) == 4


def test_a_strip_draws_each_stretch_once_and_tells_it_in_words() -> None:
    since = dt.datetime(2026, 11, 22, 0, 0, tzinfo=dt.UTC)
    history = ["closed"] * 40 + ["half_open"] + ["open"] * 7
    drawn = breaker_strip.strip(history, since=since, until=since + dt.timedelta(hours=24), label="crm")
    assert re.findall(r'class="is-(\w+)"', drawn) == ["confirmed", "retrying", "dead"]
    assert "20:30 to 00:00 UTC: open" in drawn
    assert breaker_strip.words(history) == "of the last 24 h, 48 parts of 30 min: open in 7, half open in 1"
    assert breaker_strip.words(["closed"] * 48) == "closed for the last 24 h"


# Where else it is said


def test_the_overview_names_it_first_and_tells_what_changed(viewer: Client, crm: list[UUID]) -> None:
    page = viewer.get("/").text
    attention = page[page.index('id="h-att"') : page.index('id="h-chg"')]
    assert re.findall(r"<b title=\"([^\"]+)\"", attention)[0] == "The breaker of crm is open: 5 jobs of 2 types wait"
    assert WHY in attention
    assert "for 2 min" in attention
    assert f'href="{PAGE}#dependency-crm"' in attention
    changed = page[page.index('id="h-chg"') : page.index('id="types"')]
    assert f'<a class="ink" href="{PAGE}#dependency-crm">Breaker crm opened</a>' in changed
    assert 'id="breakers"' in page
    assert len(re.findall(r'<span class="sr">Breaker open</span>', page)) == 2, "both types of the table"


def test_a_breaker_that_is_closed_concerns_nobody(viewer: Client, db: None) -> None:
    depend("crm.sync", state="closed")
    page = viewer.get("/").text
    assert "The breaker of crm" not in page
    assert "Breaker open" not in page
    assert 'id="breakers"' in page


def test_a_breaker_that_flaps_is_told_once_and_a_person_by_the_audit_log(operator: Client, crm: list[UUID]) -> None:
    for ago in range(1, 5):
        flip("closed", "open", ago=ago)
    operator.post(CLOSE, {"reason": "maintenance"})
    page = operator.get("/").text
    changed = page[page.index('id="h-chg"') : page.index('id="types"')]
    assert "Breaker crm opened, 5 times" in changed
    assert "operator closed breaker crm" in changed
    assert "Breaker crm closed" not in changed
    assert changed.count("maintenance") == 2, (
        "its detail and the detail's title, and no second line of the change itself"
    )


def test_the_list_of_types_can_show_those_behind_a_breaker(viewer: Client, crm: list[UUID]) -> None:
    make_type("report.build")
    text = viewer.get("/types/?show=held").text
    assert 'id="type-crm.sync"' in text
    assert 'id="type-report.build"' not in text


def rows(client: Client, url: str) -> list[str]:
    page = client.get(url).text
    begun = page[page.index('id="why"') :]
    return re.findall(r"<b>(.*?)</b>", begun[: begun.index("</section>")])


def test_a_late_type_names_its_breaker_first_and_does_not_judge_what_cannot_run(
    viewer: Client, crm: list[UUID]
) -> None:
    for job_id in crm:
        set_columns(job_id, raw_ready_at="jobs_now() - interval '600 s'")
    found = rows(viewer, "/types/crm.sync/")
    assert found[0] == "The circuit breaker of crm is open"
    assert not [one for one in found if "fails" in one or "wait for a worker" in one]
    page = viewer.get("/types/crm.sync/").text
    assert "The next trials begin at" in page
    assert f'href="{PAGE}#dependency-crm"' in page
    assert "Breaker open" in page


def test_a_waiting_job_says_that_its_type_is_held(viewer: Client, crm: list[UUID]) -> None:
    assert rows(viewer, f"/jobs/{crm[0]}/")[0] == "The circuit breaker of crm is open"
    Dependency.objects.update(state="half_open", trials_left=0, why="It lets 3 jobs as trials through.")
    assert rows(viewer, f"/jobs/{crm[0]}/")[0] == "The circuit breaker of crm tries again"
    Dependency.objects.update(state="closed")
    assert "circuit breaker" not in rows(viewer, f"/jobs/{crm[0]}/")[0]


# By hand


def test_an_operator_forces_one_open_until_a_time(operator: Client, crm: list[UUID]) -> None:
    Dependency.objects.update(state="closed")
    until = database_now().replace(second=0, microsecond=0) + dt.timedelta(hours=3)
    given = {"reason": "maintenance until six", "until": f"{until:%Y-%m-%dT%H:%M}"}
    for _ in range(2):
        response = operator.post(OPEN, given)
        assert (response.status_code, response["Location"]) == (303, PAGE)
    row = Dependency.objects.get()
    assert (row.state, row.forced, row.forced_by, row.forced_reason, row.forced_until) == (
        "open", "open", "operator", "maintenance until six", until,
    )  # fmt: skip
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.source) == ("breaker.forced_open", "operator", "ui")
    text = words(operator, PAGE)
    assert "Held open by operator: maintenance until six" in text
    assert f"held until {until:%H:%M:%S} UTC" in text or f"held until {until.day} {until:%b %H:%M} UTC" in text
    assert "Let go" in text
    assert "Force open" not in text
    assert "The breaker of crm is held open" in words(operator, "/")


def test_it_is_forced_closed_and_let_go(operator: Client, crm: list[UUID]) -> None:
    assert operator.post(CLOSE, {"reason": "their errors are ours"}).status_code == 303
    row = Dependency.objects.get()
    assert (row.state, row.forced, row.forced_until) == ("closed", "closed", None)
    assert JobType.objects.filter(breaker="closed").count() == 2, "its types are free in the same moment"
    assert "held until let go" in words(operator, PAGE)
    for _ in range(2):
        assert operator.post(RELEASE, {"reason": "done"}).status_code == 303
    assert Dependency.objects.get().forced == ""
    actions = list(AuditEntry.objects.order_by("id").values_list("action", flat=True))
    assert actions == ["breaker.forced_closed", "breaker.let_go"]


def test_htmx_gets_a_dialog_and_then_the_page(operator: Client, crm: list[UUID]) -> None:
    headers = {"HX-Request": "true"}
    dialog = operator.get(OPEN, headers=headers).text
    assert "<html" not in dialog
    assert "Force the breaker of crm open?" in dialog
    assert 'name="until"' in dialog
    assert "crm.notify, crm.sync" in dialog
    assert 'name="until"' not in operator.get(RELEASE, headers=headers).text
    answer = operator.post(OPEN, {"reason": "x"}, headers=headers)
    assert answer.status_code == 200
    assert answer.text.lstrip().startswith('<div class="stack" id="region"')
    assert f'hx-get="{PAGE}"' in answer.text
    assert "The breaker of crm is held open." in answer.text


@pytest.mark.parametrize("url", [OPEN, CLOSE, RELEASE])
def test_who_may(client_of: ClientOf, crm: list[UUID], url: str) -> None:
    assert "<html" in client_of("operator").get(url).text
    assert client_of("viewer").get(url).status_code == 403
    assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
    assert "Force open" not in client_of("viewer").get(PAGE).text
    assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    assert Client().post(url, {"reason": "x"}).status_code == 302
    assert not AuditEntry.objects.filter(object_type="dependency").exists()
    assert Dependency.objects.get().forced == ""


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"reason": " \x00 "}, "Say why."),
        ({"reason": "x" * 1_001}, "At most 1,000 characters."),
        ({"reason": "x", "until": "2020-01-01T00:00"}, "must be in the future"),
        ({"reason": "x", "until": "tomorrow\x00"}, "This is not a time."),
    ],
)
def test_what_is_refused_says_so(operator: Client, crm: list[UUID], given: dict[str, str], error: str) -> None:
    response = operator.post(CLOSE, given)
    assert response.status_code == 422
    assert re.search(rf'role="alert">[^<]*{error}', response.text)
    assert Dependency.objects.get().forced == ""


def test_unknown_names_verbs_and_methods(operator: Client, crm: list[UUID]) -> None:
    assert operator.get(f"{PAGE}gone/open/").status_code == 404
    assert operator.post(f"{PAGE}gone/open/", {"reason": "x"}).status_code == 404
    assert operator.get(f"{PAGE}a%00b/open/").status_code == 404
    assert operator.get(f"{PAGE}crm/explode/").status_code == 404
    assert operator.put(OPEN).status_code == 405


def test_markup_in_a_reason_is_text(operator: Client, crm: list[UUID]) -> None:
    operator.post(OPEN, {"reason": "<img src=x onerror=alert(1)>"})
    for url in (PAGE, "/", "/types/crm.sync/"):
        assert "<img src=x" not in operator.get(url).text
