"""The admin's form for a contract: labels, help, lists one per line, secrets that go in and never come out.

The rules are `contract_rules`'; pages and permissions are in `admin`.
"""

from __future__ import annotations

import json
from typing import Any, Final

from django import forms
from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.utils.html import format_html

from queues import canonical, contract_rules, contract_versions, http_target, secrets_box, workers
from queues.contract_fields import (
    CALLBACK_SECRET,
    FIELDS,
    NOT_ENFORCED,
    SWITCH_MARKS,
    SWITCHES,
    TARGET_SECRET,
    default_of,
)
from queues.contract_rules import Findings, KeyTemplateError
from queues.contract_switches import HOLDS, SwitchRefused, check_until
from queues.models import JobType, Tier

PREVIEW: Final = "_preview"
SHORTEST_SECRET: Final = 16
SECRET_FIELDS: Final = {
    TARGET_SECRET: ("new_secret", "remove_secret"),
    CALLBACK_SECRET: ("new_callback_secret", "remove_callback_secret"),
}
"""What is typed in for each secret: a new one, or that the stored one goes."""

LABELS: Final = {
    "runbook_url": "Runbook",
    "target_url": "Target address",
    "target_secret_env": "Secret from variable",
    "callback_secret_env": "Callback secret from variable",
    "disabled_reason": "Why off",
    "paused_reason": "Why paused",
    "deferred_reason": "Why deferred",
    "success": "Done means",
    "check_url": "Check address",
    "check_every_seconds": "Check every",
    "confirm_within_seconds": "Confirm within",
    "on_unconfirmed": "Without proof",
    "window_seconds": "Confirmed within",
    "target_ratio": "Share of jobs",
    "max_age_seconds": "Max age",
    "on_stale": "Past max age",
    "key_required": "Every job needs a key",
    "key_template": "Key template",
    "dedupe_window_seconds": "Dedupe window",
    "provider_key_ttl_seconds": "Provider keeps keys for",
    "backoff_base_seconds": "First delay",
    "backoff_cap_seconds": "Longest delay",
    "never_retry": "Never retry",
    "on_worker_lost": "Worker lost",
    "poison_after": "Poison after",
    "lease_seconds": "Lease",
    "soft_limit_seconds": "Soft limit",
    "hard_limit_seconds": "Hard limit",
    "priority_default": "Priority",
    "overlap_seconds": "Overlap window",
    "rate_burst": "Burst",
    "keep_confirmed_days": "Keep confirmed",
    "keep_other_days": "Keep others",
    "max_payload_bytes": "Largest payload",
    "redact": "Redact",
    "schema": "Payload schema",
    "probe_every_seconds": "Probe every",
    "probe_payload": "Probe payload",
}

_HELP: Final = {
    "name": "What producers and handlers call it, such as billing.receipt. It cannot be changed.",
    "description": "What becomes true in the world when a job of this type is done.",
    "owner": "The team to ask.",
    "runbook_url": "What to do when it is late.",
    "tier": "New jobs take it; jobs that wait keep theirs.",
    "pool": "Empty: the tier's own workers. With mail in tier 1 the queue is tier1.mail.",
    "target_url": "For the HTTP handler: gets a signed POST for each job.",
    "target_secret_env": "Name of a variable of the workers that holds the signing secret. It signs checks too.",
    "callback_secret_env": "Name of a variable of the web processes: the secret that a provider's callbacks are signed "
    "with. Several in it, separated by spaces or commas, are all taken, and so is the stored one.",
    "check_url": "Gets a signed request that asks for the outcome. With a Python handler a @check function may do it.",
    "check_every_seconds": "Seconds between two checks of one job.",
    "confirm_within_seconds": "Seconds from the run's return that a callback or a check may take.",
    "on_unconfirmed": "What becomes of a job whose run returned and whose proof did not come.",
    "window_seconds": "Seconds from ready to confirmed. This is the promise.",
    "target_ratio": "0.999 for 99.9 percent. Empty: the tier's.",
    "max_age_seconds": "Seconds from ready. Ends every open job.",
    "key_template": "Payload fields only, such as invoice-{invoice_id} or {customer.id}. A key that is sent beats it.",
    "dedupe_window_seconds": "Seconds in which a key is accepted once. 0: as long as the job is kept.",
    "provider_key_ttl_seconds": "Seconds in which the provider honours an idempotency key. 0: not known.",
    "max_attempts": "1 to 100, the first one included.",
    "backoff_base_seconds": "Seconds.",
    "backoff_cap_seconds": "Seconds.",
    "never_retry": "Exception class names, one a line.",
    "poison_after": "Lost workers until a job counts as their killer.",
    "lease_seconds": "A run not heard of for so long is taken over.",
    "priority_default": "-100 to 100, higher first.",
    "max_payload_bytes": "Bytes, at most 1048576.",
    "schema": "JSON Schema 2020-12 that payloads must fit. {} takes everything.",
    "redact": "JSON pointers, one a line, such as /card/number. Shown as [redacted] to everyone.",
    "enabled": "Switched off it takes no jobs; those that wait still run.",
    "paused": "Takes jobs, runs none. The clock of the promise goes on.",
    "disabled_reason": "Empty: the reason at the end of the page.",
    "paused_reason": "Empty: the reason at the end of the page.",
    "deferrable": "Gives way while a tier above it is short of workers, as that tier's bound says.",
    "deferred": "Gives way to what is more urgent: takes jobs, runs none. The clock of the promise goes on.",
    "deferred_reason": "Empty: the reason at the end of the page.",
    "probe_every_seconds": "Seconds, at least 10; 600 suits most. 0 for none. A probe is a job that runs for real.",
    "probe_payload": "What a probe carries: a JSON object that fits the schema and hurts nobody.",
    "soft_limit_seconds": "Seconds, 0 for none. Then the handler is told to stop.",
    "hard_limit_seconds": "Seconds, 0 for none. Then the run is stopped.",
    "keep_confirmed_days": "Days after the end.",
    "keep_other_days": "Days after the end. A dead letter that nobody resolved is kept.",
}


DEFERRED: Final = ("deferred", "deferred_reason", "deferred_until")
"""Fields of this form alone: the model has them for the scheduler too, and not for a form."""


def _help_texts() -> dict[str, Any]:
    texts: dict[str, Any] = dict(_HELP)
    for name, missing in NOT_ENFORCED.items():
        texts[name] = format_html(
            '<strong class="jb-later">not enforced yet</strong> {}. {}',
            missing[0].upper() + missing[1:],
            _HELP.get(name, ""),
        )
    return texts


class LinesField(forms.CharField):
    """A list of words, one a line."""

    widget = forms.Textarea(attrs={"rows": 3, "cols": 60})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        if isinstance(value, list):
            return value
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(initial) != self.to_python(data))


class SchemaField(forms.JSONField):
    """A JSON object, read as strictly as a payload."""

    widget = forms.Textarea(attrs={"rows": 8, "cols": 80, "class": "jb-code", "spellcheck": "false"})

    def prepare_value(self, value: Any) -> Any:
        return json.dumps(value, indent=2, ensure_ascii=False) if isinstance(value, dict) else value

    def to_python(self, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        try:
            return canonical.parse(str(value or "{}")).value
        except canonical.JsonRefused as refused:
            raise ValidationError(f"Not a JSON object: {refused.detail}") from None

    def bound_data(self, data: Any, initial: Any) -> Any:
        return data

    def has_changed(self, initial: Any, data: Any) -> bool:
        try:
            return bool(self.to_python(initial) != self.to_python(data))
        except ValidationError:
            return True


class SecretField(forms.CharField):
    """A secret that goes in and never comes out."""

    def __init__(self, **kwargs: Any) -> None:
        attrs = {"autocomplete": "new-password", "size": 50}
        super().__init__(
            required=False, max_length=500, widget=forms.PasswordInput(render_value=False, attrs=attrs), **kwargs
        )

    def clean(self, value: Any) -> str:
        """Refuse a secret that could not be stored or used."""
        secret: str = super().clean(value)
        if not secret:
            return ""
        try:
            if len(http_target.signing_key(secret)) < SHORTEST_SECRET:
                raise ValidationError(f"A secret has at least {SHORTEST_SECRET} bytes.")
            secrets_box.seal(secret)
        except (http_target.SecretMissing, ImproperlyConfigured) as error:
            raise ValidationError(str(error)) from None
        return secret


class UntilField(forms.DateTimeField):
    """When a switch turns back, in UTC; seconds do not matter."""

    def __init__(self, **kwargs: Any) -> None:
        # `step` lets a browser keep the seconds of an end that was set elsewhere.
        widget = forms.DateTimeInput(format="%Y-%m-%dT%H:%M:%S", attrs={"type": "datetime-local", "step": "1"})
        super().__init__(required=False, show_hidden_initial=True, widget=widget, **kwargs)


class ContractForm(forms.ModelForm):  # type: ignore[type-arg]
    """One contract, the reason for its change, and what to try it on."""

    # A field declared here does not take its default from the model.
    tier = forms.ModelChoiceField(
        Tier.objects.order_by("number"), empty_label=None, initial=default_of("tier"), help_text=_HELP["tier"]
    )
    runbook_url = forms.URLField(
        required=False,
        max_length=500,
        assume_scheme="https",
        label=LABELS["runbook_url"],
        help_text=_HELP["runbook_url"],
    )
    never_retry = LinesField(required=False, label=LABELS["never_retry"], help_text=_HELP["never_retry"])
    redact = LinesField(required=False, label=LABELS["redact"], help_text=_HELP["redact"])
    schema = SchemaField(required=False, initial=dict, label=LABELS["schema"], help_text=_HELP["schema"])
    probe_payload = SchemaField(
        required=False, initial=dict, label=LABELS["probe_payload"], help_text=_HELP["probe_payload"]
    )
    new_secret = SecretField(
        label="New secret",
        help_text="Signs requests to the target. Stored encrypted, never shown again. Best written as whsec_ + base64.",
    )
    remove_secret = forms.BooleanField(required=False, label="Remove the stored secret")
    new_callback_secret = SecretField(
        label="New callback secret",
        help_text="Verifies a provider's callbacks. Stored encrypted, never shown again. After a change the one before "
        "it is taken for another 24 hours.",
    )
    remove_callback_secret = forms.BooleanField(
        required=False, label="Remove the stored one", help_text="At once, and the one before it too."
    )
    disabled_until = UntilField(label="Off until (UTC)", help_text="Then it is switched on again. Empty: no end.")
    paused_until = UntilField(label="Paused until (UTC)", help_text="Then it is resumed. Empty: no end.")
    deferred = forms.BooleanField(required=False, help_text=_HELP["deferred"])
    deferred_reason = forms.CharField(
        required=False, max_length=1000, label=LABELS["deferred_reason"], help_text=_HELP["deferred_reason"]
    )
    deferred_until = UntilField(label="Deferred until (UTC)", help_text="Then it is no longer deferred. Empty: no end.")
    reason = forms.CharField(
        label="Reason", max_length=1000, widget=forms.TextInput(attrs={"size": 80}), help_text="For the history."
    )
    sample_payload = forms.CharField(
        required=False,
        label="Sample payload",
        max_length=65_536,
        widget=forms.Textarea(attrs={"rows": 6, "cols": 60, "class": "jb-code", "spellcheck": "false"}),
        help_text="Not saved.",
    )
    base_version = forms.IntegerField(required=False, widget=forms.HiddenInput)

    class Meta:
        model = JobType
        fields = [
            name
            for name in ("name", *FIELDS)
            if name not in SWITCH_MARKS - {"disabled_until", "paused_until"} and name not in DEFERRED
        ]
        labels = LABELS
        help_texts = _help_texts()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.findings = Findings()
        self.previewing = self.is_bound and PREVIEW in self.data
        for name in DEFERRED:
            self.initial.setdefault(name, getattr(self.instance, name))
        for name in SWITCHES & self.fields.keys():
            # Against what the page showed, not against what somebody else has set meanwhile.
            self.fields[name].show_hidden_initial = True
        if "name" in self.fields:
            # A name with a space before it is a mistake to show, not to mend.
            self.fields["name"].strip = False  # type: ignore[attr-defined]
        if self.instance.pk and not self.is_bound:
            self.initial["base_version"] = self.instance.version
        if self.previewing or not self.instance.pk:
            self.fields["reason"].required = False

    def is_valid(self) -> bool:
        """Tell whether this may be saved: a preview never is."""
        return super().is_valid() and not self.previewing

    def clean(self) -> dict[str, Any]:
        """Hold the contract against the rules."""
        cleaned = super().clean() or self.cleaned_data
        base = cleaned.get("base_version")
        if self.instance.pk and base is not None and base != self.instance.version:
            raise ValidationError(
                f"Somebody saved version {self.instance.version} while you edited version {base}. Load the page again."
            )
        stored = {}
        for name, (new, remove) in SECRET_FIELDS.items():
            if cleaned.get(new) and cleaned.get(remove):
                self.add_error(remove, "Either set a new secret or remove the stored one.")
            stored[name] = bool(cleaned.get(new) or (getattr(self.instance, name) and not cleaned.get(remove)))
        self._clean_switches(cleaned)
        previous = contract_versions.fields_of(self.instance) if self.instance.pk else None
        fields = {**self.contract, **stored}
        self.findings = contract_rules.check(fields, previous=previous, live_queues=workers.slots_by_queue())
        for name, texts in self.findings.errors.items():
            # A field that is wrong by itself says so already.
            if name in self.fields and name not in self.errors:
                self.add_error(name, texts)
        return cleaned

    def _clean_switches(self, cleaned: dict[str, Any]) -> None:
        """Refuse an end that is past, and a reason or an end for what is not switched off."""
        if cleaned.get("deferred") and "deferred" in self.changed_data and not cleaned.get("deferrable"):
            self.add_error("deferred", "Only what is deferrable can be deferred.")
        for hold in HOLDS:
            why, until = f"{hold.prefix}_reason", f"{hold.prefix}_until"
            holds = cleaned.get(hold.switch) == hold.value
            for name in {why, until} & set(self.changed_data):
                if cleaned.get(name) and not holds:
                    word = "untick" if hold.switch == "enabled" else "tick"
                    self.add_error(name, f"To use this, {word} “{hold.switch.capitalize()}”; else leave it empty.")
                elif name == until and name not in self.errors:
                    try:
                        check_until(cleaned.get(until))
                    except SwitchRefused as refused:
                        self.add_error(name, str(refused))

    def switches_to_set(self, reason: str) -> list[dict[str, Any]]:
        """Return what `set_switch` takes, for each switch changed here: somebody else may have set the others."""
        calls = []
        for hold in HOLDS:
            why, until = f"{hold.prefix}_reason", f"{hold.prefix}_until"
            if not {hold.switch, why, until} & set(self.changed_data):
                continue
            value = self.cleaned_data[hold.switch]
            holds = value == hold.value
            own = self.cleaned_data[why] if holds else ""
            end = self.cleaned_data[until] if holds else None
            calls.append({hold.switch: value, "reason": own or reason, "until": end})
        return calls

    @property
    def contract(self) -> dict[str, Any]:
        """The contract as typed in, as far as its fields are sound."""
        cleaned = self.cleaned_data
        fields = {name: cleaned[name] for name in FIELDS if name in cleaned and name not in SWITCHES}
        if "tier" in fields:
            fields["tier"] = fields["tier"].number
        return fields

    @property
    def to_save(self) -> dict[str, Any]:
        """What `contract_versions.save` takes: the contract, and the secrets that were set or removed."""
        fields = self.contract
        for name, (new, remove) in SECRET_FIELDS.items():
            if self.cleaned_data.get(new):
                fields[name] = self.cleaned_data[new]
            elif self.cleaned_data.get(remove):
                fields[name] = None
        return fields

    def key_preview(self) -> tuple[str, str]:
        """Return the key that the sample payload gives, or why it gives none."""
        sample = self["sample_payload"].value() or ""
        template = self["key_template"].value() or ""
        if not sample.strip():
            return "", ""
        if not template:
            return "", "There is no key template: the producer sends the key, or the job has none."
        try:
            return contract_rules.key_from_template(template, canonical.parse(sample).value), ""
        except canonical.JsonRefused as refused:
            return "", f"The sample is not JSON: {refused.detail}"
        except KeyTemplateError as error:
            return "", str(error)
