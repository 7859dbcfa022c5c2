"""Probes through the whole path: a real worker, scheduler and web, and the demo's four downstreams, each stopped once.

The downstreams are the demo's own servers on real sockets, without their moods: chance would decide the test.
"""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.test import Client, override_settings

from jobsboard.demo import crm_moods, mail_server, partner, place, reconcile
from jobsboard.demo.crm import Callbacks, Crm
from jobsboard.demo.crm_moods import Mood
from jobsboard.demo.crm_server import PATH, Server
from jobsboard.demo.journal import Journal
from jobsboard.demo.mail_server import Behaviour
from jobsboard.demo.reconcile import BILLING, CRM, DIGEST, SCORING, WELCOME
from jobsboard.demo.world import World
from jobsboard.local import ports
from jobsboard.management.commands.demo_crm import PROVIDER_PATH
from queues import contracts, outcomes, probes
from queues.accept import enqueue
from queues.models import (
    Job,
    JobType,
    OutcomeBuckets,
    OutcomeDelta,
    OutcomeRollup,
    Probe,
    ProbeRun,
    Schedule,
    StateCount,
    SuspectedDuplicate,
)
from queues.outcomes import JobFilter, Span
from queues.outcomes.causes import explain_type
from queues.states import OPEN, WAITING_PROBES
from tests.acceptance.conftest import Stack
from tests.acceptance.fleet import Fleet
from tests.factories import sql
from tests.metrics.page import TOKEN, scrape

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(240)]

WINDOW: Final = 6
"""Seconds that a probe has. Its downstream answers within two."""
SLACK: Final = 15
SECRETS: Final = {
    name: "whsec_" + base64.b64encode(name.lower().encode().ljust(32, b".")).decode()
    for name in ("CRM_SECRET", "CRM_CALLBACK_SECRET")
}
PAYLOADS: Final[dict[str, dict[str, Any]]] = {
    WELCOME: {"user_id": 7, "email": "customer-7@example.org"},
    CRM: {"user_id": 7, "email": "customer-7@example.org"},
    SCORING: {"user_id": 7, "seats": 2, "visits": 3},
    BILLING: {"invoice_id": "INV-000007", "amount_cents": 4200},
}
# Of /metrics what speaks of jobs; the others are about processes and the clock.
TYPES: Final = (WELCOME, CRM, SCORING, BILLING)
"""The demo's types that ask for probes."""
_NOT_BUSINESS: Final = re.compile(r"jobsboard_(probe_|worker_|queue_workers|schedulers?(_|$)|rollup_age|up$)|django_")


class Downstreams:
    """The demo's mail server, CRM, billing partner and the place where scores are written; each stops and starts."""

    def __init__(self, public_url: str) -> None:
        self.public_url = public_url
        self.crm_port = ports.free()
        self._ends: dict[str, Callable[[], None]] = {}
        self._starts = {WELCOME: self._mail, CRM: self._crm, BILLING: self._partner, SCORING: self._scores}

    @property
    def crm_url(self) -> str:
        return f"http://{ports.LOOPBACK}:{self.crm_port}{PATH}"

    def start(self, name: str) -> None:
        self._ends[name] = self._starts[name]()

    def stop(self, name: str) -> None:
        self._ends.pop(name)()

    def close(self) -> None:
        for end in self._ends.values():
            end()

    def _mail(self) -> Callable[[], None]:
        loop, stop = asyncio.new_event_loop(), asyncio.Event()
        (place.directory() / "mail.json").unlink(missing_ok=True)
        thread = threading.Thread(target=lambda: loop.run_until_complete(mail_server.serve(stop)))
        thread.start()
        while not (place.directory() / "mail.json").exists():
            thread.join(0.01)
            assert thread.is_alive()

        def end() -> None:
            loop.call_soon_threadsafe(stop.set)
            thread.join(10)
            loop.close()

        return end

    def _crm(self) -> Callable[[], None]:
        log, stop = Journal(place.crm_log()), threading.Event()
        callbacks = Callbacks(log, secret=SECRETS["CRM_CALLBACK_SECRET"])
        crm = Crm(log, callbacks, secret=SECRETS["CRM_SECRET"], provider_url=self.public_url + PROVIDER_PATH)
        server = Server(crm, socket.create_server((ports.LOOPBACK, self.crm_port)))
        threads = [
            threading.Thread(target=callbacks.run, args=(stop,)),
            threading.Thread(target=server.serve_forever, args=(0.05,)),
        ]
        for thread in threads:
            thread.start()

        def end() -> None:
            stop.set()
            server.shutdown()
            server.server_close()
            for thread in threads:
                thread.join(10)

        return end

    def _partner(self) -> Callable[[], None]:
        stop = threading.Event()
        thread = threading.Thread(target=partner.run, args=(stop,))
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(10)

        return end

    def _scores(self) -> Callable[[], None]:
        """Nobody listens there: it is broken by what its handler needs, a file that it can write."""
        log, aside = place.score_log(), place.score_log().with_suffix(".aside")
        if log.is_dir():
            log.rmdir()
        if aside.exists():
            shutil.move(aside, log)

        def end() -> None:
            if log.exists():
                shutil.move(log, aside)
            log.mkdir()

        return end


@pytest.fixture
def downstreams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Downstreams]:
    """All four, up, in a demo directory of their own."""
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "demo"))
    calm = Behaviour(delay=(0.0, 0.0), deferred=0.0, refused=0.0, answer_lost=0.0, search_fails=0.0)
    monkeypatch.setattr(mail_server, "behaviour", lambda: calm)
    monkeypatch.setattr(crm_moods, "of", lambda kind: Mood(busy=0.0, lost_answers=0.0, fates={}))
    monkeypatch.setattr(partner, "delay_of", lambda key: 0.2)
    made = Downstreams(f"http://{ports.LOOPBACK}:{ports.free()}")
    for name in TYPES:
        made.start(name)
    yield made
    made.close()


def _business(viewer: Client) -> dict[str, Any]:
    """Return every number and every list that is about the business, and what the overview says needs attention."""
    board = outcomes.board()
    types = list(board.types)
    span = Span.of("1h", now=board.now, folded_at=board.folded_at)
    found = {name: explain_type(name, board=board, span=span, broker=True) for name in types}
    page = viewer.get("/").text.split('id="h-att"')[1].split("</section>")[0]
    lines = re.findall(r"<b title=[^>]+>([^<]+)</b>", page)
    return {
        "rollups": sorted(OutcomeRollup.objects.values_list(), key=str),
        "buckets": sorted(OutcomeBuckets.objects.values_list(), key=str),
        # A probe is counted as one while it waits, and as nothing else.
        "states": sorted(StateCount.objects.exclude(n=0).exclude(state=WAITING_PROBES).values_list()),
        "signs": list(SuspectedDuplicate.objects.values_list()),
        "jobs": [row.id for row in outcomes.jobs(JobFilter(), types=types, counts={}).rows],
        "dead": [row.id for row in outcomes.jobs(JobFilter(dead_letters=True), types=types, counts={}).rows],
        "causes": {name: why and (why.state, [(c.code, c.verdict) for c in why.causes]) for name, why in found.items()},
        # A probe that fails is a line of its own, and may fire an alert, which is one as well.
        "attention": [line for line in lines if not re.search("probe|alert", line)],
        "metrics": {key: n for key, n in scrape().items() if not _NOT_BUSINESS.match(key[0])},
    }


def _some_business(stack: Stack) -> None:
    """Let customers' jobs end, one of them badly, and their numbers be folded."""
    for name, payload in PAYLOADS.items():
        enqueue(name, payload)
    refused = enqueue(BILLING, {"invoice_id": "INV-000008", "amount_cents": partner.LIMIT_CENTS + 1})
    stack.until(lambda: not Job.objects.filter(state__in=OPEN).exists(), seconds=60)
    assert stack.states() == {"confirmed": 4, "dead": 1}
    assert Job.objects.get(state="dead").id == refused.job_id
    _folded(stack)


def _folded(stack: Stack) -> None:
    stack.until(lambda: not OutcomeDelta.objects.exists(), seconds=20)


def _settled(stack: Stack, ids: dict[str, int]) -> dict[str, str]:
    """Wait for runs; return how each went, by type."""
    mine = ProbeRun.objects.filter(id__in=ids.values())
    stack.until(lambda: not mine.filter(outcome="running").exists(), seconds=WINDOW + SLACK)
    stack.until(lambda: not Job.objects.filter(state__in=OPEN).exists(), seconds=SLACK)
    _folded(stack)
    return dict(mine.values_list("type", "outcome"))


def test_each_probe_tells_of_its_own_downstream_and_nothing_else_changes(
    stack: Stack, downstreams: Downstreams
) -> None:
    """Issue E, must show 4: a probe of each demo type fails when its downstream is stopped, and only it goes red."""
    stack.env |= {
        **SECRETS,
        place.VARIABLE: str(place.directory()),
        "JOBSBOARD_HANDLERS": "jobsboard.demo.handlers",
        "OUTBOUND_ALLOWED_CIDRS": "127.0.0.1/32",
        "PUBLIC_URL": downstreams.public_url,
    }
    sql("DELETE FROM queues_contractrevision")
    JobType.objects.all().delete()
    call_command("demo_contracts", crm_url=downstreams.crm_url, stdout=StringIO(), stderr=StringIO())
    # What the clock enqueues would change numbers meanwhile.
    Schedule.objects.all().delete()
    JobType.objects.filter(name=DIGEST).delete()
    assert set(JobType.objects.values_list("name", "probe_every_seconds")) == {(name, 60) for name in TYPES}
    # Windows of customers' jobs that do not pass meanwhile, so that the clock changes no number; no probes so far.
    JobType.objects.update(window_seconds=3600, probe_every_seconds=0, check_every_seconds=1)
    contracts.forget()
    fleet = Fleet(stack)
    with fleet.together():
        fleet.scheduler()
        fleet.worker(concurrency=4, queue="tier1,tier2,tier3")
        fleet.web(int(downstreams.public_url.rpartition(":")[2]))
    viewer = Client()
    viewer.force_login(User.objects.create_superuser("probes-viewer"))
    with override_settings(METRICS_TOKEN=TOKEN):
        _some_business(stack)
        # A failed attempt is the last one, so that a probe that fails is a dead job, and no dead letter.
        JobType.objects.update(window_seconds=WINDOW, max_attempts=1)
        contracts.forget()
        before = _business(viewer)
        assert before["attention"] == ["1 billing.handoff job is dead"]
        JobType.objects.update(probe_every_seconds=3600)
        stack.until(lambda: Probe.objects.count() == len(TYPES), seconds=SLACK)
        # Each is sent within five seconds; here nobody waits for them.
        sql("UPDATE queues_probe SET next_at = jobs_now() WHERE last_at IS NULL")
        stack.until(lambda: ProbeRun.objects.filter(outcome="passed").count() == len(TYPES), seconds=WINDOW + SLACK)
        assert set(ProbeRun.objects.values_list("type", "by")) == {(name, "") for name in TYPES}, "by the schedule"
        _folded(stack)
        assert _changed(before, _business(viewer)) == {}
        for broken in TYPES:
            downstreams.stop(broken)
            sent = {name: probes.run_now(name, actor="ann", reason="test").run_id for name in TYPES}
            assert _changed(before, _business(viewer)) == {}, "while they are under way"
            assert _settled(stack, sent) == {name: "failed" if name == broken else "passed" for name in TYPES}
            assert _changed(before, _business(viewer)) == {}, f"{broken} was stopped"
            _only_its_own_line(viewer, broken)
            # In the next round it passes again: only one of them ever fails.
            downstreams.start(broken)
    _downstreams_knew(stack)
    fleet.end()


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs, by name; of what has parts the parts."""
    found = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    return {
        name: {key: (old.get(key), new.get(key)) for key in {*old, *new} if old.get(key) != new.get(key)}
        if isinstance(old, dict)
        else (old, new)
        for name, (old, new) in found.items()
    }


def _only_its_own_line(viewer: Client, broken: str) -> None:
    page = viewer.get("/").text
    assert set(re.findall(r"The probe of ([\w.]+) fails", page)) == {broken}
    assert re.findall(r'<tr id="probe-([\w.]+)" class="breach">', viewer.get("/probes/").text) == [broken]
    told = {dict(key[1])["type"]: n for key, n in scrape().items() if key[0] == "jobsboard_probe_success"}
    assert told == {name: float(name != broken) for name in TYPES}


def _downstreams_knew(stack: Stack) -> None:
    """Whoever got a probe was told so, and the demo's reconciliation agrees, count by count."""
    jobs: dict[UUID, str] = dict(Job.objects.filter(probe=True).values_list("id", "idempotency_key"))
    assert len(jobs) == 5 * len(TYPES) == ProbeRun.objects.count()
    # Three of the broken four never arrived; the invoice was handed over and never booked.
    stack.until(lambda: len(World.now().probes) == len(jobs) - 3, seconds=SLACK)
    world = World.now()
    assert world.probes <= set(jobs.values())
    rows = reconcile.compare(world, reconcile.jobs(), World.now(), kept=reconcile.inbox())
    assert [row.what for row in rows if row.wrong] == []
    [proven] = [row for row in rows if row.what.startswith("probes confirmed")]
    assert (proven.outside, proven.board) == (len(jobs) - 4, len(jobs) - 4)
