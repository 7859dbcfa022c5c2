"""`manage.py contracts sync | diff | check`: contracts in TOML files, in step with the database.

The rules are `contract_rules`', the writes `contract_versions`'. A file holds whole contracts: what it leaves out
has its default, so the same file gives the same contract everywhere. Exit codes: 0 in order, 1 findings or
differences, 2 a file that cannot be read.
"""

from __future__ import annotations

import getpass
import json
import re
import sys
import tomllib
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from queues import contract_rules, contract_versions
from queues.contract_fields import FIELDS, SECRETS, SWITCHES, defaults
from queues.models import JobType
from queues.models.contract import NAME

FINDINGS: Final = 1
TROUBLE: Final = 2
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


class Named(NamedTuple):
    """One contract as its file has it."""

    file: Path
    name: str
    fields: dict[str, Any]

    @property
    def whole(self) -> dict[str, Any]:
        """The contract with the defaults of what the file leaves out; without switches."""
        return {**defaults(), **{key: value for key, value in self.fields.items() if key not in SWITCHES}}


class Command(BaseCommand):
    """Reads contract files and compares, checks or saves them."""

    help = "Keep reliability contracts in TOML files: sync them into the database, show differences, check them."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True)
        for verb, text in (
            ("sync", "save the contracts; types that no file names stay as they are, and so do switches"),
            ("diff", "show what sync would change; exit code 1 when it would change something"),
            ("check", "check the files alone, without a database; retries without a required key are errors"),
        ):
            sub = verbs.add_parser(verb, help=text)
            sub.add_argument("files", nargs="*", type=Path, metavar="FILE.toml")
            sub.add_argument("--dir", type=Path, help="every *.toml of this directory")
            if verb == "sync":
                sub.add_argument("--actor", default="", help="who, for the audit log (default: the system user)")
                sub.add_argument("--reason", default="", help="why, for the audit log")

    def handle(self, *args: Any, **options: Any) -> None:
        contracts = _read_all(_files(options["files"], options["dir"]))
        if options["verb"] == "check":
            self._check(contracts, strict=True)
            self.stdout.write(f"{len(contracts)} contracts are in order.")
            return
        self._check(contracts, strict=False)
        if options["verb"] == "diff":
            self._diff(contracts)
        else:
            self._sync(contracts, actor=options["actor"] or _system_user(), reason=options["reason"])

    def _check(self, contracts: Sequence[Named], *, strict: bool) -> None:
        wrong = False
        for contract in contracts:
            findings = contract_rules.check(contract.fields, strict=strict)
            for key, texts in findings.errors.items():
                wrong = True
                for text in texts:
                    self.stderr.write(f"{contract.file}: {contract.name}: {key}: {_line(text)}")
            for text in findings.warnings:
                self.stderr.write(f"{contract.file}: {contract.name}: warning: {_line(text)}")
        if wrong:
            raise CommandError("Nothing was done: the contracts above break a rule.", returncode=FINDINGS)

    def _diff(self, contracts: Sequence[Named]) -> None:
        changed = False
        for contract in contracts:
            row = JobType.objects.filter(pk=contract.name).first()
            if row is None:
                changed = True
                self.stdout.write(f"{contract.name}: new")
                continue
            diff = contract_versions.differences(contract_versions.fields_of(row), contract.whole)
            for key, (old, new) in diff.items():
                changed = True
                self.stdout.write(f"{contract.name}: {key}: {_shown(old)} -> {_shown(new)}")
        if changed:
            sys.exit(FINDINGS)
        self.stdout.write("No differences.")

    def _sync(self, contracts: Sequence[Named], *, actor: str, reason: str) -> None:
        # All or nothing, in one order everywhere, so that two deploys at once cannot deadlock.
        with transaction.atomic():
            for contract in sorted(contracts, key=lambda one: one.name):
                self._sync_one(contract, actor=actor, reason=reason or f"contracts sync {contract.file.name}")

    def _sync_one(self, contract: Named, *, actor: str, reason: str) -> None:
        switches = {key: value for key, value in contract.fields.items() if key in SWITCHES}
        try:
            saved = contract_versions.save(
                contract.name, {**contract.whole, **switches}, actor=actor, reason=reason, source="command"
            )
        except contract_versions.ContractInvalid as error:
            raise CommandError(f"{contract.file}: {contract.name}: {_line(str(error))}", returncode=FINDINGS) from None
        what = "unchanged" if saved.version is None else f"version {saved.version}"
        self.stdout.write(f"{contract.name}: {what}" + (f" ({', '.join(saved.diff)})" if saved.diff else ""))
        for key, value in switches.items():
            if saved.version != 1 and getattr(saved.job_type, key) != value:
                self.stdout.write(f"{contract.name}: {key} is {_shown(getattr(saved.job_type, key))} and stays so")


def _files(files: Sequence[Path], directory: Path | None) -> list[Path]:
    found = list(files)
    if directory is not None:
        if not directory.is_dir():
            raise CommandError(f"{directory}: not a directory", returncode=TROUBLE)
        found += sorted(directory.glob("*.toml"))
    if not found:
        raise CommandError("Name a FILE.toml, or --dir with one inside.", returncode=TROUBLE)
    return found


def _read_all(files: Sequence[Path]) -> list[Named]:
    contracts: dict[str, Named] = {}
    for file in files:
        for contract in _read(file):
            if contract.name in contracts:
                _trouble(file, f"{contract.name} is in {contracts[contract.name].file} too")
            contracts[contract.name] = contract
    return list(contracts.values())


def _read(file: Path) -> list[Named]:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        _trouble(file, error.strerror or "cannot be read")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        _trouble(file, f"not TOML: {error}")
    for key in document.keys() - {"job_types"}:
        _trouble(file, f'unknown key {key}; contracts are written as [job_types."name"]')
    types = document.get("job_types")
    if not isinstance(types, Mapping) or not types:
        _trouble(file, 'no [job_types."name"] in it')
    return [_named(file, name, fields) for name, fields in types.items()]


def _named(file: Path, name: str, fields: Any) -> Named:
    if not isinstance(fields, dict):
        _trouble(file, f"{name}: not a table")
    if not re.match(NAME.regex, name):
        _trouble(file, f"{name!r}: {NAME.message}" + ("" if "." not in name else ' Quote it: [job_types."a.b"]'))
    for key, value in fields.items():
        if key in SECRETS:
            _trouble(file, f"{name}: {key} does not belong in a file; name a variable in {key}_env")
        if key not in FIELDS:
            hint = f'; a type with a dot is written as [job_types."{name}.{key}"]' if isinstance(value, dict) else ""
            _trouble(file, f"{name}: unknown key {key}{hint}")
    return Named(file, name, fields)


def _trouble(file: Path, text: str) -> NoReturn:
    raise CommandError(f"{file}: {_line(text)}", returncode=TROUBLE)


def _line(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True, sort_keys=True)


def _system_user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A container's user without an entry in the user database.
        return "command"
