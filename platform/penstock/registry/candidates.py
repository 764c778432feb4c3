"""Several estimators of one model: each is trained and registered, and the best stands out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from penstock.progress import Progress, silent
from penstock.registry import promotion
from penstock.registry.versions import CHAMPION, ModelRegistry, ModelVersion
from penstock.settings import Settings
from penstock.training.declarations import Model
from penstock.training.runs import Run


@dataclass(kw_only=True)
class Candidates:
    """What became of the estimators that were asked for."""

    trained: list[tuple[Run, ModelVersion]] = field(default_factory=list)
    """Each run with its version; the best by the primary metric comes last."""
    promoted: int | None = None
    failures: list[Exception] = field(default_factory=list)
    """In the order in which they came."""

    def report(self, model: str) -> dict[str, Any]:
        """Give what stands, as a job reports it."""
        trained = [
            {"run": run.model_dump(mode="json"), "version": version.model_dump(mode="json")}
            for run, version in self.trained
        ]
        promoted = {} if self.promoted is None else {"promoted": self.promoted}
        return {"model": model, "trained": trained, **promoted}


def names_to_train(model: Model, asked: Iterable[str], *, every: bool) -> list[str]:
    """Give the estimators to train: those asked for, each once; or every one; or the default.

    Raises:
        NotFoundError: the model has no such estimator; the nearest is offered.
    """
    names = list(dict.fromkeys(model.estimators if every else asked)) or [model.default_estimator]
    for name in names:
        model.estimator(name)
    return names


def compare(
    model: Model,
    names: Sequence[str],
    *,
    train: Callable[[str], Run],
    register: Callable[[Run], ModelVersion],
    promote: Callable[[int], int] | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = print,
) -> Candidates:
    """Train each estimator and register what comes out, the best last: it is the challenger.

    One that fails takes nothing from the others; it is told of at once and kept for the caller.

    Args:
        model: says which run is the better one.
        names: of its estimators.
        train: trains the one of that name.
        register: makes a run a version.
        promote: lets the best version through the gate and gives its number; None: nobody asked.
        progress: hears of each registration.
        tell: hears of each failure.
    """
    found = Candidates()

    def failed(what: str, error: Exception) -> None:
        tell(f"{what}: {error}")
        found.failures.append(error)

    runs = []
    for name in names:
        try:
            runs.append(train(name))
        except Exception as error:  # noqa: BLE001  # kept: first the others' turn
            failed(f"{name} failed", error)
    # The last one registered is the challenger.
    runs.sort(key=lambda run: model.rank(run.metrics))
    for number, run in enumerate(runs):
        progress("register", number, len(runs), unit="versions")
        try:
            found.trained.append((run, register(run)))
        except Exception as error:  # noqa: BLE001  # the same
            failed(f"{run.estimator} was not registered", error)
    if promote is not None and found.trained:
        try:
            found.promoted = promote(found.trained[-1][1].version)
        except Exception as error:  # noqa: BLE001  # the same
            failed("the best was not promoted", error)
    return found


def promote_once(settings: Settings, model: str, version: int) -> int:
    """Make the version the champion, unless an earlier attempt at the same request has.

    Raises:
        GateRefusedError: the gate says no.
        BusyError: somebody else has moved the champion meanwhile.
    """
    champion = ModelRegistry(settings).aliases(model).get(CHAMPION)
    if champion != version:
        promotion.promote(settings, model, version, expected=champion)
    return version
