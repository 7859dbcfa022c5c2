"""Rules in the admin: who may, what is refused and audited, the way back to the default, what a rule reads now."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

import pytest
from django.contrib.auth.models import Group, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from jobsboard import alert_rules
from jobsboard.admin import alerts as rules_admin
from jobsboard.alerts import defaults, metrics
from jobsboard.alerts.seen import Seen
from jobsboard.models import Alert, AlertFinding, AlertRule, Metric
from queues.models import AuditEntry, BoardVersion, Dependency
from tests.alerts.rounds import make_rule
from tests.factories import accept, fold_all, make_type

pytestmark = pytest.mark.django_db

LIST: Final = "/admin/jobsboard/alertrule/"
MARKER: Final = '"><img src=x onerror=window.__xss=1>'


def client_of(role: str, *, staff: bool = True) -> Client:
    user = User.objects.create(username=role, is_staff=staff)
    user.groups.add(Group.objects.get_or_create(name=role)[0])
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def owner() -> Client:
    return client_of("owner")


def change_url(rule: AlertRule) -> str:
    return reverse("admin:jobsboard_alertrule_change", args=[rule.pk])


def default(key: str) -> AlertRule:
    defaults.ensure()
    return AlertRule.objects.get(default_key=key)


def form_data(client: Client, url: str, **changes: Any) -> dict[str, Any]:
    """Return what a browser would send from this form, with these changes; None leaves a field out."""
    form = client.get(url).context["adminform"].form
    data = {bound.html_name: bound.value() for bound in form}
    data = {name: "on" if value is True else value for name, value in data.items() if value is not None}
    return {name: value for name, value in {**data, **changes}.items() if value is not None and value is not False}


def errors_of(response: Any) -> dict[str, list[str]]:
    assert response.status_code == 200
    return {name: list(found) for name, found in response.context["adminform"].form.errors.items()}


def said(client: Client, response: Any) -> list[str]:
    assert response.status_code == 302, errors_of(response)
    return [str(message) for message in client.get(response["Location"]).context["messages"]]


@pytest.mark.parametrize(("role", "status"), [("viewer", 403), ("operator", 403), ("owner", 200), ("admin", 200)])
def test_owners_and_above(role: str, status: int) -> None:
    rule = make_rule()
    client = client_of(role)
    for url in (LIST, f"{LIST}add/", change_url(rule), f"{LIST}{rule.pk}/delete/"):
        assert client.get(url).status_code == status, url
    for url in (change_url(rule), f"{LIST}{rule.pk}/default/", f"{LIST}{rule.pk}/delete/"):
        assert client.post(url, {"post": "yes"}).status_code == (
            403 if status == 403 else 200 if "change" in url else 302
        )
    assert AlertRule.objects.exists() == (status == 403)


def test_who_is_not_staff_stays_out() -> None:
    assert client_of("owner", staff=False).get(LIST).status_code == 302


def test_alerts_and_findings_are_not_in_the_admin(owner: Client) -> None:
    page = owner.get("/admin/").text
    assert LIST in page
    for model in (Alert, AlertFinding):
        assert f"/admin/jobsboard/{model._meta.model_name}/" not in page


def test_a_change_is_audited_with_before_and_after_and_marks_a_default_rule(owner: Client) -> None:
    rule, version = default("dead_inflow.tier1"), BoardVersion.objects.get().n
    data = form_data(owner, change_url(rule), threshold="9", runbook_url="https://wiki.example/dead")
    assert owner.post(change_url(rule), data).status_code == 302
    rule.refresh_from_db()
    assert (rule.threshold, rule.edited) == (9.0, True)
    entry = AuditEntry.objects.get(action="alert_rule.changed")
    assert (entry.actor, entry.source, entry.object_id) == ("owner", "admin", str(rule.pk))
    assert entry.before == {"threshold": 5.0, "runbook_url": ""}
    assert entry.after == {"threshold": 9.0, "runbook_url": "https://wiki.example/dead"}
    assert BoardVersion.objects.get().n > version
    defaults.ensure()
    rule.refresh_from_db()
    assert rule.threshold == 9.0


def test_a_save_that_changes_nothing_is_not_audited(owner: Client) -> None:
    rule = default("dead_inflow.tier1")
    assert "The rule is as it was." in said(owner, owner.post(change_url(rule), form_data(owner, change_url(rule))))
    rule.refresh_from_db()
    assert not rule.edited
    assert not AuditEntry.objects.exists()


def test_disabling_a_default_rule_does_not_freeze_its_numbers(owner: Client) -> None:
    """The code never writes `enabled`, so newer numbers may still come."""
    rule = default("limbo")
    assert owner.post(change_url(rule), form_data(owner, change_url(rule), enabled=None)).status_code == 302
    AlertRule.objects.filter(pk=rule.pk).update(threshold=77)
    defaults.ensure()
    rule.refresh_from_db()
    assert (rule.enabled, rule.edited, rule.threshold) == (False, False, 1.0)


def test_back_to_the_default(owner: Client) -> None:
    rule = default("dead_inflow.tier1")
    owner.post(change_url(rule), form_data(owner, change_url(rule), threshold="9", name="Mine", enabled=None))
    page = owner.get(change_url(rule)).text
    assert "This default rule was changed" in page
    assert "threshold: 9.0 here, 5 in this release" in page
    for _ in range(2):
        response = owner.post(f"{LIST}{rule.pk}/default/")
        assert response.status_code == 302
    rule.refresh_from_db()
    assert (rule.threshold, rule.name, rule.edited) == (5.0, "Tier 1: new dead letters", False)
    assert not rule.enabled, "whether it is on is a person's word, not a number of the code"
    entry = AuditEntry.objects.get(action="alert_rule.reset")
    assert entry.before == {"name": "Mine", "threshold": 9.0}
    assert "This default rule was changed" not in owner.get(change_url(rule)).text
    assert owner.get(f"{LIST}{rule.pk}/default/").status_code == 405


def test_back_to_the_default_for_many_leaves_own_rules_alone(owner: Client) -> None:
    rule, mine = default("dead_inflow.tier1"), make_rule(threshold=3)
    AlertRule.objects.filter(pk=rule.pk).update(threshold=9, edited=True)
    given = {"action": "back_to_default", "_selected_action": [rule.pk, mine.pk]}
    assert "1 rule is back to the default." in said(owner, owner.post(LIST, given))
    mine.refresh_from_db()
    assert mine.threshold == 3


def test_a_name_that_somebody_took_stays_taken(owner: Client) -> None:
    rule = default("limbo")
    AlertRule.objects.filter(pk=rule.pk).update(name="Other", threshold=9, edited=True)
    make_rule(name="Jobs in limbo")
    assert alert_rules.back_to_default(rule.pk, actor="ann")
    rule.refresh_from_db()
    assert (rule.name, rule.threshold) == ("Other", 1.0)


def test_own_rules_are_made_and_deleted_and_default_rules_are_not(owner: Client) -> None:
    values = {"name": "Mail is late", "metric": "late_ratio", "scope": "type", "job_type": "mail.send",
              "threshold": "0.2", "comparison": "at_least", "severity": "warning", "enabled": "on"}  # fmt: skip
    data = form_data(owner, f"{LIST}add/", **values)
    assert "There is no job type “mail.send” yet: the rule waits for it." in said(
        owner, owner.post(f"{LIST}add/", data)
    )
    mine = AlertRule.objects.get(name="Mail is late")
    assert (mine.over_seconds, mine.default_key, mine.edited) == (300, None, False)
    AlertFinding.objects.create(rule=mine, subject="type:mail.send", since=mine.updated_at)
    assert owner.post(f"{LIST}{mine.pk}/delete/", {"post": "yes"}).status_code == 302
    assert not AlertRule.objects.filter(pk=mine.pk).exists()
    assert [entry.action for entry in AuditEntry.objects.order_by("id")] == ["alert_rule.created", "alert_rule.deleted"]
    rule = default("limbo")
    assert owner.get(f"{LIST}{rule.pk}/delete/").status_code == 403
    assert owner.post(f"{LIST}{rule.pk}/delete/", {"post": "yes"}).status_code == 403
    assert AlertRule.objects.filter(pk=rule.pk).exists()
    with pytest.raises(ValueError, match="disabled, not deleted"):
        alert_rules.delete(rule, actor="ann")


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"scope": "tier", "tier": ""}, "tier"),
        ({"scope": "all", "tier": "2"}, "tier"),
        ({"scope": "type", "tier": "", "job_type": ""}, "job_type"),
        ({"scope": "tier", "job_type": "mail.send"}, "job_type"),
        ({"scope": "type", "tier": "", "job_type": "a\x00"}, "job_type"),
        ({"metric": "limbo", "over_seconds": "", "least_events": "0"}, "scope"),
        ({"metric": "worker_memory", "scope": "type", "tier": "", "job_type": "x", "over_seconds": "",
          "least_events": "0"}, "scope"),
        ({"metric": "backlog", "least_events": "0"}, "over_seconds"),
        ({"metric": "backlog", "over_seconds": ""}, "least_events"),
        ({"reason": "poison"}, "reason"),
        ({"reason": "nonsense"}, "reason"),
        ({"clear_threshold": "0.11"}, "clear_threshold"),
        ({"comparison": "below", "clear_threshold": "0.09"}, "clear_threshold"),
        ({"threshold": "nan"}, "threshold"),
        ({"threshold": ""}, "threshold"),
        ({"over_seconds": "59"}, "over_seconds"),
        ({"for_seconds": "86401"}, "for_seconds"),
        ({"runbook_url": "javascript:alert(1)"}, "runbook_url"),
        ({"metric": "nope"}, "metric"),
        ({"tier": "4"}, "tier"),
        ({"name": ""}, "name"),
        ({"name": "Jobs in limbo"}, "name"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_its_field(owner: Client, changes: dict[str, Any], field: str) -> None:
    rule = default("late_ratio.tier2")
    response = owner.post(change_url(rule), form_data(owner, change_url(rule), **changes))
    assert list(errors_of(response)) == [field]
    assert not AuditEntry.objects.exists()
    rule.refresh_from_db()
    assert not rule.edited


@pytest.mark.parametrize("changes", [{"clear_threshold": "0.05"}, {"comparison": "below", "clear_threshold": "0.11"},
                                     {"clear_threshold": "0.1"}])  # fmt: skip
def test_hysteresis_on_the_good_side_is_taken(owner: Client, changes: dict[str, Any]) -> None:
    rule = default("late_ratio.tier2")
    assert owner.post(change_url(rule), form_data(owner, change_url(rule), **changes)).status_code == 302
    rule.refresh_from_db()
    assert rule.clear_threshold == float(changes["clear_threshold"])


def test_the_rules_of_rules_take_every_default_rule(owner: Client) -> None:
    """A person who opens one and saves it is not stopped by numbers that the code has chosen."""
    for one in defaults.DEFAULTS:
        rule = AlertRule(**asdict(one))
        given = {name: getattr(rule, name) for name in alert_rules.FIELDS}
        over = rule.over_seconds if rule.metric in alert_rules.OVER else None
        assert rule.over_seconds == 300 or over, "it would be lost on the first save"
        assert alert_rules.problems({**given, "over_seconds": over}) == {}, one.default_key
    for key in ("limbo", "lag.tier1", "worker_memory"):
        rule = default(key)
        assert owner.post(change_url(rule), form_data(owner, change_url(rule))).status_code == 302
    assert not AuditEntry.objects.exists()


class Asked:
    """A rule that remembers which of its fields a metric has looked at."""

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self.names: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.names.add(name)
        return getattr(self.rule, name)


@pytest.mark.parametrize("metric", Metric.values)
def test_what_is_said_of_a_metric_is_what_it_looks_at(metric: str) -> None:
    """The form refuses exactly what a metric would not look at."""
    make_type("mail.send", dependency="smtp")
    Dependency.objects.create(name="smtp")
    accept(2, kind="mail.send")
    fold_all()
    asked = Asked(AlertRule(metric=metric, threshold=1, scope="all"))
    metrics.read(asked, Seen.now())  # type: ignore[arg-type]
    assert ("over_seconds" in asked.names) == (metric in alert_rules.OVER)
    assert ("least_events" in asked.names) <= (metric in alert_rules.EVENTS)
    assert ("reason" in asked.names) <= (metric == Metric.DEAD_INFLOW)
    scopes = alert_rules.scopes_of(metric)
    if "tier" in asked.names or "job_type" in asked.names:
        assert "tier" in scopes
    if metric not in (Metric.WORKER_MEMORY, Metric.PROBE_FAILED):
        assert ({"tier", "job_type"} <= asked.names) == ("type" in scopes), asked.names


def test_the_page_says_what_the_rule_reads_now(owner: Client) -> None:
    make_type("mail.send", tier_id=1)
    rule = default("backlog.tier1")
    page = owner.get(change_url(rule)).text
    assert "What it reads now" in page
    assert '0% of the limit</b> <span class="jb-code">tier1</span>' in page
    AlertRule.objects.filter(pk=rule.pk).update(threshold=0)
    assert "on the bad side" in owner.get(change_url(rule)).text
    assert "What it reads now" not in owner.get(f"{LIST}add/").text


def test_a_metric_that_cannot_be_read_breaks_no_page(owner: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement fails, its transaction does not."""
    rule = default("limbo")

    def fail(*_: object) -> Any:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1 / 0")

    monkeypatch.setattr(metrics, "read", fail)
    page = owner.get(change_url(rule)).text
    assert "It cannot be measured: DataError." in page
    assert "division by zero" not in page
    rule.refresh_from_db()


def test_hostile_names_are_shown_as_text(owner: Client) -> None:
    """S-20"""
    rule = make_rule(name=MARKER, tier=None, scope="type", job_type=MARKER[:64])
    for url in (LIST, change_url(rule), f"{LIST}{rule.pk}/delete/", f"{LIST}{rule.pk}/history/"):
        page = owner.get(url).text
        assert "<img src=x" not in page, url
        assert "onerror" in page, url
    assert rules_admin.preview(rule).problem == ""


def test_a_rule_that_took_the_name_of_a_default_rule_stops_no_round() -> None:
    """The rules are brought in step at the beginning of each round: it may not fail, whatever people named theirs."""
    make_rule(name="Jobs in limbo")
    rule = default("backlog.tier1")
    AlertRule.objects.filter(pk=rule.pk).update(name="Was called so once")
    make_rule(name="Tier 1: backlog")
    for _ in range(2):
        with CaptureQueriesContext(connection) as captured:
            defaults.ensure()
    assert not [query for query in captured if query["sql"].startswith(("UPDATE", "INSERT"))], "each round would write"
    named = dict(AlertRule.objects.exclude(default_key=None).values_list("default_key", "name"))
    assert len(named) == len(defaults.DEFAULTS)
    assert (named["limbo"], named["backlog.tier1"]) == ("Jobs in limbo (limbo)", "Was called so once")
