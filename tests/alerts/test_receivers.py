"""The receivers that the documentation shows, as processes, against real deliveries and forgeries (S-17, S-18)."""

from __future__ import annotations

import datetime as dt
import http.client
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from jobsboard.alerts import endpoints, outbox, signing
from jobsboard.alerts.delivery import Webhooks
from jobsboard.alerts.endpoints import Who
from jobsboard.models import Event, WebhookDelivery, WebhookEndpoint
from tests.alerts.endpoints import make_alert, moved_on
from tests.alerts.receivers import SECRETS, hurry, receiving, settle
from tests.factories import sql

pytestmark = pytest.mark.django_db

EXAMPLES: Final = Path(__file__).resolve().parents[2] / "examples/receivers"
NODE: Final = shutil.which("node") or shutil.which("nodejs")
COMMANDS: Final = {
    "python": [sys.executable, str(EXAMPLES / "receiver.py")],
    "node": [NODE or "", str(EXAMPLES / "receiver.mjs")],
}


class Example:
    """One of the receivers, running, and what it says."""

    def __init__(self, command: Sequence[str], secret: str) -> None:
        env = {"PATH": os.environ["PATH"], "WEBHOOK_SECRET": secret, "PORT": "0"}
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[list[Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        said, self.port = self.next()
        assert said == "listening"
        self.url = f"http://127.0.0.1:{self.port}/hooks"

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def next(self) -> list[Any]:
        """Return the next thing that it says."""
        return self._lines.get(timeout=20)

    def post(self, body: bytes, headers: dict[str, str]) -> tuple[int, list[Any]]:
        """Send a request; return the status and what it said of it."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request("POST", "/hooks", body=body, headers=headers)
        status = connection.getresponse().status
        connection.close()
        return status, self.next()

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        assert self.process.stdout
        self.process.stdout.close()


Start = Callable[[str], Example]


@pytest.fixture(params=sorted(COMMANDS))
def start(request: pytest.FixtureRequest, reachable: None) -> Iterator[Start]:
    """Return a function that starts a receiver with secrets, separated by spaces."""
    if request.param == "node" and NODE is None:
        pytest.skip("NOT RUN: there is no node on this machine, so the Node.js receiver was not tried")
    made: list[Example] = []

    def begin(secret: str) -> Example:
        made.append(Example(COMMANDS[request.param], secret))
        return made[-1]

    yield begin
    for one in made:
        one.close()


SECRET: Final = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY: Final = '{"type":"alert.firing","data":{"id":7,"sequence":2,"title":"Zürich"}}'


def signed(
    body: str = BODY, *, key: str = SECRET, at: dt.datetime | None = None, name: str = "msg_1"
) -> dict[str, str]:
    """Return the headers that we would send."""
    return signing.headers(name, body, keys=[key], at=at or dt.datetime.now(tz=dt.UTC))


def test_what_is_genuine_is_taken_once_and_in_order(start: Start) -> None:
    """A second try is a duplicate, an older state of the alert is no news; both are answered well."""
    example = start(SECRET)
    assert example.post(BODY.encode(), signed()) == (204, ["new", "alert.firing", "Zürich"])
    assert example.post(BODY.encode(), signed())[1][0] == "duplicate"
    older, newer = BODY.replace('"sequence":2', '"sequence":1'), BODY.replace('"sequence":2', '"sequence":3')
    assert example.post(older.encode(), signed(older, name="msg_2")) == (204, ["stale", "alert.firing", "Zürich"])
    assert example.post(newer.encode(), signed(newer, name="msg_3"))[1][0] == "new"
    other = older.replace('"id":7', '"id":8')
    assert example.post(other.encode(), signed(other, name="msg_4"))[1][0] == "new"


def test_what_is_not_genuine_is_refused(start: Start) -> None:
    """S-17: another body, time, secret or id, a cut signature, none at all."""
    example, now = start(SECRET), dt.datetime.now(tz=dt.UTC)
    other = signing.new_secret()
    good = signed()
    refused: list[tuple[bytes, dict[str, str]]] = [
        (BODY.encode() + b" ", good),
        (BODY.replace("7", "8").encode(), good),
        (BODY.encode(), {**good, "webhook-id": "msg_2"}),
        (BODY.encode(), {**good, "webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)}),
        (BODY.encode(), {**good, "webhook-timestamp": "soon"}),
        (BODY.encode(), {**good, "webhook-timestamp": "1e9"}),
        (BODY.encode(), signed(at=now - dt.timedelta(minutes=6))),
        (BODY.encode(), signed(at=now + dt.timedelta(minutes=6))),
        (BODY.encode(), signed(key=other)),
        (BODY.encode(), {**good, "webhook-signature": good["webhook-signature"][:-4]}),
        (BODY.encode(), {**good, "webhook-signature": good["webhook-signature"].removeprefix("v1,")}),
        (BODY.encode(), {**good, "webhook-signature": "v1a" + good["webhook-signature"][2:]}),
        (BODY.encode(), {**good, "webhook-signature": "v1,"}),
        (BODY.encode(), {}),
        *((BODY.encode(), {k: v for k, v in good.items() if k != missing}) for missing in good),
    ]
    for body, headers in refused:
        status, said = example.post(body, headers)
        assert (status, said[0]) == (401, "refused"), (body, headers)
    assert example.post(BODY.encode(), good)[0] == 204


def test_one_of_several_signatures_is_enough(start: Start) -> None:
    """S-18: as during a rotation, whichever of the two secrets the receiver has; and it may hold both."""
    new, now = signing.new_secret(), dt.datetime.now(tz=dt.UTC)
    both = signing.headers("msg_1", BODY, keys=[new, SECRET], at=now)
    assert len(both["webhook-signature"].split(" ")) == 2
    for held in (SECRET, new):
        assert start(held).post(BODY.encode(), both)[0] == 204
    example = start(f"{new} {SECRET}")
    assert example.post(BODY.encode(), signed())[0] == 204
    assert example.post(BODY.encode(), signed(key=new, name="msg_2"))[0] == 204
    assert start(signing.new_secret()).post(BODY.encode(), both)[0] == 401


def test_it_verifies_real_deliveries_through_a_rotation(start: Start) -> None:
    """S-18: from the outbox through the service; with the old secret until its day is over, then no more."""
    service = Webhooks()
    endpoint = receiving("http://127.0.0.1:9/", "example")
    example = start(SECRETS[endpoint.pk])
    point(endpoint, example)
    alert = make_alert(sequence=0, title="Grüße: 28 % late, 3 > 2 & <b>")
    expected = []
    for event in (Event.FIRING, Event.ACKNOWLEDGED, Event.RESOLVED):
        outbox.announce(moved_on(alert, event), event, now=sql("SELECT jobs_now()")[0][0])
        settle(service)
        expected.append(["new", event.value, alert.title])
    assert [example.next() for _ in expected] == expected
    fresh = WebhookEndpoint.objects.get(pk=endpoint.pk)
    secret = endpoints.rotate(endpoint.pk, seen=fresh.secret_at, who=Who(actor="ada"))
    delivery, _ = outbox.send_test(endpoint.pk, actor="ada")
    settle(service)
    assert example.next() == ["new", "alert.test", "Test from Jobsboard"]
    sql("UPDATE jobsboard_webhookendpoint SET secret_old_until = jobs_now() WHERE id = %s", endpoint.pk)
    other, _ = outbox.send_test(endpoint.pk, actor="bob")
    settle(service)
    assert example.next() == ["refused", "no signature fits"]
    newest = start(secret)
    point(endpoint, newest)
    hurry()
    settle(service)
    assert newest.next() == ["new", "alert.test", "Test from Jobsboard"]
    rows = WebhookDelivery.objects.in_bulk([delivery.pk, other.pk])
    assert [rows[row.pk].state for row in (delivery, other)] == ["delivered"] * 2


def point(endpoint: WebhookEndpoint, example: Example) -> None:
    """Give an endpoint another address."""
    wanted = endpoints.Wanted(
        name=endpoint.name, format=endpoint.format, url=example.url, events=endpoint.events,
        least_severity=endpoint.least_severity, every_seconds=endpoint.every_seconds,
    )  # fmt: skip
    assert endpoints.change(endpoint.pk, wanted, who=Who(actor="ada"))


def snippet(language: str) -> str:
    """Return the verifier that docs/webhooks.md shows in a language."""
    text = (EXAMPLES.parents[1] / "docs/webhooks.md").read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found
    return found[1]


def test_the_lines_in_the_documentation_verify() -> None:
    """S-17: what people copy from docs/webhooks.md, in both languages."""
    good, other = signed(), signed(key=signing.new_secret())
    cases = [(good, BODY), ({**good, "webhook-signature": f"v1,AAAA {good['webhook-signature']}"}, BODY)]
    bad = [(other, BODY), (good, BODY + " "), ({**good, "webhook-signature": good["webhook-signature"][:-3]}, BODY)]
    for headers, body in (*cases, *bad):
        scope: dict[str, Any] = {"headers": headers, "body": body.encode(), "secret": SECRET}
        exec(f"import base64, hmac, time\n{snippet('python')}", scope)  # noqa: S102 (our own document)
        assert (scope["fits"], scope["recent"]) == ((headers, body) in cases, True)
    if NODE is None:
        pytest.skip("NOT RUN: there is no node on this machine, so the JavaScript lines were not tried")
    for headers, body in (*cases, *bad):
        begin = 'const { createHmac, timingSafeEqual } = require("node:crypto");'
        words = [json.dumps(one) for one in (headers, body, SECRET)]
        given = "const headers = {}, body = Buffer.from({}), secret = {};".format(*words)
        code = f"{begin}{given}{snippet('js')};process.stdout.write(JSON.stringify([fits, recent]))"
        done = subprocess.run([NODE, "-e", code], capture_output=True, text=True, check=True, timeout=20)
        assert json.loads(done.stdout) == [(headers, body) in cases, True]
