"""The CRM's callbacks arrive at the real API: each fate has its outcome, and log and board agree on it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from io import StringIO
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.core.management import call_command
from django.test import Client

from jobsboard.demo import crm_moods, place, reconcile
from jobsboard.demo.crm import Answer, Callbacks, Crm
from jobsboard.demo.journal import Journal
from jobsboard.demo.world import World
from jobsboard.management.commands.demo_crm import PROVIDER_PATH
from queues import lifecycle
from queues.accept import enqueue
from queues.callback_tokens import callback_token
from queues.lifecycle import End, Verdict
from queues.models import Callback, Job
from tests.demo.test_crm import CALLBACK_SECRET, SECRET, mood, request, send_all
from tests.factories import claim

Sync = Callable[..., Job]
TYPE = "crm.sync_contact"


def post(url: str, body: str, headers: Mapping[str, str]) -> Answer:
    """Call back as over the network."""
    assert url.startswith(settings.PUBLIC_URL)
    answer = Client().post(urlsplit(url).path, body, content_type="application/json", headers=dict(headers))
    return answer.status_code, json.loads(answer.content)


@pytest.fixture
def sync(db: None, monkeypatch: pytest.MonkeyPatch) -> Sync:
    """Return a function that lets a contact have its fate, before or after the run's end is written."""
    monkeypatch.setenv("CRM_CALLBACK_SECRET", CALLBACK_SECRET)
    call_command("demo_contracts", crm_url="http://127.0.0.1:1/contacts", stdout=StringIO(), stderr=StringIO())
    callbacks = Callbacks(Journal(place.crm_log()), secret=CALLBACK_SECRET, post=post)
    crm = Crm(callbacks.log, callbacks, secret=SECRET, provider_url=settings.PUBLIC_URL + PROVIDER_PATH)

    def run(fate: str, *, signed: bool, early: bool = False) -> Job:
        monkeypatch.setattr(crm_moods, "SIGNED_SHARE", float(signed))
        monkeypatch.setattr(crm_moods, "of", lambda kind: mood(fate, draw=random.Random(7)))
        job_id = enqueue(TYPE, {"user_id": 1, "email": "a@example.org"}).job_id
        (now,) = claim([job_id])
        headers, body = request(now.idempotency_key)
        token = callback_token(now.id, now.fence)
        headers["jobsboard-callback-url"] = f"{settings.PUBLIC_URL}/api/v1/callbacks/jobs/{token}"
        _, said = crm.receive(headers, body)
        if early:
            send_all(callbacks)
        lifecycle.settle(
            [
                End(
                    id=now.id,
                    fence=now.fence,
                    verdict=Verdict.AWAITING,
                    reference=said["ref"],
                    confirm_in=30.0,
                    act_in=30.0,
                )
            ]
        )
        send_all(callbacks)
        return Job.objects.get(id=job_id)

    return run


def disagreements() -> list[str]:
    world = World.now()
    rows = reconcile.compare(world, reconcile.jobs(), World.now(), kept=reconcile.inbox())
    return [row.what for row in rows if row.wrong]


@pytest.mark.parametrize("signed", [False, True], ids=["token", "signed"])
@pytest.mark.parametrize(
    ("fate", "state", "late"),
    [
        ("prompt", "confirmed", []),
        ("twice", "confirmed", []),
        ("never", "awaiting_confirmation", []),
        ("changes_its_mind", "confirmed", ["rejected"]),
        ("rejects_too_soon", "dead", ["confirmed"]),
        ("rejected", "dead", []),
        ("retryable", "retrying", []),
    ],
)
def test_each_fate_has_its_outcome_and_the_logs_agree(
    sync: Sync, fate: str, state: str, late: list[str], signed: bool
) -> None:
    job = sync(fate, signed=signed)
    assert (job.state, [note["outcome"] for note in job.late_evidence or ()]) == (state, late)
    assert disagreements() == []


def test_a_callback_that_overtakes_the_answer_is_kept(sync: Sync) -> None:
    """By its token it waits in the row; signed, in the inbox: its reference is not known yet."""
    assert sync("prompt", signed=False, early=True).state == "confirmed"
    assert disagreements() == []


def test_a_signed_callback_that_overtakes_the_answer_is_in_the_inbox(sync: Sync) -> None:
    job = sync("prompt", signed=True, early=True)
    assert job.state == "awaiting_confirmation"
    assert Callback.objects.filter(type=TYPE, applied_at=None).count() == 1
    assert disagreements() == []


def test_a_confirmation_that_the_crm_never_gave_is_found(sync: Sync) -> None:
    """The comparison can fail."""
    sync("prompt", signed=False)
    place.crm_log().write_text("")
    assert disagreements() == ["contacts confirmed: the CRM said so, with this reference"]
