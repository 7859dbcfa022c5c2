"""The effect that both systems have: a line in a ledger that is a process with a storage of its own.

Half of the work comes before the effect and half after it, so that a kill finds jobs on both sides of it.
"""

import http.client
import json
import os
import threading
import time

PORT = "CELLS_LEDGER_PORT"
TYPE = "cells.act"
"""The job type, and the name of the task."""


def act(*, key: str, seconds: float, run: str, told: bool) -> str:
    """Work, have the effect, work; returns the ledger's reference.

    told: whether the system said to this run that an earlier one may have had the effect.
    Raises: OSError when the ledger does not answer.
    """
    said = {"key": key, "run": run, "told": told, "began": time.time()}
    threading.Event().wait(seconds / 2)
    client = http.client.HTTPConnection("127.0.0.1", int(os.environ[PORT]), timeout=10)
    try:
        client.request("POST", "/effects", json.dumps(said))
        ref = str(json.loads(client.getresponse().read())["ref"])
    finally:
        client.close()
    threading.Event().wait(seconds / 2)
    return ref
