"""`manage.py ensure_admin`: the local stack's superuser and API key, the same ones at every start.

Not here: users of a deployment; `createsuperuser` and the API keys page are for those.
"""

from __future__ import annotations

import contextlib
import json
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandParser
from django.db import transaction

from jobsboard.api.keys import issue_key
from jobsboard.local.layout import write_private
from jobsboard.models import ApiKey

USERNAME = "admin"
LABEL = "local stack"
SCOPES = ["jobs:write", "jobs:read", "jobs:confirm", "dlq:read", "dlq:replay"]


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What the local stack prints when it is ready."""

    user: str
    password: str
    api_key: str
    api_key_id: str


class Command(BaseCommand):
    """Create or keep the user and the key; what no longer fits the file is reset to it."""

    help = "Create or keep the local stack's superuser and API key, written to a file that only you can read."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--credentials", required=True, type=Path, metavar="PATH", help="the file to keep them in")
        parser.add_argument("--print", action="store_true", help="print the password and the key too")

    def handle(self, *args: Any, **options: Any) -> None:
        path: Path = options["credentials"]
        known = _read(path)
        # The file is written before the commit: a key whose text nobody has must not stay behind.
        with transaction.atomic():
            credentials = _ensure(known)
            if credentials != known:
                write_private(path, json.dumps(asdict(credentials), indent=2) + "\n")
        if options["print"]:
            self.stdout.write(f"user={credentials.user} password={credentials.password} api_key={credentials.api_key}")
        else:
            self.stdout.write(f"The user {credentials.user} and an API key are ready; both are in {path}.")


def _read(path: Path) -> Credentials | None:
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError, TypeError):
        return Credentials(**json.loads(path.read_text(encoding="utf-8")))
    return None


def _ensure(known: Credentials | None) -> Credentials:
    password = known.password if known else secrets.token_urlsafe(15)
    user, created = get_user_model().objects.get_or_create(username=USERNAME)
    if created or not (user.is_active and user.is_staff and user.is_superuser and user.check_password(password)):
        user.is_active = user.is_staff = user.is_superuser = True
        user.set_password(password)
        user.save()
    if known and ApiKey.objects.filter(pk=known.api_key_id, revoked_at=None).exists():
        return known
    key, plain = issue_key(label=LABEL, scopes=SCOPES, type_patterns=["*"])
    return Credentials(user=USERNAME, password=password, api_key=plain, api_key_id=str(key.pk))
