"""A downstream that does known work twice, in different ways: the board and the API name what evidence can show.

Issue D, "must show" 4. The downstream's own ledger is the truth that they are held against.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final
from uuid import UUID

import pytest
from django.contrib.auth.models import Group, User
from django.test import Client

from jobsboard.api.keys import issue_key
from jobsboard.local import ports
from jobsboard.testing import expire_lease
from queues import outcomes
from queues.accept import Item, enqueue_many
from queues.contract_switches import set_switch
from queues.models import Job
from tests.acceptance.conftest import Stack
from tests.acceptance.fleet import Fleet
from tests.acceptance.twice_jobs import CHECKED, ONCE, PAY
from tests.factories import fold_all, make_type, sql

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

SHOP, ORDER = "twice.shop", "twice.order"
BLIND, SECOND, CONTRADICTION, AFTER = (
    "blind_attempt", "second_reference", "contradiction", "confirmed_after_rejection",
)  # fmt: skip
PLAIN: Final = 15
"""Keys of each type that nothing odd happens to."""

# Way → type, signs that evidence can show, effects that the downstream had.
WAYS: Final[Mapping[str, tuple[str, frozenset[str], int]]] = {
    "killed": (PAY, frozenset({BLIND}), 2),
    "killed, checked": (CHECKED, frozenset(), 1),
    "broken": (SHOP, frozenset({BLIND}), 2),
    "held": (SHOP, frozenset({BLIND}), 2),
    "two references": (ORDER, frozenset({SECOND}), 2),
    "rejects, confirms": (ORDER, frozenset({AFTER}), 1),
    "confirms, rejects": (ORDER, frozenset({CONTRADICTION}), 1),
    "silent": (PAY, frozenset(), 2),
    "silent, called back": (ORDER, frozenset(), 2),
    "overtaken": (PAY, frozenset({BLIND, SECOND}), 2),
    "saved": (ONCE, frozenset(), 1),
}
WAITS: Final = frozenset({"overtaken", "saved"})
"""Whose first answer waits until the test lets it go."""


class Downstream(ThreadingHTTPServer):
    """Does what it is asked, as often as its way says, and writes each effect down."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.ledger: list[tuple[str, str]] = []
        """(key, reference) of each effect, in order."""
        self.asked: Counter[str] = Counter()
        self.answers: defaultdict[str, threading.Event] = defaultdict(threading.Event)
        self.callers: list[threading.Thread] = []
        self.lock = threading.Lock()
        self.wrong: list[str] = []
        """What callbacks were answered that were not taken."""

    def apply(self, key: str) -> str:
        """Have the effect, and return the reference of it."""
        with self.lock:
            ref = f"{key}-{sum(1 for known, _ in self.ledger if known == key) + 1}"
            self.ledger.append((key, ref))
            return ref

    def effects(self) -> Counter[str]:
        """Count the effects of each key."""
        with self.lock:
            return Counter(key for key, _ in self.ledger)

    def call_back(self, url: str, said: list[dict[str, Any]]) -> None:
        """Say things about a job, one after the other, after the answer."""
        thread = threading.Thread(target=self._call_back, args=(url, said), daemon=True)
        self.callers.append(thread)
        thread.start()

    def _call_back(self, url: str, said: list[dict[str, Any]]) -> None:
        parts = urllib.parse.urlsplit(url)
        for one in said:
            connection = http.client.HTTPConnection(parts.netloc, timeout=60)
            with contextlib.closing(connection):
                headers = {"Content-Type": "application/json"}
                connection.request("POST", parts.path, json.dumps(one), headers)
                answer = connection.getresponse()
                if answer.status != 200:
                    self.wrong.append(f"{answer.status} {answer.read()[:300]!r}")


class _Handler(BaseHTTPRequestHandler):
    server: Downstream

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Say what is known of a key."""
        key = urllib.parse.unquote(self.path.rpartition("/")[2])
        with self.server.lock:
            self._answer(200, {"ref": next((ref for known, ref in self.server.ledger if known == key), None)})

    def do_POST(self) -> None:
        """Do the work, in the way that its key asks for."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key, way = asked["key"], asked["way"]
        with self.server.lock:
            self.server.asked[key] += 1
            first = self.server.asked[key] == 1
        if self.path == "/order":
            self._order(key, way)
            return
        ref = self.server.apply(key)
        if way == "silent":
            self.server.apply(key)
        if first and way.startswith("killed"):
            os.kill(asked["pid"], signal.SIGKILL)
            return
        if first and way in WAITS | {"held"}:
            self.server.answers[key].wait(60)
        if first and way in ("broken", "held"):
            self.close_connection = True
            return
        self._answer(200, {"ref": ref})

    def _order(self, key: str, way: str) -> None:
        ref = self.server.apply(key)
        yes: dict[str, Any] = {"outcome": "confirmed", "ref": ref}
        no = {"outcome": "rejected", "detail": "out of stock"}
        said = {"rejects, confirms": [no, yes], "confirms, rejects": [yes, no]}.get(way, [yes, yes])
        if way == "two references":
            said = [yes, {"outcome": "confirmed", "ref": self.server.apply(key)}]
        elif way.startswith("silent"):
            self.server.apply(key)
        self._answer(202, {})
        self.server.call_back(self.headers["Jobsboard-Callback-Url"], said)

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        with contextlib.suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)


@pytest.fixture
def downstream(stack: Stack) -> Iterator[Downstream]:
    """The service that the work goes to."""
    with Downstream() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        (stack.folder / "downstream.address").write_text(server.url.removeprefix("http://"))
        try:
            yield server
        finally:
            for event in server.answers.values():
                event.set()
            server.shutdown()


@pytest.fixture
def fleet(stack: Stack, downstream: Downstream) -> Iterator[tuple[Fleet, int]]:
    """A web process, a scheduler and a worker, and the port of the first."""
    quick: dict[str, Any] = {"success": "reference", "backoff": "fixed", "backoff_base_seconds": 0.1}
    quick |= {"lease_seconds": 60, "key_template": "{key}", "key_required": True}
    by_http = {"handler": "http", "target_secret_env": "TWICE_SECRET"}
    for name in (PAY, CHECKED, ONCE):
        make_type(name, **quick)
    make_type(SHOP, **{**quick, **by_http, "target_url": f"{downstream.url}/shop", "soft_limit_seconds": 2})
    make_type(ORDER, **{**quick, **by_http, "target_url": f"{downstream.url}/order", "success": "callback"})
    port = ports.free()
    env = {
        "JOBSBOARD_HANDLERS": "tests.acceptance.twice_jobs",
        "TWICE_SECRET": "a secret of this test",
        "OUTBOUND_ALLOWED_CIDRS": "127.0.0.0/8",
        "PUBLIC_URL": f"http://127.0.0.1:{port}",
    }
    made = Fleet(stack, env=env)
    with made.together():
        made.scheduler()
        made.web(port)
        made.worker(concurrency=4)
    yield made, port
    made.end()


def _send() -> dict[str, UUID]:
    """Accept the work: each way once, and plain keys among it. Shape: key → job."""
    items = [Item(type=kind, payload={"key": way, "way": way}) for way, (kind, _, _) in WAYS.items()]
    for number in range(PLAIN):
        for kind in (PAY, CHECKED, SHOP, ORDER):
            items.append(Item(type=kind, payload={"key": f"{kind} {number}", "way": "plain"}))
    receipts = enqueue_many(items)
    return {item.payload["key"]: receipt.job_id for item, receipt in zip(items, receipts, strict=True)}


def _signs(port: int, key: str) -> list[dict[str, Any]]:
    """Read the whole list over HTTP, page by page."""
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = urllib.parse.urlencode({"limit": 4, **({"cursor": cursor} if cursor else {})})
        with contextlib.closing(http.client.HTTPConnection(ports.LOOPBACK, port, timeout=60)) as connection:
            headers = {"Authorization": f"Bearer {key}"}
            connection.request("GET", f"/api/v1/suspected-duplicates?{query}", headers=headers)
            body = json.load(connection.getresponse())
        found += body["items"]
        cursor = body["next"]
        if cursor is None:
            return found


def _listed(client: Client, kind: str) -> Counter[tuple[str, str]]:
    """Read the page of a type. Shape: (end of the job's id, kind) → how often."""
    found: Counter[tuple[str, str]] = Counter()
    for sign in (BLIND, SECOND, CONTRADICTION, AFTER):
        text = client.get(f"/types/{kind}/twice/?kind={sign}").text
        for row in text.split('<tr id="sign-')[1:]:
            found[row.split('href="/jobs/')[1].split("/")[0], sign] += 1
    return found


def test_the_page_finds_what_evidence_can_show(stack: Stack, downstream: Downstream, fleet: tuple[Fleet, int]) -> None:
    """Issue D, must show 4; I-09 for the run whose word saves the next one."""
    _, port = fleet
    key = issue_key(label="reader", scopes=["jobs:read"], type_patterns=["twice.*"])[1]
    jobs = _send()

    # Both first runs hang in the downstream, and their leases are lost there.
    stack.until(lambda: all(downstream.asked[way] for way in WAITS), seconds=30)
    set_switch(ONCE, actor="test", reason="so that no next run begins", paused=True)
    for way in sorted(WAITS):
        expire_lease(jobs[way])
    stack.until(lambda: _state(jobs["overtaken"]) == "confirmed", seconds=30)
    assert (_state(jobs["saved"]), downstream.effects()["saved"]) == ("retrying", 1)
    for way in WAITS:
        downstream.answers[way].set()
    stack.until(lambda: _state(jobs["saved"]) == "confirmed", seconds=30)
    set_switch(ONCE, actor="test", reason="go on", paused=False)

    stack.until(lambda: not Job.objects.open().exists(), seconds=60)
    for caller in downstream.callers:
        caller.join(60)
        assert not caller.is_alive()
    assert downstream.wrong == []
    stack.until(lambda: SECOND in _kinds_of(jobs["overtaken"]), seconds=30)

    # The truth, as the downstream tells it.
    effects = downstream.effects()
    assert {way: effects[way] for way in WAYS} == {way: n for way, (_, _, n) in WAYS.items()}
    assert {effects[one] for one in jobs if one not in WAYS} == {1}

    names = {str(job_id): one for one, job_id in jobs.items()}
    expected = Counter((way, sign) for way, (_, signs, _) in WAYS.items() for sign in signs)
    told = _signs(port, key)
    assert Counter((names[sign["job_id"]], sign["kind"]) for sign in told) == expected
    second = {names[s["job_id"]]: {s["known"], s["said"]} for s in told if s["kind"] == SECOND}
    assert second == {
        "two references": {"two references-1", "two references-2"},
        "overtaken": {"overtaken-1", "overtaken-2"},
    }

    client = _viewer()
    shown: Counter[tuple[str, str]] = Counter()
    for kind in (PAY, CHECKED, SHOP, ORDER, ONCE):
        shown += _listed(client, kind)
    assert Counter({(names[job_id], sign): n for (job_id, sign), n in shown.items()}) == expected

    # And what the card counts is what the list has.
    fold_all()
    stack.until(lambda: outcomes.add(outcomes.totals().counts.values()).suspected == len(told), seconds=10)
    card = client.get(f"/types/{ORDER}/").text.split('id="twice"')[1].split("</section>")[0]
    assert "3 strong signs." in card
    assert "Nothing that can be seen here says so" in client.get(f"/types/{CHECKED}/").text


def _state(job_id: UUID) -> str:
    return str(Job.objects.values_list("state", flat=True).get(id=job_id))


def _kinds_of(job_id: UUID) -> set[str]:
    return {kind for (kind,) in sql("SELECT kind FROM queues_suspectedduplicate WHERE job_id = %s", job_id)}


def _viewer() -> Client:
    person = User.objects.create_user("viewer")
    person.groups.set([Group.objects.get_or_create(name="viewer")[0]])
    client = Client()
    client.force_login(person)
    return client
