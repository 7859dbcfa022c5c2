"""Invariants of what people and keys do: I-33, I-34, I-44, I-45."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import call_command
from django.db import OperationalError, connection, transaction
from django.test import Client

from jobsboard.models import ApiKey
from queues import actions, audit, contract_versions, contracts, edited_replay, lifecycle
from queues.accept import enqueue
from queues.lifecycle import End, Verdict
from queues.models import AuditEntry, Job, JobType
from queues.states import JobState, Reason
from tests.api.conftest import Api, problem
from tests.concurrency.rivals import Rival
from tests.factories import TYPE, accept, claim, failed, get, make_job, make_type, set_columns, sql

S = JobState


def row(job_id: UUID) -> str:
    """Return the bytes of a job's row, without the columns that resolve it."""
    without = "'resolution', 'resolved_at', 'resolved_by', 'replayed_by'"
    text: str = sql(f"SELECT (to_jsonb(j) - ARRAY[{without}])::text FROM queues_job j WHERE id = %s", job_id)[0][0]
    return text


# I-33.


@pytest.mark.usefixtures("world")
def test_i_33_each_item_is_checked_against_its_own_type(make_api: Callable[..., Api]) -> None:
    """I-33: a batch that mixes own and foreign types acts for the own ones only; every call that names a job refuses
    one of a foreign type as if it did not exist, and changes nothing of it."""
    make_type("a.mail", success="callback")
    make_type("b.mail", success="callback")
    mine = make_api(type_patterns=("a.*",))
    jobs = [{"type": name, "payload": {}} for name in ("a.mail", "b.mail", "a.mail")]
    results = mine.post("/jobs/batch", {"jobs": jobs}).json()["results"]
    assert [result["status"] for result in results] == [201, 404, 201]
    assert sql("SELECT DISTINCT type FROM queues_job") == [("a.mail",)]
    for state in (S.ACCEPTED, S.RETRYING, S.AWAITING_CONFIRMATION, S.DEAD):
        theirs = make_job(state, type="b.mail")
        before, why = row(theirs.id), {"reason": "x"}
        for path, body in (
            ("cancel", why), ("retry-now", why), ("replay", why), ("replay", {**why, "payload": {"n": 2}}),
            ("confirm", {"outcome": "confirmed", "ref": "r"}),
        ):  # fmt: skip
            problem(mine.post(f"/jobs/{theirs.id}/{path}", body), 404, "unknown_job")
        for path in ("replay", "cancel"):
            problem(mine.post(f"/dead-letters/{theirs.id}/{path}", why), 404, "unknown_job")
        problem(mine.get(f"/jobs/{theirs.id}"), 404, "unknown_job")
        assert (row(theirs.id), get(theirs.id).resolution) == (before, theirs.resolution)
    assert {item["type"] for item in mine.get("/jobs").json()["items"]} == {"a.mail"}
    assert AuditEntry.objects.filter(object_type="job").count() == 0


# I-34.


def _dead(**payload: Any) -> UUID:
    receipt = enqueue(TYPE, {"to": "a", **payload}, dedupe_key=f"k-{uuid4()}")
    lifecycle.settle([failed(claim([receipt.job_id])[0], reason="permanent_error")])
    return receipt.job_id


@pytest.mark.usefixtures("world")
def test_i_34_an_edited_replay_is_held_against_todays_contract(make_api: Callable[..., Api]) -> None:
    """I-34: the contract changed since; an edit that breaks it is refused and leaves no child, and one that fits is
    stored with its difference and who made it. The original stays as it was, byte for byte."""
    make_type(redact=["/card"])
    job_id, api = _dead(card="4111"), make_api()
    contract_versions.save(
        TYPE, {"schema": {"type": "object", "required": ["cc"]}, "key_required": False}, actor="ada", reason="cc"
    )
    contracts.forget()
    before = row(job_id)
    refused = api.post(f"/jobs/{job_id}/replay", {"reason": "x", "payload": {"to": "b"}})
    problem(refused, 422, "contract_violation")
    assert (row(job_id), get(job_id).replayed_by, Job.objects.count()) == (before, None, 1)
    edit = {"to": "b", "cc": "c", "card": "[redacted]"}
    answer = api.post(f"/jobs/{job_id}/replay", {"reason": "wrong address", "payload": edit})
    assert answer.status_code == 201, answer.content
    child = get(UUID(answer.json()["id"]))
    assert (row(job_id), child.replay_of, child.contract_version) == (before, job_id, 2)
    assert child.payload == '{"to":"b","cc":"c","card":"4111"}', "what was hidden is put back"
    entry = AuditEntry.objects.get(action="job.replayed")
    after = entry.after or {}
    assert {name: after[name] for name in ("resolution", "replayed_by", "changed")} == {
        "resolution": "replayed",
        "replayed_by": str(child.id),
        "changed": {"/to": ["a", "b"], "/cc": [None, "c"]},
    }
    assert (after["verdict"], after["checks"]["already_done"]) == ("unknown", "unknown"), "nobody could ask"
    assert (entry.object_id, entry.reason, entry.source) == (str(job_id), "wrong address", "api")
    assert entry.actor
    assert entry.request_id == answer["X-Request-Id"]


@pytest.mark.concurrency
@pytest.mark.usefixtures("committed")
@pytest.mark.parametrize("how", ["an exception", "a killed session"])
def test_i_34_a_replay_and_its_audit_entry_are_both_there_or_neither(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """I-34, promise 7: it ends between the insert of the child and that of the audit entry: no child, no entry, the
    parent free, its key still the parent's. The second try does both."""
    make_type()
    job_id = _dead()
    edited = edited_replay.prepare(get(job_id), payload={"to": "b"})
    between, gone = threading.Event(), threading.Event()
    real = audit.record

    def break_off(*args: Any, **kwargs: Any) -> Any:
        assert Job.objects.filter(replay_of=job_id).exists(), "the child is in this transaction"
        if how == "an exception":
            raise RuntimeError("killed here")
        between.set()
        assert gone.wait(10)
        return real(*args, **kwargs)

    monkeypatch.setattr(audit, "record", break_off)

    def replay() -> UUID:
        return actions.replay_job(job_id, actor="ada", reason="x", source="ui", edit=edited.edit, diff=edited.diff)

    rival = Rival(replay)
    if how == "a killed session":
        assert between.wait(10)
        assert sql("SELECT pg_terminate_backend(%s)", rival.backend) == [(True,)]
        while sql("SELECT 1 FROM pg_stat_activity WHERE pid = %s", rival.backend):
            threading.Event().wait(0.01)
        gone.set()
    with pytest.raises(RuntimeError if how == "an exception" else OperationalError):
        rival.outcome()
    assert (get(job_id).replayed_by, get(job_id).resolution, Job.objects.count()) == (None, "open", 1)
    assert sql("SELECT job_id FROM queues_dedupekey") == [(job_id,)]
    assert AuditEntry.objects.count() == 0
    monkeypatch.setattr(audit, "record", real)
    child = replay()
    entry = AuditEntry.objects.get()
    assert entry.before == {"resolution": "open"}
    assert entry.after == {"resolution": "replayed", "replayed_by": str(child), "changed": {"/to": ["a", "b"]}}


# I-44.


@pytest.mark.usefixtures("world")
def test_i_44_a_change_of_the_contract_does_not_reach_accepted_jobs() -> None:
    """I-44: jobs of both versions wait, run, fail, are lost, and get too old side by side; each goes by its own."""
    old: dict[str, Any] = {
        "tier": 2, "success": "return", "max_attempts": 1, "poison_after": 1, "on_stale": "dead", "window_seconds": 10,
        "key_required": False,
    }  # fmt: skip
    new = {"max_attempts": 5, "poison_after": 5, "on_stale": "expire", "window_seconds": 99, "on_worker_lost": "retry"}
    contract_versions.save(TYPE, old, actor="ada", reason="first")
    contracts.forget()
    first = accept(3)
    contract_versions.save(TYPE, new, actor="ada", reason="second")
    contracts.forget()
    second = accept(3)
    ends: list[list[tuple[str, str | None]]] = []
    for fails, lost, stale in (first, second):
        lifecycle.settle([failed(claim([fails])[0])])
        [run] = claim([lost])
        lifecycle.rescue([lost], dead_runs=[(lost, run.fence)])
        set_columns(stale, raw_expires_at="jobs_now() - interval '1 s'")
        lifecycle.expire([stale])
        ends.append([(get(i).state, get(i).reason) for i in (fails, lost, stale)])
    assert ends[0] == [(S.DEAD, Reason.ATTEMPTS_EXHAUSTED), (S.DEAD, Reason.POISON), (S.DEAD, Reason.STALE)]
    assert ends[1] == [(S.RETRYING, None), (S.RETRYING, None), (S.EXPIRED, Reason.STALE)]
    assert [get(i[0]).window_seconds for i in (first, second)] == [10, 99]


# I-45.


def _in(state: JobState) -> str:
    if state != S.AWAITING_CONFIRMATION:
        return str(make_job(state, fence=1, begun=1, attempt=1).id)
    [run] = claim(accept())
    lifecycle.settle([End(id=run.id, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=60.0, act_in=60.0)])
    return str(run.id)


DEEDS: dict[str, tuple[JobState, str, str, dict[str, Any]]] = {
    "job.cancelled": (S.RETRYING, "cancel", "cancel", {}),
    "job.cancel_requested": (S.PROCESSING, "cancel", "cancel", {}),
    "job.retried_now": (S.RETRYING, "retry", "retry-now", {}),
    "job.replayed": (S.DEAD, "replay", "replay", {}),
    "dead_letter.cancelled": (S.DEAD, "close", "", {}),
    "job.confirmed_by_hand": (S.AWAITING_CONFIRMATION, "confirm", "confirm", {"outcome": "confirmed", "ref": "r"}),
    "job.rejected_by_hand": (S.AWAITING_CONFIRMATION, "confirm", "confirm", {"outcome": "rejected"}),
}


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("by", ["a person", "a key"])
@pytest.mark.parametrize("action", DEEDS)
def test_i_45_each_act_on_a_job_has_one_audit_entry(action: str, by: str, make_api: Callable[..., Api]) -> None:
    """I-45, promise 7: through the board and through the API: what changed a job is in the log once, with who, what
    became of it, why and the request; the same again changes nothing and adds nothing."""
    state, verb, call, body = DEEDS[action]
    make_type(success="callback")
    job_id = _in(state)
    if action == "job.retried_now":
        set_columns(UUID(job_id), raw_due_at="jobs_now() + interval '1 h'")
    if by == "a key":
        api = make_api()
        path = f"/dead-letters/{job_id}/cancel" if not call else f"/jobs/{job_id}/{call}"
        sent = {**body, "detail": "because"} if body else {"reason": "because"}
        answers = [api.post(path, sent) for _ in range(2)]
        assert answers[0].status_code in (200, 201, 202), answers[0].content
        actor, source = ApiKey.objects.get().prefix, "api"
    else:
        user = User.objects.create_user("ada")
        user.groups.add(Group.objects.get_or_create(name="operator")[0])
        client = Client()
        client.force_login(user)
        sent = {**body, "reason": "because", "run": "1"}
        if action == "job.replayed":
            # The dialog carries the verdict that was seen.
            seen = re.search(r'name="verdict" value="(\w+)"', client.get(f"/jobs/{job_id}/{verb}/").text)
            assert seen
            sent["verdict"] = seen[1]
        answers = [client.post(f"/jobs/{job_id}/{verb}/", sent) for _ in range(2)]
        assert answers[0].status_code == 303, answers[0].content
        actor, source = "ada", "ui"
    entry = AuditEntry.objects.get(object_type="job")
    assert (entry.action, entry.object_id, entry.source, entry.reason) == (action, job_id, source, "because")
    assert actor in entry.actor
    assert entry.before and entry.after
    assert entry.before != entry.after
    assert entry.request_id == answers[0]["X-Request-Id"]


@pytest.mark.usefixtures("world")
def test_i_45_switches_contracts_and_keys_are_audited_with_both_values(make_api: Callable[..., Api]) -> None:
    """I-45, S-41: pause, resume, contract edits, keys made, renamed and revoked: who, before, after, why, and the
    request where there is one."""
    make_type(owner="", key_required=True)
    admin = User.objects.create_superuser("root")
    client = Client()
    client.force_login(admin)
    for verb in ("pause", "resume"):
        answer = client.post(f"/types/{TYPE}/{verb}/", {"reason": f"why {verb}"})
        entry = AuditEntry.objects.latest("id")
        assert (entry.action, entry.actor, entry.reason) == (f"contract.{verb}d", "root", f"why {verb}")
        assert entry.before and entry.after
        assert (entry.before["paused"], entry.after["paused"]) == (verb == "resume", verb == "pause")
        assert entry.request_id == answer["X-Request-Id"]
    contract_versions.save(TYPE, {"owner": "mail"}, actor="root", reason="ours", request_id="r-1")
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.before, entry.after) == (
        "contract.changed", {"version": 1, "owner": ""}, {"version": 2, "owner": "mail"},
    )  # fmt: skip
    call_command("api_key", "create", "--label", "shop", stdout=io.StringIO())
    made = ApiKey.objects.get(label="shop")
    client.post(f"/admin/jobsboard/apikey/{made.pk}/change/", {"label": "shop 2", "revoke": "on"})
    found = list(AuditEntry.objects.filter(object_type="api_key").order_by("id").values_list("action", "actor"))
    assert found == [("api_key.created", "command"), ("api_key.renamed", "root"), ("api_key.revoked", "root")]
    assert made.digest not in str(list(AuditEntry.objects.values()))
    assert JobType.objects.get().version == 2


@pytest.mark.usefixtures("world")
def test_i_45_the_application_cannot_rewrite_the_log() -> None:
    """I-45: the database refuses it, whoever asks."""
    audit.record("job.cancelled", actor="ada", object_type="job", object_id="1")
    for statement in ("UPDATE queues_auditentry SET actor = 'eve'", "DELETE FROM queues_auditentry",
                      "TRUNCATE queues_auditentry"):  # fmt: skip
        with pytest.raises(Exception, match="append-only"), transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(statement)
    assert AuditEntry.objects.get().actor == "ada"
