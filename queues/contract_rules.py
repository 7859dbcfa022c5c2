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
from queues.contract_fields import (
    CALLBACK_SECRET,
    CURRENT,
    FIELDS,
    NOT_ENFORCED,
    SECRETS,
    SWITCH_MARKS,
    SWITCHES,
    TARGET_SECRET,
    VERSIONED,
    default_of,
    defaults,
)
from queues.contract_flow import flow_problems, flow_warnings
from queues.contract_schema import payload_problems, template_problems
from queues.contract_schema import problems as schema_problems
from queues.contract_words import promise_sentence, span, tier_sentence
from queues.key_template import KeyTemplateError, key_from_template, parse, paths, volatile
from queues.models.contract import NAME

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
    "tier_sentence",
]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_POINTER: Final = re.compile(r"(?:/(?:[^~]|~[01])*)*\Z")
_ENV: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_OUR_SECRETS: Final = frozenset({"SECRET_KEY", "ENCRYPTION_KEYS", "DATABASE_URL", "BROKER_URL", "METRICS_TOKEN"})
_CONTROL_OR_SPACE: Final = re.compile(r"[\x00-\x20\x7f\\]")
_LONGEST_LIST: Final = 100
_DAY: Final = 86400
# Beyond a century the time before which rows are removed would leave what PostgreSQL can compute with.
_LONGEST_KEEP_DAYS: Final = 36_500
_PROBE_LEAST_SECONDS: Final = 10


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

    A secret is named with whether one is stored. `previous` is the contract that this one replaces. `live_queues` are
    those that workers serve now, if that is known.
    `strict` is for files under review: retries without a required key are an error there.
    """
    notes = _Notes()
    for name in sorted(fields.keys() - FIELDS.keys() - set(SECRETS)):
        notes.error(name, "There is no such field.")
    for name in sorted(fields.keys() & SWITCH_MARKS):
        notes.error(name, "Kept by the switch itself: it cannot be given. Pause or disable the type instead.")
    values = {**defaults(), **{name: fields[name] for name in fields if name in FIELDS and name not in SWITCH_MARKS}}
    for name, value in values.items():
        _check_value(name, value, notes)
    # The rules across fields may rely on the types once every single field is sound.
    if not notes.errors:
        values |= {name: fields.get(name) for name in SECRETS}
        for rule in _RULES:
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
    success, python = values["success"], values["handler"] == "python"
    if success == "callback" and python and not _has(values, CALLBACK_SECRET):
        notes.warn(
            "No provider can call back: there is no callback secret. Set one here or in callback_secret_env; without "
            "it only an API key with jobs:confirm can confirm these jobs."
        )
    wanted_by = [f"{name} = {word}" for name, word in _USES_CHECK.items() if values[name] == word]
    if wanted_by and not values["check_url"]:
        if python:
            notes.warn(
                f"For {' and '.join(wanted_by)} a @check function must be registered in the workers, since no "
                "check_url is set."
            )
        else:
            notes.error(
                "check_url",
                f"For {' and '.join(wanted_by)} an HTTP handler needs the address that is asked for the outcome. "
                "Example: https://shop.example/jobs/outcome",
            )


def _check_deadline(values: Mapping[str, Any], notes: _Notes) -> None:
    """Check the times that wait for a proof."""
    if any(values[name] == word for name, word in _USES_CHECK.items()) and values["check_every_seconds"] < 1:
        notes.error("check_every_seconds", "At least 1 second between two checks.")
    if values["success"] not in ("callback", "check"):
        return
    within = values["confirm_within_seconds"]
    if within < 1:
        notes.error("confirm_within_seconds", "The proof needs some time: at least 1 second.")
    elif within > values["max_age_seconds"]:
        notes.error(
            "confirm_within_seconds",
            f"The proof may take {span(within)}, but every job ends after {span(values['max_age_seconds'])} "
            "(max_age_seconds). Make it shorter, or the max age longer.",
        )
    elif within > values["window_seconds"]:
        notes.warn(
            f"The proof may take {span(within)}, longer than the promised {span(values['window_seconds'])}: a job "
            "can be late before its proof is overdue."
        )


def _check_times(values: Mapping[str, Any], notes: _Notes) -> None:
    if values["window_seconds"] > values["max_age_seconds"]:
        notes.error(
            "window_seconds",
            f"The promise ({span(values['window_seconds'])}) is longer than the max age "
            f"({span(values['max_age_seconds'])}): a job would expire before it is late.",
        )
    soft, hard = values["soft_limit_seconds"], values["hard_limit_seconds"]
    if soft and hard and hard <= soft:
        notes.error("hard_limit_seconds", f"The hard limit must be above the soft limit ({soft} s), or 0 for none.")
    # A request to a target ends by itself after some seconds.
    if not hard and values["handler"] == "python":
        notes.warn("There is no hard limit: a body that hangs holds its job for ever. Set hard_limit_seconds.")


def _check_keeping(values: Mapping[str, Any], notes: _Notes) -> None:
    """Check how long keys and rows are held: a key never outlives its row."""
    for name in ("keep_confirmed_days", "keep_other_days"):
        if not 1 <= values[name] <= _LONGEST_KEEP_DAYS:
            notes.error(name, f"1 to {_LONGEST_KEEP_DAYS} days.")
    window, days = values["dedupe_window_seconds"], min(values["keep_confirmed_days"], values["keep_other_days"])
    if window > days * _DAY:
        notes.error(
            "dedupe_window_seconds",
            f"The key would be held for {span(window)}, but its job may be removed after {span(days * _DAY)} "
            "(keep_confirmed_days, keep_other_days), and the key with it. Keep jobs longer, or write 0: as long as the "
            "job is kept.",
        )
    if 0 < window < values["provider_key_ttl_seconds"]:
        notes.warn(
            "The dedupe window is shorter than the provider keeps an idempotency key: after "
            f"{span(window)} a new action may reuse a key that the provider still knows and swallow it."
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
    signed = _has(values, TARGET_SECRET)
    if values["handler"] == "http":
        if not values["target_url"]:
            notes.error("target_url", "An HTTP handler needs the address that gets the work.")
        elif not signed:
            notes.warn("There is no secret to sign requests with: every attempt will fail until one is set.")
    elif values["target_url"]:
        notes.warn("The target address is not used: the handler is a Python function.")
    if values["check_url"] and not signed:
        notes.warn(
            "There is no secret to sign checks with: the check address is asked with the target's secret, and every "
            "check will fail until one is set."
        )
    for name in ("target_secret_env", "callback_secret_env"):
        if values[name] and not _ENV.match(values[name]):
            notes.error(name, "Must be the name of an environment variable. Example: SHOP_SECRET")
        elif values[name] in _OUR_SECRETS:
            notes.error(name, "This variable holds a secret of Jobsboard itself; give the target one of its own.")


def _has(values: Mapping[str, Any], secret: str) -> bool:
    return bool(values[secret] or values[f"{secret}_env"])


def _check_urls(values: Mapping[str, Any], notes: _Notes) -> None:
    for name in ("target_url", "check_url", "runbook_url"):
        problem = _url_problem(values[name]) if values[name] else ""
        if problem:
            notes.error(name, problem)
    if values["target_url"].startswith("http://"):
        notes.warn("The target address is not encrypted (http): payloads can be read on the way.")
    if values["check_url"].startswith("http://"):
        notes.warn("The check address is not encrypted (http): answers can be forged on the way.")


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


def _check_flow(values: Mapping[str, Any], notes: _Notes) -> None:
    for name, text in flow_problems(values):
        notes.error(name, text)
    for text in flow_warnings(values):
        notes.warn(text)


def _check_dependency(values: Mapping[str, Any], notes: _Notes) -> None:
    """Check its name only: one that is not there is made, with default settings."""
    if values["dependency"] and not re.match(NAME.regex, values["dependency"]):
        notes.error("dependency", f"{NAME.message} Example: mail-provider")


def _check_probe(values: Mapping[str, Any], notes: _Notes) -> None:
    every = values["probe_every_seconds"]
    if 0 < every < _PROBE_LEAST_SECONDS:
        notes.error("probe_every_seconds", f"At least {_PROBE_LEAST_SECONDS} seconds between two probes, 0 for none.")
    # Where none is sent its payload need not fit; it is stored all the same.
    schema = values["schema"] if every and not schema_problems(values["schema"]) else {}
    for text in payload_problems(values["probe_payload"], schema=schema, most_bytes=values["max_payload_bytes"]):
        notes.error("probe_payload", text)


_USES_CHECK: Final = {"success": "check", "on_unconfirmed": "check_again"}
_RULES: Final = (
    _check_success, _check_deadline, _check_times, _check_keeping, _check_key, _check_retry, _check_lists,
    _check_target, _check_urls, _check_flow, _check_dependency, _check_probe,
)  # fmt: skip


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
