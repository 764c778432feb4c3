"""What the libraries of boosted trees share: rows held out, rounds, checkpoints and the end."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import orjson

from penstock.training.estimators.base import FitJob, Fitted, Labels, NativeModel, Scaled
from penstock.training.estimators.class_weight import positive_weight
from penstock.training.estimators.holdout import Holdout, hold_out
from penstock.training.metric_declarations import Task
from penstock.training.tree_declarations import BoostedTreesEstimator

ROUNDS_PER_CHECKPOINT = 25
TRAIN_LOSS = "train_loss"
VALIDATION_LOSS = "validation_loss"
_MODEL_FILE = "model"
_HISTORY_FILE = "history.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What follows from the labels, the same for all workers."""

    holdout: Holdout | None
    positive_weight: float | None


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows that one worker trains on, and those that all of them validate on."""

    scaled: Scaled
    labels: Labels
    held_out: tuple[Scaled, Labels] | None = None
    positive_weight: float | None = None


@dataclass(frozen=True, kw_only=True)
class State:
    """How far boosting is: what a checkpoint holds, and what a fit ends with."""

    model: bytes | None = None
    """In the library's own format; None: no round is done."""
    history: list[dict[str, float]] = field(default_factory=list)
    """Losses by round, in order."""


AfterRound = Callable[[dict[str, float], Callable[[], bytes]], bool]
"""Takes a round's losses and what gives the model as it is then; says whether to stop."""
Report = Callable[[dict[str, float], Callable[[], State]], None]
"""Takes the last losses and what gives the state to go on from."""


class Library(Protocol):
    """A library that grows trees on one worker's rows."""

    def grow(
        self, before: bytes | None, num_rounds: int, *, seed: int, after_round: AfterRound
    ) -> bytes:
        """Grow more trees after those of `before`; `after_round` may end it early."""
        ...


def plan(config: BoostedTreesEstimator, labels: Labels, job: FitJob | None) -> Plan:
    """Decide which rows are held out and what a positive one weighs.

    Without a job nothing is known of when labels become known.

    Raises:
        TrainingDataError: too few rows to hold some out, or one class to balance.
    """
    stop, holdout, trained = config.early_stopping, None, labels
    if stop is not None:
        holdout = hold_out(
            len(labels),
            stop.validation_share,
            event_times=job.event_times if job else None,
            label_delay=job.label_delay if job else timedelta(0),
        )
        trained = labels[: holdout.num_training_rows]
    return Plan(holdout=holdout, positive_weight=positive_weight(config.positive_weight, trained))


def share_of(plan: Plan, scaled: Scaled, labels: Labels, *, rank: int, world: int) -> Rows:
    """Give a worker's rows: every `world`-th one of those to train on, all that are held out."""
    end, held_out = len(labels), None
    if plan.holdout is not None:
        end, first = plan.holdout.num_training_rows, plan.holdout.first_validation_row
        held_out = (scaled[first:], labels[first:])
    return Rows(
        scaled=scaled[rank:end:world],
        labels=labels[rank:end:world],
        held_out=held_out,
        positive_weight=plan.positive_weight,
    )


def best_round(config: BoostedTreesEstimator, history: Sequence[Mapping[str, float]]) -> int:
    """Give how many rounds to keep: all, or with early stopping up to the best one."""
    if config.early_stopping is None:
        return len(history)
    losses = [losses[VALIDATION_LOSS] for losses in history]
    return losses.index(min(losses)) + 1 if losses else 0


def is_over(config: BoostedTreesEstimator, history: Sequence[Mapping[str, float]]) -> bool:
    """Say whether no further round is to come."""
    done, stop = len(history), config.early_stopping
    if stop is not None and done - best_round(config, history) >= stop.patience_rounds:
        return True
    return done >= config.num_rounds


def boost(config: BoostedTreesEstimator, library: Library, state: State, report: Report) -> State:
    """Grow what is left to grow, reporting a state to go on from every so often.

    Where rows or columns are drawn, the library begins anew after each report, with another seed:
    what it has drawn by then is in no checkpoint, and so a fit that was lost draws the same again.
    """
    model, history = state.model, list(state.history)

    def after_round(losses: dict[str, float], dump: Callable[[], bytes]) -> bool:
        history.append(losses)
        over = is_over(config, history)
        if over or len(history) % ROUNDS_PER_CHECKPOINT == 0:
            report(losses, lambda: State(model=dump(), history=history))
        return over

    while not is_over(config, history):
        num_rounds = config.num_rounds - len(history)
        if config.draws:
            to_report = ROUNDS_PER_CHECKPOINT - len(history) % ROUNDS_PER_CHECKPOINT
            num_rounds = min(num_rounds, to_report)
        model = library.grow(
            model, num_rounds, seed=config.seed + len(history), after_round=after_round
        )
    return State(model=model, history=history)


def facts(config: BoostedTreesEstimator, history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Tell for the record of the run what early stopping decided."""
    if config.early_stopping is None:
        return {}
    return {"rounds_kept": f"{best_round(config, history)} of {len(history)}"}


Start = Callable[[Any, Rows, bool, int], Library]
"""Takes the estimator, one worker's rows, whether it has a GPU, and how many workers there are."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A library of boosted trees as a family of estimators."""

    trainer: Callable[[], type[Any]]
    """Imports Ray Train's trainer for it."""
    start: Start
    read: Callable[[Any, State], NativeModel]
    """Takes the estimator and how its fit ended; gives the trees that are kept."""
    export: Callable[[Any, Task, int], bytes]
    """Takes the trees, the task and the number of features; gives their graph."""

    def fit(
        self, config: BoostedTreesEstimator, scaled: Scaled, labels: Labels, job: FitJob
    ) -> Fitted:
        """Fit on `config.num_workers` workers of Ray Train."""
        state = self.boost_on_workers(config, scaled, labels, job)
        return self._fitted(config, state, num_features=scaled.shape[1])

    def boost_on_workers(
        self, config: BoostedTreesEstimator, scaled: Scaled, labels: Labels, job: FitJob
    ) -> State:
        """Boost as `fit` does, and make no graph."""
        from penstock.training.estimators import distributed

        returned = distributed.run(
            self.trainer(),
            partial(_work, self.start),
            config,
            scaled,
            labels,
            job,
            extra={"plan": plan(config, labels, job)},
        )
        return State(model=returned["model"], history=returned["history"])

    def fit_here(
        self,
        config: BoostedTreesEstimator,
        scaled: Scaled,
        labels: Labels,
        job: FitJob | None = None,
    ) -> Fitted:
        """Fit in this process, to the same trees as one worker of Ray Train."""
        state = self._boosted(config, scaled, labels, job)
        return self._fitted(config, state, num_features=scaled.shape[1])

    def fit_native(
        self,
        config: BoostedTreesEstimator,
        scaled: Scaled,
        labels: Labels,
        job: FitJob | None = None,
    ) -> NativeModel:
        """Fit in this process to the trees alone: whoever only wants scores pays for no graph."""
        return self.read(config, self._boosted(config, scaled, labels, job))

    def _boosted(
        self, config: BoostedTreesEstimator, scaled: Scaled, labels: Labels, job: FitJob | None
    ) -> State:
        rows = share_of(plan(config, labels, job), scaled, labels, rank=0, world=1)
        library = self.start(config, rows, False, 1)
        return boost(config, library, State(), lambda _losses, _state: None)

    def _fitted(self, config: BoostedTreesEstimator, state: State, *, num_features: int) -> Fitted:
        native = self.read(config, state)
        return Fitted(
            native=native,
            onnx=self.export(native, config.task, num_features),
            history=state.history,
            facts=facts(config, state.history),
        )


def _work(start: Start, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Boost on this worker of Ray Train, from the last checkpoint where there is one."""

    from penstock.training.estimators import distributed

    config: BoostedTreesEstimator = parts["config"]
    rank, world = distributed.share()
    scaled, labels = distributed.rows_of(parts)
    rows = share_of(parts["plan"], scaled, labels, rank=rank, world=world)

    def report(losses: dict[str, float], state: Callable[[], State]) -> None:
        _report(losses, state() if rank == 0 else None)

    state = boost(config, start(config, rows, parts["use_gpu"], world), _resume(), report)
    return {"model": state.model, "history": state.history}


def _resume() -> State:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return State()
    with checkpoint.as_directory() as folder:
        return State(
            model=(Path(folder) / _MODEL_FILE).read_bytes(),
            history=orjson.loads((Path(folder) / _HISTORY_FILE).read_bytes()),
        )


def _report(losses: dict[str, float], state: State | None) -> None:
    import ray.train

    if state is None or state.model is None:
        ray.train.report(losses)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _MODEL_FILE).write_bytes(state.model)
        (Path(folder) / _HISTORY_FILE).write_bytes(orjson.dumps(state.history))
        ray.train.report(losses, checkpoint=ray.train.Checkpoint.from_directory(folder))
