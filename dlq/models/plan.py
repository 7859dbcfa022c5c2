"""Replay plans: a durable bulk action, its items, and what became of each."""

from django.db import models


class ReplayPlan(models.Model):
    """One bulk action on dead letters or waiting jobs: what was chosen, at what pace, when it stops, how far it is.

    The items are fixed when the plan is made; every count below is kept by the statement that ends an item.
    """

    class Action(models.TextChoices):
        REPLAY = "replay", "Replay"
        CANCEL = "cancel", "Cancel"
        IGNORE = "ignore", "Ignore"

    class State(models.TextChoices):
        RUNNING = "running", "Running"
        PAUSED = "paused", "Paused"
        STOPPED = "stopped", "Stopped by its rule"
        ABORTED = "aborted", "Aborted"
        FOLLOWING = "following", "Waiting for outcomes"
        FINISHED = "finished", "Finished"

    class Order(models.TextChoices):
        OLDEST = "oldest", "Oldest first"
        NEWEST = "newest", "Newest first"

    id = models.UUIDField(primary_key=True)
    action = models.CharField(max_length=6, choices=Action.choices, default=Action.REPLAY)
    state = models.CharField(max_length=9, choices=State.choices, default=State.RUNNING)
    # Why it is in this state, in words: who paused it and why, or what the stop rule saw.
    state_reason = models.CharField(max_length=1000, blank=True, default="")
    state_at = models.DateTimeField()
    # Running, but not going on right now: live work waits, or the type is paused or deferred. Empty: it goes on.
    held = models.CharField(max_length=300, blank=True, default="")
    # As asked: {"type", "tier", "reason", "fingerprint", "group", "state", "since", "until"} or {"ids": n}.
    selection = models.JSONField()
    as_of = models.DateTimeField()
    types = models.JSONField(default=list)
    reason = models.CharField(max_length=1000)
    created_by = models.CharField(max_length=150)
    source = models.CharField(max_length=8)
    request_id = models.CharField(max_length=64, blank=True, default="")
    # A second request with it finds this plan; unique for its creator.
    idempotency_key = models.CharField(max_length=255, null=True)  # noqa: DJ001 (null: none)
    request_hash = models.CharField(max_length=64, blank=True, default="")
    created_at = models.DateTimeField()
    dry_run = models.BooleanField(default=False)
    # Replays against whose safety something speaks as well; an admin's word.
    forced = models.BooleanField(default=False)
    rate_per_second = models.FloatField()
    # Replays that may wait, run or retry at once.
    concurrency = models.IntegerField()
    stop_on_failure_ratio = models.FloatField()
    order = models.CharField(max_length=6, choices=Order.choices, default=Order.OLDEST)
    # Up to when the pace has been used; never more than two seconds behind now.
    paced_at = models.DateTimeField()
    # The stop rule looks at what was replayed since.
    judged_since = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)

    total = models.IntegerField()
    # Of the ids that were named: unknown, of a type that the caller may not use, or in no state for this action.
    left_out = models.IntegerField(default=0)
    done = models.IntegerField(default=0)
    skipped = models.IntegerField(default=0)
    failed = models.IntegerField(default=0)
    # {code: n} of skipped and failed items, and of a dry run's verdicts.
    why = models.JSONField(default=dict)
    # Of the replays: those that wait, run or retry; of these, those whose last attempt failed; those that wait for
    # their proof; and how the others ended.
    open = models.IntegerField(default=0)
    failing = models.IntegerField(default=0)
    awaiting = models.IntegerField(default=0)
    confirmed = models.IntegerField(default=0)
    dead_again = models.IntegerField(default=0)
    expired = models.IntegerField(default=0)
    cancelled = models.IntegerField(default=0)
    # Children that are gone before anybody saw how they ended.
    lost = models.IntegerField(default=0)
    # What the stop rule looks at, of what was replayed since `judged_since`: it went well so far, or it ended badly.
    judged_ok = models.IntegerField(default=0)
    judged_bad = models.IntegerField(default=0)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["created_by", "idempotency_key"],
                condition=models.Q(idempotency_key__isnull=False),
                name="plan_once",
            ),
            models.CheckConstraint(
                name="plan_adds_up",
                condition=models.Q(total__gte=models.F("done") + models.F("skipped") + models.F("failed")),
            ),
        ]
        indexes = [
            models.Index(fields=["created_at"], name="plan_by_time"),
            models.Index(
                fields=["state"],
                condition=models.Q(state__in=["running", "paused", "stopped", "aborted", "following"]),
                name="plan_alive",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.action} {self.id} {self.state}"


class PlanItem(models.Model):
    """One job of a plan. `state`: waiting, done, skipped or failed; `outcome` is what became of the replay.

    `code` says why it was skipped or failed, `detail` in words. Of a replay `child` is the new job, and `outcome` goes
    from open (waits, runs or retries) over awaiting to confirmed, dead, expired, cancelled or lost.
    """

    class State(models.TextChoices):
        WAITING = "waiting", "Waiting"
        DONE = "done", "Done"
        SKIPPED = "skipped", "Skipped"
        FAILED = "failed", "Failed"

    pk = models.CompositePrimaryKey("plan_id", "number")
    plan_id = models.UUIDField()
    # The place in the plan's order, from 1.
    number = models.IntegerField()
    job_id = models.UUIDField()
    type = models.CharField(max_length=64, db_collation="C")
    # FailureCount's identity with the type; empty for jobs that are not dead.
    failure = models.CharField(max_length=64, blank=True, default="")
    state = models.CharField(max_length=7, choices=State.choices, default=State.WAITING)
    code = models.CharField(max_length=32, blank=True, default="")
    detail = models.CharField(max_length=300, blank=True, default="")
    tries = models.SmallIntegerField(default=0)
    at = models.DateTimeField(null=True)
    child = models.UUIDField(null=True)
    outcome = models.CharField(max_length=9, blank=True, default="")
    # The replay is open and its last attempt failed.
    failing = models.BooleanField(default=False)
    looked_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["plan_id", "job_id"], name="item_once"),
        ]
        indexes = [
            models.Index(fields=["plan_id", "number"], condition=models.Q(state="waiting"), name="item_waiting"),
            models.Index(
                fields=["plan_id", "outcome", "looked_at"],
                condition=models.Q(outcome__in=["open", "awaiting"]),
                name="item_followed",
            ),
            models.Index(
                fields=["plan_id", "number"],
                condition=models.Q(state__in=["skipped", "failed"])
                | models.Q(outcome__in=["dead", "expired", "cancelled", "lost"]),
                name="item_unwell",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.plan_id} {self.number} {self.state}"


class PlanFailure(models.Model):
    """A failure that a replay plan is about, until the plan is over: its group is being replayed while the plan is
    running, paused or following.
    """

    pk = models.CompositePrimaryKey("type", "reason", "fingerprint", "plan_id")
    # FailureCount's identity.
    type = models.CharField(max_length=64, db_collation="C")
    reason = models.CharField(max_length=24)
    fingerprint = models.CharField(max_length=32, db_collation="C", blank=True)
    plan_id = models.UUIDField()

    class Meta:
        indexes = [models.Index(fields=["plan_id"], name="failure_by_plan")]

    def __str__(self) -> str:
        return f"{self.plan_id} {self.type} {self.reason} {self.fingerprint}"
