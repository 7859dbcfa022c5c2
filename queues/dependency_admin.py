"""Dependencies in the Django admin: the settings of their circuit breakers. What they do is shown, and not edited.

Holding a breaker open or closed is the board's, and `manage.py breaker`'s.
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from queues import breaker_actions, breakers
from queues.admin_roles import RoleAdmin, who
from queues.breaker_actions import SETTINGS, NotPossible
from queues.models import Dependency


class DependencyForm(forms.ModelForm):  # type: ignore[type-arg]
    """The settings of a breaker and the reason for their change."""

    reason = forms.CharField(max_length=1000, widget=forms.TextInput(attrs={"size": 80}))

    class Meta:
        model = Dependency
        fields = ["name", *SETTINGS]
        help_texts = {
            "name": "What contracts call it. Example: mail-provider",
            "timeout_seconds": "A request to an HTTP target of its types takes at most so long.",
            "error_ratio": "From this share of failed and slow calls on it opens. Example: 0.5",
            "slow_seconds": "A call that took longer counts like a failed one; 0: none does.",
            "minimum_calls": "Of fewer calls in the window nothing is concluded.",
            "window_seconds": "Calls of so many seconds count.",
            "reset_seconds": "So long an open breaker waits before it lets trials through.",
            "trial_jobs": "So many trials have to go well for it to close; one that does not opens it again.",
        }


class DependencyAdmin(RoleAdmin, admin.ModelAdmin):  # type: ignore[type-arg]
    """What circuit breakers guard."""

    form = DependencyForm
    actions = None
    list_display = ("name", "state", "since", "why", "forced_by", "description")
    list_filter = ("state",)
    search_fields = ("name", "description")
    ordering = ("name",)
    readonly_fields = ("state", "since", "why", "retry_at", "trials_left", "forced", "forced_by", "forced_reason",
                       "forced_until", "types")  # fmt: skip

    @admin.display(description="Job types")
    def types(self, obj: Dependency) -> str:
        found = breakers.standing(obj.pk)
        return ", ".join(found.types) if found and found.types else "none"

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name", *self.readonly_fields) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        editing = self.has_change_permission(request, obj) if obj else True
        settings = ["name", *SETTINGS, *(["reason"] if editing else [])]
        shown = [(None, {"fields": settings})]
        return [*shown, ("Its breaker", {"fields": self.readonly_fields})] if obj else shown

    def save_model(self, request: HttpRequest, obj: Dependency, form: Any, change: bool) -> None:
        fields = {name: form.cleaned_data[name] for name in SETTINGS}
        breaker_actions.save_settings(obj.pk, fields, reason=form.cleaned_data["reason"], **who(request))
        obj.refresh_from_db()

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except NotPossible as error:
            messages.error(request, f"Not deleted. {error}")
            return HttpResponseRedirect(reverse("admin:queues_dependency_changelist"))

    def delete_model(self, request: HttpRequest, obj: Dependency) -> None:
        breaker_actions.delete(obj.pk, reason="Deleted in the admin.", **who(request))
