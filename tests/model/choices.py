"""What the machine chooses from: small ranges, so that things meet."""

from __future__ import annotations

from hypothesis import strategies as st

from queues.lifecycle import Verdict
from queues.states import Reason
from tests.model.proofs import Word
from tests.model.rows import KINDS
from tests.model.rules import Request

PICKS = st.integers(0, 7)
KIND_NAMES = st.sampled_from(sorted(KINDS))
KEYS = st.sampled_from(["a", "b", None])
PAYLOADS = st.sampled_from([1, 1, 2])
REQUESTS = st.builds(
    Request, KIND_NAMES, KEYS, PAYLOADS, delay=st.sampled_from([0, 0, 0, 20]), max_age=st.sampled_from([None, None, 40])
)
REFS = st.sampled_from(["r1", "r2", None])
VERDICTS = st.sampled_from(
    [
        (Verdict.CONFIRMED, None), (Verdict.FAILED, None), (Verdict.FAILED, None), (Verdict.AWAITING, None),
        (Verdict.AWAITING, None), (Verdict.RELEASED, None), (Verdict.PUT_OFF, None),
        (Verdict.FAILED, Reason.PERMANENT_ERROR), (Verdict.FAILED, Reason.NO_EVIDENCE),
    ]
)  # fmt: skip
WORDS = st.sampled_from(
    [
        Word(True, ref="r1"), Word(True, ref="r2"), Word(True, kind="manual", by="ada"), Word(False), Word(False),
        Word(False, retryable=True), Word(False, ref="r1", kind="manual", by="ada"),
    ]
)  # fmt: skip
CHECKED = st.sampled_from(["confirmed", "rejected", "none", "none", "failed", "failed"])
TICKS = st.sampled_from([1, 5, 6, 14, 15, 16, 31, 61, 301])
