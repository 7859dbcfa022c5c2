"""Schedules in the Django admin: their settings. What became of their ticks is shown on the board.

Running one now, pausing and resuming it are the board's, and `manage.py schedule`'s.
"""

from __future__ import annotations

import datetime as dt
import json
from itertools import islice
from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import ValidationError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils.html import format_html_join

from queues import contracts, schedules
from queues.admin_roles import RoleAdmin, who
from queues.contract_switches import database_now
from queues.models import Schedule
from queues.redaction import redact, shape
from queues.schedule_lines import LineError
from queues.schedule_lines import read as read_line
from queues.schedules import SETTINGS, NotPossible

_NEXT_SHOWN: Final = 5
_OPERATORS: Final = frozenset({"operator"})


class ScheduleForm(forms.ModelForm):  # type: ignore[type-arg]
    """The settings of a schedule and the reason for their change."""

    reason = forms.CharField(max_length=1000, widget=forms.TextInput(attrs={"size": 80}))

    class Meta:
        model = Schedule
        fields = ["name", *SETTINGS]
        help_texts = {
            "name": "What it is called; it stays so. Example: nightly-report",
            "job_type": "Each tick enqueues a job of this type.",
            "cron": "Minute, hour, day, month, weekday. Example: 30 3 * * MON-FRI",
            "timezone": "The line is in the time of this zone. Example: Europe/Berlin",
            "payload": "JSON. In its texts {tick} is the time of the tick in UTC, {date} its date in the zone; "
            "nothing else is replaced.",
            "group": "Empty: none.",
            "priority": "Empty: that of the job type.",
            "catch_up": "What becomes of ticks that nobody saw within a minute.",
        }
        widgets = {"payload": forms.Textarea(attrs={"rows": 6, "cols": 80, "spellcheck": "false"})}

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if not self.errors:
            given = {key: data[key] for key in SETTINGS if key != "job_type"}
            row = Schedule(name=data.get("name") or self.instance.pk, job_type=data["job_type"], **given)
            schedules.check(row)
        return data


class ScheduleAdmin(RoleAdmin, admin.ModelAdmin):  # type: ignore[type-arg]
    """What the clock enqueues."""

    form = ScheduleForm
    actions = None
    list_display = ("name", "job_type", "cron", "timezone", "words", "next_at", "paused", "description")
    list_filter = ("paused", "catch_up")
    list_select_related = ("job_type",)
    search_fields = ("name", "job_type__name", "description")
    ordering = ("name",)
    readonly_fields = ("words", "next_ticks", "last_at", "refused", "refused_since", "paused", "paused_by",
                       "paused_reason", "paused_until", "created_at", "changed_at")  # fmt: skip

    @admin.display(description="In words")
    def words(self, obj: Schedule) -> str:
        try:
            return read_line(obj.cron, obj.timezone).words()
        except LineError as error:
            return str(error)

    @admin.display(description="Next ticks")
    def next_ticks(self, obj: Schedule) -> str:
        try:
            line = read_line(obj.cron, obj.timezone)
        except LineError:
            return "none"
        ticks = islice(line.after(database_now()), _NEXT_SHOWN)
        return format_html_join("", "<div>{} ({} UTC)</div>", ((_local(t, line.zone), f"{t:%H:%M}") for t in ticks))

    @admin.display(description="Payload")
    def payload_shown(self, obj: Schedule) -> str:
        """Keys and types, for those who may not see values."""
        return _text(shape(_value(obj)))

    @admin.display(description="Payload")
    def payload_redacted(self, obj: Schedule) -> str:
        contract = contracts.all_current().get(obj.job_type_id)
        return _text(redact(_value(obj), pointers=contract.redact if contract else ()))

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name", "payload_shown", "payload_redacted", *self.readonly_fields) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        editing = self.has_change_permission(request, obj) if obj else True
        payload = "payload"
        if not editing:
            payload = "payload_redacted" if self._may(request, "change", _OPERATORS) else "payload_shown"
        settings = ["name", *(payload if key == "payload" else key for key in SETTINGS)]
        shown = [(None, {"fields": [*settings, *(["reason"] if editing else [])]})]
        return [*shown, ("How it stands", {"fields": self.readonly_fields})] if obj else shown

    def changeform_view(self, request: HttpRequest, object_id: Any = None, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, *args, **kwargs)
        except ValidationError as error:
            # Its job type has changed between the form's check and the save; the transaction is rolled back.
            messages.error(request, f"Nothing was saved: {' '.join(error.messages)}")
            return HttpResponseRedirect(request.get_full_path())

    def save_model(self, request: HttpRequest, obj: Schedule, form: Any, change: bool) -> None:
        fields = {key: form.cleaned_data[key] for key in SETTINGS} | {"job_type": form.cleaned_data["job_type"].pk}
        saved = schedules.save(obj.pk, fields, reason=form.cleaned_data["reason"], **who(request))
        obj.refresh_from_db()
        if saved.next_at:
            messages.info(request, f"Its next tick is {saved.next_at:%Y-%m-%d %H:%M} UTC.")

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        try:
            return super().delete_view(request, object_id, extra_context)
        except NotPossible as error:
            messages.error(request, f"Not deleted. {error}")
            return HttpResponseRedirect(reverse("admin:queues_schedule_changelist"))

    def delete_model(self, request: HttpRequest, obj: Schedule) -> None:
        schedules.delete(obj.pk, reason="Deleted in the admin.", **who(request))


def _local(tick: dt.datetime, zone: dt.tzinfo) -> str:
    return f"{tick.astimezone(zone):%a %Y-%m-%d %H:%M}"


def _value(obj: Schedule) -> Any:
    try:
        return json.loads(obj.payload)
    except ValueError:
        return None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)
