"""MLflow's model registry, behind one door: versions, aliases and the journal of their moves.

What is decided stays outside (promotion.py, registration.py); here it is only kept and found.
A version is visible once its folder is sealed: until then its entry is marked unfinished, and no
command but the registration that finishes it sees it.
"""

import contextlib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import mlflow
import mlflow.exceptions
import orjson
from pydantic import Field

from penstock import audit
from penstock.errors import NotFoundError, PenstockError, unknown_name
from penstock.locks import exclusive
from penstock.logs import redact
from penstock.records import Record
from penstock.settings import Settings

Alias = Literal["champion", "challenger", "previous_champion"]
CHAMPION: Literal["champion"] = "champion"
CHALLENGER: Literal["challenger"] = "challenger"
PREVIOUS_CHAMPION: Literal["previous_champion"] = "previous_champion"

_STATE = "penstock.state"
_READY = "ready"
_FACTS = "penstock.facts"
_MOVE = "penstock.move."
_MOVES_DONE = "penstock.moves_done"
_APPROVAL = "penstock.approval."
_MAX_NUMBERS_SKIPPED = 1000
_FIRST_USE_WAIT_S = 120.0
_NO_SUCH_MODEL = "RESOURCE_DOES_NOT_EXIST"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


class VersionFacts(Record):
    """What a version says of itself, beside its number; all of it stands in its sealed folder."""

    digest: str
    use_case: str
    estimator: str
    training_set_id: str
    metrics: dict[str, float]
    agreement_rows: int
    agreement_max_difference: float
    quantization: str | None = None
    """Where int8 is declared: whether it is served, and why."""


class ModelVersion(Record):
    """A sealed, registered version of a model; its run is its left neighbour."""

    name: str
    version: int
    run_id: str
    path: str
    created: datetime
    aliases: tuple[str, ...] = ()
    facts: VersionFacts

    @property
    def label(self) -> str:
        """Names it in one text: `<model> <version>`."""
        return f"{self.name} {self.version}"

    @property
    def digest(self) -> str:
        """What `package.verify` must find."""
        return self.facts.digest

    @property
    def metrics(self) -> dict[str, float]:
        """The run's metrics, as registered; the signed ones are in the package."""
        return self.facts.metrics


class Move(Record):
    """One change of the champion: what was decided, and where every alias stands after it."""

    number: int = Field(ge=1)
    kind: Literal["promote", "rollback"]
    from_version: int | None
    to_version: int
    aliases: dict[str, int | None]
    """Every alias that the move sets (a version) or removes (None)."""
    reason: str
    forced: bool = False
    at: datetime


class Approval(Record):
    """Somebody has looked at a version and agrees to it as champion."""

    actor: str
    at: datetime
    reason: str
    digest: str
    """Of what was looked at."""


class Entry(Record):
    """A version's place in the registry, sealed or not yet."""

    name: str
    version: int
    ready: bool


class ModelRegistry:
    """The registry of the tracking database that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        uri = settings.tracking_uri
        first_use = exclusive(
            settings.storage_path / "locks" / "tracking.lock",
            what="the tracking database's first use",
            wait_s=_FIRST_USE_WAIT_S,
        )
        # MLflow makes its tables on first use, and two processes that both do so get in each
        # other's way; training's door holds the same lock for it.
        with _door(), first_use, warnings.catch_warnings():
            # MLflow's own store uses what SQLAlchemy 2.1 deprecates; a user can do nothing there.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")
            self._client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
            self._client.search_registered_models(max_results=1)

    def folder(self, name: str, version: int) -> Path:
        """Where a version's sealed folder is."""
        return self.settings.models_path / name / str(version)

    def names(self) -> list[str]:
        """Every registered model whose name can be one of ours."""
        with _door():
            names = [model.name for model in _every(self._client.search_registered_models)]
        return sorted(name for name in names if _NAME.fullmatch(name))

    def versions(self, name: str) -> list[ModelVersion]:
        """Every sealed version of a model, the oldest first.

        Raises:
            NotFoundError: there is no such model; the nearest name is offered.
        """
        aliases = self.aliases(name)
        return [
            self._record(entry, aliases)
            for entry in self._entries(name)
            if entry.tags.get(_STATE) == _READY
        ]

    def resolve(self, name: str, version: int | Alias | None = CHAMPION) -> ModelVersion:
        """Find one version by its number or alias; None is the champion.

        Raises:
            NotFoundError: no such model, no such version, or no version bears the alias.
        """
        known = {item.version: item for item in self.versions(name)}
        wanted = CHAMPION if version is None else version
        number = self.aliases(name).get(wanted) if isinstance(wanted, str) else wanted
        if number is None:
            raise NotFoundError(
                f"the model {name} has no {wanted}",
                allowed=f"versions {_numbers(known)}",
                next_step=f"`penstock models promote {name}` makes one"
                if wanted == CHAMPION
                else f"`penstock models list {name}` shows the aliases there are",
            )
        if number not in known:
            raise NotFoundError(
                f"the model {name} has no version {number}", allowed=f"versions {_numbers(known)}"
            )
        return known[number]

    def aliases(self, name: str) -> dict[str, int]:
        """Which version each alias names.

        Raises:
            NotFoundError: there is no such model.
        """
        return {alias: int(number) for alias, number in self._model(name).aliases.items()}

    def moves(self, name: str) -> list[Move]:
        """Every finished move of the champion, the oldest first."""
        moves, done = self._journal(name)
        return [move for move in moves if move.number <= done]

    def approvals(self, name: str, version: int) -> list[Approval]:
        """Who has approved a version, the first first."""
        with _door():
            tags = self._client.get_model_version(name, str(version)).tags
        found = sorted((key, text) for key, text in tags.items() if key.startswith(_APPROVAL))
        return [Approval.model_validate_json(text) for _, text in found]

    # What follows changes the registry; the caller holds the model's lock.

    def find_entry(self, name: str, run_id: str) -> Entry | None:
        """Find the run's place, or None where it has none in its right folder."""
        for entry in self._entries(name):
            number = int(entry.version)
            if entry.run_id == run_id and entry.source == str(self.folder(name, number)):
                return Entry(name=name, version=number, ready=entry.tags.get(_STATE) == _READY)
        return None

    def add_entry(self, name: str, run_id: str) -> Entry:
        """Take a version number for the run, not visible until `finish_entry`.

        Raises:
            PenstockError: the name can't be a model's.
        """
        if not _NAME.fullmatch(name):
            raise PenstockError(
                f"{name!r} cannot be a model's name", allowed="lower-case letters, digits and _"
            )
        if name not in self.names():
            with _door():
                self._client.create_registered_model(name)
        taken = [int(entry.version) for entry in self._entries(name)]
        folders = self.folder(name, 0).parent
        if folders.is_dir():
            taken += [int(item.name) for item in folders.iterdir() if item.name.isdigit()]
        number = max(taken, default=0) + 1
        # MLflow chooses the number, and counts deleted versions that it does not list; the entry's
        # source must be known beforehand. Every entry that does not fit uses up its number, so
        # the two meet.
        for _ in range(_MAX_NUMBERS_SKIPPED):
            with _door():
                created = self._client.create_model_version(
                    name, source=str(self.folder(name, number)), run_id=run_id
                )
            given = int(created.version)
            if given == number:
                return Entry(name=name, version=number, ready=False)
            with _door():
                self._client.delete_model_version(name, str(given))
            number = max(number, given + 1)
        raise PenstockError(
            f"MLflow's next version of {name} is far from {number}, the next free folder",
            next_step=f"is {folders} left over from another tracking database? Move it away",
        )

    def finish_entry(self, entry: Entry, facts: VersionFacts) -> None:
        """Make a sealed version visible; its state is written last."""
        number = str(entry.version)
        with _door():
            for key, value in (
                (_FACTS, facts.model_dump_json()),
                (_STATE, _READY),
            ):
                self._client.set_model_version_tag(entry.name, number, key, value)

    def add_approval(self, name: str, version: int, approval: Approval) -> None:
        """Keep an approval beside those that there are."""
        number = len(self.approvals(name, version)) + 1
        key = f"{_APPROVAL}{number:06d}"
        with _door():
            self._client.set_model_version_tag(name, str(version), key, approval.model_dump_json())

    def set_aliases(self, name: str, aliases: Mapping[str, int | None]) -> None:
        """Point each alias to its version, or remove it."""
        now = self.aliases(name)
        with _door():
            for alias, number in aliases.items():
                if number is None:
                    if alias in now:
                        self._client.delete_registered_model_alias(name, alias)
                elif now.get(alias) != number:
                    self._client.set_registered_model_alias(name, alias, str(number))

    def move(self, name: str, move: Move) -> None:
        """Carry a move out; its intent is written first, so that a kill leaves it to be ended."""
        self._set_tag(name, f"{_MOVE}{move.number:06d}", move.model_dump_json())
        self.finish_moves(name)

    def finish_moves(self, name: str) -> None:
        """Finish the move that a killed holder of the lock began, if there is one."""
        moves, done = self._journal(name)
        for move in moves:
            if move.number > done:
                self._tell(name, move)
                self.set_aliases(name, move.aliases)
                self._set_tag(name, _MOVES_DONE, str(move.number))

    def _tell(self, name: str, move: Move) -> None:
        audit.append(
            self.settings,
            f"model.{move.kind}",
            f"{name} {move.to_version}",
            {"from_version": move.from_version, "reason": move.reason, "forced": move.forced},
            key=f"move {name} {move.number} {move.at.isoformat()}",
        )

    def _journal(self, name: str) -> tuple[list[Move], int]:
        tags = self._model(name).tags
        moves = [Move.model_validate_json(v) for k, v in tags.items() if k.startswith(_MOVE)]
        return sorted(moves, key=lambda move: move.number), int(tags.get(_MOVES_DONE, 0))

    def _set_tag(self, name: str, key: str, value: str) -> None:
        with _door():
            self._client.set_registered_model_tag(name, key, value)

    def _model(self, name: str) -> Any:
        # MLflow would call a name that it can't have an internal fault.
        if _NAME.fullmatch(name):
            with _door():
                try:
                    return self._client.get_registered_model(name)
                except mlflow.exceptions.MlflowException as error:
                    if error.error_code != _NO_SUCH_MODEL:
                        raise
        raise unknown_name("model", name, self.names())

    def _entries(self, name: str) -> list[Any]:
        with _door():
            found = _every(self._client.search_model_versions, filter_string=f"name = '{name}'")
        return sorted(found, key=lambda entry: int(entry.version))

    def _record(self, entry: Any, aliases: Mapping[str, int]) -> ModelVersion:
        number = int(entry.version)
        return ModelVersion(
            name=entry.name,
            version=number,
            run_id=entry.run_id,
            path=str(self.folder(entry.name, number)),
            created=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC),
            aliases=tuple(sorted(alias for alias, at in aliases.items() if at == number)),
            facts=VersionFacts(**orjson.loads(entry.tags[_FACTS])),
        )


def list_versions(settings: Settings, name: str | None = None) -> list[ModelVersion]:
    """Every sealed version of the model, or of all of them.

    Raises:
        NotFoundError: there is no such model.
    """
    registry = ModelRegistry(settings)
    names = registry.names() if name is None else [name]
    return [version for each in names for version in registry.versions(each)]


def resolve(settings: Settings, name: str, version: int | Alias | None = CHAMPION) -> ModelVersion:
    """Find one version by its number or alias; None is the champion.

    Raises:
        NotFoundError: no such model, no such version, or no version bears the alias.
    """
    return ModelRegistry(settings).resolve(name, version)


def _every(search: Callable[..., Any], **arguments: Any) -> list[Any]:
    """Read page after page: MLflow gives a hundred models, or some thousand versions, at a time."""
    found = list(page := search(**arguments))
    while page.token:
        found += (page := search(**arguments, page_token=page.token))
    return found


def _numbers(known: Mapping[int, object]) -> str:
    return ", ".join(map(str, sorted(known))) or "none yet"


@contextlib.contextmanager
def _door() -> Iterator[None]:
    """Translate what MLflow raises."""
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        raise PenstockError(
            f"MLflow's model registry failed: {redact(str(error))}",
            next_step="see that tracking.uri names a database that is up and of this version",
        ) from error
