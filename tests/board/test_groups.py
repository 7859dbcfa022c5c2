"""Dead letters by failure: the list and its words, one failure, and what people make of it."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client

from dlq import groups, preflight
from dlq.models import FailureGroup
from jobsboard.board.groups import CHECKS, judged, line
from queues import actions
from queues.models import AuditEntry, FailureCount
from queues.states import DEAD_REASONS
from tests.board.conftest import ClientOf, bury
from tests.board.plans import HTMX, failure, healthy, judge_again
from tests.board.verdicts import fails
from tests.dlq.deaths import fold
from tests.factories import accept, make_type, sql

URL = "/dlq/"


@pytest.fixture(autouse=True)
def _types(db: None) -> None:
    make_type("mail.send", tier_id=1)
    make_type("crm.sync", tier_id=2)


def words(client: Client, url: str = URL) -> str:
    """Return the text of a page's region."""
    page = client.get(url)
    assert page.status_code == 200
    return " ".join(re.sub(r"<[^>]+>", " ", page.text.split('id="region"')[1]).split())


def row_of(group: FailureCount) -> Any:
    return groups.group(group.id)


def test_failures_are_listed_tier_1_first_with_counts_bars_and_one_action(operator: Client) -> None:
    crm, _ = failure(4, kind="crm.sync", message="timed out", fingerprint="c" * 16)
    mail, _ = failure(3)
    text = words(operator)
    assert "7 dead letters, 2 reasons" in text
    table = text.split("Replay check, because")[1]
    assert table.index("mail.send") < table.index("crm.sync")
    assert "Boom: connection reset" in text
    page = operator.get(URL).text
    assert page.count('aria-label="3 died of it in the last 24 h, peak 3"') == 1
    assert page.count('aria-label="4 died of it in the last 24 h, peak 4"') == 1
    for group in (mail, crm):
        assert page.count(f'href="/dlq/groups/{group.id}/"') >= 1
        assert len(re.findall(rf'id="act-{group.id}"', page)) == 1


def test_the_triage_line_says_only_what_was_looked_at(operator: Client) -> None:
    healthy()
    failure(2, seen=False)
    assert "Nothing is known yet of replays" in words(operator)
    assert "Not looked at yet" in words(operator)
    judge_again()
    text = words(operator)
    # An attempt began, nobody was asked and the type has no check: never green.
    assert "Of the newest 2 looked at, 2 are not known to be safe." in text
    assert "Not known to be safe" in text
    assert "2 of 2: not known whether it was done" in text
    assert "Safe to replay" not in text


TRIAGED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"verdicts": {"safe": 5}}, "Safe to replay", "confirmed", "Replay 7"),
    ({"verdicts": {"safe": 4, "unknown": 1}, "unknown": {"already_done": 1}}, "Not known to be safe", "cancelled",
     "Replay 7"),
    ({"verdicts": {"unsafe": 1, "safe": 4}, "against": {"contract": 1}}, "Needs an edit", "retrying", "Review"),
    ({"verdicts": {"unsafe": 5}, "against": {"dependency": 5}}, "Would fail again", "dead", "Review"),
    ({"verdicts": {"unsafe": 5}, "against": {"max_age": 5}}, "Past max age", "expired", "Cancel 7"),
    ({"verdicts": {"unsafe": 5}, "against": {"superseded": 5}}, "Superseded", "cancelled", "Cancel 7"),
    ({"verdicts": {"unsafe": 5}, "against": {"already_done": 5}}, "Already done", "cancelled", "Cancel 7"),
    ({"verdicts": {"unsafe": 5}, "against": {"idempotency_key": 5}}, "Could act twice", "dead", "Review"),
    ({"verdicts": {"unknown": 5}, "unknown": {"already_done": 5}, "notes": {"cause": 5}}, "Failed for good",
     "retrying", "Review"),
]  # fmt: skip


@pytest.mark.parametrize(("triage", "word", "css", "action"), TRIAGED, ids=[case[1] for case in TRIAGED])
def test_the_worst_answer_names_the_check_and_the_action(
    triage: dict[str, Any], word: str, css: str, action: str
) -> None:
    """Unknown is never green, and one unsafe of five is enough to say so."""
    group, _ = failure(7)
    FailureGroup.objects.filter(id=group.id).update(triage={"looked": 5, **triage})
    found = line(row_of(group), may_act=True)
    assert (found.check, found.css, found.action) == (word, css, action)
    assert "of the newest 5" in found.because
    assert line(row_of(group), may_act=False).action == "Review"


def test_every_check_that_can_speak_against_it_has_a_word() -> None:
    assert set(CHECKS) | {"cause"} == set(preflight.NAMES)


def test_a_failing_dependency_shows(operator: Client) -> None:
    group, _ = failure(3)
    fails("mail.send", n=60)
    judge_again()
    assert judged(row_of(group)).word == "Would fail again"
    assert "Would fail again" in words(operator)


def test_filters_say_what_is_shown_and_unknown_values_are_cleared(viewer: Client) -> None:
    failure(3)
    failure(2, kind="crm.sync", fingerprint="c" * 16, reason="permanent_error")
    for query, shown, not_shown in [
        ("?tier=1", "mail.send", "crm.sync"),
        ("?type=crm.sync", "2 dead letters, 1 reason", "3 dead"),
        ("?reason=permanent_error", "2 dead letters, 1 reason", "attempts_exhausted Boom"),
    ]:
        text = words(viewer, URL + query)
        assert shown in text, query
        table = text.split("Replay check, because")[1]
        assert not_shown not in table, query
    assert "“nope” does not exist, cleared" in words(viewer, URL + "?state=nope")
    assert "the page mark is not one of this list" in words(viewer, URL + "?after=x.y")
    for reason in DEAD_REASONS:
        assert viewer.get(f"{URL}?reason={reason.value}").status_code == 200


def test_the_list_says_how_many_are_ignored(operator: Client) -> None:
    """They wake nobody, and are counted all the same."""
    group, _ = failure(3)
    failure(2, fingerprint="a" * 16)
    assert "5 dead letters, 2 reasons" in words(operator, URL)
    operator.post(f"/dlq/groups/{group.id}/ignore/", {"reason": "known"})
    assert "5 dead letters (3 of them ignored), 1 reason" in words(operator, URL)
    assert "5 dead letters (3 of them ignored), 1 reason" in words(operator, URL + "?type=mail.send")
    assert "3 dead letters, 1 reason" in words(operator, URL + "?state=ignored")


def test_ignored_and_resolved_ones_are_under_their_state(operator: Client) -> None:
    group, _ = failure(3)
    operator.post(f"/dlq/groups/{group.id}/ignore/", {"reason": "known"})
    assert f"/dlq/groups/{group.id}/" not in operator.get(URL).text
    assert f"/dlq/groups/{group.id}/" in operator.get(URL + "?state=ignored").text
    operator.post(f"/dlq/groups/{group.id}/resolve/", {"reason": "fixed"})
    assert f"/dlq/groups/{group.id}/" in operator.get(URL + "?state=resolved").text
    assert f"/dlq/groups/{group.id}/" in operator.get(URL + "?state=all").text


def test_a_page_mark_goes_on_where_the_page_ended(viewer: Client) -> None:
    for index in range(53):
        failure(1, fingerprint=f"{index:016x}", seen=False)
    first = viewer.get(URL).text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = viewer.get(URL + older[1].replace("&amp;", "&")).text
    ids = [re.findall(r'id="group-(\d+)"', page) for page in (first, second)]
    assert [len(found) for found in ids] == [50, 3]
    assert len(set(ids[0]) | set(ids[1])) == 53
    assert "53 dead letters, 53 reasons" in first
    # A mark of another filter would skip rows.
    assert "the page mark is not one of this list" in viewer.get(f"{URL}{older[1]}&tier=1".replace("&amp;", "&")).text


def test_one_failure_shows_its_sample_counts_and_only_its_own_dead_letters(operator: Client) -> None:
    group, ids = failure(3)
    _, others = failure(2, fingerprint="a" * 16)
    page = operator.get(f"/dlq/groups/{group.id}/").text
    for job_id in ids:
        assert f'value="{job_id}" form="bulk"' in page
    assert not any(str(job_id) in page for job_id in others)
    text = words(operator, f"/dlq/groups/{group.id}/")
    assert "3 dead letters are unresolved, 3 died of this" in text
    assert "Boom: connection reset" in text
    assert "Replay all 3" in text
    actions.cancel_dead_letter(ids[0], actor="ada", reason="x", source="ui")
    fold()
    text = words(operator, f"/dlq/groups/{group.id}/")
    assert "2 dead letters are unresolved, 3 died of this" in text
    assert str(ids[0]) not in operator.get(f"/dlq/groups/{group.id}/").text


def test_dead_letters_without_an_error_have_a_page(viewer: Client) -> None:
    ids = accept(2, kind="mail.send")
    bury(ids, reason="attempts_exhausted")
    _, others = failure(2)
    group = FailureCount.objects.get(fingerprint="")
    page = viewer.get(f"/dlq/groups/{group.id}/").text
    assert all(str(job_id)[-12:] in page for job_id in ids)
    assert not any(str(job_id)[-12:] in page for job_id in others)
    assert "no error" in page


def test_the_page_of_a_group_pages_by_50(viewer: Client) -> None:
    group, ids = failure(53)
    url = f"/dlq/groups/{group.id}/"
    first = viewer.get(url).text
    older = re.search(r'rel="next" href="([^"]+)"', first)
    assert older is not None
    second = viewer.get(url + older[1].replace("&amp;", "&")).text
    found = [set(re.findall(r'id="job-([0-9a-f-]{36})"', page)) for page in (first, second)]
    assert [len(one) for one in found] == [50, 3]
    assert found[0] | found[1] == {str(job_id) for job_id in ids}


def test_people_ignore_resolve_reopen_and_annotate_with_a_reason(operator: Client) -> None:
    group, _ = failure(3)
    url = f"/dlq/groups/{group.id}/"
    until = sql("SELECT jobs_now()")[0][0].replace(second=0, microsecond=0) + timedelta(hours=5)
    response = operator.post(f"{url}ignore/", {"reason": "known bug", "until": f"{until:%Y-%m-%dT%H:%M}"})
    assert (response.status_code, response["Location"]) == (303, url)
    row = FailureGroup.objects.get(id=group.id)
    assert (row.state, row.state_by, row.state_reason, row.ignored_until) == ("ignored", "operator", "known bug", until)
    assert "known bug" in words(operator, url)
    operator.post(f"{url}reopen/", {"reason": "not known after all"})
    assert FailureGroup.objects.get(id=group.id).state == "open"
    operator.post(f"{url}note/", {"note": "<b>ring Bo</b>", "owner": "mail team"})
    page = operator.get(url).text
    assert "&lt;b&gt;ring Bo&lt;/b&gt;" in page
    assert "mail team" in page
    operator.post(f"{url}resolve/", {"reason": "fixed in 1.2"})
    done = list(AuditEntry.objects.filter(object_type="failure_group").order_by("id").values_list("action", flat=True))
    assert done == [f"failure_group.{verb}" for verb in ("ignored", "reopened", "annotated", "resolved")]


def test_a_resolved_failure_that_comes_back_says_so(operator: Client) -> None:
    group, _ = failure(1)
    operator.post(f"/dlq/groups/{group.id}/resolve/", {"reason": "fixed"})
    failure(1)
    assert "Came back" in words(operator)
    assert "Came back" in words(operator, f"/dlq/groups/{group.id}/")


@pytest.mark.parametrize(
    ("verb", "given", "error"),
    [
        ("ignore", {"reason": " \x00"}, "Say why."),
        ("ignore", {"reason": "x", "until": "2020-01-01T00:00"}, "in the future"),
        ("ignore", {"reason": "x", "until": "tomorrow"}, "This is not a time."),
        ("resolve", {"reason": "x" * 1_001}, "At most 1,000 characters."),
        ("note", {"note": "x" * 1_001}, "The note has at most 1,000"),
    ],
)
def test_what_is_refused_says_so(operator: Client, verb: str, given: dict[str, str], error: str) -> None:
    """R-07."""
    group, _ = failure(1)
    response = operator.post(f"/dlq/groups/{group.id}/{verb}/", given)
    assert response.status_code == 422
    assert error in response.text
    assert FailureGroup.objects.get(id=group.id).state == "open"


def test_who_may(client_of: ClientOf) -> None:
    group, _ = failure(1)
    for verb in ("ignore", "resolve", "reopen", "note"):
        url = f"/dlq/groups/{group.id}/{verb}/"
        assert client_of("viewer").get(url).status_code == 403
        assert client_of("viewer").post(url, {"reason": "x"}).status_code == 403
        assert client_of("operator").get(url, headers=HTMX).status_code == 200
        assert client_of("operator", enforce_csrf_checks=True).post(url, {"reason": "x"}).status_code == 403
    page = client_of("viewer").get(f"/dlq/groups/{group.id}/").text
    assert "checkbox" not in page.split("<main")[1].split("</main>")[0]
    assert client_of("operator").get("/dlq/groups/999999/").status_code == 404
    assert client_of("operator").get(f"/dlq/groups/{group.id}/explode/").status_code == 404
