"""Queues and tiers on the board: queues, workers, what goes wrong with them, pausing a queue and resuming it."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.board import queues as page_of_queues
from jobsboard.board.pool_lines import Pace, PoolLine, heading
from queues import broker, contract_switches, lifecycle, workers
from queues.contract_switches import SwitchRefused, database_now, set_switch
from queues.models import AuditEntry, BoardVersion, JobType, OutcomeRollup, WorkerProcess
from queues.outcomes.pools import Held
from tests.board.conftest import ClientOf
from tests.factories import accept, claim, confirmed, fold_all, make_type, put_buckets, set_columns

PAGE = "/queues/"
PAUSE, RESUME = f"{PAGE}tier1/pause/", f"{PAGE}tier1/resume/"
HTMX = {"HX-Request": "true"}


@pytest.fixture
def hints(monkeypatch: pytest.MonkeyPatch) -> dict[str, int | None]:
    """What the broker says of each queue; nothing waits where nothing is said."""
    known: dict[str, int | None] = {}
    monkeypatch.setattr(broker, "depth", lambda name, **_: known.get(name, 0))
    return known


@pytest.fixture(autouse=True)
def _machines(db: None, hints: dict[str, int | None]) -> None:
    workers.report("s/1", kind="scheduler", hostname="s", pid=1)


def worker(name: str, *queues: str, ago: float = 0.0, **values: Any) -> None:
    """Let a worker have reported itself so many seconds ago."""
    host, _, pid = name.partition("/")
    workers.report(name, kind="worker", hostname=host, pid=int(pid), queues=queues, **{"slots": 4, **values})
    if ago:
        WorkerProcess.objects.filter(id=name).update(seen_at=database_now() - dt.timedelta(seconds=ago))


def due(*ids: UUID, seconds: int) -> None:
    for job_id in ids:
        set_columns(job_id, raw_due_at=f"jobs_now() - interval '{seconds} s'")


def text_of(markup: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", markup).split())


def words(client: Client, url: str = PAGE) -> str:
    """Return the text of a page's region."""
    return text_of(client.get(url, headers=HTMX).text)


def rows(client: Client, kind: str, url: str = PAGE) -> dict[str, str]:
    """Return name → the text of its row, in order; `kind` is queue or worker."""
    found = re.findall(rf'<tr[^>]* id="{kind}-([^"]+)"[^>]*>(.*?)</tr>', client.get(url).text, re.DOTALL)
    return {name: text_of(row) for name, row in found}


def title(client: Client) -> str:
    found = re.search(r"<h1 data-say>(.*?)</h1>", client.get(PAGE).text)
    assert found
    return found[1]


def rollup(name: str, tier: int = 1, **counts: int) -> None:
    """Let so much have happened in the last minutes."""
    at = database_now().replace(second=0, microsecond=0) - dt.timedelta(minutes=3)
    OutcomeRollup.objects.create(grain="minute", at=at, type=name, tier=tier, window_seconds=60, **counts)


# Queues


def test_a_queue_says_what_waits_since_when_and_how_fast_it_goes(viewer: Client, hints: dict[str, int | None]) -> None:
    for name in ("mail.send", "mail.bounce"):
        make_type(name, tier_id=1, pool="mail")
    ids = [*accept(30, kind="mail.send"), *accept(12, kind="mail.bounce")]
    due(ids[3], seconds=95)
    fold_all()
    OutcomeRollup.objects.all().delete()
    rollup("mail.send", accepted=300, runs=120, retries=30)
    rollup("mail.bounce", accepted=45, runs=30)
    put_buckets("mail.send", "wait", dict.fromkeys((60, 90), 10), tier=1)
    worker("a/1", "tier1", "tier1.mail", busy=3)
    worker("b/1", "tier1.mail", busy=4)
    worker("c/1", "tier2", "tier3", busy=0)
    hints["tier1.mail"] = 17
    found = rows(viewer, "queue")
    assert list(found) == ["tier1", "tier1.mail", "tier2", "tier3"]
    told = found["tier1.mail"]
    for said in ("T1 tier1.mail mail.bounce , mail.send", "Working", "7 of 8 busy", "also tier1", "42", "17 hints"):
        assert said in told, f"{said!r} not in {told!r}"
    # 15 minutes, of which the newest is not over: 345 accepted, 150 begun. Its first job waits for 95 s.
    assert re.search(r"17 hints 1m 3\ds ", told)
    assert re.search(r" 2[34](\.\d)? 10(\.\d)? 2(\.\d)? again$", told), told
    assert re.search(r" 5s (3m 5\d|4m( \d\d)?)s? grows", told), f"the wait's p95; 42 jobs at 10 a minute: {told}"
    assert found["tier3"].startswith("T3 tier3 no job type uses it Idle 0 of 4 busy also tier2 0")


def test_jobs_of_the_future_wait_for_nobody(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    accept(5, kind="mail.send", run_at=database_now() + dt.timedelta(hours=2))
    fold_all()
    worker("a/1", "tier1", "tier2", "tier3", slots=2, busy=2)
    told = rows(viewer, "queue")["tier1"]
    assert "2 of 2 busy also tier2, tier3 5 – –" in told
    assert "Working" in told
    assert title(viewer) == "Workers keep up: 5 jobs wait, none for long"


def test_a_queue_whose_slots_are_all_busy_while_a_job_waits_is_short(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    (first, *_) = accept(3, kind="mail.send")
    worker("a/1", "tier1", slots=2, busy=2)
    fold_all()
    assert "Short" not in rows(viewer, "queue")["tier1"], "nothing waits for long"
    due(first, seconds=40)
    found = rows(viewer, "queue")["tier1"]
    assert "Short" in found
    assert "stands still" in found, "nothing was begun in the last minutes"
    assert title(viewer) == "Workers are short in tier1: 3 jobs wait"
    worker("a/1", "tier1", slots=2, busy=1)
    assert title(viewer) == "Jobs wait, and workers are free"
    lifecycle.settle([confirmed(run) for run in claim([first])])
    fold_all()
    assert "Short" not in rows(viewer, "queue")["tier1"]


def test_what_is_held_is_no_shortage_and_says_by_whom(operator: Client) -> None:
    """Paused by a person, deferred by the scheduler, behind a breaker: none of these jobs waits for a worker."""
    for name in ("mail.send", "crm.sync", "report.build", "score.it"):
        make_type(name, tier_id=1)
        due(*accept(2, kind=name), seconds=300)
    fold_all()
    worker("a/1", "tier1", slots=1, busy=1)
    assert title(operator).startswith("Workers are short in tier1: 8 jobs wait")
    set_switch("mail.send", paused=True, reason="relay is down", actor="ada")
    JobType.objects.filter(name="report.build").update(deferred=True, deferred_by="scheduler", deferred_reason="x")
    JobType.objects.filter(name="crm.sync").update(dependency="crm", breaker="open")
    assert "8 6 held" in (told := rows(operator, "queue")["tier1"])
    assert "2 of 4 types held" in told
    JobType.objects.filter(name="score.it").update(deferred=True, deferred_by="scheduler", deferred_reason="x")
    told = rows(operator, "queue")["tier1"]
    assert "8 8 held – – –" in told
    assert "Short" not in told
    JobType.objects.update(deferred=True, deferred_by="scheduler", deferred_reason="Tier 1 waits", paused=False)
    told = rows(operator, "queue")["tier1"]
    assert "Deferred Deferred by scheduler: Tier 1 waits" in told
    assert title(operator) == "tier1 is on hold: 8 jobs wait"
    JobType.objects.update(deferred=False)
    assert "1 type behind a breaker" in rows(operator, "queue")["tier1"]


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ({}, "No worker"),
        ({"waiting": 1}, "No worker"),
        ({"waiting": 1, "troubled": 1}, "In trouble"),
        ({"workers": 1, "slots": 2}, "Idle"),
        ({"workers": 1, "slots": 2, "busy": 2, "waiting": 9, "due_seconds": 9.9}, "Working"),
        ({"workers": 1, "slots": 2, "busy": 2, "waiting": 9, "due_seconds": 10}, "Short"),
        ({"workers": 1, "slots": 2, "busy": 1, "waiting": 9, "due_seconds": 60}, "Working"),
    ],
)
def test_how_a_queue_stands(line: Mapping[str, Any], word: str) -> None:
    found = PoolLine(**{"queue": "tier1", "tier": 1, "types": ["mail.send"], **line})
    assert found.look[1] == word
    assert (found.look[0] == "dead") is (word == "In trouble" or bool(line.get("waiting") and not line.get("workers")))


def test_a_queue_drains_at_the_pace_of_begun_runs_and_grows_by_new_jobs_alone() -> None:
    pace = Pace(accepted=60, begun=90, again=10)
    line = PoolLine(queue="tier1", tier=1, types=[], waiting=180, held=30, pace=pace)
    assert (line.free, line.drain_seconds, line.grows) == (150, 100, False)
    retries = Pace(accepted=60, begun=90, again=40)
    assert PoolLine(queue="tier1", tier=1, types=[], waiting=180, pace=retries).grows
    assert not PoolLine(queue="tier1", tier=1, types=[], waiting=30, pace=retries).grows, "less than comes in a minute"
    assert PoolLine(queue="tier1", tier=1, types=[], waiting=9).drain_seconds is None


# What goes wrong


def test_no_worker_at_all(viewer: Client) -> None:
    assert title(viewer) == "No worker is running"
    assert "No worker has reported itself in the last hour" in words(viewer)
    make_type("mail.send", tier_id=1)
    accept(1, kind="mail.send")
    fold_all()
    assert title(viewer) == "No worker is running: 1 job waits"
    page = viewer.get(PAGE).text
    assert '<tr class="grp breach" id="queue-tier1">' in page
    assert "No worker" in rows(viewer, "queue")["tier1"]
    worker("a/1", "tier2")
    assert title(viewer) == "tier1 has no worker that is well: 1 job waits"


def test_the_broker_is_gone(viewer: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    worker("a/1", "tier1")
    assert "The broker does not answer" not in words(viewer)
    monkeypatch.setattr(broker, "depth", lambda name, **_: None)
    text = words(viewer)
    assert "The broker does not answer Jobs are accepted and kept" in text
    assert title(viewer) == "The broker does not answer: workers hear of no new work"
    assert "hints not known" in rows(viewer, "queue")["tier1"]


def test_a_broker_that_is_slow_is_asked_for_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = (float(n) / 10 for n in range(100)), list[str]()

    def depth(name: str, **_: float) -> int:
        asked.append(name)
        return 5

    monkeypatch.setattr(page_of_queues, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(broker, "depth", depth)
    found = page_of_queues.hints_of(["tier1", "tier2", "tier3", "tier4", "tier5"])
    assert found == {"tier1": 5, "tier2": 5, "tier3": None, "tier4": None, "tier5": None}
    assert asked == ["tier1", "tier2"]


def test_a_silent_worker_is_told_and_counts_no_more(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    worker("a/1", "tier1", busy=1)
    worker("b/7", "tier1", busy=3, ago=40)
    claim(accept(1, kind="mail.send"), worker="b/7.1.1")
    found = rows(viewer, "worker")
    assert list(found) == ["b/7", "a/1"], "what needs a look first"
    assert re.match(r"Silent b 7 tier1 3 of 4 mail.send \w{12} [\d.]+m?s 4\d s ago 1$", found["b/7"]), found
    text = words(viewer)
    assert "1 worker is silent: b/7 Its runs are given up when their leases end." in text
    assert "1 worker, 1 of 4 slots busy, 1 silent." in text
    assert "1 of 4 busy" in rows(viewer, "queue")["tier1"]
    worker("b/7", "tier1", busy=3)
    assert "silent:" not in words(viewer)


def test_a_worker_that_drains_is_told_and_counts_for_no_queue(viewer: Client) -> None:
    """It reports no queue: it takes nothing more, and what it runs goes on."""
    make_type("mail.send", tier_id=1)
    worker("a/1", busy=1)
    worker("b/1", "tier1", busy=0)
    (job,) = accept(1, kind="mail.send")
    claim([job], worker="a/1.1.1")
    found = rows(viewer, "worker")
    assert found["a/1"].startswith(f"Draining a 1 takes nothing more 1 of 4 mail.send {str(job)[-12:]}")
    assert "2 workers, 1 of 8 slots busy, 1 draining." in words(viewer)
    assert "0 of 4 busy" in rows(viewer, "queue")["tier1"]


def test_a_worker_in_trouble_says_what_it_is_and_helps_no_queue(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    accept(2, kind="mail.send")
    fold_all()
    worker("a/1", "tier1", busy=1, trouble="a body hangs <b>since</b> 12:00:00 UTC, token=hunter2-marker")
    text = words(viewer)
    assert "a/1 is in trouble a body hangs &lt;b&gt;since&lt;/b&gt; 12:00:00 UTC" in text
    assert "hunter2-marker" not in viewer.get(PAGE).text
    told = rows(viewer, "queue")["tier1"]
    assert "In trouble none that is well 1 in trouble" in told
    assert title(viewer) == "tier1 has no worker that is well: 2 jobs wait"
    assert rows(viewer, "worker")["a/1"].startswith("In trouble a 1 tier1")


def test_no_scheduler_and_numbers_that_stand_still(viewer: Client) -> None:
    worker("a/1", "tier1")
    assert "No scheduler" not in words(viewer)
    BoardVersion.objects.update(folded_at=database_now() - dt.timedelta(seconds=75))
    assert "These numbers stand still Waiting jobs, waits and rates are as of 1m 15s ago" in words(viewer)
    WorkerProcess.objects.filter(kind="scheduler").delete()
    text = words(viewer)
    assert "No scheduler is running" in text
    assert "No scheduler." in text


def test_runs_whose_worker_is_gone_are_told(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    worker("a/1", "tier1")
    claim(accept(2, kind="mail.send"), worker="gone/7.1.1")
    text = words(viewer)
    assert "2 runs are held by a worker that is gone mail.send on gone; given up when the lease ends" in text
    assert "mail.send" not in rows(viewer, "worker")["a/1"]


# Workers


def test_a_worker_shows_the_run_that_goes_on_for_longest(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    worker("a/1", "tier1", busy=2)
    long, short = accept(2, kind="mail.send")
    claim([long, short], worker="a/1.1.1")
    set_columns(long, raw_started_at="jobs_now() - interval '200 s'")
    page = viewer.get(PAGE).text
    assert f'href="/jobs/{long}/"' in page
    assert f'href="/jobs/{short}/"' not in page
    told = rows(viewer, "worker")["a/1"]
    assert f"mail.send {str(long)[-12:]} and 1 more 3m 2" in told


def test_of_several_workers_on_a_host_it_is_not_guessed_whose_run_it_is(viewer: Client) -> None:
    """Under a pool of processes a run is claimed by a child, whose worker is not in its name."""
    make_type("mail.send", tier_id=1)
    worker("a/1", "tier1", busy=1)
    worker("a/2", "tier1", busy=0)
    claim(accept(1, kind="mail.send"), worker="a/77.1.1")
    found = rows(viewer, "worker")
    assert "1 of 4 not known which" in found["a/1"]
    assert "0 of 4 – –" in found["a/2"]


def test_a_release_that_is_not_ours_is_told(viewer: Client) -> None:
    for pid, release in enumerate((workers.RELEASE - 1, workers.RELEASE, workers.RELEASE + 1)):
        worker(f"a/{pid}", "tier1")
        WorkerProcess.objects.filter(id=f"a/{pid}").update(release=release)
    found = list(rows(viewer, "worker").values())
    assert [row.split(" ago ")[-1].split("just now ")[-1] for row in found] == ["0 older", "1", "2 newer"]


def test_two_hundred_workers_are_bounded_and_found_by_host_and_queue(viewer: Client) -> None:
    make_type("mail.send", tier_id=1)
    worker("h000/1", "tier1")

    def statements() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert viewer.get(PAGE).status_code == 200
        return len(captured)

    viewer.get(PAGE)
    before = statements()
    WorkerProcess.objects.bulk_create(
        WorkerProcess(
            id=f"h{n:03}/1", kind="worker", hostname=f"h{n:03}", pid=1, queues=[f"tier{1 + n % 3}"], slots=8,
            busy=n % 9, release=1, seen_at=database_now() - dt.timedelta(seconds=60 if n == 150 else 0),
            started_at=database_now(),
        )
        for n in range(1, 200)
    )  # fmt: skip
    assert statements() == before
    found = list(rows(viewer, "worker"))
    assert len(found) == page_of_queues.WORKERS_SHOWN
    assert found[0] == "h150/1", "the silent one"
    assert "50 of 200, those that need a look first" in words(viewer)
    assert len(viewer.get(PAGE, headers=HTMX).content) < 120_000
    assert list(rows(viewer, "worker", f"{PAGE}?host=h199")) == ["h199/1"]
    of_queue = rows(viewer, "worker", f"{PAGE}?queue=tier3")
    assert {row.split()[3] for row in of_queue.values()} == {"tier3"}
    assert "50 of 66 of 200" in words(viewer, f"{PAGE}?queue=tier3")
    assert "host “gone” does not exist, cleared" in words(viewer, f"{PAGE}?host=gone")
    assert "No worker matches" in words(viewer, f"{PAGE}?host=h199&queue=tier1")


def test_the_overview_leads_here(viewer: Client) -> None:
    worker("a/1", "tier1")
    page = viewer.get("/").text
    assert f'<a class="ink" href="{PAGE}#queue-tier1"><b>tier1</b></a>' in page
    assert re.search(rf'<h2>Runtime</h2><ul>\s*<li><a href="{PAGE}"', page), "first of its group"


# Pausing and resuming


@pytest.fixture
def kinds(db: None) -> None:
    """Three types of tier 1, of which one is paused by itself, and one beside them in a pool of its own."""
    for name in ("mail.bounce", "mail.send", "mail.news"):
        make_type(name, tier_id=1)
    make_type("mail.big", tier_id=1, pool="big")
    set_switch("mail.news", paused=True, reason="no news today", actor="ada")


def paused() -> dict[str, tuple[str, str]]:
    """Return the paused types with who and why."""
    found = JobType.objects.filter(paused=True).order_by("name")
    return {row.name: (row.paused_by, row.paused_reason) for row in found}


def audited() -> list[tuple[str, str, str, str]]:
    entries = AuditEntry.objects.exclude(actor="ada").order_by("id")
    return [(entry.action, entry.object_id, entry.actor, entry.reason) for entry in entries]


def test_a_queue_is_paused_as_a_whole_and_what_was_paused_by_itself_stays_so(operator: Client, kinds: None) -> None:
    until = database_now().replace(second=0, microsecond=0) + dt.timedelta(hours=3)
    given = {"reason": "relay is down", "until": f"{until:%Y-%m-%dT%H:%M}"}
    for _ in range(2):
        response = operator.post(PAUSE, given)
        assert (response.status_code, response["Location"]) == (303, PAGE)
    mine = ("operator", "Pool tier1: relay is down")
    assert paused() == {"mail.bounce": mine, "mail.news": ("ada", "no news today"), "mail.send": mine}
    assert set(JobType.objects.filter(paused_by="operator").values_list("paused_until", flat=True)) == {until}
    assert audited() == [("contract.paused", name, *mine) for name in ("mail.bounce", "mail.send")], "once each"
    told = rows(operator, "queue")
    assert "Paused Its types are held for several reasons" in told["tier1"]
    assert "Resume" in told["tier1"]
    assert "Pause " not in told["tier1"].replace("Paused", "")
    assert "Pause tier1.big" in told["tier1.big"]

    for _ in range(2):
        assert operator.post(RESUME, {"reason": "it is back"}).status_code == 303
    assert paused() == {"mail.news": ("ada", "no news today")}
    assert audited()[2:] == [
        ("contract.resumed", name, "operator", "Pool tier1: it is back") for name in ("mail.bounce", "mail.send")
    ]
    assert "1 of 3 types paused by ada: no news today" in rows(operator, "queue")["tier1"]


def test_one_of_them_that_was_resumed_and_paused_again_by_itself_stays_paused(operator: Client, kinds: None) -> None:
    operator.post(PAUSE, {"reason": "relay is down"})
    set_switch("mail.send", paused=False, reason="try one", actor="bob")
    set_switch("mail.send", paused=True, reason="Pool of mails is full", actor="bob")
    JobType.objects.filter(name="mail.bounce").update(pool="big")
    assert "mail.bounce" in operator.get(RESUME).text
    dialog = operator.get(RESUME, headers=HTMX).text
    assert "Paused by themselves, and stay so: mail.news, mail.send" in dialog
    operator.post(RESUME, {"reason": "it is back"})
    assert set(paused()) == {"mail.news", "mail.send"}, "a type that moved meanwhile goes on with its queue"


def test_one_that_is_refused_pauses_none(operator: Client, kinds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    set_it = contract_switches.set_switch

    def refuse(name: str, **values: Any) -> JobType:
        if name == "mail.send":
            raise SwitchRefused("not now")
        return set_it(name, **values)

    monkeypatch.setattr(contract_switches, "set_switch", refuse)
    response = operator.post(PAUSE, {"reason": "relay is down"})
    assert response.status_code == 422
    assert "not now" in response.text
    assert set(paused()) == {"mail.news"}
    assert audited() == []


def test_nothing_is_claimed_of_a_paused_queue_and_all_of_it_after(operator: Client, kinds: None) -> None:
    ids = [*accept(2, kind="mail.send"), *accept(2, kind="mail.bounce")]
    operator.post(PAUSE, {"reason": "relay is down"})
    assert lifecycle.claim(ids, worker="w/1.1") == []
    operator.post(RESUME, {"reason": "it is back"})
    assert len(lifecycle.claim(ids, worker="w/1.1")) == 4


def test_htmx_gets_a_dialog_and_then_the_page(operator: Client, kinds: None) -> None:
    dialog = operator.get(PAUSE, headers=HTMX).text
    assert "<html" not in dialog
    assert "Pause all of tier1?" in dialog
    assert "mail.bounce, mail.send" in dialog
    assert "mail.news" not in dialog
    assert 'name="until"' in dialog
    nothing = operator.get(RESUME, headers=HTMX).text
    assert "No job type is paused with it" in nothing
    assert 'name="reason"' not in nothing
    answer = operator.post(PAUSE, {"reason": "x"}, headers=HTMX)
    assert answer.status_code == 200
    assert answer.text.lstrip().startswith('<div class="stack" id="region"')
    assert f'hx-get="{PAGE}"' in answer.text
    assert "tier1 is paused: 2 job types." in answer.text
    assert "tier1: Every job type of it is paused already." in operator.post(PAUSE, {"reason": "x"}, headers=HTMX).text
    assert 'name="until"' not in operator.get(RESUME, headers=HTMX).text
    assert "tier1 goes on: 2 job types resumed." in operator.post(RESUME, {"reason": "x"}, headers=HTMX).text


@pytest.mark.parametrize("url", [PAUSE, RESUME])
def test_who_may(client_of: ClientOf, kinds: None, url: str) -> None:
    assert "<html" in client_of("operator").get(url).text
    assert client_of("viewer").get(url).status_code == 403
    assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
    assert 'id="pause-tier1"' in client_of("operator").get(PAGE).text
    assert 'id="pause-tier1"' not in client_of("viewer").get(PAGE).text
    assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    assert Client().post(url, {"reason": "x"}).status_code == 302
    assert audited() == []
    assert set(paused()) == {"mail.news"}


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"reason": " \x00 "}, "Say why."),
        ({"reason": "x" * 1_001}, "At most 1,000 characters."),
        ({"reason": "x", "until": "2020-01-01T00:00"}, "must be in the future"),
        ({"reason": "x", "until": "tomorrow\x00"}, "This is not a time."),
    ],
)
def test_what_is_refused_says_so(operator: Client, kinds: None, given: dict[str, str], error: str) -> None:
    response = operator.post(PAUSE, given)
    assert response.status_code == 422
    assert re.search(rf'role="alert">[^<]*{error}', response.text)
    assert set(paused()) == {"mail.news"}


def test_unknown_queues_verbs_and_methods(operator: Client, kinds: None) -> None:
    for name in ("tier2", "tier1.gone", "tier9", "celery", "tier1.", "tier1%00", "TIER1", "tier1%0A"):
        assert operator.get(f"{PAGE}{name}/pause/").status_code == 404, name
        assert operator.post(f"{PAGE}{name}/resume/", {"reason": "x"}).status_code == 404, name
    assert operator.get(f"{PAGE}tier1/explode/").status_code == 404
    assert operator.put(PAUSE).status_code == 405


def test_markup_in_a_reason_is_text(operator: Client, kinds: None) -> None:
    operator.post(PAUSE, {"reason": "<img src=x onerror=alert(1)>"})
    for url in (PAGE, "/", "/types/mail.send/"):
        page = operator.get(url).text
        assert "<img src=x" not in page
    set_switch("mail.news", paused=False, reason="", actor="ada")
    operator.post(PAUSE, {"reason": "<img src=x onerror=alert(1)>"})
    assert "Paused by operator: &lt;img src=x" in operator.get(PAGE).text


def test_several_queues_in_one_sentence() -> None:
    def line(queue: str, **values: Any) -> PoolLine:
        return PoolLine(**{"queue": queue, "tier": 1, "types": ["x"], "waiting": 2, **values})

    starved = [line(f"tier1.{n}") for n in range(5)]
    assert heading(starved[:2], live=1) == "tier1.0, tier1.1 have no worker that is well: 4 jobs wait"
    assert heading(starved, live=1) == "tier1.0, tier1.1, tier1.2 and 2 more have no worker that is well: 10 jobs wait"
    hold = Held(type="x", how="paused", by="ada", reason="Pool tier1: why", until=None)
    held = [line(f"tier{n}", workers=1, holds=[hold], held=2) for n in (1, 2)]
    assert heading(held, live=1) == "tier1, tier2 are on hold: 4 jobs wait"
    assert held[0].hold_words == "Paused by ada: why"
    assert heading([line("tier1", workers=1, waiting=0)], live=1) == "Workers keep up: no job waits"
