"""`assert_replayable`: run a handler in every way in which a job may be run more than once, and compare the effects.

Shape of a variant: runs that end badly, then one that ends well; afterwards the world must look as after one clean run.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, Final, Literal

from django.core import mail
from django.db import transaction

from jobsboard.testing import effects as worlds
from jobsboard.testing.effects import Effects
from jobsboard.testing.isolation import no_broker
from jobsboard.testing.lineage import Body, Killed, Lineage, Point
from jobsboard.testing.session import session
from queues import handlers
from queues.contracts import Contract
from queues.handlers import (
    AwaitingConfirmation,
    Check,
    Confirmed,
    Handler,
    JobContext,
    PermanentError,
    Rejected,
    RetryLater,
    find_check,
)
from queues.models import JobType
from queues.runtime import checks, story

Variant = Literal["twice", "replayed", "late", "killed", "overtaken", "interleaved"]
"""What may happen to a job:

twice: the worker dies after the handler returned, and the job runs again. replayed: the same, and a person replays it
as a new job. late: the same, long after, when the job is too old. killed: the worker dies before or after a step.
overtaken: a worker freezes, another one runs the job, the first one wakes up and goes on. interleaved: another job of
the type runs in between.
"""
TRIES: Final = 3
"""How often a run may say RetryLater before its last."""


def assert_replayable(
    handler: Handler | str,
    payload: Any,
    *,
    effects: Callable[[], Any],
    reset: Callable[[], object] | None = None,
    check: Check | None = None,
    type: str | None = None,  # noqa: A002 (the job's type)
    group: str | None = None,
    other_payload: Any = None,
    inside_steps: bool = False,
    skip: Sequence[Variant] = (),
) -> None:
    """Insist that a handler has the same effects however often and in which order its runs happen.

    `handler` is a registered type's name or a function; `effects` returns what it did in the world, as plain values:
    all of it, not only what has the right key. Each variant begins in the same world, with the same payload and keys.
    The database and Django's mail.outbox are put back by themselves, everything else is `reset`'s.
    `check` is asked before each further run; by default the one that is registered. `other_payload` is of the job that
    runs in between. `inside_steps` also kills steps after their effect and before their result is stored.
    Raises: AssertionError, with what each variant did twice or lost; TypeError for effects that cannot be compared.
    """
    subject = _subject(handler, type, check)
    trial = _Trial(
        subject=subject,
        payloads=(payload, payload if other_payload is None else other_payload),
        group=group,
        effects=effects,
        reset=reset or (lambda: None),
        inside_steps=inside_steps,
    )
    with no_broker():
        problems = trial.run(skip)
    if problems:
        raise AssertionError(f"{subject.name} cannot be replayed:\n" + "\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class _Subject:
    """The handler under test, with what it is registered with."""

    name: str
    type: str
    function: Handler
    atomic: bool
    check: Check | None


def _subject(handler: Handler | str, kind: str | None, check: Check | None) -> _Subject:
    if isinstance(handler, str):
        found = handlers.find(handler)
        kind, function, atomic = handler, found.function, found.atomic
    else:
        known = handlers.types_of(handler)
        function, atomic = handler, any(handlers.find(name).atomic for name in known)
        kind = kind or (known[0] if known else "test.handler")
    name = getattr(function, "__qualname__", repr(function))
    return _Subject(name=name, type=kind, function=function, atomic=atomic, check=check or find_check(kind))


class _Broken(BaseException):
    """A run that should have ended well did not. No handler that stands between is to catch it."""


@dataclass(kw_only=True)
class _Trial:
    """One handler in all variants. `expected` and `outcome` are those of one clean run."""

    subject: _Subject
    payloads: tuple[Any, Any]
    group: str | None
    effects: Callable[[], Any]
    reset: Callable[[], object]
    inside_steps: bool
    before: Effects = field(init=False)
    expected: Effects = field(init=False)
    outcome: str = field(init=False)
    steps: list[str] = field(init=False)

    def run(self, skip: Sequence[Variant]) -> list[str]:
        """Play everything and return what went wrong."""
        self.reset()
        with session():
            self.before = worlds.seen(self.effects())
        self._run_clean()
        both = self.expected if "interleaved" in skip else self._both_clean()
        problems = []
        for kind, title, play in self._variants():
            if kind not in skip:
                wanted = both if kind == "interleaved" else self.expected
                problems += [f"- {title}: {said}" for said in self._compare(play, wanted)]
        return problems

    def _run_clean(self) -> None:
        bodies: list[Body] = []

        def play() -> None:
            body = self._body(self._job())
            bodies.append(body)
            self.outcome = _kind_of(self._call(body.context()))

        self.expected = self._in_a_world_of_its_own(play)
        self.steps = bodies[0].done
        if self.expected == self.before:
            raise AssertionError(
                f"effects() is the same before and after one clean run of {self.subject.name}: it cannot show what"
                " would happen twice. Return all that the handler does, whatever its key"
            )

    def _both_clean(self) -> Effects:
        """Return the effects of two jobs that run one after the other."""

        def play() -> None:
            self._complete(self._job())
            self._complete(self._job(2))

        try:
            return self._in_a_world_of_its_own(play)
        except _Broken as error:
            raise AssertionError(
                f"interleaved: a second job of {self.subject.type}, with another key, does not end well: {error}. Give"
                " an other_payload that may run beside the first, or skip this variant"
            ) from error

    def _compare(self, play: Callable[[], None], wanted: Effects) -> list[str]:
        try:
            return worlds.difference(wanted, self._in_a_world_of_its_own(play))
        except _Broken as error:
            return [str(error)]

    def _in_a_world_of_its_own(self, play: Callable[[], None]) -> Effects:
        """Play, look at the effects, and put everything back."""
        with self._everything_put_back(), session():
            play()
            found = worlds.seen(self.effects())
        with session():
            left = worlds.difference(self.before, worlds.seen(self.effects()))
        if left:
            raise AssertionError(
                "effects() still shows what an earlier run did. The database and mail.outbox are put back, the rest is"
                " yours: give reset=, for example provider.sent.clear. " + "; ".join(left)
            )
        return found

    @contextlib.contextmanager
    def _everything_put_back(self) -> Iterator[None]:
        outbox = getattr(mail, "outbox", [])
        sent = len(outbox)
        try:
            with transaction.atomic():
                yield
                transaction.set_rollback(True)
        finally:
            del outbox[sent:]
            self.reset()

    # The variants.

    def _variants(self) -> Iterator[tuple[Variant, str, Callable[[], None]]]:
        yield "twice", "twice (its worker died after the handler returned, it ran again)", self._twice
        yield "replayed", "replayed (the same, and as a new job)", self._replayed
        yield "late", "late (the same, long after and too old)", self._late
        for point in self._points():
            yield "killed", f"killed {_words(point)}, then run again", partial(self._killed, point)
        yield "overtaken", "overtaken (a frozen worker woke up after another had run the job)", self._woken
        for point in self._points():
            yield "overtaken", f"overtaken {_words(point)}", partial(self._overtaken, point)
        yield "interleaved", "interleaved (its worker died, another job ran, it ran again)", self._interleaved
        for point in self._points():
            yield "interleaved", f"interleaved (another job ran {_words(point)})", partial(self._interrupted, point)

    def _points(self) -> list[Point]:
        places = ("before", "inside", "after") if self.inside_steps else ("before", "after")
        return [(place, name) for name in self.steps for place in places]

    def _twice(self) -> None:
        job = self._job()
        self._lose(job)
        self._complete(job)

    def _replayed(self) -> None:
        job = self._job()
        self._lose(job)
        job.replay()
        self._complete(job)

    def _late(self) -> None:
        job = self._job()
        self._lose(job)
        self._complete(job, late=True)

    def _killed(self, point: Point) -> None:
        def die(at: Point) -> None:
            if at == point:
                raise Killed

        job = self._job()
        self._lose(job, on=die)
        self._complete(job)

    def _woken(self) -> None:
        job = self._job()
        frozen = self._body(job)
        job.lose()
        self._complete(job)
        self._end_badly(frozen, cancelled=True)

    def _overtaken(self, point: Point) -> None:
        job = self._job()

        def another(at: Point) -> None:
            if at == point:
                job.lose()
                self._complete(job)

        self._end_badly(self._body(job, on=_first_time(another)))

    def _interleaved(self) -> None:
        job = self._job()
        self._lose(job)
        self._complete(self._job(2))
        self._complete(job)

    def _interrupted(self, point: Point) -> None:
        def other(at: Point) -> None:
            if at == point:
                self._complete(self._job(2))

        job = self._job()
        if not self._ends_well(self._body(job, on=_first_time(other)).context()):
            self._complete(job)

    # Runs.

    def _job(self, number: int = 1) -> Lineage:
        return Lineage(type=self.subject.type, payload=self.payloads[number - 1], group=self.group, number=number)

    @staticmethod
    def _body(job: Lineage, on: Callable[[Point], None] = lambda point: None) -> Body:
        return Body(lineage=job, run=job.claim(), on=on)

    def _lose(self, job: Lineage, on: Callable[[Point], None] = lambda point: None) -> None:
        """Run it, and lose its end, if it gets so far."""
        self._end_badly(self._body(job, on=on))
        job.lose()

    def _end_badly(self, body: Body, *, cancelled: bool = False) -> None:
        # Whatever it raises or returns: nobody is there to hear it. Its end is not written.
        with contextlib.suppress(Killed, Exception), session():
            if self.subject.atomic:
                with transaction.atomic():
                    self.subject.function(body.context(cancelled=cancelled))
                    raise Killed
            self.subject.function(body.context(cancelled=cancelled))

    def _complete(self, job: Lineage, *, late: bool = False) -> None:
        """Run it as the runtime does, until it ends well. Raises: _Broken."""
        for _ in range(TRIES):
            context = self._body(job).context(late=late)
            if context.maybe_duplicate and self._is_known(context):
                return
            # A second job may well get another answer.
            if self._ends_well(context, like_the_first=job.number == 1, may_refuse=late):
                return
        raise _Broken(f"{TRIES} runs said RetryLater")

    def _ends_well(self, context: JobContext, *, like_the_first: bool = True, may_refuse: bool = False) -> bool:
        """Run it; False when it wants to be run later. Raises: _Broken."""
        try:
            ended = _kind_of(self._call(context))
        except RetryLater:
            return False
        except (PermanentError, Rejected) as error:
            if may_refuse:
                return True
            raise _Broken(f"this run ended the job: {_said(error)}") from error
        except Exception as error:
            raise _Broken(f"this run failed: {_said(error)}") from error
        if like_the_first and ended != self.outcome:
            raise _Broken(f"this run returned {ended}, a clean one {self.outcome}")
        return True

    def _is_known(self, context: JobContext) -> bool:
        """Ask the check. Raises: _Broken when it says no, or nothing."""
        if self.subject.check is None:
            return False
        with session():
            finding = checks.ask(self.subject.check, context, _contract(self.subject.type))
        if finding.outcome in ("rejected", "failed"):
            failure = finding.told.failure if finding.told else {}
            words = f"{failure.get('error_class')}: {failure.get('message')}"
            raise _Broken(f"the check before it {finding.outcome}: {words}")
        return finding.outcome == "confirmed"

    def _call(self, context: JobContext) -> Any:
        with session():
            if not self.subject.atomic:
                return self.subject.function(context)
            with transaction.atomic():
                return self.subject.function(context)


def _first_time(act: Callable[[Point], None]) -> Callable[[Point], None]:
    seen: set[Point] = set()

    def once(at: Point) -> None:
        if at not in seen:
            seen.add(at)
            act(at)

    return once


def _kind_of(outcome: Any) -> str:
    """Say what the runtime would see in what a handler returned."""
    if isinstance(outcome, (Confirmed, AwaitingConfirmation)):
        ref = "a" if story.reference(outcome.ref) else "no"
        return f"{outcome.__class__.__name__} with {ref} reference"
    return "None" if outcome is None else f"{outcome.__class__.__name__}, which is no outcome"


def _words(point: Point) -> str:
    where, name = point
    if where == "inside":
        return f"inside step {name!r}, after its effect and before its result was stored"
    return f"{where} step {name!r}"


def _said(error: Exception) -> str:
    return f"{error.__class__.__qualname__}: {error}"


def _contract(name: str) -> Contract:
    """Return a contract with the defaults of every field; a check is given its time by it."""
    kind = JobType(name=name)
    values = {one.name: getattr(kind, one.name) for one in fields(Contract) if one.name != "tier"}
    return Contract(**values, tier=2)
