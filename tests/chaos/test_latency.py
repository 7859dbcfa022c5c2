"""The figures of `make chaos` on small histories."""

from __future__ import annotations

from benchmarks.chaos import latency
from benchmarks.chaos.faults import Done
from benchmarks.chaos.history import History
from tests.chaos.stories import body, good, run, step


def _fault(kind: str, at: float, **values: object) -> Done:
    return Done(kind=kind, planned=0.0, at=at, what="", **values)  # type: ignore[arg-type]


def test_a_killed_run_counts_from_the_kill_to_the_next_body() -> None:
    """I-14: only of jobs whose body was in the process that was killed."""
    story = good()
    kill = _fault("worker", 1.0, pids=(7, 8))
    assert latency.figures([kill], story, [])["killed to running again"] == "p50 6.1 s, p99 6.1 s (1)"
    assert latency.figures([_fault("worker", 1.0, pids=(8,))], story, []) == {}
    assert latency.figures([_fault("worker", 0.05, pids=(7,))], story, []) == {}


def test_a_lost_hint_counts_to_the_first_run_of_its_job() -> None:
    """I-01: jobs that were on their way when the broker was emptied do not count."""
    story = History(
        transitions={"slow": run(9.0), "quick": run(5.1), "never": [step("accepted", "cancelled", 0, 9.0)]},
        runs={("slow", 1): body("slow", 9.0)},
        atomic={"atomic": {"id": "atomic", "n": 1, "at": 7.0}},
    )
    flush = _fault("flush", 5.0, jobs=("slow", "quick", "never", "atomic"))
    assert list(latency.figures([flush], story, []).values()) == ["p50 4.0 s, p99 4.0 s (2)"]


def test_a_stop_counts_to_the_next_accept() -> None:
    """An answer that was on its way does not count, and a stop that nothing follows has no figure."""
    stops = [_fault("web", 1.0), _fault("postgres", 5.0), _fault("postgres", 9.0)]
    assert latency.figures(stops, History(), [0.5, 1.1, 3.0, 8.0]) == {
        "web stopped to accepting": "p50 2.0 s, p99 2.0 s (1)",
        "postgres stopped to accepting": "p50 3.0 s, p99 3.0 s (1)",
    }


def test_a_deaf_worker_counts_to_its_end() -> None:
    """I-23: the first end after it, by whatever."""
    swallowed = _fault("wire_swallow", 10.0, victim="worker-1")
    assert latency.replaced([swallowed], {"worker-1": [5.0, 30.0, 60.0]}) == {
        "wire swallowed to worker replaced": "p50 20.0 s, p99 20.0 s (1)"
    }
    assert latency.replaced([swallowed], {"worker-2": [30.0]}) == {}
