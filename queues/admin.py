"""Contracts and tiers in the Django admin: pages, permissions, previews and history.

The form is `contract_form`'s, the rules `contract_rules`', the writes `contract_versions`'. Jobs and the audit log
are not here: the board shows them, and nobody edits them.
"""

from __future__ import annotations

import json
from typing import Any, Final

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.utils import quote, unquote
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.db.models import Count
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.views.decorators.http import require_POST

from queues import contract_rules, contract_versions, workers
from queues.admin_roles import RoleAdmin, who
from queues.contract_fields import CALLBACK_SECRET, FIELDS, SECRETS, TARGET_SECRET
from queues.contract_form import DEFERRED, SECRET_FIELDS, ContractForm
from queues.contract_switches import HOLDS, SwitchRefused, set_switch
from queues.contract_versions import ContractChanged, ContractInvalid, Diff, JobsExist
from queues.dependency_admin import DependencyAdmin
from queues.models import AuditEntry, ContractRevision, Dependency, JobType, Schedule, Tier
from queues.schedule_admin import ScheduleAdmin

# Bulk deletion would go around the audit log, for whatever is registered.
admin.site.disable_action("delete_selected")
admin.site.site_header = "Jobsboard"
admin.site.site_title = "Jobsboard"
admin.site.index_title = "Settings"

_HISTORY: Final = 200


FIELDSETS: Final = (
    (
        "What it is",
        "",
        ("name", "description", ("owner", "runbook_url"), ("tier", "pool"), "handler", "target_url",
         "target_secret_env", "new_secret", "remove_secret"),
    ),
    (
        "Success",
        "When a job counts as done. That a handler returned is no proof unless you say so here.",
        ("success", "on_unconfirmed", "confirm_within_seconds", "check_url", "check_every_seconds",
         "callback_secret_env", "new_callback_secret", "remove_callback_secret"),
    ),
    ("Promise", "What the board measures this type by.", (("window_seconds", "target_ratio"),)),
    (
        "Key",
        "One key, one business action: the same key is accepted once in its window.",
        ("key_required", "key_template", ("dedupe_window_seconds", "provider_key_ttl_seconds")),
    ),
    (
        "Retry",
        "",
        ("max_attempts", ("backoff", "jitter"), ("backoff_base_seconds", "backoff_cap_seconds"), "never_retry",
         ("on_worker_lost", "poison_after"), "lease_seconds"),
    ),
    ("Too late", "", (("max_age_seconds", "on_stale"),)),
    (
        "Limits",
        "",
        ("priority_default", ("soft_limit_seconds", "hard_limit_seconds"), ("concurrency", "group_concurrency"),
         ("rate_per_second", "rate_burst", "group_rate_per_second"), ("ordered", "ordered_on_failure"),
         ("overlap", "overlap_seconds"), ("deferrable", "dependency"), ("batch_size", "canary_ratio")),
    ),
    (
        "Probe",
        "A job of ours now and then, through the whole path: it tells whether the path works while no other job runs.",
        ("probe_every_seconds", "probe_payload"),
    ),
    ("Data", "", ("max_payload_bytes", "schema", "redact", ("keep_confirmed_days", "keep_other_days"))),
    (
        "Switches",
        "Count at once, for waiting jobs too. They are no part of a version, and contracts sync leaves them alone.",
        ("enabled", ("disabled_reason", "disabled_until"), "paused", ("paused_reason", "paused_until"),
         "deferred", ("deferred_reason", "deferred_until")),
    ),
)  # fmt: skip
_FORM_ONLY: Final = frozenset(name for pair in SECRET_FIELDS.values() for name in pair)


@admin.register(JobType)
class JobTypeAdmin(RoleAdmin, admin.ModelAdmin):  # type: ignore[type-arg]
    """Reliability contracts."""

    form = ContractForm
    exclude = DEFERRED
    actions = None
    list_display = ("name", "tier", "done_means", "promise", "max_attempts", "version", "state")
    list_filter = ("tier", "handler", "success", "enabled", "paused", "deferred")
    list_select_related = ("tier",)
    search_fields = ("name", "owner", "description")
    ordering = ("name",)
    save_on_top = False
    change_form_template = "admin/queues/jobtype/change_form.html"
    object_history_template = "admin/queues/jobtype/object_history.html"

    @admin.display(description="Done means", ordering="success")
    def done_means(self, obj: JobType) -> str:
        return "returned (unverified)" if obj.success == JobType.Success.RETURN else obj.success

    @admin.display(description="Promise", ordering="window_seconds")
    def promise(self, obj: JobType) -> str:
        ratio = obj.tier.target_ratio if obj.target_ratio is None else obj.target_ratio
        return f"{ratio * 100:.4g}% in {_seconds(obj.window_seconds)}"

    @admin.display(description="State")
    def state(self, obj: JobType) -> str:
        if not obj.enabled:
            return "off"
        return "paused" if obj.paused else "deferred" if obj.deferred else "on"

    def get_urls(self) -> list[URLPattern]:
        restore = self.admin_site.admin_view(require_POST(self.restore_view))
        return [
            path("<path:object_id>/restore/", restore, name="queues_jobtype_restore"),
            *super().get_urls(),
        ]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> tuple[str, ...]:
        return ("name",) if obj else ()

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        editing = self.has_change_permission(request, obj) if obj else True
        return [
            (title, {"description": text, "fields": [f for f in fields if editing or f not in _FORM_ONLY]})
            for title, text, fields in FIELDSETS
        ]

    def changeform_view(self, request: HttpRequest, object_id: Any = None, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return super().changeform_view(request, object_id, *args, **kwargs)
        except (ContractChanged, ContractInvalid, SwitchRefused, ImproperlyConfigured) as error:
            # Somebody else was faster between the form's check and the save; the transaction is rolled back.
            messages.error(request, f"Nothing was saved: {error}")
            return HttpResponseRedirect(request.get_full_path())

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        form: ContractForm = context["adminform"].form
        shown = form.instance
        fields = contract_versions.fields_of(shown)
        stored = {name: bool(getattr(shown, name)) for name in SECRETS}
        warnings = form.findings.warnings
        if not form.is_bound:
            warnings = contract_rules.check({**fields, **stored}, live_queues=workers.slots_by_queue()).warnings
        tier_ratio = Tier.objects.filter(pk=fields["tier"]).values_list("target_ratio", flat=True).first()
        key, key_problem = form.key_preview() if form.is_bound else ("", "")
        context |= {
            "promise": contract_rules.promise_sentence(fields, tier_ratio=tier_ratio),
            "warnings": warnings if form.is_bound or shown.pk else [],
            "delays": [
                (number, _seconds(low), _seconds(high))
                for number, (low, high) in enumerate(contract_rules.next_delays(fields), start=1)
            ],
            "delays_past": fields["max_attempts"] - 1,
            "key": key,
            "key_problem": key_problem,
            "previewing": form.previewing,
            "target_secret_stored": stored[TARGET_SECRET],
            "callback_secret_stored": stored[CALLBACK_SECRET],
            "holds": _holds(shown.pk) if shown.pk else [],
            "latest": ContractRevision.objects.filter(job_type_id=shown.pk or "").order_by("-version").first(),
            "editing": self.has_change_permission(request) if kwargs.get("obj") else True,
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def save_model(self, request: HttpRequest, obj: JobType, form: Any, change: bool) -> None:
        reason = form.cleaned_data["reason"] or "Created."
        saved = contract_versions.save(
            obj.pk,
            form.to_save,
            reason=reason,
            expected_version=form.cleaned_data["base_version"] if change else None,
            **who(request),
        )
        for switch in form.switches_to_set(reason):
            set_switch(obj.pk, **switch, **who(request))
        obj.refresh_from_db()
        if saved.version is None:
            messages.info(request, "The contract is as it was: no new version.")
        else:
            messages.info(request, f"This is version {saved.version}.")
        for text in form.findings.warnings:
            messages.warning(request, text)

    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Show every version with who, when, why and what; compare two of them."""
        obj = self.get_object(request, unquote(object_id))
        if obj is None:
            return self._get_obj_does_not_exist_redirect(request, self.opts, object_id)  # type: ignore[attr-defined, no-any-return]
        if not self.has_view_permission(request, obj):
            raise PermissionDenied
        revisions = list(ContractRevision.objects.filter(job_type=obj).order_by("-version")[:_HISTORY])
        context = {
            **self.admin_site.each_context(request),
            "title": f"History of {obj.name}",
            "opts": self.opts,
            "object": obj,
            "module_name": "Job types",
            "versions": [revision.version for revision in revisions],
            "revisions": [(revision, _rows(revision.diff)) for revision in revisions],
            "editing": self.has_change_permission(request, obj),
            "restore_url": reverse("admin:queues_jobtype_restore", args=[quote(obj.pk)]),
            **_comparison(request, obj.name),
        }
        return TemplateResponse(request, self.object_history_template, context)

    def restore_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Save an old version as a new one."""
        if not self.has_change_permission(request):
            raise PermissionDenied
        name = unquote(object_id)
        reason = request.POST.get("reason", "").replace("\x00", "").strip()
        version = _number(request.POST.get("version", ""))
        try:
            if not reason or len(reason) > 1000:
                messages.error(request, "Nothing was restored: say why, in at most 1000 characters.")
            else:
                saved = contract_versions.restore(name, version, reason=reason, **who(request))
                done = f"Version {version} is back as version {saved.version}." if saved.version else "Nothing differs."
                messages.success(request, done)
        except ContractRevision.DoesNotExist:
            messages.error(request, "Nothing was restored: there is no such version.")
        except ContractInvalid as error:
            messages.error(request, f"Nothing was restored, today's rules refuse it: {error}")
        return HttpResponseRedirect(reverse("admin:queues_jobtype_history", args=[object_id]))

    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        name = unquote(object_id)
        try:
            counts = contract_versions.job_counts(name) if self.has_delete_permission(request) else None
            if counts is not None:
                raise JobsExist(counts)
            return super().delete_view(request, object_id, extra_context)
        except JobsExist as error:
            messages.error(request, f"Not deleted. {error}")
            return HttpResponseRedirect(reverse("admin:queues_jobtype_change", args=[object_id]))

    def delete_model(self, request: HttpRequest, obj: JobType) -> None:
        contract_versions.delete(obj.pk, reason="Deleted in the admin.", **who(request))


class TierForm(forms.ModelForm):  # type: ignore[type-arg]
    """A tier and the reason for its change."""

    reason = forms.CharField(max_length=1000, widget=forms.TextInput(attrs={"size": 80}))

    class Meta:
        model = Tier
        fields = list(contract_versions.TIER_FIELDS)
        help_texts = {
            "target_ratio": "Share of jobs confirmed within their window, such as 0.995; contracts may set their own.",
            "retry_budget": "Not enforced yet: retries are not limited to a share of the work.",
            "backlog_limit": "Open jobs above which the API answers 429.",
            "defer_after_seconds": "Seconds. Once its jobs wait longer for a worker, deferrable job types of the tiers "
            "below are deferred until it is served again. 0: never.",
        }


@admin.register(Tier)
class TierAdmin(RoleAdmin, admin.ModelAdmin):  # type: ignore[type-arg]
    """The three tiers: edited, never added or deleted."""

    form = TierForm
    actions = None
    list_display = ("number", "name", "target_ratio", "backlog_limit")
    ordering = ("number",)
    change_form_template = "admin/queues/tier/change_form.html"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        # As stored: a form with a mistake has written into its instance.
        tier = Tier.objects.get(pk=context["original"].pk)
        counts = JobType.objects.filter(tier=tier).aggregate(types=Count("pk"), own=Count("target_ratio"))
        shown = {name: getattr(tier, name) for name in ("number", *contract_versions.TIER_FIELDS)}
        return super().render_change_form(
            request, {**context, "promise": contract_rules.tier_sentence(shown, **counts)}, *args, **kwargs
        )

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        fields = contract_versions.TIER_FIELDS
        return (*fields, "reason") if self.has_change_permission(request, obj) else fields

    def save_model(self, request: HttpRequest, obj: Tier, form: Any, change: bool) -> None:
        fields = {name: form.cleaned_data[name] for name in contract_versions.TIER_FIELDS}
        contract_versions.save_tier(obj.pk, fields, reason=form.cleaned_data["reason"], **who(request))


admin.site.register(Dependency, DependencyAdmin)
admin.site.register(Schedule, ScheduleAdmin)


def _holds(name: str) -> list[dict[str, Any]]:
    """Return what holds the type's jobs back, as stored: which switch, who, when, until when and why."""
    row = JobType.objects.filter(pk=name).first()
    found = []
    for hold in HOLDS if row else ():
        if getattr(row, hold.switch) != hold.value:
            continue
        reason, by, until = (getattr(row, column) for column in hold.columns[1:])
        entries = AuditEntry.objects.filter(object_type="job_type", object_id=name, action=hold.held)
        # A type that was made switched off has no entry of its own for that.
        at = entries.order_by("-id").values_list("at", flat=True).first()
        found.append({"word": hold.prefix, "by": by, "at": at, "until": until, "reason": reason})
    return found


def _comparison(request: HttpRequest, name: str) -> dict[str, Any]:
    a, b = _number(request.GET.get("a", "")), _number(request.GET.get("b", ""))
    if not a or not b:
        return {}
    try:
        return {"a": a, "b": b, "compared": _rows(contract_versions.compare(name, a, b))}
    except ContractRevision.DoesNotExist:
        return {"a": a, "b": b, "missing": True}


def _rows(diff: Diff) -> list[tuple[str, str, str]]:
    """Return (field, old, new) in the order of the model; the first version has no old values."""
    order = {name: place for place, name in enumerate(FIELDS)}
    fields = sorted(diff, key=lambda name: order.get(name, len(order)))
    created = all(pair[0] in (None, "not set") for pair in diff.values())
    return [(name, "" if created else _shown(diff[name][0]), _shown(diff[name][1])) for name in fields]


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _number(text: str) -> int:
    """Read a version number; 0 for what is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _seconds(value: float) -> str:
    if value >= 60:
        minutes, seconds = divmod(round(value), 60)
        return f"{minutes}m {seconds:02d}s"
    return f"{value:.3g}s"
