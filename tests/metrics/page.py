"""A page of /metrics as its tests read it, and processes that report themselves."""

from __future__ import annotations

from collections.abc import Mapping

from django.test import Client
from prometheus_client.parser import text_string_to_metric_families

from jobsboard.metrics import view
from tests.factories import sql

TOKEN = "metrics-token-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def scrape() -> Samples:
    """Ask the database anew and return every sample."""
    view.forget()
    response = Client().get("/metrics", headers=BEARER)
    assert response.status_code == 200, response.content
    return samples(response.content)


def samples(page: bytes) -> Samples:
    """Read a page as Prometheus does."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(page.decode()):
        for one in family.samples:
            key = (one.name, frozenset((name, text) for name, text in one.labels.items() if text))
            assert key not in found, f"{key} is there twice"
            found[key] = one.value
    return found


def value(page: Samples, name: str, **labels: object) -> float | None:
    """Return a sample, None when it is absent. Empty labels are absent ones, as in Prometheus."""
    return page.get((f"jobsboard_{name}", frozenset((key, str(text)) for key, text in labels.items())))


def report(kind: str, queues: str = "", *, slots: int = 0, busy: int = 0, trouble: str = "", ago: int = 0) -> None:
    """Let a process report itself."""
    sql(
        "INSERT INTO queues_workerprocess (id, kind, hostname, pid, queues, slots, busy, memory_bytes,"
        " trouble, seen_at)"
        " VALUES (gen_random_uuid(), %s, 'h', 1, to_jsonb(string_to_array(%s, ',')), %s, %s, 1000, %s,"
        " jobs_now() - make_interval(secs => %s))",
        kind, queues, slots, busy, trouble, ago,
    )  # fmt: skip
