"""One form of a replay, sent many times at once by two people, makes one new job (I-30)."""

from __future__ import annotations

import threading

import pytest
from django.contrib.auth.models import Group, User
from django.db import connections
from django.test import Client

from queues import broker
from queues.models import AuditEntry, Job
from queues.states import Reason
from tests.board.conftest import bury
from tests.board.verdicts import answering, hidden, works
from tests.factories import accept, make_type

pytestmark = pytest.mark.concurrency
PRESSES = 20


def person(role: str) -> Client:
    user = User.objects.create_user(role)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.mark.parametrize("edited", [False, True], ids=["as it was", "edited"])
def test_i_30_twenty_posts_at_once_make_one_child(
    transactional_db: None, monkeypatch: pytest.MonkeyPatch, edited: bool
) -> None:
    """I-30: a double click, two operators, a browser that tries again: the same new job is the answer for all."""
    monkeypatch.setattr(broker, "ping", lambda: True)
    monkeypatch.setattr(broker, "publish", lambda *a, **k: None)
    answering(monkeypatch)
    make_type("mail.send", provider_key_ttl_seconds=86_400)
    (job_id,) = accept(1, kind="mail.send", dedupe_key="mail-1")
    bury([job_id], reason=Reason.ATTEMPTS_EXHAUSTED)
    works("mail.send")
    people = [person("operator"), person("owner")]
    verb = "edit" if edited else "replay"
    url = f"/dlq/{job_id}/{verb}/"
    typed = {"payload": '{"n": 7}', "key": "mail-1"} if edited else {}
    drawn = people[0].post(url, {**typed, "step": "preview"}) if edited else people[0].get(url)
    form = {**typed, **hidden(drawn), "step": "replay", "reason": "relay is back"}
    found: list[tuple[int, str]] = []
    gate = threading.Barrier(PRESSES, timeout=60)

    def press(index: int) -> None:
        client = Client()
        client.cookies = people[index % 2].cookies
        try:
            gate.wait()
            response = client.post(url, form)
            found.append((response.status_code, response.get("Location", "")))
        finally:
            connections.close_all()

    threads = [threading.Thread(target=press, args=(index,)) for index in range(PRESSES)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    (child,) = Job.objects.filter(replay_of=job_id).values_list("id", flat=True)
    assert found == [(303, f"/jobs/{child}/")] * PRESSES
    assert AuditEntry.objects.filter(action="job.replayed").count() == 1
