"""Signatures and secrets: the published vector, any zone, one or two secrets (S-17, S-18)."""

from __future__ import annotations

import base64
import datetime as dt
import runpy
from pathlib import Path

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from jobsboard.alerts import signing

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ID = "msg_p5jXN8AQM9LWM0D4loKWxJek"
AT = dt.datetime.fromtimestamp(1614265330, tz=dt.UTC)
BODY = '{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_the_published_vector() -> None:
    """S-17: the specification's own example; with its last group changed it is another signature."""
    made = signing.headers(ID, BODY, keys=[SECRET], at=AT)
    assert made == {"webhook-id": ID, "webhook-timestamp": "1614265330", "webhook-signature": SIGNATURE}
    shown = runpy.run_path(str(Path(__file__).resolve().parents[2] / "examples/receivers/receiver.py"))
    assert shown["verify"]([SECRET], made, BODY.encode(), now=AT.timestamp()) == {"test": 2432232314}
    cut = {**made, "webhook-signature": SIGNATURE.removesuffix("J1OE=") + "J1OA="}
    with pytest.raises(shown["NotGenuine"]):
        shown["verify"]([SECRET], cut, BODY.encode(), now=AT.timestamp())


@pytest.mark.parametrize("hours", [-9, -1, 1, 5.5, 12])
def test_the_zone_of_the_clock_changes_nothing(hours: float) -> None:
    """S-17: the library takes the digits of a time for UTC, whatever its zone says."""
    zone = dt.timezone(dt.timedelta(hours=hours))
    assert signing.headers(ID, BODY, keys=[SECRET], at=AT.astimezone(zone))["webhook-signature"] == SIGNATURE


def test_a_secret_is_32_random_bytes() -> None:
    """S-18: as the specification wants it, 24 to 64 bytes; never the same."""
    made = {signing.new_secret() for _ in range(50)}
    assert len(made) == 50
    assert {len(base64.b64decode(one.removeprefix("whsec_"), validate=True)) for one in made} == {32}
    assert all(one.startswith("whsec_") for one in made)


def test_two_secrets_are_two_signatures() -> None:
    """S-18: the library accepts either; a third one it does not."""
    old, new, now = signing.new_secret(), signing.new_secret(), dt.datetime.now(tz=dt.UTC)
    made = signing.headers("msg_1", BODY, keys=[new, old], at=now)
    assert made["webhook-signature"].count(" ") == 1
    for secret in (old, new):
        assert Webhook(secret).verify(BODY, made) == {"test": 2432232314}
    with pytest.raises(WebhookVerificationError):
        Webhook(signing.new_secret()).verify(BODY, made)


def test_without_a_secret_there_is_no_signature() -> None:
    """A message to Slack still has its id and time."""
    assert set(signing.headers("msg_1", BODY, keys=[], at=AT)) == {"webhook-id", "webhook-timestamp"}
