"""The steps that actors take, as data: what each does to the model, and which rows and keys it has to wait for.

What each does to the real thing is in `database`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from queues.lifecycle import Applied, Verdict
from queues.states import REPLAYABLE, TERMINAL, JobState, Reason, Resolution
from tests.model import proofs, retention, rules
from tests.model.proofs import Check, Word
from tests.model.rows import World
from tests.model.rules import Request, Run

S = JobState
KeyName = tuple[str, str]


class Step:
    """One call of one actor."""

    actor: ClassVar[str] = "worker"

    @property
    def holdable(self) -> bool:
        """Whether its transaction may be left open: it commits once, and holds nothing that every action needs."""
        return not isinstance(self, Crash | Provider | MatchAgain | PruneInbox | Switch) and not self._audited

    @property
    def _audited(self) -> bool:
        return isinstance(self, Prove) and self.word.by is not None

    def apply(self, world: World) -> object:
        """Do it to the model and return the answer."""
        raise NotImplementedError

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """Return the jobs and keys whose locks it waits for, as far as it can see before it has them."""
        return set(), set()


def _matched(world: World, jobs: Iterable[int]) -> set[int]:
    return {number for number in jobs if number in world.jobs}


@dataclass(frozen=True)
class Accept(Step):
    """A producer hands in jobs; `strict`: all or nothing."""

    requests: tuple[Request, ...]
    strict: bool = False
    actor: ClassVar[str] = "client"

    def apply(self, world: World) -> object:
        """One after the other, as if each had come alone."""
        tried = world.fork() if self.strict else world
        answers = tuple(rules.accept(tried, request) for request in self.requests)
        if not self.strict:
            return answers
        for position, answer in enumerate(answers):
            if answer[0] in ("conflict", "disabled"):
                return ("refused", position, *answer)
        world.counts.update(tried.counts - world.counts)
        for number in tried.touched:
            world.put(tried.jobs[number])
        for name in tried.touched_keys:
            world.set_key(name, tried.keys[name])
        return answers

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """An uncommitted holder of a key is waited for."""
        return set(), {(r.kind, r.key) for r in self.requests if r.key is not None and r.kind not in world.disabled}


@dataclass(frozen=True)
class Claim(Step):
    """A hint reaches a worker."""

    jobs: tuple[int, ...]

    def apply(self, world: World) -> object:
        """Claims pass by what others hold."""
        return rules.claim(world, self.jobs, worker="worker")


@dataclass(frozen=True)
class Heartbeat(Step):
    """The process beside a worker renews leases."""

    runs: tuple[Run, ...]

    def apply(self, world: World) -> object:
        """So do heartbeats."""
        return rules.heartbeat(world, self.runs)


@dataclass(frozen=True)
class Finish(Step):
    """A run ends."""

    run: Run
    verdict: Verdict
    reason: Reason | None = None
    ref: str | None = None

    def apply(self, world: World) -> object:
        """See rules."""
        return rules.finish(world, self.run, self.verdict, reason=self.reason, ref=self.ref)

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """What another fence holds is not waited for."""
        row = world.jobs.get(self.run[0])
        return ({self.run[0]} if row is not None and row.fence == self.run[1] else set()), set()


@dataclass(frozen=True)
class Crash(Step):
    """A parent reports the death of the process that had these runs. `blame`: we did not end it ourselves."""

    runs: tuple[Run, ...]
    blame: bool

    def apply(self, world: World) -> object:
        """See rules."""
        return rules.rescue(world, dead=self.runs, blame=self.blame)


@dataclass(frozen=True)
class Sweep(Step):
    """One round of a service of the scheduler: rescue, expire or overdue."""

    service: str
    actor: ClassVar[str] = "sweeper"

    def apply(self, world: World) -> object:
        """Sweeps pass by what others hold."""
        return {"rescue": rules.rescue, "expire": rules.expire, "overdue": rules.give_up_waiting}[self.service](world)


@dataclass(frozen=True)
class Prove(Step):
    """A person, or an HTTP target with its token, says what became of a job."""

    job: int
    word: Word
    actor: ClassVar[str] = "client"

    def apply(self, world: World) -> object:
        """See proofs."""
        answer = proofs.testify(world, self.job, self.word)
        told = answer[0] != "not found" and answer[1] not in (Applied.DUPLICATE, Applied.SUPERSEDED)
        world.counts["audit"] += bool(self.word.by and told and not answer[3])
        return answer

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """The job, and for a yes that comes late those that replaced it."""
        wanted = _matched(world, [self.job])
        row = world.jobs.get(self.job)
        while self.word.positive and row is not None and row.state in REPLAYABLE and row.replayed_by is not None:
            child = world.jobs.get(row.replayed_by)
            if child is None or child.root != row.root:
                break
            wanted.add(child.number)
            row = child
        return wanted, set()


@dataclass(frozen=True)
class Provider(Step):
    """A provider calls back."""

    kind: str
    webhook: int
    job: int | None
    word: Word
    actor: ClassVar[str] = "client"

    def apply(self, world: World) -> object:
        """See proofs."""
        return proofs.by_provider(world, self.kind, self.webhook, self.job, self.word)

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """Whatever it finds: played through on a fork."""
        tried = world.fork()
        known = tried.inbox.get((self.kind, self.webhook))
        if known is not None and known.applied:
            return set(), set()
        self.apply(tried)
        callback = tried.inbox.get((self.kind, self.webhook))
        if callback is None or callback.job is None:
            return set(), set()
        return Prove(callback.job, Word(callback.positive)).waits_for(world)


@dataclass(frozen=True)
class MatchAgain(Step):
    """The scheduler looks again for what crossed."""

    actor: ClassVar[str] = "sweeper"

    def apply(self, world: World) -> object:
        """See proofs."""
        proofs.match_again(world)
        return None

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """Rows that it changes or looks at: nobody may hold any, to keep the model simple."""
        return set(world.jobs), set(world.keys)


@dataclass(frozen=True)
class Cancel(Step):
    """Somebody cancels a job."""

    job: int
    actor: ClassVar[str] = "operator"

    def apply(self, world: World) -> object:
        """See rules."""
        answer = rules.cancel(world, self.job)
        world.counts["audit"] += answer[0] == "cancel" and answer[-1] is True
        return answer

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """What can be cancelled, as far as one can see."""
        row = world.jobs.get(self.job)
        asked = row is None or row.state in TERMINAL or (row.state is S.PROCESSING and row.cancel_requested)
        return (set() if asked else {self.job}), set()


@dataclass(frozen=True)
class RetryNow(Step):
    """Somebody does not want to wait for the next attempt."""

    job: int
    actor: ClassVar[str] = "operator"

    def apply(self, world: World) -> object:
        """See rules."""
        answer = rules.retry_now(world, self.job)
        world.counts["audit"] += answer == ("retry now", True)
        return answer

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """What is retrying and not due yet."""
        row = world.jobs.get(self.job)
        waiting = row is not None and row.state is S.RETRYING and row.due is not None and row.due > world.now
        return ({self.job} if waiting else set()), set()


@dataclass(frozen=True)
class Close(Step):
    """Somebody sets a dead letter aside."""

    job: int
    actor: ClassVar[str] = "operator"

    def apply(self, world: World) -> object:
        """See rules."""
        answer = rules.close(world, self.job)
        world.counts["audit"] += answer == ("closed", True)
        return answer

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """Open dead letters."""
        row = world.jobs.get(self.job)
        is_open = row is not None and row.state is S.DEAD and row.resolution is Resolution.OPEN
        return ({self.job} if is_open else set()), set()


@dataclass(frozen=True)
class Replay(Step):
    """Somebody replays a job, perhaps with another payload or under another key."""

    job: int
    payload: int | None = None
    key: str | None = None
    actor: ClassVar[str] = "operator"

    def apply(self, world: World) -> object:
        """See rules."""
        answer = rules.replay(world, self.job, payload=self.payload, key=self.key)
        world.counts["audit"] += answer[0] == "replayed"
        return answer

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """The parent, and the key that it moves or makes."""
        row = world.jobs.get(self.job)
        if row is None or row.state not in REPLAYABLE or row.resolution is not Resolution.OPEN:
            return set(), set()
        if row.kind in world.disabled:
            return set(), set()
        if self.key is not None and self.key != row.key:
            return {self.job}, {(row.kind, self.key)}
        held = world.keys.get((row.kind, str(row.key)))
        keys = {(row.kind, str(row.key))} if held is not None and held.job == self.job else set()
        return {self.job}, keys


@dataclass(frozen=True)
class ClaimChecks(Step):
    """A hint for checks reaches a worker."""

    jobs: tuple[int, ...]

    def apply(self, world: World) -> object:
        """See proofs."""
        return proofs.claim_checks(world, self.jobs)


@dataclass(frozen=True)
class FinishCheck(Step):
    """A check answers: confirmed, rejected, none or failed."""

    check: Check
    outcome: str

    def apply(self, world: World) -> object:
        """See proofs."""
        return proofs.finish_check(world, self.check, self.outcome)

    def waits_for(self, world: World) -> tuple[set[int], set[KeyName]]:
        """The job whose claim of the check still stands."""
        row = world.jobs.get(self.check.job)
        named = row is not None and (row.fence, row.due) == (self.check.fence, self.check.due)
        return ({self.check.job} if named else set()), set()


@dataclass(frozen=True)
class Prune(Step):
    """One look at every day. `remove`: row by row; else what is final waits for a swap."""

    remove: bool
    actor: ClassVar[str] = "sweeper"

    def apply(self, world: World) -> object:
        """See retention."""
        retention.prune(world, remove=self.remove)
        return None


@dataclass(frozen=True)
class PruneInbox(Step):
    """Callbacks that were kept long enough go."""

    actor: ClassVar[str] = "sweeper"

    def apply(self, world: World) -> object:
        """See proofs."""
        return proofs.prune_inbox(world)


@dataclass(frozen=True)
class Switch(Step):
    """An owner pauses or disables a type, or the other way round."""

    kind: str
    name: str
    on: bool
    actor: ClassVar[str] = "operator"

    def apply(self, world: World) -> object:
        """Read inside the claim and the accept."""
        change = frozenset.union if self.on else frozenset.difference
        if self.name == "paused":
            world.paused = change(world.paused, frozenset({self.kind}))
        else:
            world.disabled = change(world.disabled, frozenset({self.kind}))
        return None
