"""New versions, switches, restore, compare and deletion of contracts, each with its audit entry."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.db import IntegrityError, connection, transaction

from queues import contract_versions, contracts, secrets_box
from queues.contract_switches import database_now
from queues.contract_versions import ContractChanged, ContractInvalid, JobsExist, Saved
from queues.models import AuditEntry, BoardVersion, ContractRevision, JobType, StateCount, Tier

pytestmark = pytest.mark.django_db

NAME = "billing.receipt"
SECRET = "a-secret-of-the-shop-0123456789"


def save(**fields: Any) -> Saved:
    return contract_versions.save(NAME, fields, actor="ada", reason="because")


def actions() -> list[str]:
    return list(AuditEntry.objects.order_by("id").values_list("action", flat=True))


def test_a_new_type_is_version_1() -> None:
    saved = save(tier=1, window_seconds=30, never_retry=["ValueError"])
    assert saved.version == 1
    assert saved.diff == {"tier": [None, 1], "window_seconds": [None, 30], "never_retry": [None, ["ValueError"]]}
    revision = ContractRevision.objects.get(job_type_id=NAME)
    assert (revision.version, revision.actor, revision.reason) == (1, "ada", "because")
    assert revision.fields["tier"] == 1
    assert revision.fields["backoff"] == "exponential"
    assert "enabled" not in revision.fields
    assert "target_secret" not in revision.fields
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.object_type, entry.object_id) == ("contract.created", "job_type", NAME)
    assert entry.after == {"version": 1, "tier": 1, "window_seconds": 30, "never_retry": ["ValueError"]}


def test_a_change_is_a_new_version_with_both_values() -> None:
    save(window_seconds=30)
    before = BoardVersion.objects.get().n
    saved = save(window_seconds=45, owner="billing")
    assert saved.version == 2
    assert saved.diff == {"owner": ["", "billing"], "window_seconds": [30, 45]}
    row = JobType.objects.get(pk=NAME)
    assert (row.version, row.window_seconds, row.owner) == (2, 45, "billing")
    entry = AuditEntry.objects.latest("id")
    assert entry.action == "contract.changed"
    assert entry.before == {"version": 1, "owner": "", "window_seconds": 30}
    assert entry.after == {"version": 2, "owner": "billing", "window_seconds": 45}
    assert BoardVersion.objects.get().n > before


@pytest.mark.parametrize("again", [{}, {"window_seconds": 60}, {"backoff_base_seconds": 2}, {"schema": {}}])
def test_nothing_changed_makes_no_version(again: dict[str, Any]) -> None:
    save()
    assert save(**again) == (JobType.objects.get(pk=NAME), None, {})
    assert actions() == ["contract.created"]


def test_true_and_1_differ_inside_a_schema() -> None:
    save(schema={"const": 1})
    assert save(schema={"const": True}).version == 2


def test_switches_are_not_part_of_a_version() -> None:
    save()
    assert save(enabled=False, paused=True).version is None
    row = JobType.objects.get(pk=NAME)
    assert (row.enabled, row.paused) == (True, False)


def test_a_new_type_may_start_switched_off() -> None:
    row = save(enabled=False, paused=True, paused_reason="not before Monday").job_type
    assert (row.enabled, row.disabled_reason, row.disabled_by, row.disabled_until) == (False, "because", "ada", None)
    assert (row.paused, row.paused_reason, row.paused_by) == (True, "not before Monday", "ada")
    entry = AuditEntry.objects.get()
    assert entry.after is not None
    assert (entry.after["enabled"], entry.after["paused"]) == (False, True)


def test_a_contract_that_breaks_a_rule_is_not_saved() -> None:
    with pytest.raises(ContractInvalid, match="max_attempts"):
        save(max_attempts=0)
    assert not JobType.objects.filter(pk=NAME).exists()
    save()
    with pytest.raises(ContractInvalid) as caught:
        save(key_template="x-{timestamp}")
    assert list(caught.value.findings.errors) == ["key_template"]
    with pytest.raises(ContractInvalid):
        save(no_such_field=1)
    assert actions() == ["contract.created"]


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", " a", "a" * 65, "a\x00", "smile😀"])
def test_a_wrong_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        contract_versions.save(name, {}, actor="ada", reason="")


def test_an_older_form_loses() -> None:
    save()
    save(window_seconds=30)
    with pytest.raises(ContractChanged):
        contract_versions.save(NAME, {"window_seconds": 20}, actor="bob", reason="", expected_version=1)
    with pytest.raises(ContractChanged):
        contract_versions.save("gone", {}, actor="bob", reason="", expected_version=1)


def test_a_secret_is_sealed_and_in_no_diff(settings: Any) -> None:
    save(handler="http", target_url="https://a.example/", target_secret=SECRET)
    saved = save(target_secret=SECRET + "2")
    assert saved.diff == {"target_secret": ["set", "changed"]}
    row = JobType.objects.get(pk=NAME)
    assert row.target_secret is not None
    assert secrets_box.open(row.target_secret) == SECRET + "2"
    assert save(target_secret=None).diff == {"target_secret": ["set", "removed"]}
    assert save(target_secret=None).version is None
    with connection.cursor() as cursor:
        for table in ("queues_jobtype", "queues_contractrevision", "queues_auditentry"):
            cursor.execute(f"SELECT count(*) FROM {table} AS t WHERE t::text LIKE %s", [f"%{SECRET}%"])  # noqa: S608
            assert cursor.fetchone() == (0,)


def opened(sealed: bytes | memoryview | None) -> str | None:
    return secrets_box.open(sealed) if sealed else None


def test_the_callback_secret_before_a_change_is_taken_for_another_day(shift_clock: Callable[[str], None]) -> None:
    row = save(callback_secret=SECRET).job_type
    assert (opened(row.callback_secret), row.callback_secret_old, row.callback_secret_old_until) == (SECRET, None, None)
    shift_clock("100 days")
    before = database_now()
    saved = save(callback_secret=SECRET + "2")
    assert saved.diff == {"callback_secret": ["set", "changed"]}
    row = JobType.objects.get(pk=NAME)
    assert (opened(row.callback_secret), opened(row.callback_secret_old)) == (SECRET + "2", SECRET)
    assert row.callback_secret_old_until is not None
    # By the database's clock, which the test has moved.
    assert timedelta(0) <= row.callback_secret_old_until - before - timedelta(hours=24) < timedelta(minutes=1)
    assert row.target_secret is None
    save(callback_secret=SECRET + "3")
    row.refresh_from_db()
    assert opened(row.callback_secret_old) == SECRET + "2"


def test_a_removed_callback_secret_is_not_taken_any_more() -> None:
    save(callback_secret=SECRET)
    save(callback_secret=SECRET + "2")
    saved = save(callback_secret=None)
    assert (saved.version, saved.diff) == (3, {"callback_secret": ["set", "removed"]})
    row = JobType.objects.get(pk=NAME)
    assert (row.callback_secret, row.callback_secret_old, row.callback_secret_old_until) == (None, None, None)
    assert save(callback_secret=None).version is None
    assert actions() == ["contract.created", "contract.changed", "contract.changed"]
    revision = ContractRevision.objects.get(job_type_id=NAME, version=3)
    assert not {"callback_secret", "callback_secret_old"} & revision.fields.keys()


def test_both_secrets_at_once_are_two_changes() -> None:
    saved = save(handler="http", target_url="https://a.example/", target_secret=SECRET, callback_secret=SECRET + "c")
    assert saved.diff["target_secret"] == saved.diff["callback_secret"] == ["not set", "set"]
    saved = save(target_secret=SECRET + "2")
    assert saved.diff == {"target_secret": ["set", "changed"]}
    row = JobType.objects.get(pk=NAME)
    assert (opened(row.target_secret), opened(row.callback_secret)) == (SECRET + "2", SECRET + "c")


def test_without_encryption_keys_no_secret_is_stored(settings: Any) -> None:
    settings.ENCRYPTION_KEYS = []
    with pytest.raises(ImproperlyConfigured, match="ENCRYPTION_KEYS"):
        save(target_secret=SECRET)
    assert not JobType.objects.exists()


def test_restore_is_a_new_version() -> None:
    save(window_seconds=30)
    save(window_seconds=45, handler="http", target_url="https://a.example/", target_secret=SECRET)
    saved = contract_versions.restore(NAME, 1, actor="bob", reason="back")
    assert saved.version == 3
    row = JobType.objects.get(pk=NAME)
    assert (row.window_seconds, row.handler) == (30, "python")
    assert row.target_secret is not None
    with pytest.raises(ContractRevision.DoesNotExist):
        contract_versions.restore(NAME, 9, actor="bob", reason="")


def test_restore_of_a_version_that_todays_rules_refuse() -> None:
    save()
    ContractRevision.objects.filter(job_type_id=NAME).update(fields={"keep_other_days": 0, "long_gone": 1})
    with pytest.raises(ContractInvalid):
        contract_versions.restore(NAME, 1, actor="bob", reason="")


def test_compare() -> None:
    save(window_seconds=30)
    save(window_seconds=45)
    save(window_seconds=30, owner="x")
    assert contract_versions.compare(NAME, 1, 3) == {"owner": ["", "x"]}
    assert contract_versions.compare(NAME, 2, 1) == {"window_seconds": [45, 30]}
    with pytest.raises(ContractRevision.DoesNotExist):
        contract_versions.compare(NAME, 1, 4)


def test_a_type_with_jobs_is_not_deleted() -> None:
    save()
    StateCount.objects.create(type=NAME, tier=1, state="accepted", n=3)
    StateCount.objects.create(type=NAME, tier=2, state="accepted", n=1)
    StateCount.objects.create(type=NAME, tier=2, state="dead", n=0)
    with pytest.raises(JobsExist, match="4 accepted") as caught:
        contract_versions.delete(NAME, actor="ada", reason="")
    assert caught.value.counts == {"accepted": 4}
    StateCount.objects.all().delete()
    contract_versions.delete(NAME, actor="ada", reason="a mistake")
    assert not JobType.objects.exists()
    assert actions() == ["contract.created", "contract.deleted"]


def test_a_tier_is_changed_with_its_audit_entry() -> None:
    contract_versions.save_tier(1, {"target_ratio": 0.99}, actor="ada", reason="honest")
    assert Tier.objects.get(pk=1).target_ratio == 0.99
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.before, entry.after) == (
        "tier.changed", {"target_ratio": 0.999}, {"target_ratio": 0.99},
    )  # fmt: skip
    contract_versions.save_tier(1, {"target_ratio": 0.99}, actor="ada", reason="again")
    assert AuditEntry.objects.count() == 1
    with pytest.raises(ValidationError):
        contract_versions.save_tier(1, {"target_ratio": 1.5}, actor="ada", reason="")


def test_what_the_version_keeps_is_what_the_reader_gives() -> None:
    save(window_seconds=30, max_attempts=2)
    save(window_seconds=45, max_attempts=7, lease_seconds=20)
    contracts.forget()
    old = contracts.of_version(NAME, 1)
    assert (old.window_seconds, old.max_attempts, old.lease_seconds) == (30, 2, 20)


def test_a_failed_save_leaves_nothing_behind() -> None:
    save()
    with pytest.raises(IntegrityError), transaction.atomic():
        save(window_seconds=30)
        ContractRevision.objects.create(job_type_id=NAME, version=2, fields={}, actor="x")
    assert JobType.objects.get(pk=NAME).version == 1
    assert actions() == ["contract.created"]


def in_threads(*functions: Callable[[], object]) -> None:
    """Run functions at the same time, each on a connection of its own that commits."""

    def run(function: Callable[[], object]) -> None:
        try:
            function()
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)


@pytest.mark.concurrency
def test_two_people_at_once_make_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    # Real commits: the audit log would keep its rows for ever, so it is left out here.
    monkeypatch.setattr("queues.audit.record", lambda *args, **kwargs: None)
    barrier = threading.Barrier(4)
    versions: list[int | None] = []

    def one(window: int) -> None:
        barrier.wait(5)
        versions.append(save(window_seconds=window).version)

    try:
        in_threads(*[functools.partial(one, window) for window in (30, 31, 32, 33)])
        assert sorted(version or 0 for version in versions) == [1, 2, 3, 4]
        assert ContractRevision.objects.filter(job_type_id=NAME).count() == 4
    finally:
        in_threads(lambda: JobType.objects.filter(pk=NAME).delete())
    assert not JobType.objects.exists()
