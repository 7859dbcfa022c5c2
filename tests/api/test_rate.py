"""The rate of API keys: what costs, what is refused and for how long, clocks that go back, admin and command."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from jobsboard.admin.access import may_words
from jobsboard.api import database, keys
from jobsboard.api.urls import api as whole_api
from jobsboard.models import RATE_MAX, SCOPES, ApiKey, ApiKeyBucket
from queues.models import AuditEntry, Job
from tests.api.conftest import Api, problem
from tests.factories import sql

PLAIN = {"type": "billing.receipt", "payload": {"invoice_id": 1}}
SLOW = 0.01
"""Jobs a second: one in 100 s, so that nothing comes while a test runs."""
TABLE = ApiKeyBucket._meta.db_table
PAGE = "/admin/jobsboard/apikey/"

Clock = Callable[[str], None]


def rated(burst: int, rate: float = SLOW) -> Api:
    return Api(keys.issue_key(label="rated", scopes=SCOPES, rate_per_second=rate, rate_burst=burst)[1])


def refused(response: Any) -> int:
    """Check that it is over the rate; returns Retry-After."""
    body = problem(response, 429, "rate_limited")
    seconds = int(response["Retry-After"])
    assert seconds >= 1
    assert body["retryable"] is True
    assert body["title"] == "The key is over its rate"
    assert f"again in {seconds} s" in body["detail"]
    return seconds


def batch(api: Api, n: int) -> Any:
    return api.post("/jobs/batch", {"jobs": [PLAIN] * n})


def left(api: Api) -> int:
    """Return how many jobs the key may send at once, counting what has come since."""
    n = 0
    while api.post("/jobs", PLAIN).status_code == 201:
        n += 1
        assert n < 100
    return n


@contextmanager
def statements() -> Iterator[list[str]]:
    found: list[str] = []
    with CaptureQueriesContext(connection) as queries:
        yield found
    found += [query["sql"] for query in queries]


@pytest.mark.usefixtures("types")
def test_over_the_rate_nothing_is_stored(shift_clock: Clock) -> None:
    api = rated(2)
    assert [api.post("/jobs", PLAIN).status_code for _ in range(2)] == [201, 201]
    assert 90 < refused(api.post("/jobs", PLAIN)) <= 100
    assert Job.objects.count() == 2
    shift_clock("60 s")
    assert 30 < refused(api.post("/jobs", PLAIN)) <= 40
    shift_clock("101 s")
    assert left(api) == 1
    shift_clock("10 years")
    assert left(api) == 2


@pytest.mark.usefixtures("types")
def test_retry_after_is_when_there_is_room(shift_clock: Clock) -> None:
    """Who waits for as long as it says is taken, a short wait is rounded up, and another key is not concerned."""
    api, other = rated(4, rate=0.5), rated(1)
    assert batch(api, 4).status_code == 200
    seconds = refused(batch(api, 3))
    assert 5 <= seconds <= 6
    assert other.post("/jobs", PLAIN).status_code == 201
    shift_clock(f"{seconds} s")
    assert batch(api, 3).status_code == 200
    fast = rated(1, rate=50.0)
    assert fast.post("/jobs", PLAIN).status_code == 201
    # It is filled as of in a moment, so nothing comes while this test looks.
    ApiKeyBucket.objects.filter(key=ApiKey.objects.latest("id")).update(
        tokens=0.99, filled_at=sql("SELECT jobs_now() + interval '4 s'")[0][0]
    )
    assert refused(fast.post("/jobs", PLAIN)) == 1


@pytest.mark.usefixtures("types")
def test_a_batch_costs_its_jobs() -> None:
    api = rated(5)
    assert batch(api, 3).status_code == 200
    refused(batch(api, 3))
    assert Job.objects.count() == 3
    assert batch(api, 2).status_code == 200
    refused(api.post("/jobs", PLAIN))


@pytest.mark.usefixtures("types")
def test_a_batch_larger_than_the_burst_leaves_a_debt(shift_clock: Clock) -> None:
    """It is taken when nothing is spent: no batch waits for ever, and over time the rate holds."""
    api = rated(5)
    assert batch(api, 8).status_code == 200, "the first statement of a key"
    assert 390 < refused(api.post("/jobs", PLAIN)) <= 400
    assert 790 < refused(batch(api, 8)) <= 800
    shift_clock("301 s")
    refused(api.post("/jobs", PLAIN))
    shift_clock("401 s")
    assert left(api) == 1
    shift_clock("901 s")
    assert api.post("/jobs", PLAIN).status_code == 201
    refused(batch(api, 8))
    shift_clock("1001 s")
    assert batch(api, 8).status_code == 200
    assert Job.objects.count() == 8 + 1 + 1 + 8
    refused(api.post("/jobs", PLAIN))


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize(
    ("body", "spent"),
    [
        ({"type": "nope", "payload": 1}, 1),
        ({"type": "billing.strict", "payload": {}}, 1),
        ({"type": "mail.off", "payload": 1}, 1),
        ({**PLAIN, "dedupe_key": "a b"}, 1),
        ({**PLAIN, "dedupe_key": "k"}, 1),
        (b'{"type": ', 0),
        ({"type": "billing.receipt"}, 0),
    ],
)
def test_what_is_refused_for_its_content_has_cost(body: Any, spent: int) -> None:
    """A duplicate too; a body that is no request has not."""
    api = rated(5)
    Api(keys.issue_key(label="other", scopes=SCOPES)[1]).accept(dedupe_key="k")
    assert api.post("/jobs", body).status_code != 201
    assert left(api) == 5 - spent


@pytest.mark.usefixtures("types")
def test_items_of_a_batch_cost_whatever_they_are() -> None:
    api = rated(5)
    assert api.post("/jobs/batch", {"jobs": [PLAIN, 7, {"type": "nope", "payload": 1}]}).status_code == 200
    problem(api.post("/jobs/batch", {"jobs": []}), 422, "invalid_request")
    problem(api.post("/jobs/batch", {"jobs": [PLAIN]}, **{"Idempotency-Key": "k"}), 400, "idempotency_key_mismatch")
    assert left(api) == 2


@pytest.mark.parametrize("rate", [None, 0.0])
def test_a_key_without_a_rate_pays_no_statement(make_api: Callable[..., Api], rate: float | None) -> None:
    free, limited = make_api(), rated(100, rate=50.0)
    ApiKey.objects.filter(label="test").update(rate_per_second=rate)
    for one in (free, limited):
        one.accept()
    with statements() as of_free:
        free.accept()
        assert batch(free, 3).status_code == 200
    with statements() as of_limited:
        limited.accept()
        assert batch(limited, 3).status_code == 200
    assert not [text for text in of_free if TABLE in text]
    assert len([text for text in of_limited if TABLE in text]) == 2
    # A savepoint, its release, the time limit and the statement itself; in a test there is no transaction to begin.
    assert len(of_limited) == len(of_free) + 2 * 4


@pytest.mark.usefixtures("types")
def test_only_calls_that_accept_jobs_cost() -> None:
    api = rated(1)
    job = api.accept()["id"]
    with statements() as found:
        assert api.get(f"/jobs/{job}").status_code == 200
        assert api.get("/jobs").status_code == 200
        assert api.post(f"/jobs/{job}/cancel", {"reason": "x"}).status_code == 200
        assert api.post(f"/jobs/{job}/replay", {"reason": "x"}).status_code in (201, 409)
    assert not [text for text in found if TABLE in text]
    refused(api.post("/jobs", PLAIN))


@pytest.mark.usefixtures("types")
def test_the_clock_is_set_back(shift_clock: Clock) -> None:
    """A bucket of the future would stay empty until then. It is full, once."""
    api = rated(3)
    shift_clock("1 hour")
    assert left(api) == 3
    shift_clock("0")
    assert left(api) == 3
    shift_clock("101 s")
    assert left(api) == 1


@pytest.mark.usefixtures("types")
def test_no_time_counts_twice(shift_clock: Clock) -> None:
    """A statement that began earlier and came later, as after a wait for the lock, leaves the newer time."""
    api = rated(10, rate=1.0)
    shift_clock("4 s")
    assert batch(api, 9).status_code == 200
    before = ApiKeyBucket.objects.get()
    shift_clock("0")
    assert api.post("/jobs", PLAIN).status_code == 201
    after = ApiKeyBucket.objects.get()
    assert after.filled_at == before.filled_at
    assert after.tokens == before.tokens - 1


@pytest.mark.usefixtures("types")
def test_another_rate_is_in_effect_when_the_key_is_read_again() -> None:
    api = rated(1)
    row = ApiKey.objects.get()
    assert left(api) == 1
    ApiKey.objects.update(rate_per_second=None, rate_burst=0)
    keys.forget_cached()
    assert [api.post("/jobs", PLAIN).status_code for _ in range(5)] == [201] * 5
    row.save()
    keys.forget_cached()
    refused(api.post("/jobs", PLAIN))
    assert keys.CACHE_SECONDS <= 5


@pytest.mark.parametrize(
    ("per_second", "burst", "at_once"), [(0.01, 0, 1), (2.5, 0, 3), (20.0, 0, 20), (20.0, 1, 1), (20.0, 500, 500)]
)
def test_how_many_at_once(per_second: float, burst: int, at_once: int) -> None:
    rate = keys.rate_of(ApiKey(pk=1, rate_per_second=per_second, rate_burst=burst))
    assert rate == keys.Rate(key_id=1, per_second=per_second, burst=at_once)


@pytest.mark.parametrize(
    ("per_second", "burst"),
    [(-1.0, 0), (float("nan"), 0), (float("inf"), 0), (0.0001, 0), (2e6, 0), (1.0, -1), (1.0, RATE_MAX + 1)],
)
@pytest.mark.django_db
def test_a_rate_that_makes_no_sense(per_second: float, burst: int) -> None:
    """Refused where keys are made, and by the database."""
    with pytest.raises(ValueError, match=r"^A (rate|burst) is from"):
        keys.issue_key(label="x", scopes=SCOPES, rate_per_second=per_second, rate_burst=burst)
    row = keys.issue_key(label="x", scopes=SCOPES)[0]
    with pytest.raises(IntegrityError), transaction.atomic():
        ApiKey.objects.filter(pk=row.pk).update(rate_per_second=per_second, rate_burst=burst)


@pytest.mark.django_db
def test_a_burst_needs_a_rate() -> None:
    with pytest.raises(ValueError, match="needs a rate"):
        keys.issue_key(label="x", scopes=SCOPES, rate_burst=5)


@pytest.mark.usefixtures("types")
@pytest.mark.parametrize("path", ["/jobs", "/jobs/batch"])
def test_a_bucket_that_does_not_answer_is_503(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time limit of the database itself, here of 1 ms: as when accept is what takes too long."""
    api = rated(5)
    monkeypatch.setattr(database, "STATEMENT_SECONDS", 0.001)
    monkeypatch.setattr("jobsboard.api.rate._SPEND", "SELECT pg_sleep(10)")
    response = api.post(path, PLAIN if path == "/jobs" else {"jobs": [PLAIN]})
    assert problem(response, 503, "unavailable")["retryable"] is True
    assert int(response["Retry-After"]) > 0
    assert not Job.objects.exists()


def test_the_document_lists_it() -> None:
    paths: dict[str, Any] = whole_api.get_openapi_schema()["paths"]
    for path in ("/api/v1/jobs", "/api/v1/jobs/batch"):
        answer = paths[path]["post"]["responses"][429]
        assert "rate_limited" in answer["description"]
        assert "Retry-After" in answer["headers"]
        assert list(answer["content"]) == ["application/problem+json"]
    assert "rate_limited" not in str(paths["/api/v1/jobs"]["get"]["responses"])


@pytest.mark.usefixtures("types")
def test_command() -> None:
    out = io.StringIO()
    call_command("api_key", "create", "--label", "import", "--rate", "2.5", "--burst", "1000", stdout=out)
    found = keys.authenticate(f"Bearer {out.getvalue().strip()}")
    assert found is not None and found.rate is not None
    assert (found.rate.per_second, found.rate.burst) == (2.5, 1000)
    call_command("api_key", "create", "--label", "free", stdout=out)
    listed = io.StringIO()
    call_command("api_key", "list", stdout=listed)
    lines = {line.rsplit("  ", 1)[1]: line for line in listed.getvalue().splitlines()}
    assert "2.5 jobs a second, 1,000 at once" in lines["import"]
    assert "no limit" in lines["free"]
    after = [entry.after for entry in AuditEntry.objects.order_by("id")]
    assert [(one["rate_per_second"], one["rate_burst"]) for one in after if one] == [(2.5, 1000), (None, 0)]
    for wrong in (["--rate", "nan"], ["--rate", "-1"], ["--burst", "5"]):
        with pytest.raises(CommandError):
            call_command("api_key", "create", "--label", "x", *wrong, stdout=out)
    assert ApiKey.objects.count() == 2


@pytest.mark.usefixtures("types")
def test_admin() -> None:
    """The rate can be changed after the key is out; each change is audited with before and after, and acts at once."""
    client = Client()
    client.force_login(User.objects.create_superuser("root"))
    sent = {"label": "shop", "scopes": ["jobs:write"], "type_patterns": "*"}
    wrong = client.post(f"{PAGE}add/", {**sent, "rate_per_second": "-1", "rate_burst": "5"}).content.decode()
    assert "A rate is from 0.001 to 1,000,000 jobs a second" in wrong
    assert "A burst needs a rate." in client.post(f"{PAGE}add/", {**sent, "rate_burst": "5"}).content.decode()
    assert not ApiKey.objects.exists()
    page = client.post(f"{PAGE}add/", {**sent, "rate_per_second": "0.01", "rate_burst": ""}).content.decode()
    api = Api(page.split('id="issued-key">')[1].split("<")[0])
    row = ApiKey.objects.get()
    assert (row.rate_per_second, row.rate_burst) == (0.01, 0)
    assert left(api) == 1

    change = f"{PAGE}{row.pk}/change/"
    assert client.post(change, {"label": "shop", "rate_per_second": "0.01", "rate_burst": "0"}).status_code == 302
    assert AuditEntry.objects.filter(object_type="api_key").count() == 1, "nothing changed"
    assert client.post(change, {"label": "shop", "rate_per_second": "1e9", "rate_burst": "0"}).status_code == 200
    assert client.post(change, {"label": "shop", "rate_per_second": "", "rate_burst": ""}).status_code == 302
    assert api.post("/jobs", PLAIN).status_code == 201
    client.post(change, {"label": "shop", "rate_per_second": "20", "rate_burst": "500"})
    row.refresh_from_db()
    assert "It may send 20 jobs a second, 500 at once." in client.get(change).content.decode()
    assert "20 jobs a second, 500 at once" in client.get(PAGE).content.decode()
    assert "It may send" not in may_words(ApiKey(scopes=["jobs:read"], rate_per_second=5.0, type_patterns=["*"]))
    entries = AuditEntry.objects.filter(object_type="api_key").order_by("id")
    assert [(entry.action, entry.actor, entry.before) for entry in entries] == [
        ("api_key.created", "root", None),
        ("api_key.rate_changed", "root", {"rate_per_second": 0.01, "rate_burst": 0}),
        ("api_key.rate_changed", "root", {"rate_per_second": None, "rate_burst": 0}),
    ]
    last = entries.last()
    assert last is not None and last.after == {"rate_per_second": 20.0, "rate_burst": 500}


@pytest.mark.django_db
def test_only_admins_change_a_rate() -> None:
    row = keys.issue_key(label="x", scopes=SCOPES)[0]
    user = User.objects.create_user("staff", is_staff=True)
    user.groups.add(Group.objects.get_or_create(name="owner")[0])
    client = Client()
    client.force_login(user)
    sent = {"label": "x", "rate_per_second": "5", "rate_burst": "0"}
    assert client.post(f"{PAGE}{row.pk}/change/", sent).status_code == 403
    row.refresh_from_db()
    assert row.rate_per_second is None
