"""Why a job type is late, and why a job is not running or not confirmed: verdicts with their evidence.

Reads are in `facts`, judgements in `of_type`, `of_job`, `checks` and `limits`, and `explain` joins them; no page and no
HTTP is known here.
"""

from queues.outcomes.causes.explain import change_of, explain_job, explain_type
from queues.outcomes.causes.found import Cause, Next, Verdict, Why
from queues.outcomes.causes.type_facts import Change

__all__ = ["Cause", "Change", "Next", "Verdict", "Why", "change_of", "explain_job", "explain_type"]
