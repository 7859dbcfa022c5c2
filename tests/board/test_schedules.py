"""The page of schedules: what runs when, what ticks came to, which were missed; and running, pausing, resuming one."""

from __future__ import annotations

import datetime as dt
import re
from uuid import uuid4

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board import schedules as page_of
from queues import lifecycle
from queues.contract_switches import database_now
from queues.models import JobType, Schedule, ScheduleTick
from queues.outcomes import schedules as read
from tests.board.conftest import ClientOf, bury
from tests.factories import accept, claim, confirmed
from tests.outcomes.test_schedules import KIND, NAME, ago, make_schedule, tick

PAGE = "/schedules/"
HTMX = {"HX-Request": "true"}


def words(client: Client, url: str = PAGE) -> str:
    """Return the text of a page's region."""
    return plain(client.get(url, headers=HTMX).text)


def plain(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def row(client: Client, name: str = NAME) -> str:
    """Return the row of one schedule as it is written."""
    [found] = re.findall(rf'<tr[^>]* id="schedule-{name}">.*?</tr>', client.get(PAGE).text, re.DOTALL)
    return str(found)


@pytest.mark.parametrize("role", ["viewer", "operator", "owner"])
def test_without_any_it_says_what_one_is_and_owners_the_way_to_it(client_of: ClientOf, role: str) -> None:
    page = client_of(role).get(PAGE).text
    assert "Nothing is scheduled" in page
    assert "enqueue" in page
    assert ("/admin/queues/schedule/" in page) == (role == "owner")


def test_a_healthy_one_says_what_runs_when(viewer: Client) -> None:
    """The line, in English too; the next tick, the last job with its state; nothing is red."""
    make_schedule(timezone="Europe/Berlin", description="For the morning meeting")
    [job_id] = accept(1, kind=KIND)
    assert lifecycle.settle([confirmed(run) for run in claim([job_id])])
    tick(job_id=job_id, minutes=3)
    soon = database_now() + dt.timedelta(hours=5)
    Schedule.objects.update(last_job_id=job_id, last_job_at=ago(minutes=3), next_at=soon)
    page = viewer.get(PAGE).text
    assert "<h1 data-say>The schedule is on</h1>" in page
    found = row(viewer)
    for said in (
        "On",
        "0 3 * * *",
        "Europe/Berlin",
        "At 03:00 every day",
        "in 4 h",
        "3 min ago",
        "Confirmed",
        KIND,
    ):
        assert said in plain(found), said
    assert 'title="For the morning meeting"' in found
    assert found.count(f"/jobs/{job_id}/") == 2, "the last job and its tick"
    assert f'href="/types/{KIND}/"' in found
    for alarm in ("breach", 'class="warn"', "is-dead", "Ticks without a job", "Run now"):
        assert alarm not in viewer.get(PAGE, headers=HTMX).text, alarm


def test_a_refused_one_is_red_and_says_why_since_when(viewer: Client) -> None:
    """It comes first, and its error is redacted and escaped."""
    make_schedule("a-good-one")
    make_schedule(refused=3, refused_since=ago(minutes=120))
    tick(outcome="refused", detail="The payload <b> breaks the contract, password=hunter2", minutes=1)
    page = viewer.get(PAGE).text
    assert "1 of 2 schedules is refused: nightly" in page
    assert page.index(f"schedule-{NAME}") < page.index("schedule-a-good-one")
    found = row(viewer)
    assert '<tr class="grp breach"' in found
    assert "Refused 3 in a row, 2 h ago" in plain(found)
    assert "The payload &lt;b&gt; breaks the contract" in found
    assert "hunter2" not in page
    lost = page[page.index('id="lost"') :]
    assert "The payload &lt;b&gt; breaks the contract" in lost
    assert "breach" not in row(viewer, "a-good-one")


def test_a_refused_one_is_said_where_people_look_first(viewer: Client) -> None:
    """The pill of every page and the attention list; not of one that is paused or was accepted since."""
    make_schedule(refused=3, refused_since=ago(minutes=120))
    make_schedule("once", refused=1, refused_since=ago(minutes=1))
    tick(outcome="refused", detail="It is <b>full</b>, password=hunter2", minutes=1)
    tick("once", outcome="refused", detail="The type is disabled.")
    overview = viewer.get("/").text
    assert f"The schedule {NAME} is refused" in overview
    assert "3 in a row, the last one: It is &lt;b&gt;full" in overview
    assert "hunter2" not in overview
    assert ">The type is disabled." in overview, "once is not a row"
    assert f'href="/schedules/#schedule-{NAME}"' in overview
    pill = r'href="/schedules/"[^>]*>(?:(?!</a>).)*<span class="n bad">2</span>'
    for text in (overview, viewer.get("/jobs/").text):
        assert re.search(pill, text, re.DOTALL)
    Schedule.objects.filter(name=NAME).update(paused=True)
    overview = viewer.get("/").text
    assert "The schedule once is refused" in overview
    assert f"The schedule {NAME} is refused" not in overview
    assert re.search(pill.replace(">2<", ">1<"), overview, re.DOTALL)
    Schedule.objects.filter(name="once").update(refused=0)
    overview = viewer.get("/").text
    assert "is refused" not in overview
    assert not re.search(r'href="/schedules/"[^>]*>(?:(?!</a>).)*class="n bad"', overview, re.DOTALL)


def test_a_tick_that_nobody_looks_at_is_said(viewer: Client) -> None:
    make_schedule(next_at=ago(minutes=10))
    assert "1 of 1 schedule is overdue: nightly" in words(viewer)
    assert "No scheduler looks" in plain(row(viewer))
    assert "due" in plain(row(viewer))
    assert "breach" in row(viewer)


def test_missed_ticks_are_counted_and_listed_as_stretches(viewer: Client) -> None:
    make_schedule()
    stretch = tick(outcome="missed", ticks=1234, minutes=90, detail="Nobody looked; one job for the newest.")
    found = row(viewer)
    assert "1,234 ticks were missed in the last 24 h; the schedule is on" in words(viewer)
    assert '<span class="warn">1,234</span>' in found
    last = f"{stretch.tick_at:%d %b %H:%M:%S} UTC. Nobody looked; one job for the newest."
    assert f"<title>1,234 missed, the last one {last}</title>" in found
    lost = viewer.get(PAGE).text.split('id="lost"')[1]
    assert "1,234 missed" in lost
    assert "one job for the newest" in lost
    ScheduleTick.objects.update(detail="")
    assert "No scheduler looked within 60 s." in words(viewer)


def test_a_paused_one_says_by_whom_why_and_until_when(viewer: Client) -> None:
    make_schedule("other")
    until = database_now() + dt.timedelta(hours=3)
    make_schedule(paused=True, paused_by="ann", paused_reason="the <mill> is closed", paused_until=until)
    found = row(viewer)
    assert "1 of 2 schedules is on" in words(viewer)
    for said in ("Paused", "ann: the &lt;mill&gt; is closed", "until"):
        assert said in found, said
    Schedule.objects.update(paused_until=None)
    assert "until resumed" in row(viewer)
    assert "breach" not in row(viewer)


def test_a_line_without_times_to_come_is_said(viewer: Client) -> None:
    make_schedule(next_at=None)
    assert "Ended" in row(viewer)
    assert "Names no time that comes" in row(viewer)
    assert "No schedule is on" in words(viewer)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"paused": True}, "is paused"), ({"enabled": False}, "is disabled"), ({"deferred": True}, "is deferred")],
)
def test_a_type_that_is_held_is_said_beside_its_name(viewer: Client, change: dict[str, bool], said: str) -> None:
    make_schedule()
    assert said not in row(viewer)
    JobType.objects.update(**change)
    assert said in plain(row(viewer))


def test_the_strip_tells_each_tick_in_words_and_shape(viewer: Client) -> None:
    """No outcome by colour alone: what became no job has a gap, what was done a middle, what died is tall."""
    make_schedule()
    done, died, waits = accept(3, kind=KIND)
    assert lifecycle.settle([confirmed(run) for run in claim([done])])
    bury([died])
    for minutes, values in (
        (7, {"job_id": done, "detail": "Seen 62 s late."}),
        (6, {"job_id": died}),
        (5, {"job_id": waits, "by": "ann"}),
        (4, {"outcome": "missed"}),
        (3, {"outcome": "refused"}),
        (2, {"job_id": uuid4()}),
    ):
        tick(minutes=minutes, **values)
    [drawn] = re.findall(r'<svg[^>]*role="group".*?</svg>', row(viewer), re.DOTALL)
    assert 'aria-label="Last 6 ticks of nightly, newest right: 1 confirmed, 1 dead or expired, 1 under way, ' in drawn
    assert '1 no longer kept, 1 missed, 1 refused"' in drawn
    titles = [title.split(" UTC")[1] for title in re.findall(r"<title>([^<]+)</title>", drawn)]
    assert titles == [
        ": confirmed. Seen 62 s late.", ": dead", ": accepted, run by ann", ": missed", ": refused",
        ": its job is no longer kept",
    ]  # fmt: skip
    shapes = [
        re.findall(r'class="so"[^>]*y="(\d+)"[^>]*height="(\d+)"', part)
        for part in re.findall(r"<title>.*?(?=<title>|$)", drawn, re.DOTALL)
    ]
    assert len({tuple(shape) for shape in shapes}) >= 5, shapes
    assert drawn.count('<a class="is-') == 3, "only to jobs that are there"


def test_only_the_newest_of_many_lost_ticks_are_listed(viewer: Client) -> None:
    make_schedule()
    for n in range(1, 26):
        tick(outcome="refused", minutes=n, detail=f"reason {n}.")
    lost = viewer.get(PAGE).text.split('id="lost"')[1]
    assert lost.count('<tr id="tick-') == page_of.LOST_SHOWN
    assert lost.index("reason 1.") < lost.index("reason 2.")
    assert "reason 25." not in lost


def test_statements_do_not_grow(viewer: Client) -> None:
    """The session, the user, the role, the board, what fires; and four of its own."""
    make_schedule()
    tick(job_id=accept(1, kind=KIND)[0])

    def statements() -> int:
        viewer.get(PAGE)
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(PAGE).status_code == 200
        return len(captured)

    before = statements()
    assert before <= 9
    for index in range(8):
        make_schedule(f"more.{index}")
        for n in range(3):
            tick(f"more.{index}", minutes=n, job_id=accept(1, kind=KIND)[0])
        tick(f"more.{index}", minutes=9, outcome="missed")
    assert statements() == before


def test_more_than_fit_are_said(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "SCHEDULES_SHOWN", 3)
    for index in range(3):
        make_schedule(f"s-{index}")
    assert "Only the first" not in words(viewer)
    make_schedule("s-9")
    assert "Only the first 3 are shown" in words(viewer)
    assert "s-9" not in words(viewer)
