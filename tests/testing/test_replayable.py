"""assert_replayable finds handlers that do things twice or lose them, and lets the good ones pass."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.db import IntegrityError, connection, transaction
from django.test import TestCase

from jobsboard.testing import Variant, assert_replayable
from queues.handlers import (
    AwaitingConfirmation,
    Check,
    Confirmed,
    Handler,
    JobContext,
    PermanentError,
    Rejected,
    RetryLater,
    check,
    handler,
)

PAYLOAD = {"email": "a@example.org"}


class Provider:
    """A service outside, which knows keys or does not."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []

    def act(self, what: str, key: str = "") -> str:
        """Do something; what has a known key is not done again."""
        if not key or (what, key) not in self.done:
            self.done.append((what, key))
        return f"ref-{what}"

    def effects(self) -> list[tuple[str, str]]:
        return self.done


@pytest.fixture(params=["in a transaction", "committing"])
def world(request: pytest.FixtureRequest) -> Iterator[Provider]:
    """A provider, in a test that is rolled back and in one that commits."""
    request.getfixturevalue("db" if request.param == "in a transaction" else "transactional_db")
    yield Provider()


def told(world: Provider, work: Handler, **options: Any) -> str:
    """Return what is said against a handler; nothing when it passes."""
    options = {"effects": world.effects, "reset": world.done.clear, **options}
    try:
        assert_replayable(work, PAYLOAD, **options)
    except AssertionError as error:
        return str(error)
    return ""


def variants(said: str) -> set[str]:
    """Return which variants were complained about."""
    return set(re.findall(r"^- (\w+)", said, re.MULTILINE))


class InATestCase(TestCase):
    """The plain way: Django's TestCase and its outbox, nothing of pytest."""

    def test_an_upsert_passes(self) -> None:
        """A unique key is what the documents ask for."""

        def work(job: JobContext) -> Confirmed:
            user, _ = User.objects.update_or_create(username=job.idempotency_key, defaults=job.payload)
            return Confirmed(ref=user.username)

        assert_replayable(work, PAYLOAD, effects=lambda: User.objects.values_list("username", "email"))
        assert not User.objects.exists()

    def test_a_mail_on_every_run_does_not(self) -> None:
        """And the outbox is as it was before."""

        def work(job: JobContext) -> Confirmed:
            mail.send_mail("Welcome", "Hello", None, [job.payload["email"]])
            return Confirmed(ref="sent")

        mail.send_mail("Before", "", None, ["b@example.org"])
        with self.assertRaisesRegex(AssertionError, r"- twice .*: twice instead of once: \(\['a@example.org'\], 'Wel"):
            assert_replayable(work, PAYLOAD, effects=lambda: [(m.to, m.subject) for m in mail.outbox])
        assert [m.subject for m in mail.outbox] == ["Before"]


def test_a_handler_that_appends_is_found(world: Provider) -> None:
    """Wherever a second run is possible, it acts a second time."""

    def work(job: JobContext) -> Confirmed:
        return Confirmed(world.act("charge"))

    said = told(world, work)
    assert variants(said) == {"twice", "replayed", "late", "overtaken", "interleaved"}
    assert said.startswith("test_a_handler_that_appends_is_found.<locals>.work cannot be replayed:\n")
    assert "twice instead of once: ('charge', '')" in said
    assert "3 times instead of twice: ('charge', '')" in said


def test_a_handler_that_gives_its_key_passes(world: Provider) -> None:
    """The provider knows what it has done."""
    assert told(world, lambda job: Confirmed(world.act("charge", job.idempotency_key))) == ""


def test_a_database_effect_is_found_and_a_unique_one_passes(world: Provider) -> None:
    """In the database, which is put back by itself."""

    def again(job: JobContext) -> Confirmed:
        User.objects.create(username=f"{job.id} {job.run}")
        return Confirmed("r")

    def unique(job: JobContext) -> Confirmed:
        with contextlib.suppress(IntegrityError):
            User.objects.create(username=job.idempotency_key)
        return Confirmed(User.objects.get(username=job.idempotency_key).username)

    count = User.objects.count
    assert "- twice (its worker died after the handler returned, it ran again): only here: 2" in told(
        world, again, effects=count
    )
    assert told(world, unique, effects=count) == ""
    assert User.objects.count() == 0


def two_steps(world: Provider, *, kept: bool) -> Handler:
    def work(job: JobContext) -> Confirmed:
        if not kept:
            world.act("charge")
            return Confirmed(world.act("ship"))
        assert job.once("charge", lambda: world.act("charge")) == "ref-charge"
        return Confirmed(job.once("ship", lambda: world.act("ship")))

    return work


def test_two_steps_need_once(world: Provider) -> None:
    """Without it both are done again; with it each is done once, wherever the worker dies between them."""
    said = told(world, two_steps(world, kept=False))
    assert "('charge', '')" in said and "('ship', '')" in said
    assert told(world, two_steps(world, kept=True)) == ""


def test_a_step_may_die_inside(world: Provider) -> None:
    """Its effect is there and its result is not: only asked for, since only a key of the provider's helps."""
    said = told(world, two_steps(world, kept=True), inside_steps=True)
    assert variants(said) == {"killed", "overtaken"}
    assert "killed inside step 'charge', after its effect and before its result was stored, then run again" in said

    def work(job: JobContext) -> Confirmed:
        job.once("charge", lambda: world.act("charge", job.idempotency_key))
        return Confirmed(job.once("ship", lambda: world.act("ship", job.idempotency_key)))

    assert told(world, work, inside_steps=True) == ""


def test_an_effect_between_steps_is_found(world: Provider) -> None:
    """One of the two is outside `once`."""

    def work(job: JobContext) -> Confirmed:
        job.once("charge", lambda: world.act("charge"))
        world.act("tell")
        job.once("ship", lambda: world.act("ship"))
        return Confirmed("r")

    said = told(world, work)
    assert "killed before step 'ship', then run again: twice instead of once: ('tell', '')" in said
    assert "killed after step 'charge'" not in said
    assert "'charge', ''" not in said and "'ship', ''" not in said


def test_a_lost_effect_is_found(world: Provider) -> None:
    """A handler that takes a flag for the deed leaves the deed out."""

    def work(job: JobContext) -> Confirmed:
        if not job.once("seen", lambda: None) and job.maybe_duplicate:
            return Confirmed("r")
        world.act("charge")
        return Confirmed("r")

    said = told(world, work)
    assert "killed after step 'seen', then run again: missing: ('charge', '')" in said


def test_a_replay_has_another_id(world: Provider) -> None:
    """Who takes the job's id for a key is found by it alone."""
    said = told(world, lambda job: Confirmed(world.act("charge", str(job.id))))
    assert variants(said) == {"replayed"}


def test_a_look_that_only_duplicates_take_is_overtaken(world: Provider) -> None:
    """The frozen worker's run is no duplicate; it may be left out on purpose."""

    def work(job: JobContext) -> Confirmed:
        if job.maybe_duplicate and ("mail", "") in world.done:
            return Confirmed("found")
        return Confirmed(world.act("mail"))

    assert "overtaken" in variants(told(world, work))
    assert told(world, work, skip=("overtaken", "interleaved")) == ""

    def careful(job: JobContext) -> Confirmed:
        return Confirmed("stopped") if job.cancelled else work(job)

    assert told(world, careful, skip=("interleaved",)) == ""


def test_a_check_is_asked_first(world: Provider) -> None:
    """What it knows is not done again; the runtime does the same."""
    asked: list[bool] = []

    def look(job: JobContext) -> Confirmed | None:
        asked.append(job.maybe_duplicate)
        return Confirmed("found") if ("mail", job.idempotency_key) in world.done else None

    def work(job: JobContext) -> Confirmed:
        world.done.append(("mail", job.idempotency_key))
        return Confirmed("sent")

    assert told(world, work, check=look, skip=("overtaken",)) == ""
    assert asked and all(asked)
    assert "twice" in variants(told(world, work))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda job: Rejected("never heard of it"), "the check before it rejected: Rejected: never heard of it"),
        (lambda job: 1 / 0, "the check before it failed: ZeroDivisionError: division by zero"),
    ],
)
def test_a_check_that_does_not_help_is_told(world: Provider, answer: Check, words: str) -> None:
    """Its job would not be confirmed."""
    assert words in told(world, lambda job: Confirmed(world.act("mail", job.idempotency_key)), check=answer)


def test_what_is_registered_is_known(world: Provider) -> None:
    """By the type's name or by the function: its check, and that it is atomic."""

    @handler("testing.known", atomic=True)
    def work(job: JobContext) -> Confirmed:
        assert job.type == "testing.known" and connection.in_atomic_block
        User.objects.create(username=f"{job.id} {job.run}")
        return Confirmed("r")

    calls: list[str] = []
    check("testing.known")(lambda job: calls.append(job.type))
    for given in (work, "testing.known"):
        calls.clear()
        assert_replayable(given, PAYLOAD, effects=User.objects.count)
        assert set(calls) == {"testing.known"}


def test_an_atomic_handler_cannot_take_back_what_is_outside(world: Provider) -> None:
    """Its rows go with the run that was lost, the provider's do not."""

    @handler("testing.known", atomic=True)
    def work(job: JobContext) -> Confirmed:
        ref = world.act("charge")
        User.objects.create(username=job.idempotency_key)
        return Confirmed(ref)

    said = told(world, work)
    assert {"twice", "overtaken"} <= variants(said)
    assert "IntegrityError" not in said


def test_a_second_run_has_to_end_well(world: Provider) -> None:
    """The effect was there once; the job would be dead all the same."""

    def fails(job: JobContext) -> Confirmed:
        if world.done:
            raise ValueError("there already")
        return Confirmed(world.act("charge"))

    assert "twice (its worker died after the handler returned, it ran again): this run failed: ValueError: there" in (
        told(world, fails, skip=("interleaved",))
    )

    def forgets(job: JobContext) -> Confirmed | None:
        return None if job.maybe_duplicate else Confirmed(world.act("charge"))

    assert "this run returned None, a clean one Confirmed with a reference" in told(
        world, forgets, skip=("interleaved", "overtaken")
    )

    def gives_up(job: JobContext) -> Confirmed:
        if ("charge", job.idempotency_key) in world.done:
            raise PermanentError("no second time")
        return Confirmed(world.act("charge", job.idempotency_key))

    said = told(world, gives_up)
    assert "twice" in variants(said) and "late" not in variants(said)


def test_a_second_run_may_ask_for_time(world: Provider) -> None:
    """RetryLater costs a run; for ever it is told."""

    def work(job: JobContext) -> AwaitingConfirmation:
        if job.maybe_duplicate and job.run == 2:
            raise RetryLater(1)
        return AwaitingConfirmation(world.act("charge", job.idempotency_key))

    assert told(world, work) == ""

    def never(job: JobContext) -> Confirmed:
        if job.maybe_duplicate:
            raise RetryLater(1)
        return Confirmed(world.act("charge", job.idempotency_key))

    assert "3 runs said RetryLater" in told(world, never)


def test_jobs_that_disturb_each_other_are_found(world: Provider) -> None:
    """What the last job left in the process belongs to another one."""
    last: dict[str, str] = {}

    def work(job: JobContext) -> Confirmed:
        last["key"] = job.idempotency_key
        job.once("order", lambda: world.act("order", job.idempotency_key))
        return Confirmed(world.act("ship", last["key"]))

    said = told(world, work)
    assert variants(said) == {"interleaved"}
    assert re.search(r"interleaved \(another job ran before step 'order'\): missing: \('ship', 'jb_", said)


def test_the_other_job_may_have_a_payload_of_its_own(world: Provider) -> None:
    """Where the payload is the key."""

    def work(job: JobContext) -> Confirmed:
        User.objects.create(username=job.payload["email"]) if not job.maybe_duplicate else None
        return Confirmed("r")

    options: dict[str, Any] = {"effects": lambda: User.objects.values_list("username"), "skip": ("overtaken",)}
    assert "a second job of test.handler, with another key, does not end well" in told(world, work, **options)
    assert told(world, work, other_payload={"email": "b@example.org"}, **options) == ""


def test_misuse_is_told(world: Provider) -> None:
    """Effects that show nothing, that are not put back, or that are no values."""

    def work(job: JobContext) -> Confirmed:
        return Confirmed(world.act("charge", job.idempotency_key))

    assert "it cannot show what would happen twice" in told(world, work, effects=lambda: [])
    assert "give reset=" in told(world, work, reset=None)

    def posts(job: JobContext) -> Confirmed:
        mail.send_mail("Hello", "", None, ["a@example.org"])
        return Confirmed("r")

    with pytest.raises(TypeError, match=r"plain values: \[\(m.to"):
        assert_replayable(posts, PAYLOAD, effects=lambda: mail.outbox)

    def signs_up(job: JobContext) -> Confirmed:
        return Confirmed(User.objects.create(username=job.idempotency_key).username)

    with pytest.raises(TypeError, match="plain values"):
        assert_replayable(signs_up, PAYLOAD, effects=User.objects.all)


def test_an_error_in_a_clean_run_is_the_tests_own(world: Provider) -> None:
    """Nothing is compared when the handler does not work at all."""
    with pytest.raises(ZeroDivisionError):
        told(world, lambda job: Confirmed(str(1 / 0)))


def test_nothing_is_caught_that_a_worker_would_not_survive(world: Provider) -> None:
    """A handler that catches everything is dead all the same, and does no further step."""

    def work(job: JobContext) -> Confirmed:
        try:
            job.once("charge", lambda: world.act("charge"))
        except BaseException:
            job.once("refund", lambda: world.act("refund"))
        return Confirmed("r")

    assert told(world, work) == ""


def test_no_step_inside_a_transaction(world: Provider) -> None:
    """As in a worker."""

    def work(job: JobContext) -> Confirmed:
        with transaction.atomic():
            return Confirmed(job.once("charge", lambda: world.act("charge")))

    with pytest.raises(Exception, match="stands inside a transaction"):
        told(world, work)


@pytest.mark.parametrize("variant", get_args(Variant))
def test_each_variant_can_be_left_out(world: Provider, variant: Variant) -> None:
    """And only that."""

    def work(job: JobContext) -> Confirmed:
        job.once("charge", lambda: world.act("charge"))
        world.act("tell")
        return Confirmed(job.once("ship", lambda: world.act("ship")))

    assert variants(told(world, work, skip=(variant,))) == set(get_args(Variant)) - {variant}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"b": 1, "a": {3, 1}}, {"a": {1, 3}, "b": 1}),
        (["x", "y"], ["y", "x"]),
        ({1, 2}, {2, 1}),
        (3, 3),
        ("text", "text"),
    ],
)
def test_equal_effects_are_equal(db: None, one: Any, other: Any) -> None:
    """However a test writes them down; their order does not count."""
    runs: list[int] = []

    def work(job: JobContext) -> Confirmed:
        runs.append(1)
        return Confirmed("r")

    def effects() -> Any:
        return (one, other)[len(runs) % 2] if runs else None

    assert_replayable(work, {}, effects=effects, reset=runs.clear, skip=("interleaved",))
