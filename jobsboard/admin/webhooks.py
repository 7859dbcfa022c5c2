"""Webhook endpoints in the Django admin, for admins: made and changed here; a secret is shown once, an address never.

Not here: what is done to endpoints (`jobsboard.alerts.endpoints`), the rules of addresses
(`jobsboard.alerts.addresses`), tests and resends, which the board's page Webhooks has.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, PermissionDenied, ValidationError
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from jobsboard.alerts import addresses, endpoints
from jobsboard.alerts.endpoints import EndpointRefused, Wanted, Who
from jobsboard.models import Event, WebhookEndpoint
from jobsboard.roles import can
from queues import secrets_box

_SHOWN: Final = (
    "address", "secret", "created_at", "created_by", "last_ok_at", "last_failed_at", "last_error", "failures",
    "disabled_reason",
)  # fmt: skip


class EndpointForm(forms.ModelForm):  # type: ignore[type-arg]
    """An endpoint as a person writes it. The address goes in and never comes out."""

    url = forms.CharField(
        label="Address", max_length=addresses.LONGEST, strip=True,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "size": 80}),
    )  # fmt: skip
    events = forms.MultipleChoiceField(
        choices=Event.choices, widget=forms.CheckboxSelectMultiple, required=False, initial=[e.value for e in Event],
        help_text="A dead man's switch needs none. Tests always arrive.",
    )  # fmt: skip

    class Meta:
        model = WebhookEndpoint
        fields = ("name", "format", "url", "events", "least_severity", "every_seconds")
        help_texts = {
            "format": "For ever: make another endpoint for another format.",
            "least_severity": "Of alerts below it the endpoint is not told, unless it was told that they fire.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        kept = bool(self.instance.pk)
        self.fields["url"].required = not kept
        self.fields["url"].label = "New address" if kept else "Address"
        self.fields["url"].help_text = (
            "Stays as it is if this stays empty; it cannot be shown."
            if kept
            else "https, port 443. It is stored encrypted and cannot be shown again. Of Slack it is the secret."
        )

    def clean_name(self) -> str:
        """Return the name without what cannot be in one."""
        name: str = self.cleaned_data["name"]
        return " ".join(name.replace("\x00", "").split())

    def clean_url(self) -> str:
        """Hold the address against the rules, with a look at where it leads now; and see that it can be stored."""
        url: str = self.cleaned_data["url"]
        if url:
            try:
                addresses.check_url(url, resolve=True)
            except addresses.AddressRefused as refused:
                raise ValidationError(str(refused)) from None
        return url

    def clean(self) -> dict[str, Any]:
        """See that secrets can be stored at all, and that somebody is told of something."""
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.instance.pk or given.get("url"):
            try:
                secrets_box.seal("")
            except ImproperlyConfigured as error:
                raise ValidationError(str(error)) from None
        kind = given.get("format") or self.instance.format
        if kind != WebhookEndpoint.Format.HEARTBEAT and not given.get("events"):
            self.add_error("events", "Choose at least one.")
        return given

    def wanted(self) -> Wanted:
        """Return what was typed."""
        given = self.cleaned_data
        return Wanted(
            name=given["name"], format=given.get("format") or self.instance.format, url=given["url"],
            events=given["events"], least_severity=given["least_severity"], every_seconds=given["every_seconds"],
        )  # fmt: skip


@admin.register(WebhookEndpoint)
class EndpointAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The page of endpoints."""

    form = EndpointForm
    list_display = ("name", "format", "address", "enabled", "least_severity", "last_ok_at", "failures", "secret_at")
    list_filter = ("format", "enabled")
    search_fields = ("name",)
    ordering = ("name",)
    actions = None
    change_form_template = "admin/jobsboard/webhookendpoint/change_form.html"

    @admin.display(description="Address")
    def address(self, endpoint: WebhookEndpoint) -> str:
        """Return what may be shown of it."""
        return endpoint.url_shown

    @admin.display(description="Secret")
    def secret(self, endpoint: WebhookEndpoint) -> str:
        """Say since when, and until when the one before signs."""
        if endpoint.secret_at is None:
            return "none: nobody verifies this format"
        since = f"since {endpoint.secret_at:%Y-%m-%d %H:%M} UTC"
        until = endpoint.secret_old_until
        return f"{since}; the one before signs beside it until {until:%Y-%m-%d %H:%M} UTC" if until else since

    def get_fields(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> Any:
        """Return the form, and what is known of an endpoint that is there."""
        fields = EndpointForm.Meta.fields
        return fields if obj is None else (*(name for name in fields if name != "format"), "format", *_SHOWN)

    def get_readonly_fields(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> Any:
        """Return what is only shown."""
        return () if obj is None else ("format", *_SHOWN)

    def get_urls(self) -> list[URLPattern]:
        """Add rotation and the switch."""
        mine = [
            path(f"<int:pk>/{verb}/", self.admin_site.admin_view(never_cache(require_POST(view))), name=name)
            for verb, view, name in (
                ("rotate", self.rotate_view, "jobsboard_webhookendpoint_rotate"),
                ("switch", self.switch_view, "jobsboard_webhookendpoint_switch"),
            )
        ]
        return [*mine, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add what the buttons need."""
        original = context.get("original")
        if original is not None:
            stored = WebhookEndpoint.objects.get(pk=original.pk)
            context |= {
                "stored": stored,
                "signed": stored.format in endpoints.SIGNED,
                "seen": stored.secret_at.isoformat() if stored.secret_at else "",
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: WebhookEndpoint, form: Any, change: bool) -> None:
        """Make it, or change the little that may change."""
        if change:
            if not endpoints.change(obj.pk, form.wanted(), who=_who(request)):
                messages.info(request, "The endpoint is as it was.")
            return
        made, secret = endpoints.create(form.wanted(), who=_who(request))
        for field in WebhookEndpoint._meta.concrete_fields:
            setattr(obj, field.attname, getattr(made, field.attname))
        obj._state.adding = False
        request.issued_secret = secret  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: WebhookEndpoint, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the secret in this answer and nowhere else: a message would be stored in the session or a cookie."""
        secret: str = request.issued_secret  # type: ignore[attr-defined]
        return self._issued(request, obj, secret) if secret else super().response_add(request, obj, post_url_continue)

    def _issued(self, request: HttpRequest, endpoint: WebhookEndpoint, secret: str) -> HttpResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": "Secret of the endpoint",
            "opts": self.opts,
            "endpoint": endpoint,
            "secret": secret,
        }
        answer = TemplateResponse(request, "admin/jobsboard/webhookendpoint/issued.html", context)
        answer["Cache-Control"] = "no-store"
        return answer

    def rotate_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Give an endpoint a new secret and show it in this answer."""
        endpoint = self._allowed(request, pk)
        seen = request.POST.get("seen", "")
        try:
            secret = endpoints.rotate(pk, seen=datetime.fromisoformat(seen) if seen else None, who=_who(request))
        except (EndpointRefused, ImproperlyConfigured, ValueError) as refused:
            messages.error(request, str(refused))
            return self._back(pk)
        endpoint.refresh_from_db()
        return self._issued(request, endpoint, secret)

    def switch_view(self, request: HttpRequest, pk: int) -> HttpResponse:
        """Enable or disable an endpoint, as the form says."""
        self._allowed(request, pk)
        on = request.POST.get("on") == "1"
        if not endpoints.enable(pk, on=on, who=_who(request)):
            messages.info(request, f"It is {'enabled' if on else 'disabled'} already.")
        return self._back(pk)

    def _allowed(self, request: HttpRequest, pk: int) -> WebhookEndpoint:
        if not self.has_change_permission(request):
            raise PermissionDenied
        endpoint = WebhookEndpoint.objects.filter(pk=pk).first()
        if endpoint is None:
            raise Http404
        return endpoint

    def _back(self, pk: int) -> HttpResponse:
        return HttpResponseRedirect(reverse("admin:jobsboard_webhookendpoint_change", args=[pk]))

    def delete_model(self, request: HttpRequest, obj: WebhookEndpoint) -> None:
        """Delete an endpoint that was sent nothing."""
        endpoints.delete(obj.pk, who=_who(request))

    def has_view_permission(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> bool:
        """Only admins; everybody else reads them on the page Webhooks."""
        return can(request.user, "manage_endpoints")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Only admins."""
        return can(request.user, "manage_endpoints")

    def has_change_permission(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> bool:
        """Only admins."""
        return can(request.user, "manage_endpoints")

    def has_delete_permission(self, request: HttpRequest, obj: WebhookEndpoint | None = None) -> bool:
        """Only what has no deliveries: they tell who was reached. Such an endpoint is disabled instead."""
        return can(request.user, "manage_endpoints") and obj is not None and not obj.deliveries.exists()

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Only admins are shown the section."""
        return can(request.user, "manage_endpoints")


def _who(request: HttpRequest) -> Who:
    return Who(actor=request.user.get_username(), source="admin", request_id=getattr(request, "request_id", ""))
