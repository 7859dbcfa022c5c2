"""What a reliability contract may say: one check for the admin form, `contracts sync` and `contracts check`.

Nothing here reads the database. Saving is `contract_versions`'; the fields themselves are in `models.contract`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models

from queues import retry
from queues.contract_fields import CURRENT, FIELDS, NOT_ENFORCED, SWITCHES, VERSIONED, default_of, defaults
from queues.contract_schema import problems as schema_problems
from queues.contract_schema import template_problems
from queues.key_template import KeyTemplateError, key_from_template, parse, paths, volatile

__all__ = [
    "CURRENT",
    "NOT_ENFORCED",
    "SWITCHES",
    "VERSIONED",
    "Findings",
    "KeyTemplateError",
    "check",
    "key_from_template",
    "next_delays",
    "promise_sentence",
    "queue_of",
]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_POINTER: Final = re.compile(r"(?:/(?:[^~]|~[01])*)*\Z")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OUR_SECRETS: Final = frozenset({"SECRET_KEY", "ENCRYPTION_KEYS", "DATABASE_URL", "BROKER_URL", "METRICS_TOKEN"})
_CONTROL_OR_SPACE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_LONGEST_LIST: Final = 100


@dataclass(frozen=True)
class Findings:
    """What is wrong, by field, and what is allowed but should be known."""

    errors: Mapping[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """There is no error."""
        return not self.errors


class _Notes:
    """Collects while the rules run."""

    def __init__(self) -> None:
        self.errors: dict[str, list[str]] = {}
        self.warnings: list[str] = []

    def error(self, name: str, text: str) -> None:
        self.errors.setdefault(name, []).append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def check(
    fields: Mapping[str, Any],
    *,
    previous: Mapping[str, Any] | None = None,
    live_queues: Collection[str] | None = None,
    strict: bool = False,
) -> Findings:
    """Check a contract; what it does not name has its default.

    `previous` is the contract that it replaces. `live_queues` are those that workers serve now, if that is known.
    `strict` is for files under review: retries without a required key are an error there.
    """
    notes = _Notes()
    for name in fields.keys() - FIELDS.keys() - {"target_secret"}:
        notes.error(name, "There is no such field.")
    values = {**defaults(), **{name: value for name, value in fields.items() if name in FIELDS}}
    for name, value in values.items():
        _check_value(name, value, notes)
    # The rules across fields may rely on the types once every single field is sound.
    if not notes.errors:
        values["target_secret"] = fields.get("target_secret")
        for rule in (_check_success, _check_times, _check_key, _check_retry, _check_lists, _check_target, _check_urls):
            rule(values, notes)
        for text in schema_problems(values["schema"]):
            notes.error("schema", text)
        _check_unkeyed_retries(values, notes, strict=strict)
        _check_against(values, notes, previous=previous, live_queues=live_queues)
        _warn_not_enforced(values, notes)
    return Findings(errors=notes.errors, warnings=notes.warnings)


def _check_value(name: str, value: Any, notes: _Notes) -> None:
    kind = FIELDS[name]
    wrong = "" if name == "tier" else _wrong_type(kind, value)
    if name == "tier" and (isinstance(value, bool) or value not in (1, 2, 3)):
        wrong = "The tier is 1, 2 or 3."
    if wrong:
        notes.error(name, wrong)
        return
    if name == "tier" or value is None:
        return
    # TOML can write it; PostgreSQL stores it neither in text nor in JSON.
    if "\\u0000" in json.dumps(value, default=str):
        notes.error(name, "Must not hold the character U+0000.")
        return
    try:
        kind.clean(value, None)
    except ValidationError as error:
        for text in error.messages:
            notes.error(name, text)
    limit = getattr(kind, "max_length", None)
    # Django checks the length of a TextField in forms only.
    if isinstance(kind, models.TextField) and limit and len(value) > limit:
        notes.error(name, f"At most {limit} characters.")


def _wrong_type(kind: models.Field[Any, Any], value: Any) -> str:
    if value is None:
        return "" if kind.null else "A value is needed."
    if isinstance(kind, models.BooleanField):
        return "" if isinstance(value, bool) else "Must be true or false."
    if isinstance(kind, models.IntegerField):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "Must be a whole number."
    if isinstance(kind, models.FloatField):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if number and math.isfinite(value) and value >= 0 else "Must be a number from 0."
    if isinstance(kind, models.JSONField):
        return "" if isinstance(value, type(kind.get_default())) else f"Must be {_shape_of(kind)}."
    return "" if isinstance(value, str) else "Must be text."


def _shape_of(kind: models.Field[Any, Any]) -> str:
    return "a list" if kind.get_default() == [] else "an object"


def _check_success(values: Mapping[str, Any], notes: _Notes) -> None:
    if values["success"] in ("callback", "check"):
        notes.error(
            "success",
            f"Not enforced yet: this release cannot confirm by {values['success']}. Use reference (the handler returns "
            "what the outside world gave) or return (shown as unverified).",
        )
    if values["on_unconfirmed"] == "check_again":
        notes.error("on_unconfirmed", "Not enforced yet: this release has no checks. Use dead or retry.")


def _check_times(values: Mapping[str, Any], notes: _Notes) -> None:
    if values["window_seconds"] > values["max_age_seconds"]:
        notes.error(
            "window_seconds",
            f"The promise ({_span(values['window_seconds'])}) is longer than the max age "
            f"({_span(values['max_age_seconds'])}): a job would expire before it is late.",
        )
    soft, hard = values["soft_limit_seconds"], values["hard_limit_seconds"]
    if soft and hard and hard <= soft:
        notes.error("hard_limit_seconds", f"The hard limit must be above the soft limit ({soft} s), or 0 for none.")
    if 0 < values["dedupe_window_seconds"] < values["provider_key_ttl_seconds"]:
        notes.warn(
            "The dedupe window is shorter than the provider keeps an idempotency key: after "
            f"{_span(values['dedupe_window_seconds'])} a new action may reuse a key that the provider still knows and "
            "swallow it."
        )


def _check_key(values: Mapping[str, Any], notes: _Notes) -> None:
    template = values["key_template"]
    if not template:
        return
    try:
        parse(template)
    except KeyTemplateError as error:
        notes.error("key_template", str(error))
        return
    for path in paths(template):
        reason = volatile(path)
        if reason:
            notes.error("key_template", reason)
    if not schema_problems(values["schema"]):
        errors, warnings = template_problems(paths(template), values["schema"])
        for text in errors:
            notes.error("key_template", text)
        for text in warnings:
            notes.warn(text)


def _check_retry(values: Mapping[str, Any], notes: _Notes) -> None:
    base, cap = values["backoff_base_seconds"], values["backoff_cap_seconds"]
    if base > cap:
        notes.error("backoff_base_seconds", f"The first delay ({base:g} s) is longer than the longest one ({cap:g} s).")
    if cap > values["max_age_seconds"]:
        notes.warn("The longest delay between attempts is longer than the max age: a job may expire while it waits.")


def _check_unkeyed_retries(values: Mapping[str, Any], notes: _Notes, *, strict: bool) -> None:
    if values["max_attempts"] > 1 and not values["key_required"]:
        text = (
            "Retries without a required key: when a producer sends the same action again, it is accepted as a new job. "
            "Require a key, or allow one attempt only."
        )
        if strict:
            notes.error("key_required", text)
        else:
            notes.warn(text)


def _check_lists(values: Mapping[str, Any], notes: _Notes) -> None:
    _check_list("never_retry", values, notes, pattern=_NAME, text="is not the name of an exception class")
    _check_list("redact", values, notes, pattern=_POINTER, text="is not a JSON pointer. Example: /card/number")


def _check_list(name: str, values: Mapping[str, Any], notes: _Notes, *, pattern: re.Pattern[str], text: str) -> None:
    items: Sequence[Any] = values[name]
    if len(items) > _LONGEST_LIST:
        notes.error(name, f"At most {_LONGEST_LIST} items.")
        return
    for item in items:
        if not isinstance(item, str) or len(item) > 200 or not pattern.match(item):
            notes.error(name, f"{str(item)[:60]!r} {text}.")


def _check_target(values: Mapping[str, Any], notes: _Notes) -> None:
    if values["handler"] == "http":
        if not values["target_url"]:
            notes.error("target_url", "An HTTP handler needs the address that gets the work.")
        elif not values["target_secret_env"] and not values["target_secret"]:
            notes.warn("There is no secret to sign requests with: every attempt will fail until one is set.")
    elif values["target_url"]:
        notes.warn("The target address is not used: the handler is a Python function.")
    for name in ("target_secret_env", "callback_secret_env"):
        if values[name] and not _ENV.match(values[name]):
            notes.error(name, "Must be the name of an environment variable. Example: SHOP_SECRET")
        elif values[name] in _OUR_SECRETS:
            notes.error(name, "This variable holds a secret of Jobsboard itself; give the target one of its own.")


def _check_urls(values: Mapping[str, Any], notes: _Notes) -> None:
    for name in ("target_url", "check_url", "runbook_url"):
        problem = _url_problem(values[name]) if values[name] else ""
        if problem:
            notes.error(name, problem)
    if values["target_url"].startswith("http://"):
        notes.warn("The target address is not encrypted (http): payloads can be read on the way.")


def _url_problem(url: str) -> str:
    if _CONTROL_OR_SPACE.search(url):
        return "An address has no spaces, control characters or backslashes."
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return "This is not an address."
    if parts.scheme not in ("http", "https"):
        return "Must start with https:// (or http://)."
    if not host:
        return "The address has no host."
    if parts.username is not None or parts.password is not None:
        return "Must not hold a user name or password; use the secret, which is not shown."
    return ""


def _check_against(
    values: Mapping[str, Any],
    notes: _Notes,
    *,
    previous: Mapping[str, Any] | None,
    live_queues: Collection[str] | None,
) -> None:
    if previous and previous.get("key_template") and previous["key_template"] != values["key_template"]:
        notes.warn(
            "The key template changed: an action accepted under its old key can be accepted again under its new one."
        )
    queue = queue_of(values)
    if live_queues is not None and queue not in live_queues:
        notes.warn(f"No worker takes jobs from {queue} now: jobs will wait until one does.")


def _warn_not_enforced(values: Mapping[str, Any], notes: _Notes) -> None:
    for name, missing in NOT_ENFORCED.items():
        if values[name] != default_of(name):
            notes.warn(f"{name} is not enforced yet: {missing}.")


def queue_of(fields: Mapping[str, Any]) -> str:
    """Name the Celery queue of a contract: the tier's own, or one pool inside it."""
    tier = f"tier{fields['tier']}"
    return f"{tier}.{fields['pool']}" if fields["pool"] else tier


_PROOF: Final = {
    "reference": "Done means that the handler returned the reference that the outside world gave",
    "return": "Done means only that the handler returned; it is shown as unverified",
    "callback": "Done means that the provider called back",
    "check": "Done means that a check found the outcome in the outside world",
}


def promise_sentence(fields: Mapping[str, Any], *, tier_ratio: float | None = None) -> str:
    """Say in plain words what this contract promises."""
    ratio = fields["target_ratio"] if fields["target_ratio"] is not None else tier_ratio
    share = f"{ratio * 100:.4g}% of jobs" if ratio is not None else "Jobs"
    attempts = fields["max_attempts"]
    tries = "one attempt" if attempts == 1 else f"up to {attempts} attempts"
    stale = "expires" if fields["on_stale"] == "expire" else "becomes a dead letter"
    return (
        f"{share} are confirmed within {_span(fields['window_seconds'])} of being ready. {_PROOF[fields['success']]}. "
        f"A job gets {tries}; not settled after {_span(fields['max_age_seconds'])} it {stale}. {_key_words(fields)}"
    )


def _key_words(fields: Mapping[str, Any]) -> str:
    for_long = (
        f"for {_span(fields['dedupe_window_seconds'])}"
        if fields["dedupe_window_seconds"]
        else "as long as its job is kept"
    )
    if fields["key_required"]:
        return f"Each job has a key, and one key is accepted once, {for_long}."
    if fields["key_template"]:
        return f"A job's key comes from its payload, and one key is accepted once, {for_long}."
    return "A job sent without a key is accepted each time that it is sent."


_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def _span(seconds: int) -> str:
    """Write a length of time in the largest unit that fits it exactly: 90 seconds, 7 days."""
    for size, word in _UNITS:
        if seconds and seconds % size == 0:
            return f"{seconds // size} {word}{'' if seconds == size else 's'}"
    return "0 seconds"


def next_delays(fields: Mapping[str, Any], n: int = 10) -> list[tuple[float, float]]:
    """List the shortest and longest delay after each of the next n failed attempts.

    Units: seconds.
    """
    policy = {
        "backoff": fields["backoff"],
        "base": fields["backoff_base_seconds"],
        "cap": fields["backoff_cap_seconds"],
        "jitter": fields["jitter"],
    }
    return [
        (retry.delay(attempt, **policy, draw=lambda: 0.0), retry.delay(attempt, **policy, draw=lambda: 1.0))
        for attempt in range(1, n + 1)
    ]
