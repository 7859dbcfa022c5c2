"""What a person does to endpoints: make, change, rotate, disable and enable, delete. Each audited in its transaction.

Twice is once: the same again changes nothing. Addresses and secrets are sealed here and opened only to send; a secret
is returned once, when it is made.
Not here: the rules of addresses (`addresses`), what senders write on endpoints (`ledger`), the form
(`jobsboard.admin.webhooks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db import connection, transaction
from django.db.models import F
from django.db.models.functions import Now

from jobsboard.alerts import addresses, signing
from jobsboard.models import WebhookEndpoint
from queues import audit, secrets_box
from queues.models import BoardVersion
from queues.secrets_box import Resealed

Format = WebhookEndpoint.Format
SIGNED: Final = frozenset({Format.STANDARD, Format.ALERTMANAGER, Format.HEARTBEAT})
"""Formats whose receivers may verify; of Slack the address is the secret."""
_SEALED: Final = ("url_sealed", "secret_sealed", "secret_old_sealed")


class EndpointRefused(ValueError):
    """It cannot be done; the text says why. Nothing was changed."""


@dataclass(frozen=True, kw_only=True)
class Who:
    """Who acts, and from where, for the audit log."""

    actor: str
    source: str = "admin"
    request_id: str = ""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an endpoint is to be. `url` is empty to keep the one that it has; the format is for ever."""

    name: str
    format: str
    url: str
    events: Sequence[str]
    least_severity: str
    every_seconds: int


def create(wanted: Wanted, *, who: Who) -> tuple[WebhookEndpoint, str]:
    """Make an endpoint; return it and its secret, which nobody can read again. Empty: the format has none.

    Raises: AddressRefused, ImproperlyConfigured without ENCRYPTION_KEYS.
    """
    addresses.check_url(wanted.url)
    secret = signing.new_secret() if wanted.format in SIGNED else ""
    with transaction.atomic():
        endpoint = WebhookEndpoint(
            name=wanted.name, format=wanted.format, events=list(wanted.events), least_severity=wanted.least_severity,
            every_seconds=wanted.every_seconds, url_sealed=secrets_box.seal(wanted.url),
            url_shown=addresses.shown(wanted.url), secret_sealed=secrets_box.seal(secret) if secret else None,
            secret_at=_now() if secret else None, created_by=who.actor[:150],
        )  # fmt: skip
        endpoint.save(force_insert=True)
        _record("webhook.created", endpoint, who, after=_shape(endpoint))
    return endpoint, secret


def change(endpoint_id: int, wanted: Wanted, *, who: Who) -> bool:
    """Change an endpoint; return whether anything is different now.

    Raises: WebhookEndpoint.DoesNotExist, AddressRefused, ImproperlyConfigured.
    """
    with transaction.atomic():
        endpoint = _locked(endpoint_id)
        before = _shape(endpoint)
        endpoint.name, endpoint.events = wanted.name, list(wanted.events)
        endpoint.least_severity, endpoint.every_seconds = wanted.least_severity, wanted.every_seconds
        if wanted.url:
            addresses.check_url(wanted.url)
            endpoint.url_sealed, endpoint.url_shown = secrets_box.seal(wanted.url), addresses.shown(wanted.url)
            # What failed was the old address.
            endpoint.failures, endpoint.last_error = 0, ""
        if endpoint.next_beat_at is not None:
            endpoint.next_beat_at = _now()
        after = {**_shape(endpoint), **({"address": "replaced"} if wanted.url else {})}
        if after == before:
            return False
        endpoint.save(
            update_fields=["name", "events", "least_severity", "every_seconds", "url_sealed", "url_shown", "failures",
                           "last_error", "next_beat_at"]
        )  # fmt: skip
        _record("webhook.changed", endpoint, who, before=before, after=after)
    return True


def rotate(endpoint_id: int, *, seen: datetime | None, who: Who) -> str:
    """Give an endpoint a new secret and return it; for a day the one before signs beside it.

    `seen` is when its secret was made, as the person saw it: pressed twice, the second press would end the secret that
    the receiver still has.
    Raises: WebhookEndpoint.DoesNotExist, EndpointRefused, ImproperlyConfigured.
    """
    secret = signing.new_secret()
    with transaction.atomic():
        endpoint = _locked(endpoint_id)
        if endpoint.format not in SIGNED:
            raise EndpointRefused("This format has no secret: of Slack the address is the secret.")
        if endpoint.secret_at != seen:
            raise EndpointRefused("Its secret was rotated meanwhile. Look at the endpoint again before you rotate it.")
        now = _now()
        endpoint.secret_old_sealed = endpoint.secret_sealed
        endpoint.secret_old_until = now + signing.ROTATION if endpoint.secret_sealed else None
        endpoint.secret_sealed, endpoint.secret_at = secrets_box.seal(secret), now
        endpoint.save(update_fields=["secret_sealed", "secret_at", "secret_old_sealed", "secret_old_until"])
        until = endpoint.secret_old_until
        _record("webhook.rotated", endpoint, who,
                after={"name": endpoint.name, "old_until": until.isoformat() if until else None})  # fmt: skip
    return secret


def enable(endpoint_id: int, *, on: bool, who: Who, reason: str = "") -> bool:
    """Enable or disable an endpoint; return whether that is new. What waits for it waits on, or is tried again.

    Raises: WebhookEndpoint.DoesNotExist.
    """
    with transaction.atomic():
        endpoint = _locked(endpoint_id)
        if endpoint.enabled == on:
            return False
        endpoint.enabled, endpoint.disabled_reason = on, ""
        if on:
            # It begins anew: several messages at a time, and a switch beats at once.
            endpoint.failures, endpoint.last_error, endpoint.next_beat_at = 0, "", None
        endpoint.save(update_fields=["enabled", "disabled_reason", "failures", "last_error", "next_beat_at"])
        action, name = "webhook.enabled" if on else "webhook.disabled", endpoint.name
        before, after = {"name": name, "enabled": not on}, {"name": name, "enabled": on}
        _record(action, endpoint, who, reason=reason, before=before, after=after)
    return True


def delete(endpoint_id: int, *, who: Who) -> None:
    """Delete an endpoint that was sent nothing, or nothing that is still kept.

    Raises: WebhookEndpoint.DoesNotExist, EndpointRefused while its deliveries tell who was reached.
    """
    with transaction.atomic():
        # Against new deliveries, which refer to it.
        endpoint = WebhookEndpoint.objects.select_for_update().get(pk=endpoint_id)
        if endpoint.deliveries.exists():
            raise EndpointRefused("It has deliveries, which tell who was reached. Disable it instead.")
        _record("webhook.deleted", endpoint, who, before=_shape(endpoint))
        endpoint.delete()


def _locked(endpoint_id: int) -> WebhookEndpoint:
    return WebhookEndpoint.objects.select_for_update(no_key=True).get(pk=endpoint_id)


def _shape(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """Return what the audit log keeps of an endpoint: no address beyond its host, no secret."""
    return {
        "name": endpoint.name, "format": endpoint.format, "host": endpoint.url_shown, "events": list(endpoint.events),
        "least_severity": endpoint.least_severity, "every_seconds": endpoint.every_seconds,
    }  # fmt: skip


def _now() -> datetime:
    with connection.cursor() as cursor:
        cursor.execute("SELECT jobs_now()")
        now: datetime = cursor.fetchone()[0]
    return now


def _record(action: str, endpoint: WebhookEndpoint, who: Who, *, reason: str = "", **change: Any) -> None:
    audit.record(
        action, actor=who.actor, object_type="webhook", object_id=endpoint.pk, reason=reason, source=who.source,
        request_id=who.request_id, **change,
    )  # fmt: skip
    # Pages that are open show it at their next poll. Last, since every fold waits for this row.
    BoardVersion.objects.update(n=F("n") + 1, at=Now())


# ---- encryption


def reseal(*, actor: str, reason: str) -> Resealed:
    """Encrypt every address and secret anew with the first of ENCRYPTION_KEYS; what cannot be opened stays as it is."""
    counts = dict.fromkeys(("endpoint url", "endpoint secret", "endpoint secret (old)"), 0)
    closed: list[str] = []
    for pk in WebhookEndpoint.objects.order_by("id").values_list("pk", flat=True):
        with transaction.atomic():
            endpoint = _locked(pk)
            if endpoint.secret_old_until is not None and endpoint.secret_old_until <= _now():
                # It signs no more: nobody needs to open it again.
                endpoint.secret_old_sealed, endpoint.secret_old_until = None, None
            done = []
            for column, noun in zip(_SEALED, counts, strict=True):
                sealed = getattr(endpoint, column)
                if sealed is None:
                    continue
                try:
                    setattr(endpoint, column, secrets_box.reseal(sealed))
                except secrets_box.CannotOpen:
                    closed.append(f"{endpoint.name} ({noun})")
                else:
                    done.append(noun)
                    counts[noun] += 1
            endpoint.save(update_fields=[*_SEALED, "secret_old_until"])
            if done:
                audit.record(
                    "secrets.resealed", actor=actor, object_type="webhook", object_id=endpoint.pk,
                    after={"name": endpoint.name, "resealed": done}, reason=reason, source="command",
                )  # fmt: skip
    return Resealed(counts=counts, closed=closed)


def sealed() -> list[bytes]:
    """Return everything that is sealed and still needed, for the check at the start."""
    found = []
    for row in WebhookEndpoint.objects.filter(enabled=True).values_list(*_SEALED, "secret_old_until"):
        *kept, old, until = row
        found += [bytes(one) for one in (*kept, old if until and until > _now() else None) if one is not None]
    return found
