"""The admin: who may do what, what the form refuses and shows, history, restore, deletion, tiers (S-13, C3)."""

from __future__ import annotations

import json
import re
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.auth.models import Group, User
from django.test import Client
from django.urls import reverse

from queues import contract_versions, secrets_box
from queues.contract_rules import NOT_ENFORCED
from queues.contract_switches import database_now, set_switch
from queues.models import AuditEntry, ContractRevision, Job, JobType, StateCount, Tier

pytestmark = pytest.mark.django_db

NAME = "billing.receipt"
LIST = "admin:queues_jobtype_changelist"
MARKER = '"><img src=x onerror=window.__xss=1>'


def client_of(role: str, *, staff: bool = True) -> Client:
    user = User.objects.create(username=role, is_staff=staff)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def owner() -> Client:
    return client_of("owner")


@pytest.fixture
def contract() -> JobType:
    fields = {"key_required": True, "key_template": "invoice-{invoice_id}"}
    return contract_versions.save(NAME, fields, actor="deploy", reason="first").job_type


def change_url(name: str = NAME) -> str:
    return reverse("admin:queues_jobtype_change", args=[name])


def form_data(client: Client, url: str, **changes: Any) -> dict[str, Any]:
    """Return what a browser would send from this form, with these changes."""
    form = client.get(url).context["adminform"].form
    data = {}
    for bound in form:
        value = bound.value()
        if bound.field.show_hidden_initial:
            data[bound.html_initial_name] = "" if value is None else str(value)
        if value is None or value is False or bound.name == "name" and form.instance.pk:
            continue
        data[bound.html_name] = "on" if value is True else bound.field.prepare_value(value)
    data["reason"] = "because"
    merged = {**data, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def errors_of(response: Any) -> dict[str, Any]:
    errors: dict[str, Any] = dict(response.context["adminform"].form.errors)
    return errors


def messages_of(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


@pytest.mark.parametrize(
    ("role", "list_status", "add_status", "post_status"),
    [("viewer", 200, 403, 403), ("operator", 200, 403, 403), ("owner", 200, 200, 302), ("admin", 200, 200, 302),
     ("other", 403, 403, 403)],
)  # fmt: skip
def test_roles(contract: JobType, role: str, list_status: int, add_status: int, post_status: int) -> None:
    data: dict[str, Any] = {}
    client = client_of(role)
    assert client.get(reverse(LIST)).status_code == list_status
    assert client.get(reverse("admin:queues_jobtype_add")).status_code == add_status
    assert client.get(change_url()).status_code == list_status
    if post_status == 302:
        data = form_data(client, change_url(), window_seconds="30")
    assert client.post(change_url(), data).status_code == post_status
    assert JobType.objects.get().window_seconds == (30 if post_status == 302 else 60)


def test_who_is_not_staff_stays_out(contract: JobType) -> None:
    assert client_of("admin", staff=False).get(change_url()).status_code == 302


def test_a_viewer_sees_no_form_fields(contract: JobType) -> None:
    page = client_of("viewer").get(change_url()).content.decode()
    assert "What this contract promises" in page
    assert 'name="window_seconds"' not in page
    assert 'name="reason"' not in page
    assert "New secret" not in page
    assert "callback secret</label>" not in page


def test_a_change_makes_a_version_with_who_and_why(owner: Client, contract: JobType) -> None:
    data = form_data(owner, change_url(), window_seconds="30", reason="support asked")
    response = owner.post(change_url(), data, follow=True)
    assert "This is version 2." in messages_of(response)
    revision = ContractRevision.objects.get(version=2)
    assert (revision.actor, revision.reason, revision.diff) == ("owner", "support asked", {"window_seconds": [60, 30]})
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.source, entry.actor) == ("contract.changed", "admin", "owner")


def test_a_change_needs_a_reason(owner: Client, contract: JobType) -> None:
    response = owner.post(change_url(), form_data(owner, change_url(), window_seconds="30", reason=""))
    assert list(errors_of(response)) == ["reason"]
    assert JobType.objects.get().version == 1


def test_the_same_again_makes_no_version(owner: Client, contract: JobType) -> None:
    response = owner.post(change_url(), form_data(owner, change_url()), follow=True)
    assert "The contract is as it was: no new version." in messages_of(response)
    assert JobType.objects.get().version == 1


def test_a_new_type(owner: Client) -> None:
    url = reverse("admin:queues_jobtype_add")
    data = form_data(owner, url, name="mail.welcome", concurrency="3", batch_size="2", reason="")
    response = owner.post(url, data, follow=True)
    row = JobType.objects.get()
    assert (row.name, row.tier_id, row.concurrency, row.version) == ("mail.welcome", 2, 3, 1)
    shown = "\n".join(messages_of(response))
    assert "Retries without a required key" in shown
    assert "batch_size is not enforced yet" in shown


@pytest.mark.parametrize("name", ["", "a" * 256, "../x", "a/b", "a\x00b", " lead", "Upper", "smile😀"])
def test_a_wrong_name_is_a_form_error(owner: Client, name: str) -> None:
    url = reverse("admin:queues_jobtype_add")
    assert "name" in errors_of(owner.post(url, form_data(owner, url, name=name)))
    assert not JobType.objects.exists()


def test_a_name_twice_is_a_form_error(owner: Client, contract: JobType) -> None:
    url = reverse("admin:queues_jobtype_add")
    assert "name" in errors_of(owner.post(url, form_data(owner, url, name=NAME)))
    assert JobType.objects.get().version == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", "-1"), ("max_attempts", "0"), ("max_attempts", "1000000000"), ("max_attempts", "1.5"),
        ("max_attempts", ""), ("backoff_base_seconds", "0"), ("backoff_base_seconds", "nan"),
        ("backoff_base_seconds", "301"), ("jitter", "200 %"), ("tier", "9"), ("window_seconds", "604801"),
        ("key_template", "x-{created_at}"), ("key_template", "{a[0]}"), ("schema", "[1]"), ("schema", "{"),
        ("schema", '{"type": "strin"}'), ("schema", "[" * 50_000), ("schema", '{"$ref": "http://a.example/"}'),
        ("redact", "card"), ("never_retry", "Not A Name"), ("success", "receipt"), ("check_url", "ftp://a.example/"),
        ("keep_other_days", "0"), ("dedupe_window_seconds", "700000"), ("new_callback_secret", "short"),
        ("runbook_url", "javascript:alert(1)"), ("handler", "http"), ("new_secret", "short"),
        ("new_secret", "whsec_not*base64"), ("description", "x" * 2001),
    ],
)  # fmt: skip
def test_what_the_rules_refuse_is_an_error_beside_its_field(
    owner: Client, contract: JobType, field: str, value: str
) -> None:
    response = owner.post(change_url(), form_data(owner, change_url(), **{field: value}))
    assert response.status_code == 200
    expected = "target_url" if field == "handler" else field
    assert expected in errors_of(response)
    assert JobType.objects.get().version == 1


def test_lists_are_one_word_a_line(owner: Client, contract: JobType) -> None:
    data = form_data(owner, change_url(), never_retry="ValueError\r\n\r\n KeyError ", redact="/card\n/a~1b")
    owner.post(change_url(), data)
    row = JobType.objects.get()
    assert row.never_retry == ["ValueError", "KeyError"]
    assert row.redact == ["/card", "/a~1b"]
    assert "ValueError\nKeyError" in owner.get(change_url()).content.decode()


def test_every_field_without_an_engine_says_so(owner: Client, contract: JobType) -> None:
    page = owner.get(change_url()).content.decode()
    assert page.count("not enforced yet</strong>") == len(NOT_ENFORCED)


def test_the_preview_saves_nothing(owner: Client, contract: JobType) -> None:
    data = form_data(
        owner, change_url(), max_attempts="7", reason="", sample_payload='{"invoice_id": "R 7"}', _preview="Preview"
    )
    response = owner.post(change_url(), data)
    page = response.content.decode()
    assert response.status_code == 200
    assert "Preview: nothing is saved yet." in page
    assert "invoice-R%207" in page
    assert "up to 7 attempts" in page
    assert "Please correct" not in page
    assert JobType.objects.get().max_attempts == 5


@pytest.mark.parametrize(
    ("sample", "words"),
    [("{}", "The payload has no /invoice_id"), ("{", "The sample is not JSON"),
     ('{"invoice_id": 1.5}', "must be text or a whole number"), ("[]", "The payload has no"), ("[" * 9999, "not JSON")],
)  # fmt: skip
def test_the_preview_says_why_there_is_no_key(owner: Client, contract: JobType, sample: str, words: str) -> None:
    response = owner.post(change_url(), form_data(owner, change_url(), sample_payload=sample, _preview="Preview"))
    assert words in response.context["key_problem"]


def test_the_preview_of_a_new_type(owner: Client) -> None:
    url = reverse("admin:queues_jobtype_add")
    response = owner.post(url, form_data(owner, url, name="x", max_attempts="2", _preview="Preview"))
    assert "up to 2 attempts" in response.content.decode()
    assert not JobType.objects.exists()


def test_ten_delays_are_shown(owner: Client, contract: JobType) -> None:
    context = owner.get(change_url()).context
    assert len(context["delays"]) == 10
    assert context["delays"][0] == (1, "0s", "2s")
    assert context["delays"][9] == (10, "0s", "5m 00s")


def test_a_secret_goes_in_and_never_comes_out(owner: Client, contract: JobType) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    data = form_data(owner, change_url(), new_secret=secret, window_seconds="")
    assert secret not in owner.post(change_url(), data).content.decode()
    owner.post(change_url(), form_data(owner, change_url(), new_secret=secret))
    row = JobType.objects.get()
    assert row.target_secret is not None
    assert secrets_box.open(row.target_secret) == secret
    for url in (change_url(), reverse("admin:queues_jobtype_history", args=[NAME])):
        assert secret not in owner.get(url).content.decode()
    assert "A secret for the target is stored" in owner.get(change_url()).content.decode()
    owner.post(change_url(), form_data(owner, change_url(), remove_secret="on"))
    assert JobType.objects.get().target_secret is None


def test_a_callback_secret_goes_in_and_never_comes_out(owner: Client, contract: JobType) -> None:
    first, second = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "a second secret of a provider"
    for secret in (first, second):
        answer = owner.post(change_url(), form_data(owner, change_url(), new_callback_secret=secret), follow=True)
        assert secret not in answer.content.decode()
    row = JobType.objects.get()
    assert row.callback_secret is not None and row.callback_secret_old is not None
    assert (secrets_box.open(row.callback_secret), secrets_box.open(row.callback_secret_old)) == (second, first)
    assert row.target_secret is None
    for client in (owner, client_of("viewer")):
        for url in (change_url(), reverse("admin:queues_jobtype_history", args=[NAME])):
            page = client.get(url).content.decode()
            assert first not in page and second not in page
        text = client.get(change_url()).content.decode()
        assert "A callback secret is stored, encrypted; the one before it is taken until" in text
    entry = AuditEntry.objects.latest("id")
    assert (entry.action, entry.before, entry.after) == (
        "contract.changed",
        {"version": 2, "callback_secret": "[redacted]"},
        {"version": 3, "callback_secret": "[redacted]"},
    )
    assert ContractRevision.objects.get(version=3).diff == {"callback_secret": ["set", "changed"]}
    both = form_data(owner, change_url(), new_callback_secret=first, remove_callback_secret="on")
    assert "remove_callback_secret" in errors_of(owner.post(change_url(), both))
    owner.post(change_url(), form_data(owner, change_url(), remove_callback_secret="on"))
    row = JobType.objects.get()
    assert (row.callback_secret, row.callback_secret_old) == (None, None)
    assert "No callback secret is stored here." in owner.get(change_url()).content.decode()


def test_the_forms_of_success_are_saved_with_what_they_need(owner: Client, contract: JobType) -> None:
    data = form_data(owner, change_url(), success="callback", hard_limit_seconds="60")
    response = owner.post(change_url(), data, follow=True)
    assert any("No provider can call back" in text for text in messages_of(response))
    page = response.client.get(change_url()).content.decode()
    assert "the provider called back. A job without that within 5 minutes of its run becomes a dead letter." in page
    secret = "a secret of the provider"
    response = owner.post(change_url(), form_data(owner, change_url(), new_callback_secret=secret), follow=True)
    assert not any("No provider can call back" in text for text in messages_of(response))
    http = {"handler": "http", "target_url": "https://a.example/", "success": "check", "on_unconfirmed": "check_again"}
    response = owner.post(change_url(), form_data(owner, change_url(), **http))
    assert "For success = check and on_unconfirmed = check_again an HTTP handler needs" in str(
        errors_of(response)["check_url"]
    )
    http["check_url"] = "https://a.example/outcome"
    assert owner.post(change_url(), form_data(owner, change_url(), **http)).status_code == 302
    row = JobType.objects.get()
    assert (row.success, row.on_unconfirmed, row.check_url) == ("check", "check_again", "https://a.example/outcome")


def test_a_secret_without_encryption_keys_is_a_form_error(owner: Client, contract: JobType, settings: Any) -> None:
    settings.ENCRYPTION_KEYS = []
    response = owner.post(change_url(), form_data(owner, change_url(), new_secret="a-secret-of-some-length"))
    assert "ENCRYPTION_KEYS is not set" in str(errors_of(response)["new_secret"])


def test_switches_change_without_a_version(owner: Client, contract: JobType) -> None:
    owner.post(change_url(), form_data(owner, change_url(), paused="on", enabled=None, reason="provider is down"))
    row = JobType.objects.get()
    assert (row.paused, row.enabled, row.paused_reason, row.version) == (True, False, "provider is down", 1)
    assert (row.disabled_reason, row.disabled_by, row.paused_by) == ("provider is down", "owner", "owner")
    assert set(AuditEntry.objects.values_list("action", flat=True)) == {
        "contract.created", "contract.paused", "contract.disabled",
    }  # fmt: skip


def test_a_switch_has_a_reason_and_an_end_of_its_own(owner: Client, contract: JobType) -> None:
    until = database_now().replace(second=0, microsecond=0) + timedelta(hours=2)
    data = form_data(
        owner, change_url(), paused="on", paused_reason="relay is down", paused_until=f"{until:%Y-%m-%dT%H:%M}",
        window_seconds="30", reason="tighter",
    )  # fmt: skip
    assert owner.post(change_url(), data).status_code == 302
    row = JobType.objects.get()
    assert (row.paused_reason, row.paused_by, row.paused_until, row.version) == ("relay is down", "owner", until, 2)
    for client in (owner, client_of("viewer")):
        page = " ".join(client.get(change_url()).content.decode().split())
        at = AuditEntry.objects.get(action="contract.paused").at
        words = f"by owner on {at:%Y-%m-%d %H:%M} UTC, until {until:%Y-%m-%d %H:%M} UTC: relay is down"
        assert f"<strong>Paused</strong> {words}" in page
    # The form is filled with it; saving something else leaves it alone.
    owner.post(change_url(), form_data(owner, change_url(), window_seconds="31"))
    assert JobType.objects.get().paused_until == until
    owner.post(change_url(), form_data(owner, change_url(), paused=None, reason="it is back"))
    row = JobType.objects.get()
    assert (row.paused, row.paused_reason, row.paused_by, row.paused_until) == (False, "", "", None)
    assert AuditEntry.objects.latest("id").reason == "it is back"
    assert "<strong>Paused" not in owner.get(change_url()).content.decode()


def test_a_pause_set_meanwhile_on_the_board_survives_a_save_of_the_form(owner: Client, contract: JobType) -> None:
    data = form_data(owner, change_url(), window_seconds="30")
    set_switch(NAME, paused=True, reason="relay is down", actor="bob", source="ui")
    assert owner.post(change_url(), data).status_code == 302
    row = JobType.objects.get()
    assert (row.window_seconds, row.paused, row.paused_reason, row.paused_by) == (30, True, "relay is down", "bob")


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"paused": "on", "paused_until": "2020-01-01T00:00"}, "paused_until", "in the future"),
        ({"paused": "on", "paused_until": "9999-01-01T00:00"}, "paused_until", "at most 366 days"),
        ({"paused": "on", "paused_until": "soon"}, "paused_until", "valid date/time"),
        ({"paused_until": "2100-01-01T00:00"}, "paused_until", "tick “Paused”"),
        ({"disabled_reason": "moved"}, "disabled_reason", "untick “Enabled”"),
        ({"enabled": None, "disabled_reason": "x" * 1001}, "disabled_reason", "at most 1000"),
    ],
)
def test_a_wrong_end_or_reason_of_a_switch(
    owner: Client, contract: JobType, changes: dict[str, Any], field: str, words: str
) -> None:
    response = owner.post(change_url(), form_data(owner, change_url(), **changes))
    assert words in str(errors_of(response)[field])
    row = JobType.objects.get()
    assert (row.paused, row.enabled) == (False, True)


def test_a_new_type_may_start_paused_until_later(owner: Client) -> None:
    url = reverse("admin:queues_jobtype_add")
    until = database_now().replace(second=0, microsecond=0) + timedelta(days=2)
    data = form_data(owner, url, name="mail.welcome", paused="on", paused_until=f"{until:%Y-%m-%dT%H:%M}", reason="")
    owner.post(url, data)
    row = JobType.objects.get()
    assert (row.paused, row.paused_reason, row.paused_by, row.paused_until) == (True, "Created.", "owner", until)
    assert (row.enabled, row.version) == (True, 1)


def test_who_edits_an_old_version_is_told(owner: Client, contract: JobType) -> None:
    data = form_data(owner, change_url(), window_seconds="30")
    contract_versions.save(NAME, {"owner": "x"}, actor="other", reason="faster")
    response = owner.post(change_url(), data)
    assert "Somebody saved version 2" in str(errors_of(response)["__all__"])
    assert JobType.objects.get().window_seconds == 60


def test_history_compare_and_restore(owner: Client, contract: JobType) -> None:
    contract_versions.save(NAME, {"window_seconds": 30}, actor="bob", reason=MARKER)
    history = reverse("admin:queues_jobtype_history", args=[NAME])
    page = owner.get(history, {"a": "1", "b": "2"})
    assert page.context["compared"] == [("window_seconds", "60", "30")]
    assert MARKER not in page.content.decode()
    assert owner.get(history, {"a": "1", "b": "99"}).context["missing"]
    assert owner.get(history, {"a": "x", "b": "9" * 99}).status_code == 200
    restore = reverse("admin:queues_jobtype_restore", args=[NAME])
    assert owner.get(restore).status_code == 405
    owner.post(restore, {"version": "1", "reason": ""})
    owner.post(restore, {"version": "7", "reason": "back"})
    assert JobType.objects.get().version == 2
    response = owner.post(restore, {"version": "1", "reason": "back"}, follow=True)
    assert "Version 1 is back as version 3." in messages_of(response)
    assert JobType.objects.get().window_seconds == 60
    assert client_of("viewer").post(restore, {"version": "2", "reason": "x"}).status_code == 403
    assert client_of("other").get(history).status_code == 403


def test_history_of_a_type_that_is_not_there(owner: Client) -> None:
    assert owner.get(reverse("admin:queues_jobtype_history", args=["gone"])).status_code == 302


def test_markup_in_a_contract_is_text(owner: Client, contract: JobType) -> None:
    text = f"<script>alert(1)</script> ![](http://evil) {MARKER}"
    owner.post(change_url(), form_data(owner, change_url(), description=text, owner=MARKER, reason=MARKER))
    for url in (change_url(), reverse(LIST), reverse("admin:queues_jobtype_history", args=[NAME])):
        page = owner.get(url).content.decode()
        assert "<script>alert" not in page
        assert MARKER not in page


def test_a_type_with_jobs_is_not_deleted(owner: Client, contract: JobType) -> None:
    url = reverse("admin:queues_jobtype_delete", args=[NAME])
    StateCount.objects.create(type=NAME, tier=2, state="accepted", n=12)
    for response in (owner.get(url, follow=True), owner.post(url, {"post": "yes"}, follow=True)):
        assert messages_of(response) == ["Not deleted. This job type has jobs (12 accepted). Disable it instead."]
    assert JobType.objects.exists()
    assert client_of("viewer").post(url, {"post": "yes"}).status_code == 403


def test_a_type_without_jobs_is_deleted_and_audited(owner: Client, contract: JobType) -> None:
    url = reverse("admin:queues_jobtype_delete", args=[NAME])
    assert owner.get(url).status_code == 200
    owner.post(url, {"post": "yes"})
    assert not JobType.objects.exists()
    assert AuditEntry.objects.latest("id").action == "contract.deleted"


def test_nothing_is_deleted_in_bulk(owner: Client, contract: JobType) -> None:
    assert "delete_selected" not in dict(admin.site.actions)
    owner.post(reverse(LIST), {"action": "delete_selected", "_selected_action": [NAME], "post": "yes"})
    assert JobType.objects.exists()


def test_jobs_and_the_audit_log_are_not_in_the_admin() -> None:
    assert not {Job, AuditEntry, ContractRevision, StateCount} & set(admin.site._registry)


def test_tiers_are_edited_and_audited(owner: Client) -> None:
    url = reverse("admin:queues_tier_change", args=[1])
    data = {
        "name": "Critical", "target_ratio": "0.99", "retry_budget": "0.2", "backlog_limit": "1000000",
        "defer_after_seconds": "90",
    }  # fmt: skip
    assert owner.post(url, data).status_code == 200
    owner.post(url, {**data, "reason": "honest"})
    assert (Tier.objects.get(pk=1).target_ratio, Tier.objects.get(pk=1).defer_after_seconds) == (0.99, 90)
    assert "wait longer than 90 seconds for a worker" in owner.get(url).content.decode()
    assert AuditEntry.objects.get().action == "tier.changed"
    assert owner.get(reverse("admin:queues_tier_add")).status_code == 403
    assert owner.post(reverse("admin:queues_tier_delete", args=[1]), {"post": "yes"}).status_code == 403
    viewer = client_of("viewer")
    assert viewer.get(url).status_code == 200
    assert viewer.post(url, {**data, "reason": "x"}).status_code == 403


def test_a_tier_says_what_it_promises(owner: Client, contract: JobType) -> None:
    contract_versions.save("own.share", {"target_ratio": 0.5}, actor="ada", reason="")
    contract_versions.save("first", {"tier": 1}, actor="ada", reason="")
    url = reverse("admin:queues_tier_change", args=[2])
    for client in (owner, client_of("viewer")):
        page = client.get(url).content.decode()
        assert "What this tier promises" in page
        assert "In tier 2 (Customer facing) 99.5% of jobs are confirmed" in page
        assert "2 job types are in it, 1 of them with a share of its own." in page
    wrong = owner.post(url, {"name": "x", "target_ratio": "7", "retry_budget": "0.2", "backlog_limit": "1"})
    assert "In tier 2 (Customer facing) 99.5% of jobs" in wrong.content.decode()


def test_pages_have_no_inline_script_or_style(owner: Client, contract: JobType) -> None:
    for url in (
        reverse("admin:index"),
        reverse(LIST),
        reverse("admin:queues_tier_change", args=[1]),
        change_url(),
        reverse("admin:queues_jobtype_history", args=[NAME]),
    ):
        page = owner.get(url).content.decode()
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", page)
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", page))


def test_a_schema_is_shown_as_it_was_typed_when_it_is_wrong(owner: Client, contract: JobType) -> None:
    response = owner.post(change_url(), form_data(owner, change_url(), schema='{"type": }'))
    assert "{&quot;type&quot;: }" in response.content.decode()
    schema = {"type": "object", "properties": {"invoice_id": {"type": "string"}}, "required": ["invoice_id"]}
    owner.post(change_url(), form_data(owner, change_url(), schema=json.dumps(schema)))
    assert JobType.objects.get().schema == schema
