"""API keys in the Django admin: they are made here, shown once, renamed, paced and revoked, never deleted.

Not here: how keys are checked (`jobsboard.api.keys`).
"""

from __future__ import annotations

from typing import Any, Final

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse

from jobsboard.api import keys
from jobsboard.models import SCOPES, ApiKey
from jobsboard.roles import can
from queues import audit

_SCOPE_CHOICES: Final = [(scope, scope) for scope in SCOPES]
_MAY: Final = {
    "jobs:write": "send and cancel jobs",
    "jobs:read": "read jobs, contracts and outcomes",
    "jobs:confirm": "confirm and reject outcomes",
    "dlq:read": "read dead letters",
    "dlq:replay": "replay and cancel dead letters",
}


def may_words(key: ApiKey) -> str:
    """Say in one plain sentence what a key may do, for which job types, and until when."""
    if key.revoked_at:
        return f"It was revoked on {key.revoked_at:%Y-%m-%d %H:%M} UTC and may do nothing."
    *most, last = [words for scope, words in _MAY.items() if scope in key.scopes] or ["do nothing"]
    deeds = f"{', '.join(most)}, and {last}" if most else last
    types = "every job type" if "*" in key.type_patterns else f"job types named {' or '.join(key.type_patterns)}"
    end = f"until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else "until it is revoked"
    rate = keys.rate_of(key) if "jobs:write" in key.scopes else None
    pace = f" It may send {keys.rate_words(rate)}." if rate else ""
    return f"Whoever has this key may {deeds}, for {types}, {end}.{pace}"


class _RateForm(forms.ModelForm):  # type: ignore[type-arg]
    """The rate of a key, new or not."""

    def clean_rate_burst(self) -> int:
        """Take an empty field for 0."""
        return self.cleaned_data["rate_burst"] or 0

    def clean(self) -> dict[str, Any]:
        """Refuse a rate that makes no sense."""
        found = self.cleaned_data
        for name, mistake in keys.rate_mistakes(found.get("rate_per_second"), found.get("rate_burst") or 0):
            self.add_error(name, mistake)
        return found


class NewKeyForm(_RateForm):
    """What a new key may do."""

    scopes = forms.MultipleChoiceField(choices=_SCOPE_CHOICES, widget=forms.CheckboxSelectMultiple)
    type_patterns = forms.CharField(
        initial="*", label="Job types", help_text="Names separated by spaces; * and ? are wildcards."
    )

    class Meta:
        model = ApiKey
        fields = ("label", "scopes", "type_patterns", "rate_per_second", "rate_burst", "expires_at")

    def clean_type_patterns(self) -> list[str]:
        """Split the names and refuse what could never match."""
        patterns: list[str] = self.cleaned_data["type_patterns"].split()
        try:
            keys.check_rights(scopes=SCOPES, type_patterns=patterns)
        except ValueError as error:
            raise ValidationError(str(error)) from None
        return patterns


class KeyForm(_RateForm):
    """What can still be changed: the label, the rate, and revocation, which is final."""

    revoke = forms.BooleanField(required=False, help_text="Ends the key within five seconds. This cannot be undone.")

    class Meta:
        model = ApiKey
        fields = ("label", "rate_per_second", "rate_burst")


def _rate(key: ApiKey) -> dict[str, Any]:
    return {"rate_per_second": key.rate_per_second, "rate_burst": key.rate_burst}


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The page of keys, for admins only."""

    list_display = (
        "label", "public_part", "scopes", "type_patterns", "rate", "last_used_at", "expires_at", "revoked_at",
    )  # fmt: skip
    search_fields = ("label", "prefix")
    actions = None

    @admin.display(description="Key")
    def public_part(self, key: ApiKey) -> str:
        """Return what may be shown of a key."""
        return f"jb_live_{key.prefix}_…"

    @admin.display(description="Rate")
    def rate(self, key: ApiKey) -> str:
        """Return how many jobs a key may send."""
        return keys.rate_words(keys.rate_of(key))

    def get_form(self, request: HttpRequest, obj: ApiKey | None = None, change: bool = False, **kwargs: Any) -> Any:
        """Return one of two forms: a key's rights are fixed once it is out."""
        return super().get_form(request, obj, change=change, **{**kwargs, "form": KeyForm if change else NewKeyForm})

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Return the fields of either form."""
        if obj is None:
            return NewKeyForm.Meta.fields
        return (*KeyForm.Meta.fields, "revoke", *self.get_readonly_fields(request, obj))

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> Any:
        """Return what is shown beside the form."""
        if obj is None:
            return ()
        return (
            "public_part",
            "scopes",
            "type_patterns",
            "created_at",
            "created_by",
            "expires_at",
            "revoked_at",
            "last_used_at",
        )

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add what the key may do, in words."""
        key = context.get("original")
        return super().render_change_form(request, {**context, "may": may_words(key) if key else ""}, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        """Issue a key, or change the little that may change; both are audited in the same transaction."""
        if change:
            self._change(request, obj, revoke=form.cleaned_data["revoke"])
            return
        made, text = keys.issue_key(
            label=obj.label,
            scopes=form.cleaned_data["scopes"],
            type_patterns=form.cleaned_data["type_patterns"],
            created_by=request.user.get_username(),
            rate_per_second=obj.rate_per_second,
            rate_burst=obj.rate_burst,
        )
        ApiKey.objects.filter(pk=made.pk).update(expires_at=obj.expires_at)
        obj.pk, obj.prefix, obj.digest = made.pk, made.prefix, made.digest
        obj._state.adding = False
        request.issued_key = text  # type: ignore[attr-defined]
        after = {"label": obj.label, "scopes": made.scopes, "types": made.type_patterns, **_rate(made)}
        self._audit(request, "api_key.created", obj, after=after)

    def _change(self, request: HttpRequest, obj: ApiKey, *, revoke: bool) -> None:
        row = ApiKey.objects.filter(pk=obj.pk)
        before = row.select_for_update().get()
        if before.label != obj.label:
            row.update(label=obj.label)
            self._audit(request, "api_key.renamed", obj, before={"label": before.label}, after={"label": obj.label})
        if _rate(before) != _rate(obj):
            row.update(**_rate(obj))
            keys.forget_cached()
            self._audit(request, "api_key.rate_changed", obj, before=_rate(before), after=_rate(obj))
        if revoke and ApiKey.objects.filter(pk=obj.pk, revoked_at=None).update(revoked_at=Now()):
            keys.forget_cached()
            self._audit(request, "api_key.revoked", obj)

    def _audit(self, request: HttpRequest, action: str, obj: ApiKey, **change: Any) -> None:
        audit.record(
            action,
            actor=request.user.get_username(),
            object_type="api_key",
            object_id=obj.prefix,
            source="admin",
            request_id=getattr(request, "request_id", ""),
            **change,
        )

    def response_add(self, request: HttpRequest, obj: ApiKey, post_url_continue: str | None = None) -> HttpResponse:
        """Show the key in this answer and nowhere else: a message would be stored in the session or a cookie."""
        context = {
            **self.admin_site.each_context(request),
            "title": "API key created",
            "opts": self.opts,
            "key": request.issued_key,  # type: ignore[attr-defined]
            "label": obj.label,
        }
        return TemplateResponse(request, "admin/jobsboard/apikey/issued.html", context)

    def has_view_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Only admins see keys."""
        return can(request.user, "manage_keys")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only admins make keys."""
        return can(request.user, "manage_keys")

    def has_change_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Only admins rename, pace and revoke keys."""
        return can(request.user, "manage_keys")

    def has_delete_permission(self, request: HttpRequest, obj: ApiKey | None = None) -> bool:
        """Nobody: a revoked key still says who acted."""
        return False

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Only admins are shown the section."""
        return can(request.user, "manage_keys")
