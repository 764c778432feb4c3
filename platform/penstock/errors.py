"""Every error that Penstock raises on purpose, and the exit code each one ends a command with.

PenstockError            1   something of ours, or of a part we stand on, failed
├── ClusterError         1   a Ray cluster is absent, unreachable or not ours
├── JobFailedError       n   a Ray job ended with the exit code n
├── IntegrityError       1   bytes on disk are not the bytes that were signed or committed
├── StorageFullError     1   the disk has no room left; nothing half-written is seen
├── StoreEmptyError      1   the online store does not hold what was materialized into it
├── UserError            2   the input is wrong and the message says how to mend it
│   ├── SettingsError    2   a setting is unknown, of the wrong type or out of range
│   ├── DeclarationError 2   a use case's declarations contradict themselves
│   ├── NotFoundError    2   a name does not exist; the nearest one is offered
│   ├── DataError        2   a source file or query cannot be taken as a whole
│   ├── TrainingDataError 2  the training set cannot be trained on
│   └── RequestError     2   an HTTP request is refused; carries its status and path
├── GateRefusedError     3   a policy looked at the evidence and said no
├── ForbiddenError      77   who acts has a role that may not do this
└── BusyError           75   somebody else holds what this command needs; try again
"""

import difflib
import errno
import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any


class PenstockError(Exception):
    """Something of ours, or of a part that we stand on, failed."""

    exit_code = 1
    result: Mapping[str, Any] = MappingProxyType({})
    """What a job had reported as done before this ended it; empty outside of jobs."""

    def __init__(
        self, found: str, *, allowed: str | None = None, next_step: str | None = None
    ) -> None:
        """Say what was found, what is allowed and what to do next, as parts of one message."""
        self.found = found
        self.allowed = allowed
        self.next_step = next_step
        super().__init__(found, allowed, next_step)

    def __str__(self) -> str:
        parts = [self.found]
        if self.allowed:
            parts.append(f"Allowed: {self.allowed}")
        if self.next_step:
            parts.append(f"Next: {self.next_step}")
        return " ".join(part if part.endswith((".", "?")) else f"{part}." for part in parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Ray carries errors between processes; the default rebuilds from args alone and would
        # pass keyword-only parts by position.
        return (_rebuild, (type(self), dict(self.__dict__)))


def _rebuild(cls: type[PenstockError], state: dict[str, object]) -> PenstockError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    Exception.__init__(error, state.get("found"), state.get("allowed"), state.get("next_step"))
    return error


class ClusterError(PenstockError):
    """A Ray cluster is absent, unreachable or not ours."""


class JobFailedError(PenstockError):
    """A Ray job ended without success; the command ends with the job's own exit code."""

    def __init__(self, found: str, *, exit_code: int, next_step: str | None = None) -> None:
        super().__init__(found, next_step=next_step)
        self.exit_code = exit_code


class IntegrityError(PenstockError):
    """Bytes on disk are not the bytes that were signed or committed."""


class StorageFullError(PenstockError):
    """The disk has no room left; what was being written is not part of anything."""


class StoreEmptyError(PenstockError):
    """The online store does not hold what was materialized into it."""


class UserError(PenstockError, ValueError):
    """The input is wrong and the message says how to mend it."""

    exit_code = 2


class SettingsError(UserError):
    """A setting is unknown, of the wrong type or out of range."""


class DeclarationError(UserError):
    """A use case's declarations contradict themselves."""


class NotFoundError(UserError):
    """A name does not exist; the nearest one that does is offered."""


class DataError(UserError):
    """A source file or query cannot be taken as a whole."""


class TrainingDataError(UserError):
    """The training set cannot be trained on."""


class RequestError(UserError):
    """An HTTP request is refused, with the status to answer and the path of the offending part."""

    def __init__(
        self, status: int, code: str, message: str, *, path: str = "$", retry_after_s: int = 1
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.status = status
        self.code = code
        self.message = message
        self.path = path


class GateRefusedError(PenstockError):
    """A policy looked at the evidence and said no."""

    exit_code = 3


class ForbiddenError(PenstockError):
    """Who acts has a role that may not do this."""

    exit_code = 77


class BusyError(PenstockError):
    """Somebody else holds what this command needs; trying again later can work."""

    exit_code = 75


def storage_full(error: BaseException) -> StorageFullError | None:
    """Give the error for a full disk where that lies beneath, whichever library raised it."""
    beneath: BaseException | None = error
    while beneath is not None:
        codes = (errno.ENOSPC, errno.EDQUOT)
        if getattr(beneath, "errno", None) in codes or any(
            os.strerror(code) in str(beneath) for code in codes
        ):
            return StorageFullError(
                f"there is no room left to write: {beneath}",
                next_step="make room, or point storage.root to a larger disk, and run the same "
                "command again: what was not finished is not seen by anybody",
            )
        beneath = beneath.__cause__ or beneath.__context__
    return None


def unknown_name(kind: str, name: str, known: Iterable[str]) -> NotFoundError:
    """Build the error for a name that does not exist, with the nearest known one offered."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return NotFoundError(
        f"there is no {kind} named {name!r}",
        allowed=", ".join(names) if names else f"none yet: no {kind} exists",
        next_step=f"did you mean {near[0]!r}?"
        if near
        else ("choose one of these" if names else f"make a {kind} first"),
    )
