"""The audit log: who changed what stands, when and why; one line a change, chained by hashes.

    <storage>/audit/log.jsonl   a record a line, its fields in the order of their names
    <storage>/audit/head.json   number and hash of the newest record

A record holds the hash of the one before it. So no line can be changed, moved or taken out without
every later hash changing; what is cut off at the end is missed by the head. Somebody who may write
here can forge the whole chain: who has to rule that out notes the head now and then where that one
cannot write, and has `penstock audit verify --head` look for it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import orjson
from pydantic import ValidationError

from penstock.errors import IntegrityError
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.records import Record
from penstock.settings import Settings

FIRST = "0" * 64
"""What the first record has for the hash of the one before."""
_LOCK_WAIT_S = 60.0

Fact = str | int | float | bool | None


class Head(Record):
    """A place in the log: it stands for all that is written up to there."""

    number: int
    hash: str

    def __str__(self) -> str:
        return f"{self.number}:{self.hash}"


NOTHING = Head(number=0, hash=FIRST)


class AuditRecord(Record):
    """One change, as it was written."""

    number: int
    at: datetime
    actor: str
    """Who gave the command: a user of the system it was given on, or `settings.actor`."""
    action: str
    """Noun and verb: `model.promote`, `deployment.serve`."""
    subject: str
    """What was changed: `<model> <version>`, a key's id."""
    facts: dict[str, Fact]
    key: str | None
    """Names the change itself, where one that was killed may be told of again."""
    previous: str
    hash: str
    """SHA-256 of the record's JSON without this field, in hexadecimal."""

    @property
    def head(self) -> Head:
        """The place that it is."""
        return Head(number=self.number, hash=self.hash)


def log_file(settings: Settings) -> Path:
    """Where the records are."""
    return settings.storage_path / "audit" / "log.jsonl"


def head_file(settings: Settings) -> Path:
    """Where the newest record is noted."""
    return settings.storage_path / "audit" / "head.json"


def append(
    settings: Settings,
    action: str,
    subject: str,
    facts: Mapping[str, Fact] | None = None,
    *,
    key: str | None = None,
) -> AuditRecord:
    """Write a change down; it is on the disk when this returns.

    Args:
        settings: whose storage.
        action: noun and verb.
        subject: what is changed.
        facts: what there is to know of it; never a secret.
        key: names the change: a record of that key that is there already is given back instead.

    Raises:
        IntegrityError: the log's last line is no record.
        BusyError: another process has been writing all the while.
        StorageFullError: the disk has no room for it.
    """
    file = log_file(settings)
    with exclusive(
        settings.storage_path / "locks" / "audit.lock", what="the audit log", wait_s=_LOCK_WAIT_S
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        if key is not None and (known := _find(file, key)) is not None:
            return known
        before = _newest(file)
        _check_head(settings, before)
        parts = {
            "number": before.number + 1,
            "at": datetime.now(UTC).isoformat(),
            "actor": settings.acting,
            "action": action,
            "subject": subject,
            "facts": dict(facts or {}),
            "key": key,
            "previous": before.hash,
        }
        made = AuditRecord.model_validate({**parts, "hash": _hash(parts)})
        _write(file, _line({**parts, "hash": made.hash}))
        # Killed before this, the head is one behind: it says less than there is, and nothing false.
        write_whole(head_file(settings), orjson.dumps(made.head.model_dump()))
    return made


def records(settings: Settings) -> Iterator[AuditRecord]:
    """Give the records in order, each held against its own hash and the one before.

    Raises:
        IntegrityError: names the first that is not what was written.
    """
    before = NOTHING
    try:
        opened = log_file(settings).open("rb")
    except FileNotFoundError:
        return
    with opened:
        for line in opened:
            if not line.endswith(b"\n"):
                # Its writer died before it had told anybody; the next one removes it.
                return
            record = _checked(line, before)
            yield record
            before = record.head


def verify(settings: Settings, *, expected: Head | None = None) -> Head:
    """Hold every record against its hash and its neighbour, and the last against the noted head.

    Args:
        settings: whose log.
        expected: a head that was noted elsewhere, which must stand in the log.

    Returns:
        The newest record's place.

    Raises:
        IntegrityError: names the first bad record.
    """
    newest = NOTHING
    for record in records(settings):
        newest = record.head
        if expected is not None and newest.number == expected.number and newest != expected:
            raise _bad(newest.number, f"has the hash {newest.hash}, not the one noted elsewhere")
    _check_head(settings, newest)
    if expected is not None and newest.number < expected.number:
        raise _bad(newest.number + 1, f"is missing: number {expected.number:,} was noted elsewhere")
    return newest


def _checked(line: bytes, before: Head) -> AuditRecord:
    number = before.number + 1
    try:
        parts = orjson.loads(line)
        record = AuditRecord.model_validate(parts)
    except (orjson.JSONDecodeError, ValidationError):
        raise _bad(number, "is no record of the audit log") from None
    if record.number != number:
        raise _bad(number, f"is missing or moved: number {record.number} stands in its place")
    if record.previous != before.hash:
        raise _bad(number, f"does not follow from record {before.number}")
    if _hash({k: v for k, v in parts.items() if k != "hash"}) != record.hash:
        raise _bad(number, "is not what was written: its hash is another")
    if _line(parts) != line:
        raise _bad(number, "is not spelt as it was written")
    return record


def _check_head(settings: Settings, newest: Head) -> None:
    """Refuse a log that is shorter than its head says."""
    file = head_file(settings)
    try:
        noted = Head.model_validate_json(file.read_bytes()).number
    except FileNotFoundError:
        # Only the first record is ever there without it.
        noted = 0 if newest.number <= 1 else newest.number + 1
    except ValidationError:
        noted = newest.number + 1
    if newest.number < noted:
        raise _bad(newest.number + 1, f"is missing, or {file} is not what was written")


def _find(file: Path, key: str) -> AuditRecord | None:
    """Find the record of a change that may have been told of before."""
    needle = b'"key":' + orjson.dumps(key)
    if not file.exists():
        return None
    with file.open("rb") as opened:
        for line in opened:
            if needle in line and line.endswith(b"\n"):
                record = AuditRecord.model_validate_json(line)
                if record.key == key:
                    return record
    return None


def _newest(file: Path) -> Head:
    """Find the last whole record; what a killed writer left behind it is cut off."""
    if not file.exists():
        return NOTHING
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as opened:
            opened.truncate(whole)
            os.fsync(opened.fileno())
    if not whole:
        return NOTHING
    last = content[content.rfind(b"\n", 0, whole - 1) + 1 : whole]
    try:
        return AuditRecord.model_validate_json(last).head
    except ValidationError:
        raise IntegrityError(
            f"the last line of {file} is no record, so none can follow it",
            next_step="`penstock audit verify` says where it went wrong; restore the file from a "
            "backup, or move it and head.json away: a new log begins",
        ) from None


def _write(file: Path, line: bytes) -> None:
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
    with os.fdopen(handle, "ab") as opened:
        opened.write(line)
        opened.flush()
        os.fsync(opened.fileno())


def _line(parts: Mapping[str, object]) -> bytes:
    return orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE)


def _hash(parts: Mapping[str, object]) -> str:
    return hashlib.sha256(orjson.dumps(parts, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _bad(number: int, what: str) -> IntegrityError:
    return IntegrityError(
        f"record {number:,} of the audit log {what}",
        next_step="restore the log from a backup; until then trust only the records before it",
    )
