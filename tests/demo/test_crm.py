"""The CRM: who may send, what is done once, what is called back and how often."""

from __future__ import annotations

import datetime as dt
import heapq
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from django.test import override_settings
from standardwebhooks import Webhook

from jobsboard.demo import crm_moods, place
from jobsboard.demo.crm import Answer, AnswerLost, Callbacks, Crm, Refused
from jobsboard.demo.crm_moods import FATES, MOODS, Mood
from jobsboard.demo.crm_server import Server
from jobsboard.demo.journal import Journal, Line, read
from queues import http_target
from queues.handlers import AwaitingConfirmation, Confirmed, RetryLater
from queues.outbound import OutboundError
from tests.demo.conftest import MakeContext

SECRET = "whsec_" + "c2VjcmV0LW9mLXRoZS1qb2JzLWJvYXJkLXRlc3Rz"
CALLBACK_SECRET = "whsec_" + "c2VjcmV0LW9mLXRoZS1jcm0tZm9yLXRoZS10ZXN0cw"
PROVIDER = "http://127.0.0.1:8000/api/v1/callbacks/crm.sync_contact"
TOKEN_URL = "http://127.0.0.1:8000/api/v1/callbacks/jobs/token"
KEY = "jb_" + "2" * 32


class Inbox:
    """Stands for Jobsboard: takes callbacks, and answers as it is told."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any], Mapping[str, str]]] = []
        self.answers: list[int] = []

    def post(self, url: str, body: str, headers: Mapping[str, str]) -> Answer:
        self.got.append((url, json.loads(body), headers))
        status = self.answers.pop(0) if self.answers else 200
        if status == 0:
            raise ConnectionRefusedError
        return status, {"applied": True}


def mood(fate: str = "", **overrides: Any) -> Mood:
    values: dict[str, Any] = {"busy": 0.0, "lost_answers": 0.0, "fates": {fate: 1.0} if fate else {}}
    return Mood(**{**values, "draw": random.Random(7), **overrides})


@pytest.fixture
def feel(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mood], None]:
    """Return a function that puts the CRM into a mood."""

    def set_mood(wanted: Mood) -> None:
        monkeypatch.setattr(crm_moods, "of", lambda kind: wanted)

    monkeypatch.setattr(crm_moods, "SIGNED_SHARE", 0.0)
    set_mood(mood())
    return set_mood


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


@pytest.fixture
def callbacks(inbox: Inbox) -> Callbacks:
    return Callbacks(Journal(place.crm_log()), secret=CALLBACK_SECRET, post=inbox.post)


@pytest.fixture
def crm(callbacks: Callbacks, feel: Callable[[Mood], None]) -> Crm:
    return Crm(callbacks.log, callbacks, secret=SECRET, provider_url=PROVIDER)


def request(key: str = KEY, *, secret: str = SECRET, body: str = "{}") -> tuple[dict[str, str], bytes]:
    now = dt.datetime.now(tz=dt.UTC)
    headers = {
        "webhook-id": "job-1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("job-1", now, body),
        "idempotency-key": key,
        "jobsboard-job-id": "job-1",
        "jobsboard-attempt": "1",
        "jobsboard-callback-url": TOKEN_URL,
    }
    return headers, body.encode()


def events(*names: str) -> list[Line]:
    return [line for line in read(place.crm_log()) if line["event"] in names]


def send_all(callbacks: Callbacks) -> None:
    """Send what is planned, whenever it is due."""
    while callbacks._heap:
        _, number, tries, callback = heapq.heappop(callbacks._heap)
        callbacks.send(number, tries, callback)


def test_a_signed_request_is_done_and_called_back(crm: Crm, callbacks: Callbacks, inbox: Inbox) -> None:
    status, said = crm.receive(*request())
    assert status == 202
    send_all(callbacks)
    ((url, body, _),) = inbox.got
    assert (url, body) == (TOKEN_URL, {"ref": said["ref"], "outcome": "confirmed"})
    assert [line["event"] for line in read(place.crm_log())] == [
        "received", "effect", "planned", "calling", "delivered",
    ]  # fmt: skip


def test_another_secret_is_refused_and_nothing_is_done(crm: Crm) -> None:
    for headers in (request(secret=CALLBACK_SECRET)[0], {**request()[0], "webhook-signature": "v1"}, {}):
        with pytest.raises(Refused) as refused:
            crm.receive(headers, b"{}")
        assert refused.value.status == 401
    assert events("received", "effect") == []


def test_a_request_without_a_key_is_refused(crm: Crm) -> None:
    with pytest.raises(Refused) as refused:
        crm.receive(*request(""))
    assert refused.value.status == 400


def test_a_second_copy_is_not_done_again_and_called_back_again(crm: Crm, callbacks: Callbacks, inbox: Inbox) -> None:
    answers = [crm.receive(*request()) for _ in range(3)]
    assert len({said["ref"] for _, said in answers}) == 1
    send_all(callbacks)
    assert len(inbox.got) == 3
    assert (len(events("effect")), len(events("repeat"))) == (1, 2)


def test_copies_that_arrive_at_once_have_one_effect(crm: Crm) -> None:
    threads = [threading.Thread(target=lambda: crm.receive(*request())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(events("effect")) == 1


def test_a_restart_knows_its_contacts_and_sends_what_was_planned(crm: Crm, inbox: Inbox) -> None:
    _, said = crm.receive(*request())
    log = Journal(place.crm_log())
    later = Callbacks(log, secret=CALLBACK_SECRET, post=inbox.post)
    again = Crm(log, later, secret=SECRET, provider_url=PROVIDER)
    assert again.receive(*request())[1] == said
    send_all(later)
    assert len(inbox.got) == 2
    assert len(events("effect")) == 1
    assert Callbacks(log, secret=CALLBACK_SECRET)._heap == []
    numbers = [line["number"] for line in events("planned")]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize(
    ("fate", "outcomes", "effects"),
    [
        ("prompt", ["confirmed"], 1),
        ("slow", ["confirmed"], 1),
        ("late", ["confirmed"], 1),
        ("never", [], 1),
        ("twice", ["confirmed", "confirmed"], 1),
        ("changes_its_mind", ["confirmed", "rejected"], 1),
        ("rejects_too_soon", ["rejected", "confirmed"], 1),
        ("rejected", ["rejected"], 0),
        ("retryable", ["rejected"], 0),
    ],
)
def test_each_fate(
    crm: Crm,
    callbacks: Callbacks,
    inbox: Inbox,
    feel: Callable[[Mood], None],
    fate: str,
    outcomes: list[str],
    effects: int,
) -> None:
    feel(mood(fate))
    crm.receive(*request())
    send_all(callbacks)
    assert [body["outcome"] for _, body, _ in inbox.got] == outcomes
    assert [body["retryable"] for _, body, _ in inbox.got if body["outcome"] == "rejected"] == [
        fate == "retryable" for outcome in outcomes if outcome == "rejected"
    ]
    assert len(events("effect")) == effects


def test_what_is_rejected_for_good_stays_so_and_what_is_busy_is_tried_again(
    crm: Crm, callbacks: Callbacks, inbox: Inbox, feel: Callable[[Mood], None]
) -> None:
    for key, fate in (("jb_a", "rejected"), ("jb_b", "retryable")):
        feel(mood(fate))
        crm.receive(*request(key))
        feel(mood())
        crm.receive(*request(key))
    send_all(callbacks)
    said = {key: [line["outcome"] for line in events("planned") if line["key"] == key] for key in ("jb_a", "jb_b")}
    assert said == {"jb_a": ["rejected", "rejected"], "jb_b": ["rejected", "confirmed"]}
    assert len(inbox.got) == 4
    assert [line["key"] for line in events("effect")] == ["jb_b"]


def test_a_provider_signs_what_it_sends_in_its_own_name(
    crm: Crm, callbacks: Callbacks, inbox: Inbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crm_moods, "SIGNED_SHARE", 1.0)
    crm.receive(*request())
    send_all(callbacks)
    ((url, body, headers),) = inbox.got
    assert url == PROVIDER
    assert Webhook(CALLBACK_SECRET).verify(json.dumps(body), dict(headers)) == body


def test_a_callback_without_a_2xx_is_sent_again_and_given_up_at_last(
    crm: Crm, callbacks: Callbacks, inbox: Inbox
) -> None:
    inbox.answers = [0, 500, 404]
    crm.receive(*request())
    send_all(callbacks)
    assert [(line["event"], line.get("status")) for line in events("failed", "delivered")] == [
        ("failed", 0), ("failed", 500), ("failed", 404), ("delivered", 200),
    ]  # fmt: skip
    inbox.answers = [503] * 20
    crm.receive(*request("jb_other"))
    send_all(callbacks)
    assert [line["key"] for line in events("gave_up")] == ["jb_other"]


def test_in_a_storm_it_is_busy_and_loses_answers(crm: Crm, feel: Callable[[Mood], None]) -> None:
    feel(mood(busy=1.0))
    with pytest.raises(Refused) as refused:
        crm.receive(*request())
    assert (refused.value.status, refused.value.retry_after > 0) == (503, True)
    assert events("effect") == []
    feel(mood(lost_answers=1.0))
    with pytest.raises(AnswerLost):
        crm.receive(*request())
    assert len(events("effect")) == len(events("planned")) == 1


def question(key: str = KEY, *, secret: str = SECRET) -> tuple[dict[str, str], str]:
    """Return what Jobsboard asks with: the path and query are what is signed."""
    target = f"/contacts?idempotency_key={key}"
    return request(key, secret=secret, body=target)[0], target


def test_it_can_be_asked_whether_it_has_a_contact(crm: Crm, feel: Callable[[Mood], None]) -> None:
    assert crm.look_up(*question()) == (200, {"outcome": "unknown"})
    _, said = crm.receive(*request())
    assert crm.look_up(*question()) == (200, {"outcome": "confirmed", "ref": said["ref"]})
    feel(mood("rejected"))
    crm.receive(*request("jb_other"))
    assert crm.look_up(*question("jb_other")) == (200, {"outcome": "rejected", "detail": crm_moods.BLOCKED})
    feel(mood("retryable"))
    crm.receive(*request("jb_again"))
    assert crm.look_up(*question("jb_again")) == (200, {"outcome": "unknown"}), "nothing was done"
    assert [(line["key"], line["outcome"]) for line in events("told")] == [
        (KEY, "confirmed"), ("jb_other", "rejected"),
    ]  # fmt: skip


def test_who_asks_must_sign_and_a_busy_crm_says_nothing(crm: Crm, feel: Callable[[Mood], None]) -> None:
    for headers, target in (question(secret=CALLBACK_SECRET), (question()[0], "/contacts?idempotency_key=jb_other")):
        with pytest.raises(Refused) as refused:
            crm.look_up(headers, target)
        assert refused.value.status == 401
    feel(mood(search_fails=1.0))
    with pytest.raises(Refused) as refused:
        crm.look_up(*question())
    assert refused.value.status == 503


def test_moods_are_chances() -> None:
    for kind in MOODS.values():
        assert sum(kind.fates.values()) < 1.0
        assert kind.fates.keys() <= FATES.keys()
    draw = replace(MOODS["storm"], draw=random.Random(1))
    drawn = Counter(draw._name() for _ in range(4000))
    assert 0.2 < drawn["never"] / 4000 < 0.3
    assert set(drawn) == set(FATES)


@pytest.fixture
def served(crm: Crm) -> Iterator[str]:
    """Serve the CRM on a socket that is open already, as under the local stack."""
    listener = socket.create_server(("127.0.0.1", 0))
    with Server(crm, listener) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/contacts"
        server.shutdown()
        thread.join()


class Target:
    """A contract, as far as the HTTP handler reads it."""

    target_secret_env = "CRM_SECRET"
    target_secret = None

    def __init__(self, url: str) -> None:
        self.target_url = self.check_url = url


@override_settings(OUTBOUND_ALLOWED_CIDRS=["127.0.0.1/32"])
def test_our_own_handler_speaks_to_it(
    served: str, context: MakeContext, monkeypatch: pytest.MonkeyPatch, feel: Callable[[Mood], None]
) -> None:
    """The real request: signature, key, callback address; and its real answers."""
    monkeypatch.setenv("CRM_SECRET", SECRET)
    job = context("crm.sync_contact", {"user_id": 1, "email": "a@example.org"}, id=UUID(int=7))
    found = http_target.deliver(job, Target(served))
    (effect,) = events("effect")
    assert found == AwaitingConfirmation(effect["ref"])
    assert effect["key"] == job.idempotency_key
    assert "/api/v1/callbacks/" in events("planned")[0]["url"]
    assert http_target.ask(job, Target(served)) == Confirmed(effect["ref"])
    feel(mood(busy=1.0))
    with pytest.raises(RetryLater):
        http_target.deliver(job, Target(served))
    feel(mood(lost_answers=1.0))
    with pytest.raises(OutboundError) as lost:
        http_target.deliver(job, Target(served))
    assert lost.value.may_have_arrived
    monkeypatch.setenv("CRM_SECRET", CALLBACK_SECRET)
    with pytest.raises(http_target.TargetFailed, match="401"):
        http_target.deliver(job, Target(served))


def test_callbacks_leave_at_their_time(crm: Crm, callbacks: Callbacks, inbox: Inbox) -> None:
    stop = threading.Event()
    thread = threading.Thread(target=callbacks.run, args=(stop,))
    thread.start()
    try:
        crm.receive(*request())
        deadline = time.monotonic() + 10
        while not inbox.got and time.monotonic() < deadline:
            stop.wait(0.02)
    finally:
        stop.set()
        thread.join(10)
    (planned,) = events("planned")
    (calling,) = events("calling")
    assert planned["due"] <= calling["at"] < planned["due"] + 1.0
