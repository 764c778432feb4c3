"""The record of a search: every trial and every fold of it, on disk before anything builds on it.

One line of JSON each, synced. What a kill -9 leaves is a whole file, or one with a torn last line,
which is cut off: that event was never acted on. So a search that is begun again knows all that was
paid for, down to the single fold, and repeats none of it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import orjson
from pydantic import Field, TypeAdapter

from penstock.errors import IntegrityError, UserError
from penstock.files import sync_folder
from penstock.records import Record

State = Literal["running", "complete", "stopped", "failed"]
"""Under way; seen on every fold; given up before that for others that do better; refused."""


Outcome = Literal["complete", "stopped", "failed"]


class Opened(Record):
    """The first line: which search this is."""

    event: Literal["opened"] = "opened"
    plan: dict[str, Any]


class Begun(Record):
    """A trial was proposed."""

    event: Literal["begun"] = "begun"
    trial: int
    estimator: str
    params: dict[str, Any]
    at_s: float


class Measured(Record):
    """A trial was fitted and scored on one fold."""

    event: Literal["measured"] = "measured"
    trial: int
    fold: int
    metrics: dict[str, float]
    fit_s: float
    cpu_s: float
    """CPU seconds that Ray held for it."""
    at_s: float
    """Seconds of searching until then, over all attempts."""


class Ended(Record):
    """A trial is over."""

    event: Literal["ended"] = "ended"
    trial: int
    state: Outcome
    reason: str | None = None


class Closed(Record):
    """The search is over."""

    event: Literal["closed"] = "closed"
    reason: str
    at_s: float


Event = Annotated[Begun | Measured | Ended | Closed, Field(discriminator="event")]
_EVENT: TypeAdapter[Begun | Measured | Ended | Closed] = TypeAdapter(Event)


@dataclass
class Trial:
    """One set of parameters and what is known of it so far."""

    number: int
    estimator: str
    params: dict[str, Any]
    folds: dict[int, Measured] = field(default_factory=dict)
    state: State = "running"
    reason: str | None = None

    def value(self, metric: str, folds: Sequence[int] | None = None) -> float | None:
        """Give the metric's mean over the folds (None: those that are done), if all are there."""
        asked = list(self.folds) if folds is None else folds
        if not asked or any(fold not in self.folds for fold in asked):
            return None
        return sum(self.folds[fold].metrics[metric] for fold in asked) / len(asked)

    @property
    def fit_s(self) -> float:
        """Seconds of its fits."""
        return sum(fold.fit_s for fold in self.folds.values())


class Ledger:
    """A search's record; opening it reads what earlier attempts left."""

    def __init__(self, file: Path, plan: dict[str, Any]) -> None:
        """Read the file, or begin it.

        Raises:
            UserError: it is the record of another search.
            IntegrityError: a line within it is not readable.
        """
        self.trials: list[Trial] = []
        self.closed: str | None = None
        self.elapsed_s = 0.0
        """Seconds of searching by all attempts so far."""
        self._file = file
        found = _lines(file)
        if found:
            self._check_plan(found[0], plan)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._write(Opened(plan=plan))
            sync_folder(file.parent)
        for number, line in enumerate(found[1:], start=2):
            try:
                self._take(_EVENT.validate_json(line))
            except (ValueError, IndexError) as error:
                raise IntegrityError(
                    f"line {number} of {file} is no event of a search: {error}",
                    next_step="search under another request id",
                ) from None

    def append(self, event: Begun | Measured | Ended | Closed) -> None:
        """Write the event, and only then believe it."""
        self._write(event)
        self._take(event)

    @property
    def cpu_s(self) -> float:
        """CPU seconds held by all folds so far."""
        return sum(fold.cpu_s for trial in self.trials for fold in trial.folds.values())

    def _check_plan(self, line: bytes, plan: dict[str, Any]) -> None:
        known = Opened.model_validate_json(line).plan
        asked = orjson.loads(orjson.dumps(plan))
        differing = sorted(key for key in known | asked if known.get(key) != asked.get(key))
        if differing:
            raise UserError(
                f"this request id names a search with another {', '.join(differing)}",
                next_step="repeat the command as it was, or take another --request-id",
            )

    def _take(self, event: Begun | Measured | Ended | Closed) -> None:
        match event:
            case Begun():
                self.trials.append(Trial(event.trial, event.estimator, event.params))
            case Measured():
                self.trials[event.trial].folds[event.fold] = event
            case Ended():
                self.trials[event.trial].state = event.state
                self.trials[event.trial].reason = event.reason
            case Closed():
                self.closed = event.reason
        if not isinstance(event, Ended):
            self.elapsed_s = max(self.elapsed_s, event.at_s)

    def _write(self, event: Record) -> None:
        with self._file.open("ab") as out:
            out.write(event.model_dump_json().encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())


def _lines(file: Path) -> list[bytes]:
    """Give the whole lines, and cut a torn one off."""
    if not file.is_file():
        return []
    content = file.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(file, end)
    return content[:end].splitlines()
