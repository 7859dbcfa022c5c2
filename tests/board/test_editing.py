"""Replaying with another payload or key: what is hidden stays, the preview binds, the stored payload never changes."""

from __future__ import annotations

import html
import json
import re
from typing import Any

import pytest
from django.test import Client

from queues import audit, contracts
from queues.accept import enqueue
from queues.models import AuditEntry, ContractRevision, Job, JobType
from queues.states import Reason
from tests.board.conftest import ClientOf, bury
from tests.board.verdicts import Worker, alert, answering, fails, hidden, logged, works
from tests.factories import accept, get, make_type

PAYLOAD = {"to": "kim@shop.example", "n": 1, "card_token": "tok_marker_1", "lines": [{"sku": "a", "secret": "s-1"}]}
SEEN = {"to": "[redacted]", "n": 1, "card_token": "[redacted]", "lines": [{"sku": "a", "secret": "[redacted]"}]}
MARKERS = ("kim@shop.example", "tok_marker_1", "s-1")


@pytest.fixture(autouse=True)
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return answering(monkeypatch)


@pytest.fixture
def kind(db: None) -> JobType:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}
    return make_type("mail.send", redact=["/to"], provider_key_ttl_seconds=86_400, schema=schema)


@pytest.fixture
def dead(kind: JobType) -> Job:
    job_id = enqueue("mail.send", PAYLOAD, dedupe_key="mail-1").job_id
    bury([job_id], reason=Reason.ATTEMPTS_EXHAUSTED)
    works("mail.send")
    return get(job_id)


def edit(client: Client, job: Job, payload: Any = None, *, step: str = "preview", **given: Any) -> Any:
    """Send the form; a payload that is no text is written as the page writes it."""
    typed = {**SEEN, "n": 2} if payload is None else payload
    text = typed if isinstance(typed, str) else json.dumps(typed, indent=2)
    form = {"payload": text, "key": job.dedupe_key or "", "step": step, **given}
    return client.post(f"/dlq/{job.id}/edit/", form)


def replay(client: Client, job: Job, payload: Any = None, **given: Any) -> Any:
    """Look at the preview, then replay what it showed."""
    preview = edit(client, job, payload, **{name: given[name] for name in ("key",) if name in given})
    assert preview.status_code == 200, alert(preview)
    return edit(client, job, payload, **{"step": "replay", "reason": "typo", **hidden(preview), **given})


def child_of(job: Job) -> Job | None:
    return Job.objects.filter(replay_of=job.id).first()


def textarea(response: Any) -> str:
    found = re.search(r"<textarea[^>]*>\n(.*?)</textarea>", response.text, re.S)
    assert found
    return html.unescape(found[1])


def changes(response: Any) -> list[list[str]]:
    """Return the rows of the table of what an edit changes."""
    rows = re.findall(r'<tr><th scope="row" class="mono">(.*?)</th>(.*?)</tr>', response.text, re.S)
    return [[html.unescape(one) for one in (name, *re.findall(r"<td[^>]*>(.*?)</td>", rest))] for name, rest in rows]


def test_the_form_shows_the_payload_as_it_may_be_seen(operator: Client, dead: Job) -> None:
    page = operator.get(f"/dlq/{dead.id}/edit/")
    assert json.loads(textarea(page)) == SEEN
    assert 'value="mail-1"' in page.text
    assert not any(marker in page.text for marker in MARKERS)
    assert "Replay with" not in page.text


def test_a_viewer_cannot_edit_and_is_shown_nothing(viewer: Client, dead: Job) -> None:
    for response in (viewer.get(f"/dlq/{dead.id}/edit/"), edit(viewer, dead), edit(viewer, dead, step="replay")):
        assert response.status_code == 403
    assert f"/dlq/{dead.id}/edit/" not in viewer.get(f"/dlq/{dead.id}/").text
    assert child_of(dead) is None


def test_a_preview_says_field_by_field_what_changes_and_replays_nothing(operator: Client, dead: Job) -> None:
    preview = edit(operator, dead, {**SEEN, "n": 2, "card_token": "tok_new", "more": True})
    assert preview.status_code == 200
    assert changes(preview) == [["/n", "1", "2"], ["/card_token", "changed, hidden"], ["/more", "null", "true"]]
    assert "Replay with 3 changes" in preview.text
    assert "key unchanged" in preview.text
    assert "The provider gets the same idempotency key with another body" in preview.text
    assert "Safe to replay with this edit" in preview.text
    assert not any(marker in preview.text for marker in MARKERS)
    assert child_of(dead) is None


def test_i_34_an_edited_replay_leaves_the_original_and_is_in_the_log(operator: Client, dead: Job) -> None:
    """I-34."""
    before = dead.payload
    response = replay(operator, dead)
    child = child_of(dead)
    assert child is not None
    assert (response.status_code, response["Location"]) == (303, f"/jobs/{child.id}/")
    assert get(dead.id).payload == before
    assert json.loads(child.payload or "") == {**PAYLOAD, "n": 2}
    assert (child.dedupe_key, child.idempotency_key, child.root) == ("mail-1", dead.idempotency_key, dead.root)
    entry = AuditEntry.objects.get(action="job.replayed")
    assert (entry.actor, entry.reason) == ("operator", "typo")
    assert logged("job.replayed")["changed"] == {"/n": [1, 2]}
    # Sent again, also with another edit: the same child.
    assert edit(operator, dead, step="replay", reason="again")["Location"] == f"/jobs/{child.id}/"


def test_i_34_child_and_log_are_one(operator: Client, dead: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-34: what cannot be written to the log is not done."""
    preview = edit(operator, dead)

    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no log")

    monkeypatch.setattr(audit, "record", broken)
    with pytest.raises(OSError, match="no log"):
        edit(operator, dead, step="replay", reason="typo", **hidden(preview))
    assert child_of(dead) is None
    assert get(dead.id).resolution == "open"


def test_i_34_the_contract_that_holds_when_it_is_replayed_counts(operator: Client, dead: Job) -> None:
    """I-34: today's contract, also when it became stricter between the preview and the click."""
    preview = edit(operator, dead)
    row = JobType.objects.get(name=dead.type)
    row.schema = {"type": "object", "properties": {"n": {"maximum": 1}}}
    row.save()
    contracts.forget()
    response = edit(operator, dead, step="replay", reason="typo", **hidden(preview))
    assert response.status_code == 422
    assert "breaks the contract" in alert(response)
    assert child_of(dead) is None


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({**SEEN, "card_token": "***"}, "/payload/card_token"),
        ({**SEEN, "note": "****"}, "/payload/note"),
        ({**SEEN, "to": "*" * 16}, "/payload/to"),
        ({**SEEN, "n": 2, "note": "[redacted]"}, "/payload/note"),
        ({**SEEN, "lines": [*SEEN["lines"], {"secret": "[redacted]"}]}, "/payload/lines/1/secret"),  # type: ignore[misc]
        ({**SEEN, "[redacted]": 1}, "/payload"),
    ],
)
def test_r_03_stars_and_placeholders_that_hide_nothing_are_refused(
    operator: Client, dead: Job, payload: Any, pointer: str
) -> None:
    """R-03: a secret is never overwritten with what stands for it."""
    for response in (edit(operator, dead, payload), edit(operator, dead, payload, step="replay", reason="x")):
        assert response.status_code == 422
        assert f"<code>{pointer}</code> redacted_value_submitted" in response.text
        assert json.loads(textarea(response)) == payload
    assert child_of(dead) is None


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ("{", "Not JSON"),
        ('{"n": 1, "n": 2}', "n"),
        ("", "Not JSON"),
        ('{"n": 99}', "breaks the contract"),
        ('{"to": "x"}', "breaks the contract"),
        ("[]", "breaks the contract"),
        ('{"n": "\x00"}', ""),
    ],
)
def test_what_is_wrong_is_said_and_what_was_typed_stays(operator: Client, dead: Job, payload: str, said: str) -> None:
    response = edit(operator, dead, payload, key="other-9")
    assert response.status_code == 422
    assert said in alert(response)
    assert textarea(response) == payload
    assert 'value="other-9"' in response.text
    assert child_of(dead) is None


@pytest.mark.parametrize("key", ["a b", "k" * 256, "clé"])
def test_a_key_that_cannot_be_one_is_refused(operator: Client, dead: Job, key: str) -> None:
    response = edit(operator, dead, key=key)
    assert response.status_code == 422
    assert "dedupe key" in alert(response)


def test_nothing_changed_is_no_edit(operator: Client, dead: Job) -> None:
    for payload in (SEEN, json.dumps(SEEN)):
        response = edit(operator, dead, payload)
        assert response.status_code == 422
        assert "Nothing is changed" in alert(response)


def test_another_key_is_another_job_and_must_be_meant(operator: Client, dead: Job) -> None:
    preview = edit(operator, dead, SEEN, key="mail-2")
    assert changes(preview) == [["dedupe_key", '"mail-1"', '"mail-2"']]
    assert "This is a different job" in preview.text
    assert "Another key makes this another job" in preview.text
    refused = edit(operator, dead, SEEN, step="replay", key="mail-2", reason="typo", **hidden(preview))
    assert refused.status_code == 422
    assert "a different job. Tick that you mean it." in alert(refused)
    assert child_of(dead) is None
    assert replay(operator, dead, SEEN, key="mail-2", other="on").status_code == 303
    child = child_of(dead)
    assert child is not None
    assert (child.dedupe_key, child.root) == ("mail-2", child.id)
    assert child.idempotency_key != dead.idempotency_key
    assert json.loads(child.payload or "") == PAYLOAD


def test_a_key_that_another_job_has_cannot_be_taken(client_of: ClientOf, dead: Job) -> None:
    accept(1, kind="mail.send", dedupe_key="mail-7")
    preview = edit(client_of("admin"), dead, SEEN, key="mail-7")
    assert "Superseded" in preview.text
    assert "It cannot be replayed." in preview.text
    assert 'value="replay"' not in preview.text
    response = edit(client_of("admin"), dead, SEEN, step="replay", key="mail-7", other="on", reason="x", anyway="1",
                    **{name: value for name, value in hidden(preview).items() if name != "anyway"})  # fmt: skip
    assert response.status_code == 409
    assert child_of(dead) is None


def test_what_is_replayed_is_what_the_preview_showed(operator: Client, dead: Job) -> None:
    seen = hidden(edit(operator, dead))
    response = edit(operator, dead, {**SEEN, "n": 3}, step="replay", reason="typo", **seen)
    assert response.status_code == 409
    assert "changed it since the preview" in alert(response)
    assert changes(response) == [["/n", "1", "3"]]
    assert child_of(dead) is None
    assert edit(operator, dead, {**SEEN, "n": 3}, step="replay", reason="typo", **hidden(response)).status_code == 303


def test_a_verdict_that_changed_is_409_and_keeps_the_edit(operator: Client, dead: Job) -> None:
    preview = edit(operator, dead)
    fails("mail.send", n=3)
    response = edit(operator, dead, step="replay", reason="typo", **hidden(preview))
    assert response.status_code == 409
    assert "was pass, now note" in response.text
    assert 'value="typo"' in response.text
    assert json.loads(textarea(response)) == {**SEEN, "n": 2}
    assert child_of(dead) is None


def test_against_it_only_an_admin_replays_an_edit(client_of: ClientOf, dead: Job) -> None:
    fails("mail.send")
    preview = edit(client_of("operator"), dead)
    assert "An admin may replay it all the same." in preview.text
    assert 'value="replay"' not in preview.text
    form = hidden(edit(client_of("admin"), dead))
    assert form["anyway"] == "1"
    assert edit(client_of("operator"), dead, step="replay", reason="x", **form).status_code == 409
    assert child_of(dead) is None
    assert replay(client_of("admin"), dead).status_code == 303
    assert logged("job.replayed")["verdict"] == "unsafe"


def test_a_reason_is_needed_and_what_was_typed_stays(operator: Client, dead: Job) -> None:
    preview = edit(operator, dead)
    response = edit(operator, dead, step="replay", reason=" ", **hidden(preview))
    assert response.status_code == 422
    assert "Say why" in alert(response)
    assert json.loads(textarea(response)) == {**SEEN, "n": 2}
    assert child_of(dead) is None


def test_what_is_over_is_not_edited(operator: Client, dead: Job) -> None:
    operator.post(f"/dlq/{dead.id}/ignore/", {"reason": "known"})
    for response in (operator.get(f"/dlq/{dead.id}/edit/"), edit(operator, dead, step="replay")):
        assert response.status_code == 409
        assert "Nothing to edit" in response.text
    assert operator.get("/dlq/00000000-0000-7000-8000-000000000000/edit/").status_code == 404


def test_the_key_that_the_template_makes_is_told(operator: Client) -> None:
    make_type("invoice.send", key_template="invoice-{invoice_id}")
    job_id = enqueue("invoice.send", {"invoice_id": "A1"}).job_id
    bury([job_id])
    preview = edit(operator, get(job_id), {"invoice_id": "A2"})
    assert "the key of this payload is invoice-A2; it stays the job of invoice-A1" in preview.text


def test_markup_in_a_payload_is_text(operator: Client, dead: Job) -> None:
    evil = {**SEEN, "more": "</textarea><script>alert(1)</script>"}
    response = edit(operator, dead, evil)
    assert "<script>alert" not in response.text
    assert json.loads(textarea(response)) == evil
    assert ContractRevision.objects.count() == 1
