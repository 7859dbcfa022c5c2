"""Alert rules in the Django admin, for owners and above: what watches what, what is too much, and what it reads now.

Not here: what may be in a rule, and what writes it (`jobsboard.alert_rules`); alerts, which the board shows.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import Error, transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from jobsboard import alert_rules
from jobsboard.alerts import defaults, metrics
from jobsboard.alerts.engine import breached
from jobsboard.alerts.seen import Seen
from jobsboard.models import AlertRule
from jobsboard.roles import can
from queues.models import JobType

log = logging.getLogger(__name__)

READINGS_SHOWN: Final = 12
_FIELDSETS: Any = (
    (None, {"fields": ("name", "enabled", "severity", "runbook_url")}),
    (
        "What it measures",
        {
            "description": "Most metrics are about everything, one tier or one job type. Limbo, the age of the numbers,"
            " partitions and endpoints are about the whole installation; memory is about everything or one tier.",
            "fields": ("metric", ("scope", "tier", "job_type"), "reason", ("over_seconds", "least_events")),
        },
    ),
    (
        "When it fires",
        {
            "description": "The value is compared every five seconds. It fires when it was on the bad side all the time"
            " that “For” asks for.",
            "fields": (("comparison", "threshold"), "for_seconds"),
        },
    ),
    (
        "When it clears",
        {
            "description": "A value that swings around the threshold fires once, if it clears only some way below it.",
            "fields": ("clear_threshold", "clear_for_seconds"),
        },
    ),
    ("Silence", {"description": "Set on the page Alerts.", "fields": ("silence",)}),
)
_OVER_SECONDS: Final = 300


@dataclass(frozen=True, kw_only=True)
class Preview:
    """What a rule reads now: lines of (subject, value, whether it is breached, words), or why nothing is read."""

    lines: list[tuple[str, str, bool, str]]
    more: int
    problem: str = ""


class RuleForm(forms.ModelForm):  # type: ignore[type-arg]
    """A rule as a person writes it."""

    tier = forms.TypedChoiceField(
        required=False, coerce=int, empty_value=None, choices=[("", "none"), (1, "1"), (2, "2"), (3, "3")]
    )

    class Meta:
        model = AlertRule
        fields = alert_rules.FIELDS
        labels = {
            "for_seconds": "For (seconds)",
            "clear_for_seconds": "Clear for (seconds)",
            "over_seconds": "Over (seconds)",
        }
        help_texts = {
            "name": "People read it in alerts, and receivers get it: say what is wrong.",
            "job_type": "The name of a job type.",
            "reason": "Of new dead letters: only those of this reason. Empty: all.",
            "over_seconds": "The stretch that is measured, 60 to 86,400; empty is 300. Lag, promise, late share, new"
            " dead letters and signs of duplicates have one. The others look at this moment: leave it empty.",
            "least_events": "Lag, promise and late share have no value with fewer events than this.",
            "threshold": "Shares are written as 0.05 for 5 %. Of lag, oldest job and promise it is a multiple, of time"
            " seconds, of memory MB.",
            "clear_threshold": "What fires stays until the value is on the good side of this. Empty: the threshold.",
            "for_seconds": "So long on the bad side before it fires. 0: at once.",
            "clear_for_seconds": "So long on the good side before it clears. 0: at once.",
            "severity": "Endpoints may ask for critical ones only.",
            "runbook_url": "What to do when it fires; http or https. It is sent along.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["over_seconds"].required = False
        if not self.instance.pk or self.instance.metric not in alert_rules.OVER:
            self.initial["over_seconds"] = None

    def clean_job_type(self) -> str:
        """Return the name without what cannot be in one."""
        name: str = self.cleaned_data["job_type"]
        return name.replace("\x00", "").strip()

    def clean_runbook_url(self) -> str:
        """Take http and https only: it becomes a link."""
        url: str = self.cleaned_data["runbook_url"].strip()
        if url and not url.startswith(("http://", "https://")):
            raise forms.ValidationError("It begins with http:// or https://.")
        return url

    def clean(self) -> dict[str, Any]:
        """Hold the fields against each other."""
        given: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors:
            for name, problem in alert_rules.problems(given).items():
                self.add_error(name, problem)
            if given.get("over_seconds") is None:
                given["over_seconds"] = _OVER_SECONDS
        return given

    def notes(self) -> list[str]:
        """Say what is allowed and may be a mistake."""
        name = self.cleaned_data["job_type"]
        if name and not JobType.objects.filter(name=name).exists():
            return [f"There is no job type “{name}” yet: the rule waits for it."]
        return []


@admin.register(AlertRule)
class AlertRuleAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The page of rules."""

    form = RuleForm
    fieldsets = _FIELDSETS
    readonly_fields = ("silence",)
    list_display = ("name", "measures", "of", "fires_when", "for_seconds", "severity", "enabled", "origin")
    list_filter = ("severity", "enabled", "edited")
    search_fields = ("name", "job_type")
    ordering = ("name",)
    actions = ("back_to_default",)
    change_form_template = "admin/jobsboard/alertrule/change_form.html"

    @admin.display(description="Measures", ordering="metric")
    def measures(self, rule: AlertRule) -> str:
        """Name the metric in one word."""
        return " ".join(part for part in (rule.metric, rule.reason) if part)

    @admin.display(description="Of")
    def of(self, rule: AlertRule) -> str:
        """Say what it looks at."""
        return alert_rules.scope_words(rule)

    @admin.display(description="Fires when", ordering="threshold")
    def fires_when(self, rule: AlertRule) -> str:
        """Say the threshold with its unit."""
        return alert_rules.threshold_words(rule)

    @admin.display(description="From", ordering="edited")
    def origin(self, rule: AlertRule) -> str:
        """Say whether the code keeps its numbers."""
        if not rule.default_key:
            return "your own"
        return "default, changed" if rule.edited else "default"

    @admin.display(description="Silenced")
    def silence(self, rule: AlertRule) -> str:
        """Say until when, and by whom."""
        if rule.silenced_until is None:
            return "no"
        return f"until {rule.silenced_until:%Y-%m-%d %H:%M} UTC by {rule.silenced_by}"

    def get_urls(self) -> list[URLPattern]:
        """Add the way back to the default."""
        back = self.admin_site.admin_view(require_POST(self.default_view))
        return [path("<int:rule_id>/default/", back, name="jobsboard_alertrule_default"), *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        """Add what the rule says and what it reads now, both as stored."""
        original = context.get("original")
        stored = AlertRule.objects.filter(pk=original.pk).first() if original else None
        if stored is not None:
            default = defaults.default_of(stored.default_key) if stored.default_key else None
            context |= {
                "says": alert_rules.sentence(stored),
                "preview": preview(stored),
                "differs": _differs(stored, default) if default else [],
                "is_default": default is not None,
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: AlertRule, form: Any, change: bool) -> None:
        """Store it with its audit entry, and say what may be a mistake."""
        if not alert_rules.save(obj, **_who(request)):
            messages.info(request, "The rule is as it was.")
        for note in form.notes():
            messages.warning(request, note)

    def delete_model(self, request: HttpRequest, obj: AlertRule) -> None:
        """Delete a rule of somebody's own."""
        alert_rules.delete(obj, **_who(request))

    def default_view(self, request: HttpRequest, rule_id: int) -> HttpResponse:
        """Give one rule the code's numbers again."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        self.back_to_default(request, AlertRule.objects.filter(pk=rule_id))
        return HttpResponseRedirect(reverse("admin:jobsboard_alertrule_change", args=[rule_id]))

    @admin.action(description="Back to the default", permissions=["change"])
    def back_to_default(self, request: HttpRequest, queryset: QuerySet[AlertRule]) -> None:
        """Give rules the code's numbers again; rules of somebody's own have none."""
        changed = sum(alert_rules.back_to_default(rule.pk, **_who(request)) for rule in queryset)
        done = f"{changed} rule{' is' if changed == 1 else 's are'} back to the default."
        messages.info(request, done if changed else "Nothing differs from the default.")

    def has_view_permission(self, request: HttpRequest, obj: AlertRule | None = None) -> bool:
        """Owners and above; everybody else reads them on the page Alerts."""
        return can(request.user, "edit_rules")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Owners and above."""
        return can(request.user, "edit_rules")

    def has_change_permission(self, request: HttpRequest, obj: AlertRule | None = None) -> bool:
        """Owners and above."""
        return can(request.user, "edit_rules")

    def has_delete_permission(self, request: HttpRequest, obj: AlertRule | None = None) -> bool:
        """Only rules of somebody's own: a default rule is disabled."""
        return can(request.user, "edit_rules") and (obj is None or not obj.default_key)

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Owners and above are shown the section."""
        return can(request.user, "edit_rules")


def _who(request: HttpRequest) -> dict[str, Any]:
    return {
        "actor": request.user.get_username(),
        "source": "admin",
        "request_id": getattr(request, "request_id", ""),
    }


def _differs(rule: AlertRule, default: defaults.Default) -> list[tuple[str, Any, Any]]:
    """Return (field, value here, value of this release) where they differ."""
    labels = {field.name: str(field.verbose_name) for field in AlertRule._meta.concrete_fields}
    return [
        (labels[name], getattr(rule, name), getattr(default, name))
        for name in alert_rules.FIELDS
        if hasattr(default, name) and getattr(rule, name) != getattr(default, name)
    ]


def preview(rule: AlertRule) -> Preview:
    """Read a rule's metric now, worst first."""
    try:
        # A statement that fails must not take the page's own statements with it.
        with transaction.atomic():
            readings = list(metrics.read(rule, Seen.now()))
    except (Error, ArithmeticError, LookupError, ValueError) as error:
        log.warning("alert rule %r cannot be measured: %s: %s", rule.name, type(error).__name__, error)
        return Preview(lines=[], more=0, problem=f"It cannot be measured: {type(error).__name__}.")
    low = rule.comparison == AlertRule.Comparison.BELOW
    known = sorted(
        readings, key=lambda one: (one.value is None, (one.value or 0.0) if low else -(one.value or 0.0), one.subject)
    )
    lines = [
        (one.subject, alert_rules.value_words(rule.metric, one.value), breached(rule, one.value), one.words)
        for one in known[:READINGS_SHOWN]
    ]
    return Preview(lines=lines, more=max(len(known) - READINGS_SHOWN, 0))
