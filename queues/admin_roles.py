"""Who may do what in the Django admin of `queues`: pages are `admin`'s and `dependency_admin`'s."""

from __future__ import annotations

from typing import Any, Final

from django.http import HttpRequest

VIEWERS: Final = frozenset({"viewer", "operator", "owner", "admin"})
EDITORS: Final = frozenset({"owner", "admin"})


class RoleAdmin:
    """Owners and admins edit, every role may look; a permission given by name counts as well."""

    opts: Any

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "view", VIEWERS) or self._may(request, "change", EDITORS)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "change", EDITORS)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self._may(request, "add", EDITORS)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._may(request, "delete", EDITORS)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def _may(self, request: HttpRequest, verb: str, groups: frozenset[str]) -> bool:
        user: Any = request.user
        if not (user.is_active and user.is_staff):
            return False
        if user.has_perm(f"{self.opts.app_label}.{verb}_{self.opts.model_name}"):
            return True
        if not hasattr(user, "_group_names"):
            user._group_names = set(user.groups.values_list("name", flat=True))
        return bool(groups & user._group_names)


def who(request: HttpRequest) -> dict[str, Any]:
    return {
        "actor": request.user.get_username(),
        "source": "admin",
        "request_id": getattr(request, "request_id", ""),
    }
