"""The Hypothesis machine: what actors may do next. On the model alone here; against PostgreSQL in `test_database`."""

from __future__ import annotations

from typing import Final

from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule

from queues.lifecycle import Verdict
from queues.states import REPLAYABLE, TERMINAL, WAITING, JobState, Reason
from tests.model import ledger
from tests.model.choices import CHECKED, KIND_NAMES, PICKS, REFS, REQUESTS, TICKS, VERDICTS, WORDS
from tests.model.proofs import Word
from tests.model.rows import DAY
from tests.model.rules import Request
from tests.model.steps import (
    Accept,
    Cancel,
    Claim,
    ClaimChecks,
    Close,
    Crash,
    Finish,
    FinishCheck,
    Heartbeat,
    MatchAgain,
    Prove,
    Provider,
    Prune,
    PruneInbox,
    Replay,
    RetryNow,
    Sweep,
    Switch,
)
from tests.model.watched import Watched

S = JobState
SERVICES: Final = ("rescue", "expire", "overdue")


class Lifecycle(Watched):
    """Jobs, and everybody who acts on them. Picks are positions in the list of what is there, so that they shrink."""

    # Rules.

    @precondition(lambda self: self.has_room())
    @rule(request=REQUESTS)
    def accept(self, request: Request) -> None:
        """A producer enqueues."""
        self.perform(Accept((request,), strict=True))

    @precondition(lambda self: self.has_room())
    @rule(requests=st.lists(REQUESTS, min_size=2, max_size=3), strict=st.booleans())
    def accept_many(self, requests: list[Request], strict: bool) -> None:
        """A producer enqueues a batch, perhaps with repeats in it."""
        self.perform(Accept(tuple(requests), strict=strict))

    @precondition(lambda self: any(row.key for row in self.world.jobs.values()))
    @rule(at=PICKS, same=st.sampled_from([True, True, False]))
    def accept_again(self, at: int, same: bool) -> None:
        """I-05: a producer tries again with a key that was used."""
        row = self.world.jobs[self.pick([n for n in self.jobs() if self.world.jobs[n].key], at)]
        self.perform(Accept((Request(row.kind, row.key, row.payload if same else 3 - row.payload),), strict=True))

    @precondition(lambda self: self.jobs(*WAITING))
    @rule(at=PICKS, wait=st.booleans())
    def claim_one(self, at: int, wait: bool) -> None:
        """A hint for one job, perhaps before it is due."""
        number = self.pick(self.jobs(*WAITING), at)
        if wait:
            self.wait_for(number)
        self.perform(Claim((number,)))

    @precondition(lambda self: self.jobs(*WAITING))
    @rule(at=PICKS, end=VERDICTS, ref=REFS)
    def work(self, at: int, end: tuple[Verdict, Reason | None], ref: str | None) -> None:
        """A job runs when it is due, from its claim to its end."""
        number = self.pick(self.jobs(*WAITING), at)
        self.wait_for(number)
        self.perform(Claim((number,)))
        if number in self.jobs(S.PROCESSING):
            ref = ref if end[0] is Verdict.AWAITING else None
            self.perform(Finish((number, self.world.jobs[number].fence), end[0], end[1], ref))

    def wait_for(self, number: int) -> None:
        """Let time pass until a job acts next."""
        self.world.now = max(self.world.now, self.world.jobs[number].due or 0)

    @precondition(lambda self: len(self.jobs()) > 1)
    @rule(at=PICKS, more=PICKS)
    def claim_chunk(self, at: int, more: int) -> None:
        """A hint for several jobs, in whatever state they are; a job named twice is claimed once."""
        jobs = self.jobs()
        self.perform(Claim((self.pick(jobs, at), self.pick(jobs, more), *self.jobs(*WAITING))))

    @precondition(lambda self: self.live())
    @rule(at=PICKS, end=VERDICTS, ref=REFS)
    def finish(self, at: int, end: tuple[Verdict, Reason | None], ref: str | None) -> None:
        """A run ends."""
        ref = ref if end[0] is Verdict.AWAITING else None
        self.perform(Finish(self.pick(self.live(), at), end[0], end[1], ref))

    @precondition(lambda self: self.live())
    @rule(at=PICKS, end=VERDICTS)
    def finish_stale(self, at: int, end: tuple[Verdict, Reason | None]) -> None:
        """A run outlives the max age of its job: it may end."""
        run = self.pick(self.live(), at)
        self.world.now = max(self.world.now, self.world.jobs[run[0]].expires)
        self.perform(Finish(run, end[0], end[1]))

    @precondition(lambda self: self.jobs(*WAITING))
    @rule(at=PICKS, ref=REFS)
    def hand_over(self, at: int, ref: str | None) -> None:
        """A job runs, and its proof is to come."""
        self.work(at=at, end=(Verdict.AWAITING, None), ref=ref)

    @precondition(lambda self: self.runs)
    @rule(at=PICKS, end=VERDICTS, ref=REFS)
    def finish_late(self, at: int, end: tuple[Verdict, Reason | None], ref: str | None) -> None:
        """I-09: any run that ever was says that it has ended, perhaps again."""
        ref = ref if end[0] is Verdict.AWAITING else None
        self.perform(Finish(self.pick(self.runs[::-1], at), end[0], end[1], ref))

    @precondition(lambda self: self.superseded())
    @rule(at=PICKS, end=VERDICTS)
    def finish_superseded(self, at: int, end: tuple[Verdict, Reason | None]) -> None:
        """I-09: a run that was lost says that it has ended, while its successor runs."""
        self.perform(Finish(self.pick(self.superseded(), at), end[0], end[1]))

    @precondition(lambda self: self.live())
    @rule(at=PICKS, seconds=st.sampled_from([None, 14, 15, 16]))
    def run_again(self, at: int, seconds: int | None) -> None:
        """A run is lost, its job is claimed again; its process is dead, or its lease runs out, or not yet."""
        run = self.pick(self.live(), at)
        if seconds is None:
            self.perform(Crash((run,), False))
        else:
            self.world.now += seconds
            self.perform(Sweep("rescue"))
        if run[0] in self.jobs(S.RETRYING):
            self.perform(Claim((run[0],)))

    @precondition(lambda self: self.runs)
    @rule(at=PICKS)
    def heartbeat(self, at: int) -> None:
        """Leases of the living, and of one that may be none any more."""
        self.perform(Heartbeat(tuple(dict.fromkeys([*self.live(), self.pick(self.runs, at)]))))

    @precondition(lambda self: self.live())
    @rule(at=PICKS, blame=st.booleans())
    def crash(self, at: int, blame: bool) -> None:
        """A process dies and its parent says so."""
        self.perform(Crash((self.pick(self.live(), at),), blame))

    @precondition(lambda self: self.runs)
    @rule(at=PICKS)
    def crash_late(self, at: int) -> None:
        """I-16: the same death is told twice, or that of a run that is over."""
        self.perform(Crash((self.pick(self.runs[::-1], at),), True))

    @precondition(lambda self: self.world.jobs)
    @rule(service=st.sampled_from(SERVICES))
    def sweep(self, service: str) -> None:
        """A service of the scheduler has its turn."""
        self.perform(Sweep(service))

    @precondition(lambda self: self.world.jobs)
    @rule(seconds=TICKS)
    def tick(self, seconds: int) -> None:
        """Time passes."""
        self.world.now += seconds

    @precondition(lambda self: self.live())
    @rule(seconds=st.sampled_from([16, 31]))
    def lose_leases(self, seconds: int) -> None:
        """Workers are gone: nobody says so, and time passes."""
        self.world.now += seconds
        self.perform(Sweep("rescue"))

    @precondition(lambda self: self.world.jobs)
    @rule(at=PICKS, word=WORDS, run=st.sampled_from([None, 0, 0, 1]))
    def prove(self, at: int, word: Word, run: int | None) -> None:
        """I-26, I-27: somebody says what became of a job: of its newest run, of one before it, or of no certain one."""
        number = self.pick(self.jobs(), at)
        fence = None if run is None or (word.by and word.positive) else max(0, self.world.jobs[number].fence - run)
        self.perform(Prove(number, Word(word.positive, word.kind, word.ref, fence, word.retryable, word.by)))

    @precondition(lambda self: self.jobs(S.AWAITING_CONFIRMATION))
    @rule(at=PICKS, word=WORDS)
    def prove_awaited(self, at: int, word: Word) -> None:
        """The proof that a job waits for."""
        number = self.pick(self.jobs(S.AWAITING_CONFIRMATION), at)
        fence = self.world.jobs[number].fence
        self.perform(Prove(number, Word(word.positive, word.kind, word.ref, fence, word.retryable, word.by)))

    @precondition(lambda self: self.world.jobs)
    @rule(at=PICKS, known=st.booleans(), webhook=st.integers(1, 4), word=WORDS)
    def call_back(self, at: int, known: bool, webhook: int, word: Word) -> None:
        """A provider names a reference, perhaps before anybody knows it, perhaps again."""
        kind, ref = self.world.jobs[self.pick(self.jobs(), at)].kind, word.ref or "r1"
        if known and self.world.references:
            reference = self.pick(self.world.references[::-1], at)
            kind, ref = reference.kind, reference.ref
        self.perform(Provider(kind, webhook, None, Word(word.positive, ref=ref, retryable=word.retryable)))

    @precondition(lambda self: self.world.jobs)
    @rule(at=PICKS, webhook=st.integers(1, 4), word=WORDS)
    def call_back_of_job(self, at: int, webhook: int, word: Word) -> None:
        """A provider names a job."""
        number = self.pick(self.jobs(), at)
        said = Word(word.positive, ref=word.ref, retryable=word.retryable)
        self.perform(Provider(self.world.jobs[number].kind, webhook, number, said))

    @precondition(lambda self: self.world.references and any(not c.applied for c in self.world.inbox.values()))
    @rule()
    def match_again(self) -> None:
        """The scheduler looks again."""
        self.perform(MatchAgain())

    @precondition(lambda self: self.world.jobs)
    @rule(at=PICKS)
    def cancel(self, at: int) -> None:
        """Somebody cancels a job."""
        self.perform(Cancel(self.pick(self.jobs(), at)))

    @precondition(lambda self: self.live())
    @rule(at=PICKS, ends=st.booleans(), end=VERDICTS)
    def stop(self, at: int, ends: bool, end: tuple[Verdict, Reason | None]) -> None:
        """I-31: somebody cancels what runs, and the run ends, however it ends."""
        run = self.pick(self.live(), at)
        self.perform(Cancel(run[0]))
        if ends:
            self.perform(Finish(run, end[0], end[1]))

    @precondition(lambda self: self.jobs(S.RETRYING))
    @rule(at=PICKS)
    def retry_now(self, at: int) -> None:
        """Somebody does not want to wait."""
        self.perform(RetryNow(self.pick(self.jobs(S.RETRYING, S.DEAD), at)))

    @precondition(lambda self: self.jobs(*REPLAYABLE))
    @rule(at=PICKS, payload=st.sampled_from([None, None, 1, 2]), key=st.sampled_from([None, None, "a", "c"]))
    def replay(self, at: int, payload: int | None, key: str | None) -> None:
        """Somebody replays a job, perhaps edited."""
        self.perform(Replay(self.pick(self.jobs(*REPLAYABLE), at), payload, key))

    @precondition(lambda self: self.jobs(*TERMINAL))
    @rule(at=PICKS)
    def close(self, at: int) -> None:
        """Somebody sets a dead letter aside."""
        self.perform(Close(self.pick(self.jobs(*TERMINAL), at)))

    @precondition(lambda self: self.jobs(S.AWAITING_CONFIRMATION))
    @rule(at=PICKS, wait=st.booleans())
    def claim_checks(self, at: int, wait: bool) -> None:
        """A hint for checks, perhaps before they are due."""
        if wait:
            self.wait_for(self.pick(self.jobs(S.AWAITING_CONFIRMATION), at))
        self.perform(ClaimChecks(tuple(self.jobs(S.AWAITING_CONFIRMATION))))

    @precondition(lambda self: self.jobs(S.AWAITING_CONFIRMATION))
    @rule(at=PICKS, outcome=CHECKED)
    def ask(self, at: int, outcome: str) -> None:
        """A check is asked when it is due."""
        number = self.pick(self.jobs(S.AWAITING_CONFIRMATION), at)
        self.wait_for(number)
        self.perform(ClaimChecks((number,)))
        if self.checks and self.checks[-1].job == number:
            self.perform(FinishCheck(self.checks[-1], outcome))

    @precondition(lambda self: self.checks)
    @rule(at=PICKS, outcome=CHECKED)
    def finish_check(self, at: int, outcome: str) -> None:
        """A check answers, perhaps late."""
        self.perform(FinishCheck(self.pick(self.checks[::-1], at), outcome))

    @precondition(lambda self: self.jobs(*TERMINAL))
    @rule(remove=st.booleans(), days=st.sampled_from([0, 1, 3]))
    def prune(self, remove: bool, days: int) -> None:
        """I-41: time passes, and what nobody needs any more goes."""
        self.world.now += days * DAY
        self.perform(Prune(remove))
        self.perform(PruneInbox())

    @precondition(lambda self: len(self.jobs()) > 1)
    @rule(kind=KIND_NAMES, name=st.sampled_from(["paused", "disabled"]))
    def switch(self, kind: str, name: str) -> None:
        """An owner pauses or disables a type, or sets the one that is off to work again."""
        on = True
        for off, names in (("paused", self.world.paused), ("disabled", self.world.disabled)):
            for was in names:
                kind, name, on = was, off, False
        self.perform(Switch(kind, name, on))

    # What must hold.

    @invariant()
    def rows_are_consistent(self) -> None:
        """I-13, I-15, I-28, I-30, I-31, one open job for a key and a lineage."""
        ledger.consistent(self.world)

    def sweep_all(self) -> None:
        """Give every service its turn."""
        for service in SERVICES:
            self.perform(Sweep(service))

    @precondition(lambda self: self.world.jobs)
    @rule()
    def nothing_is_in_limbo(self) -> None:
        """I-13: when every service had its turn nothing is overdue."""
        self.sweep_all()
        ledger.no_limbo(self.world)

    def teardown(self) -> None:
        """Promise 5: when nobody works any more and time passes, the scheduler alone ends every job."""
        if self.failed:
            return
        for _ in range(2):
            self.world.now += 1000
            self.sweep_all()
        ledger.no_limbo(self.world)
        assert self.jobs() == self.jobs(*TERMINAL), "promise 5: a job has no outcome"
