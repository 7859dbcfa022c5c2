"""Scenarios of contracts and of the public surface: 13, 23 and 25; and what the table itself refuses (17)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client

from jobsboard.testing import run_pending
from queues import actions, contract_switches, contract_versions, contracts, handlers, lifecycle, outbound
from queues.accept import Item, PayloadInvalid, enqueue, enqueue_many
from queues.callback_tokens import callback_token
from queues.contract_fields import default_of
from queues.handlers import Confirmed, JobContext
from queues.lifecycle import End, Verdict
from queues.models import Job, JobType
from queues.states import RESOLUTION_COLUMNS, JobState, Reason
from tests.api.conftest import Api, problem
from tests.factories import (
    TYPE,
    accept,
    claim,
    failed,
    fold_all,
    get,
    lose_lease,
    make_job,
    make_type,
    set_columns,
    sql,
)

S = JobState


# Scenario 13.


@pytest.mark.usefixtures("world")
def test_scenario_13_switches_and_repairs_reach_what_waits() -> None:
    """Scenario 13: a job keeps what was promised in its version; a pause, a wrong address, a leaked field and a time
    limit that were put right count at once for the jobs that wait."""
    contract_versions.save(
        TYPE,
        {"tier": 2, "handler": "http", "target_url": "https://wrong.example/jobs", "target_secret_env": "X",
         "success": "reference", "max_attempts": 3, "window_seconds": 60, "redact": ["/card"], "key_required": False},
        actor="ada", reason="new",
    )  # fmt: skip
    old = get(enqueue(TYPE, {}).job_id)
    contract_versions.save(
        TYPE,
        {"target_url": "https://right.example/jobs", "success": "return", "max_attempts": 9, "window_seconds": 5,
         "redact": ["/email"], "hard_limit_seconds": 7, "soft_limit_seconds": 5},
        actor="ada", reason="repairs",
    )  # fmt: skip
    contracts.forget()
    mine = contracts.of_version(TYPE, old.contract_version)
    assert (mine.success, mine.max_attempts, mine.window_seconds) == ("reference", 3, 60)
    assert (mine.target_url, mine.hard_limit_seconds) == ("https://right.example/jobs", 7)
    assert set(mine.redact) == {"/card", "/email"}, "the union of both"
    assert (old.attempt_limit, old.window_seconds) == (3, 60)
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="stop")
    assert lifecycle.claim([old.id], worker="w") == []
    assert enqueue(TYPE, {}).state == S.ACCEPTED, "paused types accept"
    contract_switches.set_switch(TYPE, paused=False, actor="ada", reason="go on")
    [run] = lifecycle.claim([old.id], worker="w")
    assert run.contract_version == 1


@pytest.mark.usefixtures("world")
def test_scenario_13_sync_does_not_undo_a_pause(tmp_path: Path) -> None:
    """Scenario 13: the file says nothing of switches that a person turned, nor does it make a version of them."""
    file = tmp_path / "contracts.toml"
    file.write_text('[job_types."test.job"]\ntier = 2\nsuccess = "return"\nkey_required = true\nenabled = true\n')
    call_command("contracts", "sync", str(file), verbosity=0)
    before = JobType.objects.get(name=TYPE).version
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="provider is down")
    call_command("contracts", "sync", str(file), verbosity=0)
    row = JobType.objects.get(name=TYPE)
    assert (row.paused, row.paused_reason, row.version) == (True, "provider is down", before)


# Scenario 23.


@pytest.fixture
def api(world: None, make_api: Callable[..., Api]) -> Api:
    """A job type, and a client whose key may do everything."""
    make_type()
    return make_api()


def test_scenario_23_what_is_ambiguous_is_refused_by_name(api: Api) -> None:
    """Scenario 23: a sent key beats the template, and header and body must agree; `run_at` excludes `delay_seconds`;
    a priority has a range and a direction."""
    body = {"type": TYPE, "payload": {}}
    problem(api.post("/jobs", {**body, "dedupe_key": "a"}, **{"Idempotency-Key": "b"}), 400, "idempotency_key_mismatch")
    both = {**body, "delay_seconds": 5, "run_at": "2030-01-01T00:00:00Z"}
    assert problem(api.post("/jobs", both), 422, "invalid_request")["pointer"] == "/delay_seconds"
    problem(api.post("/jobs", {**body, "priority": 101}), 422, "invalid_priority")
    for priority in (-100, 0, 100):
        assert api.accept(type=TYPE, payload={}, priority=priority)["priority"] == priority
    assert [get(d.id).priority for d in lifecycle.stageable([lifecycle.Ask(2, TYPE, 9)])[TYPE]] == [100, 0, -100]
    JobType.objects.update(key_template="order-{n}")
    contracts.forget()
    assert api.accept(type=TYPE, payload={"n": 1})["dedupe_key"] == "order-1"
    assert api.accept(type=TYPE, payload={"n": 2}, dedupe_key="sent")["dedupe_key"] == "sent"


@pytest.mark.parametrize("state", [S.DEAD, S.EXPIRED, S.CANCELLED])
def test_scenario_23_what_may_be_replayed_has_its_call(state: JobState, api: Api) -> None:
    """Scenario 23: not only dead letters; the two calls are one."""
    job = make_job(state)
    answer = api.post(f"/jobs/{job.id}/replay", {"reason": "again"})
    assert (answer.status_code, answer.json()["replay_of"], answer.json()["root"]) == (201, str(job.id), str(job.id))
    other = make_job(state)
    assert api.post(f"/dead-letters/{other.id}/replay", {"reason": "again"}).status_code == 201
    problem(api.post(f"/jobs/{other.id}/replay", {"reason": "again"}), 409, "already_replayed")


def test_scenario_23_a_word_names_its_run_and_a_contradiction_is_taken(api: Api) -> None:
    """Scenario 23: confirm may name a run; a provider that contradicts what is known gets 200 and `applied: false`,
    or it would send the same for ever; a person gets 409."""
    JobType.objects.update(success="callback")
    contracts.forget()
    [job_id] = accept()
    lifecycle.settle([failed(claim([job_id])[0])])
    [run] = claim([job_id])
    lifecycle.settle([End(id=job_id, fence=run.fence, verdict=Verdict.AWAITING, confirm_in=60.0, act_in=60.0)])
    old = api.post(f"/jobs/{job_id}/confirm", {"outcome": "rejected", "run": 1})
    problem(old, 409, "run_superseded")
    told = api.post(f"/jobs/{job_id}/confirm", {"outcome": "confirmed", "ref": "r", "run": 2})
    assert (told.status_code, get(job_id).state) == (200, S.CONFIRMED)
    problem(api.post(f"/jobs/{job_id}/confirm", {"outcome": "rejected", "run": 2}), 409, "contradiction")
    path = f"/api/v1/callbacks/jobs/{callback_token(job_id, 2)}"
    answer = Client().post(path, b'{"outcome": "rejected"}', content_type="application/json")
    assert (answer.status_code, answer.json()["applied"]) == (200, False)


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize(("status", "state"), [(404, S.RETRYING), (502, S.RETRYING), (410, S.DEAD), (422, S.DEAD)])
def test_scenario_23_a_404_of_a_target_buries_nobody(
    status: int, state: JobState, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scenario 23: a deploy or a gateway answers 404 to thousands at once: retried; 410 and 422 are meant."""
    monkeypatch.setenv("SHOP_SECRET", "a plain secret, taken as it is")
    make_type(handler="http", target_url="https://shop.example/jobs", target_secret_env="SHOP_SECRET",
              backoff="fixed", backoff_base_seconds=60.0)  # fmt: skip

    def post(url: str, *, body: bytes, headers: dict[str, str]) -> outbound.Answer:
        return outbound.Answer(status=status, body=b"", headers={}, seconds=0.1)

    monkeypatch.setattr(outbound, "post", post)
    job_id = enqueue(TYPE, {}).job_id
    run_pending()
    assert get(job_id).state == state


@pytest.mark.usefixtures("world")
def test_scenario_23_enqueue_many_raises_before_or_stores_all() -> None:
    """Scenario 23: with "raise" nothing of the batch is stored, and the error says which item it was."""
    make_type(schema={"type": "object", "required": ["n"]})
    items = [Item(type=TYPE, payload={"n": 1}), Item(type=TYPE, payload={}), Item(type=TYPE, payload={"n": 2})]
    with pytest.raises(PayloadInvalid) as refused:
        enqueue_many(items)
    assert (refused.value.position, Job.objects.count()) == (1, 0)
    answers = enqueue_many(items, on_error="return")
    assert [isinstance(answer, PayloadInvalid) for answer in answers] == [False, True, False]
    assert Job.objects.count() == 2


# Scenario 25.


def test_scenario_25_accept_replay_and_list_answer_as_decided(api: Api) -> None:
    """Scenario 25: 201 for a new job, 200 for a duplicate; a paused type accepts, a disabled one is 409
    `type_disabled`; GET on the collection is the list; a cancelled job may be replayed."""
    body = {"type": TYPE, "payload": {}, "dedupe_key": "k"}
    assert [api.post("/jobs", body).status_code for _ in range(2)] == [201, 200]
    assert len(api.get("/jobs").json()["items"]) == 1
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="x")
    job_id = api.accept(type=TYPE, payload={})["id"]
    assert api.post(f"/jobs/{job_id}/cancel", {"reason": "x"}).status_code == 200
    # A replay of a paused type would wait: that is said first, and handing the verdict back is the consent.
    said = problem(api.post(f"/jobs/{job_id}/replay", {"reason": "x"}), 409, "unsafe_replay")
    assert api.post(f"/jobs/{job_id}/replay", {"reason": "x", "verdict": said["fingerprint"]}).status_code == 201
    contract_switches.set_switch(TYPE, enabled=False, actor="ada", reason="x")
    problem(api.post("/jobs", {**body, "dedupe_key": "new"}), 409, "type_disabled")


@pytest.mark.usefixtures("world")
def test_scenario_25_a_settled_payload_can_be_erased_and_nothing_else_changed() -> None:
    """Scenario 25: terminal rows are immutable but for the columns that resolve them, the payload's erasure among
    them."""
    make_type()
    job = make_job(S.DEAD)
    with pytest.raises(Exception, match="cannot change"), transaction.atomic():
        sql("UPDATE queues_job SET attempt = 9 WHERE id = %s", job.id)
    with pytest.raises(Exception, match="cannot change"), transaction.atomic():
        sql("UPDATE queues_job SET payload = '{\"other\": 1}' WHERE id = %s", job.id)
    sql("UPDATE queues_job SET payload = NULL, erased_at = jobs_clock() WHERE id = %s", job.id)
    assert get(job.id).payload is None
    assert {"payload", "erased_at", "late_evidence", "replayed_by", "resolution"} <= set(RESOLUTION_COLUMNS)
    assert lifecycle.replay(job.id, by="ada") is None, "there is nothing left to run"


@pytest.mark.usefixtures("world")
def test_scenario_25_three_lone_losses_are_poison() -> None:
    """Scenario 25: not "3 in 72 hours", and the reason is `poison`; attempts are not spent by crashes."""
    make_type(max_attempts=2)
    [job_id] = accept()
    for _ in range(3):
        claim([job_id])
        lose_lease(job_id)
        lifecycle.rescue([job_id])
    assert (get(job_id).state, get(job_id).reason, get(job_id).attempt) == (S.DEAD, Reason.POISON, 0)


@pytest.mark.usefixtures("world")
def test_scenario_25_the_board_has_a_version_that_people_and_folds_raise() -> None:
    """Scenario 25: there is no event table: a counter tells an unchanged poll, and a fold of nothing does not raise
    it."""
    make_type()

    def version() -> int:
        number: int = sql("SELECT n FROM queues_boardversion")[0][0]
        return number

    fold_all()
    start = version()
    fold_all()
    assert version() == start
    accept()
    fold_all()
    assert version() == start + 1
    contract_switches.set_switch(TYPE, paused=True, actor="ada", reason="x")
    assert version() == start + 2


@pytest.mark.usefixtures("world")
def test_scenario_25_nothing_needs_a_database_session() -> None:
    """Scenario 25: no server-side cursors, since PgBouncer in transaction mode gives the next statement to another
    session; and the effect of an atomic handler must be where the jobs are."""
    options = settings.DATABASES["default"]
    assert options["DISABLE_SERVER_SIDE_CURSORS"] is True
    assert connection.connection is None or connection.connection.prepare_threshold is None
    with pytest.raises(ValueError, match="cannot be atomic"):

        @handlers.handler("other.job", atomic=True, using="warehouse")
        def work(job: JobContext) -> Confirmed:
            return Confirmed("r")


@pytest.mark.usefixtures("world")
def test_scenario_25_a_role_without_rights_prunes_by_function_only() -> None:
    """Scenario 25, S-33: partitions are swapped by functions of their owner; who merely connects may not call them."""
    found = sql(
        "SELECT proname, prosecdef, has_function_privilege('public', oid, 'EXECUTE') FROM pg_proc"
        " WHERE proname IN ('jobs_prune', 'jobs_prune_swap') ORDER BY 1"
    )
    assert found == [("jobs_prune", True, False), ("jobs_prune_swap", True, False)]


# Scenario 17.


@pytest.mark.usefixtures("world")
def test_scenario_17_no_open_row_is_without_its_next_time() -> None:
    """Scenario 17, I-13: the database refuses an open row that never acts, and max age is no choice."""
    make_type()
    [job_id] = accept()
    for column in ("due_at", "expires_at"):
        with pytest.raises(Exception, match="violates"), transaction.atomic():
            set_columns(job_id, **{column: None})
    assert default_of("max_age_seconds") == 7 * 86400
    assert actions.cancel_job(job_id, actor="ada", reason="", source="ui").state == S.CANCELLED
