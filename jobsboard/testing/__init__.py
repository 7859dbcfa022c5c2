"""Helpers for the tests of projects that use Jobsboard: docs/handlers.md, "Testing your handlers".

They work in a test's transaction (Django's TestCase, pytest-django's `django_db`) and with tests that commit. They need
PostgreSQL, no broker and no worker.
"""

from jobsboard.testing.isolation import isolated
from jobsboard.testing.jobs import assert_enqueued, confirm, enqueued, expire_lease
from jobsboard.testing.pending import run_pending
from jobsboard.testing.replayable import Variant, assert_replayable

__all__ = [
    "Variant",
    "assert_enqueued",
    "assert_replayable",
    "confirm",
    "enqueued",
    "expire_lease",
    "isolated",
    "run_pending",
]
