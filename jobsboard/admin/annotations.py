"""Annotations in the Django admin: every role reads, operators and above add.

Not here: the rules of annotations (`jobsboard.annotations`).
"""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin
from django.http import HttpRequest

from jobsboard.annotations import AnnotationRefused, Wanted, annotate, check
from jobsboard.models import Annotation
from jobsboard.roles import can
from queues.models import JobType


class AnnotationForm(forms.ModelForm):  # type: ignore[type-arg]
    """An annotation as a person writes it; times are UTC."""

    job_type = forms.ChoiceField(required=False, help_text="Empty: about all types.")
    at = forms.DateTimeField(required=False, label="At (UTC)", help_text="Empty: now.")
    count = forms.IntegerField(required=False, help_text="Of support: how many asked. Empty: one.")

    class Meta:
        model = Annotation
        fields = ("kind", "at", "job_type", "category", "count", "text", "url")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        names = JobType.objects.order_by("name").values_list("name", flat=True)
        self.fields["job_type"].choices = [("", "all types"), *((name, name) for name in names)]  # type: ignore[attr-defined]

    def wanted(self) -> Wanted:
        """Return what was typed."""
        given = self.cleaned_data
        return Wanted(
            kind=given["kind"],
            at=given.get("at"),
            job_type=given.get("job_type", ""),
            category=given.get("category", ""),
            count=given.get("count"),
            text=given.get("text", ""),
            url=given.get("url", ""),
        )

    def clean(self) -> dict[str, Any]:
        """Hold what was typed against the rules, which the API has too."""
        given = super().clean() or self.cleaned_data
        if "kind" in given:
            try:
                check(self.wanted())
            except AnnotationRefused as refused:
                self.add_error(refused.field, refused.detail)
        return given

    def _post_clean(self) -> None:
        # The rules were asked already; the model's own checks would want the defaults of the database.
        pass


@admin.register(Annotation)
class AnnotationAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """The page of annotations: every role reads, operators and above add. What was said is not changed."""

    form = AnnotationForm
    list_display = ("at", "kind", "job_type", "category", "count", "text", "created_by")
    list_filter = ("kind",)
    list_per_page = 50
    ordering = ("-at", "-id")
    show_full_result_count = False
    actions = None

    def save_model(self, request: HttpRequest, obj: Annotation, form: Any, change: bool) -> None:
        """Write it as the API does."""
        row, _ = annotate(
            form.wanted(),
            created_by=request.user.get_username(),
            source="admin",
            request_id=getattr(request, "request_id", ""),
        )
        for field in Annotation._meta.concrete_fields:
            setattr(obj, field.attname, getattr(row, field.attname))
        obj._state.adding = False

    def has_view_permission(self, request: HttpRequest, obj: Annotation | None = None) -> bool:
        """Every role reads."""
        return can(request.user, "view")

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Operators and above say what happened."""
        return can(request.user, "act")

    def has_change_permission(self, request: HttpRequest, obj: Annotation | None = None) -> bool:
        """Nobody: it is what somebody said then, and in the audit log."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Annotation | None = None) -> bool:
        """Nobody."""
        return False

    def has_module_permission(self, request: HttpRequest) -> bool:
        """Every role is shown the section."""
        return can(request.user, "view")
