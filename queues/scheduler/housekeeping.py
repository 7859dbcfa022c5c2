"""Keep two weeks of job partitions ahead, and forget processes that are gone."""

from typing import Final

from django.db import OperationalError, connection

from queues import workers

DAYS_AHEAD: Final = 14


def make_partitions(*, tries: int = 20) -> int:
    """Make missing partitions. The function's lock time-out is 100 ms, so that accepts never wait longer; try again."""
    for attempt in range(tries):
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT jobs_make_partitions(%s)", [DAYS_AHEAD])
                return int(cursor.fetchone()[0])
        except OperationalError:
            if attempt == tries - 1:
                raise
            connection.close()
    return 0


def run_once() -> bool:
    """Do one round."""
    make_partitions()
    workers.forget_gone()
    return False
