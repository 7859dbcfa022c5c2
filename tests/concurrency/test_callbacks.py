"""K-10: a thousand callbacks of one job at once. One of them decides, and nobody gets an error."""

from __future__ import annotations

import json
import threading
from collections import Counter
from typing import Any

from django.db import connection, transaction
from django.test import Client

from queues import confirmation
from queues.callback_tokens import callback_token
from queues.confirmation import Evidence
from queues.models import Callback
from queues.states import JobState
from tests.concurrency.rivals import Rival, together
from tests.factories import get, make_job, make_type, sql

RIVALS = 10
EACH = 100


def test_a_thousand_callbacks(transactional_db: None) -> None:
    """K-10, I-26: one transition, 999 duplicates, no deadlock; no other job moves."""
    make_type("crm.sync", success="callback")
    job, other = (make_job(JobState.AWAITING_CONFIRMATION, type="crm.sync", fence=1, attempt=1) for _ in range(2))
    token = callback_token(job.id, 1)
    results: Counter[str] = Counter()
    lock = threading.Lock()

    def post() -> None:
        client = Client(raise_request_exception=False)
        body = json.dumps({"outcome": "confirmed", "ref": "crm_1"})
        for _ in range(EACH):
            response: Any = client.post(f"/api/v1/callbacks/jobs/{token}", body, content_type="application/json")
            with lock:
                results[response.json().get("result", str(response.status_code))] += 1
        connection.close()

    for rival in together(*[post] * RIVALS):
        assert rival.error is None
    assert results == {"confirmed": 1, "duplicate": RIVALS * EACH - 1}
    assert get(job.id).state == JobState.CONFIRMED
    assert get(job.id).late_evidence is None
    assert get(other.id).state == JobState.AWAITING_CONFIRMATION


def test_both_words_at_once(transactional_db: None) -> None:
    """I-26: whoever comes first decides; the other is a contradiction or late, never an error."""
    make_type("crm.sync", success="callback")
    for _ in range(20):
        job = make_job(JobState.AWAITING_CONFIRMATION, type="crm.sync", fence=1, attempt=1)
        token = callback_token(job.id, 1)

        def tell(outcome: str, token: str = token) -> str:
            client = Client(raise_request_exception=False)
            body = json.dumps({"outcome": outcome})
            response: Any = client.post(f"/api/v1/callbacks/jobs/{token}", body, content_type="application/json")
            result: str = response.json()["result"]
            return result

        yes, no = (r.outcome() for r in together(lambda: tell("confirmed"), lambda: tell("rejected")))
        assert (yes, no, get(job.id).state) in {
            ("confirmed", "contradiction", "confirmed"),
            ("late", "rejected", "dead"),
        }


def test_a_finish_waits_for_the_callback_that_it_crosses(transactional_db: None) -> None:
    """Scenario 3: the callback looked before the reference was there; the finish waits for it, a sweep not."""
    make_type("crm.sync", success="callback")
    job = make_job(JobState.AWAITING_CONFIRMATION, type="crm.sync", fence=1, attempt=1)
    evidence = Evidence(outcome="confirmed", ref="r-1")
    assert confirmation.by_provider("crm.sync", webhook_id="m-1", job_id=None, evidence=evidence).job_id is None
    reference = "INSERT INTO queues_jobreference (type, ref, job_id, fence, at) SELECT 'crm.sync', 'r-1', %s, 1, now()"
    sql(reference, job.id)
    with transaction.atomic():
        Callback.objects.select_for_update().get(webhook_id="m-1")
        assert Rival(confirmation.apply_pending).outcome() == 0
        finish = Rival(lambda: confirmation.apply_pending(job_ids=[job.id]))
        assert finish.waits()
    assert finish.outcome() == 1
    assert get(job.id).state == JobState.CONFIRMED
