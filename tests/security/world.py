"""Everybody who asks, and one of everything that can be asked for. Not here: what they are to be answered."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.http import StreamingHttpResponse
from django.test import Client

from dlq import triage
from dlq.models import FailureGroup, ReplayPlan
from jobsboard.api import keys
from jobsboard.models import SCOPES, AlertRule, Annotation, ApiKey, WebhookEndpoint
from queues.accept import Item, enqueue_many
from queues.callback_tokens import callback_token
from queues.models import Dependency, JobType, Schedule, Tier
from tests.alerts.endpoints import make_endpoint
from tests.alerts.rounds import make_rule
from tests.board.alerting import deliver, fire
from tests.board.plans import plan
from tests.dlq.deaths import fold, kill
from tests.factories import claim, make_type, sql

TYPE: Final = "shop.order"
VALUE: Final = "planted-value-71"
HIDDEN: Final = "planted-secret-72"
"""In every payload: what viewers must not see, and what nobody sees unless he reveals it."""
INSIDE: Final = "planted-words-73"
"""What everybody may read who gets in."""
_SINGLE: Final = {
    "write": "jobs:write", "read": "jobs:read", "confirm": "jobs:confirm", "dlq-read": "dlq:read",
    "dlq-replay": "dlq:replay",
}  # fmt: skip


@dataclass(kw_only=True)
class World:
    """Who asks, by name; what fills a route, by its beginning."""

    people: Mapping[str, Client]
    keys: Mapping[str, Client]
    values: Mapping[str, str]
    admin: Mapping[str, str]
    bodies: Mapping[str, bytes] = field(default_factory=dict)

    def client(self, kind: str, who: str) -> Client:
        """Return the client of somebody: owners and keys are told apart by the kind of route that they ask for."""
        return (self.keys if kind == "api" else self.people)[who]

    def address(self, route: str, verb: str = "") -> str:
        """Return an address of a route that names what is there."""
        if route == "admin/(?P<url>.*)$":
            return "/admin/nothing/"
        filled = re.sub(r"\^\(\?P<app_label>[^)]*\)/\$", "queues/", route).replace("<slug:verb>", verb)
        filled += {"api/v1/dead-letters/export": "?format=csv", "dlq/bulk/": "?verb=cancel&all=1"}.get(route, "")
        known = self.admin if route.startswith("admin/") else self.values
        place = "/".join(route.split("/")[:3])
        return "/" + re.sub(r"<(?:\w+:)?(\w+)>", lambda found: _value(known, place, str(found[1])), filled)


def _value(known: Mapping[str, str], start: str, name: str) -> str:
    """Return what fills a parameter: what the longest beginning of the route says, else what its name says."""
    while start:
        if f"{start}/{name}" in known:
            return known[f"{start}/{name}"]
        start = start.rpartition("/")[0]
    return known[name]


def make() -> World:
    """Make it. The caller takes it back."""
    keys.forget_cached()
    dead, run = _jobs()
    return World(
        people=_people(),
        keys=_keys(),
        values=_board(dead) | {"token": callback_token(*run)},
        admin=_admin(),
        bodies={
            "api/v1/jobs/<job_id>/confirm": b'{"outcome": "confirmed"}',
            "api/v1/cancellations": b'{"reason": "x", "filter": {"state": "waiting"}}',
            "dlq/bulk/": b"verb=cancel&all=1",
        },
    )


def _people() -> dict[str, Client]:
    """Return people of each role, all staff but one; those of the board are theirs too."""
    roles = {
        "nobody": None, "viewer": "viewer", "operator": "operator", "elsewhere": "owner", "owner": "owner",
        "admin": "admin", "unstaffed": "admin",
    }  # fmt: skip
    found = {"anonymous": Client(), "key": Client(headers=_bearer(scopes=SCOPES))}
    for name, role in roles.items():
        person = User.objects.create_user(name, is_staff=name != "unstaffed")
        if role:
            person.groups.add(Group.objects.get(name=role))
        found[name] = Client()
        found[name].force_login(person)
    found["forged"] = Client(enforce_csrf_checks=True)
    found["forged"].force_login(User.objects.get(username="admin"))
    return found


def _keys() -> dict[str, Client]:
    admin = Client()
    admin.force_login(User.objects.create_superuser("root"))
    found = {"anonymous": Client(), "session": admin}
    # Nobody can make such a key; it must not open anything either.
    found["none"] = Client(headers=_bearer(change={"scopes": []}))
    found |= {who: Client(headers=_bearer(scopes=(scope,))) for who, scope in _SINGLE.items()}
    found["elsewhere"] = Client(headers=_bearer(type_patterns=("other.*",)))
    past = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    found["expired"] = Client(headers=_bearer(change={"expires_at": past}))
    found["revoked"] = Client(headers=_bearer(change={"revoked_at": past}))
    return found


def _bearer(*, scopes: tuple[str, ...] = SCOPES, change: Mapping[str, Any] | None = None, **rights: Any) -> Any:
    row, text = keys.issue_key(label="matrix", scopes=scopes, **rights)
    ApiKey.objects.filter(pk=row.pk).update(**(change or {}))
    return {"Authorization": f"Bearer {text}"}


def _jobs() -> tuple[UUID, tuple[UUID, int]]:
    """Make a type and jobs: a dead letter, one that a plan replays, and a run that goes on."""
    Dependency.objects.create(name="mail-provider")
    make_type(
        TYPE, tier_id=1, owner="owner", redact=["/card"], deferrable=True, dependency="mail-provider",
        probe_every_seconds=60, description=INSIDE,
    )  # fmt: skip
    payload = {"note": VALUE, "card": HIDDEN}
    found = enqueue_many([Item(type=TYPE, payload=payload, dedupe_key=f"key-{n}") for n in range(3)])
    dead, planned, running = (receipt.job_id for receipt in found)
    kill([dead, planned])
    fold()
    triage.run_once()
    plan(planned)
    [run] = claim([running])
    return dead, (run.id, run.fence)


def _board(dead: UUID) -> dict[str, str]:
    rule, endpoint, alert = make_rule(), make_endpoint(), fire()
    sent = deliver(alert, endpoint)
    # One without deliveries can be deleted.
    make_endpoint("spare")
    Schedule.objects.create(
        name="nightly", job_type_id=TYPE, cron="0 3 * * *", next_at=sql("SELECT jobs_now() + interval '1 h'")[0][0],
        payload=f'{{"note": "{VALUE}", "card": "{HIDDEN}"}}',
    )  # fmt: skip
    return {
        "job_id": str(dead), "name": TYPE, "job_type": TYPE, "types/name": TYPE, "probes/name": TYPE,
        "queues/name": "tier1",
        "dependencies/name": "mail-provider", "schedules/name": "nightly",
        "group_id": str(FailureGroup.objects.values_list("pk", flat=True)[0]),
        "plan_id": str(ReplayPlan.objects.values_list("pk", flat=True)[0]),
        "rule_id": str(rule.pk), "alert_id": str(alert.pk), "endpoint_id": str(endpoint.pk), "delivery_id": sent.pk,
    }  # fmt: skip


def _admin() -> dict[str, str]:
    """Return one row of each model, by the beginning of its routes."""
    Annotation.objects.create(kind="deploy", text="v2", created_by="ann", at=dt.datetime(2026, 11, 22, tzinfo=dt.UTC))
    found = {"content_type_id": str(ContentType.objects.get_for_model(User).pk), "object_id": "1"}
    for model in (
        ApiKey, AlertRule, Annotation, WebhookEndpoint, JobType, Tier, Dependency, Schedule, Group, User,
    ):  # fmt: skip
        row = str(model._default_manager.order_by("-pk").values_list("pk", flat=True)[0])
        start = f"admin/{model._meta.app_label}/{model._meta.model_name}"
        found |= {f"{start}/{name}": row for name in ("object_id", "rule_id", "pk", "id")}
    return found


def body_of(response: Any) -> str:
    """Return what a response says, also one that is streamed."""
    if isinstance(response, StreamingHttpResponse):
        return response.getvalue().decode()
    return str(response.content.decode())
