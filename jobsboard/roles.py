"""Who may do what in the browser: four roles from Django groups, and the decorator that views carry.

Not here: logging in (`jobsboard.accounts`), scopes of API keys (`jobsboard.api.access`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import IntEnum
from typing import Any, Concatenate, Final, Literal, ParamSpec

from django.contrib.auth.models import AbstractBaseUser, AnonymousUser, Group
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponseBase

Action = Literal[
    "view", "see_payload", "act", "edit_contract", "edit_rules", "reveal", "manage_keys", "manage_endpoints",
    "replay_anyway",
]  # fmt: skip


class Role(IntEnum):
    """What a person may do; each role may do what those before it may."""

    NONE = 0
    VIEWER = 1
    """Reads all, payloads only as keys and types."""
    OPERATOR = 2
    """Also sees the redacted payload; cancels, replays, pauses, silences."""
    OWNER = 3
    """Also edits contracts and alert rules, and reveals redacted values (with a reason, audited)."""
    ADMIN = 4
    """Also keys, endpoints, users, and replays that something speaks against."""


_NEEDS: Final[dict[Action, Role]] = {
    "view": Role.VIEWER,
    "see_payload": Role.OPERATOR,
    "act": Role.OPERATOR,
    "edit_contract": Role.OWNER,
    "edit_rules": Role.OWNER,
    "reveal": Role.OWNER,
    "manage_keys": Role.ADMIN,
    "manage_endpoints": Role.ADMIN,
    "replay_anyway": Role.ADMIN,
}
_BY_GROUP: Final = {role.name.lower(): role for role in Role if role}

_P = ParamSpec("_P")
_User = AbstractBaseUser | AnonymousUser


def role_of(user: _User) -> Role:
    """Return the highest role of a user's groups; a superuser is an admin, an inactive user nobody."""
    if not user.is_authenticated or not user.is_active:
        return Role.NONE
    if getattr(user, "is_superuser", False):
        return Role.ADMIN
    # Asked many times for one page: kept on the user object, which lives as long as the request.
    kept: dict[str, Any] = user.__dict__
    if "_jobsboard_role" not in kept:
        names = Group.objects.filter(user=user.pk).values_list("name", flat=True)
        kept["_jobsboard_role"] = max((_BY_GROUP.get(name, Role.NONE) for name in names), default=Role.NONE)
    role: Role = kept["_jobsboard_role"]
    return role


def can(user: _User, action: Action) -> bool:
    """Tell whether the user's role allows the action."""
    return role_of(user) >= _NEEDS[action]


def require(
    action: Action,
) -> Callable[
    [Callable[Concatenate[HttpRequest, _P], HttpResponseBase]], Callable[Concatenate[HttpRequest, _P], HttpResponseBase]
]:
    """Let a view run only for users whose role allows the action; others get 403."""

    def decorate(
        view: Callable[Concatenate[HttpRequest, _P], HttpResponseBase],
    ) -> Callable[Concatenate[HttpRequest, _P], HttpResponseBase]:
        @functools.wraps(view)
        def guarded(request: HttpRequest, /, *args: _P.args, **kwargs: _P.kwargs) -> HttpResponseBase:
            if not can(request.user, action):
                raise PermissionDenied
            return view(request, *args, **kwargs)

        # Read by the test that walks every route: a view without it must be named there.
        guarded.requires = action  # type: ignore[attr-defined]
        return guarded

    return decorate
