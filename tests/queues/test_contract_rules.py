"""Rules of contracts (DESIGN.md section 6, RELIABILITY.md C3), key templates, the promise and the retry preview."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from queues import contract_fields, contract_rules, contracts
from queues.contract_rules import (
    KeyTemplateError,
    check,
    key_from_template,
    next_delays,
    promise_sentence,
    tier_sentence,
)
from queues.models import JobType

SOUND: dict[str, Any] = {
    "key_required": True,
    "key_template": "invoice-{invoice_id}",
    "hard_limit_seconds": 60,
    "confirm_within_seconds": 60,
}
HTTP: dict[str, Any] = {"handler": "http", "target_url": "https://a.example/", "target_secret": True}


DERIVED = {"limited", "breaker"}
STORED_SECRETS = {"target_secret", "callback_secret", "callback_secret_old", "callback_secret_old_until"}


def errors(**fields: Any) -> dict[str, list[str]]:
    return dict(check({**SOUND, **fields}).errors)


def warnings(**fields: Any) -> str:
    findings = check({**SOUND, **fields})
    assert findings.ok, findings.errors
    return "\n".join(findings.warnings)


def test_a_sound_contract_has_no_findings() -> None:
    findings = check(SOUND)
    assert findings.ok
    assert findings.warnings == []


def test_the_sample_of_the_design_is_sound() -> None:
    assert (
        errors(
            handler="http",
            target_url="https://shop.example/jobs",
            target_secret_env="SHOP_SECRET",
            max_attempts=4,
            never_retry=["ValueError"],
            redact=["/card", "/email"],
            schema={"type": "object", "required": ["invoice_id"]},
        )
        == {}
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_attempts", -1),
        ("max_attempts", 0),
        ("max_attempts", 10**9),
        ("max_attempts", 1.5),
        ("max_attempts", ""),
        ("max_attempts", True),
        ("max_attempts", None),
        ("backoff_base_seconds", 0),
        ("backoff_base_seconds", float("nan")),
        ("backoff_cap_seconds", float("inf")),
        ("rate_per_second", -1.0),
        ("jitter", "200%"),
        ("backoff", "factor"),
        ("tier", 4),
        ("tier", True),
        ("tier", "1"),
        ("target_ratio", 1.01),
        ("window_seconds", 0),
        ("priority_default", 101),
        ("lease_seconds", 4),
        ("max_payload_bytes", 2 * 1024 * 1024),
        ("pool", "Big Pool"),
        ("description", "x" * 2001),
        ("description", "a\x00b"),
        ("owner", 7),
        ("never_retry", "ValueError"),
        ("schema", []),
        ("runbook_url", "javascript:alert(1)"),
        ("runbook_url", "ftp://a.example/x"),
        ("concurrency", 2**40),
    ],
)
def test_a_wrong_value_is_an_error_of_its_field(field: str, value: Any) -> None:
    assert list(errors(**{field: value})) == [field]


def test_an_unknown_field_is_an_error() -> None:
    assert errors(queue="fast") == {"queue": ["There is no such field."]}


def test_text_is_text_and_markup_in_it_is_no_error() -> None:
    assert errors(description="<script>alert(1)</script> ![](http://evil) [x](javascript:1)") == {}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"window_seconds": 601, "max_age_seconds": 600}, "window_seconds"),
        ({"soft_limit_seconds": 30, "hard_limit_seconds": 30}, "hard_limit_seconds"),
        ({"success": "callback", "confirm_within_seconds": 0}, "confirm_within_seconds"),
        ({"success": "check", "confirm_within_seconds": 601, "max_age_seconds": 600}, "confirm_within_seconds"),
        ({"success": "check", "check_every_seconds": 0}, "check_every_seconds"),
        ({"on_unconfirmed": "check_again", "check_every_seconds": 0}, "check_every_seconds"),
        ({**HTTP, "success": "check"}, "check_url"),
        ({**HTTP, "on_unconfirmed": "check_again"}, "check_url"),
        ({"success": "check", "check_url": "https://user:pw@a.example/"}, "check_url"),
        ({"callback_secret_env": "ENCRYPTION_KEYS"}, "callback_secret_env"),
        ({"keep_confirmed_days": 0}, "keep_confirmed_days"),
        ({"keep_other_days": 36_501}, "keep_other_days"),
        ({"dedupe_window_seconds": 7 * 86400 + 1}, "dedupe_window_seconds"),
        ({"dedupe_window_seconds": 86401, "keep_other_days": 1}, "dedupe_window_seconds"),
        ({"backoff_base_seconds": 301.0}, "backoff_base_seconds"),
        ({"never_retry": ["Value Error"]}, "never_retry"),
        ({"never_retry": ["1x"]}, "never_retry"),
        ({"never_retry": [3]}, "never_retry"),
        ({"redact": ["card"]}, "redact"),
        ({"redact": ["/a~2"]}, "redact"),
        ({"handler": "http"}, "target_url"),
        ({"handler": "http", "target_url": "ftp://a.example/"}, "target_url"),
        ({"handler": "http", "target_url": "https:///jobs"}, "target_url"),
        ({"handler": "http", "target_url": "https://user:pw@a.example/"}, "target_url"),
        ({"handler": "http", "target_url": "https://a.example:99999/"}, "target_url"),
        ({"handler": "http", "target_url": "https://a.example/ x"}, "target_url"),
        ({"handler": "http", "target_url": "https://a.example/\r\nHost: b"}, "target_url"),
        ({"target_secret_env": "A B"}, "target_secret_env"),
        ({"target_secret_env": "SECRET_KEY"}, "target_secret_env"),
        ({"schema": {"type": "strin"}}, "schema"),
        ({"schema": {"$ref": "https://evil.example/schema.json"}}, "schema"),
        ({"schema": {"$ref": "other.json"}}, "schema"),
        ({"schema": {"properties": {"a": {"$ref": "#/$defs/missing"}}}}, "schema"),
        ({"schema": {"$id": "https://a.example/", "type": "object"}}, "schema"),
        ({"schema": {"$schema": "http://json-schema.org/draft-07/schema#"}}, "schema"),
        ({"schema": {"properties": {"a": {"pattern": "(a+)+$"}}}}, "schema"),
        ({"schema": {"properties": {"a": {"pattern": "("}}}}, "schema"),
        ({"rate_per_second": -1.0}, "rate_per_second"),
        ({"group_rate_per_second": 10_001.0}, "group_rate_per_second"),
        ({"rate_burst": 5}, "rate_burst"),
        ({"ordered": True, "group_concurrency": 2}, "group_concurrency"),
        ({"overlap": "throttle"}, "overlap_seconds"),
        ({"overlap": "debounce", "overlap_seconds": 86_401}, "overlap_seconds"),
        ({"overlap": "keep_last", "overlap_seconds": 5}, "overlap_seconds"),
        ({"overlap_seconds": 5}, "overlap_seconds"),
        ({"overlap": "replace", "ordered": True}, "overlap"),
    ],
)
def test_rules_across_fields(fields: dict[str, Any], field: str) -> None:
    assert list(errors(**fields)) == [field]


@pytest.mark.parametrize(
    "template",
    ["{", "{}", "{0}", "{a[0]}", "{a.__class__}", "{a!r}", "{a:>9}", "plain", "in voice-{a}", "ä{a}", "{a }", "{{a}}"],
)
def test_a_template_that_is_more_than_fields_is_refused(template: str) -> None:
    assert list(errors(key_template=template)) == ["key_template"]


@pytest.mark.parametrize(
    "field",
    ["timestamp", "created_at", "createdAt", "now", "uuid", "nonce", "random_id", "attempt", "retry_count",
     "retryCount", "order.sent_at", "request_id", "trace_id", "ts", "Timestamp"],
)  # fmt: skip
def test_a_field_that_differs_at_each_try_is_refused_with_the_reason(field: str) -> None:
    (text,) = errors(key_template=f"x-{{{field}}}")["key_template"]
    assert "differs when the producer tries again" in text


@pytest.mark.parametrize(
    "field", ["invoice_id", "customer.id", "order_uuid", "format", "date", "country", "retryable_no"]
)
def test_a_field_that_names_a_thing_is_taken(field: str) -> None:
    assert errors(key_template=f"x-{{{field}}}") == {}


SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["invoice_id", "customer"],
    "$defs": {"who": {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}},
    "properties": {
        "lines": {"type": "array"},
        "total": {"type": "number"},
        "paid": {"type": "boolean"},
        "booked": {"type": "string", "format": "date-time"},
        "invoice_id": {"type": "string"},
        "note": {"type": "string"},
        "customer": {"$ref": "#/$defs/who"},
    },
}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("order_id", "is not in the schema. Example: {invoice_id}"),
        ("customer.name", "is not in the schema. Example: {customer.id}"),
        ("customer", "is an object"),
        ("lines", "is an array"),
        ("total", "is a number (1, 1.0 and 1e0"),
        ("paid", "is a boolean"),
        ("booked", "point in time"),
    ],
)
def test_a_template_must_fit_the_schema(path: str, words: str) -> None:
    (text,) = errors(schema=SCHEMA, key_template=f"k-{{{path}}}")["key_template"]
    assert words in text


def test_a_template_that_fits_the_schema() -> None:
    assert warnings(schema=SCHEMA, key_template="k-{invoice_id}-{customer.id}") == ""
    assert "{note} is not required" in warnings(schema=SCHEMA, key_template="k-{note}")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"key_required": False}, "Retries without a required key"),
        ({"dedupe_window_seconds": 60, "provider_key_ttl_seconds": 86400}, "swallow"),
        ({"backoff_cap_seconds": 700.0, "max_age_seconds": 600}, "longer than the max age"),
        ({"handler": "http", "target_url": "https://a.example/"}, "no secret"),
        ({"handler": "http", "target_url": "http://a.example/", "target_secret_env": "S"}, "not encrypted"),
        ({"target_url": "https://a.example/"}, "not used"),
        ({"batch_size": 2}, "batch_size is not enforced yet"),
        (
            {"ordered": True, "success": "callback", "callback_secret": True},
            "a group waits for each job's confirmation",
        ),
        ({"concurrency": 2, "group_concurrency": 3}, "so it never holds"),
        ({"overlap": "keep_last", "key_template": "k-{id}"}, "takes no place of anything"),
        ({"overlap": "debounce", "overlap_seconds": 90, "max_age_seconds": 90}, "longer than its maximum age"),
        ({"hard_limit_seconds": 0}, "a body that hangs holds its job for ever"),
        ({"hard_limit_seconds": 0, "soft_limit_seconds": 5}, "a body that hangs holds its job for ever"),
        ({"success": "callback"}, "No provider can call back"),
        ({"success": "check"}, "For success = check a @check function must be registered"),
        ({"on_unconfirmed": "check_again"}, "For on_unconfirmed = check_again a @check function must be"),
        ({"success": "check", "on_unconfirmed": "check_again"}, "success = check and on_unconfirmed = check_again"),
        ({"check_url": "https://a.example/"}, "no secret to sign checks with"),
        ({"check_url": "http://a.example/", "target_secret": True}, "answers can be forged"),
        (
            {**HTTP, "success": "callback", "confirm_within_seconds": 61},
            "The proof may take 61 seconds, longer than the promised 1 minute",
        ),
    ],
)
def test_warnings(fields: dict[str, Any], words: str) -> None:
    assert words in warnings(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {**HTTP, "success": "callback"},
        {**HTTP, "hard_limit_seconds": 0},
        {**HTTP, "success": "check", "check_url": "https://a.example/outcome", "on_unconfirmed": "check_again"},
        {"success": "callback", "callback_secret": True},
        {"success": "callback", "callback_secret_env": "PROVIDER_SECRET"},
        {"success": "check", "check_url": "https://a.example/outcome", "target_secret_env": "SHOP_SECRET"},
        {"success": "return", "confirm_within_seconds": 0, "check_every_seconds": 0},
        {"dedupe_window_seconds": 7 * 86400},
        {"dedupe_window_seconds": 30 * 86400, "keep_confirmed_days": 30},
        {"dedupe_window_seconds": 0, "keep_confirmed_days": 1},
    ],
)
def test_nothing_is_said_about_what_is_whole(fields: dict[str, Any]) -> None:
    assert warnings(**fields) == ""


def test_who_and_until_when_cannot_be_written_into_a_contract() -> None:
    given = {"paused_until": "2030-01-01", "disabled_by": "me"}
    assert {name: texts[0][:26] for name, texts in errors(**given).items()} == dict.fromkeys(
        sorted(given), "Kept by the switch itself:"
    )
    assert errors(paused=True, paused_reason="not yet") == {}


def test_one_attempt_needs_no_key() -> None:
    assert check({"max_attempts": 1, "hard_limit_seconds": 60}).warnings == []


def test_files_under_review_may_not_retry_without_a_key() -> None:
    assert list(check({"max_attempts": 2}, strict=True).errors) == ["key_required"]


def test_a_queue_without_a_worker_is_a_warning() -> None:
    assert "tier2.mail" in check({**SOUND, "pool": "mail"}, live_queues={"tier2"}).warnings[0]
    assert check({**SOUND, "pool": "mail"}, live_queues={"tier2.mail"}).warnings == []


def test_a_new_key_template_is_a_warning() -> None:
    assert "old key" in check(SOUND, previous={**SOUND, "key_template": "i-{invoice_id}"}).warnings[0]


def test_every_field_of_the_model_has_a_kind() -> None:
    kinds = contract_fields.VERSIONED | contract_fields.CURRENT | contract_fields.SWITCHES
    beside = {"name", "version", "created_at", "changed_at", *DERIVED, *STORED_SECRETS}
    assert kinds | beside == {field.name for field in JobType._meta.concrete_fields}
    assert not contract_fields.VERSIONED & contract_fields.CURRENT


def test_the_reader_of_contracts_agrees_on_what_is_always_current() -> None:
    beside = contract_fields.SWITCHES | STORED_SECRETS | DERIVED
    assert contracts.CURRENT_FIELDS - beside <= contract_fields.CURRENT
    assert set(contract_fields.SECRETS) < STORED_SECRETS


def test_fields_whose_engine_is_not_built() -> None:
    assert sorted(contract_rules.NOT_ENFORCED) == ["batch_size", "canary_ratio"]


@pytest.mark.parametrize(
    ("template", "payload", "key"),
    [
        ("invoice-{invoice_id}", {"invoice_id": 42}, "invoice-42"),
        ("{customer.id}/{n}", {"customer": {"id": "a"}, "n": -7}, "a/-7"),
        ("k-{a}", {"a": "ä b"}, "k-%C3%A4%20b"),
        ("k-{a}", {"a": "100%"}, "k-100%25"),
        ("k-{a}", {"a": "x\r\ny"}, "k-x%0D%0Ay"),
        ("{{k}}{a}", {"a": "1"}, "{k}1"),
        ("{a}", {"a": "x" * 255}, "x" * 255),
    ],
)
def test_keys(template: str, payload: dict[str, Any], key: str) -> None:
    assert key_from_template(template, payload) == key


@pytest.mark.parametrize(
    ("payload", "pointer"),
    [
        ({}, "/a/b"),
        ({"a": {}}, "/a/b"),
        ({"a": [1]}, "/a/b"),
        ({"a": {"b": True}}, "/a/b"),
        ({"a": {"b": 1.0}}, "/a/b"),
        ({"a": {"b": None}}, "/a/b"),
        ({"a": {"b": ""}}, "/a/b"),
        ({"a": {"b": {}}}, "/a/b"),
        ({"a": {"b": "\ud800"}}, "/a/b"),
        ({"a": {"b": 10**400}}, "/a/b"),
        ({"a": {"b": "x" * 256}}, ""),
        ([], "/a/b"),
    ],
)
def test_payloads_that_give_no_key(payload: Any, pointer: str) -> None:
    with pytest.raises(KeyTemplateError) as caught:
        key_from_template("{a.b}", payload)
    assert caught.value.pointer == pointer


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_two_values_never_share_a_key(one: str, two: str) -> None:
    def key(value: str) -> str | None:
        try:
            return key_from_template("{a}", {"a": value})
        except KeyTemplateError:
            return None

    if key(one) is not None:
        assert all(0x21 <= ord(char) <= 0x7E for char in key(one) or "")
        assert (key(one) == key(two)) == (one == two)


def promise(**fields: Any) -> str:
    return promise_sentence({**contract_fields.defaults(), **SOUND, **fields})


def test_the_promise_in_words() -> None:
    assert promise(window_seconds=90, target_ratio=0.999, max_attempts=1) == (
        "99.9% of jobs are confirmed within 90 seconds of being ready. Done means that the handler returned the "
        "reference that the outside world gave. A job whose run returned without one becomes a dead letter. A run is "
        "stopped after 1 minute. A job gets one attempt; not settled after 7 days it expires. Each job has a key, and "
        "one key is accepted once, as long as its job is kept."
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"on_unconfirmed": "retry"}, "whose run returned without one is run again."),
        (
            {"on_unconfirmed": "check_again", "check_every_seconds": 30},
            "without one is checked every 30 seconds until its max age.",
        ),
        ({"success": "return"}, "Done means only that the handler returned; it is shown as unverified. A run"),
        (
            {"success": "callback", "confirm_within_seconds": 300},
            "the provider called back. A job without that within 5 minutes of its run becomes a dead letter.",
        ),
        (
            {"success": "check", "on_unconfirmed": "retry"},
            "found the outcome in the outside world; it asks every 10 seconds. A job without that within 1 minute of "
            "its run is run again.",
        ),
        ({"soft_limit_seconds": 30}, "A run is told to stop after 30 seconds and is stopped after 1 minute."),
        ({"hard_limit_seconds": 0}, "Nothing stops a run that hangs."),
        (
            {"hard_limit_seconds": 0, "soft_limit_seconds": 30},
            "told to stop after 30 seconds; nothing stops a run that hangs.",
        ),
        ({"hard_limit_seconds": 0, "soft_limit_seconds": 5, "handler": "http"}, "told to stop after 5 seconds. A job"),
        ({"hard_limit_seconds": 0, "handler": "http"}, "becomes a dead letter. A job gets"),
        (
            {"concurrency": 1000, "group_concurrency": 2},
            "At most 1,000 run at the same time. Of one group at most 2 run at the same time.",
        ),
        ({"rate_per_second": 0.5}, "At most 0.5 a second begin."),
        (
            {"rate_per_second": 10.0, "rate_burst": 20, "group_rate_per_second": 1.0},
            "At most 10 a second begin, 20 at once. Of one group at most 1 a second begin.",
        ),
        ({"ordered": True}, "one after the other, as they were accepted; a dead letter holds its group up until"),
        ({"ordered": True, "ordered_on_failure": "step_aside"}, "after a dead letter its group goes on."),
    ],
)
def test_the_promise_names_proof_and_limits(fields: dict[str, Any], words: str) -> None:
    assert words in promise(**fields)


@pytest.mark.parametrize(
    ("types", "own", "words"),
    [
        (0, 0, "No job types are in it."),
        (1, 0, "1 job type is in it."),
        (3, 1, "3 job types are in it, 1 of them with a share of its own."),
    ],
)
def test_the_promise_of_a_tier(types: int, own: int, words: str) -> None:
    tier = {"number": 2, "name": "Customer facing", "target_ratio": 0.995, "backlog_limit": 1_000_000}
    sentence = tier_sentence(tier, types=types, own=own)
    assert sentence.startswith("In tier 2 (Customer facing) 99.5% of jobs are confirmed within the window")
    assert words in sentence
    assert "From 1,000,000 waiting jobs on" in sentence


def test_the_next_delays() -> None:
    fields = {**contract_fields.defaults(), "jitter": "equal", "backoff_cap_seconds": 10.0}
    assert next_delays(fields, 4) == [(1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (5.0, 10.0)]
    assert len(next_delays(fields)) == 10
