"""Who may read GET /metrics, what a scrape costs, what is said when the database does not answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import Client, override_settings

from jobsboard.metrics import families, view
from tests.factories import accept, fold_all, make_job, make_type, sql
from tests.metrics.page import BEARER, TOKEN, report, samples, scrape, value


@pytest.mark.django_db
@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {TOKEN}", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", "Bearer é", TOKEN]
)
def test_without_the_token_401(given: str) -> None:
    """Also for a request that would be private without a token."""
    with override_settings(**PRIVATE):
        response = Client().get("/metrics", headers={"Authorization": given}, SERVER_NAME="127.0.0.1")
    assert (response.status_code, response["WWW-Authenticate"]) == (401, 'Bearer realm="metrics"')
    assert b"jobsboard_" not in response.content


@pytest.mark.django_db
@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
def test_with_the_token_200(scheme: str) -> None:
    response = Client().get("/metrics", headers={"Authorization": f"{scheme} {TOKEN}"})
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/plain; version=")
    assert response["Cache-Control"] == "no-store"
    assert value(samples(response.content), "up") == 1


@pytest.mark.django_db
def test_other_methods_and_plain_http() -> None:
    """Nothing but GET and HEAD; and no redirect to https, since Prometheus asks each process by its own address."""
    assert Client(enforce_csrf_checks=True).post("/metrics", headers=BEARER).status_code == 405
    assert Client(enforce_csrf_checks=True).post("/metrics").status_code == 401
    assert Client().head("/metrics", headers=BEARER).status_code == 200
    with override_settings(SECURE_SSL_REDIRECT=True):
        assert Client().get("/metrics", headers=BEARER).status_code == 200
        assert Client().get("/", headers=BEARER).status_code == 301


PRIVATE: dict[str, Any] = {"ALLOWED_HOSTS": ["127.0.0.1", "localhost"], "PUBLIC_URL": "http://127.0.0.1:8000"}


@pytest.mark.django_db
def test_without_a_token_only_this_machine_reads_it() -> None:
    with override_settings(METRICS_TOKEN="", **PRIVATE):
        assert Client().get("/metrics", SERVER_NAME="127.0.0.1").status_code == 200
        assert Client().get("/metrics", SERVER_NAME="::1", REMOTE_ADDR="::1", headers={"Host": "localhost"}).status_code


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("settings", "request_says"),
    [
        ({}, {"SERVER_NAME": "0.0.0.0"}),  # noqa: S104
        ({}, {"SERVER_NAME": "10.0.0.5"}),
        ({}, {"SERVER_NAME": ""}),
        ({}, {"REMOTE_ADDR": "10.0.0.7"}),
        ({}, {"REMOTE_ADDR": "203.0.113.9", "HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ({}, {"REMOTE_ADDR": ""}),
        ({}, {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ({}, {"HTTP_X_REAL_IP": "127.0.0.1"}),
        ({}, {"HTTP_FORWARDED": "for=127.0.0.1"}),
        ({}, {"HTTP_VIA": "1.1 proxy"}),
        ({"TRUSTED_PROXIES": ["127.0.0.1/32"]}, {}),
        ({"TRUSTED_PROXIES": ["0.0.0.0/0"]}, {"HTTP_X_FORWARDED_FOR": "127.0.0.1"}),
        ({"ALLOWED_HOSTS": ["127.0.0.1", "jobs.example"]}, {}),
        ({"ALLOWED_HOSTS": ["*"]}, {}),
        ({"PUBLIC_URL": "https://jobs.example"}, {}),
        ({"PUBLIC_URL": ""}, {}),
    ],
)
def test_without_a_token_nobody_else_does(settings: dict[str, Any], request_says: dict[str, str]) -> None:
    """No header opens it, and one thing that speaks for the outside closes it; the answer is 404."""
    with override_settings(METRICS_TOKEN="", **{**PRIVATE, **settings}):
        response = Client().get("/metrics", **{"SERVER_NAME": "127.0.0.1", "HTTP_HOST": "127.0.0.1", **request_says})  # type: ignore[arg-type]
    assert response.status_code == 404
    assert b"jobsboard" not in response.content


# What it costs


@pytest.mark.django_db
def test_the_number_of_statements_depends_on_nothing(django_assert_num_queries: Any) -> None:
    """With one idle type and with thirty that have jobs, dead letters and workers."""

    def count() -> int:
        view.forget()
        with connection.execute_wrapper(counter := _Counting()):
            assert Client().get("/metrics", headers=BEARER).status_code == 200
        return counter.n

    make_type("idle")
    make_job(type="idle")
    accept(1, kind="idle")
    fold_all()
    few = count()
    for n in range(30):
        make_type(f"busy{n}", tier_id=1 + n % 3)
        accept(3, kind=f"busy{n}")
        report("worker", "tier1", slots=1)
    fold_all()
    assert count() == few <= 12


class _Counting:
    def __init__(self) -> None:
        self.n = 0

    def __call__(self, execute: Any, statement: str, *rest: Any) -> Any:
        self.n += "SAVEPOINT" not in statement
        return execute(statement, *rest)


def _before_each_read(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    read = families.read

    def then_read() -> families.Snapshot:
        do()
        return read()

    monkeypatch.setattr(families, "read", then_read)


@pytest.mark.django_db
def test_scrapes_within_five_seconds_ask_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    _before_each_read(monkeypatch, lambda: asked.append("again"))
    clock = [1000.0]
    monkeypatch.setattr("jobsboard.metrics.view.time.monotonic", lambda: clock[0])
    client = Client()
    # The last: a clock that began anew. What was read cannot be of the future.
    for seconds, times in ((0.0, 1), (4.9, 1), (0.2, 2), (-3.0, 3)):
        clock[0] += seconds
        assert client.get("/metrics", headers=BEARER).status_code == 200
        assert len(asked) == times


@pytest.mark.django_db
def test_its_statements_have_a_time_limit_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s on the server's side, only for this transaction."""
    seen: list[str] = []
    _before_each_read(monkeypatch, lambda: seen.append(sql("SHOW statement_timeout")[0][0]))
    scrape()
    assert seen == ["2s"]


# When the database cannot be read


@pytest.mark.django_db
def test_503_and_nothing_old_when_the_database_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of a moment ago are not said as those of now, and the next scrape asks again."""
    make_type()
    clock = [1000.0]
    monkeypatch.setattr("jobsboard.metrics.view.time.monotonic", lambda: clock[0])
    client = Client()
    assert client.get("/metrics", headers=BEARER).status_code == 200
    clock[0] += view.CACHE_SECONDS

    def fails() -> families.Snapshot:
        raise OperationalError("server closed the connection")

    with monkeypatch.context() as down:
        down.setattr(families, "read", fails)
        response = client.get("/metrics", headers=BEARER)
        assert (response.status_code, samples(response.content)) == (503, {("jobsboard_up", frozenset()): 0.0})
    assert client.get("/metrics", headers=BEARER).status_code == 200


@pytest.mark.django_db
def test_a_statement_that_takes_too_long_is_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "read", lambda: sql("SELECT pg_sleep(30)"))
    assert Client().get("/metrics", headers=BEARER).status_code == 503


@pytest.mark.django_db
def test_a_hanging_scrape_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen database holds one thread of a process; the scrapes behind it end with 503."""
    monkeypatch.setattr(view, "WAIT_SECONDS", 0.05)
    assert view._thread.acquire()
    try:
        assert Client().get("/metrics", headers=BEARER).status_code == 503
    finally:
        view._thread.release()
    assert Client().get("/metrics", headers=BEARER).status_code == 200
